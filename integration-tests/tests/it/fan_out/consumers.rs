//! The stream consumer: made, waited for, lost under running workers, not to be had, and not to be used.

use std::collections::BTreeSet;
use std::time::Duration;

use futures::future::join_all;
use kcl_core::{ConsumerChoice, FanOutConfig, FanOutError, RetrievalMode, WorkerError};
use kcl_local::kinesis::KinesisConfig;
use kcl_local::wire::Service;
use tokio::time::Instant;

use super::scene::{Scene, strict};
use crate::support::{Running, eventually};

impl Scene {
    async fn stream_arn(&self) -> String {
        let answer = self.world.kinesis.describe_stream_summary().stream_name(&self.world.stream).send().await.unwrap();
        answer.stream_description_summary.unwrap().stream_arn
    }

    /// ARNs of the stream's consumers.
    async fn consumers(&self) -> BTreeSet<String> {
        let answer = self.world.kinesis.list_stream_consumers().stream_arn(self.stream_arn().await).send().await.unwrap();
        answer.consumers().iter().map(|consumer| consumer.consumer_arn().to_owned()).collect()
    }

    async fn register(&self, name: &str) -> String {
        let registered = self.world.kinesis.register_stream_consumer().stream_arn(self.stream_arn().await).consumer_name(name);
        registered.send().await.unwrap().consumer.unwrap().consumer_arn
    }

    async fn deregister(&self, arn: &str) {
        self.world.kinesis.deregister_stream_consumer().consumer_arn(arn).send().await.unwrap();
    }

    fn registrations(&self) -> u64 {
        self.faults().requests_of(Service::Kinesis, "RegisterStreamConsumer")
    }
}

