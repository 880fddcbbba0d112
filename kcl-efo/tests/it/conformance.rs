//! What every implementation of the port must do, as tests that each of them runs.
//!
//! A case panics if the implementation does not conform. Each takes a fresh service of its own.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use kcl_checkpoint::{SequenceNumber, StartingPosition, Timestamp};
use kcl_efo::{Consumer, ConsumerStatus, Event, EventStream, FanOutApi, FanOutError};
use kcl_local::kinesis::{CreateStreamInput, Kinesis, KinesisConfig, PutRecordInput, SplitShardInput};
use tokio::time::{Instant, timeout};

/// A service, and an implementation of the port to it.
#[async_trait]
pub(crate) trait Service: Send + Sync {
    /// The implementation.
    fn api(&self) -> Arc<dyn FanOutApi>;

    /// What is behind it: who writes records and changes shards.
    fn kinesis(&self) -> &Kinesis;

    /// Has the service's time pass.
    async fn pass(&self, time: Duration);

    /// How many subscriptions it serves.
    fn open_subscriptions(&self) -> usize;
}

/// Runs all cases, each on a service that `make` gives.
///
/// # Panics
/// If the implementation does not conform.
pub(crate) async fn fan_out_suite<F, Fut, S>(make: F)
where
    F: Fn(KinesisConfig) -> Fut,
    Fut: Future<Output = S>,
    S: Service,
{
    let config = KinesisConfig::default;
    a_subscription_starts_where_it_is_told(&make(config()).await).await;
    a_record_comes_whole(&make(config()).await).await;
    going_on_after_an_event_neither_skips_nor_repeats(&make(config()).await).await;
    going_on_after_an_event_without_records_loses_nothing(&make(config()).await).await;
    what_is_put_is_pushed(&make(config()).await).await;
    a_cancelled_call_loses_nothing(&make(config()).await).await;
    a_second_subscription_is_refused_for_five_seconds_and_then_takes_over(&make(config()).await).await;
    a_subscription_ends_in_order_when_its_time_is_over(&make(config()).await).await;
    the_children_come_at_the_end_of_a_shard(&make(config()).await).await;
    the_subscriptions_of_a_consumer_end_with_it(&make(config()).await).await;
    a_subscription_that_is_dropped_has_ended(&make(config()).await).await;
    a_consumer_is_registered_found_and_deregistered(&make(config()).await).await;
    states_in_between_are_told(&make(KinesisConfig { consumer_creating_ms: 10_000, consumer_deleting_ms: 10_000, ..config() }).await).await;
    limits_are_told(&make(KinesisConfig { consumer_limit: 2, enforce_read_limits: true, ..config() }).await).await;
    what_does_not_exist_is_not_found(&make(config()).await).await;
}

/// The first shard of each stream.
pub(crate) const SHARD: &str = "shardId-000000000000";
const OTHER_SHARD: &str = "shardId-000000000001";
const FIVE_SECONDS: Duration = Duration::from_secs(5);
/// Nothing here takes as long, unless it never comes.
const PATIENCE: Duration = Duration::from_secs(20);

/// Makes a stream; its ARN.
pub(crate) fn create_stream(service: &dyn Service, name: &str, shards: u32) -> String {
    let input = CreateStreamInput { stream_name: name.to_owned(), shard_count: Some(shards), ..Default::default() };
    service.kinesis().call(input).unwrap();
    format!("arn:aws:kinesis:us-east-1:000000000000:stream/{name}")
}

/// Writes a record into the shard of `orders` that takes this hash key.
fn put_at(service: &dyn Service, hash_key: u128, data: impl Into<Bytes>) -> SequenceNumber {
    let input = PutRecordInput {
        stream_name: Some("orders".to_owned()),
        data: data.into(),
        partition_key: "key".to_owned(),
        explicit_hash_key: Some(hash_key.to_string()),
        ..Default::default()
    };
    service.kinesis().call(input).unwrap().sequence_number.to_string().parse().unwrap()
}

/// Writes a record into the first shard.
fn put(service: &dyn Service, data: &str) -> SequenceNumber {
    put_at(service, 0, data.to_owned())
}

fn split(service: &dyn Service) {
    let (stream_name, shard_to_split) = (Some("orders".to_owned()), SHARD.to_owned());
    let new_starting_hash_key = (1u128 << 127).to_string();
    service.kinesis().call(SplitShardInput { stream_name, shard_to_split, new_starting_hash_key, ..Default::default() }).unwrap();
}

