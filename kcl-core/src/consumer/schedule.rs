//! Which records of a shard wait for a call, in which order, and what holds them back: plain data.
//!
//! Records form groups whose order is kept. With one lane all records of the shard are one group; with several lanes each partition key is one. A group
//! is in at most one call at a time. Of the groups that may be called, the one whose first record is the oldest is called first.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::time::Duration;

use kcl_checkpoint::planted::{Bug, is_planted};
use kcl_checkpoint::{ExtendedSequenceNumber, SequenceNumber, Timestamp};
use tokio::time::Instant;

use super::breaker::{Finding, probe_of};
use super::settings::Batching;
use crate::record::Record;

/// Names a group. Two keys that share one only wait for each other.
pub(super) type GroupKey = u64;

/// What a record has been through.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct History {
    /// Failed calls that it took part in.
    pub(super) attempts: u32,
    /// Failed calls that it is to blame for.
    pub(super) failures: u32,
    /// Those of them that count: since others succeed.
    pub(super) counted: u32,
    /// When the first of the failed calls ended.
    pub(super) first_failure: Option<Timestamp>,
    /// As `first_failure`.
    pub(super) first_failed: Option<Instant>,
    /// The end of the first failed call that it is to blame for. Before it nothing was known of this
    /// record alone: a batch that fails may fail because of another one.
    pub(super) first_own: Option<Instant>,
    /// When the last of the failed calls ended.
    pub(super) last_failed: Option<Instant>,
    /// The begin of its patience: the first failure, or the last one that was the world's.
    pub(super) waits_since: Option<Instant>,
}

impl History {
    /// Returns whether the record's patience has lasted for so long.
    pub(super) fn has_waited(&self, patience: Duration, now: Instant) -> bool {
        self.waits_since.is_some_and(|since| now.saturating_duration_since(since) >= patience)
    }

    /// Notes a failed call that the record took part in, with what others say of it. `is_to_blame`:
    /// it is known to be of this record.
    pub(super) fn failed(&mut self, now: Instant, wall: Timestamp, finding: Finding, is_to_blame: bool) {
        let is_first = self.first_own.is_none();
        self.attempts = self.attempts.saturating_add(1);
        self.failures = self.failures.saturating_add(u32::from(is_to_blame));
        self.first_failure.get_or_insert(wall);
        self.first_failed.get_or_insert(now);
        if is_to_blame {
            self.first_own.get_or_insert(now);
        }
        self.last_failed = Some(now);
        match finding {
            Finding::World => (self.counted, self.waits_since) = (0, Some(now)),
            Finding::Doubt => self.waits_since = Some(now),
            Finding::Record => self.counted = self.counted.saturating_add(u32::from(is_to_blame)),
            Finding::Unknown => self.counted += u32::from(is_to_blame && is_first),
        }
        self.waits_since.get_or_insert(now);
    }
}

/// A record that is not finished.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) record: Record,
    pub(super) history: History,
    /// A call ends before it.
    pub(super) cut: bool,
}

impl Entry {
    pub(super) fn new(record: Record) -> Self {
        Self { record, history: History::default(), cut: false }
    }
}

impl From<Record> for Entry {
    fn from(record: Record) -> Self {
        Self::new(record)
    }
}

/// What keeps a group back after a call.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Hold {
    /// Not called before.
    pub(super) not_before: Option<Instant>,
    /// So many of its records are on their way to the dead-letter queue, and the others wait for that.
    pub(super) letters: usize,
    /// Its first record can't be processed, and there is no queue for it.
    pub(super) blocked: bool,
}

#[derive(Debug, Default)]
struct Group {
    queue: VecDeque<Entry>,
    in_work: bool,
    hold: Hold,
    place: Place,
    /// The end of the wait for a larger batch, once it has begun.
    filled_by: Option<Instant>,
    /// Records up to this one don't wait for more: they were called before, or have waited.
    filled_through: Option<ExtendedSequenceNumber>,
}

impl Group {
    /// Returns whether its next call waits for more records.
    fn wants_more(&self, batching: &Batching) -> bool {
        let Some(head) = self.queue.front().map(|entry| entry.record.position()) else { return false };
        let has_waited = self.filled_through.is_some_and(|through| head <= through);
        let is_full = || self.queue.iter().map(|entry| entry.record.size()).sum::<usize>() >= batching.max_bytes;
        self.queue.len() < batching.min_records && !has_waited && !is_full()
    }
}

/// In which of the two orders a group stands.
#[derive(Clone, Copy, Debug, Default)]
enum Place {
    #[default]
    Nowhere,
    Ready(ExtendedSequenceNumber),
    Waiting(Instant),
    /// Until then, if the wait has begun.
    Filling(Option<Instant>),
}

