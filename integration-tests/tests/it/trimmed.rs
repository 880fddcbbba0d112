//! Records that are gone from the stream before they were read: found wherever they are missing, and never passed over silently.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use kcl_core::{
    Clock, ProcessError, ProcessResult, RecordBatch, RecordProcessor, ShardContext, ShardState, SystemClock, Timestamp, TrimmedData,
    WorkerBuilder, async_trait,
};
use kcl_local::LocalAws;
use kcl_local::kinesis::{ManualTime, TimeSource};
use tokio::time::sleep;

use crate::support::{Ledger, Running, World, eventually};

const FIRST: &str = "shardId-000000000000";
const SECOND: &str = "shardId-000000000001";

const BEGINNING: u64 = 1_790_000_000_000;

/// A worker's clock that jumps with the model's time, as if the machine had been suspended.
#[derive(Debug)]
struct ModelClock(ManualTime);

impl Clock for ModelClock {
    fn boot_time(&self) -> Duration {
        SystemClock.boot_time() + Duration::from_millis(self.0.now_millis() - BEGINNING)
    }

    fn wall_time(&self) -> Timestamp {
        Timestamp::from_millis(self.0.now_millis())
    }
}

/// A stream of one shard that keeps records for a day, and the hand on its time.
struct Aging {
    world: World,
    time: ManualTime,
    ledger: Ledger,
}

impl Aging {
    async fn new() -> Self {
        let time = ManualTime::new(BEGINNING);
        let world = World::embedded(LocalAws::builder().time(Arc::new(time.clone()))).await;
        world.create_stream(1).await;
        Self { world, time, ledger: Ledger::default() }
    }

    fn worker(&self, name: &str) -> WorkerBuilder {
        self.world.worker(name, &self.ledger).clock(Arc::new(ModelClock(self.time.clone())))
    }

    async fn put(&self, numbers: std::ops::Range<u64>) -> BTreeSet<String> {
        let payloads: BTreeSet<_> = numbers.clone().map(|number| format!("a:{number}")).collect();
        for number in numbers {
            self.world.put(FIRST, "a", &format!("a:{number}")).await;
        }
        payloads
    }

    fn hours_pass(&self, hours: u64) {
        self.time.advance(hours * 3_600_000);
    }