fn with_consumer(choice: ConsumerChoice) -> FanOutConfig {
    FanOutConfig { consumer: Some(choice), ..FanOutConfig::default() }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_consumer_that_is_deregistered_under_its_workers_is_registered_anew() {
    join_all([true, false].map(async |bridge| {
        let name = if bridge { "deregistered" } else { "deregistered, no bridge" };
        let config = KinesisConfig { consumer_creating_ms: 1_000, consumer_deleting_ms: 1_000, ..strict() };
        let mut scene = Scene::new(2, config).await;
        scene.bridge = bridge;
        let workers = [scene.start("a").await, scene.start("b").await];
        scene.publish_until("a shard each", |_| workers.iter().all(|worker| worker.shards().len() == 1).then_some(())).await;
        scene.by_subscription_alone(2).await;
        let (before, calls, registrations) = (scene.consumers().await, scene.calls.count(), scene.registrations());
        assert_eq!(before.len(), 1);
        scene.deregister(before.first().unwrap()).await;
        scene.publish_until("subscriptions have ended", |scene| (scene.local().open_subscriptions() < 2).then_some(())).await;
        scene.by_subscription_alone(2).await;
        let after = scene.consumers().await;
        assert!(after.len() == 1 && after.is_disjoint(&before), "{before:?}, then {after:?}");
        let (calls, registrations) = (scene.calls.count() - calls, scene.registrations() - registrations);
        println!("{name}: {calls} calls, {registrations} registrations");
        assert!(calls <= 12, "{name}: {:#?}", scene.calls.all());
        assert!((1..=6).contains(&registrations), "{name}: {registrations} registrations");
        scene.finish(name, workers).await;
    }))
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_consumer_given_by_arn_is_never_registered_anew_and_its_shards_are_polled() {
    let mut scene = Scene::new(2, strict()).await;
    let arn = scene.register("given").await;
    let registrations = scene.registrations();
    let worker = Running::start(scene.worker("a").fan_out(with_consumer(ConsumerChoice::Arn(arn.clone())))).await;
    scene.by_subscription_alone(2).await;
    scene.deregister(&arn).await;
    scene.publish_until("subscriptions have ended", |scene| (scene.local().open_subscriptions() == 0).then_some(())).await;
    let calls = scene.calls.count();
    scene.publish_for(Duration::from_secs(3)).await;
    scene.all_delivered().await;
    assert!(scene.polls() > 0);
    assert!(scene.calls.count() <= calls + 2, "{:#?}", scene.calls.all());
    assert_eq!((scene.registrations(), scene.consumers().await), (registrations, BTreeSet::new()));
    scene.finish("given by ARN", [worker]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn shards_are_polled_while_their_consumer_is_being_made() {
    const CREATING: Duration = Duration::from_secs(6);
    join_all([true, false].map(async |bridge| {
        let name = if bridge { "in creation" } else { "in creation, no bridge" };
        let mut scene = Scene::new(2, KinesisConfig { consumer_creating_ms: 6_000, ..strict() }).await;
        scene.bridge = bridge;
        scene.publish(100).await;
        let began = Instant::now();
        let worker = scene.start("a").await;
        scene.all_delivered().await;
        let delivered = began.elapsed();
        scene.by_subscription_alone(2).await;
        println!("{name}: first records after {delivered:?}");
        if bridge {
            assert!(delivered < CREATING, "{delivered:?}");
        } else {
            assert!(delivered >= CREATING && scene.polls() == 0, "{delivered:?}, {} polls", scene.polls());
        }
        // Nobody asks for a subscription that can't be had.
        assert!(scene.calls.in_use() == 0 && scene.calls.count() == 2, "{:#?}", scene.calls.all());
        assert_eq!(scene.registrations(), 1);
        scene.finish(name, [worker]).await;
    }))
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_room_for_another_consumer_automatic_means_polling_and_fan_out_says_why_not() {
    let mut scene = Scene::new(2, KinesisConfig { consumer_limit: 2, ..strict() }).await;
    join_all(["one", "two"].map(|name| scene.register(name))).await;
    let (automatic, asked_for) =
        futures::join!(Running::start(scene.worker("a").retrieval(RetrievalMode::Auto)), Running::try_start(scene.worker("b")));
    let refused = asked_for.map(|_| ()).unwrap_err();
    assert!(matches!(refused, WorkerError::FanOut(FanOutError::ConsumerLimit { .. })), "{refused:?}");
    for word in [&scene.world.application, &scene.world.stream, "20", "polling"] {
        assert!(refused.to_string().contains(word), "`{word}` in: {refused}");
    }
    scene.publish_for(Duration::from_secs(1)).await;
    scene.all_delivered().await;
    assert_eq!(scene.calls.count(), 0);
    assert!(scene.polls() > 0);
    assert_eq!(scene.consumers().await.len(), 2);
    scene.finish("automatic", [automatic]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn automatic_means_fan_out_where_it_can_be_had() {
    let mut scene = Scene::new(2, strict()).await;
    let worker = Running::start(scene.worker("a").retrieval(RetrievalMode::Auto)).await;
    scene.by_subscription_alone(2).await;
    scene.finish("automatic", [worker]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_consumer_is_left_at_the_end_unless_it_is_to_be_deregistered() {
    let mut scene = Scene::new(2, strict()).await;
    let worker = scene.start("a").await;
    scene.by_subscription_alone(2).await;
    worker.stop().await.unwrap();
    let left = scene.consumers().await;
    assert_eq!(left.len(), 1);
    let config = FanOutConfig { deregister_at_end: true, ..FanOutConfig::default() };
    let worker = Running::start(scene.worker("b").fan_out(config)).await;
    scene.subscribed(2).await;
    assert_eq!(scene.consumers().await, left, "found, not registered");
    scene.all_delivered().await;
    worker.stop().await.unwrap();
    assert_eq!(scene.consumers().await, BTreeSet::new());
    scene.finish("deregistered at the end", []).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_consumer_that_cannot_be_used_is_refused_in_words() {
    let scene = Scene::new(1, KinesisConfig { consumer_deleting_ms: 60_000, ..strict() }).await;
    let start = async |choice| match Running::try_start(scene.worker("a").fan_out(with_consumer(choice))).await {
        Err(WorkerError::FanOut(error)) => error,
        Err(error) => panic!("{error:?}"),
        Ok(_) => panic!("started"),
    };
    let stream = scene.stream_arn().await;
    let other = format!("{}-other/consumer/x:1700000000", stream);
    let gone = format!("{stream}/consumer/x:1700000000");
    let error = start(ConsumerChoice::Arn(stream.clone())).await;
    assert!(matches!(&error, FanOutError::NotAConsumerArn { arn } if *arn == stream), "{error:?}");
    let error = start(ConsumerChoice::Arn(other.clone())).await;
    assert!(matches!(&error, FanOutError::OtherStream { consumer, .. } if *consumer == other), "{error:?}");
    let error = start(ConsumerChoice::Arn(gone.clone())).await;
    assert!(matches!(&error, FanOutError::ConsumerNotFound { consumer } if *consumer == gone), "{error:?}");
    let error = start(ConsumerChoice::Named("no name".into())).await;
    assert!(matches!(&error, FanOutError::InvalidName { .. }), "{error:?}");
    let deleting = scene.register("going").await;
    scene.deregister(&deleting).await;
    for choice in [ConsumerChoice::Arn(deleting), ConsumerChoice::Named("going".into())] {
        let error = start(choice).await;
        assert!(matches!(&error, FanOutError::ConsumerDeleting { .. }), "{error:?}");
    }
    assert_eq!(scene.calls.count(), 0);
    eventually("no lease is left taken", async || scene.world.item("shardId-000000000000").await.is_none().then_some(())).await;
}
