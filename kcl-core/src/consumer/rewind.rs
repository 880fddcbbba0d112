//! Going back to the checkpoint within a term: a processor that checkpoints for itself was lost, and what it had collected with it.
//!
//! With manual checkpoints a call that is done may have done no more than collect its records; a checkpoint says when they are finished. A processor that
//! panics or overruns its deadline takes what it has collected along. Whatever was given to it since the checkpoint is therefore given again, to the one that
//! is made in its place. In this order:
//!
//! 1. The call ends. From this moment on nothing beyond the checkpoint may be checkpointed, and no call begins.
//! 2. Dead letters are accepted, and the wait after the failure passes. (Not those of broken aggregates: they are read, and sent, anew.)
//! 3. The shard is read from the checkpoint on. What is known of its records is kept: attempts, where calls end, and which ones the queue has. Else a
//!    record that always panics would never be given up.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use kcl_checkpoint::planted::{Bug, is_planted};
use kcl_checkpoint::{AckedPrefix, Checkpoint, ExtendedSequenceNumber};
use kcl_lease::Clock as _;
use tokio::time::Instant;

use super::schedule::{Entry, History};
use super::start::is_covered;
use super::{Checkpointing, ShardConsumer, Stop};
use crate::record::Record;

/// Dead letters beyond the checkpoint that are remembered. One that is forgotten is tried and sent again after a rewind.
const MOST_DEAD: usize = 10_000;

/// The least time from a loss to the rewind. Each opens a reader, whose pace begins anew: the service allows five reads per second and shard.
pub(super) const PAUSE: Duration = Duration::from_secs(1);

/// What a rewind needs to know. See the module.
#[derive(Debug, Default)]
pub(super) struct Rewind {
    /// When it may be, if one is due.
    due: Option<Instant>,
    /// The last record that a call was done with, and whether it is one of an aggregate.
    done: Option<(ExtendedSequenceNumber, bool)>,
    /// The first one that no checkpoint has covered when it was done.
    first: Option<ExtendedSequenceNumber>,
    /// The last record that a call was done with before the last rewind.
    done_before: Option<ExtendedSequenceNumber>,
    /// What records that were unfinished at the last rewind had been through, and whether a call ends before them; until they are finished.
    tried: BTreeMap<ExtendedSequenceNumber, (History, bool)>,
    /// Records that the dead-letter queue has accepted.
    dead: BTreeSet<ExtendedSequenceNumber>,
}

impl Rewind {
    pub(super) fn is_due(&self) -> bool {
        self.due.is_some()
    }

    pub(super) fn due(&self) -> Option<Instant> {
        self.due
    }

    /// A call was done with these.
    pub(super) fn done(&mut self, records: &[Record], checkpoint: Checkpoint) {
        if !self.is_anything_collected(checkpoint) {
            self.first = None;
        }
        self.first = self.first.or_else(|| records.iter().map(Record::position).min());
        self.done = self.done.max(records.iter().map(|record| (record.position(), record.is_aggregated())).max());
    }

    /// Whether a call was done with a record before the last rewind.
    pub(super) fn is_repetition(&self, record: ExtendedSequenceNumber) -> bool {
        self.done_before.is_some_and(|before| record <= before) && !self.tried.contains_key(&record)
    }

    /// A record is finished.
    pub(super) fn finished(&mut self, record: ExtendedSequenceNumber) {
        self.tried.remove(&record);
    }

    /// Whether a processor may hold what no checkpoint covers.
    fn is_anything_collected(&self, checkpoint: Checkpoint) -> bool {
        self.done.is_some_and(|(done, is_aggregated)| !is_covered(done, is_aggregated, checkpoint))
    }

    /// The dead-letter queue has accepted a record.
    fn dead(&mut self, record: ExtendedSequenceNumber, checkpoint: Checkpoint) {
        self.dead.insert(record);
        if self.dead.len() > MOST_DEAD {
            self.dead.retain(|dead| Checkpoint::At(*dead) > checkpoint);
        }
        if self.dead.len() > MOST_DEAD {
            self.dead.pop_first();
        }
    }

    /// Whether the dead-letter queue has accepted a record, which comes again.
    pub(super) fn is_dead(&self, record: ExtendedSequenceNumber) -> bool {
        self.dead.contains(&record)
    }

    /// A record that was read, with what it has been through.
    pub(super) fn entry(&mut self, record: Record) -> Entry {
        let (history, cut) = self.tried.get(&record.position()).copied().unwrap_or_default();
        Entry { record, history, cut }
    }

