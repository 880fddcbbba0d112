//! What pauses shards of this worker: somebody's word, the processor's, or the safety valve.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kcl_checkpoint::planted::{Bug, is_planted};
use kcl_lease::ShardId;
use tokio::sync::watch;

/// Why a shard stands still though nothing is wrong with its lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PauseReason {
    /// It was asked for.
    Asked,
    /// The processor said stop.
    Processor,
    /// Too many records went to the dead-letter queue.
    SafetyValve,
}

/// Pauses and resumes. Clones are of the same worker.
#[derive(Clone, Debug, Default)]
pub(crate) struct Flow {
    state: Arc<Mutex<State>>,
    changes: watch::Sender<()>,
}

#[derive(Debug, Default)]
struct State {
    all: bool,
    asked: BTreeSet<ShardId>,
    /// By itself, until it is resumed or its term ends.
    stopped: BTreeMap<ShardId, PauseReason>,
}

impl Flow {
    pub(crate) fn pause_all(&self) {
        self.change(|state| state.all = true);
    }

    /// Resumes what was asked for the worker as a whole. Shards that were paused each for itself stay so.
    pub(crate) fn resume_all(&self) {
        self.change(|state| state.all &= is_planted(Bug::PauseNeverEnds));
    }

    pub(crate) fn pause_shard(&self, shard: &ShardId) {
        self.change(|state| {
            state.asked.insert(shard.clone());
        });
    }

    pub(crate) fn resume_shard(&self, shard: &ShardId) {
        self.change(|state| {
            state.asked.remove(shard);
            state.stopped.remove(shard);
        });
    }

    /// The shard stops by itself.
    pub(crate) fn stop_shard(&self, shard: &ShardId, reason: PauseReason) {
        self.change(|state| {
            state.stopped.insert(shard.clone(), reason);
        });
    }

    /// Ends what the shard was stopped for; a pause that was asked for stays.
    pub(crate) fn end_stop(&self, shard: &ShardId) {
        self.change(|state| {
            state.stopped.remove(shard);
        });
    }

    /// The processor pauses its shard: until it is resumed, or its term ends.
    pub(crate) fn pause_for_term(&self, shard: &ShardId) {
        self.stop_shard(shard, PauseReason::Asked);
    }

    /// The shard's term is over: what stopped it was this term's matter. A pause that was asked for stays.
    pub(crate) fn term_ended(&self, shard: &ShardId) {
        self.change(|state| {
            state.stopped.remove(shard);
        });
    }

    /// Why this shard is paused, if it is.
    pub(crate) fn paused(&self, shard: &ShardId) -> Option<PauseReason> {
        let state = self.lock();
        let asked = (state.all || state.asked.contains(shard)).then_some(PauseReason::Asked);
        state.stopped.get(shard).copied().or(asked)
    }

    /// Tells of changes.
    pub(crate) fn changes(&self) -> watch::Receiver<()> {
        self.changes.subscribe()
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.lock());
        self.changes.send_replace(());
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Each change is of one set: no panic leaves it half done.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shard_is_paused_by_its_own_word_and_by_the_workers() {
        let (flow, one, two) = (Flow::default(), ShardId::from("1"), ShardId::from("2"));
        flow.pause_shard(&one);
        assert_eq!((flow.paused(&one), flow.paused(&two)), (Some(PauseReason::Asked), None));
        flow.pause_all();
        assert_eq!(flow.paused(&two), Some(PauseReason::Asked));
        flow.resume_all();
        assert_eq!((flow.paused(&one), flow.paused(&two)), (Some(PauseReason::Asked), None));
        flow.resume_shard(&one);
        assert_eq!(flow.paused(&one), None);
    }

    #[test]
    fn what_stops_by_itself_stops_until_resumed_or_for_its_term() {
        let (flow, one) = (Flow::default(), ShardId::from("1"));
        flow.stop_shard(&one, PauseReason::SafetyValve);
        flow.resume_all();
        assert_eq!(flow.paused(&one), Some(PauseReason::SafetyValve));
        flow.resume_shard(&one);
        assert_eq!(flow.paused(&one), None);
        flow.stop_shard(&one, PauseReason::Processor);
        flow.pause_shard(&one);
        flow.term_ended(&one);
        assert_eq!(flow.paused(&one), Some(PauseReason::Asked));
    }

    #[test]
    fn the_end_of_a_stop_leaves_a_pause_that_was_asked_for() {
        for asked in [false, true] {
            let (flow, one) = (Flow::default(), ShardId::from("1"));
            flow.pause_for_term(&one);
            assert_eq!(flow.paused(&one), Some(PauseReason::Asked));
            flow.stop_shard(&one, PauseReason::Processor);
            if asked {
                flow.pause_shard(&one);
            }
            flow.end_stop(&one);
            assert_eq!(flow.paused(&one), asked.then_some(PauseReason::Asked));
        }
    }
}
