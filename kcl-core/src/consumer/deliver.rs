//! Delivery: from what is read into the processors, with lanes, retries and the dead-letter queue.
//! Nothing that failed is passed over.
//!
//! Everything happens in turns. In each, what can be begun is begun: records go from the page that
//! was read into work, calls onto free lanes, dead letters to their queue. Then one thing is waited
//! for: a call that ends, an answer of the queue, the end of a pause, the next records.

use std::convert::Infallible;
use std::time::Duration;

use kcl_checkpoint::planted::{Bug, is_planted};
use tokio::time::Instant;

use super::flow::PauseReason;
use super::lanes::LaneEvent;
use super::prefetch::{Answer, Prefetched};
use super::seat::Callback;
use super::work::Answers;
use super::{ShardConsumer, Stop};
use crate::status::ShardState;

/// The time after which a shard that makes no progress says so, and then each such time.
pub(super) const REMINDER: Duration = Duration::from_secs(60);

/// The time for which acknowledgements of calls under way are gathered before they are taken in.
const GATHER: Duration = Duration::from_millis(50);

/// An event that a turn has waited for.
enum Event {
    Lane(LaneEvent),
    Answered(Answers),
    Fetched(Answer),
    /// Nothing was read for long.
    Overdue,
    /// There is something to begin.
    Look,
}

impl ShardConsumer {
    /// Delivers what is read, in order, until something stops it. Calls that are under way have
    /// ended then, unless the shard is only read anew.
    pub(super) async fn deliver(&mut self, ahead: &mut Prefetched) -> Stop {
        let stop = match self.deliver_until_stopped(ahead).await {
            Ok(never) => match never {},
            Err(stop) => stop,
        };
        if !matches!(stop, Stop::Reopen(_)) {
            self.wind_up(&stop).await;
        }
        stop
    }

    async fn deliver_until_stopped(&mut self, ahead: &mut Prefetched) -> Result<Infallible, Stop> {
        loop {
            if let Some(answer) = self.turn(Some(ahead)).await? {
                self.take_in(answer).await?;
            }
            if self.work.reopen && self.work.in_hand.is_empty() && !self.work.rewind.is_due() {
                // What is in work stays there: a key that is stuck keeps no other from going on.
                self.work.reopen = false;
                return Err(self.read_anew());
            }
            let is_through = self.work.is_through();
            let skips = self.work.skip && self.work.paused.is_none() && (is_through || is_planted(Bug::SkipLeavesWork));
            if skips {
                self.work.skip = false;
                return Err(self.skip_to_latest().await?);
            }
            if is_through && self.work.paused.is_none() {
                if self.work.bound_reached {
                    return Err(Stop::AtBound);
                }
                if let Some(children) = self.work.ended.take() {
                    return Err(self.read_to_its_end(children).await?);
                }
            }
        }
    }

    /// Finishes what was read, without reading on.
    pub(super) async fn settle(&mut self) -> Result<(), Stop> {
        while !self.work.is_through() {
            self.turn(None).await?;
        }
        Ok(())
    }

