//! Every conditional write of a lease as plain data, and what it does to a row.
//!
//! All that protects a lease is in this file: which row a write expects, and what it makes of it. Adapters only carry it out.
//! Conditions never look at a clock.

use std::collections::BTreeSet;
use std::fmt;
use std::time::Duration;

use kcl_checkpoint::planted::{Bug, is_planted};
use kcl_checkpoint::{Checkpoint, FinishedBeyond, PendingCheckpoint, Timestamp};

use crate::lease::{Lease, ShardId, Stopped, Suspect, Trust, WorkerId};

/// Marks one write of a row, so that its writer recognises it when the answer was lost. Drawn at random, never used twice.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WriteId(pub u64);

impl fmt::Display for WriteId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{:016x}", self.0)
    }
}

impl fmt::Debug for WriteId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, formatter)
    }
}

/// The row that a write expects. A row that differs, or is missing, refuses the write.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Expected {
    /// The counter; `None`: any.
    pub counter: Option<u64>,
    /// The owner, or that there is none.
    pub owner: Option<WorkerId>,
    /// The checkpoint owner, or that there is none.
    pub checkpoint_owner: Option<WorkerId>,
    /// This very stop; `None`: any, or that there is none.
    pub stopped: Option<Stopped>,
}

/// What becomes of `ownerSwitchesSinceCheckpoint`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Switches {
    /// It stays.
    Keep,
    /// One more.
    Increment,
    /// It becomes this number.
    Set(u64),
}

/// What becomes of something that a row may have or not.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Change<T> {
    /// It stays.
    Keep,
    /// The row gets this.
    Set(T),
    /// The row has it no more.
    Remove,
}

impl<T: Clone + PartialEq> Change<T> {
    /// What makes `after` of `before`.
    #[must_use]
    pub fn from_to(before: Option<&T>, after: Option<&T>) -> Self {
        match (before, after) {
            (before, after) if before == after => Self::Keep,
            (_, Some(after)) => Self::Set(after.clone()),
            (_, None) => Self::Remove,
        }
    }

    fn apply(&self, before: Option<&T>) -> Option<T> {
        match self {
            Self::Keep => before.cloned(),
            Self::Set(value) => Some(value.clone()),
            Self::Remove => None,
        }
    }
}

/// Where a shard begins anew.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NewStart {
    /// The checkpoint.
    pub checkpoint: Checkpoint,
    /// What LATEST or AT_TIMESTAMP means.
    pub instant: Option<Timestamp>,
}

impl NewStart {
    /// With the oldest record that the stream keeps.
    pub const TRIM_HORIZON: Self = Self { checkpoint: Checkpoint::TrimHorizon, instant: None };
    /// Nowhere: the shard counts as read to its end.
    pub const SHARD_END: Self = Self { checkpoint: Checkpoint::ShardEnd, instant: None };

    /// With the first record that arrived at this time or later.
    #[must_use]
    pub fn at_timestamp(time: Timestamp) -> Self {
        Self { checkpoint: Checkpoint::AtTimestamp, instant: Some(time) }
    }

    /// All that arrived before is finished, or left out.
    fn finished_before(self) -> Option<Timestamp> {
        self.instant.filter(|_| self.checkpoint == Checkpoint::Latest)
    }

    /// With the first record that arrived after `now`, and with whatever came before it left out.
    #[must_use]
    pub fn latest(now: Timestamp) -> Self {
        Self { checkpoint: Checkpoint::Latest, instant: Some(now) }
    }
}

/// One conditional update of one row. Built by the functions below; carried out by a [`LeaseTable`](crate::table::LeaseTable).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LeaseWrite {
    /// The row.
    pub shard_id: ShardId,
    /// The row as it must be.
    pub expected: Expected,
    /// The owner that the row gets, or none.
    pub owner: Option<WorkerId>,
    /// The checkpoint owner that the row gets, or none.
    pub checkpoint_owner: Option<WorkerId>,
    /// Set with every write that increments the counter. A request for a handoff and a resumption have
    /// none: they leave the counter to the owner.
    pub write_id: Option<WriteId>,
    /// What becomes of the count of owner changes.
    pub switches: Switches,
    /// A new checkpoint.
    pub checkpoint: Option<Checkpoint>,
    /// What becomes of the pending checkpoint.
    pub pending_checkpoint: Change<PendingCheckpoint>,
    /// Child shards to note.
    pub children: BTreeSet<ShardId>,
    /// What becomes of the watermark.
    pub watermark: Change<Timestamp>,
    /// What becomes of the note of records that are finished beyond the checkpoint.
    pub finished_beyond: Change<FinishedBeyond>,
    /// What becomes of the record in work alone.
    pub suspect: Change<Suspect>,
    /// What becomes of the stop.
    pub stopped: Change<Stopped>,
    /// What becomes of the note of how long the owner trusts a renewal.
    pub trust: Change<Trust>,
    /// What becomes of the instant at which reading starts.
    pub initial_timestamp: Change<Timestamp>,
    /// The same, noted only if the row says nothing of it.
    pub initial_timestamp_if_absent: Option<Timestamp>,
    /// When the stream was created, noted only if the row says nothing of it.
    pub stream_created_if_absent: Option<Timestamp>,
}

