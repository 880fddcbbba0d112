//! One shard by polling: what is called next, and what an answer changes.
//!
//! There is at most one call under way. It belongs to the reader, not to the `next` that began it:
//! a dropped `next` leaves it where it is, and the following one waits for the same answer. So
//! cancellation neither loses an answer nor asks for it (and pays for it) twice, and a caller that
//! cancels often still gets on. Everything that is remembered changes in [`Reader::take`], in one
//! go, after the answer.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures::FutureExt;
use futures::future::BoxFuture;
use kcl_checkpoint::Timestamp;
use kcl_checkpoint::planted::{Bug, is_planted};
use kcl_lease::backoff::Backoff;
use kcl_lease::{Cause, Clock, Entropy, ShardId};
use tokio::time::{Instant, sleep_until};
use tracing::{debug, warn};

use super::contention::Contention;
use super::expected::{Answered, expected};
use super::limit::Limit;
use super::tip::SilentTip;
use super::{Polling, PollingConfig};
use crate::record::Record;
use crate::retrieval::{CallAccount, Fetched, ShardReader, StartRefusals};
use crate::stream::{ChildShard, RecordsPage, Shard, ShardFilter, ShardIterator, StartingPosition, StreamApi, StreamError, children_of};

const FIRST_WAIT: Duration = Duration::from_millis(200);
const LONGEST_WAIT: Duration = Duration::from_secs(10);

/// A shard that was read to its end and of which no children are listed, in the log of outages.
const NO_CHILDREN: Cause = Cause { service: StreamError::SERVICE, class: "children not listed" };

/// How far before the remembered time a reader goes on that had been opened at the tip. The service refuses signatures of a
/// clock that is wrong by more than this, so it covers the difference of its clock to ours.
const CLOCK_DIFFERENCE: u64 = 5 * 60 * 1000;

/// What is called next.
enum Step {
    /// An iterator is asked for.
    Open,
    /// Records are read.
    Read(ShardIterator),
    /// The shard was read to its end, and what it became is looked for.
    FindChildren,
    /// The shard was read to its end and became these.
    Ended(Vec<ChildShard>),
}

/// An answer to the call of a step.
enum Answer {
    Opened(Result<ShardIterator, StreamError>),
    Page(Result<RecordsPage, StreamError>),
    Listed(Result<Vec<Shard>, StreamError>),
}

/// Oddities of the server that are logged once by each reader.
#[derive(Default)]
struct Warned {
    repeats: bool,
    silent_tip: bool,
}

pub(crate) struct Reader {
    shard: ShardId,
    api: Arc<dyn StreamApi>,
    clock: Arc<dyn Clock>,
    config: PollingConfig,
    step: Step,
    /// Where a new iterator has to start: after the last record given, or, before the first, where reading was to start.
    resume: StartingPosition,
    /// When the first iterator was asked for last.
    asked: Timestamp,
    /// The pace: no read before.
    next_read: Option<Instant>,
    /// After a failure: no call before. Kept here, so that a cancelled wait goes on instead of starting over.
    next_try: Option<Instant>,
    contention: Contention,
    failing: Backoff,
    limit: Limit,
    tip: SilentTip,
    last: Option<Answered>,
    refusals: StartRefusals,
    /// The iterator in use replaced an expired one, and nothing was read with it yet.
    replaced: bool,
    under_way: Option<BoxFuture<'static, Answer>>,
    /// When the last call began.
    began: Instant,
    entropy: Entropy,
    warned: Warned,
    account: CallAccount,
}

impl Reader {
    pub(super) fn new(polling: &Polling, shard: ShardId, start: StartingPosition) -> Self {
        Self {
            account: polling.account(&shard),
            shard,
            api: Arc::clone(&polling.api),
            clock: Arc::clone(&polling.clock),
            config: polling.config.clone(),
            step: Step::Open,
            resume: start,
            asked: polling.clock.wall_time(),
            next_read: None,
            next_try: None,
            contention: Contention::default(),
            failing: Backoff::new(FIRST_WAIT, LONGEST_WAIT, &polling.entropy),
            limit: Limit::new(polling.config.max_records),
            tip: SilentTip::default(),
            last: None,
            refusals: StartRefusals::default(),
            replaced: false,
            under_way: None,
            began: Instant::now(),
            entropy: polling.entropy.clone(),
            warned: Warned::default(),
        }
    }

    /// When the call of this step may be made.
    fn allowed_at(&self) -> Option<Instant> {
        match self.step {
            Step::Read(_) => self.next_read.max(self.next_try),
            _ => self.next_try,
        }
    }

