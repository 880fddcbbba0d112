//! The one task that writes a lease's row for the length of a term.

use std::collections::BTreeSet;
use std::time::Duration;

use kcl_checkpoint::planted::{Bug, is_planted};
use kcl_checkpoint::{Checkpoint, CheckpointWriteError, ExtendedSequenceNumber, FinishedBeyond, PendingCheckpoint};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;

use super::transact::{TransactError, Transaction};
use super::{Command, Notes, TermContext, TermEnd, TermStatus, View};
use crate::backoff::Backoff;
use crate::lease::{Lease, ShardId, Stopped, Suspect};
use crate::table::{TableError, WriteOutcome};
use crate::write::{Change, LeaseWrite, NewStart, Switches};

/// Lease durations for which checkpoints of a term that was taken from the dead leave the count of owner changes as it is.
const PROBATION: u32 = 5;

/// The least time for which the row of a finished shard is kept. So long after a term has run out its row may be gone for a good reason, and not earlier.
const FINISHED_IS_KEPT: Duration = Duration::from_secs(30);

/// An order of a worker to all its keepers. It counts more than what the holders of the terms ask.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum KeeperOrder {
    /// Keep the lease until the term's holder releases it, or is dropped.
    #[default]
    Keep,
    /// Free the lease without a checkpoint: the holder did not finish in time, and may be in code
    /// that blocks its thread. The term ends, so that nothing the holder does later counts.
    LetGo,
    /// Write nothing more, as if the process had died: the lease expires.
    Stop,
}

/// The writing half of a term. Run it where no processor can block it: on a thread of its own, or
/// on one that only keepers share.
#[derive(Debug)]
pub struct TermKeeper {
    pub(super) context: TermContext,
    /// The row as this term last saw it.
    pub(super) held: Lease,
    view: watch::Sender<View>,
    commands: mpsc::Receiver<Command>,
    notes: watch::Receiver<Notes>,
    pub(super) next_renewal: Instant,
    /// From the moment when a request for a handoff was seen.
    handoff_deadline: Option<Instant>,
    /// In a term that was taken from the dead: until then, this one might die of the same.
    probation: Option<Instant>,
}

/// What the row's owner wants to do with it.
pub(super) enum Intent {
    Renew,
    Checkpoint(Checkpoint),
    Prepare(PendingCheckpoint),
    SetStopped(Option<Stopped>),
    Suspect(Suspect, Option<Checkpoint>),
    Restart(NewStart),
    Release(Option<Checkpoint>, BTreeSet<ShardId>),
}

type Reply = Option<oneshot::Sender<Result<(), CheckpointWriteError>>>;

/// What is next in the queue.
enum Order {
    Write(Intent, Reply),
    Transact(Transaction),
}

impl TermKeeper {
    pub(super) fn new(
        context: TermContext,
        held: Lease,
        view: watch::Sender<View>,
        commands: mpsc::Receiver<Command>,
        notes: watch::Receiver<Notes>,
        from_the_dead: bool,
        age: Duration,
    ) -> Self {
        // Counted from the take's first attempt, as the hold is.
        let next_renewal = Instant::now() + context.timing.renewal_interval().saturating_sub(age);
        let probation = from_the_dead.then(|| Instant::now() + context.timing.lease_duration * PROBATION);
        Self { context, held, view, commands, notes, next_renewal, handoff_deadline: None, probation }
    }

    /// Renews, checkpoints and releases until the term is over, and says how it ended.
    ///
    /// # Cancel safety
    /// Dropping the future stops all writes at once, like the death of the process: the lease expires.
    pub async fn run(self) -> TermEnd {
        let orders = watch::Sender::new(KeeperOrder::Keep);
        self.run_with(orders.subscribe()).await
    }

    /// Does the same as [`run`](Self::run), and follows the worker's orders. If their sender is
    /// dropped, that is an order to stop.
    ///
    /// # Cancel safety
    /// As [`run`](Self::run).
    pub async fn run_with(mut self, mut orders: watch::Receiver<KeeperOrder>) -> TermEnd {
        self.look_for_handoff();
        let end = loop {
            let (intent, reply) = match self.next_order(&mut orders).await {
                Order::Write(intent, reply) => (intent, reply),
                Order::Transact(transaction) => match self.transact(&transaction).await {
                    Ok(answer) => {
                        // Nobody waits any more: fine, the outcome stands in the row.
                        let _ = transaction.reply.send(answer);
                        continue;
                    }
                    Err(end) => {
                        // As below.
                        self.end(end);
                        let _ = transaction.reply.send(Err(TransactError::LeaseLost));
                        break end;
                    }
                },
            };
            let releases = matches!(intent, Intent::Release(..));
            match self.put_through(intent).await {
                Ok(()) => {
                    answer(reply, Ok(()));
                    if releases {
                        break TermEnd::Released;
                    }
                }
                Err(end) => {
                    // The end is visible before the answer is: whoever got it must not find the term valid.
                    self.end(end);
                    answer(reply, Err(CheckpointWriteError::LeaseLost));
                    break end;
                }
            }
        };
        self.end(end);
        end
    }

