//! One shard by push: makes subscriptions when they may be made, receives their events, and tells what came.
//!
//! What an end means and when the next attempt comes is decided in `life`; here are the effects. There is at most one call under way,
//! and it belongs to the subscriber, not to the `next` that began it: a dropped `next` leaves it where it is, and the
//! following one goes on with it.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures::FutureExt;
use futures::future::BoxFuture;
use kcl_checkpoint::planted::{Bug, is_planted};
use kcl_checkpoint::{SequenceNumber, StartingPosition};
use tokio::time::{Instant, sleep, sleep_until, timeout};

use crate::api::{Event, EventStream};
use crate::error::FanOutError;
use crate::fan_out::Shared;
use crate::life::{End, Life, Mark};
use crate::pace::PER_SHARD;
use crate::record::{ChildShard, Record};

/// How long an attempt may take: the SDK's own timeouts end at the response's head, and its answer waits for the first frame.
const OPEN_DEADLINE: Duration = Duration::from_secs(5);
/// How long a subscription may give nothing. The service sends an event each few seconds, with or without records.
const SILENCE: Duration = Duration::from_secs(35);

/// Whether this worker may read a shard: what is known of its lease.
///
/// # Contract
/// A reader asks before each subscribe. It never subscribes after `false`.
#[async_trait]
pub trait Ownership: Send + Sync {
    /// Waits while it is not certain. `ask`: it must be asked of the lease table itself, as another reader has subscribed to
    /// the shard. `false`: this worker's hold on the shard is over.
    async fn granted(&self, ask: bool) -> bool;

    /// Whether it is certain right now.
    fn is_certain(&self) -> bool;

    /// Whether another worker may have subscribed to the shard within the last second, before it became this worker's. The first attempt then
    /// leaves it that second, since the service's limit counts both.
    fn is_inherited(&self) -> bool;
}

/// Of a reader that needs no lease, as nobody else reads the stream with its consumer.
#[derive(Clone, Copy, Debug, Default)]
pub struct SoleReader;

#[async_trait]
impl Ownership for SoleReader {
    async fn granted(&self, _ask: bool) -> bool {
        true
    }

    fn is_certain(&self) -> bool {
        true
    }

    fn is_inherited(&self) -> bool {
        false
    }
}

/// What [`Subscriber::next`] gives.
#[derive(Debug)]
pub enum Next {
    /// Records, in order and without a gap to those before; or news of how far behind the reader is.
    Event(Event),
    /// The shard is closed, all its records were given, and this is what it became. Given again by every later call.
    ShardEnd(Vec<ChildShard>),
    /// There is no subscription now, and why, unless the last one has ended in order after its time. The next call makes one, when it
    /// may. Until then the shard may be read in another way.
    Interrupted(Option<FanOutError>),
}

type Turn = BoxFuture<'static, Result<Option<Permit>, FanOutError>>;
type Opening = BoxFuture<'static, Result<Box<dyn EventStream>, FanOutError>>;

/// That an attempt may be made now.
struct Permit {
    consumer: Arc<str>,
    until: Instant,
}

enum Stage {
    Idle,
    /// Waits until an attempt may be made.
    Waiting(Turn),
    Ready(Permit),
    Opening(u64, Opening),
    Live(u64, Box<dyn EventStream>),
    Ended(Vec<ChildShard>),
}

/// Reads one shard by subscriptions. See [`FanOut::subscriber`](crate::FanOut::subscriber).
pub struct Subscriber {
    shared: Arc<Shared>,
    shard: Arc<str>,
    ownership: Arc<dyn Ownership>,
    life: Life,
    stage: Stage,
    /// How long an event has been waited for. Time in which nobody waits is no silence: what came then may still be unread.
    waited: Duration,
    /// The last event of the present or last subscription looked like a shard's last one, but named no children.
    closing: bool,
    /// Repeated records were logged.
    warned: bool,
    /// A subscription that was given up: to be dropped at once, unless a bug is planted.
    given_up: Option<Box<dyn EventStream>>,
}

impl std::fmt::Debug for Subscriber {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Subscriber").field("shard", &self.shard).field("life", &self.life).finish_non_exhaustive()
    }
}

impl Subscriber {
    pub(crate) fn new(shared: Arc<Shared>, shard: &str, start: StartingPosition, ownership: Arc<dyn Ownership>) -> Self {
        let mut life = Life::new(start);
        if ownership.is_inherited() {
            life.hold_until(Instant::now() + PER_SHARD);
        }
        Self {
            shared,
            shard: shard.into(),
            ownership,
            life,
            stage: Stage::Idle,
            waited: Duration::ZERO,
            closing: false,
            warned: false,
            given_up: None,
        }
    }

    /// Where the next record to give is.
    #[must_use]
    pub fn position(&self) -> StartingPosition {
        self.life.position()
    }

