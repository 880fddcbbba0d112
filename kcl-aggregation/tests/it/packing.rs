//! What is packed comes out again.

use bytes::Bytes;
use kcl_aggregation::aggregator::DEFAULT_MAX_LEN;
use kcl_aggregation::{AddError, Aggregator, Disaggregated, Rules, disaggregate};
use proptest::prelude::*;

type Record = (String, Option<u128>, Vec<u8>);

fn records() -> impl Strategy<Value = Vec<Record>> {
    let key = prop_oneof!["[a-d]", "\\PC{1,20}", "🔑{250,256}"];
    let hash = prop::option::of(prop_oneof![Just(0), Just(u128::MAX), any::<u128>()]);
    prop::collection::vec((key, hash, prop::collection::vec(any::<u8>(), 0..300)), 1..60)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn all_that_is_packed_comes_out_in_order(records in records()) {
        let mut aggregator = Aggregator::new(usize::MAX);
        for (key, hash, data) in &records {
            aggregator.add(key, *hash, data.clone()).unwrap();
        }
        let len = aggregator.payload_len();
        let aggregated = aggregator.finish().unwrap();
        prop_assert_eq!(aggregated.payload.len(), len);
        prop_assert_eq!((&aggregated.partition_key, aggregated.explicit_hash_key), (&records[0].0, records[0].1));
        prop_assert!(aggregator.is_empty() && aggregator.finish().is_none());

        let Disaggregated::Aggregate(aggregate) = disaggregate(&aggregated.payload, None, &Rules::default()) else {
            return Err(TestCaseError::fail("an aggregate"));
        };
        let unpacked: Vec<Record> = aggregate.sub_records()
            .map(|r| (r.partition_key.as_ref().unwrap().as_str().to_owned(), r.explicit_hash_key, r.data.to_vec()))
            .collect();
        prop_assert_eq!(unpacked, records);
    }

    #[test]
    fn no_payload_is_longer_than_allowed_and_no_record_is_lost(records in records(), max_len in 400..4000usize) {
        let mut aggregator = Aggregator::new(max_len);
        let (mut payloads, mut packed) = (vec![], 0);
        for (key, hash, data) in &records {
            let mut result = aggregator.add(key, *hash, data.clone());
            if let Err(AddError::Full { needed, .. }) = result {
                prop_assert!(needed > max_len && !aggregator.is_empty());
                payloads.extend(aggregator.finish());
                result = aggregator.add(key, *hash, data.clone());
            }
            match result {
                Ok(()) => packed += 1,
                Err(AddError::TooLarge { needed, .. }) => prop_assert!(needed > max_len && aggregator.is_empty()),
                Err(other) => return Err(TestCaseError::fail(other.to_string())),
            }
        }
        payloads.extend(aggregator.finish());
        let mut unpacked = 0;
        for aggregated in &payloads {
            prop_assert!(aggregated.payload.len() <= max_len);
            match disaggregate(&aggregated.payload, None, &Rules::default()) {
                Disaggregated::Aggregate(aggregate) => unpacked += aggregate.len(),
                other => return Err(TestCaseError::fail(format!("{other:?}"))),
            }
        }
        prop_assert_eq!(unpacked, packed);
    }
}

#[test]
fn what_kinesis_would_refuse_is_not_packed() {
    let mut aggregator = Aggregator::default();
    for key in [String::new(), "k".repeat(257)] {
        assert_eq!(aggregator.add(&key, None, Bytes::new()), Err(AddError::PartitionKey));
    }
    assert!(aggregator.is_empty());
}

#[test]
fn a_record_that_does_not_fit_leaves_no_trace() {
    let mut aggregator = Aggregator::default();
    aggregator.add("a", None, "data").unwrap();
    let before = aggregator.payload_len();
    let refused = aggregator.add("b", Some(7), vec![0; DEFAULT_MAX_LEN]);
    assert!(matches!(refused, Err(AddError::Full { max_len: DEFAULT_MAX_LEN, .. })), "{refused:?}");
    assert_eq!((aggregator.len(), aggregator.payload_len()), (1, before));
    assert_eq!(aggregator.finish().unwrap().payload.len(), before);
    let refused = aggregator.add("b", Some(7), vec![0; DEFAULT_MAX_LEN]);
    assert!(matches!(refused, Err(AddError::TooLarge { .. })), "{refused:?}");
}

#[test]
fn debug_output_shows_no_keys_and_no_payload() {
    let mut aggregator = Aggregator::default();
    aggregator.add("SECRET", None, "SECRET").unwrap();
    let shown = format!("{aggregator:?}") + &format!("{:?}", aggregator.finish());
    assert!(!shown.contains("SECRET"), "{shown}");
}
