//! Where reading of a shard stands.
//!
//! This crate knows positions in a shard and nothing of AWS: it compares sequence numbers, tracks which delivered
//! records are finished, and hands users a [`Checkpointer`] that can only move forward and never past what was delivered.
//!
//! | module | owns |
//! |---|---|
//! | [`sequence_number`] | sequence numbers, compared as integers, and the sub-sequence number inside an aggregated record |
//! | [`position`] | what a lease's checkpoint can say, in the documented order, and where a new shard starts |
//! | [`acked_prefix`] | the contiguous prefix of records finished in any order |
//! | [`finished_beyond`] | what is finished beyond that prefix, in a few bytes that are kept with the lease |
//! | [`checkpointer`] | the handle that users checkpoint with, in one phase or two, the engine's half of it, and the port for the fenced write |
//!
//! ```
//! use kcl_checkpoint::{AckedPrefix, ExtendedSequenceNumber};
//!
//! let number = |text: &str| ExtendedSequenceNumber::whole(text.parse().unwrap());
//! let mut prefix = AckedPrefix::default();
//! for n in ["8", "9", "10"] {
//!     prefix.deliver(number(n));
//! }
//! prefix.ack(number("10"));
//! assert_eq!(prefix.acked(), None); // 8 and 9 are still in work
//! prefix.ack(number("8"));
//! prefix.ack(number("9"));
//! assert_eq!(prefix.acked(), Some(number("10")));
//! ```

pub mod acked_prefix;
pub mod checkpointer;
pub mod finished_beyond;
#[doc(hidden)]
pub mod planted;
pub mod position;
pub mod sequence_number;

pub use acked_prefix::AckedPrefix;
pub use checkpointer::{
    CheckpointControl, CheckpointError, CheckpointWriteError, CheckpointWriter, Checkpointer, PendingCheckpoint, PreparedCheckpoint,
};
pub use finished_beyond::FinishedBeyond;
pub use position::{Checkpoint, InitialPosition, ParseCheckpointError, StartingPosition, Timestamp};
pub use sequence_number::{ExtendedSequenceNumber, ParseSequenceNumberError, SequenceNumber};
