//! The worker's reading of the stream: a worker that can't read it, while others may, lets go of its
//! shards and rests.
//!
//! A worker that reaches the lease table and not Kinesis would renew its leases for ever and read
//! nothing. Its shards are better off with another worker. If nobody can read, leases move from one
//! to the next now and then, which does no harm.
//!
//! Only time in which a shard was asked for and gave nothing counts. A shard that waits for its pace,
//! or for a processor to take what was read, is not failing, however long that takes.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use kcl_lease::{Clock, ShardId};

/// How long reading must have failed, with nothing read by any shard, until this worker is cut off.
const PATIENCE: Duration = Duration::from_secs(60);
/// The same if it knows of no other worker: there may be one, as only owners of leases are known.
const PATIENCE_ALONE: Duration = Duration::from_secs(300);
/// The first rest, and the longest one: each is twice as long as the one before, unless something was read in between.
const FIRST_REST: Duration = Duration::from_secs(120);
const LONGEST_REST: Duration = Duration::from_secs(3600);

/// A longer time between two signs that the process runs means that it stood still: its machine
/// slept, or a processor blocked the thread. It could not read then, whether the stream was there
/// or not.
const STANDSTILL: Duration = Duration::from_secs(5);

/// The success of a worker's reading so far. Times are boot time.
#[derive(Debug, Default)]
pub(crate) struct Reading(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    shards: BTreeMap<ShardId, Attempts>,
    /// Counts the readers of shards.
    readers: u64,
    /// When anything was read last.
    read: Duration,
    /// Workers that there are, this one included.
    workers: usize,
    rests: u32,
    rest_from: Duration,
    rest_until: Duration,
    /// When the service has answered last, whatever it was asked.
    reached: Duration,
    /// Since when it has not, as far as it was asked.
    unreached: Option<Duration>,
    /// The last sign that the process runs; `None`: nobody gives any.
    ran: Option<Duration>,
    /// When it last went on after it stood still.
    went_on: Duration,
}

impl State {
    /// When the process last went on, if that was not noted yet: whoever runs first after a
    /// standstill finds the last sign to be old.
    fn went_on(&self, now: Duration) -> Duration {
        let stood_still = self.ran.is_some_and(|ran| now.saturating_sub(ran) > STANDSTILL);
        if stood_still { now } else { self.went_on }
    }
}

/// The attempts to read one shard since the last that succeeded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Attempts {
    /// The reader that makes them, so that one that is replaced does not speak for its successor.
    reader: u64,
    /// The time that they have taken without success, up to the last one that ended.
    failed_for: Duration,
    /// The present one began then.
    asked: Option<Duration>,
}

impl Attempts {
    /// The time that was spent in attempts without success, of which only that after `read` counts.
    fn failing(self, read: Duration, now: Duration) -> Duration {
        let present = self.asked.map_or(Duration::ZERO, |asked| now.saturating_sub(asked));
        (self.failed_for + present).min(now.saturating_sub(read))
    }
}

impl Reading {
    /// The success of reading one shard, as its reader reports it from now on.
    pub(crate) fn of_shard(self: &Arc<Self>, shard: &ShardId, clock: Arc<dyn Clock>) -> ShardReading {
        let mut state = self.lock();
        state.readers += 1;
        let reader = state.readers;
        state.shards.insert(shard.clone(), Attempts { reader, ..Attempts::default() });
        ShardReading { reading: Arc::clone(self), shard: shard.clone(), reader, clock }
    }

    /// The service has answered something else.
    pub(crate) fn reached(&self, now: Duration) {
        let mut state = self.lock();
        (state.reached, state.unreached) = (now, None);
    }

    /// The service has not answered something else.
    pub(crate) fn unreached(&self, now: Duration) {
        self.lock().unreached.get_or_insert(now);
    }

    /// The process runs. To be told each second.
    pub(crate) fn runs(&self, now: Duration) {
        let mut state = self.lock();
        (state.went_on, state.ran) = (state.went_on(now), Some(now));
    }

    /// So many workers are alive.
    pub(crate) fn share(&self, workers: usize) {
        self.lock().workers = workers;
    }

    /// How long attempts to read this shard have gone on without success.
    pub(crate) fn failing_for(&self, shard: &ShardId, now: Duration) -> Duration {
        self.lock().shards.get(shard).map_or(Duration::ZERO, |attempts| attempts.failing(Duration::ZERO, now))
    }

