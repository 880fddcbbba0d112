//! The port over the AWS SDK: which request is made for which call. One attempt each.

use std::time::Duration;

use async_trait::async_trait;
use aws_sdk_kinesis::Client;
use aws_sdk_kinesis::config::retry::RetryConfig;
use aws_sdk_kinesis::config::timeout::TimeoutConfig;
use aws_sdk_kinesis::config::{Builder, StalledStreamProtectionConfig};
use aws_sdk_kinesis::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_kinesis::primitives::event_stream::EventReceiver;
use aws_sdk_kinesis::types::error::SubscribeToShardEventStreamError;
use aws_sdk_kinesis::types::{self, SubscribeToShardEventStream};
use aws_types::SdkConfig;
use kcl_checkpoint::StartingPosition;

use crate::api::{Consumer, ConsumerStatus, Event, EventStream, FanOutApi};
use crate::convert;
use crate::error::FanOutError;
use crate::http::FanOutHttpClient;
use crate::refusal::Refusal;

const REGISTER: &str = "kinesis:RegisterStreamConsumer";
const DESCRIBE: &str = "kinesis:DescribeStreamConsumer";
const DEREGISTER: &str = "kinesis:DeregisterStreamConsumer";
const SUBSCRIBE: &str = "kinesis:SubscribeToShard";

/// How long a call but SubscribeToShard may take.
const CALL_TIMEOUT: Duration = Duration::from_secs(5);

/// Enhanced fan-out of Amazon Kinesis.
///
/// Every call is one attempt: the SDK's retries are switched off, as whoever calls retries and paces. Its stalled-stream protection, which does not
/// cover subscriptions, is off too.
#[derive(Clone, Debug)]
pub struct KinesisFanOut {
    client: Client,
}

impl KinesisFanOut {
    /// With the region, credentials and endpoint of this configuration, and an HTTP client made for subscriptions.
    ///
    /// If the configuration has an HTTP client of its own (for a proxy, or for certificates), that one is used. It should keep
    /// subscriptions of one HTTP/2 connection from starving each other, see [`FanOutHttpClient`].
    #[must_use]
    pub fn new(config: &SdkConfig) -> Self {
        Self::over(config, config.http_client().is_none().then(FanOutHttpClient::new))
    }

    /// The same with this HTTP client.
    #[must_use]
    pub fn with_http_client(config: &SdkConfig, http: FanOutHttpClient) -> Self {
        Self::over(config, Some(http))
    }

    fn over(config: &SdkConfig, http: Option<FanOutHttpClient>) -> Self {
        let mut config = Builder::from(config)
            .retry_config(RetryConfig::disabled())
            .stalled_stream_protection(StalledStreamProtectionConfig::disabled())
            .timeout_config(TimeoutConfig::builder().operation_timeout(CALL_TIMEOUT).build());
        if let Some(http) = http {
            config = config.http_client(http);
        }
        Self { client: Client::from_conf(config.build()) }
    }

    async fn described(&self, arn: Option<&str>, stream: Option<&str>, name: Option<&str>) -> Result<Consumer, FanOutError> {
        let request = self.client.describe_stream_consumer();
        let request =
            request.set_consumer_arn(arn.map(Into::into)).set_stream_arn(stream.map(Into::into)).set_consumer_name(name.map(Into::into));
        let answer = request.send().await.map_err(|error| match Refusal::of(&error) {
            Refusal::NotFound(_) => FanOutError::ConsumerNotFound { consumer: arn.or(name).unwrap_or_default().to_owned() },
            refusal => failed(DESCRIBE, refusal),
        })?;
        let consumer = answer.consumer_description.ok_or_else(|| malformed(DESCRIBE, "no consumer description"))?;
        usable(DESCRIBE, consumer.consumer_arn, &consumer.consumer_status)
    }
}

#[async_trait]
impl FanOutApi for KinesisFanOut {
    async fn register(&self, stream_arn: &str, name: &str) -> Result<Consumer, FanOutError> {
        let request = self.client.register_stream_consumer().stream_arn(stream_arn).consumer_name(name);
        let answer = request.send().await.map_err(|error| {
            // The service has one code for "too many consumers", "too many in creation" and "too many
            // calls"; its words tell the last one from the others.
            let limit = error.code() == Some("LimitExceededException");
            match Refusal::of(&error) {
                Refusal::Throttled(message) if limit && !is_rate(&message) => {
                    let (consumer, stream) = (name.to_owned(), stream_arn.to_owned());
                    FanOutError::ConsumerLimit { consumer, stream, message }
                }
                refusal => failed(REGISTER, refusal),
            }
        })?;
        let consumer = answer.consumer.ok_or_else(|| malformed(REGISTER, "no consumer"))?;
        usable(REGISTER, consumer.consumer_arn, &consumer.consumer_status)
    }

    async fn find(&self, stream_arn: &str, name: &str) -> Result<Consumer, FanOutError> {
        self.described(None, Some(stream_arn), Some(name)).await
    }

    async fn describe(&self, consumer_arn: &str) -> Result<Consumer, FanOutError> {
        self.described(Some(consumer_arn), None, None).await
    }

    async fn deregister(&self, consumer_arn: &str) -> Result<(), FanOutError> {
        match self.client.deregister_stream_consumer().consumer_arn(consumer_arn).send().await {
            Ok(_) => Ok(()),
            Err(error) => match Refusal::of(&error) {
                Refusal::NotFound(_) => Ok(()),
                refusal => Err(failed(DEREGISTER, refusal)),
            },
        }
    }

