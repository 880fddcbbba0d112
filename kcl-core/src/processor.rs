//! What users write: a record processor, made once per shard and called by one task at a time.

use std::fmt;

use async_trait::async_trait;
use kcl_checkpoint::{Checkpoint, Checkpointer, ExtendedSequenceNumber};
use kcl_lease::{ShardId, WorkerId};

use crate::commit::Committer;
use crate::consumer::{Advice, Flow};
use crate::record::{Record, RecordBatch};

/// Processes the records of one shard.
///
/// Calls come one at a time, in this order: `initialize`; `process_records` any number of times; `shutdown_requested` if this worker lets
/// go of the shard in peace; then `shard_ended` when the shard is read to its end, or `lease_lost` in all other cases. A
/// processor that never was initialized gets no other call.
///
/// ```
/// use kcl_core::{Outcome, ProcessError, ProcessResult, RecordBatch, RecordProcessor, ShardContext, async_trait};
///
/// struct Orders;
///
/// #[async_trait]
/// impl RecordProcessor for Orders {
///     async fn process_records(&mut self, batch: &RecordBatch, shard: &ShardContext) -> ProcessResult {
///         for record in batch.in_order() {
///             let text = std::str::from_utf8(record.data()).map_err(ProcessError::poison)?;
///             println!("{} {}: {} bytes", shard.shard_id(), record.sequence_number(), text.len());
///         }
///         Ok(Outcome::Done)
///     }
/// }
/// ```
#[async_trait]
#[diagnostic::on_unimplemented(note = "implement `RecordProcessor` with `#[kcl_core::async_trait]` for your type")]
pub trait RecordProcessor: Send {
    /// Called once before the first records. An error is retried with backoff for as long as the shard is this worker's.
    async fn initialize(&mut self, shard: &ShardContext) -> Result<(), ProcessError> {
        let _ = shard;
        Ok(())
    }

    /// Processes records, all new or not successful before, in the order of the shard (with several lanes: of one partition key). With
    /// [manual checkpoints](crate::Checkpointing::Manual) also such that an earlier processor was given and lost.
    ///
    /// A failed call is never skipped. What failed can be told by the [`Outcome`], or by going through the batch with
    /// [`RecordBatch::in_order`]: then an error belongs to the record in work, and those before it are done. Without either, the batch is
    /// divided until the record that fails is alone. What succeeded does not come again because a neighbour failed. A record that keeps failing goes to
    /// the dead-letter queue, as the [`RetryPolicy`](crate::RetryPolicy) has it; without a queue the shard waits.
    ///
    /// # Cancel safety
    /// The call is not cut off when the lease is lost meanwhile; its result then counts for nothing. With
    /// [`RetryPolicy::attempt_deadline`](crate::RetryPolicy::attempt_deadline) it is dropped at an await when it overruns; it is dropped too when a
    /// shutdown takes longer than its timeout.
    async fn process_records(&mut self, batch: &RecordBatch, shard: &ShardContext) -> ProcessResult;

    /// The shard now belongs to another worker, or is about to. There is nothing to checkpoint with; free what is held.
    async fn lease_lost(&mut self, shard: &ShardInfo) {
        let _ = shard;
    }

    /// The shard is closed and all its records were processed. With manual checkpoints,
    /// [`checkpoint`](Checkpointer::checkpoint) must be called here: its children start only then. An error is retried with backoff.
    async fn shard_ended(&mut self, shard: &ShardContext) -> Result<(), ProcessError> {
        let _ = shard;
        Ok(())
    }

    /// The worker shuts down or hands the shard to another worker. Finish what is buffered and checkpoint it: nothing is delivered any more.
    /// An error is logged; then the records since the last checkpoint are delivered again elsewhere.
    async fn shutdown_requested(&mut self, shard: &ShardContext) -> Result<(), ProcessError> {
        let _ = shard;
        Ok(())
    }
}

