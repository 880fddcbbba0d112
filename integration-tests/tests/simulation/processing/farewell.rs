//! The last calls that a processor gets: the shard's end, or that the shard is not its any more, and never both.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use kcl_core::test_util::{Cut, Service, SimulatedAws};
use kcl_core::{
    Checkpointing, Interruption, Lanes, Outcome, ProcessError, ProcessResult, RecordBatch, RecordProcessor, RetryPolicy, ShardContext,
    ShardInfo, ShardState, WorkerBuilder, async_trait,
};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use super::service::{APPLICATION, STREAM, Scene, Tells, shard, text, until};

/// Tells which calls came for the first shard, each once in a row.
#[derive(Clone, Default)]
struct Told(Arc<Mutex<Vec<&'static str>>>);

impl Told {
    fn note(&self, about: &ShardInfo, call: &'static str) {
        let mut calls = self.0.lock().unwrap();
        if *about.shard_id() == shard() && calls.last() != Some(&call) {
            calls.push(call);
        }
    }

    fn calls(&self) -> Vec<&'static str> {
        self.0.lock().unwrap().clone()
    }
}

#[async_trait]
impl RecordProcessor for Told {
    async fn process_records(&mut self, _batch: &RecordBatch, shard: &ShardContext) -> ProcessResult {
        self.note(shard, "records");
        Ok(Outcome::Done)
    }

    async fn lease_lost(&mut self, shard: &ShardInfo) {
        self.note(shard, "lease lost");
    }

    async fn shard_ended(&mut self, shard: &ShardContext) -> Result<(), ProcessError> {
        self.note(shard, "shard ended");
        Ok(shard.checkpointer().checkpoint().await?)
    }

    async fn shutdown_requested(&mut self, shard: &ShardContext) -> Result<(), ProcessError> {
        self.note(shard, "shutdown requested");
        Ok(shard.checkpointer().checkpoint().await?)
    }
}

/// Leaves the checkpoint to the framework.
struct Relying(Told);

#[async_trait]
impl RecordProcessor for Relying {
    async fn process_records(&mut self, batch: &RecordBatch, shard: &ShardContext) -> ProcessResult {
        self.0.process_records(batch, shard).await
    }

    async fn lease_lost(&mut self, shard: &ShardInfo) {
        self.0.lease_lost(shard).await;
    }

    async fn shard_ended(&mut self, shard: &ShardContext) -> Result<(), ProcessError> {
        self.0.note(shard, "shard ended");
        Ok(())
    }

    async fn shutdown_requested(&mut self, shard: &ShardContext) -> Result<(), ProcessError> {
        self.0.note(shard, "shutdown requested");
        Ok(())
    }
}

fn telling(told: &Told, manual: bool, lanes: usize) -> impl FnOnce(WorkerBuilder) -> WorkerBuilder + use<> {
    let told = told.clone();
    move |builder| {
        if manual {
            builder.checkpointing(Checkpointing::Manual).processor(move |_: &ShardContext| told.clone())
        } else {
            builder.lanes(Lanes::new(lanes)).processor(move |_: &ShardContext| Relying(told.clone()))
        }
    }
}

#[tokio::test(start_paused = true)]
async fn at_the_end_of_its_shard_a_processor_is_told_of_that_alone() {
    for (manual, lanes) in [(false, 1), (false, 4), (true, 1)] {
        let (mut scene, told) = (Scene::new(1, Tells::InOrder), Told::default());
        for key in ["a", "b", "c", "d", "e"] {
            scene.put(key, "good");
        }
        let running = scene.start(telling(&told, manual, lanes)).await;
        until("it has records", || told.calls() == ["records"]).await;
        scene.split();
        let ended = || scene.aws.leases(APPLICATION).iter().any(|lease| lease.shard_id == shard() && lease.checkpoint.is_shard_end());
        until("the shard is ended", ended).await;
        sleep(Duration::from_secs(30)).await;
        assert_eq!(told.calls(), ["records", "shard ended"], "manual: {manual}, lanes: {lanes}");
        scene.stop(running).await;
        assert_eq!(told.calls(), ["records", "shard ended"], "manual: {manual}, lanes: {lanes}");
    }
}

