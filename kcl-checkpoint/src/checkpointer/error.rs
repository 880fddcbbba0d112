//! Why a checkpoint, or a prepared one, was refused or not written.

use std::fmt;

use super::PendingCheckpoint;
use crate::position::Checkpoint;
use crate::sequence_number::ExtendedSequenceNumber;

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
    #[error(
        "checkpoint {requested} is beyond what was delivered so far, or, with several lanes, what is finished ({}): it would skip records",
        Delivered(*delivered)
    )]
    BeyondDelivered {
        /// What was asked for.
        requested: Checkpoint,
        /// The last record delivered, if any was.
        delivered: Option<ExtendedSequenceNumber>,
    },
    /// The application's state of a prepared checkpoint is too large for a lease. Keep it in a store
    /// of its own, and prepare with the name under which it is found there.
    #[error(
        "the state of a prepared checkpoint has {bytes} bytes, and the most is {}: keep it in a store and give its name",
        PendingCheckpoint::MAX_STATE_BYTES
    )]
    StateTooLarge {
        /// Its size.
        bytes: usize,
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
