//! Aggregates of the Kinesis Producer Library: taken apart, checkpointed inside, set aside whole when they are broken.

use std::time::Duration;

use bytes::Bytes;
use kcl_core::dead_letter::FailureKind;
use kcl_core::{Aggregated, Batching, Checkpoint, Checkpointing, Lanes};
use md5::{Digest as _, Md5};
use tokio::time::sleep;

use super::service::{APPLICATION, STREAM, Scene, Tells, until};

fn put_aggregate(scene: &Scene, records: &[(&str, &str)]) {
    scene.aws.put_aggregate(STREAM, records.iter().map(|(key, text)| (*key, Bytes::copy_from_slice(text.as_bytes()))));
}

/// An envelope that is right, around what is no aggregate: a sub-record without a partition key table.
pub(super) fn broken() -> Bytes {
    // field 3, a record: partition_key_index 7, data "x"; no table has a key 7
    let message = [0x1a, 5, 0x08, 7, 0x1a, 1, b'x'];
    [&[0xF3, 0x89, 0x9A, 0xC2][..], &message, &Md5::digest(message)].concat().into()
}

#[tokio::test(start_paused = true)]
async fn records_of_an_aggregate_are_records_like_any_other() {
    for lanes in [1, 4] {
        let mut scene = Scene::new(1, Tells::InOrder);
        scene.put("a", "good 0");
        put_aggregate(&scene, &[("a", "good 1"), ("b", "poison 2"), ("a", "twice 3"), ("c", "good 4")]);
        scene.put("a", "good 5");
        let running = scene.start(|builder| builder.lanes(Lanes::new(lanes))).await;
        until("all is finished", || scene.done.texts().len() == 5 && scene.letters().len() == 1).await;
        scene.stop(running).await;
        let letter = scene.letters().remove(0);
        assert_eq!(
            (letter.record.sub_sequence_number(), letter.record.partition_key(), letter.record.is_aggregated()),
            (1, Some("b"), true)
        );
        let of_a: Vec<_> = scene.done.processed().into_iter().filter(|(key, _)| key == "a").map(|(_, text)| text).collect();
        assert_eq!(of_a, ["good 0", "good 1", "twice 3", "good 5"]);
    }
}

#[tokio::test(start_paused = true)]
async fn a_checkpoint_inside_of_an_aggregate_is_where_the_next_owner_goes_on() {
    let mut scene = Scene::new(2, Tells::InOrder);
    put_aggregate(&scene, &[("a", "good 0"), ("a", "good 1"), ("a", "slow 2"), ("a", "good 3")]);
    let often = Checkpointing::Automatic { interval: Duration::from_millis(100) };
    let settings =
        |builder: kcl_core::WorkerBuilder| builder.checkpointing(often).batching(Batching::up_to(1)).retry_policy(Default::default());
    let running = scene.start(settings).await;
    until("two are finished", || scene.done.texts().len() == 2).await;
    sleep(Duration::from_secs(1)).await;
    let Checkpoint::At(at) = scene.aws.leases(APPLICATION)[0].checkpoint else { panic!("a record") };
    assert_eq!(at.sub_sequence_number, 1);
    running.host.kill();
    let running = scene.start(settings).await;
    until("all is finished", || scene.done.texts().len() == 4).await;
    scene.stop(running).await;
    assert_eq!(scene.done.texts(), ["good 0", "good 1", "slow 2", "good 3"], "nothing twice");
}

#[tokio::test(start_paused = true)]
async fn a_broken_aggregate_goes_to_the_queue_whole_and_nothing_after_it_comes_before_that() {
    for lanes in [1, 4] {
        let mut scene = Scene::new(3, Tells::InOrder);
        scene.put("a", "good 0");
        let (_, number) = scene.aws.put(STREAM, "a", broken());
        scene.put("a", "good 1");
        let running = scene.start(|builder| builder.lanes(Lanes::new(lanes))).await;
        until("all is finished", || scene.done.texts().len() == 2 && scene.letters().len() == 1).await;
        scene.stop(running).await;
        let letter = scene.letters().remove(0);
        assert_eq!((letter.kind, letter.record.sequence_number(), letter.record.data()), (FailureKind::BrokenAggregate, number, &broken()));
        assert_eq!(scene.done.texts(), ["good 0", "good 1"]);
    }
}

#[tokio::test(start_paused = true)]
async fn without_a_queue_a_broken_aggregate_stops_its_shard_until_it_is_taken_as_it_is() {
    use kcl_core::ShardState;
    let mut scene = Scene::new(4, Tells::InOrder);
    let host = scene.aws.host("alone");
    scene.put("a", "good 0");
    put_aggregate(&scene, &[("a", "good 1")]);
    scene.aws.put(STREAM, "a", broken());
    let done = scene.done.clone();
    let worker = host
        .worker(APPLICATION, STREAM)
        .processor(move |_: &kcl_core::ShardContext| super::service::Service { tells: Tells::InOrder, done: done.clone() });
    let worker = worker.build().await.unwrap();
    let handle = worker.handle();
    let mut tasks = tokio::task::JoinSet::new();
    tasks.spawn(host.run(worker.run()));
    let state = || handle.status().shards.values().next().map(|status| status.state);
    until("it is blocked", || state() == Some(ShardState::BlockedByRecord)).await;
    assert_eq!(scene.done.texts(), ["good 0", "good 1"]);
    handle.shutdown();
    tasks.join_next().await.unwrap().unwrap().unwrap();

    let running = scene.start(|builder| builder.aggregated_records(Aggregated::AsIs).batching(Batching::up_to(100))).await;
    until("it comes as it is", || scene.done.batches().iter().sum::<usize>() > 2).await;
    scene.stop(running).await;
}
