//! Messages written field by field, so that they can be wrong in any way.

use bytes::Bytes;
use kcl_aggregation::{Aggregate, BrokenAggregate, Disaggregated, Rules, Unparsable, disaggregate};
use md5::{Digest as _, Md5};
use prost::encoding::{WireType, encode_key, encode_varint};

/// A field with a number.
pub(crate) fn number(field: u32, value: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    encode_key(field, WireType::Varint, &mut bytes);
    encode_varint(value, &mut bytes);
    bytes
}

/// A field with bytes.
pub(crate) fn bytes(field: u32, value: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    encode_key(field, WireType::LengthDelimited, &mut bytes);
    encode_varint(value.len() as u64, &mut bytes);
    bytes.extend_from_slice(value);
    bytes
}

pub(crate) fn partition_key(key: impl AsRef<[u8]>) -> Vec<u8> {
    bytes(1, key.as_ref())
}

pub(crate) fn explicit_hash_key(key: &str) -> Vec<u8> {
    bytes(2, key.as_bytes())
}

/// A sub-record of these fields.
pub(crate) fn record<const N: usize>(fields: [Vec<u8>; N]) -> Vec<u8> {
    bytes(3, &fields.concat())
}

/// A sub-record as producers write it.
pub(crate) fn plain_record(partition_key: u64, explicit_hash_key: Option<u64>, data: &[u8]) -> Vec<u8> {
    let explicit_hash_key = explicit_hash_key.map_or_else(Vec::new, |index| number(2, index));
    record([number(1, partition_key), explicit_hash_key, bytes(3, data)])
}

/// The payload of a Kinesis record around a message.
pub(crate) fn seal(message: &[u8]) -> Bytes {
    [&[0xF3, 0x89, 0x9A, 0xC2], message, &Md5::digest(message)].concat().into()
}

/// What a payload with a right digest around a message is, if nobody takes such for ordinary.
pub(crate) fn open(message: &[u8]) -> Result<Aggregate, BrokenAggregate> {
    let rules = Rules { unparsable: Unparsable::Broken, ..Rules::default() };
    match disaggregate(&seal(message), None, &rules) {
        Disaggregated::NotAggregated => panic!("an aggregate was taken for an ordinary record"),
        Disaggregated::Aggregate(aggregate) => Ok(aggregate),
        Disaggregated::Broken(error) => Err(error),
    }
}
