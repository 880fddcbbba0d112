//! The breaker across records: evidence on whether the world fails or a record is at fault.
//!
//! When different records fail alike, it is not the record. A shard keeps the outcomes of its calls
//! (`Outcomes`), and the shards of a worker share a summary of theirs (`Neighbours`). Each failure of
//! a record is judged by the outcomes of *other* records:
//!
//! | others | finding | what follows |
//! |---|---|---|
//! | failed as well | `World` | the record stays, however long that lasts, and its attempts start over |
//! | failed as well, but each of them is a suspect | `Doubt` | the record stays, and its attempts stay as they are |
//! | succeeded since the record's failure before | `Record` | the failure counts as one of its attempts |
//! | were not tried since | `Unknown` | the patience decides |
//!
//! Failures are remembered until something succeeds. A record after whose first failure others have
//! succeeded is a suspect. Its failures don't make the attempts of others start over, so that bad
//! records never shield each other while others succeed. But after a success only the first suspect
//! that fails has one more attempt against it: where a dependency is away, comes back for seconds,
//! and is away again, all that wait are suspects soon, and none of them is at fault.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use kcl_checkpoint::ExtendedSequenceNumber;
use kcl_checkpoint::planted::{Bug, is_planted};
use kcl_lease::ShardId;
use tokio::time::Instant;

use super::schedule::{Entry, GroupKey, History};

/// Failures of different records that are remembered.
const MOST_FAILING: usize = 8;

/// Failed calls in a row, without a success, before a shard is paced as a whole and looks for
/// evidence by a probe. With fewer `max_attempts` it is done before the last one.
pub(super) const OPENS_AFTER: u32 = 5;

/// The records of a call of which one or all failed: from the first to the last one of a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Span {
    group: GroupKey,
    first: ExtendedSequenceNumber,
    last: ExtendedSequenceNumber,
}

impl Span {
    /// The span of these entries, which are in order. `None`: there are none.
    pub(super) fn of(group: GroupKey, entries: &[Entry]) -> Option<Self> {
        let (first, last) = (entries.first()?, entries.last()?);
        Some(Self { group, first: first.record.position(), last: last.record.position() })
    }

    /// Returns whether all of the other's records are in this one, and more.
    fn holds_more_than(&self, other: &Self) -> bool {
        self.group == other.group && self != other && self.first <= other.first && other.last <= self.last
    }

    /// Returns whether no record is in both.
    fn is_apart(&self, other: &Self) -> bool {
        self.group != other.group || self.last < other.first || other.last < self.first
    }
}

/// The meaning of what happened to other records since a record's first failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Finding {
    /// No other record was tried since.
    Unknown,
    /// Others failed alike: it is not the record.
    World,
    /// Others failed alike, which are suspects themselves.
    Doubt,
    /// Another one succeeded, in a call that began after the record's last failure.
    Record,
}

/// A failed call. `seen`: when it ended; later by the wait that the dependency has asked for.
#[derive(Clone, Copy, Debug)]
struct Failure {
    span: Span,
    seen: Instant,
    is_suspect: bool,
}

/// The outcomes of a shard's calls.
#[derive(Debug, Default)]
pub(super) struct Outcomes {
    /// The latest begin of a call that has finished a record.
    success: Option<Instant>,
    /// Failures since the last success, each apart from the others; the most recent one last.
    failing: VecDeque<Failure>,
    /// Failed calls since the last success.
    failed_calls: u32,
}

impl Outcomes {
    /// Notes that a call has finished a record.
    pub(super) fn succeeded(&mut self, began: Instant) {
        if is_planted(Bug::OutageNeverEnds) {
            return;
        }
        self.success = self.success.max(Some(began));
        self.failing.clear();
        self.failed_calls = 0;
    }

    /// Notes that a call has failed.
    pub(super) fn call_failed(&mut self) {
        self.failed_calls = self.failed_calls.saturating_add(1);
    }

