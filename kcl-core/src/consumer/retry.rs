//! Decisions on the records of a call that has ended: finished, another attempt, halves of the batch,
//! or the dead-letter queue. Functions of plain data.

use std::collections::BTreeMap;
use std::time::Duration;

use kcl_checkpoint::planted::{Bug, is_planted};
use kcl_checkpoint::{ExtendedSequenceNumber, Timestamp};

use super::breaker::{Evidence, Finding, Span};
use super::call::{Advice, CallFailure};
use super::schedule::{Entry, History};
use super::seat::Verdict;
use crate::dead_letter::{Condition, FailureKind};
use crate::error::ConfigError;
use crate::record::Record;

/// The time from a record's first failure on in which others have their chance to tell whose fault it
/// is, before its age counts.
const PROOF: Duration = Duration::from_secs(60);

/// The rules by which failed records are tried again, and given up.
///
/// A failure of the world ([`ProcessError::retry`](crate::ProcessError::retry), a panic, a call that
/// overruns) says nothing of the record by itself. Outcomes of *other* records since the record's
/// first failure do, those of its shard, or else of the worker's other shards:
///
/// - **Others succeed**: it is the record. A failure counts if another record has succeeded since
///   the failure before it, and after `max_attempts` that count the record is given up.
/// - **Others fail as well**: it is the world. No record is given up, however long that lasts. The
///   shard shows [`DependencyFailing`](crate::ShardState::DependencyFailing), waits with a growing
///   backoff, makes one call at a time, and goes on by itself when one succeeds.
/// - **No other was tried**: the record is given up after `max_attempts` and `patience`, both. With
///   one lane the shard looks for evidence before: it calls the processor with a later record of
///   another partition key, alone, ahead of the one that waits. It does not where the processor
///   checkpoints for itself or commits.
///
/// If different records fail and nothing at all succeeds, nobody can tell bad records from an
/// outage: they stay, and the shard shows that it waits.
///
/// A record that the processor calls [poison](crate::ProcessError::poison) is given up at once.
///
/// ```
/// use std::time::Duration;
/// use kcl_core::RetryPolicy;
///
/// let policy = RetryPolicy { max_attempts: 10, attempt_deadline: Some(Duration::from_secs(5)), ..RetryPolicy::default() };
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RetryPolicy {
    /// The failures of a record that count, before it is given up. Attempts that find out which
    /// record of a batch fails do not count, nor those that fail while others fail as well. 1 to
    /// 10,000; default 5.
    pub max_attempts: u32,
    /// The least time from a record's first failure until it is given up while nothing shows that
    /// the record is at fault. It starts over with each failure that was the world's.
    /// [`Duration::MAX`]: for ever. Zero: attempts alone decide, and other records are not asked.
    /// Default 15 min.
    pub patience: Duration,
    /// The longest wait after a first failure; it doubles with each further one. Each wait is drawn
    /// at random up to its limit. 1 ms to 1 h; default 200 ms.
    pub first_backoff: Duration,
    /// The longest wait at all, also while a dependency is away: so long after its return the shard
    /// goes on at the latest. `first_backoff` to 1 h; default 10 s.
    pub max_backoff: Duration,
    /// The age from which on a record that has failed is given up, whatever attempts and patience it
    /// has left, but not while other records fail as well, nor in the first minute in which no other
    /// was tried. Every record is tried once, however old.
    /// At least 1 s; `None`, the default: age does not matter.
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
            patience: Duration::from_secs(15 * 60),
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

    /// The age from which on a failure of other records is no evidence any more: the longest wait of
    /// a record that is tried again and again, and some time for the call.
    pub(super) fn lapse(&self) -> Duration {
        self.max_backoff * 2 + Duration::from_secs(60)
    }

    /// Returns whether other records are asked.
    pub(super) fn asks_others(&self) -> bool {
        !self.patience.is_zero() && !is_planted(Bug::OutageIsPoison)
    }

    /// Why a record is given up after one more failure, which its history has; `None`: it is tried
    /// again.
    fn given_up(&self, record: &Record, history: &History, advice: Advice, finding: Finding, now: Now) -> Option<Condition> {
        let exhausted = Some(Condition::RetryAttemptsExhausted);
        if advice == Advice::Poison {
            return exhausted;
        }
        if !self.asks_others() {
            if history.failures + u32::from(is_planted(Bug::GivenUpEarly)) >= self.max_attempts {
                return exhausted;
            }
        } else {
            match finding {
                Finding::World | Finding::Doubt => return None,
                Finding::Record if history.counted >= self.max_attempts => return exhausted,
                _ if history.failures >= self.max_attempts && history.has_waited(self.patience, now.boot) => return exhausted,
                _ => {}
            }
        }
        // Others first have their chance to tell whose fault it is.
        if finding == Finding::Unknown && self.asks_others() && !history.has_waited(self.patience.min(PROOF), now.boot) {
            return None;
        }
        let age = Duration::from_millis(now.wall.as_millis().saturating_sub(record.approximate_arrival()?.as_millis()));
        self.max_age.filter(|most| age > *most).map(|_| Condition::RecordAgeExceeded)
    }
}

