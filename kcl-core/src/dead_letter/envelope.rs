//! The envelope: a dead letter as one JSON object, for people and for tools that put records back.
//!
//! It owns the wire format, a function of the letter alone. Beside its own fields it carries those of AWS Lambda's on-failure message for
//! Kinesis (`requestContext`, `timestamp`, `KinesisBatchInfo`), so that a tool made for Lambda's finds its way; Lambda's
//! `responseContext`, `requestId` and `functionArn` have no meaning here and are left out.
//!
//! | field | meaning |
//! |---|---|
//! | `version` | of this format: `"1"`. Fields may be added to it, never changed |
//! | `streamArn`, `streamCreated`, `shardId`, `sequenceNumber`, `subSequenceNumber` | name the record for ever, and tell duplicates |
//! | `aggregated` | whether the record was part of a KPL aggregate |
//! | `partitionKey`, `approximateArrivalTimestamp` | as Kinesis gave them; `null` where it gave none |
//! | `partitionKeyForm` | how the key is told: `clear`; `hashed`, and then `partitionKeyHash` is there; `omitted`; `none`, if Kinesis gave none, or an aggregate has one that is no text or too long to tell |
//! | `partitionKeyHash` | the key's SHA-256 in hexadecimal |
//! | `explicitHashKey` | the hash key that the producer chose, in decimal, if the key is told in clear and the record was aggregated; else `null` |
//! | `payloadBytes` | bytes of the payload |
//! | `data` | the record's payload in base64 (RFC 4648, padded); `null` if it is elsewhere |
//! | `payloadLocation` | where it is then: `bucket`, `key`, `bytes`, `sha256` (hexadecimal) |
//! | `error` | `kind`; `message`, the error's own words; `chain`, those of its causes, outermost first |
//! | `attempts`, `firstFailure`, `lastFailure` | how often it was tried, and when it failed |
//! | `application`, `worker`, `fencingToken` | who tried it |
//!
//! Times are RFC 3339 in UTC with milliseconds; sequence numbers are text, for they exceed what JSON readers keep exactly. The envelope
//! is pure ASCII: SQS takes only characters that XML takes, and so nothing in a record or an error can make it refuse one.
//! `docs/dead-letter.schema.json` is the same as a JSON schema; `parsed.rs` reads it.

use std::io::{self, Write};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use kcl_checkpoint::Timestamp;
use serde::Serialize;
use serde_json::ser::Formatter;

use super::DeadLetter;
use super::blobs::PayloadLocation;
use super::identity::sha256_hex;

/// How partition keys are told in messages.
///
/// A key is often a customer's number or an e-mail address, and a queue may be read by more people than the stream. But only a record whose key is
/// told in clear can be put back into a stream.
///
/// Two things don't follow this setting: what your processor says in its errors, and the group ids of a FIFO queue, which carry the key's MD5
/// because they are what keeps its order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PartitionKeys {
    /// As they are. The default.
    #[default]
    Clear,
    /// Their SHA-256: equal keys can be recognised, and a key that is suspected be looked for. This is a pseudonym and no more; whoever can
    /// guess keys can find them out.
    Hashed,
    /// Not at all.
    Omitted,
}

