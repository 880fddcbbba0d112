//! A server and clients of it.

use std::time::Duration;

use aws_sdk_dynamodb::types::AttributeValue;
use aws_sdk_kinesis::config::retry::RetryConfig;
use kcl_local::LocalAws;

/// A server on a free port, and a client of each service. Clients don't retry, so that a test sees every answer.
pub(crate) struct Aws {
    pub(crate) local: LocalAws,
    pub(crate) kinesis: aws_sdk_kinesis::Client,
    pub(crate) dynamodb: aws_sdk_dynamodb::Client,
    pub(crate) sqs: aws_sdk_sqs::Client,
}

impl Aws {
    pub(crate) async fn start() -> Self {
        Self::clients_of(LocalAws::start().await.unwrap())
    }

    pub(crate) fn clients_of(local: LocalAws) -> Self {
        let config = local.sdk_config().into_builder().retry_config(RetryConfig::disabled()).build();
        Self {
            kinesis: aws_sdk_kinesis::Client::new(&config),
            dynamodb: aws_sdk_dynamodb::Client::new(&config),
            sqs: aws_sdk_sqs::Client::new(&config),
            local,
        }
    }

    /// A stream with this many shards, ready for use.
    pub(crate) async fn stream(&self, name: &str, shards: i32) {
        self.kinesis.create_stream().stream_name(name).shard_count(shards).send().await.unwrap();
    }

    /// A table keyed by the string attribute `leaseKey`, ready for use.
    pub(crate) async fn table(&self, name: &str) {
        use aws_sdk_dynamodb::types::{AttributeDefinition, BillingMode, KeySchemaElement, KeyType, ScalarAttributeType};
        let key = KeySchemaElement::builder().attribute_name("leaseKey").key_type(KeyType::Hash);
        let attribute = AttributeDefinition::builder().attribute_name("leaseKey").attribute_type(ScalarAttributeType::S);
        self.dynamodb
            .create_table()
            .table_name(name)
            .key_schema(key.build().unwrap())
            .attribute_definitions(attribute.build().unwrap())
            .billing_mode(BillingMode::PayPerRequest)
            .send()
            .await
            .unwrap();
    }

    /// Puts an item with this key and `leaseCounter`, unconditionally.
    pub(crate) async fn put_lease(&self, table: &str, key: &str, counter: u64) {
        self.dynamodb
            .put_item()
            .table_name(table)
            .item("leaseKey", string(key))
            .item("leaseCounter", number(counter))
            .send()
            .await
            .unwrap();
    }

    /// The `leaseCounter` of the item with this key.
    pub(crate) async fn counter(&self, table: &str, key: &str) -> Option<u64> {
        let item =
            self.dynamodb.get_item().table_name(table).key("leaseKey", string(key)).consistent_read(true).send().await.unwrap().item?;
        Some(item["leaseCounter"].as_n().unwrap().parse().unwrap())
    }
}

pub(crate) fn string(value: &str) -> AttributeValue {
    AttributeValue::S(value.to_owned())
}

pub(crate) fn number(value: u64) -> AttributeValue {
    AttributeValue::N(value.to_string())
}

/// Waits until `condition` holds; panics if it does not within 20 seconds.
pub(crate) async fn eventually(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let waited = async {
        while !condition().await {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), waited).await.unwrap_or_else(|_| panic!("never came true: {what}"));
}
