//! Calls: which records go to a processor next, and what follows when a call has ended.

use kcl_checkpoint::planted::{Bug, is_planted};
use kcl_checkpoint::{Checkpoint, CheckpointWriteError, ExtendedSequenceNumber};
use kcl_lease::{Clock as _, Suspect};
use tokio::time::Instant;

use super::call::{Advice, CallFailure};
use super::careful::{Careful, Step};
use super::flow::PauseReason;
use super::lanes::Called;
use super::retry::{Condemned, Ended, Judged, judge};
use super::schedule::{Entry, GroupKey, Hold};
use super::seat::{Announced, Verdict};
use super::settings::PoisonedKey;
use super::{Checkpointing, ShardConsumer, Stop};
use crate::dead_letter::FailureKind;
use crate::record::Record;

/// How often what is finished beyond the checkpoint is noted for the next write of the lease.
const NOTE_INTERVAL: std::time::Duration = std::time::Duration::from_millis(500);

/// The least wait before a record is tried again that would go to the dead-letter queue if there
/// were one.
const BLOCKED_PAUSE: std::time::Duration = std::time::Duration::from_secs(10);

impl ShardConsumer {
    /// Begins as many calls as there are free lanes and records that may be called. Returns whether the lease allowed it.
    pub(super) async fn begin_calls(&mut self) -> Result<bool, Stop> {
        let now = Instant::now();
        self.work.schedule.wake(now);
        if self.work.rewind.is_due() {
            return Ok(true);
        }
        loop {
            let work = &mut self.work;
            if !work.lanes.has_free() {
                // Lanes get their processors when they are needed; the first one before the first record is read.
                if (work.schedule.has_ready() || !work.lanes.has_any()) && work.make.may(now) {
                    work.lanes.make(&self.hold.shared.factory, &self.hold.shard);
                }
                return Ok(true);
            }
            if work.careful.is_some() && !work.lanes.is_idle() {
                return Ok(true);
            }
            let is_outage = self.is_outage(now);
            if is_outage && (self.next_trial().is_some_and(|at| at > now) || !self.work.breaker.may(now)) {
                // One call at a time finds out whether the world is back.
                return Ok(true);
            }
            let work = &mut self.work;
            // While the world fails, one record finds out whether it is back: a batch may fail for its size.
            let most = if work.careful.is_some() || (is_outage && work.lanes.len() > 1) { 1 } else { usize::MAX };
            // A commit covers all records before its own: where a processor commits, none is called while one before it is on its way to the queue.
            let in_order = work.careful.is_some() || self.hold.shard.committer.is_in_use();
            let before = if in_order { work.outbox.oldest() } else { None };
            let taken = if is_outage { work.schedule.take_least_tried(most, before) } else { work.schedule.take(most, before) };
            let is_probe = taken.is_none();
            let Some((group, entries)) = taken.or_else(|| self.take_probe(now)) else { return Ok(true) };
            let entries = self.without_followers(group, entries);
            if in_order && self.work.outbox.oldest() != before {
                // Some have followed another one there, and are waited for like it.
                self.put_back(group, entries);
                continue;
            }
            let entries = if self.work.careful.is_some() { self.with_care(group, entries, is_probe).await? } else { entries };
            if entries.is_empty() {
                continue;
            }
            // While the record was noted the shard may have been asked for, or its lease have run out: later, or elsewhere.
            let stop = self.hold.stopped();
            if stop.is_some() || !self.hold.is_open() {
                if is_probe {
                    self.work.schedule.put_back_probe(group, entries, 0);
                } else {
                    self.put_back(group, entries);
                }
                return stop.map_or(Ok(false), Err);
            }
            if is_planted(Bug::KeyLogged) {
                tracing::warn!(key = entries[0].record.partition_key(), "processing");
            }
            let mut announced = Announced::default();
            if self.work.lanes.len() == 1 {
                // While they are in work the processor may checkpoint them for itself; but not beyond one that is on its way to the queue.
                let reaches = self.prefix.acked_with(entries.iter().map(|entry| entry.record.position()));
                if self.hold.shared.factory.is_handler() && !is_planted(Bug::HandlerCoversBatch) {
                    // A handler knows of one record at a time.
                    announced = Announced::new(self.hold.control.clone(), reaches);
                } else if let Some(reached) = reaches.last().copied().flatten() {
                    self.hold.control.note_delivered(reached);
                }
            }
            self.work.probing = is_probe;
            self.work.lanes.call(group, entries, announced, self.work.behind, &self.hold.shard);
        }
    }

