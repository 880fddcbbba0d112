//! Each fault as a client sees it, and what has become of the request.

use std::time::Duration;

use aws_sdk_dynamodb::error::SdkError;
use aws_sdk_dynamodb::operation::update_item::{UpdateItemError, UpdateItemOutput};
use kcl_local::LocalAws;
use kcl_local::wire::{Fault, FaultKind, Rule, Service};
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::support::{Aws, eventually, number, string};

type Updated = Result<UpdateItemOutput, SdkError<UpdateItemError>>;

/// One more for the counter of the item "a": what the tests look at to see whether a call was applied.
async fn increment(dynamodb: &aws_sdk_dynamodb::Client) -> Updated {
    dynamodb
        .update_item()
        .table_name("leases")
        .key("leaseKey", string("a"))
        .update_expression("ADD leaseCounter :one")
        .expression_attribute_values(":one", number(1))
        .send()
        .await
}

/// A server with a table and the item, whose next UpdateItem meets `fault`.
async fn struck_by(fault: Fault) -> Aws {
    let aws = Aws::start().await;
    aws.table("leases").await;
    aws.put_lease("leases", "a", 0).await;
    aws.local.faults().add(Rule::new(fault).service(Service::DynamoDb).operation("UpdateItem").times(1));
    aws
}

/// That `fault` was counted, and that the next call is served and makes the counter `then`.
async fn assert_over(aws: &Aws, kind: FaultKind, then: u64) {
    let operation = (Service::DynamoDb, "UpdateItem".to_owned());
    assert_eq!(aws.local.faults().counts().get(&(operation, kind)), Some(&1));
    increment(&aws.dynamodb).await.unwrap();
    assert_eq!(aws.counter("leases", "a").await, Some(then));
    assert_eq!(aws.local.faults().requests_of(Service::DynamoDb, "UpdateItem"), 2);
}

#[tokio::test]
async fn a_throttled_call_is_refused_and_not_applied() {
    let aws = struck_by(Fault::Throttle).await;
    let error = increment(&aws.dynamodb).await.unwrap_err();
    assert!(error.into_service_error().is_provisioned_throughput_exceeded_exception());
    assert_over(&aws, FaultKind::Throttle, 1).await;
}

#[tokio::test]
async fn a_server_error_is_answered_and_not_applied() {
    let aws = struck_by(Fault::ServerError).await;
    let error = increment(&aws.dynamodb).await.unwrap_err();
    assert_eq!(error.raw_response().unwrap().status().as_u16(), 500);
    assert!(error.into_service_error().is_internal_server_error());
    assert_over(&aws, FaultKind::ServerError, 1).await;
}

#[tokio::test]
async fn a_dropped_call_ends_the_connection_and_is_not_applied() {
    let aws = struck_by(Fault::Drop).await;
    let error = increment(&aws.dynamodb).await.unwrap_err();
    assert!(matches!(error, SdkError::DispatchFailure(_)), "{error:?}");
    assert_over(&aws, FaultKind::Drop, 1).await;
}

#[tokio::test]
async fn a_call_whose_answer_is_lost_is_applied() {
    let aws = struck_by(Fault::LoseAnswer).await;
    let error = increment(&aws.dynamodb).await.unwrap_err();
    assert!(matches!(error, SdkError::DispatchFailure(_)), "{error:?}");
    assert_over(&aws, FaultKind::LoseAnswer, 2).await;
}

#[tokio::test]
async fn a_call_whose_answer_is_withheld_is_applied() {
    let aws = struck_by(Fault::WithholdAnswer).await;
    let mut calls = JoinSet::new();
    let dynamodb = aws.dynamodb.clone();
    calls.spawn(async move { increment(&dynamodb).await });
    eventually("the call is applied", async || aws.counter("leases", "a").await == Some(1)).await;
    let answered = tokio::time::timeout(Duration::from_millis(300), calls.join_next()).await;
    assert!(answered.is_err(), "{answered:?}");
    calls.shutdown().await;
    assert_over(&aws, FaultKind::WithholdAnswer, 2).await;
}

#[tokio::test]
async fn latency_delays_the_answer() {
    let delay = Duration::from_millis(300);
    let aws = struck_by(Fault::Latency { min: delay, max: delay }).await;
    let asked = Instant::now();
    increment(&aws.dynamodb).await.unwrap();
    assert!(asked.elapsed() >= delay);
    assert_over(&aws, FaultKind::Latency, 2).await;
}

#[tokio::test]
async fn a_delayed_call_is_applied_after_its_caller_gave_up() {
    let delay = Duration::from_millis(500);
    let aws = struck_by(Fault::Latency { min: delay, max: delay }).await;
    let mut calls = JoinSet::new();
    let dynamodb = aws.dynamodb.clone();
    calls.spawn(async move { increment(&dynamodb).await });
    let arrived = async || aws.local.faults().requests_of(Service::DynamoDb, "UpdateItem") == 1;
    eventually("the call arrives", arrived).await;
    calls.shutdown().await;
    eventually("the delayed call lands", async || aws.counter("leases", "a").await == Some(1)).await;
}

#[tokio::test]
async fn each_service_words_its_own_errors() {
    let local = LocalAws::builder().fault(Rule::new(Fault::Throttle)).start().await.unwrap();
    let aws = Aws::clients_of(local);
    let put = aws.kinesis.put_record().stream_name("s").partition_key("k").data(vec![].into()).send().await;
    assert!(put.unwrap_err().into_service_error().is_provisioned_throughput_exceeded_exception());
    let listed = aws.kinesis.list_shards().stream_name("s").send().await;
    assert!(listed.unwrap_err().into_service_error().is_limit_exceeded_exception());
    let described = aws.dynamodb.describe_table().table_name("t").send().await;
    assert_eq!(described.unwrap_err().into_service_error().meta().code(), Some("ThrottlingException"));
    let sent = aws.sqs.get_queue_url().queue_name("q").send().await;
    assert!(sent.unwrap_err().into_service_error().is_request_throttled());

    aws.local.faults().clear();
    aws.local.faults().add(Rule::new(Fault::ServerError));
    let put = aws.kinesis.put_record().stream_name("s").partition_key("k").data(vec![].into()).send().await;
    assert_eq!(put.unwrap_err().into_service_error().meta().code(), Some("InternalFailure"));
    let sent = aws.sqs.get_queue_url().queue_name("q").send().await;
    assert_eq!(sent.unwrap_err().into_service_error().meta().code(), Some("InternalFailure"));
}

#[tokio::test]
async fn an_sdk_that_retries_gets_through_throttling() {
    let aws = struck_by(Fault::Throttle).await;
    let retrying = aws_sdk_dynamodb::Client::new(&aws.local.sdk_config());
    increment(&retrying).await.unwrap();
    assert_eq!(aws.counter("leases", "a").await, Some(1));
    assert_eq!(aws.local.faults().requests_of(Service::DynamoDb, "UpdateItem"), 2);
}
