//! Enhanced fan-out over the model of Kinesis.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use async_trait::async_trait;
use kcl_checkpoint::StartingPosition;
use kcl_efo::{Consumer, Event, EventStream, FanOutApi, FanOutError};
use kcl_local::kinesis::{
    self as model, ApiError, ChangeListener, DeregisterStreamConsumerInput, DescribeStreamConsumerInput, ErrorCode, NextEvent,
    RegisterStreamConsumerInput, SubscribeToShardInput, SubscriptionId,
};
use tokio::sync::Notify;
use tokio::time::sleep;

use super::aws::SimulatedAws;
use super::faults::{Break, Service};
use super::host::Held;
use super::model::{child, consumer};
use super::network::{Asked, Failure, Link};

const SUBSCRIBE: &str = "kinesis:SubscribeToShard";
const TIMEOUT: Duration = Duration::from_secs(5);
const ERRORS: &[&str] = &["ResourceNotFoundException", "AccessDeniedException", "InternalFailure"];
const SUBSCRIBE_ERRORS: &[&str] = &["ResourceNotFoundException", "AccessDeniedException", "ResourceInUseException", "InternalFailure"];

/// Enhanced fan-out as one host reaches it.
///
/// A subscription holds nothing: its events stay in the model until they are asked for.
#[derive(Clone, Debug)]
pub struct SimulatedFanOut {
    aws: SimulatedAws,
    link: Link,
    held: Held,
    open: Arc<AtomicUsize>,
}

impl SimulatedFanOut {
    pub(super) fn new(aws: &SimulatedAws, link: Link, held: Held) -> Self {
        Self { aws: aws.clone(), link, held, open: Arc::default() }
    }

    /// Subscriptions that were not dropped.
    #[must_use]
    pub fn open_subscriptions(&self) -> usize {
        self.open.load(Ordering::Relaxed)
    }

    fn asked<'a>(&self, operation: &'static str, shard: &'a str, errors: &'static [&'static str]) -> Asked<'a> {
        Asked { service: Service::Stream, operation, shard, may_be_stale: false, errors, timeout: TIMEOUT }
    }

    async fn described(&self, asked: &str, input: DescribeStreamConsumerInput) -> Result<Consumer, FanOutError> {
        const OPERATION: &str = "kinesis:DescribeStreamConsumer";
        let answer = self.link.read(self.asked(OPERATION, "", ERRORS), |_| self.aws.kinesis().call(input)).await;
        match answer.map_err(|failure| failed(OPERATION, failure))? {
            Ok(output) => Ok(consumer(output.consumer_description.consumer)),
            Err(ApiError { code: ErrorCode::ResourceNotFound, .. }) => Err(FanOutError::ConsumerNotFound { consumer: asked.to_owned() }),
            Err(error) => Err(refused(OPERATION, error)),
        }
    }
}

#[async_trait]
impl FanOutApi for SimulatedFanOut {
    async fn register(&self, stream_arn: &str, name: &str) -> Result<Consumer, FanOutError> {
        const OPERATION: &str = "kinesis:RegisterStreamConsumer";
        let (aws, input) =
            (self.aws.clone(), RegisterStreamConsumerInput { stream_arn: stream_arn.to_owned(), consumer_name: name.to_owned() });
        let answer = self.link.write(self.asked(OPERATION, "", ERRORS), move || aws.kinesis().call(input.clone())).await;
        match answer.map_err(|failure| failed(OPERATION, failure))? {
            Ok(output) => Ok(consumer(output.consumer)),
            Err(ApiError { code: ErrorCode::LimitExceeded, message }) => {
                Err(FanOutError::ConsumerLimit { consumer: name.to_owned(), stream: stream_arn.to_owned(), message })
            }
            Err(error) => Err(refused(OPERATION, error)),
        }
    }

    async fn find(&self, stream_arn: &str, name: &str) -> Result<Consumer, FanOutError> {
        let (stream_arn, consumer_name) = (Some(stream_arn.to_owned()), Some(name.to_owned()));
        self.described(name, DescribeStreamConsumerInput { stream_arn, consumer_name, ..Default::default() }).await
    }

    async fn describe(&self, consumer_arn: &str) -> Result<Consumer, FanOutError> {
        let input = DescribeStreamConsumerInput { consumer_arn: Some(consumer_arn.to_owned()), ..Default::default() };
        self.described(consumer_arn, input).await
    }

    async fn deregister(&self, consumer_arn: &str) -> Result<(), FanOutError> {
        const OPERATION: &str = "kinesis:DeregisterStreamConsumer";
        let (aws, input) =
            (self.aws.clone(), DeregisterStreamConsumerInput { consumer_arn: Some(consumer_arn.to_owned()), ..Default::default() });
        let answer = self.link.write(self.asked(OPERATION, "", ERRORS), move || aws.kinesis().call(input.clone())).await;
        match answer.map_err(|failure| failed(OPERATION, failure))? {
            Ok(()) | Err(ApiError { code: ErrorCode::ResourceNotFound, .. }) => Ok(()),
            Err(error) => Err(refused(OPERATION, error)),
        }
    }

