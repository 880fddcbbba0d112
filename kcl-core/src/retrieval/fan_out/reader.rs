//! One shard by fan-out: its subscriptions, and polling from the same place on while it has none.
//!
//! Never both at once: the bridge reads only until an attempt to subscribe may be made, and what it
//! has given is where that attempt starts. An answer that it still waited for then is forgotten,
//! which loses nothing, as nobody was given it.
//!
//! A shard's end comes with its last event, which names the children. Some servers leave them out
//! and just end the subscription. The bridge finds such an end by polling. Without one the shards
//! are listed: if that shows the shard closed and its children, and a subscription that was made
//! after it has nothing more to give, the shard has ended.

use std::time::Duration;

use async_trait::async_trait;
use kcl_efo::{FanOutError, Next, Subscriber};
use kcl_lease::{Cause, ShardId};
use tokio::time::{Instant, sleep_until};

use crate::record::Record;
use crate::retrieval::polling::{Polling, Reader as PollingReader};
use crate::retrieval::{CallAccount, Fetched, ShardReader, StartRefusals};
use crate::stream::{ChildShard, ShardFilter, StartingPosition, StreamError, child, children_of};

/// How long a shard is without a subscription before it is polled: a renewal takes less. It also keeps the reads of two bridges apart by
/// more than the 200 ms that the service demands.
const GRACE: Duration = Duration::from_millis(250);
/// The bytes to reserve for an event. Events are seldom larger: the service pushes 2 MiB per second
/// and shard, in several events. More would be held in vain while an idle shard waits for its next.
const EVENT: usize = 1 << 20;

/// Subscriptions in the log of outages. Apart from the reads of Kinesis that bridge them: those may
/// succeed while these fail.
const SERVICE: &str = "Kinesis enhanced fan-out";
/// Refusals in a row that are expected of a consumer that is in creation, and after a handoff, of a
/// shard that somebody has subscribed to less than five seconds ago.
const EXPECTED_REFUSALS: u32 = 4;
/// Other failures in a row that are expected: a connection that breaks now and then. The end of a
/// subscription after its time counts as one too.
const EXPECTED_BROKEN: u32 = 2;

pub(super) struct Reader {
    stream: String,
    shard: ShardId,
    subscriber: Subscriber,
    polling: Polling,
    may_bridge: bool,
    bridge: Bridge,
    refusals: StartRefusals,
    ending: Ending,
    account: CallAccount,
}

/// How the shard is read while it has no subscription.
#[derive(Default)]
struct Bridge {
    /// Since when there is no subscription.
    since: Option<Instant>,
    reader: Option<PollingReader>,
    /// `ready` has said that it may be read now.
    may_read: bool,
}

/// How far it is known that the shard has ended, if no event names its children.
enum Ending {
    /// Nothing is known.
    Open,
    /// The shards are to be listed.
    ToList,
    /// They were listed, and the shard is closed and became these.
    Closed(Vec<ChildShard>),
    /// A subscription made since has nothing more to give.
    Ended(Vec<ChildShard>),
}

impl Reader {
    pub(super) fn new(stream: &str, shard: ShardId, subscriber: Subscriber, polling: Polling, may_bridge: bool) -> Self {
        Self {
            stream: stream.to_owned(),
            account: polling.account(&shard),
            shard,
            subscriber,
            polling,
            may_bridge,
            bridge: Bridge::default(),
            refusals: StartRefusals::default(),
            ending: Ending::Open,
        }
    }

    fn is_bridged(&self) -> bool {
        self.may_bridge && self.subscriber.position() != StartingPosition::Latest
    }

    /// Reads by polling until the shard may be subscribed to. `None`: now it may, or the call gave nothing.
    async fn bridged(&mut self) -> Result<Option<Fetched>, StreamError> {
        let may_read = std::mem::take(&mut self.bridge.may_read);
        let Some(reader) = self.bridge.reader.as_mut().filter(|_| may_read) else { return Ok(None) };
        let fetched = tokio::select! {
            biased;
            ready = self.subscriber.ready() => {
                reader.abandon();
                return match ready {
                    Ok(()) => Ok(None),
                    Err(error) => self.interrupted(error, false).map(|()| None),
                };
            },
            fetched = reader.next() => fetched?,
        };
        if let Some(Fetched::Records { records, .. }) = &fetched
            && let Some(last) = records.last()
        {
            self.subscriber.advance(last.sequence_number());
        }
        Ok(fetched)
    }

    /// There is no subscription. `by_service`: the attempt at one was refused. `Err`: nothing reads
    /// the shard meanwhile, and nothing here mends that.
    fn interrupted(&mut self, error: FanOutError, by_service: bool) -> Result<(), StreamError> {
        let bridged = self.is_bridged();
        if bridged || error.is_retryable() {
            self.report(&error, bridged);
            return Ok(());
        }
        let error = self.in_words(error);
        Err(if by_service { self.refusals.judge(error, self.subscriber.position()) } else { error })
    }

