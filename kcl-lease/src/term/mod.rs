//! A term: one worker's hold on one lease, from its take to its end.
//!
//! A term has two halves. The [`Term`] is held by whoever processes the shard: it tells whether the hold is still valid, carries
//! the fencing token, and passes on checkpoints and the release. The [`TermKeeper`] is the **one task that writes the
//! row**: renewals, checkpoints, transactions and the release stand in one queue, so that they can never race each other for the counter.
//!
//! Validity is stamped before a write is sent: the write can't have been applied earlier, so every peer that waits a lease duration
//! from seeing it waits longer than this worker believes in it. When the table can't be reached the validity runs out and the term is
//! *suspended*, not ended: a later write that succeeds proves that nobody took the lease, and the term goes on.

mod keeper;
mod transact;
mod vanished;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use kcl_checkpoint::planted::{Bug, is_planted};
use kcl_checkpoint::{Checkpoint, CheckpointWriteError, CheckpointWriter, FinishedBeyond, PendingCheckpoint, Timestamp};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;

pub use self::keeper::{KeeperOrder, TermKeeper, after_refusal};
pub use self::transact::TransactError;
use self::transact::Transaction;
pub use self::vanished::Vanished;
use crate::clock::Clock;
use crate::entropy::Entropy;
use crate::lease::{Lease, ShardId, Stopped, Suspect, Trust, WorkerId};
use crate::outages::OutageLog;
use crate::table::{LeaseTable, TableError, WriteOutcome};
use crate::write::{Change, LeaseWrite, NewStart, WriteId};

/// How long things may take in the life of a lease. All follows from two settings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LeaseTiming {
    /// How long a lease is valid after the last proof of life. A dead worker's shards are taken after this time; a pause
    /// longer than this may lead to duplicates.
    pub lease_duration: Duration,
    /// How long an owner that was asked for a handoff may go on with the records in work before it lets go.
    pub handoff_timeout: Duration,
}

impl LeaseTiming {
    /// Time between two proofs of life: a third of the duration, so that two may fail.
    #[must_use]
    pub fn renewal_interval(&self) -> Duration {
        self.lease_duration / 3
    }

    /// How much earlier than its peers the owner stops believing in its lease: covers clocks that run at different rates
    /// (0.2 % each) and the step from the check to the delivery.
    #[must_use]
    pub fn guard(&self) -> Duration {
        self.lease_duration / 50
    }

    /// How long one call to the lease table may take: well below the time between two renewals.
    #[must_use]
    pub fn call_timeout(&self) -> Duration {
        (self.lease_duration / 5).min(Duration::from_secs(2))
    }
}

/// What every term of a worker needs.
#[derive(Clone, Debug)]
pub struct TermContext {
    /// The lease table.
    pub table: Arc<dyn LeaseTable>,
    /// The time.
    pub clock: Arc<dyn Clock>,
    /// Write ids and jitter.
    pub entropy: Entropy,
    /// This worker.
    pub worker: WorkerId,
    /// Durations.
    pub timing: LeaseTiming,
    /// When the stream was created, to be noted in rows that do not say.
    pub stream_created: Option<Timestamp>,
    /// The account of failed calls, shared by all terms of the worker.
    pub outages: OutageLog,
    /// Told by all terms of the worker when leases vanish.
    pub vanished: Vanished,
}

impl TermContext {
    fn write_id(&self) -> WriteId {
        WriteId(self.entropy.u64())
    }

    /// Notes a call to the table that failed for this shard and is repeated.
    fn failed(&self, shard: &ShardId, error: &TableError) {
        self.outages.failed(error.cause(), shard.as_str(), self.clock.boot_time(), error);
    }

    /// Notes a call to the table that was answered for this shard.
    fn answered(&self, shard: &ShardId) {
        self.outages.succeeded(TableError::SERVICE, shard.as_str(), self.clock.boot_time());
    }
}

