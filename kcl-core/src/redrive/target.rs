//! The port that records go to: back into a stream, or through a handler.

use std::error::Error;
use std::fmt;
use std::time::Duration;

use async_trait::async_trait;
use aws_sdk_kinesis::Client;
use aws_sdk_kinesis::error::ProvideErrorMetadata as _;
use aws_sdk_kinesis::primitives::Blob;
use aws_types::SdkConfig;
use bytes::Bytes;
use futures::future::BoxFuture;

use super::report::StayReason;
use crate::dead_letter::kinesis::client_of_one_attempt;
use crate::dead_letter::refusal::{is_denied, with_causes};
use crate::dead_letter::{Envelope, ToldKey};

/// How long one call may take: a record may have 10 MiB.
const CALL_TIMEOUT: Duration = Duration::from_secs(15);

/// Why a record was not accepted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TargetError {
    /// This record is not accepted, now or later: its letter stays, and the run goes on.
    #[error("{0}")]
    Refused(String),
    /// No answer, throttled, or a failure: it may have been accepted, and doing it again is right.
    #[error("{0}")]
    Unavailable(String),
    /// No record will be accepted: the run ends.
    #[error("{0}")]
    Closed(String),
}

/// Where records go.
///
/// # Contract
/// `Ok` of [`accept`](Self::accept) means that the record is durably there, or has been processed: its letter is deleted next. It may be called
/// again for a record that was accepted, if the letter could not be deleted. Records of one partition key are given one after the other.
#[async_trait]
pub trait RedriveTarget: Send + Sync + fmt::Debug {
    /// Why this letter's record would not be accepted, if that is known without trying.
    fn refuses(&self, letter: &Envelope) -> Option<StayReason>;

    /// Whether letters of two applications about one record are the same to it. Each application that reads a stream reads what is put into it.
    fn is_shared(&self) -> bool;

    /// Takes a record: one attempt.
    ///
    /// # Errors
    /// See [`TargetError`].
    async fn accept(&self, letter: &Envelope, payload: &Bytes) -> Result<(), TargetError>;
}

/// Puts records back into a stream, each as a record of its own, under its partition key and, where known, its explicit hash key.
///
/// It needs `kinesis:PutRecord`, and `kms:GenerateDataKey` on the stream's key if it has one. Records get new sequence numbers and come after what has been put
/// since: all applications that read the stream see them again.
pub struct StreamTarget {
    client: Client,
    stream: String,
}

impl StreamTarget {
    /// The stream with this name or ARN, in the configuration's region. Nothing is called yet.
    #[must_use]
    pub fn new(aws: &SdkConfig, stream: impl Into<String>) -> Self {
        Self { client: client_of_one_attempt(aws, CALL_TIMEOUT), stream: stream.into() }
    }
}

#[async_trait]
impl RedriveTarget for StreamTarget {
    fn refuses(&self, letter: &Envelope) -> Option<StayReason> {
        matches!(letter.partition_key, ToldKey::Hashed(_) | ToldKey::Omitted).then_some(StayReason::KeyNotTold)
    }

    fn is_shared(&self) -> bool {
        true
    }

    async fn accept(&self, letter: &Envelope, payload: &Bytes) -> Result<(), TargetError> {
        let put = self.client.put_record().data(Blob::new(payload.to_vec()));
        let put = if self.stream.starts_with("arn:") { put.stream_arn(&self.stream) } else { put.stream_name(&self.stream) };
        // A stream that gives no keys distributes records itself, and takes them without.
        let put = if let ToldKey::Clear(key) = &letter.partition_key { put.partition_key(key) } else { put };
        let put = put.set_explicit_hash_key(letter.explicit_hash_key.map(|key| key.to_string()));
        match put.send().await {
            Ok(_) => Ok(()),
            Err(error) => Err(match error.as_service_error() {
                Some(refused) => {
                    let words = refused.message().map_or_else(|| refused.to_string(), str::to_owned);
                    by_code(&self.stream, refused.code().unwrap_or_default(), &words)
                }
                None => TargetError::Unavailable(format!("kinesis:PutRecord on `{}`: {}", self.stream, with_causes(&error))),
            }),
        }
    }
}

/// What a refusal of PutRecord means. See its errors in the Kinesis API.
fn by_code(stream: &str, code: &str, words: &str) -> TargetError {
    let message = format!("kinesis:PutRecord on `{stream}`: {code}: {words}");
    match code {
        "InvalidArgumentException" | "ValidationException" | "SerializationException" => TargetError::Refused(message),
        "ResourceNotFoundException" | "KMSDisabledException" | "KMSInvalidStateException" | "KMSNotFoundException" | "KMSOptInRequired" => {
            TargetError::Closed(message)
        }
        code if is_denied(code) => TargetError::Closed(message),
        _ => TargetError::Unavailable(message),
    }
}

impl fmt::Debug for StreamTarget {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("StreamTarget").field("stream", &self.stream).finish_non_exhaustive()
    }
}

type Handler = dyn Fn(Envelope, Bytes) -> BoxFuture<'static, Result<(), String>> + Send + Sync;

/// Processes records in place, by an async function of yours.
///
/// It is given what the letter says and the payload. An error leaves the letter in the queue, with the error's words in the report; it is not
/// retried within the run.
pub struct HandlerTarget(Box<Handler>);

impl HandlerTarget {
    /// A target that calls this function.
    #[must_use]
    pub fn new<F, E>(handler: impl Fn(Envelope, Bytes) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = Result<(), E>> + Send + 'static,
        E: Into<Box<dyn Error + Send + Sync>>,
    {
        Self(Box::new(move |letter, payload| {
            let processed = handler(letter, payload);
            Box::pin(async move { processed.await.map_err(|error| with_causes(error.into().as_ref())) })
        }))
    }
}

#[async_trait]
impl RedriveTarget for HandlerTarget {
    fn refuses(&self, _letter: &Envelope) -> Option<StayReason> {
        None
    }

    fn is_shared(&self) -> bool {
        false
    }

    async fn accept(&self, letter: &Envelope, payload: &Bytes) -> Result<(), TargetError> {
        (self.0)(letter.clone(), payload.clone()).await.map_err(TargetError::Refused)
    }
}

impl fmt::Debug for HandlerTarget {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("HandlerTarget").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_mean_what_their_codes_say() {
        for (code, expected) in [
            ("ProvisionedThroughputExceededException", "unavailable"),
            ("KMSThrottlingException", "unavailable"),
            ("InternalFailure", "unavailable"),
            ("ResourceInUseException", "unavailable"),
            ("", "unavailable"),
            ("InvalidArgumentException", "refused"),
            ("ValidationException", "refused"),
            ("ResourceNotFoundException", "closed"),
            ("AccessDeniedException", "closed"),
            ("KMSAccessDeniedException", "closed"),
            ("KMSDisabledException", "closed"),
        ] {
            let meaning = match by_code("orders", code, "words") {
                TargetError::Refused(_) => "refused",
                TargetError::Unavailable(_) => "unavailable",
                TargetError::Closed(_) => "closed",
            };
            assert_eq!(meaning, expected, "{code}");
        }
    }
}
