//! A stream over the wire: what its port says of it, and shards read by polling to their ends.

use std::sync::Arc;
use std::time::Duration;

use aws_sdk_kinesis::primitives::Blob;
use aws_sdk_kinesis::types::{PutRecordsRequestEntry, ScalingType};
use kcl_core::retrieval::{Fetched, Polling, Retrieval, SoleReader};
use kcl_core::stream::{KinesisStream, ShardFilter, ShardIterator, StartingPosition, StreamApi, StreamError, StreamStatus};
use kcl_core::{Entropy, PollingConfig, ShardId, SystemClock, Timestamp};
use kcl_local::LocalAws;
use kcl_local::kinesis::KinesisConfig;
use kcl_local::wire::{Fault, Rule};

const STREAM: &str = "orders";

struct Aws {
    local: LocalAws,
    client: aws_sdk_kinesis::Client,
}

impl Aws {
    /// A server with an active stream.
    async fn start(shards: i32, config: KinesisConfig) -> Self {
        let config = KinesisConfig { creating_ms: 0, updating_ms: 0, deleting_ms: 0, ..config };
        let local = LocalAws::builder().kinesis(config).start().await.unwrap();
        let client = aws_sdk_kinesis::Client::new(&local.sdk_config());
        client.create_stream().stream_name(STREAM).shard_count(shards).send().await.unwrap();
        Self { local, client }
    }

    fn stream(&self) -> KinesisStream {
        KinesisStream::new(self.client.clone(), STREAM, Duration::from_secs(5))
    }

    async fn put(&self, count: usize, size: usize) {
        let entry = |n: usize| {
            let data = Blob::new(format!("{n:0size$}"));
            PutRecordsRequestEntry::builder().data(data).partition_key(n.to_string()).build().unwrap()
        };
        let put = self.client.put_records().stream_name(STREAM).set_records(Some((0..count).map(entry).collect()));
        assert_eq!(put.send().await.unwrap().failed_record_count(), Some(0));
    }

    async fn reshard(&self, shards: i32) {
        let update = self.client.update_shard_count().stream_name(STREAM).target_shard_count(shards);
        update.scaling_type(ScalingType::UniformScaling).send().await.unwrap();
    }

    /// Reads the shard to its end: its payloads, and its children.
    async fn drain(&self, shard: &ShardId) -> (Vec<String>, Vec<ShardId>) {
        let config = PollingConfig { max_records: 40, ..PollingConfig::default() };
        let polling = Polling::new(Arc::new(self.stream()), config, Arc::new(SystemClock), Entropy::from_seed(1));
        let mut reader = polling.open(shard, StartingPosition::TrimHorizon, Arc::new(SoleReader));
        let mut payloads = Vec::new();
        loop {
            match reader.fetch().await.unwrap() {
                Fetched::Records { records, .. } => {
                    payloads.extend(records.iter().map(|record| String::from_utf8(record.data().to_vec()).unwrap()));
                }
                Fetched::ShardEnd { children } => return (payloads, children.into_iter().map(|child| child.shard_id).collect()),
            }
        }
    }
}

#[tokio::test]
async fn a_stream_is_described_by_name_and_by_arn() {
    let aws = Aws::start(1, KinesisConfig::default()).await;
    let described = aws.stream().describe().await.unwrap();
    assert_eq!((described.name.as_str(), described.status, described.retention_hours), (STREAM, StreamStatus::Active, 24));
    assert!(described.created > Timestamp::from_millis(1_700_000_000_000));
    let by_arn = KinesisStream::new(aws.client.clone(), &described.arn, Duration::from_secs(5));
    assert_eq!(by_arn.describe().await.unwrap(), described);
    assert_eq!(by_arn.list_shards(ShardFilter::All).await.unwrap(), aws.stream().list_shards(ShardFilter::All).await.unwrap());
}

#[tokio::test]
async fn shards_are_listed_with_their_parents_by_filter() {
    let aws = Aws::start(2, KinesisConfig::default()).await;
    aws.put(10, 1).await;
    aws.reshard(1).await;
    let stream = aws.stream();
    let all = stream.list_shards(ShardFilter::All).await.unwrap();
    let [left, right, merged] = &all[..] else { panic!("{all:?}") };
    assert!(left.ending_sequence_number.is_some() && right.ending_sequence_number.is_some());
    assert_eq!(merged.parents, [left.shard_id.clone(), right.shard_id.clone()].into());
    assert_eq!((merged.hash_range.start, merged.hash_range.end), (0, u128::MAX));
    assert_eq!(stream.list_shards(ShardFilter::AtLatest).await.unwrap(), std::slice::from_ref(merged));
    assert_eq!(stream.list_shards(ShardFilter::AtTrimHorizon).await.unwrap(), [left.clone(), right.clone()]);
}