#[tokio::test(start_paused = true)]
async fn when_its_shard_goes_a_processor_is_told_so() {
    for manual in [false, true] {
        let (mut scene, told) = (Scene::new(2, Tells::InOrder), Told::default());
        scene.put("a", "good");
        let running = scene.start(telling(&told, manual, 1)).await;
        until("it has records", || told.calls() == ["records"]).await;
        scene.stop(running).await;
        assert_eq!(told.calls(), ["records", "shutdown requested", "lease lost"], "manual: {manual}");
    }
}

/// Holds what it is given until it is asked to let go.
#[derive(Clone)]
struct Holding {
    held: Vec<String>,
    written: Arc<Mutex<Vec<String>>>,
    told: Told,
}

#[async_trait]
impl RecordProcessor for Holding {
    async fn process_records(&mut self, batch: &RecordBatch, _shard: &ShardContext) -> ProcessResult {
        self.held.extend(batch.records().iter().map(text));
        Ok(Outcome::Done)
    }

    async fn shutdown_requested(&mut self, shard: &ShardContext) -> Result<(), ProcessError> {
        self.told.note(shard, "shutdown requested");
        self.written.lock().unwrap().append(&mut self.held);
        Ok(shard.checkpointer().checkpoint().await?)
    }

    async fn lease_lost(&mut self, shard: &ShardInfo) {
        self.told.note(shard, "lease lost");
    }
}

/// Another worker has long written what this one still holds.
#[tokio::test(start_paused = true)]
async fn nobody_is_asked_to_let_go_in_peace_whose_lease_has_run_out() {
    let aws = SimulatedAws::new(3);
    aws.create_stream(STREAM, 1);
    let processor = Holding { held: Vec::new(), written: Arc::default(), told: Told::default() };
    let (made, host) = (processor.clone(), aws.host("a"));
    let builder = host.worker(APPLICATION, STREAM).checkpointing(Checkpointing::Manual).shutdown_timeout(Duration::from_secs(5));
    let worker = builder.processor(move |_: &ShardContext| made.clone()).build().await.unwrap();
    let handle = worker.handle();
    let mut task = JoinSet::new();
    task.spawn(host.run(worker.run()));
    aws.put(STREAM, "key", "1");
    sleep(Duration::from_secs(10)).await;
    aws.faults().partition("a", Service::LeaseTable, Cut::Requests, Duration::from_secs(3600));
    until("it has run out", || handle.status().shards.values().all(|shard| shard.state == ShardState::Suspended)).await;
    handle.shutdown();
    let ended = task.join_next().await.unwrap().unwrap();
    assert!(ended.is_err(), "the table does not answer: {ended:?}");
    assert_eq!(processor.told.calls(), ["lease lost"]);
    assert!(processor.written.lock().unwrap().is_empty());
}

/// Gives up its checkpoint after a second, and fails.
struct Impatient(Told);

#[async_trait]
impl RecordProcessor for Impatient {
    async fn process_records(&mut self, _batch: &RecordBatch, shard: &ShardContext) -> ProcessResult {
        let written = tokio::time::timeout(Duration::from_secs(1), shard.checkpointer().checkpoint()).await;
        self.0.note(shard, "records");
        written??;
        Ok(Outcome::Done)
    }

    async fn lease_lost(&mut self, shard: &ShardInfo) {
        self.0.lease_lost(shard).await;
    }

    async fn shutdown_requested(&mut self, shard: &ShardContext) -> Result<(), ProcessError> {
        self.0.note(shard, "shutdown requested");
        Ok(())
    }
}

