//! The consumer of one shard, for one term: from the take of its lease to the end of the term.
//!
//! Three futures run in one task: reading ahead (`prefetch`), delivering (`deliver`), and, with automatic checkpoints,
//! writing down how far all is finished. They end together. The row itself is written by the term's keeper, a task of its own.

mod call;
mod deliver;
mod ownership;
mod prefetch;
mod reading;
mod retry;
mod shard_end;
mod start;

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use kcl_checkpoint::planted::{Bug, is_planted};
use kcl_checkpoint::{AckedPrefix, Checkpoint, CheckpointWriteError, Checkpointer, ExtendedSequenceNumber, InitialPosition, Timestamp};
use kcl_lease::backoff::Backoff;
use kcl_lease::term::{Term, TermEnd, TermStatus};
use kcl_lease::{Clock as _, Entropy, LeaseTable, ShardId, WorkerId};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use self::call::guarded;
use self::ownership::TermOwnership;
pub(crate) use self::prefetch::{LARGEST_ANSWER, PrefetchBudget};
pub(crate) use self::reading::Reading;
pub use self::retry::RetryPolicy;
use self::start::StartFilter;
use crate::dead_letter::DeadLetterQueue;
use crate::metrics::Metrics;
use crate::processor::{RecordProcessor, RecordProcessorFactory, ShardContext, ShardInfo};
use crate::retrieval::Retrieval;
use crate::status::{ShardState, StatusBoard};
use crate::stream::{ChildShard, ServiceClock, StartingPosition, StreamApi, StreamDescription};

/// Who moves the checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Checkpointing {
    /// The framework: after records are finished, at most once per interval and shard, and when the shard is let go or ends.
    Automatic {
        /// The shortest time between two checkpoints of a shard. A crash repeats what was finished in it.
        interval: Duration,
    },
    /// The processor, through [`ShardContext::checkpointer`]. What it does not checkpoint is delivered again.
    Manual,
}

/// What happens when records were trimmed from the stream before they were read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum TrimmedData {
    /// The shard stops and says so, until a worker is configured to go on. The default: no record is skipped silently.
    #[default]
    Block,
    /// The shard goes on with the oldest record that is kept. The gap is logged as an error under the target `kcl::audit` and counted.
    SkipAndAudit,
}

/// What all consumers of a worker share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) application: String,
    pub(crate) worker: WorkerId,
    pub(crate) stream: StreamDescription,
    pub(crate) retention_hours: AtomicU32,
    pub(crate) factory: Factory,
    pub(crate) retrieval: Arc<dyn Retrieval>,
    pub(crate) stream_api: Arc<dyn StreamApi>,
    pub(crate) table: Arc<dyn LeaseTable>,
    pub(crate) dead_letter_queue: Option<Arc<dyn DeadLetterQueue>>,
    /// Its wall time is the service's.
    pub(crate) clock: Arc<ServiceClock>,
    pub(crate) entropy: Entropy,
    pub(crate) retry: RetryPolicy,
    pub(crate) checkpointing: Checkpointing,
    pub(crate) trimmed: TrimmedData,
    pub(crate) initial: InitialPosition,
    pub(crate) budget: PrefetchBudget,
    pub(crate) reading: Arc<Reading>,
    pub(crate) status: StatusBoard,
    pub(crate) metrics: Metrics,
    /// Cancelled when the worker lets go of all its shards.
    pub(crate) let_go: CancellationToken,
}

impl Shared {
    fn retention(&self) -> Duration {
        Duration::from_secs(u64::from(self.retention_hours.load(Ordering::Relaxed)) * 3600)
    }
}

/// The users' factory; opaque to `Debug`.
#[derive(Clone)]
pub(crate) struct Factory(pub(crate) Arc<dyn RecordProcessorFactory>);

impl std::fmt::Debug for Factory {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("RecordProcessorFactory")
    }
}

/// Why delivery stops.
enum Stop {
    /// All records of the shard are finished.
    ShardEnd(Vec<ChildShard>),
    /// Another worker asked for the shard, or this one shuts down.
    LetGo,
    /// The term is over; its status says how.
    Ended,
    /// The starting position was refused; read from this one.
    Reopen(StartingPosition),
}

/// A processor, which need not be shareable between threads: it is only ever reached exclusively, so the lock is never locked.
struct Exclusive(Mutex<Box<dyn RecordProcessor>>);

