//! What the publisher needs to put records together: which keys share a shard, and what an aggregate looks like that nobody can take apart.
//!
//! Hash keys are worked out here, as the service does it: nothing is taken from what the libraries believe.

use bytes::Bytes;
use kcl_core::ShardId;
use kcl_core::stream::Shard;
use md5::{Digest as _, Md5};

use super::publisher::partition_key;

/// Bytes of payloads that surely fit into one aggregate.
pub(super) const LARGEST: usize = 40_000;

/// What an aggregate begins with.
const MAGIC: [u8; 4] = [0xF3, 0x89, 0x9A, 0xC2];

/// The numbered keys, with their hash keys.
#[derive(Debug)]
pub(super) struct Keys(Vec<u128>);

impl Keys {
    pub(super) fn new(keys: u32) -> Self {
        Self((0..u64::from(keys)).map(|key| u128::from_be_bytes(Md5::digest(partition_key(key)).into())).collect())
    }

    pub(super) fn all(&self) -> Vec<u64> {
        (0..self.0.len() as u64).collect()
    }

    /// The keys that belong to the same open shard as this one, itself included.
    pub(super) fn beside(&self, key: u64, shards: &[Shard]) -> Vec<u64> {
        let home = shards.iter().find(|shard| shard.is_open() && self.is_in(key, shard));
        self.all().into_iter().filter(|other| *other == key || home.is_some_and(|home| self.is_in(*other, home))).collect()
    }

    /// Whether the key is one of this shard's.
    pub(super) fn belongs_to(&self, key: u64, shard: &ShardId, shards: &[Shard]) -> bool {
        shards.iter().any(|other| other.shard_id == *shard && self.is_in(key, other))
    }

    fn is_in(&self, key: u64, shard: &Shard) -> bool {
        let range = &shard.hash_range;
        usize::try_from(key).ok().and_then(|key| self.0.get(key)).is_some_and(|hash| (range.start..=range.end).contains(hash))
    }
}

/// The digest is right, and the message is an aggregate's; but its one record has a key that is not in the table of keys. Both texts are short.
pub(super) fn broken(key: &str, data: &[u8]) -> Bytes {
    let length = |bytes: &[u8]| u8::try_from(bytes.len()).ok().filter(|length| *length < 0x80).expect("invariant: texts are short");
    // Field 1, the index of the partition key: 7. Field 3, the data.
    let record = [&[0x08, 7, 0x1a, length(data)], data].concat();
    // Field 1, a partition key. Field 3, a record.
    let message = [&[0x0a, length(key.as_bytes())], key.as_bytes(), &[0x1a, length(&record)], &record].concat();
    [&MAGIC[..], &message, &Md5::digest(&message)].concat().into()
}