/// The time at which a call has ended.
#[derive(Clone, Copy, Debug)]
struct Now {
    boot: tokio::time::Instant,
    wall: Timestamp,
}

/// What a call is judged by.
struct Rules<'a> {
    policy: &'a RetryPolicy,
    evidence: &'a Evidence<'a>,
    now: Now,
}

/// A record that is given up.
#[derive(Debug)]
pub(super) struct Condemned {
    pub(super) entry: Entry,
    pub(super) failure: CallFailure,
    pub(super) condition: Condition,
    /// It is known to be the record's own fault.
    pub(super) is_proven: bool,
}

impl Condemned {
    /// A record that is given up as it is known to be at fault.
    pub(super) fn proven(entry: Entry, failure: CallFailure) -> Self {
        Self { entry, failure, condition: Condition::RetryAttemptsExhausted, is_proven: true }
    }
}

/// The records of a call that has ended, and what it said of them.
#[derive(Debug, Default)]
pub(super) struct Ended {
    pub(super) entries: Vec<Entry>,
    /// Those that were acknowledged: finished, whatever the verdict says.
    pub(super) acknowledged: Vec<bool>,
    /// Those of the acknowledged that the consumer has finished before the call ended.
    pub(super) taken_in: Vec<bool>,
    /// The first so many are covered by the checkpoint: the processor has checkpointed or committed
    /// them, and after a crash they would not come again either.
    pub(super) covered: usize,
    /// The call was asked to end early.
    pub(super) interrupted: bool,
}

/// The decisions on the records of a call.
#[derive(Debug, Default)]
pub(super) struct Judged {
    /// Finished, and not taken in before.
    pub(super) finished: Vec<Record>,
    /// To the dead-letter queue.
    pub(super) condemned: Vec<Condemned>,
    /// To be tried, in order.
    pub(super) back: Vec<Entry>,
    /// Whether the next attempt waits: not if only the batch was divided because something in it is
    /// poison.
    pub(super) wait: bool,
    /// The least wait that the processor has asked for.
    pub(super) retry_after: Option<Duration>,
    /// The processor wants the shard to stop.
    pub(super) stop: bool,
    /// The call has finished a record.
    pub(super) succeeded: bool,
    /// The failures that a retry may help against.
    pub(super) failed: Vec<Failed>,
}

/// A failure of the world, or of a record that is not known to be poison.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Failed {
    pub(super) span: Span,
    /// It says nothing of the world to other records of the shard.
    pub(super) is_suspect: bool,
    /// It says nothing of the world to other shards.
    pub(super) is_suspect_elsewhere: bool,
}

/// Decides on the records of a call. `verdict`: `None` for a call that was cut off.
///
/// A verdict that names a record as failed which was acknowledged is ignored for that record. One
/// that names a record which the checkpoint covers is not: nothing that failed is passed over.
pub(super) fn judge(ended: Ended, verdict: Option<Verdict>, wall: Timestamp, policy: &RetryPolicy, evidence: &Evidence<'_>) -> Judged {
    let rules = &Rules { policy, evidence, now: Now { boot: evidence.now, wall } };
    let Ended { entries, acknowledged, taken_in, covered, interrupted } = ended;
    let mut slots = Slots { acknowledged, taken_in, covered, entries: entries.into_iter().map(Some).collect() };
    let mut judged = Judged::default();
    match verdict {
        None => slots.rest_comes_back(&mut judged),
        Some(Verdict::Done) => slots.finish(|_| true, &mut judged),
        Some(Verdict::Acknowledged) => {
            // A processor that says so again and again must not be called in a hot loop.
            judged.wait = !interrupted && !slots.is_anything_done();
            slots.rest_comes_back(&mut judged);
        }
        Some(Verdict::FailedFrom(record, failure)) => match slots.index_of(record) {
            Some(index) => slots.failed_from(index, failure, rules, &mut judged),
            None => slots.somebody_failed(stranger(record), rules, &mut judged),
        },
        Some(Verdict::Failed(failures)) => slots.these_failed(failures, rules, &mut judged),
        Some(Verdict::Unknown(failure)) => slots.somebody_failed(failure, rules, &mut judged),
    }
    judged
}

fn stranger(record: ExtendedSequenceNumber) -> CallFailure {
    let words = format!("the processor said that record {record} failed, which is not in the batch");
    CallFailure::own(FailureKind::Error, Advice::Retry, words)
}

/// The records of a call while they are judged.
struct Slots {
    entries: Vec<Option<Entry>>,
    acknowledged: Vec<bool>,
    taken_in: Vec<bool>,
    covered: usize,
}

