//! The table itself: found, created, refused, vanished.

use std::collections::BTreeMap;
use std::time::Duration;

use aws_sdk_dynamodb::Client;
use aws_sdk_dynamodb::types::{BillingMode, KeyType, ProjectionType, TableDescription};
use futures::future::join_all;
use kcl_checkpoint::Checkpoint;
use kcl_lease::{DynamoDbLeaseTable, Entropy, Lease, LeaseTable, LeaseWrite, TableError, TableOptions, WriteId};

use crate::local::{LocalDynamoDb, client, java_lease, lease_table};
use crate::scripted::{Answer, ScriptedDynamoDb};

/// The keys of the index that workers of the Java library find their leases by.
fn index_keys(table: &TableDescription) -> Vec<(String, KeyType)> {
    let mut indexes = table.global_secondary_indexes().iter().filter(|index| index.index_name() == Some("LeaseOwnerToLeaseKeyIndex"));
    let Some(index) = indexes.next() else { return Vec::new() };
    assert_eq!(index.projection().unwrap().projection_type(), Some(&ProjectionType::KeysOnly));
    index.key_schema().iter().map(|key| (key.attribute_name().to_owned(), key.key_type().clone())).collect()
}

fn expected_index_keys() -> Vec<(String, KeyType)> {
    vec![("leaseOwner".to_owned(), KeyType::Hash), ("leaseKey".to_owned(), KeyType::Range)]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_missing_table_is_created_as_the_java_library_would() {
    let local = LocalDynamoDb::start().await;
    let options = TableOptions {
        tags: BTreeMap::from([("team".to_owned(), "orders".to_owned())]),
        deletion_protection: true,
        ..TableOptions::default()
    };
    DynamoDbLeaseTable::new(local.client(), "leases", options, &Entropy::from_seed(1)).ensure().await.unwrap();

    let made = local.describe("leases").await;
    let keys: Vec<_> = made.key_schema().iter().map(|key| (key.attribute_name(), key.key_type())).collect();
    assert_eq!(keys, [("leaseKey", &KeyType::Hash)]);
    assert_eq!(made.billing_mode_summary().unwrap().billing_mode(), Some(&BillingMode::PayPerRequest));
    assert_eq!(made.deletion_protection_enabled(), Some(true));
    assert_eq!(index_keys(&made), expected_index_keys());
    let tags = local.client().list_tags_of_resource().resource_arn(made.table_arn().unwrap()).send().await.unwrap();
    assert_eq!(tags.tags().iter().map(|tag| (tag.key(), tag.value())).collect::<Vec<_>>(), [("team", "orders")]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn workers_that_start_together_share_one_table() {
    let local = LocalDynamoDb::start().await;
    let workers: Vec<_> = (0..8).map(|_| local.lease_table("leases")).collect();
    for ensured in join_all(workers.iter().map(LeaseTable::ensure)).await {
        ensured.unwrap();
    }
    let lease = Lease::new("shardId-000000000000".into(), Checkpoint::Latest);
    let created = join_all(workers.iter().map(|worker| worker.create(&lease))).await;
    assert_eq!(created.into_iter().filter(|created| *created.as_ref().unwrap()).count(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_old_table_gets_the_index_and_keeps_its_leases() {
    let local = LocalDynamoDb::start().await;
    local.make_table("leases", &[("leaseKey", KeyType::Hash)]).await;
    let table = local.lease_table("leases");
    local.put_item(&table, java_lease("shardId-000000000002")).await;
    assert_eq!(index_keys(&local.describe("leases").await), []);
    table.ensure().await.unwrap();
    assert_eq!(index_keys(&local.describe("leases").await), expected_index_keys());
    assert_eq!(table.list().await.unwrap().leases.len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_table_of_something_else_is_refused() {
    let local = LocalDynamoDb::start().await;
    for (name, keys) in [("metrics", &[("wid", KeyType::Hash)][..]), ("events", &[("leaseKey", KeyType::Hash), ("at", KeyType::Range)])] {
        local.make_table(name, keys).await;
        let refused = local.lease_table(name).ensure().await.unwrap_err();
        assert!(matches!(&refused, TableError::NotALeaseTable { table, .. } if table == name), "{refused}");
        assert!(refused.is_fatal());
        assert_eq!(index_keys(&local.describe(name).await), []);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_table_that_vanishes_is_told_and_never_made_again() {
    let local = LocalDynamoDb::start().await;
    let table = local.new_lease_table().await;
    let lease = Lease { owner: Some("a".into()), ..Lease::new("shardId-000000000000".into(), Checkpoint::Latest) };
    assert!(table.create(&lease).await.unwrap());
    local.client().delete_table().table_name(table.name()).send().await.unwrap();

    for (what, error) in [
        ("list", table.list().await.unwrap_err()),
        ("get", table.get(&lease.shard_id).await.unwrap_err()),
        ("create", table.create(&lease).await.unwrap_err()),
        ("write", table.write(&LeaseWrite::renew(&lease, WriteId(1))).await.unwrap_err()),
        ("delete", table.delete(&lease).await.unwrap_err()),
        ("ensure", table.ensure().await.unwrap_err()),
    ] {
        assert!(matches!(&error, TableError::NotFound { table: name } if name == table.name()), "{what}: {error}");
    }
    assert!(local.client().describe_table().table_name(table.name()).send().await.is_err());
}

const READY: &str = r#"{"Table": {"TableStatus": "ACTIVE", "KeySchema": [{"AttributeName": "leaseKey", "KeyType": "HASH"}],
    "GlobalSecondaryIndexes": [{"IndexName": "LeaseOwnerToLeaseKeyIndex"}]}}"#;

fn with_status(status: &str) -> Answer {
    Answer::ok(READY.replace("ACTIVE", status))
}

fn with_options(client: &Client, options: TableOptions) -> DynamoDbLeaseTable {
    DynamoDbLeaseTable::new(client, "leases", options, &Entropy::from_seed(1))
}

#[tokio::test]
async fn an_existing_table_needs_no_permission_but_to_describe_it() {
    let server = ScriptedDynamoDb::start(|request, _| match request.operation.as_str() {
        "DescribeTable" => Answer::ok(READY.replace("LeaseOwnerToLeaseKeyIndex", "AnotherIndex")),
        _ => Answer::error(400, "AccessDeniedException", "not authorized"),
    })
    .await;
    lease_table(&client(server.address()), "leases").ensure().await.unwrap();
    assert_eq!(server.operations(), ["DescribeTable", "UpdateTable"]);
}

#[tokio::test]
async fn a_missing_permission_to_create_is_told() {
    let server = ScriptedDynamoDb::start(|request, _| match request.operation.as_str() {
        "DescribeTable" => Answer::error(400, "ResourceNotFoundException", "no such table"),
        _ => Answer::error(400, "AccessDeniedException", "role r is not authorized to perform dynamodb:CreateTable"),
    })
    .await;
    let error = lease_table(&client(server.address()), "leases").ensure().await.unwrap_err();
    assert!(matches!(error, TableError::AccessDenied { operation: "dynamodb:CreateTable", .. }), "{error}");
    assert!(error.to_string().contains("role r is not authorized"), "{error}");
}

#[tokio::test]
async fn a_table_in_the_making_is_waited_for() {
    let server = ScriptedDynamoDb::start(|request, before| match (request.operation.as_str(), before) {
        ("DescribeTable", 0) => Answer::error(400, "ResourceNotFoundException", "no such table"),
        // another worker was first
        ("CreateTable", _) => Answer::error(400, "ResourceInUseException", "table is being created"),
        ("DescribeTable", 1..=3) => with_status("CREATING"),
        _ => Answer::ok(READY),
    })
    .await;
    lease_table(&client(server.address()), "leases").ensure().await.unwrap();
    assert_eq!(server.operations(), ["DescribeTable", "CreateTable", "DescribeTable", "DescribeTable", "DescribeTable"]);
}

#[tokio::test]
async fn a_table_that_never_becomes_ready_is_waited_for_no_longer_than_told() {
    let server = ScriptedDynamoDb::start(|_, _| with_status("CREATING")).await;
    let options = TableOptions { ready_timeout: Duration::from_millis(300), ..TableOptions::default() };
    let began = tokio::time::Instant::now();
    let error = with_options(&client(server.address()), options).ensure().await.unwrap_err();
    assert!(matches!(error, TableError::Unavailable { .. }), "{error}");
    assert!(error.to_string().contains("CREATING"), "{error}");
    // Not earlier either: a caller with the same patience would begin the wait again.
    assert!(began.elapsed() >= Duration::from_millis(300), "{:?}", began.elapsed());
}

#[tokio::test]
async fn a_state_that_does_not_pass_by_itself_is_told_at_once() {
    for status in ["INACCESSIBLE_ENCRYPTION_CREDENTIALS", "ARCHIVED"] {
        let server = ScriptedDynamoDb::start(move |_, _| with_status(status)).await;
        let error = with_options(&client(server.address()), TableOptions::default()).ensure().await.unwrap_err();
        assert!(matches!(error, TableError::Unusable { .. }), "{error}");
        assert!(error.is_fatal() && error.to_string().contains(status), "{error}");
        assert_eq!(server.operations(), ["DescribeTable"]);
    }
}

#[tokio::test]
async fn a_global_table_is_refused_unless_it_is_strongly_consistent() {
    let global = READY.replace(r#""TableStatus""#, r#""Replicas": [{"RegionName": "eu-west-1"}], "TableStatus""#);
    let strong = global.replace(r#""Replicas""#, r#""MultiRegionConsistency": "STRONG", "Replicas""#);
    let server = ScriptedDynamoDb::start(move |request, _| {
        Answer::ok(if request.body.contains("strong-leases") { strong.clone() } else { global.clone() })
    })
    .await;
    let client = client(server.address());
    lease_table(&client, "strong-leases").ensure().await.unwrap();
    let error = lease_table(&client, "leases").ensure().await.unwrap_err();
    assert!(matches!(error, TableError::NotALeaseTable { .. }), "{error}");
    assert!(error.to_string().contains("eu-west-1"), "{error}");
}

#[tokio::test]
async fn point_in_time_recovery_is_turned_on_once_it_can_be() {
    let server = ScriptedDynamoDb::start(|request, before| match (request.operation.as_str(), before) {
        ("DescribeTable", _) => Answer::ok(READY),
        ("UpdateContinuousBackups", 2) => Answer::error(400, "ContinuousBackupsUnavailableException", "not yet"),
        _ => Answer::ok("{}"),
    })
    .await;
    let options = TableOptions { point_in_time_recovery: true, ..TableOptions::default() };
    with_options(&client(server.address()), options).ensure().await.unwrap();
    assert_eq!(server.operations(), ["DescribeTable", "DescribeContinuousBackups", "UpdateContinuousBackups", "UpdateContinuousBackups"]);
    assert!(server.requests().last().unwrap().body.contains(r#""PointInTimeRecoveryEnabled":true"#));
}

#[tokio::test]
async fn a_large_table_is_listed_by_several_readers() {
    let large = READY.replace(r#""TableStatus""#, r#""TableSizeBytes": 500000000, "TableStatus""#);
    let server = ScriptedDynamoDb::start(move |request, _| {
        if request.operation == "DescribeTable" {
            return Answer::ok(large.clone());
        }
        let segment = (0..3).find(|segment| request.body.contains(&format!(r#""Segment":{segment}"#))).unwrap();
        let lease = |page: u32| {
            format!(r#"{{"leaseKey": {{"S": "shardId-{page}{segment}"}}, "leaseCounter": {{"N": "0"}}, "checkpoint": {{"S": "LATEST"}}}}"#)
        };
        // each segment: a page, an empty page, a last page
        let next = |page: &str| format!(r#""LastEvaluatedKey": {{"leaseKey": {{"S": "page {page}"}}}}"#);
        Answer::ok(match request.body.as_str() {
            body if body.contains("page 2") => format!(r#"{{"Items": [{}]}}"#, lease(2)),
            body if body.contains("page 1") => format!(r#"{{"Items": [], {}}}"#, next("2")),
            _ => format!(r#"{{"Items": [{}], {}}}"#, lease(1), next("1")),
        })
    })
    .await;
    let table = lease_table(&client(server.address()), "leases");
    table.ensure().await.unwrap();
    let listed: Vec<_> = table.list().await.unwrap().leases.into_iter().map(|lease| lease.shard_id.to_string()).collect();
    assert_eq!(listed, ["shardId-10", "shardId-11", "shardId-12", "shardId-20", "shardId-21", "shardId-22"]);
    let scans: Vec<_> = server.requests().into_iter().filter(|request| request.operation == "Scan").collect();
    assert_eq!(scans.len(), 9);
    assert!(scans.iter().all(|scan| scan.body.contains(r#""TotalSegments":3"#) && scan.body.contains(r#""ConsistentRead":true"#)));
}