impl Exclusive {
    fn new(processor: Box<dyn RecordProcessor>) -> Self {
        Self(Mutex::new(processor))
    }

    fn get(&mut self) -> &mut dyn RecordProcessor {
        self.0.get_mut().unwrap_or_else(PoisonError::into_inner).as_mut()
    }
}

/// The consumer of one shard for one term.
pub(crate) struct ShardConsumer {
    shared: Arc<Shared>,
    term: Term,
    shard: ShardContext,
    processor: Option<Exclusive>,
    filter: StartFilter,
    prefix: AckedPrefix,
    /// All records that arrived before this time are finished, as far as is known.
    watermark: Option<Timestamp>,
    /// The boot time when an answer was last taken in.
    looked: Duration,
    /// How far all is finished; for the automatic checkpoints.
    acked: watch::Sender<Option<ExtendedSequenceNumber>>,
}

impl ShardConsumer {
    pub(crate) fn new(shared: Arc<Shared>, term: Term) -> Self {
        let taken = term.taken();
        let info = ShardInfo {
            application: shared.application.clone(),
            stream_name: shared.stream.name.clone(),
            stream_arn: shared.stream.arn.clone(),
            shard_id: taken.shard_id.clone(),
            worker: shared.worker.clone(),
            fencing_token: term.fencing_token(),
            start: taken.checkpoint,
        };
        let checkpointer = Checkpointer::new(taken.checkpoint, Arc::new(term.clone()));
        shared.status.enter(&taken.shard_id, taken.checkpoint, term.fencing_token());
        Self {
            filter: StartFilter::new(taken),
            shard: ShardContext { info, checkpointer },
            processor: None,
            prefix: AckedPrefix::default(),
            watermark: taken.watermark,
            looked: shared.clock.boot_time(),
            acked: watch::Sender::new(None),
            shared,
            term,
        }
    }

    /// Consumes the shard until the term ends, and says which shard it was.
    #[tracing::instrument(name = "shard", skip_all, fields(shard = %self.shard.shard_id(), token = self.shard.fencing_token()))]
    pub(crate) async fn run(mut self) -> ShardId {
        tracing::info!(checkpoint = %self.shard.starting_checkpoint(), "shard taken");
        self.shared.metrics.lease_taken();
        let mut stop = self.consume().await;
        if let Stop::ShardEnd(children) = stop {
            stop = self.end_shard(children).await;
        }
        if matches!(stop, Stop::LetGo) {
            self.let_go().await;
        }
        let end = match self.term.status() {
            TermStatus::Ended(end) => end,
            _ => TermEnd::Released,
        };
        if let Some(mut processor) = self.processor.take()
            && !self.shard.checkpointer.last().is_shard_end()
        {
            let _ = guarded(async {
                processor.get().lease_lost(&self.shard.info).await;
                Ok(())
            })
            .await
            .inspect_err(|failure| tracing::error!(%failure, "lease_lost failed"));
        }
        tracing::info!(?end, finished = ?self.prefix.acked(), "shard left");
        self.shared.metrics.lease_left(end != TermEnd::Released);
        self.shared.status.leave(self.shard.shard_id());
        self.shard.info.shard_id
    }

    /// Makes the processor, reads and delivers, until something stops it.
    async fn consume(&mut self) -> Stop {
        let mut position = start::starting_position(self.term.taken(), self.shared.initial);
        loop {
            let ownership = Arc::new(TermOwnership { term: self.term.clone(), shared: Arc::clone(&self.shared) });
            let reader = self.shared.retrieval.open(self.shard.shard_id(), position, ownership);
            let (prefetcher, mut prefetched) = prefetch::prefetch(reader, self.shared.budget.clone());
            let checkpoints = checkpoint_as_acked(
                self.shared.checkpointing,
                self.shard.checkpointer.clone(),
                self.acked.subscribe(),
                Arc::clone(&self.shared),
                self.shard.shard_id().clone(),
            );
            let stop = tokio::select! {
                biased;
                stop = self.deliver(&mut prefetched) => stop,
                never = checkpoints => match never {},
                never = prefetcher.run() => match never {},
            };
            match stop {
                Stop::Reopen(from) => position = from,
                stop => return stop,
            }
        }
    }

