//! What a shard does while different records fail alike: it notes what its calls come to, paces
//! itself, and looks for evidence by probes.

use std::time::Duration;

use tokio::time::Instant;

use super::breaker::{Evidence, OPENS_AFTER};
use super::retry::Judged;
use super::schedule::{Entry, GroupKey};
use super::{Checkpointing, ShardConsumer};

impl ShardConsumer {
    /// The evidence on a call with these records, which has just ended.
    pub(super) fn evidence(&self, group: GroupKey, in_call: &[Entry]) -> Evidence<'_> {
        let (shared, work) = (&self.hold.shared, &self.work);
        let may_probe = self.may_probe();
        let may_others_come = work.lanes.len() > 1 || may_probe;
        let has_others = work.schedule.has_others(group, in_call, may_probe) || (may_others_come && !work.in_hand.is_empty());
        Evidence {
            group,
            shard: &work.outcomes,
            others: shared.neighbours.others(self.hold.shard.shard_id()),
            is_alone: !has_others,
            now: Instant::now(),
            lapse: shared.retry.lapse(),
        }
    }

    /// A call that began then has finished a record.
    pub(super) fn world_is_fine(&mut self, began: Instant) {
        self.work.outcomes.succeeded(began);
        self.work.breaker.succeeded();
        self.work.seeks_probe = false;
        self.hold.shared.neighbours.succeeded(self.hold.shard.shard_id(), began, Instant::now());
    }

    /// Notes what a call has come to. Only then is its own outcome evidence for others.
    pub(super) fn note_outcomes(&mut self, judged: &Judged, began: Instant, is_probe: bool) {
        if judged.succeeded {
            self.world_is_fine(began);
        }
        // The first commit or checkpoint of a processor that makes its own is refused to a probe.
        let is_refused = is_probe && self.is_checkpointed_by_processor();
        if is_probe && !judged.succeeded && judged.failed.is_empty() {
            // It has said nothing, as a call that ends early does: it is not made again at once.
            let _ = self.work.breaker.failed(Instant::now());
        }
        if judged.failed.is_empty() || is_refused {
            return;
        }
        let now = Instant::now();
        let seen = now + judged.retry_after.unwrap_or_default();
        self.work.outcomes.call_failed();
        for failed in &judged.failed {
            self.work.outcomes.failed(failed.span, seen, failed.is_suspect);
            self.hold.shared.neighbours.failed(self.hold.shard.shard_id(), seen, failed.is_suspect_elsewhere);
        }
        if is_probe || self.is_outage(now) {
            let _ = self.work.breaker.failed(now);
            self.work.breaker.not_before = self.work.breaker.not_before.max(judged.retry_after.map(|_| seen));
        }
    }

    /// Returns whether different records fail alike, and none succeeds: of this shard, or of this
    /// one and others.
    pub(super) fn is_outage(&self, now: Instant) -> bool {
        self.is_outage_within(now, self.hold.shared.retry.lapse())
    }

    /// The same, of failures that are not older than `lapse`.
    fn is_outage_within(&self, now: Instant, lapse: Duration) -> bool {
        let (shared, outcomes) = (&self.hold.shared, &self.work.outcomes);
        if !shared.retry.asks_others() || outcomes.failed_calls() < self.opens_after() {
            return false;
        }
        match outcomes.failing(now, lapse) {
            0 => false,
            1 => shared.neighbours.others(self.hold.shard.shard_id()).is_failing(now, lapse),
            _ => true,
        }
    }

    /// The time from which on another call may find out whether the world is back, while some are
    /// under way. A call that hangs must not keep all other lanes waiting.
    pub(super) fn next_trial(&self) -> Option<Instant> {
        self.work.lanes.latest().map(|since| since + self.hold.shared.retry.max_backoff)
    }

    /// Logs the begin and the end of an outage, and returns whether there is one.
    pub(super) fn tell_of_outage(&mut self) -> bool {
        // One that was told is over when something succeeds, and not because nothing else was tried
        // for a while.
        let lapse = if self.work.told_of_outage { Duration::MAX } else { self.hold.shared.retry.lapse() };
        let is_outage = self.work.schedule.open() > 0 && self.is_outage_within(Instant::now(), lapse);
        if is_outage != std::mem::replace(&mut self.work.told_of_outage, is_outage) {
            if is_outage {
                tracing::error!(
                    "different records fail alike, so something that the processor needs is away: the shard waits and tries on, and no \
                     record is given up"
                );
            } else {
                tracing::info!("records are processed again");
            }
        }
        is_outage
    }

    /// Failed calls in a row after which evidence is looked for: before a record's last attempt.
    fn opens_after(&self) -> u32 {
        self.hold.shared.retry.max_attempts.saturating_sub(1).clamp(1, OPENS_AFTER)
    }

    /// Returns whether the processor commits, or has checkpointed for itself.
    fn is_checkpointed_by_processor(&self) -> bool {
        self.hold.shard.committer.is_in_use() || self.hold.control.is_used()
    }

    /// Returns whether a record may be processed ahead of one that waits: the framework alone says
    /// what is finished, so that no checkpoint passes the one that waits.
    fn may_probe(&self) -> bool {
        self.hold.shared.retry.asks_others()
            && self.work.lanes.len() == 1
            && !self.is_checkpointed_by_processor()
            && matches!(self.hold.shared.checkpointing, Checkpointing::Automatic { .. })
    }

    /// Returns whether the first record of a shard with one lane waits, and it takes another one to
    /// find out whose fault that is: nothing has succeeded since its last failure.
    fn needs_evidence(&self, now: Instant) -> bool {
        let Some(head) = self.work.schedule.waiting_head() else { return false };
        let is_in_doubt = !self.work.outcomes.has_success_after(head.history.last_failed);
        self.is_outage(now) || (head.history.attempts >= self.opens_after() && is_in_doubt)
    }

    /// Takes a record for a probe, if one is due. If there is none, one is looked for in what comes
    /// next.
    pub(super) fn take_probe(&mut self, now: Instant) -> Option<(GroupKey, Vec<Entry>)> {
        if !self.may_probe() || !self.work.lanes.is_idle() || !self.work.breaker.may(now) || !self.needs_evidence(now) {
            return None;
        }
        if !self.work.schedule.has_untried_probe() {
            self.work.seeks_probe = true;
            self.take_into_work();
        }
        // Until there is one that was never tried, more is read: what has failed before says little.
        self.work.seeks_probe = !self.work.schedule.has_untried_probe();
        let (group, entry) = self.work.schedule.take_probe()?;
        Some((group, vec![entry]))
    }
}
