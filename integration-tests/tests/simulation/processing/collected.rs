//! Processors that collect records over several calls and checkpoint for themselves: whatever costs such a processor, what it held comes again.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicI64, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use kcl_core::stream::{RecordsPage, Shard, ShardFilter, ShardIterator, StartingPosition, StreamApi, StreamDescription, StreamError};
use kcl_core::test_util::{Service, SimulatedStream};
use kcl_core::{
    Batching, Checkpoint, Checkpointing, ExtendedSequenceNumber, Outcome, PoisonedKey, ProcessError, ProcessResult, ReadUntil, RecordBatch,
    RecordProcessor, RetryPolicy, SafetyValve, ShardContext, ShardId, ShardState, ShardStatus, TrimmedData, WorkerBuilder, async_trait,
};
use tokio::time::{Instant, sleep};

use super::service::{APPLICATION, Running, STREAM, Scene, Tells, shard, text, until};

const KEYS: usize = 3;
const FLUSHED_AT: usize = 7;
const DEADLINE: Duration = Duration::from_secs(20);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Strike {
    Panics,
    Overruns,
}

/// What all processors share.
#[derive(Clone, Default)]
struct World {
    /// Key and text of what was flushed.
    flushed: Arc<Mutex<Vec<(String, String)>>>,
    /// How often each record was begun.
    begun: Arc<Mutex<BTreeMap<String, u32>>>,
    /// Steps until the strike.
    fuse: Arc<AtomicI64>,
    ends: Arc<AtomicU32>,
}

/// Collects records, and flushes and checkpoints them when it has some.
struct Collecting {
    world: World,
    strike: Strike,
    tells: Tells,
    held: Vec<(String, String)>,
}

impl Collecting {
    async fn step(&self) {
        if self.world.fuse.fetch_sub(1, Ordering::Relaxed) == 1 {
            match self.strike {
                Strike::Panics => panic!("a bug of the service"),
                Strike::Overruns => std::future::pending().await,
            }
        }
    }

    async fn flush(&mut self, shard: &ShardContext) -> Result<(), ProcessError> {
        self.world.flushed.lock().unwrap().append(&mut self.held);
        Ok(shard.checkpointer().checkpoint().await?)
    }
}

#[async_trait]
impl RecordProcessor for Collecting {
    async fn process_records(&mut self, batch: &RecordBatch, shard: &ShardContext) -> ProcessResult {
        let mut held = Vec::new();
        for record in batch {
            self.step().await;
            let text = text(record);
            *self.world.begun.lock().unwrap().entry(text.clone()).or_default() += 1;
            match text.split(' ').next() {
                Some("poison") if self.tells == Tells::InOrder => {
                    return Ok(Outcome::failed_from(record, ProcessError::poison("it is poison")));
                }
                Some("poison") => return Err(ProcessError::poison("it is poison")),
                Some("panics") => panic!("a bug of the service"),
                _ => {}
            }
            let pair = (record.partition_key().unwrap_or_default().to_owned(), text);
            match self.tells {
                Tells::InOrder => {
                    self.held.push(pair);
                    batch.ack(record);
                }
                _ => held.push(pair),
            }
        }
        self.held.append(&mut held);
        if self.held.len() >= FLUSHED_AT {
            self.step().await;
            self.flush(shard).await?;
        }
        Ok(Outcome::Done)
    }

    async fn shard_ended(&mut self, shard: &ShardContext) -> Result<(), ProcessError> {
        if self.world.ends.fetch_add(1, Ordering::Relaxed) == 0 && self.strike == Strike::Panics {
            panic!("a bug of the service");
        }
        self.flush(shard).await
    }

    async fn shutdown_requested(&mut self, shard: &ShardContext) -> Result<(), ProcessError> {
        self.flush(shard).await
    }
}

impl World {
    fn texts(&self) -> BTreeSet<String> {
        self.flushed.lock().unwrap().iter().map(|(_, text)| text.clone()).collect()
    }

    fn begun(&self, text: &str) -> u32 {
        self.begun.lock().unwrap().get(text).copied().unwrap_or(0)
    }

    /// Of each key, each record's first flush comes in order.
    fn assert_in_order(&self, name: &str) {
        let mut keys: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for (key, text) in self.flushed.lock().unwrap().iter() {
            let seen = keys.entry(key.clone()).or_default();
            if !seen.contains(text) {
                seen.push(text.clone());
            }
        }
        for (key, seen) in keys {
            assert!(seen.is_sorted(), "{name}: {key} {seen:?}");
        }
    }
}