    /// Lets the processor finish, and the lease go with the last checkpoint.
    async fn let_go(&mut self) {
        self.state(ShardState::LettingGo);
        if let Some(processor) = &mut self.processor {
            let result = guarded(processor.get().shutdown_requested(&self.shard)).await;
            if let Err(failure) = result {
                tracing::error!(%failure, "shutdown_requested failed; records since the last checkpoint will be delivered again");
            }
        }
        self.release(self.final_checkpoint(), BTreeSet::new()).await;
    }

    /// What to checkpoint when the shard is let go: with automatic checkpoints all that is finished, unless it is written already.
    fn final_checkpoint(&self) -> Option<Checkpoint> {
        let automatic = matches!(self.shared.checkpointing, Checkpointing::Automatic { .. });
        let acked = self.prefix.acked().filter(|_| !is_planted(Bug::LastCheckpointForgotten)).map(Checkpoint::At);
        acked.filter(|acked| automatic && *acked > self.shard.checkpointer.last())
    }

    /// Ends the term in the table. While the table is away, waits: whoever shuts the worker down sets the limit.
    async fn release(&self, checkpoint: Option<Checkpoint>, children: BTreeSet<ShardId>) {
        match self.term.release(checkpoint, children).await {
            Ok(()) => {}
            Err(CheckpointWriteError::LeaseLost) => tracing::warn!("the lease was lost before it could be released"),
            Err(error) => {
                tracing::warn!(%error, "the release is not confirmed yet; waiting");
                while !matches!(self.term.status(), TermStatus::Ended(_)) {
                    self.term.status_other_than(self.term.status()).await;
                }
            }
        }
    }

    /// Waits until something asks to stop.
    async fn interrupted(&self) -> Stop {
        tokio::select! {
            biased;
            status = self.term.status_other_than(TermStatus::Held) => match status {
                TermStatus::Ended(_) => Stop::Ended,
                _ => Stop::LetGo,
            },
            () = self.shared.let_go.cancelled() => Stop::LetGo,
        }
    }

    /// The gate before every delivery: passes while the term is valid, waits while it is suspended.
    async fn gate(&self) -> Result<(), Stop> {
        if !self.term.is_valid() {
            tracing::warn!("the lease could not be renewed in time; nothing is delivered until it is");
            self.state(ShardState::Suspended);
        }
        tokio::select! {
            biased;
            stop = self.interrupted() => Err(stop),
            () = std::future::ready(()), if is_planted(Bug::GateOpen) => Ok(()),
            valid = self.term.valid() => valid.map_err(|_| Stop::Ended),
        }
    }

    /// Waits, unless something asks to stop.
    async fn pause(&self, wait: Duration) -> Result<(), Stop> {
        tokio::select! {
            biased;
            stop = self.interrupted() => Err(stop),
            () = tokio::time::sleep(wait) => Ok(()),
        }
    }

    fn backoff(&self) -> Backoff {
        Backoff::new(self.shared.retry.first_backoff, self.shared.retry.max_backoff, &self.shared.entropy)
    }

    fn state(&self, state: ShardState) {
        self.shared.status.update(self.shard.shard_id(), |status| status.state = state);
    }
}

/// Writes down how far all is finished, at most once per interval. Never returns.
async fn checkpoint_as_acked(
    mode: Checkpointing,
    checkpointer: Checkpointer,
    mut acked: watch::Receiver<Option<ExtendedSequenceNumber>>,
    shared: Arc<Shared>,
    shard: ShardId,
) -> Infallible {
    let Checkpointing::Automatic { interval } = mode else { return std::future::pending().await };
    // An error means that the consumer is being dropped, and this future with it.
    while acked.changed().await.is_ok() {
        tokio::time::sleep(interval).await;
        let target = *acked.borrow_and_update();
        let Some(target) = target.filter(|target| Checkpoint::At(*target) > checkpointer.last()) else { continue };
        match checkpointer.checkpoint_at(target).await {
            Ok(()) => shared.status.update(&shard, |status| status.checkpoint = Checkpoint::At(target)),
            Err(error) if error.is_retryable() => {
                tracing::warn!(%shard, %error, "checkpoint not confirmed; it will be tried again");
                acked.mark_changed();
            }
            // The delivering future sees the end of the term, or a later checkpoint of the processor's own stands.
            Err(error) => tracing::debug!(%shard, %error, "checkpoint refused"),
        }
    }
    std::future::pending().await
}
