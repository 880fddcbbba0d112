//! Rows and writes in the few bytes that a state can afford, and what they stand for: the library's leases and conditional writes.
//!
//! Nothing is decided here. A write is kept as what it is built from, and the library builds it anew each time it reaches the table.

use std::collections::BTreeSet;
use std::sync::LazyLock;

use kcl_checkpoint::{Checkpoint, ExtendedSequenceNumber};
use kcl_lease::{Lease, LeaseWrite, ShardId, WorkerId, WriteId};

use crate::mutation::Mutation;

/// A start of a worker. Those below the number of workers run, the others are over.
pub(crate) type Start = u8;

/// The checkpoint of a row at SHARD_END. Others count the finished records.
pub(crate) const END: u8 = u8::MAX;

/// The shard whose children are read after it.
pub(crate) const PARENT: usize = 0;

/// Its child, in the configurations that have one.
pub(crate) const CHILD: usize = 1;

const MOST_STARTS: usize = 10;

static STARTS: LazyLock<Vec<WorkerId>> = LazyLock::new(|| (0..MOST_STARTS).map(|start| start.to_string().into()).collect());

static SHARDS: LazyLock<[ShardId; 2]> = LazyLock::new(|| ["shardId-000000000000".into(), "shardId-000000000001".into()]);

/// The worker's name in the library.
pub(crate) fn worker(start: Start) -> WorkerId {
    STARTS[usize::from(start)].clone()
}

/// The shard's name in the library.
pub(crate) fn shard(lease: usize) -> ShardId {
    SHARDS[lease].clone()
}

fn start_of(worker: &WorkerId) -> Start {
    STARTS.iter().position(|known| known == worker).and_then(|start| start.try_into().ok()).expect("invariant: only known workers write")
}

fn checkpoint(finished: u8) -> Checkpoint {
    match finished {
        0 => Checkpoint::TrimHorizon,
        END => Checkpoint::ShardEnd,
        record => Checkpoint::At(ExtendedSequenceNumber::whole(u128::from(record).into())),
    }
}

/// A row of the table, or what somebody knows of it. Of the counter only differences mean anything, see `canonical`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(crate) struct Row {
    pub(crate) owner: Option<Start>,
    pub(crate) checkpoint_owner: Option<Start>,
    pub(crate) counter: u8,
    pub(crate) checkpoint: u8,
    pub(crate) children: bool,
    /// 0 where it does not matter: in what is only known of a row.
    pub(crate) write_id: u8,
}

impl Row {
    /// A row as it is created.
    pub(crate) const NEW: Self = Self { owner: None, checkpoint_owner: None, counter: 0, checkpoint: 0, children: false, write_id: 0 };

    /// The lease that this row is.
    pub(crate) fn lease(self, lease: usize) -> Lease {
        Lease {
            owner: self.owner.map(worker),
            checkpoint_owner: self.checkpoint_owner.map(worker),
            counter: self.counter.into(),
            parents: (lease == CHILD).then(|| shard(PARENT)).into_iter().collect(),
            children: self.children.then(|| shard(CHILD)).into_iter().collect(),
            write_id: (self.write_id > 0).then_some(WriteId(self.write_id.into())),
            ..Lease::new(shard(lease), checkpoint(self.checkpoint))
        }
    }

    /// The row that this lease is.
    pub(crate) fn of(lease: &Lease) -> Self {
        let small = |number: u64| u8::try_from(number).expect("invariant: numbers are kept small");
        let finished = (0..=3).chain([END]).find(|finished| checkpoint(*finished) == lease.checkpoint);
        Self {
            owner: lease.owner.as_ref().map(start_of),
            checkpoint_owner: lease.checkpoint_owner.as_ref().map(start_of),
            counter: small(lease.counter),
            checkpoint: finished.expect("invariant: a short log"),
            children: !lease.children.is_empty(),
            write_id: lease.write_id.map_or(0, |id| small(id.0)),
        }
    }

    /// What somebody who reads the row remembers.
    pub(crate) fn known(self) -> Self {
        Self { write_id: 0, ..self }
    }

    /// Who may process and checkpoint now.
    pub(crate) fn actual_owner(self) -> Option<Start> {
        self.checkpoint_owner.or(self.owner)
    }

    /// What an observer compares to see whether a row moves.
    pub(crate) fn pulse(self) -> (u8, Option<Start>, Option<Start>) {
        (self.counter, self.owner, self.checkpoint_owner)
    }
}

/// What a write is for.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(crate) enum Intent {
    Take,
    Renew,
    Checkpoint(u8),
    Release(Option<u8>),
    Request,
}

/// A conditional write: what it is built from, and what an omniscient observer knows of it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(crate) struct Write {
    pub(crate) intent: Intent,
    pub(crate) by: Start,
    /// The row as the writer knows it.
    pub(crate) seen: Row,
    pub(crate) id: u8,
    /// Whether a take came into effect since it was made, another one than itself: then it must never be in effect itself.
    pub(crate) stale: bool,
    /// Whether it has been in effect.
    pub(crate) applied: bool,
    /// The id of the transaction that this renewal settles: made of the same row, by the same worker. 0: none.
    pub(crate) settles: u8,
}

impl Write {
    /// Whether a row shows the transaction that this renewal settles.
    pub(crate) fn shows_what_it_settles(&self, row: Row, lease: usize) -> bool {
        let transaction = Self { id: self.settles, settles: 0, ..*self };
        self.settles != 0 && transaction.build(lease, None).is_some_and(|write| write.is_in_effect(&row.lease(lease)))
    }

    /// The write as the library builds it, unless something is wrong on purpose.
    pub(crate) fn build(&self, lease: usize, mutation: Option<Mutation>) -> Option<LeaseWrite> {
        let (seen, id) = (self.seen.lease(lease), WriteId(self.id.into()));
        let mut write = match self.intent {
            Intent::Take => LeaseWrite::take(&seen, &worker(self.by), id),
            Intent::Renew => LeaseWrite::renew(&seen, id),
            Intent::Checkpoint(finished) => LeaseWrite::checkpoint(&seen, checkpoint(finished), id),
            Intent::Release(finished) => {
                let children = (finished == Some(END) && lease == PARENT).then(|| shard(CHILD));
                LeaseWrite::release(&seen, finished.map(checkpoint), children.into_iter().collect::<BTreeSet<_>>(), id)
            }
            Intent::Request => LeaseWrite::request_handoff(&seen, &worker(self.by))?,
        };
        match (mutation, self.intent) {
            (Some(Mutation::TermsIgnoreTheCounter), Intent::Renew | Intent::Checkpoint(_) | Intent::Release(_))
            | (Some(Mutation::TakesIgnoreTheCounter | Mutation::StartsWhereItLooked), Intent::Take) => write.expected.counter = None,
            (Some(Mutation::CheckpointsMoveBack), Intent::Checkpoint(finished)) => write.checkpoint = Some(checkpoint(finished)),
            _ => {}
        }
        Some(write)
    }
}
