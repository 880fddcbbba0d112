//! The key tables of a checked message, as offsets into it.
//!
//! An offset's highest bit marks a partition key that is not told, so that nobody looks at a key's
//! bytes again for each sub-record that uses it.
//!
//! Four bytes per key, whatever its length. A key has at least three on the wire, so the tables are never larger than four thirds of
//! the message; they are allocated once, as large as they must be.

use crate::keys::is_told;
use crate::survey::{EXPLICIT_HASH_KEY, PARTITION_KEY, Survey};
use crate::wire::{Cursor, Value};

/// Marks the offset of a partition key that is not told.
const UNTOLD: u32 = 1 << 31;

/// Most bytes of a message: offsets leave the mark free.
pub(crate) const LONGEST_MESSAGE: usize = UNTOLD as usize - 1;

/// Where the keys of a message are.
pub(crate) struct Tables {
    partition_keys: Vec<u32>,
    explicit_hash_keys: Vec<u32>,
}

impl Tables {
    /// Finds the keys of a message that was surveyed and has at most [`LONGEST_MESSAGE`] bytes.
    pub(crate) fn of(message: &[u8], survey: &Survey) -> Self {
        let mut tables = Self {
            partition_keys: Vec::with_capacity(survey.partition_keys),
            explicit_hash_keys: Vec::with_capacity(survey.explicit_hash_keys),
        };
        let mut cursor = Cursor::new(message);
        // Producers write the keys first: the walk is over before the records begin.
        while tables.partition_keys.len() < survey.partition_keys || tables.explicit_hash_keys.len() < survey.explicit_hash_keys {
            let at = u32::try_from(message.len() - cursor.left()).expect("longer messages are refused before");
            let field = cursor.field().and_then(Result::ok).expect("the survey counted the keys");
            match field.number {
                PARTITION_KEY if !survey.all_told && !is_told(bytes_of(field.value)) => tables.partition_keys.push(at | UNTOLD),
                PARTITION_KEY => tables.partition_keys.push(at),
                EXPLICIT_HASH_KEY => tables.explicit_hash_keys.push(at),
                _ => {}
            }
        }
        tables
    }

    /// How many keys there are: partition keys, explicit hash keys.
    pub(crate) fn lens(&self) -> (usize, usize) {
        (self.partition_keys.len(), self.explicit_hash_keys.len())
    }

    /// The bytes of the partition key with an index that the survey has seen in a sub-record.
    #[inline]
    pub(crate) fn partition_key<'a>(&self, message: &'a [u8], index: u64) -> &'a [u8] {
        entry(message, &self.partition_keys, index)
    }

    /// The same, if that key is told.
    #[inline]
    pub(crate) fn told_partition_key<'a>(&self, message: &'a [u8], index: u64) -> Option<&'a [u8]> {
        (self.partition_keys[index as usize] & UNTOLD == 0).then(|| self.partition_key(message, index))
    }

    /// The explicit hash key with an index that the survey has seen in a sub-record.
    #[inline]
    pub(crate) fn explicit_hash_key<'a>(&self, message: &'a [u8], index: u64) -> &'a [u8] {
        entry(message, &self.explicit_hash_keys, index)
    }
}

#[inline]
fn entry<'a>(message: &'a [u8], table: &[u32], index: u64) -> &'a [u8] {
    match Cursor::new(&message[(table[index as usize] & !UNTOLD) as usize..]).field() {
        Some(Ok(field)) => bytes_of(field.value),
        Some(Err(_)) | None => unreachable!("the survey read this field"),
    }
}

#[inline]
fn bytes_of(value: Value<'_>) -> &[u8] {
    match value {
        Value::Bytes(key) => key,
        Value::Varint(_) | Value::Other => unreachable!("the survey checked the wire type of each key"),
    }
}
