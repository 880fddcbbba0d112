//! The rules by which a payload is judged, where each comes from, and what may be configured about them.
//!
//! | what arrives | what it is | source |
//! |---|---|---|
//! | no magic number; not more than 20 bytes; a digest that is not the message's | an ordinary record | Java library |
//! | a message that is no protobuf; a sub-record without partition key index or data | an ordinary record; or broken, see [`Unparsable`] | Java library |
//! | a field of the format with another wire type | as above | prost; the Java library steps over it, and then mostly misses a required field |
//! | an index for which there is no key | broken | the Java library logs the payload and loses what follows |
//! | a partition key that is empty or longer than 256 characters | its sub-records are delivered with it | Java library; Kinesis itself accepts none (`PutRecord`) |
//! | a partition key that is not UTF-8 or longer than [`LONGEST_TOLD_KEY`](crate::LONGEST_TOLD_KEY) bytes | its sub-records are delivered without a key | the Java library delivers them under a key in which U+FFFD replaces what is not UTF-8 |
//! | an explicit hash key that is no decimal number from 0 to 2^128-1, or longer than 39 digits | broken | Kinesis accepts none (`PutRecord`) |
//! | no sub-records | broken | the Java library delivers nothing: a record vanishes |
//! | more sub-records than allowed | broken | ours, see [`DEFAULT_MAX_SUB_RECORDS`] |
//! | sub-records outside the shard's hash range | delivered, and marked | the Java library delivers nothing of such an aggregate |
//! | unknown fields, tags, groups up to 32 deep, fields out of order or repeated, keys that nobody uses | read as protobuf says | published format, protobuf |
//!
//! The Java library is `AggregatorUtil` of version 3; the published format is `aggregation-format.md` of the KPL. All explicit hash keys are judged, used or
//! not. A partition key never makes an aggregate broken: it concerns its own sub-records alone.

/// How many sub-records an aggregate may have if nothing else is said.
///
/// The largest Kinesis record (10 MiB) holds that many sub-records of four bytes each, so producers don't come near it; it bounds what a
/// record made in bad faith can demand of a consumer per sub-record.
pub const DEFAULT_MAX_SUB_RECORDS: usize = 1_000_000;

/// What may be configured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rules {
    /// An aggregate with more sub-records than this is broken. [`DEFAULT_MAX_SUB_RECORDS`] by default.
    pub max_sub_records: usize,
    /// What becomes of a payload whose digest is right and whose message is no aggregate's. [`Unparsable::NotAggregated`] by
    /// default.
    pub unparsable: Unparsable,
}

/// What becomes of a payload whose digest is right, but whose message can't be parsed.
///
/// Somebody made an envelope around something else: with a right digest neither chance nor a damaged record is the explanation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Unparsable {
    /// It is delivered as an ordinary record, as the Java library does (`InvalidProtocolBufferException`): nothing changes for a stream
    /// that was read with that.
    #[default]
    NotAggregated,
    /// It is set aside with the reason, for streams on which everything is aggregated: the processor would only find bytes that it can't
    /// use.
    Broken,
}

impl Default for Rules {
    fn default() -> Self {
        Self { max_sub_records: DEFAULT_MAX_SUB_RECORDS, unparsable: Unparsable::default() }
    }
}
