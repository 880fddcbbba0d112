//! The consumer of one shard, for one term: from the take of its lease to the end of the term.
//!
//! Three futures run in one task: reading ahead (`prefetch`), delivering (`deliver`), and, with
//! automatic checkpoints, writing down how far all is finished. They end together. Calls of users'
//! code are tasks of their own. The row itself is written by the term's keeper, elsewhere.
//!
//! | part | owns |
//! |---|---|
//! | `deliver` | the loop: what can be begun, and what is waited for |
//! | `intake`, `in_hand`, `start`, `gaps`, `trimmed` | from an answer of Kinesis to records in work: aggregates, what is finished already, what may have been trimmed |
//! | `schedule` | which records wait for a call, in which order |
//! | `calls`, `lanes`, `seat`, `call` | calls of processors, and what follows when they end |
//! | `retry` | what a failure means for each record of its batch |
//! | `breaker`, `outages` | whether the world fails or a record is at fault; pacing and probes meanwhile |
//! | `careful` | records that kill their process |
//! | `rewind` | what a processor had collected and takes along when it is lost |
//! | `letters`, `outbox`, `valve` | the way to the dead-letter queue |
//! | `flow`, `stopped` | pauses, and stops that outlive the process |
//! | `skip`, `bound` | what is left out, and where reading ends, where that is configured |
//! | `hold` | whether the shard is still this worker's |
//! | `shard_end` | the end of the shard |
//! | `farewell` | the end of the hold: calls cut off, processors told, the lease let go |

mod bound;
mod breaker;
mod call;
mod calls;
mod careful;
mod deliver;
mod farewell;
mod flow;
mod gaps;
mod hold;
mod in_hand;
mod intake;
mod lanes;
mod letters;
mod outages;
mod outbox;
mod ownership;
mod prefetch;
mod reading;
mod retry;
mod rewind;
mod schedule;
mod seat;
mod settings;
mod shard_end;
mod skip;
mod start;
mod stopped;
mod trimmed;
mod valve;
mod work;

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use kcl_checkpoint::planted::{Bug, is_planted};
use kcl_checkpoint::{AckedPrefix, Checkpoint, Checkpointer, ExtendedSequenceNumber, InitialPosition, Timestamp};
use kcl_lease::term::{Term, TermEnd, TermStatus};
use kcl_lease::{Clock, Entropy, LeaseTable, OutageLog, ShardId, WorkerId};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

pub(crate) use self::breaker::Neighbours;
pub(crate) use self::call::Advice;
use self::farewell::Farewell;
pub(crate) use self::flow::Flow;
use self::hold::Hold;
use self::ownership::TermOwnership;
pub(crate) use self::prefetch::PrefetchBudget;
pub(crate) use self::reading::Reading;
pub use self::retry::RetryPolicy;
pub(crate) use self::seat::{Factory, MayBlock};
pub(crate) use self::settings::Processing;
pub use self::settings::{Aggregated, Backlog, Batching, CallbackDeadlines, Elsewhere, Lanes, PoisonedKey, ReadUntil};
use self::start::StartFilter;
pub use self::valve::SafetyValve;
use self::work::Work;
use crate::commit::Committer;
use crate::dead_letter::DeadLetterQueue;
use crate::health::HealthBoard;
use crate::interruption::Signals;
use crate::metrics::Metrics;
use crate::processor::{ShardContext, ShardInfo};
use crate::retrieval::Retrieval;
use crate::status::StatusBoard;
use crate::stream::{ChildShard, ServiceClock, StartingPosition, StreamApi, StreamDescription};
use crate::worker::Machine;

