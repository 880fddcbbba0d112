//! A lease as plain data: one row of the lease table.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use kcl_checkpoint::planted::{Bug, is_planted};
use kcl_checkpoint::{Checkpoint, ExtendedSequenceNumber, FinishedBeyond, PendingCheckpoint, Timestamp};

use crate::write::WriteId;

macro_rules! name_type {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(Arc<str>);

        impl $name {
            /// The name as text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl<T: Into<Arc<str>>> From<T> for $name {
            fn from(text: T) -> Self {
                Self(text.into())
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str(&self.0)
            }
        }
    };
}

name_type! {
    /// A shard's name, such as `shardId-000000000042`. It is the key of the shard's lease too.
    ShardId
}

name_type! {
    /// The name of one start of one worker process. It is never used again: after a restart it is another one, so that a row written
    /// by an earlier start can't be taken for one's own.
    WorkerId
}

/// The part of the key space that a shard holds: 128-bit hash keys, both ends included.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct HashKeyRange {
    /// The lowest hash key.
    pub start: u128,
    /// The highest hash key.
    pub end: u128,
}

/// A record that is in work alone, because processes seem to die of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Suspect {
    /// The record.
    pub record: ExtendedSequenceNumber,
    /// How often work on it was begun without its end being written down: as often, a process may have died of it. If the checkpoint covers the
    /// record, none has.
    pub begun: u32,
}

/// Why a shard was stopped.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[non_exhaustive]
pub enum StopReason {
    /// The safety valve: too many records went to the dead-letter queue.
    SafetyValve,
    /// The processor asked for it.
    Processor,
    /// A person did, through the worker.
    Operator,
}

impl StopReason {
    const ALL: [Self; 3] = [Self::SafetyValve, Self::Processor, Self::Operator];

    /// The reason as it is stored and shown: `safety-valve`, `processor` or `operator`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::SafetyValve => "safety-valve",
            Self::Processor => "processor",
            Self::Operator => "operator",
        }
    }

    /// Reads a reason as [`as_str`](Self::as_str) gives it.
    pub(crate) fn from_stored(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|reason| reason.as_str() == text)
    }
}

impl fmt::Display for StopReason {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.as_str())
    }
}

/// A stop of a shard that outlives the process and the term in which it was made: no owner processes
/// records until it is cleared.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Stopped {
    /// Why.
    pub reason: StopReason,
    /// The time at which it was made. Together with the reason it tells one stop from another.
    pub since: Timestamp,
}

/// The failover time of the Java library, by default.
const FOREIGN_FAILOVER: Duration = Duration::from_secs(10);

/// How long an owner trusts its lease after a renewal, as it noted itself when it took the lease. Others wait that long before they take it for dead.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Trust {
    /// The owner that noted it: of any other owner the row says nothing.
    pub owner: WorkerId,
    /// Its lease duration, in whole milliseconds, as the table keeps it.
    pub lease_duration: Duration,
}

impl Trust {
    /// The note of an owner that trusts a renewal for so long, rounded up to a whole millisecond.
    #[must_use]
    pub fn new(owner: WorkerId, lease_duration: Duration) -> Self {
        let millis = lease_duration.as_nanos().div_ceil(1_000_000);
        Self { owner, lease_duration: Duration::from_millis(u64::try_from(millis).unwrap_or(u64::MAX)) }
    }
}

