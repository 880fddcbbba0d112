//! Kinesis' second wire format, CBOR, put into JSON and back at the edge: the Java SDK speaks it by default.
//!
//! The two differ in two things. A blob is a byte string in CBOR and base64 text in JSON. A timestamp is tag 1 around
//! whole *milliseconds* in CBOR (the Java SDKs' reading of it, and the service's) and a number of seconds in JSON.
//! JSON does not say which members are which, so on the way back they are known by their names.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use ciborium::Value as Cbor;
use serde_json::{Map, Number, Value as Json};

/// The content type of Kinesis' CBOR.
pub(super) const CONTENT_TYPE: &str = "application/x-amz-cbor-1.1";

/// CBOR's tag of a point in time since the epoch.
const EPOCH_TAG: u64 = 1;

/// Why a body could not be read.
#[derive(Debug, thiserror::Error)]
pub(super) enum CborError {
    /// Not CBOR at all.
    #[error("the body is not CBOR: {0}")]
    Malformed(String),
    /// CBOR, but of a kind that no Kinesis request has.
    #[error("the body holds {0}, which no request has")]
    Unexpected(&'static str),
}

/// A request's CBOR body as JSON text. An empty body is an empty object.
pub(super) fn to_json(body: &[u8]) -> Result<Vec<u8>, CborError> {
    if body.is_empty() {
        return Ok(b"{}".to_vec());
    }
    let cbor: Cbor = ciborium::from_reader(body).map_err(|error| CborError::Malformed(error.to_string()))?;
    Ok(json_of(cbor)?.to_string().into_bytes())
}

/// An answer's JSON text as CBOR. An empty body stays empty.
pub(super) fn from_json(body: &[u8]) -> Vec<u8> {
    let Ok(json) = serde_json::from_slice(body) else {
        return Vec::new();
    };
    let mut bytes = Vec::new();
    ciborium::into_writer(&cbor_of("", json), &mut bytes).expect("a vector takes every write");
    bytes
}

fn json_of(cbor: Cbor) -> Result<Json, CborError> {
    Ok(match cbor {
        Cbor::Null => Json::Null,
        Cbor::Bool(value) => Json::Bool(value),
        Cbor::Text(text) => Json::String(text),
        Cbor::Bytes(bytes) => Json::String(BASE64.encode(bytes)),
        Cbor::Integer(number) => integer(number)?,
        Cbor::Float(number) => Json::Number(Number::from_f64(number).ok_or(CborError::Unexpected("a number that is not finite"))?),
        Cbor::Array(items) => Json::Array(items.into_iter().map(json_of).collect::<Result<_, _>>()?),
        Cbor::Map(entries) => {
            let mut object = Map::new();
            for (key, value) in entries {
                let Cbor::Text(key) = key else {
                    return Err(CborError::Unexpected("a map with keys other than text"));
                };
                object.insert(key, json_of(value)?);
            }
            Json::Object(object)
        }
        Cbor::Tag(EPOCH_TAG, value) => seconds(*value)?,
        Cbor::Tag(_, value) => json_of(*value)?,
        _ => return Err(CborError::Unexpected("a value of an unknown kind")),
    })
}

fn integer(number: ciborium::value::Integer) -> Result<Json, CborError> {
    i64::try_from(number).map(Json::from).map_err(|_| CborError::Unexpected("an integer beyond 64 bits"))
}

/// The seconds of a tagged timestamp: whole numbers are milliseconds, fractional ones seconds already.
fn seconds(value: Cbor) -> Result<Json, CborError> {
    match value {
        Cbor::Integer(number) => {
            let millis = i64::try_from(number).map_err(|_| CborError::Unexpected("a timestamp beyond 64 bits"))?;
            #[expect(clippy::cast_precision_loss, reason = "milliseconds since the epoch fit in 53 bits")]
            let seconds = millis as f64 / 1000.0;
            json_of(Cbor::Float(seconds))
        }
        Cbor::Float(_) => json_of(value),
        _ => Err(CborError::Unexpected("a timestamp that is not a number")),
    }
}

fn cbor_of(name: &str, json: Json) -> Cbor {
    match json {
        Json::Null => Cbor::Null,
        Json::Bool(value) => Cbor::Bool(value),
        Json::Number(number) if is_timestamp(name) => timestamp(&number),
        Json::Number(number) => match (number.as_i64(), number.as_f64()) {
            (Some(whole), _) => Cbor::Integer(whole.into()),
            (None, float) => Cbor::Float(float.unwrap_or_default()),
        },
        Json::String(text) if is_blob(name) => BASE64.decode(&text).map_or(Cbor::Text(text), Cbor::Bytes),
        Json::String(text) => Cbor::Text(text),
        Json::Array(items) => Cbor::Array(items.into_iter().map(|item| cbor_of(name, item)).collect()),
        Json::Object(object) => Cbor::Map(
            object
                .into_iter()
                .map(|(key, value)| {
                    let value = cbor_of(&key, value);
                    (Cbor::Text(key), value)
                })
                .collect(),
        ),
    }
}

fn timestamp(seconds: &Number) -> Cbor {
    #[expect(clippy::cast_possible_truncation, reason = "a date; the fraction of a millisecond goes by rounding")]
    let millis = (seconds.as_f64().unwrap_or_default() * 1000.0).round() as i64;
    Cbor::Tag(EPOCH_TAG, Box::new(Cbor::Integer(millis.into())))
}

/// `Data` is the only blob in Kinesis' answers.
fn is_blob(name: &str) -> bool {
    name == "Data"
}

/// `ApproximateArrivalTimestamp`, `StreamCreationTimestamp`, `ConsumerCreationTimestamp`.
fn is_timestamp(name: &str) -> bool {
    name.ends_with("Timestamp")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn written(cbor: &Cbor) -> Vec<u8> {
        let mut bytes = Vec::new();
        ciborium::into_writer(cbor, &mut bytes).unwrap();
        bytes
    }

    fn read(bytes: &[u8]) -> Json {
        serde_json::from_slice(&to_json(bytes).unwrap()).unwrap()
    }

    #[test]
    fn a_request_becomes_json() {
        let request = Cbor::Map(vec![
            (Cbor::Text("StreamName".into()), Cbor::Text("orders".into())),
            (Cbor::Text("Data".into()), Cbor::Bytes(vec![0, 255])),
            (Cbor::Text("Limit".into()), Cbor::Integer(7.into())),
            (Cbor::Text("Timestamp".into()), Cbor::Tag(1, Box::new(Cbor::Integer(1_500_000_000_250_i64.into())))),
            (Cbor::Text("Records".into()), Cbor::Array(vec![Cbor::Null, Cbor::Bool(true)])),
        ]);
        assert_eq!(
            read(&written(&request)),
            json!({
                "StreamName": "orders", "Data": "AP8=", "Limit": 7, "Timestamp": 1_500_000_000.25,
                "Records": [null, true],
            })
        );
        assert_eq!(read(b""), json!({}));
    }

    #[test]
    fn an_answer_becomes_cbor() {
        let answer = json!({
            "Records": [{ "Data": "AP8=", "ApproximateArrivalTimestamp": 1_500_000_000.123, "PartitionKey": "k" }],
            "MillisBehindLatest": 0,
        });
        let cbor: Cbor = ciborium::from_reader(from_json(answer.to_string().as_bytes()).as_slice()).unwrap();
        let member = |of: &Cbor, name: &str| {
            let (_, value) = of.as_map().unwrap().iter().find(|(key, _)| key.as_text() == Some(name)).unwrap();
            value.clone()
        };
        let record = member(&cbor, "Records").as_array().unwrap()[0].clone();
        assert_eq!(member(&record, "Data"), Cbor::Bytes(vec![0, 255]));
        assert_eq!(member(&record, "ApproximateArrivalTimestamp"), Cbor::Tag(1, Box::new(Cbor::Integer(1_500_000_000_123_i64.into()))));
        assert_eq!(member(&record, "PartitionKey"), Cbor::Text("k".into()));
        assert_eq!(member(&cbor, "MillisBehindLatest"), Cbor::Integer(0.into()));
        assert!(from_json(b"").is_empty());
    }

    #[test]
    fn what_is_no_request_is_refused() {
        assert!(matches!(to_json(b"\xff\xff"), Err(CborError::Malformed(_))));
        let keyed_by_number = Cbor::Map(vec![(Cbor::Integer(1.into()), Cbor::Null)]);
        assert!(matches!(to_json(&written(&keyed_by_number)), Err(CborError::Unexpected(_))));
    }
}
