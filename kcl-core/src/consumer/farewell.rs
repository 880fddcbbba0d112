//! The end of a hold on a shard: calls that are under way end or are cut off, the processors are
//! told, and the lease is let go with the last checkpoint.
//!
//! Nobody waits for users' code without a limit. A shard that goes to another worker, and a worker
//! that shuts down, has its calls cut off before the time is over, so that the lease is given up
//! only after no call is under way any more. A call of a term that is over has a grace. Only a call
//! that blocks its thread can't be cut off; it is left alone.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use kcl_checkpoint::planted::{Bug, is_planted};
use kcl_checkpoint::{Checkpoint, CheckpointWriteError};
use kcl_lease::ShardId;
use kcl_lease::term::{TermEnd, TermStatus};
use tokio::time::Instant;

use super::deliver::sleep_until;
use super::hold::Hold;
use super::lanes::LaneEvent;
use super::seat::Callback;
use super::{ShardConsumer, Stop};
use crate::status::ShardState;

/// The part of the handoff or shutdown timeout that calls under way have.
const CALLS: f64 = 0.8;
/// The part of it after which the processors have been told; what follows is for the release.
const FAREWELL: f64 = 0.9;
/// The part of it after which they have also heard that the lease is gone.
const ENDED: f64 = 0.98;

/// The time that processors have in any case to hear that the lease is gone.
const LAST_WORD: Duration = Duration::from_millis(100);

/// The time for which calls that have returned are waited for: they end at once.
const RETURNED: Duration = Duration::from_secs(1);

/// The time that calls have once their term is over.
fn grace(lease_duration: Duration) -> Duration {
    if is_planted(Bug::HungCallKeepsShard) {
        return Duration::from_secs(24 * 3600);
    }
    (lease_duration / 2).clamp(Duration::from_secs(1), Duration::from_secs(5))
}

/// The times by which a shard that is let go is rid of its calls.
#[derive(Clone, Copy, Debug)]
pub(super) struct Farewell {
    calls_by: Instant,
    told_by: Instant,
    ended_by: Instant,
    /// The worker shuts down: what may be less time than a handoff has counts.
    is_shutdown: bool,
}

impl Farewell {
    fn within(timeout: Duration, is_shutdown: bool) -> Self {
        Self::from(Instant::now(), timeout, is_shutdown)
    }

    /// The times of a handoff that ends at this instant: this consumer may hear of it late, for it
    /// waits for writes of the lease at times.
    fn by(end: Instant, timeout: Duration) -> Self {
        Self::from(end.checked_sub(timeout).unwrap_or_else(Instant::now), timeout, false)
    }

    fn from(began: Instant, timeout: Duration, is_shutdown: bool) -> Self {
        let after = |part: f64| began + timeout.mul_f64(part);
        Self { calls_by: after(CALLS), told_by: after(FAREWELL), ended_by: after(ENDED), is_shutdown }
    }

    fn no_later_than(self, other: Self) -> Self {
        Self {
            calls_by: self.calls_by.min(other.calls_by),
            told_by: self.told_by.min(other.told_by),
            ended_by: self.ended_by.min(other.ended_by),
            is_shutdown: self.is_shutdown || other.is_shutdown,
        }
    }
}

impl ShardConsumer {
    /// The times for a shard that is let go now.
    fn farewell(&mut self) -> Farewell {
        let shared = &self.hold.shared;
        let is_shutdown = shared.let_go.is_cancelled();
        let known = self.farewell.filter(|farewell| farewell.is_shutdown || !is_shutdown);
        let farewell = known.unwrap_or_else(|| {
            let farewell = match self.hold.term.handoff_by().filter(|_| !is_shutdown) {
                Some(end) => Farewell::by(end, shared.handoff_timeout),
                None if is_shutdown => Farewell::within(shared.shutdown_timeout, true),
                None => Farewell::within(shared.handoff_timeout, false),
            };
            // A handoff may be under way already.
            self.farewell.map_or(farewell, |before| farewell.no_later_than(before))
        });
        self.farewell = Some(farewell);
        farewell
    }

