//! What a user of the model relies on, operation by operation.

mod concurrency;
mod consumers;
mod json;
mod listing;
mod properties;
mod reading;
mod resharding;
mod retention;
mod streams;
mod subscriptions;
mod writing;

use std::collections::BTreeMap;

use bytes::Bytes;

use super::*;

/// A time in 2026.
pub(super) const START: u64 = 1_790_000_000_000;
pub(super) const HOUR: u64 = 3_600_000;
pub(super) const ARN: &str = "arn:aws:kinesis:us-east-1:000000000000:stream/orders";

/// A Kinesis at a time that a test moves, with short ways to do the usual.
pub(super) struct Fixture {
    pub(super) kinesis: Kinesis,
    pub(super) time: ManualTime,
}

pub(super) fn orders() -> Option<String> {
    Some("orders".to_owned())
}

pub(super) fn shard(number: u32) -> String {
    format!("shardId-{number:012}")
}

#[track_caller]
pub(super) fn refused<T: std::fmt::Debug>(result: Result<T, ApiError>, code: ErrorCode) -> String {
    let error = result.expect_err("refused");
    assert_eq!(error.code, code, "{error}");
    error.message
}

impl Fixture {
    /// With the stream `orders`.
    pub(super) fn new(shards: u32) -> Self {
        Self::with(KinesisConfig::default(), shards)
    }

    pub(super) fn with(config: KinesisConfig, shards: u32) -> Self {
        let fixture = Self::empty(config);
        fixture.create("orders", shards).unwrap();
        fixture
    }

    pub(super) fn empty(config: KinesisConfig) -> Self {
        let time = ManualTime::new(START);
        Self { kinesis: Kinesis::new(config, time.clone()), time }
    }

    pub(super) fn create(&self, name: &str, shards: u32) -> Result<(), ApiError> {
        self.kinesis.call(CreateStreamInput { stream_name: name.to_owned(), shard_count: Some(shards), ..Default::default() })
    }

    pub(super) fn summary(&self) -> Result<StreamDescriptionSummary, ApiError> {
        let input = DescribeStreamSummaryInput { stream_name: orders(), ..Default::default() };
        self.kinesis.call(input).map(|output| output.stream_description_summary)
    }

    pub(super) fn status(&self) -> StreamStatus {
        self.summary().unwrap().stream_status
    }

    /// All shards, by id.
    pub(super) fn shards(&self) -> Vec<ShardDescription> {
        self.list(ShardFilterType::FromTrimHorizon, None).unwrap()
    }

    pub(super) fn list(&self, filter_type: ShardFilterType, timestamp: Option<u64>) -> Result<Vec<ShardDescription>, ApiError> {
        let filter = ShardFilter { filter_type, shard_id: None, timestamp };
        let output = self.kinesis.call(ListShardsInput { stream_name: orders(), shard_filter: Some(filter), ..Default::default() })?;
        assert_eq!(output.next_token, None);
        Ok(output.shards)
    }

    pub(super) fn ids(&self, filter_type: ShardFilterType, timestamp: Option<u64>) -> Vec<u32> {
        self.list(filter_type, timestamp).unwrap().iter().map(|shard| number(&shard.shard_id)).collect()
    }

    /// Writes a record whose payload is `data`.
    pub(super) fn put(&self, key: &str, data: &str) -> PutRecordOutput {
        let data = Bytes::copy_from_slice(data.as_bytes());
        let input = PutRecordInput { stream_name: orders(), data, partition_key: key.to_owned(), ..Default::default() };
        self.kinesis.call(input).unwrap()
    }

    pub(super) fn put_at(&self, hash_key: u128, data: &str) -> PutRecordOutput {
        let data = Bytes::copy_from_slice(data.as_bytes());
        let explicit_hash_key = Some(hash_key.to_string());
        let input =
            PutRecordInput { stream_name: orders(), data, partition_key: "key".to_owned(), explicit_hash_key, ..Default::default() };
        self.kinesis.call(input).unwrap()
    }

    pub(super) fn iterator(&self, shard_number: u32, kind: ShardIteratorType, number: Option<&str>) -> Result<String, ApiError> {
        self.iterator_of(GetShardIteratorInput {
            stream_name: orders(),
            shard_id: shard(shard_number),
            shard_iterator_type: kind,
            starting_sequence_number: number.map(str::to_owned),
            ..Default::default()
        })
    }

    pub(super) fn iterator_of(&self, input: GetShardIteratorInput) -> Result<String, ApiError> {
        self.kinesis.call(input).map(|output| output.shard_iterator)
    }

    pub(super) fn horizon(&self, shard: u32) -> String {
        self.iterator(shard, ShardIteratorType::TrimHorizon, None).unwrap()
    }

    pub(super) fn latest(&self, shard: u32) -> String {
        self.iterator(shard, ShardIteratorType::Latest, None).unwrap()
    }

    pub(super) fn get(&self, iterator: &str) -> Result<GetRecordsOutput, ApiError> {
        self.get_some(iterator, None)
    }

    pub(super) fn get_some(&self, iterator: &str, limit: Option<u32>) -> Result<GetRecordsOutput, ApiError> {
        self.kinesis.call(GetRecordsInput { shard_iterator: iterator.to_owned(), limit, ..Default::default() })
    }

