//! What the tests share: an endpoint, a stream, a publisher, processors that keep a ledger, and workers that end with the test.
//!
//! The endpoint is local AWS in this process. `KCL_TEST_ENDPOINT_URL` puts another one in its place (with the standard AWS environment for
//! region and credentials), `KCL_TEST_ENDPOINT_URL=aws` real AWS. Tests that put in faults need the embedded one and say so.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use aws_config::{BehaviorVersion, SdkConfig};
use aws_sdk_dynamodb::types::AttributeValue;
use aws_sdk_kinesis::primitives::Blob;
use aws_sdk_kinesis::types::{PutRecordsRequestEntry, StreamStatus};
use kcl_core::{
    Entropy, PollingConfig, ProcessError, ProcessResult, Record, RecordBatch, RecordProcessor, SequenceNumber, ShardContext, ShardId,
    ShardState, Worker, WorkerBuilder, WorkerError, WorkerHandle, async_trait,
};
use kcl_local::LocalAws;
use kcl_local::wire::LocalAwsBuilder;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// The time after which a condition that has not come true is a failure.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// What other tests and a busy machine may add to a time that a test bounds. How long things take where nothing else runs is bounded in simulated
/// time, by `tests/simulation/delays.rs`.
pub(crate) const BUSY_MACHINE: Duration = Duration::from_secs(10);

/// One stream at one endpoint, for one test.
pub(crate) struct World {
    pub(crate) local: Option<LocalAws>,
    pub(crate) config: SdkConfig,
    pub(crate) kinesis: aws_sdk_kinesis::Client,
    pub(crate) dynamodb: aws_sdk_dynamodb::Client,
    pub(crate) stream: String,
    pub(crate) application: String,
}

impl World {
    /// A fresh stream with this many shards.
    pub(crate) async fn with_shards(shards: i32) -> Self {
        let world = Self::without_stream().await;
        world.create_stream(shards).await;
        world
    }

    pub(crate) async fn without_stream() -> Self {
        match std::env::var("KCL_TEST_ENDPOINT_URL") {
            Ok(url) => {
                let loader = aws_config::defaults(BehaviorVersion::latest());
                let loader = if url == "aws" { loader } else { loader.endpoint_url(url) };
                Self::at(None, loader.load().await)
            }
            Err(_) => Self::embedded(LocalAws::builder()).await,
        }
    }

    /// Always local AWS in this process, without a stream: for what no other endpoint can be made to do.
    pub(crate) async fn embedded(builder: LocalAwsBuilder) -> Self {
        let local = builder.start().await.unwrap();
        let config = local.sdk_config();
        Self::at(Some(local), config)
    }

    fn at(local: Option<LocalAws>, config: SdkConfig) -> Self {
        // With RUST_LOG a failed test tells what happened; another test has set it up already, or none wants to.
        let _ = tracing_subscriber::fmt().with_env_filter(tracing_subscriber::EnvFilter::from_default_env()).with_test_writer().try_init();
        let id = Entropy::from_os().uuid();
        Self {
            kinesis: aws_sdk_kinesis::Client::new(&config),
            dynamodb: aws_sdk_dynamodb::Client::new(&config),
            stream: format!("kcl-test-{id}"),
            application: format!("kcl-test-app-{id}"),
            local,
            config,
        }
    }

    pub(crate) async fn create_stream(&self, shards: i32) {
        self.kinesis.create_stream().stream_name(&self.stream).shard_count(shards).send().await.unwrap();
        self.active().await;
    }

    /// Waits until the stream is active.
    pub(crate) async fn active(&self) {
        eventually("the stream is active", async || {
            let answer = self.kinesis.describe_stream_summary().stream_name(&self.stream).send().await.ok()?;
            (*answer.stream_description_summary()?.stream_status() == StreamStatus::Active).then_some(())
        })
        .await;
    }

    /// The embedded endpoint's faults; `None` (and a word why) elsewhere.
    pub(crate) fn faults(&self) -> Option<&kcl_local::wire::Faults> {
        if self.local.is_none() {
            eprintln!("skipped: faults can only be put into the embedded endpoint");
        }
        self.local.as_ref().map(LocalAws::faults)
    }

    /// Publishes `count` records, spread over `keys` keys, in order within each key; payloads are `key:number`, numbers from `first`.
    pub(crate) async fn publish(&self, keys: u64, first: u64, count: u64) -> BTreeSet<String> {
        let numbers: Vec<u64> = (first..first + count).collect();
        for chunk in numbers.chunks(200) {
            let entry = |number: &u64| {
                let key = format!("key-{}", number % keys);
                PutRecordsRequestEntry::builder().data(Blob::new(format!("{key}:{number}"))).partition_key(key).build().unwrap()
            };
            let mut entries: Vec<_> = chunk.iter().map(entry).collect();
            while !entries.is_empty() {
                // Retried from the first refused record of the call on, a key's records could overtake each other; the embedded server refuses
                // none, and against others the same records would come twice, which the ledger knows as duplicates of the publisher.
                let answer = self.kinesis.put_records().stream_name(&self.stream).set_records(Some(entries.clone())).send().await.unwrap();
                let refused: Vec<_> = answer.records().iter().map(|record| record.error_code().is_some()).collect();
                let from = refused.iter().position(|refused| *refused).unwrap_or(entries.len());
                entries.drain(..from);
                if !entries.is_empty() {
                    tokio::time::sleep(Duration::from_millis(200)).await;
                }
            }
        }
        numbers.iter().map(|number| format!("key-{}:{number}", number % keys)).collect()
    }

