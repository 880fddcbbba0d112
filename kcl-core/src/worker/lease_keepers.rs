//! The tasks that take a worker's leases and keep them alive: one for each take, which goes on as
//! the keeper of the term.
//!
//! They run on the worker's [`LeaseThread`], so that a processor that blocks its thread never costs
//! a lease, not even one whose take is on its way. On a simulated host they run on the runtime of
//! the simulation, as tasks that go on while the host's user code is blocked.

use std::any::Any;
use std::future::poll_fn;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Poll;
use std::time::Duration;

use futures::FutureExt;
use kcl_lease::term::{Acquired, KeeperOrder, Term, TermContext, TermEnd, acquire};
use kcl_lease::{Lease, TableError};
use tokio::sync::{oneshot, watch};
use tokio::task::{JoinError, JoinSet};

use super::lease_thread::LeaseThread;
use super::machine::Machine;
use crate::error::WorkerError;
#[cfg(feature = "test-util")]
use crate::test_util::{Power, Powered};

/// Outcome of an attempt to take a lease.
#[derive(Debug)]
pub(super) enum Taken {
    /// The lease is this worker's, and is kept until the term, or all its clones, are dropped.
    Yes(Term),
    /// Another worker was faster.
    No,
    /// The table can't be used.
    Failed(TableError),
    /// The keepers have stopped; the worker is ending.
    Stopped,
}

/// Why a keeper's task is over.
type Ended = Result<Option<TermEnd>, WorkerError>;

/// All keepers of a worker. Clones are of the same ones.
#[derive(Clone, Debug)]
pub(super) struct LeaseKeepers(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    /// For the table as the keepers reach it.
    terms: TermContext,
    orders: watch::Sender<KeeperOrder>,
    tasks: Mutex<JoinSet<Ended>>,
    place: Place,
}

#[derive(Debug)]
enum Place {
    Thread(LeaseThread),
    #[cfg(feature = "test-util")]
    Simulated(Power),
}

impl LeaseKeepers {
    /// Starts the thread, unless the machine is a simulated one.
    ///
    /// # Errors
    /// [`WorkerError::LeaseThread`].
    pub(super) fn start(terms: TermContext, machine: &Machine) -> Result<Self, WorkerError> {
        let place = Self::place(machine)?;
        let (orders, tasks) = (watch::Sender::default(), Mutex::default());
        Ok(Self(Arc::new(Shared { terms, orders, tasks, place })))
    }

    #[cfg(feature = "test-util")]
    fn place(machine: &Machine) -> Result<Place, WorkerError> {
        match machine.power() {
            Some(power) => Ok(Place::Simulated(power.clone())),
            None => LeaseThread::start().map(Place::Thread).map_err(WorkerError::LeaseThread),
        }
    }

    #[cfg(not(feature = "test-util"))]
    fn place(_: &Machine) -> Result<Place, WorkerError> {
        LeaseThread::start().map(Place::Thread).map_err(WorkerError::LeaseThread)
    }

    /// Takes a lease, as [`acquire`] does, and keeps it from then on.
    ///
    /// # Cancel safety
    /// As of [`acquire`]. A lease that was taken just then is freed.
    pub(super) async fn take(&self, lease: &Lease) -> Taken {
        let (reply, taken) = oneshot::channel();
        self.spawn(take_and_keep(self.0.terms.clone(), lease.clone(), reply, self.0.orders.subscribe()));
        taken.await.unwrap_or(Taken::Stopped)
    }

    fn spawn(&self, task: impl Future<Output = Ended> + Send + 'static) {
        match &self.0.place {
            Place::Thread(thread) => self.tasks().spawn_on(task, thread.runtime()),
            #[cfg(feature = "test-util")]
            Place::Simulated(power) => self.tasks().spawn(Powered::beside_user_code(task, power.clone())),
        };
    }

    /// Waits until a lease, or all of them, are no longer renewed although they should be:
    /// [`WorkerError::LeaseKeeping`]. Keepers that end in order are only noted.
    ///
    /// Must be awaited by the task that calls [`take`](Self::take): nothing else wakes it when the
    /// first keeper is spawned.
    ///
    /// # Cancel safety
    /// Safe: it only waits.
    pub(super) async fn failed(&self) -> WorkerError {
        let keeper = async {
            loop {
                match self.next_ended().await {
                    Ok(Ok(_)) => {}
                    Ok(Err(error)) => return error,
                    // Cancelled: the thread has ended.
                    Err(_) => return thread_has_ended(),
                }
            }
        };
        tokio::select! {
            biased;
            error = keeper => error,
            () = self.thread_ended() => thread_has_ended(),
        }
    }