/// See the module.
#[derive(Debug)]
pub(super) struct Schedule {
    by_key: bool,
    groups: BTreeMap<GroupKey, Group>,
    ready: BTreeSet<(ExtendedSequenceNumber, GroupKey)>,
    waiting: BTreeSet<(Instant, GroupKey)>,
    /// Groups that wait for a larger batch. `None`: since just now.
    filling: BTreeSet<(Option<Instant>, GroupKey)>,
    batching: Batching,
    /// Nothing more comes: groups don't wait for larger batches.
    is_flushed: bool,
    blocked: usize,
    open: usize,
    open_bytes: usize,
    /// Open records of each aggregate: any of them keeps all of its bytes in memory.
    open_parts: BTreeMap<SequenceNumber, usize>,
}

impl Schedule {
    pub(super) fn new(by_key: bool, batching: Batching) -> Self {
        Self {
            by_key,
            groups: BTreeMap::new(),
            ready: BTreeSet::new(),
            waiting: BTreeSet::new(),
            filling: BTreeSet::new(),
            batching,
            is_flushed: false,
            blocked: 0,
            open: 0,
            open_bytes: 0,
            open_parts: BTreeMap::new(),
        }
    }

    /// An empty one with the same settings.
    pub(super) fn anew(&self) -> Self {
        Self::new(self.by_key, self.batching)
    }

    /// The group that a record belongs to.
    pub(super) fn group_of(&self, record: &Record) -> GroupKey {
        if !self.by_key {
            return 0;
        }
        let mut hasher = DefaultHasher::new();
        if is_planted(Bug::AggregateIsOneKey) && record.is_aggregated() {
            record.sequence_number().hash(&mut hasher);
            return hasher.finish();
        }
        record.partition_key().hash(&mut hasher);
        if is_planted(Bug::KeysNotKeptApart) {
            record.position().hash(&mut hasher);
        }
        hasher.finish()
    }

    /// The next record of the shard.
    pub(super) fn push(&mut self, entry: impl Into<Entry>) {
        let entry = entry.into();
        let group = self.group_of(&entry.record);
        self.hold(&entry.record);
        self.groups.entry(group).or_default().queue.push_back(entry);
        self.place(group);
    }

    /// The records that wait, in order within each group. None is in a call.
    pub(super) fn into_waiting(self) -> Vec<Entry> {
        self.groups.into_values().flat_map(|group| group.queue).collect()
    }

    /// Lets groups whose wait is over be called.
    pub(super) fn wake(&mut self, now: Instant) {
        while let Some((until, group)) = self.waiting.first().copied().filter(|(until, _)| *until <= now) {
            self.waiting.remove(&(until, group));
            if let Some(waiting) = self.groups.get_mut(&group) {
                waiting.hold.not_before = None;
            }
            self.place(group);
        }
        while let Some((until, group)) = self.filling.first().copied().filter(|(until, _)| until.is_none_or(|until| until <= now)) {
            if let Some(filling) = self.groups.get_mut(&group) {
                match until {
                    None if is_planted(Bug::MaxWaitForgotten) => filling.filled_by = Some(now + Duration::from_secs(24 * 3600)),
                    None => filling.filled_by = Some(now + self.batching.max_wait),
                    Some(_) => filling.filled_through = filling.queue.back().map(|entry| entry.record.position()),
                }
            }
            self.place(group);
        }
    }

    /// Nothing more comes (`true`): no group waits for a larger batch.
    pub(super) fn flush(&mut self, is_flushed: bool) {
        self.is_flushed = is_flushed;
        if is_flushed {
            while let Some((_, group)) = self.filling.first().copied() {
                self.place(group);
            }
        }
    }

    /// Returns whether all that is open waits for a larger batch.
    pub(super) fn is_filling(&self) -> bool {
        !self.filling.is_empty() && self.filling.len() == self.groups.len()
    }

    /// The end of the first wait.
    pub(super) fn next_wake(&self) -> Option<Instant> {
        let filling = self.filling.first().and_then(|(until, _)| *until);
        self.waiting.first().map(|(until, _)| *until).into_iter().chain(filling).min()
    }

    pub(super) fn has_ready(&self) -> bool {
        !self.ready.is_empty()
    }

