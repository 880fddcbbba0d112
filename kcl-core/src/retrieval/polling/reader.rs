//! One shard by polling: what is called next, and what an answer changes.
//!
//! There is at most one call under way. It belongs to the reader, not to the `next` that began it: a dropped `next` leaves it where it is, and the
//! following one waits for the same answer. So cancellation neither loses an answer nor asks for it (and pays for it) twice, and
//! a caller that cancels often still gets on. Everything that is remembered changes in [`Reader::take`], in one go, after the answer.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures::FutureExt;
use futures::future::BoxFuture;
use kcl_checkpoint::Timestamp;
use kcl_checkpoint::planted::{Bug, is_planted};
use kcl_lease::backoff::Backoff;
use kcl_lease::{Clock, ShardId};
use tokio::time::{Instant, sleep_until};
use tracing::{debug, warn};

use super::{Polling, PollingConfig};
use crate::retrieval::{Fetched, ShardReader};
use crate::stream::{ChildShard, RecordsPage, Shard, ShardFilter, ShardIterator, StartingPosition, StreamApi, StreamError, children_of};

const FIRST_WAIT: Duration = Duration::from_millis(200);
/// Throttling passes soon: others on the stream took the second's share.
const LONGEST_WAIT_THROTTLED: Duration = Duration::from_secs(5);
const LONGEST_WAIT: Duration = Duration::from_secs(10);
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
    throttled: Backoff,
    failing: Backoff,
    /// The iterator in use replaced an expired one, and nothing was read with it yet.
    replaced: bool,
    under_way: Option<BoxFuture<'static, Answer>>,
}

impl Reader {
    pub(super) fn new(polling: &Polling, shard: ShardId, start: StartingPosition) -> Self {
        Self {
            shard,
            api: Arc::clone(&polling.api),
            clock: Arc::clone(&polling.clock),
            config: polling.config.clone(),
            step: Step::Open,
            resume: start,
            asked: polling.clock.wall_time(),
            next_read: None,
            next_try: None,
            throttled: Backoff::new(FIRST_WAIT, LONGEST_WAIT_THROTTLED, &polling.entropy),
            failing: Backoff::new(FIRST_WAIT, LONGEST_WAIT, &polling.entropy),
            replaced: false,
            under_way: None,
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
        match &self.step {
            Step::Open => {
                self.asked = self.clock.wall_time();
                let (shard, start) = (self.shard.clone(), self.resume);
                async move { Answer::Opened(api.shard_iterator(&shard, start).await) }.boxed()
            }
            Step::Read(iterator) => {
                let (iterator, limit) = (iterator.clone(), self.config.max_records);
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
            Answer::Opened(Err(error)) | Answer::Listed(Err(error)) => self.failed(error).map(|()| None),
            Answer::Page(Err(error)) => {
                // The service counts a refused read like any other.
                self.next_read = Some(Instant::now() + self.config.min_interval);
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
        self.step = Step::Read(iterator);
    }

    fn page(&mut self, page: RecordsPage) -> Option<Fetched> {
        let RecordsPage { records, next, children, millis_behind_latest } = page;
        let behind = millis_behind_latest.is_some_and(|millis| millis > 0);
        let bytes = records.iter().map(|record| record.size() as u64).sum();
        self.next_read = Some(Instant::now() + self.config.wait_after(bytes, records.len(), behind));
        self.replaced = false;
        if let Some(last) = records.last().filter(|_| !is_planted(Bug::IteratorFromStart)) {
            self.resume = StartingPosition::AfterSequenceNumber(last.sequence_number());
        }
        let ended = next.is_none();
        match next {
            Some(iterator) => self.step = Step::Read(iterator),
            None if children.is_empty() => self.step = Step::FindChildren,
            None => self.step = Step::Ended(children),
        }
        if !matches!(self.step, Step::FindChildren) {
            // Otherwise not: a server that ends the shard in error and lists it as open would be asked in circles without a growing wait.
            self.throttled.reset();
            self.failing.reset();
        }
        // An empty answer is news too, of how far behind the reader is; but for one at the end, as the end itself follows.
        (!records.is_empty() || !ended).then_some(Fetched::Records { records, millis_behind_latest })
    }

    fn listed(&mut self, listing: &[Shard]) {
        let children = children_of(&self.shard, listing);
        if !children.is_empty() {
            self.step = Step::Ended(children);
            return;
        }
        // No evidence (yet) of an end. If the shard is listed as open, it may have been the missing iterator that was wrong: reading on
        // after the last record tells, and loses nothing. Else the listing lags, and is asked for again.
        let open = listing.iter().any(|shard| shard.shard_id == self.shard && shard.ending_sequence_number.is_none());
        if open {
            self.step = Step::Open;
        }
        self.wait_longer();
        let failures = self.failing.failures();
        if is_worth_a_warning(failures) {
            warn!(shard = %self.shard, open, failures, "the shard was read to its end, but the stream lists no children of it; asking again");
        } else {
            debug!(shard = %self.shard, open, failures, "the shard was read to its end, but the stream lists no children of it; asking again");
        }
    }

    /// Sets the wait after a failure. An error that no wait mends is given back.
    fn failed(&mut self, error: StreamError) -> Result<(), StreamError> {
        let failures = match &error {
            StreamError::ExpiredIterator { .. } if matches!(self.step, Step::Read(_)) => {
                self.step = Step::Open;
                debug!(shard = %self.shard, "the shard iterator has expired; reading goes on with a new one");
                // Expected once after a long pause. If a fresh one is refused too, something is wrong with the service or a clock.
                if !std::mem::replace(&mut self.replaced, true) {
                    self.wait(Duration::ZERO);
                    return Ok(());
                }
                self.wait_longer();
                self.failing.failures()
            }
            StreamError::Throttled { .. } => {
                let wait = self.throttled.next_wait();
                self.wait(wait);
                self.throttled.failures()
            }
            StreamError::InvalidArgument { .. } => {
                // What was refused is not asked again: if it was the iterator, a new one may be taken.
                if matches!(self.step, Step::Read(_)) {
                    self.step = Step::Open;
                }
                self.wait_longer();
                return Err(error);
            }
            error if error.is_retryable() => {
                self.wait_longer();
                self.failing.failures()
            }
            _ => {
                self.wait_longer();
                return Err(error);
            }
        };
        if is_worth_a_warning(failures) {
            warn!(shard = %self.shard, failures, %error, "reading of the shard keeps failing; trying again");
        } else {
            debug!(shard = %self.shard, failures, %error, "reading of the shard failed; trying again");
        }
        Ok(())
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

/// The fifth failure in a row, and then every tenth: by then they are ten seconds apart at most.
fn is_worth_a_warning(failures: u32) -> bool {
    failures % 10 == 5
}

#[async_trait]
impl ShardReader for Reader {
    async fn next(&mut self) -> Result<Fetched, StreamError> {
        loop {
            if let Step::Ended(children) = &self.step {
                return Ok(Fetched::ShardEnd { children: children.clone() });
            }
            if self.under_way.is_none() {
                if let Some(instant) = self.allowed_at() {
                    sleep_until(instant).await;
                }
                self.under_way = Some(self.begin());
            }
            let answer = match &mut self.under_way {
                Some(call) => call.await,
                None => continue,
            };
            self.under_way = None;
            if let Some(fetched) = self.take(answer)? {
                return Ok(fetched);
            }
        }
    }
}
