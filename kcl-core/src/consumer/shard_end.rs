//! The end of a shard: its children get their leases, then it is ended, so that a crash between any two steps leaves no hole.

use std::collections::BTreeSet;
use std::time::Duration;

use kcl_checkpoint::Checkpoint;
use kcl_checkpoint::planted::{Bug, is_planted};
use kcl_lease::{Lease, ShardId, TableError, shard_sync};
use tokio::time::Instant;

use super::lanes::LaneEvent;
use super::rewind::PAUSE;
use super::seat::Callback;
use super::{Checkpointing, ShardConsumer, Stop};
use crate::status::ShardState;
use crate::stream::{ChildShard, ShardFilter};

/// The longest time by which a listing of shards is taken to lag.
const LISTINGS_LAG: Duration = Duration::from_secs(120);

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
                self.hold.release(Some(Checkpoint::ShardEnd), names).await;
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
        let lanes = (0..self.work.lanes.len()).filter(|lane| Some(*lane) == first || self.work.lanes.is_free(*lane));
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
        let deadline = self.hold.shared.processing.callbacks.shard_ended;
        if !self.work.lanes.call_back(lane, Callback::ShardEnded, deadline, &self.hold.shard) {
            return Ok(false);
        }
        let (lost, ended) = loop {
            match self.lane_changed().await? {
                LaneEvent::CalledBack { callback: Callback::ShardEnded, lost, result } => break (lost, result),
                other => self.lane_event(other),
            }
        };
        let manual = self.hold.shared.checkpointing == Checkpointing::Manual;
        match ended {
            Ok(()) if manual && !self.hold.shard.checkpointer.last().is_shard_end() => {
                tracing::error!("shard_ended returned without a checkpoint, which manual checkpointing needs here; calling it again");
                Ok(false)
            }
            Ok(()) => {
                // It has heard its last word, whatever becomes of the lease.
                self.work.lanes.discard(lane);
                Ok(true)
            }
            Err(failure) => {
                self.count_panic(&failure);
                tracing::error!(failure = self.hold.shown(&failure), "shard_ended failed; calling it again");
                if lost && self.processor_lost() {
                    self.hold.pause(PAUSE).await?;
                    return Err(self.rewind());
                }
                Ok(false)
            }
        }
    }

    /// Waits for a change on the lanes. If something asks to stop, the call under way may still end
    /// in time, and counts; else it is cut off.
    async fn lane_changed(&mut self) -> Result<LaneEvent, Stop> {
        self.show_call();
        let stop = tokio::select! {
            biased;
            event = self.work.lanes.next(&self.hold.shard) => return Ok(event),
            stop = self.hold.interrupted() => stop,
        };
        let by = self.calls_by(&stop);
        tokio::select! {
            biased;
            event = self.work.lanes.next(&self.hold.shard) => return Ok(event),
            () = tokio::time::sleep_until(by) => {}
        }
        self.cut_off().await;
        Err(stop)
    }

    /// Makes a processor for a lane that has none, however often that fails.
    async fn ensure_processor(&mut self, lane: usize) -> Result<(), Stop> {
        while !self.work.lanes.is_free(lane) {
            self.work.lanes.make_for(lane, &self.hold.shared.factory, &self.hold.shard);
            self.show_call();
            let event = tokio::select! {
                biased;
                stop = self.hold.interrupted() => {
                    self.work.lanes.stop_making();
                    return Err(stop);
                }
                event = self.work.lanes.next(&self.hold.shard) => event,
            };
            let is_made = matches!(event, LaneEvent::Made(_));
            self.lane_event(event);
            if is_made {
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
        let (mut backoff, began) = (self.hold.backoff(), Instant::now());
        loop {
            match self.unknown_parents(children, began.elapsed()).await {
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

    /// The children's other parents that have no lease though Kinesis still lists them. Not of a child that has one: its parents were known when it was made, and
    /// one of them may have been read to its end and cleaned up since. (This one begins anew after a seek, say.)
    ///
    /// A listing may lag, and be older than such a parent. Only one that is younger than the merge shows that a parent is listed no more: it has the child, or has
    /// this shard closed. One that has neither is as old, or the shards are gone; after `waited` that long they are.
    async fn unknown_parents(&mut self, children: &[ChildShard], waited: Duration) -> Result<BTreeSet<ShardId>, String> {
        let table = &self.hold.shared.table;
        let has_lease = async |shard: &ShardId| table.get(shard).await.map(|lease| lease.is_some()).map_err(|error| error.to_string());
        let mut unknown = BTreeSet::new();
        for child in children {
            let others = child.parents.iter().filter(|parent| *parent != self.hold.shard.shard_id());
            for parent in others {
                if !has_lease(parent).await? && !has_lease(&child.shard_id).await? {
                    unknown.insert(parent.clone());
                }
            }
        }
        if !unknown.is_empty() {
            let listed = self.hold.shared.stream_api.list_shards(ShardFilter::All).await.map_err(|error| error.to_string())?;
            let is_listed = |id: &ShardId| listed.iter().any(|shard| shard.shard_id == *id);
            let own = listed.iter().find(|shard| shard.shard_id == *self.hold.shard.shard_id());
            let knows_of_merge = children.iter().any(|child| is_listed(&child.shard_id)) || own.is_some_and(|own| !own.is_open());
            let is_gone = own.is_none() && waited >= LISTINGS_LAG;
            if knows_of_merge || is_gone || is_planted(Bug::OldListingBelieved) {
                unknown.retain(is_listed);
            }
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
                Err(error) => self.hold.failing(error.cause(), &error),
            }
            self.hold.pause(backoff.next_wait()).await?;
        }
    }
}
