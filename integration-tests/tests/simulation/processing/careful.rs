//! A record in work alone, and a process that stands still while it is noted in the lease.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use kcl_core::test_util::Event;
use tokio::task::yield_now;
use tokio::time::{Instant, sleep, sleep_until};

use super::service::{APPLICATION, Running, Scene, Tells, until};

const LATENCY: Duration = Duration::from_millis(400);

/// Two owners die before they get anywhere, so the third one goes record by record. It stands still at the moment when its first note is answered, at any
/// step of what follows from that, until its lease has run out and another worker has done its work. That the note is written is then no leave to deliver.
#[tokio::test(start_paused = true)]
async fn a_lease_that_ran_out_while_its_record_was_noted_delivers_nothing() {
    let mut begun_before = 0;
    for steps in 0..40 {
        let (mut scene, frozen) = stands_still_at_its_note(steps).await;
        let begun = scene.done.begun("good 0");
        begun_before += begun;
        let next = scene.start(|builder| builder).await;
        until("another worker does its work", || scene.done.distinct() == 3 && scene.done.begun("good 2") > 0).await;
        sleep(Duration::from_secs(5)).await;
        frozen.host.thaw();
        sleep(Duration::from_secs(60)).await;
        assert_eq!([0, 1, 2].map(|number| scene.done.begun(&format!("good {number}"))), [begun + 1, 1, 1], "after {steps} steps");
        frozen.host.kill();
        next.host.kill();
    }
    assert!((1..40).contains(&begun_before), "it stands still before the record is in work as well as after: {begun_before}");
}

/// The same, and nobody takes the lease: when it is renewed, the record is delivered.
#[tokio::test(start_paused = true)]
async fn a_lease_that_ran_out_while_its_record_was_noted_delivers_when_it_is_renewed() {
    let mut begun_before = 0;
    for steps in 0..20 {
        let (scene, frozen) = stands_still_at_its_note(steps).await;
        begun_before += scene.done.begun("good 0");
        sleep(Duration::from_secs(30)).await;
        frozen.host.thaw();
        sleep(Duration::from_secs(30)).await;
        assert_eq!(scene.done.distinct(), 3, "after {steps} steps");
        frozen.host.kill();
    }
    assert!((1..20).contains(&begun_before), "it stands still before the record is in work as well as after: {begun_before}");
}

async fn stands_still_at_its_note(steps: u32) -> (Scene, Running) {
    let mut scene = Scene::new(1, Tells::InOrder);
    (0..3).for_each(|number| scene.put("a", &format!("good {number}")));
    let counter = |scene: &Scene| scene.aws.leases(APPLICATION).first().map(|lease| lease.counter);
    for _ in 0..2 {
        let before = counter(&scene);
        let victim = scene.start(|builder| builder).await;
        victim.handle.pause();
        until("it has the shard", || victim.handle.status().shards.len() == 1 && counter(&scene) > before).await;
        victim.host.kill();
    }
    let frozen = scene.start(|builder| builder).await;
    scene.aws.faults().set_latency(LATENCY, LATENCY);
    let first_note: Arc<Mutex<Option<Instant>>> = Arc::default();
    let noted = Arc::clone(&first_note);
    scene.aws.observe(move |event| {
        if let Event::LeaseWritten { after, .. } = event
            && after.suspect.is_some()
        {
            noted.lock().unwrap().get_or_insert_with(Instant::now);
        }
    });
    until("it notes its first record", || first_note.lock().unwrap().is_some()).await;
    let answered = first_note.lock().unwrap().unwrap() + LATENCY;
    sleep_until(answered).await;
    for _ in 0..steps {
        yield_now().await;
    }
    frozen.host.freeze();
    (scene, frozen)
}
