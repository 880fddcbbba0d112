//! The worker: takes leases, runs a consumer for each, keeps the leases in step with the shards, and lets go in peace.
//!
//! All tasks belong to the worker: two per lease, in two sets that end with it. The consumer runs
//! on the runtime that runs the worker, as users' code does. The keeper, which writes the lease's
//! row, runs on a thread of the worker's own (`lease_keepers`, `lease_thread`), with a client of
//! its own (`lease_client`), so that a processor that blocks its thread never costs a lease.
//! Looking after leases (`coordinator`) and after shards (`shard_sync`) are two futures of the
//! worker's own task.

mod builder;
mod checks;
pub(crate) mod coordinator;
mod lease_client;
mod lease_credentials;
mod lease_keepers;
mod lease_thread;
mod machine;
mod relapses;
pub(crate) mod settings;
pub(crate) mod shard_sync;
pub(crate) mod start_retry;
mod taking;
mod unowned;

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use kcl_efo::FanOut;
use kcl_lease::term::{Term, TermContext};
use kcl_lease::{Clock as _, ShardId, WorkerId};
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

pub use self::builder::WorkerBuilder;
pub(crate) use self::checks::{retry_briefly, usable};
use self::coordinator::{Coordinator, Held};
use self::lease_keepers::LeaseKeepers;
pub(crate) use self::machine::Machine;
use self::relapses::Relapses;
use self::shard_sync::ShardSync;
use crate::consumer::{ShardConsumer, Shared};
use crate::error::WorkerError;
use crate::status::{ShardState, WorkerStatus};

/// Time between two signs that this process runs.
const SIGN_OF_LIFE: Duration = Duration::from_secs(1);

/// How long consumers may take to end once they were stopped. One whose processor blocks its thread
/// ends when that returns, which nobody waits for.
const LAST_POLLS: Duration = Duration::from_millis(200);

/// How long keepers may take to free their leases when the processors did not finish in time.
const LAST_WRITES: Duration = Duration::from_secs(2);

/// One worker of an application: built by [`Worker::builder`], run once.
///
/// Dropping it, or the future that runs it, stops everything at once, like the death of the process: nothing more is written, and
/// other workers take its shards when its leases expire.
#[derive(Debug)]
#[must_use = "a worker does nothing until it is run"]
pub struct Worker {
    shared: Arc<Shared>,
    coordinator: Coordinator,
    shard_sync: ShardSync,
    held: Held,
    look_again: Arc<Notify>,
    started: mpsc::Receiver<Term>,
    /// For the keepers: the lease table as they reach it.
    lease_terms: TermContext,
    shutdown_timeout: Duration,
    /// The consumer to deregister at the end.
    deregister: Option<FanOut>,
    /// Cancelled by a handle.
    asked_to_stop: CancellationToken,
    machine: Machine,
}

/// Watches and stops a worker from elsewhere. Clones are of the same worker.
#[derive(Clone, Debug)]
pub struct WorkerHandle {
    shared: Arc<Shared>,
    asked_to_stop: CancellationToken,
}

impl WorkerHandle {
    /// How the worker stands. Only reads memory: may be called from any thread, also while all
    /// threads of the worker's runtime are blocked.
    #[must_use]
    pub fn status(&self) -> WorkerStatus {
        let Shared { worker, status, health, reading, clock, let_go, .. } = &*self.shared;
        let health = health.read(let_go.is_cancelled(), reading.rests(clock.boot_time()));
        WorkerStatus { worker: worker.clone(), health, shards: status.read() }
    }

    /// Asks the worker to let go of its shards and end, as the signal given to [`Worker::run_until`] does.
    pub fn shutdown(&self) {
        self.asked_to_stop.cancel();
    }

    /// Pauses all shards of this worker: calls that are under way end, and no other is made. Leases are kept, so that no other worker takes the
    /// shards. Shards that the worker gets later are paused as well.
    pub fn pause(&self) {
        self.shared.flow.pause_all();
    }

    /// Ends what [`pause`](Self::pause) began. Shards that were paused, or have stopped, each for itself stay so.
    pub fn resume(&self) {
        self.shared.flow.resume_all();
    }

    /// Pauses one shard, as long as this worker has it and whenever it gets it again.
    pub fn pause_shard(&self, shard: &ShardId) {
        self.shared.flow.pause_shard(shard);
    }

    /// Lets a shard go on that was paused, that its processor has stopped, or that the safety valve has stopped; the valve begins to count anew.
    pub fn resume_shard(&self, shard: &ShardId) {
        self.shared.flow.resume_shard(shard);
    }
}

impl Worker {
    /// A worker for an application (which names its lease table) that reads a stream (a name or an ARN).
    pub fn builder(application: impl Into<String>, stream: impl Into<String>) -> WorkerBuilder {
        WorkerBuilder::new(application.into(), stream.into())
    }

