//! The consumer: found or registered, and waited for.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::FutureExt;
use futures::future::{BoxFuture, Shared};
use tokio::time::{Instant, sleep_until};

use crate::api::{Consumer, ConsumerStatus, FanOutApi};
use crate::error::FanOutError;

/// Between two looks at a consumer that can't be used yet, of all shards together.
const BETWEEN_LOOKS: Duration = Duration::from_secs(1);
const LONGEST_NAME: usize = 128;

/// Which consumer reads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ConsumerChoice {
    /// The one of this name, registered if there is none. 1 to 128 of the characters a-z A-Z 0-9 _ . -
    Named(String),
    /// The one with this ARN. It is never registered anew.
    Arn(String),
}

impl From<&str> for ConsumerChoice {
    /// An ARN if it begins like one, else a name.
    fn from(text: &str) -> Self {
        if text.starts_with("arn:") { Self::Arn(text.to_owned()) } else { Self::Named(text.to_owned()) }
    }
}

impl ConsumerChoice {
    /// Checks the text, before anything is asked of the service.
    ///
    /// # Errors
    /// The name or the ARN can't be one, or the stream has no enhanced fan-out, or the ARN is of another stream's consumer.
    pub fn validate(&self, stream_arn: &str) -> Result<(), FanOutError> {
        let parts: Vec<&str> = stream_arn.splitn(6, ':').collect();
        if parts.get(2).is_some_and(|service| *service != "kinesis") {
            return Err(FanOutError::Unsupported { stream: stream_arn.to_owned() });
        }
        match self {
            Self::Named(name) if is_name(name) => Ok(()),
            Self::Named(name) => Err(FanOutError::InvalidName { name: name.clone() }),
            Self::Arn(arn) => match stream_of_consumer(arn) {
                None => Err(FanOutError::NotAConsumerArn { arn: arn.clone() }),
                Some(stream) if stream == stream_arn => Ok(()),
                Some(_) => Err(FanOutError::OtherStream { consumer: arn.clone(), stream: stream_arn.to_owned() }),
            },
        }
    }

    fn text(&self) -> &str {
        match self {
            Self::Named(text) | Self::Arn(text) => text,
        }
    }
}

fn is_name(text: &str) -> bool {
    (1..=LONGEST_NAME).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte))
}

/// The stream's ARN in a consumer's: `arn:PARTITION:kinesis:REGION:ACCOUNT:stream/STREAM/consumer/NAME:CREATED`.
fn stream_of_consumer(arn: &str) -> Option<&str> {
    let (stream, consumer) = arn.split_once("/consumer/")?;
    let parts: Vec<&str> = stream.split(':').collect();
    let [first, _, "kinesis", _, _, resource] = parts[..] else { return None };
    let name = resource.strip_prefix("stream/").filter(|name| !name.contains('/'))?;
    let (consumer, created) = consumer.split_once(':')?;
    (first == "arn" && is_name(name) && is_name(consumer) && !created.is_empty() && created.bytes().all(|byte| byte.is_ascii_digit()))
        .then_some(stream)
}

/// What follows from what was found.
#[derive(Debug, PartialEq, Eq)]
enum Then {
    Use(String),
    Wait,
    Register,
    Refuse(FanOutError),
}

fn decide(choice: &ConsumerChoice, found: Option<Consumer>) -> Then {
    let consumer = choice.text().to_owned();
    match (found, choice) {
        (Some(Consumer { arn, status: ConsumerStatus::Active }), _) => Then::Use(arn),
        (Some(Consumer { status: ConsumerStatus::Creating, .. }), _) => Then::Wait,
        (Some(Consumer { status: ConsumerStatus::Deleting, .. }), _) => Then::Refuse(FanOutError::ConsumerDeleting { consumer }),
        (None, ConsumerChoice::Named(_)) => Then::Register,
        (None, ConsumerChoice::Arn(_)) => Then::Refuse(FanOutError::ConsumerNotFound { consumer }),
    }
}