    /// Notes a failure. `is_suspect`: of a record that is one.
    pub(super) fn failed(&mut self, span: Span, seen: Instant, is_suspect: bool) {
        // Of a batch, records that have failed alone are known already: what is known of them must
        // not be forgotten, or the batch's own records had nothing to be compared with.
        let mut is_known = false;
        for failure in self.failing.iter_mut().filter(|failure| span.holds_more_than(&failure.span)) {
            failure.seen = failure.seen.max(seen);
            is_known = true;
        }
        if is_known {
            return;
        }
        self.failing.retain(|failure| failure.span.is_apart(&span));
        self.failing.push_back(Failure { span, seen, is_suspect });
        if self.failing.len() > MOST_FAILING {
            self.failing.pop_front();
        }
    }

    /// Forgets the failures of a record that has left the shard, as it was at fault.
    pub(super) fn left(&mut self, record: ExtendedSequenceNumber) {
        self.failing.retain(|failure| (failure.span.first, failure.span.last) != (record, record));
    }

    /// Failed calls since the last success.
    pub(super) fn failed_calls(&self) -> u32 {
        self.failed_calls
    }

    /// The number of failures of different records that are not older than `lapse`.
    pub(super) fn failing(&self, now: Instant, lapse: Duration) -> usize {
        self.failing.iter().filter(|failure| is_recent(failure.seen, now, lapse)).count()
    }

    /// Returns whether another record has succeeded in a call that began after this time.
    pub(super) fn has_success_after(&self, time: Option<Instant>) -> bool {
        self.success.is_some_and(|began| time.is_none_or(|time| began > time))
    }

    fn finding(&self, span: &Span, history: &History, now: Instant, lapse: Duration) -> Finding {
        let mut is_doubtful = false;
        for failure in self.failing.iter().filter(|failure| failure.span.is_apart(span) && is_recent(failure.seen, now, lapse)) {
            if !failure.is_suspect {
                return Finding::World;
            }
            is_doubtful = true;
        }
        if is_doubtful { Finding::Doubt } else { succeeded_since(self.success, history) }
    }
}

fn is_recent(seen: Instant, now: Instant, lapse: Duration) -> bool {
    now.saturating_duration_since(seen) <= lapse
}

/// The finding from the latest begin of a successful call.
fn succeeded_since(success: Option<Instant>, history: &History) -> Finding {
    match (success, history.last_failed) {
        (Some(began), Some(last)) if began > last => Finding::Record,
        _ => Finding::Unknown,
    }
}

/// Returns whether others have succeeded since records failed first. Of one record only what came
/// after its own first failure counts: when a batch failed that it was in, it may have been another
/// one's fault, and the successes since then say nothing of this one.
fn is_suspect(success: Option<Instant>, span: &Span, history: &History) -> bool {
    let first_failed = if span.first == span.last { history.first_own } else { history.first_failed };
    success.zip(first_failed).is_some_and(|(began, first)| began > first)
}

/// A summary of the outcomes of one shard, or of several.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Standing {
    /// The latest begin of a call that has finished a record.
    began: Option<Instant>,
    /// The latest end of one.
    ended: Option<Instant>,
    /// The latest failure of a record that is no suspect.
    failed: Option<Instant>,
    /// The latest failure of one that is.
    doubted: Option<Instant>,
}

impl Standing {
    fn and(self, other: Self) -> Self {
        Self {
            began: self.began.max(other.began),
            ended: self.ended.max(other.ended),
            failed: self.failed.max(other.failed),
            doubted: self.doubted.max(other.doubted),
        }
    }

    fn stands(&self, failed: Option<Instant>, now: Instant, lapse: Duration) -> bool {
        failed.is_some_and(|failed| Some(failed) > self.ended && is_recent(failed, now, lapse))
    }

    /// Returns whether the most recent outcome is a failure.
    pub(super) fn is_failing(&self, now: Instant, lapse: Duration) -> bool {
        self.stands(self.failed.max(self.doubted), now, lapse)
    }

    fn finding(&self, history: &History, now: Instant, lapse: Duration) -> Finding {
        if self.stands(self.failed, now, lapse) {
            Finding::World
        } else if self.stands(self.doubted, now, lapse) {
            Finding::Doubt
        } else {
            succeeded_since(self.began, history)
        }
    }
}

/// The standings of a worker's shards.
#[derive(Debug, Default)]
pub(crate) struct Neighbours(Mutex<BTreeMap<ShardId, Standing>>);

