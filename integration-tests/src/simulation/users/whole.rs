//! Processors that write a batch in one go, or in parts, one after the other.

use std::collections::BTreeMap;

use kcl_core::{Outcome, ProcessResult, RecordBatch, RecordProcessor, ShardContext, async_trait};

use super::Tools;
use super::database::{Row, Unreadable};

/// Gathers the batch in a loop, then writes it.
pub(super) struct GatherThenWrite(pub(super) Tools);

#[async_trait]
impl RecordProcessor for GatherThenWrite {
    async fn process_records(&mut self, batch: &RecordBatch, shard: &ShardContext) -> ProcessResult {
        let mut rows = Vec::new();
        for record in batch {
            rows.push(Row::from(record));
        }
        self.0.database.insert(shard, &rows).await?;
        Ok(Outcome::Done)
    }
}

/// Parses all records, gives up at the first that can't be read, then writes.
pub(super) struct ParseThenWrite(pub(super) Tools);

#[async_trait]
impl RecordProcessor for ParseThenWrite {
    async fn process_records(&mut self, batch: &RecordBatch, shard: &ShardContext) -> ProcessResult {
        let rows: Vec<_> = batch.records().iter().map(Row::parse).collect::<Result<_, Unreadable>>()?;
        self.0.database.insert(shard, &rows).await?;
        Ok(Outcome::Done)
    }
}

/// Writes chunks of four records.
pub(super) struct WriteInChunks(pub(super) Tools);

#[async_trait]
impl RecordProcessor for WriteInChunks {
    async fn process_records(&mut self, batch: &RecordBatch, shard: &ShardContext) -> ProcessResult {
        for chunk in batch.records().chunks(4) {
            let rows: Vec<_> = chunk.iter().map(Row::from).collect();
            self.0.database.insert(shard, &rows).await?;
        }
        Ok(Outcome::Done)
    }
}

/// Takes four records at a time from an iterator.
pub(super) struct TakeByRef(pub(super) Tools);

#[async_trait]
impl RecordProcessor for TakeByRef {
    async fn process_records(&mut self, batch: &RecordBatch, shard: &ShardContext) -> ProcessResult {
        let mut records = batch.into_iter();
        loop {
            let rows: Vec<_> = records.by_ref().take(4).map(Row::from).collect();
            if rows.is_empty() {
                return Ok(Outcome::Done);
            }
            self.0.database.insert(shard, &rows).await?;
        }
    }
}

/// Looks ahead: records of one key that follow each other are written together.
pub(super) struct Peekable(pub(super) Tools);

#[async_trait]
impl RecordProcessor for Peekable {
    async fn process_records(&mut self, batch: &RecordBatch, shard: &ShardContext) -> ProcessResult {
        let mut records = batch.into_iter().peekable();
        let mut rows = Vec::new();
        while let Some(record) = records.next() {
            rows.push(Row::from(record));
            if records.peek().is_none_or(|next| next.partition_key() != record.partition_key()) {
                self.0.database.insert(shard, &std::mem::take(&mut rows)).await?;
            }
        }
        Ok(Outcome::Done)
    }
}

/// Groups records by key in a cache of its own, and writes a key at a time at the end of each call.
pub(super) struct AggregateByKey {
    pub(super) tools: Tools,
    pub(super) cache: BTreeMap<String, Vec<Row>>,
}

#[async_trait]
impl RecordProcessor for AggregateByKey {
    async fn process_records(&mut self, batch: &RecordBatch, shard: &ShardContext) -> ProcessResult {
        // What a failed call has left comes again.
        self.cache.clear();
        for record in batch {
            let key = record.partition_key().unwrap_or_default().to_owned();
            self.cache.entry(key).or_default().push(Row::parse(record)?);
        }
        for rows in self.cache.values() {
            self.tools.database.insert(shard, rows).await?;
        }
        self.cache.clear();
        Ok(Outcome::Done)
    }
}

/// Takes its time for each batch, whatever goes on meanwhile.
pub(super) struct Slow(pub(super) Tools);

#[async_trait]
impl RecordProcessor for Slow {
    async fn process_records(&mut self, batch: &RecordBatch, shard: &ShardContext) -> ProcessResult {
        let time = self.0.slow(batch.len());
        tokio::time::sleep(time / 2).await;
        let rows: Vec<_> = batch.records().iter().map(Row::from).collect();
        self.0.database.insert(shard, &rows).await?;
        tokio::time::sleep(time / 2).await;
        Ok(Outcome::Done)
    }
}

/// Blocks its thread, as a synchronous driver does.
pub(super) struct BlocksItsThread(pub(super) Tools);

#[async_trait]
impl RecordProcessor for BlocksItsThread {
    async fn process_records(&mut self, batch: &RecordBatch, shard: &ShardContext) -> ProcessResult {
        // Longer than any lease lasts; all shards of the process stand still meanwhile.
        let time = self.0.slow(batch.len()).min(std::time::Duration::from_secs(20));
        self.0.block_thread(time).await;
        let rows: Vec<_> = batch.records().iter().map(Row::from).collect();
        self.0.database.insert(shard, &rows).await?;
        Ok(Outcome::Done)
    }
}
