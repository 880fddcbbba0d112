//! Dead letters in an SQS queue: one message per record.
//!
//! It owns the queue's lookup and limits, and what a service's refusal means. What a message says is the envelope's matter; when it is
//! sent again, the caller's.

use std::error::Error;
use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use aws_sdk_sqs::Client;
use aws_sdk_sqs::config::retry::RetryConfig;
use aws_sdk_sqs::config::timeout::TimeoutConfig;
use aws_sdk_sqs::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_sqs::types::QueueAttributeName;
use aws_types::SdkConfig;
use md5::{Digest as _, Md5};
use tokio::sync::OnceCell;

use super::envelope::envelope;
use super::{DeadLetter, DeadLetterError, DeadLetterQueue};

/// How long one call may take, with connecting and signing: then it is [`DeadLetterError::Unavailable`].
const CALL_TIMEOUT: Duration = Duration::from_secs(5);

/// A queue's size limit while it has not been read.
const UNKNOWN: usize = 0;

/// A dead-letter queue in Amazon SQS.
///
/// Each record becomes one message: a JSON object with the record's address, key and payload (base64), the error, and who tried it how
/// often; it also has the fields of AWS Lambda's on-failure message. It needs `sqs:GetQueueUrl` (for a queue given by name),
/// `sqs:GetQueueAttributes` and `sqs:SendMessage`.
///
/// A record is sent whole, so base64 makes a message a third larger than its payload. A queue takes up to 1 MiB, and less where its
/// `MaximumMessageSize` says so; that is read from the queue, and read again before a record is refused as too large, so that
/// raising it takes effect at once.
///
/// On a FIFO queue (its name ends in `.fifo`) the letters of one partition key of a shard keep their order, and a letter sent twice within
/// five minutes, SQS's deduplication interval, arrives once.
pub struct SqsDeadLetterQueue {
    client: Client,
    /// Name or URL, as given.
    queue: String,
    url: OnceCell<String>,
    /// Bytes of the largest message that the queue takes, or [`UNKNOWN`].
    limit: AtomicUsize,
}

impl SqsDeadLetterQueue {
    /// The queue with this name or URL (`https://...` or `http://...`), in the configuration's region.
    ///
    /// A name is looked up in the credentials' own account; a queue of another account is given by its URL. Nothing is
    /// called yet: [`check`](DeadLetterQueue::check) tells whether the queue exists.
    #[must_use]
    pub fn new(aws: &SdkConfig, queue: impl Into<String>) -> Self {
        // Whoever sends retries: with the SDK retrying too, the attempts would multiply and one call would have no bound.
        let config = aws_sdk_sqs::config::Builder::from(aws)
            .retry_config(RetryConfig::disabled())
            .timeout_config(TimeoutConfig::builder().operation_timeout(CALL_TIMEOUT).connect_timeout(CALL_TIMEOUT / 2).build())
            .build();
        Self { client: Client::from_conf(config), queue: queue.into(), url: OnceCell::new(), limit: AtomicUsize::new(UNKNOWN) }
    }

    async fn url(&self) -> Result<&str, DeadLetterError> {
        let resolve = || async {
            if self.queue.starts_with("https://") || self.queue.starts_with("http://") {
                return Ok(self.queue.clone());
            }
            let found = self.client.get_queue_url().queue_name(&self.queue).send().await;
            let found = found.map_err(|error| refusal(&self.queue, "sqs:GetQueueUrl", &error))?;
            found.queue_url.ok_or_else(|| self.unavailable("sqs:GetQueueUrl answered without a URL"))
        };
        self.url.get_or_try_init(resolve).await.map(String::as_str)
    }

    /// Asks the queue for its limit and keeps it.
    async fn read_limit(&self, url: &str) -> Result<usize, DeadLetterError> {
        let asked = QueueAttributeName::MaximumMessageSize;
        let read = self.client.get_queue_attributes().queue_url(url).attribute_names(asked.clone()).send().await;
        let read = read.map_err(|error| refusal(&self.queue, "sqs:GetQueueAttributes", &error))?;
        let limit = read.attributes().and_then(|attributes| attributes.get(&asked)).and_then(|limit| limit.parse().ok());
        let limit = limit.ok_or_else(|| self.unavailable("sqs:GetQueueAttributes answered without a MaximumMessageSize"))?;
        self.limit.store(limit, Ordering::Relaxed);
        Ok(limit)
    }

    fn unavailable(&self, message: &str) -> DeadLetterError {
        DeadLetterError::Unavailable { queue: self.queue.clone(), message: message.to_owned() }
    }
}

