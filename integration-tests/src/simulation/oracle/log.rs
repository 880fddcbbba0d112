//! The true log: what was published to which shard in which order, what of it is finished, and how the shards descend.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use kcl_core::stream::Shard;
use kcl_core::{Checkpoint, ExtendedSequenceNumber, ShardId, Timestamp};
use kcl_lease::Lease;

use super::How;
use crate::simulation::publisher::{Kind, Published};

/// A published record; one of those that were put together is a record like any other.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) published: Published,
    pub(super) arrival: Timestamp,
    pub(super) put: Duration,
    /// Processed, dead-lettered, skipped as audited, or not asked for.
    pub(super) done: bool,
    pub(super) processed: bool,
    /// It counts as finished, and nobody has processed it: trimmed, or passed over by a seek.
    pub(super) skipped: bool,
    /// The term in which a call has said that it is finished, or a letter was accepted, last, and the process that had it.
    pub(super) told_in: Option<(String, u64)>,
    /// The time of that.
    pub(super) told_at: Option<Duration>,
    /// The last word on it was a letter: its process may not know that it was accepted.
    pub(super) lettered: bool,
    /// Calls that have failed with it.
    pub(super) failures: u32,
    /// Those of the last term in which one has.
    pub(super) trials: Option<Box<Trials>>,
    /// Terms in which it was tried, by their tokens.
    pub(super) tried_in: BTreeSet<u64>,
    pub(super) delivered: bool,
}

/// Calls that have failed with a record in one term.
#[derive(Clone, Debug)]
pub(super) struct Trials {
    pub(super) token: u64,
    pub(super) failed: u32,
    pub(super) first: Duration,
    pub(super) last: Duration,
    /// The last failure.
    pub(super) how: How,
}

/// The records of a key in a shard.
#[derive(Debug, Default)]
struct KeyLog {
    /// Their places in the shard's log.
    places: Vec<usize>,
    /// All before this one of them are done.
    done_to: usize,
}

/// A shard's part of the log.
#[derive(Debug, Default)]
pub(super) struct ShardLog {
    /// In the order of their sequence numbers and sub-sequence numbers.
    pub(super) entries: Vec<Entry>,
    /// All entries before this one are done.
    pub(super) done_to: usize,
    /// Aggregates that nobody can take apart.
    broken: BTreeSet<usize>,
    keys: BTreeMap<u64, KeyLog>,
    pub(super) parents: BTreeSet<ShardId>,
    pub(super) children: BTreeSet<ShardId>,
    pub(super) closed: bool,
}

/// How a record was finished.
pub(super) enum Finished {
    First { put: Duration },
    Again,
}

/// The last record of each key; what was put into a shard that is not the key's has an order of its own there.
#[derive(Debug, Default)]
struct Order(BTreeMap<(u64, Option<ShardId>), u64>);

impl Order {
    fn last(&mut self, shard: &ShardId, published: &Published) -> &mut u64 {
        let Published { key, elsewhere, .. } = published;
        self.0.entry((*key, elsewhere.then(|| shard.clone()))).or_default()
    }

    /// Notes a record. `Err`: a later one of its key was there before.
    fn next(&mut self, shard: &ShardId, published: &Published) -> Result<(), u64> {
        let last = self.last(shard, published);
        if *last > published.count {
            return Err(*last);
        }
        *last = published.count;
        Ok(())
    }

    /// Records from this one on are asked for again.
    fn back_to(&mut self, shard: &ShardId, published: &Published) {
        let last = self.last(shard, published);
        *last = (*last).min(published.count.saturating_sub(1));
    }
}

/// All shards.
#[derive(Debug, Default)]
pub(super) struct Log {
    pub(super) shards: BTreeMap<ShardId, ShardLog>,
    /// Records that arrived before are not asked for.
    scope: Option<Timestamp>,
    /// The earliest instant that a first lease tells: where all shards start.
    start: Option<Timestamp>,
    /// Shards that were moved to an instant as they were too far behind: what arrives before it, by a clock that is ahead, is left out too.
    left_out_before: BTreeMap<ShardId, Timestamp>,
    undone: usize,
    delivered: Order,
    effects: Order,
}

