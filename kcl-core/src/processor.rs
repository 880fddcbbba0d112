//! What users write: a record processor, made once per shard and called by one task at a time.

use std::fmt;
use std::time::Duration;

use async_trait::async_trait;
use kcl_checkpoint::{Checkpoint, Checkpointer, ExtendedSequenceNumber, PendingCheckpoint};
use kcl_lease::{ShardId, WorkerId};

use crate::batch::RecordBatch;
use crate::commit::Committer;
use crate::consumer::Advice;
use crate::interruption::Signals;
use crate::record::Record;

/// Processes the records of one shard, a batch at a time.
///
/// Calls come one at a time, in this order: `initialize`; `process_records` and `idle` any number of
/// times; `shutdown_requested` if this worker lets go of the shard in peace; then `shard_ended` when
/// the shard is read to its end, or `lease_lost` in all other cases. A processor that was never
/// initialized gets no other call. Each call runs as a task of its own on the runtime that runs the
/// worker; for code that blocks its thread there is
/// [`BlockingProcessor`](crate::BlockingProcessor).
///
/// For work that goes record by record, [`RecordHandler`](crate::RecordHandler) is simpler. A batch
/// is for work that goes faster together:
///
/// ```
/// use kcl_core::{Outcome, ProcessResult, RecordBatch, RecordProcessor, ShardContext, async_trait};
///
/// struct Orders {
///     database: Database,
/// }
///
/// #[async_trait]
/// impl RecordProcessor for Orders {
///     async fn process_records(&mut self, batch: &RecordBatch, _shard: &ShardContext) -> ProcessResult {
///         let rows: Vec<_> = batch.records().iter().map(|record| record.data().clone()).collect();
///         self.database.insert(rows).await?; // an error: none of the batch is finished
///         Ok(Outcome::Done) // all of it is
///     }
/// }
/// # struct Database;
/// # impl Database { async fn insert(&self, _: Vec<bytes::Bytes>) -> std::io::Result<()> { Ok(()) } }
/// ```
#[async_trait]
#[diagnostic::on_unimplemented(note = "implement `RecordProcessor` with `#[kcl_core::async_trait]` for your type")]
pub trait RecordProcessor: Send {
    /// Prepares for the shard. Called once, before the first records. An error is retried with
    /// backoff for as long as the shard is this worker's, with a new processor.
    async fn initialize(&mut self, shard: &ShardContext) -> Result<(), ProcessError> {
        let _ = shard;
        Ok(())
    }

    /// Processes records: all new or not finished before, in the order of the shard (with several
    /// lanes: of one partition key). With [manual checkpoints](crate::Checkpointing::Manual) also
    /// such that an earlier processor was given and lost.
    ///
    /// A record is finished by `Ok` with an [`Outcome`] that says so, or by an acknowledgement while
    /// the call is under way ([`RecordBatch::ack`], [`RecordBatch::ack_through`]): that one counts
    /// at once. An error says nothing of any record that was not acknowledged: those are delivered
    /// again, the batch divided, until the record that fails is alone. A record that keeps failing
    /// goes to the dead-letter queue, as the [`RetryPolicy`](crate::RetryPolicy) has it; without a
    /// queue the shard waits. A panic is like an error, and costs the processor.
    ///
    /// A call that takes long should end early when its shard is going: see
    /// [`ShardContext::interruption`].
    ///
    /// # Cancel safety
    /// The call is dropped at an await when it overruns the
    /// [`attempt_deadline`](crate::RetryPolicy::attempt_deadline), the handoff timeout, or the
    /// shutdown timeout, and some seconds after its lease was lost. Records that it has
    /// acknowledged stay finished.
    async fn process_records(&mut self, batch: &RecordBatch, shard: &ShardContext) -> ProcessResult;

    /// Called every so often while no records come, if
    /// [`WorkerBuilder::idle_callback`](crate::WorkerBuilder::idle_callback) asks for it: the
    /// occasion to write out and checkpoint what was collected. An error is logged and counted; the
    /// next call comes as if there had been none. A panic costs the processor.
    async fn idle(&mut self, shard: &ShardContext) -> Result<(), ProcessError> {
        let _ = shard;
        Ok(())
    }

    /// Told that the shard now belongs to another worker, or is about to. There is nothing to
    /// checkpoint with; free what is held.
    async fn lease_lost(&mut self, shard: &ShardInfo) {
        let _ = shard;
    }

    /// Told that the shard is closed and all its records were processed. With manual checkpoints,
    /// [`checkpoint`](Checkpointer::checkpoint) must be called here: its children start only then.
    /// An error is retried with backoff.
    async fn shard_ended(&mut self, shard: &ShardContext) -> Result<(), ProcessError> {
        let _ = shard;
        Ok(())
    }