#[async_trait]
impl DeadLetterQueue for SqsDeadLetterQueue {
    async fn check(&self) -> Result<(), DeadLetterError> {
        let url = self.url().await?;
        self.read_limit(url).await.map(drop)
    }

    async fn send(&self, letters: &[DeadLetter]) -> Vec<Result<(), DeadLetterError>> {
        let mut results = Vec::with_capacity(letters.len());
        for letter in letters {
            results.push(self.send_one(letter).await);
        }
        results
    }
}

impl SqsDeadLetterQueue {
    /// Takes up to three calls of five seconds: the lookup, while it has not succeeded yet; the limit, while it is unknown or seems too
    /// low; and the message.
    async fn send_one(&self, letter: &DeadLetter) -> Result<(), DeadLetterError> {
        let url = self.url().await?;
        let body = envelope(letter);
        // The limit known may be of yesterday: only the queue itself may turn a record away. UNKNOWN is below any size.
        let size = body.len();
        if size > self.limit.load(Ordering::Relaxed) {
            let limit = self.read_limit(url).await?;
            if size > limit {
                return Err(DeadLetterError::TooLarge { queue: self.queue.clone(), size, limit });
            }
        }
        let mut message = self.client.send_message().queue_url(url).message_body(body);
        if url.ends_with(".fifo") {
            message = message.message_group_id(group_id(letter)).message_deduplication_id(deduplication_id(letter));
        }
        match message.send().await {
            Ok(_) => Ok(()),
            Err(error) => {
                // A message above a limit that was lowered meanwhile is an invalid parameter: the next attempt reads the limit first.
                if error.code().is_some_and(|code| code.starts_with("InvalidParameterValue")) {
                    self.limit.store(UNKNOWN, Ordering::Relaxed);
                }
                Err(refusal(&self.queue, "sqs:SendMessage", &error))
            }
        }
    }
}

impl fmt::Debug for SqsDeadLetterQueue {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("SqsDeadLetterQueue").field("queue", &self.queue).finish_non_exhaustive()
    }
}

/// What keeps its order in a FIFO queue: one key of one shard. The key is hashed because SQS takes 128 characters of ASCII and shows
/// group ids in places where keys don't belong.
fn group_id(letter: &DeadLetter) -> String {
    format!("{}-{}", letter.shard_id, hash(letter.record.partition_key().unwrap_or_default()))
}

/// What makes two messages the same letter to a FIFO queue: the record's address and the application, for two applications may share a queue.
fn deduplication_id(letter: &DeadLetter) -> String {
    let identity = format!(
        "{}\n{}\n{}\n{}\n{}\n{}",
        letter.application,
        letter.stream_arn,
        letter.stream_created.as_millis(),
        letter.shard_id,
        letter.record.sequence_number(),
        letter.record.sub_sequence_number(),
    );
    hash(&identity)
}

fn hash(text: &str) -> String {
    format!("{:032x}", u128::from_be_bytes(Md5::digest(text).into()))
}