    /// Puts one record into this open shard, and returns its sequence number.
    pub(crate) async fn put(&self, shard_id: &str, key: &str, payload: &str) -> SequenceNumber {
        let shards = self.open_shards().await;
        let shard = shards.iter().find(|shard| shard.shard_id() == shard_id).expect("an open shard");
        let hash_key = shard.hash_key_range().unwrap().starting_hash_key();
        let put = self.kinesis.put_record().stream_name(&self.stream).partition_key(key).explicit_hash_key(hash_key);
        let put = put.data(Blob::new(payload)).send().await.unwrap();
        assert_eq!(put.shard_id(), shard_id);
        put.sequence_number().parse().unwrap()
    }

    /// The shard's item of the lease table.
    pub(crate) async fn item(&self, shard_id: &str) -> Option<BTreeMap<String, AttributeValue>> {
        let get = self.dynamodb.get_item().table_name(&self.application).consistent_read(true);
        let got = get.key("leaseKey", AttributeValue::S(shard_id.to_owned())).send().await.unwrap();
        Some(got.item?.into_iter().collect())
    }

    /// The checkpoint in the shard's item of the lease table.
    pub(crate) async fn checkpoint(&self, shard_id: &str) -> Option<String> {
        Some(self.item(shard_id).await?.get("checkpoint")?.as_s().unwrap().clone())
    }

    pub(crate) async fn open_shards(&self) -> Vec<aws_sdk_kinesis::types::Shard> {
        let answer = self.kinesis.list_shards().stream_name(&self.stream).send().await.unwrap();
        let open = |shard: &aws_sdk_kinesis::types::Shard| {
            shard.sequence_number_range().is_some_and(|range| range.ending_sequence_number().is_none())
        };
        answer.shards().iter().filter(|shard| open(shard)).cloned().collect()
    }

    /// Splits the shard in the middle.
    pub(crate) async fn split(&self, shard_id: &str) {
        let shards = self.open_shards().await;
        let shard = shards.iter().find(|shard| shard.shard_id() == shard_id).expect("an open shard");
        let range = shard.hash_key_range().unwrap();
        let (low, high): (u128, u128) = (range.starting_hash_key().parse().unwrap(), range.ending_hash_key().parse().unwrap());
        let middle = low + (high - low) / 2 + 1;
        let split = self.kinesis.split_shard().stream_name(&self.stream).shard_to_split(shard_id).new_starting_hash_key(middle.to_string());
        split.send().await.unwrap();
        self.active().await;
    }

    pub(crate) async fn merge(&self, shard_id: &str, adjacent: &str) {
        let merge = self.kinesis.merge_shards().stream_name(&self.stream).shard_to_merge(shard_id).adjacent_shard_to_merge(adjacent);
        merge.send().await.unwrap();
        self.active().await;
    }

    /// A worker with settings for tests: leases of 2 s, quick polling, quick retries.
    pub(crate) fn worker(&self, name: &str, ledger: &Ledger) -> WorkerBuilder {
        let (ledger, name_of_worker) = (ledger.clone(), name.to_owned());
        Worker::builder(&self.application, &self.stream)
            .aws_config(&self.config)
            .worker_name(name)
            .lease_duration(Duration::from_secs(2))
            .polling(PollingConfig { idle_interval: Duration::from_millis(200), ..PollingConfig::default() })
            .retry_policy(kcl_core::RetryPolicy {
                max_attempts: 3,
                patience: Duration::ZERO,
                first_backoff: Duration::from_millis(10),
                max_backoff: Duration::from_millis(200),
                ..kcl_core::RetryPolicy::default()
            })
            .processor(move |_: &ShardContext| LedgerProcessor { ledger: ledger.clone(), worker: name_of_worker.clone() })
    }
}

/// A worker that runs until it is stopped or killed, and is killed with the test.
pub(crate) struct Running {
    pub(crate) handle: WorkerHandle,
    tasks: JoinSet<Result<(), WorkerError>>,
    stop: CancellationToken,
}

impl Running {
    pub(crate) async fn start(builder: WorkerBuilder) -> Self {
        Self::try_start(builder).await.unwrap()
    }

    pub(crate) async fn try_start(builder: WorkerBuilder) -> Result<Self, WorkerError> {
        let worker = builder.build().await?;
        let (handle, stop) = (worker.handle(), CancellationToken::new());
        let mut tasks = JoinSet::new();
        tasks.spawn(worker.run_until(stop.clone().cancelled_owned()));
        Ok(Self { handle, tasks, stop })
    }

