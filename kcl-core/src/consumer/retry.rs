//! What follows a failed call: another attempt, halves of the batch, or the dead-letter queue. Functions of plain data.

use std::collections::BTreeMap;
use std::time::Duration;

use kcl_checkpoint::Timestamp;
use kcl_checkpoint::planted::{Bug, is_planted};

use super::call::{Advice, CallFailure};
use super::schedule::Entry;
use crate::dead_letter::Condition;
use crate::error::ConfigError;
use crate::record::Record;

/// How often, and how soon, what failed is tried again, and when it is given up.
///
/// ```
/// use std::time::Duration;
/// use kcl_core::RetryPolicy;
///
/// let policy = RetryPolicy { max_attempts: 10, attempt_deadline: Some(Duration::from_secs(5)), ..RetryPolicy::default() };
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RetryPolicy {
    /// Attempts at a record that is known to fail, the first included. To find out which record of a batch fails takes attempts that
    /// do not count. 1 to 10,000; default 5.
    pub max_attempts: u32,
    /// The longest wait after a first failure; it doubles with each further one. Each wait is drawn at random up to its limit.
    /// 1 ms to 1 h; default 200 ms.
    pub first_backoff: Duration,
    /// The longest wait at all. `first_backoff` to 1 h; default 10 s.
    pub max_backoff: Duration,
    /// A record that has failed and arrived longer ago than this is not tried again, whatever attempts it has left. Every record is tried
    /// once, however old. At least 1 s; `None`, the default: age does not matter.
    pub max_age: Option<Duration>,
    /// How long one call of [`process_records`](crate::RecordProcessor::process_records) may take. Then the call is dropped at its next
    /// await, counts as a failed attempt, and the processor is made anew. 1 ms up to the handoff timeout, which is how long another worker
    /// waits for the shard; `None`, the default: no deadline.
    pub attempt_deadline: Option<Duration>,
    /// How often a record may be in work, alone, when its process dies, before it goes to the dead-letter queue unseen. 1 to 100; default 3.
    pub max_deaths: u32,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self {
            max_attempts: 5,
            first_backoff: Duration::from_millis(200),
            max_backoff: Duration::from_secs(10),
            max_age: None,
            attempt_deadline: None,
            max_deaths: 3,
        }
    }
}

impl RetryPolicy {
    pub(crate) fn validate(&self, handoff_timeout: Duration) -> Result<(), ConfigError> {
        let hour = Duration::from_secs(3600);
        if !(1..=10_000).contains(&self.max_attempts) {
            return Err(ConfigError::new("retry_policy.max_attempts", self.max_attempts, "must be 1 to 10000"));
        }
        if !(Duration::from_millis(1)..=hour).contains(&self.first_backoff) {
            return Err(ConfigError::new("retry_policy.first_backoff", self.first_backoff, "must be 1 ms to 1 h"));
        }
        if !(self.first_backoff..=hour).contains(&self.max_backoff) {
            return Err(ConfigError::new("retry_policy.max_backoff", self.max_backoff, "must be first_backoff to 1 h"));
        }
        if let Some(age) = self.max_age.filter(|age| *age < Duration::from_secs(1)) {
            return Err(ConfigError::new("retry_policy.max_age", age, "must be at least 1 s"));
        }
        if let Some(deadline) = self.attempt_deadline.filter(|deadline| !(Duration::from_millis(1)..=handoff_timeout).contains(deadline)) {
            let rule = format!(
                "must be 1 ms to {handoff_timeout:?}, the handoff_timeout: a call that may take longer than another worker waits for the shard \
                 would be repeated by that worker"
            );
            return Err(ConfigError::new("retry_policy.attempt_deadline", deadline, rule));
        }
        if !(1..=100).contains(&self.max_deaths) {
            return Err(ConfigError::new("retry_policy.max_deaths", self.max_deaths, "must be 1 to 100"));
        }
        Ok(())
    }

    /// Why a record is given up after one more failure; `None`: it is tried again.
    fn given_up(&self, record: &Record, failures: u32, advice: Advice, now: Timestamp) -> Option<Condition> {
        if advice == Advice::Poison || failures >= self.max_attempts {
            return Some(Condition::RetryAttemptsExhausted);
        }
        let age = Duration::from_millis(now.as_millis().saturating_sub(record.approximate_arrival()?.as_millis()));
        self.max_age.filter(|most| age > *most).map(|_| Condition::RecordAgeExceeded)
    }
}

