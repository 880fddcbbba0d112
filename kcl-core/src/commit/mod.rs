//! Commits: what a processor has made of its records, and the checkpoint that covers them, in one transaction. Then the effect is exactly once.
//!
//! The transaction goes through the one task that writes the lease (`kcl_lease::term`), and takes effect only while this worker owns the shard
//! and no checkpoint covers the first of its records. So whoever comes later, a retry, another worker, an answer that was lost, finds either neither of the two or both.

mod turn;

use std::ops::RangeInclusive;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use aws_sdk_dynamodb::types::TransactWriteItem;
use kcl_checkpoint::planted::{Bug, is_planted};
use kcl_checkpoint::{Checkpoint, CheckpointControl, Checkpointer, ExtendedSequenceNumber};
use kcl_lease::term::{Term, TransactError};
use kcl_lease::{RefusedItem, ShardId, TableError, TransactItems, TransactItemsError};

use crate::processor::ShardContext;
use crate::record::Record;
use crate::status::StatusBoard;
use turn::Turn;

/// Why a commit is not, or not known to be, in effect. Each may be returned from [`process_records`](crate::RecordProcessor::process_records) by `?`: then
/// what the checkpoint does not cover comes again, and nothing takes effect twice.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CommitError {
    /// There are no records to commit. Nothing is written.
    #[error("a commit needs records to cover; there are none")]
    NoRecords,
    /// The items can't be one transaction. Nothing is written.
    #[error(transparent)]
    Items(#[from] TransactItemsError),
    /// The shard has several lanes. A checkpoint covers a record and all before it, of whatever key, so one lane's records alone can't be committed. Nothing is
    /// written.
    #[error(
        "a commit needs `Lanes {{ lanes: 1, .. }}`, and this worker has {lanes}: a checkpoint covers all records before it, which other lanes may have in work"
    )]
    SeveralLanes {
        /// How many there are.
        lanes: usize,
    },
    /// The checkpoint covers some of the records already: they were committed, or checkpointed. Perhaps by a commit whose answer was lost. Nothing
    /// more is written. Commit those after the checkpoint, with items made of them alone; if it covers them all, all is done.
    #[error("the checkpoint {checkpoint} covers records from {first} on: they are committed already, and must not be committed again")]
    AlreadyCommitted {
        /// The first record that was to be committed.
        first: ExtendedSequenceNumber,
        /// The checkpoint as it is.
        checkpoint: Checkpoint,
    },
    /// Older records are not covered by the checkpoint, not among those to be committed, and neither acknowledged nor accepted by the dead-letter queue. The
    /// checkpoint would cover them too, and they would be lost. Nothing is written. Begin with the oldest one, or
    /// [acknowledge](crate::RecordBatch::ack) those that have no effect; [`commit_span`](ShardContext::commit_span) takes records that are not at hand.
    #[error(
        "the commit begins with record {first}, and {oldest} before it is neither covered by the checkpoint nor finished: the commit would cover it too, and it would be lost"
    )]
    OutOfTurn {
        /// The first record that was to be committed.
        first: ExtendedSequenceNumber,
        /// The record that a commit has to begin with.
        oldest: ExtendedSequenceNumber,
    },
    /// The last record is beyond what was delivered, or has failed and is to be delivered again. Nothing is written.
    #[error("record {last} was not delivered, or is to be delivered again: it can't be committed")]
    NotDelivered {
        /// The last record that was to be committed.
        last: ExtendedSequenceNumber,
        /// The last record that may be.
        delivered: Option<ExtendedSequenceNumber>,
    },
    /// A condition of one of the items does not hold, or an item can't be written as it is. Nothing is written, and never will be.
    #[error("the commit was refused by {}", Refusals(.0))]
    Refused(Vec<RefusedItem>),
    /// DynamoDB does not take the transaction: a table that is not there, a permission that is missing, an expression that is wrong. Nothing is
    /// written, and never will be.
    #[error("the commit can't be carried out: {0}")]
    Rejected(TableError),
    /// Another worker owns the shard now, or the term has ended. Stop: whoever owns it goes on from the last checkpoint, with which the items
    /// are written or not.
    #[error("the lease is lost: another worker goes on from the last checkpoint")]
    LeaseLost,
    /// DynamoDB did not confirm in time: the commit is in effect, or not, or will be. Asking again for the same records is safe, also with other items.
    #[error("DynamoDB did not confirm the commit in time; it may still take effect, and will not take effect twice")]
    Unavailable,
}

struct Refusals<'a>(&'a [RefusedItem]);

impl std::fmt::Display for Refusals<'_> {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Codes and places alone: DynamoDB's words may hold keys.
        let told = self.0.iter().map(|item| format!("item {}: {}", item.index, item.code));
        formatter.write_str(&told.collect::<Vec<_>>().join(", "))
    }
}

