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
    /// What failed.
    pub kind: FailureKind,
    /// Why it was not tried again.
    pub condition: Condition,
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

/// How a record failed last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum FailureKind {
    /// The processor said that no retry will help.
    Poison,
    /// The processor failed.
    Error,
    /// The processor panicked.
    Panic,
    /// The processor did not come back within the deadline of an attempt.
    Overrun,
    /// The process died with the record in work.
    ProcessDeath,
    /// It is an aggregate in which something is wrong. None of its records was delivered.
    BrokenAggregate,
    /// It follows an earlier record of its key into the queue, as configured; it was not tried.
    Follows,
}

impl FailureKind {
    /// The kind as the envelope names it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Poison => "poison",
            Self::Error => "error",
            Self::Panic => "panic",
            Self::Overrun => "overrun",
            Self::ProcessDeath => "process_death",
            Self::BrokenAggregate => "broken_aggregate",
            Self::Follows => "follows",
        }
    }
}

/// Why a record was given up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Condition {
    /// All attempts that it had were used, or no attempt could have helped.
    RetryAttemptsExhausted,
    /// It had failed, and was older than the retry policy's maximum.
    RecordAgeExceeded,
}

impl Condition {
    /// The condition as AWS Lambda's on-failure message names it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::RetryAttemptsExhausted => "RetryAttemptsExhausted",
            Self::RecordAgeExceeded => "RecordAgeExceeded",
        }
    }
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

/// The most letters that are sent at once (SQS: SendMessageBatch).
pub const LARGEST_BATCH: usize = 10;

/// A place that keeps dead letters durably.
///
/// # Contract
///
/// - Each letter has an answer of its own, in their order. `Ok` means durably accepted. Only then does the checkpoint pass the record.
/// - Whoever sends retries, for as long as it takes: an error never leads to a skipped record. So a dead letter may arrive more than once;
///   stream ARN, creation time, shard, sequence and sub-sequence number tell duplicates.
///
/// # Cancel safety
/// A dropped `send` may or may not have been accepted.
#[async_trait]
pub trait DeadLetterQueue: Send + Sync + std::fmt::Debug {
    /// Checks that the queue exists and may be written to, before any work starts.
    async fn check(&self) -> Result<(), DeadLetterError>;

    /// Sends dead letters, up to [`LARGEST_BATCH`] of them: one attempt for each, with a bounded duration. One answer for each letter, in
    /// their order.
    async fn send(&self, letters: &[DeadLetter]) -> Vec<Result<(), DeadLetterError>>;
}

#[cfg(test)]
pub(crate) mod tests {
    pub(crate) use super::envelope::tests::letter;
}