    /// Returns true if the worker is cut off from the stream, as far as this shard tells: attempts to read it have failed over the
    /// patience, and nothing else was read meanwhile. Then the worker rests from now on.
    pub(crate) fn is_cut_off(&self, shard: &ShardId, now: Duration) -> bool {
        let mut state = self.lock();
        let patience = if state.workers > 1 { PATIENCE } else { PATIENCE_ALONE };
        let read = state.read.max(state.went_on(now));
        let cut_off = state.shards.get(shard).is_some_and(|attempts| attempts.failing(read, now) >= patience);
        if cut_off && state.rest_until <= now {
            state.rest_from = now;
            state.rest_until = now + FIRST_REST.saturating_mul(1 << state.rests.min(10)).min(LONGEST_REST);
            state.rests += 1;
        }
        cut_off
    }

    /// Returns true if the worker takes no leases now, but those that nobody else takes: after it has let go of some; and while the
    /// service does not answer it, even if it has none.
    pub(crate) fn rests(&self, now: Duration) -> bool {
        let state = self.lock();
        let silent = state.unreached.is_some_and(|since| now.saturating_sub(since.max(state.read)) >= PATIENCE);
        silent || now < state.rest_until || (state.rests > 0 && state.reached.max(state.read) < state.rest_from)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Plain data that no panic leaves half changed.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The reports of one shard's reader. Dropped with it.
#[derive(Debug)]
pub(crate) struct ShardReading {
    reading: Arc<Reading>,
    shard: ShardId,
    reader: u64,
    clock: Arc<dyn Clock>,
}

impl ShardReading {
    /// The shard is asked for, or asked for again after an attempt that failed; then the wait before the next call counts as failing too.
    pub(crate) fn asked(&self) {
        self.change(|_, attempts, now| _ = attempts.asked.get_or_insert(now));
    }

    /// Something was read, if only that there is nothing new.
    pub(crate) fn succeeded(&self) {
        self.change(|state, attempts, now| {
            (attempts.failed_for, attempts.asked) = (Duration::ZERO, None);
            (state.read, state.rests) = (now, 0);
        });
    }

    /// The reader has given up with an error, or waits for room. Until it asks again no time counts as failing.
    pub(crate) fn paused(&self) {
        self.change(|_, attempts, now| {
            if let Some(asked) = attempts.asked.take() {
                attempts.failed_for += now.saturating_sub(asked);
            }
        });
    }

    fn change(&self, change: impl FnOnce(&mut State, &mut Attempts, Duration)) {
        let mut state = self.reading.lock();
        let now = self.clock.boot_time();
        if let Some(mut attempts) = state.shards.get(&self.shard).copied().filter(|attempts| attempts.reader == self.reader) {
            change(&mut state, &mut attempts, now);
            state.shards.insert(self.shard.clone(), attempts);
        }
    }
}

impl Drop for ShardReading {
    fn drop(&mut self) {
        let mut state = self.reading.lock();
        if state.shards.get(&self.shard).is_some_and(|attempts| attempts.reader == self.reader) {
            state.shards.remove(&self.shard);
        }
    }
}

#[cfg(test)]
mod tests {
    use kcl_checkpoint::Timestamp;

    use super::*;

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    /// A boot time that stands where it is put.
    #[derive(Debug, Default)]
    struct Hand(Mutex<Duration>);

    impl Clock for Hand {
        fn boot_time(&self) -> Duration {
            *self.0.lock().unwrap()
        }

        fn wall_time(&self) -> Timestamp {
            unreachable!("only boot time counts")
        }
    }

    struct World {
        reading: Arc<Reading>,
        hand: Arc<Hand>,
    }

    impl World {
        fn new(workers: usize) -> Self {
            let reading = Arc::<Reading>::default();
            reading.share(workers);
            Self { reading, hand: Arc::default() }
        }

        fn shard(&self, name: &str) -> ShardReading {
            self.reading.of_shard(&name.into(), Arc::clone(&self.hand) as Arc<dyn Clock>)
        }

        fn at(&self, seconds: u64, report: impl FnOnce()) {
            *self.hand.0.lock().unwrap() = at(seconds);
            report();
        }

        fn is_cut_off(&self, shard: &str, seconds: u64) -> bool {
            self.reading.is_cut_off(&shard.into(), at(seconds))
        }

        fn rests(&self, seconds: u64) -> bool {
            self.reading.rests(at(seconds))
        }
    }

    #[test]
    fn a_worker_that_reads_nothing_rests_ever_longer_until_it_reads() {
        let world = World::new(2);
        let (one, other) = (world.shard("one"), world.shard("other"));
        world.at(90, || one.asked());
        world.at(95, || other.asked());
        world.at(100, || other.succeeded());
        world.at(100, || other.asked());
        world.reading.reached(at(9_999));
        assert!(!world.is_cut_off("one", 159) && !world.rests(159), "another shard was read");
        assert!(world.is_cut_off("one", 160) && world.rests(160));
        // all shards find out in the same moment: one rest
        assert!(world.is_cut_off("other", 161) && world.rests(279) && !world.rests(280));
        assert!(world.is_cut_off("one", 400) && world.rests(639) && !world.rests(640));
        world.at(700, || one.succeeded());
        world.at(700, || one.asked());
        assert!(world.is_cut_off("one", 800) && world.rests(919) && !world.rests(920));
    }

    #[test]
    fn no_rest_ends_before_the_service_has_answered() {
        let world = World::new(2);
        let shard = world.shard("one");
        world.at(0, || shard.asked());
        assert!(world.is_cut_off("one", 100) && world.rests(10_000));
        world.reading.reached(at(9_000));
        assert!(!world.rests(10_000));
    }

    #[test]
    fn a_worker_without_leases_rests_too_while_the_service_is_silent() {
        let world = World::new(0);
        world.reading.unreached(at(100));
        world.reading.unreached(at(150));
        assert!(!world.rests(159) && world.rests(160));
        world.reading.reached(at(161));
        assert!(!world.rests(161));
        world.reading.unreached(at(200));
        let shard = world.shard("one");
        world.at(250, || shard.succeeded());
        assert!(!world.rests(309) && world.rests(310));
    }

    #[test]
    fn only_time_in_which_the_shard_is_asked_for_counts() {
        let world = World::new(2);
        let shard = world.shard("one");
        assert!(!world.is_cut_off("one", 10_000), "never asked for");
        // Each attempt fails after 20 s, and is followed by 1,000 s in which a processor is at work.
        for (asked, cut_off) in [(10_000, false), (11_000, false), (12_000, true)] {
            world.at(asked, || shard.asked());
            world.at(asked + 20, || shard.paused());
            assert_eq!(world.is_cut_off("one", asked + 900), cut_off, "asked at {asked}");
        }
        assert_eq!(world.reading.failing_for(&"one".into(), at(20_000)), at(60));
        world.at(13_000, || shard.asked());
        world.at(13_001, || shard.succeeded());
        assert_eq!(world.reading.failing_for(&"one".into(), at(20_000)), at(0));
        assert!(!world.is_cut_off("one", 20_000), "it waits for its pace");
        drop(shard);
        assert!(!world.is_cut_off("one", 20_000));
    }

    #[test]
    fn a_reader_that_was_replaced_says_nothing_more() {
        let world = World::new(2);
        let old = world.shard("one");
        world.at(100, || old.asked());
        let new = world.shard("one");
        world.at(150, || old.paused());
        assert!(!world.is_cut_off("one", 1_000));
        world.at(1_000, || new.asked());
        drop(old);
        assert!(!world.is_cut_off("one", 1_059) && world.is_cut_off("one", 1_060));
    }

    #[test]
    fn a_process_that_stood_still_is_not_cut_off() {
        for told_first in [false, true] {
            let world = World::new(2);
            let shard = world.shard("one");
            (0..=100).for_each(|second| world.reading.runs(at(second)));
            world.at(50, || shard.asked());
            if told_first {
                world.reading.runs(at(200));
            }
            assert!(!world.is_cut_off("one", 200));
            (200..=300).for_each(|second| world.reading.runs(at(second)));
            assert!(!world.is_cut_off("one", 259) && world.is_cut_off("one", 260));
        }
    }

    #[test]
    fn a_worker_that_knows_of_no_other_is_more_patient() {
        let world = World::new(1);
        let shard = world.shard("one");
        world.at(0, || shard.asked());
        assert!(!world.is_cut_off("one", 299));
        assert!(world.is_cut_off("one", 300));
    }
}
