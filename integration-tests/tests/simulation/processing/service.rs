//! A service whose records say what happens to them, and the scene that it works in.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use kcl_core::test_util::kinesis_model::SplitShardInput;
use kcl_core::test_util::{Host, SimulatedAws};
use kcl_core::{
    DeadLetter, Outcome, ProcessError, ProcessResult, Record, RecordBatch, RecordProcessor, RetryPolicy, ShardContext, ShardId,
    WorkerBuilder, WorkerError, WorkerHandle, async_trait,
};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

pub(super) const STREAM: &str = "orders";
pub(super) const APPLICATION: &str = "orders-app";
pub(super) const QUEUE: &str = "orders-dlq";

/// How long a condition may take in simulated time.
const PATIENCE: Duration = Duration::from_secs(3600);

/// How the service tells which record failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Tells {
    InOrder,
    Nothing,
    From,
    These,
}

/// What the service has done. Clones share it.
#[derive(Clone, Default)]
pub(super) struct Done(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    /// Key and text of each record that was processed, in order.
    processed: Vec<(String, String)>,
    /// The texts of all that were processed.
    texts: BTreeSet<String>,
    /// How often work on a record was begun.
    begun: BTreeMap<String, u32>,
    /// Sizes of batches.
    batches: Vec<usize>,
}

impl Done {
    pub(super) fn processed(&self) -> Vec<(String, String)> {
        self.0.lock().unwrap().processed.clone()
    }

    pub(super) fn texts(&self) -> Vec<String> {
        self.processed().into_iter().map(|(_, text)| text).collect()
    }

    /// Records that were processed, each counted once.
    pub(super) fn distinct(&self) -> usize {
        self.0.lock().unwrap().texts.len()
    }

    pub(super) fn contains(&self, text: &str) -> bool {
        self.0.lock().unwrap().texts.contains(text)
    }

    pub(super) fn batches(&self) -> Vec<usize> {
        self.0.lock().unwrap().batches.clone()
    }

    /// How often work on a record was begun.
    pub(super) fn begun(&self, text: &str) -> u32 {
        self.0.lock().unwrap().begun.get(text).copied().unwrap_or(0)
    }

    fn begin(&self, text: &str) -> u32 {
        let mut state = self.0.lock().unwrap();
        let begun = state.begun.entry(text.to_owned()).or_default();
        *begun += 1;
        *begun
    }

    fn finish(&self, record: &Record) {
        let key = record.partition_key().unwrap_or_default().to_owned();
        let mut state = self.0.lock().unwrap();
        state.texts.insert(text(record));
        state.processed.push((key, text(record)));
    }
}

pub(super) fn text(record: &Record) -> String {
    String::from_utf8_lossy(record.data()).into_owned()
}

/// A processor to which records say what becomes of them: the first word of their text.
pub(super) struct Service {
    pub(super) tells: Tells,
    pub(super) done: Done,
}

impl Service {
    /// Works on one record: `poison`, `failing`, `twice` (fails twice), `panics`, `overruns`, `stop` (once), `slow`, or good.
    async fn one(&self, record: &Record) -> Result<(), ProcessError> {
        let text = text(record);
        let begun = self.done.begin(&text);
        match text.split(' ').next().unwrap_or_default() {
            "poison" => Err(ProcessError::poison("it is poison")),
            "failing" => Err(ProcessError::retry("it fails each time")),
            "twice" if begun <= 2 => Err(ProcessError::retry("not yet")),
            "panics" => panic!("a bug of the service"),
            "overruns" => std::future::pending().await,
            "stop" if begun == 1 => Err(ProcessError::stop("credentials are revoked")),
            "slow" => {
                sleep(Duration::from_secs(600)).await;
                Ok(())
            }
            _ => {
                sleep(Duration::from_millis(5)).await;
                Ok(())
            }
        }
    }
}