    /// An answer that is lost leaves a subscription that nobody reads: the service refuses the next one for five seconds.
    async fn subscribe(&self, consumer_arn: &str, shard: &str, start: StartingPosition) -> Result<Box<dyn EventStream>, FanOutError> {
        let (position_type, sequence_number, timestamp) = self.aws.numbers().position(start);
        let input = SubscribeToShardInput {
            consumer_arn: consumer_arn.to_owned(),
            shard_id: shard.to_owned(),
            starting_position: model::StartingPosition { position_type, sequence_number, timestamp },
        };
        // arn:aws:kinesis:REGION:ACCOUNT:stream/NAME/consumer/NAME:SECONDS; one that isn't is refused by the model.
        let changed = self.aws.subscribers().changes_of(consumer_arn.split('/').nth(1).unwrap_or_default());
        let aws = self.aws.clone();
        let answer = self.link.write(self.asked(SUBSCRIBE, shard, SUBSCRIBE_ERRORS), move || aws.kinesis().call(input.clone())).await;
        let id = answer.map_err(|failure| failed(SUBSCRIBE, failure))?.map_err(|error| refused(SUBSCRIBE, error))?;
        self.open.fetch_add(1, Ordering::Relaxed);
        Ok(Box::new(Subscription { service: self.clone(), id, changed, broken: None, late: None }))
    }
}

struct Subscription {
    service: SimulatedFanOut,
    id: SubscriptionId,
    changed: Arc<Notify>,
    broken: Option<Break>,
    /// An event that comes late, and when.
    late: Option<(tokio::time::Instant, Event)>,
}

impl Drop for Subscription {
    fn drop(&mut self) {
        self.service.aws.kinesis().end_subscription(self.id);
        self.service.open.fetch_sub(1, Ordering::Relaxed);
    }
}

#[async_trait]
impl EventStream for Subscription {
    async fn next(&mut self) -> Result<Option<Event>, FanOutError> {
        loop {
            match self.broken {
                Some(Break::Broken) => {
                    return Err(FanOutError::Unavailable { operation: SUBSCRIBE, message: "the connection broke".to_owned() });
                }
                Some(Break::Ended) => return Ok(None),
                Some(Break::Silent) => std::future::pending().await,
                Some(Break::Late(_)) | None => {}
            }
            if let Some((at, _)) = &self.late {
                tokio::time::sleep_until(*at).await;
                self.broken = None;
                if let Some((_, event)) = self.late.take() {
                    return Ok(Some(event));
                }
            }
            // Registered before the model is asked, so that what changes in between is not missed.
            let changed = self.changed.notified();
            let (next, now) = self.service.aws.kinesis().with(|model, now| (model.next_event(now, self.id), now));
            match next {
                NextEvent::Event(received) => {
                    let event = self.event(received);
                    self.broken = self.service.link.breaks();
                    match self.broken {
                        None => return Ok(Some(event)),
                        Some(Break::Late(by)) => self.late = Some((tokio::time::Instant::now() + by, event)),
                        // Not received.
                        Some(_) => {}
                    }
                }
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

impl Subscription {
    fn event(&self, event: model::SubscribeToShardEvent) -> Event {
        let numbers = self.service.aws.numbers();
        let record = |mut record: model::Record| {
            let data = self.service.held.count(std::mem::take(&mut record.data));
            numbers.record(record, data)
        };
        Event {
            records: event.records.into_iter().map(record).collect(),
            continuation: event.continuation_sequence_number.map(|number| numbers.ours(number)),
            millis_behind_latest: Some(event.millis_behind_latest),
            children: event.child_shards.into_iter().map(child).collect(),
        }
    }
}

/// Those who wait for streams to change, by the stream's name.
#[derive(Default)]
pub(super) struct Subscribers(Mutex<BTreeMap<String, Weak<Notify>>>);

impl Subscribers {
    fn changes_of(&self, stream: &str) -> Arc<Notify> {
        let mut streams = self.0.lock().unwrap_or_else(PoisonError::into_inner);
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
        let changed = self.0.lock().unwrap_or_else(PoisonError::into_inner).get(stream).and_then(Weak::upgrade);
        if let Some(changed) = changed {
            changed.notify_waiters();
        }
    }
}

impl fmt::Debug for Subscribers {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Subscribers")
    }
}

fn failed(operation: &'static str, failure: Failure) -> FanOutError {
    let message = "a simulated fault".to_owned();
    match failure {
        Failure::Throttled => FanOutError::Throttled { operation, message },
        Failure::Refused("ResourceNotFoundException") => FanOutError::NotFound { operation, message },
        Failure::Refused("AccessDeniedException") => FanOutError::AccessDenied { operation, message },
        Failure::Refused("ResourceInUseException") => FanOutError::InUse { operation, message },
        Failure::Refused(_) | Failure::NoAnswer => FanOutError::Unavailable { operation, message },
    }
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
