//! Reads that fail, shards that are gone, and records that may have been trimmed unread.

use std::time::Duration;

use kcl_checkpoint::planted::{Bug, is_planted};
use kcl_lease::{Cause, Clock as _, Lease};
use tokio::time::Instant;

use super::deliver::REMINDER;
use super::start::{Gap, StartFilter, starting_position};
use super::{ShardConsumer, Stop, TrimmedData};
use crate::status::ShardState;
use crate::stream::{StartingPosition, StreamError};

impl ShardConsumer {
    /// Reads on at the last record that was taken into work, as a new term would: so that records are missed that were trimmed during a pause.
    pub(super) fn read_anew(&mut self) -> Stop {
        if let Some((_, instant)) = self.skipped.filter(|(last, _)| *last == self.prefix.delivered()) {
            return Stop::Reopen(StartingPosition::AtTimestamp(instant));
        }
        match self.prefix.delivered() {
            Some(last) => {
                // All that arrived before the answers that were taken into work was seen.
                let seen = self.work.marks.back().map(|(_, mark)| *mark);
                self.filter = StartFilter::after(last, seen.max(self.watermark));
                Stop::Reopen(StartingPosition::AtSequenceNumber(last.sequence_number))
            }
            None => Stop::Reopen(self.begin_at_checkpoint()),
        }
    }

    /// Where reading begins that begins at the checkpoint, as a new term would begin; but a gap that was accepted is not asked about again, and a record
    /// that was there still has to come.
    pub(super) fn begin_at_checkpoint(&mut self) -> StartingPosition {
        let checkpoint = self.hold.shard.checkpointer().last();
        let row = Lease { checkpoint, watermark: self.watermark, ..self.hold.term.taken().clone() };
        let expected = self.filter.expected();
        self.filter = StartFilter::new(&row);
        let is_gone = self.accepted_gap == Some(checkpoint);
        if is_gone {
            self.filter.accept_gap();
        }
        self.filter.expect(expected);
        if is_gone && checkpoint.record().is_some() {
            // And so is all before it.
            return StartingPosition::TrimHorizon;
        }
        starting_position(&row, self.hold.shared.initial)
    }

    /// `Err`: nothing of the stream reaches this worker, and another one may do better.
    pub(super) fn not_cut_off(&self) -> Result<(), Stop> {
        let shared = &self.hold.shared;
        if !is_planted(Bug::CutOffKeepsLeases) && shared.reading.is_cut_off(self.hold.shard.shard_id(), shared.clock.boot_time()) {
            tracing::error!("this worker reads nothing of the stream; the shard is left to another one");
            return Err(Stop::LetGo);
        }
        Ok(())
    }

    /// No answer has come for a while: reading fails, unless the reader waits for its pace.
    pub(super) fn reading_is_overdue(&mut self) -> Result<(), Stop> {
        let shared = &self.hold.shared;
        let failing = shared.reading.failing_for(self.hold.shard.shard_id(), shared.clock.boot_time());
        // It is asked again when the time for which reading fails has grown to the next whole reminder.
        let since_whole = Duration::from_millis(u64::try_from(failing.as_millis() % REMINDER.as_millis()).unwrap_or_default());
        self.work.waiting_since = Instant::now().checked_sub(since_whole);
        if failing < REMINDER {
            return Ok(());
        }
        // Its reader reports the calls that fail, of whichever way of reading. That nothing comes is
        // news only if none does.
        let silent = Cause { service: StreamError::SERVICE, class: "silent" };
        if shared.outages.causes().iter().all(|known| *known == silent || !known.service.starts_with(StreamError::SERVICE)) {
            self.hold.failing(silent, &format_args!("nothing could be read for {REMINDER:?}"));
        }
        self.work.read_failing = true;
        self.not_cut_off()
    }

    pub(super) async fn read_failed(&mut self, error: &StreamError) -> Result<(), Stop> {
        if let (StreamError::StartRefused { .. }, Some(gap)) = (error, self.filter.refused()) {
            tracing::warn!(%error, "the checkpoint's record is not known to the shard");
            self.settle().await?;
            self.after_gap(gap).await?;
            return Err(Stop::Reopen(StartingPosition::TrimHorizon));
        }
        if is_planted(Bug::EndOnNotFound) && matches!(error, StreamError::NotFound { .. }) {
            return Err(Stop::ShardEnd(self.children_of_trimmed().await.unwrap_or_default()));
        }
        if matches!(error, StreamError::NotFound { .. })
            && let Some(children) = self.children_of_trimmed().await
        {
            tracing::warn!(%error, "the stream lists the shard no more, and what came of it");
            self.settle().await?;
            match self.after_gap(Gap { first_kept: None }).await {
                // Skipped or gone on: there is nothing left of it.
                Ok(()) | Err(Stop::Reopen(_)) => return Err(Stop::ShardEnd(children)),
                Err(stop) => return Err(stop),
            }
        }
        // The reader paces itself; the shard is never ended because something was not found.
        self.hold.failing(error.cause(), error);
        self.work.read_failing = true;
        self.not_cut_off()
    }

    /// Records may have been trimmed unread: goes on if that is allowed, else waits until the shard is let go. Nothing is in work meanwhile.
    pub(super) async fn after_gap(&mut self, gap: Gap) -> Result<(), Stop> {
        if self.trimmed_is_too_far_behind() {
            return Err(self.skip_to_latest().await?);
        }
        let (shared, checkpoint) = (&self.hold.shared, self.hold.shard.checkpointer().last());
        match shared.trimmed {
            TrimmedData::SkipAndAudit => {
                let is_silent = is_planted(Bug::ChildGapNotAudited) && !self.hold.term.taken().parents.is_empty();
                if !is_silent {
                    tracing::error!(
                        target: "kcl::audit",
                        stream = %shared.stream.arn,
                        shard = %self.hold.shard.shard_id(),
                        %checkpoint,
                        first_kept = gap.first_kept.map(tracing::field::display),
                        "records may have been trimmed before they were read; going on with the oldest that is kept, as configured"
                    );
                }
                shared.metrics.gap();
                self.filter.accept_gap();
                self.accepted_gap = Some(checkpoint);
                Ok(())
            }
            TrimmedData::Block => {
                self.hold.state(ShardState::BlockedByTrimmedRecords);
                loop {
                    tracing::error!(
                        %checkpoint,
                        first_kept = gap.first_kept.map(tracing::field::display),
                        "records may have been trimmed before they were read; the shard waits. To go on with the oldest record that is kept, \
                         start the worker with trimmed_data(TrimmedData::SkipAndAudit)"
                    );
                    self.hold.pause(REMINDER).await?;
                }
            }
        }
    }
}