#[async_trait]
impl RecordProcessor for Service {
    async fn process_records(&mut self, batch: &RecordBatch, shard: &ShardContext) -> ProcessResult {
        self.done.0.lock().unwrap().batches.push(batch.len());
        match self.tells {
            Tells::InOrder => {
                batch
                    .for_each(shard, async |record| {
                        self.one(record).await?;
                        self.done.finish(record);
                        Ok::<(), ProcessError>(())
                    })
                    .await
            }
            Tells::Nothing => {
                for record in batch.records() {
                    self.one(record).await?;
                }
                batch.records().iter().for_each(|record| self.done.finish(record));
                Ok(Outcome::Done)
            }
            Tells::From => {
                for record in batch {
                    if let Err(error) = self.one(record).await {
                        return Ok(Outcome::failed_from(record, error));
                    }
                    self.done.finish(record);
                }
                Ok(Outcome::Done)
            }
            Tells::These => {
                let mut failed = Vec::new();
                for record in batch.records() {
                    match self.one(record).await {
                        Ok(()) => self.done.finish(record),
                        Err(error) => failed.push((record, error)),
                    }
                }
                Ok(Outcome::failed(failed))
            }
        }
    }
}

/// One worker at a time over services in memory.
pub(super) struct Scene {
    pub(super) aws: SimulatedAws,
    pub(super) done: Done,
    pub(super) tells: Tells,
    workers: JoinSet<Result<(), WorkerError>>,
    starts: u32,
}

/// A worker that runs.
pub(super) struct Running {
    pub(super) host: Host,
    pub(super) handle: WorkerHandle,
}

impl Scene {
    pub(super) fn new(seed: u64, tells: Tells) -> Self {
        let aws = SimulatedAws::new(seed);
        aws.create_stream(STREAM, 1);
        Self { aws, done: Done::default(), tells, workers: JoinSet::new(), starts: 0 }
    }

    /// Starts a worker with these settings beside the usual ones.
    pub(super) async fn start(&mut self, settings: impl FnOnce(WorkerBuilder) -> WorkerBuilder) -> Running {
        self.starts += 1;
        let host = self.aws.host(&format!("host-{}", self.starts));
        let (done, tells) = (self.done.clone(), self.tells);
        let builder = host
            .worker(APPLICATION, STREAM)
            .retry_policy(RetryPolicy {
                max_attempts: 3,
                // Attempts alone decide: most records of these tests fail on purpose.
                patience: Duration::ZERO,
                attempt_deadline: Some(Duration::from_secs(20)),
                ..RetryPolicy::default()
            })
            .dead_letter_queue(host.dead_letter_queue(QUEUE))
            .processor(move |_: &ShardContext| Service { tells, done: done.clone() });
        let worker = settings(builder).build().await.unwrap();
        let handle = worker.handle();
        self.workers.spawn(host.run(worker.run()));
        Running { host, handle }
    }

    /// Waits until a worker has ended by itself.
    pub(super) async fn ended(&mut self) {
        let ended = tokio::time::timeout(PATIENCE, self.workers.join_next()).await.expect("it ends");
        ended.unwrap().unwrap().unwrap();
    }

    /// Lets a worker end in peace.
    pub(super) async fn stop(&mut self, running: Running) {
        running.handle.shutdown();
        self.workers.join_next().await.unwrap().unwrap().unwrap();
    }

    pub(super) fn put(&self, key: &str, text: &str) {
        self.aws.put(STREAM, key, text.to_owned());
    }

    /// Splits the first shard in two.
    pub(super) fn split(&self) {
        let split = SplitShardInput {
            stream_name: Some(STREAM.to_owned()),
            shard_to_split: shard().to_string(),
            new_starting_hash_key: (1u128 << 127).to_string(),
            ..SplitShardInput::default()
        };
        self.aws.kinesis().call(split).unwrap();
    }

    pub(super) fn letters(&self) -> Vec<DeadLetter> {
        self.aws.dead_letters(QUEUE)
    }

    pub(super) fn letter_texts(&self) -> Vec<String> {
        self.letters().iter().map(|letter| text(&letter.record)).collect()
    }
}

pub(super) fn shard() -> ShardId {
    "shardId-000000000000".into()
}

/// Waits until it is so.
pub(super) async fn until(what: &str, condition: impl Fn() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < end, "not within {PATIENCE:?}: {what}");
        sleep(Duration::from_millis(20)).await;
    }
}