    /// Whether a group waits after a failure.
    pub(super) fn has_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }

    pub(super) fn has_blocked(&self) -> bool {
        self.blocked > 0
    }

    /// Takes the records of the next call into work: of one group, in order, as many as a batch may
    /// have (`most`: or fewer), and only such that come before this one.
    pub(super) fn take(&mut self, most: usize, before: Option<ExtendedSequenceNumber>) -> Option<(GroupKey, Vec<Entry>)> {
        self.take_of(self.ready.first().copied(), most, before)
    }

    /// As [`take`](Self::take), of the group whose first record was tried least: for calls that find
    /// out whether anything can be processed.
    pub(super) fn take_least_tried(&mut self, most: usize, before: Option<ExtendedSequenceNumber>) -> Option<(GroupKey, Vec<Entry>)> {
        let attempts = |key: &GroupKey| self.groups.get(key).and_then(|group| group.queue.front()).map(|entry| entry.history.attempts);
        let next = self.ready.iter().min_by_key(|(head, key)| (attempts(key), *head)).copied();
        self.take_of(next, most, before)
    }

    fn take_of(
        &mut self,
        next: Option<(ExtendedSequenceNumber, GroupKey)>,
        most: usize,
        before: Option<ExtendedSequenceNumber>,
    ) -> Option<(GroupKey, Vec<Entry>)> {
        let may_go = |record: ExtendedSequenceNumber| before.is_none_or(|before| record < before);
        let (_, key) = next.filter(|(head, _)| may_go(*head))?;
        let group = self.groups.get_mut(&key)?;
        let mut bytes = group.queue.front().map_or(0, |entry| entry.record.size());
        let ends_before = |entry: &Entry| {
            bytes += entry.record.size();
            entry.cut || bytes > self.batching.max_bytes || !may_go(entry.record.position())
        };
        let end = group.queue.iter().skip(1).position(ends_before).map_or(group.queue.len(), |index| index + 1);
        let entries = group.queue.drain(..end.min(most).min(self.batching.max_records)).collect();
        group.in_work = true;
        group.filled_by = None;
        self.blocked -= usize::from(std::mem::take(&mut group.hold.blocked));
        self.place(key);
        Some((key, entries))
    }

    /// Ends a call: what is not finished of it comes back, and waits as `hold` says. A cut after it keeps it apart from what came later.
    pub(super) fn put_back(&mut self, key: GroupKey, entries: Vec<Entry>, hold: Hold) {
        let group = self.groups.entry(key).or_default();
        if let Some(next) = group.queue.front_mut().filter(|_| !entries.is_empty()) {
            next.cut = true;
        }
        group.filled_through = group.filled_through.max(entries.last().map(|entry| entry.record.position()));
        for entry in entries.into_iter().rev() {
            group.queue.push_front(entry);
        }
        group.in_work = false;
        group.hold = Hold { letters: group.hold.letters + hold.letters, ..hold };
        self.blocked += usize::from(hold.blocked);
        self.place(key);
    }

    /// The first record of a shard with one lane, while it waits after a failure, and not for want of
    /// a dead-letter queue.
    pub(super) fn waiting_head(&self) -> Option<&Entry> {
        let (_, key) = self.waiting.first().filter(|_| !self.by_key)?;
        let group = self.groups.get(key).filter(|group| !group.hold.blocked)?;
        group.queue.front()
    }

    /// Returns whether there is a record for a probe that was never tried: a record that has failed
    /// before says less of the world.
    pub(super) fn has_untried_probe(&self) -> bool {
        let Some((_, key)) = self.waiting_head().and(self.waiting.first()) else { return false };
        let Some(group) = self.groups.get(key) else { return false };
        probe_of(group.queue.iter()).and_then(|index| group.queue.get(index)).is_some_and(|entry| entry.history.attempts == 0)
    }

    /// Takes a record of another key out of a group whose first record waits: for a call ahead of
    /// that one, which keeps its place and its wait.
    pub(super) fn take_probe(&mut self) -> Option<(GroupKey, Entry)> {
        self.waiting_head()?;
        let (_, key) = self.waiting.first().copied()?;
        let group = self.groups.get_mut(&key)?;
        let entry = group.queue.remove(probe_of(group.queue.iter())?)?;
        if let Some(next) = group.queue.iter_mut().find(|next| next.record.position() > entry.record.position()) {
            next.cut |= entry.cut;
        }
        group.in_work = true;
        self.place(key);
        Some((key, entry))
    }

    /// Ends the call of a probe: unless it is finished it goes back to its place, and the group's
    /// first record waits on. So many of the group's records are on their way to the dead-letter
    /// queue now.
    pub(super) fn put_back_probe(&mut self, key: GroupKey, entries: Vec<Entry>, letters: usize) {
        let group = self.groups.entry(key).or_default();
        for entry in entries {
            let place = group.queue.partition_point(|other| other.record.position() < entry.record.position());
            group.queue.insert(place, entry);
        }
        group.in_work = false;
        group.hold.letters += letters;
        self.place(key);
    }

    /// Returns whether another record than those of this call, which are in work, can be tried: one
    /// of another group or, with one lane, one that a probe may be made with.
    pub(super) fn has_others(&self, key: GroupKey, in_call: &[Entry], may_probe: bool) -> bool {
        if self.by_key {
            return self.groups.keys().any(|other| *other != key);
        }
        let waiting = self.groups.get(&key).into_iter().flat_map(|group| &group.queue);
        may_probe && probe_of(in_call.iter().chain(waiting)).is_some()
    }

    /// A record is open, which may belong to no group.
    pub(super) fn hold(&mut self, record: &Record) {
        self.open += 1;
        if record.is_aggregated() {
            let parts = self.open_parts.entry(record.sequence_number()).or_default();
            *parts += 1;
            if *parts > 1 {
                return;
            }
        }
        self.open_bytes += record.pinned();
    }

    /// Of the records that were taken from a group, so many are on their way to the dead-letter queue; the others, if there are any, are in a call.
    pub(super) fn hold_letters(&mut self, key: GroupKey, letters: usize, in_work: bool) {
        if let Some(group) = self.groups.get_mut(&key) {
            group.hold.letters += letters;
            group.in_work = in_work;
        }
        self.place(key);
    }

    /// One of the group's records was accepted by the dead-letter queue.
    pub(super) fn letter_accepted(&mut self, key: GroupKey) {
        if let Some(group) = self.groups.get_mut(&key) {
            group.hold.letters = group.hold.letters.saturating_sub(1);
        }
        self.place(key);
    }

    /// A record is finished.
    pub(super) fn finished(&mut self, record: &Record) {
        self.open -= 1;
        if let Some(parts) = self.open_parts.get_mut(&record.sequence_number()) {
            *parts -= 1;
            if *parts > 0 {
                return;
            }
            self.open_parts.remove(&record.sequence_number());
        }
        self.open_bytes -= record.pinned();
    }

    /// Records that are not finished, wherever they are.
    pub(super) fn open(&self) -> usize {
        self.open
    }

    /// The bytes that they keep in memory.
    pub(super) fn open_bytes(&self) -> usize {
        self.open_bytes
    }

    /// Puts a group where it now belongs, or drops it if there is nothing left of it.
    fn place(&mut self, key: GroupKey) {
        let Some(group) = self.groups.get_mut(&key) else { return };
        match std::mem::take(&mut group.place) {
            Place::Nowhere => {}
            Place::Ready(head) => {
                self.ready.remove(&(head, key));
            }
            Place::Waiting(until) => {
                self.waiting.remove(&(until, key));
            }
            Place::Filling(until) => {
                self.filling.remove(&(until, key));
            }
        }
        if group.in_work || group.hold.letters > 0 {
            return;
        }
        let Some(head) = group.queue.front().map(|entry| entry.record.position()) else {
            self.groups.remove(&key);
            return;
        };
        match group.hold.not_before {
            Some(until) => {
                group.place = Place::Waiting(until);
                self.waiting.insert((until, key));
            }
            None if !self.is_flushed && group.wants_more(&self.batching) => {
                group.place = Place::Filling(group.filled_by);
                self.filling.insert((group.filled_by, key));
            }
            None => {
                group.place = Place::Ready(head);
                self.ready.insert((head, key));
            }
        }
    }
}

