//! The service's limits on SubscribeToShard, kept by waiting: one call per second and shard, five per second and consumer.
//!
//! Workers that share a consumer share its limit: each takes its part, see [`Pace::share`].

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

/// Between two calls for one shard (AWS limit, and a margin for uneven networks and late calls).
pub(crate) const PER_SHARD: Duration = Duration::from_millis(1_100);
/// Calls of one consumer within [`WINDOW`] (AWS limit).
const CALLS: usize = 5;
/// The same margin.
const WINDOW: Duration = Duration::from_millis(1_100);
/// How late a turn may be used: within the margin. Later, another one's may have begun.
const LATE: Duration = Duration::from_millis(100);

/// When the calls of one worker may be made. Outlives single readers, so that the opening of a shard anew is paced too.
#[derive(Debug, Default)]
pub(crate) struct Pace(Mutex<Calls>);

#[derive(Debug, Default)]
struct Calls {
    /// The last calls of all shards, oldest first; also those that are promised.
    recent: VecDeque<Instant>,
    /// The last call for each shard, while it matters.
    shards: BTreeMap<String, Instant>,
    /// Workers that share the consumer; 0 counts as 1.
    workers: u32,
}

impl Pace {
    /// This many workers subscribe with the same consumer.
    pub(crate) fn share(&self, workers: usize) {
        self.lock().workers = u32::try_from(workers).unwrap_or(u32::MAX);
    }

    /// Waits for the turn of a call for this shard, and tells until when it may be made.
    ///
    /// A dropped call gives up its place in the queue; one that had a turn already may leave it unused. One that is left alone until its turn is
    /// over queues anew.
    pub(crate) async fn turn(&self, shard: &str) -> Instant {
        loop {
            let earliest = self.lock().shards.get(shard).map(|last| *last + PER_SHARD);
            if let Some(earliest) = earliest {
                wait_until(earliest).await;
            }
            let turn = self.lock().reserve(shard, Instant::now());
            wait_until(turn).await;
            if Instant::now() <= turn + LATE {
                return turn + LATE;
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Calls> {
        // Plain data that no panic leaves half changed.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What is due is not waited for, not even for the timer's next tick.
async fn wait_until(time: Instant) {
    if Instant::now() < time {
        sleep_until(time).await;
    }
}

impl Calls {
    /// The next turn, in the order of asking.
    fn reserve(&mut self, shard: &str, now: Instant) -> Instant {
        let window = WINDOW * self.workers.clamp(1, 1_000);
        let mut turn = self.recent.back().map_or(now, |last| now.max(*last));
        if self.recent.len() == CALLS
            && let Some(oldest) = self.recent.pop_front()
        {
            turn = turn.max(oldest + window);
        }
        self.recent.push_back(turn);
        self.shards.retain(|_, last| *last + PER_SHARD > now);
        self.shards.insert(shard.to_owned(), turn);
        turn
    }
}

#[cfg(test)]
mod tests {
    use futures::future::join_all;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn no_second_has_more_than_five_calls_and_none_waits_without_need() {
        for workers in [1usize, 3] {
            let (pace, began) = (Pace::default(), Instant::now());
            pace.share(workers);
            let shards: Vec<_> = (0..23).map(|shard| format!("shard-{shard}")).collect();
            let mut calls = join_all(shards.iter().map(async |shard| {
                pace.turn(shard).await;
                began.elapsed()
            }))
            .await;
            calls.sort();
            assert_eq!(calls[..CALLS], [Duration::ZERO; CALLS]);
            let second = WINDOW * u32::try_from(workers).unwrap();
            assert!(calls.windows(CALLS + 1).all(|six| six[CALLS] - six[0] >= second), "{calls:?}");
            assert!(calls[22] <= second * 4 + Duration::from_millis(5), "{calls:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_shard_has_one_call_a_second_and_holds_up_no_other() {
        let (pace, began) = (Pace::default(), Instant::now());
        for turn in 0..5 {
            pace.turn("a").await;
            assert!(began.elapsed() >= PER_SHARD * turn && began.elapsed() < PER_SHARD * turn + Duration::from_millis(10));
        }
        let before = Instant::now();
        pace.turn("b").await;
        assert_eq!(before.elapsed(), Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn shards_that_are_read_no_more_are_forgotten() {
        let pace = Pace::default();
        for shard in 0..200 {
            pace.turn(&shard.to_string()).await;
        }
        assert!(pace.lock().shards.len() <= 2 * CALLS, "{}", pace.lock().shards.len());
        assert_eq!(pace.lock().recent.len(), CALLS);
    }
}