impl LeaseWrite {
    /// Makes `worker` the owner of a lease that nobody owns, whose owner is dead, or that was handed over to `worker`.
    /// Begins a term: every later write of the row by an older term is refused, since counter and owner have changed.
    #[must_use]
    pub fn take(seen: &Lease, worker: &WorkerId, write_id: WriteId) -> Self {
        // The Java library's rule: a switch if the owner differs, or if a handoff under way ends here.
        let switch = seen.owner.as_ref() != Some(worker) || seen.checkpoint_owner.is_some();
        Self {
            owner: Some(worker.clone()),
            checkpoint_owner: None,
            switches: if switch { Switches::Increment } else { Switches::Keep },
            ..Self::of_term(seen, write_id)
        }
    }

    /// Proves that the owner is alive.
    #[must_use]
    pub fn renew(held: &Lease, write_id: WriteId) -> Self {
        Self::of_term(held, write_id)
    }

    /// Moves the checkpoint, and proves that the owner is alive. Never back: of two that were asked for at once, or one after another that
    /// was not confirmed, the lower may come last.
    ///
    /// A pending checkpoint at or below the new one has served its purpose and is removed. One beyond
    /// it stays: its owner is still between the two phases, and automatic checkpoints of earlier
    /// records must not come between them.
    #[must_use]
    pub fn checkpoint(held: &Lease, checkpoint: Checkpoint, write_id: WriteId) -> Self {
        let checkpoint = if is_planted(Bug::CheckpointGoesBack) { checkpoint } else { checkpoint.max(held.checkpoint) };
        Self {
            checkpoint: Some(checkpoint),
            pending_checkpoint: pending_after(held, checkpoint),
            switches: Switches::Set(0),
            ..Self::of_term(held, write_id)
        }
    }

    /// Notes a prepared checkpoint, in place of an earlier one, and proves that the owner is alive. The
    /// checkpoint and the count of owner changes stay: nothing is finished yet.
    ///
    /// A position that the checkpoint covers already is not noted: the row is then as if the
    /// preparation had come before that checkpoint.
    #[must_use]
    pub fn prepare(held: &Lease, pending: PendingCheckpoint, write_id: WriteId) -> Self {
        let covered = pending.checkpoint <= held.checkpoint;
        let checkpoint = (is_planted(Bug::PreparedIsWritten) && !covered).then_some(pending.checkpoint);
        let pending_checkpoint = if covered { Change::Keep } else { Change::Set(pending) };
        Self { pending_checkpoint, checkpoint, ..Self::of_term(held, write_id) }
    }

    /// Stops the shard beyond this term, or clears its stop, and proves that the owner is alive.
    #[must_use]
    pub fn set_stopped(held: &Lease, stopped: Option<Stopped>, write_id: WriteId) -> Self {
        Self { stopped: stopped.map_or(Change::Remove, Change::Set), ..Self::of_term(held, write_id) }
    }

    /// Clears this very stop of a shard, whoever owns it. Does not end the owner's term, does not touch
    /// the counter: the owner sees it in the answer to its next write.
    ///
    /// `None` if the shard is not stopped. Refused if the lease has changed hands since it was seen;
    /// a later stop is left alone.
    #[must_use]
    pub fn resume(seen: &Lease) -> Option<Self> {
        let stopped = seen.stopped?;
        let base = Self::of_term(seen, WriteId(0));
        Some(Self {
            expected: Expected { counter: None, stopped: Some(stopped), ..base.expected.clone() },
            write_id: None,
            stopped: Change::Remove,
            ..base
        })
    }

    /// Notes that this record is in work alone, before it is: should the process die of it, the next owner knows. With the checkpoint of those before it,
    /// if there is a new one.
    #[must_use]
    pub fn suspect(held: &Lease, suspect: Suspect, checkpoint: Option<Checkpoint>, write_id: WriteId) -> Self {
        let base = match checkpoint {
            Some(checkpoint) => Self::checkpoint(held, checkpoint, write_id),
            None => Self::of_term(held, write_id),
        };
        Self { suspect: Change::Set(suspect), ..base }
    }

    /// Ends the owner's term: hands the lease to its next owner if a handoff is under way, else frees it. With a last checkpoint
    /// and, for a shard that has ended, the children.
    #[must_use]
    pub fn release(held: &Lease, checkpoint: Option<Checkpoint>, children: BTreeSet<ShardId>, write_id: WriteId) -> Self {
        let checkpoint = checkpoint.map(|checkpoint| checkpoint.max(held.checkpoint));
        let next = held.next_owner().cloned();
        let finished = checkpoint.unwrap_or(held.checkpoint).is_shard_end();
        let changed = u64::from(next.is_some() && !finished);
        let pending_checkpoint = checkpoint.map_or(Change::Keep, |checkpoint| pending_after(held, checkpoint));
        Self {
            // A finished lease needs no owner: there is nothing left to hand over.
            owner: next.filter(|_| !finished),
            checkpoint_owner: None,
            checkpoint,
            pending_checkpoint,
            children,
            switches: match (checkpoint, changed) {
                (Some(_), changed) => Switches::Set(changed),
                (None, 0) => Switches::Keep,
                (None, _) => Switches::Increment,
            },
            ..Self::of_term(held, write_id)
        }
    }

