//! A standard output that takes nothing: records are not passed over, and nothing panics.

use std::process::Stdio;

use super::child::{Consumer, worker};
use super::log::Log;
use crate::support::World;

async fn assert_all_still_to_come(world: &World, published: &std::collections::BTreeSet<String>) {
    let log = Log::default();
    let next = Consumer::start("next", worker(world, "--lease-duration 3s"), &log);
    log.has_all(published).await;
    next.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_closed_standard_output_ends_the_program_and_loses_nothing() {
    let world = World::with_shards(2).await;
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let mut consumer = Consumer::start_unread("a", worker(&world, "--lease-duration 3s").stdout(Stdio::from(writer)));
    consumer.says("worker started").await;
    let published = world.publish(20, 0, 100).await;

    assert_eq!(consumer.end().await.code(), Some(1));
    assert!(consumer.logs().contains("consumer: standard output was closed"), "{}", consumer.logs());
    assert!(!consumer.logs().contains("panic"), "{}", consumer.logs());
    assert_all_still_to_come(&world, &published).await;
}

#[cfg(target_os = "linux")]
#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_makes_it_wait_until_it_is_stopped_and_loses_nothing() {
    let world = World::with_shards(2).await;
    let published = world.publish(20, 0, 100).await;
    let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let mut command = worker(&world, "--lease-duration 3s --until-idle 1s");
    let consumer = Consumer::start_unread("a", command.stdout(Stdio::from(full)));
    consumer.says("No space left on device").await;
    // After some failures in a row: it neither ends nor counts as idle meanwhile.
    consumer.says("different records fail alike").await;
    consumer.stop().await;
    assert_all_still_to_come(&world, &published).await;
}