/// Makes a processor for each shard that this worker gets, and for each lane of it. A closure from [`ShardContext`] to a processor is a factory.
#[async_trait]
pub trait RecordProcessorFactory: Send + Sync {
    /// Makes a processor. An error is retried with backoff for as long as the shard is this worker's. Called again for the same shard
    /// after its processor has panicked, or has overrun the deadline of an attempt.
    async fn create(&self, shard: &ShardContext) -> Result<Box<dyn RecordProcessor>, ProcessError>;
}

#[async_trait]
impl<F, P> RecordProcessorFactory for F
where
    F: Fn(&ShardContext) -> P + Send + Sync,
    P: RecordProcessor + 'static,
{
    async fn create(&self, shard: &ShardContext) -> Result<Box<dyn RecordProcessor>, ProcessError> {
        Ok(Box::new(self(shard)))
    }
}

/// What became of a batch.
pub type ProcessResult = Result<Outcome, ProcessError>;

/// What a call of [`RecordProcessor::process_records`] achieved.
#[derive(Debug)]
#[non_exhaustive]
pub enum Outcome {
    /// All records of the batch are processed.
    Done,
    /// This record failed: those before it in the batch are done, those after it were not tried. See [`failed_from`](Self::failed_from).
    FailedFrom(FailedRecord),
    /// These records failed, each for itself: all others of the batch are done. See [`failed`](Self::failed).
    Failed(Vec<FailedRecord>),
}

impl Outcome {
    /// The records before this one are done, this one failed, and those after it were not tried.
    pub fn failed_from(record: &Record, error: impl Into<ProcessError>) -> Self {
        Self::FailedFrom(FailedRecord { record: record.position(), error: error.into() })
    }

    /// These records failed, and all others of the batch are done. None: all are done.
    ///
    /// Failed records come again alone, in their order, after the others: whoever needs the order within a key must not process a record
    /// after one of the same key that failed. Go through [`RecordBatch::records`] for it, not through [`RecordBatch::in_order`], with which a panic would
    /// mean that all records before are done.
    ///
    /// ```
    /// # use kcl_core::{Outcome, ProcessError, Record, RecordBatch};
    /// # fn send(_: &Record) -> Result<(), ProcessError> { Ok(()) }
    /// # fn process(batch: &RecordBatch) -> Outcome {
    /// Outcome::failed(batch.records().iter().filter_map(|record| Some((record, send(record).err()?))))
    /// # }
    /// ```
    pub fn failed<'a, E: Into<ProcessError>>(records: impl IntoIterator<Item = (&'a Record, E)>) -> Self {
        let failed = |(record, error): (&Record, E)| FailedRecord { record: record.position(), error: error.into() };
        Self::Failed(records.into_iter().map(failed).collect())
    }
}

/// A record that was not processed, and why.
#[derive(Debug)]
pub struct FailedRecord {
    /// Its address: sequence and sub-sequence number. One that is not in the batch makes the whole batch count as failed.
    pub record: ExtendedSequenceNumber,
    /// Why.
    pub error: ProcessError,
}

/// Why records were not processed. Any error becomes one by `?`, and is then worth a retry.
pub struct ProcessError {
    advice: Advice,
    source: Box<dyn std::error::Error + Send + Sync>,
}

impl ProcessError {
    /// A retry may help: the database is down, a call timed out. What `?` makes of any error.
    pub fn retry(source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self { advice: Advice::Retry, source: source.into() }
    }

    /// No retry will help: this record can't be processed by this program. It goes to the dead-letter queue at once.
    pub fn poison(source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self { advice: Advice::Poison, source: source.into() }
    }

    /// Nothing is wrong with the record, and nothing of this shard can be processed now: credentials are revoked, a schema is missing. The shard stops,
    /// visibly, with the record unfinished, until [`WorkerHandle::resume_shard`](crate::WorkerHandle::resume_shard), or until another worker or
    /// another start of this one takes it.
    pub fn stop(source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self { advice: Advice::Stop, source: source.into() }
    }

    /// Whether retries are pointless because of the record.
    #[must_use]
    pub fn is_poison(&self) -> bool {
        self.advice == Advice::Poison
    }

