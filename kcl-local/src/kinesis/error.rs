//! What an operation of Kinesis can refuse, in the service's own words: exception name, message, HTTP status.

use std::fmt;

use serde_json::json;

/// The exceptions of Kinesis that the model answers with, by the names they have on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum ErrorCode {
    /// `ExpiredIteratorException`: the shard iterator is older than its life; ask for a new one.
    ExpiredIterator,
    /// `ExpiredNextTokenException`: the token of a listing is older than its life; list from the start.
    ExpiredNextToken,
    /// `InvalidArgumentException`: well-formed, but it makes no sense for this stream.
    InvalidArgument,
    /// `LimitExceededException`: a quota of the account, or too many calls of a management operation.
    LimitExceeded,
    /// `ProvisionedThroughputExceededException`: the shard's limit of reads or writes; wait and retry.
    ProvisionedThroughputExceeded,
    /// `ResourceInUseException`: the stream or consumer isn't in the state that the operation needs, or is in use.
    ResourceInUse,
    /// `ResourceNotFoundException`: no such stream, shard or consumer.
    ResourceNotFound,
    /// `SerializationException`: the body isn't the JSON that the operation takes.
    Serialization,
    /// `UnknownOperationException`: the model doesn't have this operation.
    UnknownOperation,
    /// `ValidationException`: a member is missing, too long, out of range or of the wrong pattern.
    Validation,
}

impl ErrorCode {
    /// The exception's name on the wire.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::ExpiredIterator => "ExpiredIteratorException",
            Self::ExpiredNextToken => "ExpiredNextTokenException",
            Self::InvalidArgument => "InvalidArgumentException",
            Self::LimitExceeded => "LimitExceededException",
            Self::ProvisionedThroughputExceeded => "ProvisionedThroughputExceededException",
            Self::ResourceInUse => "ResourceInUseException",
            Self::ResourceNotFound => "ResourceNotFoundException",
            Self::Serialization => "SerializationException",
            Self::UnknownOperation => "UnknownOperationException",
            Self::Validation => "ValidationException",
        }
    }
}

impl fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A refused operation. Nothing of it was applied.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{code}: {message}")]
pub struct ApiError {
    /// Which exception.
    pub code: ErrorCode,
    /// The service's sentence about it. Never holds a payload or a partition key.
    pub message: String,
}

impl ApiError {
    pub(crate) fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }

    pub(crate) fn invalid(message: impl Into<String>) -> Self {
        Self::new(ErrorCode::InvalidArgument, message)
    }

    pub(crate) fn not_found(message: impl Into<String>) -> Self {
        Self::new(ErrorCode::ResourceNotFound, message)
    }

    pub(crate) fn in_use(message: impl Into<String>) -> Self {
        Self::new(ErrorCode::ResourceInUse, message)
    }

    /// A broken constraint of one member, worded as the service does.
    pub(crate) fn constraint(value: &str, member: &str, constraint: &str) -> Self {
        let message = format!("1 validation error detected: Value '{value}' at '{member}' failed to satisfy constraint: {constraint}");
        Self::new(ErrorCode::Validation, message)
    }

    /// The status of the HTTP answer.
    #[must_use]
    pub fn http_status(&self) -> u16 {
        // Every refusal of the model is the caller's; the 5xx of a real service are faults put in from outside.
        400
    }

    /// The body of the HTTP answer.
    #[must_use]
    pub fn to_json(&self) -> Vec<u8> {
        json!({ "__type": self.code.as_str(), "message": self.message }).to_string().into_bytes()
    }
}
