//! Records as processors see them.

use std::fmt;

use bytes::Bytes;
use kcl_aggregation::{PartitionKey, SubRecord};
use kcl_checkpoint::{ExtendedSequenceNumber, SequenceNumber, Timestamp};

/// One record of a stream: one of its own, or one of those that the Kinesis Producer Library has aggregated into one.
///
/// `Debug` shows neither the data nor the partition key: they are the users' secrets and belong into no log.
#[derive(Clone, PartialEq, Eq)]
pub struct Record {
    position: ExtendedSequenceNumber,
    partition_key: Option<Key>,
    explicit_hash_key: Option<u128>,
    data: Bytes,
    arrival: Option<Timestamp>,
    /// The size of the aggregate that it is a part of.
    aggregate: Option<usize>,
}

/// A partition key: its own text, or a part of its aggregate's buffer.
#[derive(Clone)]
enum Key {
    Own(Box<str>),
    Shared(PartitionKey),
}

impl Key {
    fn as_str(&self) -> &str {
        match self {
            Self::Own(text) => text,
            Self::Shared(key) => key.as_str(),
        }
    }
}

impl PartialEq for Key {
    fn eq(&self, other: &Self) -> bool {
        self.as_str() == other.as_str()
    }
}

impl Eq for Key {}

impl Record {
    /// A record that is not part of an aggregate.
    #[must_use]
    pub fn new(sequence_number: SequenceNumber, partition_key: Option<String>, data: Bytes, arrival: Option<Timestamp>) -> Self {
        Self {
            position: ExtendedSequenceNumber::whole(sequence_number),
            partition_key: partition_key.map(|key| Key::Own(key.into_boxed_str())),
            explicit_hash_key: None,
            data,
            arrival,
            aggregate: None,
        }
    }

    /// A record that was aggregated into this one. Nothing is copied: whoever keeps it keeps the aggregate's buffer.
    pub(crate) fn of_aggregate(aggregate: &Self, record: SubRecord) -> Self {
        Self {
            position: ExtendedSequenceNumber::new(aggregate.sequence_number(), record.sub_sequence_number),
            partition_key: record.partition_key.map(Key::Shared),
            explicit_hash_key: record.explicit_hash_key,
            data: record.data,
            arrival: aggregate.arrival,
            aggregate: Some(aggregate.size()),
        }
    }

    /// The record's payload, without a copy.
    #[must_use]
    pub fn data(&self) -> &Bytes {
        &self.data
    }

    /// Returns the key that chose the shard. `None` on streams that distribute records themselves,
    /// and for a record of an aggregate whose key is not UTF-8 or longer than 4,096 bytes.
    ///
    /// Records without a key keep their order among each other. The key of a record of an aggregate
    /// may be one that Kinesis itself refuses in a put: empty, or longer than 256 characters.
    #[must_use]
    pub fn partition_key(&self) -> Option<&str> {
        self.partition_key.as_ref().map(Key::as_str)
    }

    /// The hash key that the producer chose in place of the partition key's hash. Known only of records of an aggregate: Kinesis gives it
    /// with no other.
    #[must_use]
    pub fn explicit_hash_key(&self) -> Option<u128> {
        self.explicit_hash_key
    }

    /// Whether the record is one of those that the Kinesis Producer Library has aggregated into one Kinesis record.
    #[must_use]
    pub fn is_aggregated(&self) -> bool {
        self.aggregate.is_some()
    }

    /// The record's address in its shard.
    #[must_use]
    pub fn position(&self) -> ExtendedSequenceNumber {
        self.position
    }

    /// The number that Kinesis gave the record.
    #[must_use]
    pub fn sequence_number(&self) -> SequenceNumber {
        self.position.sequence_number
    }

    /// The record's index among those aggregated under one sequence number; 0 for a record of its own.
    #[must_use]
    pub fn sub_sequence_number(&self) -> u64 {
        self.position.sub_sequence_number
    }

    /// About when Kinesis received the record: by its servers' clocks, in milliseconds, not guaranteed to grow.
    #[must_use]
    pub fn approximate_arrival(&self) -> Option<Timestamp> {
        self.arrival
    }

    /// The same with a payload of its own, that holds no part of a larger buffer.
    #[cfg(feature = "test-util")]
    pub(crate) fn detached(&self) -> Self {
        let partition_key = self.partition_key().map(|key| Key::Own(key.into()));
        Self { partition_key, data: Bytes::copy_from_slice(&self.data), ..self.clone() }
    }

    /// Bytes that stay in memory for as long as the record does: its own, or, of a part of an
    /// aggregate, the whole aggregate's.
    pub(crate) fn pinned(&self) -> usize {
        self.aggregate.unwrap_or_else(|| self.size())
    }

    /// Bytes that the record counts with against read limits and buffers: data and partition key.
    #[must_use]
    pub fn size(&self) -> usize {
        self.data.len() + self.partition_key().map_or(0, str::len)
    }
}

impl fmt::Debug for Record {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Record")
            .field("position", &self.position)
            .field("arrival", &self.arrival)
            .field("bytes", &self.data.len())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(number: u128) -> Record {
        Record::new(number.into(), Some("secret-key".into()), Bytes::from_static(b"secret-data"), None)
    }

    #[test]
    fn debug_shows_no_secrets() {
        let shown = format!("{:?}", record(1));
        assert!(!shown.contains("secret") && shown.contains("bytes: 11"), "{shown}");
    }
}