    /// Takes the note of a record back whose attempt has ended, also if no other call may begin: nobody
    /// who dies now has died of it.
    pub(super) async fn take_note_back(&mut self) -> Result<(), Stop> {
        match self.work.careful.as_mut().and_then(Careful::take_back) {
            Some(suspect) => self.note_suspect(suspect).await,
            None => Ok(()),
        }
    }

    /// These are not called now.
    fn put_back(&mut self, group: GroupKey, entries: Vec<Entry>) {
        if !entries.is_empty() {
            self.work.schedule.put_back(group, entries, Hold::default());
        }
    }

    /// Sends records of poisoned keys after the earlier ones, if that is configured, and returns the others.
    fn without_followers(&mut self, group: GroupKey, entries: Vec<Entry>) -> Vec<Entry> {
        let follow = self.hold.shared.processing.poisoned_key == PoisonedKey::Follow;
        let poisoned = &self.work.poisoned;
        let follows = |entry: &Entry| poisoned.follows(entry.record.partition_key(), entry.record.position());
        if !follow || !entries.iter().any(follows) {
            return entries;
        }
        let (mut followers, others): (Vec<_>, Vec<_>) = entries.into_iter().partition(follows);
        if is_planted(Bug::FollowersBackwards) {
            followers.reverse();
        }
        let letters = followers.len();
        for entry in followers {
            let words = "an earlier record of its partition key went to the dead-letter queue".to_owned();
            let failure = CallFailure::own(FailureKind::Follows, Advice::Poison, words);
            self.condemn(Condemned::proven(entry, failure), Some(group));
        }
        let in_work = !others.is_empty();
        self.work.schedule.hold_letters(group, letters, in_work);
        others
    }

    /// A record in work alone: notes it in the lease first, or gives it up if it has killed enough processes. Returns what is to be called.
    async fn with_care(&mut self, group: GroupKey, mut entries: Vec<Entry>, is_probe: bool) -> Result<Vec<Entry>, Stop> {
        let (Some(careful), Some(entry)) = (self.work.careful, entries.first()) else { return Ok(entries) };
        let record = entry.record.position();
        match careful.before(record, self.hold.shared.retry.max_deaths) {
            Step::Go => return Ok(entries),
            // Without a queue it is tried again all the same, after a wait: this program may be a
            // better one than those that died.
            Step::GiveUp(deaths) if self.hold.shared.dead_letter_queue.is_none() && careful.has_waited(record) => {
                self.note_suspect(Suspect { record, begun: deaths.saturating_add(1) }).await?;
                return Ok(entries);
            }
            Step::Note(suspect) => {
                self.note_suspect(suspect).await?;
                return Ok(entries);
            }
            Step::GiveUp(deaths) => {
                let words = format!("{deaths} processes have died with this record in work");
                let failure = CallFailure::own(FailureKind::ProcessDeath, Advice::Poison, words);
                let mut entry = entries.remove(0);
                entry.history.attempts = deaths;
                entry.history.first_failure.get_or_insert(self.hold.shared.clock.wall_time());
                if let Some(careful) = &mut self.work.careful {
                    careful.waits(record);
                }
                tracing::error!(%record, deaths, "processes keep dying with a record in work: it is not tried again");
                let condemned = Condemned::proven(entry, failure);
                self.apply(group, Judged { condemned: vec![condemned], ..Judged::default() }, is_probe);
            }
        }
        Ok(Vec::new())
    }

