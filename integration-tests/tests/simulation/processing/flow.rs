//! Pauses, stops and the safety valve: a shard stands still, keeps its lease, says why, and goes on when it is told to.

use std::sync::Arc;
use std::time::Duration;

use kcl_core::stops::Stops;
use kcl_core::test_util::{Cut, Service};
use kcl_core::{Lanes, RetryPolicy, SafetyValve, ShardState};
use tokio::time::sleep;

use super::service::{APPLICATION, Running, Scene, Tells, shard, until};

fn state(running: &Running) -> Option<ShardState> {
    running.handle.status().shards.get(&shard()).map(|status| status.state)
}

#[tokio::test(start_paused = true)]
async fn a_paused_shard_delivers_nothing_and_keeps_its_lease() {
    let mut scene = Scene::new(1, Tells::InOrder);
    let running = scene.start(|builder| builder).await;
    scene.put("a", "good 1");
    until("it is processed", || scene.done.texts().len() == 1).await;
    running.handle.pause_shard(&shard());
    until("it is paused", || state(&running) == Some(ShardState::Paused)).await;
    scene.put("a", "good 2");
    // Longer than iterators live and than leases are valid.
    sleep(Duration::from_secs(900)).await;
    assert_eq!(scene.done.texts(), ["good 1"]);
    assert!(!ShardState::Paused.is_stuck());
    running.handle.resume_shard(&shard());
    until("it goes on", || scene.done.texts().len() == 2).await;

    running.handle.pause();
    scene.put("a", "good 3");
    sleep(Duration::from_secs(60)).await;
    assert_eq!(scene.done.texts().len(), 2);
    running.handle.resume_shard(&shard());
    sleep(Duration::from_secs(60)).await;
    assert_eq!(scene.done.texts().len(), 2, "the worker is paused, not the shard");
    running.handle.resume();
    until("it goes on", || scene.done.texts().len() == 3).await;
    scene.stop(running).await;
    assert_eq!(scene.done.texts(), ["good 1", "good 2", "good 3"]);
}

#[tokio::test(start_paused = true)]
async fn a_processor_can_stop_its_shard() {
    for lanes in [1, 4] {
        let mut scene = Scene::new(2, Tells::InOrder);
        let running = scene.start(|builder| builder.lanes(Lanes::new(lanes))).await;
        scene.put("a", "stop 1");
        scene.put("a", "good 2");
        until("it has stopped", || state(&running) == Some(ShardState::StoppedByProcessor)).await;
        sleep(Duration::from_secs(60)).await;
        assert_eq!((scene.done.texts().len(), scene.letters().len()), (0, 0), "neither processed nor dead-lettered");
        assert!(ShardState::StoppedByProcessor.is_stuck());
        running.handle.resume_shard(&shard());
        until("it goes on", || scene.done.texts() == ["stop 1", "good 2"]).await;
        scene.stop(running).await;
    }
}

#[tokio::test(start_paused = true)]
async fn the_safety_valve_stops_a_shard_that_would_drain_into_the_queue() {
    for tells in [Tells::InOrder, Tells::These] {
        let mut scene = Scene::new(3, tells);
        let valve = SafetyValve { window: 20, most: 5 };
        let running = scene.start(|builder| builder.safety_valve(Some(valve))).await;
        for number in 0..12 {
            scene.put("a", &format!("poison {number}"));
        }
        until("it has stopped", || state(&running) == Some(ShardState::StoppedBySafetyValve)).await;
        sleep(Duration::from_secs(60)).await;
        assert_eq!(scene.letters().len(), 5);
        assert!(ShardState::StoppedBySafetyValve.is_stuck());
        running.handle.resume_shard(&shard());
        until("it has stopped again", || scene.letters().len() == 10 && state(&running) == Some(ShardState::StoppedBySafetyValve)).await;
        running.handle.resume_shard(&shard());
        until("all are in the queue", || scene.letters().len() == 12).await;
        scene.put("a", "good");
        until("it goes on", || scene.done.texts() == ["good"]).await;
        scene.stop(running).await;
    }
}