impl Slots {
    fn index_of(&self, record: ExtendedSequenceNumber) -> Option<usize> {
        self.entries.iter().position(|entry| entry.as_ref().is_some_and(|entry| entry.record.position() == record))
    }

    fn is_acknowledged(&self, index: usize) -> bool {
        self.acknowledged.get(index).copied().unwrap_or(false)
    }

    fn is_done(&self, index: usize) -> bool {
        index < self.covered || self.is_acknowledged(index)
    }

    fn is_anything_done(&self) -> bool {
        (0..self.entries.len()).any(|index| self.is_done(index))
    }

    /// Finishes those that are done, and others as told.
    fn finish(&mut self, others: impl Fn(usize) -> bool, judged: &mut Judged) {
        for index in 0..self.entries.len() {
            if (self.is_done(index) || others(index))
                && let Some(entry) = self.entries[index].take()
            {
                judged.succeeded = true;
                if !self.taken_in.get(index).copied().unwrap_or(false) {
                    judged.finished.push(entry.record);
                }
            }
        }
    }

    fn rest_comes_back(&mut self, judged: &mut Judged) {
        if !is_planted(Bug::AckedComesBack) {
            self.finish(|_| false, judged);
        }
        judged.back.extend(self.entries.drain(..).flatten());
    }

    fn failed_from(&mut self, index: usize, failure: CallFailure, rules: &Rules<'_>, judged: &mut Judged) {
        // One that was committed or acknowledged failed after that: what comes after was not tried.
        let is_settled = self.is_acknowledged(index) || (index < self.covered && failure.advice != Advice::Poison);
        let culprit = if is_settled { None } else { self.entries[index].take() };
        self.finish(|other| other < index || is_planted(Bug::AfterFailureFinished), judged);
        match culprit {
            Some(culprit) => {
                if let Some(next) = self.entries[index + 1..].iter_mut().flatten().next() {
                    next.cut = true;
                }
                one_failed(culprit, failure, None, rules, judged);
            }
            None => {
                judged.stop = failure.advice == Advice::Stop;
                judged.wait = failure.advice == Advice::Retry && self.entries.iter().any(Option::is_some);
                judged.retry_after = failure.retry_after;
            }
        }
        judged.back.extend(self.entries.drain(..).flatten());
    }

    fn these_failed(&mut self, failures: Vec<(ExtendedSequenceNumber, CallFailure)>, rules: &Rules<'_>, judged: &mut Judged) {
        let mut by_index = BTreeMap::new();
        for (record, failure) in failures {
            let Some(index) = self.index_of(record) else {
                return self.somebody_failed(stranger(record), rules, judged);
            };
            if !self.is_acknowledged(index) {
                // Of two reasons for one record the first is told.
                by_index.entry(index).or_insert((failure, None));
            }
        }
        for (index, (_, entry)) in &mut by_index {
            *entry = self.entries[*index].take();
        }
        if is_planted(Bug::NeighboursRepeated) {
            judged.back.extend(self.entries.drain(..).flatten());
        }
        self.finish(|_| true, judged);
        // All have failed, each for itself: alike. Or others in the same call have not, which is
        // evidence against one that has failed before.
        let alike = by_index.len() > 1 && !judged.succeeded;
        let found = |history: &History| match history.first_own {
            _ if alike => Some(Finding::World),
            Some(_) if judged.succeeded => Some(Finding::Record),
            _ => None,
        };
        let found: Vec<_> = by_index.values().map(|(_, entry)| entry.as_ref().and_then(|entry| found(&entry.history))).collect();
        for ((failure, entry), found) in by_index.into_values().zip(found) {
            if let Some(entry) = entry {
                one_failed(Entry { cut: true, ..entry }, failure, found, rules, judged);
            }
        }
        if judged.succeeded {
            // Others in the same call have not failed.
            judged.failed.iter_mut().for_each(|failed| (failed.is_suspect, failed.is_suspect_elsewhere) = (true, true));
        }
        judged.back.sort_by_key(|entry| entry.record.position());
    }

