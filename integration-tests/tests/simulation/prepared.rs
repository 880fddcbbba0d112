//! Checkpoints in two phases: what the next owner finds when a worker dies between them, and what
//! automatic checkpoints do in between.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use kcl_core::test_util::{Host, SimulatedAws};
use kcl_core::{
    Bytes, Checkpoint, Checkpointing, ExtendedSequenceNumber, Outcome, PendingCheckpoint, ProcessResult, RecordBatch, RecordProcessor,
    SequenceNumber, ShardContext, WorkerError, async_trait,
};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

const STREAM: &str = "orders";
const APPLICATION: &str = "orders-app";

/// Writes each batch to a store in two phases, and waits for leave between them. A batch of plain records
/// alone goes in one phase, and leaves the checkpoint to the worker.
#[derive(Clone)]
struct Transactional {
    store: Arc<Mutex<Vec<String>>>,
    /// Calls that may pass from the first phase to the second.
    leave: Arc<Semaphore>,
}

#[async_trait]
impl RecordProcessor for Transactional {
    async fn process_records(&mut self, batch: &RecordBatch, shard: &ShardContext) -> ProcessResult {
        let texts: Vec<_> = batch.records().iter().map(|record| String::from_utf8_lossy(record.data()).into_owned()).collect();
        if texts.iter().all(|text| text.starts_with("plain")) {
            self.store.lock().unwrap().extend(texts);
            return Ok(Outcome::Done);
        }
        let prepared = shard.checkpointer().prepare(texts.join(",")).await?;
        self.leave.acquire().await?.forget();
        self.store.lock().unwrap().extend(texts);
        prepared.commit().await?;
        Ok(Outcome::Done)
    }
}

struct Scene {
    aws: SimulatedAws,
    store: Arc<Mutex<Vec<String>>>,
    leave: Arc<Semaphore>,
    workers: JoinSet<Result<(), WorkerError>>,
}

impl Scene {
    fn new(seed: u64) -> Self {
        let aws = SimulatedAws::new(seed);
        aws.create_stream(STREAM, 1);
        Self { aws, store: Arc::default(), leave: Arc::new(Semaphore::new(0)), workers: JoinSet::new() }
    }

    /// Starts a worker with a leave of its own: one that was killed still waits for its own.
    async fn start(&mut self, machine: &str, checkpointing: Checkpointing) -> Host {
        self.leave = Arc::new(Semaphore::new(0));
        let host = self.aws.host(machine);
        let processor = Transactional { store: Arc::clone(&self.store), leave: Arc::clone(&self.leave) };
        let builder = host.worker(APPLICATION, STREAM).checkpointing(checkpointing);
        let worker = builder.processor(move |_: &ShardContext| processor.clone()).build().await.unwrap();
        self.workers.spawn(host.run(worker.run()));
        host
    }

    fn put(&self, text: &str) -> SequenceNumber {
        self.aws.put(STREAM, "key", text.to_owned()).1
    }

    fn row(&self) -> Option<(Checkpoint, Option<PendingCheckpoint>)> {
        self.aws.leases(APPLICATION).pop().map(|lease| (lease.checkpoint, lease.pending_checkpoint))
    }

    async fn shows(&self, what: &str, checkpoint: Checkpoint, pending: Option<PendingCheckpoint>) {
        let expected = Some((checkpoint, pending));
        let shown = async {
            while self.row() != expected {
                sleep(Duration::from_millis(100)).await;
            }
        };
        assert!(timeout(Duration::from_secs(600), shown).await.is_ok(), "{what}: {:?} is not {expected:?}", self.row());
    }
}

fn at(number: SequenceNumber) -> Checkpoint {
    Checkpoint::At(ExtendedSequenceNumber::whole(number))
}

