//! Each fault as a subscriber sees it.

use std::time::Duration;

use aws_sdk_kinesis::error::SdkError;
use aws_sdk_kinesis::operation::subscribe_to_shard::SubscribeToShardError;
use aws_sdk_kinesis::types::ShardIteratorType::Latest;
use kcl_local::kinesis::ManualTime;
use kcl_local::wire::{Fault, FaultKind, Rule, Service};
use tokio::task::JoinSet;

use crate::support::{Aws, Events, eventually};

const SOON: Duration = Duration::from_millis(300);

/// A server whose next SubscribeToShard meets `fault`, and a consumer.
async fn struck_by(fault: Fault) -> (Aws, String) {
    // Time stands still for the model, so that a subscription made is found made at any later time.
    let aws = Aws::start_at(&ManualTime::new(1_790_000_000_000)).await;
    let consumer = aws.consumer("orders", 1).await;
    aws.local.faults().add(Rule::new(fault).operation("SubscribeToShard").times(1));
    (aws, consumer)
}

async fn subscribe(aws: &Aws, consumer: &str) -> Result<Events, SdkError<SubscribeToShardError>> {
    aws.subscribe(consumer, Latest).await
}

/// That `fault` was counted, and whether a subscription was made: then the next one is refused for five seconds.
async fn assert_over(aws: &Aws, consumer: &str, kind: FaultKind, made: bool) {
    let faults = aws.local.faults();
    let operation = (Service::Kinesis, "SubscribeToShard".to_owned());
    assert_eq!(faults.counts().get(&(operation, kind)), Some(&1));
    assert_eq!(faults.requests_of(Service::Kinesis, "SubscribeToShard"), 1);
    assert_eq!(faults.accepted_of(Service::Kinesis, "SubscribeToShard"), u64::from(made));
    eventually("nothing is left of it", async || aws.local.open_subscriptions() == 0).await;
    match subscribe(aws, consumer).await {
        Ok(mut events) => {
            assert!(!made);
            events.next().await.unwrap();
        }
        Err(error) => assert!(made && error.into_service_error().is_resource_in_use_exception()),
    }
}

#[tokio::test]
async fn a_refused_subscription_is_not_made() {
    for (fault, status, code) in [
        (Fault::Throttle, 400, "LimitExceededException"),
        (Fault::ServerError, 500, "InternalFailure"),
        (Fault::Error { status: 400, code: "AccessDeniedException" }, 400, "AccessDeniedException"),
    ] {
        let (aws, consumer) = struck_by(fault).await;
        let Err(error) = subscribe(&aws, &consumer).await else { panic!("{fault:?} does not refuse") };
        assert_eq!(error.raw_response().unwrap().status().as_u16(), status);
        assert_eq!(error.into_service_error().meta().code(), Some(code));
        assert_over(&aws, &consumer, fault.kind(), false).await;
    }
}

#[tokio::test]
async fn a_lost_answer_is_a_subscription_made() {
    for (fault, made) in [(Fault::Drop, false), (Fault::LoseAnswer, true)] {
        let (aws, consumer) = struck_by(fault).await;
        let Err(error) = subscribe(&aws, &consumer).await else { panic!("{fault:?} does not cut") };
        assert!(matches!(error, SdkError::DispatchFailure(_)), "{error:?}");
        assert_over(&aws, &consumer, fault.kind(), made).await;
    }
}

#[tokio::test]
async fn a_subscription_that_is_never_answered_lasts_while_its_caller_waits() {
    // The second gives its headers, but nothing more.
    for fault in [Fault::WithholdAnswer, Fault::StallStream { after: Duration::ZERO }] {
        let (aws, consumer) = struck_by(fault).await;
        let mut callers = JoinSet::new();
        let call = aws.kinesis.subscribe_to_shard().consumer_arn(&consumer).shard_id("shardId-000000000000");
        let position = aws_sdk_kinesis::types::StartingPosition::builder().r#type(Latest).build().unwrap();
        callers.spawn(call.starting_position(position).send());
        eventually("it is made", async || aws.local.open_subscriptions() == 1).await;
        assert!(tokio::time::timeout(SOON, callers.join_next()).await.is_err(), "{fault:?} answers");
        assert_eq!(aws.local.open_subscriptions(), 1);
        callers.shutdown().await;
        assert_over(&aws, &consumer, fault.kind(), true).await;
    }
}

