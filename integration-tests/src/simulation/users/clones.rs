//! A processor that keeps clones of contexts and batches, and uses them when their time is over.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use kcl_core::{Outcome, ProcessError, ProcessResult, RecordBatch, RecordProcessor, ShardContext, ShardInfo, async_trait};
use tokio::time::timeout;

use super::Tools;
use super::database::Row;

/// Contexts of terms that are over, of all processors of a process.
#[derive(Clone, Default)]
pub(super) struct Attic(Arc<Mutex<Vec<ShardContext>>>);

impl Attic {
    /// The most contexts that are kept.
    const ROOM: usize = 4;

    fn keep(&self, context: ShardContext) {
        let mut contexts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if contexts.len() == Self::ROOM {
            contexts.remove(0);
        }
        contexts.push(context);
    }

    fn all(&self) -> Vec<ShardContext> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// See the module.
pub(super) struct KeepsClones {
    pub(super) tools: Tools,
    pub(super) context: Option<ShardContext>,
    /// The batch of a call that has ended.
    pub(super) batch: Option<RecordBatch>,
}

impl KeepsClones {
    /// Calls everything that is kept. None of it may have an effect.
    async fn use_what_is_over(&self) {
        let judge = &self.tools.database.judge;
        if let Some(batch) = &self.batch {
            let late = batch.into_iter().filter(|record| batch.ack(record)).count();
            if late > 0 {
                judge.violated("S3", "an acknowledgement after the end of its call was accepted");
            }
        }
        for context in self.tools.attic.all() {
            context.pause();
            let waited = timeout(Duration::from_millis(10), context.interrupted()).await;
            if context.interruption().is_none() || waited.is_err() {
                judge.violated("life", "the context of a term that is over shows no interruption");
            }
            // Refused, or nothing to do.
            let _ = timeout(Duration::from_secs(1), context.checkpointer().checkpoint()).await;
        }
    }
}

#[async_trait]
impl RecordProcessor for KeepsClones {
    async fn initialize(&mut self, shard: &ShardContext) -> Result<(), ProcessError> {
        self.context = Some(shard.clone());
        Ok(())
    }

    async fn process_records(&mut self, batch: &RecordBatch, shard: &ShardContext) -> ProcessResult {
        self.use_what_is_over().await;
        // Large payloads are not kept.
        let bytes: usize = batch.into_iter().map(kcl_core::Record::size).sum();
        self.batch = (bytes < 64 << 10).then(|| batch.clone());
        for record in batch {
            self.tools.database.insert(shard, &[Row::from(record)]).await?;
            batch.ack(record);
        }
        Ok(Outcome::Done)
    }

    async fn lease_lost(&mut self, _: &ShardInfo) {
        self.context.take().into_iter().for_each(|context| self.tools.attic.keep(context));
    }
}