    /// Begins the shard elsewhere, forwards or back, for the same owner: what the row noted of how far it was read is void.
    /// A stop stays: whoever moves a shard has not said that its cause is removed.
    #[must_use]
    pub fn restart(held: &Lease, start: NewStart, write_id: WriteId) -> Self {
        Self {
            checkpoint: Some(start.checkpoint),
            pending_checkpoint: Change::Remove,
            switches: Switches::Set(0),
            initial_timestamp: Change::from_to(held.initial_timestamp.as_ref(), start.instant.as_ref()),
            watermark: if is_planted(Bug::SeekKeepsWatermark) {
                Change::Keep
            } else {
                Change::from_to(held.watermark.as_ref(), start.finished_before().as_ref())
            },
            finished_beyond: Change::from_to(held.finished_beyond.as_ref(), None),
            suspect: Change::from_to(held.suspect.as_ref(), None),
            ..Self::of_term(held, write_id)
        }
    }

    /// Begins the shard elsewhere, and ends the term of whoever owns it: every later write of that one is refused.
    ///
    /// `holder` owns the lease from now on and never renews it, so that whoever takes it waits a lease duration from seeing it, that of the old owner if it is
    /// longer: as long as that one may believe in its term. `None` for a shard that counts as read to its end, with its `children`.
    #[must_use]
    pub fn seek(seen: &Lease, holder: Option<&WorkerId>, start: NewStart, children: BTreeSet<ShardId>, write_id: WriteId) -> Self {
        let lease_duration = seen.actual_owner().map_or(Duration::ZERO, |_| seen.trusted_for(Duration::ZERO));
        let trust = holder.map_or(Change::Keep, |holder| Change::Set(Trust::new(holder.clone(), lease_duration)));
        Self { owner: holder.cloned(), checkpoint_owner: None, children, trust, ..Self::restart(seen, start, write_id) }
    }

    /// Asks the living owner to hand the lease over to `worker`. Does not end the owner's term, does not touch the counter.
    /// `None` if the lease has no owner, belongs to `worker`, or is already being handed over.
    #[must_use]
    pub fn request_handoff(seen: &Lease, worker: &WorkerId) -> Option<Self> {
        let owner = seen.owner.as_ref().filter(|owner| *owner != worker && seen.checkpoint_owner.is_none())?;
        Some(Self {
            expected: Expected { counter: None, owner: Some(owner.clone()), checkpoint_owner: None, stopped: None },
            owner: Some(worker.clone()),
            checkpoint_owner: Some(owner.clone()),
            write_id: None,
            ..Self::of_term(seen, WriteId(0))
        })
    }

    /// A write that expects the row exactly as it was last seen and changes nothing but the counter.
    fn of_term(seen: &Lease, write_id: WriteId) -> Self {
        Self {
            shard_id: seen.shard_id.clone(),
            expected: Expected {
                counter: Some(seen.counter),
                owner: seen.owner.clone(),
                checkpoint_owner: seen.checkpoint_owner.clone(),
                stopped: None,
            },
            owner: seen.owner.clone(),
            checkpoint_owner: seen.checkpoint_owner.clone(),
            write_id: Some(write_id),
            switches: Switches::Keep,
            checkpoint: None,
            pending_checkpoint: Change::Keep,
            children: BTreeSet::new(),
            watermark: Change::Keep,
            finished_beyond: Change::Keep,
            suspect: Change::Keep,
            stopped: Change::Keep,
            trust: Change::Keep,
            initial_timestamp: Change::Keep,
            initial_timestamp_if_absent: None,
            stream_created_if_absent: None,
        }
    }

    /// Whether a row shows that this very write is in effect: how a writer whose answer was lost finds out.
    ///
    /// With a write id, the row must carry it together with the counter that the write made: the id alone may have outlived a
    /// later write of a Java worker, which does not know of it. A request for a handoff is recognised by what it asks for, a
    /// resumption by the stop being gone, whoever cleared it.
    #[must_use]
    pub fn is_in_effect(&self, row: &Lease) -> bool {
        match self.write_id {
            Some(_) if is_planted(Bug::OwnWriteNotRecognised) => false,
            Some(id) => row.write_id == Some(id) && self.expected.counter.map(|counter| counter + 1) == Some(row.counter),
            None if self.expected.stopped.is_some() => row.stopped != self.expected.stopped,
            None => row.owner == self.owner && row.checkpoint_owner == self.checkpoint_owner,
        }
    }

