//! The end of a shard: its children get their leases, then it is ended, so that a crash between any two steps leaves no hole.

use std::collections::BTreeSet;

use kcl_checkpoint::Checkpoint;
use kcl_checkpoint::planted::{Bug, is_planted};
use kcl_lease::{Lease, ShardId, TableError, shard_sync};
use tokio::time::Instant;

use super::call::guarded;
use super::lanes::LaneEvent;
use super::rewind::PAUSE;
use super::{Checkpointing, ShardConsumer, Stop};
use crate::status::ShardState;
use crate::stream::{ChildShard, ShardFilter};

impl ShardConsumer {
    /// Creates the children's leases, lets the processor finish, and ends the shard. A child can't start before the last step: its
    /// parent is not at SHARD_END. [`Stop::Reopen`] if the processor was lost with what it had collected.
    pub(super) async fn end_shard(&mut self, children: Vec<ChildShard>) -> Stop {
        self.hold.state(ShardState::Ending);
        self.hold.term.set_finished_beyond(None);
        match self.end_steps(&children).await {
            Ok(()) => {
                let names: BTreeSet<ShardId> = children.iter().map(|child| child.shard_id.clone()).collect();
                tracing::info!(children = ?names, "shard ended");
                self.release(Some(Checkpoint::ShardEnd), names).await;
                if is_planted(Bug::ParentEndedBeforeChild) {
                    for lease in shard_sync::child_leases(self.hold.term.taken(), &children, None) {
                        let _ = self.hold.shared.table.create(&lease).await;
                    }
                }
                Stop::Over
            }
            Err(stop) => stop,
        }
    }

    async fn end_steps(&mut self, children: &[ChildShard]) -> Result<(), Stop> {
        self.wait_for_other_parents(children).await?;
        for lease in shard_sync::child_leases(self.hold.term.taken(), children, self.watermark) {
            if !is_planted(Bug::ParentEndedBeforeChild) {
                self.create_lease(&lease).await?;
            }
        }
        self.hold.gate().await?;
        self.hold.control.note_shard_end();
        let mut backoff = self.hold.backoff();
        // There may have been no record, or the last one has cost its processor: somebody has to be told of the end.
        let first = if self.work.lanes.has_free() { None } else { Some(0) };
        let lanes = (0..self.work.lanes.len()).filter(|lane| Some(*lane) == first || self.work.lanes.processor(*lane).is_some());
        for lane in lanes.collect::<Vec<_>>() {
            while !self.told_of_the_end(lane).await? {
                self.hold.pause(backoff.next_wait()).await?;
                self.hold.gate().await?;
            }
        }
        Ok(())
    }

    /// Tells a lane's processor of the shard's end. Returns whether it is content.
    async fn told_of_the_end(&mut self, lane: usize) -> Result<bool, Stop> {
        self.ensure_processor(lane).await?;
        let Some(processor) = self.work.lanes.processor(lane) else { return Ok(false) };
        let ended = guarded(processor.shard_ended(&self.hold.shard), None).await;
        let manual = self.hold.shared.checkpointing == Checkpointing::Manual;
        match ended {
            Ok(()) if manual && !self.hold.shard.checkpointer.last().is_shard_end() => {
                tracing::error!("shard_ended returned without a checkpoint, which manual checkpointing needs here; calling it again");
                Ok(false)
            }
            Ok(()) => Ok(true),
            Err(failure) => {
                tracing::error!(%failure, "shard_ended failed; calling it again");
                if failure.is_fatal_to_processor() {
                    self.work.lanes.discard(lane);
                    if self.processor_lost() {
                        self.hold.pause(PAUSE).await?;
                        return Err(self.rewind());
                    }
                }
                Ok(false)
            }
        }
    }

    /// Makes a processor for a lane that has none, however often that fails.
    async fn ensure_processor(&mut self, lane: usize) -> Result<(), Stop> {
        while self.work.lanes.processor(lane).is_none() {
            self.work.lanes.make_for(lane, &self.hold.shared.factory, &self.hold.shard);
            let made = tokio::select! {
                biased;
                stop = self.hold.interrupted() => return Err(stop),
                event = self.work.lanes.next() => event,
            };
            if let LaneEvent::Made(made) = made {
                self.processor_made(made);
                if let Some(until) = self.work.make.not_before {
                    self.hold.state(ShardState::Retrying);
                    self.hold.pause(until.saturating_duration_since(Instant::now())).await?;
                }
                self.hold.gate().await?;
            }
        }
        Ok(())
    }

    /// A merged child's lease must not be made before its other parent has one: that one may itself be waiting for its parents.
    async fn wait_for_other_parents(&mut self, children: &[ChildShard]) -> Result<(), Stop> {
        let mut backoff = self.hold.backoff();
        loop {
            match self.unknown_parents(children).await {
                Ok(unknown) => {
                    match shard_sync::merge_is_ready(self.hold.shard.shard_id(), children, &|parent| !unknown.contains(parent)) {
                        Ok(()) => return Ok(()),
                        Err(missing) => tracing::info!(%missing, "the shard's end waits"),
                    }
                }
                Err(error) => tracing::warn!(error, "the merged child's other parent could not be looked up; trying again"),
            }
            self.hold.pause(backoff.next_wait()).await?;
        }
    }

    /// The children's other parents that have no lease though Kinesis still lists them.
    async fn unknown_parents(&mut self, children: &[ChildShard]) -> Result<BTreeSet<ShardId>, String> {
        let mut unknown = BTreeSet::new();
        for parent in children.iter().flat_map(|child| &child.parents).filter(|parent| *parent != self.hold.shard.shard_id()) {
            if self.hold.shared.table.get(parent).await.map_err(|error| error.to_string())?.is_none() {
                unknown.insert(parent.clone());
            }
        }
        if !unknown.is_empty() {
            let listed = self.hold.shared.stream_api.list_shards(ShardFilter::All).await.map_err(|error| error.to_string())?;
            unknown.retain(|parent| listed.iter().any(|shard| shard.shard_id == *parent));
        }
        Ok(unknown)
    }

    async fn create_lease(&mut self, lease: &Lease) -> Result<(), Stop> {
        let mut backoff = self.hold.backoff();
        loop {
            self.hold.gate().await?;
            match self.hold.shared.table.create(lease).await {
                Ok(created) => {
                    tracing::debug!(child = %lease.shard_id, created, "child lease");
                    return Ok(());
                }
                Err(error @ TableError::NotFound { .. }) => tracing::error!(%error, "the child's lease can't be created"),
                Err(error) => tracing::warn!(child = %lease.shard_id, %error, "the child's lease could not be created; trying again"),
            }
            self.hold.pause(backoff.next_wait()).await?;
        }
    }
}