    /// Notes an attempt that failed and is repeated.
    fn report(&self, error: &FanOutError, bridged: bool) {
        let expected = match error {
            FanOutError::InUse { .. } | FanOutError::ConsumerCreating { .. } => EXPECTED_REFUSALS,
            FanOutError::Unavailable { .. } | FanOutError::Silent(_) | FanOutError::Throttled { .. } => EXPECTED_BROKEN,
            _ => 0,
        };
        if self.subscriber.failures() <= expected {
            tracing::debug!(shard = %self.shard, %error, bridged, "the shard has no subscription now");
            return;
        }
        let cause = Cause { service: SERVICE, class: error.class() };
        let meanwhile = if bridged { "; the shard is polled until it can be subscribed to" } else { "" };
        self.account.failed_by(cause, &format_args!("{error}{meanwhile}"));
    }

    fn in_words(&self, error: FanOutError) -> StreamError {
        let stream = self.stream.clone();
        match error {
            FanOutError::NotFound { operation, message } => StreamError::NotFound { stream, operation, message },
            FanOutError::InvalidArgument { operation, message } => StreamError::InvalidArgument { stream, operation, message },
            error => StreamError::FanOut(error),
        }
    }

    /// A subscription has ended as at the end of a shard, and no event has named the children.
    fn ended_without_children(&mut self) {
        self.ending = match std::mem::replace(&mut self.ending, Ending::Open) {
            Ending::Closed(children) => {
                tracing::info!(shard = %self.shard, "the shard has ended: its children are known by a listing, as no event has named them");
                Ending::Ended(children)
            }
            _ => Ending::ToList,
        };
    }

    /// Lists the shards, once.
    async fn look_for_children(&mut self) {
        let listing = match self.polling.api().list_shards(ShardFilter::All).await {
            Ok(listing) => {
                self.account.answered(StreamError::SERVICE);
                listing
            }
            Err(error) => {
                // The next subscription ends in the same way, and asks again.
                self.account.failed(&error);
                Vec::new()
            }
        };
        let is_open = listing.iter().any(|shard| shard.shard_id == self.shard && shard.ending_sequence_number.is_none());
        let children = children_of(&self.shard, &listing);
        self.ending = if is_open || children.is_empty() { Ending::Open } else { Ending::Closed(children) };
    }
}

#[async_trait]
impl ShardReader for Reader {
    async fn ready(&mut self) -> Result<usize, StreamError> {
        if matches!(self.ending, Ending::ToList | Ending::Ended(_)) {
            return Ok(0);
        }
        if !self.subscriber.is_interrupted() {
            return Ok(EVENT);
        }
        let ready = if self.is_bridged() {
            let (position, since) = (self.subscriber.position(), *self.bridge.since.get_or_insert_with(Instant::now));
            let (bridge, polling, shard) = (&mut self.bridge.reader, &self.polling, &self.shard);
            let poll = async {
                sleep_until(since + GRACE).await;
                bridge.get_or_insert_with(|| polling.reader(shard, position)).ready().await
            };
            tokio::select! {
                biased;
                ready = self.subscriber.ready() => ready,
                bytes = poll => {
                    self.bridge.may_read = true;
                    return bytes;
                },
            }
        } else {
            self.subscriber.ready().await
        };
        match ready {
            Ok(()) => Ok(EVENT),
            Err(error) => self.interrupted(error, false).map(|()| 0),
        }
    }

    async fn next(&mut self) -> Result<Option<Fetched>, StreamError> {
        match &self.ending {
            Ending::Ended(children) => return Ok(Some(Fetched::ShardEnd { children: children.clone() })),
            Ending::ToList => {
                self.look_for_children().await;
                return Ok(None);
            }
            Ending::Open | Ending::Closed(_) => {}
        }
        if self.subscriber.is_interrupted() {
            return self.bridged().await;
        }
        match self.subscriber.next().await {
            Next::Event(event) => {
                self.account.answered(SERVICE);
                (self.bridge, self.refusals) = (Bridge::default(), StartRefusals::default());
                let records = event.records.into_iter().map(Record::from).collect();
                return Ok(Some(Fetched::Records { records, millis_behind_latest: event.millis_behind_latest }));
            }
            Next::ShardEnd(children) => return Ok(Some(Fetched::ShardEnd { children: children.into_iter().map(child).collect() })),
            Next::Interrupted(Some(error)) => self.interrupted(error, true)?,
            Next::Interrupted(None) if self.subscriber.ended_without_children() => self.ended_without_children(),
            Next::Interrupted(None) => {}
        }
        Ok(None)
    }
}
