//! How a caller words requests and wants its answers: JSON, or Kinesis' CBOR. Behind it all is JSON.

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderMap};

use super::Service;
use super::cbor::{self, CborError};

/// The two formats.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    Json,
    Cbor,
}

impl Format {
    /// The format of a request with these headers, which is that of its answer.
    pub(super) fn of(service: Service, headers: &HeaderMap) -> Self {
        let content_type = headers.get(CONTENT_TYPE).map_or(&b""[..], |value| value.as_bytes());
        // Only Kinesis has the second format.
        if service == Service::Kinesis && content_type.starts_with(cbor::CONTENT_TYPE.as_bytes()) { Self::Cbor } else { Self::Json }
    }

    /// A request's body as JSON.
    pub(super) fn read(self, body: &Bytes) -> Result<Bytes, CborError> {
        match self {
            Self::Json => Ok(body.clone()),
            Self::Cbor => Ok(cbor::to_json(body)?.into()),
        }
    }

    /// JSON as the caller wants it.
    pub(super) fn write(self, json: Bytes) -> Bytes {
        match self {
            Self::Json => json,
            Self::Cbor => cbor::from_json(&json).into(),
        }
    }
}