    /// Waits until a keeper has ended, however.
    ///
    /// # Cancel safety
    /// Safe: it only waits.
    pub(super) async fn one_ended(&self) {
        drop(self.next_ended().await);
    }

    async fn next_ended(&self) -> Result<Ended, JoinError> {
        poll_fn(|context| match self.tasks().poll_join_next(context) {
            Poll::Ready(Some(ended)) => Poll::Ready(ended),
            Poll::Ready(None) | Poll::Pending => Poll::Pending,
        })
        .await
    }

    async fn thread_ended(&self) {
        match &self.0.place {
            Place::Thread(thread) => thread.ended().await,
            #[cfg(feature = "test-util")]
            Place::Simulated(_) => std::future::pending().await,
        }
    }

    /// Whether there is no lease, and no take on its way.
    pub(super) fn is_empty(&self) -> bool {
        self.tasks().is_empty()
    }

    /// Frees all leases without checkpoints, whether their holders are gone or not, and returns
    /// whether that was done in time.
    pub(super) async fn let_go(&self, limit: Duration) -> bool {
        self.0.orders.send_replace(KeeperOrder::LetGo);
        let freed = async {
            while !self.is_empty() {
                self.one_ended().await;
            }
        };
        tokio::time::timeout(limit, freed).await.is_ok()
    }

    /// Stops all keepers where they are: nothing more is written.
    pub(super) fn stop(&self) {
        self.0.orders.send_replace(KeeperOrder::Stop);
        self.tasks().abort_all();
    }

    /// A task for the worker's runtime that lets its timers go on while one of its threads is
    /// blocked; `None`: there is no need.
    pub(super) fn pulse(&self) -> Option<impl Future<Output = ()> + Send + use<>> {
        match &self.0.place {
            Place::Thread(thread) => Some(thread.pulse()),
            #[cfg(feature = "test-util")]
            Place::Simulated(_) => None,
        }
    }

    fn tasks(&self) -> MutexGuard<'_, JoinSet<Ended>> {
        // No code of others runs under the lock.
        self.0.tasks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn take_and_keep(terms: TermContext, lease: Lease, mut reply: oneshot::Sender<Taken>, orders: watch::Receiver<KeeperOrder>) -> Ended {
    let shard = lease.shard_id.clone();
    let task = async move {
        let acquired = tokio::select! {
            biased;
            acquired = acquire(&terms, &lease) => acquired,
            () = reply.closed() => return None,
        };
        match acquired {
            Ok(Acquired::Yes(term, keeper)) => {
                // If nobody waits any more, the term is dropped here, and its keeper frees the
                // lease.
                drop(reply.send(Taken::Yes(term)));
                return Some(keeper.run_with(orders).await);
            }
            Ok(Acquired::No(_)) => drop(reply.send(Taken::No)),
            Err(error) => drop(reply.send(Taken::Failed(error))),
        }
        None
    };
    AssertUnwindSafe(task).catch_unwind().await.map_err(|panic| {
        let reason = format!("the task that keeps {shard} has panicked: {}", panic_text(panic.as_ref()));
        tracing::error!(%shard, reason, "a lease is not kept alive any more; the worker ends");
        WorkerError::LeaseKeeping { reason }
    })
}

fn thread_has_ended() -> WorkerError {
    WorkerError::LeaseKeeping { reason: "the thread that keeps them has ended".to_owned() }
}

fn panic_text(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "no message".to_owned())
}

#[cfg(test)]
mod tests {
    use async_trait::async_trait;
    use kcl_checkpoint::Checkpoint;
    use kcl_lease::term::{LeaseTiming, TermStatus};
    use kcl_lease::{
        Entropy, InMemoryLeaseTable, LeaseListing, LeaseTable, LeaseWrite, ShardId, SystemClock, TransactItems, TransactOutcome,
        WriteOutcome,
    };

    use super::*;

    const SHARD: &str = "shardId-000000000000";
    const LEASE: Duration = Duration::from_secs(1);

    /// The table in memory; its writes say on which thread they were made.
    #[derive(Debug, Default)]
    struct Watched {
        rows: InMemoryLeaseTable,
        threads: Mutex<Vec<Option<String>>>,
        panics: bool,
    }