/// Why a term is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TermEnd {
    /// This worker let go of the lease: freed it, handed it over, or finished the shard.
    Released,
    /// Another worker took the lease, or its row is gone.
    Lost,
    /// The lease table itself is gone, or refuses this program for good.
    TableGone,
}

/// How a term stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TermStatus {
    /// Held.
    Held,
    /// Held, and another worker has asked for it: finish what is in work and release.
    HandoffRequested,
    /// Over: no delivery, no checkpoint.
    Ended(TermEnd),
}

/// What the keeper tells the holder.
#[derive(Clone, Debug)]
struct View {
    status: TermStatus,
    /// The time at which the lease is let go, if another worker has asked for it.
    handoff_by: Option<Instant>,
    /// Boot time before which the hold is certain.
    valid_until: Duration,
    /// The stop that the row shows.
    stopped: Option<Stopped>,
    /// The checkpoint that the row shows.
    checkpoint: Checkpoint,
    /// The pending checkpoint that the row shows.
    pending_checkpoint: Option<PendingCheckpoint>,
}

/// What the holder asks of the keeper.
enum Command {
    Checkpoint { checkpoint: Checkpoint, reply: oneshot::Sender<Result<(), CheckpointWriteError>> },
    Prepare { pending: PendingCheckpoint, reply: oneshot::Sender<Result<(), CheckpointWriteError>> },
    SetStopped { stopped: Option<Stopped>, reply: oneshot::Sender<Result<(), CheckpointWriteError>> },
    Suspect { suspect: Suspect, checkpoint: Option<Checkpoint>, reply: oneshot::Sender<Result<(), CheckpointWriteError>> },
    Restart { start: NewStart, reply: oneshot::Sender<Result<(), CheckpointWriteError>> },
    Release { checkpoint: Option<Checkpoint>, children: BTreeSet<ShardId>, reply: oneshot::Sender<Result<(), CheckpointWriteError>> },
    Transact(Transaction),
    Settle(oneshot::Sender<Checkpoint>),
}

/// What the holder wants written along with whatever is written next.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Notes {
    watermark: Option<Timestamp>,
    finished_beyond: Option<FinishedBeyond>,
    /// Records go in batches: a note of one in work alone is removed.
    carefree: bool,
    /// The record in work alone came back: what a release notes of it.
    given_back: Option<Suspect>,
}

/// The holder's half of a term. Clones share it; when the last one is dropped, the keeper frees the
/// lease (unless its worker has ordered [`KeeperOrder::Stop`]).
#[derive(Clone, Debug)]
pub struct Term {
    taken: Arc<Lease>,
    from_the_dead: bool,
    clock: Arc<dyn Clock>,
    lease_duration: Duration,
    view: watch::Receiver<View>,
    commands: mpsc::Sender<Command>,
    notes: watch::Sender<Notes>,
}

/// The answer to an attempt to take a lease.
#[derive(Debug)]
#[must_use = "the keeper must be run, or the lease expires"]
pub enum Acquired {
    /// The lease is this worker's. The keeper must be run as a task of its own for as long as the term lasts.
    Yes(Term, Box<TermKeeper>),
    /// Somebody else was faster, or the row has changed. The row as it is, if there is one.
    No(Option<Box<Lease>>),
}

