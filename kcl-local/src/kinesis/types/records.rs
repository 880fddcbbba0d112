//! Inputs and outputs of the operations on records.

use std::fmt;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::super::sequence::SequenceNumber;
use super::shards::HashKeyRange;

/// Where a shard iterator begins.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum ShardIteratorType {
    /// At the record with the sequence number.
    AtSequenceNumber,
    /// After the record with the sequence number.
    AfterSequenceNumber,
    /// At the first record that arrived at the timestamp or later.
    AtTimestamp,
    /// At the oldest record there is.
    #[default]
    TrimHorizon,
    /// After the newest record there is.
    Latest,
}

/// Writes a record.
#[derive(Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct PutRecordInput {
    /// The stream by name.
    pub stream_name: Option<String>,
    /// The stream by ARN.
    #[serde(rename = "StreamARN")]
    pub stream_arn: Option<String>,
    /// The payload.
    #[serde(with = "crate::kinesis::encoding::base64_bytes")]
    pub data: Bytes,
    /// 1 to 256 characters; its MD5 is the hash key.
    pub partition_key: String,
    /// The hash key, in decimal, in place of the partition key's.
    pub explicit_hash_key: Option<String>,
    /// A sequence number that the new one is to be above. It always is.
    pub sequence_number_for_ordering: Option<String>,
}

/// The answer to [`PutRecordInput`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct PutRecordOutput {
    /// The shard that took the record.
    pub shard_id: String,
    /// The record's.
    pub sequence_number: SequenceNumber,
}

/// Writes up to 500 records and 10 MiB. Each may fail for itself.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct PutRecordsInput {
    /// The stream by name.
    pub stream_name: Option<String>,
    /// The stream by ARN.
    #[serde(rename = "StreamARN")]
    pub stream_arn: Option<String>,
    /// The records; those of one shard are stored in this order.
    pub records: Vec<PutRecordsEntry>,
}

/// A record to write.
#[derive(Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct PutRecordsEntry {
    /// The payload.
    #[serde(with = "crate::kinesis::encoding::base64_bytes")]
    pub data: Bytes,
    /// 1 to 256 characters; its MD5 is the hash key.
    pub partition_key: String,
    /// The hash key, in decimal, in place of the partition key's.
    pub explicit_hash_key: Option<String>,
}

/// The answer to [`PutRecordsInput`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct PutRecordsOutput {
    /// How many failed.
    pub failed_record_count: u32,
    /// What became of each record, in the order of the request.
    pub records: Vec<PutRecordsResult>,
}

/// What became of one record: where it is, or why it failed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct PutRecordsResult {
    /// The record's, if it was stored.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sequence_number: Option<SequenceNumber>,
    /// The shard that took it, if it was stored.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shard_id: Option<String>,
    /// The exception's name, if it failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error_code: Option<String>,
    /// About the failure.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error_message: Option<String>,
}

/// Asks for an iterator: a place in a shard to read from.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct GetShardIteratorInput {
    /// The stream by name.
    pub stream_name: Option<String>,
    /// The stream by ARN.
    #[serde(rename = "StreamARN")]
    pub stream_arn: Option<String>,
    /// The shard.
    pub shard_id: String,
    /// Where to begin.
    pub shard_iterator_type: ShardIteratorType,
    /// Needed by, and only by, the two types of sequence numbers.
    pub starting_sequence_number: Option<String>,
    /// Needed by `AT_TIMESTAMP`; not in the future.
    #[serde(default, with = "crate::kinesis::encoding::optional_seconds")]
    pub timestamp: Option<u64>,
}

/// The answer to [`GetShardIteratorInput`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct GetShardIteratorOutput {
    /// Lives 300 seconds.
    pub shard_iterator: String,
}

/// Reads records.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct GetRecordsInput {
    /// Where.
    pub shard_iterator: String,
    /// Most records in the answer: 1 to 10,000.
    pub limit: Option<u32>,
    /// The stream's ARN; must agree with the iterator.
    #[serde(rename = "StreamARN")]
    pub stream_arn: Option<String>,
}

/// The answer to [`GetRecordsInput`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct GetRecordsOutput {
    /// The records, in order: at most 10 MiB of data and partition keys, but one record whatever its size.
    pub records: Vec<Record>,
    /// Where to read on. `None` once a closed shard was read to its end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next_shard_iterator: Option<String>,
    /// The age of the next record that this answer doesn't hold, at least 1; 0 if there is none.
    pub millis_behind_latest: u64,
    /// With the end of the shard: the shards that follow it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub child_shards: Option<Vec<ChildShard>>,
}

/// A record.
#[derive(Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Record {
    /// Its sequence number.
    pub sequence_number: SequenceNumber,
    /// When it was stored.
    #[serde(with = "crate::kinesis::encoding::seconds")]
    pub approximate_arrival_timestamp: u64,
    /// The payload.
    #[serde(with = "crate::kinesis::encoding::base64_bytes")]
    pub data: Bytes,
    /// The partition key that it was written with.
    pub partition_key: String,
}

/// A shard that follows one which was read to its end.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct ChildShard {
    /// Its id.
    pub shard_id: String,
    /// All of its parents.
    pub parent_shards: Vec<String>,
    /// The hash keys that it takes.
    pub hash_key_range: HashKeyRange,
}

// Payloads and partition keys never show in debug output.

impl fmt::Debug for PutRecordInput {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PutRecordInput")
            .field("stream_name", &self.stream_name)
            .field("stream_arn", &self.stream_arn)
            .field("bytes", &self.data.len())
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for PutRecordsEntry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PutRecordsEntry").field("bytes", &self.data.len()).finish_non_exhaustive()
    }
}

impl fmt::Debug for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Record")
            .field("sequence_number", &self.sequence_number)
            .field("approximate_arrival_timestamp", &self.approximate_arrival_timestamp)
            .field("bytes", &self.data.len())
            .finish_non_exhaustive()
    }
}