    #[async_trait]
    impl LeaseTable for Watched {
        async fn ensure(&self) -> Result<(), TableError> {
            self.rows.ensure().await
        }
        async fn list(&self) -> Result<LeaseListing, TableError> {
            self.rows.list().await
        }
        async fn get(&self, shard_id: &ShardId) -> Result<Option<Lease>, TableError> {
            self.rows.get(shard_id).await
        }
        async fn create(&self, lease: &Lease) -> Result<bool, TableError> {
            self.rows.create(lease).await
        }
        async fn delete(&self, seen: &Lease) -> Result<bool, TableError> {
            self.rows.delete(seen).await
        }
        async fn write(&self, write: &LeaseWrite) -> Result<WriteOutcome, TableError> {
            let writes = {
                let mut threads = self.threads.lock().unwrap();
                threads.push(std::thread::current().name().map(str::to_owned));
                threads.len()
            };
            assert!(!self.panics || writes < 3, "this table panics");
            self.rows.write(write).await
        }
        async fn transact(&self, write: &LeaseWrite, with: &TransactItems) -> Result<TransactOutcome, TableError> {
            self.rows.transact(write, with).await
        }
    }

    async fn keepers(panics: bool) -> (Arc<Watched>, Lease, LeaseKeepers) {
        let table = Arc::new(Watched { panics, ..Watched::default() });
        let lease = Lease::new(SHARD.into(), Checkpoint::TrimHorizon);
        assert!(table.create(&lease).await.unwrap());
        let terms = TermContext {
            table: Arc::<Watched>::clone(&table),
            clock: Arc::new(SystemClock),
            entropy: Entropy::from_seed(1),
            worker: "worker".into(),
            timing: LeaseTiming { lease_duration: LEASE, handoff_timeout: LEASE },
            stream_created: None,
            outages: kcl_lease::OutageLog::default(),
            vanished: kcl_lease::term::Vanished::default(),
        };
        (table, lease, LeaseKeepers::start(terms, &Machine::default()).unwrap())
    }

    async fn taken(keepers: &LeaseKeepers, lease: &Lease) -> Term {
        match keepers.take(lease).await {
            Taken::Yes(term) => term,
            other => panic!("{other:?}"),
        }
    }

    async fn row(table: &Watched) -> Lease {
        table.get(&SHARD.into()).await.unwrap().unwrap()
    }

    async fn renewed(table: &Watched) {
        let before = row(table).await.counter;
        while row(table).await.counter < before + 2 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    #[tokio::test]
    async fn leases_are_taken_renewed_and_freed_on_the_thread_for_it() {
        let (table, lease, keepers) = keepers(false).await;
        let term = taken(&keepers, &lease).await;
        renewed(&table).await;
        assert!(!keepers.is_empty());
        assert!(matches!(keepers.take(&lease).await, Taken::No), "the row has changed since");
        term.release(None, Default::default()).await.unwrap();
        while !keepers.is_empty() {
            keepers.one_ended().await;
        }
        assert_eq!(row(&table).await.owner, None);
        assert!(table.threads.lock().unwrap().iter().all(|name| name.as_deref() == Some("kcl-leases")));
    }

    #[tokio::test]
    async fn leases_whose_holders_do_not_let_go_are_freed_on_request() {
        let (table, lease, keepers) = keepers(false).await;
        let term = taken(&keepers, &lease).await;
        assert!(keepers.let_go(Duration::from_secs(10)).await);
        assert_eq!((row(&table).await.owner, term.status()), (None, TermStatus::Ended(TermEnd::Released)));
    }

    #[tokio::test]
    async fn keepers_that_are_stopped_write_nothing_more_though_the_terms_are_dropped() {
        let (table, lease, keepers) = keepers(false).await;
        let term = taken(&keepers, &lease).await;
        keepers.stop();
        drop(term);
        let before = row(&table).await;
        tokio::time::sleep(LEASE).await;
        assert_eq!(row(&table).await, before);
    }

    #[tokio::test]
    async fn a_keeper_that_panics_is_told_of_and_its_term_is_over() {
        let (_, lease, keepers) = keepers(true).await;
        let term = taken(&keepers, &lease).await;
        let error = keepers.failed().await;
        assert!(matches!(&error, WorkerError::LeaseKeeping { reason } if reason.contains("this table panics")), "{error}");
        assert!(error.to_string().contains(SHARD), "{error}");
        assert_eq!(term.status_other_than(TermStatus::Held).await, TermStatus::Ended(TermEnd::Lost));
    }
}
