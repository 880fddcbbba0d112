//! Ends of a worker: in peace, in time, and without warning.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use kcl_core::{Outcome, ProcessResult, RecordBatch, RecordProcessor, ShardContext, WorkerError, async_trait};
use kcl_local::wire::{Faults, Service};
use tokio::time::{Instant, sleep};

use crate::support::{BUSY_MACHINE, Ledger, Running, World, eventually};

const FIRST: &str = "shardId-000000000000";
const SECOND: &str = "shardId-000000000001";

async fn is_owned(world: &World, shard_id: &str) -> bool {
    world.item(shard_id).await.is_some_and(|item| item.contains_key("leaseOwner"))
}

/// Never comes back from the first shard.
struct Hanging(Arc<AtomicBool>);

#[async_trait]
impl RecordProcessor for Hanging {
    async fn process_records(&mut self, _: &RecordBatch, shard: &ShardContext) -> ProcessResult {
        if shard.shard_id().as_str() == FIRST {
            self.0.store(true, Ordering::SeqCst);
            std::future::pending::<()>().await;
        }
        Ok(Outcome::Done)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_processor_that_hangs_is_named_when_the_time_is_up_and_its_lease_is_freed() {
    let world = World::with_shards(2).await;
    world.put(FIRST, "a", "a:0").await;
    let second = world.put(SECOND, "b", "b:1").await;
    let hangs = Arc::new(AtomicBool::new(false));
    let (ledger, flag) = (Ledger::default(), Arc::clone(&hangs));
    let builder = world.worker("a", &ledger).shutdown_timeout(Duration::from_secs(1));
    let worker = Running::start(builder.processor(move |_: &ShardContext| Hanging(Arc::clone(&flag)))).await;
    eventually("it hangs", async || hangs.load(Ordering::SeqCst).then_some(())).await;
    eventually("the other shard is read", async || worker.handle.status().shards.get(&SECOND.into())?.finished.map(|_| ())).await;
    let asked = Instant::now();
    let error = worker.stop().await.unwrap_err();
    assert!(asked.elapsed() < Duration::from_secs(3) + BUSY_MACHINE, "{:?}", asked.elapsed());
    assert!(matches!(&error, WorkerError::ShutdownTimedOut { shards, .. } if *shards == [FIRST.into()]), "{error:?}");
    assert!(error.to_string().contains(FIRST), "{error}");
    assert_eq!(world.checkpoint(SECOND).await.unwrap(), second.to_string());

    assert!(!is_owned(&world, FIRST).await && !is_owned(&world, SECOND).await, "nobody has to wait for the leases to expire");

    let worker = Running::start(world.worker("b", &ledger)).await;
    ledger.has_all(&["a:0".to_owned()].into()).await;
    worker.stop().await.unwrap();
    assert_eq!(ledger.payloads(), ["a:0".to_owned()].into(), "the other shard's record was finished");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_may_be_stopped_before_its_first_lease() {
    let world = World::with_shards(2).await;
    let ledger = Ledger::default();
    world.worker("a", &ledger).build().await.unwrap().run_until(std::future::ready(())).await.unwrap();
    let worker = world.worker("b", &ledger).build().await.unwrap();
    worker.handle().shutdown();
    worker.run().await.unwrap();
    // Stopped at any moment of its start, it leaves nothing that the next one would have to wait for.
    for millis in (0..50).step_by(5) {
        let worker = Running::start(world.worker("c", &ledger)).await;
        sleep(Duration::from_millis(millis)).await;
        worker.stop().await.unwrap();
        assert!(!is_owned(&world, FIRST).await && !is_owned(&world, SECOND).await, "stopped after {millis} ms");
    }
    let published = world.publish(20, 0, 100).await;
    let worker = Running::start(world.worker("d", &ledger)).await;
    ledger.has_all(&published).await;
    worker.stop().await.unwrap();
}

fn writes(faults: &Faults) -> u64 {
    ["UpdateItem", "PutItem", "DeleteItem"].map(|operation| faults.requests_of(Service::DynamoDb, operation)).iter().sum()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_is_dropped_asks_and_writes_nothing_more() {
    let world = World::with_shards(4).await;
    let Some(faults) = world.faults() else { return };
    let ledger = Ledger::default();
    let worker = Running::start(world.worker("a", &ledger)).await;
    let published = world.publish(40, 0, 200).await;
    ledger.has_all(&published).await;
    assert!(writes(faults) > 0);
    worker.kill().await;
    // What was on its way arrives.
    sleep(Duration::from_millis(200)).await;
    let (rows, requests) = ([world.item(FIRST).await, world.item(SECOND).await], faults.requests());
    sleep(Duration::from_millis(1500)).await;
    assert_eq!(faults.requests(), requests);
    assert_eq!([world.item(FIRST).await, world.item(SECOND).await], rows);
    assert!(rows.iter().all(|row| row.as_ref().unwrap().contains_key("leaseOwner")), "nothing was freed");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_in_work_at_a_stop_is_finished_checkpointed_and_not_delivered_again() {
    let world = World::with_shards(4).await;
    let ledger = Ledger::default();
    let mut published = BTreeSet::new();
    for round in 0..5 {
        let worker = Running::start(world.worker("a", &ledger)).await;
        published.extend(world.publish(40, round * 200, 200).await);
        // Wherever it is by now.
        sleep(Duration::from_millis(100 * round)).await;
        worker.stop().await.unwrap();
    }
    let worker = Running::start(world.worker("b", &ledger)).await;
    ledger.has_all(&published).await;
    worker.stop().await.unwrap();
    ledger.assert_ordered();
    assert_eq!(ledger.duplicates(), []);
}
