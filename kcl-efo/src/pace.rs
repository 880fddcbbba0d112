//! The service's limits on SubscribeToShard, kept by waiting: one call per second and shard, five per second and consumer.
//!
//! Workers that share a consumer share its limit. Each has its place among them, and a time of its own in each round of all: so a fleet that starts as one, and renews
//! all its subscriptions five minutes later, does not call as one. They agree on rounds by their wall clocks, which is no more than manners: if a clock is wrong the service
//! refuses a call, and it is made again.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep_until, timeout};

/// Between two calls for one shard (AWS limit, and a margin for uneven networks and late calls).
pub(crate) const PER_SHARD: Duration = Duration::from_millis(1_100);
/// Calls of one consumer within [`WINDOW`] (AWS limit).
const CALLS: usize = 5;
/// The same margin.
const WINDOW: Duration = Duration::from_millis(1_100);
/// The time of one call among several workers: six are longer than a second.
const SLOT: Duration = Duration::from_millis(250);
/// How late a turn may be used: within the margin. Later, another one's may have begun.
const LATE: Duration = Duration::from_millis(100);
/// For how long a worker waits to hear with whom it shares the consumer.
const ALONE_AFTER: Duration = Duration::from_millis(600);

/// When the calls of one worker may be made. Outlives single readers, so that the opening of a shard anew is paced too.
#[derive(Debug)]
pub(crate) struct Pace {
    calls: Mutex<Calls>,
    /// Whether it is known who shares the consumer.
    known: watch::Sender<bool>,
}

#[derive(Debug, Default)]
struct Calls {
    /// The last calls of all shards, oldest first; also those that are promised.
    recent: VecDeque<Instant>,
    /// The last call for each shard, while it matters.
    shards: BTreeMap<String, Instant>,
    /// Where several workers share the consumer.
    round: Option<Round>,
    /// Counts changes of who shares the consumer: what was promised before is void.
    changes: u64,
}

/// The part of a worker that shares the consumer with others.
#[derive(Clone, Copy, Debug)]
struct Round {
    workers: u32,
    place: u32,
    /// One of its times.
    turn: Instant,
}

impl Round {
    fn length(&self) -> Duration {
        SLOT * self.workers
    }
}

impl Default for Pace {
    fn default() -> Self {
        Self { calls: Mutex::default(), known: watch::Sender::new(true) }
    }
}

impl Pace {
    /// Calls wait a moment for the first [`share`](Self::share).
    pub(crate) fn expect_share(&self) {
        self.known.send_replace(false);
    }

    /// This many workers subscribe with the same consumer, and this one has this place among them, from 0. `time`: of the clock by which they agree.
    pub(crate) fn share(&self, workers: usize, place: usize, time: Duration) {
        let now = Instant::now();
        let [workers, place] = [workers.clamp(1, 1_000), place.min(999)].map(|number| u32::try_from(number).unwrap_or(1));
        let round = (workers > 1).then(|| {
            let length = SLOT * workers;
            let into_round = Duration::from_nanos(u64::try_from(time.as_nanos() % length.as_nanos()).unwrap_or(0));
            let mut ahead = SLOT * (place % workers) + length - into_round;
            if ahead >= length {
                ahead -= length;
            }
            Round { workers, place, turn: now + ahead }
        });
        {
            let mut calls = self.lock();
            if calls.round.map(|round| (round.workers, round.place)) != round.map(|round| (round.workers, round.place)) {
                calls.changes += 1;
                calls.recent.retain(|turn| *turn <= now);
            }
            calls.round = round;
        }
        self.known.send_if_modified(|known| !std::mem::replace(known, true));
    }