/// Who moves the checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Checkpointing {
    /// The framework: after records are finished, at most once per interval and shard, and when the shard is let go or ends.
    Automatic {
        /// The shortest time between two checkpoints of a shard. A crash repeats what was finished in it.
        interval: Duration,
    },
    /// The processor, through [`ShardContext::checkpointer`]. What it does not checkpoint is delivered again to the shard's next owner.
    ///
    /// So a call may be done with no more than collecting its records, and a later one flush and checkpoint them. When a processor panics, or overruns its
    /// deadline, what it was given since the last checkpoint is delivered again to the one that is made in its place. Records that no processor has, as those that
    /// the dead-letter queue has accepted, are checkpointed by the framework when the shard is let go and while records go one by one, unless unfinished ones
    /// come before them.
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
    /// What calls have come to, by shard.
    pub(crate) neighbours: Neighbours,
    pub(crate) processing: Processing,
    pub(crate) flow: Flow,
    pub(crate) checkpointing: Checkpointing,
    pub(crate) trimmed: TrimmedData,
    pub(crate) backlog: Backlog,
    /// Records that arrived at this time or later are not read.
    pub(crate) bound: Option<Timestamp>,
    pub(crate) initial: InitialPosition,
    pub(crate) budget: PrefetchBudget,
    pub(crate) reading: Arc<Reading>,
    pub(crate) status: StatusBoard,
    pub(crate) metrics: Metrics,
    /// Cancelled when the worker lets go of all its shards.
    pub(crate) let_go: CancellationToken,
    pub(crate) outages: OutageLog,
    pub(crate) health: HealthBoard,
    /// Shards of which calls were cut off since.
    pub(crate) cut_off: CutOff,
    pub(crate) lease_duration: Duration,
    pub(crate) handoff_timeout: Duration,
    pub(crate) shutdown_timeout: Duration,
    pub(crate) machine: Machine,
}

/// Shards whose calls did not end in time when the worker shut down.
#[derive(Debug, Default)]
pub(crate) struct CutOff(Mutex<BTreeSet<ShardId>>);

impl CutOff {
    fn note(&self, shard: &ShardId) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(shard.clone());
    }

    pub(crate) fn shards(&self) -> Vec<ShardId> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect()
    }
}

impl Shared {
    fn retention(&self) -> Duration {
        Duration::from_secs(u64::from(self.retention_hours.load(Ordering::Relaxed)) * 3600)
    }
}

/// Why delivery stops.
enum Stop {
    /// All records of the shard are finished.
    ShardEnd(Vec<ChildShard>),
    /// The shard is ended, and its processors know.
    Over,
    /// Another worker asked for the shard, or this one shuts down.
    LetGo,
    /// All is finished up to where reading is to end.
    AtBound,
    /// The term is over; its status says how.
    Ended,
    /// Read on, or once more, from this position.
    Reopen(StartingPosition),
}