    /// The worker's name: unique to this start.
    #[must_use]
    pub fn id(&self) -> &WorkerId {
        &self.shared.worker
    }

    /// A handle to watch and stop the worker.
    #[must_use]
    pub fn handle(&self) -> WorkerHandle {
        WorkerHandle { shared: Arc::clone(&self.shared), asked_to_stop: self.asked_to_stop.clone() }
    }

    /// Runs until a [handle](WorkerHandle::shutdown) stops it. See [`run_until`](Self::run_until).
    ///
    /// # Errors
    /// As [`run_until`](Self::run_until).
    pub async fn run(self) -> Result<(), WorkerError> {
        self.run_until(std::future::pending()).await
    }

    /// Runs until `shutdown` completes; then lets the processors finish what is in work,
    /// checkpoints it, and frees the leases, so that other workers go on at once. Takes at most the
    /// shutdown timeout for that, and if processors did not finish by then, a moment to free the
    /// leases: up to 2 s if the table does not answer.
    ///
    /// A processor that blocks its thread does not hold up the shutdown, if the runtime has another
    /// thread for this future; it goes on by itself, and what it returns counts for nothing. Leases
    /// are kept alive, and freed, by a thread of the worker's own.
    ///
    /// # Errors
    /// [`WorkerError::ShutdownTimedOut`] if processors did not finish in time;
    /// [`WorkerError::Table`] if the lease table is gone; [`WorkerError::StreamRecreated`] if the
    /// stream was replaced by another one of the same name; [`WorkerError::LeasesVanished`] if the table
    /// was emptied; [`WorkerError::LeaseKeeping`] if what
    /// keeps the leases alive has failed. In all cases the leases were freed as far as the table
    /// could be reached. [`WorkerError::LeaseThread`] if the operating system has no thread for
    /// that; then nothing was begun.
    ///
    /// # Cancel safety
    /// Dropping the future stops everything at once, see [`Worker`].
    pub async fn run_until(self, shutdown: impl Future<Output = ()>) -> Result<(), WorkerError> {
        let Self {
            shared,
            coordinator,
            shard_sync,
            held,
            look_again,
            mut started,
            lease_terms,
            shutdown_timeout,
            deregister,
            asked_to_stop,
            machine,
        } = self;
        let (vanished, adopt) = (lease_terms.vanished.clone(), shard_sync.adopt);
        let keepers = LeaseKeepers::start(lease_terms, &machine)?;
        let stop_looking = CancellationToken::new();
        let mut coordinator = std::pin::pin!(coordinator.run(keepers.clone(), stop_looking.clone()));
        // Dropped before all that holds terms.
        let mut fleet = Fleet::new(shared, held, look_again, machine, keepers);
        let (mut shard_sync, mut shutdown) = (std::pin::pin!(shard_sync.run()), std::pin::pin!(shutdown));
        tracing::info!(worker = %fleet.shared.worker, application = fleet.shared.application, stream = fleet.shared.stream.arn, "worker started");
        let mut looking = true;
        let result = loop {
            tokio::select! {
                biased;
                () = &mut shutdown => break Ok(()),
                () = asked_to_stop.cancelled() => break Ok(()),
                ended = &mut coordinator => {
                    looking = false;
                    break match ended {
                        Err(WorkerError::LeasesVanished { shard, .. }) => Err(ShardSync::why_vanished(&fleet.shared, shard, adopt).await),
                        ended => ended,
                    };
                }
                error = &mut shard_sync => break Err(error),
                Some(term) = started.recv() => fleet.start(term),
                Some(ended) = fleet.consumers.join_next() => fleet.ended(ended.ok()),
                error = fleet.keepers.failed() => break Err(error),
                shard = vanished.seen() => break Err(ShardSync::why_vanished(&fleet.shared, Some(shard), adopt).await),
            }
        };
        tracing::info!(worker = %fleet.shared.worker, "worker lets go of its shards");
        stop_looking.cancel();
        fleet.shared.let_go.cancel();
        let deadline = Instant::now() + shutdown_timeout;
        // A take that is on its way is waited for: dropped, it could leave a lease that nobody holds.
        // The last term that it took may still be on its way here when the coordinator has ended.
        while looking || !started.is_empty() || !fleet.is_empty() {
            tokio::select! {
                biased;
                _ = &mut coordinator, if looking => looking = false,
                Some(term) = started.recv() => fleet.start(term),
                Some(ended) = fleet.consumers.join_next() => fleet.ended(ended.ok()),
                // Whatever ended it: a shutdown that is under way needs no other reason.
                () = fleet.keepers.one_ended() => {}
                () = tokio::time::sleep_until(deadline) => {
                    let timed_out = WorkerError::ShutdownTimedOut { timeout: shutdown_timeout, shards: fleet.give_up().await };
                    return result.and(Err(timed_out));
                }
            }
        }
        if let Some(fan_out) = deregister {
            match tokio::time::timeout(LAST_WRITES, fan_out.deregister()).await {
                Ok(Ok(())) => tracing::info!(stream = fan_out.stream_arn(), "the stream consumer is deregistered"),
                Ok(Err(error)) => tracing::warn!(%error, "the stream consumer could not be deregistered"),
                Err(_) => tracing::warn!("the stream consumer could not be deregistered within {LAST_WRITES:?}"),
            }
        }
        tracing::info!(worker = %fleet.shared.worker, "worker stopped");
        let shards = fleet.shared.cut_off.shards();
        if !shards.is_empty() {
            return result.and(Err(WorkerError::ShutdownTimedOut { timeout: shutdown_timeout, shards }));
        }
        result
    }
}

