//! Transactions over the wire: the conformance suite, what is sent, and what the answers mean.

use async_trait::async_trait;
use aws_sdk_dynamodb::types::{AttributeValue, KeyType, Put, TransactWriteItem, Update};
use kcl_checkpoint::Checkpoint;
use kcl_lease::conformance::{EFFECTS, Effects, transaction_suite};
use kcl_lease::{Lease, LeaseTable, LeaseWrite, TableError, TransactItems, TransactOutcome, WriteId};

use crate::local::{LocalDynamoDb, client, lease_table, n, s};
use crate::scripted::{Answer, ScriptedDynamoDb};

#[async_trait]
impl Effects for LocalDynamoDb {
    async fn ids(&self) -> Vec<String> {
        let items = self.client().scan().table_name(EFFECTS).consistent_read(true).send().await.unwrap();
        let mut ids: Vec<_> = items.items().iter().map(|item| item["id"].as_s().unwrap().clone()).collect();
        ids.sort();
        ids
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn it_conforms() {
    transaction_suite(|| async {
        let local = LocalDynamoDb::start().await;
        local.make_table(EFFECTS, &[("id", KeyType::Hash)]).await;
        (local.new_lease_table().await, local)
    })
    .await;
}

fn held() -> Lease {
    Lease { owner: Some("a".into()), ..Lease::new("shardId-000000000000".into(), Checkpoint::Latest) }
}

fn put(table: &str) -> TransactWriteItem {
    TransactWriteItem::builder().put(Put::builder().table_name(table).item("id", s("x")).build().unwrap()).build()
}

/// Without an answer the first time; the repetition is the same to the letter, token included, so that the service recognises it.
#[tokio::test]
async fn a_repetition_is_the_same_request() {
    let server = ScriptedDynamoDb::start(|_, before| if before == 0 { Answer::HangUp } else { Answer::ok("{}") }).await;
    let table = lease_table(&client(server.address()), "leases");
    let (write, items) = (LeaseWrite::renew(&held(), WriteId(0xab)), TransactItems::new([put("effects")]).unwrap());
    assert!(table.transact(&write, &items).await.unwrap_err().is_retryable());
    assert_eq!(table.transact(&write, &items).await.unwrap(), TransactOutcome::Applied);
    let requests = server.requests();
    assert_eq!(server.operations(), ["TransactWriteItems", "TransactWriteItems"]);
    assert!(requests[0].body.contains(r#""ClientRequestToken":"00000000000000ab""#), "{}", requests[0].body);
    assert!(requests[0].body.contains(r#""ReturnValuesOnConditionCheckFailure":"ALL_OLD""#));
}

#[tokio::test]
async fn what_an_answer_means() {
    let reasons = |reasons: &str| {
        let head = r#"{"__type": "com.amazonaws.dynamodb.v20120810#TransactionCanceledException", "Message": "cancelled", "CancellationReasons": "#;
        format!("{head}[{reasons}]}}")
    };
    let row = |id: &str| {
        format!(
            r#"{{"Code": "ConditionalCheckFailed", "Item": {{"leaseKey": {{"S": "shardId-000000000000"}}, "leaseOwner": {{"S": "a"}},
                "leaseCounter": {{"N": "1"}}, "checkpoint": {{"S": "LATEST"}}, "rk_wid": {{"S": "{id}"}}}}}}"#
        )
    };
    let item = r#"{"Code": "ConditionalCheckFailed", "Message": "no", "Item": {"id": {"S": "x"}, "count": {"N": "3"}}}"#;
    let none = r#"{"Code": "None"}"#;
    let error = |code: &str| format!(r#"{{"__type": "com.amazonaws.dynamodb.v20120810#{code}", "message": "words"}}"#);
    let write = LeaseWrite::renew(&held(), WriteId(0xab));
    for (answer, expected) in [
        (reasons(&format!("{}, {item}", row("00000000000000ab"))), "recognised"),
        (reasons(&format!("{}, {item}", row("00000000000000cd"))), "lease refused"),
        (reasons(&format!("{none}, {item}")), "item 0 refused"),
        (reasons(&format!(r#"{none}, {{"Code": "TransactionConflict"}}"#)), "unavailable"),
        (reasons(&format!(r#"{none}, {{"Code": "ThrottlingError"}}"#)), "throttled"),
        (error("TransactionInProgressException"), "unavailable"),
        (error("ProvisionedThroughputExceededException"), "throttled"),
        (error("AccessDeniedException"), "denied"),
        (error("ValidationException"), "rejected"),
        (error("IdempotentParameterMismatchException"), "rejected"),
        // not the lease table's business, as far as anybody knows
        (error("ResourceNotFoundException"), "rejected"),
    ] {
        let body = answer.clone();
        let server = ScriptedDynamoDb::start(move |_, _| Answer::Json(400, body.clone())).await;
        let table = lease_table(&client(server.address()), "leases");
        let told = match table.transact(&write, &TransactItems::new([put("effects")]).unwrap()).await {
            Ok(TransactOutcome::Applied) => "applied".to_owned(),
            Ok(TransactOutcome::Recognised(row)) => {
                assert_eq!(row.counter, 1);
                "recognised".to_owned()
            }
            Ok(TransactOutcome::LeaseRefused(_)) => "lease refused".to_owned(),
            Ok(TransactOutcome::ItemsRefused(items)) => {
                assert_eq!(items[0].message.as_deref(), Some("no"));
                assert_eq!(items[0].item.as_ref().and_then(|item| item.get("count")), Some(&n("3")));
                format!("item {} refused", items[0].index)
            }
            Err(TableError::Unavailable { .. }) => "unavailable".to_owned(),
            Err(TableError::Throttled { .. }) => "throttled".to_owned(),
            Err(TableError::AccessDenied { .. }) => "denied".to_owned(),
            Err(TableError::Rejected { .. }) => "rejected".to_owned(),
            Err(other) => panic!("{other}"),
        };
        assert_eq!(told, expected, "{answer}");
    }
}

/// A row of the lease table is nobody's to write but its owner's, and an item that is refused shows what it holds.
#[tokio::test(flavor = "multi_thread")]
async fn an_item_may_not_be_a_lease_and_a_refused_one_may_show_itself() {
    let local = LocalDynamoDb::start().await;
    local.make_table(EFFECTS, &[("id", KeyType::Hash)]).await;
    let table = local.new_lease_table().await;
    assert!(table.create(&held()).await.unwrap());
    let write = LeaseWrite::renew(&held(), WriteId(1));
    for name in [table.name().to_owned(), format!("arn:aws:dynamodb:us-east-1:000000000000:table/{}", table.name())] {
        let error = table.transact(&write, &TransactItems::new([put(EFFECTS), put(&name)]).unwrap()).await.unwrap_err();
        assert!(error.to_string().contains("item 1 is in the lease table itself"), "{error}");
    }

    local.client().put_item().table_name(EFFECTS).item("id", s("x")).item("count", n("3")).send().await.unwrap();
    let update = Update::builder().table_name(EFFECTS).key("id", s("x")).update_expression("ADD #c :n").condition_expression("#c < :most");
    let update = update.expression_attribute_names("#c", "count").expression_attribute_values(":n", n("1"));
    let update = update.expression_attribute_values(":most", AttributeValue::N("3".into()));
    let update = update.return_values_on_condition_check_failure("ALL_OLD".into()).build().unwrap();
    let items = TransactItems::new([TransactWriteItem::builder().update(update).build()]).unwrap();
    match table.transact(&write, &items).await.unwrap() {
        TransactOutcome::ItemsRefused(refused) => assert_eq!(refused[0].item.as_ref().unwrap()["count"], n("3")),
        other => panic!("{other:?}"),
    }
}
