//! The log of outages: one line when calls to a service begin to fail, a summary a minute, one line
//! when the service answers again.
//!
//! A worker has dozens of shards, and each of them repeats its calls. Without a common account an
//! outage of a minute writes thousands of lines that all say the same. [`OutageLedger`] decides as
//! plain data what is worth a line; [`OutageLog`] writes it. Time is given by the caller.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Time between two summaries of one outage.
pub const SUMMARY_INTERVAL: Duration = Duration::from_secs(60);

/// An outage ends only when nothing has failed for this long. A service that fails every second call
/// has one outage, not hundreds.
pub const QUIET: Duration = Duration::from_secs(10);

/// A caller that has neither failed nor succeeded for this long is gone (its shard went to another
/// worker), so the end of an outage does not wait for it.
pub const GONE: Duration = Duration::from_secs(120);

/// A failure so long after the last one of its cause begins another outage.
pub const FORGOTTEN: Duration = Duration::from_secs(15 * 60);

/// The kind of a failure: failures of one cause are reported together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Cause {
    /// The service that fails, as a reader of the log knows it: "lease table", "Kinesis".
    pub service: &'static str,
    /// The class of its error: "throttled", "no answer", "access denied".
    pub class: &'static str,
}

impl fmt::Display for Cause {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}: {}", self.service, self.class)
    }
}

/// The line that a failure deserves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Report {
    /// The first failure of this cause: a warning.
    Began,
    /// The outage goes on and no line was written for [`SUMMARY_INTERVAL`]: a warning.
    GoesOn(Extent),
    /// Nothing that is not known yet: debug.
    Known,
}

/// The size of an outage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Callers (shards, and the worker's own tasks) that have failed in this outage.
    pub affected: usize,
    /// Calls that have failed in this outage.
    pub failures: u64,
    /// Time from the first failure to the last.
    pub duration: Duration,
}

/// An outage that is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ended {
    /// Its cause.
    pub cause: Cause,
    /// Its size.
    pub extent: Extent,
}

/// The outages that a worker sees, as plain data. Times are of any clock that never goes backwards.
#[derive(Debug, Default)]
pub struct OutageLedger {
    outages: BTreeMap<Cause, Outage>,
}

#[derive(Debug)]
struct Outage {
    began: Duration,
    last_failure: Duration,
    last_line: Duration,
    failures: u64,
    affected: BTreeSet<String>,
    /// Callers whose last call failed: the first failure since their last success, and the last.
    failing: BTreeMap<String, (Duration, Duration)>,
    /// The last error, in words.
    last_error: String,
}

/// Calls to a service that fail, and have not succeeded since.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failing {
    /// The time of the first of these failures.
    pub since: Duration,
    /// The time of the last one.
    pub last: Duration,
    /// The last error, in words.
    pub error: String,
}

impl Outage {
    fn extent(&self) -> Extent {
        Extent { affected: self.affected.len(), failures: self.failures, duration: self.last_failure.saturating_sub(self.began) }
    }

    fn is_over(&self, now: Duration) -> bool {
        self.failing.is_empty() && now.saturating_sub(self.last_failure) >= QUIET
    }
}

impl OutageLedger {
    /// Notes that a call of `caller` failed, and returns the line that this deserves.
    pub fn failed(&mut self, cause: Cause, caller: &str, now: Duration, error: &dyn fmt::Display) -> Report {
        let mut report = Report::Known;
        // A service that is called seldom has no success to end an outage by: failures weeks apart are not one.
        if self.outages.get(&cause).is_some_and(|outage| now.saturating_sub(outage.last_failure) >= FORGOTTEN) {
            self.outages.remove(&cause);
        }
        let outage = self.outages.entry(cause).or_insert_with(|| {
            report = Report::Began;
            Outage {
                began: now,
                last_failure: now,
                last_line: now,
                failures: 0,
                affected: BTreeSet::new(),
                failing: BTreeMap::new(),
                last_error: String::new(),
            }
        });
        outage.failures += 1;
        outage.last_failure = now;
        if !outage.affected.contains(caller) {
            outage.affected.insert(caller.to_owned());
        }
        outage.failing.entry(caller.to_owned()).or_insert((now, now)).1 = now;
        outage.last_error = error.to_string();
        if now.saturating_sub(outage.last_line) >= SUMMARY_INTERVAL {
            outage.last_line = now;
            report = Report::GoesOn(outage.extent());
        }
        report
    }