impl ShardLog {
    /// The index of the first record at this position or a higher one.
    pub(super) fn at_or_after(&self, position: ExtendedSequenceNumber) -> usize {
        self.entries.partition_point(|entry| place(entry.position()) < place(position))
    }

    /// The index of the first record above this position.
    pub(super) fn after(&self, position: ExtendedSequenceNumber) -> usize {
        self.entries.partition_point(|entry| place(entry.position()) <= place(position))
    }

    /// The record at this position, and its index.
    pub(super) fn find(&self, position: ExtendedSequenceNumber) -> Option<(usize, &Entry)> {
        let index = self.at_or_after(position);
        self.entries.get(index).filter(|entry| entry.position() == position).map(|entry| (index, entry))
    }

    /// Whether an aggregate has begun before this index, and goes on with it.
    pub(super) fn is_inside(&self, index: usize) -> bool {
        let number = |index: usize| self.entries.get(index).map(|entry| entry.position().sequence_number);
        index.checked_sub(1).is_some_and(|before| number(before).is_some() && number(before) == number(index))
    }

    /// The first broken aggregate before this index that is not done: its own index and position.
    pub(super) fn broken_before(&self, index: usize) -> Option<(usize, ExtendedSequenceNumber)> {
        let mut broken = self.broken.range(self.done_to..index.max(self.done_to));
        broken.find_map(|at| self.entries.get(*at).filter(|entry| !entry.done).map(|entry| (*at, entry.position())))
    }

    /// The index of the first record that a term delivers that begins with this row.
    pub(super) fn start_of(&self, row: &Lease) -> usize {
        match row.checkpoint {
            Checkpoint::At(record) => self.after(record),
            Checkpoint::Latest | Checkpoint::AtTimestamp => row.initial_timestamp.map_or(0, |time| self.since(time)),
            Checkpoint::TrimHorizon => 0,
            Checkpoint::ShardEnd => self.entries.len(),
        }
    }

    /// The index of the first record that arrived at this time or later.
    pub(super) fn since(&self, time: Timestamp) -> usize {
        self.entries.partition_point(|entry| entry.arrival < time)
    }

    /// The index of the first record of a key that is not done.
    pub(super) fn first_undone_of(&mut self, key: u64) -> Option<usize> {
        let (keys, entries) = (&mut self.keys, &self.entries);
        let of_key = keys.get_mut(&key)?;
        while of_key.places.get(of_key.done_to).is_some_and(|place| entries[*place].done) {
            of_key.done_to += 1;
        }
        of_key.places.get(of_key.done_to).copied()
    }

    fn settle(&mut self) {
        while self.entries.get(self.done_to).is_some_and(|entry| entry.done) {
            self.done_to += 1;
        }
    }
}

impl Entry {
    pub(super) fn position(&self) -> ExtendedSequenceNumber {
        self.published.position
    }

    /// A call with it has failed.
    pub(super) fn failed(&mut self, token: u64, how: How, now: Duration) {
        self.failures += 1;
        match &mut self.trials {
            Some(trials) if trials.token == token => {
                trials.failed += 1;
                (trials.last, trials.how) = (now, how);
            }
            // The call of a process that was frozen, and has lost its term meanwhile.
            Some(trials) if trials.token > token => {}
            trials => *trials = Some(Box::new(Trials { token, failed: 1, first: now, last: now, how })),
        }
    }
}

/// As integers, by themselves: what the library makes of their order is not trusted.
pub(super) fn place(position: ExtendedSequenceNumber) -> ((u128, u128), u64) {
    (position.sequence_number.into_words(), position.sub_sequence_number)
}

