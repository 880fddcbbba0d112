//! The lease-table port: what any store of leases must do.

use async_trait::async_trait;

use crate::lease::{Lease, ShardId};
use crate::outages::Cause;
use crate::transaction::{TransactItems, TransactOutcome};
use crate::write::LeaseWrite;

/// All leases of the table, and the items that could not be read as one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LeaseListing {
    /// The leases, sorted by shard id.
    pub leases: Vec<Lease>,
    /// Items that claim to be leases and can't be read. They are left alone; the others go on.
    pub unreadable: Vec<UnreadableLease>,
}

/// An item of the table that should be a lease and can't be read as one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnreadableLease {
    /// The item's key.
    pub key: String,
    /// Which attribute is wrong, and how.
    pub reason: String,
}

/// The definite answer to a conditional write.
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use = "a refused write is a value, not an error"]
pub enum WriteOutcome {
    /// The write is in effect; this is the row it made (or, if its answer was lost before, the row as it is now).
    Applied(Box<Lease>),
    /// The row is not as expected and the write is not in effect. The row as it is, or `None` if there is none.
    ///
    /// Also `None`: an item that can't be read as a lease (any more). Nobody can take or keep such a lease, so whoever held it lets
    /// go as if it were gone.
    Refused(Option<Box<Lease>>),
}

/// Why the table gave no answer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TableError {
    /// There is no such table.
    #[error("lease table `{table}` does not exist")]
    NotFound {
        /// The table's name.
        table: String,
    },
    /// The table exists and can't be a lease table.
    #[error("table `{table}` is no lease table: {reason}; choose another application name or table name")]
    NotALeaseTable {
        /// The table's name.
        table: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The table is in a state that it does not leave by itself.
    #[error("lease table `{table}` can't be used: {reason}")]
    Unusable {
        /// The table's name.
        table: String,
        /// The state, and what to do.
        reason: String,
    },
    /// The credentials do not allow the operation.
    #[error("{operation} on lease table `{table}` is not allowed: {message}")]
    AccessDenied {
        /// The table's name.
        table: String,
        /// The operation, as IAM names it.
        operation: &'static str,
        /// The service's own words.
        message: String,
    },
    /// The table or the account is over its throughput.
    #[error("{operation} on lease table `{table}` is throttled")]
    Throttled {
        /// The table's name.
        table: String,
        /// The operation.
        operation: &'static str,
    },
    /// No answer, or a failure of the service: for a write, whether it took or will yet take effect is not known.
    #[error("{operation} on lease table `{table}` got no answer: {message}")]
    Unavailable {
        /// The table's name.
        table: String,
        /// The operation.
        operation: &'static str,
        /// What is known of the failure.
        message: String,
    },
    /// The service refused the request as wrong.
    #[error("{operation} on lease table `{table}` was refused: {message}")]
    Rejected {
        /// The table's name.
        table: String,
        /// The operation.
        operation: &'static str,
        /// The service's own words.
        message: String,
    },
}

impl TableError {
    /// The lease table's name in the log of outages.
    pub const SERVICE: &'static str = "lease table";

    /// Whether the same call may succeed later without anybody doing anything.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        matches!(self, Self::Throttled { .. } | Self::Unavailable { .. })
    }

    /// Returns the class of the failure, for the log of outages.
    #[must_use]
    pub fn cause(&self) -> Cause {
        let class = match self {
            Self::NotFound { .. } => "not found",
            Self::NotALeaseTable { .. } => "no lease table",
            Self::Unusable { .. } => "unusable",
            Self::AccessDenied { .. } => "access denied",
            Self::Throttled { .. } => "throttled",
            Self::Unavailable { .. } => "no answer",
            Self::Rejected { .. } => "refused",
        };
        Cause { service: Self::SERVICE, class }
    }

    /// Whether retrying is pointless until somebody changes the table, its permissions, or this program.
    #[must_use]
    pub fn is_fatal(&self) -> bool {
        !self.is_retryable()
    }
}

/// The table that all workers of an application share.
///
/// # Contract
///
/// - Each call is **one attempt** with a bounded duration; whoever calls it retries.
/// - Reads are strongly consistent: they show every write that was answered before the read began.
/// - Writes of one row are linearizable, and conditional exactly as the [`LeaseWrite`] says.
/// - **Own writes are recognised.** A write that is repeated because its answer was lost, or that a client library sent twice, answers
///   [`WriteOutcome::Applied`] if [`LeaseWrite::is_in_effect`] for the row as it is, even though the row no longer is as expected.
/// - After [`TableError::Unavailable`] a write may have taken effect or may do so later. Only repeating the *identical* write tells.
/// - **A transaction is one write.** [`transact`](LeaseTable::transact) writes the lease, conditional exactly as in `write`, and all items, or nothing. It is
///   recognised as a write is, and before any refusal by an item is told. That the service could not try, since something else was writing one
///   of the items, is [`TableError::Unavailable`], never a refusal.
/// - Attributes and items that the table holds for others are left as they are.
/// - Every implementation passes the suite in the `conformance` module.
///
/// # Cancel safety
/// A dropped read has no effect. A dropped write is as one without an answer.
#[async_trait]
pub trait LeaseTable: Send + Sync + std::fmt::Debug {
    /// Makes sure that the table exists and is ready, creating it if need be, and that it can be a lease table.
    async fn ensure(&self) -> Result<(), TableError>;

    /// Reads all leases.
    async fn list(&self) -> Result<LeaseListing, TableError>;

    /// Reads one lease; `None` if there is none, or if its item can't be read.
    async fn get(&self, shard_id: &ShardId) -> Result<Option<Lease>, TableError>;

    /// Creates a lease unless the row exists; returns whether it was created. A repeated create whose first answer was lost answers
    /// `false`, which is as good: the row exists.
    async fn create(&self, lease: &Lease) -> Result<bool, TableError>;

    /// Carries out one conditional write.
    async fn write(&self, write: &LeaseWrite) -> Result<WriteOutcome, TableError>;

    /// Carries out one conditional write together with the writes of these items, which must be within reach: in DynamoDB, tables of the same
    /// account and region.
    ///
    /// Errors that are not retryable say nothing about the lease table, since an item may be their cause: a table that is not there, a
    /// permission that is missing. They say that this attempt has written nothing.
    async fn transact(&self, write: &LeaseWrite, with: &TransactItems) -> Result<TransactOutcome, TableError>;

    /// Deletes a lease if counter, owner and checkpoint are still as seen; returns whether it is gone now.
    async fn delete(&self, seen: &Lease) -> Result<bool, TableError>;
}
