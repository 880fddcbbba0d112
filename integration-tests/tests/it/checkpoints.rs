//! Where reading starts, and who moves the checkpoint.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use kcl_core::{
    Checkpoint, CheckpointError, Checkpointing, Clock, ExtendedSequenceNumber, InitialPosition, Outcome, ProcessError, ProcessResult,
    RecordBatch, RecordProcessor, ShardContext, ShardId, ShardState, SystemClock, WorkerBuilder, async_trait,
};
use kcl_local::wire::Service;
use tokio::time::{Instant, sleep};

use crate::support::{Ledger, Running, World, eventually};

const FIRST: &str = "shardId-000000000000";
const SECOND: &str = "shardId-000000000001";
const CHILD: &str = "shardId-000000000002";

fn set<const N: usize>(payloads: [&str; N]) -> BTreeSet<String> {
    payloads.map(ToOwned::to_owned).into()
}

/// What a processor with manual checkpoints does.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Habit {
    Never,
    /// After each batch, and at the end of the shard.
    Always,
    /// After each batch, but never at the end of the shard.
    NotAtTheEnd,
}

#[derive(Clone)]
struct Manual {
    ledger: Ledger,
    habit: Habit,
    ends: Arc<Mutex<Vec<ShardId>>>,
}

impl Manual {
    fn new(ledger: &Ledger, habit: Habit) -> Self {
        Self { ledger: ledger.clone(), habit, ends: Arc::default() }
    }

    fn worker(&self, world: &World, name: &str) -> WorkerBuilder {
        let processor = self.clone();
        world.worker(name, &self.ledger).checkpointing(Checkpointing::Manual).processor(move |_: &ShardContext| processor.clone())
    }

    fn ends(&self) -> Vec<ShardId> {
        self.ends.lock().unwrap().clone()
    }
}

#[async_trait]
impl RecordProcessor for Manual {
    async fn process_records(&mut self, batch: &RecordBatch, shard: &ShardContext) -> ProcessResult {
        for record in batch {
            self.ledger.record("manual", shard, record);
        }
        if self.habit != Habit::Never {
            shard.checkpointer().checkpoint().await?;
        }
        Ok(Outcome::Done)
    }