/// What an unsuccessful call means.
fn refusal<E, R>(queue: &str, operation: &'static str, error: &SdkError<E, R>) -> DeadLetterError
where
    E: Error + ProvideErrorMetadata + 'static,
    R: fmt::Debug,
{
    match error.as_service_error() {
        Some(refused) => {
            let words = refused.message().map_or_else(|| refused.to_string(), str::to_owned);
            by_code(queue, operation, refused.code().unwrap_or_default(), words)
        }
        None => DeadLetterError::Unavailable { queue: queue.to_owned(), message: format!("{operation}: {}", with_causes(error)) },
    }
}

/// What a refusal with this code means. The same code may come in two spellings: the JSON protocol's and the older query protocol's.
///
/// See the common errors and the errors of each operation in the SQS API.
fn by_code(queue: &str, operation: &'static str, code: &str, message: String) -> DeadLetterError {
    let queue = queue.to_owned();
    match code.rsplit('.').next().unwrap_or_default() {
        "QueueDoesNotExist" | "NonExistentQueue" | "InvalidAddress" => DeadLetterError::NotFound { queue, message },
        // Asked for by something that no queue can be called.
        "InvalidParameterValue" | "InvalidParameterValueException" if operation == "sqs:GetQueueUrl" => {
            DeadLetterError::NotFound { queue, message }
        }
        "AccessDenied"
        | "AccessDeniedException"
        | "ExpiredToken"
        | "ExpiredTokenException"
        | "IncompleteSignature"
        | "IncompleteSignatureException"
        | "InvalidAccessKeyId"
        | "InvalidClientTokenId"
        | "InvalidSecurity"
        | "InvalidSignatureException"
        | "KmsAccessDenied"
        | "MissingAuthenticationToken"
        | "MissingAuthenticationTokenException"
        | "NotAuthorized"
        | "OptInRequired"
        | "SignatureDoesNotMatch"
        | "UnrecognizedClientException" => DeadLetterError::AccessDenied { queue, operation, message },
        _ => DeadLetterError::Unavailable { queue, message: format!("{operation}: {code}: {message}") },
    }
}

/// An error's words and those of its causes. Display only: Debug of an SDK error may show a whole answer.
fn with_causes(error: &dyn Error) -> String {
    let mut words = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        words = format!("{words}: {error}");
        cause = error.source();
    }
    words
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use kcl_checkpoint::{ExtendedSequenceNumber, SequenceNumber, Timestamp};

    use super::super::envelope::tests::letter;
    use super::*;
    use crate::record::Record;

    fn keyed(number: u128, key: Option<&str>) -> DeadLetter {
        let record = Record::new(SequenceNumber::from(number), key.map(Into::into), Bytes::new(), None);
        assert_eq!(record.position(), ExtendedSequenceNumber::whole(number.into()));
        DeadLetter { record, ..letter() }
    }

    #[test]
    fn a_group_is_one_key_of_one_shard() {
        assert_eq!(group_id(&keyed(1, Some("a"))), group_id(&keyed(2, Some("a"))));
        assert_ne!(group_id(&keyed(1, Some("a"))), group_id(&keyed(1, Some("b"))));
        assert_ne!(group_id(&keyed(1, Some("a"))), group_id(&DeadLetter { shard_id: "other".into(), ..keyed(1, Some("a")) }));
        assert_eq!(group_id(&keyed(1, None)), "shardId-000000000001-d41d8cd98f00b204e9800998ecf8427e");
        let long = group_id(&keyed(1, Some(&"🦀".repeat(256))));
        assert!(long.len() <= 128 && long.is_ascii(), "{long}");
    }

    #[test]
    fn a_letter_is_known_by_its_record_and_application_alone() {
        let one = letter();
        let id = deduplication_id(&one);
        assert!(id.len() <= 128 && id.bytes().all(|byte| byte.is_ascii_alphanumeric()), "{id}");
        let again = DeadLetter { attempts: 9, worker: "another".into(), error_chain: Vec::new(), fencing_token: 43, ..one.clone() };
        assert_eq!(deduplication_id(&again), id);
        for other in [
            keyed(1, Some("customer-7")),
            DeadLetter { application: "other".into(), ..one.clone() },
            DeadLetter { stream_arn: "other".into(), ..one.clone() },
            DeadLetter { stream_created: Timestamp::from_millis(1), ..one.clone() },
            DeadLetter { shard_id: "other".into(), ..one },
        ] {
            assert_ne!(deduplication_id(&other), id);
        }
    }

    #[test]
    fn refusals_mean_what_their_codes_say() {
        let meaning = |operation, code: &str| match by_code("q", operation, code, "words".into()) {
            DeadLetterError::NotFound { .. } => "not found",
            DeadLetterError::AccessDenied { operation: named, .. } if named == operation => "denied",
            DeadLetterError::Unavailable { message, .. } if message == format!("{operation}: {code}: words") => "unavailable",
            other => panic!("{other}"),
        };
        for (code, expected) in [
            ("QueueDoesNotExist", "not found"),
            ("AWS.SimpleQueueService.NonExistentQueue", "not found"),
            ("InvalidAddress", "not found"),
            ("AccessDeniedException", "denied"),
            ("InvalidClientTokenId", "denied"),
            ("ExpiredTokenException", "denied"),
            ("KMS.AccessDeniedException", "denied"),
            ("RequestThrottled", "unavailable"),
            ("AWS.SimpleQueueService.RequestThrottled", "unavailable"),
            ("InternalFailure", "unavailable"),
            ("InvalidParameterValue", "unavailable"),
            ("", "unavailable"),
        ] {
            assert_eq!(meaning("sqs:SendMessage", code), expected, "{code}");
        }
        assert_eq!(meaning("sqs:GetQueueUrl", "InvalidParameterValue"), "not found");
    }

    #[test]
    fn debug_shows_the_queue_alone() {
        let config = SdkConfig::builder().behavior_version(aws_sdk_sqs::config::BehaviorVersion::latest()).build();
        let queue = SqsDeadLetterQueue::new(&config, "orders-dlq");
        assert_eq!(format!("{queue:?}"), r#"SqsDeadLetterQueue { queue: "orders-dlq", .. }"#);
    }
}
