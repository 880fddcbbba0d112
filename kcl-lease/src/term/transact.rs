//! A checkpoint together with items of other tables, put through by the keeper: once, or not at all, and the keeper knows which.
//!
//! A transaction is unlike the keeper's other writes in three ways. Its items are a stranger's and may be refused, throttled or wrong, which must not cost the
//! lease. Whoever asked wants to be told that nothing was written *and never will be*. And it must not be made a second time under another
//! name while the first may still take effect.
//!
//! So each attempt is the identical write, until its answer is definite, or a renewal is due, or nobody waits for it any more. Whatever is not
//! known by then is **settled by a renewal** from the same row, of which one of three things becomes:
//!
//! - It is applied. The counter has moved, so no attempt of the transaction, late or repeated, can take effect any more.
//! - It is refused by a row that shows the transaction: it is in effect.
//! - It is refused by another row. The lease was asked for meanwhile, and the transaction, which expects that it was not, is as dead as in the first case; or it
//!   is lost.
//!
//! A refusal by an item is settled likewise before it is told: an earlier attempt may be in effect, or on its way.

use std::time::Duration;

use kcl_checkpoint::{Checkpoint, ExtendedSequenceNumber};
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::keeper::{Intent, TermKeeper, after_refusal, carry_out};
use super::{Command, Term, TermEnd};
use crate::backoff::Backoff;
use crate::lease::Lease;
use crate::outages::Cause;
use crate::table::{TableError, WriteOutcome};
use crate::transaction::{RefusedItem, TransactItems, TransactOutcome};
use crate::write::LeaseWrite;

/// Transactions in the log of outages: they fail with the users' tables too, not only with ours.
const SERVICE: &str = "transactions";

/// Why a transaction is not, or not known to be, in effect.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TransactError {
    /// The checkpoint covers records of it already: an earlier transaction, or checkpoint, of which the caller may not have known. Nothing is written.
    #[error("the checkpoint {0} covers records of this transaction already")]
    Covered(Checkpoint),
    /// Items refused it. Nothing is written, and never will be.
    #[error("{} of the transaction's items refused it", .0.len())]
    Refused(Vec<RefusedItem>),
    /// The service does not take it as it is: a table that is not there, a missing permission, an expression that is wrong. Nothing is written, and
    /// never will be.
    #[error("the transaction can't be carried out")]
    Rejected(#[source] TableError),
    /// Another worker owns the shard, or this term has ended. The transaction is in effect or not; the row's checkpoint tells.
    #[error("the lease is lost: another worker goes on from the last checkpoint")]
    LeaseLost,
    /// The service did not answer in time. It may be in effect, or take effect for a short while yet; never after a later call has begun.
    #[error("the service did not confirm the transaction in time; it may still take effect")]
    Unavailable,
}

pub(super) type TransactAnswer = Result<(), TransactError>;

/// What the keeper is asked for.
pub(super) struct Transaction {
    /// The first record that it covers, and the last: the checkpoint.
    pub(super) first: ExtendedSequenceNumber,
    pub(super) last: ExtendedSequenceNumber,
    pub(super) items: TransactItems,
    pub(super) reply: oneshot::Sender<TransactAnswer>,
}

impl Term {
    /// Writes these items and the checkpoint `last` in one transaction, which covers the records from `first` on.
    ///
    /// It takes effect only while this term owns the lease, and only if no checkpoint covers `first` yet: after
    /// [`TransactError::Unavailable`] the same records may be asked for again, with whatever items, without being written twice.
    ///
    /// # Errors
    /// See [`TransactError`].
    ///
    /// # Cancel safety
    /// A transaction that was not begun yet is never begun; one that was is in effect or not, which [`settled`](Self::settled) tells.
    pub async fn transact(
        &self,
        first: ExtendedSequenceNumber,
        last: ExtendedSequenceNumber,
        items: TransactItems,
    ) -> Result<(), TransactError> {
        let (reply, answer) = oneshot::channel();
        let transaction = Transaction { first, last, items, reply };
        let exchange = async {
            self.commands.send(Command::Transact(transaction)).await.map_err(|_| TransactError::LeaseLost)?;
            // The keeper drops the reply only when the term has ended.
            answer.await.unwrap_or(Err(TransactError::LeaseLost))
        };
        tokio::time::timeout(self.lease_duration, exchange).await.unwrap_or(Err(TransactError::Unavailable))
    }

    /// Waits until all that was asked of the keeper before is definite, however long that takes, and gives the row's checkpoint; `None`: the term has ended.
    ///
    /// # Cancel safety
    /// Safe: it only waits.
    pub async fn settled(&self) -> Option<Checkpoint> {
        let (reply, answer) = oneshot::channel();
        self.commands.send(Command::Settle(reply)).await.ok()?;
        answer.await.ok()
    }
}

/// What an attempt came to, its repetitions included.
enum Attempted {
    /// It is in effect; the row, if the table has shown it.
    InEffect(Option<Box<Lease>>),
    LeaseRefused(Option<Box<Lease>>),
    /// Not in effect, as far as this attempt goes: to be settled.
    Open(Why),
}

