//! What a shard's delivery has in its hands: records that wait, are called, or are on their way to the dead-letter queue.

use std::collections::{BTreeMap, VecDeque};

use futures::future::BoxFuture;
use kcl_checkpoint::{ExtendedSequenceNumber, FinishedBeyond, Timestamp};
use kcl_lease::backoff::Backoff;
use tokio::sync::watch;
use tokio::time::Instant;

use super::Checkpointing;
use super::breaker::Outcomes;
use super::careful::Careful;
use super::flow::PauseReason;
use super::hold::Hold;
use super::in_hand::InHand;
use super::lanes::{CallSettings, Lanes};
use super::outbox::Outbox;
use super::rewind::Rewind;
use super::schedule::{Entry, GroupKey, Schedule};
use super::settings::Processing;
use super::stopped::StopNote;
use super::valve::Valve;
use crate::dead_letter::DeadLetterError;
use crate::record::Record;
use crate::stream::ChildShard;

/// Keys whose records follow an earlier one into the dead-letter queue: the most that are remembered.
const MOST_POISONED: usize = 10_000;

/// Open records of a shard with one lane, and their bytes, up to which one for a probe is looked for.
const MOST_SEARCHED: usize = 1_000;
const MOST_SEARCHED_BYTES: usize = 16 << 20;

/// The answers of the dead-letter queue to an attempt.
pub(super) type Answers = Vec<Result<(), DeadLetterError>>;

/// See the module.
pub(super) struct Work {
    pub(super) in_hand: InHand,
    pub(super) schedule: Schedule,
    pub(super) lanes: Lanes,
    pub(super) outbox: Outbox,
    /// The attempt at the dead-letter queue that is under way.
    pub(super) sending: Option<BoxFuture<'static, Answers>>,
    pub(super) send: Paced,
    pub(super) make: Paced,
    /// Of groups that have failed and not succeeded since.
    pub(super) backoffs: BTreeMap<GroupKey, Backoff>,
    /// Evidence on whose fault failures are.
    pub(super) outcomes: Outcomes,
    /// The pace of calls while different records fail alike, and of probes.
    pub(super) breaker: Paced,
    /// The call that is under way is a probe.
    pub(super) probing: bool,
    /// A record for a probe is looked for beyond the batch in work.
    pub(super) seeks_probe: bool,
    /// It was reported that different records fail alike.
    pub(super) told_of_outage: bool,
    pub(super) valve: Valve,
    pub(super) valve_closed: bool,
    pub(super) stop_note: StopNote,
    pub(super) poisoned: PoisonedKeys,
    pub(super) rewind: Rewind,
    pub(super) careful: Option<Careful>,
    /// What was finished beyond the checkpoint before this term.
    pub(super) finished_before: Option<FinishedBeyond>,
    pub(super) arrivals: Arrivals,
    /// When acknowledgements of calls under way are taken in, if there are any.
    pub(super) gather_until: Option<Instant>,
    /// When processors without records are called next.
    pub(super) idle_at: Option<Instant>,
    /// The last time that a record was finished.
    pub(super) last_finished: Option<Instant>,
    /// A call that takes long was reported.
    pub(super) told_of_long_call: bool,
    /// How far behind the last answer was.
    pub(super) behind: Option<u64>,
    /// What is known to be finished with a record: all that arrived before the time.
    pub(super) marks: VecDeque<(Option<ExtendedSequenceNumber>, Timestamp)>,
    /// The mark of the answer in hand.
    pub(super) mark_in_hand: Option<Timestamp>,
    /// A broken aggregate, whose records' keys nobody knows, is on its way to the queue: nothing after it begins before.
    pub(super) barrier: bool,
    /// The shard is read to its end.
    pub(super) ended: Option<Vec<ChildShard>>,
    /// Nothing more is read before it is read anew.
    pub(super) reopen: bool,
    /// The shard is too far behind: nothing more is read before it begins anew.
    pub(super) skip: bool,
    /// Reading has come to where it is to end.
    pub(super) bound_reached: bool,
    /// Since the shard was at its tip after the time at which reading is to end, it is read anew.
    pub(super) read_from_bound: bool,
    /// Kinesis can't be read.
    pub(super) read_failing: bool,
    /// Since when listings say that the shard was trimmed together with its children.
    pub(super) gone_since: Option<Instant>,
    /// Since when an answer is waited for.
    pub(super) waiting_since: Option<Instant>,
    /// When what is finished beyond the checkpoint is to be noted again, if that may have changed; and when it was noted last.
    pub(super) note_due: Option<Instant>,
    pub(super) noted: Option<Instant>,
    /// The last finished record that the note in the lease tells of.
    pub(super) noted_until: Option<ExtendedSequenceNumber>,
    pub(super) flow_changes: watch::Receiver<()>,
    pub(super) paused: Option<PauseReason>,
}