    /// What the write makes of a row: the new row, or `None` if the row is not as expected.
    #[must_use]
    pub fn apply(&self, row: &Lease) -> Option<Lease> {
        let expected = (is_planted(Bug::CounterNotChecked) || self.expected.counter.is_none_or(|counter| counter == row.counter))
            && self.expected.owner == row.owner
            && self.expected.checkpoint_owner == row.checkpoint_owner
            && self.expected.stopped.is_none_or(|stopped| row.stopped == Some(stopped));
        expected.then(|| Lease {
            owner: self.owner.clone(),
            checkpoint_owner: self.checkpoint_owner.clone(),
            counter: row.counter + u64::from(self.write_id.is_some()),
            write_id: self.write_id.or(row.write_id),
            owner_switches_since_checkpoint: match self.switches {
                Switches::Keep => row.owner_switches_since_checkpoint,
                Switches::Increment => row.owner_switches_since_checkpoint + 1,
                Switches::Set(count) => count,
            },
            checkpoint: self.checkpoint.unwrap_or(row.checkpoint),
            pending_checkpoint: self.pending_checkpoint.apply(row.pending_checkpoint.as_ref()),
            children: if self.children.is_empty() { row.children.clone() } else { self.children.clone() },
            watermark: self.watermark.apply(row.watermark.as_ref()),
            finished_beyond: self.finished_beyond.apply(row.finished_beyond.as_ref()),
            suspect: self.suspect.apply(row.suspect.as_ref()),
            stopped: self.stopped.apply(row.stopped.as_ref()),
            trust: self.trust.apply(row.trust.as_ref()),
            initial_timestamp: self.initial_timestamp.apply(row.initial_timestamp.as_ref()).or(self.initial_timestamp_if_absent),
            stream_created: row.stream_created.or(self.stream_created_if_absent),
            ..row.clone()
        })
    }
}

/// The pending checkpoint after a write of this checkpoint.
fn pending_after(held: &Lease, checkpoint: Checkpoint) -> Change<PendingCheckpoint> {
    let beyond = held.pending_checkpoint.as_ref().is_some_and(|pending| pending.checkpoint > checkpoint);
    // Removed even if none is known: a row may hold the remains of one.
    if beyond { Change::Keep } else { Change::Remove }
}

#[cfg(test)]
mod tests {
    use kcl_checkpoint::ExtendedSequenceNumber;

    use super::*;
    use crate::lease::StopReason;

    fn worker(name: &str) -> WorkerId {
        name.into()
    }

    fn owned_by(owner: Option<&str>, checkpoint_owner: Option<&str>) -> Lease {
        let mut lease = Lease::new("shardId-000000000000".into(), Checkpoint::TrimHorizon);
        lease.owner = owner.map(worker);
        lease.checkpoint_owner = checkpoint_owner.map(worker);
        lease.counter = 7;
        lease
    }

    fn at(number: u128) -> Checkpoint {
        Checkpoint::At(ExtendedSequenceNumber::whole(number.into()))
    }

    #[test]
    fn a_take_ends_every_older_term() {
        let seen = owned_by(Some("a"), None);
        let taken = LeaseWrite::take(&seen, &worker("b"), WriteId(1)).apply(&seen).unwrap();
        assert_eq!((taken.owner.clone(), taken.counter, taken.owner_switches_since_checkpoint), (Some(worker("b")), 8, 1));
        for late in [
            LeaseWrite::renew(&seen, WriteId(2)),
            LeaseWrite::checkpoint(&seen, at(5), WriteId(3)),
            LeaseWrite::release(&seen, Some(at(5)), BTreeSet::new(), WriteId(4)),
            LeaseWrite::take(&seen, &worker("c"), WriteId(5)),
        ] {
            assert_eq!(late.apply(&taken), None, "{late:?}");
        }
    }

    #[test]
    fn a_row_made_anew_with_the_same_counter_refuses_the_old_owner() {
        let held = owned_by(Some("a"), None);
        let anew = owned_by(Some("b"), None);
        assert_eq!(LeaseWrite::renew(&held, WriteId(1)).apply(&anew), None);
    }

    #[test]
    fn a_handoff_leaves_the_term_to_the_owner_until_it_releases() {
        let held = owned_by(Some("a"), None);
        let asked = LeaseWrite::request_handoff(&held, &worker("b")).unwrap().apply(&held).unwrap();
        assert_eq!((asked.counter, asked.actual_owner(), asked.next_owner()), (7, Some(&worker("a")), Some(&worker("b"))));

        // the owner that has not seen the request is refused, sees it in the answer, and goes on with it in mind
        assert_eq!(LeaseWrite::checkpoint(&held, at(5), WriteId(1)).apply(&asked), None);
        let going_on = LeaseWrite::checkpoint(&asked, at(5), WriteId(2)).apply(&asked).unwrap();
        assert_eq!((going_on.counter, going_on.checkpoint, going_on.actual_owner()), (8, at(5), Some(&worker("a"))));

        let over = LeaseWrite::release(&going_on, Some(at(6)), BTreeSet::new(), WriteId(3)).apply(&going_on).unwrap();
        assert_eq!((over.owner.clone(), over.checkpoint_owner.clone(), over.counter), (Some(worker("b")), None, 9));
        assert_eq!((over.checkpoint, over.owner_switches_since_checkpoint), (at(6), 1));
        assert_eq!(LeaseWrite::renew(&going_on, WriteId(4)).apply(&over), None);
        let begun = LeaseWrite::take(&over, &worker("b"), WriteId(5)).apply(&over).unwrap();
        assert_eq!((begun.counter, begun.owner_switches_since_checkpoint), (10, 1));
    }

