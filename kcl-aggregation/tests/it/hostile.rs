//! Whatever bytes arrive: no panic, and nothing in part.

use bytes::Bytes;
use kcl_aggregation::{Aggregate, Disaggregated, LONGEST_TOLD_KEY, Rules, disaggregate};
use proptest::prelude::*;

use crate::wire::{partition_key, plain_record, seal};

/// Everything that can be asked of a payload.
fn exercise(payload: &Bytes) {
    for range in [None, Some(0..=0), Some(0..=u128::MAX)] {
        match disaggregate(payload, range.as_ref(), &Rules::default()) {
            Disaggregated::NotAggregated => {}
            Disaggregated::Aggregate(aggregate) => walk(&aggregate),
            Disaggregated::Broken(error) => assert!(!format!("{error} {error:?}").is_empty()),
        }
    }
}

fn walk(aggregate: &Aggregate) {
    let mut outside = 0;
    for (index, sub_record) in aggregate.sub_records().enumerate() {
        assert_eq!(sub_record.sub_sequence_number, index as u64);
        assert!(sub_record.partition_key.is_none_or(|key| key.as_str().len() <= LONGEST_TOLD_KEY));
        outside += usize::from(sub_record.outside_range);
    }
    assert_eq!(outside, aggregate.outside_range());
    assert_eq!(aggregate.sub_records().count(), aggregate.len());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(3000))]

    #[test]
    fn any_bytes(payload in prop::collection::vec(any::<u8>(), 0..100)) {
        exercise(&payload.clone().into());
        exercise(&[&[0xF3, 0x89, 0x9A, 0xC2], &payload[..]].concat().into());
        exercise(&seal(&payload));
    }

    #[test]
    fn mutated_aggregates(
        records in prop::collection::vec((0..3u64, prop::collection::vec(any::<u8>(), 0..30)), 1..8),
        mutations in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>(), 0..4u8), 1..6),
    ) {
        let mut message: Vec<u8> = ["a", "b", "ключ"].iter().flat_map(partition_key).collect();
        message.extend(records.iter().flat_map(|(key, data)| plain_record(*key, None, data)));
        for (at, byte, kind) in mutations {
            let at = at.index(message.len());
            match kind {
                0 => message[at] = byte,
                1 => message.insert(at, byte),
                2 if message.len() > 1 => drop(message.remove(at)),
                _ => message.extend_from_within(at..),
            }
        }
        exercise(&seal(&message));
    }
}
