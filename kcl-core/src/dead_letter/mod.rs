//! Dead-letter queues: where records go that can't be processed.
//!
//! | module | owns |
//! |---|---|
//! | this | the letter, and the queue port |
//! | `envelope`, `parsed` | the message: written, and read back |
//! | `blobs`, `message`, `payloads` | the blob store port; payloads that are too large for a message, and where they are |
//! | `identity` | what makes two letters the same |
//! | `batches` | which letters go into which call |
//! | `sqs`, `kinesis`, `file` | the queues |
//! | `s3` (feature `s3`) | the blob store over the AWS SDK |
//! | `guarded` | queues and stores whose panics are errors |
//! | `one_attempt`, `refusal` | how AWS services are called, and what their refusals mean |
//! | `conformance` (feature `test-util`) | what every queue and every blob store must do |

mod batches;
mod blobs;
#[cfg(feature = "test-util")]
pub mod conformance;
mod envelope;
pub(crate) mod file;
pub(crate) mod guarded;
pub(crate) mod identity;
pub(crate) mod kinesis;
mod message;
mod one_attempt;
mod parsed;
mod payloads;
pub(crate) mod refusal;
#[cfg(feature = "s3")]
mod s3;
#[cfg(test)]
mod schema;
mod sqs;

use std::str::FromStr;

use async_trait::async_trait;
use futures::future::join_all;
use kcl_checkpoint::Timestamp;
use kcl_lease::{ShardId, WorkerId};

use self::batches::{Plan, Settled};
pub use self::blobs::{BlobAddress, BlobError, BlobStore, LARGEST_BLOB, PayloadLocation};
pub use self::envelope::PartitionKeys;
pub use self::file::FileDeadLetterQueue;
pub use self::identity::RecordAddress;
pub use self::kinesis::KinesisDeadLetterQueue;
pub use self::parsed::{Envelope, EnvelopeError, Payload, ToldKey};
#[cfg(feature = "s3")]
pub use self::s3::S3BlobStore;
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
    /// All kinds, in the order in which they are documented.
    pub const ALL: [Self; 7] =
        [Self::Poison, Self::Error, Self::Panic, Self::Overrun, Self::ProcessDeath, Self::BrokenAggregate, Self::Follows];

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

/// A text that names no [`FailureKind`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{given}` is no kind of failure; the kinds are {}", FailureKind::ALL.map(FailureKind::as_str).join(", "))]
pub struct UnknownFailureKind {
    /// The text.
    pub given: String,
}

/// Reads the name that [`FailureKind::as_str`] gives.
impl FromStr for FailureKind {
    type Err = UnknownFailureKind;