    async fn shard_ended(&mut self, shard: &ShardContext) -> Result<(), ProcessError> {
        self.ends.lock().unwrap().push(shard.shard_id().clone());
        if self.habit == Habit::Always {
            shard.checkpointer().checkpoint().await?;
        }
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_processor_does_not_checkpoint_is_delivered_again() {
    let world = World::with_shards(2).await;
    let published = world.publish(20, 0, 100).await;
    for (habit, again) in [(Habit::Never, &published), (Habit::Always, &published), (Habit::Always, &BTreeSet::new())] {
        let ledger = Ledger::default();
        let worker = Running::start(Manual::new(&ledger, habit).worker(&world, "a")).await;
        ledger.has_all(again).await;
        if habit == Habit::Never {
            assert_eq!(world.checkpoint(FIRST).await.unwrap(), "TRIM_HORIZON");
        } else if again.is_empty() {
            // Both shards were read to their tips.
            eventually("both shards are read", async || {
                let shards = worker.handle.status().shards;
                (shards.len() == 2 && shards.values().all(|status| status.millis_behind_latest == Some(0))).then_some(())
            })
            .await;
        } else {
            eventually("the status tells the checkpoints", async || {
                let shards = worker.handle.status().shards;
                shards.values().all(|status| status.finished.map(Checkpoint::At) == Some(status.checkpoint)).then_some(())
            })
            .await;
        }
        worker.stop().await.unwrap();
        assert_eq!(ledger.payloads(), *again);
        assert_eq!(ledger.duplicates(), []);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn children_wait_until_the_end_of_their_parent_is_checkpointed() {
    let world = World::with_shards(2).await;
    world.put(FIRST, "a", "a:0").await;
    world.split(FIRST).await;
    world.put(CHILD, "a", "a:1").await;
    let ledger = Ledger::default();
    let forgetful = Manual::new(&ledger, Habit::NotAtTheEnd);
    let worker = Running::start(forgetful.worker(&world, "a")).await;
    eventually("shard_ended is called again and again", async || (forgetful.ends().len() >= 4).then_some(())).await;
    assert!(forgetful.ends().iter().all(|shard| shard.as_str() == FIRST));
    assert_eq!(worker.state(FIRST), Some(ShardState::Ending));
    assert_eq!(worker.state(CHILD), None);
    worker.stop().await.unwrap();
    assert_eq!(ledger.payloads(), set(["a:0"]));
    assert_ne!(world.checkpoint(FIRST).await.unwrap(), "SHARD_END");

    let careful = Manual::new(&ledger, Habit::Always);
    let worker = Running::start(careful.worker(&world, "b")).await;
    ledger.has_all(&set(["a:0", "a:1"])).await;
    worker.stop().await.unwrap();
    assert_eq!(careful.ends(), [FIRST.into()]);
    assert_eq!(world.checkpoint(FIRST).await.unwrap(), "SHARD_END");
    assert_eq!(ledger.duplicates(), []);
}

/// Tries checkpoints that it may not make, and keeps the answers.
struct Greedy(Arc<Mutex<Vec<CheckpointError>>>);

#[async_trait]
impl RecordProcessor for Greedy {
    async fn process_records(&mut self, batch: &RecordBatch, shard: &ShardContext) -> ProcessResult {
        let (first, last) = (batch.records()[0].position(), batch.records()[batch.len() - 1].position());
        let beyond = ExtendedSequenceNumber::new(last.sequence_number, last.sub_sequence_number + 1);
        let refusals = [shard.checkpointer().checkpoint_at(beyond).await, {
            shard.checkpointer().checkpoint_at(last).await?;
            shard.checkpointer().checkpoint_at(first).await
        }];
        self.0.lock().unwrap().extend(refusals.into_iter().filter_map(Result::err));
        Ok(Outcome::Done)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_checkpoint_beyond_what_was_delivered_or_backwards_is_refused() {
    let world = World::with_shards(1).await;
    let numbers = [world.put(FIRST, "a", "a:0").await, world.put(FIRST, "a", "a:1").await];
    let refusals = Arc::new(Mutex::new(Vec::new()));
    let kept = Arc::clone(&refusals);
    let builder = world.worker("a", &Ledger::default()).checkpointing(Checkpointing::Manual);
    let worker = Running::start(builder.processor(move |_: &ShardContext| Greedy(Arc::clone(&kept)))).await;
    eventually("two refusals", async || (refusals.lock().unwrap().len() == 2).then_some(())).await;
    worker.stop().await.unwrap();
    assert_eq!(world.checkpoint(FIRST).await.unwrap(), numbers[1].to_string());
    let refusals = refusals.lock().unwrap();
    assert!(matches!(refusals[0], CheckpointError::BeyondDelivered { .. }), "{:?}", refusals[0]);
    assert!(matches!(refusals[1], CheckpointError::Backwards { .. }), "{:?}", refusals[1]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_busy_shard_costs_one_write_per_checkpoint_interval() {
    let world = World::with_shards(4).await;
    let Some(faults) = world.faults() else { return };
    let ledger = Ledger::default();
    let worker = Running::start(world.worker("a", &ledger)).await;
    eventually("all shards are held", async || (worker.shards().len() == 4).then_some(())).await;
    faults.reset_counts();
    let (started, mut next, mut published) = (Instant::now(), 0, BTreeSet::new());
    while started.elapsed() < Duration::from_secs(4) {
        published.extend(world.publish(40, next, 40).await);
        next += 40;
        sleep(Duration::from_millis(100)).await;
    }
    ledger.has_all(&published).await;
    // Leases of 2 s are renewed each 0.67 s and checkpointed each 0.6 s at most, and one write is both.
    let (writes, seconds) = (faults.requests_of(Service::DynamoDb, "UpdateItem"), started.elapsed().as_secs_f64());
    #[allow(clippy::cast_precision_loss)] // dozens
    let (writes, most, least) = (writes as f64, 4.0 * (seconds / 0.6 + 1.0), 4.0 * (seconds / 2.0 - 1.0));
    assert!(writes <= most && writes >= least, "{writes} writes of 4 leases in {seconds:.1} s");
    worker.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn latest_is_the_time_of_the_first_start_also_after_a_crash_before_the_first_checkpoint() {
    let world = World::with_shards(2).await;
    world.publish(20, 0, 100).await;
    sleep(Duration::from_millis(10)).await;
    let ledger = Ledger::default();
    let builder = |name| world.worker(name, &ledger).initial_position(InitialPosition::Latest);
    let worker = Running::start(builder("a")).await;
    eventually("both shards are held", async || (worker.shards().len() == 2).then_some(())).await;
    let mut published = world.publish(20, 100, 100).await;
    worker.kill().await;
    for shard in [FIRST, SECOND] {
        assert_eq!(world.checkpoint(shard).await.unwrap(), "LATEST");
    }
    published.extend(world.publish(20, 200, 100).await);
    world.split(FIRST).await;
    published.extend(world.publish(20, 300, 100).await);
    let worker = Running::start(builder("b")).await;
    ledger.has_all(&published).await;
    worker.stop().await.unwrap();
    assert_eq!(ledger.payloads(), published, "and nothing from before the first start");
    ledger.assert_ordered();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_timestamp_starts_at_the_records_that_arrived_then_or_later() {
    let world = World::with_shards(2).await;
    world.publish(20, 0, 100).await;
    sleep(Duration::from_millis(10)).await;
    let time = SystemClock.wall_time();
    let mut published = world.publish(20, 100, 100).await;
    world.split(FIRST).await;
    published.extend(world.publish(20, 200, 100).await);
    let ledger = Ledger::default();
    let worker = Running::start(world.worker("a", &ledger).initial_position(InitialPosition::AtTimestamp(time))).await;
    ledger.has_all(&published).await;
    worker.stop().await.unwrap();
    assert_eq!(ledger.payloads(), published);
    ledger.assert_ordered();
    assert_eq!(ledger.duplicates(), []);
}

#[tokio::test(flavor = "multi_thread")]
async fn two_applications_on_one_stream_each_get_every_record() {
    let world = World::with_shards(2).await;
    let ledgers = [Ledger::default(), Ledger::default()];
    let workers = [
        Running::start(world.worker("a", &ledgers[0])).await,
        Running::start(world.worker("b", &ledgers[1]).lease_table_name(format!("{}-b", world.application))).await,
    ];
    let mut published = world.publish(20, 0, 200).await;
    world.split(SECOND).await;
    published.extend(world.publish(20, 200, 200).await);
    for ledger in &ledgers {
        ledger.has_all(&published).await;
        ledger.assert_ordered();
        assert_eq!(ledger.duplicates(), []);
    }
    for worker in workers {
        worker.stop().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn finished_leases_are_cleaned_up_and_do_not_come_back() {
    let world = World::with_shards(2).await;
    let ledger = Ledger::default();
    let start = |name| Running::start(world.worker(name, &ledger).shard_sync_interval(Duration::from_secs(1)));
    let worker = start("a").await;
    let mut published = world.publish(20, 0, 100).await;
    world.split(FIRST).await;
    ledger.has_all(&published).await;
    eventually("the split shard has ended", async || ledger.has_ended(FIRST).then_some(())).await;
    // No child has begun: the parent's lease is what tells that they need not start from anything else.
    sleep(Duration::from_millis(2500)).await;
    assert_eq!(world.checkpoint(FIRST).await.unwrap(), "SHARD_END");
    published.extend(world.publish(20, 100, 100).await);
    eventually("its lease is cleaned up", async || world.item(FIRST).await.is_none().then_some(())).await;
    worker.stop().await.unwrap();
    let worker = start("b").await;
    published.extend(world.publish(20, 200, 100).await);
    ledger.has_all(&published).await;
    sleep(Duration::from_millis(2500)).await;
    assert_eq!(world.item(FIRST).await, None);
    worker.stop().await.unwrap();
    ledger.assert_ordered();
    assert_eq!(ledger.duplicates(), []);
}
