//! A worker that is measured: what it processes is told at once, and its live subscriptions are counted.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::Context as _;
use async_trait::async_trait;
use clap::ValueEnum;
use kcl_core::aws_config::SdkConfig;
use kcl_core::stream::StartingPosition;
use kcl_core::{
    Bytes, FanOutError, Outcome, ProcessResult, RecordBatch, RecordProcessor, RetrievalMode, ShardContext, Worker, WorkerHandle,
};
use kcl_efo::{Consumer, Event, EventStream, FanOutApi, FanOutHttpClient, KinesisFanOut};
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::Instant;

pub(crate) const STREAM: &str = "bench";

/// What subscriptions are carried by.
#[derive(Clone, Copy, Debug, Serialize, Deserialize, ValueEnum)]
pub(crate) enum Protocol {
    Http1,
    Http2,
}

impl fmt::Display for Protocol {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Http1 => "HTTP/1.1",
            Self::Http2 => "HTTP/2",
        })
    }
}

/// Makes the stream.
pub(crate) async fn make_stream(kinesis: &aws_sdk_kinesis::Client, shards: u32) -> anyhow::Result<()> {
    kinesis.create_stream().stream_name(STREAM).shard_count(i32::try_from(shards)?).send().await.context("the stream can't be made")?;
    Ok(())
}

/// A worker at work.
pub(crate) struct Bench {
    /// Each record's payload, and when it came to `process_records`.
    pub(crate) processed: mpsc::UnboundedReceiver<(Bytes, Instant)>,
    live: Arc<AtomicUsize>,
    handle: WorkerHandle,
    worker: JoinSet<Result<(), kcl_core::WorkerError>>,
}

impl Bench {
    pub(crate) async fn start(aws: &SdkConfig, protocol: Protocol) -> anyhow::Result<Self> {
        let http = match protocol {
            Protocol::Http1 => FanOutHttpClient::new(),
            Protocol::Http2 => FanOutHttpClient::with_cleartext_http2(),
        };
        let live = Arc::new(AtomicUsize::new(0));
        let api = Counted { api: KinesisFanOut::with_http_client(aws, http), live: Arc::clone(&live) };
        let (processed, received) = mpsc::unbounded_channel();
        let worker = Worker::builder("bench", STREAM)
            .aws_config(aws)
            .retrieval(RetrievalMode::FanOut)
            .fan_out_api(Arc::new(api))
            .processor(move |_shard: &ShardContext| Told(processed.clone()))
            .build()
            .await?;
        let handle = worker.handle();
        let mut tasks = JoinSet::new();
        tasks.spawn(worker.run());
        Ok(Self { processed: received, live, handle, worker: tasks })
    }

    /// Waits until this many subscriptions live.
    pub(crate) async fn subscribed(&self, subscriptions: u32) -> anyhow::Result<()> {
        let enough = async {
            while self.live.load(Ordering::SeqCst) < subscriptions as usize {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        // The service takes five a second.
        let limit = Duration::from_secs(30) + Duration::from_secs(1) * (subscriptions / 2);
        tokio::time::timeout(limit, enough).await.with_context(|| format!("not {subscriptions} subscriptions within {limit:?}"))
    }

    pub(crate) async fn stop(mut self) -> anyhow::Result<()> {
        self.handle.shutdown();
        while let Some(ended) = self.worker.join_next().await {
            ended??;
        }
        Ok(())
    }
}

struct Told(mpsc::UnboundedSender<(Bytes, Instant)>);

#[async_trait]
impl RecordProcessor for Told {
    async fn process_records(&mut self, batch: &RecordBatch, _shard: &ShardContext) -> ProcessResult {
        let now = Instant::now();
        for record in batch.records() {
            // Nobody listens any more only at the end.
            let _ = self.0.send((record.data().clone(), now));
        }
        Ok(Outcome::Done)
    }
}

/// Counts the streams that live.
#[derive(Debug)]
struct Counted {
    api: KinesisFanOut,
    live: Arc<AtomicUsize>,
}

struct CountedStream {
    stream: Box<dyn EventStream>,
    live: Arc<AtomicUsize>,
}

impl Drop for CountedStream {
    fn drop(&mut self) {
        self.live.fetch_sub(1, Ordering::SeqCst);
    }
}

#[async_trait]
impl EventStream for CountedStream {
    async fn next(&mut self) -> Result<Option<Event>, FanOutError> {
        self.stream.next().await
    }
}

#[async_trait]
impl FanOutApi for Counted {
    async fn register(&self, stream_arn: &str, name: &str) -> Result<Consumer, FanOutError> {
        self.api.register(stream_arn, name).await
    }

    async fn find(&self, stream_arn: &str, name: &str) -> Result<Consumer, FanOutError> {
        self.api.find(stream_arn, name).await
    }

    async fn describe(&self, consumer_arn: &str) -> Result<Consumer, FanOutError> {
        self.api.describe(consumer_arn).await
    }

    async fn deregister(&self, consumer_arn: &str) -> Result<(), FanOutError> {
        self.api.deregister(consumer_arn).await
    }

    async fn subscribe(&self, consumer_arn: &str, shard: &str, start: StartingPosition) -> Result<Box<dyn EventStream>, FanOutError> {
        let stream = self.api.subscribe(consumer_arn, shard, start).await?;
        self.live.fetch_add(1, Ordering::SeqCst);
        Ok(Box::new(CountedStream { stream, live: Arc::clone(&self.live) }))
    }
}