    /// Notes that a call of `caller` to `service` was answered, and returns the outages that are
    /// over by now.
    ///
    /// They may be of another service: one that is called seldom has answered all that its callers
    /// asked, but too early to tell, and nobody calls it again.
    pub fn succeeded(&mut self, service: &str, caller: &str, now: Duration) -> Vec<Ended> {
        let mut ended = Vec::new();
        self.outages.retain(|cause, outage| {
            if cause.service == service {
                outage.failing.remove(caller);
                outage.failing.retain(|_, (_, last)| now.saturating_sub(*last) < GONE);
            }
            if outage.is_over(now) {
                ended.push(Ended { cause: *cause, extent: outage.extent() });
            }
            !outage.is_over(now)
        });
        ended
    }

    /// The calls of `callers` to `service` that fail now. A caller that is [gone](GONE) does not
    /// count, nor one whose last call succeeded, although its outage may go on.
    pub fn failing(&self, service: &str, callers: impl Fn(&str) -> bool, now: Duration) -> Option<Failing> {
        let of_service = self.outages.iter().filter(|(cause, _)| cause.service == service);
        let failing = of_service.flat_map(|(_, outage)| {
            let failing = outage.failing.iter().filter(|(caller, _)| callers(caller));
            failing.map(|(_, (since, last))| (*since, *last, outage.last_error.as_str()))
        });
        let failing = failing.filter(|(_, last, _)| now.saturating_sub(*last) < GONE);
        failing.fold(None, |all: Option<Failing>, (since, last, error)| match all {
            Some(all) if all.last >= last => Some(Failing { since: all.since.min(since), ..all }),
            all => {
                let since = all.map_or(since, |all| all.since.min(since));
                Some(Failing { since, last, error: error.to_owned() })
            }
        })
    }

    /// The causes of the outages that are not over, in order.
    pub fn causes(&self) -> impl Iterator<Item = Cause> {
        self.outages.keys().copied()
    }
}

/// The outages of a worker, written to its log. Clones share one ledger.
#[derive(Clone, Debug, Default)]
pub struct OutageLog(Arc<Mutex<OutageLedger>>);

impl OutageLog {
    /// Notes and logs a failed call. `caller` is the shard, or the worker's task, that repeats it;
    /// `now` is boot time.
    pub fn failed(&self, cause: Cause, caller: &str, now: Duration, error: &dyn fmt::Display) {
        let Cause { service, class } = cause;
        // Not in the match itself: nothing is logged under the lock, or a subscriber that blocks would
        // keep the leases' thread from it.
        let report = self.lock().failed(cause, caller, now, error);
        match report {
            Report::Began => tracing::warn!(
                service, class, caller, %error,
                "calls fail and are repeated; failures of this cause are summed up once a minute"
            ),
            Report::GoesOn(Extent { affected, failures, duration }) => tracing::warn!(
                service, class, affected, failures, ?duration, %error,
                "calls still fail and are repeated"
            ),
            Report::Known => {
                tracing::debug!(service, class, caller, %error, "call failed; it is repeated");
            }
        }
    }

    /// Notes a call to `service` that was answered, and logs the outages that are over by now.
    pub fn succeeded(&self, service: &'static str, caller: &str, now: Duration) {
        let ended = self.lock().succeeded(service, caller, now);
        for Ended { cause, extent } in ended {
            let Extent { affected, failures, duration } = extent;
            let Cause { service, class } = cause;
            tracing::info!(service, class, affected, failures, ?duration, "calls are answered again");
        }
    }

    /// The calls to `service` that fail at this boot time: see [`OutageLedger::failing`].
    #[must_use]
    pub fn failing(&self, service: &str, callers: impl Fn(&str) -> bool, now: Duration) -> Option<Failing> {
        self.lock().failing(service, callers, now)
    }

    /// The causes of the outages that are not over.
    #[must_use]
    pub fn causes(&self) -> Vec<Cause> {
        self.lock().causes().collect()
    }

