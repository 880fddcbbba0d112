//! The reader of messages: what a dead letter says, taken back strictly.
//!
//! Every field is looked at by name, and an error names the field and never quotes it: a message holds payloads and keys. Fields that are not known
//! are passed over, so that those that are added to this version of the format do no harm.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use kcl_checkpoint::Timestamp;
use serde_json::{Map, Value};

use super::blobs::{BlobAddress, PayloadLocation};
use super::identity::RecordAddress;

/// A dead letter as its message tells it.
///
/// `Debug` shows neither the payload nor the partition key.
#[derive(Clone, PartialEq, Eq)]
pub struct Envelope {
    /// Names the record for ever.
    pub record: RecordAddress,
    /// Whether it was part of an aggregate.
    pub aggregated: bool,
    /// Its partition key, as far as the message tells it.
    pub partition_key: ToldKey,
    /// The hash key that the producer chose in place of the partition key's hash, where it is known.
    pub explicit_hash_key: Option<u128>,
    /// About when Kinesis received the record.
    pub approximate_arrival: Option<Timestamp>,
    /// Its payload.
    pub payload: Payload,
    /// What failed, by the names of [`FailureKind`](super::FailureKind).
    pub error_kind: String,
    /// The error's own words.
    pub error_message: String,
    /// Those of its causes, outermost first.
    pub error_chain: Vec<String>,
    /// Why it was not tried again, by the names of [`Condition`](super::Condition).
    pub condition: String,
    /// How often it was tried.
    pub attempts: u32,
    /// When it failed first.
    pub first_failure: Timestamp,
    /// When it failed last.
    pub last_failure: Timestamp,
    /// The application.
    pub application: String,
    /// The worker.
    pub worker: String,
    /// The fencing token of the worker's term.
    pub fencing_token: u64,
}

/// A partition key in a message. See [`PartitionKeys`](super::PartitionKeys).
#[derive(Clone, PartialEq, Eq)]
pub enum ToldKey {
    /// The key itself.
    Clear(String),
    /// Its SHA-256 in hexadecimal.
    Hashed(String),
    /// There is one, and the message does not tell it.
    Omitted,
    /// Kinesis gave none.
    None,
}

/// A payload in a message.
#[derive(Clone, PartialEq, Eq)]
pub enum Payload {
    /// It is here.
    Inside(Bytes),
    /// It is in a blob store.
    At(PayloadLocation),
}

/// Why a message can't be read as a dead letter.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum EnvelopeError {
    /// It is not a JSON object.
    #[error("the message is not a JSON object")]
    NotJson,
    /// It is written in another version of the format.
    #[error(
        "the message's version is not \"1\", the only one that is known; read it with the version of this library that wrote it, or a newer one"
    )]
    UnknownVersion,
    /// It is AWS Lambda's.
    #[error(
        "the message is AWS Lambda's, which has no payload: it says where the records are in their stream (KinesisBatchInfo), from which they must \
         be read before they are trimmed"
    )]
    WithoutPayload,
    /// A field is missing, or is not what it must be.
    #[error("the message's field `{field}` is not {expected}")]
    Field {
        /// Its name.
        field: &'static str,
        /// What it must be.
        expected: &'static str,
    },
}

