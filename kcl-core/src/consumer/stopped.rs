//! Stops that outlive the process: the safety valve's stands in the lease, and is ended from this
//! process or from outside.
//!
//! The order of events. The valve closes: the shard is stopped at once, and the stop is written; a
//! crash before the write leaves a shard that counts anew. Whoever takes the shard finds the stop in
//! the row. A resumption in this process clears it in the row, one from outside is seen in the row of
//! the next answer.

use kcl_checkpoint::CheckpointWriteError;
use kcl_lease::{Clock as _, StopReason, Stopped};
use tokio::time::Instant;

use super::flow::PauseReason;
use super::{ShardConsumer, Stop};

/// What is known of the stop in the row, and what is to become of it.
#[derive(Debug, Default)]
pub(super) struct StopNote {
    /// The stop in the row, as far as this consumer has acted on it.
    seen: Option<Stopped>,
    /// What has to be written: a stop, or that there is none.
    due: Option<Option<Stopped>>,
    not_before: Option<Instant>,
}

impl StopNote {
    /// The time of the next attempt to write, after one that failed.
    pub(super) fn due_at(&self) -> Option<Instant> {
        self.due.and(self.not_before)
    }

    pub(super) fn seen(&self) -> Option<Stopped> {
        self.seen
    }
}

impl ShardConsumer {
    /// The safety valve has closed.
    pub(super) fn valve_closed(&mut self) {
        self.hold.shared.flow.stop_shard(self.hold.shard.shard_id(), PauseReason::SafetyValve);
        let since = self.hold.shared.clock.wall_time();
        self.work.stop_note.due = Some(Some(Stopped { reason: StopReason::SafetyValve, since }));
    }

    /// Acts on the stop that stands in the row, if that is news.
    pub(super) fn look_at_stop(&mut self) {
        let (shard, in_row) = (self.hold.shard.shard_id().clone(), self.hold.term.stopped());
        let note = &mut self.work.stop_note;
        if in_row == note.seen {
            return;
        }
        note.seen = in_row;
        if note.due == Some(in_row) {
            // A write that was not answered in time has taken effect.
            note.due = None;
        }
        match in_row {
            // A resumption is on its way to the row.
            Some(_) if note.due == Some(None) => {}
            Some(stopped) => {
                tracing::error!(
                    reason = ?stopped.reason,
                    since = stopped.since.as_millis(),
                    "the shard is stopped by a note in its lease: it stands still until it is resumed"
                );
                let reason = match stopped.reason {
                    StopReason::SafetyValve => PauseReason::SafetyValve,
                    StopReason::Processor => PauseReason::Processor,
                    _ => PauseReason::Asked,
                };
                self.hold.shared.flow.stop_shard(&shard, reason);
            }
            // What this consumer is about to write stands.
            None if matches!(note.due, Some(Some(_))) => {}
            None => {
                tracing::info!("the shard's stop was ended in its lease");
                self.hold.shared.flow.end_stop(&shard);
            }
        }
    }

    /// The shard is not paused any more: a stop in the row is cleared.
    pub(super) fn resumed(&mut self) {
        let note = &self.work.stop_note;
        if note.due != Some(None) && (note.seen.is_some() || note.due.is_some()) {
            self.work.stop_note.due = Some(None);
            self.work.stop_note.not_before = None;
        }
    }

    /// Writes a stop, or that there is none, before the shard is let go: whoever takes it next acts on
    /// the row. Waits no longer than until `by`.
    pub(super) async fn settle_stop(&mut self, by: Instant) {
        // A shard that was resumed just now has not been looked at since.
        self.look_at_flow();
        let mut backoff = self.hold.backoff();
        let settled = async {
            while let Some(due) = self.work.stop_note.due {
                match self.hold.term.set_stopped(due).await {
                    Ok(()) => (self.work.stop_note.due, self.work.stop_note.seen) = (None, due),
                    Err(CheckpointWriteError::LeaseLost) => return,
                    Err(_) => tokio::time::sleep(backoff.next_wait()).await,
                }
            }
        };
        if tokio::time::timeout_at(by, settled).await.is_err() {
            tracing::warn!(
                "the lease table does not answer, so the shard's stop, or its end, is not noted: its next owner goes by what stood there before"
            );
        }
    }

    /// Writes a stop, or that there is none, if that is due.
    pub(super) async fn write_stop(&mut self, now: Instant) -> Result<(), Stop> {
        let note = &self.work.stop_note;
        let Some(due) = note.due.filter(|_| note.not_before.is_none_or(|not_before| not_before <= now)) else { return Ok(()) };
        let written = tokio::select! {
            biased;
            stop = self.hold.interrupted() => return Err(stop),
            written = self.hold.term.set_stopped(due) => written,
        };
        let note = &mut self.work.stop_note;
        match written {
            Ok(()) => (note.due, note.seen) = (None, due),
            Err(CheckpointWriteError::LeaseLost) => return Err(Stop::Ended),
            Err(error) => {
                note.not_before = Some(Instant::now() + self.hold.shared.retry.max_backoff);
                tracing::debug!(%error, "the shard's stop is not noted in its lease yet; trying again");
            }
        }
        Ok(())
    }
}
