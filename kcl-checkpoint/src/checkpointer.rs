//! The checkpointer that users hold, the positions that it accepts, and the port behind which the
//! fenced write is done.
//!
//! | module | owns |
//! |---|---|
//! | this | the port, and the handle for users |
//! | `control` | the other half, for the engine that delivers the records |
//! | `prepared` | checkpoints in two phases: the pending one, and the handle that commits it |
//! | `error` | why a checkpoint was refused or not written |

mod control;
mod error;
mod prepared;

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use bytes::Bytes;

pub use self::control::CheckpointControl;
pub use self::error::{CheckpointError, CheckpointWriteError};
pub use self::prepared::{PendingCheckpoint, PreparedCheckpoint};
use crate::position::Checkpoint;
use crate::sequence_number::ExtendedSequenceNumber;

/// Writes the checkpoint of one term of one lease.
///
/// # Contract
///
/// - **Fenced.** A write takes effect only while the term still owns the lease. Once another term
///   has begun, no call ever succeeds again and each answers [`CheckpointWriteError::LeaseLost`].
/// - **Definite.** `Ok` means durably written. After [`CheckpointWriteError::Unavailable`] the write
///   may still take effect later; calling again with the same or a later checkpoint is safe.
/// - **In order.** Calls take effect in the order in which they were made, each as a whole.
/// - **Cancel safety.** Dropping the future leaves the write either done, not done, or to be done;
///   never half done.
#[async_trait]
pub trait CheckpointWriter: Send + Sync {
    /// Makes `checkpoint` the lease's checkpoint. Removes a pending checkpoint that it covers, and
    /// keeps one that is beyond it.
    async fn write(&self, checkpoint: Checkpoint) -> Result<(), CheckpointWriteError>;

    /// Makes `pending` the lease's pending checkpoint, in place of an earlier one. The checkpoint
    /// itself stays where it is.
    ///
    /// If the lease's checkpoint covers `pending` already, nothing is noted, and the answer is `Ok`:
    /// the result is the same as if `pending` had been prepared first.
    async fn prepare(&self, pending: PendingCheckpoint) -> Result<(), CheckpointWriteError>;

    /// The lease's checkpoint, as far as the writer knows. It may be ahead of what was answered: a
    /// write whose caller was dropped, or did not wait long enough, takes effect later.
    fn written(&self) -> Option<Checkpoint> {
        None
    }
}

/// Moves the checkpoint of one shard forward, for as long as this worker owns it.
///
/// Clones share their state. A checkpoint is accepted from the last one written up to the last
/// record delivered, and, once the shard has ended, SHARD_END. Records that failed, and are to be
/// delivered again, count as not delivered.
///
/// Only the [`CheckpointControl`] that was made with it says what was delivered, and that the shard
/// has ended. A processor can't end an open shard:
///
/// ```compile_fail,E0599
/// fn end(checkpointer: kcl_checkpoint::Checkpointer) {
///     checkpointer.note_shard_end();
/// }
/// ```
#[derive(Clone)]
pub struct Checkpointer {
    state: Arc<Mutex<State>>,
    writer: Arc<dyn CheckpointWriter>,
    is_engines: bool,
}

struct State {
    last: Checkpoint,
    /// A processor has used its handle.
    is_used: bool,
    delivered: Option<ExtendedSequenceNumber>,
    ended: bool,
}

impl State {
    /// The checkpoint of everything delivered so far, if it is a step forward.
    fn everything(&self) -> Option<Checkpoint> {
        let delivered = || self.delivered.map(Checkpoint::At);
        // Records delivered before the checkpoint (a partly finished aggregate) are no step back.
        let target = if self.ended { Some(Checkpoint::ShardEnd) } else { delivered() };
        target.filter(|target| *target > self.last)
    }

    /// Why this checkpoint must not be written, if so.
    fn refusal(&self, requested: Checkpoint) -> Option<CheckpointError> {
        if requested < self.last {
            return Some(CheckpointError::Backwards { requested, last: self.last });
        }
        let delivered = self.delivered.is_some_and(|delivered| requested <= Checkpoint::At(delivered));
        let ended = self.ended && requested.is_shard_end();
        let allowed = requested == self.last || delivered || ended;
        (!allowed).then_some(CheckpointError::BeyondDelivered { requested, delivered: self.delivered })
    }
}

impl Checkpointer {
    /// Makes the two halves for a term that starts at `start`, the checkpoint that its take
    /// returned: the handle for users, and the control for the engine that delivers the records.
    #[must_use]
    pub fn pair(start: Checkpoint, writer: Arc<dyn CheckpointWriter>) -> (Self, CheckpointControl) {
        let state = Arc::new(Mutex::new(State { last: start, is_used: false, delivered: None, ended: false }));
        (Self { state: Arc::clone(&state), writer, is_engines: false }, CheckpointControl::new(state))
    }

    /// A handle whose use does not count as a processor's: for the engine, which has the control.
    #[must_use]
    pub fn of_engine(&self, _control: &CheckpointControl) -> Self {
        Self { is_engines: true, ..self.clone() }
    }

    fn used(&self) {
        if !self.is_engines {
            lock(&self.state).is_used = true;
        }
    }

    /// Checkpoints everything delivered so far, or SHARD_END once the shard has ended. With nothing
    /// delivered it does nothing.
    ///
    /// That includes the records of a call that is under way: before its end, and in another task,
    /// name the last record that is done, with [`checkpoint_at`](Self::checkpoint_at).
    ///
    /// # Errors
    /// [`CheckpointError::Write`]; the other refusals cannot happen here.
    ///
    /// # Cancel safety
    /// Dropping the future leaves the checkpoint where it was or where it should be; calling again
    /// is safe.
    pub async fn checkpoint(&self) -> Result<(), CheckpointError> {
        self.used();
        let target = self.lock().everything();
        match target {
            Some(target) => self.write(target).await,
            None => Ok(()),
        }
    }

