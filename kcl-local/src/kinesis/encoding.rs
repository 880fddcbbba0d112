//! How JSON carries what it has no type for: times as seconds with a fraction, bytes as base64.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use serde::de::{self, Deserializer, Visitor};
use serde::ser::Serializer;

/// Milliseconds in the program, seconds on the wire.
pub(super) mod seconds {
    use super::Serializer;

    pub(in crate::kinesis) fn serialize<S: Serializer>(millis: &u64, serializer: S) -> Result<S::Ok, S::Error> {
        // Exact to the millisecond until far beyond the year 9999.
        #[expect(clippy::cast_precision_loss, reason = "milliseconds since the epoch fit in 53 bits")]
        serializer.serialize_f64(*millis as f64 / 1_000.0)
    }
}

/// The same for what may be absent.
pub(super) mod optional_seconds {
    use serde::Deserialize as _;

    use super::{Deserializer, de};

    pub(in crate::kinesis) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u64>, D::Error> {
        let Some(seconds) = Option::<f64>::deserialize(deserializer)? else {
            return Ok(None);
        };
        let millis = (seconds * 1_000.0).round();
        if !(0.0..1e15).contains(&millis) {
            return Err(de::Error::invalid_value(de::Unexpected::Float(seconds), &"seconds since the epoch"));
        }
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "checked above")]
        Ok(Some(millis as u64))
    }
}

/// Base64 with padding.
pub(super) mod base64_bytes {
    use base64::Engine as _;

    use super::{BASE64, Bytes, Deserializer, Serializer, Text};

    pub(in crate::kinesis) fn serialize<S: Serializer>(data: &Bytes, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&BASE64.encode(data))
    }

    pub(in crate::kinesis) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Bytes, D::Error> {
        deserializer.deserialize_str(Text)
    }
}

/// Decodes straight from the text of the body.
struct Text;

impl Visitor<'_> for Text {
    type Value = Bytes;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("base64")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Bytes, E> {
        // The decoder's own error would quote a byte of the payload.
        BASE64.decode(text).map(Bytes::from).map_err(|_| E::custom("a blob that isn't base64"))
    }
}
