//! A state: the table, the workers, writes that are still on their way, and what an omniscient observer notes.

use crate::row::{PARENT, Row, Start, Write};

/// The table's answer to a write, on its way to the writer.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(crate) enum Answer {
    /// In effect; `again`: recognised as in effect already.
    Applied { row: Row, again: bool },
    /// Not in effect, since the transaction that it settles is.
    Settled(Row),
    /// Not in effect; the row to go on with, if the term is not lost.
    Refused(Option<Row>),
}

/// A write that is repeated until its answer is there.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(crate) struct Call {
    pub(crate) write: Write,
    /// Ticks since it was first sent.
    pub(crate) age: u8,
    /// Ticks since the transaction was first sent that it settles.
    pub(crate) settled_age: u8,
    pub(crate) answer: Option<Answer>,
}

/// A keeper and its consumer.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(crate) struct Term {
    pub(crate) held: Row,
    /// Ticks since the last proof of life was first sent.
    pub(crate) age: u8,
    /// Records that are finished.
    pub(crate) finished: u8,
    /// Whether a record is in work.
    pub(crate) in_work: bool,
    /// Whether the request for a handoff was noticed.
    pub(crate) asked: bool,
    /// Whether delivery is over: the lease is being let go.
    pub(crate) leaving: bool,
    /// Whether another take came into effect: the term is over, and does not know it.
    pub(crate) stale: bool,
    pub(crate) call: Option<Call>,
}

/// What a worker has of a lease.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(crate) enum Hold {
    Nothing,
    Taking(Call),
    Term(Term),
}

impl Hold {
    pub(crate) fn call(&self) -> Option<&Call> {
        match self {
            Self::Nothing => None,
            Self::Taking(call) => Some(call),
            Self::Term(term) => term.call.as_ref(),
        }
    }

    pub(crate) fn call_mut(&mut self) -> Option<&mut Call> {
        match self {
            Self::Nothing => None,
            Self::Taking(call) => Some(call),
            Self::Term(term) => term.call.as_mut(),
        }
    }

    pub(crate) fn term(&self) -> Option<&Term> {
        match self {
            Self::Term(term) => Some(term),
            _ => None,
        }
    }
}

/// A running worker.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(crate) struct Worker {
    pub(crate) holds: [Hold; 2],
    /// For how many ticks each row has been seen unmoved.
    pub(crate) unmoved: [Option<u8>; 2],
}

impl Worker {
    pub(crate) const NEW: Self = Self { holds: [Hold::Nothing; 2], unmoved: [None; 2] };
}

/// A copy of a write that is still on its way, whatever its sender does.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(crate) struct Late {
    pub(crate) lease: usize,
    pub(crate) write: Write,
}

/// What must never happen in a step.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Breach {
    /// A write came into effect though a take did since it was made.
    Unfenced = 1,
    /// A checkpoint moved back.
    MovedBack = 2,
    /// A term began elsewhere than at the checkpoint.
    StartedElsewhere = 4,
    /// A child's record was delivered before the parent's last was finished.
    ChildFirst = 8,
    /// A worker gave up what the table says is its own.
    GivenUp = 16,
    /// A shard is read by nobody, and will not be.
    Hole = 32,
    /// A lease was deleted before its children had begun.
    DeletedEarly = 64,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(crate) struct State {
    pub(crate) rows: [Option<Row>; 2],
    pub(crate) workers: Vec<Worker>,
    pub(crate) late: Vec<Late>,
    /// Crashes that may still happen.
    pub(crate) crashes: u8,
    /// Copies that may still be late.
    pub(crate) delays: u8,
    /// How many records of each shard were finished by somebody, without a gap.
    pub(crate) acknowledged: [u8; 2],
    /// All breaches so far.
    pub(crate) breaches: u8,
}

impl State {
    pub(crate) fn note(&mut self, breach: Breach) {
        self.breaches |= breach as u8;
    }

    pub(crate) fn has(&self, breach: Breach) -> bool {
        self.breaches & breach as u8 != 0
    }

    /// All calls and late copies for a lease.
    pub(crate) fn writes(&self, lease: usize) -> impl Iterator<Item = &Write> {
        let calls = self.workers.iter().filter_map(move |worker| worker.holds[lease].call()).map(|call| &call.write);
        calls.chain(self.late.iter().filter(move |late| late.lease == lease).map(|late| &late.write))
    }

    pub(crate) fn for_each_write(&mut self, lease: usize, mut change: impl FnMut(&mut Write)) {
        self.workers.iter_mut().filter_map(|worker| worker.holds[lease].call_mut()).for_each(|call| change(&mut call.write));
        self.late.iter_mut().filter(|late| late.lease == lease).for_each(|late| change(&mut late.write));
    }

    /// All that anybody knows of a row.
    pub(crate) fn for_each_known(&mut self, lease: usize, mut change: impl FnMut(&mut Row)) {
        for worker in &mut self.workers {
            if let Hold::Term(term) = &mut worker.holds[lease] {
                change(&mut term.held);
            }
            let Some(call) = worker.holds[lease].call_mut() else { continue };
            change(&mut call.write.seen);
            if let Some(Answer::Applied { row, .. } | Answer::Settled(row) | Answer::Refused(Some(row))) = &mut call.answer {
                change(row);
            }
        }
        self.late.iter_mut().filter(|late| late.lease == lease).for_each(|late| change(&mut late.write.seen));
    }

    /// A write id that no other write of the lease has.
    pub(crate) fn fresh_id(&self, lease: usize) -> u8 {
        let row = self.rows[lease].map_or(0, |row| row.write_id);
        self.writes(lease).map(|write| write.id.max(write.settles)).max().unwrap_or(0).max(row) + 1
    }

    /// Whether the parent is read to its end, whether or not it still has a lease.
    pub(crate) fn parent_is_over(&self) -> bool {
        self.rows[PARENT].is_none_or(|row| row.checkpoint == crate::row::END)
    }

    /// Whether the table, a worker's knowledge or a late write names this start.
    pub(crate) fn names(&self, start: Start) -> bool {
        let mut copy = self.clone();
        let mut named = copy.late.iter().any(|late| late.write.by == start);
        let mut look = |row: &mut Row| named |= [row.owner, row.checkpoint_owner].contains(&Some(start));
        for lease in 0..copy.rows.len() {
            copy.rows[lease].iter_mut().for_each(&mut look);
            copy.for_each_known(lease, &mut look);
        }
        named
    }

    /// Gives a start another name, wherever it is named.
    pub(crate) fn rename(&mut self, new: impl Fn(Start) -> Start) {
        let rename = |row: &mut Row| {
            row.owner = row.owner.map(&new);
            row.checkpoint_owner = row.checkpoint_owner.map(&new);
        };
        for lease in 0..self.rows.len() {
            self.rows[lease].iter_mut().for_each(rename);
            self.for_each_known(lease, rename);
            self.for_each_write(lease, |write| write.by = new(write.by));
        }
    }
}