    /// The shard is read anew: these had been read and are not finished. What comes before the first of them goes into calls of its own, so that what was
    /// found out of them by dividing their batch stays true.
    ///
    /// Returns the first record that was there, if it is beyond the checkpoint.
    fn begin(&mut self, unfinished: &[Entry], checkpoint: Checkpoint) -> Option<ExtendedSequenceNumber> {
        let first = self.first.into_iter().chain(unfinished.first().map(|entry| entry.record.position())).min();
        self.done_before = self.done_before.max(self.done.map(|(done, _)| done));
        (self.due, self.done, self.first) = (None, None, None);
        let tried = unfinished.iter().enumerate();
        self.tried.extend(tried.map(|(index, entry)| (entry.record.position(), (entry.history, entry.cut || index == 0))));
        first.filter(|first| Checkpoint::At(*first) > checkpoint)
    }
}

impl ShardConsumer {
    fn checkpoints_by_hand(&self) -> bool {
        self.hold.shared.checkpointing == Checkpointing::Manual
    }

    /// Whether a processor that checkpoints for itself may hold what no checkpoint covers.
    pub(super) fn is_anything_collected(&self) -> bool {
        self.checkpoints_by_hand() && self.work.rewind.is_anything_collected(self.hold.shard.checkpointer.last())
    }

    /// A processor is lost. Returns whether the shard has to be read from the checkpoint on.
    pub(super) fn processor_lost(&mut self) -> bool {
        if !self.is_anything_collected() || is_planted(Bug::CollectedIsForgotten) {
            return false;
        }
        let checkpointer = &self.hold.shard.checkpointer;
        tracing::warn!(
            checkpoint = %checkpointer.last(),
            "the processor is lost, and with it what it may have collected since the checkpoint: that is delivered again"
        );
        self.hold.control.note_failed_after(checkpointer.last().record());
        self.work.rewind.due.get_or_insert(Instant::now() + PAUSE);
        true
    }

    /// A record is accepted by the dead-letter queue: it is not tried again after a rewind.
    pub(super) fn note_dead(&mut self, record: ExtendedSequenceNumber) {
        if self.checkpoints_by_hand() {
            self.work.rewind.dead(record, self.hold.shard.checkpointer.last());
            if let Some(turn) = self.hold.shard.committer.turn() {
                turn.left(record);
            }
        }
    }

    /// Whether all is ready for a rewind that is due.
    pub(super) fn may_rewind(&self) -> bool {
        let work = &self.work;
        let is_time = work.rewind.due.is_some_and(|due| due <= Instant::now());
        is_time && work.lanes.is_idle() && work.outbox.is_made_anew() && !work.schedule.has_waiting()
    }

