//! The published schema against what is written: as much of JSON Schema as `docs/dead-letter.schema.json` uses.

use bytes::Bytes;
use serde_json::Value;

use super::envelope::tests::letter;
use super::envelope::{PartitionKeys, PayloadPlace, envelope};
use super::identity::sha256_hex;
use super::{BlobAddress, DeadLetter, PayloadLocation};
use crate::record::Record;

fn schema() -> Value {
    serde_json::from_str(include_str!("../../../docs/dead-letter.schema.json")).unwrap()
}

fn is_a(value: &Value, name: &str) -> bool {
    match name {
        "object" => value.is_object(),
        "array" => value.is_array(),
        "string" => value.is_string(),
        "integer" => value.is_u64() || value.is_i64(),
        "boolean" => value.is_boolean(),
        "null" => value.is_null(),
        other => panic!("type {other} is not known here"),
    }
}

/// The two patterns that the schema has.
fn matches(pattern: &str, text: &str) -> bool {
    match pattern {
        "^[0-9]+$" => !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()),
        "^[0-9a-f]{64}$" => text.len() == 64 && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')),
        other => panic!("pattern {other} is not known here"),
    }
}

/// What is wrong with the value, by its path. Unlike JSON Schema this refuses fields that the schema does not name: what is written is to be described.
fn faults(schema: &Value, value: &Value, path: &str, found: &mut Vec<String>) {
    let mut say = |what: &str| found.push(format!("{path}: {what}"));
    for (keyword, rule) in schema.as_object().unwrap() {
        match keyword.as_str() {
            "type" => {
                let names: Vec<_> = rule.as_array().map_or_else(|| vec![rule], |names| names.iter().collect());
                if !names.iter().any(|name| is_a(value, name.as_str().unwrap())) {
                    say("type");
                }
            }
            "const" if rule != value => say("const"),
            "enum" if !rule.as_array().unwrap().contains(value) => say("enum"),
            "minimum" if value.as_f64() < rule.as_f64() => say("minimum"),
            "pattern" if value.as_str().is_some_and(|text| !matches(rule.as_str().unwrap(), text)) => say("pattern"),
            "format" if value.as_str().is_some_and(|text| text.parse::<jiff::Timestamp>().is_err()) => say("format"),
            "required" => {
                for name in rule.as_array().unwrap().iter().filter(|name| value.get(name.as_str().unwrap()).is_none()) {
                    say(&format!("without {name}"));
                }
            }
            "$schema" | "$id" | "title" | "description" | "examples" | "contentEncoding" | "properties" | "items" | "const" | "enum"
            | "minimum" | "pattern" | "format" => {}
            other => panic!("keyword {other} is not known here"),
        }
    }
    for (name, value) in value.as_object().into_iter().flatten() {
        match schema["properties"].get(name) {
            Some(schema) => faults(schema, value, &format!("{path}/{name}"), found),
            None => found.push(format!("{path}: {name} is not described")),
        }
    }
    for item in value.as_array().into_iter().flatten() {
        faults(&schema["items"], item, &format!("{path}/*"), found);
    }
}

fn faults_of(message: &Value) -> Vec<String> {
    let mut found = Vec::new();
    faults(&schema(), message, "", &mut found);
    found
}

#[test]
fn what_is_written_is_what_the_schema_describes() {
    let location =
        PayloadLocation { address: BlobAddress { bucket: "payloads".into(), key: "a/b".into() }, bytes: 16, sha256: sha256_hex("x") };
    let without_key = Record::new(1.into(), None, Bytes::new(), None);
    for keys in [PartitionKeys::Clear, PartitionKeys::Hashed, PartitionKeys::Omitted] {
        for place in [PayloadPlace::Inside(b"payload"), PayloadPlace::At(&location)] {
            for letter in [letter(), DeadLetter { record: without_key.clone(), error_chain: Vec::new(), ..letter() }] {
                let message = serde_json::from_str(&envelope(&letter, keys, place)).unwrap();
                assert_eq!(faults_of(&message), [""; 0], "{message:#}");
            }
        }
    }
}

#[test]
fn what_is_wrong_is_not_what_the_schema_describes() {
    let sound: Value = serde_json::from_str(&envelope(&letter(), PartitionKeys::Clear, PayloadPlace::Inside(b""))).unwrap();
    for (field, wrong) in [
        ("version", Value::from("2")),
        ("sequenceNumber", 7.into()),
        ("sequenceNumber", "x7".into()),
        ("attempts", (-1).into()),
        ("partitionKeyForm", "secret".into()),
        ("lastFailure", "yesterday".into()),
        ("error", "words".into()),
        ("undescribed", 1.into()),
    ] {
        let mut message = sound.clone();
        message[field] = wrong;
        assert!(!faults_of(&message).is_empty(), "{field}");
        message.as_object_mut().unwrap().remove(field);
        assert_eq!(faults_of(&message).is_empty(), field == "undescribed", "without {field}");
    }
}