    fn from_str(name: &str) -> Result<Self, UnknownFailureKind> {
        let named = Self::ALL.into_iter().find(|kind| kind.as_str() == name);
        named.ok_or_else(|| UnknownFailureKind { given: name.to_owned() })
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
        "dead-letter queue `{queue}` takes messages of at most {limit} bytes and this record needs {size}; give the queue a blob store \
         (`blob_store`), or raise its limit (SQS: MaximumMessageSize, up to 1 MiB)"
    )]
    TooLarge {
        /// The queue.
        queue: String,
        /// Bytes of the envelope.
        size: usize,
        /// Bytes that the queue takes.
        limit: usize,
    },
    /// The queue does not encrypt what it keeps, and that was demanded.
    #[error(
        "dead-letter queue `{queue}` does not encrypt its messages; set its SqsManagedSseEnabled to true or give it a KmsMasterKeyId, or don't \
         demand it (`require_encryption`)"
    )]
    NotEncrypted {
        /// The queue.
        queue: String,
    },
    /// The record is too large for the queue, and its payload could not be stored beside it. Nothing was sent: the payload may have been stored,
    /// and is stored in the same place again.
    #[error("dead-letter queue `{queue}`: the payload of a record that is too large for it could not be stored: {error}")]
    Payload {
        /// The queue.
        queue: String,
        /// Why not.
        error: BlobError,
    },
    /// The queue writes to the stream that the worker reads: every dead letter would become a record that
    /// fails again, without end.
    #[error(
        "dead-letter queue: it writes to `{stream}`, the stream that this worker reads, so that every dead letter would become a record that \
         fails again; give it a stream of its own"
    )]
    FeedsItsSource {
        /// The stream's ARN.
        stream: String,
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
/// - A queue that keeps an order keeps it whatever fails: a letter is sent only when those of its key before it in the call have been accepted, and
///   is answered as not accepted otherwise.
/// - Whoever sends retries, for as long as it takes: an error never leads to a skipped record. So a dead letter may arrive more than once;
///   stream ARN, creation time, shard, sequence and sub-sequence number tell duplicates.
/// - A panic in a call counts as [`DeadLetterError::Unavailable`] for each of its letters: the worker goes on
///   and sends them again, after a wait.
///
/// `conformance::dead_letter_queue` (feature `test-util`) checks an implementation against it.
///
/// # Cancel safety
/// A dropped `send` may or may not have been accepted.
#[async_trait]
pub trait DeadLetterQueue: Send + Sync + std::fmt::Debug {
    /// Returns the Kinesis stream that the queue writes to, as an ARN, or as a name in the account and
    /// region of the worker's stream. `None`, the default: it writes to no Kinesis stream.
    ///
    /// It is asked after [`check`](Self::check). A worker that reads this very stream is not built:
    /// [`DeadLetterError::FeedsItsSource`].
    fn feeds(&self) -> Option<&str> {
        None
    }

    /// Checks that the queue exists and may be written to, before any work starts.
    async fn check(&self) -> Result<(), DeadLetterError>;

    /// Sends dead letters, up to [`LARGEST_BATCH`] of them: one attempt for each, with a bounded duration. One answer for each letter, in
    /// their order.
    async fn send(&self, letters: &[DeadLetter]) -> Vec<Result<(), DeadLetterError>>;
}

/// Refuses a queue that writes to this stream, which the worker reads.
pub(crate) fn refuse_own_source(queue: &dyn DeadLetterQueue, arn: &str, name: &str) -> Result<(), DeadLetterError> {
    match queue.feeds() {
        Some(fed) if fed == arn || fed == name => Err(DeadLetterError::FeedsItsSource { stream: arn.to_owned() }),
        _ => Ok(()),
    }
}

/// What becomes of one letter.
type Answer = Result<(), DeadLetterError>;

/// Carries a plan out, round by round: `call` sends the letters at these places and gives an answer for each. The answers of all.
async fn carry_out<F>(queue: &str, mut plan: Plan<'_, DeadLetterError>, mut call: impl FnMut(&[usize]) -> F) -> Vec<Answer>
where
    F: Future<Output = Vec<Answer>>,
{
    loop {
        let calls = plan.next_round();
        if calls.is_empty() {
            return answers(queue, plan);
        }
        let answered = join_all(calls.iter().map(|places| call(places))).await;
        for (places, answers) in calls.iter().zip(answered) {
            for (at, answer) in places.iter().zip(answers) {
                plan.settle(*at, answer);
            }
        }
    }
}

/// A settled plan as answers.
fn answers(queue: &str, plan: Plan<'_, DeadLetterError>) -> Vec<Answer> {
    let held_back = || DeadLetterError::Unavailable {
        queue: queue.to_owned(),
        message: "an earlier letter of its key was not accepted; this one was not tried, to keep their order".to_owned(),
    };
    let answer = |settled| match settled {
        Settled::Accepted => Ok(()),
        Settled::Refused(error) => Err(error),
        Settled::HeldBack => Err(held_back()),
    };
    plan.into_settled().map(answer).collect()
}

/// The message of a record with this number and key.
#[cfg(test)]
pub(crate) fn message_for_tests(number: u128, partition_key: &str) -> String {
    let record = Record::new(number.into(), Some(partition_key.to_owned()), bytes::Bytes::new(), None);
    let letter = DeadLetter { record, ..envelope::tests::letter() };
    envelope::envelope(&letter, PartitionKeys::Clear, envelope::PayloadPlace::Inside(b""))
}

#[cfg(test)]
pub(crate) mod tests {
    pub(crate) use super::envelope::tests::letter;
    use super::*;

    #[test]
    fn kinds_are_read_by_their_names_and_an_unknown_one_is_told_them() {
        for kind in FailureKind::ALL {
            assert_eq!(kind.as_str().parse(), Ok(kind));
        }
        for unknown in ["", "poisn", "Poison", "poison "] {
            let error = unknown.parse::<FailureKind>().unwrap_err().to_string();
            assert!(error.contains(&format!("`{unknown}`")) && error.contains("poison, error, panic, overrun"), "{error}");
        }
    }

    #[test]
    fn a_queue_that_feeds_its_own_source_is_refused() {
        #[derive(Debug)]
        struct Feeding(Option<&'static str>);

        #[async_trait]
        impl DeadLetterQueue for Feeding {
            fn feeds(&self) -> Option<&str> {
                self.0
            }

            async fn check(&self) -> Result<(), DeadLetterError> {
                Ok(())
            }

            async fn send(&self, _: &[DeadLetter]) -> Vec<Answer> {
                Vec::new()
            }
        }

        let (arn, other) = ("arn:aws:kinesis:eu-west-1:1:stream/orders", "arn:aws:kinesis:us-east-1:1:stream/orders");
        for (fed, refused) in
            [(None, false), (Some(arn), true), (Some("orders"), true), (Some(other), false), (Some("orders-letters"), false)]
        {
            let refusal = refuse_own_source(&Feeding(fed), arn, "orders");
            assert_eq!(matches!(refusal, Err(DeadLetterError::FeedsItsSource { .. })), refused, "{fed:?}");
        }
    }
}
