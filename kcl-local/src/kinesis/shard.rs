//! One shard: its place in the tree, its records in order, and where a reader stands in it.
//!
//! Owns the promise that everything rests on: a record's index is given in the same step that stores it, indexes
//! have no gaps, and records leave at the front only, when retention has passed.

use std::collections::VecDeque;

use bytes::Bytes;

use super::config::{READ_BYTES_PER_SECOND, READS_PER_SECOND, WRITE_BYTES_PER_SECOND, WRITES_PER_SECOND};
use super::sequence::{Parts, SequenceNumber, shard_id};
use super::throttle::TokenBucket;
use super::types::{HashKeyRange, Record, SequenceNumberRange, ShardDescription};

/// The place of the next record to read: its index, whether it was written yet or not. The first record has 1.
pub(super) type Position = u64;

/// Where a reader wants to begin: one of the five kinds of a shard iterator, or of a subscription.
#[derive(Clone, Copy, Debug)]
pub(super) enum Start {
    TrimHorizon,
    Latest,
    At(SequenceNumber),
    After(SequenceNumber),
    AtTimestamp(u64),
}

/// Why a sequence number can't begin a reading of a shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Foreign {
    /// It is of another shard's number.
    Shard(u32),
    /// This shard never gave it out.
    Unknown,
}

/// What one read of a shard brought.
#[derive(Debug)]
pub(super) struct Batch {
    pub(super) records: Vec<Record>,
    /// Data and partition keys.
    pub(super) bytes: usize,
    pub(super) next: Position,
    /// The age of the record at `next`, at least 1; 0 if there is none.
    pub(super) behind_ms: u64,
    /// Whether the shard is closed and `next` is beyond its last record.
    pub(super) ended: bool,
}

struct StoredRecord {
    data: Bytes,
    partition_key: Box<str>,
    arrived_at: u64,
}

impl StoredRecord {
    fn size(&self) -> usize {
        self.data.len() + self.partition_key.len()
    }
}

pub(super) struct Shard {
    pub(super) number: u32,
    generation: u64,
    /// First and last hash key.
    pub(super) range: (u128, u128),
    pub(super) parent: Option<u32>,
    pub(super) adjacent_parent: Option<u32>,
    pub(super) children: Vec<u32>,
    pub(super) created_at: u64,
    pub(super) closed_at: Option<u64>,
    /// Closed for longer than retention. It stays so if retention is made longer afterwards.
    pub(super) expired: bool,
    records: VecDeque<StoredRecord>,
    /// How many records have left at the front: the index of the first one here, less one.
    trimmed: u64,
    /// Reads and bytes of them, records written and bytes of them.
    pub(super) limits: [TokenBucket; 4],
}

impl Shard {
    pub(super) fn new(number: u32, generation: u64, range: (u128, u128), parents: [Option<u32>; 2], now: u64) -> Self {
        let limits = [READS_PER_SECOND, READ_BYTES_PER_SECOND, WRITES_PER_SECOND, WRITE_BYTES_PER_SECOND];
        Self {
            number,
            generation,
            range,
            parent: parents[0],
            adjacent_parent: parents[1],
            children: Vec::new(),
            created_at: now,
            closed_at: None,
            expired: false,
            records: VecDeque::new(),
            trimmed: 0,
            limits: limits.map(|per_second| TokenBucket::new(per_second, now)),
        }
    }

    pub(super) fn id(&self) -> String {
        shard_id(self.number)
    }

    /// Both parents of a merge, the one of a split, none of a new stream's shard.
    pub(super) fn parents(&self) -> impl Iterator<Item = u32> {
        self.parent.into_iter().chain(self.adjacent_parent)
    }

    /// Stores a record at the end. The shard must be open, and `now` not before any earlier record's.
    pub(super) fn append(&mut self, partition_key: String, data: Bytes, now: u64) -> SequenceNumber {
        debug_assert!(self.closed_at.is_none(), "a closed shard takes no records");
        self.records.push_back(StoredRecord { data, partition_key: partition_key.into_boxed_str(), arrived_at: now });
        self.number_of(self.last_index(), now)
    }

    /// Drops what arrived before `horizon`, and marks the shard expired if it closed before it.
    pub(super) fn trim(&mut self, horizon: u64) {
        while self.records.front().is_some_and(|record| record.arrived_at < horizon) {
            self.records.pop_front();
            self.trimmed += 1;
        }
        self.expired |= self.closed_at.is_some_and(|closed_at| closed_at < horizon);
    }

