//! Which keys of an aggregate belong to the shard that it was read from.
//!
//! Asked once per key, however many sub-records refer to it: otherwise one long key and many small sub-records would cost a
//! digest of the key for each. Keys are hashed side by side, as digests are.

use std::ops::RangeInclusive;

use crate::keys::{Hashes, parse_explicit_hash_key};
use crate::sub_record::raw_sub_records;
use crate::survey::RawSubRecord;
use crate::tables::Tables;

/// Where a key is, once somebody asked.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Side {
    Unknown,
    /// Or about to be known.
    Inside,
    Outside,
}

/// The sides of all keys: one byte each.
pub(crate) struct Sides {
    partition_keys: Vec<Side>,
    explicit_hash_keys: Vec<Side>,
}

impl Sides {
    /// Judges the keys of all sub-records of a surveyed message, and counts the sub-records that are outside the range.
    pub(crate) fn judge(message: &[u8], tables: &Tables, range: &RangeInclusive<u128>) -> (Self, usize) {
        let (partition_keys, explicit_hash_keys) = tables.lens();
        let mut sides =
            Self { partition_keys: vec![Side::Unknown; partition_keys], explicit_hash_keys: vec![Side::Unknown; explicit_hash_keys] };
        let mut any_outside = false;
        let mut hashes = Hashes::default();
        for record in raw_sub_records(message) {
            match deciding_key(&record) {
                Key::Explicit(index) => {
                    let side = &mut sides.explicit_hash_keys[index as usize];
                    if *side == Side::Unknown {
                        let key = tables.explicit_hash_key(message, index);
                        let hash = parse_explicit_hash_key(key).expect("the survey parsed each explicit hash key");
                        *side = Side::of(hash, range);
                        any_outside |= *side == Side::Outside;
                    }
                }
                Key::Partition(index) => {
                    let index = index as usize;
                    if sides.partition_keys[index] == Side::Unknown {
                        sides.partition_keys[index] = Side::Inside;
                        hashes.push(index, tables.partition_key(message, index as u64), |index, hash| {
                            sides.partition_keys[index] = Side::of(hash, range);
                            any_outside |= sides.partition_keys[index] == Side::Outside;
                        });
                    }
                }
            }
        }
        hashes.finish(|index, hash| {
            sides.partition_keys[index] = Side::of(hash, range);
            any_outside |= sides.partition_keys[index] == Side::Outside;
        });
        let outside = if any_outside { raw_sub_records(message).filter(|record| sides.is_outside(record)).count() } else { 0 };
        (sides, outside)
    }

    /// Whether a sub-record that was judged is outside the range.
    #[inline]
    pub(crate) fn is_outside(&self, record: &RawSubRecord<'_>) -> bool {
        let side = match deciding_key(record) {
            Key::Explicit(index) => self.explicit_hash_keys[index as usize],
            Key::Partition(index) => self.partition_keys[index as usize],
        };
        side == Side::Outside
    }
}

impl Side {
    fn of(hash: u128, range: &RangeInclusive<u128>) -> Self {
        if range.contains(&hash) { Self::Inside } else { Self::Outside }
    }
}

/// A key by its index.
enum Key {
    Explicit(u64),
    Partition(u64),
}

/// The explicit hash key decides if there is one, as in Kinesis.
#[inline]
fn deciding_key(record: &RawSubRecord<'_>) -> Key {
    match (record.explicit_hash_key, record.partition_key) {
        (Some(index), _) => Key::Explicit(index),
        (None, Some(index)) => Key::Partition(index),
        (None, None) => unreachable!("the survey refuses sub-records without a partition key"),
    }
}