    async fn subscribe(&self, consumer_arn: &str, shard: &str, start: StartingPosition) -> Result<Box<dyn EventStream>, FanOutError> {
        let request = self.client.subscribe_to_shard().consumer_arn(consumer_arn).shard_id(shard).starting_position(position(start));
        // The attempt's time is bounded by whoever calls, and a subscription outlives any timeout of an operation.
        let untimed =
            TimeoutConfig::builder().disable_operation_timeout().disable_operation_attempt_timeout().disable_read_timeout().build();
        let request = request.customize().config_override(aws_sdk_kinesis::config::Config::builder().timeout_config(untimed));
        let answer = request.send().await.map_err(|error| failed(SUBSCRIBE, Refusal::of(&error)))?;
        Ok(Box::new(Stream(answer.event_stream)))
    }
}

struct Stream(EventReceiver<SubscribeToShardEventStream, SubscribeToShardEventStreamError>);

#[async_trait]
impl EventStream for Stream {
    async fn next(&mut self) -> Result<Option<Event>, FanOutError> {
        loop {
            match self.0.recv().await {
                Ok(Some(SubscribeToShardEventStream::SubscribeToShardEvent(received))) => return event(received).map(Some),
                // A kind of event that this SDK does not know carries no records that this service documents.
                Ok(Some(_)) => {}
                Ok(None) => return Ok(None),
                Err(error) => return Err(broken(&error)),
            }
        }
    }
}

fn event(event: types::SubscribeToShardEvent) -> Result<Event, FanOutError> {
    // The SDK fills a member that is missing with an empty text.
    let continuation = Some(event.continuation_sequence_number).filter(|number| !number.is_empty());
    let read = || {
        Ok(Event {
            records: event.records.into_iter().map(convert::record).collect::<Result<_, _>>()?,
            continuation: continuation.as_deref().map(convert::sequence_number).transpose()?,
            millis_behind_latest: u64::try_from(event.millis_behind_latest).ok(),
            children: event.child_shards.unwrap_or_default().into_iter().map(convert::child).collect::<Result<_, _>>()?,
        })
    };
    read().map_err(|problem: convert::Problem| malformed(SUBSCRIBE, problem))
}

/// An exception in mid-stream. Its kind is in the frame's header, not in a code as with other errors.
fn broken<R: std::fmt::Debug + 'static>(error: &SdkError<SubscribeToShardEventStreamError, R>) -> FanOutError {
    use SubscribeToShardEventStreamError as Exception;
    let exception = error.as_service_error();
    let said = exception.and_then(ProvideErrorMetadata::message).unwrap_or("without a message").to_owned();
    let refusal = match exception {
        // Another subscription has taken this one's place.
        Some(Exception::ResourceInUseException(_)) => Refusal::InUse(said),
        Some(Exception::KmsThrottlingException(_)) => Refusal::Throttled(said),
        Some(
            Exception::KmsAccessDeniedException(_)
            | Exception::KmsDisabledException(_)
            | Exception::KmsInvalidStateException(_)
            | Exception::KmsNotFoundException(_)
            | Exception::KmsOptInRequired(_),
        ) => Refusal::Kms(said),
        // The consumer or the stream was deleted: the next attempt tells which.
        Some(Exception::ResourceNotFoundException(_)) => Refusal::Unavailable(format!("ended as not found: {said}")),
        _ => match Refusal::of(error) {
            // There is no argument in mid-stream that could be wrong: what came could not be understood.
            Refusal::InvalidArgument(said) | Refusal::NotFound(said) => Refusal::Unavailable(said),
            refusal => refusal,
        },
    };
    failed(SUBSCRIBE, refusal)
}

fn position(start: StartingPosition) -> types::StartingPosition {
    let (kind, number, time) = convert::start(start);
    let position = types::StartingPosition::builder().r#type(kind).set_sequence_number(number).set_timestamp(time);
    position.build().expect("the type, all that is required, is set")
}

fn usable(operation: &'static str, arn: String, status: &types::ConsumerStatus) -> Result<Consumer, FanOutError> {
    let status = match status {
        types::ConsumerStatus::Creating => ConsumerStatus::Creating,
        types::ConsumerStatus::Active => ConsumerStatus::Active,
        types::ConsumerStatus::Deleting => ConsumerStatus::Deleting,
        other => return Err(malformed(operation, format!("unknown consumer status `{other}`"))),
    };
    if arn.is_empty() {
        return Err(malformed(operation, "no consumer ARN"));
    }
    Ok(Consumer { arn, status })
}

/// Returns whether the words of a LimitExceededException speak of a rate of calls.
fn is_rate(message: &str) -> bool {
    let message = message.to_ascii_lowercase();
    message.contains("rate exceeded") || message.contains("too many requests")
}

fn malformed(operation: &'static str, problem: impl std::fmt::Display) -> FanOutError {
    FanOutError::Unavailable { operation, message: format!("the answer can't be used: {problem}") }
}

fn failed(operation: &'static str, refusal: Refusal) -> FanOutError {
    match refusal {
        Refusal::NotFound(message) => FanOutError::NotFound { operation, message },
        Refusal::AccessDenied(message) => FanOutError::AccessDenied { operation, message },
        Refusal::Kms(message) => FanOutError::Kms { operation, message },
        Refusal::Throttled(message) => FanOutError::Throttled { operation, message },
        Refusal::InvalidArgument(message) => FanOutError::InvalidArgument { operation, message },
        Refusal::InUse(message) => FanOutError::InUse { operation, message },
        Refusal::Unavailable(message) => FanOutError::Unavailable { operation, message },
        Refusal::ExpiredIterator => malformed(operation, "an expired iterator, where none was used"),
    }
}