/// A supervisor that restarts a stopped worker must not let fifty more letters out each time.
#[tokio::test(start_paused = true)]
async fn a_shard_that_the_valve_has_stopped_stays_so_for_every_owner_until_it_is_resumed() {
    let mut scene = Scene::new(6, Tells::These);
    let valve = SafetyValve { window: 20, most: 5 };
    (0..12).for_each(|number| scene.put("a", &format!("poison {number}")));
    let stopped = |running: &Running| state(running) == Some(ShardState::StoppedBySafetyValve);
    let noted = |scene: &Scene| scene.aws.leases(APPLICATION)[0].stopped.is_some();
    for restart in 0..3 {
        let running = scene.start(|builder| builder.safety_valve(Some(valve))).await;
        until("it is stopped", || stopped(&running) && noted(&scene)).await;
        sleep(Duration::from_secs(60)).await;
        assert_eq!(scene.letters().len(), 5, "after {restart} restarts");
        scene.stop(running).await;
    }
    // From outside, while nobody has the shard, and while somebody has it.
    let stops = Stops::new(APPLICATION).lease_table(Arc::new(scene.aws.host("operator").lease_table(APPLICATION)));
    assert_eq!(stops.list().await.unwrap().stopped.len(), 1);
    assert!(stops.resume(&shard()).await.unwrap().is_some() && !noted(&scene));
    let running = scene.start(|builder| builder.safety_valve(Some(valve))).await;
    until("it has stopped again", || stopped(&running) && scene.letters().len() == 10 && noted(&scene)).await;
    assert!(stops.resume(&shard()).await.unwrap().is_some());
    until("all are in the queue", || scene.letters().len() == 12).await;
    scene.put("a", "good");
    until("it goes on", || scene.done.texts() == ["good"]).await;
    assert!(!noted(&scene));
    scene.stop(running).await;
}

/// The next owner goes by the row, whenever the operator has spoken.
#[tokio::test(start_paused = true)]
async fn a_resumption_just_before_a_shutdown_stands_in_the_lease() {
    let mut scene = Scene::new(7, Tells::These);
    let valve = SafetyValve { window: 20, most: 5 };
    (0..8).for_each(|number| scene.put("a", &format!("poison {number}")));
    let noted = |scene: &Scene| scene.aws.leases(APPLICATION)[0].stopped.is_some();
    let running = scene.start(|builder| builder.safety_valve(Some(valve))).await;
    until("it is stopped", || state(&running) == Some(ShardState::StoppedBySafetyValve) && noted(&scene)).await;
    running.handle.resume_shard(&shard());
    scene.stop(running).await;
    assert!(!noted(&scene));
    let running = scene.start(|builder| builder.safety_valve(Some(valve))).await;
    until("all are in the queue", || scene.letters().len() == 8).await;
    scene.stop(running).await;
}

/// A turn that found something due that it could not do turned again at once, for ever.
#[tokio::test(start_paused = true)]
async fn what_is_due_while_nothing_may_be_done_waits_quietly() {
    let mut scene = Scene::new(5, Tells::InOrder);
    // The next attempt is due after the lease has run out, or in the pause.
    let wait = Duration::from_secs(30);
    let retry = RetryPolicy { max_attempts: 2, patience: Duration::ZERO, first_backoff: wait, max_backoff: wait, ..RetryPolicy::default() };
    let running = scene.start(|builder| builder.retry_policy(retry)).await;
    scene.put("a", "failing 1");
    until("it has failed", || state(&running) == Some(ShardState::Retrying)).await;
    scene.aws.faults().partition("host-1", Service::LeaseTable, Cut::Requests, Duration::from_secs(60));
    until("the lease has run out", || state(&running) == Some(ShardState::Suspended)).await;
    until("it is in the queue", || scene.letters().len() == 1).await;

    scene.put("a", "failing 2");
    until("it has failed", || state(&running) == Some(ShardState::Retrying)).await;
    running.handle.pause();
    sleep(Duration::from_secs(60)).await;
    assert_eq!(scene.letters().len(), 1);
    running.handle.resume();
    until("it is in the queue", || scene.letters().len() == 2).await;
    scene.stop(running).await;
}

#[tokio::test(start_paused = true)]
async fn a_call_that_takes_long_is_shown() {
    let mut scene = Scene::new(4, Tells::InOrder);
    let running = scene.start(|builder| builder.retry_policy(Default::default())).await;
    scene.put("a", "slow");
    until("it is shown", || state(&running) == Some(ShardState::InLongCall)).await;
    until("it ends", || scene.done.texts().len() == 1).await;
    until("all is well", || state(&running) == Some(ShardState::Processing)).await;
    scene.stop(running).await;
}