    fn lock(&self) -> MutexGuard<'_, OutageLedger> {
        // An account for people: one that a panic left half changed does no harm.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const AWAY: Cause = Cause { service: "lease table", class: "no answer" };
    const THROTTLED: Cause = Cause { service: "lease table", class: "throttled" };
    const STREAM: Cause = Cause { service: "Kinesis", class: "no answer" };

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn extent(affected: usize, failures: u64, seconds: u64) -> Extent {
        Extent { affected, failures, duration: at(seconds) }
    }

    #[test]
    fn an_outage_of_many_shards_is_one_line_and_then_one_a_minute() {
        let mut ledger = OutageLedger::default();
        let mut lines = Vec::new();
        for second in 0..=125 {
            for shard in ["a", "b", "c", "d"] {
                match ledger.failed(AWAY, shard, at(second), &"broken") {
                    Report::Known => {}
                    report => lines.push((second, shard, report)),
                }
            }
        }
        let summary = |shards, failures, second| (second, "a", Report::GoesOn(extent(shards, failures, second)));
        assert_eq!(lines, [(0, "a", Report::Began), summary(4, 241, 60), summary(4, 481, 120)]);
    }

    #[test]
    fn it_is_over_when_all_have_succeeded_and_nothing_has_failed_for_a_while() {
        let mut ledger = OutageLedger::default();
        ledger.failed(AWAY, "a", at(100), &"broken");
        ledger.failed(AWAY, "b", at(103), &"broken");
        assert_eq!(ledger.succeeded("lease table", "a", at(104)), [], "b still fails");
        assert_eq!(ledger.succeeded("Kinesis", "b", at(105)), [], "another service");
        assert_eq!(ledger.succeeded("lease table", "a", at(106)), [], "b still fails");
        assert_eq!(ledger.succeeded("lease table", "b", at(107)), [], "too soon to tell");
        let ended = Ended { cause: AWAY, extent: extent(2, 2, 3) };
        assert_eq!(ledger.succeeded("lease table", "a", at(113)), [ended]);
        assert_eq!(ledger.succeeded("lease table", "a", at(114)), [], "said once");
        assert_eq!(ledger.failed(AWAY, "a", at(200), &"broken"), Report::Began, "another outage");
    }

    #[test]
    fn a_service_that_fails_now_and_then_has_one_outage() {
        let mut ledger = OutageLedger::default();
        let mut lines = 0;
        for second in 0..300 {
            let report = ledger.failed(THROTTLED, "a", at(second), &"broken");
            lines += usize::from(report != Report::Known);
            lines += ledger.succeeded("lease table", "a", at(second)).len();
        }
        assert_eq!(lines, 5, "the beginning, and a summary each minute");
    }

    #[test]
    fn who_still_fails_keeps_it_open_until_it_is_gone() {
        let mut ledger = OutageLedger::default();
        ledger.failed(THROTTLED, "hot", at(0), &"broken");
        ledger.failed(THROTTLED, "a", at(0), &"broken");
        assert_eq!(ledger.succeeded("lease table", "a", at(119)), []);
        assert_eq!(ledger.succeeded("lease table", "a", at(120)).len(), 1, "its shard is elsewhere");
    }

    #[test]
    fn an_outage_of_a_service_that_is_called_seldom_ends_by_any_answer() {
        const QUEUE: Cause = Cause { service: "dead-letter queue", class: "no answer" };
        let over = [Ended { cause: QUEUE, extent: extent(1, 2, 90) }];
        // the queue's answer, the lease table's answer => is it over by the latter?
        for (queue, table, is_over) in [(None, 5_000, false), (Some(95), 99, false), (Some(95), 100, true), (Some(91), 3_600, true)] {
            let mut ledger = OutageLedger::default();
            ledger.failed(QUEUE, "a", at(0), &"broken");
            ledger.failed(QUEUE, "a", at(90), &"broken");
            if let Some(queue) = queue {
                assert_eq!(ledger.succeeded("dead-letter queue", "a", at(queue)), [], "too soon to tell");
            }
            let ended = ledger.succeeded("lease table", "b", at(table));
            assert_eq!(ended, if is_over { &over[..] } else { &[] }, "{queue:?} {table}");
            let next = ledger.failed(QUEUE, "a", at(table + 1), &"broken");
            assert_eq!(next == Report::Began, is_over || queue.is_none(), "{queue:?} {table}");
        }
    }