    /// As SIGTERM does.
    pub(crate) async fn stop(mut self) -> Result<(), WorkerError> {
        self.stop.cancel();
        self.tasks.join_next().await.unwrap().unwrap()
    }

    /// As SIGKILL does: nothing more is written.
    pub(crate) async fn kill(mut self) {
        self.tasks.shutdown().await;
    }

    /// Waits for the worker to end by itself.
    pub(crate) async fn end(mut self) -> Result<(), WorkerError> {
        self.tasks.join_next().await.unwrap().unwrap()
    }

    pub(crate) fn shards(&self) -> BTreeSet<ShardId> {
        self.handle.status().shards.into_keys().collect()
    }

    /// What the shard's consumer does; `None` if this worker has none.
    pub(crate) fn state(&self, shard_id: &str) -> Option<ShardState> {
        self.handle.status().shards.get(&ShardId::from(shard_id)).map(|status| status.state)
    }
}

/// One successful delivery.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Delivery {
    pub(crate) worker: String,
    pub(crate) shard: ShardId,
    pub(crate) key: String,
    pub(crate) payload: String,
    pub(crate) at: Instant,
}

/// All that was delivered in a test, in order.
#[derive(Clone, Default)]
pub(crate) struct Ledger(Arc<Mutex<LedgerState>>);

#[derive(Default)]
struct LedgerState {
    deliveries: Vec<Delivery>,
    ended: BTreeSet<ShardId>,
}

impl Ledger {
    pub(crate) fn deliveries(&self) -> Vec<Delivery> {
        self.0.lock().unwrap().deliveries.clone()
    }

    pub(crate) fn record(&self, worker: &str, shard: &ShardContext, record: &Record) {
        self.record_as(worker, shard, record, String::from_utf8(record.data().to_vec()).unwrap());
    }

    /// The same for a payload that says more than it must: this stands for it.
    pub(crate) fn record_as(&self, worker: &str, shard: &ShardContext, record: &Record, payload: String) {
        self.0.lock().unwrap().deliveries.push(Delivery {
            worker: worker.to_owned(),
            shard: shard.shard_id().clone(),
            key: record.partition_key().unwrap_or_default().to_owned(),
            payload,
            at: Instant::now(),
        });
    }

    pub(crate) fn payloads(&self) -> BTreeSet<String> {
        self.0.lock().unwrap().deliveries.iter().map(|delivery| delivery.payload.clone()).collect()
    }

    pub(crate) fn ended(&self) -> BTreeSet<ShardId> {
        self.0.lock().unwrap().ended.clone()
    }

    pub(crate) fn has_ended(&self, shard_id: &str) -> bool {
        self.0.lock().unwrap().ended.contains(&ShardId::from(shard_id))
    }

    /// Deliveries beyond the first of each payload.
    pub(crate) fn duplicates(&self) -> Vec<Delivery> {
        let mut seen = BTreeSet::new();
        self.deliveries().into_iter().filter(|delivery| !seen.insert(delivery.payload.clone())).collect()
    }

    /// Waits until all of these were delivered.
    pub(crate) async fn has_all(&self, expected: &BTreeSet<String>) {
        eventually("all records are delivered", async || {
            let missing = expected.difference(&self.payloads()).count();
            (missing == 0).then_some(()).ok_or_else(|| format!("{missing} of {} missing", expected.len())).ok()
        })
        .await;
    }

    /// Panics unless, within each key, first deliveries are in the order of publication and nothing unknown was delivered.
    pub(crate) fn assert_ordered(&self) {
        let mut last: BTreeMap<String, u64> = BTreeMap::new();
        let mut seen = BTreeSet::new();
        for delivery in self.deliveries() {
            if !seen.insert(delivery.payload.clone()) {
                continue;
            }
            let number: u64 = delivery.payload.rsplit(':').next().unwrap().parse().unwrap();
            let before = last.insert(delivery.key.clone(), number);
            assert!(before.is_none_or(|before| before < number), "{number} of {} came after {before:?}", delivery.key);
        }
    }
}

/// Notes what it processes. A payload that begins with `poison` can't be processed.
pub(crate) struct LedgerProcessor {
    pub(crate) ledger: Ledger,
    pub(crate) worker: String,
}

#[async_trait]
impl RecordProcessor for LedgerProcessor {
    async fn process_records(&mut self, batch: &RecordBatch, shard: &ShardContext) -> ProcessResult {
        batch
            .for_each(shard, async |record| {
                if record.data().starts_with(b"poison") {
                    return Err(ProcessError::poison("it is poison"));
                }
                self.ledger.record(&self.worker, shard, record);
                Ok(())
            })
            .await
    }

    async fn shard_ended(&mut self, shard: &ShardContext) -> Result<(), ProcessError> {
        self.ledger.0.lock().unwrap().ended.insert(shard.shard_id().clone());
        Ok(())
    }
}

/// Waits until the condition gives something; panics with the condition's name after [`PATIENCE`].
pub(crate) async fn eventually<T>(what: &str, mut condition: impl AsyncFnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(value) = condition().await {
            return value;
        }
        assert!(Instant::now() < deadline, "not within {PATIENCE:?}: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
