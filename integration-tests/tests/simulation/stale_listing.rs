//! A worker that stands still between a look at the leases and the creation of one that is not there.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use kcl_core::test_util::Event;
use tokio::task::yield_now;
use tokio::time::{Instant, sleep, sleep_until};

use super::fleet::{APPLICATION, Fleet, until};

const FIRST: &str = "shardId-000000000000";
const LATENCY: Duration = Duration::from_millis(400);

/// It finds no leases, lists the shards, and stands still, at any step of what follows, until another worker has read the shard to its end and its lease is
/// cleaned up. Then it must not create that lease: the shard would be read once more.
#[tokio::test(start_paused = true)]
async fn a_lease_is_not_created_from_an_old_listing() {
    let mut in_between = 0;
    for steps in 0..12 {
        let mut fleet = Fleet::new(1, 1);
        let listed: Arc<Mutex<Vec<Instant>>> = Arc::default();
        let noted = Arc::clone(&listed);
        fleet.aws.observe(move |event| {
            if let Event::Sent { operation: "kinesis:ListShards", .. } = event {
                noted.lock().unwrap().push(Instant::now());
            }
        });
        fleet.aws.faults().set_latency(LATENCY, LATENCY);
        fleet.start(1).await;
        // The start has listed them too, to see whether it may.
        listed.lock().unwrap().clear();
        let frozen = fleet.running[0].0.clone();
        // All, and as there is no lease yet, those that it begins with.
        until("it lists the shards it begins with", || listed.lock().unwrap().len() == 2).await;
        let answered = listed.lock().unwrap()[1] + 2 * LATENCY;
        sleep_until(answered).await;
        for _ in 0..steps {
            yield_now().await;
        }
        frozen.freeze();
        // What it has sent arrives.
        sleep(2 * LATENCY).await;
        in_between += u32::from(fleet.aws.leases(APPLICATION).is_empty());

        fleet.aws.faults().clear();
        fleet.start(1).await;
        let mut records = fleet.put(20).await;
        fleet.has("another worker reads it", &records).await;
        fleet.split(FIRST);
        fleet.resharded(2).await;
        records.extend(fleet.put(40).await);
        fleet.has("and its children", &records).await;
        let is_there = || fleet.aws.leases(APPLICATION).iter().any(|lease| lease.shard_id.as_str() == FIRST);
        until("its lease is cleaned up", || !is_there()).await;
        frozen.thaw();
        sleep(Duration::from_secs(300)).await;
        assert!(!is_there(), "after {steps} steps");
        assert_eq!(fleet.log.all().len(), records.len(), "after {steps} steps: once each");
        fleet.stop().await;
    }
    assert!((1..12).contains(&in_between), "it stands still before the creation as well as after: {in_between}");
}

/// Two shards merge, and what comes of them merges with a third one, which is read to its end while the first two are not. A listing from before the
/// first merge does not show its child, which is not gone all the same: nothing of the last child may be read before it.
#[tokio::test(start_paused = true)]
async fn a_merged_child_waits_for_a_parent_that_a_listing_does_not_show_yet() {
    let mut fleet = Fleet::new(1, 3);
    fleet.start(1).await;
    let mut records = fleet.put(60).await;
    fleet.has("all is read", &records).await;
    // Nobody comes to the end of these two meanwhile.
    let [first, second, third] = [0, 1, 2].map(|number| format!("shardId-{number:012}"));
    let handle = fleet.running[0].1.clone();
    [&second, &third].into_iter().for_each(|shard| handle.pause_shard(&shard.as_str().into()));
    sleep(Duration::from_secs(60)).await;
    fleet.aws.faults().lag_listings(Duration::from_secs(50), Duration::MAX);
    fleet.merge(&second, &third);
    fleet.resharded(2).await;
    records.extend(fleet.put(60).await);
    fleet.merge(&first, "shardId-000000000003");
    fleet.resharded(1).await;
    records.extend(fleet.put(60).await);
    sleep(Duration::from_secs(120)).await;
    [&second, &third].into_iter().for_each(|shard| handle.resume_shard(&shard.as_str().into()));
    fleet.has("the last child is read", &records).await;
    for (key, numbers) in fleet.log.by_key() {
        assert!(numbers.is_sorted(), "{key} is out of order: {numbers:?}");
    }
    fleet.stop().await;
}