impl Work {
    pub(super) fn new(hold: &Hold) -> Self {
        let Hold { shared, term, .. } = hold;
        let settings = &shared.processing;
        let finished_before = term.taken().finished_beyond.clone().filter(|note| note.is_valid_for(term.taken().checkpoint));
        let range = term.taken().hash_range.map(|range| range.start..=range.end);
        Self {
            in_hand: InHand::new(settings.aggregated, range),
            schedule: Schedule::new(settings.lanes.lanes > 1, settings.batching),
            lanes: Lanes::new(
                settings.lanes.lanes,
                CallSettings {
                    machine: shared.machine.clone(),
                    attempt_deadline: shared.retry.attempt_deadline,
                    callbacks: settings.callbacks,
                    by_hand: shared.checkpointing == Checkpointing::Manual,
                },
            ),
            outbox: Outbox::default(),
            sending: None,
            send: Paced::new(hold.backoff()),
            make: Paced::new(hold.backoff()),
            backoffs: BTreeMap::new(),
            outcomes: Outcomes::default(),
            breaker: Paced::new(hold.backoff()),
            probing: false,
            seeks_probe: false,
            told_of_outage: false,
            valve: Valve::new(settings.valve),
            valve_closed: false,
            stop_note: StopNote::default(),
            poisoned: PoisonedKeys::default(),
            rewind: Rewind::default(),
            careful: Careful::begin(term),
            noted_until: finished_before.as_ref().map(|note| note.until),
            finished_before,
            arrivals: Arrivals::default(),
            gather_until: None,
            idle_at: None,
            last_finished: None,
            told_of_long_call: false,
            behind: None,
            marks: VecDeque::new(),
            mark_in_hand: None,
            barrier: false,
            ended: None,
            reopen: false,
            skip: false,
            bound_reached: false,
            read_from_bound: false,
            read_failing: false,
            gone_since: None,
            waiting_since: None,
            note_due: None,
            noted: None,
            flow_changes: shared.flow.changes(),
            paused: None,
        }
    }

    /// Forgets what was read and is not finished, as it is read anew, and returns what of it waits for a call. Nothing is in a call; what is on its way to the queue is read anew too.
    pub(super) fn forget_what_was_read(&mut self) -> Vec<Entry> {
        self.in_hand.clear();
        self.outbox.clear();
        self.marks.clear();
        (self.mark_in_hand, self.behind, self.barrier) = (None, None, false);
        (self.ended, self.reopen, self.bound_reached) = (None, false, false);
        self.seeks_probe = false;
        self.arrivals = Arrivals::default();
        let anew = self.schedule.anew();
        std::mem::replace(&mut self.schedule, anew).into_waiting()
    }

    /// Whether everything that was read is finished.
    pub(super) fn is_idle(&self) -> bool {
        self.in_hand.is_empty() && self.schedule.open() == 0 && self.outbox.is_empty() && self.lanes.is_idle()
    }

    /// Whether everything that was read is finished, and nothing of it has to come again.
    pub(super) fn is_through(&self) -> bool {
        self.is_idle() && !self.rewind.is_due()
    }

    /// Whether something else than reading on follows when all that was read is finished.
    pub(super) fn has_read_enough(&self) -> bool {
        self.ended.is_some() || self.reopen || self.skip || self.bound_reached || self.rewind.is_due()
    }

    /// Whether the next answer may be taken into the hand.
    pub(super) fn wants_more(&self) -> bool {
        let may_read = self.schedule.is_filling() || self.may_search();
        let one_lane_is_busy = self.lanes.len() == 1 && self.in_batch() > 0 && !may_read;
        self.in_hand.is_empty() && self.paused.is_none() && !self.has_read_enough() && !one_lane_is_busy
    }

    /// How many more records may be taken out of the hand into work, beyond `span` between the oldest unfinished and the newest in work.
    pub(super) fn room(&self, settings: &Processing, span: usize) -> usize {
        if self.barrier {
            0
        } else if self.lanes.len() > 1 {
            // One record may always be in work, however large.
            let is_full = self.schedule.open_bytes() >= settings.lanes.max_bytes;
            if is_full { 0 } else { settings.lanes.max_records.saturating_sub(span) }
        } else if self.may_search() {
            MOST_SEARCHED.saturating_sub(self.schedule.open())
        } else if self.in_batch() > 0 && !self.schedule.is_filling() {
            0
        } else {
            // Records that others pass on their way to the queue are in no batch, and have the bounds of lanes.
            let passed = self.outbox.passed();
            let max_bytes = if passed > 0 { settings.lanes.max_bytes } else { settings.batching.max_bytes };
            let is_full = self.schedule.open_bytes() >= max_bytes || (passed > 0 && span >= settings.lanes.max_records);
            if is_full { 0 } else { settings.batching.max_records.saturating_sub(self.in_batch()) }
        }
    }

