//! Which keys of an aggregate belong to the shard that it was read from.
//!
//! Asked once per key, however many sub-records refer to it: otherwise one long key and many small sub-records would cost a
//! digest of the key for each.

use std::ops::RangeInclusive;

use crate::keys::{hash_of_bytes, parse_explicit_hash_key};
use crate::survey::RawSubRecord;
use crate::tables::Tables;

/// Where a key is, once somebody asked.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Side {
    Unknown,
    Inside,
    Outside,
}

/// The sides of all keys: one byte each.
pub(crate) struct Sides {
    partition_keys: Vec<Side>,
    explicit_hash_keys: Vec<Side>,
}

impl Sides {
    pub(crate) fn unknown(tables: &Tables) -> Self {
        let (partition_keys, explicit_hash_keys) = tables.lens();
        Self { partition_keys: vec![Side::Unknown; partition_keys], explicit_hash_keys: vec![Side::Unknown; explicit_hash_keys] }
    }

    /// Whether this sub-record of a surveyed message is outside the range.
    pub(crate) fn judge(&mut self, record: &RawSubRecord<'_>, message: &[u8], tables: &Tables, range: &RangeInclusive<u128>) -> bool {
        let key = deciding_key(record);
        let side = match key {
            Key::Explicit(index) => &mut self.explicit_hash_keys[index as usize],
            Key::Partition(index) => &mut self.partition_keys[index as usize],
        };
        if *side == Side::Unknown {
            let hash = match key {
                Key::Explicit(index) => {
                    parse_explicit_hash_key(tables.explicit_hash_key(message, index)).expect("the survey parsed each explicit hash key")
                }
                Key::Partition(index) => hash_of_bytes(tables.partition_key(message, index)),
            };
            *side = if range.contains(&hash) { Side::Inside } else { Side::Outside };
        }
        *side == Side::Outside
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