    /// One turn: begins what can be begun, and waits for one thing. Gives what was read, if that was
    /// it.
    async fn turn(&mut self, ahead: Option<&mut Prefetched>) -> Result<Option<Answer>, Stop> {
        if let Some(stop) = self.hold.stopped() {
            return Err(stop);
        }
        let now = Instant::now();
        self.look_at_stop();
        self.look_at_flow();
        self.write_stop(now).await?;
        if self.work.gather_until.is_some_and(|until| until <= now) {
            self.take_acknowledged();
        }
        self.flush_what_cannot_grow();
        // What is not begun as the lease does not allow it is begun when it does: then that is
        // waited for, also if it does by then.
        let mut is_open = self.hold.is_open();
        if is_open {
            self.take_note_back().await?;
            if self.work.paused.is_none() {
                self.take_into_work();
                is_open = self.begin_calls().await?;
                if is_open {
                    self.call_idle(now);
                }
            }
            self.begin_sending();
        }
        if self.may_rewind() {
            tokio::select! {
                biased;
                stop = self.hold.interrupted() => return Err(stop),
                // A checkpoint may be on its way that covers some of what would come again.
                () = self.hold.shard.committer.writes_are_through() => {}
            }
            return Err(self.rewind());
        }
        if self.work.is_through() && self.work.has_read_enough() && self.work.paused.is_none() {
            // What was in hand was finished before: there is nothing to wait for.
            return Ok(None);
        }
        self.show_state(is_open);
        if self.work.note_due.is_some_and(|due| due <= Instant::now()) {
            self.note_finished_beyond();
        }

        let ahead = ahead.filter(|_| self.work.lanes.has_any() && self.work.wants_more());
        let read_by = ahead.is_some().then(|| *self.work.waiting_since.get_or_insert_with(Instant::now) + REMINDER);
        if read_by.is_none() {
            self.work.waiting_since = None;
        }
        let slow_by = self.work.lanes.longest().map(|(_, since)| since + REMINDER).filter(|by| *by > now);
        let trial = self.next_trial().filter(|at| *at > now && self.is_outage(now));
        // A lease that runs out while a call is under way is shown at once.
        let expiry = is_open.then(|| now + self.hold.term.valid_for() + Duration::from_millis(1));
        let wake = [self.work.next_wake(now), slow_by, trial, expiry].into_iter().flatten().min();
        let event = tokio::select! {
            biased;
            stop = self.hold.interrupted() => return Err(stop),
            event = self.work.lanes.next(&self.hold.shard) => Event::Lane(event),
            answers = pending_or(self.work.sending.as_mut()) => Event::Answered(answers),
            _ = self.work.flow_changes.changed() => Event::Look,
            valid = self.hold.term.valid(), if !is_open => match valid {
                Ok(()) => Event::Look,
                Err(_) => return Err(Stop::Ended),
            },
            changed = self.hold.term.stopped_other_than(self.work.stop_note.seen()) => match changed {
                Ok(_) => Event::Look,
                Err(_) => return Err(Stop::Ended),
            },
            () = sleep_until(wake) => Event::Look,
            answer = next(ahead) => Event::Fetched(answer),
            () = sleep_until(read_by) => Event::Overdue,
        };
        match event {
            Event::Lane(event) => self.lane_event(event),
            Event::Answered(answers) => self.letters_answered(answers),
            Event::Look => {}
            Event::Overdue => {
                self.work.waiting_since = None;
                self.reading_is_overdue()?;
            }
            Event::Fetched(answer) => {
                self.work.waiting_since = None;
                return Ok(Some(answer));
            }
        }
        Ok(None)
    }

    /// Takes in what has happened on the lanes.
    pub(super) fn lane_event(&mut self, event: LaneEvent) {
        match event {
            LaneEvent::Called(called) => self.call_ended(called),
            LaneEvent::Made(made) => self.processor_made(made),
            LaneEvent::CalledBack { callback, lost, result } => {
                if let Err(failure) = result {
                    self.count_panic(&failure);
                    let failure = self.hold.shown(&failure);
                    tracing::error!(failure, "{} failed", callback.name());
                }
                self.work.note_call_ended();
                if lost {
                    self.processor_lost();
                }
            }
            LaneEvent::Acknowledged => {
                self.work.gather_until.get_or_insert_with(|| Instant::now() + GATHER);
            }
        }
    }

    /// Takes in what calls under way have acknowledged: those records are finished.
    pub(super) fn take_acknowledged(&mut self) {
        self.work.gather_until = None;
        for (group, began, records) in self.work.lanes.take_acknowledged() {
            self.world_is_fine(began);
            self.processed(group, &records, self.work.probing);
        }
    }