/// The stream `orders` and a consumer of it, whose ARN is given.
async fn consumer(service: &dyn Service, shards: u32) -> String {
    let stream = create_stream(service, "orders", shards);
    let consumer = service.api().register(&stream, "app").await.unwrap();
    assert_eq!(consumer.status, ConsumerStatus::Active);
    consumer.arn
}

async fn subscribe(service: &dyn Service, consumer: &str, start: StartingPosition) -> Box<dyn EventStream> {
    service.api().subscribe(consumer, SHARD, start).await.unwrap()
}

async fn refusal(service: &dyn Service, consumer: &str, shard: &str, start: StartingPosition) -> FanOutError {
    match service.api().subscribe(consumer, shard, start).await {
        Ok(_) => panic!("not refused"),
        Err(error) => error,
    }
}

async fn end_of(events: &mut Box<dyn EventStream>) -> Result<(), FanOutError> {
    loop {
        match timeout(PATIENCE, events.next()).await.expect("neither an event nor the end") {
            Ok(Some(_)) => {}
            Ok(None) => return Ok(()),
            Err(error) => return Err(error),
        }
    }
}

async fn next(events: &mut Box<dyn EventStream>) -> Event {
    timeout(PATIENCE, events.next()).await.expect("no event").unwrap().expect("the subscription has ended")
}

/// The data of the next records.
async fn data(events: &mut Box<dyn EventStream>) -> Vec<String> {
    loop {
        let event = next(events).await;
        if !event.records.is_empty() {
            return event.records.iter().map(|record| String::from_utf8(record.data.to_vec()).unwrap()).collect();
        }
    }
}

async fn a_subscription_starts_where_it_is_told(service: &dyn Service) {
    let arn = consumer(service, 1).await;
    put(service, "a");
    service.pass(Duration::from_millis(1_500)).await;
    let second = put(service, "b");
    let event = next(&mut subscribe(service, &arn, StartingPosition::TrimHorizon).await).await;
    let arrival = event.records[1].arrival.unwrap();
    put(service, "c");
    for (start, expected) in [
        (StartingPosition::TrimHorizon, vec!["a", "b", "c", "d"]),
        (StartingPosition::AtTimestamp(arrival), vec!["b", "c", "d"]),
        (StartingPosition::AtTimestamp(Timestamp::from_millis(arrival.as_millis() - 1)), vec!["b", "c", "d"]),
        (StartingPosition::AtSequenceNumber(second), vec!["b", "c", "d"]),
        (StartingPosition::AfterSequenceNumber(second), vec!["c", "d"]),
        (StartingPosition::Latest, vec!["e"]),
    ] {
        service.pass(FIVE_SECONDS).await;
        let mut events = subscribe(service, &arn, start).await;
        let mut seen = next(&mut events).await.records.len();
        assert_eq!(seen == 0, start == StartingPosition::Latest, "{start:?}: an event comes at once");
        let first = expected[0];
        put(service, if first == "a" { "d" } else { "e" });
        while seen < expected.len() {
            seen += next(&mut events).await.records.len();
        }
        // Which records these are.
        drop(events);
        service.pass(FIVE_SECONDS).await;
        if start != StartingPosition::Latest {
            let mut events = subscribe(service, &arn, start).await;
            assert_eq!(data(&mut events).await[..expected.len()], expected, "{start:?}");
        }
    }
}

async fn a_record_comes_whole(service: &dyn Service) {
    let arn = consumer(service, 1).await;
    let number = put_at(service, 0, vec![0, 159, 146, 150]);
    let event = next(&mut subscribe(service, &arn, StartingPosition::TrimHorizon).await).await;
    let [record] = &event.records[..] else { panic!("{event:?}") };
    assert_eq!((record.sequence_number, record.partition_key.as_deref()), (number, Some("key")));
    assert_eq!(record.data[..], [0, 159, 146, 150]);
    assert!(record.arrival.is_some());
    assert_eq!((event.continuation, event.millis_behind_latest, event.children.len()), (Some(number), Some(0), 0));
}