impl Log {
    pub(super) fn put(&mut self, shard: ShardId, published: Published, arrival: Timestamp, put: Duration) {
        let is_left_out = self.left_out_before.get(&shard).is_some_and(|instant| arrival < *instant);
        let done = is_left_out || self.scope.is_some_and(|scope| arrival < scope);
        let log = self.shards.entry(shard).or_default();
        if published.kind == Kind::Broken {
            log.broken.insert(log.entries.len());
        } else {
            log.keys.entry(published.key).or_default().places.push(log.entries.len());
        }
        log.entries.push(Entry {
            published,
            arrival,
            put,
            done,
            processed: is_left_out,
            skipped: false,
            told_in: None,
            told_at: None,
            lettered: false,
            failures: 0,
            trials: None,
            tried_in: BTreeSet::new(),
            delivered: false,
        });
        log.settle();
        self.undone += usize::from(!done);
    }

    /// A first lease starts at this instant: records that arrived before it, and some milliseconds more in which clocks may err, are not asked for. The earliest
    /// of all such instants counts.
    pub(super) fn begins(&mut self, instant: Timestamp, error_millis: u64) {
        self.start = Some(self.start.map_or(instant, |start| start.min(instant)));
        let time = Timestamp::from_millis(instant.as_millis().saturating_add(error_millis));
        let before = self.scope.replace(self.scope.map_or(time, |scope| scope.min(time)));
        for log in self.shards.values_mut() {
            for (index, entry) in log.entries.iter_mut().enumerate().filter(|(_, entry)| !entry.processed) {
                let done = entry.arrival < time;
                if before.is_none() && done && !entry.done {
                    (entry.done, self.undone) = (true, self.undone - 1);
                }
                if before.is_some_and(|before| entry.arrival < before) && !done && entry.done {
                    (entry.done, self.undone) = (false, self.undone + 1);
                    log.done_to = log.done_to.min(index);
                }
            }
            log.settle();
        }
    }

    /// The index of the first record of a shard that a term delivers that begins with this row. First leases start where the first of them does.
    pub(super) fn start_of_first(&self, row: &Lease) -> usize {
        let Some(log) = self.shards.get(&row.shard_id) else { return 0 };
        match (row.checkpoint, self.start) {
            (Checkpoint::Latest | Checkpoint::AtTimestamp, Some(start)) => log.since(start),
            _ => log.start_of(row),
        }
    }

    pub(super) fn has_scope(&self) -> bool {
        self.scope.is_some()
    }

    pub(super) fn resharded(&mut self, shards: &[Shard]) {
        for shard in shards {
            let log = self.shards.entry(shard.shard_id.clone()).or_default();
            log.closed = !shard.is_open();
            log.parents.clone_from(&shard.parents);
            for parent in &shard.parents {
                self.shards.entry(parent.clone()).or_default().children.insert(shard.shard_id.clone());
            }
        }
    }

    /// The stream is another one: nothing of the old one is asked for any more.
    pub(super) fn recreated(&mut self) {
        self.shards.clear();
        self.undone = 0;
        (self.delivered, self.effects) = (Order::default(), Order::default());
    }

    /// A shard was moved to an instant. Returns how many records that are left out were not done.
    pub(super) fn moved_to(&mut self, row: &Lease) -> u64 {
        let first = self.shards.get(&row.shard_id).map_or(0, |log| log.start_of(row));
        if let Some(instant) = row.initial_timestamp {
            self.left_out_before.insert(row.shard_id.clone(), instant);
        }
        self.skip(&row.shard_id, 0, first)
    }

    /// Nothing is known of the application any more: all that these shards hold is asked for again, as far as the next first lease wants it.
    pub(super) fn forgotten(&mut self, shards: &BTreeSet<ShardId>, all: bool) {
        if all {
            (self.scope, self.start) = (None, None);
        }
        let start = self.start;
        for shard in shards {
            let first = self.shards.get(shard).map_or(0, |log| start.map_or(0, |start| log.since(start)));
            let _ = self.ask_again(shard, first);
        }
    }

    /// `None`: there is no such record.
    pub(super) fn finish(&mut self, shard: &ShardId, position: ExtendedSequenceNumber) -> Option<Finished> {
        let log = self.shards.get_mut(shard)?;
        let (index, _) = log.find(position)?;
        let entry = log.entries.get_mut(index)?;
        if std::mem::replace(&mut entry.processed, true) {
            return Some(Finished::Again);
        }
        let put = entry.put;
        if !std::mem::replace(&mut entry.done, true) {
            self.undone -= 1;
        }
        log.settle();
        Some(Finished::First { put })
    }