    /// Begins the call of this step.
    fn begin(&mut self) -> BoxFuture<'static, Answer> {
        let api = Arc::clone(&self.api);
        self.began = Instant::now();
        match &self.step {
            Step::Open => {
                self.asked = self.clock.wall_time();
                let (shard, start) = (self.shard.clone(), self.resume);
                async move { Answer::Opened(api.shard_iterator(&shard, start).await) }.boxed()
            }
            Step::Read(iterator) => {
                let (iterator, limit) = (iterator.clone(), self.limit.records());
                async move { Answer::Page(api.get_records(&iterator, limit).await) }.boxed()
            }
            Step::FindChildren | Step::Ended(_) => async move { Answer::Listed(api.list_shards(ShardFilter::All).await) }.boxed(),
        }
    }

    /// Takes an answer in. `None`: there is nothing to give yet.
    fn take(&mut self, answer: Answer) -> Result<Option<Fetched>, StreamError> {
        match answer {
            Answer::Opened(Ok(iterator)) => {
                self.opened(iterator);
                Ok(None)
            }
            Answer::Page(Ok(page)) => Ok(self.page(page)),
            Answer::Listed(Ok(listing)) => {
                self.listed(&listing);
                Ok(None)
            }
            Answer::Opened(Err(error)) => {
                let error = self.refusals.judge(error, self.resume);
                self.failed(error).map(|()| None)
            }
            Answer::Listed(Err(error)) => self.failed(error).map(|()| None),
            Answer::Page(Err(error)) => {
                // The service counts a refused read like any other.
                self.next_read = Some(Instant::now() + self.config.min_interval);
                if matches!(error, StreamError::Unavailable { .. }) && self.limit.unanswered(self.began.elapsed()) {
                    let records = self.limit.records();
                    debug!(shard = %self.shard, records, "a read took too long; the next one asks for half as many records");
                }
                self.failed(error).map(|()| None)
            }
        }
    }

    fn opened(&mut self, iterator: ShardIterator) {
        if self.resume == StartingPosition::Latest {
            // From now on "latest" would be a later place. The iterators hold this one; should they expire before a record came, a
            // time before it is the only thing left that does.
            self.resume = StartingPosition::AtTimestamp(Timestamp::from_millis(self.asked.as_millis().saturating_sub(CLOCK_DIFFERENCE)));
        }
        self.refusals.accepted();
        self.step = Step::Read(iterator);
    }

    /// Takes in an answer with records. `None`: there is nothing to give of it.
    fn page(&mut self, page: RecordsPage) -> Option<Fetched> {
        let RecordsPage { mut records, next, children, mut millis_behind_latest } = page;
        let behind = millis_behind_latest.is_some_and(|millis| millis > 0);
        let bytes: usize = records.iter().map(Record::size).sum();
        let is_full = records.len() >= self.limit.records() as usize;
        let at_tip = millis_behind_latest == Some(0);
        self.last = Some(Answered { bytes, is_full, at_tip, at: self.began });
        self.limit.answered(records.len(), self.began.elapsed());
        self.contention.answered();
        let wait = self.config.wait_after(bytes as u64, records.len(), behind).max(self.contention.interval(self.entropy.fraction()));
        self.next_read = Some(Instant::now() + wait);
        self.replaced = false;
        let ended = next.is_none();
        if self.drop_repeated(&mut records) && records.is_empty() && !ended {
            // So its iterator is one of an earlier place too. A new one leads on.
            self.step = Step::Open;
            self.wait_longer();
            return None;
        }
        if let Some(last) = records.last().filter(|_| !is_planted(Bug::IteratorFromStart)) {
            self.resume = StartingPosition::AfterSequenceNumber(last.sequence_number());
        }
        if self.tip.answered(records.is_empty(), millis_behind_latest.is_some() || ended, Instant::now()) {
            millis_behind_latest = Some(0);
            if !std::mem::replace(&mut self.warned.silent_tip, true) {
                warn!(
                    shard = %self.shard,
                    "the server does not say how far behind its answers are (MillisBehindLatest is missing); several empty answers in a row \
                     are taken for the tip of the shard"
                );
            }
        }
        match next {
            Some(iterator) => self.step = Step::Read(iterator),
            None if children.is_empty() => self.step = Step::FindChildren,
            None => self.step = Step::Ended(children),
        }
        if !matches!(self.step, Step::FindChildren) {
            // Otherwise not: a server that ends the shard in error and lists it as open would be asked in circles without a growing wait.
            self.failing.reset();
            self.account.answered(StreamError::SERVICE);
        }
        // An empty answer is news too, of how far behind the reader is; but for one at the end, as the end itself follows.
        (!records.is_empty() || !ended).then_some(Fetched::Records { records, millis_behind_latest })
    }

    /// Drops the records that are not after the last one given: the position never goes back. Returns
    /// true if there were any.
    fn drop_repeated(&mut self, records: &mut Vec<Record>) -> bool {
        let StartingPosition::AfterSequenceNumber(last) = self.resume else { return false };
        let before = records.len();
        records.retain(|record| record.sequence_number() > last);
        let repeated = before - records.len();
        if repeated > 0 && !std::mem::replace(&mut self.warned.repeats, true) {
            warn!(
                shard = %self.shard, repeated, %last,
                "the server has repeated records that it gave before; they are not delivered again (logged once)"
            );
        }
        repeated > 0
    }

    fn listed(&mut self, listing: &[Shard]) {
        let children = children_of(&self.shard, listing);
        if !children.is_empty() {
            self.step = Step::Ended(children);
            self.account.answered(StreamError::SERVICE);
            return;
        }
        // No evidence (yet) of an end. If the shard is listed as open, it may have been the missing iterator that was wrong: reading on
        // after the last record tells, and loses nothing. Else the listing lags, and is asked for again.
        let open = listing.iter().any(|shard| shard.shard_id == self.shard && shard.ending_sequence_number.is_none());
        if open {
            self.step = Step::Open;
        }
        self.wait_longer();
        // Expected once: the listing lags.
        if self.failing.failures() > 1 {
            self.account.failed_by(NO_CHILDREN, &"the shard was read to its end, but the stream lists no children of it");
        }
    }

    /// Sets the wait after a failure, and reports one that is tried again. An error that no wait mends is given back.
    fn failed(&mut self, error: StreamError) -> Result<(), StreamError> {
        match &error {
            StreamError::ExpiredIterator { .. } if matches!(self.step, Step::Read(_)) => {
                self.step = Step::Open;
                debug!(shard = %self.shard, "the shard iterator has expired; reading goes on with a new one");
                // Expected once after a long pause. If a fresh one is refused too, something is wrong with the service or a clock.
                if !std::mem::replace(&mut self.replaced, true) {
                    self.wait(Duration::ZERO);
                    return Ok(());
                }
                self.wait_longer();
            }
            StreamError::Throttled { .. } => {
                let wait = self.contention.throttled(self.entropy.fraction());
                self.wait(wait);
                if self.contention.refusals() == 1 {
                    debug!(shard = %self.shard, %error, "the shard is read less often for a while");
                    return Ok(());
                }
            }
            StreamError::InvalidArgument { .. } => {
                // A refused iterator is not used again. It says nothing of the records: a new one is opened after the last record given.
                if matches!(self.step, Step::Read(_)) {
                    self.step = Step::Open;
                }
                self.wait_longer();
                return Err(error);
            }
            error if error.is_retryable() => self.wait_longer(),
            _ => {
                self.wait_longer();
                return Err(error);
            }
        }
        self.account.failed(&error);
        Ok(())
    }

    /// Gives up a call that is under way: its answer may be old by the time when the reader goes on.
    pub(crate) fn abandon(&mut self) {
        if self.under_way.take().is_some() {
            // It counts for the service all the same.
            self.next_read = self.next_read.max(Some(Instant::now() + self.config.min_interval));
            self.next_try = self.next_try.max(Some(Instant::now() + self.config.min_interval));
        }
    }

    fn wait_longer(&mut self) {
        let wait = self.failing.next_wait();
        self.wait(wait);
    }

    /// The jitter comes on top of the least interval: even the shortest draw keeps to the limit of five calls per second.
    fn wait(&mut self, wait: Duration) {
        self.next_try = Some(Instant::now() + self.config.min_interval + wait);
    }
}

#[async_trait]
impl ShardReader for Reader {
    async fn ready(&mut self) -> Result<usize, StreamError> {
        if self.under_way.is_none()
            && let Some(instant) = self.allowed_at()
        {
            sleep_until(instant).await;
        }
        Ok(if matches!(self.step, Step::Read(_)) { expected(self.last, Instant::now()) } else { 0 })
    }

    async fn next(&mut self) -> Result<Option<Fetched>, StreamError> {
        if let Step::Ended(children) = &self.step {
            return Ok(Some(Fetched::ShardEnd { children: children.clone() }));
        }
        if self.under_way.is_none() {
            if let Some(instant) = self.allowed_at() {
                sleep_until(instant).await;
            }
            self.under_way = Some(self.begin());
        }
        let answer = match &mut self.under_way {
            Some(call) => call.await,
            None => return Ok(None),
        };
        self.under_way = None;
        self.take(answer)
    }
}
