//! The processor of the quickstart: notes in the ledger what it has processed, and can't process poison.

use std::sync::Arc;

use kcl_core::{ProcessError, ProcessResult, RecordBatch, RecordProcessor, ShardContext, async_trait};

use super::ledger::Ledger;
use super::source::Source;

/// Processes records by noting them.
#[derive(Clone, Debug)]
pub struct Clerk {
    /// Where.
    pub ledger: Arc<Ledger>,
    /// Knows which records are poison.
    pub source: Arc<Source>,
}

#[async_trait]
impl RecordProcessor for Clerk {
    async fn process_records(&mut self, batch: &RecordBatch, shard: &ShardContext) -> ProcessResult {
        batch
            .for_each(shard, async |record| {
                // Others wait for their database here. A killed worker gets no further than its
                // current wait.
                tokio::task::yield_now().await;
                if self.source.poison.contains(record.partition_key().unwrap_or_default(), record.data()) {
                    return Err(ProcessError::poison("this record is poison"));
                }
                self.ledger.delivered(shard.shard_id(), record.sequence_number());
                Ok(())
            })
            .await
    }

    async fn shard_ended(&mut self, shard: &ShardContext) -> Result<(), ProcessError> {
        self.ledger.shard_ended(shard.shard_id());
        Ok(())
    }
}
