//! Contents of dead letters: the record that was put, and for one that is part of an aggregate that part alone; a broken aggregate whole. And what it tells
//! of it: the term and the worker that gave it up, and for which cause, how often it was tried and when, as the oracle has seen it itself.

use std::time::Duration;

use kcl_core::dead_letter::{Condition, FailureKind};
use kcl_core::{DeadLetter, ExtendedSequenceNumber, PoisonedKey, ShardId, Timestamp};

use super::deliveries::is_another;
use super::leases::TERMS;
use super::log::Entry;
use super::{APPLICATION, How, Oracle};
use crate::simulation::publisher::{Kind, STREAM};

/// The difference that times may have: the service tells its own in whole seconds, and answers travel.
const TOLERANCE: Duration = Duration::from_secs(5);

/// The time at which services begin, in milliseconds, and the stream with them.
const EPOCH: u64 = 1_790_000_000_000;

/// The retry policy's `max_deaths`.
const DEATHS: usize = 3;

impl Oracle {
    /// The dead-letter queue has accepted a letter.
    pub(super) fn dead_lettered(&mut self, host: &str, letter: &DeadLetter, now: Duration) {
        let (shard, position) = (&letter.shard_id, letter.record.position());
        self.trace.line(now, format_args!("{host} dead letter {shard} {position} {}", letter.kind.as_str()));
        self.reached("dead letter accepted");
        self.limits.excuse(host, "sqs:SendMessageBatch", "");
        if self.emptied.held(host, shard) {
            return;
        }
        if let Some(wrong) = self.wrong_with(host, letter, now) {
            let seen = self.log.find(shard, position).and_then(|entry| entry.trials.clone());
            let (kind, attempts, token) = (letter.kind.as_str(), letter.attempts, letter.fencing_token);
            let told = format!("{kind} after {attempts} attempts in term {token}");
            self.violated("S9", format!("{wrong}: letter of record {position} of {shard} by {host}, {told}; seen: {seen:?}"));
        }
        self.letters_in_order(host, letter, now);
        let is_good = self.log.find(shard, position).is_some_and(|entry| entry.published.kind == Kind::Good);
        self.good_letters += u64::from(is_good);
        let panics = self.log.find(shard, position).is_some_and(|entry| entry.published.kind == Kind::Panicking);
        if letter.kind == FailureKind::Panic && panics {
            self.reached("record dead-lettered for its panics");
        }
        self.finish(host, shard, position, now);
        self.settled_by_letter(host, shard, position, now);
        self.not_delivered(host, shard, position);
    }