/// Where a message has its record's payload.
#[derive(Clone, Copy, Debug)]
pub(super) enum PayloadPlace<'a> {
    /// In the message.
    Inside(&'a [u8]),
    /// In a blob store.
    At(&'a PayloadLocation),
}

/// Bytes that an error's words and those of its causes take in an envelope, all together.
const ERROR_LIMIT: usize = 4096;

/// Bytes that one of them takes, so that a long one leaves room for its causes.
const ERROR_TEXT_LIMIT: usize = 1024;

/// What stands at the end of a text that was cut.
const CUT: &str = "...";

/// Bytes of the letter's envelope with the payload inside.
pub(super) fn whole_size(letter: &DeadLetter, keys: PartitionKeys) -> usize {
    envelope(letter, keys, PayloadPlace::Inside(&[])).len() + letter.record.data().len().div_ceil(3) * 4
}

/// The letter's envelope: ASCII JSON on one line.
pub(super) fn envelope(letter: &DeadLetter, keys: PartitionKeys, payload: PayloadPlace<'_>) -> String {
    let record = &letter.record;
    let (form, key, hash) = match (record.partition_key(), keys) {
        (None, _) => ("none", None, None),
        (Some(key), PartitionKeys::Clear) => ("clear", Some(key), None),
        (Some(key), PartitionKeys::Hashed) => ("hashed", None, Some(sha256_hex(key))),
        (Some(_), PartitionKeys::Omitted) => ("omitted", None, None),
    };
    let (data, location) = match payload {
        PayloadPlace::Inside(data) => (Some(STANDARD.encode(data)), None),
        PayloadPlace::At(location) => (None, Some(location)),
    };
    let sequence_number = record.sequence_number().to_string();
    let arrival = record.approximate_arrival().map(rfc3339);
    let mut texts = error_texts(&letter.error_chain).into_iter();
    let envelope = Wire {
        request_context: RequestContext { condition: letter.condition.as_str(), approximate_invoke_count: letter.attempts },
        version: "1",
        timestamp: rfc3339(letter.last_failure),
        batch: BatchInfo {
            shard_id: letter.shard_id.as_str(),
            start_sequence_number: &sequence_number,
            end_sequence_number: &sequence_number,
            approximate_arrival_of_first_record: arrival.as_deref(),
            approximate_arrival_of_last_record: arrival.as_deref(),
            batch_size: 1,
            stream_arn: &letter.stream_arn,
        },
        stream_arn: &letter.stream_arn,
        stream_created: rfc3339(letter.stream_created),
        shard_id: letter.shard_id.as_str(),
        sequence_number: &sequence_number,
        sub_sequence_number: record.sub_sequence_number(),
        aggregated: record.is_aggregated(),
        partition_key: key,
        partition_key_form: form,
        partition_key_hash: hash,
        explicit_hash_key: key.and(record.explicit_hash_key()).map(|key| key.to_string()),
        approximate_arrival_timestamp: arrival.as_deref(),
        payload_bytes: record.data().len(),
        data,
        payload_location: location,
        error: ErrorInfo { kind: letter.kind.as_str(), message: texts.next().unwrap_or_default(), chain: texts.collect() },
        attempts: letter.attempts,
        first_failure: rfc3339(letter.first_failure),
        last_failure: rfc3339(letter.last_failure),
        application: &letter.application,
        worker: letter.worker.as_str(),
        fencing_token: letter.fencing_token,
    };
    let mut json = Vec::with_capacity(envelope.data.as_ref().map_or(0, String::len) + ERROR_LIMIT);
    envelope
        .serialize(&mut serde_json::Serializer::with_formatter(&mut json, AsciiFormatter))
        .expect("texts and numbers are written to memory without failure");
    String::from_utf8(json).expect("the formatter writes ASCII only")
}

/// The field names are the wire's.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Wire<'a> {
    request_context: RequestContext,
    version: &'static str,
    timestamp: String,
    #[serde(rename = "KinesisBatchInfo")]
    batch: BatchInfo<'a>,
    stream_arn: &'a str,
    stream_created: String,
    shard_id: &'a str,
    sequence_number: &'a str,
    sub_sequence_number: u64,
    aggregated: bool,
    partition_key: Option<&'a str>,
    partition_key_form: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    partition_key_hash: Option<String>,
    explicit_hash_key: Option<String>,
    approximate_arrival_timestamp: Option<&'a str>,
    payload_bytes: usize,
    data: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    payload_location: Option<&'a PayloadLocation>,
    error: ErrorInfo<'a>,
    attempts: u32,
    first_failure: String,
    last_failure: String,
    application: &'a str,
    worker: &'a str,
    fencing_token: u64,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct RequestContext {
    condition: &'static str,
    approximate_invoke_count: u32,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct BatchInfo<'a> {
    shard_id: &'a str,
    start_sequence_number: &'a str,
    end_sequence_number: &'a str,
    approximate_arrival_of_first_record: Option<&'a str>,
    approximate_arrival_of_last_record: Option<&'a str>,
    batch_size: u32,
    stream_arn: &'a str,
}

#[derive(Serialize)]
struct ErrorInfo<'a> {
    kind: &'a str,
    message: String,
    chain: Vec<String>,
}

