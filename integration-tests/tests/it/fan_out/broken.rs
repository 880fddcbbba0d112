//! Subscriptions that break off, end early, or fall silent.

use std::time::Duration;

use futures::future::join_all;
use kcl_local::kinesis::KinesisConfig;
use kcl_local::wire::{Fault, FaultKind};
use tokio::time::{advance, pause, resume, sleep};

use super::scene::{Scene, on_subscribe, strict};
use crate::support::eventually;

const SECOND: Duration = Duration::from_secs(1);

/// All exceptions that the service documents for the middle of a subscription.
const EXCEPTIONS: [&str; 9] = [
    "InternalFailureException",
    "KMSAccessDeniedException",
    "KMSDisabledException",
    "KMSInvalidStateException",
    "KMSNotFoundException",
    "KMSOptInRequired",
    "KMSThrottlingException",
    "ResourceInUseException",
    "ResourceNotFoundException",
];

fn struck(scene: &Scene) -> u64 {
    let kinds = [FaultKind::CutStream, FaultKind::EndStream, FaultKind::StallStream];
    scene.faults().counts().iter().filter(|((_, kind), _)| kinds.contains(kind)).map(|(_, count)| count).sum()
}

/// Every subscription ends like this until it has happened a few times; records flow all the while.
async fn goes_on(name: String, fault: Fault, resubscribe_ms: u64, bridge: bool, http2: bool) {
    let mut scene = Scene::new(1, KinesisConfig { resubscribe_ms, ..strict() }).await;
    (scene.bridge, scene.http2) = (bridge, http2);
    scene.faults().add(on_subscribe(fault));
    let worker = scene.start("a").await;
    let times = if resubscribe_ms > 1_000 { 2 } else { 3 };
    scene.publish_until("it has happened a few times", |scene| (struck(scene) >= times).then_some(())).await;
    scene.faults().clear();
    scene.publish_for(2 * SECOND).await;
    scene.by_subscription_alone(1).await;
    scene.finish(&name, [worker]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn subscriptions_that_end_early_in_whatever_way_are_replaced_without_loss_or_duplicate() {
    let exceptions = EXCEPTIONS.map(|code| (code, Fault::EndStream { after: SECOND, code: Some(code) }));
    let ends = [("ended in order", Fault::EndStream { after: SECOND, code: None }), ("cut", Fault::CutStream { after: SECOND })];
    let cases = exceptions.into_iter().chain(ends).enumerate();
    join_all(cases.map(|(number, (name, fault))| goes_on(name.to_owned(), fault, 200, number % 2 == 0, number % 4 < 2))).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_where_the_next_subscription_is_refused_for_five_seconds() {
    let ends = [
        ("cut", Fault::CutStream { after: SECOND }),
        ("ended in order", Fault::EndStream { after: SECOND, code: None }),
        ("taken over", Fault::EndStream { after: SECOND, code: Some("ResourceInUseException") }),
    ];
    let cases = ends.into_iter().flat_map(|end| [(end, true), (end, false)]).enumerate();
    join_all(cases.map(|(number, ((name, fault), bridge))| {
        let name = format!("{name}, then refused{}", if bridge { "" } else { ", no bridge" });
        goes_on(name, fault, 5_000, bridge, number % 3 != 0)
    }))
    .await;
}

/// The 35 s of silence pass at once: the workers' time is moved on while the stream is stalled. The connections and the server's time are real all
/// the same, so the server gives signs of life more often here, and does not mind a subscription that is young by its own time.
#[tokio::test]
async fn a_stream_that_falls_silent_is_replaced_and_its_neighbour_is_read_meanwhile() {
    let mut scene = Scene::new(2, KinesisConfig { heartbeat_ms: 300, resubscribe_ms: 200, ..strict() }).await;
    scene.faults().add(on_subscribe(Fault::StallStream { after: SECOND }).times(1));
    let worker = scene.start("a").await;
    scene.subscribed(2).await;
    sleep(SECOND + SECOND / 2).await;

    let calls = scene.calls.count();
    scene.publish(40).await;
    let missing = async || scene.published.difference(&scene.ledger.payloads()).count();
    eventually("one shard's records come, the other's do not", async || {
        let before = missing().await;
        sleep(Duration::from_millis(300)).await;
        ((1..40).contains(&before) && missing().await == before).then_some(())
    })
    .await;
    pause();
    advance(Duration::from_secs(30)).await;
    resume();
    sleep(SECOND).await;
    assert_eq!(scene.calls.count(), calls, "30 s without an event are not yet too long");
    pause();
    advance(Duration::from_secs(6)).await;
    resume();
    scene.all_delivered().await;
    scene.by_subscription_alone(2).await;
    assert!(scene.calls.count() > calls);
    assert!(scene.calls.count() <= calls + 4, "{:#?}", scene.calls.all());
    scene.finish("silent", [worker]).await;
}
