//! A shard that goes from one worker to another and back, where the service refuses the new owner for some seconds.

use futures::future::join_all;
use kcl_local::kinesis::KinesisConfig;

use super::scene::{Scene, strict};
use crate::support::Running;

/// Which worker has made the last accepted subscription to each of the two shards.
fn last_subscribers(scene: &Scene) -> Vec<String> {
    let calls = scene.calls.all();
    let last =
        |shard: &str| calls.iter().rev().find(|call| call.was_accepted() && call.shard.ends_with(shard)).map(|call| call.worker.clone());
    ["0", "1"].into_iter().filter_map(last).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shard_that_moves_to_another_worker_and_back_is_read_on_and_nobody_fights_for_it() {
    join_all([true, false].map(async |bridge| {
        let name = if bridge { "bridged" } else { "without a bridge" };
        // Longer than the service's five seconds, so that whoever gets a shard is refused whatever else takes time here.
        let mut scene = Scene::new(2, KinesisConfig { resubscribe_ms: 8_000, ..strict() }).await;
        scene.bridge = bridge;
        let a = scene.start("a").await;
        scene.subscribed(2).await;
        let (mut calls, mut polls) = (scene.calls.count(), scene.polls());
        assert!(calls <= 4, "{name}: {calls} calls for the first two subscriptions");

        // There and back. The one who gets the shard is refused until the other's subscription is old enough.
        let b = scene.start("b").await;
        let one_each = |scene: &Scene, a: &Running, b: &Running| {
            let mut last = last_subscribers(scene);
            last.sort();
            (last == ["a", "b"] && a.shards().len() == 1 && b.shards().len() == 1 && scene.local().open_subscriptions() == 2).then_some(())
        };
        scene.publish_until("b has subscribed to one of the shards", |scene| one_each(scene, &a, &b)).await;
        let mut moved = |scene: &Scene, to: &str| {
            let (made, read) = (scene.calls.count() - calls, scene.polls() - polls);
            println!("{name}: to {to} with {made} calls and {read} polls");
            // One is accepted. Those before are ever further apart: at least 1.05 s, and up to 8 s from the fourth on.
            assert!((2..=7).contains(&made), "{name}: {made} calls to move a shard to {to}: {:#?}", scene.calls.all());
            assert!(if bridge { read > 2 } else { read == 0 }, "{name}: {read} polls while the shard moved to {to}");
            (calls, polls) = (scene.calls.count(), scene.polls());
        };
        moved(&scene, "b");
        b.stop().await.unwrap();
        let all_back = |scene: &Scene| (last_subscribers(scene) == ["a", "a"] && scene.local().open_subscriptions() == 2).then_some(());
        scene.publish_until("a has both shards again", all_back).await;
        moved(&scene, "a");

        let calls = scene.calls.count();
        scene.by_subscription_alone(2).await;
        assert_eq!(scene.calls.count(), calls, "{name}: whoever has the shard keeps it");
        scene.finish(name, [a]).await;
    }))
    .await;
}