    #[test]
    fn a_take_ends_a_handoff_under_way() {
        let held = Lease { owner_switches_since_checkpoint: 2, ..owned_by(Some("b"), Some("a")) };
        for (taker, switches) in [("b", 3), ("c", 3)] {
            let taken = LeaseWrite::take(&held, &worker(taker), WriteId(1)).apply(&held).unwrap();
            assert_eq!((taken.actual_owner(), taken.next_owner()), (Some(&worker(taker)), None));
            assert_eq!(taken.owner_switches_since_checkpoint, switches, "{taker}");
        }
    }

    #[test]
    fn a_handoff_can_be_asked_for_however_often_the_owner_has_renewed_and_of_no_later_owner() {
        let seen = owned_by(Some("a"), None);
        let request = LeaseWrite::request_handoff(&seen, &worker("b")).unwrap();
        let renewed = LeaseWrite::renew(&seen, WriteId(1)).apply(&seen).unwrap();
        for (row, is_asked) in [
            (seen, true),
            (renewed.clone(), true),
            (Lease { owner: Some(worker("c")), ..renewed.clone() }, false),
            (owned_by(Some("c"), Some("a")), false),
            (Lease { owner: None, ..renewed }, false),
        ] {
            let asked = request.apply(&row);
            assert_eq!(asked.is_some(), is_asked, "{row:?}");
            if let Some(asked) = asked {
                assert_eq!(asked, Lease { owner: Some(worker("b")), checkpoint_owner: Some(worker("a")), ..row });
            }
        }
    }

    #[test]
    fn a_request_for_a_handoff_is_recognised_by_what_it_asks_for() {
        let seen = owned_by(Some("a"), None);
        let request = LeaseWrite::request_handoff(&seen, &worker("b")).unwrap();
        for (owner, checkpoint_owner, in_effect) in [
            (Some("b"), Some("a"), true),
            (Some("a"), None, false),
            (Some("c"), Some("a"), false), // another one was faster
            (Some("b"), Some("c"), false), // of a later owner
            (Some("b"), None, false),
            (None, None, false),
        ] {
            let row = Lease { counter: 9, ..owned_by(owner, checkpoint_owner) };
            assert_eq!(request.is_in_effect(&row), in_effect, "{owner:?} {checkpoint_owner:?}");
        }
    }

    #[test]
    fn a_handoff_is_asked_of_a_living_stranger_only() {
        for (lease, asker) in [
            (owned_by(None, None), "b"),
            (owned_by(Some("b"), None), "b"),
            (owned_by(Some("b"), Some("a")), "c"),
            (owned_by(Some("b"), Some("a")), "b"),
        ] {
            assert_eq!(LeaseWrite::request_handoff(&lease, &worker(asker)), None, "{lease:?}");
        }
    }

    #[test]
    fn a_release_frees_the_lease_and_a_finished_one_is_handed_to_nobody() {
        let held = owned_by(Some("a"), None);
        let free = LeaseWrite::release(&held, None, BTreeSet::new(), WriteId(1)).apply(&held).unwrap();
        assert_eq!((free.owner, free.counter, free.checkpoint), (None, 8, Checkpoint::TrimHorizon));

        let handed = owned_by(Some("b"), Some("a"));
        let children = BTreeSet::from(["shardId-000000000001".into()]);
        let ended = LeaseWrite::release(&handed, Some(Checkpoint::ShardEnd), children.clone(), WriteId(1)).apply(&handed).unwrap();
        assert_eq!((ended.owner, ended.checkpoint_owner, ended.checkpoint), (None, None, Checkpoint::ShardEnd));
        assert_eq!((ended.children, ended.owner_switches_since_checkpoint), (children, 0));
    }

    #[test]
    fn a_checkpoint_clears_the_count_of_owner_changes() {
        let mut held = owned_by(Some("a"), None);
        held.owner_switches_since_checkpoint = 3;
        assert_eq!(LeaseWrite::renew(&held, WriteId(1)).apply(&held).unwrap().owner_switches_since_checkpoint, 3);
        assert_eq!(LeaseWrite::checkpoint(&held, at(1), WriteId(1)).apply(&held).unwrap().owner_switches_since_checkpoint, 0);
    }