#[cfg(test)]
mod tests {

    use bytes::Bytes;

    use super::*;

    fn record(number: u128, key: &str) -> Record {
        Record::new(number.into(), Some(key.to_owned()), Bytes::from_static(b"data"), None)
    }

    fn schedule(by_key: bool, keys: &str) -> Schedule {
        let mut schedule = Schedule::new(by_key, Batching::up_to(10_000));
        for (number, key) in keys.chars().enumerate() {
            schedule.push(record(number as u128, &key.to_string()));
        }
        schedule
    }

    fn numbers(entries: &[Entry]) -> Vec<u128> {
        entries.iter().map(|entry| entry.record.sequence_number().into_words().1).collect()
    }

    fn take(schedule: &mut Schedule) -> Option<(GroupKey, Vec<u128>, Vec<Entry>)> {
        schedule.take(usize::MAX, None).map(|(key, entries)| (key, numbers(&entries), entries))
    }

    #[test]
    fn one_lane_calls_all_records_in_order_and_one_call_at_a_time() {
        let mut schedule = schedule(false, "abcab");
        let (key, taken, _) = take(&mut schedule).unwrap();
        assert_eq!(taken, [0, 1, 2, 3, 4]);
        schedule.push(record(5, "a"));
        assert!(take(&mut schedule).is_none(), "its group is in work");
        schedule.put_back(key, Vec::new(), Hold::default());
        assert_eq!(take(&mut schedule).unwrap().1, [5]);
    }