    /// Notes in the lease that this record is in work alone, together with how far all is finished, if the framework writes that down.
    async fn note_suspect(&mut self, suspect: Suspect) -> Result<(), Stop> {
        let mut backoff = self.hold.backoff();
        if let Some(careful) = self.work.careful.as_mut().filter(|careful| careful.is_in_work(suspect)) {
            careful.noted(suspect.record);
            // However the lease is let go while this process lives: nobody has died of the record.
            careful.given_back().into_iter().for_each(|suspect| self.hold.term.set_given_back(suspect));
        }
        let checkpoint = self.final_checkpoint();
        loop {
            match self.hold.term.note_suspect(suspect, checkpoint).await {
                Ok(()) => break,
                Err(CheckpointWriteError::LeaseLost) => return Err(Stop::Ended),
                Err(error) => {
                    tracing::debug!(%error, "the record in work can't be noted yet; trying again");
                    self.hold.pause(backoff.next_wait()).await?;
                }
            }
        }
        if let Some(checkpoint) = checkpoint {
            self.hold.control.note_written(checkpoint);
        }
        Ok(())
    }

    /// From now on records go in batches again.
    pub(super) fn care_is_over(&mut self) {
        tracing::info!("records are delivered in batches again");
        self.work.careful = None;
        self.hold.term.set_carefree();
    }

    pub(super) fn processor_made(&mut self, made: Result<(), CallFailure>) {
        match made {
            Ok(()) => self.work.make.succeeded(),
            Err(failure) => {
                self.count_panic(&failure);
                let wait = self.work.make.failed(Instant::now());
                let failure = self.hold.shown(&failure);
                tracing::error!(failure, ?wait, "the processor could not be made; trying again");
            }
        }
    }

    /// A call has ended: what is done is finished, and the rest is judged.
    pub(super) fn call_ended(&mut self, called: Called) {
        let Called { group, ended, verdict, lost, began, took } = called;
        let is_probe = std::mem::take(&mut self.work.probing);
        self.hold.shared.metrics.processed_in(took.as_secs_f64());
        self.work.note_call_ended();
        let verdict = verdict.map(|verdict| if is_planted(Bug::FailedBatchSkipped) { Verdict::Done } else { verdict });
        if let Some(verdict) = &verdict
            && !matches!(verdict, Verdict::Done | Verdict::Acknowledged)
        {
            self.hold.shared.metrics.retried();
            match verdict {
                Verdict::Unknown(failure) | Verdict::FailedFrom(_, failure) => self.count_panic(failure),
                _ => {}
            }
            self.report_failure(verdict, &ended);
        }
        let shared = &self.hold.shared;
        let evidence = self.evidence(group, &ended.entries);
        let judged = judge(ended, verdict, shared.clock.wall_time(), &shared.retry, &evidence);
        self.note_outcomes(&judged, began, is_probe);
        let is_left = !judged.back.is_empty() || !judged.condemned.is_empty();
        if let Some(careful) = self.work.careful.as_mut().filter(|_| is_left) {
            careful.came_back();
        }
        self.apply(group, judged, is_probe);
        if lost {
            self.processor_lost();
        }
    }

    pub(super) fn count_panic(&self, failure: &CallFailure) {
        if failure.kind == FailureKind::Panic {
            self.hold.shared.metrics.panicked();
        }
    }

