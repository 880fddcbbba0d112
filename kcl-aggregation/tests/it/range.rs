//! Sub-records that belong to another shard than the one that they were read from.

use std::ops::RangeInclusive;

use kcl_aggregation::{Aggregate, Aggregator, Disaggregated, Rules, disaggregate, hash_of};
use proptest::prelude::*;

fn aggregate(records: &[(&str, Option<u128>)], range: Option<RangeInclusive<u128>>) -> Aggregate {
    let mut aggregator = Aggregator::default();
    for (key, explicit_hash_key) in records {
        aggregator.add(key, *explicit_hash_key, "data").unwrap();
    }
    match disaggregate(&aggregator.finish().unwrap().payload, range.as_ref(), &Rules::default()) {
        Disaggregated::Aggregate(aggregate) => aggregate,
        other => panic!("{other:?}"),
    }
}

fn outside(records: &[(&str, Option<u128>)], range: RangeInclusive<u128>) -> Vec<bool> {
    let aggregate = aggregate(records, Some(range));
    let outside: Vec<_> = aggregate.sub_records().map(|sub_record| sub_record.outside_range).collect();
    assert_eq!(aggregate.outside_range(), outside.iter().filter(|outside| **outside).count());
    outside
}

#[test]
fn a_partition_key_is_placed_by_its_hash_and_both_ends_belong_to_the_range() {
    let hash = hash_of("key");
    for (range, expected) in [
        (hash..=hash, false),
        (0..=hash, false),
        (hash..=u128::MAX, false),
        (0..=u128::MAX, false),
        (0..=hash - 1, true),
        (hash + 1..=u128::MAX, true),
    ] {
        assert_eq!(outside(&[("key", None)], range), [expected]);
    }
}

#[test]
fn an_explicit_hash_key_decides_whatever_the_partition_key_is() {
    let hash = hash_of("key");
    assert_eq!(outside(&[("key", Some(0)), ("key", None), ("key", Some(u128::MAX))], hash..=hash), [true, false, true]);
    assert_eq!(outside(&[("key", Some(0)), ("key", None), ("key", Some(u128::MAX))], 0..=0), [false, true, true]);
}

#[test]
fn without_a_range_nothing_is_outside() {
    let aggregate = aggregate(&[("a", None), ("b", Some(7))], None);
    assert_eq!(aggregate.outside_range(), 0);
    assert!(aggregate.sub_records().all(|sub_record| !sub_record.outside_range));
}

proptest! {
    #[test]
    fn every_record_is_judged_by_itself(
        records in prop::collection::vec(("[a-c]{1,2}", prop::option::of(prop_oneof![0..4u128, any::<u128>()])), 1..40),
        (a, b) in (any::<u128>(), any::<u128>()),
    ) {
        let range = a.min(b)..=a.max(b);
        let records: Vec<_> = records.iter().map(|(key, hash)| (key.as_str(), *hash)).collect();
        let expected: Vec<_> = records.iter().map(|(key, hash)| !range.contains(&hash.unwrap_or_else(|| hash_of(key)))).collect();
        prop_assert_eq!(outside(&records, range), expected);
    }
}
