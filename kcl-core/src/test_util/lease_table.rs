//! The lease table in memory, behind the fault layer.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use futures::FutureExt;
use kcl_lease::{
    InMemoryItems, InMemoryLeaseTable, Lease, LeaseListing, LeaseTable, LeaseWrite, ShardId, TableError, TransactItems, TransactOutcome,
    WriteOutcome,
};
use tokio::time::{Instant, sleep};

use super::events::{Event, Observers};
use super::faults::Service;
use super::network::{Asked, Failure, Link};

const ERRORS: &[&str] = &["AccessDeniedException", "InternalServerError"];

/// One application's table, whoever reaches it. Clones share it.
#[derive(Clone, Debug)]
pub(super) struct Store {
    rows: InMemoryLeaseTable,
    budget: Arc<Mutex<Budget>>,
}

/// Writes that the table takes: DynamoDB counts those that a condition refuses as well.
#[derive(Debug)]
struct Budget {
    per_second: Option<f64>,
    left: f64,
    settled: Instant,
}

impl Store {
    /// A table whose transactions write these items.
    pub(super) fn new(items: InMemoryItems) -> Self {
        let budget = Budget { per_second: None, left: 0.0, settled: Instant::now() };
        Self { rows: InMemoryLeaseTable::with_items(items), budget: Arc::new(Mutex::new(budget)) }
    }

    pub(super) fn set_budget(&self, per_second: Option<f64>) {
        let mut budget = self.budget();
        // A new table may be used up to five minutes' unused capacity at once.
        (budget.per_second, budget.left, budget.settled) = (per_second, per_second.unwrap_or(0.0), Instant::now());
    }

    /// Whether one more write is within the budget.
    fn affords(&self) -> bool {
        let mut budget = self.budget();
        let Some(per_second) = budget.per_second else { return true };
        let saved = budget.left + budget.settled.elapsed().as_secs_f64() * per_second;
        (budget.left, budget.settled) = (saved.min(per_second * 300.0), Instant::now());
        let affords = budget.left >= 1.0;
        if affords {
            budget.left -= 1.0;
        }
        affords
    }

    pub(super) fn list(&self) -> Vec<Lease> {
        now(self.rows.list()).leases
    }

    /// Deletes a row, whoever holds it.
    pub(super) fn strike(&self, lease: &Lease) {
        now(self.rows.delete(lease));
    }

    fn get(&self, shard: &ShardId) -> Option<Lease> {
        now(self.rows.get(shard))
    }

    fn budget(&self) -> MutexGuard<'_, Budget> {
        // Plain data that no panic leaves half changed.
        self.budget.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What the table in memory answers: at once, and without failure.
fn now<T>(answer: impl Future<Output = Result<T, TableError>>) -> T {
    at_once(answer).expect("invariant: a table in memory fails only where it is asked for what it can't do")
}

/// What the table in memory answers, if what it is asked for may be wrong.
fn at_once<T>(answer: impl Future<Output = T>) -> T {
    answer.now_or_never().expect("invariant: a table in memory answers at once")
}

/// A lease table as one host reaches it.
///
/// A scan that is [`stale`](super::FaultKind::Stale) is torn: its first half shows the table before, its second half the table after some
/// writes, as the pages of a large table do. Single rows are read consistently.
#[derive(Clone, Debug)]
pub struct SimulatedLeaseTable {
    name: String,
    store: Store,
    link: Link,
    timeout: Duration,
}

impl SimulatedLeaseTable {
    pub(super) fn new(name: &str, store: Store, link: Link, timeout: Duration) -> Self {
        Self { name: name.to_owned(), store, link, timeout }
    }

    /// The same with another bound for each call.
    #[must_use]
    pub fn with_timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    fn asked<'a>(&self, operation: &'static str, shard: &'a str) -> Asked<'a> {
        Asked { service: Service::LeaseTable, operation, shard, may_be_stale: false, errors: ERRORS, timeout: self.timeout }
    }

    fn error(&self, operation: &'static str, failure: Failure) -> TableError {
        let (table, message) = (self.name.clone(), "a simulated fault".to_owned());
        match failure {
            Failure::Throttled => TableError::Throttled { table, operation },
            Failure::Refused("AccessDeniedException") => TableError::AccessDenied { table, operation, message },
            Failure::Refused(_) | Failure::NoAnswer => TableError::Unavailable { table, operation, message },
        }
    }

    /// A write: what is over the budget is throttled, what is applied is told.
    async fn change<T: Send + 'static>(
        &self,
        operation: &'static str,
        shard: &ShardId,
        apply: impl Fn(&Store, &Observers, &str) -> T + Send + 'static,
    ) -> Result<T, TableError> {
        let (store, link) = (self.store.clone(), self.link.clone());
        let answer = self.link.write(self.asked(operation, shard.as_str()), move || {
            store.affords().then(|| apply(&store, &link.network.observers, &link.host))
        });
        match answer.await {
            Ok(Some(answer)) => Ok(answer),
            Ok(None) => Err(self.error(operation, Failure::Throttled)),
            Err(failure) => Err(self.error(operation, failure)),
        }
    }
}