/// Takes a lease that is free, expired, or handed over to this worker, as `seen` shows it.
///
/// # Errors
/// Only those of [`TableError::is_fatal`]; others are retried with the identical write until the answer is definite.
///
/// # Cancel safety
/// Dropping the future may leave the row owned by this worker without a term. Such an orphan is seen at the next look at the table
/// and taken again.
pub async fn acquire(context: &TermContext, seen: &Lease) -> Result<Acquired, TableError> {
    let mut write = LeaseWrite::take(seen, &context.worker, context.write_id());
    write.stream_created_if_absent = context.stream_created;
    let trust = Trust::new(context.worker.clone(), context.timing.lease_duration);
    if seen.trust.as_ref() != Some(&trust) && !is_planted(Bug::TrustNotNoted) {
        write.trust = Change::Set(trust);
    }
    if seen.checkpoint == Checkpoint::Latest {
        // A row of the Java library, or of a first sync: from now on LATEST means this instant, also after a crash.
        write.initial_timestamp_if_absent = Some(context.clock.wall_time());
    }
    // The write can't be applied before this moment, whichever of its repetitions is.
    let sent = context.clock.boot_time();
    Ok(match keeper::carry_out(context, &write).await? {
        WriteOutcome::Refused(row) => Acquired::No(row),
        WriteOutcome::Applied(row) => {
            // A lease that was let go has no owner, and one that was handed over has this one. One that was asked for, and not handed over, still
            // is the other's.
            let from_the_dead = seen.actual_owner().is_some_and(|owner| *owner != context.worker);
            let (term, keeper) = begin(context, *row, sent, from_the_dead);
            Acquired::Yes(term, Box::new(keeper))
        }
    })
}

fn begin(context: &TermContext, row: Lease, sent: Duration, from_the_dead: bool) -> (Term, TermKeeper) {
    let valid_until = sent + context.timing.lease_duration - context.timing.guard();
    let (view_sender, view) = watch::channel(View {
        status: TermStatus::Held,
        handoff_by: None,
        valid_until,
        stopped: row.stopped,
        checkpoint: row.checkpoint,
        pending_checkpoint: row.pending_checkpoint.clone(),
    });
    // One processor checkpoints one thing at a time; the bound only stops a flood of calls that timed out.
    let (commands, command_receiver) = mpsc::channel(16);
    // What is noted already stays, until the holder says otherwise.
    let notes = watch::Sender::new(Notes { watermark: None, finished_beyond: row.finished_beyond.clone(), ..Notes::default() });
    let term = Term {
        taken: Arc::new(row.clone()),
        from_the_dead,
        clock: Arc::clone(&context.clock),
        lease_duration: context.timing.lease_duration,
        view,
        commands,
        notes: notes.clone(),
    };
    let age = context.clock.boot_time().saturating_sub(sent);
    (term, TermKeeper::new(context.clone(), row, view_sender, command_receiver, notes.subscribe(), from_the_dead, age))
}

impl Term {
    /// The row as the take returned it: reading starts at its checkpoint.
    #[must_use]
    pub fn taken(&self) -> &Lease {
        &self.taken
    }

    /// Whether the lease was taken from an owner that had not let go of it: one that has died, or could not prove that it lives.
    #[must_use]
    pub fn is_from_the_dead(&self) -> bool {
        self.from_the_dead
    }

    /// Grows with every term of the shard, whoever holds it: a sink that refuses smaller tokens than it has seen is safe from a
    /// worker that was paused beyond its term.
    #[must_use]
    pub fn fencing_token(&self) -> u64 {
        self.taken.counter
    }

    /// Whether records may be delivered and checkpointed now.
    #[must_use]
    pub fn is_valid(&self) -> bool {
        !matches!(self.status(), TermStatus::Ended(_)) && self.clock.boot_time() < self.view.borrow().valid_until
    }

    /// The time for which records may still be delivered and checkpointed if the lease is not
    /// renewed meanwhile; zero once it has expired or the term is over.
    #[must_use]
    pub fn valid_for(&self) -> Duration {
        let view = self.view.borrow();
        match view.status {
            TermStatus::Ended(_) => Duration::ZERO,
            _ => view.valid_until.saturating_sub(self.clock.boot_time()),
        }
    }

    /// How the term stands. Without a keeper, who alone can hold the lease, it is over.
    #[must_use]
    pub fn status(&self) -> TermStatus {
        let status = self.view.borrow().status;
        let is_kept = self.view.has_changed().is_ok();
        if is_kept || matches!(status, TermStatus::Ended(_)) { status } else { TermStatus::Ended(self.end_without_word()) }
    }

