//! The signal that a call should end early: its shard is going to another worker, or must wait.

use kcl_checkpoint::PendingCheckpoint;
use kcl_lease::ShardId;
use kcl_lease::term::{Term, TermStatus};
use std::time::Duration;
use tokio_util::sync::CancellationToken;

use crate::consumer::Flow;
use crate::processor::ShardContext;

/// A reason for a call to end early.
///
/// A processor that sees one finishes the record in work, acknowledges what it has done, and
/// returns [`Outcome::Acknowledged`](crate::Outcome::Acknowledged). Handlers of single records, and
/// [`RecordBatch::for_each`](crate::RecordBatch::for_each), do that by themselves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Interruption {
    /// Another worker owns the shard, or the term has ended: nothing that the call still does is
    /// accepted.
    LeaseLost,
    /// The worker shuts down.
    Shutdown,
    /// Another worker has asked for the shard, and waits for it.
    Handoff,
    /// The lease could not be renewed in time. Another worker may own the shard by now.
    LeaseExpired,
    /// The shard, or the worker, is paused.
    Paused,
}

/// What a call's interruptions are read from.
#[derive(Clone, Debug)]
pub(crate) struct Signals {
    shard: ShardId,
    term: Term,
    let_go: CancellationToken,
    flow: Flow,
}

impl Signals {
    pub(crate) fn new(term: Term, let_go: CancellationToken, flow: Flow) -> Self {
        Self { shard: term.taken().shard_id.clone(), term, let_go, flow }
    }

    pub(crate) fn pending_checkpoint(&self) -> Option<PendingCheckpoint> {
        self.term.pending_checkpoint()
    }

    pub(crate) fn now(&self) -> Option<Interruption> {
        match self.term.status() {
            TermStatus::Ended(_) => Some(Interruption::LeaseLost),
            // Before what asks in peace: who hears of a shutdown takes the shard to be its own.
            _ if !self.term.is_valid() => Some(Interruption::LeaseExpired),
            _ if self.let_go.is_cancelled() => Some(Interruption::Shutdown),
            TermStatus::HandoffRequested => Some(Interruption::Handoff),
            TermStatus::Held => self.flow.paused(&self.shard).map(|_| Interruption::Paused),
        }
    }

    async fn wait(&self) -> Interruption {
        let mut changes = self.flow.changes();
        loop {
            if let Some(interruption) = self.now() {
                return interruption;
            }
            // At the end of this time the lease has expired, unless it was renewed meanwhile.
            let expiry = self.term.valid_for().max(Duration::from_millis(10));
            tokio::select! {
                biased;
                _ = self.term.status_other_than(TermStatus::Held) => {}
                () = self.let_go.cancelled() => {}
                _ = changes.changed() => {}
                () = tokio::time::sleep(expiry) => {}
            }
        }
    }

    /// Pauses the shard for the rest of this term; does nothing once the term has ended.
    pub(crate) fn pause(&self) {
        if !matches!(self.term.status(), TermStatus::Ended(_)) {
            self.flow.pause_for_term(&self.shard);
        }
    }
}

impl ShardContext {
    /// The reason for which a call under way should end early, if there is one.
    ///
    /// Cheap enough to be asked before each record.
    #[must_use]
    pub fn interruption(&self) -> Option<Interruption> {
        self.signals.now()
    }

    /// Waits until a call under way should end early, and returns the reason.
    ///
    /// A clone of the context can wait in a task of its own. After the end of the term it completes
    /// at once, with [`Interruption::LeaseLost`].
    ///
    /// # Cancel safety
    /// Safe: it only waits.
    pub async fn interrupted(&self) -> Interruption {
        self.signals.wait().await
    }
}
