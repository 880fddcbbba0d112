//! Dead letters in an SQS queue: one message per record, up to ten of them in a call.
//!
//! It owns the queue's lookup, limits and encryption. What a message says is the envelope's matter; what goes into which call, the plan's; when it is
//! sent again, the caller's.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use aws_sdk_sqs::Client;
use aws_sdk_sqs::error::ProvideErrorMetadata as _;
use aws_sdk_sqs::types::{QueueAttributeName, SendMessageBatchRequestEntry};
use aws_types::SdkConfig;
use futures::future::join_all;
use tokio::sync::OnceCell;

use super::batches::{Item, Limits, Plan};
use super::blobs::BlobStore;
use super::identity::{group_id, letter_id};
use super::message::MessageFormat;
use super::one_attempt::of_one_attempt;
use super::payloads::Payloads;
use super::refusal::{by_code, refusal};
use super::{DeadLetter, DeadLetterError, DeadLetterQueue, LARGEST_BATCH, PartitionKeys, carry_out};

/// How long one call may take.
const CALL_TIMEOUT: Duration = Duration::from_secs(5);

/// A queue's size limit while it has not been read.
const UNKNOWN: usize = 0;

/// What SendMessageBatch takes: ten entries, and 1 MiB of bodies and attributes in all (SQS Developer Guide, "message quotas").
const LIMITS: Limits = Limits { entries: LARGEST_BATCH, bytes: 1_048_576 };

/// What is asked of the queue.
const ASKED: [QueueAttributeName; 3] =
    [QueueAttributeName::MaximumMessageSize, QueueAttributeName::SqsManagedSseEnabled, QueueAttributeName::KmsMasterKeyId];

/// A dead-letter queue in Amazon SQS.
///
/// Each record becomes one message: a JSON object with the record's address, key and payload (base64), the error, and who tried it how
/// often; it also has the fields of AWS Lambda's on-failure message. It needs `sqs:GetQueueUrl` (for a queue given by name),
/// `sqs:GetQueueAttributes` and `sqs:SendMessage`, and for a queue with a KMS key `kms:GenerateDataKey` and `kms:Decrypt` on it.
///
/// # Size
/// Base64 makes a message a third larger than its payload. A queue takes up to 1 MiB, and less where its `MaximumMessageSize` says so; that is
/// read from the queue, and read again before a record counts as too large, so that raising it takes effect at once. What is too
/// large goes to the [blob store](Self::blob_store), if there is one, and is refused ([`DeadLetterError::TooLarge`]) otherwise.
///
/// # Order
/// On a FIFO queue (its name ends in `.fifo`) the letters of one partition key of a shard keep their order: a later one is sent when SQS has
/// accepted the one before it, whatever else fails. A letter sent twice within five minutes, SQS's deduplication interval, arrives once.
/// A letter about another failure of the same record is another letter: it arrives, however soon.
/// A standard queue keeps no order.
///
/// # What `check` finds out
/// Whether the queue exists, its limits, and its encryption if that is demanded. Whether it may be written to, as far as that can be known without
/// writing: it sends a batch without a message, which SQS refuses as empty, or as not allowed. What can't be known so: whether the KMS key may
/// be used, since SQS asks KMS only when there is a message.
pub struct SqsDeadLetterQueue {
    client: Client,
    /// Name or URL, as given.
    queue: String,
    url: OnceCell<String>,
    /// Bytes of the largest message that the queue takes, or [`UNKNOWN`].
    limit: AtomicUsize,
    require_encryption: bool,
    format: MessageFormat,
}

impl SqsDeadLetterQueue {
    /// The queue with this name or URL (`https://...` or `http://...`), in the configuration's region.
    ///
    /// A name is looked up in the credentials' own account; a queue of another account is given by its URL. Nothing is
    /// called yet: [`check`](DeadLetterQueue::check) tells whether the queue exists.
    #[must_use]
    pub fn new(aws: &SdkConfig, queue: impl Into<String>) -> Self {
        Self {
            client: Client::new(&of_one_attempt(aws, CALL_TIMEOUT, CALL_TIMEOUT / 2)),
            queue: queue.into(),
            url: OnceCell::new(),
            limit: AtomicUsize::new(UNKNOWN),
            require_encryption: false,
            format: MessageFormat::default(),
        }
    }

