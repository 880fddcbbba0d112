//! The half of a checkpointer that is not for users: which records were delivered, and what was
//! written by other means.

use std::fmt;
use std::sync::{Arc, Mutex};

use super::{State, lock};
use crate::planted::{Bug, is_planted};
use crate::position::Checkpoint;
use crate::sequence_number::ExtendedSequenceNumber;

/// Tells a [`Checkpointer`](super::Checkpointer) what it may checkpoint. Held by the engine that
/// delivers the records, and never handed to a processor: a wrong word here loses records.
///
/// Clones share their state with each other and with the checkpointer.
#[derive(Clone)]
pub struct CheckpointControl(Arc<Mutex<State>>);

impl CheckpointControl {
    pub(super) fn new(state: Arc<Mutex<State>>) -> Self {
        Self(state)
    }

    /// Notes a record as delivered, so that it may be checkpointed.
    pub fn note_delivered(&self, record: ExtendedSequenceNumber) {
        let mut state = lock(&self.0);
        state.delivered = state.delivered.max(Some(record));
    }

    /// Returns whether a processor has asked for a checkpoint in this term, or prepared one.
    #[must_use]
    pub fn is_used(&self) -> bool {
        lock(&self.0).is_used
    }

    /// Notes that the records after this one (`None`: all) have failed and will be delivered again.
    /// Neither they nor the shard's end may be checkpointed before that.
    pub fn note_failed_after(&self, finished: Option<ExtendedSequenceNumber>) {
        if !is_planted(Bug::FailedMayBeCheckpointed) && !is_planted(Bug::DeliveredIsFinished) {
            let mut state = lock(&self.0);
            (state.delivered, state.ended) = (finished, false);
        }
    }

    /// Notes that this checkpoint was written along with something else.
    pub fn note_written(&self, checkpoint: Checkpoint) {
        let mut state = lock(&self.0);
        state.last = state.last.max(checkpoint);
    }

    /// Notes that the shard has ended and all its records were delivered, so that SHARD_END may be
    /// checkpointed.
    pub fn note_shard_end(&self) {
        lock(&self.0).ended = true;
    }
}

impl fmt::Debug for CheckpointControl {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = lock(&self.0);
        formatter
            .debug_struct("CheckpointControl")
            .field("last", &state.last)
            .field("delivered", &state.delivered)
            .field("ended", &state.ended)
            .finish()
    }
}
