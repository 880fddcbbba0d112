//! The life of a stream, over the wire: start, restart, resharding, joining and leaving workers.

use std::collections::BTreeSet;
use std::time::Duration;

use kcl_core::ShardId;
use tokio::time::Instant;

use crate::support::{BUSY_MACHINE, Ledger, Running, World, eventually};

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_starts_delivers_soon() {
    let world = World::with_shards(16).await;
    let published = world.publish(200, 0, 1000).await;
    let ledger = Ledger::default();
    let started = Instant::now();
    let worker = Running::start(world.worker("a", &ledger)).await;
    eventually("a first record", async || (!ledger.deliveries().is_empty()).then_some(())).await;
    let first = started.elapsed();
    ledger.has_all(&published).await;
    println!("first record after {first:?}, all after {:?}", started.elapsed());
    assert!(first < Duration::from_secs(2) + BUSY_MACHINE, "{first:?}");
    ledger.assert_ordered();
    worker.stop().await.unwrap();
    assert!(ledger.duplicates().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restarted_application_goes_on_where_it_was() {
    let world = World::with_shards(4).await;
    let first = world.publish(40, 0, 400).await;
    let ledger = Ledger::default();
    let worker = Running::start(world.worker("a", &ledger)).await;
    ledger.has_all(&first).await;
    worker.stop().await.unwrap();
    let second = world.publish(40, 400, 400).await;
    let worker = Running::start(world.worker("b", &ledger)).await;
    ledger.has_all(&second).await;
    worker.stop().await.unwrap();
    assert_eq!(ledger.duplicates(), []);
    ledger.assert_ordered();
}

#[tokio::test(flavor = "multi_thread")]
async fn splits_and_merges_while_records_flow_lose_and_reorder_nothing() {
    let world = World::with_shards(4).await;
    let ledger = Ledger::default();
    let workers = [Running::start(world.worker("a", &ledger)).await, Running::start(world.worker("b", &ledger)).await];
    let mut published = BTreeSet::new();
    let mut next = 0;
    for round in 0..4 {
        published.extend(world.publish(50, next, 300).await);
        next += 300;
        let mut open = world.open_shards().await;
        open.sort_by_key(|shard| shard.hash_key_range().unwrap().starting_hash_key().parse::<u128>().unwrap());
        if round % 2 == 0 {
            world.split(open[0].shard_id()).await;
        } else {
            world.merge(open[1].shard_id(), open[2].shard_id()).await;
        }
    }
    published.extend(world.publish(50, next, 300).await);
    ledger.has_all(&published).await;
    eventually("six shards have ended", async || (ledger.ended().len() == 6).then_some(())).await;
    for worker in workers {
        worker.stop().await.unwrap();
    }
    ledger.assert_ordered();
    assert_eq!(ledger.duplicates(), []);
}

#[tokio::test(flavor = "multi_thread")]
async fn shards_that_were_split_and_merged_before_the_start_are_read_parents_first() {
    let world = World::with_shards(2).await;
    let mut published = world.publish(50, 0, 300).await;
    world.split("shardId-000000000000").await;
    published.extend(world.publish(50, 300, 300).await);
    world.merge("shardId-000000000003", "shardId-000000000001").await;
    published.extend(world.publish(50, 600, 300).await);
    world.split("shardId-000000000004").await;
    published.extend(world.publish(50, 900, 300).await);
    let ledger = Ledger::default();
    let worker = Running::start(world.worker("a", &ledger)).await;
    ledger.has_all(&published).await;
    let open: BTreeSet<_> = world.open_shards().await.iter().map(|shard| ShardId::from(shard.shard_id())).collect();
    eventually("only open shards are held", async || (worker.shards() == open).then_some(())).await;
    worker.stop().await.unwrap();
    ledger.assert_ordered();
    assert_eq!(ledger.duplicates(), []);
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_crash_the_others_take_over() {
    let world = World::with_shards(8).await;
    let ledger = Ledger::default();
    let victim = Running::start(world.worker("victim", &ledger)).await;
    let survivor = Running::start(world.worker("survivor", &ledger)).await;
    eventually("an even spread", async || (victim.shards().len() == 4 && survivor.shards().len() == 4).then_some(())).await;
    let orphaned = victim.shards();
    victim.kill().await;
    let killed = Instant::now();
    let published = world.publish(400, 0, 800).await;
    ledger.has_all(&published).await;
    let gap = killed.elapsed();
    println!("{} shards taken over after {gap:?}", orphaned.len());
    assert!(gap < Duration::from_secs(2 + 3) + BUSY_MACHINE, "{gap:?}");
    assert!(survivor.shards().is_superset(&orphaned));
    ledger.assert_ordered();
}

#[tokio::test(flavor = "multi_thread")]
async fn sixty_four_shards_are_spread_evenly_over_four_workers_and_stay_put() {
    let world = World::with_shards(64).await;
    let ledger = Ledger::default();
    let started = Instant::now();
    // leases as long as by default: a longer one makes the rounds slower
    let worker = |name: &str| world.worker(name, &ledger).lease_duration(Duration::from_secs(10));
    let workers = futures::future::join_all(["a", "b", "c", "d"].map(|name| Running::start(worker(name)))).await;
    let even = || workers.iter().all(|worker| worker.shards().len() == 16);
    eventually("16 shards each", async || even().then_some(())).await;
    let spread = started.elapsed();
    println!("even after {spread:?}");
    assert!(spread < Duration::from_secs(30), "{spread:?}");
    let tokens = || -> Vec<_> {
        let shards = workers.iter().flat_map(|worker| worker.handle.status().shards);
        shards.map(|(shard, status)| (shard, status.fencing_token)).collect()
    };
    let before = tokens();
    // several rounds of every worker
    let published = world.publish(640, 0, 1280).await;
    ledger.has_all(&published).await;
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(tokens(), before, "no lease changed hands");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_joins_is_handed_shards_without_a_duplicate_or_a_gap() {
    let world = World::with_shards(6).await;
    let ledger = Ledger::default();
    // Longer than the test waits for a lease that is freed.
    let worker = |name: &str| world.worker(name, &ledger).lease_duration(Duration::from_secs(20));
    let first = Running::start(worker("first")).await;
    let mut published = world.publish(120, 0, 300).await;
    ledger.has_all(&published).await;
    let second = Running::start(worker("second")).await;
    let mut next = 300;
    eventually("three shards each", async || {
        published.extend(world.publish(120, next, 60).await);
        next += 60;
        (first.shards().len() == 3 && second.shards().len() == 3).then_some(())
    })
    .await;
    ledger.has_all(&published).await;
    ledger.assert_ordered();
    assert_eq!(ledger.duplicates(), []);
    first.stop().await.unwrap();
    // what was freed is taken at once, not after the leases have expired
    let stopped = Instant::now();
    eventually("all shards are the second's", async || (second.shards().len() == 6).then_some(())).await;
    println!("freed leases were taken after {:?}", stopped.elapsed());
    assert!(stopped.elapsed() < Duration::from_secs(2) + BUSY_MACHINE, "{:?}", stopped.elapsed());
    published.extend(world.publish(120, next, 120).await);
    ledger.has_all(&published).await;
    second.stop().await.unwrap();
    assert_eq!(ledger.duplicates(), []);
}