impl Neighbours {
    fn change(&self, shard: &ShardId, change: impl FnOnce(&mut Standing)) {
        // A standing is changed as a whole: no panic leaves it half done.
        let mut standings = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match standings.get_mut(shard) {
            Some(standing) => change(standing),
            None => change(standings.entry(shard.clone()).or_default()),
        }
    }

    /// Notes that a call of the shard has finished a record.
    pub(super) fn succeeded(&self, shard: &ShardId, began: Instant, now: Instant) {
        self.change(shard, |standing| {
            *standing = Standing { began: standing.began.max(Some(began)), ended: standing.ended.max(Some(now)), ..Standing::default() };
        });
    }

    /// Notes a failure of the shard. `is_suspect`: of a record that is one.
    pub(super) fn failed(&self, shard: &ShardId, seen: Instant, is_suspect: bool) {
        self.change(shard, |standing| {
            let latest = if is_suspect { &mut standing.doubted } else { &mut standing.failed };
            *latest = (*latest).max(Some(seen));
        });
    }

    /// Forgets a shard that this worker has left.
    pub(super) fn left(&self, shard: &ShardId) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(shard);
    }

    /// The standing of all shards but this one.
    pub(super) fn others(&self, shard: &ShardId) -> Standing {
        let standings = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let others = standings.iter().filter(|(other, _)| *other != shard);
        others.fold(Standing::default(), |sum, (_, standing)| sum.and(*standing))
    }
}

/// The evidence at the end of a call.
#[derive(Clone, Copy, Debug)]
pub(super) struct Evidence<'a> {
    pub(super) group: GroupKey,
    pub(super) shard: &'a Outcomes,
    /// The worker's other shards.
    pub(super) others: Standing,
    /// No other record of the shard can be tried: a success of other shards is evidence, too.
    pub(super) is_alone: bool,
    pub(super) now: Instant,
    /// The age from which on a failure is no evidence any more.
    pub(super) lapse: Duration,
}

impl Evidence<'_> {
    /// The finding of the shard's own outcomes.
    fn of_shard(&self, span: &Span, history: &History) -> Finding {
        self.shard.finding(span, history, self.now, self.lapse)
    }

    /// The finding on records that have failed. `history`: before this failure.
    ///
    /// The shard's own outcomes come first. Those of other shards are asked if these say nothing, or
    /// not enough: a failure there protects the record; a success there is believed only where no
    /// other record of this shard can be tried.
    pub(super) fn of(&self, span: &Span, history: &History) -> Finding {
        let shard = self.of_shard(span, history);
        if matches!(shard, Finding::World | Finding::Record) {
            return shard;
        }
        match self.others.finding(history, self.now, self.lapse) {
            Finding::World => Finding::World,
            Finding::Doubt => Finding::Doubt,
            Finding::Record if self.is_alone && shard == Finding::Unknown => Finding::Record,
            _ => shard,
        }
    }

    /// Returns whether these records are suspects to the shard's other records, and to other shards:
    /// others have succeeded since they failed first.
    pub(super) fn suspects(&self, span: &Span, history: &History) -> (bool, bool) {
        let of_shard = is_suspect(self.shard.success, span, history);
        (of_shard, of_shard || is_suspect(self.others.began, span, history))
    }
}

