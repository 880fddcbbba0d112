//! Shards that are split and merged while they are subscribed to.

use std::time::Duration;

use futures::future::join_all;
use kcl_local::kinesis::KinesisConfig;

use super::scene::{Scene, strict};
use crate::support::eventually;

#[tokio::test(flavor = "multi_thread")]
async fn splits_and_merges_while_subscribed_lose_reorder_and_repeat_nothing() {
    // (what, how long a subscription lives, workers)
    let cases = [("one worker", 300_000, 1), ("two workers", 300_000, 2), ("short lives", 1_500, 2)];
    join_all(cases.into_iter().enumerate().map(async |(number, (name, subscription_life_ms, workers))| {
        let mut scene = Scene::new(2, KinesisConfig { subscription_life_ms, resubscribe_ms: 200, ..strict() }).await;
        scene.http2 = number % 2 == 0;
        let workers = join_all(["a", "b"].into_iter().take(workers).map(|worker| scene.start(worker))).await;
        scene.subscribed(2).await;
        for round in 0..4 {
            let mut open = scene.world.open_shards().await;
            open.sort_by_key(|shard| shard.hash_key_range().unwrap().starting_hash_key().parse::<u128>().unwrap());
            if round % 2 == 0 {
                scene.world.split(open[0].shard_id()).await;
            } else {
                scene.world.merge(open[1].shard_id(), open[2].shard_id()).await;
            }
            scene.publish_for(Duration::from_secs(1)).await;
        }
        scene.all_delivered().await;
        eventually("six shards have ended", async || (scene.ledger.ended().len() == 6).then_some(())).await;
        if subscription_life_ms == 300_000 {
            scene.by_subscription_alone(2).await;
        }
        scene.finish(name, workers).await;
    }))
    .await;
}
