//! A consumer framework for Amazon Kinesis: at least once, in order within a key, nothing lost.
//!
//! Any number of worker processes share a stream's shards through leases in a DynamoDB table.
//! Implement [`RecordHandler`], build a [`Worker`], and run it:
//!
//! ```no_run
//! use kcl_core::{ProcessError, Record, RecordHandler, ShardContext, SqsDeadLetterQueue, Worker, WorkerError};
//!
//! struct Orders;
//!
//! #[kcl_core::async_trait]
//! impl RecordHandler for Orders {
//!     async fn handle(&self, record: &Record, _shard: &ShardContext) -> Result<(), ProcessError> {
//!         // to the dead-letter queue, without retries; any other error is retried with backoff
//!         let order = std::str::from_utf8(record.data()).map_err(ProcessError::poison)?;
//!         println!("{} bytes", order.len());
//!         Ok(())
//!     }
//! }
//!
//! #[tokio::main]
//! async fn main() -> Result<(), WorkerError> {
//!     let aws = kcl_core::aws_config::load_from_env().await;
//!     Worker::builder("orders-app", "orders")
//!         .aws_config(&aws)
//!         .handler(Orders)
//!         .dead_letter_queue(SqsDeadLetterQueue::new(&aws, "orders-dlq"))
//!         .build()
//!         .await?
//!         .run_until(kcl_core::shutdown_signal())
//!         .await
//! }
//! ```
//!
//! For work that goes faster in batches there is [`RecordProcessor`].
//!
//! | module | owns |
//! |---|---|
//! | [`worker`] | the worker, its builder, and what it does beside consuming: leases, shard sync, shutdown |
//! | [`processor`] | what users implement, and what they are handed |
//! | [`handler`] | for simple cases: one record, or one message, at a time |
//! | [`blocking`] | processors and handlers that block their thread |
//! | [`interruption`] | the signal that a call should end early |
//! | [`commit`] | a processor's output and the checkpoint in one transaction |
//! | [`record`], [`batch`] | records and batches |
//! | [`consumer`] | the consumer of one shard: delivery, retries, checkpoints, the end of the shard |
//! | [`retrieval`] | the retrieval port; polling, and enhanced fan-out |
//! | [`stream`] | the stream port, and its implementation over the AWS SDK |
//! | [`dead_letter`] | the dead-letter queue port: SQS, Kinesis, a file; the blob store port: S3; the message, written and read |
//! | [`redrive`] | dead letters back into a stream, or through a handler |
//! | [`seek`] | an application begins elsewhere: at a time, at a record, at the oldest or the latest |
//! | [`stops`] | shards that are stopped beyond the process, and how to resume them from outside |
//! | [`health`] | the standing of a worker as a whole |
//! | [`status`] | how a worker stands, for displays and health checks |
//! | [`error`] | what can go wrong |
//! | `test_util` (feature `test-util`) | the test kit: the services in memory, in simulated time, with faults |

pub mod batch;
pub mod blocking;
pub mod commit;
pub mod consumer;
pub mod dead_letter;
pub mod error;
pub mod handler;
pub mod health;
pub mod interruption;
mod metrics;
pub mod processor;
pub mod record;
pub mod redrive;
pub mod retrieval;
pub mod seek;
pub mod shutdown;
pub mod status;
pub mod stops;
pub mod stream;
#[cfg(feature = "test-util")]
pub mod test_util;
pub mod worker;

/// The macro that [`RecordProcessor`] implementations carry.
pub use async_trait::async_trait;
/// The AWS configuration crate that this version works with.
pub use aws_config;
/// The DynamoDB client that this version works with: its types are what [`ShardContext::commit`] takes.
pub use aws_sdk_dynamodb;
pub use bytes::Bytes;
pub use kcl_checkpoint::{
    Checkpoint, CheckpointError, CheckpointWriteError, Checkpointer, ExtendedSequenceNumber, InitialPosition, PendingCheckpoint,
    PreparedCheckpoint, SequenceNumber, Timestamp,
};
pub use kcl_efo::{FanOutApi, FanOutError};
pub use kcl_lease::{
    Clock, DynamoDbLeaseTable, Entropy, InMemoryItems, InMemoryLeaseTable, LeaseTable, RefusedItem, ShardId, StopReason, Stopped,
    SystemClock, TableError, TransactItemsError, WorkerId,
};

pub use kcl_aggregation::{Rules as AggregationRules, Unparsable};

pub use self::batch::RecordBatch;
pub use self::blocking::{BlockingHandler, BlockingProcessor};
pub use self::commit::CommitError;
pub use self::consumer::{
    Aggregated, Backlog, Batching, CallbackDeadlines, Checkpointing, Elsewhere, Lanes, PoisonedKey, ReadUntil, RetryPolicy, SafetyValve,
    TrimmedData,
};
#[cfg(feature = "s3")]
pub use self::dead_letter::S3BlobStore;
pub use self::dead_letter::{
    BlobStore, DeadLetter, DeadLetterError, DeadLetterQueue, FileDeadLetterQueue, KinesisDeadLetterQueue, PartitionKeys, SqsDeadLetterQueue,
};
pub use self::error::{ConfigError, WorkerError};
pub use self::handler::{Json, MessageHandler, RecordHandler};
pub use self::health::{FailingCall, LastError, WorkerCall, WorkerHealth, WorkerState};
pub use self::interruption::Interruption;
pub use self::processor::{
    FailedRecord, Outcome, ProcessError, ProcessResult, RecordProcessor, RecordProcessorFactory, ShardContext, ShardInfo,
};
pub use self::record::Record;
pub use self::retrieval::{ConsumerChoice, FanOutConfig, PollingConfig, RetrievalMode};
pub use self::shutdown::shutdown_signal;
pub use self::status::{CallStatus, ShardState, ShardStatus, WorkerStatus};
pub use self::worker::{Worker, WorkerBuilder, WorkerHandle};

/// The README's code, compiled with the documentation tests.
#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
struct Readme;