async fn going_on_after_an_event_neither_skips_nor_repeats(service: &dyn Service) {
    const RECORDS: usize = 12;
    let arn = consumer(service, 1).await;
    // No event holds two of them.
    let numbers: Vec<_> = (0..RECORDS).map(|_| put_at(service, 0, vec![0; 600_000])).collect();
    // Each subscription is given up after one event more than the one before.
    let (mut start, mut seen) = (StartingPosition::TrimHorizon, Vec::new());
    for events_taken in 1.. {
        let mut events = subscribe(service, &arn, start).await;
        for _ in 0..events_taken {
            if seen.len() == RECORDS {
                break;
            }
            let event = next(&mut events).await;
            assert_eq!(event.millis_behind_latest == Some(0), seen.len() + event.records.len() == RECORDS);
            seen.extend(event.records.iter().map(|record| record.sequence_number));
            start = StartingPosition::AfterSequenceNumber(event.continuation.unwrap());
        }
        drop(events);
        if seen.len() == RECORDS {
            break;
        }
        service.pass(FIVE_SECONDS).await;
    }
    assert_eq!(seen, numbers);
}

async fn going_on_after_an_event_without_records_loses_nothing(service: &dyn Service) {
    let arn = consumer(service, 1).await;
    for (before, start) in [(false, StartingPosition::TrimHorizon), (false, StartingPosition::Latest), (true, StartingPosition::Latest)] {
        if before {
            put(service, "before");
        }
        let event = next(&mut subscribe(service, &arn, start).await).await;
        assert!(event.records.is_empty());
        service.pass(FIVE_SECONDS).await;
        if before {
            put(service, "while away");
        }
        let mut events = subscribe(service, &arn, StartingPosition::AfterSequenceNumber(event.continuation.unwrap())).await;
        if before {
            assert_eq!(data(&mut events).await, ["while away"]);
        } else {
            assert!(next(&mut events).await.records.is_empty());
        }
        drop(events);
        service.pass(FIVE_SECONDS).await;
    }
}

async fn what_is_put_is_pushed(service: &dyn Service) {
    let arn = consumer(service, 1).await;
    let mut events = subscribe(service, &arn, StartingPosition::Latest).await;
    next(&mut events).await;
    for round in 0..20 {
        let (round, put_at) = (round.to_string(), Instant::now());
        put(service, &round);
        assert_eq!(data(&mut events).await, [round]);
        // Events without records come after five seconds.
        assert!(put_at.elapsed() < Duration::from_secs(2), "{:?}", put_at.elapsed());
    }
}

async fn a_cancelled_call_loses_nothing(service: &dyn Service) {
    let arn = consumer(service, 1).await;
    let mut numbers: Vec<_> = (0..30).map(|_| put_at(service, 0, vec![0; 300_000])).collect();
    let mut events = subscribe(service, &arn, StartingPosition::TrimHorizon).await;
    let (mut seen, mut patience) = (Vec::new(), (0..4).cycle());
    while seen.len() < 40 {
        if numbers.len() < 40 && seen.len() + 5 > numbers.len() {
            numbers.push(put(service, "live"));
        }
        if let Ok(event) = timeout(Duration::from_millis(patience.next().unwrap()), events.next()).await {
            seen.extend(event.unwrap().unwrap().records.iter().map(|record| record.sequence_number));
        }
    }
    assert_eq!(seen, numbers);
}

async fn a_second_subscription_is_refused_for_five_seconds_and_then_takes_over(service: &dyn Service) {
    let arn = consumer(service, 2).await;
    let mut first = subscribe(service, &arn, StartingPosition::Latest).await;
    next(&mut first).await;
    service.pass(Duration::from_millis(4_900)).await;
    let refused = refusal(service, &arn, SHARD, StartingPosition::Latest).await;
    assert!(matches!(refused, FanOutError::InUse { .. }), "{refused:?}");
    // Other shards and other consumers are not concerned, nor is the first.
    let mut other_shard = service.api().subscribe(&arn, OTHER_SHARD, StartingPosition::Latest).await.unwrap();
    let other = service.api().register(&create_stream_arn(), "other").await.unwrap();
    let mut other_consumer = subscribe(service, &other.arn, StartingPosition::Latest).await;
    put(service, "to the first");
    assert_eq!(data(&mut first).await, ["to the first"]);
    service.pass(Duration::from_millis(200)).await;
    let mut second = subscribe(service, &arn, StartingPosition::Latest).await;
    let taken = end_of(&mut first).await.unwrap_err();
    assert!(matches!(taken, FanOutError::InUse { .. }), "{taken:?}");
    next(&mut second).await;
    put(service, "to the second");
    put_at(service, u128::MAX, "to the other shard".to_owned());
    assert_eq!(data(&mut second).await, ["to the second"]);
    assert_eq!(data(&mut other_shard).await, ["to the other shard"]);
    let mut seen = data(&mut other_consumer).await;
    while seen.len() < 2 {
        seen.extend(data(&mut other_consumer).await);
    }
    assert_eq!(seen, ["to the first", "to the second"]);
    // It holds although that subscription is over.
    drop(second);
    let refused = refusal(service, &arn, SHARD, StartingPosition::Latest).await;
    assert!(matches!(refused, FanOutError::InUse { .. }), "{refused:?}");
}

