//! Dead letters: from a record that is given up to the queue's acceptance. Only then is the record finished.

use std::panic::AssertUnwindSafe;

use futures::FutureExt as _;
use kcl_checkpoint::planted::{Bug, is_planted};
use kcl_lease::Clock as _;
use std::sync::Arc;
use tokio::time::Instant;

use super::ShardConsumer;
use super::call::panicked;
use super::outbox::Outgoing;
use super::retry::Condemned;
use super::schedule::GroupKey;
use super::settings::PoisonedKey;
use super::valve::Valve;
use super::work::Answers;
use crate::dead_letter::{DeadLetter, DeadLetterError, DeadLetterQueue, FailureKind};

impl ShardConsumer {
    /// A record is given up. `waiting`: the group that waits until the queue has accepted it.
    pub(super) fn condemn(&mut self, condemned: Condemned, waiting: Option<GroupKey>) {
        let Condemned { entry, failure, condition, .. } = condemned;
        let (shared, history) = (&self.hold.shared, entry.history);
        let now = shared.clock.wall_time();
        if shared.processing.poisoned_key == PoisonedKey::Follow
            && !matches!(failure.kind, FailureKind::Follows | FailureKind::BrokenAggregate)
            && !(failure.kind == FailureKind::Error && is_planted(Bug::FollowsPoisonOnly))
            && self.work.poisoned.insert(entry.record.partition_key(), entry.record.position())
        {
            tracing::error!("more keys are poisoned than can be remembered: records of the oldest one are processed again");
        }
        if is_planted(Bug::FinishedBeforeDeadLetter) {
            self.hold.control.note_delivered(entry.record.position());
            self.finish(std::slice::from_ref(&entry.record), true);
        }
        let shared = &self.hold.shared;
        let letter = DeadLetter {
            record: entry.record,
            stream_arn: shared.stream.arn.clone(),
            stream_created: shared.stream.created,
            shard_id: self.hold.shard.shard_id().clone(),
            kind: failure.kind,
            condition,
            error_chain: failure.chain,
            attempts: history.attempts + u32::from(is_planted(Bug::AttemptTooMany)),
            first_failure: history.first_failure.unwrap_or(now),
            // What is known of the service's time may go back by a second.
            last_failure: history.first_failure.map_or(now, |first| now.max(first)),
            application: shared.application.clone(),
            worker: shared.worker.clone(),
            fencing_token: self.hold.shard.fencing_token(),
        };
        self.work.outbox.push(Outgoing { letter, waiting });
    }

    /// Begins an attempt at the queue, if there is something to send and the queue may be tried.
    pub(super) fn begin_sending(&mut self) {
        let Some(queue) = &self.hold.shared.dead_letter_queue else { return };
        let work = &mut self.work;
        if work.outbox.is_empty() || work.sending.is_some() || !work.send.may(Instant::now()) {
            return;
        }
        let letters = work.outbox.next_batch(work.valve.room());
        if !letters.is_empty() {
            let queue = Arc::clone(queue);
            work.sending = Some(async move { send(queue.as_ref(), &letters).await }.boxed());
        } else {
            self.close_valve();
        }
    }

    /// Stops the shard, as too many of its records go to the queue. Once, until it is resumed.
    fn close_valve(&mut self) {
        if !std::mem::replace(&mut self.work.valve_closed, true) {
            tracing::error!("too many records go to the dead-letter queue: the shard stops until it is resumed");
            self.valve_closed();
        }
    }

    /// Begins to count anew, if the valve was closed: the shard is resumed.
    pub(super) fn open_valve(&mut self) {
        if std::mem::take(&mut self.work.valve_closed) {
            self.work.valve.reset();
        }
    }

    /// The queue has answered.
    pub(super) fn letters_answered(&mut self, answers: Answers) {
        self.work.sending = None;
        let answers = if is_planted(Bug::DeadLetterErrorIgnored) { answers.into_iter().map(|_| Ok(())).collect() } else { answers };
        let (accepted, refused) = self.work.outbox.answered(answers);
        for Outgoing { letter, waiting } in accepted {
            let record = letter.record.position();
            tracing::error!(%record, attempts = letter.attempts, kind = letter.kind.as_str(), "record sent to the dead-letter queue");
            self.hold.shared.metrics.dead_lettered(letter.kind.as_str());
            self.hold.shared.status.update(self.hold.shard.shard_id(), |status| status.dead_letters += 1);
            if !is_planted(Bug::FinishedBeforeDeadLetter) {
                self.finish(std::slice::from_ref(&letter.record), Valve::counts(letter.kind));
            }
            self.note_dead(record);
            match waiting {
                Some(group) => self.work.schedule.letter_accepted(group),
                None if letter.kind == FailureKind::BrokenAggregate => self.work.barrier = false,
                None => {}
            }
        }
        match refused {
            None => {
                self.work.send.succeeded();
                self.hold.answered(DeadLetterError::SERVICE);
            }
            Some(error) => {
                self.work.send.failed(Instant::now());
                self.hold.failing(error.cause(), &error);
            }
        }
    }
}

/// Makes an attempt at the queue. One that panics has accepted nothing, as far as is known.
async fn send(queue: &dyn DeadLetterQueue, letters: &[DeadLetter]) -> Answers {
    match AssertUnwindSafe(queue.send(letters)).catch_unwind().await {
        Ok(answers) => answers,
        Err(panic) => {
            drop(panicked(panic));
            let message = "its implementation has panicked".to_owned();
            letters.iter().map(|_| Err(DeadLetterError::Unavailable { queue: String::new(), message: message.clone() })).collect()
        }
    }
}