    /// The time by which calls have to end.
    pub(super) fn calls_by(&mut self, stop: &Stop) -> Instant {
        match stop {
            Stop::Ended => Instant::now() + grace(self.hold.shared.lease_duration),
            Stop::LetGo | Stop::AtBound => self.farewell().calls_by,
            // A shard may wait at its end for long before it is let go: its farewell begins then.
            _ => Instant::now() + self.hold.shared.handoff_timeout,
        }
    }

    /// Lets calls that are under way end, and cuts off those that take too long. The answer of the
    /// dead-letter queue is not waited for: an unfinished record is delivered again.
    pub(super) async fn wind_up(&mut self, stop: &Stop) {
        self.work.lanes.stop_making();
        self.work.sending = None;
        self.work.outbox.give_up_attempt();
        let beside_calls = is_planted(Bug::HandoffDuringCall) && matches!(stop, Stop::LetGo);
        let mut over_by = None;
        while !beside_calls && !self.work.lanes.is_idle() {
            self.hold.state(ShardState::LettingGo);
            self.show_call();
            let gather_until = self.work.gather_until;
            let (is_shutdown, is_over) = (self.hold.shared.let_go.is_cancelled(), over_by.is_some());
            let by = match over_by {
                Some(by) => by,
                None => self.calls_by(stop),
            };
            if matches!(stop, Stop::Ended) {
                over_by = Some(by);
            }
            tokio::select! {
                biased;
                event = self.work.lanes.next(&self.hold.shard) => self.lane_event(event),
                () = sleep_until(gather_until) => self.take_acknowledged(),
                () = ended(&self.hold.term), if !is_over => {
                    over_by = Some(by.min(Instant::now() + grace(self.hold.shared.lease_duration)));
                }
                () = self.hold.shared.let_go.cancelled(), if !is_shutdown => {}
                () = tokio::time::sleep_until(by) => self.cut_off().await,
            }
        }
        self.show_call();
        self.note_finished_beyond();
    }

    /// Cuts off all calls: what they have acknowledged is finished, the rest comes again.
    pub(super) async fn cut_off(&mut self) {
        // A processor that waits for its writes only is not in a call that could be cut off: it hears the farewell.
        let by = Instant::now() + RETURNED;
        while self.work.lanes.end_waits() {
            tokio::select! {
                biased;
                event = self.work.lanes.next(&self.hold.shard) => self.lane_event(event),
                () = tokio::time::sleep_until(by) => break,
            }
        }
        if self.work.lanes.is_idle() {
            return;
        }
        let (shard, call) = (self.hold.shard.shard_id().clone(), self.work.lanes.longest());
        tracing::error!(
            call = call.map(|(method, _)| method),
            running = call.map(|(_, since)| tracing::field::debug(since.elapsed())),
            "a call has not ended in time: it is cut off, and what it has not acknowledged is delivered again"
        );
        if self.hold.shared.let_go.is_cancelled() {
            self.hold.shared.cut_off.note(&shard);
        }
        for called in self.work.lanes.cut_off(&self.hold.shard).await {
            self.call_ended(called);
        }
    }

    /// Lets the processors finish, and the lease go with the last checkpoint. `at_bound`: all is
    /// finished up to where reading is to end.
    pub(super) async fn let_go(&mut self, at_bound: bool) -> TermEnd {
        self.hold.state(ShardState::LettingGo);
        let Farewell { told_by, .. } = self.farewell();
        // In peace only: whoever has lost its lease, or may have, must not write what it has collected. Nor who has no time left to say so.
        if self.hold.term.is_valid() && told_by > Instant::now() && !is_planted(Bug::HandoffDuringCall) {
            self.tell_all(Callback::ShutdownRequested, self.hold.shared.processing.callbacks.shutdown_requested, told_by).await;
        }
        self.settle_stop(told_by).await;
        if at_bound {
            self.note_bound();
        }
        let is_handoff = self.hold.term.status() == TermStatus::HandoffRequested;
        let checkpoint = self.final_checkpoint().filter(|_| !(is_handoff && is_planted(Bug::HandoffForgetsCheckpoint)));
        tokio::select! {
            biased;
            () = self.hold.release(checkpoint, BTreeSet::new()) => TermEnd::Released,
            // Also if the table is away the processors hear that the lease is gone. The keeper has the
            // release, and goes on with it.
            farewell = self.shutdown_ends() => {
                self.farewell = Some(farewell);
                tracing::error!("the lease table does not answer: the lease may not be freed in time");
                TermEnd::Lost
            }
        }
    }

