//! What the services of the fleet do with records: process them, late, wrongly or not at all, as the plan has it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use kcl_core::test_util::Host;
use kcl_core::{Entropy, Outcome, ProcessError, ProcessResult, Record, RecordBatch, RecordProcessor, ShardContext, async_trait};

use super::oracle::Judge;
use super::plan::Handling;
use super::publisher::{Kind, kind_of};

/// What the processors' own panics say.
pub const A_BUG_OF_THE_SERVICE: &str = "a bug of the service";

/// A processor of one shard.
pub(super) struct Processor {
    pub(super) judge: Judge,
    pub(super) host: Host,
    pub(super) handling: Handling,
    pub(super) entropy: Entropy,
    /// How many more processes the killing record kills.
    pub(super) deaths_left: Arc<AtomicU32>,
    pub(super) since_checkpoint: u32,
}

impl Processor {
    async fn one(&self, record: &Record) -> Result<(), ProcessError> {
        match kind_of(record.data()) {
            Kind::Poison => return Err(ProcessError::poison("it says so")),
            Kind::Failing => return Err(ProcessError::retry("it fails each time")),
            Kind::Killer if self.deaths_left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)).is_ok() => {
                self.judge.note("process killed by its record");
                self.host.kill();
                std::future::pending::<()>().await;
            }
            Kind::Killer | Kind::Good => {}
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
        if self.handling.in_order {
            for record in batch.in_order() {
                self.one(record).await?;
                self.judge.finished(self.host.name(), shard.shard_id(), record.sequence_number());
            }
        } else {
            for record in batch.records() {
                self.one(record).await?;
            }
            for record in batch.records() {
                self.judge.finished(self.host.name(), shard.shard_id(), record.sequence_number());
            }
        }
        tokio::time::sleep(time / 2).await;
        if self.handling.manual {
            self.since_checkpoint += 1;
            if self.since_checkpoint >= 3 {
                // What is not written down is written down with the next.
                if shard.checkpointer().checkpoint().await.is_ok() {
                    self.since_checkpoint = 0;
                }
            }
        }
        Ok(Outcome::Done)
    }
}

#[async_trait]
impl RecordProcessor for Processor {
    async fn process_records(&mut self, batch: &RecordBatch, shard: &ShardContext) -> ProcessResult {
        self.judge.delivered(self.host.name(), shard, batch.records());
        self.work(batch, shard).await
    }

    async fn shard_ended(&mut self, shard: &ShardContext) -> Result<(), ProcessError> {
        if self.handling.manual {
            shard.checkpointer().checkpoint().await?;
        }
        Ok(())
    }

    async fn shutdown_requested(&mut self, shard: &ShardContext) -> Result<(), ProcessError> {
        if self.handling.manual {
            shard.checkpointer().checkpoint().await?;
        }
        Ok(())
    }
}
