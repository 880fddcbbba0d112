//! Lanes: keys beside each other, each in order; a slow key holds up nobody else; what is finished beyond it is not repeated.

use std::collections::BTreeMap;
use std::time::Duration;

use kcl_core::test_util::Service;
use kcl_core::{Batching, Checkpoint, Checkpointing, Lanes, LeaseTable as _, PoisonedKey, RetryPolicy};
use kcl_lease::Lease;
use tokio::time::{Instant, sleep};

use super::service::{APPLICATION, Scene, Tells, until};

/// Puts so many records for each of so many keys; the record's number in its text.
fn put(scene: &Scene, keys: usize, records: usize) {
    for number in 0..records {
        for key in 0..keys {
            scene.put(&format!("key-{key}"), &format!("good {key} {number}"));
        }
    }
}

async fn time_for(lanes: usize) -> Duration {
    let mut scene = Scene::new(3, Tells::InOrder);
    put(&scene, 64, 20);
    let began = Instant::now();
    let running = scene.start(|builder| builder.lanes(Lanes::new(lanes))).await;
    until("all is processed", || scene.done.texts().len() == 64 * 20).await;
    let took = began.elapsed();
    scene.stop(running).await;
    in_order(&scene);
    took
}

fn in_order(scene: &Scene) {
    let mut last: BTreeMap<String, u64> = BTreeMap::new();
    for (key, text) in scene.done.processed() {
        let number: u64 = text.rsplit(' ').next().unwrap().parse().unwrap();
        let before = last.insert(key.clone(), number);
        assert!(before.is_none_or(|before| before < number), "{number} of {key} came after {before:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn sixteen_lanes_do_at_least_twelve_times_as_much() {
    let (one, sixteen) = (time_for(1).await, time_for(16).await);
    let ratio = one.as_secs_f64() / sixteen.as_secs_f64();
    println!("1 lane {one:?}, 16 lanes {sixteen:?}: {ratio:.1} times");
    assert!(ratio >= 12.0, "{ratio}");
}

/// The same on the machine's own time.
#[tokio::test]
#[ignore = "it measures: run it alone, on a machine that does nothing else"]
async fn sixteen_lanes_do_at_least_twelve_times_as_much_in_real_time() {
    let mut ratios = Vec::new();
    for _ in 0..5 {
        let (one, sixteen) = (time_for(1).await, time_for(16).await);
        println!("1 lane {one:?}, 16 lanes {sixteen:?}");
        ratios.push(one.as_secs_f64() / sixteen.as_secs_f64());
    }
    ratios.sort_by(f64::total_cmp);
    println!("median: {:.1} times", ratios[2]);
    assert!(ratios[2] >= 12.0, "{ratios:?}");
}

#[tokio::test(start_paused = true)]
async fn a_slow_key_holds_up_nobody_and_what_is_finished_beyond_it_is_not_repeated() {
    let mut scene = Scene::new(4, Tells::InOrder);
    scene.put("slow", "good 0");
    scene.put("slow", "slow 1");
    scene.put("slow", "good 2");
    put(&scene, 8, 5);
    let lanes =
        |builder: kcl_core::WorkerBuilder| builder.lanes(Lanes::new(4)).batching(Batching::up_to(1)).retry_policy(Default::default());
    let running = scene.start(lanes).await;
    until("the others are processed", || scene.done.texts().len() == 1 + 40).await;
    // A renewal or two.
    sleep(Duration::from_secs(8)).await;
    let lease = scene.aws.leases(APPLICATION).remove(0);
    let beyond = lease.finished_beyond.clone().expect("there is something finished beyond the checkpoint");
    assert_eq!(beyond.open.len(), 2, "{beyond:?}");
    assert!(lease.checkpoint < Checkpoint::At(beyond.open[0]));
    running.host.kill();

    let running = scene.start(lanes).await;
    until("all is processed", || scene.done.texts().contains(&"good 2".to_owned())).await;
    scene.stop(running).await;
    assert_eq!(scene.done.texts().len(), 3 + 40, "nothing was repeated");
    in_order(&scene);
}

/// A note that was void, and stayed, would be valid again once the checkpoint has passed where it was made.
#[tokio::test(start_paused = true)]
async fn a_checkpoint_that_is_put_back_makes_the_note_void_for_good() {
    let mut scene = Scene::new(8, Tells::InOrder);
    scene.put("slow", "good 0");
    scene.put("slow", "slow 1");
    put(&scene, 8, 5);
    let lanes =
        |builder: kcl_core::WorkerBuilder| builder.lanes(Lanes::new(4)).batching(Batching::up_to(1)).retry_policy(Default::default());
    let running = scene.start(lanes).await;
    until("the others are processed", || scene.done.texts().len() == 1 + 40).await;
    sleep(Duration::from_secs(8)).await;
    running.host.kill();
    let row = scene.aws.leases(APPLICATION).remove(0);
    assert!(row.finished_beyond.as_ref().is_some_and(|note| note.base.is_some()), "{row:?}");

    let table = scene.aws.host("operator").lease_table(APPLICATION);
    assert!(table.delete(&row).await.unwrap());
    assert!(table.create(&Lease { checkpoint: Checkpoint::TrimHorizon, owner: None, ..row }).await.unwrap());
    let running = scene.start(lanes).await;
    running.handle.pause();
    sleep(Duration::from_secs(8)).await;
    assert_eq!(scene.aws.leases(APPLICATION)[0].finished_beyond, None);
    running.handle.resume();
    until("all comes again, and the slow one ends", || scene.done.texts().len() == 2 * 41 + 1).await;
    scene.stop(running).await;
}

#[tokio::test(start_paused = true)]
async fn no_more_records_are_open_than_may_be() {
    let mut scene = Scene::new(5, Tells::InOrder);
    scene.put("slow", "slow 0");
    put(&scene, 10, 30);
    let lanes = Lanes { max_records: 50, ..Lanes::new(4) };
    let running = scene.start(|builder| builder.lanes(lanes).retry_policy(Default::default())).await;
    sleep(Duration::from_secs(300)).await;
    assert_eq!(scene.done.texts().len(), 49, "fifty are open, the slow one included");
    until("it goes on", || scene.done.texts().len() == 301).await;
    scene.stop(running).await;
}

async fn after_poison(policy: PoisonedKey, lanes: usize) -> (Vec<String>, Vec<String>) {
    let mut scene = Scene::new(6, Tells::InOrder);
    for (key, text) in [("a", "good a1"), ("a", "poison a2"), ("b", "good b1"), ("a", "good a3"), ("b", "good b2")] {
        scene.put(key, text);
    }
    let running = scene.start(|builder| builder.lanes(Lanes::new(lanes)).poisoned_key(policy)).await;
    until("all is finished", || scene.done.texts().len() + scene.letters().len() == 5).await;
    scene.put("a", "good a4");
    until("all is finished", || scene.done.texts().len() + scene.letters().len() == 6).await;
    scene.stop(running).await;
    let mut processed = scene.done.texts();
    processed.sort();
    (processed, scene.letter_texts())
}

#[tokio::test(start_paused = true)]
async fn later_records_of_a_poisoned_key_pass_or_follow() {
    for lanes in [1, 4] {
        for policy in [PoisonedKey::Wait, PoisonedKey::Pass] {
            let (processed, letters) = after_poison(policy, lanes).await;
            assert_eq!(processed, ["good a1", "good a3", "good a4", "good b1", "good b2"], "{policy:?}");
            assert_eq!(letters, ["poison a2"]);
        }
        let (processed, letters) = after_poison(PoisonedKey::Follow, lanes).await;
        assert_eq!(processed, ["good a1", "good b1", "good b2"]);
        assert_eq!(letters, ["poison a2", "good a3", "good a4"], "in order");
    }
}

/// Nobody waits for the queue where later records may pass, with one lane either.
#[tokio::test(start_paused = true)]
async fn later_records_pass_while_the_queue_is_away() {
    for lanes in [1, 4] {
        let mut scene = Scene::new(8, Tells::These);
        let running = scene.start(|builder| builder.lanes(Lanes::new(lanes)).poisoned_key(PoisonedKey::Pass)).await;
        scene.aws.faults().outage(Service::DeadLetters, Duration::from_secs(600));
        scene.put("a", "poison 0");
        for number in 1..=300 {
            scene.put("a", &format!("good {number}"));
        }
        until("all others are processed", || scene.done.texts().len() == 300).await;
        assert!(scene.letters().is_empty() && scene.aws.elapsed() < Duration::from_secs(120), "{:?}", scene.aws.elapsed());
        assert_eq!(scene.aws.leases(APPLICATION)[0].checkpoint, Checkpoint::TrimHorizon, "it does not pass the letter");
        until("it is in the queue", || scene.letters().len() == 1).await;
        scene.stop(running).await;
        assert_eq!(scene.done.texts(), (1..=300).map(|number| format!("good {number}")).collect::<Vec<_>>());
    }
}

/// An earlier owner's note stays true until a checkpoint says the same.
#[tokio::test(start_paused = true)]
async fn what_is_finished_beyond_the_checkpoint_stays_noted_until_a_checkpoint_covers_it() {
    let mut scene = Scene::new(9, Tells::These);
    let row = |scene: &Scene| scene.aws.leases(APPLICATION).remove(0);
    let wait = Duration::from_secs(60);
    let slow = RetryPolicy { patience: Duration::MAX, first_backoff: wait, max_backoff: wait, ..RetryPolicy::default() };
    let first = scene.start(|builder| builder.lanes(Lanes::new(4)).retry_policy(slow)).await;
    scene.put("a", "twice 0");
    (1..=5).for_each(|number| scene.put("b", &format!("good {number}")));
    until("it is noted", || scene.done.texts().len() == 5 && row(&scene).finished_beyond.is_some()).await;
    first.host.kill();
    let interval = Duration::from_secs(60);
    let next = scene.start(|builder| builder.lanes(Lanes::new(4)).checkpointing(Checkpointing::Automatic { interval })).await;
    until("the first one is processed", || scene.done.contains("twice 0")).await;
    sleep(Duration::from_secs(20)).await;
    assert_eq!((row(&scene).checkpoint, row(&scene).finished_beyond.is_some()), (Checkpoint::TrimHorizon, true));
    until("the checkpoint covers it", || row(&scene).checkpoint != Checkpoint::TrimHorizon).await;
    until("the note is gone", || row(&scene).finished_beyond.is_none()).await;
    scene.stop(next).await;
    assert_eq!(scene.done.texts().len(), 6, "each once");
}
