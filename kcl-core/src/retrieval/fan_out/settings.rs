//! How a stream is read: the choice between enhanced fan-out and polling, and the settings of the former.

use std::sync::Arc;
use std::time::Duration;

pub use kcl_efo::ConsumerChoice;
use kcl_efo::{FanOut, FanOutApi, FanOutError};
use kcl_lease::Entropy;

use super::FanOutRetrieval;
use crate::retrieval::{Polling, Retrieval};

/// How long a consumer in creation is waited for if nothing else can read meanwhile. The service takes some seconds.
const CREATION: Duration = Duration::from_secs(120);

/// How a worker reads its stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum RetrievalMode {
    /// By GetRecords: no registration, no extra cost; all applications share the shard's 2 MB and 5 reads per second, and records come after up to a
    /// second. The default.
    #[default]
    Polling,
    /// By enhanced fan-out: pushed, about 70 ms after the put, with 2 MB per second and shard of the application's own. The service charges for each
    /// consumer and shard by the hour, and for the data. The worker does not start if the consumer can't be registered.
    FanOut,
    /// By enhanced fan-out if the consumer exists or can be registered, else by polling; which one is logged at the start, with the reason.
    Auto,
}

/// Settings of enhanced fan-out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FanOutConfig {
    /// Which consumer subscribes; all workers of an application use the same. Default (`None`): the one with the application's name, which is registered if
    /// there is none.
    pub consumer: Option<ConsumerChoice>,
    /// Whether a shard is polled while it can't be subscribed to: in the five seconds after a handoff, while the consumer is in creation, over a
    /// limit. Default: yes. Needs the permissions of polling.
    pub bridge: bool,
    /// Whether the consumer is deregistered when the worker has stopped. For applications of one worker, or one that is not to come back: it ends
    /// the subscriptions of all others. Default: no.
    pub deregister_at_end: bool,
}

impl Default for FanOutConfig {
    fn default() -> Self {
        Self { consumer: None, bridge: true, deregister_at_end: false }
    }
}

/// What the settings come to for one stream, before the service is asked whether it can be done.
pub(crate) struct Intended {
    fan_out: Option<FanOut>,
    /// The choice is the worker's own: polling will do.
    or_poll: bool,
    bridge: bool,
}

impl Intended {
    /// Checks the settings for this stream.
    pub(crate) fn new(
        mode: RetrievalMode,
        config: &FanOutConfig,
        application: &str,
        stream_arn: &str,
        api: Option<Arc<dyn FanOutApi>>,
        entropy: &Entropy,
    ) -> Result<Self, FanOutError> {
        let or_poll = mode == RetrievalMode::Auto;
        let choice = config.consumer.clone().unwrap_or_else(|| ConsumerChoice::Named(application.to_owned()));
        let entropy = entropy.clone();
        let fan_out = match api.filter(|_| mode != RetrievalMode::Polling) {
            None => None,
            Some(api) => match FanOut::new(api, stream_arn, choice, Arc::new(move || entropy.fraction())) {
                Ok(fan_out) => Some(fan_out),
                Err(error @ FanOutError::Unsupported { .. }) if or_poll => {
                    tracing::info!(%error, "the stream is read by polling");
                    None
                }
                Err(error) => return Err(error),
            },
        };
        Ok(Self { fan_out, or_poll, bridge: config.bridge })
    }

    /// Finds or registers the consumer. The consumer is given too if there is one.
    pub(crate) async fn establish(self, polling: Polling) -> Result<(Arc<dyn Retrieval>, Option<FanOut>), FanOutError> {
        let Some(fan_out) = self.fan_out else { return Ok((Arc::new(polling), None)) };
        let mut established = fan_out.establish().await;
        if established.is_ok() && !self.bridge {
            established = fan_out.active(CREATION).await;
        }
        match established {
            Ok(()) => {
                tracing::info!(stream = fan_out.stream_arn(), "the stream is read by enhanced fan-out");
                Ok((Arc::new(FanOutRetrieval::new(fan_out.clone(), polling, self.bridge)), Some(fan_out)))
            }
            // A hiccup is no reason to poll for as long as the worker lives.
            Err(error) if self.or_poll && !error.is_retryable() => {
                tracing::warn!(%error, "no enhanced fan-out: the stream is read by polling");
                Ok((Arc::new(polling), None))
            }
            Err(error) => Err(error),
        }
    }
}
