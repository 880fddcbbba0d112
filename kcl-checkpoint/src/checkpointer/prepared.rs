//! Checkpoints in two phases, as the Java library's `prepareCheckpoint` has them: the pending one
//! that stands in the lease, and the handle that commits it.

use std::fmt;

use bytes::Bytes;

use super::{CheckpointError, Checkpointer};
use crate::position::Checkpoint;

/// A checkpoint that was prepared and not committed: the position that the previous owner was about
/// to checkpoint, and what it said of its own store.
///
/// That owner may have committed its store or not. The state says how to find out.
#[derive(Clone, PartialEq, Eq)]
pub struct PendingCheckpoint {
    /// The position, always beyond the lease's checkpoint.
    pub checkpoint: Checkpoint,
    /// The application's own bytes; `None`: it gave none. Never empty.
    pub state: Option<Bytes>,
}

impl PendingCheckpoint {
    /// Maximum size of the state. The item of a lease, which holds it, may have 400 KB in DynamoDB
    /// ("Service, account, and table quotas" in its documentation); the rest is the lease's own.
    pub const MAX_STATE_BYTES: usize = 256 * 1024;
}

/// Shows the state's size only: it is the application's, and may be confidential.
impl fmt::Debug for PendingCheckpoint {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes = self.state.as_ref().map_or(0, Bytes::len);
        formatter.debug_struct("PendingCheckpoint").field("checkpoint", &self.checkpoint).field("state_bytes", &bytes).finish()
    }
}

/// A checkpoint that was [prepared](Checkpointer::prepare), to be committed once the application's
/// own store is.
///
/// Dropping it leaves the checkpoint pending in the lease: the shard's next owner sees it.
#[derive(Clone, Debug)]
#[must_use = "the checkpoint moves only when the prepared one is committed"]
pub struct PreparedCheckpoint {
    checkpointer: Checkpointer,
    checkpoint: Checkpoint,
}

impl PreparedCheckpoint {
    pub(super) fn new(checkpointer: Checkpointer, checkpoint: Checkpoint) -> Self {
        Self { checkpointer, checkpoint }
    }

    /// The position that [`commit`](Self::commit) makes the checkpoint.
    #[must_use]
    pub fn checkpoint(&self) -> Checkpoint {
        self.checkpoint
    }

    /// Makes the prepared position the checkpoint, which ends its pending: the second phase. Does
    /// nothing if the position is the checkpoint already.
    ///
    /// May be called again after an error that [is retryable](CheckpointError::is_retryable).
    ///
    /// # Errors
    /// [`CheckpointError::Backwards`] if a later position was checkpointed meanwhile,
    /// [`CheckpointError::BeyondDelivered`] if the records have failed meanwhile and are to be
    /// delivered again, [`CheckpointError::Write`] when the write fails.
    ///
    /// # Cancel safety
    /// Dropping the future leaves the checkpoint where it was or where it should be; calling again
    /// is safe.
    pub async fn commit(&self) -> Result<(), CheckpointError> {
        self.checkpointer.advance_to(self.checkpoint).await
    }
}
