//! Reading ahead: the next answer is fetched while the last one is processed, within a bound of bytes.
//!
//! Per shard there is at most one answer in hand and one ahead, of at most 10 MiB each. All that is read ahead by all shards
//! of a worker shares one budget. A shard that waits for records reads without asking the budget, so that shards which
//! are stuck, and hold their part of it, never stop the others.

use std::convert::Infallible;
use std::sync::Arc;

use kcl_checkpoint::Timestamp;
use kcl_lease::Clock;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};

use crate::retrieval::{Fetched, ShardReader};
use crate::stream::StreamError;

/// The most that one answer of Kinesis holds (GetRecords: 10 MiB).
pub(crate) const LARGEST_ANSWER: usize = 10 << 20;

/// Bytes that all shards of a worker may have read ahead.
#[derive(Clone, Debug)]
pub(crate) struct PrefetchBudget(Arc<Semaphore>);

impl PrefetchBudget {
    pub(crate) fn new(bytes: usize) -> Self {
        Self(Arc::new(Semaphore::new(bytes)))
    }

    async fn reserve(&self) -> OwnedSemaphorePermit {
        let permit = Arc::clone(&self.0).acquire_many_owned(u32::try_from(LARGEST_ANSWER).unwrap_or(u32::MAX)).await;
        permit.expect("invariant: the budget's semaphore is never closed")
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
pub(crate) fn prefetch(reader: Box<dyn ShardReader>, budget: PrefetchBudget, clock: Arc<dyn Clock>) -> (Prefetcher, Prefetched) {
    let (sender, receiver) = mpsc::channel(1);
    let (hungry, hunger) = watch::channel(false);
    (Prefetcher { reader, budget, clock, sender, hunger }, Prefetched { receiver, hungry })
}

/// The reading end.
pub(crate) struct Prefetcher {
    reader: Box<dyn ShardReader>,
    budget: PrefetchBudget,
    clock: Arc<dyn Clock>,
    sender: mpsc::Sender<Ahead>,
    /// Whether the other end has nothing in hand and waits.
    hunger: watch::Receiver<bool>,
}

impl Prefetcher {
    /// Reads until the shard ends or the other end is gone; then stays pending.
    pub(crate) async fn run(mut self) -> Infallible {
        // Room for the answer comes before the question.
        while let Ok(room) = self.sender.reserve().await {
            let mut permit = tokio::select! {
                biased;
                _ = self.hunger.wait_for(|hungry| *hungry) => None,
                permit = self.budget.reserve() => Some(permit),
            };
            let asked = self.clock.wall_time();
            let fetched = self.reader.next().await;
            let ended = matches!(fetched, Ok(Fetched::ShardEnd { .. }));
            let bytes = match &fetched {
                Ok(Fetched::Records { records, .. }) => records.iter().map(crate::Record::size).sum(),
                _ => 0,
            };
            if let Some(permit) = &mut permit {
                // What was reserved and not needed goes back.
                drop(permit.split(permit.num_permits().saturating_sub(bytes)));
            }
            room.send((Answer { asked, fetched }, permit));
            if ended {
                break;
            }
        }
        std::future::pending().await
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
    use crate::record::Record;

    struct Scripted(VecDeque<usize>, Arc<std::sync::atomic::AtomicUsize>);

    #[async_trait]
    impl ShardReader for Scripted {
        async fn next(&mut self) -> Result<Fetched, StreamError> {
            let Some(size) = self.0.pop_front() else { return std::future::pending().await };
            self.1.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
            let record = Record::new(1u128.into(), None, Bytes::from(vec![0; size]), None);
            Ok(Fetched::Records { records: vec![record], millis_behind_latest: None })
        }
    }

    fn shard(budget: &PrefetchBudget) -> (Prefetcher, Prefetched, Arc<std::sync::atomic::AtomicUsize>) {
        let reads = Arc::default();
        let (prefetcher, prefetched) =
            prefetch(Box::new(Scripted(VecDeque::from([1 << 20; 20]), Arc::clone(&reads))), budget.clone(), Arc::new(SystemClock));
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
        let (prefetcher, mut prefetched) = prefetch(reader, PrefetchBudget::new(100 << 20), Arc::clone(&clock) as Arc<dyn Clock>);
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
}
