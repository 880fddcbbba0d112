//! What a worker of many idle shards keeps in memory.

use std::time::Duration;

use super::child::{Consumer, worker};
use super::log::Log;
use crate::support::{World, eventually};

const SHARDS: usize = 64;
const MIB: u64 = 1024;

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_with_sixty_four_idle_shards_stays_under_sixty_mebibytes() {
    let world = World::with_shards(i32::try_from(SHARDS).unwrap()).await;
    let consumer = Consumer::start("idle", worker(&world, ""), &Log::default());
    eventually("all shards are held", async || (consumer.logs().matches("shard taken").count() == SHARDS).then_some(())).await;
    // Every shard is read a few times, so that all connections and buffers that idling needs are there.
    tokio::time::sleep(Duration::from_secs(5)).await;
    let resident = consumer.resident_kib();
    println!("resident with {SHARDS} idle shards: {resident} KiB");
    assert!(resident < 60 * MIB, "{resident} KiB");
    consumer.stop().await;
}
