//! Where it happens: AWS in this process, with a stream, and a table of counts.

use std::time::Duration;

use anyhow::Context as _;
use aws_sdk_dynamodb::types::{AttributeDefinition, AttributeValue, BillingMode, KeySchemaElement, KeyType, ScalarAttributeType};
use aws_sdk_kinesis::primitives::Blob;
use aws_sdk_kinesis::types::{PutRecordsRequestEntry, StreamStatus};
use kcl_core::aws_config::SdkConfig;
use kcl_local::LocalAws;
use kcl_local::wire::{Fault, Rule, Service};

use super::counter::{COUNTS, Counts};

/// The stream.
pub const STREAM: &str = "orders";

/// Records of one PutRecords.
const MOST_RECORDS: usize = 200;

/// See the module.
#[derive(Debug)]
pub struct Site {
    /// How to reach it.
    pub aws: SdkConfig,
    kinesis: aws_sdk_kinesis::Client,
    dynamodb: aws_sdk_dynamodb::Client,
    _local: LocalAws,
}

impl Site {
    /// Starts it. One commit in ten is carried out without an answer, and one in twenty is lost on the way.
    ///
    /// # Errors
    /// It can't be started, or not be used.
    pub async fn open(seed: u64) -> anyhow::Result<Self> {
        let local = LocalAws::builder().seed(seed).start().await.context("local AWS can't be started")?;
        for (fault, probability) in [(Fault::LoseAnswer, 0.1), (Fault::Drop, 0.05)] {
            local.faults().add(Rule::new(fault).service(Service::DynamoDb).operation("TransactWriteItems").probability(probability));
        }
        let aws = local.sdk_config();
        let (kinesis, dynamodb) = (aws_sdk_kinesis::Client::new(&aws), aws_sdk_dynamodb::Client::new(&aws));
        let site = Self { aws, kinesis, dynamodb, _local: local };
        site.make().await?;
        Ok(site)
    }

    async fn make(&self) -> anyhow::Result<()> {
        self.kinesis.create_stream().stream_name(STREAM).shard_count(2).send().await?;
        let status = async || {
            let described = self.kinesis.describe_stream_summary().stream_name(STREAM).send().await?;
            anyhow::Ok(described.stream_description_summary.map(|summary| summary.stream_status))
        };
        while status().await? != Some(StreamStatus::Active) {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let id = AttributeDefinition::builder().attribute_name("id").attribute_type(ScalarAttributeType::S).build()?;
        let key = KeySchemaElement::builder().attribute_name("id").key_type(KeyType::Hash).build()?;
        let table = self.dynamodb.create_table().table_name(COUNTS).billing_mode(BillingMode::PayPerRequest);
        table.attribute_definitions(id).key_schema(key).send().await?;
        Ok(())
    }

    /// Publishes a record of each of these keys, a little at a time.
    ///
    /// # Errors
    /// The stream did not take one.
    pub async fn publish(&self, keys: &[String], pause: Duration) -> anyhow::Result<()> {
        for chunk in keys.chunks(MOST_RECORDS) {
            let entry = |key: &String| PutRecordsRequestEntry::builder().partition_key(key).data(Blob::new("an order")).build();
            let entries = chunk.iter().map(entry).collect::<Result<_, _>>()?;
            let put = self.kinesis.put_records().stream_name(STREAM).set_records(Some(entries)).send().await?;
            anyhow::ensure!(put.failed_record_count.unwrap_or_default() == 0, "the stream refused records");
            tokio::time::sleep(pause).await;
        }
        Ok(())
    }

    /// The table of counts as it is.
    ///
    /// # Errors
    /// It can't be read, or holds something else.
    pub async fn counts(&self) -> anyhow::Result<Counts> {
        let scanned = self.dynamodb.scan().table_name(COUNTS).consistent_read(true).send().await?;
        let text = |value: Option<&AttributeValue>| value.and_then(|value| value.as_s().or(value.as_n()).ok()).cloned();
        scanned
            .items()
            .iter()
            .map(|item| {
                let (id, count) = (text(item.get("id")), text(item.get("occurrences")));
                Ok((id.context("an item without a key")?, count.context("an item without a count")?.parse()?))
            })
            .collect()
    }
}