    /// Records of the batch of a shard with one lane: those that wait, are called, or are waited for.
    fn in_batch(&self) -> usize {
        self.schedule.open().saturating_sub(self.outbox.passed())
    }

    /// Whether more records may be taken into work beyond the batch, to find one for a probe.
    fn may_search(&self) -> bool {
        let room = self.schedule.open() < MOST_SEARCHED && self.schedule.open_bytes() < MOST_SEARCHED_BYTES;
        self.seeks_probe && room
    }

    /// A call has ended: the time without calls begins.
    pub(super) fn note_call_ended(&mut self) {
        self.idle_at = None;
    }

    /// The earliest time at which a timer makes work possible. `now`: before anything was begun.
    /// Timers that were overdue by then are excluded: what they are for waits for another event, a
    /// pause or the lease. What has fallen due since has its turn at once.
    pub(super) fn next_wake(&self, now: Instant) -> Option<Instant> {
        let due = [
            self.schedule.next_wake(),
            self.send.not_before,
            self.make.not_before,
            self.breaker.not_before,
            self.note_due,
            self.rewind.due(),
            self.gather_until,
            self.stop_note.due_at(),
            self.idle_at,
        ];
        due.into_iter().flatten().filter(|due| *due > now).min()
    }
}

/// Something that is tried again after a while.
pub(super) struct Paced {
    pub(super) backoff: Backoff,
    pub(super) not_before: Option<Instant>,
}

impl Paced {
    fn new(backoff: Backoff) -> Self {
        Self { backoff, not_before: None }
    }

    /// Whether it may be tried now.
    pub(super) fn may(&mut self, now: Instant) -> bool {
        self.not_before = self.not_before.filter(|not_before| *not_before > now);
        self.not_before.is_none()
    }

    pub(super) fn failed(&mut self, now: Instant) -> std::time::Duration {
        let wait = self.backoff.next_wait();
        self.not_before = Some(now + wait);
        wait
    }

    /// Whether the last try failed.
    pub(super) fn is_failing(&self) -> bool {
        self.backoff.failures() > 0
    }

    pub(super) fn succeeded(&mut self) {
        self.backoff.reset();
        self.not_before = None;
    }
}

/// Keys of which a record went to the dead-letter queue, by their hashes, and the first such record of each.
#[derive(Debug, Default)]
pub(super) struct PoisonedKeys {
    keys: BTreeMap<u128, ExtendedSequenceNumber>,
    oldest_first: VecDeque<u128>,
}

impl PoisonedKeys {
    /// Remembers a record's key. Returns whether another one had to be forgotten.
    pub(super) fn insert(&mut self, key: Option<&str>, record: ExtendedSequenceNumber) -> bool {
        // A record without a key shares it with no other.
        let Some(key) = key.map(kcl_aggregation::hash_of) else { return false };
        if let Some(first) = self.keys.get_mut(&key) {
            *first = record.min(*first);
            return false;
        }
        self.keys.insert(key, record);
        self.oldest_first.push_back(key);
        if self.keys.len() <= MOST_POISONED {
            return false;
        }
        self.oldest_first.pop_front().is_some_and(|oldest| self.keys.remove(&oldest).is_some())
    }

    /// Whether a record comes after one of its key that went there.
    pub(super) fn follows(&self, key: Option<&str>, record: ExtendedSequenceNumber) -> bool {
        let Some(key) = key.filter(|_| !self.keys.is_empty()) else { return false };
        self.keys.get(&kcl_aggregation::hash_of(key)).is_some_and(|first| *first < record)
    }
}

/// The arrival times of records that are not finished.
#[derive(Debug, Default)]
pub(super) struct Arrivals {
    /// The first record of each arrival time.
    first: VecDeque<(ExtendedSequenceNumber, Timestamp)>,
}

impl Arrivals {
    /// Notes the next record of the shard.
    fn insert(&mut self, record: ExtendedSequenceNumber, arrival: Timestamp) {
        if self.first.back().is_none_or(|(last, at)| *last < record && *at != arrival) {
            self.first.push_back((record, arrival));
        }
    }