/// Its call has returned, and nothing is known of its checkpoint: it is in no call that could be cut off.
#[tokio::test(start_paused = true)]
async fn a_processor_whose_checkpoint_is_not_confirmed_hears_the_farewell() {
    let aws = SimulatedAws::new(7);
    aws.create_stream(STREAM, 1);
    let (told, host) = (Told::default(), aws.host("a"));
    let made = told.clone();
    let builder = host.worker(APPLICATION, STREAM).checkpointing(Checkpointing::Manual).shutdown_timeout(Duration::from_secs(5));
    let worker = builder.processor(move |_: &ShardContext| Impatient(made.clone())).build().await.unwrap();
    let handle = worker.handle();
    let mut task = JoinSet::new();
    task.spawn(host.run(worker.run()));
    sleep(Duration::from_secs(10)).await;
    aws.faults().partition("a", Service::LeaseTable, Cut::Requests, Duration::from_secs(3600));
    aws.put(STREAM, "key", "1");
    until("it was called", || told.calls() == ["records"]).await;
    handle.shutdown();
    let ended = task.join_next().await.unwrap().unwrap();
    assert!(ended.is_err(), "the table does not answer: {ended:?}");
    assert_eq!(told.calls(), ["records", "shutdown requested", "lease lost"]);
}

/// The end was read before the pause, while a call was under way.
#[tokio::test(start_paused = true)]
async fn a_shard_that_is_paused_is_not_ended() {
    let mut scene = Scene::new(4, Tells::InOrder);
    let running = scene.start(|builder| builder.lanes(Lanes::new(2)).retry_policy(RetryPolicy::default())).await;
    scene.put("a", "slow 1");
    until("it is in work", || running.handle.status().shards.get(&shard()).is_some_and(|shard| shard.call.is_some())).await;
    scene.split();
    sleep(Duration::from_secs(60)).await;
    running.handle.pause();
    until("the call ends", || scene.done.texts() == ["slow 1"]).await;
    sleep(Duration::from_secs(120)).await;
    let ended = || scene.aws.leases(APPLICATION).iter().any(|lease| lease.shard_id == shard() && lease.checkpoint.is_shard_end());
    assert!(!ended());
    assert_eq!(running.handle.status().shards[&shard()].state, ShardState::Paused);
    running.handle.resume();
    until("it is ended", ended).await;
    scene.stop(running).await;
}

#[tokio::test(start_paused = true)]
async fn who_waits_for_an_interruption_hears_that_the_worker_is_gone() {
    let aws = SimulatedAws::new(5);
    aws.create_stream(STREAM, 1);
    let (kept, host) = (Arc::<Mutex<Option<ShardContext>>>::default(), aws.host("a"));
    let keeps = Arc::clone(&kept);
    let make = move |shard: &ShardContext| {
        *keeps.lock().unwrap() = Some(shard.clone());
        Told::default()
    };
    let worker = host.worker(APPLICATION, STREAM).processor(make).build().await.unwrap();
    let mut task = JoinSet::new();
    task.spawn(host.run(worker.run()));
    until("it has the shard", || kept.lock().unwrap().is_some()).await;
    let context = kept.lock().unwrap().clone().unwrap();
    task.shutdown().await;
    assert_eq!(context.interrupted().await, Interruption::LeaseLost);
}

/// A long call keeps nobody from seeing that the lease is gone.
#[tokio::test(start_paused = true)]
async fn a_lease_that_runs_out_in_a_call_is_shown_at_once() {
    let mut scene = Scene::new(6, Tells::InOrder);
    let running = scene.start(|builder| builder.retry_policy(RetryPolicy::default())).await;
    scene.put("a", "slow");
    until("it is in work", || running.handle.status().shards.get(&shard()).is_some_and(|shard| shard.call.is_some())).await;
    let cut = Instant::now();
    scene.aws.faults().partition("host-1", Service::LeaseTable, Cut::Requests, Duration::from_secs(600));
    until("it is shown", || running.handle.status().shards[&shard()].state == ShardState::Suspended).await;
    assert!(cut.elapsed() < Duration::from_secs(11), "{:?}", cut.elapsed());
}
