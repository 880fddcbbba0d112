//! Processors that block their thread, in real time and over the wire: each worker on a runtime of
//! its own, the services on another, as they are in production.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use aws_sdk_dynamodb::types::AttributeValue;
use kcl_core::{Outcome, ProcessResult, RecordBatch, RecordProcessor, ShardContext, WorkerError, WorkerHandle, async_trait};
use kcl_local::LocalAws;
use tokio::runtime::{Builder, Runtime};
use tokio::time::{Instant, sleep};

use crate::support::{BUSY_MACHINE, Ledger, World, eventually};

const SHARD: &str = "shardId-000000000000";
const LEASE: Duration = Duration::from_secs(2);
const TIMEOUT: Duration = Duration::from_secs(2);

/// Blocks its thread in its first call, until it is allowed to go on.
#[derive(Clone)]
struct Blocking {
    /// How long it waits as it should before that: then a timer has woken its thread.
    first: Duration,
    blocks: Arc<AtomicBool>,
    goes_on: Arc<AtomicBool>,
    done: Arc<Mutex<Vec<String>>>,
}

impl Blocking {
    fn new(first: Duration) -> Self {
        Self { first, blocks: Arc::default(), goes_on: Arc::default(), done: Arc::default() }
    }

    #[expect(clippy::disallowed_methods, reason = "this is what users' code does")]
    fn block(&self) {
        while !self.goes_on.load(Ordering::SeqCst) {
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    async fn is_blocked(&self) {
        eventually("the processor blocks", async || self.blocks.load(Ordering::SeqCst).then_some(())).await;
    }

    fn done(&self) -> Vec<String> {
        self.done.lock().unwrap().clone()
    }
}

#[async_trait]
impl RecordProcessor for Blocking {
    async fn process_records(&mut self, batch: &RecordBatch, _: &ShardContext) -> ProcessResult {
        sleep(self.first).await;
        self.blocks.store(true, Ordering::SeqCst);
        self.block();
        let payloads = batch.records().iter().map(|record| String::from_utf8_lossy(record.data()).into_owned());
        self.done.lock().unwrap().extend(payloads);
        Ok(Outcome::Done)
    }
}

/// A worker on a runtime of its own.
struct Process {
    runtime: Option<Runtime>,
    handle: WorkerHandle,
    ended: Receiver<Result<(), WorkerError>>,
}

impl Process {
    /// `threads`: of its runtime; 1 is one that only runs in the call that blocks on it.
    fn start(world: &World, name: &str, threads: usize, processor: &Blocking) -> Self {
        let processor = processor.clone();
        let builder = world.worker(name, &Ledger::default()).lease_duration(LEASE).shutdown_timeout(TIMEOUT);
        let builder = builder.processor(move |_: &ShardContext| processor.clone());
        let ((handed, handle), (end, ended)) = (channel(), channel());
        let run = async move {
            let worker = builder.build().await.unwrap();
            handed.send(worker.handle()).unwrap();
            // Nobody waits if the test has failed.
            let _ = end.send(worker.run().await);
        };
        let runtime = if threads == 1 {
            std::thread::spawn(move || Builder::new_current_thread().enable_all().build().unwrap().block_on(run));
            None
        } else {
            let runtime = Builder::new_multi_thread().worker_threads(threads).enable_all().build().unwrap();
            #[expect(clippy::let_underscore_future, reason = "its end is told through the channel")]
            let _ = runtime.spawn(run);
            Some(runtime)
        };
        Self { runtime, handle: handle.recv().unwrap(), ended }
    }

    fn end(&self) -> Result<(), WorkerError> {
        self.ended.recv_timeout(TIMEOUT + BUSY_MACHINE).expect("it ends in time")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            // Without waiting for what blocks.
            runtime.shutdown_background();
        }
    }
}

/// The services, on a runtime of their own, which the test is on too.
fn services() -> (Runtime, World) {
    let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let world = runtime.block_on(async {
        let world = World::embedded(LocalAws::builder()).await;
        world.create_stream(1).await;
        world
    });
    (runtime, world)
}

type Item = BTreeMap<String, AttributeValue>;

async fn lease(world: &World) -> Option<Item> {
    world.item(SHARD).await
}

fn counter(item: &Item) -> u64 {
    item["leaseCounter"].as_n().unwrap().parse().unwrap()
}

async fn has_owner(world: &World) {
    eventually("the shard is owned", async || lease(world).await?.get("leaseOwner").map(|_| ())).await;
}

/// The worker's processor blocks for many lease durations, while another worker waits for a lease
/// to take: its lease is kept, and no record comes twice.
fn its_lease_is_kept(threads: usize, first: Duration) {
    let (services, world) = services();
    let (blocking, other) = (Blocking::new(first), Blocking::new(Duration::ZERO));
    let a = Process::start(&world, "a", threads, &blocking);
    services.block_on(has_owner(&world));
    let b = Process::start(&world, "b", 2, &other);
    services.block_on(async {
        for number in 0..3 {
            world.put(SHARD, "key", &format!("{number}")).await;
        }
        blocking.is_blocked().await;
        let taken = lease(&world).await.unwrap();
        let began = Instant::now();
        // Six renewals take two lease durations: the other worker had time to find it expired.
        eventually("the lease is renewed", async || (counter(&lease(&world).await?) >= counter(&taken) + 6).then_some(())).await;
        assert!(began.elapsed() > LEASE * 3 / 2);
        assert!(!other.blocks.load(Ordering::SeqCst) && blocking.done().is_empty());
        assert_eq!(a.handle.status().shards.len(), 1, "what the status says can be read meanwhile");
        blocking.goes_on.store(true, Ordering::SeqCst);
        eventually("all are processed", async || (blocking.done().len() >= 3).then_some(())).await;
        let now = lease(&world).await.unwrap();
        assert_eq!(
            (now.get("leaseOwner"), now.get("ownerSwitchesSinceCheckpoint")),
            (taken.get("leaseOwner"), taken.get("ownerSwitchesSinceCheckpoint"))
        );
    });
    other.goes_on.store(true, Ordering::SeqCst);
    for worker in [&a, &b] {
        worker.handle.shutdown();
        worker.end().unwrap();
    }
    assert_eq!((blocking.done(), other.done()), (["0", "1", "2"].map(str::to_owned).to_vec(), Vec::new()));
}

#[test]
fn a_processor_that_blocks_the_only_thread_keeps_its_lease() {
    its_lease_is_kept(1, Duration::ZERO);
}

/// The thread that a timer has woken keeps tokio's driver while it is blocked, so that no other one
/// sees timers or connections of this runtime.
#[test]
fn a_processor_that_blocks_after_an_await_keeps_its_lease() {
    its_lease_is_kept(2, Duration::from_millis(50));
}

#[test]
fn a_shutdown_does_not_wait_for_a_processor_that_blocks_and_its_lease_is_freed() {
    let (services, world) = services();
    let blocking = Blocking::new(Duration::from_millis(50));
    let worker = Process::start(&world, "a", 2, &blocking);
    services.block_on(async {
        world.put(SHARD, "key", "0").await;
        blocking.is_blocked().await;
    });
    worker.handle.shutdown();
    let error = worker.end().unwrap_err();
    assert!(matches!(&error, WorkerError::ShutdownTimedOut { shards, .. } if shards.len() == 1), "{error}");
    assert!(blocking.done().is_empty(), "the processor still blocks");
    let freed = services.block_on(lease(&world)).unwrap();
    assert!(!freed.contains_key("leaseOwner"), "{freed:?}");

    // What it does now counts for nothing.
    blocking.goes_on.store(true, Ordering::SeqCst);
    services.block_on(async {
        eventually("it goes on", async || (blocking.done().len() == 1).then_some(())).await;
        sleep(LEASE).await;
        assert_eq!(lease(&world).await.unwrap(), freed);
    });
    let next = Blocking::new(Duration::ZERO);
    next.goes_on.store(true, Ordering::SeqCst);
    let worker = Process::start(&world, "b", 2, &next);
    services.block_on(eventually("it is processed again", async || (next.done() == ["0"]).then_some(())));
    worker.handle.shutdown();
    worker.end().unwrap();
}
