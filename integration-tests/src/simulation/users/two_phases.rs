//! A processor that writes in two phases: it prepares a checkpoint, writes its rows, and commits the checkpoint.

use kcl_core::{Outcome, ProcessResult, RecordBatch, RecordProcessor, ShardContext, async_trait};

use super::Tools;
use super::database::Row;

/// See the module.
pub(super) struct TwoPhases(pub(super) Tools);

#[async_trait]
impl RecordProcessor for TwoPhases {
    async fn process_records(&mut self, batch: &RecordBatch, shard: &ShardContext) -> ProcessResult {
        let rows: Vec<_> = batch.into_iter().map(Row::from).collect();
        // What is refused is found before anything is prepared.
        self.0.database.check(&rows).await?;
        let prepared = shard.checkpointer().prepare(format!("{} rows", rows.len())).await?;
        self.0.database.insert(shard, &rows).await?;
        match prepared.commit().await {
            Err(error) if !error.is_retryable() => Err(error.into()),
            // A later checkpoint covers it.
            _ => Ok(Outcome::Done),
        }
    }
}