    /// Attempts and subscriptions in a row that came to nothing.
    #[must_use]
    pub fn failures(&self) -> u32 {
        self.life.failures()
    }

    /// Whether the shard may be read in another way now, from [`position`](Self::position) on: there is no subscription and no attempt
    /// at one.
    #[must_use]
    pub fn is_interrupted(&self) -> bool {
        matches!(self.stage, Stage::Idle | Stage::Waiting(_))
    }

    /// Returns true if the last subscription ended as at the end of a shard, but no event named the children: its last event was
    /// at the tip, without records and without a continuation number. Some servers leave the children out. It proves no end: the listing
    /// of shards has to show one too.
    #[must_use]
    pub fn ended_without_children(&self) -> bool {
        self.closing && matches!(self.stage, Stage::Idle | Stage::Waiting(_))
    }

    /// The shard was read in another way up to this record, while [`is_interrupted`](Self::is_interrupted).
    pub fn advance(&mut self, last_record: SequenceNumber) {
        self.life.advance(last_record);
    }

    /// Waits until an attempt may be made; at once if there is a subscription. After it the shard must not be read in another way before
    /// [`next`](Self::next) said that it is interrupted.
    ///
    /// # Errors
    /// The consumer can't be used, now or at all. The following call waits longer.
    ///
    /// # Cancel safety
    /// A dropped call goes on with the following one.
    pub async fn ready(&mut self) -> Result<(), FanOutError> {
        loop {
            match &mut self.stage {
                Stage::Idle => self.stage = Stage::Waiting(self.turn()),
                Stage::Waiting(turn) => {
                    let permit = turn.await;
                    self.stage = Stage::Idle;
                    match permit {
                        Ok(Some(permit)) => self.stage = Stage::Ready(permit),
                        // This worker's hold on the shard is over: whoever reads is about to be told, and it is the other's turn.
                        Ok(None) => self.stage = Stage::Waiting(std::future::pending().boxed()),
                        Err(error) => {
                            self.life.hindered(End::from(&error), Instant::now(), self.shared.jitter());
                            self.tell(&error);
                            return Err(error);
                        }
                    }
                }
                // It was not used while it held.
                Stage::Ready(permit) if Instant::now() > permit.until || !self.ownership.is_certain() => self.stage = Stage::Idle,
                _ => return Ok(()),
            }
        }
    }

    /// Waits for what comes next.
    ///
    /// # Cancel safety
    /// A dropped call loses nothing, and neither repeats nor forgets an attempt that it made.
    pub async fn next(&mut self) -> Next {
        loop {
            if let Err(error) = self.ready().await {
                return Next::Interrupted(Some(error));
            }
            match &mut self.stage {
                Stage::Ready(permit) => {
                    let consumer = Arc::clone(&permit.consumer);
                    let attempt = self.life.begin();
                    self.stage = Stage::Opening(attempt.generation, self.open(consumer, attempt.start));
                }
                Stage::Opening(generation, opening) => {
                    let generation = *generation;
                    match opening.await {
                        Ok(stream) if self.life.opened(generation, Instant::now()) => {
                            tracing::debug!(shard = %self.shard, generation, "subscribed");
                            self.closing = false;
                            self.stage = Stage::Live(generation, stream);
                        }
                        Ok(_) => self.stage = Stage::Idle,
                        Err(error) => return self.failed(generation, error),
                    }
                }
                Stage::Live(generation, _) => {
                    let generation = *generation;
                    if let Some(Some(Ok(Some(event)))) = self.given_up.as_mut().map(|stale| stale.next().now_or_never())
                        && let Some(event) = self.take(generation, event)
                    {
                        return Next::Event(event);
                    }
                    let Stage::Live(_, stream) = &mut self.stage else { continue };
                    let wait = Wait::of(&mut self.waited);
                    let received = tokio::select! {
                        biased;
                        received = stream.next() => received,
                        () = sleep(wait.left(SILENCE)) => Err(FanOutError::Silent(SILENCE)),
                    };
                    drop(wait);
                    self.waited = Duration::ZERO;
                    match received {
                        Ok(Some(event)) => match self.take(generation, event) {
                            Some(event) => return Next::Event(event),
                            None => continue,
                        },
                        Ok(None) => return self.ended(generation),
                        Err(error) => return self.failed(generation, error),
                    }
                }
                Stage::Ended(children) => return Next::ShardEnd(children.clone()),
                Stage::Idle | Stage::Waiting(_) => {}
            }
        }
    }

