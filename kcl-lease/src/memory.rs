//! The lease table in memory: for tests, for simulation, and for an application of a single process that needs no restart.
//!
//! `items` owns what transactions write beside the leases.

mod items;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;

use self::items::NotWritten;
pub use self::items::{InMemoryItems, Item};
use crate::lease::{Lease, ShardId};
use crate::table::{LeaseListing, LeaseTable, TableError, WriteOutcome};
use crate::transaction::{TransactItems, TransactOutcome};
use crate::write::LeaseWrite;

/// A lease table in this process's memory. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct InMemoryLeaseTable {
    rows: Arc<Mutex<BTreeMap<ShardId, Lease>>>,
    items: InMemoryItems,
}

impl InMemoryLeaseTable {
    /// A table without leases, whose transactions write these items.
    #[must_use]
    pub fn with_items(items: InMemoryItems) -> Self {
        Self { rows: Arc::default(), items }
    }

    /// What its transactions write beside the leases.
    #[must_use]
    pub fn items(&self) -> &InMemoryItems {
        &self.items
    }

    fn rows(&self) -> MutexGuard<'_, BTreeMap<ShardId, Lease>> {
        // Each change is one insertion or removal, so a panic elsewhere cannot have left it half done.
        self.rows.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn write_row(rows: &mut BTreeMap<ShardId, Lease>, write: &LeaseWrite) -> WriteOutcome {
    let Some(row) = rows.get_mut(&write.shard_id) else { return WriteOutcome::Refused(None) };
    match write.apply(row) {
        Some(new) => {
            *row = new;
            WriteOutcome::Applied(Box::new(row.clone()))
        }
        None if write.is_in_effect(row) => WriteOutcome::Applied(Box::new(row.clone())),
        None => WriteOutcome::Refused(Some(Box::new(row.clone()))),
    }
}

#[async_trait]
impl LeaseTable for InMemoryLeaseTable {
    async fn ensure(&self) -> Result<(), TableError> {
        Ok(())
    }

    async fn list(&self) -> Result<LeaseListing, TableError> {
        Ok(LeaseListing { leases: self.rows().values().cloned().collect(), unreadable: Vec::new() })
    }

    async fn get(&self, shard_id: &ShardId) -> Result<Option<Lease>, TableError> {
        Ok(self.rows().get(shard_id).cloned())
    }

    async fn create(&self, lease: &Lease) -> Result<bool, TableError> {
        let mut rows = self.rows();
        let absent = !rows.contains_key(&lease.shard_id);
        if absent {
            rows.insert(lease.shard_id.clone(), lease.clone());
        }
        Ok(absent)
    }

    async fn write(&self, write: &LeaseWrite) -> Result<WriteOutcome, TableError> {
        Ok(write_row(&mut self.rows(), write))
    }

    async fn transact(&self, write: &LeaseWrite, with: &TransactItems) -> Result<TransactOutcome, TableError> {
        // The rows are locked from the check to the end, so no other transaction comes in between.
        let mut rows = self.rows();
        match rows.get(&write.shard_id) {
            None => return Ok(TransactOutcome::LeaseRefused(None)),
            Some(row) if write.apply(row).is_none() => {
                let row = Box::new(row.clone());
                return Ok(if write.is_in_effect(&row) {
                    TransactOutcome::Recognised(row)
                } else {
                    TransactOutcome::LeaseRefused(Some(row))
                });
            }
            Some(_) => {}
        }
        match self.items.write(with) {
            Ok(()) => {
                let _ = write_row(&mut rows, write);
                Ok(TransactOutcome::Applied)
            }
            Err(NotWritten::Refused(items)) => Ok(TransactOutcome::ItemsRefused(items)),
            Err(NotWritten::Wrong(message)) => {
                Err(TableError::Rejected { table: "memory".to_owned(), operation: "TransactWriteItems", message })
            }
        }
    }

    async fn delete(&self, seen: &Lease) -> Result<bool, TableError> {
        let mut rows = self.rows();
        let gone = rows
            .get(&seen.shard_id)
            .is_none_or(|row| (row.counter, &row.owner, row.checkpoint) == (seen.counter, &seen.owner, seen.checkpoint));
        if gone {
            rows.remove(&seen.shard_id);
        }
        Ok(gone)
    }
}

#[cfg(test)]
mod tests {
    use async_trait::async_trait;

    use super::{InMemoryItems, InMemoryLeaseTable};
    use crate::conformance::{EFFECTS, Effects, lease_table_suite, transaction_suite};

    #[async_trait]
    impl Effects for InMemoryItems {
        async fn ids(&self) -> Vec<String> {
            self.items(EFFECTS).iter().map(|item| item["id"].as_s().unwrap().clone()).collect()
        }
    }

    #[tokio::test]
    async fn it_conforms() {
        lease_table_suite(|| async { InMemoryLeaseTable::default() }).await;
        transaction_suite(|| async {
            let table = InMemoryLeaseTable::default();
            table.items().create_table(EFFECTS, &["id"]);
            let items = table.items().clone();
            (table, items)
        })
        .await;
    }
}