/// The place of the record for a probe among records that wait, in order: one of another key than
/// all before it, of those the one that was tried least. `None`: there is none. Records without a
/// key are never chosen.
pub(super) fn probe_of<'a>(entries: impl Iterator<Item = &'a Entry>) -> Option<usize> {
    let mut seen = BTreeSet::new();
    let mut best: Option<(u32, usize)> = None;
    for (index, entry) in entries.enumerate() {
        let Some(key) = entry.record.partition_key() else { continue };
        if seen.insert(key) && index > 0 {
            let candidate = (entry.history.attempts, index);
            best = Some(best.map_or(candidate, |best| best.min(candidate)));
        }
    }
    best.map(|(_, index)| index)
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::record::Record;

    const LAPSE: Duration = Duration::from_secs(80);

    fn at(number: u128) -> ExtendedSequenceNumber {
        ExtendedSequenceNumber::whole(number.into())
    }

    fn span(group: GroupKey, first: u128, last: u128) -> Span {
        Span { group, first: at(first), last: at(last) }
    }

    /// Seconds after a fixed start.
    fn seconds(start: Instant, seconds: u64) -> Instant {
        start + Duration::from_secs(seconds)
    }

    /// A record that failed first and last at these seconds.
    fn failed(start: Instant, first: u64, last: u64) -> History {
        let first = Some(seconds(start, first));
        History { first_failed: first, first_own: first, last_failed: Some(seconds(start, last)), ..History::default() }
    }

    #[test]
    fn what_failed_alone_is_not_forgotten_when_its_batch_fails_again() {
        let start = Instant::now();
        let mut outcomes = Outcomes::default();
        outcomes.failed(span(0, 2, 2), seconds(start, 10), false);
        outcomes.failed(span(0, 1, 2), seconds(start, 12), false);
        let finding = outcomes.finding(&span(0, 1, 1), &failed(start, 1, 12), seconds(start, 15), LAPSE);
        assert_eq!(finding, Finding::World, "the second has failed alone as well");
    }

    #[test]
    fn a_failure_of_another_group_is_remembered_beside_that_of_a_record() {
        let start = Instant::now();
        for other in [span(7, 1, 9), span(7, 2, 2), span(0, 3, 9)] {
            let mut outcomes = Outcomes::default();
            outcomes.failed(span(0, 2, 2), start, false);
            outcomes.failed(other, start, false);
            assert_eq!(outcomes.failing(start, LAPSE), 2, "{other:?}");
        }
    }

    #[test]
    fn failed_calls_are_counted_from_the_last_success_on() {
        let mut outcomes = Outcomes::default();
        for expected in [1, 2] {
            outcomes.call_failed();
            assert_eq!(outcomes.failed_calls(), expected);
        }
        outcomes.succeeded(Instant::now());
        assert_eq!(outcomes.failed_calls(), 0);
    }

    #[test]
    fn a_success_counts_after_a_time_if_its_call_began_later() {
        let start = Instant::now();
        let mut outcomes = Outcomes::default();
        assert!(!outcomes.has_success_after(None), "nothing has succeeded");
        outcomes.succeeded(seconds(start, 10));
        for (time, expected) in [(None, true), (Some(9), true), (Some(10), false), (Some(11), false)] {
            assert_eq!(outcomes.has_success_after(time.map(|time| seconds(start, time))), expected, "{time:?}");
        }
    }

    #[test]
    fn shards_fail_until_one_of_them_ends_a_call_with_success() {
        let start = Instant::now();
        // Failures of a record or a suspect, successes: seconds, each of a shard of its own => whether it stands 30 s after the start.
        for (failed, suspected, ended, now, is_failing) in [
            (None, None, None, 30, false),
            (Some(20), None, None, 30, true),
            (None, Some(20), None, 30, true),
            (Some(20), None, Some(19), 30, true),
            (Some(20), None, Some(20), 30, false),
            (Some(20), None, Some(21), 30, false),
            (Some(18), Some(20), Some(19), 30, true),
            (Some(20), None, None, 100, true),
            (Some(20), None, None, 101, false), // too long ago
            (Some(20), None, Some(21), 101, false),
        ] {
            let neighbours = Neighbours::default();
            failed.into_iter().for_each(|at| neighbours.failed(&"1".into(), seconds(start, at), false));
            suspected.into_iter().for_each(|at| neighbours.failed(&"2".into(), seconds(start, at), true));
            ended.into_iter().for_each(|at| neighbours.succeeded(&"3".into(), seconds(start, at - 1), seconds(start, at)));
            let standing = neighbours.others(&"4".into());
            assert_eq!(standing.is_failing(seconds(start, now), LAPSE), is_failing, "{failed:?} {suspected:?} {ended:?} {now}");
        }
    }

    /// An outcome of another record in a table of cases.
    enum Other {
        /// A call that began then.
        Success(u64),
        /// Of this span, at this time.
        Failure(Span, u64),
        /// As `Failure`, of a suspect.
        Suspect(Span, u64),
    }

    #[test]
    fn the_most_recent_outcome_of_other_records_decides() {
        use Other::{Failure, Success, Suspect};
        let start = Instant::now();
        let me = span(0, 5, 5);
        for (outcomes, expected) in [
            (vec![], Finding::Unknown),
            (vec![Success(9)], Finding::Unknown),  // before it failed first
            (vec![Success(10)], Finding::Unknown), // the call began before its failure was known
            (vec![Success(11)], Finding::Unknown), // before it failed last
            (vec![Success(20)], Finding::Unknown), // the call began before that failure was known
            (vec![Success(21)], Finding::Record),
            (vec![Failure(span(0, 5, 5), 22)], Finding::Unknown), // itself
            (vec![Failure(span(0, 1, 9), 22)], Finding::Unknown), // a batch that it was in
            (vec![Failure(span(0, 6, 9), 22)], Finding::World),
            (vec![Failure(span(7, 1, 9), 22)], Finding::World), // another key
            (vec![Failure(span(0, 6, 6), 22), Success(21)], Finding::Record),
            (vec![Suspect(span(0, 6, 6), 22)], Finding::Doubt),
            (vec![Success(21), Suspect(span(0, 6, 6), 22)], Finding::Doubt),
            (vec![Suspect(span(0, 6, 6), 22), Success(21)], Finding::Record),
            (vec![Suspect(span(0, 6, 6), 22), Failure(span(0, 7, 7), 23)], Finding::World),
            (vec![Suspect(me, 22)], Finding::Unknown), // itself
            (vec![Success(21), Failure(span(0, 6, 6), 22)], Finding::World),
            (vec![Failure(span(0, 6, 6), 22), Failure(me, 23)], Finding::World),
        ] {
            let mut book = Outcomes::default();
            for outcome in &outcomes {
                match outcome {
                    Success(began) => book.succeeded(seconds(start, *began)),
                    Failure(span, seen) => book.failed(*span, seconds(start, *seen), false),
                    Suspect(span, seen) => book.failed(*span, seconds(start, *seen), true),
                }
            }
            let evidence =
                Evidence { group: 0, shard: &book, others: Standing::default(), is_alone: false, now: seconds(start, 30), lapse: LAPSE };
            assert_eq!(evidence.of(&me, &failed(start, 10, 20)), expected);
        }
    }

    #[test]
    fn failures_fade_and_those_of_records_that_left_are_forgotten() {
        let start = Instant::now();
        let mut book = Outcomes::default();
        book.failed(span(0, 1, 1), start, false);
        book.failed(span(0, 2, 4), seconds(start, 10), false);
        assert_eq!(book.failing(seconds(start, 80), LAPSE), 2);
        assert_eq!(book.failing(seconds(start, 81), LAPSE), 1);
        book.failed(span(0, 3, 3), seconds(start, 11), true);
        assert_eq!(book.failing(seconds(start, 11), LAPSE), 2, "a part of a batch takes its place");
        let of_first = |book: &Outcomes| book.finding(&span(0, 2, 9), &History::default(), seconds(start, 11), LAPSE);
        assert_eq!(of_first(&book), Finding::World);
        book.left(at(1));
        assert_eq!((book.failing(seconds(start, 11), LAPSE), of_first(&book)), (1, Finding::Unknown), "the other one stays");
        for number in 10..30 {
            book.failed(span(0, number, number), seconds(start, 12), false);
        }
        assert_eq!(book.failing(seconds(start, 12), LAPSE), MOST_FAILING);
    }

    #[test]
    fn other_shards_are_asked_where_the_shard_itself_says_nothing() {
        let start = Instant::now();
        let (neighbours, mine, theirs) = (Neighbours::default(), ShardId::from("1"), ShardId::from("2"));
        let me = span(0, 5, 5);
        let history = failed(start, 10, 20);
        let finding = |own: Option<u64>, is_alone| {
            let mut book = Outcomes::default();
            own.into_iter().for_each(|began| book.succeeded(seconds(start, began)));
            let others = neighbours.others(&mine);
            let evidence = Evidence { group: 0, shard: &book, others, is_alone, now: seconds(start, 30), lapse: LAPSE };
            evidence.of(&me, &history)
        };
        let (record, unknown) = (Finding::Record, Finding::Unknown);
        neighbours.failed(&mine, seconds(start, 29), false);
        assert_eq!(finding(None, true), unknown, "its own shard is no other");
        neighbours.failed(&theirs, seconds(start, 21), false);
        for (own, expected) in [(None, Finding::World), (Some(15), Finding::World), (Some(25), record)] {
            assert_eq!(finding(own, true), expected, "{own:?}");
        }
        neighbours.succeeded(&theirs, seconds(start, 22), seconds(start, 23));
        for (own, is_alone, expected) in
            [(None, false, unknown), (None, true, record), (Some(15), false, unknown), (Some(15), true, record)]
        {
            assert_eq!(finding(own, is_alone), expected, "{own:?} {is_alone}");
        }
        neighbours.failed(&theirs, seconds(start, 24), true);
        assert_eq!((finding(None, true), finding(Some(25), true)), (Finding::Doubt, record));
        neighbours.failed(&theirs, seconds(start, 25), false);
        assert_eq!(finding(None, true), Finding::World);
        neighbours.left(&theirs);
        assert_eq!(finding(None, true), unknown);
    }

    #[test]
    fn a_record_that_fails_while_others_succeed_is_a_suspect() {
        let start = Instant::now();
        let mut book = Outcomes::default();
        let suspects = |book: &Outcomes, others: Standing, history: &History| {
            let evidence = Evidence { group: 0, shard: book, others, is_alone: true, now: seconds(start, 30), lapse: LAPSE };
            evidence.suspects(&span(0, 5, 5), history)
        };
        let none = Standing::default();
        let elsewhere = Standing { began: Some(seconds(start, 12)), ..none };
        assert_eq!(suspects(&book, none, &History::default()), (false, false));
        assert_eq!(suspects(&book, none, &failed(start, 10, 20)), (false, false));
        assert_eq!(suspects(&book, elsewhere, &failed(start, 10, 20)), (false, true));
        book.succeeded(seconds(start, 10));
        assert_eq!(suspects(&book, none, &failed(start, 10, 20)), (false, false), "the call began before its failure was known");
        book.succeeded(seconds(start, 11));
        assert_eq!(suspects(&book, none, &failed(start, 10, 20)), (true, true));
        assert_eq!(suspects(&book, none, &failed(start, 12, 20)), (false, false));
    }

    #[test]
    fn a_record_that_has_failed_in_a_batch_only_is_no_suspect() {
        let start = Instant::now();
        let mut book = Outcomes::default();
        // The batch failed because of a bad record, which has left since; then others succeeded.
        let history = History { first_own: None, ..failed(start, 10, 10) };
        book.succeeded(seconds(start, 12));
        let evidence =
            Evidence { group: 0, shard: &book, others: Standing::default(), is_alone: false, now: seconds(start, 30), lapse: LAPSE };
        for (span, is_suspect) in [(span(0, 5, 5), false), (span(0, 5, 6), true)] {
            assert_eq!(evidence.suspects(&span, &history), (is_suspect, is_suspect), "{span:?}");
        }
    }

    #[test]
    fn a_probe_is_of_another_key_than_all_before_it_and_was_tried_least() {
        let entries = |words: &str| -> Vec<Entry> {
            let entry = |(number, word): (usize, &str)| {
                let (key, attempts) = word.split_at(1);
                let key = (key != "-").then(|| key.to_owned());
                let mut entry = Entry::new(Record::new((number as u128).into(), key, Bytes::new(), None));
                entry.history.attempts = attempts.parse().unwrap();
                entry
            };
            words.split(' ').enumerate().map(entry).collect()
        };
        for (words, expected) in [
            ("a5", None),
            ("a5 a0", None),
            ("a5 -0", None),
            ("a5 a0 b0 c0", Some(2)),
            ("a5 b1 c0 d0", Some(2)),
            ("a5 b1 c1 b0", Some(1)),
            ("-5 a0", Some(1)),
            ("-5 -0 a1 a0", Some(2)),
        ] {
            assert_eq!(probe_of(entries(words).iter()), expected, "{words}");
        }
    }
}
