//! Inputs and outputs of the operations on streams.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use super::shards::ShardDescription;

/// The state of a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum StreamStatus {
    /// Asked for; it has no shards yet.
    Creating,
    /// As it should be.
    Active,
    /// Its shards are about to change. Reads and writes go on.
    Updating,
    /// About to be gone. Reads and writes go on until then.
    Deleting,
}

/// Who decides about a stream's shards.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum StreamMode {
    /// The user, by splitting and merging.
    #[default]
    #[serde(rename = "PROVISIONED")]
    Provisioned,
    /// The service. The model leaves such a stream's shards as they are.
    #[serde(rename = "ON_DEMAND")]
    OnDemand,
}

/// `StreamModeDetails`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct StreamModeDetails {
    /// The mode.
    pub stream_mode: StreamMode,
}

/// Makes a stream.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct CreateStreamInput {
    /// Its name: 1 to 128 of `a-z A-Z 0-9 _ . -`.
    pub stream_name: String,
    /// Its shards; needed in provisioned mode (the default), ignored on demand.
    pub shard_count: Option<u32>,
    /// Its mode.
    pub stream_mode_details: Option<StreamModeDetails>,
    /// The largest record it takes, in KiB: 1,024 (the default) to 10,240.
    #[serde(rename = "MaxRecordSizeInKiB")]
    pub max_record_size_in_kib: Option<u32>,
    /// Its tags.
    #[serde(default)]
    pub tags: BTreeMap<String, String>,
}

/// Deletes a stream and its records.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct DeleteStreamInput {
    /// The stream by name.
    pub stream_name: Option<String>,
    /// The stream by ARN.
    #[serde(rename = "StreamARN")]
    pub stream_arn: Option<String>,
    /// Whether its consumers are deleted with it; a stream that has any is not deleted without.
    pub enforce_consumer_deletion: Option<bool>,
}

/// Describes a stream with its shards.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct DescribeStreamInput {
    /// The stream by name.
    pub stream_name: Option<String>,
    /// The stream by ARN.
    #[serde(rename = "StreamARN")]
    pub stream_arn: Option<String>,
    /// Most shards in the answer: 1 to 10,000; 100 if not given.
    pub limit: Option<u32>,
    /// Shards after this id only.
    pub exclusive_start_shard_id: Option<String>,
}

/// The answer to [`DescribeStreamInput`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct DescribeStreamOutput {
    /// The stream.
    pub stream_description: StreamDescription,
}

/// A stream with its shards.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct StreamDescription {
    /// Its name.
    pub stream_name: String,
    /// Its ARN.
    #[serde(rename = "StreamARN")]
    pub stream_arn: String,
    /// Its state.
    pub stream_status: StreamStatus,
    /// Its mode.
    pub stream_mode_details: StreamModeDetails,
    /// Its shards within retention, by id.
    pub shards: Vec<ShardDescription>,
    /// Whether there are shards after the last one here.
    pub has_more_shards: bool,
    /// How long it keeps records.
    pub retention_period_hours: u32,
    /// When it was made.
    #[serde(with = "crate::kinesis::encoding::seconds")]
    pub stream_creation_timestamp: u64,
    /// Its metrics: none.
    pub enhanced_monitoring: Vec<EnhancedMetrics>,
    /// Its encryption: none.
    pub encryption_type: EncryptionType,
}

/// Describes a stream without its shards.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct DescribeStreamSummaryInput {
    /// The stream by name.
    pub stream_name: Option<String>,
    /// The stream by ARN.
    #[serde(rename = "StreamARN")]
    pub stream_arn: Option<String>,
}

/// The answer to [`DescribeStreamSummaryInput`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct DescribeStreamSummaryOutput {
    /// The stream.
    pub stream_description_summary: StreamDescriptionSummary,
}

/// A stream without its shards.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct StreamDescriptionSummary {
    /// Its name.
    pub stream_name: String,
    /// Its ARN.
    #[serde(rename = "StreamARN")]
    pub stream_arn: String,
    /// Its state.
    pub stream_status: StreamStatus,
    /// Its mode.
    pub stream_mode_details: StreamModeDetails,
    /// How long it keeps records.
    pub retention_period_hours: u32,
    /// When it was made: tells it from an earlier stream of the same name.
    #[serde(with = "crate::kinesis::encoding::seconds")]
    pub stream_creation_timestamp: u64,
    /// Its metrics: none.
    pub enhanced_monitoring: Vec<EnhancedMetrics>,
    /// Its encryption: none.
    pub encryption_type: EncryptionType,
    /// Its shards that take records.
    pub open_shard_count: u32,
    /// Its registered consumers.
    pub consumer_count: u32,
    /// The largest record it takes, in KiB.
    #[serde(rename = "MaxRecordSizeInKiB")]
    pub max_record_size_in_kib: u32,
}

