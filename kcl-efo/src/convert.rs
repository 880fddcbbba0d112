//! The SDK's types and ours. What can't be said in ours is a problem in words, never left out.

use std::collections::BTreeSet;

use aws_sdk_kinesis::primitives::DateTime;
use aws_sdk_kinesis::types::{self, ShardIteratorType};
use bytes::Bytes;
use kcl_checkpoint::{SequenceNumber, StartingPosition, Timestamp};

use crate::record::{ChildShard, Record};

/// What is wrong with an answer. No payload, no partition key.
pub type Problem = String;

/// A record.
///
/// # Errors
/// Its sequence number is none.
pub fn record(record: types::Record) -> Result<Record, Problem> {
    Ok(Record {
        sequence_number: sequence_number(&record.sequence_number)?,
        partition_key: record.partition_key,
        data: Bytes::from(record.data.into_inner()),
        arrival: record.approximate_arrival_timestamp.as_ref().and_then(timestamp),
    })
}

/// A child shard.
///
/// # Errors
/// It has no id, no parents, or no range of hash keys.
pub fn child(shard: types::ChildShard) -> Result<ChildShard, Problem> {
    let shard_id = shard_id(shard.shard_id)?;
    let parents: BTreeSet<_> = shard.parent_shards.into_iter().collect();
    if parents.is_empty() {
        return Err(format!("child shard `{shard_id}` has no parents"));
    }
    Ok(ChildShard { parents, hash_range: hash_range(&shard_id, shard.hash_key_range)?, shard_id })
}

/// A shard's id.
///
/// # Errors
/// It is empty.
pub fn shard_id(text: String) -> Result<String, Problem> {
    if text.is_empty() { Err("a shard without id".to_owned()) } else { Ok(text) }
}

/// A sequence number.
///
/// # Errors
/// The text is none.
pub fn sequence_number(text: &str) -> Result<SequenceNumber, Problem> {
    text.parse().map_err(|error: kcl_checkpoint::ParseSequenceNumberError| error.to_string())
}

/// First and last hash key of a shard.
///
/// # Errors
/// There is no range, or it is none.
pub fn hash_range(shard: &str, range: Option<types::HashKeyRange>) -> Result<(u128, u128), Problem> {
    let range = range.ok_or_else(|| format!("shard `{shard}` has no hash key range"))?;
    match (range.starting_hash_key.parse(), range.ending_hash_key.parse()) {
        (Ok(start), Ok(end)) if start <= end => Ok((start, end)),
        _ => Err(format!("shard `{shard}`: `{}` to `{}` is no range of hash keys", range.starting_hash_key, range.ending_hash_key)),
    }
}

/// A starting position, as iterators and subscriptions take it: the type, and the sequence number or the time that goes with it.
#[must_use]
pub fn start(start: StartingPosition) -> (ShardIteratorType, Option<String>, Option<DateTime>) {
    match start {
        StartingPosition::TrimHorizon => (ShardIteratorType::TrimHorizon, None, None),
        StartingPosition::Latest => (ShardIteratorType::Latest, None, None),
        StartingPosition::AtTimestamp(time) => (ShardIteratorType::AtTimestamp, None, Some(date_time(time))),
        StartingPosition::AtSequenceNumber(number) => (ShardIteratorType::AtSequenceNumber, Some(number.to_string()), None),
        StartingPosition::AfterSequenceNumber(number) => (ShardIteratorType::AfterSequenceNumber, Some(number.to_string()), None),
    }
}

/// Times come as seconds in floating point: 1500000000.123 reads as .122999. Rounded, the millisecond that was meant is back.
#[must_use]
pub fn timestamp(time: &DateTime) -> Option<Timestamp> {
    let nanos = u128::try_from(time.as_nanos()).ok()?;
    u64::try_from((nanos + 500_000) / 1_000_000).ok().map(Timestamp::from_millis)
}

/// The SDK's form of a time.
#[must_use]
pub fn date_time(time: Timestamp) -> DateTime {
    DateTime::from_millis(i64::try_from(time.as_millis()).unwrap_or(i64::MAX))
}
