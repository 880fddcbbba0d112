//! DynamoDB through its SDK: what a lease table needs of it.

use std::collections::BTreeSet;

use aws_sdk_dynamodb::operation::update_item::UpdateItemError;
use aws_sdk_dynamodb::types::{
    AttributeDefinition, CreateGlobalSecondaryIndexAction, GlobalSecondaryIndexUpdate, IndexStatus, KeySchemaElement, KeyType, Projection,
    ProjectionType, ReturnValue, ReturnValuesOnConditionCheckFailure, ScalarAttributeType, TableStatus,
};

use crate::support::{Aws, eventually, number, string};

#[tokio::test]
async fn a_failed_condition_returns_the_item_it_met() {
    let aws = Aws::start().await;
    aws.table("leases").await;
    aws.put_lease("leases", "shard-0", 7).await;
    let renew = |seen| {
        aws.dynamodb
            .update_item()
            .table_name("leases")
            .key("leaseKey", string("shard-0"))
            .update_expression("SET leaseCounter = :next")
            .condition_expression("leaseCounter = :seen")
            .expression_attribute_values(":seen", number(seen))
            .expression_attribute_values(":next", number(seen + 1))
            .return_values_on_condition_check_failure(ReturnValuesOnConditionCheckFailure::AllOld)
            .return_values(ReturnValue::AllNew)
            .send()
    };
    let renewed = renew(7).await.unwrap();
    assert_eq!(renewed.attributes.unwrap()["leaseCounter"], number(8));

    let error = renew(7).await.unwrap_err().into_service_error();
    let UpdateItemError::ConditionalCheckFailedException(failed) = error else { panic!("{error:?}") };
    let met = failed.item.expect("the item is returned");
    assert_eq!(met["leaseCounter"], number(8));
    assert_eq!(met["leaseKey"], string("shard-0"));
}

#[tokio::test]
async fn only_one_of_many_creators_wins() {
    let aws = Aws::start().await;
    aws.table("leases").await;
    let create = |owner: u64| {
        aws.dynamodb
            .put_item()
            .table_name("leases")
            .item("leaseKey", string("shard-0"))
            .item("leaseCounter", number(owner))
            .condition_expression("attribute_not_exists(leaseKey)")
            .send()
    };
    let mut winners = 0;
    for created in futures(16, create).await {
        match created {
            Ok(_) => winners += 1,
            Err(error) => assert!(error.into_service_error().is_conditional_check_failed_exception()),
        }
    }
    assert_eq!(winners, 1);
}

/// Calls `make` this often, all at once.
async fn futures<F>(count: u64, make: impl Fn(u64) -> F) -> Vec<F::Output>
where
    F: Future<Output: Send> + Send + 'static,
{
    let mut set = tokio::task::JoinSet::new();
    for n in 0..count {
        set.spawn(make(n));
    }
    set.join_all().await
}

#[tokio::test]
async fn an_index_can_be_added_to_a_table_in_use() {
    let aws = Aws::start().await;
    aws.table("leases").await;
    for (key, owner) in [("shard-0", "one"), ("shard-1", "other"), ("shard-2", "one")] {
        aws.dynamodb.put_item().table_name("leases").item("leaseKey", string(key)).item("leaseOwner", string(owner)).send().await.unwrap();
    }
    let key = KeySchemaElement::builder().attribute_name("leaseOwner").key_type(KeyType::Hash).build().unwrap();
    let index = CreateGlobalSecondaryIndexAction::builder()
        .index_name("LeaseOwnerToLeaseKeyIndex")
        .key_schema(key)
        .projection(Projection::builder().projection_type(ProjectionType::KeysOnly).build())
        .build()
        .unwrap();
    let attribute = |name| AttributeDefinition::builder().attribute_name(name).attribute_type(ScalarAttributeType::S).build().unwrap();
    aws.dynamodb
        .update_table()
        .table_name("leases")
        .attribute_definitions(attribute("leaseKey"))
        .attribute_definitions(attribute("leaseOwner"))
        .global_secondary_index_updates(GlobalSecondaryIndexUpdate::builder().create(index).build())
        .send()
        .await
        .unwrap();
    eventually("table and index are active", async || {
        let table = aws.dynamodb.describe_table().table_name("leases").send().await.unwrap().table.unwrap();
        table.table_status == Some(TableStatus::Active) && table.global_secondary_indexes()[0].index_status == Some(IndexStatus::Active)
    })
    .await;

    let owned = aws
        .dynamodb
        .query()
        .table_name("leases")
        .index_name("LeaseOwnerToLeaseKeyIndex")
        .key_condition_expression("leaseOwner = :owner")
        .expression_attribute_values(":owner", string("one"))
        .send()
        .await
        .unwrap();
    let keys: BTreeSet<_> = owned.items().iter().map(|item| item["leaseKey"].as_s().unwrap().as_str()).collect();
    assert_eq!(keys, BTreeSet::from(["shard-0", "shard-2"]));
}

#[tokio::test]
async fn segments_and_pages_of_a_scan_cover_the_table_once() {
    const ITEMS: u64 = 60;
    const SEGMENTS: i32 = 4;
    let aws = Aws::start().await;
    aws.table("leases").await;
    for n in 0..ITEMS {
        aws.put_lease("leases", &format!("shard-{n}"), n).await;
    }
    let mut counters = Vec::new();
    let mut filled = 0;
    for segment in 0..SEGMENTS {
        let mut start = None;
        let before = counters.len();
        loop {
            let page = aws
                .dynamodb
                .scan()
                .table_name("leases")
                .segment(segment)
                .total_segments(SEGMENTS)
                .limit(7)
                .set_exclusive_start_key(start)
                .send()
                .await
                .unwrap();
            assert!(page.count <= 7);
            counters.extend(page.items().iter().map(|item| item["leaseCounter"].as_n().unwrap().parse::<u64>().unwrap()));
            start = page.last_evaluated_key;
            if start.is_none() {
                break;
            }
        }
        filled += usize::from(counters.len() > before);
    }
    counters.sort_unstable();
    assert_eq!(counters, (0..ITEMS).collect::<Vec<_>>());
    assert!(filled > 1, "all items in one segment");
}

#[tokio::test]
async fn a_missing_table_has_its_type() {
    let aws = Aws::start().await;
    let error = aws.dynamodb.describe_table().table_name("nowhere").send().await.unwrap_err();
    assert!(error.into_service_error().is_resource_not_found_exception());
    let error = aws.dynamodb.scan().table_name("nowhere").send().await.unwrap_err();
    assert!(error.into_service_error().is_resource_not_found_exception());
}

#[tokio::test]
async fn a_table_that_exists_is_not_made_again() {
    let aws = Aws::start().await;
    aws.table("leases").await;
    let key = KeySchemaElement::builder().attribute_name("leaseKey").key_type(KeyType::Hash).build().unwrap();
    let attribute = AttributeDefinition::builder().attribute_name("leaseKey").attribute_type(ScalarAttributeType::S);
    let again = aws
        .dynamodb
        .create_table()
        .table_name("leases")
        .key_schema(key)
        .attribute_definitions(attribute.build().unwrap())
        .billing_mode(aws_sdk_dynamodb::types::BillingMode::PayPerRequest)
        .send()
        .await;
    assert!(again.unwrap_err().into_service_error().is_resource_in_use_exception());
}
