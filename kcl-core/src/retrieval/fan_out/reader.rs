//! One shard by fan-out: its subscriptions, and polling from the same place on while it has none.
//!
//! Never both at once: the bridge reads only until an attempt to subscribe may be made, and what it has given is where that
//! attempt starts. An answer that it still waited for then is forgotten, which loses nothing, as nobody was given it.

use std::time::Duration;

use async_trait::async_trait;
use kcl_efo::{FanOutError, Next, Subscriber};
use kcl_lease::ShardId;
use tokio::time::{Instant, sleep_until};

use crate::record::Record;
use crate::retrieval::polling::{Polling, Reader as PollingReader};
use crate::retrieval::{Fetched, ShardReader};
use crate::stream::{StartingPosition, StreamError, child};

/// How long a shard is without a subscription before it is polled: a renewal takes less. It also keeps the reads of two bridges apart by
/// more than the 200 ms that the service demands.
const GRACE: Duration = Duration::from_millis(250);

pub(super) struct Reader {
    stream: String,
    shard: ShardId,
    subscriber: Subscriber,
    polling: Option<Polling>,
    bridge: Bridge,
}

/// How the shard is read while it has no subscription.
#[derive(Default)]
struct Bridge {
    /// Since when there is no subscription.
    since: Option<Instant>,
    reader: Option<PollingReader>,
    /// Why there is none was said already.
    told: bool,
}

impl Reader {
    pub(super) fn new(stream: &str, shard: ShardId, subscriber: Subscriber, polling: Option<Polling>) -> Self {
        Self { stream: stream.to_owned(), shard, subscriber, polling, bridge: Bridge::default() }
    }

    /// Reads by polling until the shard may be subscribed to. `None`: now it may.
    async fn bridged(&mut self) -> Result<Option<Fetched>, StreamError> {
        let position = self.subscriber.position();
        let Some(polling) = self.polling.as_ref().filter(|_| position != StartingPosition::Latest) else {
            return match self.subscriber.ready().await {
                Ok(()) => Ok(None),
                Err(error) => self.interrupted(error).map(|()| None),
            };
        };
        let since = *self.bridge.since.get_or_insert_with(Instant::now);
        let fetched = {
            let bridge = &mut self.bridge.reader;
            let poll = async {
                sleep_until(since + GRACE).await;
                let reader = bridge.get_or_insert_with(|| polling.reader(&self.shard, position));
                reader.next().await
            };
            tokio::select! {
                biased;
                ready = self.subscriber.ready() => match ready {
                    Ok(()) => return Ok(None),
                    Err(error) => return self.interrupted(error).map(|()| None),
                },
                fetched = poll => fetched?,
            }
        };
        if let Fetched::Records { records, .. } = &fetched
            && let Some(last) = records.last()
        {
            self.subscriber.advance(last.sequence_number());
        }
        Ok(Some(fetched))
    }

    /// There is no subscription. `Err`: nothing reads the shard meanwhile, and nothing here mends that.
    fn interrupted(&mut self, error: FanOutError) -> Result<(), StreamError> {
        let bridged = self.polling.is_some() && self.subscriber.position() != StartingPosition::Latest;
        if !std::mem::replace(&mut self.bridge.told, true) {
            if bridged && !error.is_retryable() {
                tracing::warn!(shard = %self.shard, %error, "the shard can't be subscribed to; it is polled until it can");
            } else {
                tracing::debug!(shard = %self.shard, %error, bridged, "the shard has no subscription now");
            }
        }
        if bridged || error.is_retryable() { Ok(()) } else { Err(self.in_words(error)) }
    }

    fn in_words(&self, error: FanOutError) -> StreamError {
        let stream = self.stream.clone();
        match error {
            FanOutError::NotFound { operation, message } => StreamError::NotFound { stream, operation, message },
            FanOutError::InvalidArgument { operation, message } => StreamError::InvalidArgument { stream, operation, message },
            error => StreamError::FanOut(error),
        }
    }
}

#[async_trait]
impl ShardReader for Reader {
    async fn next(&mut self) -> Result<Fetched, StreamError> {
        loop {
            if self.subscriber.is_interrupted()
                && let Some(fetched) = self.bridged().await?
            {
                return Ok(fetched);
            }
            if self.subscriber.is_interrupted() {
                continue;
            }
            match self.subscriber.next().await {
                Next::Event(event) => {
                    self.bridge = Bridge::default();
                    let records = event.records.into_iter().map(Record::from).collect();
                    return Ok(Fetched::Records { records, millis_behind_latest: event.millis_behind_latest });
                }
                Next::ShardEnd(children) => return Ok(Fetched::ShardEnd { children: children.into_iter().map(child).collect() }),
                Next::Interrupted(Some(error)) => self.interrupted(error)?,
                Next::Interrupted(None) => {}
            }
        }
    }
}