    /// Checkpoints this record, which must be one of this shard's, and all before it. The number of
    /// another shard's record is refused only if it lies beyond what was delivered here.
    ///
    /// # Errors
    /// [`CheckpointError::Backwards`] below the last checkpoint, [`CheckpointError::BeyondDelivered`]
    /// above the last delivered record, [`CheckpointError::Write`] when the write fails.
    ///
    /// # Cancel safety
    /// As [`checkpoint`](Self::checkpoint).
    pub async fn checkpoint_at(&self, record: ExtendedSequenceNumber) -> Result<(), CheckpointError> {
        self.used();
        self.advance_to(Checkpoint::At(record)).await
    }

    /// Prepares a checkpoint of everything delivered so far, with the application's own `state`
    /// (empty: none): the first of two phases.
    ///
    /// It lets a processor make its own store and the checkpoint agree:
    ///
    /// 1. Prepare. The lease names the position and the state, durably; the checkpoint itself stays.
    /// 2. Commit the own store, under a name that the state holds (a transaction's id, a file).
    /// 3. [Commit](PreparedCheckpoint::commit) the checkpoint.
    ///
    /// If the worker dies in between, the shard's next owner finds the pending checkpoint in the
    /// lease, and its state says what to look for in the store. If step 2 was done, it can do step 3
    /// once it has passed those records by; otherwise it ignores the pending checkpoint.
    ///
    /// A later `prepare` replaces it, and a checkpoint at or beyond its position removes it. With
    /// nothing new delivered nothing is written, and the commit does nothing.
    ///
    /// The state is a part of the lease: each write of the lease, renewals included, and each
    /// reading of the table transfers and pays for all of it. Keep it to a name or a position. The
    /// Java library reads and writes the same.
    ///
    /// # Errors
    /// [`CheckpointError::StateTooLarge`] above [`PendingCheckpoint::MAX_STATE_BYTES`], and
    /// [`CheckpointError::Write`].
    ///
    /// # Cancel safety
    /// Dropping the future leaves the checkpoint prepared or not; calling again is safe.
    pub async fn prepare(&self, state: impl Into<Bytes>) -> Result<PreparedCheckpoint, CheckpointError> {
        self.prepare_checkpoint(None, state.into()).await
    }

    /// Prepares a checkpoint of this record and all before it: as [`prepare`](Self::prepare).
    ///
    /// # Errors
    /// As [`checkpoint_at`](Self::checkpoint_at), and [`CheckpointError::StateTooLarge`].
    ///
    /// # Cancel safety
    /// As [`prepare`](Self::prepare).
    pub async fn prepare_at(&self, record: ExtendedSequenceNumber, state: impl Into<Bytes>) -> Result<PreparedCheckpoint, CheckpointError> {
        self.prepare_checkpoint(Some(Checkpoint::At(record)), state.into()).await
    }

    /// The checkpoint that is written.
    #[must_use]
    pub fn last(&self) -> Checkpoint {
        self.lock().last
    }

    /// The last record that may be checkpointed: the last one delivered, unless it has failed and is
    /// to be delivered again. `None`: none in this term.
    #[must_use]
    pub fn delivered(&self) -> Option<ExtendedSequenceNumber> {
        self.lock().delivered
    }

    /// Prepares this checkpoint; `None`: of everything delivered so far.
    async fn prepare_checkpoint(&self, requested: Option<Checkpoint>, state: Bytes) -> Result<PreparedCheckpoint, CheckpointError> {
        if state.len() > PendingCheckpoint::MAX_STATE_BYTES {
            return Err(CheckpointError::StateTooLarge { bytes: state.len() });
        }
        self.used();
        let (checkpoint, forward) = {
            let now = self.lock();
            let checkpoint = requested.or_else(|| now.everything()).unwrap_or(now.last);
            if let Some(refusal) = now.refusal(checkpoint) {
                return Err(refusal);
            }
            (checkpoint, checkpoint > now.last)
        };
        if forward {
            let state = Some(state).filter(|state| !state.is_empty());
            self.writer.prepare(PendingCheckpoint { checkpoint, state }).await?;
        }
        Ok(PreparedCheckpoint::new(self.clone(), checkpoint))
    }

    /// Writes this checkpoint if it is a step forward; refuses a step back, or beyond what was
    /// delivered.
    async fn advance_to(&self, requested: Checkpoint) -> Result<(), CheckpointError> {
        let forward = {
            let state = self.lock();
            if let Some(refusal) = state.refusal(requested) {
                return Err(refusal);
            }
            requested > state.last
        };
        if forward { self.write(requested).await } else { Ok(()) }
    }

    async fn write(&self, checkpoint: Checkpoint) -> Result<(), CheckpointError> {
        self.writer.write(checkpoint).await?;
        // Two clones may write at once; the writer serialises them and the later position stands.
        let mut state = self.lock();
        state.last = state.last.max(checkpoint);
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        let written = self.writer.written();
        let mut state = lock(&self.state);
        if let Some(written) = written {
            state.last = state.last.max(written);
        }
        state
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    // No change of the state can panic half way, so a panic elsewhere cannot have left it half done.
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

impl fmt::Debug for Checkpointer {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.lock();
        formatter.debug_struct("Checkpointer").field("last", &state.last).field("delivered", &state.delivered).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
