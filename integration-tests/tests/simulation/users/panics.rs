//! Panics of users' code wherever it is called, and while it is dropped: paced, shown, and the end of
//! nothing.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use kcl_core::stream::{RecordsPage, Shard, ShardFilter, ShardIterator, StartingPosition, StreamApi, StreamDescription, StreamError};
use kcl_core::test_util::Event;
use kcl_core::{
    DeadLetter, DeadLetterError, DeadLetterQueue, Outcome, ProcessError, ProcessResult, RecordBatch, RecordProcessor, RetryPolicy,
    ShardContext, ShardId, ShardState, WorkerBuilder, async_trait,
};
use tokio::time::sleep;

use super::{APPLICATION, Database, Running, STREAM, aws, until};

/// Panics in each call, and then once more while it is dropped.
struct DropBomb {
    armed: bool,
}

impl Drop for DropBomb {
    fn drop(&mut self) {
        assert!(!self.armed || std::thread::panicking(), "a bug in drop");
    }
}

#[async_trait]
impl RecordProcessor for DropBomb {
    async fn process_records(&mut self, _batch: &RecordBatch, _shard: &ShardContext) -> ProcessResult {
        self.armed = true;
        panic!("a bug of the service")
    }
}

/// A queue of the user's that panics.
#[derive(Debug)]
struct PanickingQueue;

#[async_trait]
impl DeadLetterQueue for PanickingQueue {
    async fn check(&self) -> Result<(), DeadLetterError> {
        Ok(())
    }

    async fn send(&self, _letters: &[DeadLetter]) -> Vec<Result<(), DeadLetterError>> {
        sleep(Duration::from_millis(5)).await;
        panic!("a bug of the queue")
    }
}

type Settings = Box<dyn FnOnce(WorkerBuilder) -> WorkerBuilder>;

struct Poisoned;

#[async_trait]
impl RecordProcessor for Poisoned {
    async fn process_records(&mut self, _batch: &RecordBatch, _shard: &ShardContext) -> ProcessResult {
        Err(ProcessError::poison("bad"))
    }
}

/// Calls by operation in a minute, and the states that were seen.
async fn a_minute(settings: impl FnOnce(WorkerBuilder) -> WorkerBuilder) -> (BTreeMap<&'static str, u32>, Vec<ShardState>) {
    let aws = aws(1);
    aws.put(STREAM, "key", "one");
    aws.faults().set_latency(Duration::from_millis(5), Duration::from_millis(10));
    let calls: Arc<Mutex<BTreeMap<&'static str, u32>>> = Arc::default();
    let seen = Arc::clone(&calls);
    aws.observe(move |event| {
        if let Event::Sent { operation, .. } = event {
            *seen.lock().unwrap().entry(operation).or_default() += 1;
        }
    });
    let running = Running::start(&aws, "host", settings).await;
    sleep(Duration::from_secs(20)).await;
    calls.lock().unwrap().clear();
    let mut states = Vec::new();
    for _ in 0..60 {
        sleep(Duration::from_secs(1)).await;
        states.extend(running.shard().map(|shard| shard.state));
    }
    assert_eq!(aws.leases(APPLICATION)[0].owner_switches_since_checkpoint, 1, "it is taken once");
    aws.stop_observing();
    running.kill().await;
    let calls = calls.lock().unwrap().clone();
    (calls, states)
}

#[tokio::test(start_paused = true)]
async fn panics_in_drop_and_in_a_queue_make_no_hot_loop() {
    // The record has no neighbour that could tell whose fault it is.
    let at_once = RetryPolicy { patience: Duration::ZERO, ..RetryPolicy::default() };
    let settings: [(&str, ShardState, Settings); 2] = [
        (
            "drop",
            ShardState::BlockedByRecord,
            Box::new(move |builder| builder.retry_policy(at_once).processor(|_: &ShardContext| DropBomb { armed: false })),
        ),
        (
            "queue",
            ShardState::WaitingForDeadLetterQueue,
            Box::new(|builder| builder.dead_letter_queue(PanickingQueue).processor(|_: &ShardContext| Poisoned)),
        ),
    ];
    for (name, state, settings) in settings {
        let (calls, states) = a_minute(settings).await;
        assert_eq!(states.len(), 60, "{name}: the shard is shown all the time");
        assert!(states.iter().filter(|seen| **seen == state).count() > 40, "{name}: {states:?}");
        assert!(calls.values().all(|calls| *calls <= 300), "{name}: {calls:?}");
    }
}

/// A stream of the user's whose reads panic.
#[derive(Debug)]
struct PanickingStream(kcl_core::test_util::SimulatedStream);

#[async_trait]
impl StreamApi for PanickingStream {
    async fn describe(&self) -> Result<StreamDescription, StreamError> {
        self.0.describe().await
    }

    async fn list_shards(&self, filter: ShardFilter) -> Result<Vec<Shard>, StreamError> {
        self.0.list_shards(filter).await
    }

    async fn shard_iterator(&self, shard: &ShardId, position: StartingPosition) -> Result<ShardIterator, StreamError> {
        self.0.shard_iterator(shard, position).await
    }

