//! What the SDK's types say, in the port's terms. What can't be said is a problem in words, never left out.

use std::collections::BTreeSet;

use aws_sdk_kinesis::operation::get_records::GetRecordsOutput;
use aws_sdk_kinesis::primitives::DateTime;
use aws_sdk_kinesis::types::{self, ShardFilterType, ShardIteratorType};
use bytes::Bytes;
use kcl_checkpoint::{SequenceNumber, Timestamp};
use kcl_lease::{HashKeyRange, ShardId};

use crate::record::Record;
use crate::stream::{ChildShard, RecordsPage, Shard, ShardFilter, ShardIterator, StartingPosition, StreamDescription, StreamStatus};

/// What is wrong with an answer. No payload, no partition key.
type Problem = String;

pub(super) fn description(summary: types::StreamDescriptionSummary) -> Result<StreamDescription, Problem> {
    let status = match summary.stream_status {
        types::StreamStatus::Creating => StreamStatus::Creating,
        types::StreamStatus::Active | types::StreamStatus::Updating => StreamStatus::Active,
        types::StreamStatus::Deleting => StreamStatus::Deleting,
        other => return Err(format!("unknown stream status `{other}`")),
    };
    // The SDK fills members that are missing with defaults. The creation time tells streams of one name apart: one that is made up
    // would make another stream's checkpoints look like this one's.
    let created = timestamp(&summary.stream_creation_timestamp).filter(|created| created.as_millis() > 0);
    Ok(StreamDescription {
        name: Some(summary.stream_name).filter(|name| !name.is_empty()).ok_or("no stream name")?,
        arn: Some(summary.stream_arn).filter(|arn| !arn.is_empty()).ok_or("no stream ARN")?,
        status,
        created: created.ok_or("no creation time")?,
        retention_hours: u32::try_from(summary.retention_period_hours)
            .map_err(|_| format!("a retention of {} hours", summary.retention_period_hours))?,
    })
}

pub(super) fn shard(shard: types::Shard) -> Result<Shard, Problem> {
    let shard_id = shard_id(&shard.shard_id)?;
    let sequence_numbers = shard.sequence_number_range.ok_or_else(|| format!("shard `{shard_id}` has no sequence number range"))?;
    let number = |text: &str| sequence_number(text).map_err(|problem| format!("shard `{shard_id}`: {problem}"));
    Ok(Shard {
        parents: [shard.parent_shard_id, shard.adjacent_parent_shard_id].into_iter().flatten().map(ShardId::from).collect(),
        hash_range: hash_range(&shard_id, shard.hash_key_range)?,
        starting_sequence_number: number(&sequence_numbers.starting_sequence_number)?,
        ending_sequence_number: sequence_numbers.ending_sequence_number.as_deref().map(number).transpose()?,
        shard_id,
    })
}

fn child(shard: types::ChildShard) -> Result<ChildShard, Problem> {
    let shard_id = shard_id(&shard.shard_id)?;
    let parents: BTreeSet<_> = shard.parent_shards.into_iter().map(ShardId::from).collect();
    if parents.is_empty() {
        return Err(format!("child shard `{shard_id}` has no parents"));
    }
    Ok(ChildShard { parents, hash_range: hash_range(&shard_id, shard.hash_key_range)?, shard_id })
}

pub(super) fn page(answer: GetRecordsOutput) -> Result<RecordsPage, Problem> {
    Ok(RecordsPage {
        records: answer.records.into_iter().map(record).collect::<Result<_, _>>()?,
        next: iterator(answer.next_shard_iterator),
        children: answer.child_shards.unwrap_or_default().into_iter().map(child).collect::<Result<_, _>>()?,
        millis_behind_latest: answer.millis_behind_latest.and_then(|millis| u64::try_from(millis).ok()),
    })
}

fn record(record: types::Record) -> Result<Record, Problem> {
    let sequence_number = sequence_number(&record.sequence_number)?;
    let arrival = record.approximate_arrival_timestamp.as_ref().and_then(timestamp);
    Ok(Record::new(sequence_number, record.partition_key, Bytes::from(record.data.into_inner()), arrival))
}

/// An iterator without text is none: it could be read from no more than a missing one.
pub(super) fn iterator(text: Option<String>) -> Option<ShardIterator> {
    text.filter(|text| !text.is_empty()).map(ShardIterator)
}

/// `None`: all shards, which is what the service lists without a filter.
pub(super) fn filter(filter: ShardFilter) -> Option<types::ShardFilter> {
    let (kind, timestamp) = match filter {
        ShardFilter::All => return None,
        ShardFilter::AtLatest => (ShardFilterType::AtLatest, None),
        ShardFilter::AtTrimHorizon => (ShardFilterType::AtTrimHorizon, None),
        ShardFilter::AtTimestamp(time) => (ShardFilterType::AtTimestamp, Some(date_time(time))),
    };
    Some(types::ShardFilter::builder().r#type(kind).set_timestamp(timestamp).build().expect("the type, all that is required, is set"))
}

pub(super) fn start(start: StartingPosition) -> (ShardIteratorType, Option<String>, Option<DateTime>) {
    match start {
        StartingPosition::TrimHorizon => (ShardIteratorType::TrimHorizon, None, None),
        StartingPosition::Latest => (ShardIteratorType::Latest, None, None),
        StartingPosition::AtTimestamp(time) => (ShardIteratorType::AtTimestamp, None, Some(date_time(time))),
        StartingPosition::AtSequenceNumber(number) => (ShardIteratorType::AtSequenceNumber, Some(number.to_string()), None),
        StartingPosition::AfterSequenceNumber(number) => (ShardIteratorType::AfterSequenceNumber, Some(number.to_string()), None),
    }
}

fn shard_id(text: &str) -> Result<ShardId, Problem> {
    if text.is_empty() { Err("a shard without id".to_owned()) } else { Ok(ShardId::from(text)) }
}

fn sequence_number(text: &str) -> Result<SequenceNumber, Problem> {
    text.parse().map_err(|error: kcl_checkpoint::ParseSequenceNumberError| error.to_string())
}

fn hash_range(shard: &ShardId, range: Option<types::HashKeyRange>) -> Result<HashKeyRange, Problem> {
    let range = range.ok_or_else(|| format!("shard `{shard}` has no hash key range"))?;
    match (range.starting_hash_key.parse(), range.ending_hash_key.parse()) {
        (Ok(start), Ok(end)) if start <= end => Ok(HashKeyRange { start, end }),
        _ => Err(format!("shard `{shard}`: `{}` to `{}` is no range of hash keys", range.starting_hash_key, range.ending_hash_key)),
    }
}

/// Times come as seconds in floating point: 1500000000.123 reads as .122999. Rounded, the millisecond that was meant is back.
fn timestamp(time: &DateTime) -> Option<Timestamp> {
    let nanos = u128::try_from(time.as_nanos()).ok()?;
    u64::try_from((nanos + 500_000) / 1_000_000).ok().map(Timestamp::from_millis)
}

fn date_time(time: Timestamp) -> DateTime {
    DateTime::from_millis(i64::try_from(time.as_millis()).unwrap_or(i64::MAX))
}
