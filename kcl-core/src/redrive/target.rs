//! The port that records go to: back into a stream, or through a handler.

use std::error::Error;
use std::fmt;
use std::panic::AssertUnwindSafe;
use std::sync::OnceLock;
use std::time::Duration;

use async_trait::async_trait;
use aws_sdk_kinesis::Client;
use aws_sdk_kinesis::error::ProvideErrorMetadata as _;
use aws_sdk_kinesis::primitives::Blob;
use aws_types::SdkConfig;
use bytes::Bytes;
use futures::future::BoxFuture;
use kcl_aggregation::is_valid_partition_key;
use kcl_checkpoint::Timestamp;

use super::report::StayReason;
use crate::dead_letter::guarded::caught;
use crate::dead_letter::kinesis::client_of_one_attempt;
use crate::dead_letter::refusal::{is_denied, with_causes};
use crate::dead_letter::{Envelope, RecordAddress, ToldKey};
use crate::stream::{KinesisStream, StreamApi as _, StreamError, StreamStatus};

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
/// A run calls [`check`](Self::check) before anything else. `Ok` of [`accept`](Self::accept) means that the record is durably there, or has been processed: its letter is deleted next. It may be called
/// again for a record that was accepted, if the letter could not be deleted. Records of one partition key are given one after the other.
#[async_trait]
pub trait RedriveTarget: Send + Sync + fmt::Debug {
    /// Checks that records can be accepted, before any letter is received. Default: they can.
    ///
    /// # Errors
    /// See [`TargetError`].
    async fn check(&self) -> Result<(), TargetError> {
        Ok(())
    }

    /// Returns why this letter's record would not be accepted, if that is known without trying.
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
/// It needs `kinesis:DescribeStreamSummary`, `kinesis:PutRecord`, and `kms:GenerateDataKey` on the stream's key if it has one. Records get new sequence numbers and come after what has been put
/// since: all applications that read the stream see them again.
///
/// Only letters of this very stream are put into it: of its ARN, and of its time of creation, for a stream
/// that was deleted and made anew under its name is another one. Every letter tells both. See
/// [`from_other_streams`](Self::from_other_streams).
///
/// A record of an aggregate may have a partition key that no stream takes: empty, longer than 256
/// characters, or none that could be told. Its letter stays ([`StayReason::KeyNotTaken`]); a handler can
/// process it.
pub struct StreamTarget {
    client: Client,
    stream: String,
    from_other_streams: bool,
    /// Known once it was checked.
    identity: OnceLock<StreamIdentity>,
}

/// What makes a stream that stream.
#[derive(Debug)]
struct StreamIdentity {
    arn: String,
    created: Timestamp,
}

impl StreamTarget {
    /// The stream with this name or ARN, in the configuration's region. Nothing is called yet.
    #[must_use]
    pub fn new(aws: &SdkConfig, stream: impl Into<String>) -> Self {
        Self {
            client: client_of_one_attempt(aws, CALL_TIMEOUT),
            stream: stream.into(),
            from_other_streams: false,
            identity: OnceLock::new(),
        }
    }

    /// Whether records of other streams are put into this one too. Default: no, their letters stay, with
    /// [`StayReason::OtherStream`] or [`StayReason::EarlierStream`].
    #[must_use]
    pub fn from_other_streams(mut self, accept: bool) -> Self {
        self.from_other_streams = accept;
        self
    }
}

#[async_trait]
impl RedriveTarget for StreamTarget {
    /// Learns which stream this is.
    async fn check(&self) -> Result<(), TargetError> {
        let described = KinesisStream::new(self.client.clone(), &self.stream, CALL_TIMEOUT).describe().await;
        let described = described.map_err(|error| match error {
            StreamError::NotFound { .. } => TargetError::Closed(format!(
                "stream `{}` does not exist in this account and region; check its name and the region",
                self.stream
            )),
            error if error.is_retryable() => TargetError::Unavailable(error.to_string()),
            error => TargetError::Closed(error.to_string()),
        })?;
        if described.status == StreamStatus::Deleting {
            return Err(TargetError::Closed(format!("stream `{}` is being deleted", self.stream)));
        }
        self.identity.get_or_init(|| StreamIdentity { arn: described.arn, created: described.created });
        Ok(())
    }