/// One row of the lease table: who reads a shard, how far it is read, and how it is related to others.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Lease {
    /// The shard, and the row's key (`leaseKey`).
    pub shard_id: ShardId,
    /// Who owns the shard, or, while a handoff is under way, who shall own it next (`leaseOwner`). `None`: free to take.
    pub owner: Option<WorkerId>,
    /// Only while a handoff is under way: who still owns the shard, may process and checkpoint (`checkpointOwner`).
    pub checkpoint_owner: Option<WorkerId>,
    /// Grows with every write of the row by its owner and with every take (`leaseCounter`): heartbeat and fence in one.
    pub counter: u64,
    /// Owner changes since the last checkpoint (`ownerSwitchesSinceCheckpoint`): high for a shard whose record kills its process.
    pub owner_switches_since_checkpoint: u64,
    /// How far the shard is read (`checkpoint`, `checkpointSubSequenceNumber`).
    pub checkpoint: Checkpoint,
    /// A checkpoint that was prepared and not committed (`pendingCheckpoint`,
    /// `pendingCheckpointSubSequenceNumber`, `pendingCheckpointState`); absent: none is.
    pub pending_checkpoint: Option<PendingCheckpoint>,
    /// The shards that this one came from: none, one (split), or two (merge) (`parentShardId`).
    pub parents: BTreeSet<ShardId>,
    /// The shards that this one became, once it has ended (`childShardIds`).
    pub children: BTreeSet<ShardId>,
    /// The shard's hash keys (`startingHashKey`, `endingHashKey`); absent in rows of old Java libraries.
    pub hash_range: Option<HashKeyRange>,
    /// Where reading starts while the checkpoint is LATEST or AT_TIMESTAMP (`rk_initTs`); absent in rows of the Java library.
    pub initial_timestamp: Option<Timestamp>,
    /// All records that arrived before this time were finished when the row was last written (`rk_ckptTs`); absent: unknown.
    pub watermark: Option<Timestamp>,
    /// When the stream was created (`rk_streamTs`): tells a stream from another one of the same name. Absent: unknown.
    pub stream_created: Option<Timestamp>,
    /// Records beyond the checkpoint that need not be processed again (`rk_done`); absent: none are known.
    pub finished_beyond: Option<FinishedBeyond>,
    /// The last record in work alone, while records go one by one because processes have died in this shard (`rk_suspect`).
    pub suspect: Option<Suspect>,
    /// The stop under which the shard is, whoever owns it (`rk_stop`); absent: it is processed.
    pub stopped: Option<Stopped>,
    /// How long the owner trusts a renewal (`rk_term`). Absent, or of another owner: the lease was assigned by another library.
    pub trust: Option<Trust>,
    /// The last of our writes that changed the row's counter (`rk_wid`). Stale once a Java worker has written the row.
    pub write_id: Option<WriteId>,
}

impl Lease {
    /// A new, unowned lease that starts at `checkpoint`.
    #[must_use]
    pub fn new(shard_id: ShardId, checkpoint: Checkpoint) -> Self {
        Self {
            shard_id,
            owner: None,
            checkpoint_owner: None,
            counter: 0,
            owner_switches_since_checkpoint: 0,
            checkpoint,
            pending_checkpoint: None,
            parents: BTreeSet::new(),
            children: BTreeSet::new(),
            hash_range: None,
            initial_timestamp: None,
            watermark: None,
            stream_created: None,
            finished_beyond: None,
            suspect: None,
            stopped: None,
            trust: None,
            write_id: None,
        }
    }

    /// How long its owner trusts a renewal, or an assignment, as far as it is known: an observer with this lease duration waits so long before it takes the owner
    /// for dead.
    ///
    /// Of an owner that has not noted its lease duration another library is the author, or its leader has assigned the lease just now. A worker of the Java
    /// library may be silent for nearly its failover time until it discovers an assignment, and a third of it more until its first renewal.
    #[must_use]
    pub fn trusted_for(&self, lease_duration: Duration) -> Duration {
        match &self.trust {
            _ if is_planted(Bug::OwnDurationForAll) => lease_duration,
            Some(trust) if self.actual_owner() == Some(&trust.owner) => trust.lease_duration.max(lease_duration),
            _ if is_planted(Bug::ForeignersAsOurs) => lease_duration.max(FOREIGN_FAILOVER),
            _ => lease_duration.max(FOREIGN_FAILOVER) * 4 / 3,
        }
    }

    /// Who may process and checkpoint now: the checkpoint owner while a handoff is under way, else the owner.
    #[must_use]
    pub fn actual_owner(&self) -> Option<&WorkerId> {
        self.checkpoint_owner.as_ref().or(self.owner.as_ref())
    }

    /// Who shall own the shard next, while a handoff is under way.
    #[must_use]
    pub fn next_owner(&self) -> Option<&WorkerId> {
        self.checkpoint_owner.as_ref().and(self.owner.as_ref())
    }

    /// Whether the shard lies before the place where the application starts: its lease was made finished by the first shard sync, and nobody ever took it.
    /// What came of it does not start after it, but where the application does.
    #[must_use]
    pub fn lies_before_start(&self) -> bool {
        self.is_finished() && self.counter == 0 && self.initial_timestamp.is_some()
    }

    /// Whether the shard is read to its end.
    #[must_use]
    pub fn is_finished(&self) -> bool {
        self.checkpoint.is_shard_end()
    }
}