    /// Waits for the turn of a call for this shard, and tells until when it may be made.
    ///
    /// A dropped call gives up its place in the queue; one that had a turn already may leave it unused. One that is left alone until its turn is
    /// over queues anew, as does one that waits when other workers come or go.
    pub(crate) async fn turn(&self, shard: &str) -> Instant {
        let mut known = self.known.subscribe();
        if timeout(ALONE_AFTER, known.wait_for(|known| *known)).await.is_err() {
            self.known.send_replace(true);
        }
        loop {
            let earliest = self.lock().shards.get(shard).map(|last| *last + PER_SHARD);
            if let Some(earliest) = earliest {
                wait_until(earliest).await;
            }
            let (turn, changes) = self.lock().reserve(shard, Instant::now());
            wait_until(turn).await;
            let mut calls = self.lock();
            if calls.changes != changes {
                // No call was made.
                calls.shards.remove(shard);
            } else if Instant::now() <= turn + LATE {
                return turn + LATE;
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Calls> {
        // Plain data that no panic leaves half changed.
        self.calls.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What is due is not waited for, not even for the timer's next tick.
async fn wait_until(time: Instant) {
    if Instant::now() < time {
        sleep_until(time).await;
    }
}

impl Calls {
    /// The next turn, in the order of asking, and the count of changes on which it rests.
    fn reserve(&mut self, shard: &str, now: Instant) -> (Instant, u64) {
        let last = self.recent.back().copied();
        let mut turn = last.map_or(now, |last| now.max(last));
        match self.round {
            Some(round) => {
                // Nearly a round after the last one: clocks are corrected now and then.
                let earliest = last.map_or(now, |last| now.max(last + round.length() - SLOT / 2));
                turn = round.turn;
                if turn < earliest {
                    let rounds = earliest.duration_since(turn).as_nanos().div_ceil(round.length().as_nanos());
                    turn += round.length() * u32::try_from(rounds).unwrap_or(u32::MAX);
                }
            }
            None if self.recent.len() >= CALLS => turn = turn.max(self.recent[self.recent.len() - CALLS] + WINDOW),
            None => {}
        }
        if self.recent.len() >= CALLS {
            self.recent.pop_front();
        }
        self.recent.push_back(turn);
        self.shards.retain(|_, last| *last + PER_SHARD > now);
        self.shards.insert(shard.to_owned(), turn);
        (turn, self.changes)
    }
}

#[cfg(test)]
mod tests {
    use futures::future::join_all;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn no_second_has_more_than_five_calls_and_none_waits_without_need() {
        let (pace, began) = (Pace::default(), Instant::now());
        let shards: Vec<_> = (0..23).map(|shard| format!("shard-{shard}")).collect();
        let mut calls = join_all(shards.iter().map(async |shard| {
            pace.turn(shard).await;
            began.elapsed()
        }))
        .await;
        calls.sort();
        assert_eq!(calls[..CALLS], [Duration::ZERO; CALLS]);
        assert!(calls.windows(CALLS + 1).all(|six| six[CALLS] - six[0] >= WINDOW), "{calls:?}");
        assert!(calls[22] <= WINDOW * 4 + Duration::from_millis(5), "{calls:?}");
    }

    /// Several workers, each with so many shards.
    struct Fleet {
        paces: Vec<Pace>,
        began: Instant,
        calls: Mutex<Vec<Duration>>,
    }

    impl Fleet {
        fn new(workers: usize) -> Self {
            let paces: Vec<_> = (0..workers).map(|_| Pace::default()).collect();
            paces.iter().for_each(Pace::expect_share);
            Self { paces, began: Instant::now(), calls: Mutex::default() }
        }

        async fn subscribe(&self, worker: usize, shards: usize) {
            let calls = (0..shards).map(async |shard| {
                self.paces[worker].turn(&shard.to_string()).await;
                self.calls.lock().unwrap().push(self.began.elapsed());
            });
            join_all(calls).await;
        }

        /// The most calls within a second, and when the last one was made.
        fn told(&self) -> (usize, Duration) {
            let mut calls = self.calls.lock().unwrap().clone();
            calls.sort();
            let within = |first: &Duration| calls.iter().filter(|call| *call >= first && **call < *first + Duration::from_secs(1)).count();
            (calls.iter().map(within).max().unwrap_or(0), calls.last().copied().unwrap_or_default())
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_fleet_that_starts_at_once_calls_in_turns() {
        for (workers, shards) in [(2, 10), (10, 10), (40, 5), (100, 1)] {
            let fleet = Fleet::new(workers);
            let shares = async {
                // As its workers come to know each other.
                for known in [workers.div_ceil(2).max(2), workers] {
                    tokio::time::sleep(Duration::from_millis(200)).await;
                    for (place, pace) in fleet.paces.iter().enumerate() {
                        // Their clocks differ by a little.
                        let time = Duration::from_millis(1_790_000_000_123 + 7 * (place as u64 % 5)) + fleet.began.elapsed();
                        pace.share(known, place.min(known - 1), time);
                    }
                }
            };
            tokio::join!(join_all((0..workers).map(|worker| fleet.subscribe(worker, shards))), shares);
            let (most, last) = fleet.told();
            assert!(most <= CALLS + 1, "{workers} workers: {most} calls in a second");
            let due = SLOT * u32::try_from(workers * (shards + 2)).unwrap();
            assert!(last <= due + Duration::from_secs(1), "{workers} workers: {last:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn who_hears_of_no_other_goes_on_alone() {
        let (pace, began) = (Pace::default(), Instant::now());
        pace.expect_share();
        pace.turn("a").await;
        assert_eq!(began.elapsed().as_millis(), ALONE_AFTER.as_millis());
        pace.turn("b").await;
        assert_eq!(began.elapsed().as_millis(), ALONE_AFTER.as_millis());
    }

    #[tokio::test(start_paused = true)]
    async fn each_worker_has_a_time_of_its_own_in_each_round() {
        // Workers, this one's place, the time in milliseconds => milliseconds until its turn.
        for (workers, place, time, ahead) in [
            (1, 0, 0, None),
            (4, 0, 0, Some(0)),
            (4, 2, 0, Some(500)),
            (4, 2, 499, Some(1)),
            (4, 2, 500, Some(0)),
            (4, 2, 501, Some(999)),
            (4, 2, 10_600, Some(900)),
            (4, 6, 600, Some(900)), // who counts fewer workers than there are
            (2, 1, 300, Some(450)),
        ] {
            let pace = Pace::default();
            pace.share(workers, place, Duration::from_millis(time));
            let turn = pace.lock().round.map(|round| round.turn.duration_since(Instant::now()));
            assert_eq!(turn, ahead.map(Duration::from_millis), "{workers} {place} {time}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_that_waits_to_hear_who_shares_the_consumer_goes_on_when_it_hears() {
        let (pace, began) = (Pace::default(), Instant::now());
        pace.expect_share();
        let heard = Duration::from_millis(100);
        let share = async {
            tokio::time::sleep(heard).await;
            pace.share(1, 0, Duration::ZERO);
        };
        let (until, ()) = tokio::join!(pace.turn("a"), share);
        assert_eq!((began.elapsed(), until), (heard, began + heard + LATE), "it may be made a little later, and no more");
    }

    #[tokio::test(start_paused = true)]
    async fn calls_of_other_shards_do_not_shorten_the_wait_of_one() {
        let (pace, began) = (Pace::default(), Instant::now());
        for shard in ["a", "b", "c", "a"] {
            pace.turn(shard).await;
        }
        assert!(began.elapsed() >= PER_SHARD, "{:?}", began.elapsed());
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
