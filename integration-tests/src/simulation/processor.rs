//! The model of a service: processes records late, wrongly or not at all, as the plan has it, and tells the truth about it.

use std::time::Duration;

use kcl_core::test_util::Host;
use kcl_core::{
    CheckpointError, Entropy, ExtendedSequenceNumber, Outcome, ProcessError, ProcessResult, Record, RecordBatch, RecordProcessor,
    ShardContext, ShardId, async_trait,
};

use super::oracle::Judge;
use super::plan::{Handling, Tells};
use super::publisher::{Kind, kind_of};
use super::users::A_BUG_OF_THE_SERVICE;

/// A processor of one shard.
pub(super) struct Processor {
    pub(super) judge: Judge,
    pub(super) host: Host,
    pub(super) handling: Handling,
    pub(super) entropy: Entropy,
    pub(super) collected: Collected,
    /// Calls since the last flush, of a processor that checkpoints for itself.
    pub(super) calls: u32,
}

/// Records whose effect waits for the next flush. The oracle knows of them for as long as they are here: nobody owes them yet.
pub(super) struct Collected {
    judge: Judge,
    shard: ShardId,
    records: Vec<ExtendedSequenceNumber>,
}

impl Collected {
    pub(super) fn new(judge: Judge, shard: ShardId) -> Self {
        Self { judge, shard, records: Vec::new() }
    }

    fn push(&mut self, record: ExtendedSequenceNumber) {
        self.judge.with(|oracle, _| oracle.collected(&self.shard, record));
        self.records.push(record);
    }

    fn take(&mut self) -> Vec<ExtendedSequenceNumber> {
        let records = std::mem::take(&mut self.records);
        self.judge.with(|oracle, _| records.iter().for_each(|record| oracle.let_go(&self.shard, *record)));
        records
    }
}

impl Drop for Collected {
    fn drop(&mut self) {
        self.take();
    }
}

impl Processor {
    /// A record is done: at once, or with the next flush.
    fn done(&mut self, record: &Record, shard: &ShardContext) {
        if self.handling.manual {
            self.collected.push(record.position());
        } else {
            self.judge.effect(self.host.name(), shard.shard_id(), record.position());
        }
    }

    /// Has the effect of all that was collected, and checkpoints it.
    async fn flush(&mut self, shard: &ShardContext) -> Result<(), CheckpointError> {
        if !self.handling.manual {
            return Ok(());
        }
        self.calls = 0;
        for record in self.collected.take() {
            self.judge.effect(self.host.name(), shard.shard_id(), record);
        }
        shard.checkpointer().checkpoint().await
    }

    async fn one(&self, record: &Record) -> Result<(), ProcessError> {
        match kind_of(record.data()) {
            Kind::Poison => return Err(ProcessError::poison("it says so")),
            Kind::Failing => return Err(ProcessError::retry("it fails each time")),
            Kind::Killer => {
                self.judge.note("process killed by its record");
                self.host.kill();
                std::future::pending::<()>().await;
            }
            Kind::Panicking => {
                self.judge.note("record panics");
                std::panic::panic_any(A_BUG_OF_THE_SERVICE);
            }
            Kind::Good | Kind::Broken => {}
        }
        if self.entropy.fraction() < self.handling.errors {
            return Err(ProcessError::retry("this once"));
        }
        Ok(())
    }

    async fn work(&mut self, batch: &RecordBatch, shard: &ShardContext) -> ProcessResult {
        let mut time = self.entropy.between(Duration::ZERO, self.handling.longest);
        if self.entropy.fraction() < self.handling.stalls {
            time += self.entropy.between(Duration::ZERO, self.handling.stall);
        }
        // Half of the work before the effect, half after it: a crash comes before it as well as after.
        tokio::time::sleep(time / 2).await;
        if self.entropy.fraction() < self.handling.panics {
            std::panic::panic_any(A_BUG_OF_THE_SERVICE);
        }
        if self.handling.stops > 0.0 && !self.judge.is_calm() && self.entropy.fraction() < self.handling.stops {
            self.judge.note("processor says stop");
            return Err(ProcessError::stop("it must not go on"));
        }
        let mut outcome = Outcome::Done;
        match self.handling.tells {
            Tells::InOrder => {
                for record in batch {
                    if shard.interruption().is_some() {
                        return Ok(Outcome::Acknowledged);
                    }
                    if let Err(error) = self.one(record).await {
                        return Ok(Outcome::failed_from(record, error));
                    }
                    self.done(record, shard);
                    batch.ack(record);
                }
            }
            Tells::AnyOrder => {
                let mut records: Vec<_> = batch.records().iter().collect();
                while !records.is_empty() {
                    if shard.interruption().is_some() {
                        return Ok(Outcome::Acknowledged);
                    }
                    let choice = usize::try_from(self.entropy.u64() % records.len() as u64).unwrap_or(0);
                    let record = records.swap_remove(choice);
                    self.one(record).await?;
                    self.done(record, shard);
                    batch.ack(record);
                }
            }
            Tells::Nothing => {
                for record in batch.records() {
                    self.one(record).await?;
                }
                batch.records().iter().for_each(|record| self.done(record, shard));
            }
            Tells::From => {
                for record in batch.records() {
                    if let Err(error) = self.one(record).await {
                        outcome = Outcome::failed_from(record, error);
                        break;
                    }
                    self.done(record, shard);
                }
            }
            Tells::These => {
                let mut failed = Vec::new();
                for record in batch.records() {
                    match self.one(record).await {
                        Ok(()) => self.done(record, shard),
                        Err(error) => failed.push((record, error)),
                    }
                }
                if !failed.is_empty() {
                    outcome = Outcome::failed(failed);
                }
            }
        }
        tokio::time::sleep(time / 2).await;
        // While some of it is to come again, a checkpoint would pass it.
        if self.handling.manual && matches!(outcome, Outcome::Done) {
            self.calls += 1;
            if self.calls >= 3 {
                // What is not written down is written down with the next.
                let _ = self.flush(shard).await;
            }
        }
        Ok(outcome)
    }
}

#[async_trait]
impl RecordProcessor for Processor {
    async fn process_records(&mut self, batch: &RecordBatch, shard: &ShardContext) -> ProcessResult {
        self.work(batch, shard).await
    }

    async fn shard_ended(&mut self, shard: &ShardContext) -> Result<(), ProcessError> {
        if self.entropy.fraction() < self.handling.panics {
            std::panic::panic_any(A_BUG_OF_THE_SERVICE);
        }
        Ok(self.flush(shard).await?)
    }

    async fn shutdown_requested(&mut self, shard: &ShardContext) -> Result<(), ProcessError> {
        Ok(self.flush(shard).await?)
    }
}