    /// Takes an event in. `None`: there is nothing to give of it.
    fn take(&mut self, generation: u64, mut event: Event) -> Option<Event> {
        let had_records = !event.records.is_empty();
        self.drop_repeated(&mut event.records);
        let last_record = event.records.last().map(|record| record.sequence_number);
        let mark = Mark { continuation: event.continuation, last_record, end_of_shard: !event.children.is_empty() };
        if !self.life.event(generation, mark) {
            tracing::debug!(shard = %self.shard, generation, "an event of an older subscription is dropped");
            return None;
        }
        let says_nothing = !had_records && mark.continuation.is_none() && !mark.end_of_shard;
        self.closing = says_nothing && event.millis_behind_latest == Some(0);
        if had_records && event.records.is_empty() && !mark.end_of_shard {
            // Nothing of it is new, how far behind it is included.
            return None;
        }
        if mark.end_of_shard {
            // The last records come before the end.
            self.stage = Stage::Ended(std::mem::take(&mut event.children));
            return Some(event).filter(|event| !event.records.is_empty());
        }
        Some(event)
    }

    /// Drops the records that were given before.
    fn drop_repeated(&mut self, records: &mut Vec<Record>) {
        let before = records.len();
        records.retain(|record| !self.life.is_repeated(record.sequence_number));
        let repeated = before - records.len();
        if repeated > 0 && !std::mem::replace(&mut self.warned, true) {
            tracing::warn!(
                shard = %self.shard, repeated,
                "the service has repeated records that it gave before; they are not delivered again (logged once)"
            );
        }
    }

    fn ended(&mut self, generation: u64) -> Next {
        self.life.over(generation, End::Ended, Instant::now(), self.shared.jitter());
        self.stage = Stage::Idle;
        tracing::debug!(shard = %self.shard, generation, "the subscription has ended");
        Next::Interrupted(None)
    }

    fn failed(&mut self, generation: u64, error: FanOutError) -> Next {
        if is_planted(Bug::StaleEventAccepted)
            && let Stage::Live(_, stream) = std::mem::replace(&mut self.stage, Stage::Idle)
        {
            self.given_up = Some(stream);
        }
        self.life.over(generation, End::from(&error), Instant::now(), self.shared.jitter());
        self.stage = Stage::Idle;
        self.tell(&error);
        Next::Interrupted(Some(error))
    }

    fn tell(&self, error: &FanOutError) {
        // Given to the caller, who knows of all shards and decides what is worth a warning.
        let failures = self.life.failures();
        tracing::debug!(shard = %self.shard, failures, %error, "no subscription to the shard; trying again");
    }

    /// Waits for everything that an attempt needs. `None`: there must be none any more.
    fn turn(&self) -> Turn {
        let (shared, shard, ownership) = (Arc::clone(&self.shared), Arc::clone(&self.shard), Arc::clone(&self.ownership));
        let (not_before, mut ask) = (self.life.not_before(), self.life.must_look());
        async move {
            if let Some(not_before) = not_before {
                sleep_until(not_before).await;
            }
            let consumer = shared.registration.active().await?;
            loop {
                if !ownership.granted(ask).await {
                    return Ok(None);
                }
                ask = false;
                let until = shared.pace.turn(&shard).await;
                // It may have taken seconds until the turn came.
                if ownership.is_certain() {
                    return Ok(Some(Permit { consumer, until }));
                }
            }
        }
        .boxed()
    }

    fn open(&self, consumer: Arc<str>, start: StartingPosition) -> Opening {
        let (shared, shard) = (Arc::clone(&self.shared), Arc::clone(&self.shard));
        async move {
            let opened = match timeout(OPEN_DEADLINE, shared.api.subscribe(&consumer, &shard, start)).await {
                Ok(opened) => opened,
                Err(_) => Err(FanOutError::Unavailable {
                    operation: "kinesis:SubscribeToShard",
                    message: format!("no answer within {OPEN_DEADLINE:?}"),
                }),
            };
            match opened {
                // Of what? A shard that is gone is the reader's business, a consumer that is gone the registration's.
                Err(FanOutError::NotFound { operation, message }) => Err(match shared.registration.is_gone(&consumer).await {
                    Ok(true) => FanOutError::ConsumerNotFound { consumer: consumer.to_string() },
                    Ok(false) => FanOutError::NotFound { operation, message },
                    Err(unknown) => unknown,
                }),
                opened => opened,
            }
        }
        .boxed()
    }
}

/// One wait of several, the sum of which counts. Also a dropped one does.
struct Wait<'a> {
    sum: &'a mut Duration,
    since: Instant,
}

impl<'a> Wait<'a> {
    fn of(sum: &'a mut Duration) -> Self {
        Self { sum, since: Instant::now() }
    }

    /// What is left of the longest wait at the beginning of this one.
    fn left(&self, longest: Duration) -> Duration {
        longest.saturating_sub(*self.sum)
    }
}

impl Drop for Wait<'_> {
    fn drop(&mut self) {
        *self.sum += self.since.elapsed();
    }
}

#[cfg(test)]
#[path = "subscriber/tests.rs"]
mod tests;
