//! The checkpointer that users hold, what it accepts, and the port behind which the fenced write is done.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;

use crate::planted::{Bug, is_planted};
use crate::position::Checkpoint;
use crate::sequence_number::ExtendedSequenceNumber;

/// Writes the checkpoint of one term of one lease.
///
/// # Contract
///
/// - **Fenced.** The write takes effect only while the term still owns the lease; once another term has begun, no call ever
///   succeeds again and each answers [`CheckpointWriteError::LeaseLost`].
/// - **Definite.** `Ok` means durably written. After [`CheckpointWriteError::Unavailable`] the write may still take effect later;
///   calling again with the same or a later checkpoint is safe.
/// - **Cancel safety.** Dropping the future leaves the write either done, not done, or to be done; never half done.
#[async_trait]
pub trait CheckpointWriter: Send + Sync {
    /// Makes `checkpoint` the lease's checkpoint.
    async fn write(&self, checkpoint: Checkpoint) -> Result<(), CheckpointWriteError>;
}

/// Why a checkpoint was not written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CheckpointWriteError {
    /// Another worker owns the shard now, or this term was ended. Stop processing: whoever owns it goes on from the last checkpoint.
    #[error("the lease is lost: another worker goes on from the last checkpoint")]
    LeaseLost,
    /// The lease table did not answer in time. Nothing is lost; try again later.
    #[error("the lease table did not confirm the checkpoint in time; it may still take effect")]
    Unavailable(#[source] Option<Box<dyn std::error::Error + Send + Sync>>),
}

/// Why a checkpoint was refused or not written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CheckpointError {
    /// The position is below the checkpoint that is already written.
    #[error("checkpoint {requested} is below the last checkpoint {last}: a checkpoint never moves backwards")]
    Backwards {
        /// What was asked for.
        requested: Checkpoint,
        /// What is written.
        last: Checkpoint,
    },
    /// The position is beyond the last record that was delivered.
    #[error("checkpoint {requested} is beyond what was delivered so far ({}): it would skip records", Delivered(*delivered))]
    BeyondDelivered {
        /// What was asked for.
        requested: Checkpoint,
        /// The last record delivered, if any was.
        delivered: Option<ExtendedSequenceNumber>,
    },
    /// The write itself failed.
    #[error(transparent)]
    Write(#[from] CheckpointWriteError),
}

impl CheckpointError {
    /// Whether the same call may succeed later.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        matches!(self, Self::Write(CheckpointWriteError::Unavailable(_)))
    }

    /// Whether the shard belongs to another worker now.
    #[must_use]
    pub fn is_lease_lost(&self) -> bool {
        matches!(self, Self::Write(CheckpointWriteError::LeaseLost))
    }
}

struct Delivered(Option<ExtendedSequenceNumber>);

impl fmt::Display for Delivered {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(record) => write!(formatter, "up to {record}"),
            None => formatter.write_str("nothing"),
        }
    }
}

/// Moves the checkpoint of one shard forward, for as long as this worker owns it.
///
/// Clones share their state. A checkpoint is accepted from the last one written up to the last record delivered, and, once the
/// shard has ended, SHARD_END. What failed, and is to be delivered again, counts as not delivered.
#[derive(Clone)]
pub struct Checkpointer {
    state: Arc<Mutex<State>>,
    writer: Arc<dyn CheckpointWriter>,
}

struct State {
    last: Checkpoint,
    delivered: Option<ExtendedSequenceNumber>,
    ended: bool,
}

impl Checkpointer {
    /// A checkpointer for a term that starts at `start`, the checkpoint that its take returned.
    #[must_use]
    pub fn new(start: Checkpoint, writer: Arc<dyn CheckpointWriter>) -> Self {
        Self { state: Arc::new(Mutex::new(State { last: start, delivered: None, ended: false })), writer }
    }

