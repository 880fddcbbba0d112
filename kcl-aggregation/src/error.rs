//! What can be wrong with an aggregate whose digest is right.

/// Why an aggregate is broken. Names places and numbers, never a payload or a key.
///
/// Sub-records and keys are counted from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BrokenAggregate {
    /// The bytes are no protobuf message.
    #[error("the aggregate's message is no valid protobuf: {reason} (byte {at} of the message)")]
    Malformed {
        /// Where the field begins that is wrong, in bytes from the message's start.
        at: usize,
        /// What is wrong there.
        reason: Malformed,
    },
    /// A required field is missing.
    #[error("sub-record {sub_record} of the aggregate has no partition key index")]
    NoPartitionKeyIndex {
        /// Which sub-record.
        sub_record: u64,
    },
    /// A required field is missing. An empty payload is something else, and allowed.
    #[error("sub-record {sub_record} of the aggregate has no data")]
    NoData {
        /// Which sub-record.
        sub_record: u64,
    },
    /// There is nothing in it. Producers make no such aggregates; to pass over it would be to drop silently what a later version of the
    /// format may have put elsewhere.
    #[error("the aggregate has no sub-records")]
    NoSubRecords,
    /// More sub-records than the rules allow.
    #[error("the aggregate has {found} sub-records; at most {limit} are allowed")]
    TooManySubRecords {
        /// How many there are.
        found: usize,
        /// How many are allowed.
        limit: usize,
    },
    /// A sub-record refers to a partition key that is not there.
    #[error("sub-record {sub_record} of the aggregate refers to partition key {index}, but there are {keys}")]
    PartitionKeyIndex {
        /// Which sub-record: the first of those with the highest index.
        sub_record: u64,
        /// What it refers to.
        index: u64,
        /// How many there are.
        keys: usize,
    },
    /// A sub-record refers to an explicit hash key that is not there.
    #[error("sub-record {sub_record} of the aggregate refers to explicit hash key {index}, but there are {keys}")]
    ExplicitHashKeyIndex {
        /// Which sub-record: the first of those with the highest index.
        sub_record: u64,
        /// What it refers to.
        index: u64,
        /// How many there are.
        keys: usize,
    },
    /// Kinesis accepts no other explicit hash keys.
    #[error("explicit hash key {key} of the aggregate is no decimal number from 0 to 2^128-1")]
    ExplicitHashKey {
        /// Which entry of the table.
        key: usize,
    },
    /// No Kinesis record is that large.
    #[error("the aggregate's message has {len} bytes, more than any Kinesis record")]
    TooLarge {
        /// Its length in bytes.
        len: usize,
    },
}

impl BrokenAggregate {
    /// Whether the Java library could not parse the message either: it takes such a payload for an ordinary record.
    #[must_use]
    pub fn is_unparsable(&self) -> bool {
        matches!(self, Self::Malformed { .. } | Self::NoPartitionKeyIndex { .. } | Self::NoData { .. })
    }
}

/// What is wrong with bytes that should be protobuf.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Malformed {
    /// A field's key is cut off, zero, too large, or of an unknown wire type.
    #[error("a field's key is invalid")]
    Key,
    /// A variable-length integer is cut off or has more than 64 bits.
    #[error("a number is cut off or has more than 64 bits")]
    Varint,
    /// A field says that it is longer than what is left.
    #[error("a field is longer than what is left")]
    Truncated,
    /// A field of the format is not of the type that the format says.
    #[error("a field has another wire type than the format's")]
    WireType,
    /// A group ends that was not begun, or another one than was begun.
    #[error("a group ends that is not open")]
    EndGroup,
    /// More groups within each other than any sensible message has.
    #[error("groups are nested too deeply")]
    TooDeep,
}
