//! What a worker makes of its settings for enhanced fan-out before it starts.

use std::sync::Arc;

use kcl_core::retrieval::{FanOutConfig, RetrievalMode};
use kcl_core::stream::{
    RecordsPage, Shard, ShardFilter, ShardIterator, StartingPosition, StreamApi, StreamDescription, StreamError, StreamStatus,
};
use kcl_core::{
    ConsumerChoice, FanOutError, InMemoryLeaseTable, Outcome, ProcessResult, RecordBatch, RecordProcessor, ShardContext, ShardId,
    Timestamp, Worker, WorkerBuilder, WorkerError, async_trait,
};
use kcl_local::LocalAws;
use kcl_local::kinesis::{CreateStreamInput, DescribeStreamSummaryInput};

struct Nothing;

#[async_trait]
impl RecordProcessor for Nothing {
    async fn process_records(&mut self, _: &RecordBatch, _: &ShardContext) -> ProcessResult {
        Ok(Outcome::Done)
    }
}

/// A stream that is described, and listed to see whether that is allowed; nothing is read of it.
#[derive(Debug)]
struct Described(&'static str);

#[async_trait]
impl StreamApi for Described {
    async fn describe(&self) -> Result<StreamDescription, StreamError> {
        let created = Timestamp::from_millis(1_700_000_000_000);
        Ok(StreamDescription {
            name: "orders".into(),
            arn: self.0.into(),
            status: StreamStatus::Active,
            created,
            retention_hours: 24,
            time: None,
        })
    }

    async fn list_shards(&self, _: ShardFilter) -> Result<Vec<Shard>, StreamError> {
        Ok(Vec::new())
    }

    async fn shard_iterator(&self, _: &ShardId, _: StartingPosition) -> Result<ShardIterator, StreamError> {
        unreachable!("nothing is read")
    }

    async fn get_records(&self, _: &ShardIterator, _: u32) -> Result<RecordsPage, StreamError> {
        unreachable!("nothing is read")
    }
}

fn worker(application: &str, mode: RetrievalMode) -> WorkerBuilder {
    Worker::builder(application, "orders")
        .processor(|_: &ShardContext| Nothing)
        .lease_table(Arc::new(InMemoryLeaseTable::default()))
        .retrieval(mode)
}

#[tokio::test]
async fn a_stream_of_dynamodb_is_polled_or_refused_in_words() {
    let aws = LocalAws::start().await.unwrap();
    let arn = "arn:aws:dynamodb:eu-west-1:123456789012:table/orders/stream/2026-01-01T00:00:00.000";
    let build = async |mode| worker("app", mode).aws_config(&aws.sdk_config()).stream_api(Arc::new(Described(arn))).build().await;
    let refused = build(RetrievalMode::FanOut).await.unwrap_err();
    assert!(matches!(&refused, WorkerError::FanOut(FanOutError::Unsupported { stream }) if stream == arn), "{refused:?}");
    assert_eq!(refused.to_string(), format!("stream `{arn}` has no enhanced fan-out: only Kinesis data streams have; read it by polling"));
    drop(build(RetrievalMode::Auto).await.unwrap());
    drop(build(RetrievalMode::Polling).await.unwrap());
}

#[tokio::test]
async fn a_stream_port_without_subscriptions_is_polled_or_refused_in_words() {
    let arn = "arn:aws:kinesis:eu-west-1:123456789012:stream/orders";
    let build = async |mode| worker("app", mode).stream_api(Arc::new(Described(arn))).build().await;
    let refused = build(RetrievalMode::FanOut).await.unwrap_err();
    assert!(matches!(&refused, WorkerError::Config(error) if error.setting == "retrieval"), "{refused:?}");
    assert!(refused.to_string().contains("`fan_out_api`"), "{refused}");
    drop(build(RetrievalMode::Auto).await.unwrap());
}

#[tokio::test]
async fn what_is_the_users_mistake_is_refused_in_automatic_mode_too_and_nothing_is_registered() {
    let aws = LocalAws::start().await.unwrap();
    aws.kinesis().call(CreateStreamInput { stream_name: "orders".into(), shard_count: Some(1), ..Default::default() }).unwrap();
    let long = "a".repeat(129);
    let build = async |application: &str, mode, consumer| {
        let config = FanOutConfig { consumer, ..FanOutConfig::default() };
        worker(application, mode).aws_config(&aws.sdk_config()).fan_out(config).build().await
    };
    for mode in [RetrievalMode::FanOut, RetrievalMode::Auto] {
        // An application's name may be longer than a consumer's.
        let refused = build(&long, mode, None).await.unwrap_err();
        assert!(matches!(&refused, WorkerError::FanOut(FanOutError::InvalidName { name }) if *name == long), "{refused:?}");
        assert!(refused.to_string().contains("FanOutConfig::consumer"), "it says what to do: {refused}");
        let refused = build("app", mode, Some(ConsumerChoice::Arn("arn:aws:kinesis".into()))).await.unwrap_err();
        assert!(matches!(&refused, WorkerError::FanOut(FanOutError::NotAConsumerArn { .. })), "{refused:?}");
    }
    let summary = DescribeStreamSummaryInput { stream_name: Some("orders".into()), ..Default::default() };
    assert_eq!(aws.kinesis().call(summary).unwrap().stream_description_summary.consumer_count, 0);
    drop(build(&long, RetrievalMode::FanOut, Some("orders-efo".into())).await.unwrap());
}