/// Whose fault a failed call was, by index in its batch.
#[derive(Debug)]
pub(super) enum Blame {
    /// One of its records', or all of them: nobody can tell.
    Unknown(CallFailure),
    /// This one's: those before it are done, those after it were not tried.
    From(usize, CallFailure),
    /// These records', each for itself: the others are done.
    These(BTreeMap<usize, CallFailure>),
}

/// A record that is given up.
#[derive(Debug)]
pub(super) struct Condemned {
    pub(super) entry: Entry,
    pub(super) failure: CallFailure,
    pub(super) condition: Condition,
}

/// What becomes of the records of a failed call.
#[derive(Debug, Default)]
pub(super) struct Judged {
    /// Done.
    pub(super) finished: Vec<Record>,
    /// To the dead-letter queue.
    pub(super) condemned: Vec<Condemned>,
    /// To be tried, in order.
    pub(super) back: Vec<Entry>,
    /// Whether the next attempt waits: not if only the batch was divided because something in it is poison.
    pub(super) wait: bool,
    /// The processor wants the shard to stop.
    pub(super) stop: bool,
}

/// What becomes of the records of a failed call, the first `covered` of which the checkpoint covers.
///
/// Those are finished: the processor has said so by a checkpoint or a commit before it failed, and after a crash they would not come again either. One that the
/// processor names as failed is not: its word on this record is the last one, and nothing that failed is passed over.
pub(super) fn judge(mut entries: Vec<Entry>, blame: Blame, covered: usize, now: Timestamp, policy: &RetryPolicy) -> Judged {
    if covered == 0 || matches!(blame, Blame::These(_)) {
        return judge_open(entries, blame, now, policy);
    }
    let open = entries.split_off(covered.min(entries.len()));
    let mut judged = match blame {
        Blame::Unknown(failure) if open.is_empty() => Judged { stop: failure.advice == Advice::Stop, ..Judged::default() },
        // It may have been in no commit, and not been tried: it is not to blame yet.
        Blame::Unknown(failure) if open.len() == 1 && failure.advice == Advice::Retry => {
            Judged { back: open, wait: true, ..Judged::default() }
        }
        Blame::From(index, failure) if index < entries.len() => {
            // It failed after it had committed: what comes after was not tried.
            let mut judged = Judged { stop: failure.advice == Advice::Stop, ..Judged::default() };
            judged.wait = failure.advice == Advice::Retry && !open.is_empty();
            judged.back = open;
            if failure.advice == Advice::Poison {
                let entry = entries.remove(index);
                one_failed(entry, failure, now, policy, &mut judged);
            }
            judged
        }
        Blame::From(index, failure) => judge_open(open, Blame::From(index - entries.len(), failure), now, policy),
        blame => judge_open(open, blame, now, policy),
    };
    judged.finished.splice(..0, entries.into_iter().map(|entry| entry.record));
    judged
}

fn judge_open(mut entries: Vec<Entry>, blame: Blame, now: Timestamp, policy: &RetryPolicy) -> Judged {
    let mut judged = Judged::default();
    match blame {
        // A batch of one can't be in doubt about which record failed.
        Blame::Unknown(failure) if entries.len() == 1 => return judge_open(entries, Blame::From(0, failure), now, policy),
        Blame::Unknown(failure) => {
            judged.stop = failure.advice == Advice::Stop;
            judged.wait = failure.advice == Advice::Retry;
            for entry in &mut entries {
                entry.history.attempts += 1;
                entry.history.first_failure.get_or_insert(now);
            }
            // The halves are tried each for itself. A call that the processor has stopped says nothing about its records.
            if !judged.stop {
                let half = entries.len() / 2;
                entries[half].cut = true;
            }
            judged.back = entries;
        }
        Blame::From(culprit, failure) => {
            let mut rest = entries.split_off(culprit.min(entries.len()));
            judged.finished = entries.into_iter().map(|entry| entry.record).collect();
            if let Some(next) = rest.get_mut(1) {
                next.cut = true;
            }
            let mut rest = rest.into_iter();
            if let Some(first) = rest.next() {
                one_failed(first, failure, now, policy, &mut judged);
            }
            judged.back.extend(rest);
        }
        Blame::These(mut failures) => {
            for (index, entry) in entries.into_iter().enumerate() {
                match failures.remove(&index) {
                    None if is_planted(Bug::NeighboursRepeated) => judged.back.push(entry),
                    None => judged.finished.push(entry.record),
                    Some(failure) => one_failed(Entry { cut: true, ..entry }, failure, now, policy, &mut judged),
                }
            }
        }
    }
    judged
}