    #[test]
    fn a_record_in_work_alone_stays_noted() {
        let held = owned_by(Some("a"), None);
        let suspect = Suspect { record: ExtendedSequenceNumber::whole(5.into()), begun: 2 };
        let noted = LeaseWrite::suspect(&held, suspect, None, WriteId(1)).apply(&held).unwrap();
        let with_checkpoint = LeaseWrite::suspect(&held, suspect, Some(at(4)), WriteId(1)).apply(&held).unwrap();
        assert_eq!((with_checkpoint.checkpoint, with_checkpoint.suspect), (at(4), Some(suspect)));
        assert_eq!((noted.suspect, noted.counter), (Some(suspect), 8));
        let taken = LeaseWrite::take(&noted, &worker("b"), WriteId(2)).apply(&noted).unwrap();
        assert_eq!(taken.suspect, Some(suspect), "whoever takes the lease from the dead knows");
        assert_eq!(LeaseWrite::renew(&noted, WriteId(2)).apply(&noted).unwrap().suspect, Some(suspect));
        assert_eq!(LeaseWrite::checkpoint(&noted, at(5), WriteId(2)).apply(&noted).unwrap().suspect, Some(suspect));
        let cleared = LeaseWrite { suspect: Change::Remove, ..LeaseWrite::renew(&noted, WriteId(2)) };
        assert_eq!(cleared.apply(&noted).unwrap().suspect, None);
    }

    fn finished_beyond() -> FinishedBeyond {
        let record = |number: u128| ExtendedSequenceNumber::whole(number.into());
        FinishedBeyond { base: None, until: record(9), open: vec![record(7)] }
    }

    #[test]
    fn a_write_changes_what_it_names_and_keeps_the_rest() {
        let (time, later) = (Timestamp::from_millis(5), Timestamp::from_millis(6));
        let bare = owned_by(Some("a"), None);
        let noted = Lease {
            watermark: Some(time),
            finished_beyond: Some(finished_beyond()),
            initial_timestamp: Some(time),
            stream_created: Some(time),
            ..bare.clone()
        };
        let renewal = |row| LeaseWrite::renew(row, WriteId(1));
        let renewed = |row: &Lease| Lease { counter: 8, write_id: Some(WriteId(1)), ..row.clone() };
        let if_absent =
            |row| LeaseWrite { initial_timestamp_if_absent: Some(later), stream_created_if_absent: Some(later), ..renewal(row) };
        for (row, write, expected) in [
            (&noted, renewal(&noted), renewed(&noted)),
            (&noted, if_absent(&noted), renewed(&noted)),
            (&bare, if_absent(&bare), Lease { initial_timestamp: Some(later), stream_created: Some(later), ..renewed(&bare) }),
            (
                &bare,
                LeaseWrite { finished_beyond: Change::Set(finished_beyond()), watermark: Change::Set(time), ..renewal(&bare) },
                Lease { finished_beyond: Some(finished_beyond()), watermark: Some(time), ..renewed(&bare) },
            ),
            (
                &noted,
                LeaseWrite { finished_beyond: Change::Remove, watermark: Change::Remove, ..renewal(&noted) },
                Lease { finished_beyond: None, watermark: None, ..renewed(&noted) },
            ),
        ] {
            assert_eq!(write.apply(row), Some(expected), "{write:?}");
        }
    }

    #[test]
    fn a_checkpoint_never_moves_back() {
        let held = Lease { checkpoint: at(5), ..owned_by(Some("a"), None) };
        for (asked, written) in [(at(4), at(5)), (at(5), at(5)), (at(6), at(6)), (Checkpoint::ShardEnd, Checkpoint::ShardEnd)] {
            for write in
                [LeaseWrite::checkpoint(&held, asked, WriteId(1)), LeaseWrite::release(&held, Some(asked), BTreeSet::new(), WriteId(1))]
            {
                assert_eq!(write.apply(&held).unwrap().checkpoint, written, "{asked} after {}", held.checkpoint);
            }
        }
    }

    #[test]
    fn a_seek_ends_the_owners_term_and_voids_what_was_noted() {
        let time = Timestamp::from_millis(9);
        let held = Lease {
            checkpoint: at(5),
            owner_switches_since_checkpoint: 3,
            watermark: Some(time),
            suspect: Some(Suspect { record: ExtendedSequenceNumber::whole(6.into()), begun: 2 }),
            finished_beyond: Some(finished_beyond()),
            trust: Some(Trust::new(worker("a"), Duration::from_secs(60))),
            ..owned_by(Some("b"), Some("a"))
        };
        let (seek, start) = (worker("seek"), NewStart::at_timestamp(time));
        let sought = LeaseWrite::seek(&held, Some(&seek), start, BTreeSet::new(), WriteId(1)).apply(&held).unwrap();
        let expected = Lease {
            checkpoint: Checkpoint::AtTimestamp,
            initial_timestamp: Some(time),
            counter: 8,
            write_id: Some(WriteId(1)),
            // Takers wait as long as the old owner may believe in its term.
            trust: Some(Trust::new(seek.clone(), Duration::from_secs(60))),
            ..owned_by(Some("seek"), None)
        };
        assert_eq!(sought, expected);
        for late in [LeaseWrite::checkpoint(&held, at(6), WriteId(2)), LeaseWrite::release(&held, Some(at(6)), BTreeSet::new(), WriteId(2))]
        {
            assert_eq!(late.apply(&sought), None);
        }
        let again = LeaseWrite::seek(&sought, None, NewStart::TRIM_HORIZON, BTreeSet::new(), WriteId(3)).apply(&sought).unwrap();
        assert_eq!((again.owner, again.checkpoint, again.initial_timestamp), (None, Checkpoint::TrimHorizon, None));
    }