    fn refuses(&self, letter: &Envelope) -> Option<StayReason> {
        let stranger = self.identity.get().filter(|_| !self.from_other_streams).and_then(|own| is_of_another(own, &letter.record));
        stranger.or_else(|| key_refused(letter))
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

/// Returns why this is not a record of the stream.
fn is_of_another(own: &StreamIdentity, record: &RecordAddress) -> Option<StayReason> {
    let stream = || record.stream_arn.clone();
    if record.stream_arn != own.arn {
        return Some(StayReason::OtherStream { stream: stream() });
    }
    (record.stream_created != own.created).then(|| StayReason::EarlierStream { stream: stream() })
}

/// Returns why no stream takes the record under the partition key that the letter tells.
fn key_refused(letter: &Envelope) -> Option<StayReason> {
    match &letter.partition_key {
        ToldKey::Hashed(_) | ToldKey::Omitted => Some(StayReason::KeyNotTold),
        ToldKey::Clear(key) => (!is_valid_partition_key(key)).then_some(StayReason::KeyNotTaken),
        // Every record of an aggregate has a key; this one's is no text.
        ToldKey::None => letter.aggregated.then_some(StayReason::KeyNotTaken),
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
/// It is given what the letter says and the payload. An error or a panic leaves the letter in the queue; it is not retried within the run. The
/// error's words, which may quote the payload, are in the [outcome](super::LetterOutcome) that an observer is
/// given and in nothing that is logged.
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
            // The handler runs inside of the future, so that a panic in it is met there.
            let processed = std::panic::catch_unwind(AssertUnwindSafe(|| handler(letter, payload)));
            Box::pin(async move {
                let panicked = || "the handler panicked".to_owned();
                let processed = caught(processed.map_err(|_| panicked())?).await.ok_or_else(panicked)?;
                processed.map_err(|error| with_causes(error.into().as_ref()))
            })
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
    use super::super::plan::tests::letter;
    use super::*;

    #[test]
    fn only_letters_of_this_very_stream_are_put_into_it() {
        let letter = letter(7, "a");
        let (arn, created) = (letter.record.stream_arn.clone(), letter.record.stream_created);
        let other = "arn:aws:kinesis:us-east-2:123456789012:stream/others";
        let earlier = Timestamp::from_millis(created.as_millis() - 1);
        for (own, own_created, expected) in [
            (arn.as_str(), created, None),
            (other, created, Some(StayReason::OtherStream { stream: arn.clone() })),
            (other, earlier, Some(StayReason::OtherStream { stream: arn.clone() })),
            (arn.as_str(), earlier, Some(StayReason::EarlierStream { stream: arn.clone() })),
        ] {
            let own = StreamIdentity { arn: own.to_owned(), created: own_created };
            assert_eq!(is_of_another(&own, &letter.record), expected, "{own:?}");
        }
    }

    #[test]
    fn a_key_that_no_stream_takes_is_known_without_trying() {
        let clear = |key: &str| ToldKey::Clear(key.to_owned());
        for (key, aggregated, expected) in [
            (clear("a"), false, None),
            (clear(&"k".repeat(256)), true, None),
            (clear(""), true, Some(StayReason::KeyNotTaken)),
            (clear(&"k".repeat(257)), true, Some(StayReason::KeyNotTaken)),
            (ToldKey::None, true, Some(StayReason::KeyNotTaken)),
            (ToldKey::None, false, None),
            (ToldKey::Omitted, false, Some(StayReason::KeyNotTold)),
            (ToldKey::Hashed(String::new()), true, Some(StayReason::KeyNotTold)),
        ] {
            let letter = Envelope { partition_key: key, aggregated, ..letter(7, "") };
            assert_eq!(key_refused(&letter), expected, "{:?}, {aggregated}", letter.partition_key);
        }
    }

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