    /// Returns the time at which the lease is let go whatever is in work, if another worker has asked for it.
    #[must_use]
    pub fn handoff_by(&self) -> Option<Instant> {
        self.view.borrow().handoff_by
    }

    /// Waits until the term may be used again (`Ok`), or is over. Returns at once if either is so.
    ///
    /// # Errors
    /// Why the term is over.
    ///
    /// # Cancel safety
    /// Safe: it only waits.
    pub async fn valid(&self) -> Result<(), TermEnd> {
        let mut view = self.view.clone();
        loop {
            let (status, valid_until) = {
                let seen = view.borrow_and_update();
                (seen.status, seen.valid_until)
            };
            match status {
                TermStatus::Ended(end) => return Err(end),
                _ if self.clock.boot_time() < valid_until => return Ok(()),
                _ => {}
            }
            if view.changed().await.is_err() {
                return Err(self.end_without_word());
            }
        }
    }

    /// Waits until the status is another one than `than`, and returns it.
    ///
    /// # Cancel safety
    /// Safe: it only waits.
    pub async fn status_other_than(&self, than: TermStatus) -> TermStatus {
        let mut view = self.view.clone();
        match view.wait_for(|view| view.status != than).await {
            Ok(view) => view.status,
            Err(_) => TermStatus::Ended(self.end_without_word()),
        }
    }

    /// The stop that the row shows, as far as this worker knows: by the answer to its last write, at most
    /// a renewal interval old while the table answers. `None`: the shard may be processed.
    #[must_use]
    pub fn stopped(&self) -> Option<Stopped> {
        self.view.borrow().stopped
    }

    /// The pending checkpoint that the row shows: prepared by an earlier owner or in this term, and
    /// not covered by the checkpoint.
    #[must_use]
    pub fn pending_checkpoint(&self) -> Option<PendingCheckpoint> {
        self.view.borrow().pending_checkpoint.clone()
    }

    /// Waits until the row shows another stop than `than`, or none, and returns it. Returns at once if it
    /// does so already. It may have been set or cleared by this term, or cleared from outside
    /// ([`LeaseWrite::resume`]).
    ///
    /// # Errors
    /// Why the term is over.
    ///
    /// # Cancel safety
    /// Safe: it only waits.
    pub async fn stopped_other_than(&self, than: Option<Stopped>) -> Result<Option<Stopped>, TermEnd> {
        let mut view = self.view.clone();
        let seen = view.wait_for(|view| view.stopped != than || matches!(view.status, TermStatus::Ended(_))).await.map(|view| view.clone());
        match seen {
            Ok(View { status: TermStatus::Ended(end), .. }) => Err(end),
            Ok(view) => Ok(view.stopped),
            Err(_) => Err(self.end_without_word()),
        }
    }

    /// Tells the keeper that all records that arrived before `time` are finished. Written along with the next write of the row.
    pub fn set_watermark(&self, time: Timestamp) {
        self.notes.send_modify(|notes| notes.watermark = Some(time));
    }

    /// Tells the keeper what is finished beyond the checkpoint. Written along with the next write of the row, if it differs from what is there.
    pub fn set_finished_beyond(&self, note: Option<FinishedBeyond>) {
        self.notes.send_modify(|notes| notes.finished_beyond = note);
    }

    /// Tells the keeper that records go in batches: the next write removes the note of a record in work alone, if there is one.
    pub fn set_carefree(&self) {
        self.notes.send_modify(|notes| notes.carefree = true);
    }

    /// Tells the keeper that work on the record that was noted last has come back: the release notes this in its place.
    pub fn set_given_back(&self, suspect: Suspect) {
        self.notes.send_modify(|notes| notes.given_back = Some(suspect));
    }

