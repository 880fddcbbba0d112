//! Records as processors see them, and the batch that tells which record was in work when something failed.

use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};

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
    aggregated: bool,
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
            aggregated: false,
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
            aggregated: true,
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
        self.aggregated
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

/// Records of one shard in their order, delivered together.
#[derive(Debug)]
pub struct RecordBatch {
    records: Vec<Record>,
    millis_behind_latest: Option<u64>,
    /// Records that [`in_order`](Self::in_order) has handed out; 0: it was not used.
    handed_out: AtomicUsize,
}

impl RecordBatch {
    /// A batch of these records, read this far behind the tip of the shard.
    #[must_use]
    pub fn new(records: Vec<Record>, millis_behind_latest: Option<u64>) -> Self {
        Self { records, millis_behind_latest, handed_out: AtomicUsize::new(0) }
    }

    /// Goes through the records one by one, and notes which one is in work.
    ///
    /// If [`process_records`](crate::RecordProcessor::process_records) then fails, the failure belongs to the record handed out last:
    /// those before it are done and are not delivered again, those after it are delivered next time. Without it, a
    /// failure belongs to the batch as a whole.
    pub fn in_order(&self) -> impl Iterator<Item = &Record> {
        self.handed_out.store(0, Ordering::Relaxed);
        self.records.iter().inspect(|_| {
            self.handed_out.fetch_add(1, Ordering::Relaxed);
        })
    }

    /// All records, for work that does not go one by one.
    #[must_use]
    pub fn records(&self) -> &[Record] {
        &self.records
    }

    /// The number of records; never 0 where a batch is delivered.
    #[must_use]
    pub fn len(&self) -> usize {
        self.records.len()
    }

    /// Whether there are no records.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    /// How far the end of this batch was behind the newest record of the shard when it was read, in milliseconds; 0: nothing
    /// newer. `None`: the service did not say.
    #[must_use]
    pub fn millis_behind_latest(&self) -> Option<u64> {
        self.millis_behind_latest
    }

    /// The records back, for another attempt.
    pub(crate) fn into_records(self) -> Vec<Record> {
        self.records
    }

    /// Index of the record in work, if the batch was gone through in order.
    pub(crate) fn in_work(&self) -> Option<usize> {
        self.handed_out.load(Ordering::Relaxed).checked_sub(1)
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
        let batch = RecordBatch::new(vec![record(1)], Some(0));
        let shown = format!("{batch:?}");
        assert!(!shown.contains("secret") && shown.contains("bytes: 11"), "{shown}");
    }

    #[test]
    fn the_record_in_work_is_the_one_handed_out_last() {
        let batch = RecordBatch::new((0..5).map(record).collect(), None);
        assert_eq!(batch.in_work(), None);
        let mut records = batch.in_order();
        assert_eq!(batch.in_work(), None);
        records.next();
        records.next();
        assert_eq!(batch.in_work(), Some(1));
        assert_eq!(batch.in_order().count(), 5);
        assert_eq!(batch.in_work(), Some(4));
    }
}