fn create_stream_arn() -> String {
    "arn:aws:kinesis:us-east-1:000000000000:stream/orders".to_owned()
}

async fn a_subscription_ends_in_order_when_its_time_is_over(service: &dyn Service) {
    let arn = consumer(service, 1).await;
    let mut events = subscribe(service, &arn, StartingPosition::Latest).await;
    next(&mut events).await;
    service.pass(Duration::from_secs(299)).await;
    put(service, "late");
    assert_eq!(data(&mut events).await, ["late"]);
    service.pass(Duration::from_secs(1)).await;
    assert_eq!(end_of(&mut events).await, Ok(()));
    // Its place is free at once.
    next(&mut subscribe(service, &arn, StartingPosition::Latest).await).await;
}

async fn the_children_come_at_the_end_of_a_shard(service: &dyn Service) {
    let arn = consumer(service, 1).await;
    let mut live = subscribe(service, &arn, StartingPosition::Latest).await;
    next(&mut live).await;
    let number = put(service, "last");
    assert_eq!(data(&mut live).await, ["last"]);
    split(service);
    let children = [(1, (0, (1 << 127) - 1)), (2, (1 << 127, u128::MAX))].map(|(number, range)| (format!("shardId-{number:012}"), range));
    let assert_end = |event: &Event| {
        assert_eq!(event.continuation, None);
        let parents = BTreeSet::from([SHARD.to_owned()]);
        assert!(event.children.iter().all(|child| child.parents == parents), "{event:?}");
        assert_eq!(event.children.iter().map(|child| (child.shard_id.clone(), child.hash_range)).collect::<Vec<_>>(), children);
    };
    let event = next(&mut live).await;
    assert_end(&event);
    assert!(event.records.is_empty());
    assert_eq!(end_of(&mut live).await, Ok(()));
    // The same of a shard that is closed already, with its last records or without.
    for (start, records) in
        [(StartingPosition::TrimHorizon, 1), (StartingPosition::AfterSequenceNumber(number), 0), (StartingPosition::Latest, 0)]
    {
        service.pass(FIVE_SECONDS).await;
        let mut closed = subscribe(service, &arn, start).await;
        let event = next(&mut closed).await;
        assert_end(&event);
        assert_eq!(event.records.len(), records, "{start:?}");
        assert_eq!(end_of(&mut closed).await, Ok(()));
    }
}

async fn the_subscriptions_of_a_consumer_end_with_it(service: &dyn Service) {
    let arn = consumer(service, 2).await;
    let mut events = subscribe(service, &arn, StartingPosition::Latest).await;
    let mut others = service.api().subscribe(&arn, OTHER_SHARD, StartingPosition::Latest).await.unwrap();
    next(&mut events).await;
    service.api().deregister(&arn).await.unwrap();
    for events in [&mut events, &mut others] {
        let end = end_of(events).await.unwrap_err();
        assert!(matches!(end, FanOutError::Unavailable { .. }), "the next attempt tells what is gone: {end:?}");
    }
    let refused = refusal(service, &arn, SHARD, StartingPosition::Latest).await;
    assert!(matches!(refused, FanOutError::NotFound { .. }), "{refused:?}");
}

