//! Starting over the wire while single calls are throttled, and starts that can't end well.

use std::time::Duration;

use futures::future::join_all;
use kcl_core::stream::StreamError;
use kcl_core::{FanOutConfig, FanOutError, RetrievalMode, SqsDeadLetterQueue, WorkerBuilder, WorkerError};
use kcl_local::LocalAws;
use kcl_local::kinesis::KinesisConfig;
use kcl_local::wire::{Fault, Rule, Service};
use tokio::time::Instant;

use crate::support::{Ledger, Running, World};

/// Longer than starts used to bear.
const THROTTLED: Duration = Duration::from_secs(5);

/// Every call between `build` and the first round, and how the stream is read.
const CALLS: [(Service, &str, RetrievalMode); 9] = [
    (Service::Kinesis, "DescribeStreamSummary", RetrievalMode::Polling),
    (Service::Kinesis, "ListShards", RetrievalMode::Polling),
    (Service::DynamoDb, "DescribeTable", RetrievalMode::Polling),
    (Service::DynamoDb, "CreateTable", RetrievalMode::Polling),
    (Service::DynamoDb, "Scan", RetrievalMode::Polling),
    (Service::Sqs, "GetQueueUrl", RetrievalMode::Polling),
    (Service::Kinesis, "DescribeStreamConsumer", RetrievalMode::FanOut),
    (Service::Kinesis, "RegisterStreamConsumer", RetrievalMode::FanOut),
    (Service::Kinesis, "RegisterStreamConsumer", RetrievalMode::Auto),
];

async fn world() -> World {
    let kinesis = KinesisConfig { creating_ms: 0, ..KinesisConfig::default() };
    let world = World::embedded(LocalAws::builder().kinesis(kinesis)).await;
    world.create_stream(2).await;
    aws_sdk_sqs::Client::new(&world.config).create_queue().queue_name("letters").send().await.unwrap();
    world
}

fn worker(world: &World, ledger: &Ledger) -> WorkerBuilder {
    world.worker("a", ledger).dead_letter_queue(SqsDeadLetterQueue::new(&world.config, "letters"))
}

#[tokio::test(flavor = "multi_thread")]
async fn throttling_of_any_call_is_waited_out() {
    join_all(CALLS.map(async |(service, operation, retrieval)| {
        let (world, ledger) = (world().await, Ledger::default());
        let faults = world.faults().unwrap();
        let end = faults.elapsed() + THROTTLED;
        faults.add(Rule::new(Fault::Throttle).service(service).operation(operation).until(end));
        let began = Instant::now();
        let running = Running::try_start(worker(&world, &ledger).retrieval(retrieval)).await;
        let running = running.unwrap_or_else(|error| panic!("{operation}, {retrieval:?}: {error}"));
        assert!(began.elapsed() >= THROTTLED / 2, "{operation}, {retrieval:?}: it was not throttled");
        ledger.has_all(&world.publish(5, 0, 20).await).await;
        running.stop().await.unwrap();
    }))
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_throttled_registration_is_not_reported_as_a_lack_of_room() {
    let world = world().await;
    world.faults().unwrap().add(Rule::new(Fault::Throttle).operation("RegisterStreamConsumer"));
    let builder = worker(&world, &Ledger::default()).retrieval(RetrievalMode::FanOut).start_patience(Duration::from_secs(2));
    let error = builder.build().await.unwrap_err();
    assert!(matches!(error, WorkerError::FanOut(FanOutError::Throttled { .. })), "{error:?}");
    assert!(error.is_retryable() && !error.to_string().contains("20"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_no_waiting_changes_ends_the_start_at_once() {
    let denied = Fault::Error { status: 400, code: "AccessDeniedException" };
    for (service, operation, retrieval) in CALLS {
        if retrieval == RetrievalMode::Auto {
            continue;
        }
        let world = world().await;
        world.faults().unwrap().add(Rule::new(denied).service(service).operation(operation));
        let began = Instant::now();
        let error = worker(&world, &Ledger::default()).retrieval(retrieval).build().await.unwrap_err();
        assert!(began.elapsed() < THROTTLED, "{operation}: {:?}", began.elapsed());
        assert!(!error.is_retryable() && error.to_string().contains("is not allowed"), "{operation}: {error}");
        assert!(error.to_string().contains(operation), "{operation}: {error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_must_not_list_shards_is_refused() {
    let world = world().await;
    world.faults().unwrap().add(Rule::new(Fault::Error { status: 400, code: "AccessDeniedException" }).operation("ListShards"));
    let error = worker(&world, &Ledger::default()).build().await.unwrap_err();
    assert!(matches!(error, WorkerError::Stream(StreamError::AccessDenied { .. })), "{error:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn settings_that_the_others_make_void_are_refused() {
    let world = world().await;
    for (builder, setting) in [
        (
            world.worker("a", &Ledger::default()).fan_out(FanOutConfig { consumer: Some("orders".into()), ..FanOutConfig::default() }),
            "fan_out",
        ),
        (world.worker("a", &Ledger::default()).fan_out(FanOutConfig { deregister_at_end: true, ..FanOutConfig::default() }), "fan_out"),
    ] {
        match builder.build().await {
            Err(WorkerError::Config(error)) => assert_eq!(error.setting, setting, "{error}"),
            other => panic!("{setting}: {other:?}"),
        }
    }
}
