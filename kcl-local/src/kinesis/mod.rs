//! A model of Amazon Kinesis Data Streams that can be trusted to judge a consumer: pure, deterministic, and unable to
//! lose, reorder or duplicate a record by itself.
//!
//! [`Model`] is the service as plain data: typed inputs, typed outputs, the time handed in with every call.
//! [`Kinesis`] shares one between threads and brings the time. [`api`] speaks the service's JSON.
//!
//! ```
//! use kcl_local::kinesis::{CreateStreamInput, Kinesis, KinesisConfig, ListShardsInput, ManualTime};
//!
//! # fn main() -> Result<(), kcl_local::kinesis::ApiError> {
//! let kinesis = Kinesis::new(KinesisConfig::default(), ManualTime::new(1_790_000_000_000));
//! kinesis.call(CreateStreamInput { stream_name: "orders".into(), shard_count: Some(2), ..Default::default() })?;
//! let listed = kinesis.call(ListShardsInput { stream_name: Some("orders".into()), ..Default::default() })?;
//! assert_eq!(listed.shards[1].shard_id, "shardId-000000000001");
//! # Ok(())
//! # }
//! ```
//!
//! # Where the model decides what AWS leaves open
//!
//! - A change of the shards happens at one instant, at the end of UPDATING: parents take records until then.
//! - `MillisBehindLatest` is the age of the next record that the answer doesn't hold, at least 1; 0 if there is none.
//! - A sequence number whose record was trimmed is granted, and reading goes on at the oldest record. One that the
//!   shard never gave out is refused.
//! - A closed shard is listed, and can be asked for iterators, until retention has passed since it closed. An
//!   iterator that was given out before lives on, and ends as usual.
//! - Iterators and tokens of a deleted stream aren't found, also if a new one has its name.
//! - A stream that is being deleted can be read and written until it is gone.
//! - Each record of a PutRecords is stored in the order of the request.
//! - A consumer that is DELETING counts against the limit, keeps its name, and keeps its stream from being deleted. Its
//!   subscriptions end as soon as it is deregistered; deregistering it again changes nothing.
//! - `EnforceConsumerDeletion` deregisters the consumers when the stream begins to be DELETING, so subscriptions end
//!   before iterators do.
//! - A consumer's ARN ends in the second of its registration, or in a later one: above those of all that were
//!   deregistered.
//! - The 5 s after a successful SubscribeToShard hold whether that subscription lasts or not. A second call within them
//!   disturbs nothing.
//! - A subscription begins with an event, without records if there are none. An event has at most 1 MiB and 10,000
//!   records. At the end of a shard, the last records and the child shards are in one event.
//! - `ContinuationSequenceNumber` is that of the last record given; before one is, that of the record before the
//!   starting position, or of the shard's start. Of a record that was trimmed it has the place, not the time.
//! - With read limits, a subscription's 2 MiB a second are its own, and records that are over them wait.
//!   Calls of SubscribeToShard count against their limit if they are refused for another reason, too.
//! - Of two ends at one time the subscriber is told the one in order: that the subscription's time is over.

pub mod api;
mod config;
mod consumer;
mod encoding;
mod error;
mod handle;
mod model;
mod sequence;
mod shard;
mod stream;
#[cfg(test)]
mod tests;
mod throttle;
mod token;
mod types;
mod validate;

pub use config::KinesisConfig;
pub use error::{ApiError, ErrorCode};
pub use handle::{ChangeListener, Kinesis, ManualTime, Operation, TimeSource};
pub use model::Model;
pub use sequence::{NotASequenceNumber, SequenceNumber};
pub use types::*;