    /// Checkpoints everything delivered so far, or SHARD_END once the shard has ended. With nothing delivered it does nothing.
    ///
    /// That includes the records of a call that is under way: before its end, and in another task, name the last record that is done, with
    /// [`checkpoint_at`](Self::checkpoint_at).
    ///
    /// # Errors
    /// [`CheckpointError::Write`]; the other refusals cannot happen here.
    ///
    /// # Cancel safety
    /// Dropping the future leaves the checkpoint where it was or where it should be; calling again is safe.
    pub async fn checkpoint(&self) -> Result<(), CheckpointError> {
        let target = {
            let state = self.lock();
            if state.ended { Some(Checkpoint::ShardEnd) } else { state.delivered.map(Checkpoint::At) }
        };
        match target {
            // Records delivered before the checkpoint (an aggregate that is partly finished) are no step back.
            Some(target) if target > self.last() => self.write(target).await,
            _ => Ok(()),
        }
    }

    /// Checkpoints this record and all before it.
    ///
    /// # Errors
    /// [`CheckpointError::Backwards`] below the last checkpoint, [`CheckpointError::BeyondDelivered`] above the last delivered
    /// record, [`CheckpointError::Write`] when the write fails.
    ///
    /// # Cancel safety
    /// As [`checkpoint`](Self::checkpoint).
    pub async fn checkpoint_at(&self, record: ExtendedSequenceNumber) -> Result<(), CheckpointError> {
        let requested = Checkpoint::At(record);
        {
            let state = self.lock();
            if requested < state.last {
                return Err(CheckpointError::Backwards { requested, last: state.last });
            }
            if requested == state.last {
                return Ok(());
            }
            if state.delivered.is_none_or(|delivered| record > delivered) {
                return Err(CheckpointError::BeyondDelivered { requested, delivered: state.delivered });
            }
        }
        self.write(requested).await
    }

    /// The checkpoint that is written.
    #[must_use]
    pub fn last(&self) -> Checkpoint {
        self.lock().last
    }

    /// The last record that may be checkpointed: the last one delivered, unless it has failed and is to be delivered again. `None`: none in this term.
    #[must_use]
    pub fn delivered(&self) -> Option<ExtendedSequenceNumber> {
        self.lock().delivered
    }

    /// Notes a record as delivered, so that it may be checkpointed. For whoever delivers records.
    pub fn note_delivered(&self, record: ExtendedSequenceNumber) {
        let mut state = self.lock();
        state.delivered = state.delivered.max(Some(record));
    }

    /// Notes that what was delivered after this record has failed and will be delivered again: it must not be checkpointed before, nor the shard's end.
    /// For whoever delivers records.
    pub fn note_failed_after(&self, finished: Option<ExtendedSequenceNumber>) {
        if !is_planted(Bug::FailedMayBeCheckpointed) && !is_planted(Bug::DeliveredIsFinished) {
            let mut state = self.lock();
            (state.delivered, state.ended) = (finished, false);
        }
    }

    /// Notes that this checkpoint was written along with something else. For whoever wrote it.
    pub fn note_written(&self, checkpoint: Checkpoint) {
        let mut state = self.lock();
        state.last = state.last.max(checkpoint);
    }

    /// Notes that the shard has ended and all its records were delivered, so that SHARD_END may be checkpointed.
    /// For whoever delivers records.
    pub fn note_shard_end(&self) {
        self.lock().ended = true;
    }