impl CommitError {
    /// Whether the same call may succeed later.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        matches!(self, Self::Unavailable)
    }

    /// Whether the shard belongs to another worker now.
    #[must_use]
    pub fn is_lease_lost(&self) -> bool {
        matches!(self, Self::LeaseLost)
    }
}

impl ShardContext {
    /// Writes `items` to their tables and the checkpoint behind the last of `records`, in **one transaction**: all of it, or nothing. `items` is what the
    /// records, in their order, and all before them that were not committed, come to; none, and only the checkpoint is written.
    ///
    /// A worker that dies, is paused or loses its lease at any moment leaves records whose items are written and that do not come again, or records whose items are not
    /// written and that do. Each record's effect is exactly once, **if all its effect is in the items**. What a processor does beside them is repeated
    /// with the record.
    ///
    /// ```
    /// use kcl_core::aws_sdk_dynamodb::types::{AttributeValue, TransactWriteItem, Update};
    /// use kcl_core::{Outcome, ProcessResult, RecordBatch, RecordProcessor, ShardContext, async_trait};
    ///
    /// /// Counts the records of the stream, in the table `counts`.
    /// struct Count;
    ///
    /// #[async_trait]
    /// impl RecordProcessor for Count {
    ///     async fn process_records(&mut self, batch: &RecordBatch, shard: &ShardContext) -> ProcessResult {
    ///         let count = Update::builder()
    ///             .table_name("counts")
    ///             .key("id", AttributeValue::S(shard.stream_name().to_owned()))
    ///             .update_expression("ADD occurrences :n")
    ///             .expression_attribute_values(":n", AttributeValue::N(batch.len().to_string()))
    ///             .build()?;
    ///         shard.commit(vec![TransactWriteItem::builder().update(count).build()], batch.records()).await?;
    ///         Ok(Outcome::Done)
    ///     }
    /// }
    /// ```
    ///
    /// Several commits in one call are fine, one after the other, each for the next part of the batch: `batch.records().chunks(50)`. If the call then fails,
    /// what was committed is finished and does not come again. Each has to begin with the oldest record that is not finished: one that is out of turn is refused, as
    /// the checkpoint would cover what it leaves out. So is one that is made before the answer to the one before it: that one may still be refused.
    ///
    /// Limits: 99 items, as the lease is the hundredth; 4 MB in all; no item twice; tables of the lease table's account and region; one
    /// [lane](crate::Lanes). The worker needs the permission `dynamodb:UpdateItem` on the lease table, as ever, and those for the items
    /// (`dynamodb:PutItem`, `UpdateItem`, `DeleteItem`, `ConditionCheckItem`) on theirs.
    ///
    /// With automatic checkpoints commit before the call returns [`Done`](crate::Outcome::Done), which makes the records finished. A processor that collects records over
    /// several calls needs [manual checkpoints](crate::Checkpointing::Manual).
    ///
    /// A record whose effect is not in the items must not be among `records`, nor before them: commit up to it, and return it as failed.
    ///
    /// # Errors
    /// See [`CommitError`]. All but [`LeaseLost`](CommitError::LeaseLost) and [`Unavailable`](CommitError::Unavailable) say that nothing was written, and that nothing will be.
    ///
    /// # Cancel safety
    /// Dropping the future leaves the commit in effect or not, or, if it was begun, to be. It is settled before a record of it is delivered again. Asking again
    /// is safe.
    pub async fn commit(&self, items: Vec<TransactWriteItem>, records: &[Record]) -> Result<(), CommitError> {
        match (records.first(), records.last()) {
            (Some(first), Some(last)) => self.commit_span(items, first.position()..=last.position()).await,
            _ => Err(CommitError::NoRecords),
        }
    }

    /// As [`commit`](Self::commit), of all records from one to another, both included, that are not at hand any more.
    ///
    /// # Errors
    /// As [`commit`](Self::commit).
    ///
    /// # Cancel safety
    /// As [`commit`](Self::commit).
    pub async fn commit_span(
        &self,
        items: Vec<TransactWriteItem>,
        records: RangeInclusive<ExtendedSequenceNumber>,
    ) -> Result<(), CommitError> {
        self.committer.commit(items, records, &self.checkpointer).await
    }
}

/// A term's way to commit. Clones share it.
#[derive(Clone, Debug)]
pub(crate) struct Committer(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    term: Term,
    shard: ShardId,
    lanes: usize,
    status: StatusBoard,
    control: CheckpointControl,
    /// A commit has ended without a definite answer, and nobody has asked since.
    in_doubt: AtomicBool,
    /// The processor commits.
    in_use: AtomicBool,
    /// The record that a commit has to begin with.
    turn: Turn,
}

