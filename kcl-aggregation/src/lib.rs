//! Records that the Kinesis Producer Library (KPL) has aggregated: many user records in one Kinesis record.
//!
//! [`disaggregate`] looks at one Kinesis record's payload and says what it is: not aggregated; an [`Aggregate`], whose sub-records are
//! handed out lazily and without copying; or broken, and then as a whole. Everything is checked before the first sub-record is
//! handed out, so that nothing is ever delivered in part. Whatever arrives, it allocates at most five thirds of the payload's length,
//! and that only for a payload that is nothing but keys: four bytes for each key, and one more if a range is asked for.
//!
//! A partition key concerns its own sub-records alone, whatever it is. One that Kinesis refuses in a
//! put (empty, longer than 256 characters) is handed out as it is, one that is not UTF-8 or longer
//! than [`LONGEST_TOLD_KEY`] bytes as `None`. See [`rules`].
//!
//! [`disaggregate_all`] does the same for all payloads of an answer of `GetRecords`, at several times the speed.
//!
//! [`Aggregator`] packs records as the KPL does, for tests.
//!
//! | module | owns |
//! |---|---|
//! | [`envelope`] | the magic number before the message and the digest after it |
//! | [`digests`] | the digests of many envelopes, checked side by side |
//! | [`answer`] | all payloads of one answer of `GetRecords` |
//! | [`rules`] | the rules and their sources; what may be configured |
//! | [`aggregate`] | the one pass that checks a message whole |
//! | [`sub_record`] | the walk over a checked message, and what it hands out |
//! | [`error`](BrokenAggregate) | what can be wrong |
//! | [`aggregator`] | packing |
//!
//! ```
//! use bytes::Bytes;
//! use kcl_aggregation::{Aggregator, Disaggregated, Rules, disaggregate};
//!
//! let mut aggregator = Aggregator::default();
//! aggregator.add("user-1", None, Bytes::from_static(b"hello"))?;
//! aggregator.add("user-2", None, Bytes::from_static(b"world"))?;
//! let record = aggregator.finish().unwrap();
//!
//! match disaggregate(&record.payload, None, &Rules::default()) {
//!     Disaggregated::NotAggregated => println!("an ordinary record"),
//!     Disaggregated::Aggregate(aggregate) => {
//!         for sub_record in aggregate.sub_records() {
//!             println!("{} has {} bytes", sub_record.sub_sequence_number, sub_record.data.len());
//!         }
//!     }
//!     Disaggregated::Broken(error) => println!("for the dead-letter queue, whole: {error}"),
//! }
//! # Ok::<(), kcl_aggregation::AddError>(())
//! ```

use std::ops::RangeInclusive;

use bytes::Bytes;

pub mod aggregate;
pub mod aggregator;
pub mod answer;
pub mod digests;
pub mod envelope;
mod error;
mod keys;
mod lanes;
mod proto;
mod range;
pub mod rules;
pub mod sub_record;
mod survey;
mod tables;
mod wire;

pub use aggregate::Aggregate;
pub use aggregator::{AddError, Aggregated, Aggregator};
pub use answer::{DisaggregatedAll, disaggregate_all};
pub use digests::intact;
pub use envelope::Envelope;
pub use error::{BrokenAggregate, Malformed};
pub use keys::{LONGEST_TOLD_KEY, hash_of, is_valid_partition_key};
pub use rules::{Rules, Unparsable};
pub use sub_record::{PartitionKey, SubRecord, SubRecords};

/// What a Kinesis record's payload is.
#[derive(Clone, Debug)]
pub enum Disaggregated {
    /// An ordinary record: to be delivered as it is.
    NotAggregated,
    /// Checked whole; its sub-records can all be delivered.
    Aggregate(Aggregate),
    /// An aggregate that can't be taken apart. The whole record is to be set aside: some of its sub-records may be readable, but to
    /// deliver those would hide that others are lost.
    Broken(BrokenAggregate),
}

/// Says what this payload of a Kinesis record is.
///
/// With `range`, the hash keys of the shard that the record was read from, sub-records are marked that belong elsewhere; see
/// [`Aggregate::outside_range`]. Without it no hash is computed but the digest. For many payloads [`disaggregate_all`] is much faster.
#[must_use]
pub fn disaggregate(payload: &Bytes, range: Option<&RangeInclusive<u128>>, rules: &Rules) -> Disaggregated {
    match Envelope::find(payload) {
        Some(envelope) if envelope.is_intact() => open(&envelope, range, rules),
        _ => Disaggregated::NotAggregated,
    }
}

/// Says what is in an envelope that is intact.
fn open(envelope: &Envelope, range: Option<&RangeInclusive<u128>>, rules: &Rules) -> Disaggregated {
    match Aggregate::open(envelope.message(), range, rules) {
        Ok(aggregate) => Disaggregated::Aggregate(aggregate),
        Err(error) if error.is_unparsable() && rules.unparsable == Unparsable::NotAggregated => Disaggregated::NotAggregated,
        Err(error) => Disaggregated::Broken(error),
    }
}
