//! Subscriptions through the SDK, over HTTP/1.1: what the model promises comes through the wire whole, and at once.

use std::time::Duration;

use aws_sdk_kinesis::types::ShardIteratorType::{Latest, TrimHorizon};
use aws_sdk_kinesis::types::{ShardIteratorType, StartingPosition};
use kcl_local::LocalAws;
use kcl_local::kinesis::{KinesisConfig, ManualTime};
use kcl_local::wire::Service;
use tokio::task::JoinSet;

use crate::support::{Aws, End, Events, data, eventually};

/// A time in 2026, which stands still until it is moved: seconds and minutes pass as a test wants.
fn time() -> ManualTime {
    ManualTime::new(1_790_000_000_000)
}

const TAKEN: End = Err(Some("ResourceInUseException"));
const GONE: End = Err(Some("ResourceNotFoundException"));

/// The code of the refusal of a subscription, an ordinary answer of status 400.
async fn refusal(aws: &Aws, consumer: &str, from: ShardIteratorType) -> String {
    let Err(error) = aws.subscribe(consumer, from).await else { panic!("not refused") };
    assert_eq!(error.raw_response().unwrap().status().as_u16(), 400);
    error.into_service_error().meta().code().unwrap().to_owned()
}

#[tokio::test]
async fn the_backlog_comes_and_then_what_is_put() {
    let aws = Aws::start_at(&time()).await;
    let consumer = aws.consumer("orders", 1).await;
    for n in 0..3 {
        aws.put("orders", &format!("backlog {n}")).await;
    }
    let mut events = aws.subscribe(&consumer, TrimHorizon).await.unwrap();
    assert_eq!(events.data().await, ["backlog 0", "backlog 1", "backlog 2"]);
    // Time stands still, so there are no events but those of records.
    for n in 0..50 {
        let live = format!("live {n}");
        aws.put("orders", &live).await;
        let event = events.next().await.unwrap();
        assert_eq!(data(&event), [live]);
        assert_eq!(event.millis_behind_latest, 0);
        assert_eq!(event.continuation_sequence_number, event.records[0].sequence_number);
    }
}

#[tokio::test]
async fn silence_is_broken_by_empty_events_until_the_subscriptions_life_is_over() {
    let time = time();
    let aws = Aws::start_at(&time).await;
    let consumer = aws.consumer("orders", 1).await;
    let mut events = aws.subscribe(&consumer, Latest).await.unwrap();
    assert!(events.data().await.is_empty());
    time.advance(5_000);
    assert!(events.data().await.is_empty());
    time.advance(295_000);
    assert_eq!(events.end().await, Ok(()));
    eventually("nothing is left of it", async || aws.local.open_subscriptions() == 0).await;
}

#[tokio::test]
async fn a_subscription_goes_on_from_where_another_ended() {
    let time = time();
    let aws = Aws::start_at(&time).await;
    let consumer = aws.consumer("orders", 1).await;
    aws.put("orders", "first").await;
    let mut events = aws.subscribe(&consumer, TrimHorizon).await.unwrap();
    let continuation = events.next().await.unwrap().continuation_sequence_number;
    drop(events);
    aws.put("orders", "second").await;
    time.advance(5_000);
    let position =
        StartingPosition::builder().r#type(ShardIteratorType::AfterSequenceNumber).sequence_number(continuation).build().unwrap();
    let call = aws.kinesis.subscribe_to_shard().consumer_arn(&consumer).shard_id("shardId-000000000000");
    let mut events = Events::of(call.starting_position(position).send().await.unwrap());
    assert_eq!(events.data().await, ["second"]);
}

#[tokio::test]
async fn a_second_subscriber_is_refused_for_five_seconds_and_then_takes_over() {
    let time = time();
    let aws = Aws::start_at(&time).await;
    let consumer = aws.consumer("orders", 1).await;
    let mut first = aws.subscribe(&consumer, Latest).await.unwrap();
    first.next().await.unwrap();
    time.advance(4_999);
    assert_eq!(refusal(&aws, &consumer, Latest).await, "ResourceInUseException");
    time.advance(1);
    let mut second = aws.subscribe(&consumer, Latest).await.unwrap();
    assert_eq!(first.end().await, TAKEN);
    second.next().await.unwrap();
    aws.put("orders", "later").await;
    assert_eq!(second.data().await, ["later"]);
    let faults = aws.local.faults();
    assert_eq!(faults.requests_of(Service::Kinesis, "SubscribeToShard"), 3);
    assert_eq!(faults.accepted_of(Service::Kinesis, "SubscribeToShard"), 2);
}