impl Committer {
    pub(crate) fn new(term: Term, lanes: usize, status: StatusBoard, control: CheckpointControl) -> Self {
        let shard = term.taken().shard_id.clone();
        let (in_doubt, in_use) = (AtomicBool::new(false), AtomicBool::new(false));
        Self(Arc::new(Inner { term, shard, lanes, status, control, in_doubt, in_use, turn: Turn::default() }))
    }

    async fn commit(
        &self,
        items: Vec<TransactWriteItem>,
        records: RangeInclusive<ExtendedSequenceNumber>,
        checkpointer: &Checkpointer,
    ) -> Result<(), CommitError> {
        let inner = &*self.0;
        inner.in_use.store(true, Ordering::Relaxed);
        let (first, last) = records.clone().into_inner();
        if records.is_empty() {
            return Err(CommitError::NoRecords);
        }
        if inner.lanes > 1 {
            return Err(CommitError::SeveralLanes { lanes: inner.lanes });
        }
        let items = TransactItems::new(items)?;
        let already = |checkpoint| CommitError::AlreadyCommitted { first, checkpoint };
        if Checkpoint::At(first) <= checkpointer.last() {
            return Err(already(checkpointer.last()));
        }
        let delivered = checkpointer.delivered();
        if delivered.is_none_or(|delivered| last > delivered) {
            return Err(CommitError::NotDelivered { last, delivered });
        }
        if let Some(oldest) = inner.turn.oldest(checkpointer.last()).filter(|oldest| first > *oldest)
            && !is_planted(Bug::CommitOutOfTurn)
        {
            return Err(CommitError::OutOfTurn { first, oldest });
        }

        let mut doubt = Doubt { noted: &inner.in_doubt, answered: false };
        let answer = inner.term.transact(first, last, items).await;
        doubt.answered = !matches!(answer, Err(TransactError::Unavailable));
        match answer {
            Ok(()) => {
                inner.written(Checkpoint::At(last), checkpointer);
                Ok(())
            }
            Err(TransactError::Covered(checkpoint)) => {
                inner.written(checkpoint, checkpointer);
                Err(already(checkpoint))
            }
            Err(TransactError::Refused(items)) => Err(CommitError::Refused(items)),
            Err(TransactError::Rejected(error)) => Err(CommitError::Rejected(error)),
            Err(TransactError::Unavailable) => Err(CommitError::Unavailable),
            Err(_) => Err(CommitError::LeaseLost),
        }
    }

    /// Waits until it is known what became of every commit, if one has ended without an answer; then the checkpointer knows what is covered.
    ///
    /// Cancel safety: safe, it only waits; a commit that was in doubt stays so.
    pub(crate) async fn settled(&self, checkpointer: &Checkpointer) {
        let inner = &*self.0;
        // Before it is asked: a commit that ends in doubt meanwhile is not of this answer.
        if !inner.in_doubt.swap(false, Ordering::Relaxed) {
            return;
        }
        tracing::warn!(shard = %inner.shard, "a commit was not confirmed; its records wait until it is settled");
        let mut doubt = Doubt { noted: &inner.in_doubt, answered: false };
        // None: the term is over, and nothing is delivered any more.
        let checkpoint = inner.term.settled().await;
        doubt.answered = true;
        if let Some(checkpoint) = checkpoint {
            inner.written(checkpoint, checkpointer);
        }
    }

    /// Waits until all writes of the lease that were asked for are in effect or refused: a
    /// checkpoint whose caller was dropped, or did not wait long enough, is one of them.
    ///
    /// Cancel safety: safe, it only waits.
    pub(crate) async fn writes_are_through(&self) {
        self.0.term.settled().await;
    }

    /// Which records a commit has to answer for. With several lanes there are no commits.
    pub(crate) fn turn(&self) -> Option<&Turn> {
        (self.0.lanes == 1).then_some(&self.0.turn)
    }

    /// Whether the processor commits.
    pub(crate) fn is_in_use(&self) -> bool {
        self.0.in_use.load(Ordering::Relaxed)
    }
}

impl Inner {
    fn written(&self, checkpoint: Checkpoint, checkpointer: &Checkpointer) {
        self.control.note_written(checkpoint);
        self.status.update(&self.shard, |status| status.checkpoint = checkpointer.last());
    }
}

/// A commit that is under way: in doubt when it is dropped without an answer.
struct Doubt<'a> {
    noted: &'a AtomicBool,
    answered: bool,
}

impl Drop for Doubt<'_> {
    fn drop(&mut self) {
        if !self.answered {
            self.noted.store(true, Ordering::Relaxed);
        }
    }
}