enum Why {
    NoAnswer,
    Refused(Vec<RefusedItem>),
    Rejected(TableError),
}

impl TermKeeper {
    /// Puts a transaction through, or says why it is not; or why the term is over.
    pub(super) async fn transact(&mut self, transaction: &Transaction) -> Result<TransactAnswer, TermEnd> {
        if Checkpoint::At(transaction.first) <= self.held.checkpoint {
            return Ok(Err(TransactError::Covered(self.held.checkpoint)));
        }
        let timing = self.context.timing;
        let mut backoff = Backoff::new(Duration::from_millis(100), timing.lease_duration / 4, &self.context.entropy);
        loop {
            // Nothing of it is under way here. Whoever asked may have given up waiting: then it must not begin any more.
            if transaction.reply.is_closed() {
                return Ok(Err(TransactError::Unavailable));
            }
            let write = self.write_for(&Intent::Checkpoint(Checkpoint::At(transaction.last)));
            let (sent, sent_at) = (self.context.clock.boot_time(), Instant::now());
            match self.attempt(&write, transaction, &mut backoff).await {
                Attempted::InEffect(row) => {
                    // Without the table's word: the write expects the row as it is held, so it has made this of it.
                    let row = row.map(|row| *row).or_else(|| write.apply(&self.held));
                    self.goes_on(row.expect("invariant: a write is made of the row as held"), sent, sent_at);
                    return Ok(Ok(()));
                }
                Attempted::LeaseRefused(row) => match after_refusal(&self.held, row.as_deref()) {
                    // As for every other write: it expects that nobody has asked for the lease, so it can't take effect any more.
                    Some(requested) => self.was_asked_for(requested),
                    None => return Err(self.lost(row.as_deref())),
                },
                Attempted::Open(why) => {
                    if self.settle(&write, (sent, sent_at)).await? {
                        return Ok(Ok(()));
                    }
                    match why {
                        Why::NoAnswer => {}
                        Why::Refused(items) => return Ok(Err(TransactError::Refused(items))),
                        Why::Rejected(error) => return Ok(Err(TransactError::Rejected(error))),
                    }
                }
            }
        }
    }

    /// Repeats the identical transaction until its answer is definite, a renewal is due, or nobody waits for it any more.
    async fn attempt(&self, write: &LeaseWrite, transaction: &Transaction, backoff: &mut Backoff) -> Attempted {
        loop {
            let answer = self.context.table.transact(write, &transaction.items).await;
            if answer.is_ok() {
                let now = self.context.clock.boot_time();
                self.context.outages.succeeded(SERVICE, write.shard_id.as_str(), now);
            }
            match answer {
                Ok(TransactOutcome::Applied) => return Attempted::InEffect(None),
                Ok(TransactOutcome::Recognised(row)) => return Attempted::InEffect(Some(row)),
                Ok(TransactOutcome::LeaseRefused(row)) => return Attempted::LeaseRefused(row),
                Ok(TransactOutcome::ItemsRefused(items)) => return Attempted::Open(Why::Refused(items)),
                Err(error) if error.is_retryable() => {
                    let wait = backoff.next_wait();
                    let (shard, now) = (write.shard_id.as_str(), self.context.clock.boot_time());
                    let cause = Cause { service: SERVICE, ..error.cause() };
                    self.context.outages.failed(cause, shard, now, &error);
                    // Its items may be throttled for as long as they like: the lease is renewed in time all the same.
                    if transaction.reply.is_closed() || Instant::now() + wait >= self.next_renewal {
                        return Attempted::Open(Why::NoAnswer);
                    }
                    tokio::time::sleep(wait).await;
                }
                Err(error) => return Attempted::Open(Why::Rejected(error)),
            }
        }
    }

    /// Makes certain, by a renewal from the same row, whether this transaction, first sent at the given time, is in effect; if not, it never will be.
    async fn settle(&mut self, transaction: &LeaseWrite, (first_sent, first_sent_at): (Duration, Instant)) -> Result<bool, TermEnd> {
        let renewal = self.write_for(&Intent::Renew);
        let (sent, sent_at) = (self.context.clock.boot_time(), Instant::now());
        match carry_out(&self.context, &renewal).await {
            Ok(WriteOutcome::Applied(row)) => {
                self.goes_on(*row, sent, sent_at);
                Ok(false)
            }
            Ok(WriteOutcome::Refused(Some(row))) if transaction.is_in_effect(&row) => {
                self.goes_on(*row, first_sent, first_sent_at);
                Ok(true)
            }
            Ok(WriteOutcome::Refused(row)) => match after_refusal(&self.held, row.as_deref()) {
                Some(requested) => {
                    self.was_asked_for(requested);
                    Ok(false)
                }
                None => Err(self.lost(row.as_deref())),
            },
            Err(error) => Err(self.table_gone(&error)),
        }
    }
}
