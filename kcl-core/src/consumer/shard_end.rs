//! The end of a shard: its children get their leases, then it is ended, so that a crash between any two steps leaves no hole.

use std::collections::BTreeSet;

use kcl_checkpoint::Checkpoint;
use kcl_checkpoint::planted::{Bug, is_planted};
use kcl_lease::{Lease, ShardId, TableError, shard_sync};

use super::call::guarded;
use super::{Checkpointing, ShardConsumer, Stop};
use crate::status::ShardState;
use crate::stream::{ChildShard, ShardFilter};

impl ShardConsumer {
    /// Creates the children's leases, lets the processor finish, and ends the shard. A child can't start before the last step: its
    /// parent is not at SHARD_END.
    pub(super) async fn end_shard(&mut self, children: Vec<ChildShard>) -> Stop {
        self.state(ShardState::Ending);
        match self.end_steps(&children).await {
            Ok(()) => {
                let names: BTreeSet<ShardId> = children.iter().map(|child| child.shard_id.clone()).collect();
                tracing::info!(children = ?names, "shard ended");
                self.release(Some(Checkpoint::ShardEnd), names).await;
                if is_planted(Bug::ParentEndedBeforeChild) {
                    for lease in shard_sync::child_leases(self.term.taken(), &children, None) {
                        let _ = self.shared.table.create(&lease).await;
                    }
                }
                Stop::ShardEnd(Vec::new())
            }
            Err(stop) => stop,
        }
    }

    async fn end_steps(&mut self, children: &[ChildShard]) -> Result<(), Stop> {
        self.wait_for_other_parents(children).await?;
        for lease in shard_sync::child_leases(self.term.taken(), children, self.watermark) {
            if !is_planted(Bug::ParentEndedBeforeChild) {
                self.create_lease(&lease).await?;
            }
        }
        self.gate().await?;
        self.shard.checkpointer.note_shard_end();
        let mut backoff = self.backoff();
        loop {
            self.ensure_processor().await?;
            let Some(processor) = &mut self.processor else { continue };
            let ended = guarded(processor.get().shard_ended(&self.shard)).await;
            let manual = self.shared.checkpointing == Checkpointing::Manual;
            match ended {
                Ok(()) if manual && !self.shard.checkpointer.last().is_shard_end() => {
                    tracing::error!("shard_ended returned without a checkpoint, which manual checkpointing needs here; calling it again");
                }
                Ok(()) => return Ok(()),
                Err(failure) => {
                    tracing::error!(%failure, "shard_ended failed; calling it again");
                    if failure.is_panic() {
                        self.processor = None;
                    }
                }
            }
            self.pause(backoff.next_wait()).await?;
            self.gate().await?;
        }
    }

    /// A merged child's lease must not be made before its other parent has one: that one may itself be waiting for its parents.
    async fn wait_for_other_parents(&self, children: &[ChildShard]) -> Result<(), Stop> {
        let mut backoff = self.backoff();
        loop {
            match self.unknown_parents(children).await {
                Ok(unknown) => match shard_sync::merge_is_ready(self.shard.shard_id(), children, &|parent| !unknown.contains(parent)) {
                    Ok(()) => return Ok(()),
                    Err(missing) => tracing::info!(%missing, "the shard's end waits"),
                },
                Err(error) => tracing::warn!(error, "the merged child's other parent could not be looked up; trying again"),
            }
            self.pause(backoff.next_wait()).await?;
        }
    }

    /// The children's other parents that have no lease though Kinesis still lists them.
    async fn unknown_parents(&self, children: &[ChildShard]) -> Result<BTreeSet<ShardId>, String> {
        let mut unknown = BTreeSet::new();
        for parent in children.iter().flat_map(|child| &child.parents).filter(|parent| *parent != self.shard.shard_id()) {
            if self.shared.table.get(parent).await.map_err(|error| error.to_string())?.is_none() {
                unknown.insert(parent.clone());
            }
        }
        if !unknown.is_empty() {
            let listed = self.shared.stream_api.list_shards(ShardFilter::All).await.map_err(|error| error.to_string())?;
            unknown.retain(|parent| listed.iter().any(|shard| shard.shard_id == *parent));
        }
        Ok(unknown)
    }

    async fn create_lease(&self, lease: &Lease) -> Result<(), Stop> {
        let mut backoff = self.backoff();
        loop {
            self.gate().await?;
            match self.shared.table.create(lease).await {
                Ok(created) => {
                    tracing::debug!(child = %lease.shard_id, created, "child lease");
                    return Ok(());
                }
                Err(error @ TableError::NotFound { .. }) => tracing::error!(%error, "the child's lease can't be created"),
                Err(error) => tracing::warn!(child = %lease.shard_id, %error, "the child's lease could not be created; trying again"),
            }
            self.pause(backoff.next_wait()).await?;
        }
    }
}
