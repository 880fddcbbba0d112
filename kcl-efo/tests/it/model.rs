//! The port over the model of Kinesis in process: no wire, and time is tokio's, so that it can be simulated.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use async_trait::async_trait;
use kcl_checkpoint::{SequenceNumber, StartingPosition, Timestamp};
use kcl_efo::{ChildShard, Consumer, ConsumerStatus, Event, EventStream, FanOutApi, FanOutError, Record};
use kcl_local::kinesis::{
    self as model, ApiError, ChangeListener, DeregisterStreamConsumerInput, DescribeStreamConsumerInput, ErrorCode, Kinesis, KinesisConfig,
    NextEvent, RegisterStreamConsumerInput, ShardIteratorType, SubscribeToShardInput, SubscriptionId,
};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep};

use crate::conformance::{self, Service};

/// Enhanced fan-out of a model. Every call is answered at once. Clones share it.
///
/// A subscription holds nothing: its events stay in the model until they are asked for.
#[derive(Clone, Debug)]
pub(crate) struct ModelFanOut {
    kinesis: Kinesis,
    subscribers: Arc<Subscribers>,
}

impl ModelFanOut {
    /// Of this model, whose time must be [`tokio_time`] or move with it.
    pub(crate) fn new(kinesis: Kinesis) -> Self {
        let subscribers = Arc::new(Subscribers::default());
        let told: Weak<Subscribers> = Arc::downgrade(&subscribers);
        kinesis.listen(told);
        Self { kinesis, subscribers }
    }

    /// Subscriptions that were not dropped.
    pub(crate) fn open(&self) -> usize {
        self.subscribers.open.load(Ordering::Relaxed)
    }
}

/// A source of time for a model: tokio's clock, which stood at `start` when this was called.
pub(crate) fn tokio_time(start: Timestamp) -> impl Fn() -> u64 + Send + Sync {
    let began = Instant::now();
    move || start.as_millis() + u64::try_from(began.elapsed().as_millis()).expect("a test takes less than an age of the earth")
}

/// Those who wait for streams to change, by the stream's name; and how many subscriptions there are.
#[derive(Debug, Default)]
struct Subscribers {
    streams: Mutex<BTreeMap<String, Weak<Notify>>>,
    open: AtomicUsize,
}

impl Subscribers {
    fn changes_of(&self, stream: &str) -> Arc<Notify> {
        let mut streams = self.streams.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(changed) = streams.get(stream).and_then(Weak::upgrade) {
            return changed;
        }
        streams.retain(|_, changed| changed.strong_count() > 0);
        let changed = Arc::new(Notify::new());
        streams.insert(stream.to_owned(), Arc::downgrade(&changed));
        changed
    }
}

impl ChangeListener for Subscribers {
    fn stream_changed(&self, stream: &str) {
        let changed = self.streams.lock().unwrap_or_else(PoisonError::into_inner).get(stream).and_then(Weak::upgrade);
        if let Some(changed) = changed {
            changed.notify_waiters();
        }
    }
}

#[async_trait]
impl FanOutApi for ModelFanOut {
    async fn register(&self, stream_arn: &str, name: &str) -> Result<Consumer, FanOutError> {
        let input = RegisterStreamConsumerInput { stream_arn: stream_arn.to_owned(), consumer_name: name.to_owned() };
        match self.kinesis.call(input) {
            Ok(output) => Ok(consumer(output.consumer)),
            Err(ApiError { code: ErrorCode::LimitExceeded, message }) => {
                Err(FanOutError::ConsumerLimit { consumer: name.to_owned(), stream: stream_arn.to_owned(), message })
            }
            Err(error) => Err(refused("kinesis:RegisterStreamConsumer", error)),
        }
    }

    async fn find(&self, stream_arn: &str, name: &str) -> Result<Consumer, FanOutError> {
        let (stream_arn, consumer_name) = (Some(stream_arn.to_owned()), Some(name.to_owned()));
        self.described(name, DescribeStreamConsumerInput { stream_arn, consumer_name, ..Default::default() })
    }