    /// Logs a failed call. While different records fail alike, which is logged as an outage, each of
    /// them is no news.
    fn report_failure(&self, verdict: &Verdict, ended: &Ended) {
        let at = |record: ExtendedSequenceNumber| tracing::field::display(record);
        let records = ended.entries.len();
        let (failure, record, failures, failed) = match verdict {
            Verdict::Done | Verdict::Acknowledged => return,
            Verdict::Unknown(failure) => (Some(failure), ended.entries.first().map(|entry| entry.record.position()), None, None),
            Verdict::FailedFrom(record, failure) => {
                let history = ended.entries.iter().find(|entry| entry.record.position() == *record).map(|entry| entry.history);
                (Some(failure), Some(*record), Some(history.unwrap_or_default().failures + 1), None)
            }
            Verdict::Failed(failures) => {
                let first = failures.first();
                (first.map(|(_, failure)| failure), first.map(|(record, _)| *record), None, Some(failures.len()))
            }
        };
        let (failure, record) = (failure.map(|failure| self.hold.shown(failure)), record.map(at));
        let is_named = !matches!(verdict, Verdict::Unknown(_)) || records == 1;
        if self.work.told_of_outage {
            tracing::debug!(failure, record, failures, failed, records, is_named, "processing failed");
        } else if is_named {
            tracing::warn!(failure, record, failures, failed, records, "processing failed");
        } else {
            tracing::warn!(failure, first = record, records, "processing failed, and it is not known of which record");
        }
    }

    /// Records of a group were processed: they are finished. A probe that succeeds is no reason to
    /// try the one that waits sooner.
    pub(super) fn processed(&mut self, group: GroupKey, records: &[Record], is_probe: bool) {
        if !is_probe && records.iter().any(|record| !self.work.rewind.is_repetition(record.position())) {
            self.work.backoffs.remove(&group);
        }
        self.work.rewind.done(records, self.hold.shard.checkpointer.last());
        self.finish(records, false);
    }

    /// Carries out what was judged of a group's records. `is_probe`: a record behind the one that
    /// the group waits for.
    fn apply(&mut self, group: GroupKey, judged: Judged, is_probe: bool) {
        let Judged { finished, condemned, mut back, wait, retry_after, stop, .. } = judged;
        self.processed(group, &finished, is_probe);
        if self.work.lanes.len() == 1 {
            // The processor may checkpoint for itself at any time: not beyond what is finished, while the rest is to come again.
            self.hold.control.note_failed_after(self.prefix.acked());
        }
        let mut hold = Hold::default();
        if wait && !is_probe {
            let backoff = self.work.backoffs.entry(group).or_insert_with(|| self.hold.backoff());
            hold.not_before = Some(Instant::now() + backoff.next_wait().max(retry_after.unwrap_or_default()));
        }
        if self.hold.shared.dead_letter_queue.is_some() {
            if !condemned.is_empty() && !wait {
                // The one that failed is gone, and the others have not failed yet.
                self.work.backoffs.remove(&group);
            }
            for condemned in condemned {
                if condemned.is_proven {
                    self.work.outcomes.left(condemned.entry.record.position());
                }
                let waits = self.hold.shared.processing.poisoned_key != PoisonedKey::Pass && !is_planted(Bug::LetterNotAwaited);
                hold.letters += usize::from(waits);
                self.condemn(condemned, waits.then_some(group));
            }
        } else if !condemned.is_empty() {
            tracing::error!(
                record = %condemned[0].entry.record.position(),
                "a record can't be processed and there is no dead-letter queue: the shard waits and tries it again"
            );
            hold.blocked = true;
            let wait = self.hold.shared.retry.max_backoff.max(BLOCKED_PAUSE);
            hold.not_before = Some(Instant::now() + wait);
            back.extend(condemned.into_iter().map(|condemned| Entry { cut: true, ..condemned.entry }));
            back.sort_by_key(|entry| entry.record.position());
        }
        if stop {
            tracing::error!("the processor wants the shard to stop: it stands still until it is resumed, or until it is taken anew");
            self.hold.shared.flow.stop_shard(self.hold.shard.shard_id(), PauseReason::Processor);
        }
        if is_probe {
            self.work.schedule.put_back_probe(group, back, hold.letters);
        } else {
            self.work.schedule.put_back(group, back, hold);
        }
    }

