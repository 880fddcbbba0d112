//! Every error that SubscribeToShard may answer with: the bridge reads meanwhile, and subscriptions do when it has passed.

use std::time::Duration;

use futures::future::join_all;
use kcl_local::kinesis::KinesisConfig;
use kcl_local::wire::Fault;

use super::scene::{Scene, on_subscribe, strict};

/// The service's own, and those that all services share.
const ERRORS: [(u16, &str); 21] = [
    (400, "AccessDeniedException"),
    (400, "InvalidArgumentException"),
    (400, "LimitExceededException"),
    (400, "ResourceInUseException"),
    (400, "ResourceNotFoundException"),
    (400, "KMSAccessDeniedException"),
    (400, "KMSDisabledException"),
    (400, "KMSInvalidStateException"),
    (400, "KMSNotFoundException"),
    (400, "KMSOptInRequired"),
    (400, "KMSThrottlingException"),
    (400, "ProvisionedThroughputExceededException"),
    (400, "ThrottlingException"),
    (400, "ValidationException"),
    (400, "ExpiredTokenException"),
    (403, "UnrecognizedClientException"),
    (403, "OptInRequired"),
    (400, "RequestExpired"),
    (413, "RequestEntityTooLargeException"),
    (500, "InternalFailure"),
    (503, "ServiceUnavailable"),
];

/// How many attempts go wrong.
const TIMES: usize = 3;

async fn survives(name: String, fault: Fault, bridge: bool, http2: bool) {
    // The answer that is lost, or withheld, has begun a subscription.
    let mut scene = Scene::new(1, KinesisConfig { resubscribe_ms: 1_000, ..strict() }).await;
    (scene.bridge, scene.http2) = (bridge, http2);
    scene.faults().add(on_subscribe(fault));
    let worker = scene.start("a").await;
    scene.publish_until("some attempts have failed", |scene| (scene.calls.count() >= TIMES).then_some(())).await;
    if bridge {
        scene.all_delivered().await;
        assert!(scene.polls() > 0, "{name}");
    } else {
        assert!(scene.ledger.deliveries().is_empty(), "{name}: by what?");
    }
    assert_eq!(scene.calls.accepted(), 0, "{name}");
    scene.faults().clear();
    scene.by_subscription_alone(1).await;
    scene.finish(&name, [worker]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_a_subscription_is_refused_with_the_shard_is_polled_until_it_is_accepted() {
    let errors = ERRORS.map(|(status, code)| (code, Fault::Error { status, code }));
    let others = [
        ("no connection", Fault::Drop),
        ("lost answer", Fault::LoseAnswer),
        ("withheld answer", Fault::WithholdAnswer),
        ("throttled", Fault::Throttle),
        ("internal failure", Fault::ServerError),
        ("no first event", Fault::StallStream { after: Duration::ZERO }),
        ("ended before the first event", Fault::CutStream { after: Duration::ZERO }),
    ];
    let cases = errors.into_iter().chain(others).enumerate();
    join_all(cases.map(|(number, (name, fault))| survives(name.to_owned(), fault, true, number % 2 == 0))).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_bridge_the_shard_waits_and_goes_on() {
    let codes = ["AccessDeniedException", "ResourceInUseException", "ResourceNotFoundException", "LimitExceededException"];
    let errors = codes.map(|code| (code, Fault::Error { status: 400, code }));
    let cases = errors.into_iter().chain([("no connection", Fault::Drop), ("lost answer", Fault::LoseAnswer)]).enumerate();
    join_all(cases.map(|(number, (name, fault))| survives(format!("{name}, no bridge"), fault, false, number % 2 == 0))).await;
}