async fn start(scene: &mut Scene, world: &World, strike: Strike, tells: Tells, most: usize) -> Running {
    scene.start(|builder| collecting(builder, world, strike, tells, most)).await
}

fn collecting(builder: WorkerBuilder, world: &World, strike: Strike, tells: Tells, most: usize) -> WorkerBuilder {
    let world = world.clone();
    let policy = RetryPolicy { max_attempts: 3, patience: Duration::ZERO, attempt_deadline: Some(DEADLINE), ..RetryPolicy::default() };
    builder
        .checkpointing(Checkpointing::Manual)
        .batching(Batching::up_to(most))
        .retry_policy(policy)
        .processor(move |_: &ShardContext| Collecting { world: world.clone(), strike, tells, held: Vec::new() })
}

/// As [`start`], of a processor that panics when its records say so, with settings of its own.
async fn start_with(scene: &mut Scene, world: &World, most: usize, settings: impl FnOnce(WorkerBuilder) -> WorkerBuilder) -> Running {
    scene.start(|builder| settings(collecting(builder, world, Strike::Panics, Tells::InOrder, most))).await
}

fn put(scene: &Scene, what: &[&str]) -> ExtendedSequenceNumber {
    let mut last = None;
    for (index, text) in what.iter().enumerate() {
        let (_, number) = scene.aws.put(STREAM, &format!("key-{}", index % KEYS), (*text).to_owned());
        last = Some(ExtendedSequenceNumber::whole(number));
    }
    last.unwrap()
}

fn good(count: usize) -> Vec<String> {
    (0..count).map(|number| format!("good {number:02}")).collect()
}

fn strs(texts: &[String]) -> Vec<&str> {
    texts.iter().map(String::as_str).collect()
}

/// The worker has nothing left to do but to flush, and is let go.
async fn finish(scene: &mut Scene, running: Running, last: ExtendedSequenceNumber) {
    let is_finished =
        |status: &ShardStatus| status.finished == Some(last) && status.call.is_none() && status.state == ShardState::Processing;
    until("all is finished", || running.handle.status().shards.get(&shard()).is_some_and(is_finished)).await;
    scene.stop(running).await;
}

#[tokio::test(start_paused = true)]
async fn a_processor_that_is_lost_at_any_step_takes_nothing_with_it() {
    let texts = good(25);
    for (strike, tells) in
        [Strike::Panics, Strike::Overruns].into_iter().flat_map(|strike| [(strike, Tells::InOrder), (strike, Tells::Nothing)])
    {
        let mut struck = 0;
        for steps in 1.. {
            let name = format!("{strike:?} {tells:?} at step {steps}");
            let (mut scene, world) = (Scene::new(1, Tells::InOrder), World::default());
            world.fuse.store(steps, Ordering::Relaxed);
            let last = put(&scene, &strs(&texts));
            let running = start(&mut scene, &world, strike, tells, 3).await;
            finish(&mut scene, running, last).await;
            assert_eq!(world.texts(), texts.iter().cloned().collect(), "{name}");
            world.assert_in_order(&name);
            assert_eq!(scene.aws.leases(APPLICATION)[0].checkpoint, Checkpoint::At(last), "{name}");
            assert_eq!(scene.letters().len(), 0, "{name}");
            // No more comes again than what was collected, and the batch that was in work, whose culprit is looked for.
            assert!(texts.iter().all(|text| world.begun(text) <= 4), "{name}: {:?}", world.begun);
            if world.fuse.load(Ordering::Relaxed) > 0 {
                break;
            }
            struck += 1;
        }
        assert!(struck >= 25 + 3, "each record's step, and each flush's");
    }
}

