//! Dead-letter queues: where records go that can't be processed.

mod envelope;
mod sqs;

use async_trait::async_trait;
use kcl_checkpoint::Timestamp;
use kcl_lease::{ShardId, WorkerId};

pub use self::sqs::SqsDeadLetterQueue;
use crate::record::Record;

/// A record that could not be processed, and what is known of its failure.
///
/// `Debug` shows neither the record's data nor its partition key.
#[derive(Clone, Debug)]
pub struct DeadLetter {
    /// The record.
    pub record: Record,
    /// The stream's ARN.
    pub stream_arn: String,
    /// When the stream was created: with ARN, shard and position it names the record for ever.
    pub stream_created: Timestamp,
    /// The shard.
    pub shard_id: ShardId,
    /// What failed: `poison` (the processor said so), `error` (the processor failed each time), `panic`.
    pub error_kind: &'static str,
    /// The error's own words and those of its causes, outermost first.
    pub error_chain: Vec<String>,
    /// How often the record was tried.
    pub attempts: u32,
    /// When it failed first.
    pub first_failure: Timestamp,
    /// When it failed last.
    pub last_failure: Timestamp,
    /// The application.
    pub application: String,
    /// The worker.
    pub worker: WorkerId,
    /// The fencing token of the worker's term.
    pub fencing_token: u64,
}

/// Why a dead letter was not accepted.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DeadLetterError {
    /// There is no such queue.
    #[error("dead-letter queue `{queue}` does not exist: {message}")]
    NotFound {
        /// The queue.
        queue: String,
        /// The service's own words.
        message: String,
    },
    /// The credentials do not allow it.
    #[error("dead-letter queue `{queue}`: {operation} is not allowed: {message}")]
    AccessDenied {
        /// The queue.
        queue: String,
        /// The operation, as IAM names it.
        operation: &'static str,
        /// The service's own words.
        message: String,
    },
    /// The record, in its envelope, is larger than the queue takes.
    #[error(
        "dead-letter queue `{queue}` takes messages of at most {limit} bytes and this record needs {size}; raise the queue's MaximumMessageSize"
    )]
    TooLarge {
        /// The queue.
        queue: String,
        /// Bytes of the envelope.
        size: usize,
        /// Bytes that the queue takes.
        limit: usize,
    },
    /// No answer, throttled, or a failure of the service. The message may have been accepted: sending it again is right.
    #[error("dead-letter queue `{queue}` did not accept the record: {message}")]
    Unavailable {
        /// The queue.
        queue: String,
        /// What is known of the failure.
        message: String,
    },
}

/// A place that keeps dead letters durably.
///
/// # Contract
///
/// - `Ok` means durably accepted. Only then does the checkpoint pass the record.
/// - Whoever sends retries, for as long as it takes: an error never leads to a skipped record. So a dead letter may arrive more than once;
///   stream ARN, creation time, shard, sequence and sub-sequence number tell duplicates.
///
/// # Cancel safety
/// A dropped `send` may or may not have been accepted.
#[async_trait]
pub trait DeadLetterQueue: Send + Sync + std::fmt::Debug {
    /// Checks that the queue exists and may be written to, before any work starts.
    async fn check(&self) -> Result<(), DeadLetterError>;

    /// Sends one dead letter: one attempt with a bounded duration.
    async fn send(&self, letter: &DeadLetter) -> Result<(), DeadLetterError>;
}
