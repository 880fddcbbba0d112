//! Subscriptions whose time runs out every two seconds, under load.

use std::time::Duration;

use futures::future::join_all;
use kcl_local::kinesis::KinesisConfig;

use super::scene::{Scene, strict};

const LIFE: Duration = Duration::from_secs(2);
const SHARDS: usize = 2;

#[tokio::test(flavor = "multi_thread")]
async fn subscriptions_that_expire_under_load_are_renewed_without_loss_or_duplicate() {
    let life = KinesisConfig { subscription_life_ms: LIFE.as_millis().try_into().unwrap(), ..strict() };
    // (what, how long after a subscription the next one is refused, bridge)
    let cases =
        [("at once", 200, true), ("refused", 5_000, true), ("refused, no bridge", 5_000, false), ("at once, no bridge", 200, false)];
    join_all(cases.into_iter().enumerate().map(async |(number, (name, resubscribe_ms, bridge))| {
        let mut scene = Scene::new(2, KinesisConfig { resubscribe_ms, ..life.clone() }).await;
        (scene.bridge, scene.http2) = (bridge, number % 2 == 0);
        let worker = scene.start("a").await;
        let lives = if resubscribe_ms == 200 { 4 } else { 2 };
        scene.publish_until("enough lives", |scene| (scene.calls.accepted() >= lives * SHARDS).then_some(())).await;
        scene.all_delivered().await;
        let (lived, accepted, polls) = (scene.began.elapsed(), scene.calls.accepted(), scene.polls());
        // Each life is followed by the next, and by one alone.
        let between = LIFE.max(Duration::from_millis(resubscribe_ms));
        let longest = usize::try_from(lived.as_millis() / between.as_millis()).unwrap() + 1;
        assert!(accepted <= SHARDS * longest, "{name}: {accepted} subscriptions in {lived:?}");
        match (resubscribe_ms, bridge) {
            // Renewed so soon that there is nothing to poll for, but where the machine was busy for the quarter of a second after which a bridge begins.
            (200, _) => assert!(polls <= 3 * accepted as u64, "{name}: {polls} polls beside {accepted} subscriptions"),
            (_, true) => assert!(polls > 10, "{name}: polled meanwhile"),
            (_, false) => assert_eq!(polls, 0, "{name}"),
        }
        scene.finish(name, [worker]).await;
    }))
    .await;
}