async fn a_subscription_that_is_dropped_has_ended(service: &dyn Service) {
    let arn = consumer(service, 2).await;
    assert_eq!(service.open_subscriptions(), 0);
    let mut read = subscribe(service, &arn, StartingPosition::Latest).await;
    next(&mut read).await;
    let unread = service.api().subscribe(&arn, OTHER_SHARD, StartingPosition::Latest).await.unwrap();
    assert_eq!(service.open_subscriptions(), 2);
    drop((read, unread));
    let ended = async {
        while service.open_subscriptions() > 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(PATIENCE, ended).await.expect("they go on");
}

async fn a_consumer_is_registered_found_and_deregistered(service: &dyn Service) {
    let (stream, api) = (create_stream(service, "orders", 1), service.api());
    let missing = |name: &str| Err(FanOutError::ConsumerNotFound { consumer: name.to_owned() });
    assert_eq!(api.find(&stream, "app").await, missing("app"));
    let consumer = api.register(&stream, "app").await.unwrap();
    assert!(consumer.arn.starts_with(&format!("{stream}/consumer/app:")), "{}", consumer.arn);
    assert_eq!(api.find(&stream, "app").await, Ok(consumer.clone()));
    assert_eq!(api.describe(&consumer.arn).await, Ok(consumer.clone()));
    let again = api.register(&stream, "app").await.unwrap_err();
    assert!(matches!(again, FanOutError::InUse { .. }), "{again:?}");
    for _ in 0..2 {
        api.deregister(&consumer.arn).await.unwrap();
        assert_eq!(api.find(&stream, "app").await, missing("app"));
        assert_eq!(api.describe(&consumer.arn).await, missing(&consumer.arn));
    }
    let anew = api.register(&stream, "app").await.unwrap();
    assert_ne!(anew.arn, consumer.arn);
    assert_eq!(api.describe(&consumer.arn).await, missing(&consumer.arn), "the same name is not the same consumer");
}

async fn states_in_between_are_told(service: &dyn Service) {
    let (stream, api) = (create_stream(service, "orders", 1), service.api());
    let Consumer { arn, status } = api.register(&stream, "app").await.unwrap();
    for (status, then) in [(status, ConsumerStatus::Creating), (api.describe(&arn).await.unwrap().status, ConsumerStatus::Creating)] {
        assert_eq!(status, then);
    }
    let refused = refusal(service, &arn, SHARD, StartingPosition::Latest).await;
    assert!(matches!(refused, FanOutError::InUse { .. }), "{refused:?}");
    service.pass(Duration::from_secs(10)).await;
    assert_eq!(api.find(&stream, "app").await.unwrap().status, ConsumerStatus::Active);
    let mut events = subscribe(service, &arn, StartingPosition::Latest).await;
    api.deregister(&arn).await.unwrap();
    assert!(end_of(&mut events).await.is_err());
    assert_eq!(api.find(&stream, "app").await.unwrap().status, ConsumerStatus::Deleting);
    let refused = refusal(service, &arn, SHARD, StartingPosition::Latest).await;
    assert!(matches!(refused, FanOutError::InUse { .. }), "{refused:?}");
    let again = api.register(&stream, "app").await.unwrap_err();
    assert!(matches!(again, FanOutError::InUse { .. }), "{again:?}");
}

async fn limits_are_told(service: &dyn Service) {
    let (stream, api) = (create_stream(service, "orders", 6), service.api());
    let first = api.register(&stream, "first").await.unwrap();
    api.register(&stream, "second").await.unwrap();
    let third = api.register(&stream, "third").await.unwrap_err();
    assert!(matches!(&third, FanOutError::ConsumerLimit { consumer, .. } if consumer == "third"), "{third:?}");
    let shards: Vec<_> = (0..6).map(|shard| format!("shardId-{shard:012}")).collect();
    let mut subscribed = Vec::new();
    for shard in &shards[..5] {
        subscribed.push(api.subscribe(&first.arn, shard, StartingPosition::Latest).await.unwrap());
    }
    let refused = refusal(service, &first.arn, &shards[5], StartingPosition::Latest).await;
    assert!(matches!(refused, FanOutError::Throttled { .. }), "{refused:?}");
    service.pass(Duration::from_secs(1)).await;
    api.subscribe(&first.arn, &shards[5], StartingPosition::Latest).await.unwrap();
}

async fn what_does_not_exist_is_not_found(service: &dyn Service) {
    let arn = consumer(service, 2).await;
    for (consumer, shard) in [(arn.replace("/app", "/no-app"), SHARD), (arn.clone(), "shardId-000000000042")] {
        let refused = refusal(service, &consumer, shard, StartingPosition::TrimHorizon).await;
        assert!(matches!(refused, FanOutError::NotFound { .. }), "{refused:?}");
    }
    let number = put(service, "in the first shard");
    for start in [StartingPosition::AtSequenceNumber(number), StartingPosition::AfterSequenceNumber(number)] {
        let refused = refusal(service, &arn, OTHER_SHARD, start).await;
        assert!(matches!(refused, FanOutError::InvalidArgument { .. }), "{refused:?}");
    }
    let no_stream = create_stream_arn().replace("orders", "no-stream");
    let refused = service.api().register(&no_stream, "app").await.unwrap_err();
    assert!(matches!(refused, FanOutError::NotFound { .. }), "{refused:?}");
}