#[tokio::test]
async fn a_listing_of_many_shards_is_complete() {
    let aws = Aws::start(1_100, KinesisConfig { open_shard_limit: 2_000, ..KinesisConfig::default() }).await;
    let shards = aws.stream().list_shards(ShardFilter::All).await.unwrap();
    assert_eq!(shards.len(), 1_100);
    assert!(shards.is_sorted_by(|one, other| one.shard_id < other.shard_id));
}

#[tokio::test]
async fn a_split_shard_is_read_to_its_end_within_the_service_s_limits_while_calls_fail() {
    let aws = Aws::start(1, KinesisConfig { enforce_read_limits: true, ..KinesisConfig::default() }).await;
    aws.put(100, 3).await;
    aws.put(20, 20_000).await;
    aws.reshard(2).await;
    for (operation, fault) in [("GetShardIterator", Fault::Throttle), ("GetRecords", Fault::Drop), ("GetRecords", Fault::ServerError)] {
        aws.local.faults().add(Rule::new(fault).operation(operation).times(1));
    }
    let parent = aws.stream().list_shards(ShardFilter::AtTrimHorizon).await.unwrap().remove(0).shard_id;
    let (payloads, children) = aws.drain(&parent).await;
    let expected: Vec<_> = (0..100).map(|n| format!("{n:03}")).chain((0..20).map(|n| format!("{n:020000}"))).collect();
    assert!(payloads == expected, "{} of {} records, or not in order", payloads.len(), expected.len());
    let open: Vec<_> = aws.stream().list_shards(ShardFilter::AtLatest).await.unwrap().into_iter().map(|shard| shard.shard_id).collect();
    assert_eq!(children, open);
}

#[tokio::test]
async fn expired_iterators_leave_no_gap() {
    // Shorter than the pace: no iterator is fresh when it is used, but the first of each.
    let aws = Aws::start(1, KinesisConfig { iterator_life_ms: 100, ..KinesisConfig::default() }).await;
    aws.put(100, 3).await;
    aws.reshard(2).await;
    let parent = aws.stream().list_shards(ShardFilter::AtTrimHorizon).await.unwrap().remove(0).shard_id;
    let (payloads, _) = aws.drain(&parent).await;
    assert_eq!(payloads, (0..100).map(|n| format!("{n:03}")).collect::<Vec<_>>());
}

#[tokio::test]
async fn what_the_service_refuses_is_told_by_its_kind() {
    let aws = Aws::start(1, KinesisConfig { iterator_life_ms: 20, ..KinesisConfig::default() }).await;
    let stream = aws.stream();
    let nobody = KinesisStream::new(aws.client.clone(), "nobody", Duration::from_secs(5));
    assert!(matches!(nobody.describe().await, Err(StreamError::NotFound { .. })));
    assert!(matches!(nobody.list_shards(ShardFilter::All).await, Err(StreamError::NotFound { .. })));
    let missing = stream.shard_iterator(&"shardId-000000000099".into(), StartingPosition::Latest).await;
    assert!(matches!(missing, Err(StreamError::NotFound { .. })), "{missing:?}");
    let shard = stream.list_shards(ShardFilter::All).await.unwrap().remove(0).shard_id;
    let foreign = stream.shard_iterator(&shard, StartingPosition::AtSequenceNumber(7.into())).await;
    assert!(matches!(foreign, Err(StreamError::InvalidArgument { .. })), "{foreign:?}");
    let garbage = stream.get_records(&ShardIterator("garbage".into()), 1).await;
    assert!(matches!(garbage, Err(StreamError::InvalidArgument { .. })), "{garbage:?}");
    let iterator = stream.shard_iterator(&shard, StartingPosition::TrimHorizon).await.unwrap();
    tokio::time::sleep(Duration::from_millis(100)).await;
    let expired = stream.get_records(&iterator, 1).await;
    assert!(matches!(expired, Err(StreamError::ExpiredIterator { .. })), "{expired:?}");

    let once = |fault| aws.local.faults().add(Rule::new(fault).times(1));
    for fault in [Fault::Throttle, Fault::ServerError, Fault::Drop] {
        once(fault);
        match (fault, stream.describe().await) {
            (Fault::Throttle, Err(StreamError::Throttled { .. })) => {}
            (Fault::ServerError | Fault::Drop, Err(StreamError::Unavailable { .. })) => {}
            (_, other) => panic!("{fault:?}: {other:?}"),
        }
        // One attempt each: had the SDK retried, the fault would have been used up unseen.
        stream.describe().await.unwrap();
    }
    let impatient = KinesisStream::new(aws.client.clone(), STREAM, Duration::from_millis(300));
    once(Fault::WithholdAnswer);
    assert!(matches!(impatient.describe().await, Err(StreamError::Unavailable { .. })));
}