    /// Records from an index on are asked for again, and those before it no more. Returns how many of the latter were not done.
    pub(super) fn ask_again(&mut self, shard: &ShardId, first: usize) -> u64 {
        let skipped = self.skip(shard, 0, first);
        let Some(log) = self.shards.get_mut(shard) else { return skipped };
        for entry in &mut log.entries[first..] {
            self.undone += usize::from(std::mem::replace(&mut entry.done, false));
            (entry.processed, entry.delivered, entry.skipped) = (false, false, false);
            (entry.told_in, entry.told_at, entry.lettered) = (None, None, false);
            entry.trials = None;
            self.delivered.back_to(shard, &entry.published);
            self.effects.back_to(shard, &entry.published);
        }
        log.done_to = log.done_to.min(first);
        log.keys.values_mut().for_each(|of_key| of_key.done_to = 0);
        skipped
    }

    /// Skips unfinished records from one index to another. Returns how many there were. A process that was frozen in a call may still have their effect later:
    /// that is no measure of the order.
    pub(super) fn skip(&mut self, shard: &ShardId, from: usize, to: usize) -> u64 {
        let Some(log) = self.shards.get_mut(shard) else { return 0 };
        let mut skipped = 0;
        let (from, to) = (from.min(log.entries.len()), to.min(log.entries.len()));
        for entry in log.entries[from..to].iter_mut().filter(|entry| !entry.done) {
            (entry.done, entry.processed, entry.skipped) = (true, true, true);
            self.undone -= 1;
            skipped += 1;
        }
        log.settle();
        skipped
    }

    /// Notes a first delivery. `Err`: a later record of the same key was delivered before.
    pub(super) fn first_delivery(&mut self, shard: &ShardId, position: ExtendedSequenceNumber) -> Result<(), u64> {
        let found = self.shards.get(shard).and_then(|log| log.find(position));
        found.map_or(Ok(()), |(_, entry)| self.delivered.next(shard, &entry.published))
    }

    /// Notes a first effect. `Err`: the record's key and number, and a later record of the key that has had its effect before.
    pub(super) fn first_effect(&mut self, shard: &ShardId, position: ExtendedSequenceNumber) -> Result<(), (u64, u64, u64)> {
        let Some((_, entry)) = self.shards.get(shard).and_then(|log| log.find(position)) else { return Ok(()) };
        let Published { key, count, .. } = entry.published;
        self.effects.next(shard, &entry.published).map_err(|later| (key, count, later))
    }

    /// The last record of each key that was delivered and is not asked for again.
    pub(super) fn order_anew(&mut self) {
        (self.delivered, self.effects) = (Order::default(), Order::default());
        for (shard, log) in &self.shards {
            for Entry { published, delivered, processed, .. } in &log.entries {
                for (order, is_there) in [(&mut self.delivered, *delivered), (&mut self.effects, *processed)] {
                    if is_there {
                        let last = order.last(shard, published);
                        *last = (*last).max(published.count);
                    }
                }
            }
        }
    }

    pub(super) fn find(&self, shard: &ShardId, position: ExtendedSequenceNumber) -> Option<&Entry> {
        self.shards.get(shard)?.find(position).map(|(_, entry)| entry)
    }

    pub(super) fn find_mut(&mut self, shard: &ShardId, position: ExtendedSequenceNumber) -> Option<&mut Entry> {
        let log = self.shards.get_mut(shard)?;
        let (index, _) = log.find(position)?;
        log.entries.get_mut(index)
    }

    /// Records that are not done.
    pub(super) fn undone(&self) -> usize {
        self.undone
    }

    /// The first record that is not done of each shard that has one.
    pub(super) fn first_undone(&self) -> impl Iterator<Item = (&ShardId, &Entry)> {
        self.shards.iter().filter_map(|(shard, log)| Some((shard, log.entries.get(log.done_to)?)))
    }
}