    async fn describe(&self, consumer_arn: &str) -> Result<Consumer, FanOutError> {
        self.described(consumer_arn, DescribeStreamConsumerInput { consumer_arn: Some(consumer_arn.to_owned()), ..Default::default() })
    }

    async fn deregister(&self, consumer_arn: &str) -> Result<(), FanOutError> {
        match self.kinesis.call(DeregisterStreamConsumerInput { consumer_arn: Some(consumer_arn.to_owned()), ..Default::default() }) {
            Ok(()) | Err(ApiError { code: ErrorCode::ResourceNotFound, .. }) => Ok(()),
            Err(error) => Err(refused("kinesis:DeregisterStreamConsumer", error)),
        }
    }

    async fn subscribe(&self, consumer_arn: &str, shard: &str, start: StartingPosition) -> Result<Box<dyn EventStream>, FanOutError> {
        let input =
            SubscribeToShardInput { consumer_arn: consumer_arn.to_owned(), shard_id: shard.to_owned(), starting_position: position(start) };
        // arn:aws:kinesis:REGION:ACCOUNT:stream/NAME/consumer/NAME:SECONDS; one that isn't is refused by the model.
        let changed = self.subscribers.changes_of(consumer_arn.split('/').nth(1).unwrap_or_default());
        let id = self.kinesis.call(input).map_err(|error| refused(SUBSCRIBE, error))?;
        self.subscribers.open.fetch_add(1, Ordering::Relaxed);
        Ok(Box::new(Subscription { service: self.clone(), id, changed }))
    }
}

impl ModelFanOut {
    fn described(&self, asked: &str, input: DescribeStreamConsumerInput) -> Result<Consumer, FanOutError> {
        match self.kinesis.call(input) {
            Ok(output) => Ok(consumer(output.consumer_description.consumer)),
            Err(ApiError { code: ErrorCode::ResourceNotFound, .. }) => Err(FanOutError::ConsumerNotFound { consumer: asked.to_owned() }),
            Err(error) => Err(refused("kinesis:DescribeStreamConsumer", error)),
        }
    }
}

const SUBSCRIBE: &str = "kinesis:SubscribeToShard";

struct Subscription {
    service: ModelFanOut,
    id: SubscriptionId,
    changed: Arc<Notify>,
}

impl Drop for Subscription {
    fn drop(&mut self) {
        self.service.kinesis.end_subscription(self.id);
        self.service.subscribers.open.fetch_sub(1, Ordering::Relaxed);
    }
}

#[async_trait]
impl EventStream for Subscription {
    async fn next(&mut self) -> Result<Option<Event>, FanOutError> {
        loop {
            // Registered before the model is asked, so that what changes in between is not missed.
            let changed = self.changed.notified();
            let (next, now) = self.service.kinesis.with(|model, now| (model.next_event(now, self.id), now));
            match next {
                NextEvent::Event(received) => return Ok(Some(event(received))),
                NextEvent::Ended => return Ok(None),
                // The consumer or the stream was deleted: the next attempt tells which.
                NextEvent::Failed(ApiError { code: ErrorCode::ResourceNotFound, message }) => {
                    return Err(FanOutError::Unavailable { operation: SUBSCRIBE, message });
                }
                NextEvent::Failed(error) => return Err(refused(SUBSCRIBE, error)),
                NextEvent::Wait { until } => {
                    tokio::select! {
                        biased;
                        () = changed => {}
                        () = sleep(Duration::from_millis(until.saturating_sub(now))) => {}
                    }
                }
            }
        }
    }
}

fn consumer(found: model::Consumer) -> Consumer {
    let status = match found.consumer_status {
        model::ConsumerStatus::Creating => ConsumerStatus::Creating,
        model::ConsumerStatus::Active => ConsumerStatus::Active,
        model::ConsumerStatus::Deleting => ConsumerStatus::Deleting,
    };
    Consumer { arn: found.consumer_arn, status }
}