    /// Whether [`check`](DeadLetterQueue::check) refuses a queue whose messages are not encrypted at rest, by SQS's own keys (SSE-SQS) or by one of
    /// KMS. Default: no.
    #[must_use]
    pub fn require_encryption(mut self, require: bool) -> Self {
        self.require_encryption = require;
        self
    }

    /// How messages tell partition keys. Default: in clear, for only so a record can be put back into a stream.
    #[must_use]
    pub fn partition_keys(mut self, keys: PartitionKeys) -> Self {
        self.format.partition_keys = keys;
        self
    }

    /// Where payloads go that are too large for the queue: they are stored first, and the message says where. A record of Kinesis may have 10
    /// MiB, a message 1 MiB. Without it such a record is refused, and its shard waits.
    #[must_use]
    pub fn blob_store(mut self, blobs: impl BlobStore + 'static) -> Self {
        self.format.payloads = Some(Arc::new(Payloads::new(blobs)));
        self
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

    /// Asks the queue for its attributes, and keeps its limit.
    async fn read_attributes(&self, url: &str) -> Result<Attributes, DeadLetterError> {
        let read = self.client.get_queue_attributes().queue_url(url).set_attribute_names(Some(ASKED.into())).send().await;
        let read = read.map_err(|error| refusal(&self.queue, "sqs:GetQueueAttributes", &error))?;
        let attribute = |name| read.attributes().and_then(|attributes| attributes.get(&name)).map(String::as_str);
        let limit = attribute(QueueAttributeName::MaximumMessageSize).and_then(|limit| limit.parse::<usize>().ok());
        let limit = limit.ok_or_else(|| self.unavailable("sqs:GetQueueAttributes answered without a MaximumMessageSize"))?;
        // No queue takes more than a batch does.
        let limit = limit.min(LIMITS.bytes);
        self.limit.store(limit, Ordering::Relaxed);
        let encrypted = attribute(QueueAttributeName::SqsManagedSseEnabled) == Some("true")
            || attribute(QueueAttributeName::KmsMasterKeyId).is_some_and(|key| !key.is_empty());
        Ok(Attributes { limit, encrypted })
    }

    /// Sends a batch without a message, and hears whether that is allowed.
    async fn try_the_door(&self, url: &str) -> Result<(), DeadLetterError> {
        let tried = self.client.send_message_batch().queue_url(url).set_entries(Some(Vec::new())).send().await;
        match tried.map_err(|error| refusal(&self.queue, "sqs:SendMessage", &error)) {
            Err(error @ (DeadLetterError::AccessDenied { .. } | DeadLetterError::NotFound { .. })) => Err(error),
            // Refused as empty. Any other failure proves nothing: whoever has a letter tries again.
            Ok(_) | Err(_) => Ok(()),
        }
    }

    /// The limit, read again if one of the letters seems to be above it: what is known may be of yesterday, and only the queue itself may turn a
    /// record away. [`UNKNOWN`] is below any size.
    async fn limit_for(&self, url: &str, letters: &[DeadLetter]) -> Result<usize, DeadLetterError> {
        let known = self.limit.load(Ordering::Relaxed);
        if letters.iter().any(|letter| self.format.whole_size(letter) > known) {
            return Ok(self.read_attributes(url).await?.limit);
        }
        Ok(known)
    }

    fn unavailable(&self, message: &str) -> DeadLetterError {
        DeadLetterError::Unavailable { queue: self.queue.clone(), message: message.to_owned() }
    }
}

struct Attributes {
    limit: usize,
    encrypted: bool,
}

#[async_trait]
impl DeadLetterQueue for SqsDeadLetterQueue {
    async fn check(&self) -> Result<(), DeadLetterError> {
        let url = self.url().await?;
        let attributes = self.read_attributes(url).await?;
        if self.require_encryption && !attributes.encrypted {
            return Err(DeadLetterError::NotEncrypted { queue: self.queue.clone() });
        }
        self.try_the_door(url).await?;
        self.format.check(&self.queue).await
    }