    #[test]
    fn a_shard_that_a_seek_counts_as_read_notes_its_children() {
        let held = owned_by(Some("a"), None);
        let children = BTreeSet::from(["shardId-000000000001".into(), "shardId-000000000002".into()]);
        let read = LeaseWrite::seek(&held, None, NewStart::SHARD_END, children.clone(), WriteId(1)).apply(&held).unwrap();
        assert_eq!((read.owner, read.checkpoint, read.children), (None, Checkpoint::ShardEnd, children));
    }

    #[test]
    fn an_owner_begins_its_shard_elsewhere_and_stays_its_owner() {
        let held = Lease { checkpoint: at(5), ..owned_by(Some("b"), Some("a")) };
        let now = Timestamp::from_millis(9);
        let begun = LeaseWrite::restart(&held, NewStart::latest(now), WriteId(1)).apply(&held).unwrap();
        assert_eq!((begun.checkpoint, begun.initial_timestamp, begun.watermark), (Checkpoint::Latest, Some(now), Some(now)));
        assert_eq!((begun.actual_owner(), begun.next_owner()), (Some(&worker("a")), Some(&worker("b"))));
    }

    #[test]
    fn a_write_whose_answer_was_lost_is_recognised_and_no_other_one_is() {
        let held = owned_by(Some("a"), None);
        let write = LeaseWrite::renew(&held, WriteId(1));
        let after = write.apply(&held).unwrap();
        assert!(write.is_in_effect(&after));
        assert!(!write.is_in_effect(&held));
        assert!(!LeaseWrite::renew(&held, WriteId(2)).is_in_effect(&after));
        // a request for a handoff came between: still recognised
        let asked = LeaseWrite::request_handoff(&after, &worker("b")).unwrap().apply(&after).unwrap();
        assert!(write.is_in_effect(&asked));
        // a Java worker wrote the row since: it leaves our id but moves the counter
        assert!(!write.is_in_effect(&Lease { counter: after.counter + 1, ..after }));
    }

    fn pending(number: u128) -> PendingCheckpoint {
        PendingCheckpoint { checkpoint: at(number), state: Some(bytes::Bytes::from_static(b"state")) }
    }

    #[test]
    fn a_pending_checkpoint_lasts_until_it_is_covered() {
        let held = Lease { checkpoint: at(5), owner_switches_since_checkpoint: 3, ..owned_by(Some("b"), Some("a")) };
        let prepared = LeaseWrite::prepare(&held, pending(9), WriteId(1)).apply(&held).unwrap();
        let expected = Lease { pending_checkpoint: Some(pending(9)), counter: 8, write_id: Some(WriteId(1)), ..held.clone() };
        assert_eq!(prepared, expected, "neither the checkpoint nor the count of owner changes moves");

        let (id, none) = (WriteId(2), BTreeSet::new);
        let free = Lease { checkpoint_owner: None, ..prepared.clone() };
        let suspect = Suspect { record: ExtendedSequenceNumber::whole(7.into()), begun: 1 };
        let stop = Stopped { reason: StopReason::SafetyValve, since: Timestamp::from_millis(1) };
        let later = PendingCheckpoint { checkpoint: at(12), state: None };
        let cases = [
            ("take", &prepared, LeaseWrite::take(&prepared, &worker("c"), id), Some(pending(9))),
            ("renew", &prepared, LeaseWrite::renew(&prepared, id), Some(pending(9))),
            ("request", &free, LeaseWrite::request_handoff(&free, &worker("c")).unwrap(), Some(pending(9))),
            ("release", &prepared, LeaseWrite::release(&prepared, None, none(), id), Some(pending(9))),
            ("stop", &prepared, LeaseWrite::set_stopped(&prepared, Some(stop), id), Some(pending(9))),
            ("suspect", &prepared, LeaseWrite::suspect(&prepared, suspect, None, id), Some(pending(9))),
            ("suspect and checkpoint below", &prepared, LeaseWrite::suspect(&prepared, suspect, Some(at(6)), id), Some(pending(9))),
            ("checkpoint below", &prepared, LeaseWrite::checkpoint(&prepared, at(8), id), Some(pending(9))),
            ("release below", &prepared, LeaseWrite::release(&prepared, Some(at(8)), none(), id), Some(pending(9))),
            ("another one", &prepared, LeaseWrite::prepare(&prepared, later.clone(), id), Some(later)),
            ("another one below", &prepared, LeaseWrite::prepare(&prepared, pending(7), id), Some(pending(7))),
            ("one that is covered", &prepared, LeaseWrite::prepare(&prepared, pending(5), id), Some(pending(9))),
            ("checkpoint", &prepared, LeaseWrite::checkpoint(&prepared, at(9), id), None),
            ("checkpoint beyond", &prepared, LeaseWrite::checkpoint(&prepared, at(10), id), None),
            ("suspect and checkpoint", &prepared, LeaseWrite::suspect(&prepared, suspect, Some(at(9)), id), None),
            ("release and checkpoint", &prepared, LeaseWrite::release(&prepared, Some(at(9)), none(), id), None),
            ("end", &prepared, LeaseWrite::release(&prepared, Some(Checkpoint::ShardEnd), none(), id), None),
            ("begin elsewhere", &prepared, LeaseWrite::restart(&prepared, NewStart::TRIM_HORIZON, id), None),
            ("seek", &prepared, LeaseWrite::seek(&prepared, None, NewStart::TRIM_HORIZON, none(), id), None),
        ];
        for (name, row, write, expected) in cases {
            assert_eq!(write.apply(row).unwrap().pending_checkpoint, expected, "{name}");
        }
    }

