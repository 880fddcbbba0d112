//! Digests side by side, compared with each alone: messages of all lengths, flipped bits, and what is no envelope.

use bytes::Bytes;
use kcl_aggregation::{Disaggregated, Rules, disaggregate_all, intact};
use md5::{Digest as _, Md5};
use proptest::prelude::*;

use crate::wire::{partition_key, plain_record, seal};

/// More than there are lanes, whatever the compiler makes of them.
const MANY: usize = 40;

/// Each alone, through the `md-5` crate.
fn one_by_one(payloads: &[Bytes]) -> Vec<bool> {
    let is_intact = |payload: &Bytes| {
        let message = payload.strip_prefix(&[0xF3, 0x89, 0x9A, 0xC2])?;
        let (message, digest) = message.split_last_chunk::<16>()?;
        Some(!message.is_empty() && Md5::digest(message).as_slice() == digest)
    };
    payloads.iter().map(|payload| is_intact(payload).unwrap_or(false)).collect()
}

fn random_bytes(random: &mut fastrand::Rng, len: usize) -> Vec<u8> {
    std::iter::repeat_with(|| random.u8(..)).take(len).collect()
}

fn with_flipped_bit(payload: &Bytes, bit: usize) -> Bytes {
    let mut payload = payload.to_vec();
    let bit = bit % (8 * payload.len());
    payload[bit / 8] ^= 1 << (bit % 8);
    payload.into()
}

/// What becomes of a message on its way.
#[derive(Clone, Debug)]
enum Fate {
    Sealed,
    Flipped(usize),
    CutTo(usize),
    Bare,
}

fn payload() -> impl Strategy<Value = Bytes> {
    // Around the lengths at which MD5's padding takes another block, mostly.
    let len = prop_oneof![
        4 => 0..300usize,
        4 => (0..5usize, 54..66usize).prop_map(|(blocks, len)| 64 * blocks + len),
        1 => 300..5_000usize,
    ];
    let fate = prop_oneof![
        6 => Just(Fate::Sealed),
        2 => any::<usize>().prop_map(Fate::Flipped),
        1 => any::<usize>().prop_map(Fate::CutTo),
        1 => Just(Fate::Bare),
    ];
    (len, any::<u64>(), fate).prop_map(|(len, seed, fate)| {
        let message = random_bytes(&mut fastrand::Rng::with_seed(seed), len);
        let sealed = seal(&message);
        match fate {
            Fate::Sealed => sealed,
            Fate::Flipped(bit) => with_flipped_bit(&sealed, bit),
            Fate::CutTo(len) => sealed.slice(..len % sealed.len()),
            Fate::Bare => message.into(),
        }
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn many_are_judged_as_each_alone(payloads in prop::collection::vec(payload(), 0..MANY)) {
        prop_assert_eq!(intact(&payloads), one_by_one(&payloads));
    }
}

#[test]
fn every_length_is_padded_right_in_every_lane() {
    let mut random = fastrand::Rng::with_seed(1);
    let sealed: Vec<Bytes> = (1..300).map(|len| seal(&random_bytes(&mut random, len))).collect();
    assert!(intact(&sealed).into_iter().all(|intact| intact));
    for payload in &sealed {
        let same = vec![payload.clone(); MANY];
        assert_eq!(intact(&same), [true; MANY], "{} bytes", payload.len());
    }
}

#[test]
fn one_flipped_bit_is_noticed_wherever_it_is() {
    let mut random = fastrand::Rng::with_seed(2);
    let sealed: Vec<Bytes> = (0..MANY).map(|_| seal(&random_bytes(&mut random, 150))).collect();
    for damaged in 0..MANY {
        let mut payloads = sealed.clone();
        payloads[damaged] = with_flipped_bit(&sealed[damaged], random.usize(..));
        assert_eq!(intact(&payloads), (0..MANY).map(|index| index != damaged).collect::<Vec<_>>(), "{damaged}");
    }
}

#[test]
fn few_and_long_ones_are_judged_too() {
    let mut random = fastrand::Rng::with_seed(3);
    assert!(intact(&[]).is_empty());
    for lens in [&[1][..], &[70_000], &[70_000, 3], &[3, 70_000, 0, 64], &[1_000; 9], &[100_000, 56, 56, 56, 56, 56, 56, 56, 56]] {
        let payloads: Vec<Bytes> = lens.iter().map(|len| seal(&random_bytes(&mut random, *len))).collect();
        assert_eq!(intact(&payloads), one_by_one(&payloads), "{lens:?}");
        let damaged: Vec<Bytes> = payloads.iter().map(|payload| with_flipped_bit(payload, random.usize(..))).collect();
        assert_eq!(intact(&damaged), vec![false; lens.len()], "{lens:?}");
    }
}

#[test]
fn an_answer_is_taken_apart_in_its_order() {
    let aggregate = |records: usize| seal(&[partition_key("k"), plain_record(0, None, b"x").repeat(records)].concat());
    let ordinary = Bytes::from_static(b"ordinary");
    let damaged = with_flipped_bit(&aggregate(7), 100);
    let broken = seal(&partition_key("k"));
    let payloads = [aggregate(3), ordinary, aggregate(500), damaged, broken, aggregate(1)];
    let answer = disaggregate_all(payloads.iter().cloned(), None, &Rules::default());
    assert_eq!(answer.len(), payloads.len());
    let kinds: Vec<_> = answer
        .map(|what| match what {
            Disaggregated::NotAggregated => "ordinary".to_owned(),
            Disaggregated::Aggregate(aggregate) => aggregate.len().to_string(),
            Disaggregated::Broken(_) => "broken".to_owned(),
        })
        .collect();
    assert_eq!(kinds, ["3", "ordinary", "500", "ordinary", "broken", "1"]);
}

#[test]
fn an_answer_asks_for_the_range() {
    let payloads = vec![seal(&[partition_key("k"), plain_record(0, None, b"x")].concat()); 2];
    for (range, outside) in [(None, 0), (Some(0..=0), 1), (Some(0..=u128::MAX), 0)] {
        for what in disaggregate_all(payloads.clone(), range.as_ref(), &Rules::default()) {
            assert!(matches!(what, Disaggregated::Aggregate(aggregate) if aggregate.outside_range() == outside), "{range:?}");
        }
    }
}