    /// Waits until the time of a shutdown is all but over, also of one that begins while the shard is
    /// being handed over, and returns its times.
    fn shutdown_ends(&self) -> impl Future<Output = Farewell> + Send + use<> {
        let (shared, farewell) = (Arc::clone(&self.hold.shared), self.farewell);
        async move {
            shared.let_go.cancelled().await;
            let known = farewell.filter(|farewell| farewell.is_shutdown);
            let farewell = known.unwrap_or_else(|| Farewell::within(shared.shutdown_timeout, true));
            let by = farewell.ended_by;
            tokio::time::sleep_until(by.checked_sub(LAST_WORD).unwrap_or(by)).await;
            farewell
        }
    }

    /// Tells the processors that the shard is not theirs any more.
    pub(super) async fn lease_lost(&mut self) {
        let deadline = self.hold.shared.processing.callbacks.lease_lost;
        if is_planted(Bug::FarewellForgotten) {
            return;
        }
        let now = Instant::now();
        let by = match self.farewell.filter(|farewell| farewell.is_shutdown) {
            // However late the release was: a call that does not wait is made.
            Some(farewell) => farewell.ended_by.max(now + LAST_WORD).min(now + deadline),
            None => now + deadline,
        };
        self.tell_all(Callback::LeaseLost, deadline, by).await;
        if is_planted(Bug::FarewellTwice) {
            self.tell_all(Callback::LeaseLost, deadline, Instant::now() + deadline).await;
        }
    }

    /// Makes a last call on all lanes at once, and cuts off those that have not ended by then.
    async fn tell_all(&mut self, callback: Callback, deadline: Duration, by: Instant) {
        let deadline = deadline.min(by.saturating_duration_since(Instant::now()));
        let one_alone = callback == Callback::ShutdownRequested && is_planted(Bug::OneLaneIsTold);
        for lane in 0..if one_alone { 1 } else { self.work.lanes.len() } {
            self.work.lanes.call_back(lane, callback, deadline, &self.hold.shard);
        }
        while !self.work.lanes.is_idle() {
            self.show_call();
            tokio::select! {
                biased;
                event = self.work.lanes.next(&self.hold.shard) => {
                    if !matches!(event, LaneEvent::Acknowledged) {
                        self.lane_event(event);
                    }
                }
                // Only a call that blocks its thread is not over by its deadline.
                () = tokio::time::sleep_until(by + Duration::from_millis(10)) => self.cut_off().await,
            }
        }
        self.show_call();
    }
}

impl Hold {
    /// Ends the term in the table. While the table is away, waits: whoever shuts the worker down
    /// sets the limit.
    pub(super) async fn release(&self, checkpoint: Option<Checkpoint>, children: BTreeSet<ShardId>) {
        let term = &self.term;
        loop {
            match term.release(checkpoint, children.clone()).await {
                Ok(()) => return,
                Err(CheckpointWriteError::LeaseLost) => {
                    tracing::warn!("the lease was lost before it could be released");
                    return;
                }
                // It may not even have been taken into the keeper's queue: asked again. A second one
                // behind the first finds the term to be over.
                Err(error) => tracing::debug!(%error, "the release is not confirmed yet; asking again"),
            }
            if matches!(term.status(), TermStatus::Ended(_)) {
                return;
            }
            if is_planted(Bug::ReleaseAskedOnce) {
                ended(term).await;
            }
        }
    }
}

/// Waits until a term is over.
async fn ended(term: &kcl_lease::term::Term) {
    while !matches!(term.status(), TermStatus::Ended(_)) {
        term.status_other_than(term.status()).await;
    }
}
