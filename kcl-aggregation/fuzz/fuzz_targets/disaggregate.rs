//! Any payload, and any message with a right digest: no panic, nothing in part, and the same as prost's derived decoder finds.
//!
//! `cargo +nightly fuzz run disaggregate`, from the crate's folder.

#![no_main]

use bytes::Bytes;
use kcl_aggregation::{Aggregate, Disaggregated, Envelope, Rules, disaggregate, hash_of};
use libfuzzer_sys::fuzz_target;
use md5::{Digest as _, Md5};
use prost::Message;

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

const MIDDLE: u128 = u128::MAX / 2;

fuzz_target!(|input: &[u8]| {
    // As it is: the digest is hardly ever right, so this is about the envelope.
    let payload = Bytes::copy_from_slice(input);
    if let Disaggregated::Aggregate(aggregate) = disaggregate(&payload, None, &Rules::default()) {
        let envelope = Envelope::find(&payload).expect("an aggregate has an envelope");
        compare(&aggregate, &Decoded::decode(envelope.message()).expect("an aggregate is protobuf"));
    }

    // As a message.
    let sealed = Bytes::from([&[0xF3, 0x89, 0x9A, 0xC2], input, &Md5::digest(input)].concat());
    let decoded = Decoded::decode(input);
    match disaggregate(&sealed, Some(&(0..=MIDDLE)), &Rules::default()) {
        Disaggregated::NotAggregated => assert!(input.is_empty(), "the digest is right"),
        Disaggregated::Aggregate(aggregate) => compare(&aggregate, &decoded.expect("an aggregate is protobuf")),
        Disaggregated::Broken(error) => {
            assert!(error.to_string().len() < 200);
            if let Ok(decoded) = decoded {
                assert!(is_wrong(&decoded), "{error}");
            }
        }
    }
});

fn compare(aggregate: &Aggregate, decoded: &Decoded) {
    assert!(!is_wrong(decoded));
    assert_eq!(aggregate.len(), decoded.records.len());
    let mut outside = 0;
    for ((index, sub_record), record) in aggregate.sub_records().enumerate().zip(&decoded.records) {
        assert_eq!(sub_record.sub_sequence_number, index as u64);
        assert_eq!(Some(&sub_record.data[..]), record.data.as_deref());
        let key = &decoded.partition_keys[record.partition_key.expect("not wrong") as usize];
        assert_eq!(sub_record.partition_key.as_str().as_bytes(), key);
        let hash_key = record.explicit_hash_key.map(|index| hash_key(&decoded.explicit_hash_keys[index as usize]).expect("not wrong"));
        assert_eq!(sub_record.explicit_hash_key, hash_key);
        if sub_record.outside_range {
            outside += 1;
            assert!(hash_key.unwrap_or_else(|| hash_of(sub_record.partition_key.as_str())) > MIDDLE);
        }
    }
    assert_eq!(outside, aggregate.outside_range());
}

/// Whether some rule is broken, asked in the plainest way.
fn is_wrong(decoded: &Decoded) -> bool {
    let bad_key = |key: &Vec<u8>| !std::str::from_utf8(key).is_ok_and(|key| (1..=256).contains(&key.chars().count()));
    let refers = |index: Option<u64>, len: usize| index.is_some_and(|index| index < len as u64);
    decoded.records.is_empty()
        || decoded.partition_keys.iter().any(bad_key)
        || decoded.explicit_hash_keys.iter().any(|key| hash_key(key).is_none())
        || decoded.records.iter().any(|record| {
            record.data.is_none()
                || !refers(record.partition_key, decoded.partition_keys.len())
                || (record.explicit_hash_key.is_some() && !refers(record.explicit_hash_key, decoded.explicit_hash_keys.len()))
        })
}

fn hash_key(text: &[u8]) -> Option<u128> {
    std::str::from_utf8(text).ok().filter(|text| text.len() <= 39 && text.bytes().all(|byte| byte.is_ascii_digit()))?.parse().ok()
}
