//! A small fleet whose service notes which record it processed when: for tests of what comes again and what does not.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use kcl_core::test_util::kinesis_model::{MergeShardsInput, SplitShardInput};
use kcl_core::test_util::{Host, SimulatedAws};
use kcl_core::{
    Checkpoint, ProcessError, ProcessResult, RecordBatch, RecordProcessor, ShardContext, WorkerBuilder, WorkerError, WorkerHandle,
    async_trait,
};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout_at};

pub(super) const STREAM: &str = "orders";
pub(super) const APPLICATION: &str = "orders-app";
pub(super) const KEYS: usize = 12;
const PATIENCE: Duration = Duration::from_secs(3600);

/// A record that was processed.
#[derive(Clone, Debug)]
pub(super) struct Seen {
    key: String,
    pub(super) number: u64,
    pub(super) at: Instant,
}

#[derive(Clone, Default)]
pub(super) struct Log(Arc<Mutex<Vec<Seen>>>);

impl Log {
    pub(super) fn all(&self) -> Vec<Seen> {
        self.0.lock().unwrap().clone()
    }

    pub(super) fn note(&self, key: String, number: u64) {
        self.0.lock().unwrap().push(Seen { key, number, at: Instant::now() });
    }

    pub(super) fn clear(&self) {
        self.0.lock().unwrap().clear();
    }

    pub(super) fn numbers(&self) -> BTreeSet<u64> {
        self.all().iter().map(|seen| seen.number).collect()
    }

    /// Each key's numbers, in the order in which they were processed.
    pub(super) fn by_key(&self) -> BTreeMap<String, Vec<u64>> {
        let mut keys: BTreeMap<_, Vec<_>> = BTreeMap::new();
        self.all().into_iter().for_each(|seen| keys.entry(seen.key).or_default().push(seen.number));
        keys
    }
}

/// Takes 2 ms for a record.
struct Service(Log);

#[async_trait]
impl RecordProcessor for Service {
    async fn process_records(&mut self, batch: &RecordBatch, shard: &ShardContext) -> ProcessResult {
        batch
            .for_each(shard, async |record| -> Result<(), ProcessError> {
                sleep(Duration::from_millis(2)).await;
                let number = std::str::from_utf8(record.data())?.parse()?;
                let key = record.partition_key().unwrap_or_default().to_owned();
                self.0.note(key, number);
                Ok(())
            })
            .await
    }
}

pub(super) struct Fleet {
    pub(super) aws: SimulatedAws,
    pub(super) log: Log,
    workers: JoinSet<Result<(), WorkerError>>,
    pub(super) running: Vec<(Host, WorkerHandle)>,
    /// How many records were put.
    pub(super) put: u64,
}

impl Fleet {
    pub(super) fn new(seed: u64, shards: u32) -> Self {
        let aws = SimulatedAws::new(seed);
        aws.create_stream(STREAM, shards);
        Self { aws, log: Log::default(), workers: JoinSet::new(), running: Vec::new(), put: 0 }
    }

    pub(super) async fn start(&mut self, workers: usize) {
        self.start_with(workers, |builder| builder).await;
    }

    /// Starts workers with these settings beside the usual ones.
    pub(super) async fn start_with(&mut self, workers: usize, settings: impl Fn(WorkerBuilder) -> WorkerBuilder) {
        for _ in 0..workers {
            let host = self.aws.host(&format!("host-{}", self.running.len()));
            let log = self.log.clone();
            let builder = host.worker(APPLICATION, STREAM).processor(move |_: &ShardContext| Service(log.clone()));
            let worker = settings(builder).build().await.unwrap();
            self.running.push((host.clone(), worker.handle()));
            self.workers.spawn(host.run(worker.run()));
        }
    }

    pub(super) async fn stop(&mut self) {
        for (_, handle) in self.running.drain(..) {
            handle.shutdown();
        }
        self.ended().await;
    }

    /// Waits until all workers have ended by themselves.
    pub(super) async fn ended(&mut self) {
        self.running.clear();
        let end = Instant::now() + PATIENCE;
        while !self.workers.is_empty() {
            let Ok(Some(ended)) = timeout_at(end, self.workers.join_next()).await else {
                panic!("workers have not ended within {PATIENCE:?}: {:?}", self.aws.leases(APPLICATION));
            };
            ended.unwrap().unwrap();
        }
    }

    /// Puts so many records, each key in turn, over some seconds.
    pub(super) async fn put(&mut self, records: u64) -> BTreeSet<u64> {
        let first = self.put;
        while self.put < first + records {
            self.aws.put(STREAM, &format!("key-{}", self.put % KEYS as u64), self.put.to_string());
            self.put += 1;
            sleep(Duration::from_millis(20)).await;
        }
        (first..self.put).collect()
    }

    pub(super) async fn has(&self, what: &str, numbers: &BTreeSet<u64>) {
        until(what, || self.log.numbers().is_superset(numbers)).await;
    }

    pub(super) fn split(&self, shard: &str) {
        let listed = self.aws.shards(STREAM).unwrap();
        let range = listed.iter().find(|listed| listed.shard_id.as_str() == shard).unwrap().hash_range;
        let middle = range.start + (range.end - range.start) / 2 + 1;
        let split = SplitShardInput {
            stream_name: Some(STREAM.to_owned()),
            shard_to_split: shard.to_owned(),
            new_starting_hash_key: middle.to_string(),
            ..Default::default()
        };
        self.aws.kinesis().call(split).unwrap();
    }

    pub(super) fn merge(&self, shard: &str, with: &str) {
        let (shard_to_merge, adjacent_shard_to_merge) = (shard.to_owned(), with.to_owned());
        let merge =
            MergeShardsInput { stream_name: Some(STREAM.to_owned()), shard_to_merge, adjacent_shard_to_merge, ..Default::default() };
        self.aws.kinesis().call(merge).unwrap();
    }

    pub(super) async fn resharded(&self, open: usize) {
        until("the stream is resharded", || self.aws.shards(STREAM).unwrap().iter().filter(|shard| shard.is_open()).count() == open).await;
    }

    pub(super) fn checkpoint(&self, shard: &str) -> Checkpoint {
        self.aws.leases(APPLICATION).into_iter().find(|lease| lease.shard_id.as_str() == shard).unwrap().checkpoint
    }
}

/// Waits until it is so.
pub(super) async fn until(what: &str, condition: impl Fn() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < end, "not within {PATIENCE:?}: {what}");
        sleep(Duration::from_millis(50)).await;
    }
}
