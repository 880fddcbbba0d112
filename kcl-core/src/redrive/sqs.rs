//! Letters from an SQS queue.

use std::error::Error;
use std::fmt;
use std::time::Duration;

use async_trait::async_trait;
use aws_sdk_sqs::Client;
use aws_sdk_sqs::config::retry::RetryConfig;
use aws_sdk_sqs::config::timeout::TimeoutConfig;
use aws_sdk_sqs::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_sqs::types::QueueAttributeName;
use aws_types::SdkConfig;
use tokio::sync::OnceCell;

use super::source::{LetterSource, ReceivedLetter, SourceError};
use crate::dead_letter::DeadLetterError;
use crate::dead_letter::refusal::refusal;

/// How long one call may take: up to ten messages come with it, 1 MiB in all.
const CALL_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a receive waits for letters. Waiting at all has SQS ask all of its servers, so that none is overlooked.
const WAIT_SECONDS: i32 = 1;

/// How long a letter that was received is given to nobody else.
const VISIBILITY_SECONDS: i32 = 600;

/// Most letters that a run holds at a time, on a standard and on a FIFO queue. SQS lets 120,000 messages be
/// invisible, on FIFO queues 20,000 in regions where that was not raised (SQS Developer Guide, "message
/// quotas"), and gives nothing more then, often without an error.
const MOST_HELD: (usize, usize) = (100_000, 15_000);

/// What is asked of the queue to know how many of its letters are given to nobody.
const INVISIBLE: [QueueAttributeName; 2] =
    [QueueAttributeName::ApproximateNumberOfMessagesNotVisible, QueueAttributeName::ApproximateNumberOfMessagesDelayed];

/// An SQS queue that dead letters are read from.
///
/// It needs `sqs:GetQueueUrl` (for a queue given by name), `sqs:ReceiveMessage`, `sqs:DeleteMessage` and `sqs:ChangeMessageVisibility`, and
/// `kms:Decrypt` on the queue's key if it has one. With `sqs:GetQueueAttributes` a run can say at its end how
/// many letters it has not seen because they are invisible.
///
/// # Many letters that stay
/// What a run does not put back, a dry run everything, it holds, invisible, until its end. SQS limits how many messages are
/// invisible at a time: a run that holds 100,000 letters (FIFO: 15,000) gives them back and ends, and its
/// report says so. Letters behind so many that a filter does not mean can't be reached with that filter.
///
/// A letter that is being looked at is invisible to others for ten minutes, unless it is released before. Don't run two redrives on one queue
/// at a time: each sees what the other has let go.
///
/// A FIFO queue gives no later letter of a partition key while an earlier one is being held: those behind a letter that stays are not seen, and not
/// counted, by the same run.
pub struct SqsLetters {
    client: Client,
    queue: String,
    url: OnceCell<String>,
}

impl SqsLetters {
    /// The queue with this name or URL (`https://...` or `http://...`), in the configuration's region. Nothing is called yet.
    #[must_use]
    pub fn new(aws: &SdkConfig, queue: impl Into<String>) -> Self {
        let config = aws_sdk_sqs::config::Builder::from(aws)
            .retry_config(RetryConfig::disabled())
            .timeout_config(TimeoutConfig::builder().operation_timeout(CALL_TIMEOUT).connect_timeout(CALL_TIMEOUT / 4).build())
            .build();
        Self { client: Client::from_conf(config), queue: queue.into(), url: OnceCell::new() }
    }

    async fn url(&self) -> Result<&str, SourceError> {
        let resolve = || async {
            if self.queue.starts_with("https://") || self.queue.starts_with("http://") {
                return Ok(self.queue.clone());
            }
            let found = self.client.get_queue_url().queue_name(&self.queue).send().await;
            let found = found.map_err(|error| self.refused("sqs:GetQueueUrl", &error))?;
            Ok(found.queue_url.unwrap_or_default())
        };
        self.url.get_or_try_init(resolve).await.map(String::as_str)
    }

    fn refused<E, R>(&self, operation: &'static str, error: &SdkError<E, R>) -> SourceError
    where
        E: Error + ProvideErrorMetadata + 'static,
        R: fmt::Debug,
    {
        let is_gone = error.code().is_some_and(|code| code.ends_with("ReceiptHandleIsInvalid"));
        let is_full = error.code().is_some_and(|code| code.ends_with("OverLimit"));
        let (message, is_retryable) = match refusal(&self.queue, operation, error) {
            DeadLetterError::Unavailable { message, .. } => (message, !is_gone && !is_full),
            DeadLetterError::NotFound { message, .. } => (format!("the queue does not exist: {message}"), false),
            DeadLetterError::AccessDenied { message, .. } => (format!("not allowed: {message}"), false),
            other => (other.to_string(), false),
        };
        SourceError { queue: self.queue.clone(), operation, message, is_retryable, is_gone, is_full }
    }
}

#[async_trait]
impl LetterSource for SqsLetters {
    fn most_held(&self) -> usize {
        if self.queue.ends_with(".fifo") { MOST_HELD.1 } else { MOST_HELD.0 }
    }

    async fn invisible(&self) -> Result<Option<u64>, SourceError> {
        const OPERATION: &str = "sqs:GetQueueAttributes";
        let asked = self.client.get_queue_attributes().queue_url(self.url().await?).set_attribute_names(Some(INVISIBLE.into()));
        let read = asked.send().await.map_err(|error| self.refused(OPERATION, &error))?.attributes.unwrap_or_default();
        let counts = INVISIBLE.map(|name| read.get(&name).and_then(|count| count.parse::<u64>().ok()));
        Ok(counts.into_iter().flatten().reduce(u64::saturating_add))
    }

    async fn receive(&self) -> Result<Vec<ReceivedLetter>, SourceError> {
        let receive = self.client.receive_message().queue_url(self.url().await?).max_number_of_messages(10);
        let received = receive.wait_time_seconds(WAIT_SECONDS).visibility_timeout(VISIBILITY_SECONDS).send().await;
        let received = received.map_err(|error| self.refused("sqs:ReceiveMessage", &error))?;
        let letter = |message: aws_sdk_sqs::types::Message| {
            Some(ReceivedLetter { id: message.message_id?, handle: message.receipt_handle?, body: message.body.unwrap_or_default() })
        };
        Ok(received.messages.unwrap_or_default().into_iter().filter_map(letter).collect())
    }

    async fn delete(&self, letter: &ReceivedLetter) -> Result<(), SourceError> {
        let delete = self.client.delete_message().queue_url(self.url().await?).receipt_handle(&letter.handle);
        delete.send().await.map(drop).map_err(|error| self.refused("sqs:DeleteMessage", &error))
    }

    async fn release(&self, letter: &ReceivedLetter) -> Result<(), SourceError> {
        let release = self.client.change_message_visibility().queue_url(self.url().await?).receipt_handle(&letter.handle);
        let released = release.visibility_timeout(0).send().await;
        released.map(drop).map_err(|error| self.refused("sqs:ChangeMessageVisibility", &error))
    }
}

impl fmt::Debug for SqsLetters {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("SqsLetters").field("queue", &self.queue).finish_non_exhaustive()
    }
}