    /// Notes records as finished, so that checkpoints may pass them.
    pub(super) fn finish(&mut self, records: &[Record], dead: bool) {
        let mut is_news = false;
        for record in records {
            self.prefix.ack(record.position());
            self.work.schedule.finished(record);
            let is_repetition = !dead && self.work.rewind.is_repetition(record.position());
            self.work.rewind.finished(record.position());
            if is_repetition {
                // It has counted as good before.
                continue;
            }
            is_news = true;
            self.work.valve.finished(dead);
            if self.work.careful.as_mut().is_some_and(Careful::finished) {
                self.care_is_over();
            }
        }
        if records.is_empty() {
            return;
        }
        if is_news {
            self.work.last_finished = Some(Instant::now());
        }
        let bytes: usize = records.iter().map(Record::size).sum();
        self.hold.shared.metrics.finished(records.len() as u64, bytes as u64);
        self.hold.shared.status.progress(self.hold.shard.shard_id(), records.len() as u64, is_news);
        self.acked_more();
    }

    /// More of the shard may be finished now: tells those who want to know.
    pub(super) fn acked_more(&mut self) {
        let acked = if is_planted(Bug::DeliveredIsFinished) { self.prefix.delivered() } else { self.prefix.acked() };
        self.acked.send_if_modified(|before| std::mem::replace(before, acked) != acked);
        let checkpointer = &self.hold.shard.checkpointer;
        if let Some(acked) = acked.filter(|_| !self.work.rewind.is_due()) {
            // With several lanes others are in work beyond it. With one it may be more than what a processor was given: dead letters, what an earlier term
            // had finished, dropped aggregates.
            self.hold.control.note_delivered(acked);
        }
        self.hold.shared.status.update(self.hold.shard.shard_id(), |status| {
            status.finished = acked;
            status.checkpoint = checkpointer.last();
        });
        self.move_watermark();
        self.show_oldest();
        if !self.prefix.is_complete() || self.work.noted.is_some() {
            let due = self.work.noted.map_or_else(Instant::now, |noted| noted + NOTE_INTERVAL);
            self.work.note_due.get_or_insert(due);
        }
    }

    /// Tells the keeper what is finished beyond the checkpoint.
    pub(super) fn note_finished_beyond(&mut self) {
        self.work.note_due = None;
        // What was known before this term is better than what it has seen until now.
        let before = self.work.finished_before.as_ref();
        if before.is_none_or(|before| self.prefix.delivered() >= Some(before.until)) {
            // What a processor that checkpoints for itself has taken is not finished before it says so.
            let automatic = matches!(self.hold.shared.checkpointing, Checkpointing::Automatic { .. });
            let note = self.prefix.finished_beyond().filter(|_| automatic);
            let is_covered = |until: ExtendedSequenceNumber| Checkpoint::At(until) <= self.hold.shard.checkpointer.last();
            if note.is_none() && self.work.noted_until.is_some_and(|until| !is_covered(until)) {
                // What stands in the lease is true, and until a checkpoint says the same nothing else does.
                self.work.note_due = Some(Instant::now() + NOTE_INTERVAL);
                return;
            }
            self.work.noted = note.is_some().then(Instant::now);
            self.work.noted_until = note.as_ref().map(|note| note.until);
            self.hold.term.set_finished_beyond(note);
        }
    }

    /// What to checkpoint now: all that is finished, unless it is written already; with manual checkpoints only if no processor has any of it.
    pub(super) fn final_checkpoint(&self) -> Option<Checkpoint> {
        let acked = self.prefix.acked().filter(|_| !is_planted(Bug::LastCheckpointForgotten)).map(Checkpoint::At);
        acked.filter(|acked| !self.is_anything_collected() && *acked > self.hold.shard.checkpointer.last())
    }
}