    /// Told that the worker shuts down, or hands the shard to another worker. Finish what is
    /// buffered and checkpoint it: nothing is delivered any more. An error is logged; then the
    /// records since the last checkpoint are delivered again elsewhere.
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

/// The result of a call with a batch.
pub type ProcessResult = Result<Outcome, ProcessError>;

/// The achievement of a call of [`RecordProcessor::process_records`].
#[derive(Debug)]
#[non_exhaustive]
pub enum Outcome {
    /// All records of the batch are processed.
    Done,
    /// The records that were acknowledged are processed, and the others were not tried: no failure,
    /// and they are delivered again. For calls that end early, see
    /// [`ShardContext::interruption`].
    Acknowledged,
    /// This record failed: those before it in the batch are processed, those after it were not
    /// tried. See [`failed_from`](Self::failed_from).
    FailedFrom(FailedRecord),
    /// These records failed, each for itself: all others of the batch are processed. See
    /// [`failed`](Self::failed).
    Failed(Vec<FailedRecord>),
}

impl Outcome {
    /// The records before this one are processed, this one failed, and those after it were not
    /// tried.
    pub fn failed_from(record: &Record, error: impl Into<ProcessError>) -> Self {
        Self::FailedFrom(FailedRecord { record: record.position(), error: error.into() })
    }

    /// These records failed, and all others of the batch are processed. None: all are.
    ///
    /// Failed records come again alone, in their order, after the others: whoever needs the order
    /// within a key must not process a record after one of the same key that failed.
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

/// The error of users' code: its class says what follows.
///
/// Any error becomes one by `?`, and then counts as a failure of the world, worth a retry.
pub struct ProcessError {
    advice: Advice,
    retry_after: Option<Duration>,
    /// The name of the error's type, for logs: its text may quote the record.
    error_type: &'static str,
    source: Box<dyn std::error::Error + Send + Sync>,
}

impl ProcessError {
    /// The world failed, and a retry may help: the database is down, a call timed out. `?` makes
    /// this of any error.
    ///
    /// The record is tried again for as long as the
    /// [`RetryPolicy::patience`](crate::RetryPolicy::patience) has it, and never goes to the
    /// dead-letter queue while other records fail as well.
    pub fn retry<E: Into<Box<dyn std::error::Error + Send + Sync>>>(source: E) -> Self {
        Self::new(Advice::Retry, source)
    }

    /// As [`retry`](Self::retry), and not before this time has passed: what a dependency answers
    /// that wants to be left alone. At most an hour counts.
    pub fn retry_after<E: Into<Box<dyn std::error::Error + Send + Sync>>>(source: E, wait: Duration) -> Self {
        Self { retry_after: Some(wait.min(Duration::from_secs(3600))), ..Self::new(Advice::Retry, source) }
    }

    /// The record is at fault, and no retry will help: this program can't process it. It goes to
    /// the dead-letter queue at once.
    pub fn poison<E: Into<Box<dyn std::error::Error + Send + Sync>>>(source: E) -> Self {
        Self::new(Advice::Poison, source)
    }

    /// Nothing is wrong with the record, and nothing of this shard can be processed now:
    /// credentials are revoked, a schema is missing. The shard stops, visibly, with the record
    /// unfinished, until [`WorkerHandle::resume_shard`](crate::WorkerHandle::resume_shard), or until
    /// another worker or another start of this one takes it.
    pub fn stop<E: Into<Box<dyn std::error::Error + Send + Sync>>>(source: E) -> Self {
        Self::new(Advice::Stop, source)
    }

    fn new<E: Into<Box<dyn std::error::Error + Send + Sync>>>(advice: Advice, source: E) -> Self {
        Self { advice, retry_after: None, error_type: std::any::type_name::<E>(), source: source.into() }
    }

    /// Returns whether retries are pointless because of the record.
    #[must_use]
    pub fn is_poison(&self) -> bool {
        self.advice == Advice::Poison
    }

    /// Returns whether the shard shall stop.
    #[must_use]
    pub fn is_stop(&self) -> bool {
        self.advice == Advice::Stop
    }

    pub(crate) fn advice(&self) -> Advice {
        self.advice
    }

    pub(crate) fn wait(&self) -> Option<Duration> {
        self.retry_after
    }

    /// The type of the user's error. `None`: it is a refused or failed checkpoint, whose text is this
    /// library's own and quotes no record.
    pub(crate) fn error_type(&self) -> Option<&'static str> {
        (!self.source.is::<kcl_checkpoint::CheckpointError>()).then_some(self.error_type)
    }

    /// The texts of the error and of its causes, outermost first.
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

/// A shard and its reader.
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
    pub(crate) signals: Signals,
}

impl ShardContext {
    /// Moves this shard's checkpoint. Not needed with automatic checkpoints, the default.
    #[must_use]
    pub fn checkpointer(&self) -> &Checkpointer {
        &self.checkpointer
    }

    /// The checkpoint that was [prepared](Checkpointer::prepare) and not committed, with its state:
    /// what was begun to be written elsewhere, by an earlier owner of the shard, or by a processor of
    /// this term that was lost. `None`: there is none, or a later checkpoint covers it.
    ///
    /// For [`initialize`](RecordProcessor::initialize), which compares it with the processor's own
    /// store: if the store has what was prepared, the checkpoint can be
    /// [made](Checkpointer::checkpoint_at) once its records were delivered again and skipped.
    #[must_use]
    pub fn pending_checkpoint(&self) -> Option<PendingCheckpoint> {
        self.signals.pending_checkpoint()
    }

    /// Pauses this shard until
    /// [`WorkerHandle::resume_shard`](crate::WorkerHandle::resume_shard), or until this term ends:
    /// calls that are under way are [asked to end early](Self::interruption), and no other is made.
    /// The lease is kept. After the end of the term it does nothing.
    pub fn pause(&self) {
        self.signals.pause();
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
