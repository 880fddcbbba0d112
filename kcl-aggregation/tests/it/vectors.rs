//! Aggregates made with the aggregation library of AWS for Python, and malformed ones derived from them.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use kcl_aggregation::{Aggregator, Disaggregated, Rules, Unparsable, disaggregate, disaggregate_all};
use serde_json::Value;

const VECTORS: &str = include_str!("../vectors/kpl-aggregation.json");

fn vectors() -> Vec<Value> {
    let file: Value = serde_json::from_str(VECTORS).unwrap();
    file["vectors"].as_array().unwrap().clone()
}

fn payload(value: &Value) -> Bytes {
    STANDARD.decode(value.as_str().unwrap()).unwrap().into()
}

fn hash_key(value: &Value) -> Option<u128> {
    value.as_str().map(|text| text.parse().unwrap())
}

#[test]
fn sub_records_are_what_the_vectors_say() {
    let mut seen = 0;
    for vector in vectors() {
        let (name, Some(expected)) = (&vector["name"], vector["expect"].as_array()) else { continue };
        let Disaggregated::Aggregate(aggregate) = disaggregate(&payload(&vector["data"]), None, &Rules::default()) else {
            panic!("{name} is an aggregate");
        };
        assert_eq!(aggregate.len(), expected.len(), "{name}");
        for (sub_record, expected) in aggregate.into_iter().zip(expected) {
            assert_eq!(sub_record.sub_sequence_number, expected["sub_sequence"], "{name}");
            assert_eq!(sub_record.partition_key.unwrap().as_str(), expected["partition_key"], "{name}");
            assert_eq!(sub_record.explicit_hash_key, hash_key(&expected["explicit_hash_key"]), "{name}");
            assert_eq!(sub_record.data, payload(&expected["data"]), "{name}");
        }
        seen += 1;
    }
    assert_eq!(seen, 10);
}

#[test]
fn the_same_records_are_packed_into_the_same_bytes() {
    for vector in vectors() {
        let (name, Some(expected)) = (&vector["name"], vector["expect"].as_array()) else { continue };
        let mut aggregator = Aggregator::new(usize::MAX);
        for record in expected {
            let key = record["partition_key"].as_str().unwrap();
            aggregator.add(key, hash_key(&record["explicit_hash_key"]), payload(&record["data"])).unwrap();
        }
        assert_eq!(aggregator.payload_len(), payload(&vector["data"]).len(), "{name}");
        let aggregated = aggregator.finish().unwrap();
        assert_eq!(aggregated.payload, payload(&vector["data"]), "{name}");
        assert_eq!(aggregated.partition_key, vector["kinesis_partition_key"], "{name}");
        assert_eq!(aggregated.explicit_hash_key, hash_key(&vector["kinesis_explicit_hash_key"]), "{name}");
    }
}

#[test]
fn malformed_ones_are_ordinary_records_or_broken() {
    let mut seen = 0;
    for vector in vectors() {
        let (name, Some(expected)) = (&vector["name"], vector["expect_outcome"].as_str()) else { continue };
        let outcome = disaggregate(&payload(&vector["data"]), None, &Rules::default());
        match expected {
            "plain" | "empty-or-plain" => assert!(matches!(outcome, Disaggregated::NotAggregated), "{name}: {outcome:?}"),
            "broken" => assert!(matches!(outcome, Disaggregated::Broken(_)), "{name}: {outcome:?}"),
            other => panic!("{name}: outcome {other}"),
        }
        seen += 1;
    }
    assert_eq!(seen, 9);
}

#[test]
fn only_what_can_not_be_parsed_is_judged_differently_by_stricter_rules() {
    let strict = Rules { unparsable: Unparsable::Broken, ..Rules::default() };
    let different: Vec<_> = vectors()
        .into_iter()
        .filter(|vector| {
            let kind = |rules| std::mem::discriminant(&disaggregate(&payload(&vector["data"]), None, rules));
            kind(&strict) != kind(&Rules::default())
        })
        .map(|vector| vector["name"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(different, ["digest right, message not protobuf"]);
}

#[test]
fn an_answer_of_all_vectors_is_what_each_is_alone() {
    let payloads: Vec<_> = vectors().iter().map(|vector| payload(&vector["data"])).collect();
    let mut answer = disaggregate_all(payloads.clone(), None, &Rules::default());
    assert_eq!(answer.len(), payloads.len());
    for (payload, together) in payloads.iter().zip(&mut answer) {
        let alone = disaggregate(payload, None, &Rules::default());
        match (alone, together) {
            (Disaggregated::Aggregate(alone), Disaggregated::Aggregate(together)) => assert!(alone.into_iter().eq(together)),
            (alone, together) => assert_eq!(format!("{alone:?}"), format!("{together:?}")),
        }
    }
    assert!(answer.next().is_none());
}
