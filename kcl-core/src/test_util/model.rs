//! The terms of `kcl-local`'s model of Kinesis, and ours.

use std::collections::BTreeSet;

use kcl_checkpoint::{SequenceNumber, StartingPosition, Timestamp};
use kcl_lease::{HashKeyRange, ShardId};
use kcl_local::kinesis as model;

use crate::stream::{Shard, ShardFilter, StreamDescription, StreamStatus};

/// How the model's sequence numbers are told.
///
/// Kinesis promises that the numbers of a shard grow, and nothing of their length. The model's, like the service's, have 56 digits. Made short
/// they grow in length as well, so that whoever compares them as text is found out.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Numbers {
    /// What is taken from the upper half: of the oldest stream's numbers.
    offset: u128,
}

impl Numbers {
    /// Numbers as short as those of a stream that was made at this time can be.
    pub(super) fn short(epoch_millis: u64) -> Self {
        Self { offset: (2_u128 << 56) | (u128::from(epoch_millis / 1000) << 20) }
    }

    pub(super) fn ours(self, number: model::SequenceNumber) -> SequenceNumber {
        let (high, low) = number.into_words();
        SequenceNumber::from_words(high.saturating_sub(self.offset), low)
    }

    fn theirs(self, number: SequenceNumber) -> String {
        let (high, low) = number.into_words();
        SequenceNumber::from_words(high.saturating_add(self.offset), low).to_string()
    }

    /// The type of a starting position, and the number or the time that goes with it.
    pub(super) fn position(self, start: StartingPosition) -> (model::ShardIteratorType, Option<String>, Option<u64>) {
        use model::ShardIteratorType as Type;
        match start {
            StartingPosition::TrimHorizon => (Type::TrimHorizon, None, None),
            StartingPosition::Latest => (Type::Latest, None, None),
            StartingPosition::AtTimestamp(time) => (Type::AtTimestamp, None, Some(time.as_millis())),
            StartingPosition::AtSequenceNumber(number) => (Type::AtSequenceNumber, Some(self.theirs(number)), None),
            StartingPosition::AfterSequenceNumber(number) => (Type::AfterSequenceNumber, Some(self.theirs(number)), None),
        }
    }

    pub(super) fn shard(self, shard: model::ShardDescription) -> Shard {
        Shard {
            parents: [shard.parent_shard_id, shard.adjacent_parent_shard_id].into_iter().flatten().map(ShardId::from).collect(),
            hash_range: range(&shard.hash_key_range),
            starting_sequence_number: self.ours(shard.sequence_number_range.starting_sequence_number),
            ending_sequence_number: shard.sequence_number_range.ending_sequence_number.map(|number| self.ours(number)),
            shard_id: shard.shard_id.into(),
        }
    }

    pub(super) fn record(self, record: model::Record, data: bytes::Bytes) -> kcl_efo::Record {
        kcl_efo::Record {
            sequence_number: self.ours(record.sequence_number),
            partition_key: Some(record.partition_key),
            data,
            arrival: Some(Timestamp::from_millis(record.approximate_arrival_timestamp)),
        }
    }
}

pub(super) fn child(child: model::ChildShard) -> kcl_efo::ChildShard {
    let HashKeyRange { start, end } = range(&child.hash_key_range);
    let parents: BTreeSet<_> = child.parent_shards.into_iter().collect();
    kcl_efo::ChildShard { shard_id: child.shard_id, parents, hash_range: (start, end) }
}

pub(super) fn consumer(found: model::Consumer) -> kcl_efo::Consumer {
    let status = match found.consumer_status {
        model::ConsumerStatus::Creating => kcl_efo::ConsumerStatus::Creating,
        model::ConsumerStatus::Active => kcl_efo::ConsumerStatus::Active,
        model::ConsumerStatus::Deleting => kcl_efo::ConsumerStatus::Deleting,
    };
    kcl_efo::Consumer { arn: found.consumer_arn, status }
}

pub(super) fn description(summary: model::StreamDescriptionSummary, time: Timestamp) -> StreamDescription {
    StreamDescription {
        name: summary.stream_name,
        arn: summary.stream_arn,
        status: match summary.stream_status {
            model::StreamStatus::Creating => StreamStatus::Creating,
            model::StreamStatus::Active | model::StreamStatus::Updating => StreamStatus::Active,
            model::StreamStatus::Deleting => StreamStatus::Deleting,
        },
        created: Timestamp::from_millis(summary.stream_creation_timestamp),
        retention_hours: summary.retention_period_hours,
        time: Some(time),
    }
}

pub(super) fn filter(filter: ShardFilter) -> Option<model::ShardFilter> {
    use model::ShardFilterType as Type;
    let (filter_type, timestamp) = match filter {
        ShardFilter::All => return None,
        ShardFilter::AtLatest => (Type::AtLatest, None),
        ShardFilter::AtTrimHorizon => (Type::AtTrimHorizon, None),
        ShardFilter::AtTimestamp(time) => (Type::AtTimestamp, Some(time.as_millis())),
    };
    Some(model::ShardFilter { filter_type, shard_id: None, timestamp })
}

fn range(range: &model::HashKeyRange) -> HashKeyRange {
    let key = |text: &str| text.parse().expect("the model's hash keys are numbers");
    HashKeyRange { start: key(&range.starting_hash_key), end: key(&range.ending_hash_key) }
}