    #[test]
    fn keys_are_called_beside_each_other_and_each_in_order() {
        let mut schedule = schedule(true, "abcab");
        let (a, first, _) = take(&mut schedule).unwrap();
        assert_eq!(first, [0, 3]);
        assert_eq!(take(&mut schedule).unwrap().1, [1, 4]);
        assert_eq!(take(&mut schedule).unwrap().1, [2]);
        assert!(take(&mut schedule).is_none());
        schedule.push(record(5, "a"));
        assert!(take(&mut schedule).is_none(), "never two calls of a key");
        schedule.put_back(a, Vec::new(), Hold::default());
        assert_eq!(take(&mut schedule).unwrap().1, [5]);
    }

    #[test]
    fn the_oldest_first_record_is_called_first() {
        let mut schedule = schedule(true, "ab");
        let (a, _, entries) = take(&mut schedule).unwrap();
        schedule.put_back(a, entries, Hold::default());
        assert_eq!(take(&mut schedule).unwrap().1, [0]);
    }

    #[test]
    fn what_comes_back_keeps_its_place_and_waits() {
        let now = Instant::now();
        let mut schedule = schedule(true, "aba");
        let (a, _, entries) = take(&mut schedule).unwrap();
        let until = now + Duration::from_secs(1);
        schedule.put_back(a, entries, Hold { not_before: Some(until), ..Hold::default() });
        assert_eq!(take(&mut schedule).unwrap().1, [1], "another key goes on");
        assert!(take(&mut schedule).is_none());
        assert_eq!(schedule.next_wake(), Some(until));
        schedule.wake(now);
        assert!(take(&mut schedule).is_none());
        schedule.wake(until);
        assert_eq!(take(&mut schedule).unwrap().1, [0, 2]);
    }

    #[test]
    fn a_cut_ends_a_call() {
        let mut schedule = schedule(false, "abcd");
        let (key, _, mut entries) = take(&mut schedule).unwrap();
        schedule.push(record(4, "e"));
        entries[2].cut = true;
        schedule.put_back(key, entries, Hold::default());
        for expected in [vec![0, 1], vec![2, 3], vec![4]] {
            let (key, taken, _) = take(&mut schedule).unwrap();
            assert_eq!(taken, expected);
            schedule.put_back(key, Vec::new(), Hold::default());
        }
        assert!(take(&mut schedule).is_none());
    }

    #[test]
    fn a_group_waits_until_its_letters_are_accepted() {
        let mut schedule = schedule(true, "aab");
        let (a, _, mut entries) = take(&mut schedule).unwrap();
        let condemned = entries.remove(0);
        schedule.put_back(a, entries, Hold { letters: 1, ..Hold::default() });
        assert_eq!(take(&mut schedule).unwrap().1, [2]);
        assert!(take(&mut schedule).is_none());
        schedule.letter_accepted(a);
        schedule.finished(&condemned.record);
        assert_eq!(take(&mut schedule).unwrap().1, [1]);
    }

    #[test]
    fn what_is_not_finished_is_counted_wherever_it_is() {
        let mut schedule = schedule(true, "aab");
        let size = record(0, "a").size();
        assert_eq!((schedule.open(), schedule.open_bytes()), (3, 3 * size));
        let (a, _, mut entries) = take(&mut schedule).unwrap();
        schedule.finished(&entries.remove(0).record);
        assert_eq!((schedule.open(), schedule.open_bytes()), (2, 2 * size));
        schedule.put_back(a, entries, Hold { blocked: true, ..Hold::default() });
        assert!(schedule.has_blocked());
        take(&mut schedule).unwrap();
        assert!(!schedule.has_blocked());
        assert_eq!(schedule.open(), 2);
    }

    #[test]
    fn an_aggregate_keeps_its_bytes_until_the_last_of_its_records_is_finished() {
        let parts = |number: u128, count: usize| -> Vec<Record> {
            let mut aggregator = kcl_aggregation::Aggregator::new(usize::MAX);
            (0..count).for_each(|_| aggregator.add("key", None, "data").unwrap());
            let aggregate = Record::new(number.into(), None, aggregator.finish().unwrap().payload, None);
            match kcl_aggregation::disaggregate(aggregate.data(), None, &Default::default()) {
                kcl_aggregation::Disaggregated::Aggregate(parts) => {
                    parts.into_iter().map(|part| Record::of_aggregate(&aggregate, part)).collect()
                }
                _ => panic!("it is an aggregate"),
            }
        };
        let (first, second, plain) = (parts(1, 3), parts(2, 2), record(3, "a"));
        let (size_1, size_2, size_3) = (first[0].pinned(), second[0].pinned(), plain.size());
        let mut schedule = Schedule::new(false, Batching::up_to(10_000));
        let mut expected = 0;
        for (record, more) in first.iter().chain(&second).chain([&plain]).zip([size_1, 0, 0, size_2, 0, size_3]) {
            schedule.push(record.clone());
            expected += more;
            assert_eq!(schedule.open_bytes(), expected, "{record:?} comes");
        }
        assert_eq!(schedule.open(), 6);
        for (record, less) in [(&first[0], 0), (&second[1], 0), (&first[2], 0), (&first[1], size_1), (&plain, size_3), (&second[0], size_2)]
        {
            schedule.finished(record);
            expected -= less;
            assert_eq!(schedule.open_bytes(), expected, "{record:?} is finished");
        }
        assert_eq!((schedule.open(), schedule.open_bytes()), (0, 0));
    }

