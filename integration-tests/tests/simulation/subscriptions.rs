//! A fleet's subscriptions: five calls a second for all workers together, when they start at once and when all subscriptions are renewed.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use kcl_core::RetrievalMode;
use kcl_core::test_util::Event;
use tokio::time::{Instant, sleep};

use super::fleet::Fleet;

/// The calls that the service allows a consumer in a second.
const LIMIT: usize = 5;

/// The most calls within a second.
fn most(calls: &[Duration]) -> usize {
    let within = |from: &Duration| calls.iter().filter(|call| *call >= from && **call < *from + Duration::from_secs(1)).count();
    calls.iter().map(within).max().unwrap_or(0)
}

#[tokio::test(start_paused = true)]
async fn a_fleet_keeps_to_the_limit_of_its_consumer() {
    for (workers, shards, apart) in [(1, 20, 0), (10, 60, 0), (10, 60, 3), (30, 40, 0)] {
        let mut fleet = Fleet::new(5, shards);
        let (calls, began) = (Arc::<Mutex<Vec<Duration>>>::default(), Instant::now());
        let seen = Arc::clone(&calls);
        fleet.aws.observe(move |event| {
            if let Event::Sent { operation: "kinesis:SubscribeToShard", .. } = event {
                seen.lock().unwrap().push(began.elapsed());
            }
        });
        for _ in 0..workers {
            fleet.start_with(1, |builder| builder.retrieval(RetrievalMode::FanOut)).await;
            sleep(Duration::from_secs(apart)).await;
        }
        sleep(Duration::from_secs(420)).await;
        let (first, settled): (Vec<_>, Vec<_>) =
            std::mem::take(&mut *calls.lock().unwrap()).into_iter().partition(|call| call.as_secs() < 100);
        // While workers come to know each other a call more may slip through: the service refuses it, and the shard is polled meanwhile.
        assert!(most(&first) <= LIMIT + 1, "{workers} workers every {apart} s: {} calls in a second", most(&first));
        assert!(most(&settled) <= LIMIT, "{workers} workers every {apart} s, later: {} calls in a second", most(&settled));
        assert!(settled.len() >= shards as usize, "they are renewed: {}", settled.len());
        let numbers = fleet.put(200).await;
        fleet.has("all is processed", &numbers).await;
        fleet.aws.stop_observing();
    }
}