    /// Whether the shard shall stop.
    #[must_use]
    pub fn is_stop(&self) -> bool {
        self.advice == Advice::Stop
    }

    pub(crate) fn advice(&self) -> Advice {
        self.advice
    }

    /// The words of the error and of its causes, outermost first.
    #[must_use]
    pub fn chain(&self) -> Vec<String> {
        let first: &(dyn std::error::Error + 'static) = self.source.as_ref();
        std::iter::successors(Some(first), |error| error.source()).map(ToString::to_string).collect()
    }
}

impl<E: Into<Box<dyn std::error::Error + Send + Sync>>> From<E> for ProcessError {
    fn from(source: E) -> Self {
        Self::retry(source)
    }
}

// Not `std::error::Error` itself: that would forbid the conversion above.
impl fmt::Display for ProcessError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.chain().join(": "))
    }
}

impl fmt::Debug for ProcessError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("ProcessError").field("advice", &self.advice).field("source", &self.source).finish()
    }
}

/// Which shard, read by whom.
#[derive(Clone, Debug)]
pub struct ShardInfo {
    pub(crate) application: String,
    pub(crate) stream_name: String,
    pub(crate) stream_arn: String,
    pub(crate) shard_id: ShardId,
    pub(crate) worker: WorkerId,
    pub(crate) fencing_token: u64,
    pub(crate) start: Checkpoint,
}

impl ShardInfo {
    /// The application, as given to [`Worker::builder`](crate::Worker::builder).
    #[must_use]
    pub fn application(&self) -> &str {
        &self.application
    }

    /// The stream's name.
    #[must_use]
    pub fn stream_name(&self) -> &str {
        &self.stream_name
    }

    /// The stream's ARN.
    #[must_use]
    pub fn stream_arn(&self) -> &str {
        &self.stream_arn
    }

    /// The shard.
    #[must_use]
    pub fn shard_id(&self) -> &ShardId {
        &self.shard_id
    }

    /// This worker.
    #[must_use]
    pub fn worker(&self) -> &WorkerId {
        &self.worker
    }

    /// Grows with every term of the shard, whoever holds it. Give it to your sink and let the sink refuse smaller ones than it has seen: then
    /// a worker that was paused beyond its term can't overwrite what its successor wrote.
    #[must_use]
    pub fn fencing_token(&self) -> u64 {
        self.fencing_token
    }

    /// The checkpoint that this term started from.
    #[must_use]
    pub fn starting_checkpoint(&self) -> Checkpoint {
        self.start
    }
}

/// A shard that this worker owns: which one it is, and the means to checkpoint, or to [`commit`](Self::commit) items together with the checkpoint.
#[derive(Clone, Debug)]
pub struct ShardContext {
    pub(crate) info: ShardInfo,
    pub(crate) checkpointer: Checkpointer,
    pub(crate) committer: Committer,
    pub(crate) flow: Flow,
}

impl ShardContext {
    /// Moves this shard's checkpoint. Not needed with automatic checkpoints, the default.
    #[must_use]
    pub fn checkpointer(&self) -> &Checkpointer {
        &self.checkpointer
    }

    /// Pauses this shard: calls that are under way end, and no other is made until
    /// [`WorkerHandle::resume_shard`](crate::WorkerHandle::resume_shard) or until another worker takes the shard. The lease is kept.
    pub fn pause(&self) {
        self.flow.pause_shard(&self.info.shard_id);
    }
}

impl std::ops::Deref for ShardContext {
    type Target = ShardInfo;

    fn deref(&self) -> &ShardInfo {
        &self.info
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_error_is_worth_a_retry_and_keeps_its_causes() {
        fn parse() -> Result<(), ProcessError> {
            "x".parse::<u8>()?;
            Ok(())
        }
        let error = parse().unwrap_err();
        assert!(!error.is_poison());
        assert_eq!(error.chain(), ["invalid digit found in string"]);
        assert!(ProcessError::poison("bad").is_poison());
    }
}