fn event(event: model::SubscribeToShardEvent) -> Event {
    Event {
        records: event.records.into_iter().map(record).collect(),
        continuation: event.continuation_sequence_number.map(number),
        millis_behind_latest: Some(event.millis_behind_latest),
        children: event.child_shards.into_iter().map(child).collect(),
    }
}

fn record(record: model::Record) -> Record {
    Record {
        sequence_number: number(record.sequence_number),
        partition_key: Some(record.partition_key),
        data: record.data,
        arrival: Some(Timestamp::from_millis(record.approximate_arrival_timestamp)),
    }
}

fn child(child: model::ChildShard) -> ChildShard {
    let key = |text: &str| text.parse().expect("the model's hash keys are numbers");
    ChildShard {
        shard_id: child.shard_id,
        parents: child.parent_shards.into_iter().collect(),
        hash_range: (key(&child.hash_key_range.starting_hash_key), key(&child.hash_key_range.ending_hash_key)),
    }
}

fn number(number: impl fmt::Display) -> SequenceNumber {
    number.to_string().parse().expect("the model's sequence numbers are numbers")
}

fn position(start: StartingPosition) -> model::StartingPosition {
    let (position_type, number, timestamp) = match start {
        StartingPosition::TrimHorizon => (ShardIteratorType::TrimHorizon, None, None),
        StartingPosition::Latest => (ShardIteratorType::Latest, None, None),
        StartingPosition::AtTimestamp(time) => (ShardIteratorType::AtTimestamp, None, Some(time.as_millis())),
        StartingPosition::AtSequenceNumber(number) => (ShardIteratorType::AtSequenceNumber, Some(number), None),
        StartingPosition::AfterSequenceNumber(number) => (ShardIteratorType::AfterSequenceNumber, Some(number), None),
    };
    model::StartingPosition { position_type, sequence_number: number.map(|number| number.to_string()), timestamp }
}

fn refused(operation: &'static str, ApiError { code, message }: ApiError) -> FanOutError {
    match code {
        ErrorCode::ResourceNotFound => FanOutError::NotFound { operation, message },
        ErrorCode::ResourceInUse => FanOutError::InUse { operation, message },
        ErrorCode::LimitExceeded | ErrorCode::ProvisionedThroughputExceeded => FanOutError::Throttled { operation, message },
        ErrorCode::InvalidArgument | ErrorCode::Validation => FanOutError::InvalidArgument { operation, message },
        code => FanOutError::Unavailable { operation, message: format!("{code}: {message}") },
    }
}

#[async_trait]
impl Service for ModelFanOut {
    fn api(&self) -> Arc<dyn FanOutApi> {
        Arc::new(self.clone())
    }

    fn kinesis(&self) -> &Kinesis {
        &self.kinesis
    }

    async fn pass(&self, time: Duration) {
        sleep(time).await;
    }

    fn open_subscriptions(&self) -> usize {
        self.open()
    }
}

#[tokio::test(start_paused = true)]
async fn the_model_in_process_conforms() {
    conformance::fan_out_suite(|config: KinesisConfig| async {
        ModelFanOut::new(Kinesis::new(config, tokio_time(Timestamp::from_millis(1_790_000_000_000))))
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_subscription_sleeps_until_its_time_or_a_change() {
    let service = ModelFanOut::new(Kinesis::new(KinesisConfig::default(), tokio_time(Timestamp::from_millis(1_790_000_000_000))));
    let stream = conformance::create_stream(&service, "orders", 1);
    let arn = service.register(&stream, "app").await.unwrap().arn;
    let mut events = service.subscribe(&arn, conformance::SHARD, StartingPosition::Latest).await.unwrap();
    let began = Instant::now();
    for heartbeat in 0..60 {
        assert!(events.next().await.unwrap().unwrap().records.is_empty());
        assert_eq!(began.elapsed(), Duration::from_secs(5) * heartbeat);
    }
    assert!(events.next().await.unwrap().is_none());
    assert_eq!(began.elapsed(), Duration::from_secs(300));
}
