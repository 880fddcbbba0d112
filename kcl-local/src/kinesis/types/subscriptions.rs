//! Input and output of SubscribeToShard, whose answer is a stream of events.

use serde::{Deserialize, Serialize};

use super::super::error::ApiError;
use super::super::sequence::SequenceNumber;
use super::records::{ChildShard, Record, ShardIteratorType};

/// Subscribes a consumer to a shard, for five minutes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct SubscribeToShardInput {
    /// The consumer.
    #[serde(rename = "ConsumerARN")]
    pub consumer_arn: String,
    /// The shard.
    pub shard_id: String,
    /// Where to begin.
    pub starting_position: StartingPosition,
}

/// Where a subscription begins.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct StartingPosition {
    /// Which of the five, the same as a shard iterator's.
    #[serde(rename = "Type")]
    pub position_type: ShardIteratorType,
    /// Needed by, and only by, the two types of sequence numbers.
    pub sequence_number: Option<String>,
    /// Needed by `AT_TIMESTAMP`; not in the future.
    #[serde(default, with = "crate::kinesis::encoding::optional_seconds")]
    pub timestamp: Option<u64>,
}

/// A subscription that was begun. A model gives no id twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SubscriptionId(pub(in crate::kinesis) u64);

/// What a subscriber gets next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NextEvent {
    /// This, now.
    Event(SubscribeToShardEvent),
    /// Nothing yet: ask again when the stream has changed (see [`ChangeListener`](crate::kinesis::ChangeListener)), or
    /// at this time at the latest.
    Wait {
        /// Milliseconds since the epoch; always after the time of the asking.
        until: u64,
    },
    /// The subscription has ended in order: its time is over, or the end of the shard was told.
    Ended,
    /// The subscription has ended with this exception: another one took its place (ResourceInUse), or the consumer or
    /// the stream is gone (ResourceNotFound).
    Failed(ApiError),
}

/// `SubscribeToShardEvent`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct SubscribeToShardEvent {
    /// The records, in order: at most 1 MiB of data and partition keys, but one record whatever its size. Empty if
    /// there was nothing for a while.
    pub records: Vec<Record>,
    /// Begin after it to lose and repeat nothing. `None` at the end of the shard.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub continuation_sequence_number: Option<SequenceNumber>,
    /// The age of the next record that was not given yet, at least 1; 0 if there is none.
    pub millis_behind_latest: u64,
    /// At the end of the shard: the shards that follow it. Nothing comes after such an event.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub child_shards: Vec<ChildShard>,
}