/// Each attempt costs what was collected, and still its attempts are counted.
#[tokio::test(start_paused = true)]
async fn a_record_that_always_panics_is_given_up() {
    for tells in [Tells::InOrder, Tells::Nothing] {
        for most in [1, 4, 100] {
            let name = format!("{tells:?}, {most} at once");
            let (mut scene, world) = (Scene::new(2, Tells::InOrder), World::default());
            let mut texts = good(20);
            texts.insert(5, "panics 1".to_owned());
            texts.insert(16, "panics 2".to_owned());
            let last = put(&scene, &strs(&texts));
            let running = start(&mut scene, &world, Strike::Panics, tells, most).await;
            finish(&mut scene, running, last).await;
            assert_eq!(world.texts(), good(20).into_iter().collect(), "{name}");
            world.assert_in_order(&name);
            assert_eq!(scene.letter_texts(), ["panics 1", "panics 2"], "{name}");
            // To find it out in a batch of 22 takes five divisions.
            assert!((3..=8).contains(&world.begun("panics 1")), "{name}: {}", world.begun("panics 1"));
            let most_begun = world.begun.lock().unwrap().values().copied().max();
            assert!(most_begun <= Some(20), "{name}: {most_begun:?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn what_the_queue_has_does_not_come_again_with_what_was_collected() {
    for tells in [Tells::InOrder, Tells::Nothing] {
        let (mut scene, world) = (Scene::new(3, Tells::InOrder), World::default());
        let mut texts = good(6);
        texts.insert(1, "poison 1".to_owned());
        let last = put(&scene, &strs(&texts));
        // The last record: all before is collected, or in the queue.
        let running = start(&mut scene, &world, Strike::Panics, tells, 1).await;
        world.fuse.store(7, Ordering::Relaxed);
        finish(&mut scene, running, last).await;
        assert_eq!(world.texts(), good(6).into_iter().collect());
        assert_eq!((scene.letter_texts(), world.begun("poison 1")), (vec!["poison 1".to_owned()], 1));
        assert!((world.begun("good 00"), world.begun("good 04")) == (2, 2), "{:?}", world.begun);
    }
}

/// Whoever comes next reads it all: the lease says nothing of it but what a checkpoint has said.
#[tokio::test(start_paused = true)]
async fn what_is_collected_counts_as_finished_nowhere() {
    let (mut scene, world) = (Scene::new(5, Tells::InOrder), World::default());
    let before = scene.aws.time();
    let mut texts = good(4);
    texts.insert(2, "poison 1".to_owned());
    let last = put(&scene, &strs(&texts));
    let running = start(&mut scene, &world, Strike::Panics, Tells::InOrder, 1).await;
    let finished = || running.handle.status().shards.get(&shard()).and_then(|status| status.finished);
    until("all is collected", || finished() == Some(last)).await;
    sleep(Duration::from_secs(60)).await;
    let lease = scene.aws.leases(APPLICATION).remove(0);
    assert_eq!((lease.checkpoint, lease.finished_beyond), (Checkpoint::TrimHorizon, None));
    assert!(lease.watermark.is_none_or(|watermark| watermark <= before), "{:?}", lease.watermark);
    running.host.kill();
    let next = start(&mut scene, &world, Strike::Panics, Tells::InOrder, 1).await;
    until("it comes again", || world.begun("good 03") == 2).await;
    next.handle.shutdown();
    until("it is flushed", || world.texts() == good(4).into_iter().collect()).await;
    sleep(Duration::from_secs(60)).await;
    assert_eq!(scene.aws.leases(APPLICATION)[0].checkpoint, Checkpoint::At(last));
}

#[tokio::test(start_paused = true)]
async fn a_processor_that_is_lost_at_the_end_of_its_shard_takes_nothing_with_it() {
    let (mut scene, world) = (Scene::new(4, Tells::InOrder), World::default());
    let texts = good(10);
    put(&scene, &strs(&texts));
    scene.split();
    until("it is split", || scene.aws.shards(STREAM).unwrap().len() == 3).await;
    let running = start(&mut scene, &world, Strike::Panics, Tells::InOrder, 4).await;
    let checkpoint = || scene.aws.leases(APPLICATION).into_iter().find(|lease| lease.shard_id == shard()).map(|lease| lease.checkpoint);
    until("the shard is ended", || checkpoint() == Some(Checkpoint::ShardEnd)).await;
    assert_eq!(world.texts(), texts.into_iter().collect());
    world.assert_in_order("at the end");
    assert!(world.ends.load(Ordering::Relaxed) >= 2);
    scene.stop(running).await;
}

/// The last record before the bound costs its processor, and goes to the queue: what was collected comes again before the shard is let go.
#[tokio::test(start_paused = true)]
async fn what_was_collected_is_flushed_before_the_bound() {
    let (mut scene, world) = (Scene::new(6, Tells::InOrder), World::default());
    put(&scene, &["good 00", "good 01", "good 02", "panics 1"]);
    sleep(Duration::from_secs(5)).await;
    let bound = ReadUntil::Time(scene.aws.time());
    sleep(Duration::from_secs(5)).await;
    put(&scene, &["good late"]);
    start_with(&mut scene, &world, 100, |builder| builder.read_until(bound)).await;
    scene.ended().await;
    assert_eq!(world.texts(), good(3).into_iter().collect());
    assert_eq!(scene.letter_texts(), ["panics 1"]);
}

#[tokio::test(start_paused = true)]
async fn only_later_records_of_a_key_follow_a_poisoned_one() {
    let (mut scene, world) = (Scene::new(7, Tells::InOrder), World::default());
    for text in ["good 00", "good 01", "good 02", "panics 1", "good 03", "good 04"] {
        scene.put("a", text);
    }
    let running = start_with(&mut scene, &world, 1, |builder| builder.poisoned_key(PoisonedKey::Follow)).await;
    until("the later ones have followed", || scene.letters().len() == 3).await;
    scene.stop(running).await;
    assert_eq!(scene.letter_texts(), ["panics 1", "good 03", "good 04"]);
    assert_eq!(world.texts(), good(3).into_iter().collect());
}

/// What comes again tells nothing good of the program.
#[tokio::test(start_paused = true)]
async fn the_safety_valve_does_not_count_repetitions() {
    for collected in [0, 6] {
        let (mut scene, world) = (Scene::new(8, Tells::InOrder), World::default());
        let mut texts = good(collected);
        texts.extend((0..40).map(|number| format!("panics {number:02}")));
        put(&scene, &strs(&texts));
        let valve = SafetyValve { window: 10, most: 3 };
        let running = start_with(&mut scene, &world, 1, |builder| builder.safety_valve(Some(valve))).await;
        let state = || running.handle.status().shards.get(&shard()).map(|status| status.state);
        until("it has stopped", || state() == Some(ShardState::StoppedBySafetyValve)).await;
        assert_eq!(scene.letters().len(), 3, "{collected} collected");
        running.host.kill();
    }
}

/// An outage that makes a processor panic is waited out as the policy has it, also if each attempt begins with repetitions.
#[tokio::test(start_paused = true)]
async fn waits_grow_from_attempt_to_attempt() {
    for collected in [0, 3] {
        let (mut scene, world) = (Scene::new(9, Tells::InOrder), World::default());
        let mut texts = good(collected);
        texts.push("panics 1".to_owned());
        put(&scene, &strs(&texts));
        let policy =
            RetryPolicy { max_attempts: 20, patience: Duration::ZERO, first_backoff: Duration::from_millis(200), ..RetryPolicy::default() };
        let began = Instant::now();
        let running = start_with(&mut scene, &world, 1, |builder| builder.retry_policy(policy)).await;
        until("it is given up", || scene.letters().len() == 1).await;
        // 19 waits, each at random up to 0.2, 0.4, 0.8 ... 10 s: half of 142 s on average. Rewinds alone take 20 s.
        assert!(began.elapsed() > Duration::from_secs(40), "{collected} collected: {:?}", began.elapsed());
        running.host.kill();
    }
}

/// Notes where reading begins.
#[derive(Debug)]
struct Watched(SimulatedStream, Arc<Mutex<Vec<StartingPosition>>>);

#[async_trait]
impl StreamApi for Watched {
    async fn describe(&self) -> Result<StreamDescription, StreamError> {
        self.0.describe().await
    }

    async fn list_shards(&self, filter: ShardFilter) -> Result<Vec<Shard>, StreamError> {
        self.0.list_shards(filter).await
    }

    async fn shard_iterator(&self, shard: &ShardId, start: StartingPosition) -> Result<ShardIterator, StreamError> {
        self.1.lock().unwrap().push(start);
        self.0.shard_iterator(shard, start).await
    }

    async fn get_records(&self, iterator: &ShardIterator, limit: u32) -> Result<RecordsPage, StreamError> {
        self.0.get_records(iterator, limit).await
    }
}

/// However long the rewind had to wait for the queue.
#[tokio::test(start_paused = true)]
async fn reading_begins_again_at_the_checkpoint_and_not_at_that_of_the_term() {
    let (mut scene, world) = (Scene::new(10, Tells::InOrder), World::default());
    put(&scene, &strs(&good(21)));
    let begun = Arc::default();
    let stream = Watched(scene.aws.host("host-1").stream(STREAM), Arc::clone(&begun));
    let running = start_with(&mut scene, &world, 7, |builder| builder.stream_api(Arc::new(stream))).await;
    let checkpoint = || scene.aws.leases(APPLICATION).first().and_then(|lease| lease.checkpoint.record());
    until("all is flushed", || world.texts().len() == 21 && checkpoint().is_some()).await;
    sleep(Duration::from_secs(5)).await;
    let reached = checkpoint().unwrap();
    scene.aws.faults().outage(Service::DeadLetters, scene.aws.elapsed() + Duration::from_secs(400));
    put(&scene, &["good 21", "panics 1", "good 22"]);
    until("it is given up", || scene.letters().len() == 1).await;
    sleep(Duration::from_secs(60)).await;
    scene.stop(running).await;
    assert_eq!(world.texts(), good(23).into_iter().collect());
    let mut begun = begun.lock().unwrap().clone();
    assert_eq!(begun.remove(0), StartingPosition::TrimHorizon);
    assert!(begun.len() >= 3, "{begun:?}");
    assert!(begun.iter().all(|start| *start == StartingPosition::AtSequenceNumber(reached.sequence_number)), "{begun:?} {reached}");
}

/// A broken aggregate without a queue holds its shard back, but not what comes before it.
#[tokio::test(start_paused = true)]
async fn what_comes_before_a_broken_aggregate_is_flushed_without_a_queue_too() {
    for strike in [0, 3] {
        let (scene, world) = (Scene::new(11, Tells::InOrder), World::default());
        world.fuse.store(strike, Ordering::Relaxed);
        put(&scene, &strs(&good(8)));
        scene.aws.put(STREAM, "k", super::aggregates::broken());
        let host = scene.aws.host("without-a-queue");
        let builder = collecting(host.worker(APPLICATION, STREAM), &world, Strike::Panics, Tells::InOrder, 100);
        let worker = builder.build().await.unwrap();
        let mut workers = tokio::task::JoinSet::new();
        workers.spawn(host.run(worker.run()));
        until("those before it are flushed", || world.texts().len() == 8).await;
        host.kill();
    }
}

/// What a lost processor had collected must come again, and some of it has been trimmed meanwhile: that is a gap like any other.
#[tokio::test(start_paused = true)]
async fn what_was_collected_and_trimmed_since_is_not_passed_over_in_silence() {
    for trimmed in [TrimmedData::Block, TrimmedData::SkipAndAudit] {
        let (mut scene, world) = (Scene::new(13, Tells::InOrder), World::default());
        put(&scene, &strs(&good(6)[..3]));
        sleep(Duration::from_secs(120)).await;
        put(&scene, &strs(&good(6)[3..]));
        // The first three are about to be trimmed.
        sleep(Duration::from_secs(24 * 3600 - 150)).await;
        world.fuse.store(7, Ordering::Relaxed);
        let running = start_with(&mut scene, &world, 1, |builder| builder.trimmed_data(trimmed)).await;
        until("all is collected", || (0..6).all(|number| world.begun(&format!("good 0{number}")) == 1)).await;
        sleep(Duration::from_secs(90)).await;
        assert_eq!(world.texts().len(), 0);
        // At this one it panics.
        let last = put(&scene, &["good 06"]);
        if trimmed == TrimmedData::Block {
            let state = || running.handle.status().shards.get(&shard()).map(|status| status.state);
            until("it says so", || state() == Some(ShardState::BlockedByTrimmedRecords)).await;
            assert_eq!(world.texts().len(), 0);
            running.host.kill();
        } else {
            finish(&mut scene, running, last).await;
            assert_eq!(world.texts(), good(7)[3..].iter().cloned().collect());
        }
    }
}

/// What is in the queue is finished, as if a processor had checkpointed it: else a quiet shard would come to look as if records had been trimmed unread.
#[tokio::test(start_paused = true)]
async fn dead_letters_alone_move_the_watermark() {
    let (mut scene, world) = (Scene::new(12, Tells::InOrder), World::default());
    put(&scene, &["poison 1"]);
    let running = start(&mut scene, &world, Strike::Panics, Tells::InOrder, 1).await;
    until("it is in the queue", || scene.letters().len() == 1).await;
    let accepted = scene.aws.time();
    let watermark = || scene.aws.leases(APPLICATION)[0].watermark;
    until("the watermark passes it", || watermark() > Some(accepted)).await;
    running.host.kill();
}
