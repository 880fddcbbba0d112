//! This worker's hold on the shard: whether records may be delivered now, and what asks to stop.

use std::sync::Arc;
use std::time::Duration;

use kcl_checkpoint::CheckpointControl;
use kcl_checkpoint::planted::{Bug, is_planted};
use kcl_lease::backoff::Backoff;
use kcl_lease::term::{Term, TermStatus};

use super::call::CallFailure;
use super::{Shared, Stop};
use crate::processor::ShardContext;
use crate::status::ShardState;

/// See the module.
pub(super) struct Hold {
    pub(super) shared: Arc<Shared>,
    pub(super) term: Term,
    pub(super) shard: Arc<ShardContext>,
    pub(super) control: CheckpointControl,
}

impl Hold {
    /// What asks to stop, if anything does.
    pub(super) fn stopped(&self) -> Option<Stop> {
        match self.term.status() {
            TermStatus::Ended(_) => Some(Stop::Ended),
            TermStatus::HandoffRequested => Some(Stop::LetGo),
            TermStatus::Held => self.shared.let_go.is_cancelled().then_some(Stop::LetGo),
        }
    }

    /// Waits until something asks to stop.
    pub(super) async fn interrupted(&self) -> Stop {
        tokio::select! {
            biased;
            status = self.term.status_other_than(TermStatus::Held) => match status {
                TermStatus::Ended(_) => Stop::Ended,
                _ => Stop::LetGo,
            },
            () = self.shared.let_go.cancelled() => Stop::LetGo,
        }
    }

    /// Whether records may be delivered now.
    pub(super) fn is_open(&self) -> bool {
        self.term.is_valid() || is_planted(Bug::GateOpen)
    }

    /// Waits while the term is suspended; passes at once while it is valid.
    pub(super) async fn gate(&self) -> Result<(), Stop> {
        if !self.is_open() {
            self.suspended();
        }
        tokio::select! {
            biased;
            stop = self.interrupted() => Err(stop),
            () = std::future::ready(()), if is_planted(Bug::GateOpen) => Ok(()),
            valid = self.term.valid() => valid.map_err(|_| Stop::Ended),
        }
    }

    /// Says that nothing can be delivered now.
    pub(super) fn suspended(&self) {
        if self.state(ShardState::Suspended) {
            tracing::warn!("the lease could not be renewed in time; nothing is delivered until it is");
        }
    }

    /// Waits, unless something asks to stop.
    pub(super) async fn pause(&self, wait: Duration) -> Result<(), Stop> {
        tokio::select! {
            biased;
            stop = self.interrupted() => Err(stop),
            () = tokio::time::sleep(wait) => Ok(()),
        }
    }

    pub(super) fn backoff(&self) -> Backoff {
        Backoff::new(self.shared.retry.first_backoff, self.shared.retry.max_backoff, &self.shared.entropy)
    }

    /// Shows the shard's state, and returns whether that is news.
    pub(super) fn state(&self, state: ShardState) -> bool {
        self.shared.status.state(self.shard.shard_id(), state)
    }

    /// A failure of users' code as it is logged.
    pub(super) fn shown(&self, failure: &CallFailure) -> String {
        failure.shown(self.shared.processing.log_error_text)
    }
}
