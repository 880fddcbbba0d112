//! One call is one attempt, bounded in time, and its failure tells what the caller can do.

use std::time::Duration;

use aws_credential_types::Credentials;
use aws_credential_types::provider::{ProvideCredentials, future};
use aws_sdk_dynamodb::Client;
use aws_sdk_dynamodb::config::retry::RetryConfig;
use kcl_checkpoint::Checkpoint;
use kcl_lease::{
    DynamoDbLeaseTable, Entropy, Lease, LeaseTable, LeaseWrite, TableError, TableOptions, TransactItems, WriteId, WriteOutcome,
};
use tokio::net::TcpListener;
use tokio::time::{Instant, timeout};

use crate::local::{client, lease_table};
use crate::scripted::{Answer, ScriptedDynamoDb};

fn held() -> Lease {
    Lease { owner: Some("a".into()), ..Lease::new("shardId-000000000000".into(), Checkpoint::Latest) }
}

fn with_call_timeout(client: &Client, call_timeout: Duration) -> DynamoDbLeaseTable {
    let options = TableOptions { call_timeout, ..TableOptions::default() };
    DynamoDbLeaseTable::new(client, "leases", options, &Entropy::from_seed(1))
}

/// Every call of the port, once.
async fn call_all(table: &DynamoDbLeaseTable) -> Vec<TableError> {
    let lease = held();
    vec![
        table.ensure().await.unwrap_err(),
        table.list().await.unwrap_err(),
        table.get(&lease.shard_id).await.unwrap_err(),
        table.create(&lease).await.unwrap_err(),
        table.write(&LeaseWrite::renew(&lease, WriteId(1))).await.unwrap_err(),
        table.transact(&LeaseWrite::renew(&lease, WriteId(2)), &TransactItems::new([]).unwrap()).await.unwrap_err(),
        table.delete(&lease).await.unwrap_err(),
    ]
}

#[tokio::test]
async fn a_failed_call_is_one_attempt_whatever_the_client_says() {
    let calls = ["DescribeTable", "Scan", "GetItem", "PutItem", "UpdateItem", "TransactWriteItems", "DeleteItem"];
    for answer in [|| Answer::error(500, "InternalServerError", "sorry"), || Answer::HangUp] {
        let server = ScriptedDynamoDb::start(move |_, _| answer()).await;
        let retrying = client(server.address()).config().to_builder().retry_config(RetryConfig::standard().with_max_attempts(5)).build();
        for error in call_all(&lease_table(&Client::from_conf(retrying), "leases")).await {
            assert!(matches!(error, TableError::Unavailable { .. }), "{error}");
        }
        assert_eq!(server.operations(), calls);
    }
}

#[tokio::test]
async fn a_failure_says_what_the_caller_can_do() {
    let message = "the service's own words";
    for (status, code) in [
        (400, "AccessDeniedException"),
        (400, "UnrecognizedClientException"),
        (400, "ProvisionedThroughputExceededException"),
        (400, "ThrottlingException"),
        (400, "RequestLimitExceeded"),
        (400, "ValidationException"),
        (503, "ServiceUnavailable"),
    ] {
        let server = ScriptedDynamoDb::start(move |_, _| Answer::error(status, code, message)).await;
        for error in call_all(&lease_table(&client(server.address()), "leases")).await {
            let told = error.to_string();
            let as_expected = match code {
                "AccessDeniedException" | "UnrecognizedClientException" => {
                    matches!(error, TableError::AccessDenied { .. }) && told.contains(message)
                }
                "ValidationException" => matches!(error, TableError::Rejected { .. }) && told.contains(message),
                "ServiceUnavailable" => matches!(error, TableError::Unavailable { .. }) && error.is_retryable(),
                _ => matches!(error, TableError::Throttled { .. }) && error.is_retryable(),
            };
            assert!(as_expected && told.contains("`leases`") && told.contains("dynamodb:"), "{code}: {error}");
        }
    }
}

#[tokio::test]
async fn a_call_without_an_answer_fails_in_time() {
    let server = ScriptedDynamoDb::start(|_, _| Answer::Silence).await;
    let table = with_call_timeout(&client(server.address()), Duration::from_millis(200));
    let started = Instant::now();
    let error = table.get(&held().shard_id).await.unwrap_err();
    assert!(matches!(error, TableError::Unavailable { .. }), "{error}");
    // not the 5 seconds more that credentials may take
    assert!(started.elapsed() < Duration::from_secs(4), "{:?}", started.elapsed());
    assert_eq!(server.operations(), ["GetItem"]);
}

#[tokio::test]
async fn a_server_that_is_not_there_is_unavailable() {
    let address = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let error = lease_table(&client(address), "leases").list().await.unwrap_err();
    assert!(matches!(error, TableError::Unavailable { .. }), "{error}");
}

/// Takes longer than a call may.
#[derive(Debug)]
struct SlowCredentials(Duration);

impl ProvideCredentials for SlowCredentials {
    fn provide_credentials<'a>(&'a self) -> future::ProvideCredentials<'a>
    where
        Self: 'a,
    {
        future::ProvideCredentials::new(async {
            tokio::time::sleep(self.0).await;
            Ok(Credentials::new("test", "test", None, None, "slow"))
        })
    }
}

#[tokio::test]
async fn credentials_may_take_longer_than_a_call() {
    let server = ScriptedDynamoDb::start(|_, _| Answer::ok("{}")).await;
    let call_timeout = Duration::from_secs(2);
    let slow = SlowCredentials(call_timeout + Duration::from_millis(500));
    let slow = client(server.address()).config().to_builder().credentials_provider(slow).build();
    let table = with_call_timeout(&Client::from_conf(slow), call_timeout);
    let got = timeout(Duration::from_secs(30), table.get(&held().shard_id)).await.expect("the call is bounded");
    assert_eq!(got.unwrap(), None);
}

#[tokio::test]
async fn a_write_that_the_service_carried_out_before_its_answer_was_lost_is_recognised() {
    let held = held();
    let write = LeaseWrite::renew(&held, WriteId(0xab));
    let refusal = r#"{"__type": "com.amazonaws.dynamodb.v20120810#ConditionalCheckFailedException", "message": "no",
        "Item": {"leaseKey": {"S": "shardId-000000000000"}, "leaseOwner": {"S": "a"}, "leaseCounter": {"N": "1"},
                 "checkpoint": {"S": "LATEST"}, "rk_wid": {"S": "00000000000000ab"}}}"#;
    let server =
        ScriptedDynamoDb::start(move |_, before| if before == 0 { Answer::HangUp } else { Answer::Json(400, refusal.to_owned()) }).await;
    let table = lease_table(&client(server.address()), "leases");
    assert!(table.write(&write).await.unwrap_err().is_retryable());
    let row = write.apply(&held).unwrap();
    assert_eq!(table.write(&write).await.unwrap(), WriteOutcome::Applied(Box::new(row.clone())));
    let another = LeaseWrite::renew(&held, WriteId(0xcd));
    assert_eq!(table.write(&another).await.unwrap(), WriteOutcome::Refused(Some(Box::new(row))));

    let asked_for = [r#""ReturnValues":"ALL_NEW""#, r#""ReturnValuesOnConditionCheckFailure":"ALL_OLD""#];
    assert!(server.requests().iter().all(|request| asked_for.iter().all(|asked| request.body.contains(asked))));
}
