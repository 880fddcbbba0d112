//! Processors that go through a batch record by record, and say of each what has become of it.

use kcl_core::{Outcome, ProcessError, ProcessResult, RecordBatch, RecordProcessor, ShardContext, async_trait};
use tokio::time::sleep;

use super::Tools;
use super::database::{DatabaseError, Row};

/// The convenience of the library.
pub(super) struct ForEach(pub(super) Tools);

#[async_trait]
impl RecordProcessor for ForEach {
    async fn process_records(&mut self, batch: &RecordBatch, shard: &ShardContext) -> ProcessResult {
        let database = &self.0.database;
        batch.for_each(shard, async |record| database.insert(shard, &[Row::from(record)]).await).await
    }
}

/// Acknowledges each record.
pub(super) struct AckEach(pub(super) Tools);

#[async_trait]
impl RecordProcessor for AckEach {
    async fn process_records(&mut self, batch: &RecordBatch, shard: &ShardContext) -> ProcessResult {
        for record in batch {
            self.0.database.insert(shard, &[Row::from(record)]).await?;
            batch.ack(record);
        }
        Ok(Outcome::Done)
    }
}

/// Acknowledges every tenth record, and all before it.
pub(super) struct AckThrough(pub(super) Tools);

#[async_trait]
impl RecordProcessor for AckThrough {
    async fn process_records(&mut self, batch: &RecordBatch, shard: &ShardContext) -> ProcessResult {
        for (index, record) in batch.into_iter().enumerate() {
            self.0.database.insert(shard, &[Row::from(record)]).await?;
            if index % 10 == 9 {
                batch.ack_through(record);
            }
        }
        Ok(Outcome::Done)
    }
}

/// Does the first half of each batch, and leaves the rest for another call.
pub(super) struct FirstHalf(pub(super) Tools);

#[async_trait]
impl RecordProcessor for FirstHalf {
    async fn process_records(&mut self, batch: &RecordBatch, shard: &ShardContext) -> ProcessResult {
        for record in batch.into_iter().take(batch.len().div_ceil(2)) {
            self.0.database.insert(shard, &[Row::from(record)]).await?;
            batch.ack(record);
        }
        Ok(Outcome::Acknowledged)
    }
}

/// Names the first record that fails.
pub(super) struct FailedFrom(pub(super) Tools);

#[async_trait]
impl RecordProcessor for FailedFrom {
    async fn process_records(&mut self, batch: &RecordBatch, shard: &ShardContext) -> ProcessResult {
        for record in batch {
            if let Err(error) = self.0.database.insert(shard, &[Row::from(record)]).await {
                return Ok(Outcome::failed_from(record, error));
            }
        }
        Ok(Outcome::Done)
    }
}

/// Names each record that fails, and does the others.
pub(super) struct FailsSingleRecords(pub(super) Tools);

#[async_trait]
impl RecordProcessor for FailsSingleRecords {
    async fn process_records(&mut self, batch: &RecordBatch, shard: &ShardContext) -> ProcessResult {
        let mut failed = Vec::new();
        for record in batch {
            if let Err(error) = self.0.database.insert(shard, &[Row::from(record)]).await {
                failed.push((record, error));
            }
        }
        Ok(Outcome::failed(failed))
    }
}

/// Takes its time for each record, and ends at once when the shard goes.
pub(super) struct ObeysInterruption(pub(super) Tools);

#[async_trait]
impl RecordProcessor for ObeysInterruption {
    async fn process_records(&mut self, batch: &RecordBatch, shard: &ShardContext) -> ProcessResult {
        let records = u32::try_from(batch.len()).unwrap_or(u32::MAX).max(1);
        let pause = self.0.slow(batch.len()) / records;
        for record in batch {
            tokio::select! {
                biased;
                _ = shard.interrupted() => return Ok(Outcome::Acknowledged),
                () = sleep(pause) => {}
            }
            self.0.database.insert(shard, &[Row::from(record)]).await?;
            batch.ack(record);
        }
        Ok(Outcome::Done)
    }
}

/// Takes no notice of a database that is away: tries again by itself. Gives up what it refuses.
pub(super) struct IgnoresAnAbsence(pub(super) Tools);

#[async_trait]
impl RecordProcessor for IgnoresAnAbsence {
    async fn process_records(&mut self, batch: &RecordBatch, shard: &ShardContext) -> ProcessResult {
        for record in batch {
            loop {
                if shard.interruption().is_some() {
                    return Ok(Outcome::Acknowledged);
                }
                match self.0.database.insert(shard, &[Row::from(record)]).await {
                    Ok(()) => break,
                    Err(error @ DatabaseError::Rejected) => {
                        return Ok(Outcome::failed_from(record, ProcessError::poison(error)));
                    }
                    Err(DatabaseError::Away | DatabaseError::TimedOut) => {
                        sleep(std::time::Duration::from_millis(500)).await;
                    }
                }
            }
            batch.ack(record);
        }
        Ok(Outcome::Done)
    }
}