impl Envelope {
    /// Reads a message.
    ///
    /// # Errors
    /// See [`EnvelopeError`].
    pub fn parse(message: &str) -> Result<Self, EnvelopeError> {
        let Ok(Value::Object(fields)) = serde_json::from_str::<Value>(message) else { return Err(EnvelopeError::NotJson) };
        let top = Fields(&fields);
        if fields.contains_key("KinesisBatchInfo") && !fields.contains_key("sequenceNumber") {
            return Err(EnvelopeError::WithoutPayload);
        }
        if top.text("version")? != "1" {
            return Err(EnvelopeError::UnknownVersion);
        }
        let error = top.object("error")?;
        Ok(Self {
            record: RecordAddress {
                stream_arn: top.text("streamArn")?.to_owned(),
                stream_created: top.time("streamCreated")?,
                shard_id: top.text("shardId")?.to_owned(),
                sequence_number: top.text("sequenceNumber")?.parse().map_err(|_| wrong("sequenceNumber", "a sequence number"))?,
                sub_sequence_number: top.number("subSequenceNumber")?,
            },
            aggregated: top
                .optional("aggregated")
                .map_or(Some(false), Value::as_bool)
                .ok_or_else(|| wrong("aggregated", "true or false"))?,
            partition_key: top.partition_key()?,
            explicit_hash_key: match top.optional("explicitHashKey") {
                None => None,
                Some(key) => Some(key.as_str().and_then(decimal).ok_or_else(|| wrong("explicitHashKey", "a number of 128 bits, as text"))?),
            },
            approximate_arrival: match top.optional("approximateArrivalTimestamp") {
                None => None,
                Some(_) => Some(top.time("approximateArrivalTimestamp")?),
            },
            payload: top.payload()?,
            error_kind: error.text("kind")?.to_owned(),
            error_message: error.text("message")?.to_owned(),
            error_chain: error.texts("chain")?,
            condition: top.object("requestContext")?.text("condition")?.to_owned(),
            attempts: u32::try_from(top.number("attempts")?).map_err(|_| wrong("attempts", "a number of 32 bits"))?,
            first_failure: top.time("firstFailure")?,
            last_failure: top.time("lastFailure")?,
            application: top.text("application")?.to_owned(),
            worker: top.text("worker")?.to_owned(),
            fencing_token: top.number("fencingToken")?,
        })
    }
}

/// A JSON object whose fields are asked for by name.
struct Fields<'a>(&'a Map<String, Value>);

impl<'a> Fields<'a> {
    /// The field, unless it is missing or null.
    fn optional(&self, field: &str) -> Option<&'a Value> {
        self.0.get(field).filter(|value| !value.is_null())
    }

    fn text(&self, field: &'static str) -> Result<&'a str, EnvelopeError> {
        self.optional(field).and_then(Value::as_str).ok_or_else(|| wrong(field, "a text"))
    }

    fn texts(&self, field: &'static str) -> Result<Vec<String>, EnvelopeError> {
        let list = self.optional(field).and_then(Value::as_array);
        let texts = list.and_then(|list| list.iter().map(|text| text.as_str().map(str::to_owned)).collect());
        texts.ok_or_else(|| wrong(field, "a list of texts"))
    }

    fn number(&self, field: &'static str) -> Result<u64, EnvelopeError> {
        self.optional(field).and_then(Value::as_u64).ok_or_else(|| wrong(field, "a whole number from 0"))
    }

    fn object(&self, field: &'static str) -> Result<Self, EnvelopeError> {
        self.optional(field).and_then(Value::as_object).map(Self).ok_or_else(|| wrong(field, "an object"))
    }

    fn time(&self, field: &'static str) -> Result<Timestamp, EnvelopeError> {
        let time = self.text(field)?.parse::<jiff::Timestamp>().ok();
        let millis = time.and_then(|time| u64::try_from(time.as_millisecond()).ok());
        millis.map(Timestamp::from_millis).ok_or_else(|| wrong(field, "a time in RFC 3339, from 1970 on"))
    }

    fn partition_key(&self) -> Result<ToldKey, EnvelopeError> {
        let form = match self.optional("partitionKeyForm") {
            Some(_) => self.text("partitionKeyForm")?,
            // Written before there were others.
            None if self.optional("partitionKey").is_some() => "clear",
            None => "none",
        };
        match form {
            "clear" => Ok(ToldKey::Clear(self.text("partitionKey")?.to_owned())),
            "hashed" => Ok(ToldKey::Hashed(self.text("partitionKeyHash")?.to_owned())),
            "omitted" => Ok(ToldKey::Omitted),
            "none" => Ok(ToldKey::None),
            _ => Err(wrong("partitionKeyForm", "clear, hashed, omitted or none")),
        }
    }

    fn payload(&self) -> Result<Payload, EnvelopeError> {
        if self.optional("data").is_none() && self.optional("payloadLocation").is_some() {
            let location = self.object("payloadLocation")?;
            let address = BlobAddress { bucket: location.text("bucket")?.to_owned(), key: location.text("key")?.to_owned() };
            return Ok(Payload::At(PayloadLocation {
                address,
                bytes: location.number("bytes")?,
                sha256: location.text("sha256")?.to_owned(),
            }));
        }
        let data = STANDARD.decode(self.text("data")?).map_err(|_| wrong("data", "base64"))?;
        Ok(Payload::Inside(data.into()))
    }
}