    /// The payloads from here.
    pub(super) fn read(&self, iterator: &str) -> Vec<String> {
        texts(&self.get(iterator).unwrap().records)
    }

    /// Registers a consumer of `orders` and gives its ARN.
    pub(super) fn register(&self, name: &str) -> String {
        let input = RegisterStreamConsumerInput { stream_arn: ARN.to_owned(), consumer_name: name.to_owned() };
        self.kinesis.call(input).unwrap().consumer.consumer_arn
    }

    pub(super) fn deregister(&self, arn: &str) -> Result<(), ApiError> {
        self.kinesis.call(DeregisterStreamConsumerInput { consumer_arn: Some(arn.to_owned()), ..Default::default() })
    }

    pub(super) fn subscribe(
        &self,
        arn: &str,
        shard_number: u32,
        kind: ShardIteratorType,
        number: Option<&str>,
    ) -> Result<SubscriptionId, ApiError> {
        let starting_position = StartingPosition { position_type: kind, sequence_number: number.map(str::to_owned), timestamp: None };
        self.kinesis.call(SubscribeToShardInput { consumer_arn: arn.to_owned(), shard_id: shard(shard_number), starting_position })
    }

    /// What the subscriber gets, which must be an event.
    #[track_caller]
    pub(super) fn event(&self, id: SubscriptionId) -> SubscribeToShardEvent {
        match self.kinesis.next_event(id) {
            NextEvent::Event(event) => event,
            other => panic!("{other:?}"),
        }
    }

    /// Until when the subscriber waits, which it must.
    #[track_caller]
    pub(super) fn waits(&self, id: SubscriptionId) -> u64 {
        match self.kinesis.next_event(id) {
            NextEvent::Wait { until } => until - START,
            other => panic!("{other:?}"),
        }
    }

    pub(super) fn split(&self, number: u32, at: u128) -> Result<(), ApiError> {
        let new_starting_hash_key = at.to_string();
        self.kinesis.call(SplitShardInput {
            stream_name: orders(),
            shard_to_split: shard(number),
            new_starting_hash_key,
            ..Default::default()
        })
    }

    pub(super) fn merge(&self, parent: u32, adjacent: u32) -> Result<(), ApiError> {
        self.kinesis.call(MergeShardsInput {
            stream_name: orders(),
            shard_to_merge: shard(parent),
            adjacent_shard_to_merge: shard(adjacent),
            ..Default::default()
        })
    }

    pub(super) fn resize(&self, target: u32) -> Result<UpdateShardCountOutput, ApiError> {
        self.kinesis.call(UpdateShardCountInput { stream_name: orders(), target_shard_count: target, ..Default::default() })
    }

    /// Reads every shard to its end or tip, children after all of their parents, and gives the payloads by shard.
    pub(super) fn read_tree(&self) -> BTreeMap<u32, Vec<String>> {
        let mut read = BTreeMap::new();
        let mut next = self.ids(ShardFilterType::AtTrimHorizon, None);
        while let Some(number) = next.pop() {
            let mut texts_read = Vec::new();
            let mut iterator = Some(self.horizon(number));
            while let Some(at) = iterator {
                let output = self.get_some(&at, Some(7)).unwrap();
                texts_read.extend(texts(&output.records));
                for child in children(&output) {
                    // The last parent to end brings the child.
                    let mut others = child.parent_shards.iter().map(|parent| self::number(parent)).filter(|parent| *parent != number);
                    if others.all(|parent| read.contains_key(&parent)) {
                        next.push(self::number(&child.shard_id));
                    }
                }
                iterator = output.next_shard_iterator.filter(|_| output.millis_behind_latest > 0);
            }
            assert_eq!(read.insert(number, texts_read), None, "no shard is reached twice");
        }
        read
    }
}

pub(super) fn number(shard_id: &str) -> u32 {
    shard_id.strip_prefix("shardId-").unwrap().parse().unwrap()
}

pub(super) fn texts(records: &[Record]) -> Vec<String> {
    records.iter().map(|record| String::from_utf8(record.data.to_vec()).unwrap()).collect()
}

pub(super) fn children(output: &GetRecordsOutput) -> &[ChildShard] {
    output.child_shards.as_deref().unwrap_or_default()
}

/// First and last hash keys, in order of the first.
pub(super) fn ranges(shards: &[ShardDescription]) -> Vec<(u128, u128)> {
    let range = |shard: &ShardDescription| {
        let range = &shard.hash_key_range;
        (range.starting_hash_key.parse().unwrap(), range.ending_hash_key.parse().unwrap())
    };
    let mut ranges: Vec<_> = shards.iter().map(range).collect();
    ranges.sort_unstable();
    ranges
}

#[track_caller]
pub(super) fn assert_tiles(shards: &[ShardDescription]) {
    let ranges = ranges(shards);
    assert_eq!(ranges.first().map(|range| range.0), Some(0));
    assert_eq!(ranges.last().map(|range| range.1), Some(u128::MAX));
    for pair in ranges.windows(2) {
        assert_eq!(pair[0].1 + 1, pair[1].0, "{ranges:?}");
    }
}