    async fn next_order(&mut self, orders: &mut watch::Receiver<KeeperOrder>) -> Order {
        loop {
            if is_stopped(orders) {
                return std::future::pending().await;
            }
            // Commands first: a checkpoint proves life as well as a renewal does.
            tokio::select! {
                biased;
                command = self.commands.recv() => match command {
                    // Whoever asked has given up waiting; it will ask again with a later checkpoint.
                    Some(Command::Checkpoint { reply, .. }) if reply.is_closed() => {}
                    Some(Command::Checkpoint { checkpoint, reply }) => return Order::Write(Intent::Checkpoint(checkpoint), Some(reply)),
                    // As above: it must not be noted after a checkpoint that was asked for later.
                    Some(Command::Prepare { reply, .. }) if reply.is_closed() => {}
                    Some(Command::Prepare { pending, reply }) => return Order::Write(Intent::Prepare(pending), Some(reply)),
                    Some(Command::SetStopped { stopped, reply }) => return Order::Write(Intent::SetStopped(stopped), Some(reply)),
                    Some(Command::Suspect { suspect, checkpoint, reply }) => {
                        return Order::Write(Intent::Suspect(suspect, checkpoint), Some(reply));
                    }
                    Some(Command::Restart { start, reply }) => return Order::Write(Intent::Restart(start), Some(reply)),
                    Some(Command::Release { checkpoint, children, reply }) => {
                        return Order::Write(Intent::Release(checkpoint, children), Some(reply));
                    }
                    Some(Command::Transact(transaction)) => return Order::Transact(transaction),
                    // All that was asked for before is through.
                    Some(Command::Settle(reply)) => drop(reply.send(self.held.checkpoint)),
                    // The holder went together with its worker: an order that was given before.
                    None if is_stopped(orders) => {}
                    None => return Order::Write(Intent::Release(None, BTreeSet::new()), None),
                },
                order = other_than_keep(orders) => {
                    if order == KeeperOrder::LetGo {
                        // Ended at once: what a holder that still runs does from now on is refused.
                        self.end(TermEnd::Released);
                        return Order::Write(Intent::Release(None, BTreeSet::new()), None);
                    }
                }
                () = wait_for(self.handoff_deadline) => {
                    // The records in work did not finish in time. Let go now: the call that still runs may end after
                    // another worker has begun, but its acknowledgement and checkpoint will be refused.
                    tracing::warn!(shard = %self.held.shard_id, "handoff timed out with records still in work; they will be delivered again");
                    self.end(TermEnd::Released);
                    return Order::Write(Intent::Release(None, BTreeSet::new()), None);
                }
                () = tokio::time::sleep_until(self.next_renewal) => return Order::Write(Intent::Renew, None),
            }
        }
    }

    /// Carries the intent out against the row as it is, or says why the term is over.
    async fn put_through(&mut self, intent: Intent) -> Result<(), TermEnd> {
        loop {
            let write = self.write_for(&intent);
            // Before the first sending of this write: it can't have been applied earlier, whichever repetition is.
            let (sent, sent_at) = (self.context.clock.boot_time(), Instant::now());
            match carry_out(&self.context, &write).await {
                Ok(WriteOutcome::Applied(row)) => {
                    let late = is_planted(Bug::StampAfterAnswer).then(|| (self.context.clock.boot_time(), Instant::now()));
                    let (sent, sent_at) = late.unwrap_or((sent, sent_at));
                    self.goes_on(*row, sent, sent_at);
                    return Ok(());
                }
                Ok(WriteOutcome::Refused(row)) => match after_refusal(&self.held, row.as_deref()) {
                    // The write is definitely not in effect and can't come into effect any more: the row now has a checkpoint owner,
                    // and the write expects none. So another one from the same counter is no guess.
                    Some(requested) => self.was_asked_for(requested),
                    None if is_planted(Bug::RefusalIgnored) && matches!(intent, Intent::Renew) => {
                        self.next_renewal = sent_at + self.context.timing.renewal_interval();
                        self.prolong(sent + self.context.timing.lease_duration - self.context.timing.guard());
                        return Ok(());
                    }
                    None => return Err(self.lost(row.as_deref())),
                },
                Err(error) => return Err(self.table_gone(&error)),
            }
        }
    }

