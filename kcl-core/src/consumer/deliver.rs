//! Delivery: from what is read into the processors, with lanes, retries and the dead-letter queue. Nothing that failed is passed over.
//!
//! Everything happens in turns. In each, what can be begun is begun: records go from the hand into work, calls onto free lanes, dead letters to
//! their queue. Then one thing is waited for: a call that ends, an answer of the queue, the end of a pause, the next records.

use std::convert::Infallible;
use std::time::Duration;

use tokio::time::Instant;

use super::flow::PauseReason;
use super::lanes::LaneEvent;
use super::prefetch::{Answer, Prefetched};
use super::work::Answers;
use super::{ShardConsumer, Stop};
use crate::status::ShardState;

/// How often a shard that makes no progress says so.
pub(super) const REMINDER: Duration = Duration::from_secs(60);

/// What a turn has waited for.
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
    /// Delivers what is read, in order, until something stops it. Then calls that are under way have ended.
    pub(super) async fn deliver(&mut self, ahead: &mut Prefetched) -> Stop {
        let stop = match self.deliver_until_stopped(ahead).await {
            Ok(never) => match never {},
            Err(stop) => stop,
        };
        self.wind_up().await;
        stop
    }

    async fn deliver_until_stopped(&mut self, ahead: &mut Prefetched) -> Result<Infallible, Stop> {
        loop {
            if let Some(answer) = self.turn(Some(ahead)).await? {
                self.take_in(answer).await?;
            }
            if self.work.is_through() {
                if self.work.reopen {
                    self.work.reopen = false;
                    return Err(self.read_anew());
                }
                if std::mem::take(&mut self.work.skip) {
                    return Err(self.skip_to_latest().await?);
                }
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

    /// Lets calls that are under way end. The answer of the dead-letter queue is not waited for: an unfinished record is delivered again.
    async fn wind_up(&mut self) {
        self.work.lanes.stop_making();
        self.work.sending = None;
        self.work.outbox.give_up_attempt();
        while !self.work.lanes.is_idle() {
            if let LaneEvent::Called(called) = self.work.lanes.next().await {
                self.call_ended(called);
            }
        }
        self.note_finished_beyond();
    }

    /// One turn: begins what can be begun, and waits for one thing. Gives what was read, if that was it.
    async fn turn(&mut self, ahead: Option<&mut Prefetched>) -> Result<Option<Answer>, Stop> {
        if let Some(stop) = self.hold.stopped() {
            return Err(stop);
        }
        let now = Instant::now();
        self.look_at_flow();
        // What is not begun as the lease does not allow it is begun when it does: then that is waited for, also if it does by then.
        let mut is_open = self.hold.is_open();
        if is_open {
            if self.work.paused.is_none() {
                self.take_into_work();
                is_open = self.begin_calls().await?;
            }
            self.begin_sending();
        }
        if self.may_rewind() {
            return Err(self.rewind());
        }
        if self.work.is_through() && self.work.has_read_enough() {
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
        let slow_by = self.work.lanes.longest_since().map(|since| since + REMINDER).filter(|by| *by > now);
        let wake = [self.work.next_wake(now), slow_by].into_iter().flatten().min();
        let event = tokio::select! {
            biased;
            stop = self.hold.interrupted() => return Err(stop),
            event = self.work.lanes.next() => Event::Lane(event),
            answers = pending_or(self.work.sending.as_mut()) => Event::Answered(answers),
            _ = self.work.flow_changes.changed() => Event::Look,
            valid = self.hold.term.valid(), if !is_open => match valid {
                Ok(()) => Event::Look,
                Err(_) => return Err(Stop::Ended),
            },
            () = sleep_until(wake) => Event::Look,
            answer = next(ahead) => Event::Fetched(answer),
            () = sleep_until(read_by) => Event::Overdue,
        };
        match event {
            Event::Lane(LaneEvent::Called(called)) => self.call_ended(called),
            Event::Lane(LaneEvent::Made(made)) => self.processor_made(made),
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

    /// Sees whether the shard is paused, or was resumed.
    fn look_at_flow(&mut self) {
        let paused = self.hold.shared.flow.paused(self.hold.shard.shard_id());
        if paused.is_none() && std::mem::take(&mut self.work.valve_closed) {
            self.work.valve.reset();
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
        if !is_open {
            self.hold.suspended();
            return;
        }
        let work = &self.work;
        let is_slow = work.lanes.longest_since().is_some_and(|since| since + REMINDER <= Instant::now());
        let state = match work.paused {
            Some(PauseReason::Processor) => ShardState::StoppedByProcessor,
            Some(PauseReason::SafetyValve) => ShardState::StoppedBySafetyValve,
            Some(PauseReason::Asked) => ShardState::Paused,
            None if !work.outbox.is_empty() && work.send.is_failing() => ShardState::WaitingForDeadLetterQueue,
            None if work.schedule.has_blocked() || (!work.outbox.is_empty() && self.hold.shared.dead_letter_queue.is_none()) => {
                ShardState::BlockedByRecord
            }
            None if is_slow => ShardState::InLongCall,
            None if work.schedule.has_waiting() || work.make.is_failing() || work.rewind.is_due() => ShardState::Retrying,
            None if work.read_failing => ShardState::ReadFailing,
            None if !work.lanes.has_any() => ShardState::Starting,
            None => ShardState::Processing,
        };
        if self.hold.state(state) && state == ShardState::InLongCall {
            tracing::error!("a call of process_records has been under way for {REMINDER:?}");
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

async fn sleep_until(time: Option<Instant>) {
    pending_or(time.map(tokio::time::sleep_until)).await;
}
