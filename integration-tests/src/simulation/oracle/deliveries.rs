//! What is delivered: by the one owner, from its checkpoint on, without a gap, after the parents, each key in order.

use std::collections::BTreeSet;
use std::time::Duration;

use kcl_core::{Record, SequenceNumber, ShardId};

use super::Oracle;

impl Oracle {
    pub(super) fn delivered(&mut self, host: &str, shard: &ShardId, token: u64, records: &[Record], now: Duration) {
        let (first, last) = (records.first().map(Record::sequence_number), records.last().map(Record::sequence_number));
        self.trace.line(now, format_args!("{host} delivers {shard} term {token} {} records {first:?} to {last:?}", records.len()));
        if self.old_terms.contains(&(host.to_owned(), shard.clone(), token)) {
            // Records of the stream before, that were read before it went.
            return;
        }
        let terms = self.terms.entry(shard.clone()).or_default();
        let present = terms.last().is_some_and(|term| term.token == token && term.open);
        if !present {
            let holder = terms.last().map(|term| format!("{term:?}"));
            self.violated("S6", format!("{host} delivers {shard} in term {token}, which is over or never was: {holder:?}"));
            return;
        }
        self.parents_are_finished(host, shard, now);
        for record in records {
            self.one_delivered(host, shard, record, now);
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

    pub(super) fn returned(&mut self, host: &str, shard: &ShardId, token: u64, records: &[Record]) {
        let keys = self.keys_of(shard, records);
        let terms = self.terms.get_mut(shard).into_iter().flatten();
        for term in terms.filter(|term| term.host == host && term.token == token) {
            term.in_work.retain(|key| !keys.contains(key));
        }
    }

    fn keys_of(&self, shard: &ShardId, records: &[Record]) -> BTreeSet<u64> {
        let Some(log) = self.log.shards.get(shard) else { return BTreeSet::new() };
        let entry = |record: &Record| log.entries.get(log.at_or_after(record.sequence_number()));
        records.iter().filter_map(entry).map(|entry| entry.key).collect()
    }

    /// A record went to the dead-letter queue, perhaps without having been delivered in this term.
    pub(super) fn not_delivered(&mut self, host: &str, shard: &ShardId, number: SequenceNumber) {
        let Some(index) = self.log.shards.get(shard).map(|log| log.at_or_after(number)) else { return };
        let term = self.terms.get_mut(shard).and_then(|terms| terms.last_mut());
        if let Some(term) = term.filter(|term| term.host == host && term.next == index) {
            term.next = index + 1;
        }
    }

    fn one_delivered(&mut self, host: &str, shard: &ShardId, record: &Record, now: Duration) {
        let number = record.sequence_number();
        let Some(log) = self.log.shards.get(shard) else { return };
        let index = log.at_or_after(number);
        let Some(entry) = log.entries.get(index).filter(|entry| entry.number == number) else {
            self.violated("S3", format!("{host} delivers record {number} of {shard}, which was never published"));
            return;
        };
        let (key, count, again) = (entry.key, entry.count, entry.delivered);
        let finished_in = entry.finished_in.clone();
        let Some(term) = self.terms.get_mut(shard).and_then(|terms| terms.last_mut()) else { return };
        let (first, next, token) = (term.first, term.next, term.token);
        term.next = next.max(index + 1);
        if index < first {
            self.violated("S3", format!("{host} delivers record {number} of {shard}, which is before the checkpoint of its term"));
        } else if self.contiguous && self.misses(shard, next, index) && !self.were_trimmed(shard, next, index, now) {
            let missed = self.log.shards[shard].entries[next].number;
            self.violated("S3", format!("{host} delivers record {number} of {shard} without {missed} before it"));
        }
        if !self.overruns && finished_in.is_some_and(|(by, term)| by == host && term == token) {
            self.violated("S3", format!("{host} delivers record {number} of {shard} again in the term in which it has finished it"));
        }
        if again {
            return;
        }
        if let Some(entry) = self.log.shards.get_mut(shard).and_then(|log| log.entries.get_mut(index)) {
            entry.delivered = true;
        }
        if let Err(later) = self.log.first_delivery(key, count) {
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
        if let Some(parent) = unfinished.cloned() {
            self.violated("S4", format!("{host} delivers {shard} before its parent {parent} is finished"));
        }
    }
}