fn pending(number: SequenceNumber, state: &str) -> Option<PendingCheckpoint> {
    Some(PendingCheckpoint { checkpoint: at(number), state: Some(Bytes::from(state.to_owned())) })
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_dies_between_the_phases_leaves_the_pending_checkpoint_to_the_next() {
    let mut scene = Scene::new(1);
    scene.put("one");
    let second = scene.put("two");
    let host = scene.start("first", Checkpointing::Manual).await;
    scene.shows("prepared", Checkpoint::TrimHorizon, pending(second, "one,two")).await;
    host.kill();
    sleep(Duration::from_secs(60)).await;
    assert!(scene.store.lock().unwrap().is_empty());

    // The next owner takes the row as it is, and replaces the pending checkpoint by its own. After a
    // death it goes record by record.
    scene.start("second", Checkpointing::Manual).await;
    scene.leave.add_permits(2);
    scene.shows("committed", at(second), None).await;
    assert_eq!(*scene.store.lock().unwrap(), ["one", "two"]);
    let third = scene.put("three");
    scene.shows("prepared again", at(second), pending(third, "three")).await;
}

#[tokio::test(start_paused = true)]
async fn an_automatic_checkpoint_of_earlier_records_does_not_come_between_the_phases() {
    let mut scene = Scene::new(2);
    let first = scene.put("plain");
    scene.start("worker", Checkpointing::Automatic { interval: Duration::from_secs(30) }).await;
    while scene.store.lock().unwrap().is_empty() {
        sleep(Duration::from_millis(100)).await;
    }
    let second = scene.put("two");
    scene.shows("prepared", Checkpoint::TrimHorizon, pending(second, "two")).await;
    // The automatic checkpoint of the first record comes while the second waits between the phases.
    scene.shows("checkpointed", at(first), pending(second, "two")).await;
    sleep(Duration::from_secs(120)).await;
    assert_eq!(scene.row(), Some((at(first), pending(second, "two"))), "renewals keep it");
    scene.leave.add_permits(1);
    scene.shows("committed", at(second), None).await;
    assert_eq!(*scene.store.lock().unwrap(), ["plain", "two"]);
}

/// Prepares each record alone, and panics with the first one between the phases.
struct Breaks {
    /// The pending checkpoint that each processor of the shard has found when it was made.
    found: Arc<Mutex<Vec<Option<PendingCheckpoint>>>>,
    processed: Arc<Mutex<Vec<String>>>,
}

#[async_trait]
impl RecordProcessor for Breaks {
    async fn initialize(&mut self, shard: &ShardContext) -> Result<(), kcl_core::ProcessError> {
        self.found.lock().unwrap().push(shard.pending_checkpoint());
        Ok(())
    }

    async fn process_records(&mut self, batch: &RecordBatch, shard: &ShardContext) -> ProcessResult {
        let prepared = shard.checkpointer().prepare("state").await?;
        assert!(self.found.lock().unwrap().len() > 1, "between the phases");
        prepared.commit().await?;
        let texts = batch.records().iter().map(|record| String::from_utf8_lossy(record.data()).into_owned());
        self.processed.lock().unwrap().extend(texts);
        Ok(Outcome::Done)
    }
}

#[tokio::test(start_paused = true)]
async fn a_processor_that_is_made_anew_in_the_same_term_finds_what_the_lost_one_has_prepared() {
    let scene = Scene::new(5);
    let (found, processed) = (Arc::default(), Arc::<Mutex<Vec<String>>>::default());
    let only = scene.put("one");
    let host = scene.aws.host("first");
    let (its_found, its_processed) = (Arc::clone(&found), Arc::clone(&processed));
    let factory = move |_: &ShardContext| Breaks { found: Arc::clone(&its_found), processed: Arc::clone(&its_processed) };
    let worker = host.worker(APPLICATION, STREAM).checkpointing(Checkpointing::Manual).processor(factory).build().await.unwrap();
    let mut workers = JoinSet::new();
    workers.spawn(host.run(worker.run()));
    scene.shows("committed by the second one", at(only), None).await;
    assert_eq!(*found.lock().unwrap(), [None, pending(only, "state")]);
    assert_eq!(*processed.lock().unwrap(), ["one"]);
}
