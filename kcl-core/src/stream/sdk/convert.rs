//! What the SDK's types say, in the port's terms. What can't be said is a problem in words, never left out.

use aws_sdk_kinesis::operation::get_records::GetRecordsOutput;
use aws_sdk_kinesis::types::{self, ShardFilterType};
use kcl_checkpoint::Timestamp;
use kcl_efo::convert::{self, Problem};
use kcl_lease::{HashKeyRange, ShardId};

use crate::record::Record;
use crate::stream::{ChildShard, RecordsPage, Shard, ShardFilter, ShardIterator, StreamDescription, StreamStatus};

pub(super) fn description(summary: types::StreamDescriptionSummary, time: Option<Timestamp>) -> Result<StreamDescription, Problem> {
    let status = match summary.stream_status {
        types::StreamStatus::Creating => StreamStatus::Creating,
        types::StreamStatus::Active | types::StreamStatus::Updating => StreamStatus::Active,
        types::StreamStatus::Deleting => StreamStatus::Deleting,
        other => return Err(format!("unknown stream status `{other}`")),
    };
    // The SDK fills members that are missing with defaults. The creation time tells streams of one name apart: one that is made up
    // would make another stream's checkpoints look like this one's.
    let created = convert::timestamp(&summary.stream_creation_timestamp).filter(|created| created.as_millis() > 0);
    Ok(StreamDescription {
        name: Some(summary.stream_name).filter(|name| !name.is_empty()).ok_or("no stream name")?,
        arn: Some(summary.stream_arn).filter(|arn| !arn.is_empty()).ok_or("no stream ARN")?,
        status,
        created: created.ok_or("no creation time")?,
        retention_hours: u32::try_from(summary.retention_period_hours)
            .map_err(|_| format!("a retention of {} hours", summary.retention_period_hours))?,
        time,
    })
}

pub(super) fn shard(shard: types::Shard) -> Result<Shard, Problem> {
    let shard_id = ShardId::from(convert::shard_id(shard.shard_id)?);
    let sequence_numbers = shard.sequence_number_range.ok_or_else(|| format!("shard `{shard_id}` has no sequence number range"))?;
    let number = |text: &str| convert::sequence_number(text).map_err(|problem| format!("shard `{shard_id}`: {problem}"));
    Ok(Shard {
        parents: [shard.parent_shard_id, shard.adjacent_parent_shard_id].into_iter().flatten().map(ShardId::from).collect(),
        hash_range: hash_range(convert::hash_range(shard_id.as_str(), shard.hash_key_range)?),
        starting_sequence_number: number(&sequence_numbers.starting_sequence_number)?,
        ending_sequence_number: sequence_numbers.ending_sequence_number.as_deref().map(number).transpose()?,
        shard_id,
    })
}

pub(super) fn page(answer: GetRecordsOutput) -> Result<RecordsPage, Problem> {
    Ok(RecordsPage {
        records: answer.records.into_iter().map(|record| convert::record(record).map(Record::from)).collect::<Result<_, _>>()?,
        next: iterator(answer.next_shard_iterator),
        children: answer
            .child_shards
            .unwrap_or_default()
            .into_iter()
            .map(|shard| convert::child(shard).map(child))
            .collect::<Result<_, _>>()?,
        millis_behind_latest: answer.millis_behind_latest.and_then(|millis| u64::try_from(millis).ok()),
    })
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
        ShardFilter::AtTimestamp(time) => (ShardFilterType::AtTimestamp, Some(convert::date_time(time))),
    };
    Some(types::ShardFilter::builder().r#type(kind).set_timestamp(timestamp).build().expect("the type, all that is required, is set"))
}

fn hash_range((start, end): (u128, u128)) -> HashKeyRange {
    HashKeyRange { start, end }
}

impl From<kcl_efo::Record> for Record {
    fn from(record: kcl_efo::Record) -> Self {
        Self::new(record.sequence_number, record.partition_key, record.data, record.arrival)
    }
}

/// What the end of a shard tells, as leases have it.
pub(crate) fn child(child: kcl_efo::ChildShard) -> ChildShard {
    ChildShard {
        shard_id: ShardId::from(child.shard_id),
        parents: child.parents.into_iter().map(ShardId::from).collect(),
        hash_range: hash_range(child.hash_range),
    }
}