    #[test]
    fn a_group_waits_for_all_of_its_letters_whenever_they_were_written() {
        let mut schedule = schedule(true, "aaab");
        let (a, _, mut entries) = take(&mut schedule).unwrap();
        entries.truncate(1);
        schedule.hold_letters(a, 1, true);
        schedule.push(record(4, "a"));
        schedule.put_back(a, entries, Hold { letters: 1, ..Hold::default() });
        assert_eq!(take(&mut schedule).unwrap().1, [3]);
        for accepted in 0..2 {
            assert!(take(&mut schedule).is_none(), "{accepted} of two are accepted");
            schedule.letter_accepted(a);
        }
        let (_, taken, _) = take(&mut schedule).unwrap();
        assert_eq!(taken, [0]);
        // The rest of the call is on its way to the queue; nothing is in work.
        schedule.hold_letters(a, 1, false);
        assert!(take(&mut schedule).is_none());
        schedule.letter_accepted(a);
        assert_eq!(take(&mut schedule).unwrap().1, [4]);
    }

    #[test]
    fn what_is_ready_waits_or_is_filled_is_told() {
        let now = Instant::now();
        let mut schedule = Schedule::new(true, Batching { min_records: 2, max_wait: Duration::from_secs(10), ..Batching::default() });
        let told = |schedule: &Schedule| (schedule.has_ready(), schedule.has_waiting(), schedule.is_filling());
        assert_eq!(told(&schedule), (false, false, false), "nothing is there");
        schedule.push(record(0, "a"));
        assert_eq!(told(&schedule), (false, false, true));
        schedule.push(record(1, "b"));
        schedule.push(record(2, "b"));
        assert_eq!(told(&schedule), (true, false, false), "one is filled, and one waits to be");
        let (b, _, entries) = take(&mut schedule).unwrap();
        assert_eq!(told(&schedule), (false, false, false), "one is in work");
        schedule.put_back(b, entries, Hold { not_before: Some(now), ..Hold::default() });
        assert_eq!(told(&schedule), (false, true, false));
    }

    #[test]
    fn what_waits_is_given_back_in_order() {
        assert_eq!(numbers(&schedule(false, "abc").into_waiting()), [0, 1, 2]);
        let by_key = numbers(&schedule(true, "abab").into_waiting());
        assert!(by_key == [0, 2, 1, 3] || by_key == [1, 3, 0, 2], "{by_key:?}");
    }

    #[test]
    fn at_most_so_many_are_taken() {
        let mut schedule = schedule(false, "abcde");
        let (key, entries) = schedule.take(2, None).unwrap();
        assert_eq!(numbers(&entries), [0, 1]);
        schedule.put_back(key, Vec::new(), Hold::default());
        assert_eq!(take(&mut schedule).unwrap().1, [2, 3, 4]);
    }

    #[test]
    fn a_call_has_no_more_records_and_bytes_than_a_batch_may() {
        let size = record(0, "a").size();
        for (batching, expected) in [
            (Batching::up_to(2), vec![0, 1]),
            (Batching { max_bytes: 3 * size, ..Batching::default() }, vec![0, 1, 2]),
            (Batching { max_bytes: 1, ..Batching::default() }, vec![0]),
        ] {
            let mut schedule = Schedule::new(false, batching);
            (0..5).for_each(|number| schedule.push(record(number, "a")));
            assert_eq!(take(&mut schedule).unwrap().1, expected, "{batching:?}");
        }
    }