    #[test]
    fn causes_are_told_apart() {
        let mut ledger = OutageLedger::default();
        for cause in [AWAY, THROTTLED, STREAM] {
            assert_eq!(ledger.failed(cause, "a", at(0), &"broken"), Report::Began);
        }
        assert_eq!(ledger.causes().collect::<Vec<_>>(), [STREAM, AWAY, THROTTLED]);
        let ended = ledger.succeeded("lease table", "a", at(10));
        assert_eq!(ended.iter().map(|ended| ended.cause).collect::<Vec<_>>(), [AWAY, THROTTLED]);
    }

    #[test]
    fn failures_far_apart_are_outages_of_their_own() {
        let mut ledger = OutageLedger::default();
        for second in [0, FORGOTTEN.as_secs(), 3 * FORGOTTEN.as_secs()] {
            assert_eq!(ledger.failed(AWAY, "a", at(second), &"broken"), Report::Began, "{second}");
        }
        assert_ne!(ledger.failed(AWAY, "a", at(4 * FORGOTTEN.as_secs() - 1), &"broken"), Report::Began);
    }

    #[test]
    fn what_fails_now_is_known_since_its_first_failure_and_until_a_success() {
        let mut ledger = OutageLedger::default();
        let failing = |ledger: &OutageLedger, second| {
            let failing = ledger.failing("lease table", |caller| caller != "other", at(second));
            failing.map(|it| (it.since.as_secs(), it.last.as_secs(), it.error))
        };
        assert_eq!(failing(&ledger, 0), None);
        ledger.failed(STREAM, "a", at(1), &"another service");
        ledger.failed(AWAY, "other", at(1), &"another caller");
        assert_eq!(failing(&ledger, 1), None);
        ledger.failed(AWAY, "a", at(2), &"no answer");
        ledger.failed(THROTTLED, "b", at(4), &"throttled");
        ledger.failed(AWAY, "a", at(6), &"still no answer");
        assert_eq!(failing(&ledger, 7), Some((2, 6, "still no answer".to_owned())));
        assert_eq!(ledger.succeeded("lease table", "a", at(8)), []);
        assert_eq!(failing(&ledger, 8), Some((4, 4, "throttled".to_owned())), "b still fails");
        assert_eq!(failing(&ledger, 124), None, "b is gone");
        ledger.succeeded("lease table", "b", at(9));
        assert_eq!(failing(&ledger, 9), None, "though the outage is not over");
    }

    #[test]
    fn of_several_causes_the_first_failure_and_the_last_error_are_told() {
        // Seconds of the first and the last failure of each cause => what is told.
        for (away, throttled, expected) in [
            ((2, 6), (3, 4), (2, 6, "no answer")),
            ((3, 6), (2, 4), (2, 6, "no answer")),
            ((2, 4), (3, 6), (2, 6, "throttled")),
            ((3, 4), (2, 6), (2, 6, "throttled")),
        ] {
            let mut ledger = OutageLedger::default();
            for (cause, (first, last)) in [(AWAY, away), (THROTTLED, throttled)] {
                ledger.failed(cause, "a", at(first), &"before");
                ledger.failed(cause, "a", at(last), &cause.class);
            }
            let (since, last, error) = expected;
            let expected = Failing { since: at(since), last: at(last), error: error.to_owned() };
            assert_eq!(ledger.failing("lease table", |_| true, at(7)), Some(expected), "{away:?} {throttled:?}");
        }
    }

    #[test]
    fn the_log_and_its_clones_keep_one_account() {
        let log = OutageLog::default();
        let clone = log.clone();
        log.failed(AWAY, "a", at(2), &"no answer");
        assert_eq!((clone.causes(), log.causes()), (vec![AWAY], vec![AWAY]));
        let failing = |second| clone.failing("lease table", |caller| caller == "a", at(second)).map(|failing| failing.error);
        assert_eq!(failing(3), Some("no answer".to_owned()));
        clone.succeeded("lease table", "a", at(20));
        assert_eq!((log.causes(), failing(20)), (vec![], None));
    }
}
