//! Reading ahead: the next answer is fetched while the last one is processed, within a bound of bytes.
//!
//! Per shard there is at most one answer in hand and one ahead, of at most 10 MiB each. All that is
//! read ahead by all shards of a worker shares one budget. A share is reserved for the time of a call
//! and of what it gave, never while a reader waits for its pace, for the backoff after a failure, or
//! for an iterator. A shard that waits for records reads without asking the budget, so that shards
//! which are stuck, and hold their part of it, never stop the others.

use std::convert::Infallible;
use std::sync::Arc;

use kcl_checkpoint::Timestamp;
use kcl_lease::Clock;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};

use super::reading::ShardReading;
use crate::retrieval::{Fetched, ShardReader};
use crate::stream::StreamError;

/// Bytes that all shards of a worker may have read ahead.
#[derive(Clone, Debug)]
pub(crate) struct PrefetchBudget(Arc<Semaphore>);

impl PrefetchBudget {
    pub(crate) fn new(bytes: usize) -> Self {
        Self(Arc::new(Semaphore::new(bytes)))
    }

    async fn reserve(&self, bytes: usize) -> OwnedSemaphorePermit {
        let permit = Arc::clone(&self.0).acquire_many_owned(u32::try_from(bytes).unwrap_or(u32::MAX)).await;
        permit.expect("invariant: the budget's semaphore is never closed")
    }

    /// Makes a share as large as what came: gives the rest back, or adds what is missing, as far as there is room at once. What came is
    /// there already, so waiting for room would help nobody.
    fn fit(&self, share: &mut OwnedSemaphorePermit, bytes: usize) {
        drop(share.split(share.num_permits().saturating_sub(bytes)));
        let missing = bytes.saturating_sub(share.num_permits()).min(self.0.available_permits());
        if let Ok(more) = Arc::clone(&self.0).try_acquire_many_owned(u32::try_from(missing).unwrap_or(u32::MAX)) {
            share.merge(more);
        }
    }
}

/// What was read.
#[derive(Debug)]
pub(crate) struct Answer {
    /// When it was asked for, by the wall clock: it says nothing of the time since. (A subscription's answer may have been on its way before.)
    pub(crate) asked: Timestamp,
    pub(crate) fetched: Result<Fetched, StreamError>,
}

/// An answer, and its share of the budget until it is taken into work.
type Ahead = (Answer, Option<OwnedSemaphorePermit>);

/// The two ends of one shard's reading ahead.
pub(crate) fn prefetch(
    reader: Box<dyn ShardReader>,
    budget: PrefetchBudget,
    clock: Arc<dyn Clock>,
    reading: ShardReading,
) -> (Prefetcher, Prefetched) {
    let (sender, receiver) = mpsc::channel(1);
    let (hungry, hunger) = watch::channel(false);
    (Prefetcher { reader, budget, clock, reading, failing: false, sender, hunger }, Prefetched { receiver, hungry })
}

/// The reading end.
pub(crate) struct Prefetcher {
    reader: Box<dyn ShardReader>,
    budget: PrefetchBudget,
    clock: Arc<dyn Clock>,
    reading: ShardReading,
    /// The last answer was an error.
    failing: bool,
    sender: mpsc::Sender<Ahead>,
    /// Whether the other end has nothing in hand and waits.
    hunger: watch::Receiver<bool>,
}

impl Prefetcher {
    /// Reads until the shard ends or the other end is gone; then stays pending.
    pub(crate) async fn run(mut self) -> Infallible {
        // Room for the answer comes before the question.
        let sender = self.sender.clone();
        while let Ok(room) = sender.reserve().await {
            let asked = self.clock.wall_time();
            let (fetched, share) = self.fetch().await;
            match fetched {
                Ok(_) => self.reading.succeeded(),
                Err(_) => self.reading.paused(),
            }
            self.failing = fetched.is_err();
            let ended = matches!(fetched, Ok(Fetched::ShardEnd { .. }));
            room.send((Answer { asked, fetched }, share));
            if ended {
                break;
            }
        }
        std::future::pending().await
    }

    /// Reads until something comes, and gives it with its share of the budget.
    async fn fetch(&mut self) -> (Result<Fetched, StreamError>, Option<OwnedSemaphorePermit>) {
        if self.failing {
            self.reading.asked();
        }
        loop {
            let bytes = match self.reader.ready().await {
                Ok(bytes) => bytes,
                Err(error) => {
                    self.reading.asked();
                    return (Err(error), None);
                }
            };
            let mut share = if bytes == 0 {
                None
            } else {
                self.reading.paused();
                tokio::select! {
                    biased;
                    _ = self.hunger.wait_for(|hungry| *hungry) => None,
                    share = self.budget.reserve(bytes) => Some(share),
                }
            };
            self.reading.asked();
            let fetched = match self.reader.next().await {
                // The share goes back while the reader waits for its next attempt.
                Ok(None) => continue,
                Ok(Some(fetched)) => fetched,
                Err(error) => return (Err(error), None),
            };
            if let (Some(share), Fetched::Records { records, .. }) = (&mut share, &fetched) {
                self.budget.fit(share, records.iter().map(crate::Record::size).sum());
            }
            return (Ok(fetched), share.filter(|share| share.num_permits() > 0));
        }
    }
}