    /// Days in which a running worker looks twice a day.
    async fn idle_days(&self, days: u64) {
        for _ in 0..2 * days {
            self.hours_pass(12);
            let now = self.time.now_millis();
            eventually("the row tells that the shard was watched", async || {
                let watermark: u64 = self.world.item(FIRST).await?.get("rk_ckptTs")?.as_n().unwrap().parse().unwrap();
                (watermark >= now).then_some(())
            })
            .await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn records_that_were_trimmed_unread_stop_the_shard_unless_it_may_go_on() {
    let aging = Aging::new().await;
    let mut delivered = aging.put(0..5).await;
    let worker = Running::start(aging.worker("a")).await;
    aging.ledger.has_all(&delivered).await;
    worker.stop().await.unwrap();
    let checkpoint = aging.world.checkpoint(FIRST).await;
    aging.put(5..10).await;
    aging.hours_pass(25);
    let kept = aging.put(10..15).await;

    let worker = Running::start(aging.worker("b")).await;
    eventually("the shard stops", async || (worker.state(FIRST) == Some(ShardState::BlockedByTrimmedRecords)).then_some(())).await;
    assert!(ShardState::BlockedByTrimmedRecords.is_stuck());
    worker.stop().await.unwrap();
    assert_eq!(aging.ledger.payloads(), delivered);
    assert_eq!(aging.world.checkpoint(FIRST).await, checkpoint);

    let worker = Running::start(aging.worker("c").trimmed_data(TrimmedData::SkipAndAudit)).await;
    aging.ledger.has_all(&kept).await;
    worker.stop().await.unwrap();
    delivered.extend(kept);
    assert_eq!(aging.ledger.payloads(), delivered);
    assert_eq!(aging.ledger.duplicates(), []);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_retention_that_was_shortened_is_noticed() {
    let aging = Aging::new().await;
    let stream = &aging.world.stream;
    let longer = aging.world.kinesis.increase_stream_retention_period().stream_name(stream).retention_period_hours(48);
    longer.send().await.unwrap();
    let delivered = aging.put(0..5).await;
    let worker = Running::start(aging.worker("a")).await;
    aging.ledger.has_all(&delivered).await;
    worker.stop().await.unwrap();
    aging.put(5..10).await;
    aging.hours_pass(25);
    let shorter = aging.world.kinesis.decrease_stream_retention_period().stream_name(stream).retention_period_hours(24);
    shorter.send().await.unwrap();
    aging.put(10..15).await;
    let worker = Running::start(aging.worker("b")).await;
    eventually("the shard stops", async || (worker.state(FIRST) == Some(ShardState::BlockedByTrimmedRecords)).then_some(())).await;
    worker.stop().await.unwrap();
    assert_eq!(aging.ledger.payloads(), delivered);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_shard_that_was_watched_all_the_time_has_lost_nothing() {
    let aging = Aging::new().await;
    let mut published = aging.put(0..5).await;
    let worker = Running::start(aging.worker("a")).await;
    aging.ledger.has_all(&published).await;
    // The last record is trimmed, and the workers have seen that none came since.
    aging.idle_days(2).await;
    worker.stop().await.unwrap();
    let worker = Running::start(aging.worker("b")).await;
    aging.idle_days(2).await;
    published.extend(aging.put(5..10).await);
    aging.ledger.has_all(&published).await;
    worker.stop().await.unwrap();
    assert_eq!(aging.ledger.duplicates(), []);
}

#[tokio::test(flavor = "multi_thread")]
async fn records_that_were_trimmed_while_a_shard_waited_are_not_passed_over() {
    let aging = Aging::new().await;
    let mut delivered = aging.put(0..2).await;
    let failing = Arc::new(AtomicBool::new(true));
    let processor = |ledger: &Ledger| {
        let (ledger, failing) = (ledger.clone(), Arc::clone(&failing));
        move |_: &ShardContext| Stubborn { ledger: ledger.clone(), failing: Arc::clone(&failing) }
    };
    let worker = Running::start(aging.worker("a").processor(processor(&aging.ledger))).await;
    eventually("the shard waits", async || (worker.state(FIRST) == Some(ShardState::BlockedByRecord)).then_some(())).await;
    // The answer that is read ahead is empty; these are not read before they are trimmed.
    sleep(Duration::from_millis(500)).await;
    aging.put(2..5).await;
    aging.hours_pass(25);
    let kept = aging.put(5..8).await;
    failing.store(false, Ordering::SeqCst);
    eventually("the shard stops", async || (worker.state(FIRST) == Some(ShardState::BlockedByTrimmedRecords)).then_some(())).await;
    worker.stop().await.unwrap();
    assert_eq!(aging.ledger.payloads(), delivered, "what was in work is finished");

    let builder = aging.worker("b").processor(processor(&aging.ledger)).trimmed_data(TrimmedData::SkipAndAudit);
    let worker = Running::start(builder).await;
    aging.ledger.has_all(&kept).await;
    worker.stop().await.unwrap();
    delivered.extend(kept);
    assert_eq!(aging.ledger.payloads(), delivered);
    assert_eq!(aging.ledger.duplicates(), []);
}

/// Fails at everything for as long as it is told to.
struct Stubborn {
    ledger: Ledger,
    failing: Arc<AtomicBool>,
}

#[async_trait]
impl RecordProcessor for Stubborn {
    async fn process_records(&mut self, batch: &RecordBatch, shard: &ShardContext) -> ProcessResult {
        batch
            .for_each(shard, async |record| {
                if self.failing.load(Ordering::SeqCst) {
                    return Err(ProcessError::poison("not now"));
                }
                self.ledger.record("stubborn", shard, record);
                Ok(())
            })
            .await
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn records_that_were_trimmed_before_the_end_of_their_shard_stop_it_too() {
    let aging = Aging::new().await;
    let mut delivered = aging.put(0..5).await;
    let worker = Running::start(aging.worker("a")).await;
    aging.ledger.has_all(&delivered).await;
    worker.stop().await.unwrap();
    aging.put(5..10).await;
    aging.hours_pass(12);
    aging.world.split(FIRST).await;
    aging.hours_pass(13);
    aging.world.put(SECOND, "a", "a:10").await;

    let worker = Running::start(aging.worker("b")).await;
    eventually("the shard stops", async || (worker.state(FIRST) == Some(ShardState::BlockedByTrimmedRecords)).then_some(())).await;
    worker.stop().await.unwrap();
    assert_eq!(aging.ledger.payloads(), delivered);

    let worker = Running::start(aging.worker("c").trimmed_data(TrimmedData::SkipAndAudit)).await;
    delivered.insert("a:10".into());
    aging.ledger.has_all(&delivered).await;
    worker.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shard_that_is_gone_with_unread_records_stops_unless_it_may_be_skipped() {
    let aging = Aging::new().await;
    let mut delivered = aging.put(0..5).await;
    let worker = Running::start(aging.worker("a")).await;
    aging.ledger.has_all(&delivered).await;
    worker.stop().await.unwrap();
    aging.put(5..10).await;
    aging.world.split(FIRST).await;
    aging.hours_pass(25);
    aging.world.put(SECOND, "a", "a:10").await;

    let worker = Running::start(aging.worker("b")).await;
    eventually("the shard stops", async || (worker.state(FIRST) == Some(ShardState::BlockedByTrimmedRecords)).then_some(())).await;
    worker.stop().await.unwrap();
    assert_eq!(aging.ledger.payloads(), delivered);

    let worker = Running::start(aging.worker("c").trimmed_data(TrimmedData::SkipAndAudit)).await;
    delivered.insert("a:10".into());
    aging.ledger.has_all(&delivered).await;
    worker.stop().await.unwrap();
}