#[tokio::test]
async fn refusals_are_ordinary_answers() {
    let config = KinesisConfig { enforce_read_limits: true, resubscribe_ms: 0, ..KinesisConfig::default() };
    let local = LocalAws::builder().kinesis(config).time(std::sync::Arc::new(time())).start().await.unwrap();
    let aws = Aws::clients_of(local);
    let consumer = aws.consumer("orders", 1).await;
    assert_eq!(refusal(&aws, &consumer.replace("/app", "/other"), Latest).await, "ResourceNotFoundException");
    // A sequence number is missing.
    assert_eq!(refusal(&aws, &consumer, ShardIteratorType::AtSequenceNumber).await, "InvalidArgumentException");
    for _ in 0..4 {
        aws.subscribe(&consumer, Latest).await.unwrap();
    }
    assert_eq!(refusal(&aws, &consumer, Latest).await, "LimitExceededException");
}

#[tokio::test]
async fn the_end_of_a_shard_comes_with_its_children() {
    let time = time();
    let aws = Aws::start_at(&time).await;
    let consumer = aws.consumer("orders", 1).await;
    let mut live = aws.subscribe(&consumer, Latest).await.unwrap();
    live.next().await.unwrap();
    aws.put("orders", "last").await;
    assert_eq!(live.data().await, ["last"]);
    let split = aws.kinesis.split_shard().stream_name("orders").shard_to_split("shardId-000000000000");
    split.new_starting_hash_key((u128::MAX / 2 + 1).to_string()).send().await.unwrap();
    time.advance(5_000);
    let mut late = aws.subscribe(&consumer, TrimHorizon).await.unwrap();

    for (events, records) in [(&mut live, 0), (&mut late, 1)] {
        let event = events.next().await.unwrap();
        assert_eq!(event.records.len(), records);
        let children: Vec<_> = event.child_shards.unwrap().into_iter().map(|child| child.shard_id).collect();
        assert_eq!(children, ["shardId-000000000001", "shardId-000000000002"]);
        assert_eq!(events.next().await.unwrap_err(), Ok(()));
    }
}

#[tokio::test]
async fn a_consumer_that_is_gone_has_no_subscriptions() {
    let aws = Aws::start_at(&time()).await;
    let consumer = aws.consumer("orders", 1).await;
    let events = aws.subscribe(&consumer, Latest).await.unwrap();
    aws.kinesis.deregister_stream_consumer().consumer_arn(&consumer).send().await.unwrap();
    assert_eq!(events.end().await, GONE);

    let consumer = aws.consumer("letters", 1).await;
    let events = aws.subscribe(&consumer, Latest).await.unwrap();
    aws.kinesis.delete_stream().stream_name("letters").enforce_consumer_deletion(true).send().await.unwrap();
    assert_eq!(events.end().await, GONE);
}

#[tokio::test]
async fn a_client_that_leaves_ends_its_subscription() {
    let aws = Aws::start_at(&time()).await;
    let consumer = aws.consumer("orders", 1).await;
    let mut events = aws.subscribe(&consumer, Latest).await.unwrap();
    events.next().await.unwrap();
    assert_eq!(aws.local.open_subscriptions(), 1);
    drop(events);
    eventually("the server sees it", async || aws.local.open_subscriptions() == 0).await;
}

#[tokio::test]
async fn a_server_that_is_shut_down_ends_subscriptions() {
    let aws = Aws::start_at(&time()).await;
    let consumer = aws.consumer("orders", 1).await;
    let events = aws.subscribe(&consumer, Latest).await.unwrap();
    tokio::time::timeout(Duration::from_secs(20), aws.local.shutdown()).await.unwrap();
    assert_eq!(events.end().await, Err(None));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_subscriber_gets_what_many_write_once_and_in_order() {
    const WRITERS: usize = 16;
    const EACH: usize = 50;
    let aws = Aws::start().await;
    let consumer = aws.consumer("orders", 1).await;
    let mut events = aws.subscribe(&consumer, Latest).await.unwrap();
    events.next().await.unwrap();

    let mut writers = JoinSet::new();
    for writer in 0..WRITERS {
        let kinesis = aws.kinesis.clone();
        writers.spawn(async move {
            let mut written = Vec::new();
            for n in 0..EACH {
                let data = format!("{writer}/{n}");
                let put = kinesis.put_record().stream_name("orders").partition_key("k").data(data.clone().into_bytes().into());
                written.push((put.send().await.unwrap().sequence_number, data));
            }
            written
        });
    }
    let mut read = Vec::new();
    while read.len() < WRITERS * EACH {
        let event = events.next().await.unwrap();
        let numbers = event.records.iter().map(|record| record.sequence_number.clone());
        read.extend(numbers.zip(data(&event)));
    }
    let mut written = writers.join_all().await.concat();
    // Of one length, so that texts have the order of numbers.
    written.sort();
    assert_eq!(read, written);
}