/// The tasks of a running worker.
struct Fleet {
    shared: Arc<Shared>,
    held: Held,
    look_again: Arc<Notify>,
    machine: Machine,
    keepers: LeaseKeepers,
    consumers: JoinSet<ShardId>,
    relapses: Arc<Relapses>,
    /// Tasks that only wake now and then, see [`LeaseKeepers::pulse`] and
    /// [`Reading::runs`](crate::consumer::Reading::runs).
    _pulses: JoinSet<()>,
}

impl Drop for Fleet {
    fn drop(&mut self) {
        // Before the consumers: a keeper that saw its consumer go would free the lease, and a
        // dropped worker writes nothing more.
        self.keepers.stop();
    }
}

impl Fleet {
    fn new(shared: Arc<Shared>, held: Held, look_again: Arc<Notify>, machine: Machine, keepers: LeaseKeepers) -> Self {
        let mut pulses = JoinSet::new();
        if let Some(task) = keepers.pulse() {
            pulses.spawn(task);
        }
        let (reading, clock) = (Arc::clone(&shared.reading), Arc::clone(&shared.clock));
        pulses.spawn(machine.run(async move {
            loop {
                reading.runs(clock.boot_time());
                tokio::time::sleep(SIGN_OF_LIFE).await;
            }
        }));
        let relapses = Arc::new(Relapses::new(shared.entropy.clone()));
        Self { shared, held, look_again, machine, keepers, consumers: JoinSet::new(), relapses, _pulses: pulses }
    }

    fn start(&mut self, term: Term) {
        let shard = term.taken().shard_id.clone();
        let (checkpoint, token) = (term.taken().checkpoint, term.fencing_token());
        let (shared, relapses) = (Arc::clone(&self.shared), Arc::clone(&self.relapses));
        let consumer = ShardConsumer::new(Arc::clone(&self.shared), term);
        self.consumers.spawn(self.machine.run(async move {
            if AssertUnwindSafe(consumer.run()).catch_unwind().await.is_ok() {
                relapses.ended(&shard);
                return shard;
            }
            // With its consumer the term is gone, and its keeper frees the lease: others may take it
            // at once.
            let wait = relapses.panicked(&shard);
            tracing::error!(%shard, ?wait, "the shard's consumer has panicked; the shard is left alone for a while");
            shared.metrics.panicked();
            shared.status.enter(&shard, checkpoint, token);
            shared.status.state(&shard, ShardState::Failed);
            let _ = tokio::time::timeout(wait, shared.let_go.cancelled()).await;
            shard
        }));
    }

    fn ended(&self, shard: Option<ShardId>) {
        if let Some(shard) = shard {
            self.shared.status.leave(&shard);
            self.held.remove(&shard);
        }
        // Whatever ended it, there may be something to take: children, or leases that this one stood in the way of.
        self.look_again.notify_one();
    }

    fn is_empty(&self) -> bool {
        self.consumers.is_empty() && self.keepers.is_empty()
    }

    /// Stops the processors where they are, or leaves those that block alone, and frees all leases
    /// without checkpoints.
    async fn give_up(&mut self) -> Vec<ShardId> {
        let shards: Vec<_> = self.shared.status.read().into_keys().collect();
        if shards.is_empty() {
            tracing::error!("shutdown took too long: the lease table does not confirm that the leases are free");
        } else {
            tracing::error!(?shards, "shutdown took too long; records since the last checkpoints will be delivered again");
        }
        self.consumers.abort_all();
        let stopped = async { while self.consumers.join_next().await.is_some() {} };
        if tokio::time::timeout(LAST_POLLS, stopped).await.is_err() {
            tracing::warn!(consumers = self.consumers.len(), "some processors block their threads and are left alone");
        }
        if !self.keepers.let_go(LAST_WRITES).await {
            tracing::warn!("not all leases could be freed; they expire");
        }
        shards
    }
}
