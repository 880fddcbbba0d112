//! What a dead letter holds: the record that was put, and for one that is part of an aggregate that part alone; a broken aggregate whole.

use std::time::Duration;

use kcl_core::dead_letter::FailureKind;
use kcl_core::{DeadLetter, ExtendedSequenceNumber, ShardId};

use super::Oracle;
use super::deliveries::is_another;
use crate::simulation::publisher::Kind;

/// The retry policy's `max_deaths`.
const DEATHS: usize = 3;

impl Oracle {
    /// The dead-letter queue has accepted a letter.
    pub(super) fn dead_lettered(&mut self, host: &str, letter: &DeadLetter, now: Duration) {
        let (shard, position) = (&letter.shard_id, letter.record.position());
        self.trace.line(now, format_args!("{host} dead letter {shard} {position} {}", letter.kind.as_str()));
        self.reached("dead letter accepted");
        self.limits.excuse(host, "sqs:SendMessageBatch", "");
        if let Some(wrong) = self.wrong_with(letter) {
            self.violated("S9", format!("{wrong}: letter of record {position} of {shard} by {host}"));
        }
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

    fn wrong_with(&mut self, letter: &DeadLetter) -> Option<&'static str> {
        let entry = self.log.find(&letter.shard_id, letter.record.position())?;
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
            let is_whole = published.whole.as_ref() == Some(letter.record.data());
            self.reached("broken aggregate set aside");
            return (!is_whole).then_some("a broken aggregate was not dead-lettered whole");
        }
        is_another(published, &letter.record).then_some("it holds another record")
    }

    /// The record must not come again in this term.
    fn settled_by_letter(&mut self, host: &str, shard: &ShardId, position: ExtendedSequenceNumber, now: Duration) {
        let term = self.terms.get(shard).and_then(|terms| terms.last()).filter(|term| term.host == host && !term.fenced);
        let told_in = term.map(|term| (term.host.clone(), term.token));
        if let (Some(told_in), Some(entry)) = (told_in, self.log.find_mut(shard, position)) {
            entry.told_in = Some(told_in);
            entry.told_at = Some(now);
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