    /// Reads on from a position: at most `limit` records and `max_bytes` bytes, but one record whatever its size.
    /// What was trimmed meanwhile is passed over: reading goes on at the oldest record.
    pub(super) fn read(&self, from: Position, limit: usize, max_bytes: usize, now: u64) -> Batch {
        let mut next = from.clamp(self.first_index(), self.last_index() + 1);
        let mut records = Vec::with_capacity(limit.min(self.offset(self.last_index() + 1) - self.offset(next)));
        let mut bytes = 0;
        for stored in self.records.range(self.offset(next)..).take(limit) {
            if !records.is_empty() && bytes + stored.size() > max_bytes {
                break;
            }
            bytes += stored.size();
            records.push(Record {
                sequence_number: self.number_of(next, stored.arrived_at),
                approximate_arrival_timestamp: stored.arrived_at,
                data: stored.data.clone(),
                partition_key: stored.partition_key.to_string(),
            });
            next += 1;
        }
        let unread = self.records.get(self.offset(next));
        Batch {
            records,
            bytes,
            next,
            behind_ms: unread.map_or(0, |record| now.saturating_sub(record.arrived_at).max(1)),
            ended: self.closed_at.is_some() && unread.is_none(),
        }
    }

    /// The position where a reading begins. A trimmed sequence number is granted: it was in this shard once, and
    /// reading goes on at the oldest record.
    pub(super) fn position(&self, start: Start) -> Result<Position, Foreign> {
        let tip = self.last_index() + 1;
        Ok(match start {
            Start::TrimHorizon => self.first_index(),
            Start::Latest => tip,
            Start::AtTimestamp(time) => self.first_index() + self.records.partition_point(|record| record.arrived_at < time) as u64,
            Start::At(number) => self.index_of(number)?.min(tip),
            Start::After(number) => self.index_of(number)?.saturating_add(1).min(tip),
        })
    }

    /// A sequence number after which a reading begins at `position`, which must be one of this shard's: that of the
    /// record before, or of the shard's start.
    pub(super) fn number_before(&self, position: Position) -> SequenceNumber {
        let index = position.saturating_sub(1);
        if index == 0 {
            return self.starting_number();
        }
        // Of a trimmed record the index is enough: the time that its number was made of is gone with it.
        let stored = (index >= self.first_index()).then(|| &self.records[self.offset(index)]);
        self.number_of(index, stored.map_or(self.created_at, |record| record.arrived_at))
    }

    /// The index of a number that this shard gave out: a record's, its start's, or its end's once it is closed.
    fn index_of(&self, number: SequenceNumber) -> Result<u64, Foreign> {
        let parts = Parts::decode(number).ok_or(Foreign::Unknown)?;
        if parts.shard != self.number {
            return Err(Foreign::Shard(parts.shard));
        }
        let known = if number == self.starting_number() || Some(number) == self.ending_number() {
            true
        } else if (1..self.first_index()).contains(&parts.index) {
            // Trimmed, and with it the time that its number was made of.
            parts.generation == self.generation
        } else {
            let stored = parts.index.checked_sub(self.first_index()).and_then(|offset| usize::try_from(offset).ok());
            stored
                .and_then(|offset| self.records.get(offset))
                .is_some_and(|record| self.number_of(parts.index, record.arrived_at) == number)
        };
        if known { Ok(parts.index) } else { Err(Foreign::Unknown) }
    }

    fn number_of(&self, index: u64, arrived_at: u64) -> SequenceNumber {
        Parts { generation: self.generation, index, second: arrived_at / 1_000, shard: self.number }.encode()
    }

    fn starting_number(&self) -> SequenceNumber {
        Parts::start(self.generation, self.number, self.created_at / 1_000).encode()
    }

    fn ending_number(&self) -> Option<SequenceNumber> {
        self.closed_at.map(|closed_at| Parts::end(self.generation, self.number, closed_at / 1_000).encode())
    }

    fn first_index(&self) -> u64 {
        self.trimmed + 1
    }

    /// Of the last record ever stored; 0 if there was none.
    fn last_index(&self) -> u64 {
        self.trimmed + self.records.len() as u64
    }

    fn offset(&self, index: u64) -> usize {
        usize::try_from(index - self.first_index()).expect("within the records, which are in memory")
    }

    pub(super) fn hash_key_range(&self) -> HashKeyRange {
        HashKeyRange { starting_hash_key: self.range.0.to_string(), ending_hash_key: self.range.1.to_string() }
    }

    pub(super) fn describe(&self) -> ShardDescription {
        ShardDescription {
            shard_id: self.id(),
            parent_shard_id: self.parent.map(shard_id),
            adjacent_parent_shard_id: self.adjacent_parent.map(shard_id),
            hash_key_range: self.hash_key_range(),
            sequence_number_range: SequenceNumberRange {
                starting_sequence_number: self.starting_number(),
                ending_sequence_number: self.ending_number(),
            },
        }
    }
}
