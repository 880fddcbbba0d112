//! Inputs and outputs of the operations on shards.

use serde::{Deserialize, Serialize};

use super::super::sequence::SequenceNumber;

/// Which shards a listing shows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum ShardFilterType {
    /// Those with an id after the given one.
    AfterShardId,
    /// Those open at the trim horizon: they tile the key space.
    AtTrimHorizon,
    /// All within retention.
    #[default]
    FromTrimHorizon,
    /// Those open now: they tile the key space.
    AtLatest,
    /// Those open at the timestamp, those that closed or opened in that very millisecond included.
    AtTimestamp,
    /// Those open at the timestamp or later.
    FromTimestamp,
}

/// `ShardFilter` of a listing of shards.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct ShardFilter {
    /// Which filter.
    #[serde(rename = "Type")]
    pub filter_type: ShardFilterType,
    /// Needed by, and only by, `AFTER_SHARD_ID`.
    pub shard_id: Option<String>,
    /// Needed by, and only by, `AT_TIMESTAMP` and `FROM_TIMESTAMP`.
    #[serde(default, with = "crate::kinesis::encoding::optional_seconds")]
    pub timestamp: Option<u64>,
}

/// Lists a stream's shards by id.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct ListShardsInput {
    /// The stream by name.
    pub stream_name: Option<String>,
    /// The stream by ARN.
    #[serde(rename = "StreamARN")]
    pub stream_arn: Option<String>,
    /// Goes on where an earlier answer ended; the stream isn't named then.
    pub next_token: Option<String>,
    /// Shards after this id only.
    pub exclusive_start_shard_id: Option<String>,
    /// Most shards in the answer: 1 to 10,000; never more than 1,000.
    pub max_results: Option<u32>,
    /// Only the stream that was made then.
    #[serde(default, with = "crate::kinesis::encoding::optional_seconds")]
    pub stream_creation_timestamp: Option<u64>,
    /// Which shards; those within retention if not given.
    pub shard_filter: Option<ShardFilter>,
}

/// The answer to [`ListShardsInput`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct ListShardsOutput {
    /// The shards.
    pub shards: Vec<ShardDescription>,
    /// For the rest, if there are more.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next_token: Option<String>,
}

/// A shard as listings show it (`Shard` in the service's model).
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct ShardDescription {
    /// Its id.
    pub shard_id: String,
    /// The shard that was split, or the first of the two that were merged.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub parent_shard_id: Option<String>,
    /// The second of the two that were merged.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub adjacent_parent_shard_id: Option<String>,
    /// The hash keys that it takes.
    pub hash_key_range: HashKeyRange,
    /// The sequence numbers that it gives.
    pub sequence_number_range: SequenceNumberRange,
}

/// A range of hash keys, both ends included, in decimal.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct HashKeyRange {
    /// The first.
    pub starting_hash_key: String,
    /// The last.
    pub ending_hash_key: String,
}

/// The sequence numbers of a shard.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct SequenceNumberRange {
    /// Below every record's.
    pub starting_sequence_number: SequenceNumber,
    /// Above every record's; there once the shard is closed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ending_sequence_number: Option<SequenceNumber>,
}

/// Splits an open shard in two.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct SplitShardInput {
    /// The stream by name.
    pub stream_name: Option<String>,
    /// The stream by ARN.
    #[serde(rename = "StreamARN")]
    pub stream_arn: Option<String>,
    /// The shard.
    pub shard_to_split: String,
    /// The first hash key of the second child, in decimal.
    pub new_starting_hash_key: String,
}

/// Merges two open shards whose ranges touch.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct MergeShardsInput {
    /// The stream by name.
    pub stream_name: Option<String>,
    /// The stream by ARN.
    #[serde(rename = "StreamARN")]
    pub stream_arn: Option<String>,
    /// The shard that becomes the child's parent.
    pub shard_to_merge: String,
    /// The shard that becomes the child's adjacent parent.
    pub adjacent_shard_to_merge: String,
}

/// Splits and merges until there are so many open shards of equal size.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct UpdateShardCountInput {
    /// The stream by name.
    pub stream_name: Option<String>,
    /// The stream by ARN.
    #[serde(rename = "StreamARN")]
    pub stream_arn: Option<String>,
    /// At least half, at most double the open shards.
    pub target_shard_count: u32,
    /// How.
    pub scaling_type: ScalingType,
}

/// How [`UpdateShardCountInput`] scales.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
pub enum ScalingType {
    /// To shards of equal size.
    #[default]
    #[serde(rename = "UNIFORM_SCALING")]
    UniformScaling,
}

/// The answer to [`UpdateShardCountInput`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct UpdateShardCountOutput {
    /// The stream's name.
    pub stream_name: String,
    /// The stream's ARN.
    #[serde(rename = "StreamARN")]
    pub stream_arn: String,
    /// Its open shards when it was asked.
    pub current_shard_count: u32,
    /// Its open shards to come.
    pub target_shard_count: u32,
}
