//! Processors that checkpoint for themselves, at odd times, or commit.

use std::time::Duration;

use kcl_core::aws_sdk_dynamodb::types::{AttributeValue, Put, TransactWriteItem};
use kcl_core::{CheckpointError, Outcome, ProcessError, ProcessResult, Record, RecordBatch, RecordProcessor, ShardContext, async_trait};

use super::Tools;
use super::database::{DatabaseError, Row};
use crate::simulation::oracle::COMMITTED;

/// The longest time for which an impatient user waits for a commit: about as long as one takes.
const IMPATIENT: Duration = Duration::from_millis(20);

/// Ignores a checkpoint that is not confirmed: a later one covers it.
fn later(written: Result<(), CheckpointError>) -> Result<(), ProcessError> {
    match written {
        Err(error) if !error.is_retryable() => Err(error.into()),
        _ => Ok(()),
    }
}

/// Collects rows over several calls, writes them when there are enough, and checkpoints.
pub(super) struct FlushWhenFull {
    pub(super) tools: Tools,
    pub(super) rows: Vec<Row>,
}

impl FlushWhenFull {
    const FULL: usize = 10;

    async fn flush(&mut self, shard: &ShardContext) -> Result<(), DatabaseError> {
        if !self.rows.is_empty() {
            self.tools.database.insert(shard, &self.rows).await?;
            self.rows.clear();
        }
        Ok(())
    }
}

#[async_trait]
impl RecordProcessor for FlushWhenFull {
    async fn process_records(&mut self, batch: &RecordBatch, shard: &ShardContext) -> ProcessResult {
        let before = self.rows.len();
        for record in batch {
            let row = Row::from(record);
            if let Err(error) = self.tools.database.check(&[row]).await {
                return Ok(Outcome::failed_from(record, error));
            }
            self.rows.push(row);
        }
        if self.rows.len() >= Self::FULL {
            if let Err(error) = self.flush(shard).await {
                // They come again.
                self.rows.truncate(before);
                return Err(error.into());
            }
            later(shard.checkpointer().checkpoint().await)?;
        }
        Ok(Outcome::Done)
    }

    async fn idle(&mut self, shard: &ShardContext) -> Result<(), ProcessError> {
        self.flush(shard).await?;
        later(shard.checkpointer().checkpoint().await)
    }

    async fn shard_ended(&mut self, shard: &ShardContext) -> Result<(), ProcessError> {
        self.flush(shard).await?;
        Ok(shard.checkpointer().checkpoint().await?)
    }

    async fn shutdown_requested(&mut self, shard: &ShardContext) -> Result<(), ProcessError> {
        self.flush(shard).await?;
        Ok(shard.checkpointer().checkpoint().await?)
    }
}

/// Writes each record at once, and now and then checkpoints the last one, in the middle of a call.
pub(super) struct CheckpointsTheLast(pub(super) Tools);

#[async_trait]
impl RecordProcessor for CheckpointsTheLast {
    async fn process_records(&mut self, batch: &RecordBatch, shard: &ShardContext) -> ProcessResult {
        for record in batch {
            self.0.database.insert(shard, &[Row::from(record)]).await?;
            if self.0.entropy.u64().is_multiple_of(3) {
                later(shard.checkpointer().checkpoint_at(record.position()).await)?;
            }
        }
        Ok(Outcome::Done)
    }

    async fn idle(&mut self, shard: &ShardContext) -> Result<(), ProcessError> {
        later(shard.checkpointer().checkpoint().await)
    }

    async fn shard_ended(&mut self, shard: &ShardContext) -> Result<(), ProcessError> {
        Ok(shard.checkpointer().checkpoint().await?)
    }
}

/// Writes each batch, and checkpoints after some of them, and in the end.
pub(super) struct CheckpointsOddly(pub(super) Tools);

#[async_trait]
impl RecordProcessor for CheckpointsOddly {
    async fn process_records(&mut self, batch: &RecordBatch, shard: &ShardContext) -> ProcessResult {
        let rows: Vec<_> = batch.into_iter().map(Row::from).collect();
        self.0.database.insert(shard, &rows).await?;
        if self.0.entropy.u64().is_multiple_of(4) {
            later(shard.checkpointer().checkpoint().await)?;
        }
        Ok(Outcome::Done)
    }

    async fn idle(&mut self, shard: &ShardContext) -> Result<(), ProcessError> {
        later(shard.checkpointer().checkpoint().await)
    }

    async fn shard_ended(&mut self, shard: &ShardContext) -> Result<(), ProcessError> {
        Ok(shard.checkpointer().checkpoint().await?)
    }

    async fn shutdown_requested(&mut self, shard: &ShardContext) -> Result<(), ProcessError> {
        Ok(shard.checkpointer().checkpoint().await?)
    }
}

/// Commits its rows together with the checkpoint. At times it does not wait long for an answer, goes on with the next rows, and says at the end that it has failed.
pub(super) struct Commits(pub(super) Tools);

impl Commits {
    fn item(&self, record: &Record, shard: &ShardContext) -> Result<TransactWriteItem, ProcessError> {
        let id = self.0.database.judge.will_commit(shard.shard_id(), record.position());
        let put = Put::builder().table_name(COMMITTED).item("id", AttributeValue::S(id)).build()?;
        Ok(TransactWriteItem::builder().put(put).build())
    }
}

#[async_trait]
impl RecordProcessor for Commits {
    async fn process_records(&mut self, batch: &RecordBatch, shard: &ShardContext) -> ProcessResult {
        let mut given_up = false;
        for chunk in batch.records().chunks(5) {
            let mut items = Vec::new();
            let mut failed = None;
            for record in chunk {
                if let Err(error) = self.0.database.check(&[Row::from(record)]).await {
                    failed = Some((record, error));
                    break;
                }
                items.push(self.item(record, shard)?);
            }
            let good = items.len();
            if good > 0 {
                let commit = shard.commit(items, &chunk[..good]);
                if self.0.entropy.u64().is_multiple_of(4) {
                    let patience = self.0.entropy.between(Duration::ZERO, IMPATIENT);
                    match tokio::time::timeout(patience, commit).await {
                        Ok(committed) => committed?,
                        Err(_) => given_up = true,
                    }
                } else {
                    commit.await?;
                }
            }
            match failed {
                // The outcome would say that all before the record is finished.
                Some(_) if given_up => break,
                Some((record, error)) => return Ok(Outcome::failed_from(record, error)),
                None => {}
            }
        }
        if given_up {
            return Err(ProcessError::retry("a commit took too long"));
        }
        Ok(Outcome::Done)
    }
}