/// A record is known to have failed.
fn one_failed(mut entry: Entry, failure: CallFailure, now: Timestamp, policy: &RetryPolicy, judged: &mut Judged) {
    entry.history.attempts += 1;
    entry.history.first_failure.get_or_insert(now);
    if failure.advice == Advice::Stop {
        judged.stop = true;
        judged.back.push(entry);
        return;
    }
    entry.history.failures += 1;
    match policy.given_up(&entry.record, entry.history.failures, failure.advice, now) {
        Some(condition) => judged.condemned.push(Condemned { entry, failure, condition }),
        None => {
            judged.wait = true;
            judged.back.push(entry);
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::dead_letter::FailureKind;

    const NOW: Timestamp = Timestamp::from_millis(1_800_000_000_000);

    fn policy() -> RetryPolicy {
        RetryPolicy { max_attempts: 3, ..RetryPolicy::default() }
    }

    fn entries(count: u128) -> Vec<Entry> {
        (0..count).map(|number| Entry::new(Record::new(number.into(), None, Bytes::new(), Some(NOW)))).collect()
    }

    fn failure(advice: Advice) -> CallFailure {
        CallFailure { kind: FailureKind::Error, advice, chain: vec!["no".to_owned()] }
    }

    fn number(record: &Record) -> u128 {
        record.sequence_number().into_words().1
    }

    /// finished, condemned, back (with a mark where a call ends before it), whether it waits
    fn seen(judged: &Judged) -> (Vec<u128>, Vec<u128>, Vec<String>, bool) {
        (
            judged.finished.iter().map(number).collect(),
            judged.condemned.iter().map(|condemned| number(&condemned.entry.record)).collect(),
            judged.back.iter().map(|entry| format!("{}{}", if entry.cut { "|" } else { "" }, number(&entry.record))).collect(),
            judged.wait,
        )
    }

    fn text(back: &[&str]) -> Vec<String> {
        back.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_known_culprit_is_tried_alone_and_its_neighbours_are_not_repeated() {
        let judged = judge(entries(5), Blame::From(2, failure(Advice::Retry)), 0, NOW, &policy());
        assert_eq!(seen(&judged), (vec![0, 1], vec![], text(&["2", "|3", "4"]), true));
        assert_eq!(judged.back[0].history, History { attempts: 1, failures: 1, first_failure: Some(NOW) });
        assert_eq!(judged.back[1].history, History::default(), "it was not tried");
    }

    #[test]
    fn attempts_end_in_the_queue() {
        let mut left = entries(1);
        for attempt in 1..=3 {
            let judged = judge(left, Blame::Unknown(failure(Advice::Retry)), 0, NOW, &policy());
            if attempt < 3 {
                assert_eq!(seen(&judged), (vec![], vec![], text(&["0"]), true));
            } else {
                assert_eq!(seen(&judged), (vec![], vec![0], vec![], false));
                assert_eq!(judged.condemned[0].condition, Condition::RetryAttemptsExhausted);
                assert_eq!(judged.condemned[0].entry.history.attempts, 3);
            }
            left = judged.back;
        }
    }

    #[test]
    fn poison_needs_no_second_attempt() {
        let judged = judge(entries(3), Blame::From(1, failure(Advice::Poison)), 0, NOW, &policy());
        assert_eq!(seen(&judged), (vec![0], vec![1], text(&["|2"]), false));
    }

    #[test]
    fn a_batch_in_doubt_is_halved_and_nobody_is_blamed() {
        let judged = judge(entries(5), Blame::Unknown(failure(Advice::Retry)), 0, NOW, &policy());
        assert_eq!(seen(&judged), (vec![], vec![], text(&["0", "1", "|2", "3", "4"]), true));
        assert!(judged.back.iter().all(|entry| entry.history.failures == 0 && entry.history.attempts == 1));
        let poison = judge(entries(2), Blame::Unknown(failure(Advice::Poison)), 0, NOW, &policy());
        assert_eq!(seen(&poison), (vec![], vec![], text(&["0", "|1"]), false), "something is poison: waiting does not help");
    }

    #[test]
    fn records_that_failed_for_themselves_leave_the_others_done() {
        let failures = BTreeMap::from([(1, failure(Advice::Retry)), (3, failure(Advice::Poison)), (4, failure(Advice::Retry))]);
        let judged = judge(entries(5), Blame::These(failures), 0, NOW, &policy());
        assert_eq!(seen(&judged), (vec![0, 2], vec![3], text(&["|1", "|4"]), true));
    }

    #[test]
    fn what_the_checkpoint_covers_is_finished_although_the_call_fails() {
        let retry = || failure(Advice::Retry);
        let judge = |blame, covered| seen(&super::judge(entries(5), blame, covered, NOW, &policy()));
        assert_eq!(judge(Blame::Unknown(retry()), 3), (vec![0, 1, 2], vec![], text(&["3", "|4"]), true));
        assert_eq!(judge(Blame::Unknown(retry()), 5), (vec![0, 1, 2, 3, 4], vec![], vec![], false));
        assert_eq!(judge(Blame::Unknown(retry()), 9), (vec![0, 1, 2, 3, 4], vec![], vec![], false));
        assert_eq!(judge(Blame::From(4, retry()), 3), (vec![0, 1, 2, 3], vec![], text(&["4"]), true));
        // it has committed the record in work, and failed then: the others were not tried
        assert_eq!(judge(Blame::From(2, retry()), 3), (vec![0, 1, 2], vec![], text(&["3", "4"]), true));
        assert_eq!(judge(Blame::From(4, retry()), 5), (vec![0, 1, 2, 3, 4], vec![], vec![], false));
        // what it calls poison, or names as failed, is not passed over all the same
        assert_eq!(judge(Blame::From(1, failure(Advice::Poison)), 3), (vec![0, 2], vec![1], text(&["3", "4"]), false));
        let these = Blame::These([1, 4].into_iter().map(|index| (index, retry())).collect());
        assert_eq!(judge(these, 3), (vec![0, 2, 3], vec![], text(&["|1", "|4"]), true));
        // the last one was in no commit, perhaps not even tried: it is not to blame yet, and is alone next time
        let unblamed = super::judge(entries(5), Blame::Unknown(retry()), 4, NOW, &RetryPolicy { max_attempts: 1, ..policy() });
        assert_eq!(seen(&unblamed), (vec![0, 1, 2, 3], vec![], text(&["4"]), true));
        assert_eq!(unblamed.back[0].history.failures, 0);
        let stopped = super::judge(entries(5), Blame::Unknown(failure(Advice::Stop)), 5, NOW, &policy());
        assert!(stopped.stop, "also if all was committed");
        let not_tried = super::judge(entries(5), Blame::From(2, failure(Advice::Stop)), 3, NOW, &policy());
        assert!(not_tried.stop && not_tried.back.iter().all(|entry| entry.history == History::default()));
    }

    #[test]
    fn a_stop_is_no_failure_of_the_record() {
        for blame in [Blame::From(0, failure(Advice::Stop)), Blame::Unknown(failure(Advice::Stop))] {
            let judged = judge(entries(3), blame, 0, NOW, &policy());
            assert!(judged.stop && !judged.wait);
            assert!(judged.back.iter().all(|entry| entry.history.failures == 0));
            assert_eq!(judged.back.len(), 3);
        }
    }

    #[test]
    fn what_has_failed_and_is_too_old_is_given_up() {
        let limit = RetryPolicy { max_age: Some(Duration::from_secs(60)), ..policy() };
        for (age, given_up) in [(60_000, false), (60_001, true)] {
            let judged =
                judge(entries(1), Blame::Unknown(failure(Advice::Retry)), 0, Timestamp::from_millis(NOW.as_millis() + age), &limit);
            assert_eq!(judged.condemned.first().map(|condemned| condemned.condition), given_up.then_some(Condition::RecordAgeExceeded));
        }
    }

    use super::super::schedule::History;

    #[test]
    fn an_impossible_policy_is_refused_by_name() {
        let sound = RetryPolicy::default();
        let patience = Duration::from_secs(30);
        sound.validate(patience).unwrap();
        RetryPolicy { attempt_deadline: Some(patience), ..sound }.validate(patience).unwrap();
        for (policy, setting) in [
            (RetryPolicy { max_attempts: 0, ..sound }, "retry_policy.max_attempts"),
            (RetryPolicy { first_backoff: Duration::ZERO, ..sound }, "retry_policy.first_backoff"),
            (RetryPolicy { max_backoff: Duration::from_millis(1), ..sound }, "retry_policy.max_backoff"),
            (RetryPolicy { max_age: Some(Duration::from_millis(1)), ..sound }, "retry_policy.max_age"),
            (RetryPolicy { attempt_deadline: Some(Duration::ZERO), ..sound }, "retry_policy.attempt_deadline"),
            (RetryPolicy { attempt_deadline: Some(Duration::from_secs(31)), ..sound }, "retry_policy.attempt_deadline"),
            (RetryPolicy { max_deaths: 0, ..sound }, "retry_policy.max_deaths"),
        ] {
            assert_eq!(policy.validate(patience).unwrap_err().setting, setting);
        }
    }
}
