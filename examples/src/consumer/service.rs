//! What the service does with records: it prints them, if it is to, and counts them.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use kcl_core::{Outcome, ProcessError, ProcessResult, RecordBatch, RecordProcessor, ShardContext, async_trait};

use super::print::{Printer, Unprinted};
use crate::flags::UsageError;

/// How often progress is told, if there was any.
const PROGRESS: Duration = Duration::from_secs(10);

/// What all shards of this process share. Clones are of the same.
#[derive(Clone, Debug)]
pub(super) struct Service {
    printer: Option<Printer>,
    tally: Arc<Tally>,
}

impl Service {
    /// A service that prints, or only counts.
    ///
    /// # Errors
    /// If there is no standard output to print to.
    pub(super) fn new(print: bool) -> Result<Self, UsageError> {
        let printer = if print { Some(Printer::to_standard_output()?) } else { None };
        Ok(Self { printer, tally: Arc::default() })
    }

    pub(super) fn tally(&self) -> &Tally {
        &self.tally
    }

    /// Completes when nobody reads what is printed any more.
    pub(super) async fn output_closed(&self) {
        match &self.printer {
            Some(printer) => printer.closed().await,
            None => std::future::pending().await,
        }
    }

    pub(super) fn is_output_closed(&self) -> bool {
        self.printer.as_ref().is_some_and(Printer::is_closed)
    }

    /// Logs a line now and then while records come. Never completes.
    pub(super) async fn tell_progress(&self) {
        let mut before = 0;
        loop {
            tokio::time::sleep(PROGRESS).await;
            let (records, _) = self.tally.read();
            if records > before {
                tracing::info!(records, new = records - before, "records processed so far");
            }
            before = records;
        }
    }

    pub(super) fn tell_total(&self) {
        let (records, _) = self.tally.read();
        tracing::info!(records, "records processed in all");
    }
}

#[async_trait]
impl RecordProcessor for Service {
    async fn process_records(&mut self, batch: &RecordBatch, shard: &ShardContext) -> ProcessResult {
        let _in_work = self.tally.begin();
        if let Some(printer) = &self.printer
            && let Err(Unprinted { complete, error }) = printer.print(shard.shard_id(), batch.records()).await
        {
            // The failure belongs to the first record whose line is not out; those before it are done and are not printed again.
            self.tally.finished(complete);
            let error = ProcessError::retry(format!("standard output can't be written to: {error}"));
            // All lines may be out, and only their flush have failed.
            let Some(record) = batch.records().get(complete).or(batch.records().last()) else { return Err(error) };
            return Ok(Outcome::failed_from(record, error));
        }
        self.tally.finished(batch.len());
        Ok(Outcome::Done)
    }
}

/// Counts of this process.
#[derive(Debug, Default)]
pub(super) struct Tally {
    records: AtomicU64,
    in_work: AtomicUsize,
}

impl Tally {
    /// Records processed, and batches in work.
    pub(super) fn read(&self) -> (u64, usize) {
        // In work first: a batch that ends in between is then seen in one of the two.
        let in_work = self.in_work.load(Ordering::SeqCst);
        (self.records.load(Ordering::SeqCst), in_work)
    }

    fn begin(&self) -> InWork<'_> {
        self.in_work.fetch_add(1, Ordering::SeqCst);
        InWork(self)
    }

    fn finished(&self, records: usize) {
        self.records.fetch_add(records as u64, Ordering::SeqCst);
    }
}

/// A batch in work, until it is dropped.
struct InWork<'a>(&'a Tally);

impl Drop for InWork<'_> {
    fn drop(&mut self) {
        self.0.in_work.fetch_sub(1, Ordering::SeqCst);
    }
}
