//! Packing records as the Kinesis Producer Library does.

use std::collections::BTreeMap;
use std::fmt;

use bytes::Bytes;
use prost::Message as _;
use prost::length_delimiter_len;

use crate::envelope::{self, OVERHEAD};
use crate::keys::is_valid_partition_key;
use crate::proto;

/// Longest payload that [`Aggregator::default`] makes: the KPL's own default (`AggregationMaxSize`).
pub const DEFAULT_MAX_LEN: usize = 51_200;

/// Packs records into the payload of one Kinesis record, up to a length.
///
/// Each key is written once, in the order of first use, and the records refer to it: byte for byte what the aggregation library of AWS for
/// Python makes of the same records.
pub struct Aggregator {
    max_len: usize,
    message_len: usize,
    partition_keys: Table,
    explicit_hash_keys: Table,
    records: Vec<proto::Record>,
}

/// What to put into the stream.
#[derive(Clone, PartialEq, Eq)]
pub struct Aggregated {
    /// The first record's partition key, which the libraries use for the whole.
    pub partition_key: String,
    /// The first record's explicit hash key.
    pub explicit_hash_key: Option<u128>,
    /// The aggregate.
    pub payload: Bytes,
}

/// A record was not added; what was added before is untouched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AddError {
    /// Finish this aggregate, and add the record to the next one.
    #[error("the aggregate would have {needed} bytes; at most {max_len} are allowed")]
    Full {
        /// How long the payload would be.
        needed: usize,
        /// How long it may be.
        max_len: usize,
    },
    /// The record fits into no aggregate of this length.
    #[error("the record alone makes an aggregate of {needed} bytes; at most {max_len} are allowed")]
    TooLarge {
        /// How long the payload would be.
        needed: usize,
        /// How long it may be.
        max_len: usize,
    },
    /// Kinesis would not accept it.
    #[error("the partition key is empty or longer than 256 characters")]
    PartitionKey,
}

impl Default for Aggregator {
    fn default() -> Self {
        Self::new(DEFAULT_MAX_LEN)
    }
}

impl Aggregator {
    /// Packs payloads of at most `max_len` bytes, magic number and digest included.
    #[must_use]
    pub fn new(max_len: usize) -> Self {
        Self { max_len, message_len: 0, partition_keys: Table::default(), explicit_hash_keys: Table::default(), records: Vec::new() }
    }

    /// Adds a record, if there is room.
    ///
    /// # Errors
    ///
    /// The partition key is none, or there is no room: see [`AddError`].
    pub fn add(&mut self, partition_key: &str, explicit_hash_key: Option<u128>, data: impl Into<Bytes>) -> Result<(), AddError> {
        if !is_valid_partition_key(partition_key) {
            return Err(AddError::PartitionKey);
        }
        let explicit_hash_key = explicit_hash_key.map(|key| key.to_string());
        let record = proto::Record {
            partition_key_index: self.partition_keys.index_of(partition_key),
            explicit_hash_key_index: explicit_hash_key.as_deref().map(|key| self.explicit_hash_keys.index_of(key)),
            data: data.into(),
        };
        let growth = self.partition_keys.growth(partition_key)
            + explicit_hash_key.as_deref().map_or(0, |key| self.explicit_hash_keys.growth(key))
            + field_len(record.encoded_len());

        let needed = OVERHEAD + self.message_len + growth;
        if needed > self.max_len {
            let max_len = self.max_len;
            return Err(if self.is_empty() { AddError::TooLarge { needed, max_len } } else { AddError::Full { needed, max_len } });
        }
        self.partition_keys.insert(partition_key);
        if let Some(key) = &explicit_hash_key {
            self.explicit_hash_keys.insert(key);
        }
        self.records.push(record);
        self.message_len += growth;
        Ok(())
    }

    /// How many records were added.
    #[must_use]
    pub fn len(&self) -> usize {
        self.records.len()
    }

    /// Whether no record was added.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    /// How long the payload of what was added is.
    #[must_use]
    pub fn payload_len(&self) -> usize {
        OVERHEAD + self.message_len
    }

    /// The aggregate of what was added; none if nothing was. The aggregator is empty afterwards. One record alone is packed too.
    pub fn finish(&mut self) -> Option<Aggregated> {
        let Self { partition_keys, explicit_hash_keys, records, .. } = std::mem::replace(self, Self::new(self.max_len));
        let first = records.first()?.explicit_hash_key_index;
        let message = proto::AggregatedRecord {
            partition_key_table: partition_keys.into_entries(),
            explicit_hash_key_table: explicit_hash_keys.into_entries(),
            records,
        };
        Some(Aggregated {
            partition_key: message.partition_key_table[0].clone(),
            explicit_hash_key: first.map(|_| message.explicit_hash_key_table[0].parse().expect("written from a number")),
            payload: envelope::seal(&message.encode_to_vec()),
        })
    }
}

/// A key table in the making.
#[derive(Default)]
struct Table {
    indices: BTreeMap<String, u64>,
}

impl Table {
    /// The index that a key has or would get.
    fn index_of(&self, key: &str) -> u64 {
        self.indices.get(key).copied().unwrap_or(self.indices.len() as u64)
    }

    /// How much longer the message gets by the key.
    fn growth(&self, key: &str) -> usize {
        if self.indices.contains_key(key) { 0 } else { field_len(key.len()) }
    }

    fn insert(&mut self, key: &str) {
        if !self.indices.contains_key(key) {
            self.indices.insert(key.to_owned(), self.indices.len() as u64);
        }
    }

    fn into_entries(self) -> Vec<String> {
        let mut entries: Vec<_> = self.indices.into_iter().collect();
        entries.sort_unstable_by_key(|(_, index)| *index);
        entries.into_iter().map(|(key, _)| key).collect()
    }
}

/// Length on the wire of a field with a content of this length: all numbers of the format's fields take one byte.
fn field_len(content: usize) -> usize {
    1 + length_delimiter_len(content) + content
}

impl fmt::Debug for Aggregator {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Aggregator").field("len", &self.len()).field("payload_len", &self.payload_len()).finish_non_exhaustive()
    }
}

impl fmt::Debug for Aggregated {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Aggregated").field("payload_len", &self.payload.len()).finish_non_exhaustive()
    }
}
