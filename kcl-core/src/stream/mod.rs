//! The stream port: what is asked of Kinesis, as plain data.

mod sdk;
mod time;

use std::collections::BTreeSet;

use async_trait::async_trait;
pub use kcl_checkpoint::StartingPosition;
use kcl_checkpoint::Timestamp;
use kcl_efo::FanOutError;
use kcl_lease::ShardId;
pub use kcl_lease::shard_sync::{ChildShard, Shard};

pub use self::sdk::KinesisStream;
pub(crate) use self::sdk::child;
pub(crate) use self::time::ServiceClock;
use crate::record::Record;

/// Whether a stream can be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StreamStatus {
    /// Not yet: it is being made.
    Creating,
    /// Yes. A stream whose shards are being changed counts as active too.
    Active,
    /// Not for long: it is being deleted.
    Deleting,
}

/// What is known of a stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StreamDescription {
    /// Its name.
    pub name: String,
    /// Its ARN.
    pub arn: String,
    /// Whether it can be read.
    pub status: StreamStatus,
    /// When it was made: tells it from another stream of the same name.
    pub created: Timestamp,
    /// How long records are kept, in hours (24 to 8,760).
    pub retention_hours: u32,
    /// The service's own time when it answered, perhaps in whole seconds. `None`: it has not told, and the machine's wall clock is all that there is.
    pub time: Option<Timestamp>,
}

/// Which shards are asked for. See `ShardFilter` in the Kinesis API.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ShardFilter {
    /// All that the stream still knows.
    All,
    /// Those that are open.
    AtLatest,
    /// Those that were open at the oldest record kept.
    AtTrimHorizon,
    /// Those that were open at this time.
    AtTimestamp(Timestamp),
}

/// A place in a shard from which records can be read; lives five minutes.
#[derive(Clone, PartialEq, Eq)]
pub struct ShardIterator(pub String);

impl std::fmt::Debug for ShardIterator {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("ShardIterator")
    }
}

/// One answer to GetRecords.
#[derive(Clone, Debug, Default)]
pub struct RecordsPage {
    /// Records in order; may be empty although there are more.
    pub records: Vec<Record>,
    /// Where to read on. `None`: the shard is closed and read to its end.
    pub next: Option<ShardIterator>,
    /// At the end of a shard: what it became. Some servers leave it out.
    pub children: Vec<ChildShard>,
    /// How far behind the newest record this answer is.
    pub millis_behind_latest: Option<u64>,
}

/// Why a stream gave no answer. `stream` is the name or ARN that was asked for.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StreamError {
    /// No such stream, or the shard is not (any more) one of its shards.
    #[error("{operation}: stream `{stream}`, or the shard asked for, does not exist: {message}")]
    NotFound {
        /// The stream.
        stream: String,
        /// The operation, as IAM names it.
        operation: &'static str,
        /// The service's own words.
        message: String,
    },
    /// The credentials do not allow it, or are missing, wrong or expired.
    #[error("{operation} on stream `{stream}` is not allowed: {message}")]
    AccessDenied {
        /// The stream.
        stream: String,
        /// The operation, as IAM names it.
        operation: &'static str,
        /// The service's own words.
        message: String,
    },
    /// The key that encrypts the stream can't be used.
    #[error("{operation} on stream `{stream}`: its KMS key can't be used: {message}")]
    Kms {
        /// The stream.
        stream: String,
        /// The operation.
        operation: &'static str,
        /// The service's own words.
        message: String,
    },
    /// Over the limit of the shard, the stream or the account.
    #[error("{operation} on stream `{stream}` is throttled")]
    Throttled {
        /// The stream.
        stream: String,
        /// The operation.
        operation: &'static str,
    },
    /// The iterator is older than five minutes.
    #[error("the shard iterator for stream `{stream}` has expired")]
    ExpiredIterator {
        /// The stream.
        stream: String,
    },
    /// A reader's starting position was refused twice in a row, by GetShardIterator or SubscribeToShard: its sequence number is not
    /// (any more) one of this shard. See [`ShardReader`](crate::retrieval::ShardReader).
    #[error("{operation} on stream `{stream}`: the shard does not know the record that reading is to start at: {message}")]
    StartRefused {
        /// The stream.
        stream: String,
        /// The operation.
        operation: &'static str,
        /// The service's own words.
        message: String,
    },
    /// The service refused an argument.
    #[error("{operation} on stream `{stream}` was refused: {message}")]
    InvalidArgument {
        /// The stream.
        stream: String,
        /// The operation.
        operation: &'static str,
        /// The service's own words.
        message: String,
    },
    /// The stream is being made, changed or deleted.
    #[error("{operation}: stream `{stream}` is not ready: {message}")]
    NotReady {
        /// The stream.
        stream: String,
        /// The operation.
        operation: &'static str,
        /// The service's own words.
        message: String,
    },
    /// The stream can't be read by enhanced fan-out.
    #[error(transparent)]
    FanOut(FanOutError),
    /// No answer, or a failure of the service.
    #[error("{operation} on stream `{stream}` got no answer: {message}")]
    Unavailable {
        /// The stream.
        stream: String,
        /// The operation.
        operation: &'static str,
        /// What is known of the failure.
        message: String,
    },
}

impl StreamError {
    /// Whether the same call may succeed later without anybody doing anything.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Throttled { .. } | Self::NotReady { .. } | Self::Unavailable { .. } => true,
            Self::FanOut(error) => error.is_retryable(),
            _ => false,
        }
    }
}

/// One stream, as far as a consumer needs it.
///
/// # Contract
///
/// - Each call is **one attempt** with a bounded duration; whoever calls it retries and paces.
/// - `list_shards` gives all pages; shards are sorted by shard id and each is listed once.
/// - `get_records` gives the records after the iterator without a gap, in order.
///
/// # Cancel safety
/// All calls only read; dropping one has no effect.
#[async_trait]
pub trait StreamApi: Send + Sync + std::fmt::Debug {
    /// Describes the stream.
    async fn describe(&self) -> Result<StreamDescription, StreamError>;

    /// Lists shards.
    async fn list_shards(&self, filter: ShardFilter) -> Result<Vec<Shard>, StreamError>;

    /// Gives an iterator to a place in a shard.
    async fn shard_iterator(&self, shard: &ShardId, start: StartingPosition) -> Result<ShardIterator, StreamError>;

    /// Reads up to `limit` (1 to 10,000) records, at most 10 MiB.
    async fn get_records(&self, iterator: &ShardIterator, limit: u32) -> Result<RecordsPage, StreamError>;
}

/// The shards of the listing that came from this one.
#[must_use]
pub fn children_of(parent: &ShardId, listing: &[Shard]) -> Vec<ChildShard> {
    listing
        .iter()
        .filter(|shard| shard.parents.contains(parent))
        .map(|shard| ChildShard {
            shard_id: shard.shard_id.clone(),
            parents: BTreeSet::clone(&shard.parents),
            hash_range: shard.hash_range,
        })
        .collect()
}
