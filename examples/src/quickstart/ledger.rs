//! The ledger: which records were accepted, delivered and dead-lettered, and what that comes to in the end.
//!
//! A record is known by its address, shard and sequence number. The publisher notes what PutRecords answered, the processors what they
//! processed, and the reader of the dead-letter queue what it found there, in whatever order that happens: a record may well be
//! processed before the answer to its publisher has arrived.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

use kcl_core::{SequenceNumber, ShardId};

/// What is known of one record.
#[derive(Clone, Copy, Debug, Default)]
struct Entry {
    /// Its place in the source, once PutRecords has answered.
    published: Option<usize>,
    /// When it was processed first, in the ledger's own counting.
    first_delivery: Option<u64>,
    deliveries: u64,
    dead_lettered: bool,
}

impl Entry {
    fn is_accounted_for(&self) -> bool {
        self.first_delivery.is_some() || self.dead_lettered
    }

    fn is_outstanding(&self) -> bool {
        self.published.is_some() && !self.is_accounted_for()
    }
}

/// How things stand. Before the end, records may be counted as delivered whose publisher has no answer yet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Records accepted by PutRecords.
    pub published: u64,
    /// Records processed at least once.
    pub delivered: u64,
    /// Times that a record was processed again.
    pub duplicates: u64,
    /// Records read from the dead-letter queue.
    pub dead_lettered: u64,
    /// Records published, and neither delivered nor dead-lettered.
    pub outstanding: u64,
}

/// What it all comes to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Figures {
    /// Records accepted by PutRecords.
    pub published: u64,
    /// Of those, the ones that were processed.
    pub delivered: u64,
    /// Times that one of those was processed again.
    pub duplicates: u64,
    /// Published records that were neither processed nor dead-lettered.
    pub lost: u64,
    /// Records first processed after a later record of their key.
    pub out_of_order: u64,
    /// Published records that were found in the dead-letter queue.
    pub dead_lettered: u64,
    /// Records on the stream that no answer to the publisher tells of: a request was applied, its answer lost, and the request repeated.
    pub unanswered: u64,
}

/// The ledger, shared by all who write and read it.
#[derive(Debug, Default)]
pub struct Ledger(Mutex<Book>);

#[derive(Debug, Default)]
struct Book {
    shards: BTreeMap<ShardId, BTreeMap<SequenceNumber, Entry>>,
    ended: BTreeSet<ShardId>,
    counts: Counts,
    deliveries: u64,
}

impl Ledger {
    /// PutRecords accepted the record at this place of the source.
    pub fn published(&self, shard: &ShardId, number: SequenceNumber, place: usize) {
        self.lock().change(shard, number, |entry, counts, _| {
            entry.published = Some(place);
            counts.published += 1;
        });
    }

    /// A processor processed the record.
    pub fn delivered(&self, shard: &ShardId, number: SequenceNumber) {
        self.lock().change(shard, number, |entry, counts, deliveries| {
            *deliveries += 1;
            entry.deliveries += 1;
            if entry.first_delivery.is_none() {
                entry.first_delivery = Some(*deliveries);
                counts.delivered += 1;
            } else {
                counts.duplicates += 1;
            }
        });
    }

    /// The record was found in the dead-letter queue.
    pub fn dead_lettered(&self, shard: &ShardId, number: SequenceNumber) {
        self.lock().change(shard, number, |entry, counts, _| {
            counts.dead_lettered += u64::from(!entry.dead_lettered);
            entry.dead_lettered = true;
        });
    }

    /// A processor was told that the shard is read to its end.
    pub fn shard_ended(&self, shard: &ShardId) {
        self.lock().ended.insert(shard.clone());
    }

    /// The shards that are read to their ends.
    #[must_use]
    pub fn ended(&self) -> BTreeSet<ShardId> {
        self.lock().ended.clone()
    }

    /// How things stand.
    #[must_use]
    pub fn counts(&self) -> Counts {
        self.lock().counts
    }

