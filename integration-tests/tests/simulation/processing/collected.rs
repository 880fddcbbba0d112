//! Processors that collect records over several calls and checkpoint for themselves: whatever costs such a processor, what it held comes again.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicI64, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use kcl_core::test_util::kinesis_model::SplitShardInput;
use kcl_core::{
    Checkpoint, Checkpointing, ExtendedSequenceNumber, Outcome, ProcessError, ProcessResult, RecordBatch, RecordProcessor, RetryPolicy,
    ShardContext, WorkerBuilder, async_trait,
};
use tokio::time::sleep;

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
        let records: Box<dyn Iterator<Item = _> + Send> = match self.tells {
            Tells::InOrder => Box::new(batch.in_order()),
            _ => Box::new(batch.records().iter()),
        };
        let mut held = Vec::new();
        for record in records {
            self.step().await;
            let text = text(record);
            *self.world.begun.lock().unwrap().entry(text.clone()).or_default() += 1;
            match text.split(' ').next() {
                Some("poison") => return Err(ProcessError::poison("it is poison")),
                Some("panics") => panic!("a bug of the service"),
                _ => {}
            }
            let record = (record.partition_key().unwrap_or_default().to_owned(), text);
            match self.tells {
                Tells::InOrder => self.held.push(record),
                _ => held.push(record),
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
    let world = world.clone();
    let policy = RetryPolicy { max_attempts: 3, attempt_deadline: Some(DEADLINE), ..RetryPolicy::default() };
    let settings = |builder: WorkerBuilder| {
        builder
            .checkpointing(Checkpointing::Manual)
            .max_batch_records(most)
            .retry_policy(policy)
            .processor(move |_: &ShardContext| Collecting { world: world.clone(), strike, tells, held: Vec::new() })
    };
    scene.start(settings).await
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
    let finished = || running.handle.status().shards.get(&shard()).and_then(|status| status.finished);
    until("all is finished", || finished() == Some(last)).await;
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
    let split = SplitShardInput {
        stream_name: Some(STREAM.to_owned()),
        shard_to_split: shard().to_string(),
        new_starting_hash_key: (1u128 << 127).to_string(),
        ..SplitShardInput::default()
    };
    scene.aws.kinesis().call(split).unwrap();
    until("it is split", || scene.aws.shards(STREAM).unwrap().len() == 3).await;
    let running = start(&mut scene, &world, Strike::Panics, Tells::InOrder, 4).await;
    let checkpoint = || scene.aws.leases(APPLICATION).into_iter().find(|lease| lease.shard_id == shard()).map(|lease| lease.checkpoint);
    until("the shard is ended", || checkpoint() == Some(Checkpoint::ShardEnd)).await;
    assert_eq!(world.texts(), texts.into_iter().collect());
    world.assert_in_order("at the end");
    assert!(world.ends.load(Ordering::Relaxed) >= 2);
    scene.stop(running).await;
}