/// A set of shard metrics. The model has none.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct EnhancedMetrics {
    /// Always empty.
    pub shard_level_metrics: Vec<String>,
}

/// How a stream is encrypted. The model knows no keys.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub enum EncryptionType {
    /// Not at all.
    #[default]
    #[serde(rename = "NONE")]
    None,
}

/// Lists the account's streams by name.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct ListStreamsInput {
    /// Most streams in the answer: 1 to 10,000; 100 if not given.
    pub limit: Option<u32>,
    /// Streams after this name only.
    pub exclusive_start_stream_name: Option<String>,
    /// Goes on where an earlier answer ended.
    pub next_token: Option<String>,
}

/// The answer to [`ListStreamsInput`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct ListStreamsOutput {
    /// The streams' names.
    pub stream_names: Vec<String>,
    /// Whether there are more after these.
    pub has_more_streams: bool,
    /// For the rest, if there are more.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next_token: Option<String>,
    /// The same streams, with a little about each.
    pub stream_summaries: Vec<StreamSummary>,
}

/// A little about a stream.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct StreamSummary {
    /// Its name.
    pub stream_name: String,
    /// Its ARN.
    #[serde(rename = "StreamARN")]
    pub stream_arn: String,
    /// Its state.
    pub stream_status: StreamStatus,
    /// Its mode.
    pub stream_mode_details: StreamModeDetails,
    /// When it was made.
    #[serde(with = "crate::kinesis::encoding::seconds")]
    pub stream_creation_timestamp: u64,
}

/// Keeps records longer. What was trimmed stays so.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct IncreaseStreamRetentionPeriodInput {
    /// The stream by name.
    pub stream_name: Option<String>,
    /// The stream by ARN.
    #[serde(rename = "StreamARN")]
    pub stream_arn: Option<String>,
    /// At least as many hours as now, at most 8,760.
    pub retention_period_hours: u32,
}

/// Keeps records for a shorter time. Older ones are trimmed at once.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct DecreaseStreamRetentionPeriodInput {
    /// The stream by name.
    pub stream_name: Option<String>,
    /// The stream by ARN.
    #[serde(rename = "StreamARN")]
    pub stream_arn: Option<String>,
    /// At most as many hours as now, at least 24.
    pub retention_period_hours: u32,
}

/// Sets the largest record that a stream takes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct UpdateMaxRecordSizeInput {
    /// The stream by name.
    pub stream_name: Option<String>,
    /// The stream by ARN.
    #[serde(rename = "StreamARN")]
    pub stream_arn: Option<String>,
    /// 1,024 to 10,240 KiB.
    #[serde(rename = "MaxRecordSizeInKiB")]
    pub max_record_size_in_kib: u32,
}

/// Puts tags on a stream.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct AddTagsToStreamInput {
    /// The stream by name.
    pub stream_name: Option<String>,
    /// The stream by ARN.
    #[serde(rename = "StreamARN")]
    pub stream_arn: Option<String>,
    /// The tags; one that is there gets the new value.
    pub tags: BTreeMap<String, String>,
}

/// Takes tags off a stream.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct RemoveTagsFromStreamInput {
    /// The stream by name.
    pub stream_name: Option<String>,
    /// The stream by ARN.
    #[serde(rename = "StreamARN")]
    pub stream_arn: Option<String>,
    /// Their keys; one that isn't there is ignored.
    pub tag_keys: Vec<String>,
}

/// Lists a stream's tags by key.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct ListTagsForStreamInput {
    /// The stream by name.
    pub stream_name: Option<String>,
    /// The stream by ARN.
    #[serde(rename = "StreamARN")]
    pub stream_arn: Option<String>,
    /// Tags after this key only.
    pub exclusive_start_tag_key: Option<String>,
    /// Most tags in the answer: 1 to 50.
    pub limit: Option<u32>,
}

/// The answer to [`ListTagsForStreamInput`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct ListTagsForStreamOutput {
    /// The tags.
    pub tags: Vec<Tag>,
    /// Whether there are more after these.
    pub has_more_tags: bool,
}

/// A tag.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Tag {
    /// Its key.
    pub key: String,
    /// Its value.
    pub value: String,
}

impl fmt::Display for StreamStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Creating => "CREATING",
            Self::Active => "ACTIVE",
            Self::Updating => "UPDATING",
            Self::Deleting => "DELETING",
        })
    }
}
