//! Any payload, and any message with a right digest: no panic, nothing in part, the same as prost's derived decoder finds, and the same
//! digests side by side as one by one.
//!
//! `cargo +nightly fuzz run disaggregate`, from the crate's folder.

#![no_main]

#[path = "../../tests/it/reference.rs"]
mod reference;

use bytes::Bytes;
use kcl_aggregation::{BrokenAggregate, Disaggregated, Envelope, Rules, Unparsable, disaggregate, disaggregate_all, intact};
use libfuzzer_sys::fuzz_target;
use md5::{Digest as _, Md5};
use reference::{RANGE, Verdict, actual, expected, walked};

fuzz_target!(|input: &[u8]| {
    let verdict = expected(input);
    assert_eq!(actual(input), verdict);

    // In an envelope.
    let sealed = seal(input);
    let strict = Rules { unparsable: Unparsable::Broken, ..Rules::default() };
    compare(disaggregate(&sealed, Some(&RANGE), &Rules::default()), input, &verdict, false);
    compare(disaggregate(&sealed, Some(&RANGE), &strict), input, &verdict, true);

    // As it is: the digest is hardly ever right, so this is about the envelope.
    let payload = Bytes::copy_from_slice(input);
    if let Disaggregated::Aggregate(aggregate) = disaggregate(&payload, Some(&RANGE), &Rules::default()) {
        let envelope = Envelope::find(&payload).expect("an aggregate has an envelope");
        assert_eq!(Verdict::Whole(walked(&aggregate)), expected(&envelope.message()));
    }

    // An answer of many: the same parts with and without envelope, some damaged.
    let mut payloads = vec![payload, sealed];
    let part_len = 1 + input.first().map_or(0, |byte| usize::from(*byte));
    for (index, part) in input.chunks(part_len).take(30).enumerate() {
        let mut payload = seal(part).to_vec();
        if let Some(byte) = payload.get_mut(usize::from(part[0])).filter(|_| index % 3 == 2) {
            *byte ^= 1;
        }
        payloads.push(payload.into());
    }
    let alone: Vec<bool> = payloads.iter().map(|payload| Envelope::find(payload).is_some_and(|envelope| envelope.is_intact())).collect();
    assert_eq!(intact(&payloads), alone);
    let mut answer = disaggregate_all(payloads, Some(&RANGE), &strict).skip(1);
    compare(answer.next().expect("one for each payload"), input, &verdict, true);
    assert_eq!(answer.count(), alone.len() - 2);
});

fn seal(message: &[u8]) -> Bytes {
    [&[0xF3, 0x89, 0x9A, 0xC2], message, &Md5::digest(message)].concat().into()
}

/// What became of a message in an envelope, and what should have.
fn compare(outcome: Disaggregated, message: &[u8], verdict: &Verdict, strict: bool) {
    match outcome {
        Disaggregated::NotAggregated => assert!(message.is_empty() || (!strict && *verdict == Verdict::Unparsable)),
        Disaggregated::Aggregate(aggregate) => assert_eq!(Verdict::Whole(walked(&aggregate)), *verdict),
        Disaggregated::Broken(error) => {
            assert_eq!(*verdict, if error.is_unparsable() { Verdict::Unparsable } else { Verdict::Broken });
            assert!(strict || !error.is_unparsable());
            assert!(!matches!(error, BrokenAggregate::TooLarge { .. }) && error.to_string().len() < 200);
        }
    }
}