    /// A failure that names no record.
    fn somebody_failed(&mut self, failure: CallFailure, rules: &Rules<'_>, judged: &mut Judged) {
        let (anything_done, last) = (self.is_anything_done(), self.entries.len().saturating_sub(1));
        self.finish(|index| index < last && is_planted(Bug::ErrorFinishesHanded), judged);
        let mut open: Vec<_> = self.entries.drain(..).flatten().collect();
        judged.stop = failure.advice == Advice::Stop;
        judged.wait = failure.advice == Advice::Retry && !open.is_empty();
        judged.retry_after = failure.retry_after;
        match &mut open[..] {
            [] => {}
            // A batch of one can't be in doubt about which record failed.
            [_] if !anything_done => {
                (judged.stop, judged.wait) = (false, false);
                open.into_iter().for_each(|entry| one_failed(entry, failure.clone(), None, rules, judged));
                return;
            }
            // It was perhaps not tried: it is alone next time.
            [_] => {}
            several => {
                let finding = note_failure(several, &failure, rules, judged);
                for entry in several.iter_mut() {
                    entry.history.failed(rules.now.boot, rules.now.wall, finding, false);
                }
                // The halves are tried each for itself. A call that the processor has stopped says
                // nothing about its records, and if the world fails halves would fail as well.
                let is_worlds = finding == Finding::World && failure.advice == Advice::Retry && rules.policy.asks_others();
                if !judged.stop && !is_worlds {
                    several[several.len() / 2].cut = true;
                }
                if is_planted(Bug::HalvesLoseOne) {
                    open.pop();
                }
            }
        }
        judged.back.extend(open);
    }
}

/// Notes a failure of records that are in order, and gives what other records say of it.
fn note_failure(entries: &[Entry], failure: &CallFailure, rules: &Rules<'_>, judged: &mut Judged) -> Finding {
    let (Some(span), Some(first)) = (Span::of(rules.evidence.group, entries), entries.first()) else { return Finding::Unknown };
    if failure.advice == Advice::Retry {
        let (is_suspect, is_suspect_elsewhere) = rules.evidence.suspects(&span, &first.history);
        judged.failed.push(Failed { span, is_suspect, is_suspect_elsewhere });
    }
    rules.evidence.of(&span, &first.history)
}

