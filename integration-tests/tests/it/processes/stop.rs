//! Processes of a fleet that end while records flow: killed, stopped, replaced.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use kcl_core::{DynamoDbLeaseTable, Entropy, LeaseTable as _};
use rustix::process::Signal;
use tokio::time::Instant;

use super::child::{Consumer, worker};
use super::log::Log;
use super::publisher::Publisher;
use crate::support::{BUSY_MACHINE, World, eventually};

/// The shards of each worker, by the first part of its name, once these workers own this many each.
async fn even_spread(world: &World, workers: &[Consumer], shards_each: usize) -> BTreeMap<String, BTreeSet<String>> {
    let table = DynamoDbLeaseTable::new(&world.dynamodb, &world.application, Default::default(), &Entropy::from_os());
    eventually("the shards are spread evenly", async || {
        let mut spread: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for lease in table.list().await.ok()?.leases {
            let (owner, shard) = (lease.owner?.to_string(), lease.shard_id.to_string());
            let worker = workers.iter().find(|worker| owner.starts_with(&format!("{}-", worker.name)))?;
            spread.entry(worker.name.clone()).or_default().insert(shard);
        }
        let even = spread.len() == workers.len() && spread.values().all(|shards| shards.len() == shards_each);
        even.then_some(spread)
    })
    .await
}

/// Three processes that share six shards while records flow, and each of them prints.
async fn three_at_work(world: &Arc<World>, flags: &str, log: &Log) -> (Vec<Consumer>, BTreeMap<String, BTreeSet<String>>, Publisher) {
    let publisher = Publisher::start(world);
    let workers: Vec<_> = ["a", "b", "c"].map(|name| Consumer::start(name, worker(world, flags), log)).into();
    let spread = even_spread(world, &workers, 2).await;
    let since = Instant::now();
    eventually("each prints", async || workers.iter().all(|worker| log.has_printed(&worker.name, since)).then_some(())).await;
    (workers, spread, publisher)
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_kill_the_others_deliver_everything() {
    let (world, log) = (Arc::new(World::with_shards(6).await), Log::default());
    let (mut workers, spread, publisher) = three_at_work(&world, "--lease-duration 3s", &log).await;

    let mut victim = workers.remove(0);
    let killed = Instant::now();
    victim.signal(Signal::KILL);
    victim.end().await;
    let since = Instant::now();
    let taken_over = log.taken_over(&spread["a"], "a", since).await;
    let last = taken_over.values().map(|at| at.duration_since(killed)).max().unwrap();
    println!("all shards of the killed process are delivered by others after {last:?}");
    assert!(last < Duration::from_secs(3 + 3) + BUSY_MACHINE, "{last:?}");

    log.has_all(&publisher.stop().await).await;
    for worker in workers {
        worker.stop().await;
    }
    log.assert_ordered();
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_sigterm_the_others_go_on_at_once_and_nothing_is_delivered_twice() {
    let (world, log) = (Arc::new(World::with_shards(6).await), Log::default());
    let (mut workers, spread, publisher) = three_at_work(&world, "--lease-duration 20s", &log).await;

    let (leaver, asked) = (workers.remove(0), Instant::now());
    leaver.stop().await;
    let since = Instant::now();
    let taken_over = log.taken_over(&spread["a"], "a", since).await;
    let last = taken_over.values().map(|at| at.duration_since(asked)).max().unwrap();
    println!("all shards of the stopped process are delivered by others after {last:?}");
    assert!(last < Duration::from_secs(20), "its leases were freed, not left to expire: {last:?}");

    log.has_all(&publisher.stop().await).await;
    for worker in workers {
        worker.stop().await;
    }
    log.assert_no_duplicates();
    log.assert_ordered();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rolling_deploy_loses_nothing_and_delivers_nothing_twice() {
    let (world, log) = (Arc::new(World::with_shards(6).await), Log::default());
    let (mut workers, _, publisher) = three_at_work(&world, "--lease-duration 10s", &log).await;

    for name in ["d", "e", "f"] {
        let started = Instant::now();
        workers.push(Consumer::start(name, worker(&world, "--lease-duration 10s"), &log));
        eventually("the new one prints", async || log.has_printed(name, started).then_some(())).await;
        workers.remove(0).stop().await;
    }
    even_spread(&world, &workers, 2).await;

    log.has_all(&publisher.stop().await).await;
    for worker in workers {
        worker.stop().await;
    }
    log.assert_no_duplicates();
    log.assert_ordered();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_waits_for_its_stream_stops_at_once() {
    let slow = kcl_local::kinesis::KinesisConfig { creating_ms: 600_000, ..Default::default() };
    let world = World::embedded(kcl_local::LocalAws::builder().kinesis(slow)).await;
    world.kinesis.create_stream().stream_name(&world.stream).shard_count(1).send().await.unwrap();
    let log = Log::default();

    for signal in [Signal::TERM, Signal::INT] {
        let mut consumer = Consumer::start("a", worker(&world, ""), &log);
        consumer.says("the stream is being made; waiting").await;
        let asked = Instant::now();
        consumer.signal(signal);
        assert_eq!(consumer.end().await.code(), Some(0));
        // Far below the two minutes for which a stream is waited for.
        assert!(asked.elapsed() < Duration::from_secs(10), "{:?}", asked.elapsed());
    }
    assert!(log.all().is_empty());
}