    /// Goes back to the checkpoint.
    pub(super) fn rewind(&mut self) -> Stop {
        let checkpointer = &self.hold.shard.checkpointer;
        let checkpoint = checkpointer.last();
        // The shard may have ended for its lost processor.
        self.hold.control.note_failed_after(checkpoint.record());
        if let Some(turn) = self.hold.shard.committer.turn() {
            turn.begins_anew();
        }
        let unfinished = self.work.forget_what_was_read();
        let first = self.work.rewind.begin(&unfinished, checkpoint);
        self.filter.expect(first.or(self.filter.expected()));
        self.prefix = AckedPrefix::default();
        self.looked = self.hold.shared.clock.boot_time();
        self.hold.shared.metrics.rewound();
        self.hold.shared.status.update(self.hold.shard.shard_id(), |status| status.finished = checkpoint.record());
        Stop::Reopen(self.begin_at_checkpoint())
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn record(number: u128) -> Record {
        Record::new(number.into(), None, Bytes::new(), None)
    }

    fn at(number: u128) -> ExtendedSequenceNumber {
        ExtendedSequenceNumber::whole(number.into())
    }

    #[test]
    fn only_what_a_call_was_done_with_is_collected_until_a_checkpoint_covers_it() {
        let mut rewind = Rewind::default();
        assert!(!rewind.is_anything_collected(Checkpoint::TrimHorizon));
        rewind.dead(at(9), Checkpoint::TrimHorizon);
        assert!(!rewind.is_anything_collected(Checkpoint::TrimHorizon), "nobody holds what is in the queue");
        rewind.done(&[record(4), record(5)], Checkpoint::TrimHorizon);
        rewind.done(&[record(3)], Checkpoint::TrimHorizon);
        rewind.done(&[], Checkpoint::TrimHorizon);
        assert!(rewind.is_anything_collected(Checkpoint::TrimHorizon) && rewind.is_anything_collected(Checkpoint::At(at(4))));
        assert!(!rewind.is_anything_collected(Checkpoint::At(at(5))));
        // made inside of an aggregate, which is taken as it is now
        let inside = Checkpoint::At(ExtendedSequenceNumber::new(5.into(), 3));
        assert!(rewind.is_anything_collected(inside));
    }

    #[test]
    fn a_rewind_is_due_until_it_is_made() {
        let now = Instant::now();
        let mut rewind = Rewind::default();
        assert_eq!((rewind.is_due(), rewind.due()), (false, None));
        rewind.due = Some(now);
        assert_eq!((rewind.is_due(), rewind.due()), (true, Some(now)));
        rewind.begin(&[], Checkpoint::TrimHorizon);
        assert_eq!((rewind.is_due(), rewind.due()), (false, None));
    }

    #[test]
    fn what_was_done_before_the_last_rewind_is_a_repetition() {
        let mut rewind = Rewind::default();
        rewind.done(&[record(4), record(5)], Checkpoint::TrimHorizon);
        assert!(!rewind.is_repetition(at(4)));
        rewind.begin(&[], Checkpoint::TrimHorizon);
        assert!(rewind.is_repetition(at(5)) && !rewind.is_repetition(at(6)));
        // lost again before it got so far
        rewind.done(&[record(3)], Checkpoint::TrimHorizon);
        rewind.begin(&[], Checkpoint::TrimHorizon);
        assert!(rewind.is_repetition(at(5)) && !rewind.is_repetition(at(6)));
    }

    #[test]
    fn what_a_record_has_been_through_is_kept_until_it_is_read_again() {
        let tried =
            |number, failures, cut| Entry { history: History { failures, ..History::default() }, cut, ..Entry::new(record(number)) };
        let mut rewind = Rewind::default();
        rewind.begin(&[tried(5, 2, false), tried(6, 0, true), tried(7, 1, false)], Checkpoint::TrimHorizon);
        let seen = |entry: Entry| (entry.history.failures, entry.cut);
        assert_eq!(seen(rewind.entry(record(4))), (0, false));
        assert_eq!(seen(rewind.entry(record(5))), (2, true), "what comes again before it is called apart");
        // another rewind before all has come again
        rewind.begin(&[tried(5, 3, false)], Checkpoint::TrimHorizon);
        assert_eq!([5, 6, 7].map(|number| seen(rewind.entry(record(number)))), [(3, true), (0, true), (1, false)]);
        (5..=7).for_each(|number| rewind.finished(at(number)));
        assert_eq!(seen(rewind.entry(record(5))), (0, false));
    }

    #[test]
    fn what_was_unfinished_at_the_rewind_is_no_repetition_when_it_is_done() {
        let mut rewind = Rewind::default();
        rewind.done(&[record(4), record(6)], Checkpoint::TrimHorizon);
        rewind.begin(&[Entry::new(record(5))], Checkpoint::TrimHorizon);
        assert_eq!([4, 5, 6].map(|number| rewind.is_repetition(at(number))), [true, false, true]);
    }

    #[test]
    fn the_first_record_since_the_checkpoint_has_to_come_again() {
        let begun = |done: &[(u128, Checkpoint)], unfinished: &[u128], checkpoint| {
            let mut rewind = Rewind::default();
            done.iter().for_each(|(number, checkpoint)| rewind.done(&[record(*number)], *checkpoint));
            let unfinished: Vec<_> = unfinished.iter().map(|number| Entry::new(record(*number))).collect();
            rewind.begin(&unfinished, checkpoint)
        };
        let (start, five) = (Checkpoint::TrimHorizon, Checkpoint::At(at(5)));
        assert_eq!(begun(&[(4, start), (5, start)], &[6], start), Some(at(4)));
        assert_eq!(begun(&[(7, start)], &[6], start), Some(at(6)), "it has failed while a later one was done");
        assert_eq!(begun(&[(4, start), (5, start), (6, five), (7, five)], &[], five), Some(at(6)), "the checkpoint covers the others");
        for first in [4, 5] {
            assert_eq!(begun(&[(first, start), (6, start)], &[], five), None, "the checkpoint's own record tells");
        }
    }

    #[test]
    fn of_too_many_dead_letters_those_that_the_checkpoint_covers_are_forgotten_first() {
        let mut rewind = Rewind::default();
        let most = MOST_DEAD as u128;
        (0..most).for_each(|number| rewind.dead(at(number), Checkpoint::TrimHorizon));
        rewind.dead(at(most), Checkpoint::At(at(1)));
        assert!(!rewind.is_dead(at(1)) && rewind.is_dead(at(2)) && rewind.is_dead(at(most)));
        rewind.dead(at(most + 1), Checkpoint::At(at(1)));
        rewind.dead(at(most + 2), Checkpoint::At(at(1)));
        assert!(!rewind.is_dead(at(2)) && rewind.is_dead(at(3)));
    }
}
