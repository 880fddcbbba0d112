//! What is delivered: by the one owner, from its checkpoint on, without a gap, after the parents, each key in order.

use std::collections::BTreeSet;
use std::time::Duration;

use kcl_core::{Checkpoint, ExtendedSequenceNumber, Record, ShardId};

use super::log::Entry;
use super::notes::calls_finished;
use super::{Oracle, Told};
use crate::simulation::publisher::{Kind, Published, count_of, partition_key};

impl Oracle {
    pub(super) fn delivered(&mut self, host: &str, shard: &ShardId, token: u64, records: &[Record], now: Duration) {
        let (first, last) = (records.first().map(Record::position), records.last().map(Record::position));
        self.trace.line(now, format_args!("{host} delivers {shard} term {token} {} records {first:?} to {last:?}", records.len()));
        if self.old_terms.contains(&(host.to_owned(), shard.clone(), token)) {
            // Records of the stream before, that were read before it went.
            return;
        }
        let terms = self.terms.entry(shard.clone()).or_default();
        let present = terms.last().is_some_and(|term| term.token == token && term.open);
        if !present && terms.last().is_some_and(|term| term.token == token && term.fenced) {
            self.delivered_after_a_seek(host, shard, now);
            return;
        }
        if !present {
            let holder = terms.last().map(|term| format!("{term:?}"));
            self.violated("S6", format!("{host} delivers {shard} in term {token}, which is over or never was: {holder:?}"));
            return;
        }
        self.is_not_stopped(host, shard);
        self.parents_are_finished(host, shard, now);
        self.keys_in_order(host, shard, records, now);
        for record in records {
            self.one_delivered(host, shard, record, records.len() == 1, now);
            if let Some(entry) = self.log.find_mut(shard, record.position()) {
                entry.tried_in.insert(token);
            }
        }
        if let Some(term) = self.terms.get_mut(shard).and_then(|terms| terms.last_mut()) {
            term.calls += 1;
        }
        if !self.lanes {
            return;
        }
        let keys = self.keys_of(shard, records);
        let Some(term) = self.terms.get_mut(shard).and_then(|terms| terms.last_mut()) else { return };
        let twice = keys.iter().find(|key| !term.in_work.insert(**key)).copied();
        if let Some(key) = twice {
            self.violated("S4", format!("{host} has two calls with records of key {key} of {shard} at once"));
        } else {
            self.reached("lanes in use");
        }
    }

    /// Whether there is a record from one index to another that nobody has finished: what is finished beyond a checkpoint need not come again.
    fn misses(&self, shard: &ShardId, from: usize, to: usize) -> bool {
        let entries = self.log.shards.get(shard).and_then(|log| log.entries.get(from..to));
        entries.is_some_and(|entries| entries.iter().any(|entry| !entry.done))
    }

    pub(super) fn returned(
        &mut self,
        host: &str,
        shard: &ShardId,
        token: u64,
        records: &[Record],
        told: Vec<(ExtendedSequenceNumber, Told)>,
        now: Duration,
    ) {
        let keys = self.keys_of(shard, records);
        let terms = self.terms.get_mut(shard).into_iter().flatten();
        for term in terms.filter(|term| term.host == host && term.token == token) {
            term.in_work.retain(|key| !keys.contains(key));
            term.calls = term.calls.saturating_sub(1);
        }
        if self.old_terms.contains(&(host.to_owned(), shard.clone(), token)) {
            return;
        }
        for (position, told) in told {
            let Some(entry) = self.log.find_mut(shard, position) else { continue };
            match told {
                Told::Finished => {
                    entry.told_in = Some((host.to_owned(), token));
                    entry.told_at = Some(now);
                    entry.lettered = false;
                }
                Told::Failed(how) => entry.failed(token, how, now),
                Told::Nothing => {}
            }
        }
    }

    fn keys_of(&self, shard: &ShardId, records: &[Record]) -> BTreeSet<u64> {
        let Some(log) = self.log.shards.get(shard) else { return BTreeSet::new() };
        let entry = |record: &Record| log.entries.get(log.at_or_after(record.position()));
        records.iter().filter_map(entry).map(|entry| entry.published.key).collect()
    }

    /// Returns whether a record that is delivered alone, ahead of others, may be a probe: one that
    /// was delivered before it is unfinished, and none of its key is. Those that it was delivered
    /// ahead of must still come: it does not move the place up to which all were delivered.
    fn may_be_probe(&self, shard: &ShardId, delivered: std::ops::Range<usize>, index: usize, key: u64) -> bool {
        let Some(entries) = self.log.shards.get(shard).map(|log| &log.entries) else { return false };
        let Some(term) = self.terms.get(shard).and_then(|terms| terms.last()) else { return false };
        let unfinished = |range: std::ops::Range<usize>| entries.get(range).into_iter().flatten().filter(|entry| !entry.done);
        // A call that failed after its effect has told nothing: its record comes again.
        let is_told = |entry: &Entry| entry.told_in.as_ref().is_some_and(|(host, token)| *host == term.host && *token == term.token);
        let waits = entries.get(delivered.clone()).into_iter().flatten().any(|entry| !is_told(entry));
        waits && unfinished(delivered.start..index).all(|entry| entry.published.key != key)
    }

