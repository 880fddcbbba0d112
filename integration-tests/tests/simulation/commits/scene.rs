//! A committing service, the machines that it runs on, and the ledger of its effects.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use kcl_core::aws_sdk_dynamodb::types::{AttributeValue, Put, TransactWriteItem};
use kcl_core::test_util::{Host, SimulatedAws};
use kcl_core::{
    Checkpointing, CommitError, Outcome, ProcessError, ProcessResult, Record, RecordBatch, RecordProcessor, RetryPolicy, ShardContext,
    WorkerBuilder, WorkerError, WorkerHandle, async_trait,
};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

pub(super) const STREAM: &str = "orders";
pub(super) const APPLICATION: &str = "orders-app";
const EFFECTS: &str = "effects";

/// How long a condition may take in simulated time.
const PATIENCE: Duration = Duration::from_secs(1800);

/// What goes wrong in the service itself, now and then, after it has committed a part of its batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mishap {
    Nothing,
    Fails,
    Panics,
    Overruns,
}

/// What the processors of all machines share.
#[derive(Clone)]
pub(super) struct Service {
    /// Records to a commit.
    pub(super) chunk: usize,
    /// What happens after every so many commits.
    pub(super) mishap: (Mishap, u64),
    attempts: Arc<AtomicU64>,
    commits: Arc<AtomicU64>,
    pub(super) deliveries: Arc<AtomicU64>,
}

pub(super) fn text(record: &Record) -> String {
    String::from_utf8_lossy(record.data()).into_owned()
}

impl Service {
    pub(super) fn new(chunk: usize, mishap: (Mishap, u64)) -> Self {
        Self { chunk, mishap, attempts: Arc::default(), commits: Arc::default(), deliveries: Arc::default() }
    }

    /// The effect of one record, as no other attempt makes it.
    pub(super) fn effect(&self, record: &Record) -> TransactWriteItem {
        let attempt = self.attempts.fetch_add(1, Ordering::Relaxed);
        let put = Put::builder().table_name(EFFECTS).item("record", AttributeValue::S(text(record)));
        let put = put.item("attempt", AttributeValue::N(format!("{attempt:08}"))).build().unwrap();
        TransactWriteItem::builder().put(put).build()
    }
}

#[async_trait]
impl RecordProcessor for Service {
    async fn process_records(&mut self, batch: &RecordBatch, shard: &ShardContext) -> ProcessResult {
        self.deliveries.fetch_add(batch.len() as u64, Ordering::Relaxed);
        for chunk in batch.records().chunks(self.chunk) {
            let items = chunk.iter().map(|record| self.effect(record)).collect();
            match shard.commit(items, chunk).await {
                Err(error @ (CommitError::NotDelivered { .. } | CommitError::Refused(_))) => unreachable!("{error}"),
                done => done?,
            }
            let (mishap, every) = self.mishap;
            if mishap != Mishap::Nothing && self.commits.fetch_add(1, Ordering::Relaxed) % every == every - 1 {
                match mishap {
                    Mishap::Panics => panic!("a bug of the service"),
                    Mishap::Overruns => std::future::pending().await,
                    _ => return Err(ProcessError::retry("a failure after a commit")),
                }
            }
        }
        Ok(Outcome::Done)
    }
}

/// Machines over services in memory.
pub(super) struct Scene {
    pub(super) aws: SimulatedAws,
    pub(super) checkpointing: Checkpointing,
    workers: JoinSet<Result<(), WorkerError>>,
    published: u64,
}

/// A worker that runs.
pub(super) struct Running {
    pub(super) host: Host,
    pub(super) handle: WorkerHandle,
}

impl Scene {
    pub(super) fn new(seed: u64, shards: u32) -> Self {
        let aws = SimulatedAws::new(seed);
        aws.create_stream(STREAM, shards);
        aws.create_table(EFFECTS, &["record", "attempt"]);
        let checkpointing =
            if seed.is_multiple_of(2) { Checkpointing::Manual } else { Checkpointing::Automatic { interval: Duration::from_secs(1) } };
        Self { aws, checkpointing, workers: JoinSet::new(), published: 0 }
    }

    /// Starts a worker with these settings beside the usual ones.
    pub(super) async fn start(&mut self, machine: &str, service: &Service, settings: impl Fn(WorkerBuilder) -> WorkerBuilder) -> Running {
        let host = self.aws.host(machine);
        loop {
            let service = service.clone();
            let retry = RetryPolicy { max_attempts: 10_000, attempt_deadline: Some(Duration::from_millis(1500)), ..RetryPolicy::default() };
            let builder = host.worker(APPLICATION, STREAM).checkpointing(self.checkpointing).retry_policy(retry);
            let builder = settings(builder.processor(move |_: &ShardContext| service.clone()));
            match builder.build().await {
                Ok(worker) => {
                    let handle = worker.handle();
                    self.workers.spawn(host.run(worker.run()));
                    return Running { host, handle };
                }
                // A fault of the network. A supervisor starts it again.
                Err(_) => sleep(Duration::from_secs(1)).await,
            }
        }
    }

    /// Puts so many records more.
    pub(super) fn publish(&mut self, records: u64) {
        for _ in 0..records {
            self.aws.put(STREAM, &format!("key-{}", self.published % 7), format!("record-{}", self.published));
            self.published += 1;
        }
    }

    /// How often each record's effect is there.
    pub(super) fn effects(&self) -> BTreeMap<String, usize> {
        let mut effects = BTreeMap::new();
        for item in self.aws.items(EFFECTS) {
            *effects.entry(item["record"].as_s().unwrap().clone()).or_default() += 1;
        }
        effects
    }

    pub(super) fn all_have_effect(&self) -> bool {
        self.effects().len() as u64 == self.published
    }

    /// Waits until every record has its effect, and then for whatever is late.
    pub(super) async fn settle(&self) {
        until("every record has its effect", || self.all_have_effect()).await;
        sleep(Duration::from_secs(30)).await;
    }

    pub(super) fn assert_once(&self, name: &str) {
        let effects = self.effects();
        let not_once: Vec<_> = effects.iter().filter(|(_, times)| **times != 1).collect();
        assert_eq!((not_once, effects.len() as u64), (vec![], self.published), "{name}");
    }
}

/// Waits until it is so.
pub(super) async fn until(what: &str, condition: impl Fn() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < end, "not within {PATIENCE:?}: {what}");
        sleep(Duration::from_millis(200)).await;
    }
}