    /// A write is in effect, that was first sent at this time, and the row is now this one.
    pub(super) fn goes_on(&mut self, row: Lease, sent: Duration, sent_at: Instant) {
        self.held = row;
        self.look_for_handoff();
        self.show_row();
        self.next_renewal = sent_at + self.context.timing.renewal_interval();
        self.prolong(sent + self.context.timing.lease_duration - self.context.timing.guard());
    }

    /// A write was refused, and all that has changed is that somebody asked for the lease.
    pub(super) fn was_asked_for(&mut self, requested: Lease) {
        self.held = requested;
        self.look_for_handoff();
        self.show_row();
    }

    pub(super) fn lost(&self, row: Option<&Lease>) -> TermEnd {
        let may_be_deleted = self.context.clock.boot_time() >= self.view.borrow().valid_until + FINISHED_IS_KEPT;
        self.context.vanished.look(&self.held, may_be_deleted, row);
        let owner = row.and_then(|row| row.actual_owner()).map(ToString::to_string);
        tracing::warn!(shard = %self.held.shard_id, owner, "lease lost");
        TermEnd::Lost
    }

    pub(super) fn table_gone(&self, error: &TableError) -> TermEnd {
        let what = match error {
            TableError::NotFound { .. } => "the lease table is gone",
            TableError::NotALeaseTable { .. } => "the table is no lease table any more",
            _ => "the lease table has refused a write of this lease",
        };
        tracing::error!(shard = %self.held.shard_id, %error, "{what}; the shard is given up");
        TermEnd::TableGone
    }

    pub(super) fn write_for(&mut self, intent: &Intent) -> LeaseWrite {
        let id = self.context.write_id();
        let mut write = match intent {
            Intent::Renew => LeaseWrite::renew(&self.held, id),
            Intent::Checkpoint(checkpoint) => LeaseWrite::checkpoint(&self.held, *checkpoint, id),
            Intent::Prepare(pending) => LeaseWrite::prepare(&self.held, pending.clone(), id),
            Intent::SetStopped(stopped) => LeaseWrite::set_stopped(&self.held, *stopped, id),
            Intent::Suspect(suspect, checkpoint) => LeaseWrite::suspect(&self.held, *suspect, *checkpoint, id),
            Intent::Restart(start) => LeaseWrite::restart(&self.held, *start, id),
            Intent::Release(checkpoint, children) => LeaseWrite::release(&self.held, *checkpoint, children.clone(), id),
        };
        if matches!(write.switches, Switches::Set(0)) && self.probation.is_some_and(|until| Instant::now() < until) {
            // A record that kills processes is found by this count. With a checkpoint on the way to it each of them would begin anew.
            write.switches = Switches::Keep;
        }
        if is_planted(Bug::SubSequenceForgotten) {
            let whole = |record: ExtendedSequenceNumber| ExtendedSequenceNumber::whole(record.sequence_number);
            write.checkpoint = write.checkpoint.map(|at| at.record().map_or(at, |record| whole(record).into()));
        }
        let notes = self.notes.borrow_and_update();
        if let (Intent::Release(..), Some(suspect)) = (intent, notes.given_back) {
            write.suspect = Change::Set(suspect);
        }
        if notes.carefree {
            write.suspect = Change::from_to(self.held.suspect.as_ref(), None);
        }
        if matches!(intent, Intent::Restart(_)) {
            // The instant of the new start says what is left out of this shard. The watermark holds for its children as well, which may have been there for long.
            write.watermark = Change::Keep;
        } else {
            // Never back.
            let news = notes.watermark.filter(|watermark| self.held.watermark.is_none_or(|held| held < *watermark));
            write.watermark = news.map_or(Change::Keep, Change::Set);
        }
        write.finished_beyond = note_change(&self.held, write.checkpoint, notes.finished_beyond.as_ref());
        write
    }