    fn one_delivered(&mut self, host: &str, shard: &ShardId, record: &Record, is_alone: bool, now: Duration) {
        let number = record.position();
        let Some(log) = self.log.shards.get(shard) else { return };
        let Some((index, entry)) = log.find(number) else {
            self.violated("S3", format!("{host} delivers record {number} of {shard}, which was never published"));
            return;
        };
        if entry.published.kind == Kind::Broken || is_another(entry, record) {
            self.violated("S3", format!("{host} delivers record {number} of {shard}, and it is not what was published"));
            return;
        }
        let Published { key, count, elsewhere, .. } = entry.published;
        let again = entry.delivered;
        let told_in = entry.told_in.clone();
        let term = self.terms.get(shard).and_then(|terms| terms.last());
        if term.and_then(|term| term.spared.as_ref()).is_some_and(|note| calls_finished(note, entry)) {
            self.violated("S16", format!("{host} delivers record {number} of {shard}, which its lease called finished when it was taken"));
            return;
        }
        while let Some((at, broken)) = self.log.shards[shard].broken_before(index) {
            // If it was, it counts as skipped from here on.
            if !self.were_trimmed(shard, at, at + 1, now) {
                self.violated("S4", format!("{host} delivers record {number} of {shard} before broken aggregate {broken} is set aside"));
                return;
            }
        }
        let Some(term) = self.terms.get(shard).and_then(|terms| terms.last()) else { return };
        let (first, next, token) = (term.first, term.next, term.token);
        let is_ahead = self.contiguous && is_alone && index > next;
        if is_ahead && self.may_be_probe(shard, first..next, index, key) {
            self.reached("record delivered ahead of one that waits");
        } else if let Some(term) = self.terms.get_mut(shard).and_then(|terms| terms.last_mut()) {
            term.next = next.max(index + 1);
        }
        let passed = self.terms.get(shard).and_then(|terms| terms.last()).is_some_and(|term| term.next > index);
        if index < first {
            self.violated("S3", format!("{host} delivers record {number} of {shard}, which is before the checkpoint of its term"));
        } else if self.contiguous && passed && self.misses(shard, next, index) && !self.were_trimmed(shard, next, index, now) {
            let missed = self.log.shards[shard].entries[next].position();
            self.violated("S3", format!("{host} delivers record {number} of {shard} without {missed} before it"));
        }
        // What a processor has flushed and not checkpointed comes again if it is lost.
        let settled = !self.manual || self.rows.get(shard).is_some_and(|row| Checkpoint::At(number) <= row.checkpoint);
        if let Some((by, before)) = &told_in
            && *before != token
            && !self.manual
            && self.terms[shard].iter().any(|term| term.host == *by && term.token == *before && term.released)
        {
            self.repeated += 1;
        }
        if settled && told_in.is_some_and(|(by, term)| by == host && term == token) {
            self.violated("S3", format!("{host} delivers record {number} of {shard} again in the term in which it has finished it"));
        }
        if again {
            return;
        }
        if let Some(entry) = self.log.shards.get_mut(shard).and_then(|log| log.entries.get_mut(index)) {
            entry.delivered = true;
        }
        if elsewhere {
            self.reached("record of another shard delivered");
        }
        if let Err(later) = self.log.first_delivery(shard, number)
            && !self.seeks.under_way
        {
            self.violated("S4", format!("{host} delivers record {count} of key {key} in {shard} after record {later} of the same key"));
        }
    }

    fn parents_are_finished(&mut self, host: &str, shard: &ShardId, _now: Duration) {
        let Some(log) = self.log.shards.get(shard) else { return };
        let unfinished = log.parents.iter().find(|parent| match self.rows.get(*parent) {
            Some(row) => !row.checkpoint.is_shard_end(),
            // Without a scope, every shard is read from its beginning.
            None => !self.finished.contains(*parent) && !self.log.has_scope() && self.log.shards.contains_key(*parent),
        });
        if let Some(parent) = unfinished.cloned().filter(|_| !self.seeks.under_way) {
            self.violated("S4", format!("{host} delivers {shard} before its parent {parent} is finished"));
        }
    }
}

/// Whether a record is not the one that was put at its position, as far as that can be told: large payloads don't say which they are.
pub(super) fn is_another(entry: &Entry, record: &Record) -> bool {
    let published = &entry.published;
    record.approximate_arrival() != Some(entry.arrival)
        || record.is_aggregated() != published.aggregated
        || record.partition_key() != Some(partition_key(published.key).as_str())
        || count_of(record.data()).is_some_and(|count| count != published.count)
}