    /// Calls processors that have had no records for a while, if that is asked for.
    fn call_idle(&mut self, now: Instant) {
        let Some(every) = self.hold.shared.processing.idle_callback.filter(|_| !is_planted(Bug::IdleForgotten)) else { return };
        let work = &mut self.work;
        let due = *work.idle_at.get_or_insert(now + every);
        let has_records = work.schedule.has_ready() || !work.in_hand.is_empty();
        if due > now || has_records || work.careful.is_some() || work.rewind.is_due() || work.has_read_enough() {
            return;
        }
        let deadline = self.hold.shared.processing.callbacks.idle;
        for lane in 0..work.lanes.len() {
            if work.lanes.call_back(lane, Callback::Idle, deadline, &self.hold.shard) {
                work.idle_at = Some(now + every);
            }
        }
    }

    /// Lets batches be called that wait to be filled, if nothing more can come before they are.
    fn flush_what_cannot_grow(&mut self) {
        let work = &self.work;
        let is_full = !work.barrier
            && work.room(&self.hold.shared.processing, self.prefix.span()) == 0
            && (work.lanes.len() > 1 || work.lanes.is_idle());
        let is_flushed = is_full || work.has_read_enough() || work.careful.is_some();
        self.work.schedule.flush(is_flushed);
    }

    /// Sees whether the shard is paused, or was resumed.
    pub(super) fn look_at_flow(&mut self) {
        let paused = self.hold.shared.flow.paused(self.hold.shard.shard_id());
        if paused.is_none() {
            self.open_valve();
            self.resumed();
        }
        if paused != self.work.paused {
            match paused {
                Some(reason) => tracing::info!(?reason, "the shard is paused"),
                None => tracing::info!("the shard is resumed"),
            }
        }
        self.work.paused = paused;
    }

    fn show_state(&mut self, is_open: bool) {
        self.show_call();
        let is_outage = self.tell_of_outage();
        if !is_open {
            self.hold.suspended();
            return;
        }
        let work = &self.work;
        let state = match work.paused {
            Some(PauseReason::Processor) => ShardState::StoppedByProcessor,
            Some(PauseReason::SafetyValve) => ShardState::StoppedBySafetyValve,
            Some(PauseReason::Asked) => ShardState::Paused,
            None if !work.outbox.is_empty() && work.send.is_failing() => ShardState::WaitingForDeadLetterQueue,
            None if work.schedule.has_blocked() || (!work.outbox.is_empty() && self.hold.shared.dead_letter_queue.is_none()) => {
                ShardState::BlockedByRecord
            }
            None if is_outage => ShardState::DependencyFailing,
            None if work.schedule.has_waiting() || work.make.is_failing() || work.rewind.is_due() => ShardState::Retrying,
            None if work.read_failing => ShardState::ReadFailing,
            None if !work.lanes.has_any() => ShardState::Starting,
            None => ShardState::Processing,
        };
        self.hold.state(state);
    }

    /// Shows the oldest call that is under way, and tells of one that takes long, once.
    pub(super) fn show_call(&mut self) {
        let longest = self.work.lanes.longest().map(|(method, since)| (method, since.elapsed()));
        self.hold.shared.status.call(self.hold.shard.shard_id(), longest);
        let is_idle = self.work.last_finished.is_none_or(|last| last.elapsed() >= REMINDER);
        match longest.filter(|(_, running)| *running >= REMINDER && is_idle) {
            Some((method, running)) => {
                if !std::mem::replace(&mut self.work.told_of_long_call, true) {
                    tracing::error!(?running, "a call of {method} is under way for more than {REMINDER:?}");
                }
            }
            None => self.work.told_of_long_call = false,
        }
    }
}

/// The next answer, if one is asked for.
async fn next(ahead: Option<&mut Prefetched>) -> Answer {
    match ahead {
        Some(ahead) => ahead.next().await,
        None => std::future::pending().await,
    }
}

async fn pending_or<T>(future: Option<impl Future<Output = T>>) -> T {
    match future {
        Some(future) => future.await,
        None => std::future::pending().await,
    }
}

pub(super) async fn sleep_until(time: Option<Instant>) {
    pending_or(time.map(tokio::time::sleep_until)).await;
}