/// A record is known to have failed. `finding`: if the call itself tells whose fault it is.
fn one_failed(mut entry: Entry, failure: CallFailure, finding: Option<Finding>, rules: &Rules<'_>, judged: &mut Judged) {
    let found = note_failure(std::slice::from_ref(&entry), &failure, rules, judged);
    let finding = finding.unwrap_or(found);
    judged.retry_after = judged.retry_after.max(failure.retry_after);
    let is_no_attempt = is_planted(Bug::PanicIsNoAttempt) && failure.kind == FailureKind::Panic;
    let is_to_blame = failure.advice != Advice::Stop && !is_no_attempt;
    entry.history.failed(rules.now.boot, rules.now.wall, finding, is_to_blame);
    if !is_to_blame {
        judged.stop = true;
        judged.back.push(entry);
        return;
    }
    match rules.policy.given_up(&entry.record, &entry.history, failure.advice, finding, rules.now) {
        Some(condition) => {
            let is_proven = finding == Finding::Record || failure.advice == Advice::Poison;
            judged.condemned.push(Condemned { entry, failure, condition, is_proven });
        }
        None => {
            judged.wait = true;
            judged.back.push(entry);
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use tokio::time::Instant;

    use super::super::breaker::{Outcomes, Standing};
    use super::*;

    const NOW: Timestamp = Timestamp::from_millis(1_800_000_000_000);

    fn policy() -> RetryPolicy {
        RetryPolicy { max_attempts: 3, patience: Duration::ZERO, ..RetryPolicy::default() }
    }

    /// As the function under test, with evidence of these outcomes.
    fn judge_with(ended: Ended, verdict: Option<Verdict>, now: Timestamp, policy: &RetryPolicy, others: &Outcomes) -> Judged {
        let evidence =
            Evidence { group: 0, shard: others, others: Standing::default(), is_alone: false, now: Instant::now(), lapse: policy.lapse() };
        super::judge(ended, verdict, now, policy, &evidence)
    }

    /// As [`judge_with`], without any evidence.
    fn judge_alone(ended: Ended, verdict: Option<Verdict>, now: Timestamp, policy: &RetryPolicy) -> Judged {
        judge_with(ended, verdict, now, policy, &Outcomes::default())
    }

    fn entries(count: u128) -> Vec<Entry> {
        (0..count).map(|number| Entry::new(Record::new(number.into(), None, Bytes::new(), Some(NOW)))).collect()
    }

    fn failure(advice: Advice) -> CallFailure {
        CallFailure::own(FailureKind::Error, advice, "no".to_owned())
    }

    fn at(number: u128) -> ExtendedSequenceNumber {
        ExtendedSequenceNumber::whole(number.into())
    }

    fn from(index: u128, advice: Advice) -> Verdict {
        Verdict::FailedFrom(at(index), failure(advice))
    }

    fn unknown(advice: Advice) -> Verdict {
        Verdict::Unknown(failure(advice))
    }

    fn these(failed: &[(u128, Advice)]) -> Verdict {
        Verdict::Failed(failed.iter().map(|(index, advice)| (at(*index), failure(*advice))).collect())
    }

    fn judge(entries: Vec<Entry>, verdict: Verdict) -> Judged {
        judge_alone(Ended { entries, ..Ended::default() }, Some(verdict), NOW, &policy())
    }

    /// As [`judge`], of five records with these acknowledged.
    fn judge_acknowledged(acknowledged: &[usize], verdict: Option<Verdict>) -> Judged {
        let acknowledged = (0..5).map(|index| acknowledged.contains(&index)).collect();
        judge_alone(Ended { entries: entries(5), acknowledged, ..Ended::default() }, verdict, NOW, &policy())
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
        let judged = judge(entries(5), from(2, Advice::Retry));
        assert_eq!(seen(&judged), (vec![0, 1], vec![], text(&["2", "|3", "4"]), true));
        let history = judged.back[0].history;
        assert_eq!((history.attempts, history.failures, history.first_failure), (1, 1, Some(NOW)));
        assert_eq!(judged.back[1].history, History::default(), "it was not tried");
    }

    #[test]
    fn attempts_end_in_the_queue() {
        let mut left = entries(1);
        for attempt in 1..=3 {
            let judged = judge(left, unknown(Advice::Retry));
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
        let judged = judge(entries(3), from(1, Advice::Poison));
        assert_eq!(seen(&judged), (vec![0], vec![1], text(&["|2"]), false));
    }

    #[test]
    fn a_batch_in_doubt_is_halved_and_nobody_is_blamed() {
        let judged = judge(entries(5), unknown(Advice::Retry));
        assert_eq!(seen(&judged), (vec![], vec![], text(&["0", "1", "|2", "3", "4"]), true));
        assert!(judged.back.iter().all(|entry| entry.history.failures == 0 && entry.history.attempts == 1));
        let poison = judge(entries(2), unknown(Advice::Poison));
        assert_eq!(seen(&poison), (vec![], vec![], text(&["0", "|1"]), false), "something is poison: waiting does not help");
        for stranger in [from(9, Advice::Retry), these(&[(2, Advice::Retry), (9, Advice::Retry)])] {
            assert_eq!(seen(&judge(entries(5), stranger)).2, text(&["0", "1", "|2", "3", "4"]), "it is not in the batch");
        }
    }

    #[test]
    fn records_that_failed_for_themselves_leave_the_others_done() {
        let failed = these(&[(4, Advice::Retry), (1, Advice::Retry), (3, Advice::Poison), (1, Advice::Stop)]);
        let judged = judge(entries(5), failed);
        assert_eq!(seen(&judged), (vec![0, 2], vec![3], text(&["|1", "|4"]), true));
        assert!(!judged.stop, "of two reasons the first is told");
        assert_eq!(seen(&judge(entries(2), these(&[]))).0, [0, 1]);
    }

    #[test]
    fn what_was_acknowledged_is_finished_whatever_the_call_says() {
        let judge = |acknowledged: &[usize], verdict| seen(&judge_acknowledged(acknowledged, verdict));
        let retry = || Some(unknown(Advice::Retry));
        assert_eq!(judge(&[0, 1, 2], retry()), (vec![0, 1, 2], vec![], text(&["3", "|4"]), true));
        assert_eq!(judge(&[1, 3], retry()), (vec![1, 3], vec![], text(&["0", "|2", "4"]), true));
        assert_eq!(judge(&[0, 1, 2, 3, 4], retry()), (vec![0, 1, 2, 3, 4], vec![], vec![], false));
        // an error says nothing of the one that is left: it may not have been tried
        let left = judge_acknowledged(&[0, 1, 3, 4], Some(unknown(Advice::Poison)));
        assert_eq!(seen(&left), (vec![0, 1, 3, 4], vec![], text(&["2"]), false));
        assert_eq!(left.back[0].history, History::default());
        // acknowledgements can't be taken back
        assert_eq!(judge(&[3], Some(from(3, Advice::Poison))), (vec![0, 1, 2, 3], vec![], text(&["4"]), false));
        assert_eq!(judge(&[3], Some(from(1, Advice::Retry))), (vec![0, 3], vec![], text(&["1", "|2", "4"]), true));
        let failed = these(&[(1, Advice::Poison), (3, Advice::Poison)]);
        assert_eq!(judge(&[3], Some(failed)), (vec![0, 2, 3, 4], vec![1], vec![], false));
        // cut off, or ended early
        assert_eq!(judge(&[0, 3], None), (vec![0, 3], vec![], text(&["1", "2", "4"]), false));
        assert_eq!(judge(&[0, 3], Some(Verdict::Acknowledged)), (vec![0, 3], vec![], text(&["1", "2", "4"]), false));
        assert!(judge(&[], Some(Verdict::Acknowledged)).3, "no progress: not at once again");
        assert_eq!(judge(&[1], Some(Verdict::Done)).0, [0, 1, 2, 3, 4]);
    }

    #[test]
    fn what_was_taken_in_is_not_finished_twice() {
        let acknowledged = vec![true, true, false];
        let ended = Ended { entries: entries(3), acknowledged, taken_in: vec![true, false, false], ..Ended::default() };
        assert_eq!(seen(&judge_alone(ended, Some(Verdict::Done), NOW, &policy())).0, [1, 2]);
    }

    #[test]
    fn what_the_checkpoint_covers_is_finished_although_the_call_fails() {
        let judge =
            |verdict, covered| judge_alone(Ended { entries: entries(5), covered, ..Ended::default() }, Some(verdict), NOW, &policy());
        let seen_of = |verdict, covered| seen(&judge(verdict, covered));
        let retry = Advice::Retry;
        assert_eq!(seen_of(unknown(retry), 3), (vec![0, 1, 2], vec![], text(&["3", "|4"]), true));
        assert_eq!(seen_of(unknown(retry), 5), (vec![0, 1, 2, 3, 4], vec![], vec![], false));
        assert_eq!(seen_of(unknown(retry), 9), (vec![0, 1, 2, 3, 4], vec![], vec![], false));
        assert_eq!(seen_of(from(4, retry), 3), (vec![0, 1, 2, 3], vec![], text(&["4"]), true));
        assert_eq!(seen_of(from(3, retry), 3), (vec![0, 1, 2], vec![], text(&["3", "|4"]), true), "the first that is not covered");
        // it has committed the record in work, and failed then: the others were not tried
        assert_eq!(seen_of(from(2, retry), 3), (vec![0, 1, 2], vec![], text(&["3", "4"]), true));
        assert_eq!(seen_of(from(4, retry), 5), (vec![0, 1, 2, 3, 4], vec![], vec![], false));
        // what it calls poison, or names as failed, is not passed over all the same
        assert_eq!(seen_of(from(1, Advice::Poison), 3), (vec![0, 2], vec![1], text(&["|3", "4"]), false));
        assert_eq!(seen_of(these(&[(1, retry), (4, retry)]), 3), (vec![0, 2, 3], vec![], text(&["|1", "|4"]), true));
        // the last one was in no commit, perhaps not even tried: it is not to blame yet
        let unblamed = judge(unknown(retry), 4);
        assert_eq!(seen(&unblamed), (vec![0, 1, 2, 3], vec![], text(&["4"]), true));
        assert_eq!(unblamed.back[0].history.failures, 0);
        assert!(judge(unknown(Advice::Stop), 5).stop, "also if all was committed");
        let not_tried = judge(from(2, Advice::Stop), 3);
        assert!(not_tried.stop && not_tried.back.iter().all(|entry| entry.history == History::default()));
    }

    #[test]
    fn a_stop_is_no_failure_of_the_record() {
        for verdict in [from(0, Advice::Stop), unknown(Advice::Stop)] {
            let judged = judge(entries(3), verdict);
            assert!(judged.stop && !judged.wait);
            assert!(judged.back.iter().all(|entry| entry.history.failures == 0));
            assert_eq!(judged.back.len(), 3);
        }
    }

    #[test]
    fn what_has_failed_and_is_too_old_is_given_up() {
        let limit = RetryPolicy { max_age: Some(Duration::from_secs(60)), ..policy() };
        for (age, given_up) in [(60_000, false), (60_001, true)] {
            let now = Timestamp::from_millis(NOW.as_millis() + age);
            let ended = Ended { entries: entries(1), ..Ended::default() };
            let judged = judge_alone(ended, Some(unknown(Advice::Retry)), now, &limit);
            assert_eq!(judged.condemned.first().map(|condemned| condemned.condition), given_up.then_some(Condition::RecordAgeExceeded));
        }
    }

    /// The failures of one record until it is given up: `before` each one, others have done this.
    /// `None`: it is never given up.
    async fn failures_until_given_up(policy: &RetryPolicy, mut before: impl FnMut(u32, &mut Outcomes)) -> Option<u32> {
        let mut others = Outcomes::default();
        let mut left = entries(1);
        for attempt in 1..=100 {
            tokio::time::advance(Duration::from_secs(10)).await;
            before(attempt, &mut others);
            let ended = Ended { entries: left, ..Ended::default() };
            let judged = judge_with(ended, Some(unknown(Advice::Retry)), NOW, policy, &others);
            for failed in &judged.failed {
                others.failed(failed.span, Instant::now(), failed.is_suspect);
            }
            if judged.condemned.len() == 1 {
                return Some(attempt);
            }
            left = judged.back;
        }
        None
    }

    #[tokio::test(start_paused = true)]
    async fn what_others_come_to_decides_whether_a_record_is_given_up() {
        let patience = Duration::from_secs(600);
        let policy = RetryPolicy { patience, ..policy() };
        let neighbour = Span::of(9, &entries(1)).unwrap();
        let succeeds = |others: &mut Outcomes| others.succeeded(Instant::now());
        let fails = |others: &mut Outcomes| others.failed(neighbour, Instant::now(), false);
        let is_suspected = |others: &mut Outcomes| others.failed(neighbour, Instant::now(), true);

        let found = failures_until_given_up(&policy, |_, others| succeeds(others)).await;
        assert_eq!(found, Some(3), "others succeed: as many as its attempts");
        let found = failures_until_given_up(&policy, |_, others| fails(others)).await;
        assert_eq!(found, None, "others fail alike");
        let found = failures_until_given_up(&policy, |_, others| is_suspected(others)).await;
        assert_eq!(found, None, "suspects fail alike");
        let in_turn = |attempt: u32, others: &mut Outcomes| if attempt.is_multiple_of(3) { succeeds(others) } else { is_suspected(others) };
        assert_eq!(failures_until_given_up(&policy, in_turn).await, Some(9), "each success is an attempt, whatever suspects come to");
        let found = failures_until_given_up(&policy, |_, _| {}).await;
        assert_eq!(found, Some(61), "others are not tried: ten minutes, an attempt each ten seconds");
        let for_ever = RetryPolicy { patience: Duration::MAX, ..policy };
        assert_eq!(failures_until_given_up(&for_ever, |_, _| {}).await, None);
        let alone = RetryPolicy { patience: Duration::ZERO, ..policy };
        assert_eq!(failures_until_given_up(&alone, |_, others| fails(others)).await, Some(3), "attempts alone");

        let outage =
            |until: u32| move |attempt: u32, others: &mut Outcomes| if attempt <= until { fails(others) } else { succeeds(others) };
        assert_eq!(failures_until_given_up(&policy, outage(50)).await, Some(53), "its attempts begin when others succeed");
        let once = |attempt: u32, others: &mut Outcomes| {
            if attempt == 2 {
                succeeds(others);
            }
        };
        assert_eq!(failures_until_given_up(&policy, once).await, Some(61), "a success is one attempt, and no more");
        let then_outage = |attempt: u32, others: &mut Outcomes| match attempt {
            2 => succeeds(others),
            5.. => fails(others),
            _ => {}
        };
        assert_eq!(failures_until_given_up(&policy, then_outage).await, None, "a success of before the outage");
        let before_the_last = |attempt: u32, others: &mut Outcomes| {
            if [2, 5].contains(&attempt) {
                succeeds(others);
            }
        };
        assert_eq!(failures_until_given_up(&policy, before_the_last).await, Some(5));
        let at_last = |attempt: u32, others: &mut Outcomes| {
            if attempt == 30 {
                fails(others);
            }
        };
        assert_eq!(failures_until_given_up(&policy, at_last).await, Some(98), "patience begins anew, while the failure is recent");
    }

    #[tokio::test(start_paused = true)]
    async fn a_batch_is_not_divided_and_nothing_is_too_old_while_others_fail() {
        let policy = RetryPolicy { max_age: Some(Duration::from_secs(1)), ..RetryPolicy::default() };
        let mut others = Outcomes::default();
        others.failed(Span::of(9, &entries(1)).unwrap(), Instant::now(), false);
        let late = Timestamp::from_millis(NOW.as_millis() + 60_000);
        let judge = |count, advice, others: &Outcomes| {
            let ended = Ended { entries: entries(count), ..Ended::default() };
            seen(&judge_with(ended, Some(unknown(advice)), late, &policy, others))
        };
        assert_eq!(judge(4, Advice::Retry, &others), (vec![], vec![], text(&["0", "1", "2", "3"]), true));
        assert_eq!(judge(4, Advice::Poison, &others).2, text(&["0", "1", "|2", "3"]), "one of them is poison");
        assert_eq!(judge(1, Advice::Retry, &others), (vec![], vec![], text(&["0"]), true));
        let nobody = Outcomes::default();
        let first = judge_with(Ended { entries: entries(1), ..Ended::default() }, Some(unknown(Advice::Retry)), late, &policy, &nobody);
        assert_eq!(seen(&first).2, text(&["0"]), "others have not had their chance to tell");
        tokio::time::advance(PROOF).await;
        let second = judge_with(Ended { entries: first.back, ..Ended::default() }, Some(unknown(Advice::Retry)), late, &policy, &nobody);
        assert_eq!(seen(&second).1, [0]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_record_that_is_too_old_is_given_up_at_once_when_others_have_succeeded() {
        let policy = RetryPolicy { max_age: Some(Duration::from_secs(1)), ..RetryPolicy::default() };
        let late = Timestamp::from_millis(NOW.as_millis() + 60_000);
        let judge = |entries, others: &Outcomes| {
            judge_with(Ended { entries, ..Ended::default() }, Some(unknown(Advice::Retry)), late, &policy, others)
        };
        let mut others = Outcomes::default();
        let first = judge(entries(1), &others);
        assert_eq!(seen(&first).2, text(&["0"]));
        tokio::time::advance(Duration::from_secs(1)).await;
        others.succeeded(Instant::now());
        tokio::time::advance(Duration::from_secs(1)).await;
        let second = judge(first.back, &others);
        assert_eq!(seen(&second).1, [0], "it need not wait until they have had their chance to tell");
        assert_eq!(second.condemned[0].condition, Condition::RecordAgeExceeded);
    }

    /// A record that has failed often, first and last at this moment, and twice since others have succeeded.
    fn failed_often(now: Instant) -> Vec<Entry> {
        let at = Some(now);
        let history =
            History { attempts: 9, failures: 9, counted: 2, first_own: at, last_failed: at, waits_since: at, ..History::default() };
        entries(1).into_iter().map(|entry| Entry { history, ..entry }).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn a_record_that_fails_in_a_call_of_its_own_is_judged_by_other_calls() {
        let policy = RetryPolicy { max_attempts: 3, patience: Duration::from_secs(900), ..RetryPolicy::default() };
        for verdict in [|| these(&[(0, Advice::Retry)]), || unknown(Advice::Retry), || from(0, Advice::Retry)] {
            for (waited, given_up) in [(0, false), (899, false), (900, true)] {
                let entries = failed_often(Instant::now());
                tokio::time::advance(Duration::from_secs(waited)).await;
                let judged = judge_with(Ended { entries, ..Ended::default() }, Some(verdict()), NOW, &policy, &Outcomes::default());
                assert_eq!((judged.condemned.len(), judged.back.len()), if given_up { (1, 0) } else { (0, 1) }, "after {waited} s");
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_fault_is_proven_by_the_processors_word_and_by_others_that_succeed() {
        let attempts_alone = RetryPolicy { patience: Duration::ZERO, ..policy() };
        let others_are_asked = RetryPolicy { patience: Duration::from_secs(1), ..policy() };
        for (advice, policy, others_succeed, is_proven) in [
            (Advice::Poison, others_are_asked, false, true),
            (Advice::Poison, attempts_alone, false, true),
            (Advice::Retry, attempts_alone, false, false),
            (Advice::Retry, others_are_asked, false, false),
            (Advice::Retry, others_are_asked, true, true),
        ] {
            let (mut others, entries) = (Outcomes::default(), failed_often(Instant::now()));
            tokio::time::advance(Duration::from_secs(1)).await;
            if others_succeed {
                others.succeeded(Instant::now());
            }
            let judged = judge_with(Ended { entries, ..Ended::default() }, Some(unknown(advice)), NOW, &policy, &others);
            let proven: Vec<_> = judged.condemned.iter().map(|condemned| condemned.is_proven).collect();
            assert_eq!(proven, [is_proven], "{advice:?} {policy:?} {others_succeed}");
        }
    }

    #[test]
    fn only_a_failure_that_a_retry_may_help_against_is_evidence_to_others() {
        for (advice, failures) in [(Advice::Retry, 1), (Advice::Poison, 0), (Advice::Stop, 0)] {
            for count in [1, 4] {
                assert_eq!(judge(entries(count), unknown(advice)).failed.len(), failures, "{advice:?}, {count} records");
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn records_that_fail_in_one_call_are_alike_unless_others_of_it_succeed() {
        let policy = RetryPolicy { max_attempts: 1, ..RetryPolicy::default() };
        let judge = |failed: &[(u128, Advice)]| {
            let ended = Ended { entries: entries(3), ..Ended::default() };
            judge_with(ended, Some(these(failed)), NOW, &policy, &Outcomes::default())
        };
        let all = judge(&[(0, Advice::Retry), (1, Advice::Retry), (2, Advice::Retry)]);
        assert!(all.back.iter().all(|entry| entry.history.counted == 0) && all.failed.iter().all(|failed| !failed.is_suspect));
        assert_eq!(all.back.len(), 3);
        let some = judge(&[(0, Advice::Retry), (1, Advice::Retry)]);
        assert_eq!(some.back.iter().map(|entry| entry.history.counted).collect::<Vec<_>>(), [1, 1], "a first failure is no proof");
        assert!(some.failed.iter().all(|failed| failed.is_suspect));
        let ended = Ended { entries: some.back.into_iter().take(1).chain(entries(3).into_iter().skip(2)).collect(), ..Ended::default() };
        let again = judge_with(ended, Some(these(&[(0, Advice::Retry)])), NOW, &policy, &Outcomes::default());
        assert_eq!(seen(&again).1, [0], "another one has succeeded since");
    }

    #[test]
    fn an_impossible_policy_is_refused_by_name() {
        let sound = RetryPolicy::default();
        let patience = Duration::from_secs(30);
        sound.validate(patience).unwrap();
        RetryPolicy { attempt_deadline: Some(patience), ..sound }.validate(patience).unwrap();
        RetryPolicy { max_age: Some(Duration::from_secs(1)), ..sound }.validate(patience).unwrap();
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
