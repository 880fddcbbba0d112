//! Enhanced fan-out of one stream for one worker: what the readers of all its shards share.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use kcl_checkpoint::StartingPosition;
use tokio::time::{Instant, sleep};

use crate::api::FanOutApi;
use crate::error::FanOutError;
use crate::pace::Pace;
use crate::registration::{ConsumerChoice, Registration};
use crate::subscriber::{Ownership, Subscriber};

/// A source of jitter: uniform draws from 0 to 1.
pub type Jitter = Arc<dyn Fn() -> f64 + Send + Sync>;

/// Between two looks at a consumer in creation.
const BETWEEN_LOOKS: Duration = Duration::from_secs(1);

pub(crate) struct Shared {
    pub(crate) api: Arc<dyn FanOutApi>,
    pub(crate) registration: Registration,
    pub(crate) pace: Pace,
    jitter: Jitter,
}

impl Shared {
    pub(crate) fn jitter(&self) -> f64 {
        (self.jitter)()
    }
}

/// Enhanced fan-out of one stream, with one consumer. Clones share all of it, limits included.
#[derive(Clone)]
pub struct FanOut(Arc<Shared>);

impl fmt::Debug for FanOut {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("FanOut").field("registration", &self.0.registration).finish_non_exhaustive()
    }
}

impl FanOut {
    /// Enhanced fan-out of this stream with this consumer. Asks nothing of the service yet.
    ///
    /// # Errors
    /// See [`ConsumerChoice::validate`].
    pub fn new(api: Arc<dyn FanOutApi>, stream_arn: &str, choice: ConsumerChoice, jitter: Jitter) -> Result<Self, FanOutError> {
        choice.validate(stream_arn)?;
        let registration = Registration::new(Arc::clone(&api), stream_arn, choice);
        Ok(Self(Arc::new(Shared { api, registration, pace: Pace::default(), jitter })))
    }

    /// The stream.
    #[must_use]
    pub fn stream_arn(&self) -> &str {
        self.0.registration.stream_arn()
    }

    /// Finds the consumer, or registers it. It may still be in creation then: subscribers wait for it by themselves.
    ///
    /// One attempt: whoever calls repeats what [may pass](FanOutError::is_retryable), and for a few
    /// seconds [`FanOutError::ConsumerLimit`], which also stands for the limit of consumers in creation.
    /// Calls within a second of a failed one answer the same without asking the service.
    ///
    /// # Errors
    /// There is no such consumer and none can be registered, or it is being deleted, or the service gives no answer.
    ///
    /// # Cancel safety
    /// The consumer may have been registered.
    pub async fn establish(&self) -> Result<(), FanOutError> {
        self.0.registration.establish().await
    }

    /// Waits until the consumer is active, which takes the service some seconds after a registration.
    ///
    /// # Errors
    /// As [`establish`](Self::establish), or [`FanOutError::ConsumerCreating`] if that takes longer than `limit`.
    pub async fn active(&self, limit: Duration) -> Result<(), FanOutError> {
        let began = Instant::now();
        loop {
            match self.0.registration.active().await {
                Ok(_) => return Ok(()),
                Err(error) if error.is_retryable() && began.elapsed() < limit => sleep(BETWEEN_LOOKS).await,
                Err(error) => return Err(error),
            }
        }
    }

    /// A reader of this shard. Does nothing yet.
    #[must_use]
    pub fn subscriber(&self, shard: &str, start: StartingPosition, ownership: Arc<dyn Ownership>) -> Subscriber {
        Subscriber::new(Arc::clone(&self.0), shard, start, ownership)
    }

    /// [`share`](Self::share) will be told: subscriptions wait for it, for a moment at most.
    pub fn expect_share(&self) {
        self.0.pace.expect_share();
    }

    /// How many workers subscribe with this consumer, and the place of this one among them, from 0: its limit of five SubscribeToShard calls per second is shared
    /// among them, each has its own times. `time`: since any moment, the same for all, by clocks that agree within a tenth of a second or so.
    pub fn share(&self, workers: usize, place: usize, time: Duration) {
        self.0.pace.share(workers, place, time);
    }

    /// Deregisters the consumer, whoever registered it. All its subscriptions end, also those of other workers; they register it anew if they
    /// know it by name.
    ///
    /// # Errors
    /// What the service says. A consumer that does not exist is none.
    pub async fn deregister(&self) -> Result<(), FanOutError> {
        self.0.registration.deregister().await
    }
}
