//! The processor: counts records by key, in a table of its own, together with the checkpoint.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use kcl_core::aws_sdk_dynamodb::types::{AttributeValue, TransactWriteItem, Update};
use kcl_core::{Outcome, ProcessResult, Record, RecordBatch, RecordProcessor, ShardContext, async_trait};
use tokio::sync::Notify;

/// The table of counts.
pub const COUNTS: &str = "counts";

/// Records to a commit. A transaction takes 99 items, and these have no more keys than that.
const CHUNK: usize = 50;

/// Counts by key.
pub type Counts = BTreeMap<String, u64>;

/// See the module.
#[derive(Clone, Debug, Default)]
pub struct Counter {
    /// What was delivered, repetitions included: no part of the transaction, and so counted at least once.
    delivered: Arc<Mutex<Counts>>,
    begun: Arc<Notify>,
}

impl Counter {
    /// What was delivered so far.
    #[must_use]
    pub fn delivered(&self) -> Counts {
        self.delivered.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Waits until work on records begins that are not committed yet.
    pub async fn begins(&self) {
        self.begun.notified().await;
    }

    fn note(&self, counts: &Counts) {
        let mut delivered = self.delivered.lock().unwrap_or_else(PoisonError::into_inner);
        for (key, count) in counts {
            *delivered.entry(key.clone()).or_default() += count;
        }
    }
}

#[async_trait]
impl RecordProcessor for Counter {
    async fn process_records(&mut self, batch: &RecordBatch, shard: &ShardContext) -> ProcessResult {
        for chunk in batch.records().chunks(CHUNK) {
            let counts = count(chunk);
            self.note(&counts);
            self.begun.notify_waiters();
            // What the work on the records takes. Most crashes come here, or while the commit is on its way.
            tokio::time::sleep(Duration::from_millis(20)).await;
            let items = counts.iter().map(|(key, count)| add(key, *count)).collect::<Result<_, _>>()?;
            shard.commit(items, chunk).await?;
        }
        Ok(Outcome::Done)
    }
}

fn count(records: &[Record]) -> Counts {
    let mut counts = Counts::new();
    for record in records {
        *counts.entry(record.partition_key().unwrap_or_default().to_owned()).or_default() += 1;
    }
    counts
}

/// Adds to the count of a key. Done twice, it would count twice: nothing in it knows which records it is of.
fn add(key: &str, count: u64) -> Result<TransactWriteItem, aws_sdk_dynamodb::error::BuildError> {
    let update = Update::builder()
        .table_name(COUNTS)
        .key("id", AttributeValue::S(key.to_owned()))
        .update_expression("ADD occurrences :count")
        .expression_attribute_values(":count", AttributeValue::N(count.to_string()))
        .build()?;
    Ok(TransactWriteItem::builder().update(update).build())
}