fn wrong(field: &'static str, expected: &'static str) -> EnvelopeError {
    EnvelopeError::Field { field, expected }
}

/// The integer parser would take a sign.
fn decimal(text: &str) -> Option<u128> {
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok())?
}

impl fmt::Debug for Envelope {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Envelope")
            .field("record", &self.record)
            .field("error_kind", &self.error_kind)
            .field("attempts", &self.attempts)
            .field("application", &self.application)
            .field("payload", &self.payload)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for ToldKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Clear(_) => "Clear(..)",
            Self::Hashed(_) => "Hashed(..)",
            Self::Omitted => "Omitted",
            Self::None => "None",
        })
    }
}

impl fmt::Debug for Payload {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Inside(data) => write!(formatter, "Inside({} bytes)", data.len()),
            Self::At(location) => formatter.debug_tuple("At").field(location).finish(),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::super::envelope::tests::letter;
    use super::super::envelope::{PartitionKeys, PayloadPlace, envelope};
    use super::super::identity::sha256_hex;
    use super::super::{DeadLetter, RecordAddress};
    use super::*;
    use crate::record::Record;

    fn written(letter: &DeadLetter) -> String {
        envelope(letter, PartitionKeys::Clear, PayloadPlace::Inside(letter.record.data()))
    }

    /// The letter's message with a field replaced, or removed.
    fn with(field: &str, value: Option<Value>) -> Result<Envelope, EnvelopeError> {
        let mut message: Map<String, Value> = serde_json::from_str(&written(&letter())).unwrap();
        message.remove(field);
        message.extend(value.map(|value| (field.to_owned(), value)));
        Envelope::parse(&Value::Object(message).to_string())
    }

    #[test]
    fn what_is_written_reads_back() {
        let letter = letter();
        let read = Envelope::parse(&written(&letter)).unwrap();
        let expected = Envelope {
            record: RecordAddress::of(&letter),
            aggregated: false,
            partition_key: ToldKey::Clear("customer-7".into()),
            explicit_hash_key: None,
            approximate_arrival: letter.record.approximate_arrival(),
            payload: Payload::Inside(letter.record.data().clone()),
            error_kind: "poison".into(),
            error_message: "no order".into(),
            error_chain: vec!["expected value at line 1 column 12".into()],
            condition: "RetryAttemptsExhausted".into(),
            attempts: 4,
            first_failure: letter.first_failure,
            last_failure: letter.last_failure,
            application: "orders-app".into(),
            worker: "host-1:0190".into(),
            fencing_token: 42,
        };
        assert_eq!(read, expected);
        let shown = format!("{read:?} {:?}", read.partition_key);
        assert!(!shown.contains("customer") && !shown.contains("amount"), "{shown}");
    }