    async fn get_records(&self, _iterator: &ShardIterator, _limit: u32) -> Result<RecordsPage, StreamError> {
        panic!("a bug of the port")
    }
}

#[tokio::test(start_paused = true)]
async fn a_port_that_panics_is_asked_ever_more_seldom_and_the_shard_shows_it() {
    let aws = aws(1);
    let host = aws.host("host");
    let stream = Arc::new(PanickingStream(host.stream(STREAM)));
    let running = Running::start(&aws, "host", |builder| builder.stream_api(stream).processor(|_: &ShardContext| Poisoned)).await;
    until("it has failed", || running.shard().is_some_and(|shard| shard.state == ShardState::Failed)).await;
    let mut shown = 0;
    for _ in 0..600 {
        sleep(Duration::from_secs(1)).await;
        shown += u32::from(running.shard().is_some_and(|shard| shard.state == ShardState::Failed && shard.is_stuck()));
    }
    assert!(shown > 500, "{shown}");
    let counter = aws.leases(APPLICATION)[0].counter;
    assert!(counter < 60, "{counter} writes of the lease in ten minutes");
    running.stop().await.1.unwrap();
}

/// Pauses its own shard at the first record, and once more by a context that it has kept.
struct Pausing {
    database: Database,
    pauses: bool,
    kept: Arc<Mutex<Option<ShardContext>>>,
}

#[async_trait]
impl RecordProcessor for Pausing {
    async fn process_records(&mut self, batch: &RecordBatch, shard: &ShardContext) -> ProcessResult {
        batch.into_iter().for_each(|record| self.database.insert(record));
        if self.pauses && self.kept.lock().unwrap().is_none() {
            *self.kept.lock().unwrap() = Some(shard.clone());
            shard.pause();
        }
        Ok(Outcome::Done)
    }
}

#[tokio::test(start_paused = true)]
async fn a_pause_by_a_processor_ends_with_its_term_whoever_keeps_its_context() {
    let aws = aws(1);
    aws.put(STREAM, "key", "one");
    let (database, kept) = (Database::default(), Arc::default());
    let start = async |machine, pauses| {
        let (database, kept) = (database.clone(), Arc::clone(&kept));
        let made = move |_: &ShardContext| Pausing { database: database.clone(), pauses, kept: Arc::clone(&kept) };
        Running::start(&aws, machine, |builder| builder.processor(made)).await
    };
    let first = start("host-1", true).await;
    until("it has paused", || first.shard().is_some_and(|shard| shard.state == ShardState::Paused)).await;
    first.host.freeze();
    let second = start("host-2", false).await;
    until("the other one has it", || second.shard().is_some()).await;
    first.host.thaw();
    until("the first one knows", || first.handle.status().shards.is_empty()).await;
    second.kill().await;
    let context = kept.lock().unwrap().clone().unwrap();
    context.pause();
    assert_eq!(context.interruption(), Some(kcl_core::Interruption::LeaseLost));
    assert!(context.checkpointer().checkpoint().await.is_ok_and(|()| true) || context.interruption().is_some());
    aws.put(STREAM, "key", "two");
    until("it is processed", || database.count("two") == 1).await;
    first.stop().await.1.unwrap();
}

/// A record that has killed its processes before, and a build that could process it.
#[tokio::test(start_paused = true)]
async fn without_a_queue_a_suspect_is_tried_again_alone_after_a_wait() {
    #[derive(Clone)]
    struct Killer {
        host: kcl_core::test_util::Host,
        begun: Arc<AtomicU32>,
        database: Database,
        fixed: bool,
    }
    #[async_trait]
    impl RecordProcessor for Killer {
        async fn process_records(&mut self, batch: &RecordBatch, _shard: &ShardContext) -> ProcessResult {
            self.begun.fetch_add(1, Ordering::SeqCst);
            if !self.fixed {
                self.host.kill();
                std::future::pending::<()>().await;
            }
            batch.into_iter().for_each(|record| self.database.insert(record));
            Ok(Outcome::Done)
        }
    }
    let aws = aws(1);
    (0..3).for_each(|number| {
        aws.put(STREAM, "key", number.to_string());
    });
    let (begun, database) = (Arc::new(AtomicU32::new(0)), Database::default());
    let start = async |fixed| {
        let host = aws.host("host");
        let killer = Killer { host: host.clone(), begun: Arc::clone(&begun), database: database.clone(), fixed };
        let worker = host.worker(APPLICATION, STREAM).processor(move |_: &ShardContext| killer.clone()).build().await.unwrap();
        let handle = worker.handle();
        let mut task = tokio::task::JoinSet::new();
        task.spawn(host.run(worker.run()));
        Running { host, handle, task }
    };
    for _ in 0..5 {
        let running = start(false).await;
        until("it has died", || running.host.is_dead()).await;
        running.kill().await;
    }
    let fixed = start(true).await;
    until("all is processed", || database.distinct() == 3).await;
    assert_eq!(database.repeated(), 0);
    fixed.stop().await.1.unwrap();
}
