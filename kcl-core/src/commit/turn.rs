//! The record that a commit has to begin with.
//!
//! A checkpoint covers all records before it. So a commit that leaves out older ones, which nobody has finished and no checkpoint covers, would lose them: they are
//! neither in its items nor do they come again.

use std::collections::BTreeSet;
use std::sync::{Mutex, MutexGuard, PoisonError};

use kcl_checkpoint::{Checkpoint, ExtendedSequenceNumber};

use crate::batch::RecordBatch;

/// The records that a shard's one processor has been given.
#[derive(Debug, Default)]
pub(crate) struct Turn(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// The records of the call that is under way, or that was cut off last.
    current: Option<RecordBatch>,
    /// The records of earlier calls, where processors checkpoint for themselves: they may still hold them.
    collected: BTreeSet<ExtendedSequenceNumber>,
}

impl Turn {
    /// The processor is called with these records.
    pub(crate) fn call_begins(&self, batch: &RecordBatch) {
        self.lock().current = Some(batch.clone());
    }

    /// The call has ended. `collects`: what it has not acknowledged it may still hold.
    pub(crate) fn call_ends(&self, collects: bool, checkpoint: Checkpoint) {
        let mut state = self.lock();
        let Some(batch) = state.current.take() else { return };
        if collects {
            state.collected.extend(batch.open_records());
            state.forget_until(checkpoint);
        }
    }

    /// The record is finished without the processor: the dead-letter queue has it.
    pub(crate) fn left(&self, record: ExtendedSequenceNumber) {
        self.lock().collected.remove(&record);
    }

    /// All that no checkpoint covers is delivered again.
    pub(crate) fn begins_anew(&self) {
        *self.lock() = State::default();
    }

    /// The oldest record that a commit would have to answer for, if any.
    pub(super) fn oldest(&self, checkpoint: Checkpoint) -> Option<ExtendedSequenceNumber> {
        let mut state = self.lock();
        state.forget_until(checkpoint);
        let mut open = state.current.iter().flat_map(RecordBatch::open_records).filter(|record| Checkpoint::At(*record) > checkpoint);
        let current = open.next();
        drop(open);
        state.collected.first().copied().into_iter().chain(current).min()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Each change is whole before anything can panic.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn forget_until(&mut self, checkpoint: Checkpoint) {
        if let Checkpoint::At(covered) = checkpoint {
            self.collected = self.collected.split_off(&covered);
            self.collected.remove(&covered);
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::record::Record;

    fn at(number: u128) -> ExtendedSequenceNumber {
        ExtendedSequenceNumber::whole(number.into())
    }

    fn batch(numbers: std::ops::RangeInclusive<u128>) -> RecordBatch {
        let record = |number: u128| Record::new(number.into(), None, Bytes::new(), None);
        RecordBatch::new(numbers.map(record).collect(), None)
    }

    const NOTHING: Checkpoint = Checkpoint::TrimHorizon;

    #[test]
    fn in_a_call_the_oldest_record_that_is_neither_acknowledged_nor_covered_comes_first() {
        let (turn, batch) = (Turn::default(), batch(1..=4));
        assert_eq!(turn.oldest(NOTHING), None);
        turn.call_begins(&batch);
        assert_eq!(turn.oldest(NOTHING), Some(at(1)));
        batch.ack(&batch.records()[0]);
        assert_eq!(turn.oldest(NOTHING), Some(at(2)));
        batch.ack(&batch.records()[2]);
        assert_eq!(turn.oldest(Checkpoint::At(at(2))), Some(at(4)));
        assert_eq!(turn.oldest(Checkpoint::At(at(4))), None);
    }

    #[test]
    fn what_a_call_has_said_is_finished_needs_no_commit() {
        let turn = Turn::default();
        turn.call_begins(&batch(1..=2));
        turn.call_ends(false, NOTHING);
        turn.call_begins(&batch(3..=4));
        assert_eq!(turn.oldest(NOTHING), Some(at(3)));
    }

    #[test]
    fn who_collects_answers_for_earlier_calls_too() {
        let turn = Turn::default();
        turn.call_begins(&batch(1..=3));
        turn.call_ends(true, NOTHING);
        turn.call_begins(&batch(4..=5));
        assert_eq!(turn.oldest(NOTHING), Some(at(1)));
        turn.left(at(1));
        assert_eq!(turn.oldest(NOTHING), Some(at(2)), "the queue has the first one");
        assert_eq!(turn.oldest(Checkpoint::At(at(3))), Some(at(4)));
        turn.call_ends(true, Checkpoint::At(at(4)));
        assert_eq!(turn.oldest(Checkpoint::At(at(4))), Some(at(5)));
        turn.begins_anew();
        assert_eq!(turn.oldest(Checkpoint::At(at(4))), None);
    }
}