/// The consumer of one shard for one term.
pub(crate) struct ShardConsumer {
    hold: Hold,
    work: Work,
    filter: StartFilter,
    /// The checkpoint behind which records were found trimmed, and left out as configured.
    accepted_gap: Option<Checkpoint>,
    prefix: AckedPrefix,
    /// All records that arrived before this time are finished, as far as is known.
    watermark: Option<Timestamp>,
    /// After a skip: the last record that had been delivered, and where reading went on.
    skipped: Option<(Option<ExtendedSequenceNumber>, Timestamp)>,
    /// The boot time when an answer was last taken in.
    looked: Duration,
    /// How far all is finished; for the automatic checkpoints.
    acked: watch::Sender<Option<ExtendedSequenceNumber>>,
    /// The times by which the shard is rid of its calls, once it is let go.
    farewell: Option<Farewell>,
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
        let (checkpointer, control) = Checkpointer::pair(taken.checkpoint, Arc::new(term.clone()));
        shared.status.enter(&taken.shard_id, taken.checkpoint, term.fencing_token());
        let committer = Committer::new(term.clone(), shared.processing.lanes.lanes, shared.status.clone(), control.clone());
        let signals = Signals::new(term.clone(), shared.let_go.clone(), shared.flow.clone());
        let shard = Arc::new(ShardContext { info, checkpointer, committer, signals });
        let (filter, watermark, looked) = (StartFilter::new(taken), taken.watermark, shared.clock.boot_time());
        let hold = Hold { shared, term, shard, control };
        let work = Work::new(&hold);
        if work.finished_before.is_none() {
            // A note that a checkpoint put back has made void would be valid again once the checkpoint has passed its base.
            hold.term.set_finished_beyond(None);
        }
        if work.careful.is_none() {
            hold.term.set_carefree();
        } else {
            tracing::warn!(shard = %hold.shard.shard_id(), "owners of the shard have died since its last checkpoint: records are delivered one by one");
        }
        Self {
            hold,
            work,
            filter,
            accepted_gap: None,
            prefix: AckedPrefix::default(),
            watermark,
            skipped: None,
            looked,
            acked: watch::Sender::new(None),
            farewell: None,
        }
    }

    /// Consumes the shard until the term ends, and says which shard it was.
    #[tracing::instrument(name = "shard", skip_all, fields(shard = %self.hold.shard.shard_id(), token = self.hold.shard.fencing_token()))]
    pub(crate) async fn run(mut self) -> ShardId {
        let checkpoints = checkpoint_as_acked(
            self.hold.shared.checkpointing,
            self.hold.shard.checkpointer.of_engine(&self.hold.control),
            self.acked.subscribe(),
            Arc::clone(&self.hold.shared),
            self.hold.shard.shard_id().clone(),
        );
        // Over all of the term: what is finished is written down whatever else goes on.
        tokio::select! {
            biased;
            shard = self.run_to_the_end() => shard,
            never = checkpoints => match never {},
        }
    }

    async fn run_to_the_end(&mut self) -> ShardId {
        tracing::info!(checkpoint = %self.hold.shard.starting_checkpoint(), "shard taken");
        let shard = self.hold.shard.shard_id().clone();
        let mut left = Left { shared: Arc::clone(&self.hold.shared), shard: shard.clone(), is_lost: true };
        left.shared.metrics.lease_taken();
        let stop = self.consume().await;
        let mut let_go = TermEnd::Released;
        if matches!(stop, Stop::LetGo | Stop::AtBound) {
            let_go = self.let_go(matches!(stop, Stop::AtBound)).await;
        }
        let end = match self.hold.term.status() {
            TermStatus::Ended(end) => end,
            _ => let_go,
        };
        // Whoever is content with the end of its shard has gone.
        if !matches!(stop, Stop::Over) {
            self.lease_lost().await;
        }
        left.is_lost = end != TermEnd::Released;
        tracing::info!(?end, finished = ?self.prefix.acked(), "shard left");
        shard
    }

    /// Makes the processors, reads and delivers, and ends the shard, until something stops it.
    async fn consume(&mut self) -> Stop {
        let mut position = start::starting_position(self.hold.term.taken(), self.hold.shared.initial);
        loop {
            let Hold { shared, term, shard, .. } = &self.hold;
            let ownership = Arc::new(TermOwnership { term: term.clone(), shared: Arc::clone(shared) });
            let reader = shared.retrieval.open(shard.shard_id(), position, ownership);
            let clock = Arc::clone(&shared.clock) as Arc<dyn Clock>;
            let reading = shared.reading.of_shard(shard.shard_id(), Arc::clone(&clock));
            let (prefetcher, mut prefetched) = prefetch::prefetch(reader, shared.budget.clone(), clock, reading);
            let stop = tokio::select! {
                biased;
                stop = self.deliver(&mut prefetched) => stop,
                never = prefetcher.run() => match never {},
            };
            let stop = match stop {
                Stop::ShardEnd(children) => self.end_shard(children).await,
                stop => stop,
            };
            match stop {
                Stop::Reopen(from) => {
                    position = from;
                    if is_planted(Bug::CheckpointLoopDropped) {
                        self.acked.send_replace(None);
                    }
                }
                stop => return stop,
            }
        }
    }
}

/// The end of a hold, however it comes: also of a consumer that panics or is dropped.
struct Left {
    shared: Arc<Shared>,
    shard: ShardId,
    is_lost: bool,
}

impl Drop for Left {
    fn drop(&mut self) {
        self.shared.metrics.lease_left(self.is_lost);
        self.shared.flow.term_ended(&self.shard);
        self.shared.neighbours.left(&self.shard);
        self.shared.status.leave(&self.shard);
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
    let interval = match mode {
        Checkpointing::Automatic { interval } => interval,
        Checkpointing::Manual if is_planted(Bug::ManualIsAutomatic) => Duration::from_secs(5),
        Checkpointing::Manual => return std::future::pending().await,
    };
    loop {
        let target = *acked.borrow_and_update();
        if target.is_none_or(|target| Checkpoint::At(target) <= checkpointer.last()) {
            if acked.changed().await.is_err() {
                // The consumer is being dropped, and this future with it.
                return std::future::pending().await;
            }
            continue;
        }
        tokio::time::sleep(interval).await;
        let target = *acked.borrow_and_update();
        let Some(target) = target.filter(|target| Checkpoint::At(*target) > checkpointer.last()) else { continue };
        match checkpointer.checkpoint_at(target).await {
            Ok(()) => shared.status.update(&shard, |status| status.checkpoint = Checkpoint::At(target)),
            Err(error) if error.is_retryable() => {
                // The keeper, whose writes these are, reports the outage.
                tracing::debug!(%shard, %error, "checkpoint not confirmed; it will be tried again");
            }
            // The delivering future sees the end of the term.
            Err(error) if error.is_lease_lost() => return std::future::pending().await,
            // It will be tried again, unless a later one stands by then.
            Err(error) => tracing::debug!(%shard, %error, "checkpoint refused"),
        }
    }
}