/// The processing end.
pub(crate) struct Prefetched {
    receiver: mpsc::Receiver<Ahead>,
    hungry: watch::Sender<bool>,
}

impl Prefetched {
    /// The next answer. Cancel-safe: what is not returned stays.
    pub(crate) async fn next(&mut self) -> Answer {
        if let Ok((answer, _)) = self.receiver.try_recv() {
            return answer;
        }
        let hunger = Hunger::begin(&self.hungry);
        let ahead = self.receiver.recv().await;
        drop(hunger);
        match ahead {
            Some((answer, _)) => answer,
            // The reading end stays pending after the end of the shard, which was given.
            None => std::future::pending().await,
        }
    }
}

/// A wait for records, however it ends: one that is given up must not have its shard read on without a share of the budget.
struct Hunger<'a>(&'a watch::Sender<bool>);

impl<'a> Hunger<'a> {
    fn begin(hungry: &'a watch::Sender<bool>) -> Self {
        hungry.send_replace(true);
        Self(hungry)
    }
}

impl Drop for Hunger<'_> {
    fn drop(&mut self) {
        self.0.send_replace(false);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::time::Duration;

    use async_trait::async_trait;
    use bytes::Bytes;
    use futures::FutureExt;
    use kcl_lease::SystemClock;

    use super::*;
    use crate::consumer::Reading;
    use crate::record::Record;
    use crate::retrieval::LARGEST_ANSWER;

    struct Scripted(VecDeque<usize>, Arc<std::sync::atomic::AtomicUsize>);

    #[async_trait]
    impl ShardReader for Scripted {
        async fn ready(&mut self) -> Result<usize, StreamError> {
            Ok(LARGEST_ANSWER)
        }

        async fn next(&mut self) -> Result<Option<Fetched>, StreamError> {
            let Some(size) = self.0.pop_front() else { return std::future::pending().await };
            self.1.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
            Ok(Some(answer(size)))
        }
    }

    fn answer(size: usize) -> Fetched {
        let record = Record::new(1u128.into(), None, Bytes::from(vec![0; size]), None);
        Fetched::Records { records: vec![record], millis_behind_latest: None }
    }

    fn watched() -> ShardReading {
        Arc::<Reading>::default().of_shard(&"shard".into(), Arc::new(SystemClock))
    }

    fn shard(budget: &PrefetchBudget) -> (Prefetcher, Prefetched, Arc<std::sync::atomic::AtomicUsize>) {
        let reads = Arc::default();
        let (prefetcher, prefetched) = prefetch(
            Box::new(Scripted(VecDeque::from([1 << 20; 20]), Arc::clone(&reads))),
            budget.clone(),
            Arc::new(SystemClock),
            watched(),
        );
        (prefetcher, prefetched, reads)
    }

    #[tokio::test(start_paused = true)]
    async fn one_answer_is_read_ahead_and_no_more() {
        let budget = PrefetchBudget::new(100 << 20);
        let (prefetcher, mut prefetched, reads) = shard(&budget);
        let work = async {
            for taken in 1..5 {
                prefetched.next().await.fetched.unwrap();
                tokio::time::sleep(Duration::from_secs(1)).await;
                assert_eq!(reads.load(std::sync::atomic::Ordering::SeqCst), taken + 1);
            }
        };
        tokio::select! { () = work => {}, never = prefetcher.run() => match never {} }
    }

    /// Shows how often it was looked at.
    #[derive(Debug, Default)]
    struct Looks(std::sync::atomic::AtomicU64);

    impl Clock for Looks {
        fn boot_time(&self) -> Duration {
            Duration::ZERO
        }

        fn wall_time(&self) -> Timestamp {
            Timestamp::from_millis(self.0.fetch_add(1, std::sync::atomic::Ordering::SeqCst))
        }
    }

    /// However late it is taken.
    #[tokio::test(start_paused = true)]
    async fn an_answer_says_when_it_was_asked_for() {
        let (reads, clock) = (Arc::default(), Arc::new(Looks::default()));
        let reader = Box::new(Scripted(VecDeque::from([1; 3]), Arc::clone(&reads)));
        let (prefetcher, mut prefetched) =
            prefetch(reader, PrefetchBudget::new(100 << 20), Arc::clone(&clock) as Arc<dyn Clock>, watched());
        let work = async {
            tokio::time::sleep(Duration::from_secs(1)).await;
            // One is read ahead and waits; the next is asked for when it is taken.
            assert_eq!(prefetched.next().await.asked, Timestamp::from_millis(0));
            tokio::time::sleep(Duration::from_secs(1)).await;
            clock.0.store(7, std::sync::atomic::Ordering::SeqCst);
            assert_eq!(prefetched.next().await.asked, Timestamp::from_millis(1));
            assert_eq!(prefetched.next().await.asked, Timestamp::from_millis(7));
        };
        tokio::select! { () = work => {}, never = prefetcher.run() => match never {} }
    }

    #[tokio::test(start_paused = true)]
    async fn a_wait_that_is_given_up_is_no_hunger() {
        let (_prefetcher, mut prefetched, _) = shard(&PrefetchBudget::new(100 << 20));
        let hungry = prefetched.hungry.subscribe();
        {
            let mut wait = Box::pin(prefetched.next());
            assert!((&mut wait).now_or_never().is_none());
            assert!(*hungry.borrow());
        }
        assert!(!*hungry.borrow());
    }

    #[tokio::test(start_paused = true)]
    async fn shards_that_are_stuck_hold_their_share_and_stop_nobody() {
        let budget = PrefetchBudget::new(LARGEST_ANSWER + (1 << 20));
        // two stuck shards have one answer each ahead; the budget has no room for a third reservation
        let stuck: Vec<_> = (0..2).map(|_| shard(&budget)).collect();
        let mut running: Vec<_> = Vec::new();
        let mut ends = Vec::new();
        for (prefetcher, prefetched, _) in stuck {
            let mut run = Box::pin(prefetcher.run());
            assert!((&mut run).now_or_never().is_none());
            running.push(run);
            ends.push(prefetched);
        }
        assert!(budget.0.available_permits() < LARGEST_ANSWER);
        let (prefetcher, mut prefetched, _) = shard(&budget);
        let work = async {
            for _ in 0..10 {
                prefetched.next().await.fetched.unwrap();
            }
        };
        tokio::select! { () = work => {}, never = prefetcher.run() => match never {} }
    }

    /// Waits for its pace before each call, as a polling reader does; every other call gives nothing.
    struct Paced(bool);

    const PACE: Duration = Duration::from_secs(1);
    const CALL: Duration = Duration::from_millis(100);

    #[async_trait]
    impl ShardReader for Paced {
        async fn ready(&mut self) -> Result<usize, StreamError> {
            tokio::time::sleep(PACE).await;
            Ok(LARGEST_ANSWER)
        }

        async fn next(&mut self) -> Result<Option<Fetched>, StreamError> {
            tokio::time::sleep(CALL).await;
            self.0 = !self.0;
            Ok(self.0.then(|| answer(1_000)))
        }
    }

    /// With room for the call of a single shard, ten shards read as often as their pace allows: none holds the budget while it waits.
    #[tokio::test(start_paused = true)]
    async fn the_budget_is_free_while_readers_wait_for_their_pace() {
        let budget = PrefetchBudget::new(LARGEST_ANSWER + (1 << 20));
        let mut shards = tokio::task::JoinSet::new();
        for _ in 0..10 {
            let (prefetcher, mut prefetched) = prefetch(Box::new(Paced(false)), budget.clone(), Arc::new(SystemClock), watched());
            shards.spawn(async move {
                let work = async {
                    // The first answer is waited for; after it the shard is never hungry.
                    prefetched.next().await.fetched.unwrap();
                    for _ in 0..10 {
                        tokio::time::sleep(4 * (PACE + CALL)).await;
                        assert!(prefetched.next().now_or_never().is_some(), "it was read ahead in time");
                    }
                };
                tokio::select! { () = work => {}, never = prefetcher.run() => match never {} }
            });
        }
        while let Some(ended) = shards.join_next().await {
            ended.unwrap();
        }
        assert_eq!(budget.0.available_permits(), LARGEST_ANSWER + (1 << 20), "all shares have come back");
    }

    #[test]
    fn a_share_is_made_as_large_as_what_came() {
        const MIB: usize = 1 << 20;
        let budget = PrefetchBudget::new(4 * MIB);
        // reserved, came => left in the budget
        for (reserved, came, left) in
            [(MIB, MIB, 3 * MIB), (2 * MIB, 5, 4 * MIB - 5), (MIB, 3 * MIB, MIB), (MIB, 9 * MIB, 0), (MIB, 0, 4 * MIB)]
        {
            let mut share = budget.reserve(reserved).now_or_never().unwrap();
            budget.fit(&mut share, came);
            assert_eq!(budget.0.available_permits(), left, "{reserved} {came}");
        }
    }
}