    proptest! {
        #[test]
        fn any_payload_key_and_error_reads_back(
            data in prop::collection::vec(any::<u8>(), 0..300), key in prop::option::of("\\PC{1,50}"), error in "\\PC{0,50}",
        ) {
            let record = Record::new(7.into(), key.clone(), data.clone().into(), None);
            let read = Envelope::parse(&written(&DeadLetter { record, error_chain: vec![error.clone()], ..letter() })).unwrap();
            prop_assert_eq!(read.payload, Payload::Inside(data.into()));
            prop_assert_eq!(read.partition_key, key.map_or(ToldKey::None, ToldKey::Clear));
            prop_assert_eq!(read.error_message, error);
        }

        #[test]
        fn no_text_makes_the_reader_panic(text in "\\PC{0,200}", cut in 0_usize..1500) {
            let _ = Envelope::parse(&text);
            let whole = written(&letter());
            let _ = Envelope::parse(&whole[..cut.min(whole.len())]);
        }
    }

    #[test]
    fn keys_and_payloads_that_are_elsewhere_are_told_so() {
        let message = envelope(&letter(), PartitionKeys::Hashed, PayloadPlace::Inside(b""));
        assert!(matches!(Envelope::parse(&message).unwrap().partition_key, ToldKey::Hashed(hash) if hash == sha256_hex("customer-7")));
        let location =
            PayloadLocation { address: BlobAddress { bucket: "payloads".into(), key: "a/b".into() }, bytes: 16, sha256: sha256_hex("x") };
        let message = envelope(&letter(), PartitionKeys::Omitted, PayloadPlace::At(&location));
        let read = Envelope::parse(&message).unwrap();
        assert_eq!((read.partition_key, read.payload), (ToldKey::Omitted, Payload::At(location)));
    }

    #[test]
    fn messages_from_before_a_field_was_added_are_read() {
        for field in ["aggregated", "partitionKeyForm", "explicitHashKey", "payloadBytes"] {
            assert_eq!(with(field, None).as_ref(), Ok(&Envelope::parse(&written(&letter())).unwrap()), "{field}");
        }
        with("aFieldOfTomorrow", Some(json!({}))).unwrap();
    }

    #[test]
    fn what_is_wrong_is_named_and_not_quoted() {
        for (field, value) in [
            ("version", None),
            ("streamArn", None),
            ("streamCreated", Some(json!("yesterday"))),
            ("shardId", Some(json!(1))),
            ("sequenceNumber", Some(json!("+1"))),
            ("sequenceNumber", Some(json!(1))),
            ("subSequenceNumber", Some(json!(-1))),
            ("aggregated", Some(json!("no"))),
            ("partitionKey", None),
            ("partitionKeyForm", Some(json!("secret"))),
            ("explicitHashKey", Some(json!("-1"))),
            ("approximateArrivalTimestamp", Some(json!("1969-12-31T00:00:00Z"))),
            ("data", None),
            ("data", Some(json!("secret!"))),
            ("error", Some(json!("secret"))),
            ("requestContext", None),
            ("attempts", Some(json!(5_000_000_000_u64))),
            ("fencingToken", Some(json!("secret"))),
        ] {
            let error = with(field, value).unwrap_err();
            assert!(matches!(error, EnvelopeError::Field { field: named, .. } if named == field), "{field}: {error}");
            assert!(!error.to_string().contains("secret"), "{error}");
        }
        assert_eq!(with("version", Some(json!("2"))), Err(EnvelopeError::UnknownVersion));
        for text in ["", "hello", "[]", "{"] {
            assert_eq!(Envelope::parse(text), Err(EnvelopeError::NotJson));
        }
    }

    #[test]
    fn lambdas_message_is_known_by_what_it_lacks() {
        let lambdas = json!({
            "requestContext": { "requestId": "c9b8fa9f", "condition": "RetryAttemptsExhausted", "approximateInvokeCount": 1 },
            "version": "1.0",
            "KinesisBatchInfo": { "shardId": "shardId-000000000001", "startSequenceNumber": "1", "endSequenceNumber": "2", "batchSize": 2 },
        });
        let error = Envelope::parse(&lambdas.to_string()).unwrap_err();
        assert_eq!(error, EnvelopeError::WithoutPayload);
        assert!(error.to_string().contains("no payload"), "{error}");
    }
}