    #[test]
    fn a_batch_waits_to_be_filled_for_a_while() {
        let (now, wait) = (Instant::now(), Duration::from_secs(10));
        let batching = Batching { min_records: 3, max_wait: wait, ..Batching::default() };
        let mut schedule = Schedule::new(false, batching);
        schedule.push(record(0, "a"));
        schedule.wake(now);
        assert!(take(&mut schedule).is_none() && schedule.is_filling() && !schedule.has_waiting());
        assert_eq!(schedule.next_wake(), Some(now + wait));
        schedule.push(record(1, "a"));
        schedule.wake(now + wait / 2);
        assert_eq!(schedule.next_wake(), Some(now + wait), "from the first record on");
        schedule.push(record(2, "a"));
        let (key, taken, entries) = take(&mut schedule).unwrap();
        assert_eq!(taken, [0, 1, 2], "it is full");
        schedule.push(record(3, "a"));
        schedule.put_back(key, entries, Hold::default());
        let (key, taken, _) = take(&mut schedule).unwrap();
        assert_eq!(taken, [0, 1, 2], "what has failed does not wait");
        schedule.put_back(key, Vec::new(), Hold::default());
        assert!(take(&mut schedule).is_none());
        schedule.wake(now + wait);
        schedule.wake(now + wait * 2);
        let (key, taken, _) = take(&mut schedule).unwrap();
        assert_eq!(taken, [3], "it has waited");
        schedule.put_back(key, Vec::new(), Hold::default());
        schedule.push(record(4, "a"));
        assert!(take(&mut schedule).is_none());
        schedule.flush(true);
        assert_eq!(take(&mut schedule).unwrap().1, [4], "nothing more comes");
    }

    #[test]
    fn what_has_waited_once_does_not_wait_again() {
        let now = Instant::now();
        let batching = Batching { min_records: 4, max_wait: Duration::from_secs(10), ..Batching::default() };
        let mut schedule = Schedule::new(false, batching);
        let mut cut = Entry::new(record(1, "a"));
        cut.cut = true;
        schedule.push(record(0, "a"));
        schedule.push(cut);
        schedule.push(record(2, "a"));
        schedule.wake(now);
        schedule.wake(now + batching.max_wait);
        let (key, taken, _) = take(&mut schedule).unwrap();
        assert_eq!(taken, [0], "the call ends before a cut");
        schedule.push(record(3, "a"));
        schedule.put_back(key, Vec::new(), Hold::default());
        let (key, taken, entries) = take(&mut schedule).unwrap();
        assert_eq!(taken, [1, 2, 3], "the first of them has waited");
        schedule.push(record(4, "a"));
        schedule.put_back(key, entries, Hold::default());
        let (key, taken, _) = take(&mut schedule).unwrap();
        assert_eq!(taken, [1, 2, 3], "they were called before");
        schedule.put_back(key, Vec::new(), Hold::default());
        assert!(take(&mut schedule).is_none(), "it has not waited");
    }

    #[test]
    fn a_batch_that_has_all_its_bytes_waits_for_no_more_records() {
        let batching = Batching { min_records: 4, max_bytes: 10, max_wait: Duration::from_secs(10), ..Batching::default() };
        let mut schedule = Schedule::new(true, batching);
        schedule.push(record(0, "a"));
        assert!(take(&mut schedule).is_none());
        schedule.push(record(1, "a"));
        assert_eq!(take(&mut schedule).unwrap().1, [0, 1], "no more would fit");
    }

    #[test]
    fn a_probe_goes_ahead_of_a_first_record_that_waits_and_back_to_its_place() {
        let now = Instant::now();
        let until = now + Duration::from_secs(1);
        let mut schedule = schedule(false, "aabc");
        let (key, _, mut entries) = take(&mut schedule).unwrap();
        assert!(schedule.take_probe().is_none(), "its group is in work");
        entries[2].cut = true;
        schedule.put_back(key, entries, Hold { not_before: Some(until), ..Hold::default() });
        assert!(schedule.has_others(key, &[], true) && !schedule.has_others(key, &[], false));

        let (_, mut probe) = schedule.take_probe().unwrap();
        assert_eq!(numbers(std::slice::from_ref(&probe)), [2]);
        schedule.wake(until);
        assert!(take(&mut schedule).is_none() && schedule.take_probe().is_none(), "one call at a time");
        probe.history.attempts = 1;
        schedule.put_back_probe(key, vec![probe], 0);
        assert_eq!(schedule.next_wake(), Some(until), "the first one waits as before");
        let (_, probe) = schedule.take_probe().unwrap();
        assert_eq!(numbers(&[probe]), [3], "it was tried less");
        schedule.put_back_probe(key, Vec::new(), 0);
        schedule.wake(until);
        assert!(schedule.take_probe().is_none(), "nothing waits");
        assert_eq!(take(&mut schedule).unwrap().1, [0, 1]);
    }

