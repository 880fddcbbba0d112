//! What a worker does right now, per shard: for progress displays, health checks and tests.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kcl_checkpoint::{Checkpoint, ExtendedSequenceNumber};
use kcl_lease::{ShardId, WorkerId};

/// What a shard's consumer is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ShardState {
    /// The processor is being made and initialized.
    Starting,
    /// Records are read and processed, or waited for.
    Processing,
    /// The last attempt failed; another one follows, perhaps after what its processor had collected was read again.
    Retrying,
    /// A record can't be processed and the dead-letter queue does not accept it: the shard waits.
    WaitingForDeadLetterQueue,
    /// A record can't be processed and there is no dead-letter queue: it is tried again and again.
    BlockedByRecord,
    /// Records were trimmed before they were read, and nobody has allowed to go on without them.
    BlockedByTrimmedRecords,
    /// Kinesis can't be read.
    ReadFailing,
    /// A call of the processor has been under way for a minute.
    InLongCall,
    /// The shard is paused, because somebody asked for it.
    Paused,
    /// The processor said stop: see [`ProcessError::stop`](crate::ProcessError::stop).
    StoppedByProcessor,
    /// Too many records went to the dead-letter queue: see [`SafetyValve`](crate::SafetyValve).
    StoppedBySafetyValve,
    /// The lease could not be renewed in time: nothing is delivered until it is.
    Suspended,
    /// The shard is read to its end, which is being written down.
    Ending,
    /// The shard is being let go.
    LettingGo,
}

impl ShardState {
    /// Whether the shard makes no progress and somebody should look.
    #[must_use]
    pub fn is_stuck(self) -> bool {
        matches!(
            self,
            Self::WaitingForDeadLetterQueue
                | Self::BlockedByRecord
                | Self::BlockedByTrimmedRecords
                | Self::ReadFailing
                | Self::InLongCall
                | Self::StoppedByProcessor
                | Self::StoppedBySafetyValve
                | Self::Suspended
        )
    }
}

/// How one shard of a worker stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShardStatus {
    /// What its consumer does.
    pub state: ShardState,
    /// The last record that was finished in this term.
    pub finished: Option<ExtendedSequenceNumber>,
    /// The checkpoint that is written.
    pub checkpoint: Checkpoint,
    /// How far the last read was behind the newest record, in milliseconds.
    pub millis_behind_latest: Option<u64>,
    /// Records finished in this term, dead letters included; one that was lost with its processor, and comes again, each time.
    pub records: u64,
    /// Records sent to the dead-letter queue in this term.
    pub dead_letters: u64,
    /// How often this term has left out what it had not read: see [`Backlog`](crate::Backlog).
    pub skips: u64,
    /// The term's fencing token.
    pub fencing_token: u64,
}

/// How a worker stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkerStatus {
    /// The worker.
    pub worker: WorkerId,
    /// The shards that it owns.
    pub shards: BTreeMap<ShardId, ShardStatus>,
}

/// Where consumers write their status and others read it. Clones share it.
#[derive(Clone, Debug, Default)]
pub(crate) struct StatusBoard(Arc<Mutex<BTreeMap<ShardId, ShardStatus>>>);

impl StatusBoard {
    pub(crate) fn enter(&self, shard: &ShardId, checkpoint: Checkpoint, fencing_token: u64) {
        let status = ShardStatus {
            state: ShardState::Starting,
            finished: None,
            checkpoint,
            millis_behind_latest: None,
            records: 0,
            dead_letters: 0,
            skips: 0,
            fencing_token,
        };
        self.lock().insert(shard.clone(), status);
    }

    pub(crate) fn update(&self, shard: &ShardId, change: impl FnOnce(&mut ShardStatus)) {
        if let Some(status) = self.lock().get_mut(shard) {
            change(status);
        }
    }

    pub(crate) fn leave(&self, shard: &ShardId) {
        self.lock().remove(shard);
    }

    pub(crate) fn read(&self) -> BTreeMap<ShardId, ShardStatus> {
        self.lock().clone()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<ShardId, ShardStatus>> {
        // A status is told, not decided on: one that a panic left half changed does no harm.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