    async fn write(&self, checkpoint: Checkpoint) -> Result<(), CheckpointError> {
        self.writer.write(checkpoint).await?;
        // Two clones may write at once; the writer serialises them and the later position stands.
        self.note_written(checkpoint);
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // No change of the state can panic half way, so a panic elsewhere cannot have left it half done.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Checkpointer {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.lock();
        formatter.debug_struct("Checkpointer").field("last", &state.last).field("delivered", &state.delivered).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Keeps what was written, and refuses once it is told to.
    #[derive(Default)]
    struct Written {
        checkpoints: Mutex<Vec<Checkpoint>>,
        lost: Mutex<bool>,
    }

    #[async_trait]
    impl CheckpointWriter for Written {
        async fn write(&self, checkpoint: Checkpoint) -> Result<(), CheckpointWriteError> {
            if *self.lost.lock().unwrap() {
                return Err(CheckpointWriteError::LeaseLost);
            }
            self.checkpoints.lock().unwrap().push(checkpoint);
            Ok(())
        }
    }

    fn record(number: u128, sub: u64) -> ExtendedSequenceNumber {
        ExtendedSequenceNumber::new(number.into(), sub)
    }

    fn start_at(start: Checkpoint) -> (Checkpointer, Arc<Written>) {
        let written = Arc::new(Written::default());
        let writer: Arc<dyn CheckpointWriter> = Arc::<Written>::clone(&written);
        (Checkpointer::new(start, writer), written)
    }

    #[tokio::test]
    async fn everything_delivered_so_far_is_checkpointed_once() {
        let (checkpointer, written) = start_at(Checkpoint::TrimHorizon);
        checkpointer.checkpoint().await.unwrap();
        checkpointer.note_delivered(record(5, 0));
        checkpointer.checkpoint().await.unwrap();
        checkpointer.checkpoint().await.unwrap();
        assert_eq!(*written.checkpoints.lock().unwrap(), [Checkpoint::At(record(5, 0))]);
    }

    #[tokio::test]
    async fn never_backwards_and_never_past_what_was_delivered() {
        let (checkpointer, written) = start_at(Checkpoint::At(record(10, 2)));
        assert!(matches!(checkpointer.checkpoint_at(record(10, 3)).await, Err(CheckpointError::BeyondDelivered { delivered: None, .. })));
        checkpointer.note_delivered(record(11, 0));
        assert!(matches!(checkpointer.checkpoint_at(record(10, 1)).await, Err(CheckpointError::Backwards { .. })));
        assert!(matches!(checkpointer.checkpoint_at(record(11, 1)).await, Err(CheckpointError::BeyondDelivered { .. })));
        checkpointer.checkpoint_at(record(10, 2)).await.unwrap();
        checkpointer.checkpoint_at(record(11, 0)).await.unwrap();
        assert_eq!(*written.checkpoints.lock().unwrap(), [Checkpoint::At(record(11, 0))]);
    }

    #[tokio::test]
    async fn what_failed_is_not_checkpointed_before_it_is_delivered_again() {
        let (checkpointer, written) = start_at(Checkpoint::At(record(1, 0)));
        checkpointer.note_delivered(record(9, 0));
        checkpointer.note_failed_after(Some(record(4, 0)));
        assert!(matches!(checkpointer.checkpoint_at(record(9, 0)).await, Err(CheckpointError::BeyondDelivered { .. })));
        checkpointer.note_delivered(record(5, 0));
        checkpointer.checkpoint().await.unwrap();
        assert_eq!(*written.checkpoints.lock().unwrap(), [Checkpoint::At(record(5, 0))]);
        checkpointer.note_failed_after(None);
        checkpointer.checkpoint().await.unwrap();
        assert_eq!(written.checkpoints.lock().unwrap().len(), 1);
    }

    #[tokio::test]
    async fn shard_end_only_after_the_shard_has_ended() {
        let (checkpointer, written) = start_at(Checkpoint::TrimHorizon);
        checkpointer.note_delivered(record(1, 0));
        checkpointer.checkpoint().await.unwrap();
        checkpointer.note_shard_end();
        checkpointer.checkpoint().await.unwrap();
        assert_eq!(*written.checkpoints.lock().unwrap(), [Checkpoint::At(record(1, 0)), Checkpoint::ShardEnd]);
        assert!(matches!(checkpointer.checkpoint_at(record(1, 0)).await, Err(CheckpointError::Backwards { .. })));
    }

    #[tokio::test]
    async fn no_shard_end_while_records_come_again() {
        let (checkpointer, written) = start_at(Checkpoint::TrimHorizon);
        checkpointer.note_delivered(record(2, 0));
        checkpointer.note_shard_end();
        checkpointer.note_failed_after(Some(record(1, 0)));
        checkpointer.checkpoint().await.unwrap();
        assert_eq!(*written.checkpoints.lock().unwrap(), [Checkpoint::At(record(1, 0))]);
    }

    #[tokio::test]
    async fn a_lost_lease_leaves_the_last_checkpoint_as_it_was() {
        let (checkpointer, written) = start_at(Checkpoint::Latest);
        checkpointer.note_delivered(record(1, 0));
        *written.lost.lock().unwrap() = true;
        let error = checkpointer.checkpoint().await.unwrap_err();
        assert!(error.is_lease_lost() && !error.is_retryable());
        assert_eq!(checkpointer.last(), Checkpoint::Latest);
    }
}