/// A time that is later than RFC 3339 can say becomes the latest that it can.
fn rfc3339(time: Timestamp) -> String {
    let time = i64::try_from(time.as_millis()).ok().and_then(|millis| jiff::Timestamp::from_millisecond(millis).ok());
    format!("{:.3}", time.unwrap_or(jiff::Timestamp::MAX))
}

/// The texts, outermost first, cut so that they stay within the limits: without this a long error could make a letter too large for ever.
fn error_texts(chain: &[String]) -> Vec<String> {
    let mut left = ERROR_LIMIT;
    let mut texts = Vec::new();
    for text in chain {
        // Quotes and comma count, so that a chain of very many short texts ends as well.
        let Some(room) = left.checked_sub(CUT.len() + 3) else { break };
        let text = shortened(text, room.min(ERROR_TEXT_LIMIT));
        left = left.saturating_sub(encoded_len(&text) + 3);
        texts.push(text);
    }
    texts
}

/// The text, or as much of its beginning as takes `limit` bytes in the envelope, and a mark that it was cut.
fn shortened(text: &str, limit: usize) -> String {
    let mut bytes = 0;
    let end = text.char_indices().find_map(|(at, character)| {
        bytes += encoded_char_len(character);
        (bytes > limit).then_some(at)
    });
    end.map_or_else(|| text.to_owned(), |end| format!("{}{CUT}", &text[..end]))
}

/// Bytes that a text takes at most in the envelope, without its quotes.
fn encoded_len(text: &str) -> usize {
    text.chars().map(encoded_char_len).sum()
}

fn encoded_char_len(character: char) -> usize {
    match character {
        '"' | '\\' => 2,
        ' '..='\x7f' => 1,
        other => 6 * other.len_utf16(),
    }
}

/// Compact JSON with every character beyond ASCII written as `\uXXXX` (UTF-16, as JSON has it).
struct AsciiFormatter;

