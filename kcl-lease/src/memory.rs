//! The lease table in memory: for tests, for simulation, and for an application of a single process that needs no restart.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;

use crate::lease::{Lease, ShardId};
use crate::table::{LeaseListing, LeaseTable, TableError, WriteOutcome};
use crate::write::LeaseWrite;

/// A lease table in this process's memory. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct InMemoryLeaseTable(Arc<Mutex<BTreeMap<ShardId, Lease>>>);

impl InMemoryLeaseTable {
    fn rows(&self) -> MutexGuard<'_, BTreeMap<ShardId, Lease>> {
        // Each change is one insertion or removal, so a panic elsewhere cannot have left it half done.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
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
        let mut rows = self.rows();
        let Some(row) = rows.get_mut(&write.shard_id) else { return Ok(WriteOutcome::Refused(None)) };
        Ok(match write.apply(row) {
            Some(new) => {
                *row = new;
                WriteOutcome::Applied(Box::new(row.clone()))
            }
            None if write.is_in_effect(row) => WriteOutcome::Applied(Box::new(row.clone())),
            None => WriteOutcome::Refused(Some(Box::new(row.clone()))),
        })
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
    #[tokio::test]
    async fn it_conforms() {
        crate::conformance::lease_table_suite(|| async { super::InMemoryLeaseTable::default() }).await;
    }
}
