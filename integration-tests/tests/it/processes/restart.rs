//! Runs that end by themselves and later ones that go on; and applications that know nothing of each other.

use super::child::{Consumer, program, worker};
use super::log::Log;
use crate::support::{World, eventually};

/// One run until there is nothing left to do; what it printed.
async fn run(world: &World) -> Log {
    let log = Log::default();
    let mut consumer = Consumer::start("a", worker(world, "--lease-duration 3s --until-idle 2s"), &log);
    assert_eq!(consumer.end().await.code(), Some(0));
    log.assert_no_duplicates();
    log.assert_ordered();
    log
}

#[tokio::test(flavor = "multi_thread")]
async fn each_run_prints_what_is_new() {
    let world = World::with_shards(4).await;
    for round in 0..3 {
        let published = world.publish(40, round * 300, 300).await;
        assert_eq!(run(&world).await.payloads(), published, "round {round}");
    }
    assert!(run(&world).await.all().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn two_applications_on_one_stream_each_get_all() {
    let world = World::with_shards(4).await;
    let published = world.publish(40, 0, 400).await;
    let (by_flags, by_environment) = (Log::default(), Log::default());

    let mut flags = worker(&world, "--until-idle 3s");
    flags.env("KCL_APPLICATION", "not-this-one").env("KCL_STREAM", "nor-this");
    let mut environment = program(&world);
    environment
        .env("KCL_APPLICATION", format!("{}-2", world.application))
        .env("KCL_STREAM", &world.stream)
        .env("KCL_UNTIL_IDLE", "3s")
        .env("KCL_PRINT", "true");
    let mut consumers = [Consumer::start("a", flags, &by_flags), Consumer::start("b", environment, &by_environment)];
    for consumer in &mut consumers {
        assert_eq!(consumer.end().await.code(), Some(0));
    }

    for log in [by_flags, by_environment] {
        assert_eq!(log.payloads(), published);
        log.assert_no_duplicates();
        log.assert_ordered();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_made_anew_is_read_only_when_that_is_wanted() {
    let world = World::with_shards(2).await;
    let before = world.publish(20, 0, 100).await;
    assert_eq!(run(&world).await.payloads(), before);

    world.kinesis.delete_stream().stream_name(&world.stream).send().await.unwrap();
    eventually("the stream is gone", async || {
        let answer = world.kinesis.describe_stream_summary().stream_name(&world.stream).send().await;
        answer.is_err_and(|error| error.into_service_error().is_resource_not_found_exception()).then_some(())
    })
    .await;
    world.create_stream(2).await;
    let after = world.publish(20, 100, 100).await;

    let log = Log::default();
    let mut refused = Consumer::start("a", worker(&world, "--until-idle 2s"), &log);
    assert_eq!(refused.end().await.code(), Some(1));
    assert!(refused.logs().contains("--adopt-recreated-stream"), "{}", refused.logs());
    assert!(log.all().is_empty());

    let mut adopts = Consumer::start("a", worker(&world, "--until-idle 2s --adopt-recreated-stream"), &log);
    assert_eq!(adopts.end().await.code(), Some(0));
    assert_eq!(log.payloads(), after);
}