impl Formatter for AsciiFormatter {
    fn write_string_fragment<W: ?Sized + Write>(&mut self, writer: &mut W, fragment: &str) -> io::Result<()> {
        // Payloads are base64 and large: they pass in one piece.
        if fragment.is_ascii() {
            return writer.write_all(fragment.as_bytes());
        }
        for character in fragment.chars() {
            if character.is_ascii() {
                writer.write_all(&[character as u8])?;
            } else {
                for unit in character.encode_utf16(&mut [0; 2]) {
                    write!(writer, "\\u{unit:04x}")?;
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
pub(super) mod tests {
    use bytes::Bytes;
    use serde_json::Value;

    use super::*;
    use crate::dead_letter::{Condition, FailureKind};
    use crate::record::Record;

    pub(crate) fn letter() -> DeadLetter {
        DeadLetter {
            record: Record::new(
                "49601189658422359378836298521827638475320189012309704722".parse().unwrap(),
                Some("customer-7".into()),
                Bytes::from_static(b"{\"amount\": oops}"),
                Some(Timestamp::from_millis(1_573_691_884_835)),
            ),
            stream_arn: "arn:aws:kinesis:us-east-2:123456789012:stream/orders".into(),
            stream_created: Timestamp::from_millis(1_573_600_000_000),
            shard_id: "shardId-000000000001".into(),
            kind: FailureKind::Poison,
            condition: Condition::RetryAttemptsExhausted,
            error_chain: vec!["no order".into(), "expected value at line 1 column 12".into()],
            attempts: 4,
            first_failure: Timestamp::from_millis(1_573_691_885_021),
            last_failure: Timestamp::from_millis(1_573_691_886_021),
            application: "orders-app".into(),
            worker: "host-1:0190".into(),
            fencing_token: 42,
        }
    }

    /// With the payload inside.
    fn whole(letter: &DeadLetter, keys: PartitionKeys) -> String {
        envelope(letter, keys, PayloadPlace::Inside(letter.record.data()))
    }

    fn envelope_of(letter: &DeadLetter) -> String {
        whole(letter, PartitionKeys::Clear)
    }

    /// The envelope as one that reads it sees it.
    fn read(letter: &DeadLetter) -> Value {
        serde_json::from_str(&envelope_of(letter)).unwrap()
    }

    #[test]
    fn the_format_stays() {
        let golden = concat!(
            r#"{"requestContext":{"condition":"RetryAttemptsExhausted","approximateInvokeCount":4},"#,
            r#""version":"1","timestamp":"2019-11-14T00:38:06.021Z","#,
            r#""KinesisBatchInfo":{"shardId":"shardId-000000000001","#,
            r#""startSequenceNumber":"49601189658422359378836298521827638475320189012309704722","#,
            r#""endSequenceNumber":"49601189658422359378836298521827638475320189012309704722","#,
            r#""approximateArrivalOfFirstRecord":"2019-11-14T00:38:04.835Z","#,
            r#""approximateArrivalOfLastRecord":"2019-11-14T00:38:04.835Z","batchSize":1,"#,
            r#""streamArn":"arn:aws:kinesis:us-east-2:123456789012:stream/orders"},"#,
            r#""streamArn":"arn:aws:kinesis:us-east-2:123456789012:stream/orders","#,
            r#""streamCreated":"2019-11-12T23:06:40.000Z","shardId":"shardId-000000000001","#,
            r#""sequenceNumber":"49601189658422359378836298521827638475320189012309704722","subSequenceNumber":0,"#,
            r#""aggregated":false,"partitionKey":"customer-7","partitionKeyForm":"clear","explicitHashKey":null,"#,
            r#""approximateArrivalTimestamp":"2019-11-14T00:38:04.835Z","payloadBytes":16,"#,
            r#""data":"eyJhbW91bnQiOiBvb3BzfQ==","#,
            r#""error":{"kind":"poison","message":"no order","chain":["expected value at line 1 column 12"]},"#,
            r#""attempts":4,"firstFailure":"2019-11-14T00:38:05.021Z","lastFailure":"2019-11-14T00:38:06.021Z","#,
            r#""application":"orders-app","worker":"host-1:0190","fencingToken":42}"#,
        );
        assert_eq!(envelope_of(&letter()), golden);
    }

    #[test]
    fn any_text_is_ascii_on_the_wire_and_reads_back() {
        let text = "\u{fffe}\u{0}\u{1b}\u{7f} \"quoted\" \\ \n zażółć 漢字 🦀";
        let mut letter = letter();
        letter.error_chain = vec![text.into(), text.into()];
        letter.record = Record::new(1.into(), Some(text.into()), Bytes::from_static(&[0, 255, 13]), None);
        assert!(envelope_of(&letter).bytes().all(|byte| matches!(byte, b' '..=0x7f)));

        let read = read(&letter);
        assert_eq!(read["partitionKey"], text);
        assert_eq!(read["error"]["message"], text);
        assert_eq!(read["error"]["chain"][0], text);
        assert_eq!(STANDARD.decode(read["data"].as_str().unwrap()).unwrap(), [0, 255, 13]);
    }

    #[test]
    fn what_kinesis_did_not_give_is_null() {
        let mut letter = letter();
        letter.record = Record::new(1.into(), None, Bytes::new(), None);
        letter.error_chain = Vec::new();
        let read = read(&letter);
        for field in
            [&read["partitionKey"], &read["approximateArrivalTimestamp"], &read["KinesisBatchInfo"]["approximateArrivalOfFirstRecord"]]
        {
            assert_eq!(*field, Value::Null);
        }
        assert_eq!((&read["data"], &read["error"]["message"]), (&"".into(), &"".into()));
    }

    #[test]
    fn a_key_is_told_as_it_is_to_be() {
        for (keys, form, key, hash) in [
            (PartitionKeys::Clear, "clear", Value::from("customer-7"), Value::Null),
            (PartitionKeys::Hashed, "hashed", Value::Null, sha256_hex("customer-7").into()),
            (PartitionKeys::Omitted, "omitted", Value::Null, Value::Null),
        ] {
            let text = whole(&letter(), keys);
            let read: Value = serde_json::from_str(&text).unwrap();
            assert_eq!((&read["partitionKeyForm"], &read["partitionKey"]), (&Value::from(form), &key));
            assert_eq!(read["partitionKeyHash"], hash);
            assert_eq!(text.contains("customer-7"), keys == PartitionKeys::Clear);
        }
    }

    #[test]
    fn a_payload_elsewhere_is_pointed_to() {
        let address = crate::dead_letter::BlobAddress { bucket: "payloads".into(), key: "a/b".into() };
        let location = PayloadLocation { address, bytes: 16, sha256: sha256_hex("x") };
        let read: Value = serde_json::from_str(&envelope(&letter(), PartitionKeys::Clear, PayloadPlace::At(&location))).unwrap();
        assert_eq!((&read["data"], &read["payloadBytes"]), (&Value::Null, &16.into()));
        let expected = serde_json::json!({ "bucket": "payloads", "key": "a/b", "bytes": 16, "sha256": sha256_hex("x") });
        assert_eq!(read["payloadLocation"], expected);
    }

    proptest::proptest! {
        #[test]
        fn the_size_is_known_beforehand(bytes in 0_usize..10_000, key in "\\PC{0,40}", error in "\\PC{0,2000}", form in 0_usize..3) {
            let mut letter = letter();
            letter.record = Record::new(7.into(), Some(key), vec![7; bytes].into(), None);
            letter.error_chain = vec![error];
            let keys = [PartitionKeys::Clear, PartitionKeys::Hashed, PartitionKeys::Omitted][form];
            proptest::prop_assert_eq!(whole_size(&letter, keys), whole(&letter, keys).len());
        }
    }

    #[test]
    fn a_long_error_is_cut_and_leaves_room_for_its_causes() {
        let mut letter = letter();
        letter.error_chain = vec!["x".repeat(1_000_000), "the cause".into()];
        let read = read(&letter);
        let message = read["error"]["message"].as_str().unwrap();
        assert!(message.starts_with("xxx") && message.ends_with(CUT) && message.len() == ERROR_TEXT_LIMIT + CUT.len());
        assert_eq!(read["error"]["chain"][0], "the cause");
    }

    #[test]
    fn no_error_makes_an_envelope_large() {
        let mut letter = letter();
        letter.error_chain = Vec::new();
        let without = envelope_of(&letter).len();
        let many = |text: &str| vec![text.repeat(100_000); 20];
        for chain in [many("x"), many("\""), many("\u{1}"), many("ż"), many("🦀"), vec![String::new(); 100_000], vec!["ab".into(); 100_000]]
        {
            letter.error_chain = chain;
            let more = envelope_of(&letter).len() - without;
            assert!((1000..=ERROR_LIMIT).contains(&more), "{more}");
        }
    }

    #[test]
    fn a_time_that_can_not_be_said_does_no_harm() {
        assert_eq!(rfc3339(Timestamp::from_millis(u64::MAX)), "9999-12-30T22:00:00.999Z");
        assert_eq!(rfc3339(Timestamp::from_millis(0)), "1970-01-01T00:00:00.000Z");
    }
}