#[async_trait]
impl LeaseTable for SimulatedLeaseTable {
    async fn ensure(&self) -> Result<(), TableError> {
        const OPERATION: &str = "dynamodb:DescribeTable";
        self.link.read(self.asked(OPERATION, ""), |_| ()).await.map_err(|failure| self.error(OPERATION, failure))
    }

    async fn list(&self) -> Result<LeaseListing, TableError> {
        const OPERATION: &str = "dynamodb:Scan";
        let asked = Asked { may_be_stale: true, ..self.asked(OPERATION, "") };
        let read = self.link.read(asked, |torn| (self.store.list(), torn));
        let (mut leases, torn) = read.await.map_err(|failure| self.error(OPERATION, failure))?;
        if let Some(pause) = torn {
            leases.truncate(leases.len() / 2);
            let last = leases.last().map(|lease| lease.shard_id.clone());
            sleep(pause.min(self.timeout / 2)).await;
            leases.extend(self.store.list().into_iter().filter(|lease| last.as_ref().is_none_or(|last| lease.shard_id > *last)));
        }
        Ok(LeaseListing { leases, unreadable: Vec::new() })
    }

    async fn get(&self, shard_id: &ShardId) -> Result<Option<Lease>, TableError> {
        const OPERATION: &str = "dynamodb:GetItem";
        let read = self.link.read(self.asked(OPERATION, shard_id.as_str()), |_| self.store.get(shard_id));
        read.await.map_err(|failure| self.error(OPERATION, failure))
    }

    async fn create(&self, lease: &Lease) -> Result<bool, TableError> {
        let new = lease.clone();
        self.change("dynamodb:PutItem", &lease.shard_id, move |store, observers, host| {
            let created = now(store.rows.create(&new));
            if created {
                observers.tell(&Event::LeaseCreated { host, lease: &new });
            }
            created
        })
        .await
    }

    async fn write(&self, write: &LeaseWrite) -> Result<WriteOutcome, TableError> {
        let (write, sent) = (write.clone(), self.link.network.elapsed());
        let shard = write.shard_id.clone();
        self.change("dynamodb:UpdateItem", &shard, move |store, observers, host| {
            let before = store.get(&write.shard_id);
            let outcome = now(store.rows.write(&write));
            match (&outcome, &before) {
                (WriteOutcome::Applied(after), Some(before)) if **after != *before => {
                    observers.tell(&Event::LeaseWritten { host, sent, write: &write, before, after });
                }
                (WriteOutcome::Applied(_), _) => observers.tell(&Event::LeaseWriteRecognised { host, write: &write }),
                (WriteOutcome::Refused(row), _) => {
                    observers.tell(&Event::LeaseWriteRefused { host, write: &write, row: row.as_deref() });
                }
            }
            outcome
        })
        .await
    }

    async fn transact(&self, write: &LeaseWrite, with: &TransactItems) -> Result<TransactOutcome, TableError> {
        let (write, with, sent) = (write.clone(), with.clone(), self.link.network.elapsed());
        let shard = write.shard_id.clone();
        let answer = self.change("dynamodb:TransactWriteItems", &shard, move |store, observers, host| {
            let before = store.get(&write.shard_id);
            let outcome = at_once(store.rows.transact(&write, &with));
            match &outcome {
                Ok(TransactOutcome::Applied) => {
                    if let (Some(before), Some(after)) = (&before, &store.get(&write.shard_id)) {
                        observers.tell(&Event::LeaseWritten { host, sent, write: &write, before, after });
                        observers.tell(&Event::ItemsWritten { host, write: &write, items: &with });
                    }
                }
                Ok(TransactOutcome::Recognised(_)) => observers.tell(&Event::LeaseWriteRecognised { host, write: &write }),
                Ok(TransactOutcome::LeaseRefused(row)) => {
                    observers.tell(&Event::LeaseWriteRefused { host, write: &write, row: row.as_deref() });
                }
                Ok(TransactOutcome::ItemsRefused(_)) | Err(_) => {}
            }
            outcome
        });
        answer.await?
    }

    async fn delete(&self, seen: &Lease) -> Result<bool, TableError> {
        let seen = seen.clone();
        let shard = seen.shard_id.clone();
        self.change("dynamodb:DeleteItem", &shard, move |store, observers, host| {
            let before = store.get(&seen.shard_id);
            let gone = now(store.rows.delete(&seen));
            if let (true, Some(lease)) = (gone, &before) {
                observers.tell(&Event::LeaseDeleted { host, lease });
            }
            gone
        })
        .await
    }
}
