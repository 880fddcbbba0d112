//! Retrieval: batches of one shard in order, wherever they come from.

#[cfg(test)]
mod fake;
pub mod fan_out;
pub mod polling;

use std::sync::Arc;

use async_trait::async_trait;
pub use kcl_efo::{Ownership, SoleReader};
use kcl_lease::ShardId;

pub(crate) use self::fan_out::Intended;
pub use self::fan_out::{ConsumerChoice, FanOutConfig, FanOutRetrieval, RetrievalMode};
pub use self::polling::{Polling, PollingConfig};
use crate::record::Record;
use crate::stream::{ChildShard, StartingPosition, StreamError};

/// What a read of a shard gave.
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

/// Reads one shard from a starting position on.
///
/// # Contract
///
/// - Records come in order, each once, without a gap, whatever fails in between: expired iterators, throttling and lost
///   connections are the reader's own business.
/// - It keeps to the service's limits by pacing itself, and waits with full-jitter backoff after failures: calling `next` in a loop is
///   right.
/// - An error is returned for what the reader can't mend. It may be called again after one and goes on where it was.
/// - The end of the shard is given only on positive evidence, never because something was not found.
///
/// # Cancel safety
/// A dropped `next` loses nothing: the records it would have given are given by the next call.
#[async_trait]
pub trait ShardReader: Send {
    /// Waits as long as the pace demands and reads.
    async fn next(&mut self) -> Result<Fetched, StreamError>;
}

/// A way to read shards.
pub trait Retrieval: Send + Sync + std::fmt::Debug {
    /// A reader of this shard for as long as this worker owns it. Does nothing yet.
    fn open(&self, shard: &ShardId, start: StartingPosition, ownership: Arc<dyn Ownership>) -> Box<dyn ShardReader>;

    /// How many workers read the stream for this application now: what they share of the service's limits is shared among them.
    fn share(&self, workers: usize) {
        let _ = workers;
    }
}
