//! What aggregates are by the published messages, decoded by prost's derived decoder, with the rules applied afterwards: slow, plain, and
//! with copies of everything. For the differential tests and for fuzzing.

use std::ops::RangeInclusive;

use bytes::Bytes;
use kcl_aggregation::{Aggregate, BrokenAggregate, LONGEST_TOLD_KEY, Rules};
use md5::{Digest as _, Md5};
use prost::Message;

/// The hash keys of the shard that everything is read from.
pub(crate) const RANGE: RangeInclusive<u128> = 0..=u128::MAX / 2;

/// The published messages, with each field's presence visible and keys as bytes.
#[derive(Clone, PartialEq, Message)]
struct Decoded {
    #[prost(bytes = "vec", repeated, tag = "1")]
    partition_keys: Vec<Vec<u8>>,
    #[prost(bytes = "vec", repeated, tag = "2")]
    explicit_hash_keys: Vec<Vec<u8>>,
    #[prost(message, repeated, tag = "3")]
    records: Vec<DecodedRecord>,
}

#[derive(Clone, PartialEq, Message)]
struct DecodedRecord {
    #[prost(uint64, optional, tag = "1")]
    partition_key: Option<u64>,
    #[prost(uint64, optional, tag = "2")]
    explicit_hash_key: Option<u64>,
    #[prost(bytes = "vec", optional, tag = "3")]
    data: Option<Vec<u8>>,
}

#[derive(Debug, PartialEq)]
pub(crate) struct SubRecord {
    partition_key: Option<String>,
    explicit_hash_key: Option<u128>,
    data: Vec<u8>,
    outside_range: bool,
}

/// What a message is.
#[derive(Debug, PartialEq)]
pub(crate) enum Verdict {
    Whole(Vec<SubRecord>),
    Unparsable,
    Broken,
}

/// What a message is by prost and the rules.
pub(crate) fn expected(message: &[u8]) -> Verdict {
    let Ok(decoded) = Decoded::decode(message) else { return Verdict::Unparsable };
    if decoded.records.iter().any(|record| record.partition_key.is_none() || record.data.is_none()) {
        return Verdict::Unparsable;
    }
    let explicit_hash_keys: Option<Vec<u128>> = decoded.explicit_hash_keys.into_iter().map(hash_key).collect();
    let Some(explicit_hash_keys) = explicit_hash_keys else { return Verdict::Broken };
    let sub_records: Option<Vec<_>> =
        decoded.records.into_iter().map(|record| sub_record(record, &decoded.partition_keys, &explicit_hash_keys)).collect();
    sub_records.filter(|records| !records.is_empty()).map_or(Verdict::Broken, Verdict::Whole)
}

fn told(key: &[u8]) -> Option<String> {
    String::from_utf8(key.to_vec()).ok().filter(|key| key.len() <= LONGEST_TOLD_KEY)
}

fn hash_key(key: Vec<u8>) -> Option<u128> {
    String::from_utf8(key).ok().filter(|key| key.len() <= 39 && key.bytes().all(|byte| byte.is_ascii_digit()))?.parse().ok()
}

fn sub_record(record: DecodedRecord, partition_keys: &[Vec<u8>], explicit_hash_keys: &[u128]) -> Option<SubRecord> {
    let at = |index: u64| usize::try_from(index).expect("a target with 64 bits");
    let partition_key = partition_keys.get(at(record.partition_key?))?;
    let explicit_hash_key = match record.explicit_hash_key {
        Some(index) => Some(*explicit_hash_keys.get(at(index))?),
        None => None,
    };
    let hash = explicit_hash_key.unwrap_or_else(|| u128::from_be_bytes(Md5::digest(partition_key).into()));
    Some(SubRecord { partition_key: told(partition_key), explicit_hash_key, data: record.data?, outside_range: !RANGE.contains(&hash) })
}

/// What a message is by this crate.
pub(crate) fn actual(message: &[u8]) -> Verdict {
    match Aggregate::open(Bytes::copy_from_slice(message), Some(&RANGE), &Rules::default()) {
        Ok(aggregate) => Verdict::Whole(walked(&aggregate)),
        Err(BrokenAggregate::TooManySubRecords { .. } | BrokenAggregate::TooLarge { .. }) => unreachable!("within the limits"),
        Err(error) if error.is_unparsable() => Verdict::Unparsable,
        Err(_) => Verdict::Broken,
    }
}

/// The sub-records of an aggregate, which was opened with [`RANGE`].
pub(crate) fn walked(aggregate: &Aggregate) -> Vec<SubRecord> {
    let walk = aggregate.sub_records().enumerate().map(|(index, record)| {
        assert_eq!(record.sub_sequence_number, index as u64);
        SubRecord {
            partition_key: record.partition_key.as_ref().map(|key| key.as_str().to_owned()),
            explicit_hash_key: record.explicit_hash_key,
            data: record.data.to_vec(),
            outside_range: record.outside_range,
        }
    });
    let sub_records: Vec<_> = walk.collect();
    assert_eq!(sub_records.len(), aggregate.len());
    assert_eq!(sub_records.iter().filter(|record| record.outside_range).count(), aggregate.outside_range());
    sub_records
}
