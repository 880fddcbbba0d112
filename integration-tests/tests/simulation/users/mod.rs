//! Ordinary users' code, with the faults that ordinary users make: what it holds is what counts, and
//! never what it returned.

mod acknowledged;
mod backlog;
mod blocking;
mod flushed;
mod hanging;
mod idle;
mod outages;
mod own_checkpoints;
mod panics;
mod slow;
mod stuck_key;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use kcl_core::test_util::{Host, SimulatedAws};
use kcl_core::{Checkpoint, Record, ShardStatus, WorkerBuilder, WorkerError, WorkerHandle};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

const STREAM: &str = "orders";
const APPLICATION: &str = "orders-app";
const QUEUE: &str = "orders-dlq";

fn text(record: &Record) -> String {
    String::from_utf8_lossy(record.data()).into_owned()
}

/// The user's database: how often each record has had its effect. Clones are the same.
#[derive(Clone, Default)]
struct Database(Arc<Mutex<BTreeMap<String, u32>>>);

impl Database {
    fn insert(&self, record: &Record) {
        *self.0.lock().unwrap().entry(text(record)).or_default() += 1;
    }

    /// Records that are in it.
    fn distinct(&self) -> usize {
        self.0.lock().unwrap().len()
    }

    /// Insertions of records that were in it before.
    fn repeated(&self) -> u32 {
        self.0.lock().unwrap().values().map(|count| count - 1).sum()
    }

    fn count(&self, text: &str) -> u32 {
        self.0.lock().unwrap().get(text).copied().unwrap_or(0)
    }
}

/// A worker that runs.
struct Running {
    host: Host,
    handle: WorkerHandle,
    task: JoinSet<Result<(), WorkerError>>,
}

impl Running {
    async fn start(aws: &SimulatedAws, machine: &str, settings: impl FnOnce(WorkerBuilder) -> WorkerBuilder) -> Self {
        let host = aws.host(machine);
        let worker = settings(host.worker(APPLICATION, STREAM)).build().await.unwrap();
        let handle = worker.handle();
        let mut task = JoinSet::new();
        task.spawn(host.run(worker.run()));
        Self { host, handle, task }
    }

    /// SIGKILL.
    async fn kill(mut self) {
        self.host.kill();
        self.task.shutdown().await;
    }

    /// SIGTERM: how long it took, and how it ended.
    async fn stop(mut self) -> (Duration, Result<(), WorkerError>) {
        let asked = Instant::now();
        self.handle.shutdown();
        let ended = self.task.join_next().await.unwrap().unwrap();
        (asked.elapsed(), ended)
    }

    fn shard(&self) -> Option<ShardStatus> {
        self.handle.status().shards.into_values().next()
    }
}

fn aws(shards: u32) -> SimulatedAws {
    let aws = SimulatedAws::new(1);
    aws.create_stream(STREAM, shards);
    aws
}

/// Puts so many records, within the limits of the stream's shards.
async fn put(aws: &SimulatedAws, shards: u32, records: usize) {
    for number in 0..records {
        aws.put(STREAM, &format!("key-{}", number % 100), number.to_string());
        if number % (900 * shards as usize) == 899 {
            sleep(Duration::from_secs(1)).await;
        }
    }
}

fn checkpoint(aws: &SimulatedAws) -> Checkpoint {
    aws.leases(APPLICATION)[0].checkpoint
}

/// Waits until it is so, for at most a day.
async fn until(what: &str, condition: impl Fn() -> bool) {
    let end = Instant::now() + Duration::from_secs(24 * 3600);
    while !condition() {
        assert!(Instant::now() < end, "not within a day: {what}");
        sleep(Duration::from_millis(100)).await;
    }
}
