//! The same bytes, read by this crate and by prost's derived decoder with the rules applied afterwards.

use proptest::prelude::*;

use crate::reference::{Verdict, actual, expected};
use crate::wire::{bytes, explicit_hash_key, number, partition_key};

/// Mostly what the format has, sometimes what it has not.
fn field_of_a_record() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        30 => (0..3u64).prop_map(|index| number(1, index)),
        5 => (0..2u64).prop_map(|index| number(2, index)),
        30 => prop::collection::vec(any::<u8>(), 0..20).prop_map(|data| bytes(3, &data)),
        3 => prop::collection::vec(any::<u8>(), 0..9).prop_map(|tag| bytes(4, &tag)),
        3 => unknown(),
        1 => any::<u64>().prop_map(|index| number(1, index)),
    ]
}

fn unknown() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        (5..40u32, any::<u64>()).prop_map(|(field, value)| number(field, value)),
        (5..40u32, prop::collection::vec(any::<u8>(), 0..9)).prop_map(|(field, value)| bytes(field, &value)),
        Just(vec![0x31, 1, 2, 3, 4, 5, 6, 7, 8]),
        Just(vec![0x35, 1, 2, 3, 4]),
        Just(vec![0x33, 0x0b, 0x08, 0x01, 0x0c, 0x34]),
    ]
}

fn record() -> impl Strategy<Value = Vec<u8>> {
    let good = (0..3u64, prop::collection::vec(any::<u8>(), 0..20)).prop_map(|(index, data)| [number(1, index), bytes(3, &data)].concat());
    prop_oneof![
        4 => good,
        2 => prop::collection::vec(field_of_a_record(), 2..6).prop_map(|fields| fields.concat()),
    ]
    .prop_map(|record| bytes(3, &record))
}

fn message() -> impl Strategy<Value = Vec<u8>> {
    let field = prop_oneof![
        20 => "\\PC{1,5}".prop_map(partition_key),
        10 => prop_oneof![(0..9u128), any::<u128>()].prop_map(|hash| explicit_hash_key(&hash.to_string())),
        60 => record(),
        5 => unknown(),
        1 => prop_oneof!["", "[0-9]{38,40}", "\\PC{0,3}"].prop_map(|text| explicit_hash_key(&text)),
        1 => prop::collection::vec(any::<u8>(), 0..4).prop_map(partition_key),
        1 => prop_oneof![Just(257), Just(4096), Just(4097)].prop_map(|length| partition_key("k".repeat(length))),
    ];
    let keys = prop_oneof![3 => Just(3), 1 => 0..3usize];
    (keys, prop::collection::vec(field, 0..20))
        .prop_map(|(keys, fields)| [["a", "b", "c"][..keys].iter().flat_map(partition_key).collect(), fields.concat()].concat())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn both_agree_on_messages(message in message()) {
        prop_assert_eq!(actual(&message), expected(&message));
    }

    #[test]
    fn both_agree_on_damaged_messages(
        mut message in message(),
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        cut in prop::option::weighted(0.2, any::<prop::sample::Index>()),
    ) {
        for (at, byte) in damage {
            if !message.is_empty() {
                let at = at.index(message.len());
                message[at] = byte;
            }
        }
        if let Some(cut) = cut.filter(|_| !message.is_empty()) {
            message.truncate(cut.index(message.len()));
        }
        prop_assert_eq!(actual(&message), expected(&message));
    }

    #[test]
    fn both_agree_on_any_bytes(message in prop::collection::vec(any::<u8>(), 0..64)) {
        prop_assert_eq!(actual(&message), expected(&message));
    }
}

#[test]
fn the_generator_makes_messages_of_all_kinds() {
    use proptest::strategy::ValueTree as _;
    use proptest::test_runner::TestRunner;
    let mut runner = TestRunner::deterministic();
    let mut seen = [0; 3];
    for _ in 0..500 {
        match expected(&message().new_tree(&mut runner).unwrap().current()) {
            Verdict::Whole(_) => seen[0] += 1,
            Verdict::Unparsable => seen[1] += 1,
            Verdict::Broken => seen[2] += 1,
        }
    }
    assert!(seen.iter().all(|times| *times > 50), "whole, unparsable, broken: {seen:?}");
}
