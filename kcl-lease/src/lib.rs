//! Who reads which shard: leases, the terms for which workers hold them, and the table that they share.
//!
//! | module | owns |
//! |---|---|
//! | [`lease`] | a lease as plain data, and the names in it |
//! | [`write`](mod@write) | every conditional write of a lease as plain data, and what it does to a row |
//! | [`transaction`] | what is written together with a checkpoint, and the answer to it |
//! | [`table`] | the lease-table port: contract, answers, errors |
//! | [`memory`] | the table in memory, for one process |
//! | [`dynamodb`] | the table in DynamoDB, in the Java library's format |
//! | [`liveness`] | which owners are alive, judged by counters that move |
//! | [`assignment`] | which leases this worker takes, asks for, or leaves alone |
//! | [`shard_sync`] | which leases a list of shards needs |
//! | [`cleanup`] | which finished leases may be deleted |
//! | [`seek`] | what becomes of the leases when an application begins elsewhere |
//! | [`term`] | one worker's hold on one lease: validity, fencing token, the one task that writes its row |
//! | [`clock`], [`entropy`], [`backoff`] | time, randomness and pacing, injected |
//! | [`outages`] | which failures of a service are worth a line in the log |
//!
//! Decisions are functions of plain data; effects go through [`table::LeaseTable`], [`clock::Clock`] and
//! [`entropy::Entropy`].

pub mod assignment;
pub mod backoff;
pub mod cleanup;
pub mod clock;
#[cfg(any(test, feature = "conformance"))]
pub mod conformance;
pub mod dynamodb;
pub mod entropy;
pub mod lease;
pub mod liveness;
pub mod memory;
pub mod outages;
pub mod seek;
pub mod shard_sync;
pub mod table;
pub mod term;
pub mod transaction;
pub mod write;

pub use clock::{Clock, SystemClock};
pub use dynamodb::{DynamoDbLeaseTable, TableOptions};
pub use entropy::Entropy;
pub use lease::{HashKeyRange, Lease, ShardId, StopReason, Stopped, Suspect, Trust, WorkerId};
pub use memory::{InMemoryItems, InMemoryLeaseTable};
pub use outages::{Cause, OutageLog};
pub use table::{LeaseListing, LeaseTable, TableError, UnreadableLease, WriteOutcome};
pub use transaction::{RefusedItem, TransactItems, TransactItemsError, TransactOutcome};
pub use write::{Change, LeaseWrite, NewStart, WriteId};