    fn wrong_with(&mut self, host: &str, letter: &DeadLetter, now: Duration) -> Option<&'static str> {
        if let Some(wrong) = self.wrong_origin(host, letter) {
            return Some(wrong);
        }
        let entry = self.log.find(&letter.shard_id, letter.record.position())?;
        if let Some(wrong) = wrong_times(letter, entry, now).or_else(|| self.wrong_cause(letter, entry, now)) {
            return Some(wrong);
        }
        let published = &entry.published;
        let deaths = entry.tried_in.iter().filter(|term| self.died.contains(&(letter.shard_id.clone(), **term))).count();
        match letter.kind {
            FailureKind::ProcessDeath if deaths < DEATHS => {
                return Some("no process, or too few, have died with it in work");
            }
            FailureKind::Error | FailureKind::Panic | FailureKind::Overrun if entry.failures < self.max_attempts => {
                return Some("it has not failed so often");
            }
            _ => {}
        }
        let (is_broken, told) = (published.kind == Kind::Broken, letter.kind == FailureKind::BrokenAggregate);
        if is_broken != told {
            return Some(if told {
                "a sound record was dead-lettered as broken"
            } else {
                "a broken aggregate was dead-lettered as a record"
            });
        }
        if matches!(published.kind, Kind::Good | Kind::Panicking) && letter.kind == FailureKind::Poison {
            return Some("a record that nobody calls poison was dead-lettered as such");
        }
        if is_broken {
            let is_whole = published.whole.as_ref() == Some(letter.record.data()) && !is_another(entry, &letter.record);
            self.reached("broken aggregate set aside");
            return (!is_whole).then_some("a broken aggregate was not dead-lettered whole");
        }
        is_another(entry, &letter.record).then_some("it holds another record")
    }

    /// Checks the worker, the term and the stream that a letter tells of.
    fn wrong_origin(&self, host: &str, letter: &DeadLetter) -> Option<&'static str> {
        if letter.application != APPLICATION {
            return Some("it tells of another application");
        }
        if !letter.stream_arn.ends_with(&format!(":stream/{STREAM}")) {
            return Some("it tells of another stream");
        }
        let terms = self.terms.get(&letter.shard_id)?;
        // A lease that a seek has made anew counts from the beginning: tokens come twice.
        let term = terms.iter().rev().find(|term| term.token == letter.fencing_token && term.host == host);
        let Some(term) = term else {
            // Of a stream that was made anew there may be old ones, and old terms are forgotten.
            let may_be_old = self.made_anew.is_some() || terms.len() >= TERMS;
            return (!may_be_old).then_some("it tells of a term that never was");
        };
        if term.worker.as_ref() != Some(&letter.worker) {
            return Some("it tells of another worker than its term's");
        }
        let made = self.made_anew.unwrap_or_else(|| Timestamp::from_millis(EPOCH));
        (letter.stream_created != made).then_some("it tells of another stream's creation")
    }

    /// The cause, and how often it was seen.
    fn wrong_cause(&self, letter: &DeadLetter, entry: &Entry, now: Duration) -> Option<&'static str> {
        if let Condition::RecordAgeExceeded = letter.condition
            && self.max_age.is_none_or(|most| now + self.clocks.wrong_by(now) < entry.put + most)
        {
            return Some("it is not given up for its age");
        }
        let terms = self.terms.get(&letter.shard_id).into_iter().flatten();
        if terms.rev().find(|term| term.token == letter.fencing_token).is_some_and(|term| term.sought) {
            // What was seen of it before counts no more.
            return None;
        }
        let trials = entry.trials.as_deref().filter(|trials| trials.token == letter.fencing_token);
        let how = match letter.kind {
            FailureKind::Poison | FailureKind::Error => How::Said,
            FailureKind::Panic => How::Panicked,
            FailureKind::Overrun => How::Dropped,
            FailureKind::ProcessDeath => {
                let terms = u32::try_from(entry.tried_in.len()).unwrap_or(u32::MAX);
                return (letter.attempts > terms).then_some("it tells of more deaths than terms have tried it");
            }
            FailureKind::Follows => {
                let (key, position) = (entry.published.key, letter.record.position());
                let place = self.log.shards.get(&letter.shard_id).map_or(0, |log| log.at_or_after(position));
                let term = self.terms.get(&letter.shard_id).and_then(|terms| terms.last());
                let term = term.filter(|term| term.token == letter.fencing_token)?;
                let follows = term.poisoned.get(&key).is_some_and(|poisoned| *poisoned < place);
                return (!follows).then_some("no record of its key went before it");
            }
            _ => return None,
        };
        let Some(trials) = trials else {
            // It may have been tried in a later term since.
            let is_later = entry.trials.as_deref().is_some_and(|trials| trials.token > letter.fencing_token);
            return (!is_later).then_some("it has not failed in this term");
        };
        if letter.attempts == 0 || letter.attempts > trials.failed {
            return Some("it tells of more attempts than there were, or of none");
        }
        if letter.kind != FailureKind::Poison && letter.attempts < self.max_attempts {
            return Some("it was given up before it had all its attempts");
        }
        let is_before = |told: Timestamp, seen: Duration| latest(told).is_none_or(|told| told < seen);
        if is_before(letter.first_failure, trials.first) || is_before(letter.last_failure, trials.last) {
            return Some("it failed before a call with it did");
        }
        (trials.how != how).then_some("it failed in another way than it tells")
    }

    /// Checks that, where the order of a key is kept, no letter is accepted before earlier records of its key are finished, or accepted themselves.
    fn letters_in_order(&mut self, host: &str, letter: &DeadLetter, now: Duration) {
        let (shard, position) = (&letter.shard_id, letter.record.position());
        let Some((place, entry)) = self.log.shards.get(shard).and_then(|log| log.find(position)) else { return };
        let (key, is_broken) = (entry.published.key, entry.published.kind == Kind::Broken);
        let term = self.terms.get(shard).and_then(|terms| terms.last());
        let is_present = term.is_some_and(|term| term.token == letter.fencing_token && term.host == host && !term.sought);
        if is_broken || !is_present || self.manual {
            return;
        }
        self.is_poisoned(shard, key, place);
        // A processor that goes on after one that has failed, and names both, sees to the order itself.
        if self.poisoned_key == PoisonedKey::Pass || !self.keeps_order {
            return;
        }
        while let Some(earlier) = self.log.shards.get_mut(shard).and_then(|log| log.first_undone_of(key)).filter(|first| *first < place) {
            if !self.were_trimmed(shard, earlier, earlier + 1, now) {
                let missing = self.log.shards[shard].entries[earlier].position();
                let message =
                    format!("the letter of record {position} of {shard} by {host} comes before record {missing} of its key is done");
                self.violated("S9", message);
                return;
            }
        }
    }

    /// The record must not come again in this term.
    fn settled_by_letter(&mut self, host: &str, shard: &ShardId, position: ExtendedSequenceNumber, now: Duration) {
        let term = self.terms.get(shard).and_then(|terms| terms.last()).filter(|term| term.host == host && !term.fenced);
        let told_in = term.map(|term| (term.host.clone(), term.token));
        if let (Some(told_in), Some(entry)) = (told_in, self.log.find_mut(shard, position)) {
            entry.told_in = Some(told_in);
            entry.told_at = Some(now);
            entry.lettered = true;
        }
    }

    /// A record went to the dead-letter queue, perhaps without having been delivered in this term.
    fn not_delivered(&mut self, host: &str, shard: &ShardId, position: ExtendedSequenceNumber) {
        let Some(index) = self.log.shards.get(shard).map(|log| log.at_or_after(position)) else { return };
        let term = self.terms.get_mut(shard).and_then(|terms| terms.last_mut());
        if let Some(term) = term.filter(|term| term.host == host && term.next == index) {
            term.next = index + 1;
        }
    }
}

/// The latest that a time which a letter tells may truly be, since the services began. `None`: it is before that.
fn latest(time: Timestamp) -> Option<Duration> {
    Duration::from_millis(time.as_millis()).saturating_add(TOLERANCE).checked_sub(Duration::from_millis(EPOCH))
}

/// When a record failed: after it arrived, not in the future, the first time not after the last, and when its calls have failed.
fn wrong_times(letter: &DeadLetter, entry: &Entry, now: Duration) -> Option<&'static str> {
    let (Some(first), Some(last)) = (latest(letter.first_failure), latest(letter.last_failure)) else {
        return Some("it failed before there was a stream");
    };
    if first > last {
        return Some("it failed first after it failed last");
    }
    if last > now + TOLERANCE * 2 {
        return Some("it failed in the future");
    }
    (first < entry.put).then_some("it failed before it arrived")
}