    /// Notes in the row that this record is in work alone, with a checkpoint of those before it. It stands there until
    /// [`set_carefree`](Self::set_carefree), also beyond this term.
    ///
    /// # Errors
    /// As [`CheckpointWriter::write`]: after [`CheckpointWriteError::Unavailable`] it may still be noted later.
    ///
    /// # Cancel safety
    /// The note may or may not be made.
    pub async fn note_suspect(&self, suspect: Suspect, checkpoint: Option<Checkpoint>) -> Result<(), CheckpointWriteError> {
        self.ask(|reply| Command::Suspect { suspect, checkpoint, reply }).await
    }

    /// Stops the shard beyond this term, or clears its stop, with a write of its own. Once it returns,
    /// the row says so, and so does [`stopped`](Self::stopped). Keeping to a stop is the holder's part:
    /// a term goes on renewing, and writes the checkpoints that it is asked for.
    ///
    /// # Errors
    /// As [`CheckpointWriter::write`]: after [`CheckpointWriteError::Unavailable`] it may still be
    /// written later, and will be unless the term ends.
    ///
    /// # Cancel safety
    /// The write may or may not be made. It is never made after that of a later call.
    pub async fn set_stopped(&self, stopped: Option<Stopped>) -> Result<(), CheckpointWriteError> {
        self.ask(|reply| Command::SetStopped { stopped, reply }).await
    }

    /// Begins the shard anew elsewhere, within the term: what the row says of how far it was read is void, and its checkpoint becomes the new start.
    ///
    /// # Errors
    /// As [`CheckpointWriter::write`]: after [`CheckpointWriteError::Unavailable`] it may still be written later.
    ///
    /// # Cancel safety
    /// The write may or may not be made.
    pub async fn restart(&self, start: NewStart) -> Result<(), CheckpointWriteError> {
        self.ask(|reply| Command::Restart { start, reply }).await
    }

    /// Ends the term: hands the lease to the worker that asked for it, or frees it; with a last checkpoint, and with the children of
    /// a shard that has ended. Peers need not wait for it to expire.
    ///
    /// # Errors
    /// As [`CheckpointWriter::write`]. After [`CheckpointWriteError::Unavailable`] the keeper goes on trying.
    ///
    /// # Cancel safety
    /// Dropping the future leaves the release with the keeper, which carries it out.
    pub async fn release(&self, checkpoint: Option<Checkpoint>, children: BTreeSet<ShardId>) -> Result<(), CheckpointWriteError> {
        self.ask(|reply| Command::Release { checkpoint, children, reply }).await
    }

    async fn ask(
        &self,
        command: impl FnOnce(oneshot::Sender<Result<(), CheckpointWriteError>>) -> Command,
    ) -> Result<(), CheckpointWriteError> {
        let (reply, answer) = oneshot::channel();
        let exchange = async {
            self.commands.send(command(reply)).await.map_err(|_| CheckpointWriteError::LeaseLost)?;
            // The keeper drops the reply only when the term has ended.
            answer.await.unwrap_or(Err(CheckpointWriteError::LeaseLost))
        };
        tokio::time::timeout(self.lease_duration, exchange).await.unwrap_or(Err(CheckpointWriteError::Unavailable(None)))
    }

    /// The keeper is gone without setting an end: its task was aborted together with its worker.
    fn end_without_word(&self) -> TermEnd {
        match self.view.borrow().status {
            TermStatus::Ended(end) => end,
            _ => TermEnd::Lost,
        }
    }
}

#[async_trait]
impl CheckpointWriter for Term {
    async fn write(&self, checkpoint: Checkpoint) -> Result<(), CheckpointWriteError> {
        self.ask(|reply| Command::Checkpoint { checkpoint, reply }).await
    }

    async fn prepare(&self, pending: PendingCheckpoint) -> Result<(), CheckpointWriteError> {
        self.ask(|reply| Command::Prepare { pending, reply }).await
    }

    fn written(&self) -> Option<Checkpoint> {
        Some(self.view.borrow().checkpoint)
    }
}

#[cfg(test)]
mod tests;