    /// Takes up to two calls of five seconds before any letter is sent (the lookup, while it has not succeeded yet; the limit, while it is unknown or
    /// seems too low), the puts to the blob store that an earlier attempt has not made, all at the same time, and then one call of five seconds, or on a FIFO queue one for each
    /// letter of the key that has most of them.
    async fn send(&self, letters: &[DeadLetter]) -> Vec<Result<(), DeadLetterError>> {
        let ready = async {
            let url = self.url().await?;
            Ok((url, self.limit_for(url, letters).await?))
        };
        let ready: Result<_, DeadLetterError> = ready.await;
        let (url, limit) = match ready {
            Ok(ready) => ready,
            Err(error) => return letters.iter().map(|_| Err(error.clone())).collect::<Vec<_>>(),
        };
        let messages = join_all(letters.iter().map(|letter| self.format.message(letter, limit, &self.queue))).await;
        let groups: Option<Vec<_>> = url.ends_with(".fifo").then(|| letters.iter().map(group_id).collect());
        let items = messages.iter().enumerate().map(|(at, message)| Item {
            bytes: message.as_ref().map_or(0, String::len),
            group: groups.as_ref().map(|groups| groups[at].as_str()),
        });
        let mut plan = Plan::new(LIMITS, items.collect());
        let mut bodies: Vec<Option<String>> = Vec::with_capacity(messages.len());
        for (at, message) in messages.into_iter().enumerate() {
            bodies.push(message.map_err(|error| plan.settle(at, Err(error))).ok());
        }
        let mut entry = |at: &usize| Entry {
            id: at.to_string(),
            // Each letter is in one call.
            body: bodies[*at].take().unwrap_or_default(),
            fifo: groups.as_ref().map(|groups| (groups[*at].clone(), letter_id(&letters[*at]))),
        };
        let answers = carry_out(&self.queue, plan, |places| self.send_batch(url, places.iter().map(&mut entry).collect())).await;
        self.format.answered(letters, &answers);
        answers
    }
}

/// A message of a batch. On a FIFO queue: its group, and what makes two messages the same.
struct Entry {
    id: String,
    body: String,
    fifo: Option<(String, String)>,
}

impl SqsDeadLetterQueue {
    /// One call; an answer for each entry.
    async fn send_batch(&self, url: &str, batch: Vec<Entry>) -> Vec<Result<(), DeadLetterError>> {
        const OPERATION: &str = "sqs:SendMessage";
        let ids: Vec<_> = batch.iter().map(|entry| entry.id.clone()).collect();
        let entries = batch.into_iter().map(|Entry { id, body, fifo }| {
            let (group, deduplication) = fifo.unzip();
            let entry = SendMessageBatchRequestEntry::builder().id(id).message_body(body);
            let entry = entry.set_message_group_id(group).set_message_deduplication_id(deduplication).build();
            entry.expect("an entry with id and body is complete")
        });
        let sent = self.client.send_message_batch().queue_url(url).set_entries(Some(entries.collect())).send().await;
        let sent = match sent {
            Ok(sent) => sent,
            Err(error) => {
                if error.code().is_some_and(is_about_size) {
                    self.limit.store(UNKNOWN, Ordering::Relaxed);
                }
                let error = refusal(&self.queue, OPERATION, &error);
                return ids.iter().map(|_| Err(error.clone())).collect();
            }
        };
        let answer = |id: &String| {
            if sent.successful().iter().any(|entry| entry.id() == id) {
                return Ok(());
            }
            let Some(failed) = sent.failed().iter().find(|entry| entry.id() == id) else {
                return Err(self.unavailable("sqs:SendMessageBatch answered without a word of this message"));
            };
            if is_about_size(failed.code()) {
                self.limit.store(UNKNOWN, Ordering::Relaxed);
            }
            Err(by_code(&self.queue, OPERATION, failed.code(), failed.message().unwrap_or_default().to_owned()))
        };
        ids.iter().map(answer).collect()
    }
}

/// A message above a limit that was lowered meanwhile is an invalid parameter, or makes its batch too long: the next attempt reads the limit
/// first.
fn is_about_size(code: &str) -> bool {
    code.contains("InvalidParameterValue") || code.contains("BatchRequestTooLong")
}

impl fmt::Debug for SqsDeadLetterQueue {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("SqsDeadLetterQueue").field("queue", &self.queue).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_shows_the_queue_alone() {
        let config = SdkConfig::builder().behavior_version(aws_sdk_sqs::config::BehaviorVersion::latest()).build();
        let queue = SqsDeadLetterQueue::new(&config, "orders-dlq");
        assert_eq!(format!("{queue:?}"), r#"SqsDeadLetterQueue { queue: "orders-dlq", .. }"#);
    }
}
