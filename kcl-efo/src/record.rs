//! What is read from a shard, as plain data.

use std::collections::BTreeSet;

use bytes::Bytes;
use kcl_checkpoint::{SequenceNumber, Timestamp};

/// One record of a shard.
#[derive(Clone, PartialEq, Eq)]
pub struct Record {
    /// Its number: grows within the shard.
    pub sequence_number: SequenceNumber,
    /// Its key. Streams that distribute records by themselves give none.
    pub partition_key: Option<String>,
    /// Its payload.
    pub data: Bytes,
    /// When the service took it in, by the service's clock.
    pub arrival: Option<Timestamp>,
}

impl std::fmt::Debug for Record {
    /// Without payload and key.
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Record").field("sequence_number", &self.sequence_number).finish_non_exhaustive()
    }
}

/// A shard that came from one or two others, as the end of a shard tells it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChildShard {
    /// Its id.
    pub shard_id: String,
    /// The shards that it came from; never empty.
    pub parents: BTreeSet<String>,
    /// The first and the last hash key that it takes.
    pub hash_range: (u128, u128),
}
