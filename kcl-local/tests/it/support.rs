//! A server and clients of it.

use std::sync::Arc;
use std::time::Duration;

use aws_sdk_dynamodb::types::AttributeValue;
use aws_sdk_kinesis::config::retry::RetryConfig;
use aws_sdk_kinesis::error::SdkError;
use aws_sdk_kinesis::operation::subscribe_to_shard::{SubscribeToShardError, SubscribeToShardOutput};
use aws_sdk_kinesis::primitives::event_stream::EventReceiver;
use aws_sdk_kinesis::types::error::SubscribeToShardEventStreamError;
use aws_sdk_kinesis::types::{ShardIteratorType, StartingPosition, SubscribeToShardEvent, SubscribeToShardEventStream};
use kcl_local::LocalAws;
use kcl_local::kinesis::ManualTime;

/// A server on a free port, and a client of each service. Clients don't retry, so that a test sees every answer.
pub(crate) struct Aws {
    pub(crate) local: LocalAws,
    pub(crate) kinesis: aws_sdk_kinesis::Client,
    pub(crate) dynamodb: aws_sdk_dynamodb::Client,
    pub(crate) sqs: aws_sdk_sqs::Client,
    pub(crate) s3: aws_sdk_s3::Client,
}

impl Aws {
    pub(crate) async fn start() -> Self {
        Self::clients_of(LocalAws::start().await.unwrap())
    }

    /// A server whose Kinesis has the time that the test gives it.
    pub(crate) async fn start_at(time: &ManualTime) -> Self {
        Self::clients_of(LocalAws::builder().time(Arc::new(time.clone())).start().await.unwrap())
    }

    pub(crate) fn clients_of(local: LocalAws) -> Self {
        let config = local.sdk_config().into_builder().retry_config(RetryConfig::disabled()).build();
        Self {
            kinesis: aws_sdk_kinesis::Client::new(&config),
            dynamodb: aws_sdk_dynamodb::Client::new(&config),
            sqs: aws_sdk_sqs::Client::new(&config),
            s3: aws_sdk_s3::Client::new(&config),
            local,
        }
    }

    /// A stream with this many shards, ready for use.
    pub(crate) async fn stream(&self, name: &str, shards: i32) {
        self.kinesis.create_stream().stream_name(name).shard_count(shards).send().await.unwrap();
    }

    /// A stream with this many shards, and a consumer of it; the consumer's ARN.
    pub(crate) async fn consumer(&self, stream: &str, shards: i32) -> String {
        self.stream(stream, shards).await;
        let arn = format!("arn:aws:kinesis:us-east-1:000000000000:stream/{stream}");
        let registered = self.kinesis.register_stream_consumer().stream_arn(arn).consumer_name("app").send().await.unwrap();
        registered.consumer.unwrap().consumer_arn
    }

    /// Puts a record of this data into the stream's shard, if it has one only.
    pub(crate) async fn put(&self, stream: &str, data: &str) {
        self.kinesis.put_record().stream_name(stream).partition_key("k").data(data.as_bytes().to_vec().into()).send().await.unwrap();
    }

    /// Subscribes to the stream's first shard.
    pub(crate) async fn subscribe(&self, consumer: &str, from: ShardIteratorType) -> Result<Events, SdkError<SubscribeToShardError>> {
        let position = StartingPosition::builder().r#type(from).build().unwrap();
        let call = self.kinesis.subscribe_to_shard().consumer_arn(consumer).shard_id("shardId-000000000000");
        Ok(Events::of(call.starting_position(position).send().await?))
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

/// The events of a subscription.
pub(crate) struct Events(EventReceiver<SubscribeToShardEventStream, SubscribeToShardEventStreamError>);

/// How a subscription ended: without an error, with an exception of this code, or with the connection (no code).
pub(crate) type End = Result<(), Option<&'static str>>;

impl Events {
    pub(crate) fn of(answer: SubscribeToShardOutput) -> Self {
        Self(answer.event_stream)
    }

    /// The next event, or the end.
    pub(crate) async fn next(&mut self) -> Result<SubscribeToShardEvent, End> {
        let next = tokio::time::timeout(Duration::from_secs(20), self.0.recv()).await.expect("neither an event nor the end");
        match next {
            Ok(Some(event)) => Ok(event.as_subscribe_to_shard_event().unwrap().clone()),
            Ok(None) => Err(Ok(())),
            Err(SdkError::ServiceError(error)) => Err(Err(Some(match error.err() {
                SubscribeToShardEventStreamError::ResourceInUseException(_) => "ResourceInUseException",
                SubscribeToShardEventStreamError::ResourceNotFoundException(_) => "ResourceNotFoundException",
                SubscribeToShardEventStreamError::InternalFailureException(_) => "InternalFailureException",
                SubscribeToShardEventStreamError::KmsAccessDeniedException(_) => "KMSAccessDeniedException",
                error => panic!("{error:?}"),
            }))),
            Err(SdkError::DispatchFailure(_)) => Err(Err(None)),
            Err(error) => panic!("{error:?}"),
        }
    }

    /// The data of the next event's records.
    pub(crate) async fn data(&mut self) -> Vec<String> {
        data(&self.next().await.unwrap())
    }

    /// The end, whatever comes before it.
    pub(crate) async fn end(mut self) -> End {
        loop {
            if let Err(end) = self.next().await {
                return end;
            }
        }
    }
}

/// The data of an event's records.
pub(crate) fn data(event: &SubscribeToShardEvent) -> Vec<String> {
    event.records.iter().map(|record| String::from_utf8(record.data.as_ref().to_vec()).unwrap()).collect()
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
