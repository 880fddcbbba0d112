//! Whether this worker can read the stream at all: one that can't, while others may, lets go of its shards and rests.
//!
//! A worker that reaches the lease table and not Kinesis would renew its leases for ever and read nothing. Its shards are better off with another
//! worker. If nobody can read, leases move from one to the next now and then, which does no harm.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// How long nothing at all may have been read, by any shard, until this worker is cut off.
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

/// What is known of a worker's reading. Times are boot time.
#[derive(Debug, Default)]
pub(crate) struct Reading(Mutex<State>);

#[derive(Clone, Copy, Debug, Default)]
struct State {
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

impl Reading {
    /// Something was read, if only that there is nothing new.
    pub(crate) fn succeeded(&self, now: Duration) {
        let mut state = self.lock();
        (state.read, state.rests) = (now, 0);
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

    /// Whether the worker is cut off from the stream, as far as a shard can tell that was read, or begun, at `since`. Then it rests from now on.
    pub(crate) fn is_cut_off(&self, since: Duration, now: Duration) -> bool {
        let mut state = self.lock();
        let patience = if state.workers > 1 { PATIENCE } else { PATIENCE_ALONE };
        let cut_off = now.saturating_sub(since.max(state.read).max(state.went_on(now))) >= patience;
        if cut_off && state.rest_until <= now {
            state.rest_from = now;
            state.rest_until = now + FIRST_REST.saturating_mul(1 << state.rests.min(10)).min(LONGEST_REST);
            state.rests += 1;
        }
        cut_off
    }

    /// Whether it takes no leases now, but those that nobody else takes: after it has let go of some; and while the service does not answer it, even
    /// if it has none.
    pub(crate) fn rests(&self, now: Duration) -> bool {
        let state = *self.lock();
        let silent = state.unreached.is_some_and(|since| now.saturating_sub(since.max(state.read)) >= PATIENCE);
        silent || now < state.rest_until || (state.rests > 0 && state.reached.max(state.read) < state.rest_from)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Plain data that no panic leaves half changed.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn a_worker_that_reads_nothing_rests_ever_longer_until_it_reads() {
        let reading = Reading::default();
        reading.share(2);
        reading.succeeded(at(100));
        reading.reached(at(9_999));
        assert!(!reading.is_cut_off(at(90), at(159)) && !reading.rests(at(159)));
        assert!(reading.is_cut_off(at(90), at(160)) && reading.rests(at(160)));
        // all shards find out in the same moment: one rest
        assert!(reading.is_cut_off(at(95), at(161)) && reading.rests(at(279)) && !reading.rests(at(280)));
        assert!(reading.is_cut_off(at(300), at(400)) && reading.rests(at(639)) && !reading.rests(at(640)));
        reading.succeeded(at(700));
        assert!(reading.is_cut_off(at(700), at(800)) && reading.rests(at(919)) && !reading.rests(at(920)));
    }

    #[test]
    fn no_rest_ends_before_the_service_has_answered() {
        let reading = Reading::default();
        reading.share(2);
        assert!(reading.is_cut_off(at(0), at(100)) && reading.rests(at(10_000)));
        reading.reached(at(9_000));
        assert!(!reading.rests(at(10_000)));
    }

    #[test]
    fn a_worker_without_leases_rests_too_while_the_service_is_silent() {
        let reading = Reading::default();
        reading.unreached(at(100));
        reading.unreached(at(150));
        assert!(!reading.rests(at(159)) && reading.rests(at(160)));
        reading.reached(at(161));
        assert!(!reading.rests(at(161)));
        reading.unreached(at(200));
        reading.succeeded(at(250));
        assert!(!reading.rests(at(309)) && reading.rests(at(310)));
    }

    #[test]
    fn a_shard_that_was_begun_just_now_has_its_time() {
        let reading = Reading::default();
        reading.share(2);
        assert!(!reading.is_cut_off(at(1_000), at(1_059)));
        assert!(reading.is_cut_off(at(1_000), at(1_060)));
    }

    #[test]
    fn a_process_that_stood_still_is_not_cut_off() {
        for told_first in [false, true] {
            let reading = Reading::default();
            reading.share(2);
            (0..=100).for_each(|second| reading.runs(at(second)));
            // Until then it was not read for 50 s.
            reading.succeeded(at(50));
            if told_first {
                reading.runs(at(200));
            }
            assert!(!reading.is_cut_off(at(50), at(200)));
            (200..=300).for_each(|second| reading.runs(at(second)));
            assert!(!reading.is_cut_off(at(50), at(259)) && reading.is_cut_off(at(50), at(260)));
        }
    }

    #[test]
    fn a_worker_that_knows_of_no_other_is_more_patient() {
        let reading = Reading::default();
        reading.share(1);
        assert!(!reading.is_cut_off(at(0), at(299)));
        assert!(reading.is_cut_off(at(0), at(300)));
    }
}