    /// What it all comes to; `keys` has the key of each place in the source.
    #[must_use]
    pub fn reconcile(&self, keys: &[u32]) -> Figures {
        let book = self.lock();
        let mut figures = Figures::default();
        let mut first_deliveries = vec![None; keys.len()];
        for entry in book.shards.values().flat_map(BTreeMap::values) {
            let Some(place) = entry.published else {
                figures.unanswered += 1;
                continue;
            };
            first_deliveries[place] = entry.first_delivery;
            figures.published += 1;
            figures.delivered += u64::from(entry.first_delivery.is_some());
            figures.duplicates += entry.deliveries.saturating_sub(1);
            figures.dead_lettered += u64::from(entry.dead_lettered);
            figures.lost += u64::from(entry.is_outstanding());
        }
        figures.out_of_order = out_of_order(keys, &first_deliveries);
        figures
    }

    fn lock(&self) -> MutexGuard<'_, Book> {
        // No panic can happen within a change that would leave it half done.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Book {
    fn change(&mut self, shard: &ShardId, number: SequenceNumber, change: impl FnOnce(&mut Entry, &mut Counts, &mut u64)) {
        if !self.shards.contains_key(shard) {
            self.shards.insert(shard.clone(), BTreeMap::new());
        }
        let entry = self.shards.get_mut(shard).expect("it was just put there").entry(number).or_default();
        self.counts.outstanding -= u64::from(entry.is_outstanding());
        change(entry, &mut self.counts, &mut self.deliveries);
        self.counts.outstanding += u64::from(entry.is_outstanding());
    }
}

/// Records first delivered after a later record of their key. The publisher has published each key's records in the order of the source.
fn out_of_order(keys: &[u32], first_deliveries: &[Option<u64>]) -> u64 {
    let mut earliest_later: BTreeMap<u32, u64> = BTreeMap::new();
    let mut count = 0;
    for (key, delivery) in keys.iter().zip(first_deliveries).rev() {
        let Some(delivery) = *delivery else { continue };
        let later = earliest_later.entry(*key).or_insert(u64::MAX);
        count += u64::from(delivery > *later);
        *later = delivery.min(*later);
    }
    count
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn order_is_judged_within_a_key_by_first_deliveries() {
        // keys, first deliveries => out of order
        for (keys, deliveries, expected) in [
            (&[0, 0, 0][..], &[Some(1), Some(2), Some(3)][..], 0),
            (&[0, 1, 0], &[Some(2), Some(1), Some(3)], 0),
            (&[0, 0, 0], &[Some(3), Some(1), Some(2)], 1),
            (&[0, 0, 0], &[Some(3), Some(2), Some(1)], 2),
            (&[0, 0, 0], &[Some(2), None, Some(1)], 1),
            (&[0, 1, 0, 1], &[Some(4), Some(3), Some(2), Some(1)], 2),
            (&[], &[], 0),
        ] {
            assert_eq!(out_of_order(keys, deliveries), expected, "{keys:?} {deliveries:?}");
        }
    }

    #[test]
    fn each_record_is_accounted_for_once_whoever_tells_first() {
        let (ledger, shard, number) = (Ledger::default(), ShardId::from("shardId-000000000000"), SequenceNumber::from);
        ledger.delivered(&shard, number(1)); // before its publisher knows
        ledger.published(&shard, number(1), 0);
        ledger.published(&shard, number(2), 1);
        ledger.published(&shard, number(3), 2);
        ledger.published(&shard, number(4), 3);
        assert_eq!(ledger.counts().outstanding, 3);
        ledger.delivered(&shard, number(3));
        ledger.delivered(&shard, number(2));
        ledger.delivered(&shard, number(2));
        ledger.dead_lettered(&shard, number(4));
        ledger.dead_lettered(&shard, number(4));
        ledger.delivered(&shard, number(9)); // nobody was told of its publication
        assert_eq!(ledger.counts(), Counts { published: 4, delivered: 4, duplicates: 1, dead_lettered: 1, outstanding: 0 });
        assert_eq!(
            ledger.reconcile(&[0, 0, 0, 0]),
            Figures { published: 4, delivered: 3, duplicates: 1, lost: 0, out_of_order: 1, dead_lettered: 1, unanswered: 1 }
        );
    }

    #[test]
    fn what_nobody_saw_is_lost() {
        let (ledger, shard) = (Ledger::default(), ShardId::from("shardId-000000000000"));
        ledger.published(&shard, 1.into(), 0);
        assert_eq!(ledger.counts().outstanding, 1);
        assert_eq!(ledger.reconcile(&[0]).lost, 1);
    }
}
