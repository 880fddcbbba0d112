//! The walk over a checked message, and what it hands out.

use std::fmt;
use std::iter::FusedIterator;
use std::sync::Arc;

use bytes::Bytes;

use crate::aggregate::Checked;
use crate::keys::parse_explicit_hash_key;
use crate::survey::{RawSubRecord, SUB_RECORD};
use crate::wire::{Cursor, Field, Value};

/// One record as a producer's user has put it.
///
/// Key and data are parts of the Kinesis record's own buffer: no copies, but whoever keeps one keeps the whole buffer.
#[derive(Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct SubRecord {
    /// Its own partition key, which need not be the Kinesis record's. It may be one that Kinesis
    /// itself refuses in a put: empty, or longer than 256 characters. `None`: the aggregate's key is
    /// not UTF-8, or has more than [`LONGEST_TOLD_KEY`](crate::LONGEST_TOLD_KEY) bytes.
    pub partition_key: Option<PartitionKey>,
    /// The hash key that the producer chose in place of the partition key's hash.
    pub explicit_hash_key: Option<u128>,
    /// The payload; may be empty.
    pub data: Bytes,
    /// Its index in the aggregate, from 0, as in the Java library: with the Kinesis record's sequence number, its address in the shard.
    pub sub_sequence_number: u64,
    /// Whether it belongs to another shard than the one whose range was given; false if none was. See
    /// [`Aggregate::outside_range`](crate::Aggregate::outside_range).
    pub outside_range: bool,
}

/// A partition key, as a part of the Kinesis record's buffer: text of at most
/// [`LONGEST_TOLD_KEY`](crate::LONGEST_TOLD_KEY) bytes. Shown by nothing but its own methods.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PartitionKey(Bytes);

impl PartitionKey {
    /// The key as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).expect("only keys that were found to be UTF-8 are told")
    }

    /// The key's UTF-8 bytes.
    #[must_use]
    pub fn into_bytes(self) -> Bytes {
        self.0
    }
}

impl AsRef<str> for PartitionKey {
    fn as_ref(&self) -> &str {
        self.as_str()
    }
}

impl fmt::Debug for PartitionKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("PartitionKey(..)")
    }
}

impl fmt::Debug for SubRecord {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("SubRecord")
            .field("sub_sequence_number", &self.sub_sequence_number)
            .field("data_len", &self.data.len())
            .field("outside_range", &self.outside_range)
            .finish_non_exhaustive()
    }
}

/// Walks the sub-records of an [`Aggregate`](crate::Aggregate). Each is found when it is asked for; nothing can be wrong with it any more.
#[derive(Clone)]
pub struct SubRecords {
    checked: Arc<Checked>,
    /// Where in the message the walk goes on.
    at: usize,
    /// Index of the next sub-record.
    next: usize,
}

impl SubRecords {
    pub(crate) fn new(checked: Arc<Checked>) -> Self {
        Self { checked, at: 0, next: 0 }
    }
}

impl Iterator for SubRecords {
    type Item = SubRecord;

    fn next(&mut self) -> Option<SubRecord> {
        let Checked { message, tables, sides, .. } = &*self.checked;
        let mut walk = RawSubRecords { cursor: Cursor::new(&message[self.at..]) };
        let raw = walk.next()?;
        self.at = message.len() - walk.cursor.left();
        let sub_sequence_number = self.next as u64;
        self.next += 1;
        let (Some(key), Some(data)) = (raw.partition_key, raw.data) else {
            unreachable!("the survey refuses sub-records without key or data");
        };
        Some(SubRecord {
            partition_key: tables.told_partition_key(message, key).map(|key| PartitionKey(message.slice_ref(key))),
            explicit_hash_key: raw.explicit_hash_key.map(|index| {
                parse_explicit_hash_key(tables.explicit_hash_key(message, index)).expect("the survey parsed each explicit hash key")
            }),
            data: message.slice_ref(data),
            sub_sequence_number,
            outside_range: sides.as_ref().is_some_and(|sides| sides.is_outside(&raw)),
        })
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        let left = self.checked.sub_records - self.next;
        (left, Some(left))
    }
}

impl ExactSizeIterator for SubRecords {}
impl FusedIterator for SubRecords {}

impl fmt::Debug for SubRecords {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("SubRecords").field("next", &self.next).field("left", &self.len()).finish_non_exhaustive()
    }
}

/// The sub-records of a surveyed message as they are on the wire.
pub(crate) fn raw_sub_records(message: &[u8]) -> impl Iterator<Item = RawSubRecord<'_>> {
    RawSubRecords { cursor: Cursor::new(message) }
}

struct RawSubRecords<'a> {
    cursor: Cursor<'a>,
}

impl<'a> Iterator for RawSubRecords<'a> {
    type Item = RawSubRecord<'a>;

    #[inline]
    fn next(&mut self) -> Option<RawSubRecord<'a>> {
        loop {
            match self.cursor.field()? {
                Ok(Field { number: SUB_RECORD, value: Value::Bytes(bytes) }) => match RawSubRecord::read(bytes) {
                    Ok(record) => return Some(record),
                    Err(_) => unreachable!("the survey read this sub-record"),
                },
                Ok(_) => {}
                Err(_) => unreachable!("the survey read this field"),
            }
        }
    }
}
