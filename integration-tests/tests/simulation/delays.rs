//! How long the life of a fleet keeps records waiting, where nothing but the protocol takes time: bounds that no busy machine can stretch.

use std::time::Duration;

use tokio::time::Instant;

use super::fleet::{Fleet, until};

/// The default.
const LEASE: Duration = Duration::from_secs(10);

#[tokio::test(start_paused = true)]
async fn a_worker_that_starts_delivers_within_two_seconds() {
    for seed in 0..20 {
        let mut fleet = Fleet::new(seed, 16);
        fleet.put(50).await;
        let started = Instant::now();
        fleet.start(1).await;
        until("a first record", || !fleet.log.all().is_empty()).await;
        assert!(started.elapsed() < Duration::from_secs(2), "seed {seed}: {:?}", started.elapsed());
        fleet.stop().await;
    }
}

#[tokio::test(start_paused = true)]
async fn after_a_crash_the_others_deliver_everything_within_the_lease_duration_and_three_seconds() {
    for seed in 0..20 {
        let mut fleet = Fleet::new(seed, 8);
        fleet.start(2).await;
        until("an even spread", || fleet.running.iter().all(|(_, handle)| handle.status().shards.len() == 4)).await;
        fleet.running[0].0.kill();
        let killed = Instant::now();
        let records = fleet.put(100).await;
        fleet.has("all is delivered", &records).await;
        assert!(killed.elapsed() < LEASE + Duration::from_secs(3), "seed {seed}: {:?}", killed.elapsed());
    }
}

#[tokio::test(start_paused = true)]
async fn what_a_worker_lets_go_of_is_taken_within_two_seconds() {
    for seed in 0..20 {
        let mut fleet = Fleet::new(seed, 8);
        fleet.start(2).await;
        until("an even spread", || fleet.running.iter().all(|(_, handle)| handle.status().shards.len() == 4)).await;
        let (leaver, stayer) = (fleet.running[0].1.clone(), fleet.running[1].1.clone());
        leaver.shutdown();
        let asked = Instant::now();
        until("the other one has all", || stayer.status().shards.len() == 8).await;
        assert!(asked.elapsed() < Duration::from_secs(2), "seed {seed}: {:?}", asked.elapsed());
        fleet.stop().await;
    }
}
