//! The pass over a whole message that finds all that can be wrong with it, before anything is handed out.
//!
//! It keeps a handful of numbers and allocates nothing, so a message made in bad faith costs time in proportion to its length and no
//! memory.

use crate::error::{BrokenAggregate, Malformed};
use crate::keys::{is_told, parse_explicit_hash_key};
use crate::rules::Rules;
use crate::wire::{Cursor, Field, Value};

/// Field numbers of the message (`AggregatedRecord` in the published format).
pub(crate) const PARTITION_KEY: u32 = 1;
pub(crate) const EXPLICIT_HASH_KEY: u32 = 2;
pub(crate) const SUB_RECORD: u32 = 3;

/// Field numbers of a sub-record (`Record`). Tags, number 4, are read by no library; they are stepped over like unknown fields.
const PARTITION_KEY_INDEX: u32 = 1;
const EXPLICIT_HASH_KEY_INDEX: u32 = 2;
const DATA: u32 = 3;

/// How many of each there are in a message in which nothing is wrong.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Survey {
    pub(crate) partition_keys: usize,
    pub(crate) explicit_hash_keys: usize,
    pub(crate) sub_records: usize,
    /// Whether all partition keys are told.
    pub(crate) all_told: bool,
}

/// A sub-record as it is on the wire. A field that is repeated counts with its last value, as everywhere in protobuf.
#[derive(Clone, Copy, Default)]
pub(crate) struct RawSubRecord<'a> {
    pub(crate) partition_key: Option<u64>,
    pub(crate) explicit_hash_key: Option<u64>,
    pub(crate) data: Option<&'a [u8]>,
}

impl<'a> RawSubRecord<'a> {
    /// Reads a sub-record. An error says how many bytes were left where the field begins that is wrong.
    #[inline]
    pub(crate) fn read(bytes: &'a [u8]) -> Result<Self, (usize, Malformed)> {
        let mut cursor = Cursor::new(bytes);
        let mut record = Self::default();
        loop {
            let left = cursor.left();
            let Some(field) = cursor.field() else { return Ok(record) };
            let Field { number, value } = field.map_err(|reason| (left, reason))?;
            match (number, value) {
                (PARTITION_KEY_INDEX, Value::Varint(index)) => record.partition_key = Some(index),
                (EXPLICIT_HASH_KEY_INDEX, Value::Varint(index)) => record.explicit_hash_key = Some(index),
                (DATA, Value::Bytes(data)) => record.data = Some(data),
                (PARTITION_KEY_INDEX | EXPLICIT_HASH_KEY_INDEX | DATA, _) => return Err((left, Malformed::WireType)),
                _ => {}
            }
        }
    }
}

/// The highest index into a table, and the first sub-record that has it.
#[derive(Clone, Copy)]
struct Highest {
    index: u64,
    sub_record: u64,
}

impl Highest {
    fn note(highest: &mut Option<Self>, index: u64, sub_record: u64) {
        if highest.is_none_or(|highest| index > highest.index) {
            *highest = Some(Self { index, sub_record });
        }
    }

    /// The highest index, if the table is too short for it. Asked at the end: tables may come after the records that refer to them.
    fn beyond(highest: Option<Self>, len: usize) -> Option<Self> {
        highest.filter(|highest| highest.index >= len as u64)
    }
}

/// Looks at every byte of the message's structure and every byte of its keys.
///
/// What the Java library's parser would refuse comes before what it would trip over later: the former may mean that the payload is
/// no aggregate at all.
pub(crate) fn survey(message: &[u8], rules: &Rules) -> Result<Survey, BrokenAggregate> {
    let mut cursor = Cursor::new(message);
    let mut seen = Survey { all_told: true, ..Survey::default() };
    let (mut partition_key, mut explicit_hash_key) = (None, None);
    let mut fault: Option<BrokenAggregate> = None;

    loop {
        let at = message.len() - cursor.left();
        let Some(field) = cursor.field() else { break };
        let Field { number, value } = field.map_err(|reason| BrokenAggregate::Malformed { at, reason })?;
        match (number, value) {
            (SUB_RECORD, Value::Bytes(bytes)) => {
                let index = seen.sub_records as u64;
                let record = RawSubRecord::read(bytes)
                    .map_err(|(left, reason)| BrokenAggregate::Malformed { at: message.len() - cursor.left() - left, reason })?;
                let key = record.partition_key.ok_or(BrokenAggregate::NoPartitionKeyIndex { sub_record: index })?;
                if record.data.is_none() {
                    return Err(BrokenAggregate::NoData { sub_record: index });
                }
                Highest::note(&mut partition_key, key, index);
                if let Some(key) = record.explicit_hash_key {
                    Highest::note(&mut explicit_hash_key, key, index);
                }
                seen.sub_records += 1;
            }
            (PARTITION_KEY, Value::Bytes(key)) => {
                // A partition key that is none says nothing against the sub-records of others.
                seen.all_told &= is_told(key);
                seen.partition_keys += 1;
            }
            (EXPLICIT_HASH_KEY, Value::Bytes(key)) => {
                if parse_explicit_hash_key(key).is_none() {
                    fault.get_or_insert(BrokenAggregate::ExplicitHashKey { key: seen.explicit_hash_keys });
                }
                seen.explicit_hash_keys += 1;
            }
            (PARTITION_KEY | EXPLICIT_HASH_KEY | SUB_RECORD, _) => {
                return Err(BrokenAggregate::Malformed { at, reason: Malformed::WireType });
            }
            _ => {}
        }
    }

    if let Some(fault) = fault {
        return Err(fault);
    }
    if seen.sub_records == 0 {
        return Err(BrokenAggregate::NoSubRecords);
    }
    if seen.sub_records > rules.max_sub_records {
        return Err(BrokenAggregate::TooManySubRecords { found: seen.sub_records, limit: rules.max_sub_records });
    }
    if let Some(Highest { index, sub_record }) = Highest::beyond(partition_key, seen.partition_keys) {
        return Err(BrokenAggregate::PartitionKeyIndex { sub_record, index, keys: seen.partition_keys });
    }
    if let Some(Highest { index, sub_record }) = Highest::beyond(explicit_hash_key, seen.explicit_hash_keys) {
        return Err(BrokenAggregate::ExplicitHashKeyIndex { sub_record, index, keys: seen.explicit_hash_keys });
    }
    Ok(seen)
}