    #[test]
    fn a_probe_takes_its_batchs_end_along() {
        let mut schedule = schedule(false, "abc");
        let (key, _, mut entries) = take(&mut schedule).unwrap();
        (entries[1].cut, entries[2].history.attempts) = (true, 1);
        schedule.put_back(key, entries, Hold { not_before: Some(Instant::now()), ..Hold::default() });
        schedule.take_probe().unwrap();
        schedule.put_back_probe(key, Vec::new(), 1);
        schedule.wake(Instant::now());
        assert!(take(&mut schedule).is_none(), "it is on its way to the queue");
        schedule.letter_accepted(key);
        schedule.wake(Instant::now());
        let (key, taken, _) = take(&mut schedule).unwrap();
        assert_eq!(taken, [0]);
        schedule.put_back(key, Vec::new(), Hold::default());
        assert_eq!(take(&mut schedule).unwrap().1, [2]);
    }

    #[test]
    fn a_probe_is_untried_if_no_record_has_failed_less() {
        let until = Instant::now();
        // Attempts of the first record, and of two of other keys.
        for (attempts, is_untried) in [([1, 0, 0], true), ([1, 0, 1], true), ([1, 1, 0], true), ([1, 1, 1], false), ([0, 1, 2], false)] {
            let mut schedule = schedule(false, "abc");
            let (key, _, mut entries) = take(&mut schedule).unwrap();
            assert!(!schedule.has_untried_probe(), "nothing waits");
            entries.iter_mut().zip(attempts).for_each(|(entry, attempts)| entry.history.attempts = attempts);
            schedule.put_back(key, entries, Hold { not_before: Some(until), ..Hold::default() });
            assert_eq!(schedule.has_untried_probe(), is_untried, "{attempts:?}");
        }
    }

    #[test]
    fn a_group_alone_has_no_others() {
        for (keys, has_others) in [("a", false), ("aa", false), ("ab", true)] {
            let mut schedule = schedule(true, keys);
            let (a, _, entries) = take(&mut schedule).unwrap();
            assert_eq!(schedule.has_others(a, &entries, true), has_others, "{keys}");
        }
    }

    #[test]
    fn patience_lasts_from_the_first_failure_on() {
        let now = Instant::now();
        let second = Duration::from_secs(1);
        let failed = History { waits_since: Some(now), ..History::default() };
        for (patience, later, has_waited) in
            [(second, Duration::ZERO, false), (second, second, true), (Duration::ZERO, Duration::ZERO, true)]
        {
            assert_eq!(failed.has_waited(patience, now + later), has_waited, "{patience:?} {later:?}");
            assert!(!History::default().has_waited(patience, now + later), "it has not failed");
        }
    }

    #[test]
    fn the_group_that_was_tried_least_comes_first_where_that_is_asked_for() {
        let mut schedule = schedule(true, "ab");
        let (a, _, mut entries) = take(&mut schedule).unwrap();
        entries[0].history.attempts = 1;
        schedule.put_back(a, entries, Hold::default());
        assert_eq!(schedule.take_least_tried(usize::MAX, None).map(|(_, entries)| numbers(&entries)), Some(vec![1]));
        assert!(schedule.has_others(a, &[], false));
    }

    #[test]
    fn what_others_say_of_a_failure_decides_what_counts() {
        let (now, wall) = (Instant::now(), Timestamp::from_millis(1));
        let after = |findings: &[Finding]| {
            let mut history = History::default();
            for (index, finding) in findings.iter().enumerate() {
                history.failed(now + Duration::from_secs(index as u64), wall, *finding, true);
            }
            (history.failures, history.counted, history.waits_since.unwrap().duration_since(now).as_secs())
        };
        let (unknown, world, record) = (Finding::Unknown, Finding::World, Finding::Record);
        assert_eq!(after(&[unknown; 3]), (3, 1, 0), "the first one counts");
        assert_eq!(after(&[unknown, record, record]), (3, 3, 0));
        assert_eq!(after(&[unknown, record, world]), (3, 0, 2), "patience begins anew");
        assert_eq!(after(&[unknown, world, unknown, record]), (4, 1, 1));
        assert_eq!(after(&[unknown, record, Finding::Doubt, record]), (4, 3, 2), "patience begins anew, and nothing else");
    }

    #[test]
    fn only_what_comes_before_a_record_is_taken() {
        let before = |number: u128| Some(ExtendedSequenceNumber::whole(number.into()));
        let mut schedule = schedule(false, "abcde");
        let (key, entries) = schedule.take(usize::MAX, before(3)).unwrap();
        assert_eq!(numbers(&entries), [0, 1, 2]);
        schedule.put_back(key, Vec::new(), Hold::default());
        assert!(schedule.take(usize::MAX, before(3)).is_none() && schedule.has_ready());
        assert_eq!(take(&mut schedule).unwrap().1, [3, 4]);
    }
}
