//! The end of a shard: its children get their leases, then it is ended, so that a crash between any two steps leaves no hole.

use std::collections::{BTreeMap, BTreeSet};

use kcl_checkpoint::Checkpoint;
use kcl_checkpoint::planted::{Bug, is_planted};
use kcl_lease::{Lease, ShardId, TableError, shard_sync};
use tokio::time::Instant;

use super::lanes::LaneEvent;
use super::rewind::PAUSE;
use super::seat::Callback;
use super::{Checkpointing, ShardConsumer, Stop};
use crate::status::ShardState;
use crate::stream::{ChildShard, Shard, ShardFilter};

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

    /// The children's other parents that have no lease and were not trimmed. Not of a child that has one: its parents were known when it was made, and
    /// one of them may have been read to its end and cleaned up since. (This one begins anew after a seek, say.)
    async fn unknown_parents(&mut self, children: &[ChildShard]) -> Result<BTreeSet<ShardId>, String> {
        let table = &self.hold.shared.table;
        let has_lease = async |shard: &ShardId| table.get(shard).await.map(|lease| lease.is_some()).map_err(|error| error.to_string());
        let mut unknown = BTreeMap::new();
        for child in children {
            let others = child.parents.iter().filter(|parent| *parent != self.hold.shard.shard_id());
            for parent in others {
                if !has_lease(parent).await? && !has_lease(&child.shard_id).await? {
                    unknown.insert(parent.clone(), child.shard_id.clone());
                }
            }
        }
        if !unknown.is_empty() {
            let listed = self.hold.shared.stream_api.list_shards(ShardFilter::All).await.map_err(|error| error.to_string())?;
            unknown.retain(|parent, child| !was_trimmed(parent, child, &listed));
        }
        Ok(unknown.into_keys().collect())
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

/// Whether a listing shows that a child's parent was trimmed: it lacks the parent, and is no older than the child. One that lags lacks a parent that is about to be listed:
/// shards are merged and merged again within seconds.
fn was_trimmed(parent: &ShardId, child: &ShardId, listing: &[Shard]) -> bool {
    // Kinesis numbers shards as they come.
    let is_no_older = || listing.iter().any(|shard| shard.shard_id >= *child);
    listing.iter().all(|shard| shard.shard_id != *parent) && is_no_older()
}

#[cfg(test)]
mod tests {
    use kcl_lease::HashKeyRange;

    use super::*;

    #[test]
    fn a_parent_that_a_listing_lacks_was_trimmed_if_the_listing_is_no_older_than_the_child() {
        let shard = |number: u32| Shard {
            shard_id: format!("shard-{number}").as_str().into(),
            parents: BTreeSet::new(),
            hash_range: HashKeyRange { start: 0, end: u128::MAX },
            starting_sequence_number: u128::from(number).into(),
            ending_sequence_number: None,
        };
        for (listing, expected) in [
            (&[1, 3, 4][..], false),
            (&[1, 4], true),
            // the child was trimmed too
            (&[1, 7], true),
            // the listing is from before the parent
            (&[1, 2], false),
            (&[], false),
        ] {
            let listing: Vec<_> = listing.iter().map(|number| shard(*number)).collect();
            assert_eq!(was_trimmed(&"shard-3".into(), &"shard-4".into(), &listing), expected, "{listing:?}");
        }
    }
}