/// The consumer of one worker, shared by the readers of all its shards.
#[derive(Debug)]
pub(crate) struct Registration {
    asker: Arc<Asker>,
    known: Mutex<Known>,
}

/// A look that is under way. Everyone who waits for it drives it: it never stands still with a reader that has turned to something else.
type Look = Shared<BoxFuture<'static, Result<Arc<str>, FanOutError>>>;

#[derive(Debug, Default)]
struct Known {
    /// The ARN of the consumer that was last seen to be active.
    active: Option<Arc<str>>,
    /// When the last look ended, and what it found instead of an active consumer.
    last: Option<(Instant, Option<FanOutError>)>,
    look: Option<Look>,
}

impl Registration {
    pub(crate) fn new(api: Arc<dyn FanOutApi>, stream_arn: &str, choice: ConsumerChoice) -> Self {
        Self { asker: Arc::new(Asker { api, stream_arn: stream_arn.to_owned(), choice }), known: Mutex::default() }
    }

    pub(crate) fn stream_arn(&self) -> &str {
        &self.asker.stream_arn
    }

    /// Finds the consumer, or registers it, with one look. It may still be in creation then.
    pub(crate) async fn establish(&self) -> Result<(), FanOutError> {
        match self.active().await {
            Ok(_) | Err(FanOutError::ConsumerCreating { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// The ARN of the consumer if it is active. Otherwise one look is made, unless one was made a moment ago: cheap to call for every
    /// shard.
    pub(crate) async fn active(&self) -> Result<Arc<str>, FanOutError> {
        let look = {
            let mut known = self.known();
            if let Some(arn) = &known.active {
                return Ok(Arc::clone(arn));
            }
            if let Some((at, Some(error))) = &known.last
                && at.elapsed() < BETWEEN_LOOKS
            {
                return Err(error.clone());
            }
            let not_before = known.last.as_ref().map(|(at, _)| *at + BETWEEN_LOOKS);
            known.look.get_or_insert_with(|| Arc::clone(&self.asker).look_at(not_before)).clone()
        };
        let found = look.clone().await;
        let mut known = self.known();
        // Of all who waited, the first notes it.
        if known.look.as_ref().is_some_and(|present| present.ptr_eq(&look)) {
            if let Ok(arn) = &found {
                tracing::info!(consumer = %arn, "the stream consumer is active");
            }
            known.look = None;
            known.last = Some((Instant::now(), found.as_ref().err().cloned()));
            known.active = found.as_ref().ok().cloned();
        }
        found
    }

    /// A subscription was refused because the consumer, or else the shard, does not exist: whether it is the consumer, by a new look.
    ///
    /// # Errors
    /// That can't be told.
    pub(crate) async fn is_gone(&self, arn: &str) -> Result<bool, FanOutError> {
        let doubted = self.known().active.take_if(|active| **active == *arn).is_some();
        let gone = match self.active().await {
            Ok(active) => *active != *arn,
            Err(FanOutError::ConsumerNotFound { .. }) => true,
            Err(error) => return Err(error),
        };
        if gone && doubted {
            tracing::warn!(consumer = arn, "the stream consumer was deregistered");
        }
        Ok(gone)
    }

    pub(crate) async fn deregister(&self) -> Result<(), FanOutError> {
        let found = match self.asker.find().await? {
            Some(consumer) if consumer.status != ConsumerStatus::Deleting => consumer,
            _ => return Ok(()),
        };
        self.asker.api.deregister(&found.arn).await
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        // Plain data that no panic leaves half changed.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Asks the service about one consumer.
#[derive(Debug)]
struct Asker {
    api: Arc<dyn FanOutApi>,
    stream_arn: String,
    choice: ConsumerChoice,
}

impl Asker {
    fn look_at(self: Arc<Self>, not_before: Option<Instant>) -> Look {
        let look = async move {
            if let Some(not_before) = not_before {
                sleep_until(not_before).await;
            }
            self.look().await.map(Arc::from)
        };
        look.boxed().shared()
    }

    async fn look(&self) -> Result<String, FanOutError> {
        let creating = || FanOutError::ConsumerCreating { consumer: self.choice.text().to_owned() };
        match decide(&self.choice, self.find().await?) {
            Then::Use(arn) => Ok(arn),
            Then::Wait => Err(creating()),
            Then::Refuse(error) => Err(error),
            Then::Register => match self.api.register(&self.stream_arn, self.choice.text()).await {
                Ok(consumer) => {
                    tracing::info!(consumer = %consumer.arn, "registered as a stream consumer");
                    // Never asked for again.
                    match decide(&self.choice, Some(consumer)) {
                        Then::Use(arn) => Ok(arn),
                        _ => Err(creating()),
                    }
                }
                // Another worker was quicker, which the next look shows; or the stream is being changed.
                Err(FanOutError::InUse { .. }) => Err(creating()),
                Err(error) => Err(error),
            },
        }
    }

    async fn find(&self) -> Result<Option<Consumer>, FanOutError> {
        let found = match &self.choice {
            ConsumerChoice::Named(name) => self.api.find(&self.stream_arn, name).await,
            ConsumerChoice::Arn(arn) => self.api.describe(arn).await,
        };
        match found {
            Ok(consumer) => Ok(Some(consumer)),
            Err(FanOutError::ConsumerNotFound { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STREAM: &str = "arn:aws:kinesis:eu-west-1:123456789012:stream/orders";

    fn arn(text: &str) -> ConsumerChoice {
        ConsumerChoice::Arn(text.to_owned())
    }

    #[test]
    fn what_cannot_be_a_consumer_of_the_stream_is_refused_in_words() {
        arn(&format!("{STREAM}/consumer/app:1700000000")).validate(STREAM).unwrap();
        ConsumerChoice::Named("orders-app".into()).validate(STREAM).unwrap();
        let not_an_arn = [
            "",
            "app",
            STREAM,
            "arn:aws:kinesis:eu-west-1:123456789012:stream/orders/consumer/app",
            "arn:aws:kinesis:eu-west-1:123456789012:stream/orders/consumer/app:x",
            "arn:aws:kinesis:eu-west-1:123456789012:stream/orders/consumer/:1",
            "arn:aws:kinesis:eu-west-1:123456789012:stream/a/b/consumer/app:1",
            "arn:aws:sqs:eu-west-1:123456789012:stream/orders/consumer/app:1",
        ];
        for text in not_an_arn {
            let error = arn(text).validate(STREAM).unwrap_err();
            assert!(matches!(error, FanOutError::NotAConsumerArn { .. }), "{text}: {error}");
        }
        let error = arn("arn:aws:kinesis:eu-west-1:123456789012:stream/other/consumer/app:1").validate(STREAM).unwrap_err();
        assert!(matches!(error, FanOutError::OtherStream { .. }), "{error}");
        for name in ["", "a b", "größe", &"x".repeat(129)] {
            assert!(matches!(ConsumerChoice::Named(name.into()).validate(STREAM), Err(FanOutError::InvalidName { .. })), "{name}");
        }
        let dynamodb = "arn:aws:dynamodb:eu-west-1:123456789012:table/orders/stream/2026-01-01T00:00:00.000";
        let error = ConsumerChoice::Named("app".into()).validate(dynamodb).unwrap_err();
        assert!(matches!(error, FanOutError::Unsupported { .. }), "{error}");
    }

    #[test]
    fn what_was_found_decides() {
        let (named, given) = (ConsumerChoice::Named("app".into()), arn("the-arn"));
        let found = |status| Some(Consumer { arn: "found".into(), status });
        for choice in [&named, &given] {
            assert_eq!(decide(choice, found(ConsumerStatus::Active)), Then::Use("found".into()));
            assert_eq!(decide(choice, found(ConsumerStatus::Creating)), Then::Wait);
            assert!(matches!(decide(choice, found(ConsumerStatus::Deleting)), Then::Refuse(FanOutError::ConsumerDeleting { .. })));
        }
        assert_eq!(decide(&named, None), Then::Register);
        assert!(matches!(decide(&given, None), Then::Refuse(FanOutError::ConsumerNotFound { .. })));
    }
}