#[tokio::test]
async fn a_late_subscription_is_made_though_its_caller_gave_up() {
    let (aws, consumer) = struck_by(Fault::Latency { min: SOON, max: SOON }).await;
    let faults = aws.local.faults();
    let caller = subscribe(&aws, &consumer);
    let arrived = eventually("it arrives", async || faults.requests_of(Service::Kinesis, "SubscribeToShard") == 1);
    tokio::select! {
        biased;
        () = arrived => {}
        _ = caller => panic!("answered without delay"),
    }
    eventually("it is made", async || faults.accepted_of(Service::Kinesis, "SubscribeToShard") == 1).await;
    assert_over(&aws, &consumer, FaultKind::Latency, true).await;
}

#[tokio::test]
async fn a_stalled_stream_is_silent_while_others_are_served() {
    let (aws, consumer) = struck_by(Fault::StallStream { after: SOON }).await;
    let mut stalled = subscribe(&aws, &consumer).await.unwrap();
    stalled.next().await.unwrap();
    tokio::time::sleep(SOON).await;
    let other = aws.consumer("letters", 1).await;
    let mut served = subscribe(&aws, &other).await.unwrap();
    served.next().await.unwrap();
    for stream in ["orders", "letters"] {
        aws.put(stream, "unheard of").await;
    }
    assert_eq!(served.data().await, ["unheard of"]);
    assert!(tokio::time::timeout(SOON, stalled.next()).await.is_err());
    assert_eq!(aws.local.open_subscriptions(), 2);
}

#[tokio::test]
async fn a_stream_is_cut_or_ended_in_time() {
    for (fault, end) in [
        (Fault::CutStream { after: SOON }, Err(None)),
        (Fault::EndStream { after: SOON, code: None }, Ok(())),
        (Fault::EndStream { after: Duration::ZERO, code: None }, Ok(())),
        (Fault::EndStream { after: SOON, code: Some("InternalFailureException") }, Err(Some("InternalFailureException"))),
        (Fault::EndStream { after: Duration::ZERO, code: Some("KMSAccessDeniedException") }, Err(Some("KMSAccessDeniedException"))),
    ] {
        let (aws, consumer) = struck_by(fault).await;
        assert_eq!(subscribe(&aws, &consumer).await.unwrap().end().await, end, "{fault:?}");
        assert_over(&aws, &consumer, fault.kind(), true).await;
    }
}

#[tokio::test]
async fn faults_of_streams_leave_other_operations_alone() {
    let aws = Aws::start().await;
    aws.local.faults().add(Rule::new(Fault::CutStream { after: Duration::ZERO }));
    aws.stream("orders", 1).await;
    assert_eq!(aws.kinesis.list_streams().send().await.unwrap().stream_names, ["orders"]);
    assert!(aws.local.faults().counts().is_empty());
}

#[tokio::test]
async fn any_error_of_any_operation_can_be_had() {
    let aws = Aws::start().await;
    let faults = aws.local.faults();
    faults.add(Rule::new(Fault::Error { status: 400, code: "KMSThrottlingException" }).service(Service::Kinesis));
    faults.add(Rule::new(Fault::Error { status: 400, code: "RequestLimitExceeded" }).service(Service::DynamoDb));
    faults.add(Rule::new(Fault::Error { status: 400, code: "AWS.SimpleQueueService.NonExistentQueue" }).service(Service::Sqs));
    let put = aws.kinesis.put_record().stream_name("s").partition_key("k").data(vec![].into()).send().await;
    assert!(put.unwrap_err().into_service_error().is_kms_throttling_exception());
    let read = aws.dynamodb.scan().table_name("t").send().await;
    assert!(read.unwrap_err().into_service_error().is_request_limit_exceeded());
    let sent = aws.sqs.send_message().queue_url("http://127.0.0.1/q").message_body("m").send().await;
    assert!(sent.unwrap_err().into_service_error().is_queue_does_not_exist());
    assert_eq!(faults.accepted_of(Service::Kinesis, "PutRecord"), 0);
}
