//! Processors and handlers that block their thread: their calls run on threads of their own.
//!
//! A call of an async processor that blocks (a synchronous driver, a long computation) keeps its
//! runtime thread from everything else. These forms are for such code. Each call runs on a thread
//! of tokio's pool for blocking work, so that lanes use as many cores as there are.
//!
//! A thread can't be stopped from outside. A call that hangs is not cut off by the
//! [`attempt_deadline`](crate::RetryPolicy::attempt_deadline): no other call of its lane begins
//! before it returns. When the shard is let go, at the latest at the handoff or shutdown timeout, it
//! is left alone, and whatever it returns counts for nothing; what it still does then runs beside
//! the shard's next owner. Ask [`ShardContext::interruption`] between steps.
//!
//! Their drops run on such threads too.
//!
//! A thread that is blocked keeps its runtime from being dropped, so that a `main` with
//! `#[tokio::main]` does not end while a call hangs, although [`Worker::run`](crate::Worker::run) has
//! returned. Where that may be, make the runtime yourself and end it by
//! `tokio::runtime::Runtime::shutdown_background`, or call `std::process::exit`.
//!
//! Async methods of the context, such as a checkpoint, are called by
//! `tokio::runtime::Handle::current().block_on(...)`.

use crate::batch::RecordBatch;
use crate::processor::{ProcessError, ProcessResult, ShardContext, ShardInfo};
use crate::record::Record;

/// A [`RecordProcessor`](crate::RecordProcessor) whose calls may block. Given to
/// [`WorkerBuilder::blocking_processor`](crate::WorkerBuilder::blocking_processor). See the
/// [module](self).
pub trait BlockingProcessor: Send {
    /// As [`RecordProcessor::initialize`](crate::RecordProcessor::initialize).
    ///
    /// # Errors
    /// Retried with backoff, with a new processor.
    fn initialize(&mut self, shard: &ShardContext) -> Result<(), ProcessError> {
        let _ = shard;
        Ok(())
    }

    /// As [`RecordProcessor::process_records`](crate::RecordProcessor::process_records).
    ///
    /// # Errors
    /// [`ProcessError`] says what follows.
    fn process_records(&mut self, batch: &RecordBatch, shard: &ShardContext) -> ProcessResult;

    /// As [`RecordProcessor::idle`](crate::RecordProcessor::idle).
    ///
    /// # Errors
    /// Logged and counted.
    fn idle(&mut self, shard: &ShardContext) -> Result<(), ProcessError> {
        let _ = shard;
        Ok(())
    }

    /// As [`RecordProcessor::lease_lost`](crate::RecordProcessor::lease_lost).
    fn lease_lost(&mut self, shard: &ShardInfo) {
        let _ = shard;
    }

    /// As [`RecordProcessor::shard_ended`](crate::RecordProcessor::shard_ended).
    ///
    /// # Errors
    /// Retried with backoff.
    fn shard_ended(&mut self, shard: &ShardContext) -> Result<(), ProcessError> {
        let _ = shard;
        Ok(())
    }

    /// As [`RecordProcessor::shutdown_requested`](crate::RecordProcessor::shutdown_requested).
    ///
    /// # Errors
    /// Logged.
    fn shutdown_requested(&mut self, shard: &ShardContext) -> Result<(), ProcessError> {
        let _ = shard;
        Ok(())
    }
}

/// A [`RecordHandler`](crate::RecordHandler) whose calls may block. Given to
/// [`WorkerBuilder::blocking_handler`](crate::WorkerBuilder::blocking_handler). See the
/// [module](self).
pub trait BlockingHandler: Send + Sync {
    /// Handles a record. It is finished when this returns `Ok`.
    ///
    /// # Errors
    /// [`ProcessError`] says what follows.
    fn handle(&self, record: &Record, shard: &ShardContext) -> Result<(), ProcessError>;
}
