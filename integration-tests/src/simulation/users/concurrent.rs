//! Processors that write the records of a batch beside each other, or by a task of their own.

use futures::stream::{FuturesOrdered, StreamExt, TryStreamExt};
use kcl_core::{Outcome, ProcessError, ProcessResult, RecordBatch, RecordProcessor, ShardContext, async_trait};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;

use super::Tools;
use super::database::{DatabaseError, Row};

/// Writes all records at once.
pub(super) struct TryJoinAll(pub(super) Tools);

#[async_trait]
impl RecordProcessor for TryJoinAll {
    async fn process_records(&mut self, batch: &RecordBatch, shard: &ShardContext) -> ProcessResult {
        let database = &self.0.database;
        let write = |record| async move { database.insert(shard, &[Row::from(record)]).await };
        futures::future::try_join_all(batch.into_iter().map(write)).await?;
        Ok(Outcome::Done)
    }
}

/// Writes four records at once.
pub(super) struct Buffered(pub(super) Tools);

#[async_trait]
impl RecordProcessor for Buffered {
    async fn process_records(&mut self, batch: &RecordBatch, shard: &ShardContext) -> ProcessResult {
        let rows: Vec<_> = batch.into_iter().map(Row::from).collect();
        let database = &self.0.database;
        let writes = rows.into_iter().map(|row| async move { database.insert(shard, &[row]).await });
        let results: Vec<_> = futures::stream::iter(writes).buffered(4).collect().await;
        results.into_iter().collect::<Result<Vec<()>, DatabaseError>>()?;
        Ok(Outcome::Done)
    }
}

/// Acknowledges each record as its write ends, in order.
pub(super) struct Ordered(pub(super) Tools);

#[async_trait]
impl RecordProcessor for Ordered {
    async fn process_records(&mut self, batch: &RecordBatch, shard: &ShardContext) -> ProcessResult {
        let database = &self.0.database;
        let write = |record| async move { database.insert(shard, &[Row::from(record)]).await.map(|()| record) };
        let mut writes: FuturesOrdered<_> = batch.into_iter().map(write).collect();
        while let Some(record) = writes.try_next().await? {
            batch.ack(record);
        }
        Ok(Outcome::Done)
    }
}

/// Spawns a task for each record, and joins them.
pub(super) struct SpawnAndJoin(pub(super) Tools);

#[async_trait]
impl RecordProcessor for SpawnAndJoin {
    async fn process_records(&mut self, batch: &RecordBatch, shard: &ShardContext) -> ProcessResult {
        let mut tasks = JoinSet::new();
        for (index, record) in batch.into_iter().enumerate() {
            let (database, shard, row) = (self.0.database.clone(), shard.clone(), Row::from(record));
            let write = async move { database.insert(&shard, &[row]).await.map(|()| index) };
            tasks.spawn(self.0.host.run(write));
        }
        while let Some(written) = tasks.join_next().await {
            batch.ack(&batch.records()[written??]);
        }
        Ok(Outcome::Done)
    }
}

/// Rows for the writing task, and the way for its answer.
type Job = (Vec<Row>, oneshot::Sender<Result<(), DatabaseError>>);

/// Hands its records to a task of its own by a channel, and waits for the answer.
pub(super) struct ChannelToTask {
    jobs: mpsc::Sender<Job>,
    /// Ends with the processor.
    _writer: JoinSet<()>,
}

impl ChannelToTask {
    pub(super) fn new(tools: Tools, shard: &ShardContext) -> Self {
        let (jobs, mut queue) = mpsc::channel::<Job>(1);
        let (mut writer, host, shard) = (JoinSet::new(), tools.host.clone(), shard.clone());
        writer.spawn(host.run(async move {
            while let Some((rows, answer)) = queue.recv().await {
                let written = tools.database.insert(&shard, &rows).await;
                // Of a call that was cut off nobody waits.
                let _ = answer.send(written);
            }
        }));
        Self { jobs, _writer: writer }
    }
}

#[async_trait]
impl RecordProcessor for ChannelToTask {
    async fn process_records(&mut self, batch: &RecordBatch, _shard: &ShardContext) -> ProcessResult {
        for record in batch {
            let (answer, answered) = oneshot::channel();
            let sent = self.jobs.send((vec![Row::from(record)], answer)).await;
            sent.map_err(|_| ProcessError::retry("the writer is gone"))?;
            answered.await??;
        }
        Ok(Outcome::Done)
    }
}