    /// Tells the holder once the row shows that another worker asked for it. Every row that an answer brings is looked at: a request that came
    /// between a write and its repetition refuses neither.
    fn look_for_handoff(&mut self) {
        let overlooked = is_planted(Bug::RequestOverlooked);
        if self.held.checkpoint_owner.as_ref() == Some(&self.context.worker) && self.handoff_deadline.is_none() && !overlooked {
            tracing::info!(shard = %self.held.shard_id, next_owner = self.held.next_owner().map(ToString::to_string), "handoff requested");
            let by = Instant::now() + self.context.timing.handoff_timeout;
            self.handoff_deadline = Some(by);
            self.view.send_modify(|view| {
                view.handoff_by = Some(by);
                if view.status == TermStatus::Held {
                    view.status = TermStatus::HandoffRequested;
                }
            });
        }
    }

    /// Shows the holder what stands in the row: its stop, which may have been cleared from outside
    /// between any two writes, its checkpoint, which may be one that nobody waits for any more, and its
    /// pending checkpoint.
    fn show_row(&self) {
        let (stopped, checkpoint, pending) = (self.held.stopped, self.held.checkpoint, &self.held.pending_checkpoint);
        self.view.send_if_modified(|view| {
            let news = (view.stopped, view.checkpoint, &view.pending_checkpoint) != (stopped, checkpoint, pending);
            (view.stopped, view.checkpoint) = (stopped, checkpoint);
            view.pending_checkpoint.clone_from(pending);
            news
        });
    }

    fn prolong(&self, valid_until: Duration) {
        self.view.send_modify(|view| view.valid_until = view.valid_until.max(valid_until));
    }

    fn end(&self, end: TermEnd) {
        self.view.send_modify(|view| {
            if !matches!(view.status, TermStatus::Ended(_)) {
                view.status = TermStatus::Ended(end);
            }
        });
    }
}

/// Repeats the identical write until its outcome is certain, however long that takes.
///
/// After an answer is lost, the write may have taken effect or may do so seconds later; a read can't tell, and another write from the same row
/// could be overtaken by it. Only the same write again, which the table recognises, gives certainty.
pub(super) async fn carry_out(context: &TermContext, write: &LeaseWrite) -> Result<WriteOutcome, TableError> {
    let timing = &context.timing;
    let mut backoff = Backoff::new(Duration::from_millis(100), timing.lease_duration / 4, &context.entropy);
    let mut write = write.clone();
    loop {
        match context.table.write(&write).await {
            Ok(outcome) => {
                context.answered(&write.shard_id);
                return Ok(outcome);
            }
            // Credentials that expire or a policy being changed must not cost the lease: nothing is delivered meanwhile, since
            // the validity runs out.
            Err(error @ (TableError::NotFound { .. } | TableError::NotALeaseTable { .. } | TableError::Rejected { .. })) => {
                return Err(error);
            }
            Err(error) => {
                let wait = backoff.next_wait();
                context.failed(&write.shard_id, &error);
                tokio::time::sleep(wait).await;
                if is_planted(Bug::OtherWriteAfterLostAnswer) {
                    write.write_id = write.write_id.map(|_| context.write_id());
                }
            }
        }
    }
}

/// After a refused write of a term: the row to go on with if all that has changed is that somebody asked for a handoff, else `None`: lost.
#[must_use]
pub fn after_refusal(held: &Lease, row: Option<&Lease>) -> Option<Lease> {
    row.filter(|row| row.counter == held.counter && held.checkpoint_owner.is_none() && row.checkpoint_owner == held.owner).cloned()
}

/// What becomes of the row's note of finished records, in a write with this checkpoint.
fn note_change(held: &Lease, checkpoint: Option<Checkpoint>, note: Option<&FinishedBeyond>) -> Change<FinishedBeyond> {
    match (&held.finished_beyond, note) {
        // Its base is at or below the checkpoint, which only grows.
        (Some(before), Some(after)) if before.says_the_same(after) => Change::Keep,
        (_, Some(note)) => Change::Set(FinishedBeyond { base: checkpoint.unwrap_or(held.checkpoint).record(), ..note.clone() }),
        (Some(_), None) => Change::Remove,
        (None, None) => Change::Keep,
    }
}

fn answer(reply: Reply, result: Result<(), CheckpointWriteError>) {
    if let Some(reply) = reply {
        // Nobody waits any more: fine, the outcome stands in the row.
        let _ = reply.send(result);
    }
}

fn is_stopped(orders: &watch::Receiver<KeeperOrder>) -> bool {
    // Closed: the worker that gives orders is gone.
    orders.has_changed().is_err() || *orders.borrow() == KeeperOrder::Stop
}

async fn other_than_keep(orders: &mut watch::Receiver<KeeperOrder>) -> KeeperOrder {
    orders.wait_for(|order| *order != KeeperOrder::Keep).await.map_or(KeeperOrder::Stop, |order| *order)
}

async fn wait_for(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}