    #[test]
    fn a_stop_outlives_every_write_but_those_that_clear_it() {
        let held = Lease { checkpoint: at(5), ..owned_by(Some("b"), Some("a")) };
        let stop = |millis| Stopped { reason: StopReason::SafetyValve, since: Timestamp::from_millis(millis) };
        let stopped = LeaseWrite::set_stopped(&held, Some(stop(1)), WriteId(1)).apply(&held).unwrap();
        assert_eq!(stopped, Lease { stopped: Some(stop(1)), counter: 8, write_id: Some(WriteId(1)), ..held.clone() });

        let (id, none) = (WriteId(2), BTreeSet::new);
        let free = Lease { checkpoint_owner: None, ..stopped.clone() };
        for (row, write, expected) in [
            (&stopped, LeaseWrite::take(&stopped, &worker("c"), id), Some(stop(1))),
            (&stopped, LeaseWrite::renew(&stopped, id), Some(stop(1))),
            (&stopped, LeaseWrite::checkpoint(&stopped, at(6), id), Some(stop(1))),
            (&stopped, LeaseWrite::prepare(&stopped, pending(6), id), Some(stop(1))),
            (&stopped, LeaseWrite::release(&stopped, Some(at(6)), none(), id), Some(stop(1))),
            (&free, LeaseWrite::request_handoff(&free, &worker("c")).unwrap(), Some(stop(1))),
            (&stopped, LeaseWrite::restart(&stopped, NewStart::TRIM_HORIZON, id), Some(stop(1))),
            (&stopped, LeaseWrite::seek(&stopped, None, NewStart::TRIM_HORIZON, none(), id), Some(stop(1))),
            (&stopped, LeaseWrite::set_stopped(&stopped, Some(stop(2)), id), Some(stop(2))),
            (&stopped, LeaseWrite::set_stopped(&stopped, None, id), None),
            (&stopped, LeaseWrite::resume(&stopped).unwrap(), None),
        ] {
            assert_eq!(write.apply(row).unwrap().stopped, expected, "{write:?}");
        }
    }

    #[test]
    fn a_resumption_from_outside_clears_the_stop_that_was_seen_and_nothing_else() {
        let stop = |millis| Some(Stopped { reason: StopReason::Processor, since: Timestamp::from_millis(millis) });
        let held = Lease { stopped: stop(1), pending_checkpoint: Some(pending(9)), ..owned_by(Some("b"), Some("a")) };
        let resume = LeaseWrite::resume(&held).unwrap();
        assert_eq!(resume.apply(&held), Some(Lease { stopped: None, ..held.clone() }));
        assert_eq!(LeaseWrite::resume(&Lease { stopped: None, ..held.clone() }), None);
        assert!(!resume.is_in_effect(&held), "the stop is still there");

        // The owner's writes, made before or after it, are not refused, and do not bring the stop back.
        let resumed = resume.apply(&held).unwrap();
        for write in [LeaseWrite::renew(&held, WriteId(1)), LeaseWrite::checkpoint(&held, at(6), WriteId(1))] {
            let after = write.apply(&resumed).unwrap();
            assert_eq!((after.counter, after.stopped), (8, None));
            assert!(resume.is_in_effect(&after));
        }
        // However often the owner wrote, it is still the same stop; a later one is another.
        assert!(resume.apply(&Lease { counter: 99, ..held.clone() }).is_some());
        let later = Lease { stopped: stop(2), ..held.clone() };
        assert_eq!(resume.apply(&later), None);
        assert!(resume.is_in_effect(&later), "the stop that was seen is gone");
        // A lease that changed hands is looked at again.
        let moved = Lease { owner: Some(worker("c")), ..held };
        assert_eq!(resume.apply(&moved), None);
        assert!(!resume.is_in_effect(&moved));
        assert!(resume.is_in_effect(&Lease { stopped: None, ..moved }), "whoever cleared it");
    }
}
