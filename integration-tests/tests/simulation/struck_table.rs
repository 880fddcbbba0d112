//! A lease table of which writes of rows are struck, by an error or a panic, as a test decides.

use std::fmt;

use kcl_core::test_util::SimulatedLeaseTable;
use kcl_core::{ShardId, async_trait};
use kcl_lease::{Lease, LeaseListing, LeaseTable, LeaseWrite, TableError, TransactItems, TransactOutcome, WriteOutcome};

/// Decides on a write, of which it sees the row as it stands.
type Strike = dyn Fn(&LeaseWrite, Option<Lease>) -> Result<(), TableError> + Send + Sync;

pub(crate) struct StruckTable {
    table: SimulatedLeaseTable,
    strike: Box<Strike>,
}

impl StruckTable {
    pub(crate) fn new(
        table: SimulatedLeaseTable,
        strike: impl Fn(&LeaseWrite, Option<Lease>) -> Result<(), TableError> + Send + Sync + 'static,
    ) -> Self {
        Self { table, strike: Box::new(strike) }
    }
}

impl fmt::Debug for StruckTable {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("StruckTable").field("table", &self.table).finish_non_exhaustive()
    }
}

#[async_trait]
impl LeaseTable for StruckTable {
    async fn ensure(&self) -> Result<(), TableError> {
        self.table.ensure().await
    }
    async fn list(&self) -> Result<LeaseListing, TableError> {
        self.table.list().await
    }
    async fn get(&self, shard_id: &ShardId) -> Result<Option<Lease>, TableError> {
        self.table.get(shard_id).await
    }
    async fn create(&self, lease: &Lease) -> Result<bool, TableError> {
        self.table.create(lease).await
    }
    async fn write(&self, write: &LeaseWrite) -> Result<WriteOutcome, TableError> {
        let row = self.get(&write.shard_id).await?;
        (self.strike)(write, row)?;
        self.table.write(write).await
    }
    async fn transact(&self, write: &LeaseWrite, with: &TransactItems) -> Result<TransactOutcome, TableError> {
        self.table.transact(write, with).await
    }
    async fn delete(&self, seen: &Lease) -> Result<bool, TableError> {
        self.table.delete(seen).await
    }
}
