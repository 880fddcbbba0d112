//! Retrieval: batches of one shard in order, wherever they come from.

mod account;
#[cfg(test)]
mod fake;
pub mod fan_out;
pub mod polling;
mod start_refusals;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
pub use kcl_efo::{Ownership, SoleReader};
use kcl_lease::ShardId;

use self::account::CallAccount;
pub(crate) use self::fan_out::Intended;
pub use self::fan_out::{ConsumerChoice, FanOutConfig, FanOutRetrieval, RetrievalMode};
pub use self::polling::{Polling, PollingConfig};
use self::start_refusals::StartRefusals;
use crate::record::Record;
use crate::stream::{ChildShard, StartingPosition, StreamError};

/// The most bytes that one answer of Kinesis holds (GetRecords: 10 MiB).
pub(crate) const LARGEST_ANSWER: usize = 10 << 20;

/// The result of a read.
#[derive(Clone, Debug)]
pub enum Fetched {
    /// The next records, without a gap to those before. May be empty, also while the shard is not read to its tip.
    Records {
        /// The records in order.
        records: Vec<Record>,
        /// How far behind the newest record of the shard, in milliseconds.
        millis_behind_latest: Option<u64>,
    },
    /// The shard is closed, all its records were given, and this is what it became. Nothing comes after it.
    ShardEnd {
        /// The child shards; never empty.
        children: Vec<ChildShard>,
    },
}

/// Reads one shard from a starting position on, one call at a time: [`ready`](Self::ready), then
/// [`next`](Self::next), and so on.
///
/// # Contract
///
/// - Records come in order, each once, without a gap, whatever fails in between: expired iterators,
///   throttling and lost connections are the reader's own business. Records that the service repeats
///   are dropped.
/// - The reader keeps to the service's limits by pacing itself, and waits with full-jitter backoff
///   after failures, in `ready`: calling both in a loop is right.
/// - Only `next` asks for records, and only `next` takes up memory for them. A caller with a budget
///   of bytes reserves what `ready` says between the two, and so holds nothing of it while the
///   reader waits for its pace.
/// - A failure that the reader retries by itself is its own to report, in the worker's log of outages;
///   one that it returns is the caller's.
/// - An error is returned for what the reader can't mend. Both may be called again after one and go
///   on where they were.
/// - [`StreamError::StartRefused`] is returned only if the service refused the starting position
///   itself, twice in a row; never because a read was refused.
/// - The end of the shard is given only on positive evidence, never because something was not found.
///
/// # Cancel safety
/// A dropped `ready` or `next` loses nothing: the records it would have given are given by the next
/// call, and a wait goes on where it was.
#[async_trait]
pub trait ShardReader: Send {
    /// Waits until the next call may be made: for the rate limits after a success, for the backoff
    /// after a failure. Returns the bytes to reserve for the answer: zero if it holds no records.
    ///
    /// At once if a call is under way already.
    async fn ready(&mut self) -> Result<usize, StreamError>;

    /// Makes one call and waits for its answer. `None`: it gave no records, since it only prepared
    /// the next one, or failed in a way that the next one may mend.
    ///
    /// Called after `ready` has returned; otherwise it may wait as `ready` does, or give nothing at once.
    async fn next(&mut self) -> Result<Option<Fetched>, StreamError>;

    /// Calls both until something comes: for a caller without a budget.
    async fn fetch(&mut self) -> Result<Fetched, StreamError> {
        loop {
            self.ready().await?;
            if let Some(fetched) = self.next().await? {
                return Ok(fetched);
            }
        }
    }
}

/// A worker's part of a limit that all workers of an application share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Share {
    /// The number of these workers, this one included.
    pub workers: usize,
    /// The place of this one among them, from 0.
    pub place: usize,
    /// The time by which they take turns: the wall clock's.
    pub time: Duration,
}

/// A way to read shards.
pub trait Retrieval: Send + Sync + std::fmt::Debug {
    /// A reader of this shard for as long as this worker owns it. Does nothing yet.
    fn open(&self, shard: &ShardId, start: StartingPosition, ownership: Arc<dyn Ownership>) -> Box<dyn ShardReader>;

    /// Returns whether it waits for [`share`](Self::share) before it reads.
    fn needs_share(&self) -> bool {
        false
    }

    /// With whom this worker reads the stream for this application now: what they share of the service's limits is shared among them.
    fn share(&self, share: Share) {
        let _ = share;
    }
}