    pub(super) fn note(&mut self, record: &Record) {
        if let Some(arrival) = record.approximate_arrival() {
            self.insert(record.position(), arrival);
        }
    }

    /// The arrival of this record. Those before it are forgotten.
    pub(super) fn of(&mut self, record: ExtendedSequenceNumber) -> Option<Timestamp> {
        while self.first.get(1).is_some_and(|(next, _)| *next <= record) {
            self.first.pop_front();
        }
        self.first.front().filter(|(first, _)| *first <= record).map(|(_, arrival)| *arrival)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_arrival_of_the_oldest_record_is_known() {
        let at = |number: u128| ExtendedSequenceNumber::whole(number.into());
        let mut arrivals = Arrivals::default();
        assert_eq!(arrivals.of(at(1)), None);
        for (number, millis) in [(1, 10), (2, 10), (3, 30), (4, 20)] {
            arrivals.insert(at(number), Timestamp::from_millis(millis));
        }
        for (number, millis) in [(1, 10), (2, 10), (3, 30), (4, 20), (9, 20)] {
            assert_eq!(arrivals.of(at(number)), Some(Timestamp::from_millis(millis)));
        }
    }

    #[test]
    fn an_arrival_is_noted_once_and_never_for_a_record_that_came_before() {
        let at = |number: u128| ExtendedSequenceNumber::whole(number.into());
        let mut arrivals = Arrivals::default();
        // A record, its arrival => how many are kept.
        for (number, millis, kept) in [(3, 30, 1), (4, 30, 1), (2, 20, 1), (3, 40, 1), (5, 50, 2), (4, 60, 2)] {
            arrivals.insert(at(number), Timestamp::from_millis(millis));
            assert_eq!(arrivals.first.len(), kept, "{number} {millis}");
        }
        assert_eq!([4, 5].map(|number| arrivals.of(at(number))), [30, 50].map(|millis| Some(Timestamp::from_millis(millis))));
    }

    #[test]
    fn only_a_record_with_an_arrival_is_noted() {
        let record = |number: u128, arrival| Record::new(number.into(), None, bytes::Bytes::new(), arrival);
        let (five, mut arrivals) = (Some(Timestamp::from_millis(5)), Arrivals::default());
        arrivals.note(&record(1, None));
        assert_eq!(arrivals.of(ExtendedSequenceNumber::whole(1.into())), None);
        arrivals.note(&record(2, five));
        assert_eq!([1, 2].map(|number: u128| arrivals.of(ExtendedSequenceNumber::whole(number.into()))), [None, five]);
    }

    #[test]
    fn what_has_failed_may_be_tried_when_its_wait_is_over_or_after_a_success() {
        let (first, most) = (std::time::Duration::from_millis(100), std::time::Duration::from_secs(1));
        let mut paced = Paced::new(Backoff::new(first, most, &kcl_lease::Entropy::from_seed(1)));
        let now = Instant::now();
        assert!(paced.may(now) && !paced.is_failing());
        let wait = paced.failed(now);
        assert!(wait > std::time::Duration::ZERO && wait <= first && paced.is_failing());
        assert_eq!(paced.not_before, Some(now + wait));
        let nearly = now + wait - std::time::Duration::from_nanos(1);
        assert_eq!([now, nearly, now + wait].map(|now| paced.may(now)), [false, false, true]);
        assert!(paced.is_failing(), "until it succeeds");
        paced.failed(now);
        paced.succeeded();
        assert!(paced.may(now) && !paced.is_failing());
    }

    #[test]
    fn the_key_that_was_poisoned_longest_ago_is_forgotten() {
        let mut keys = PoisonedKeys::default();
        let key = |number: usize| format!("key-{number}");
        let at = |number: u128| ExtendedSequenceNumber::whole(number.into());
        assert!((0..MOST_POISONED).all(|number| !keys.insert(Some(&key(number)), at(5))));
        assert!(!keys.insert(Some(&key(0)), at(7)), "known already");
        assert!(keys.follows(Some(&key(0)), at(6)) && !keys.follows(None, at(6)));
        assert!(!keys.follows(Some(&key(0)), at(5)) && !keys.follows(Some(&key(0)), at(4)), "only what comes after it");
        assert!(!keys.insert(None, at(5)) && !keys.follows(None, at(6)), "a missing key is no key");
        assert!(keys.insert(Some("another"), at(5)));
        assert!(!keys.follows(Some(&key(0)), at(6)) && keys.follows(Some(&key(1)), at(6)) && keys.follows(Some("another"), at(6)));
    }
}
