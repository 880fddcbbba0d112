//! Delivery: batch by batch into the processor, with retries, isolation and the dead-letter queue. Nothing that failed is passed over.

use std::collections::VecDeque;
use std::time::Duration;

use kcl_checkpoint::Timestamp;
use kcl_checkpoint::planted::{Bug, is_planted};
use kcl_lease::Clock;
use tokio::time::Instant;

use super::call::{CallFailure, guarded};
use super::prefetch::Prefetched;
use super::retry::{Failed, Step, after_failure};
use super::start::{Gap, StartFilter, starting_position};
use super::{Exclusive, ShardConsumer, Stop, TrimmedData};
use crate::dead_letter::{Condition, DeadLetter};
use crate::record::{Record, RecordBatch};
use crate::retrieval::Fetched;
use crate::status::ShardState;
use crate::stream::{ChildShard, ShardFilter, StartingPosition, StreamError, children_of};

/// How often a shard that makes no progress says so.
const REMINDER: Duration = Duration::from_secs(60);

/// A pause in reading after which nothing is taken for granted: below the five minutes for which an iterator lives, and below the margin
/// within which records count as trimmed.
const LONG_PAUSE: Duration = Duration::from_secs(240);

/// The history of what is at the head of the records in work.
#[derive(Default)]
struct Head {
    failures: u32,
    first_failure: Option<Timestamp>,
}

impl ShardConsumer {
    /// Delivers what is read, in order, until something stops it.
    pub(super) async fn deliver(&mut self, ahead: &mut Prefetched) -> Stop {
        match self.deliver_until_stopped(ahead).await {
            Ok(never) => match never {},
            Err(stop) => stop,
        }
    }

    async fn deliver_until_stopped(&mut self, ahead: &mut Prefetched) -> Result<std::convert::Infallible, Stop> {
        loop {
            self.gate().await?;
            self.ensure_processor().await?;
            self.state(ShardState::Processing);
            let fetched = tokio::select! {
                biased;
                stop = self.interrupted() => return Err(stop),
                fetched = self.next(ahead) => fetched?,
            };
            if fetched.is_ok() {
                self.shared.reading.succeeded(self.shared.clock.boot_time());
                if self.paused_for_long() {
                    return Err(self.read_anew());
                }
            }
            match fetched {
                Ok(Fetched::Records { records, millis_behind_latest }) => self.take_in(records, millis_behind_latest).await?,
                Ok(Fetched::ShardEnd { children }) => {
                    if let Err(gap) = self.filter.end(self.shared.clock.wall_time(), self.shared.retention()) {
                        self.after_gap(gap).await?;
                    }
                    return Err(Stop::ShardEnd(children));
                }
                Err(error) => self.read_failed(&error).await?,
            }
        }
    }

    /// Whether no answer was taken in for so long that what was read ahead says little of the shard as it is, and its iterator has expired.
    fn paused_for_long(&mut self) -> bool {
        let now = self.shared.clock.boot_time();
        now.saturating_sub(std::mem::replace(&mut self.looked, now)) > LONG_PAUSE
    }

    /// Reads on at the last record that is finished, as a new term would: so that records are missed that were trimmed during the pause.
    fn read_anew(&mut self) -> Stop {
        match self.prefix.acked() {
            Some(last) => {
                self.filter = StartFilter::after(last, self.watermark);
                Stop::Reopen(StartingPosition::AtSequenceNumber(last.sequence_number))
            }
            None => Stop::Reopen(starting_position(self.term.taken(), self.shared.initial)),
        }
    }

    /// The next answer. A reader retries by itself what may pass; when that takes long, the shard says so.
    async fn next(&self, ahead: &mut Prefetched) -> Result<Result<Fetched, StreamError>, Stop> {
        loop {
            match tokio::time::timeout(REMINDER, ahead.next()).await {
                Ok(fetched) => return Ok(fetched),
                Err(_) => {
                    tracing::error!("the shard could not be read for {REMINDER:?}; trying on");
                    self.state(ShardState::ReadFailing);
                    self.not_cut_off()?;
                }
            }
        }
    }

    /// `Err`: nothing of the stream reaches this worker, and another one may do better.
    fn not_cut_off(&self) -> Result<(), Stop> {
        if !is_planted(Bug::CutOffKeepsLeases) && self.shared.reading.is_cut_off(self.looked, self.shared.clock.boot_time()) {
            tracing::error!("this worker reads nothing of the stream; the shard is left to another one");
            return Err(Stop::LetGo);
        }
        Ok(())
    }

    async fn take_in(&mut self, mut records: Vec<Record>, behind: Option<u64>) -> Result<(), Stop> {
        self.shared.status.update(self.shard.shard_id(), |status| status.millis_behind_latest = behind);
        if let Some(millis) = behind {
            self.shared.metrics.behind(millis);
        }
        let (now, retention) = (self.shared.clock.wall_time(), self.shared.retention());
        if let Err(gap) = self.filter.admit(&mut records, behind == Some(0), now, retention) {
            self.after_gap(gap).await?;
        }
        // What is finished with this answer: all that arrived before its last record; or, as an open shard at its tip holds nothing else, all that
        // arrived before now. A closed shard's last answer has records, and says nothing of now: its children's have been arriving meanwhile.
        let watermark = match records.last() {
            Some(_) => records.iter().rev().find_map(Record::approximate_arrival),
            None => Some(now).filter(|_| behind == Some(0)),
        };
        if !records.is_empty() {
            self.process(records, behind).await?;
        }
        if self.prefix.is_complete()
            && let Some(watermark) = watermark
        {
            self.term.set_watermark(watermark);
            self.filter.watched_until(watermark);
            self.watermark = Some(watermark);
        }
        Ok(())
    }

    /// Brings records through: every one is finished, by the processor or by the dead-letter queue, or delivery stops.
    async fn process(&mut self, records: Vec<Record>, behind: Option<u64>) -> Result<(), Stop> {
        let mut rest = VecDeque::from(records);
        let mut alone = 0_usize; // records at the head that are to be delivered one by one
        let mut head = Head::default();
        let mut backoff = self.backoff();
        while !rest.is_empty() {
            self.gate().await?;
            self.ensure_processor().await?;
            let count = if alone > 0 { 1 } else { rest.len() };
            let batch = RecordBatch::new(rest.drain(..count).collect(), behind);
            let called = self.call(&batch).await;
            let Err(failure) = called.or_else(|failure| if is_planted(Bug::FailedBatchSkipped) { Ok(()) } else { Err(failure) }) else {
                self.finish(batch.records());
                alone = alone.saturating_sub(count);
                head = Head::default();
                backoff.reset();
                self.state(ShardState::Processing);
                continue;
            };
            let now = self.shared.clock.wall_time();
            let verdict = after_failure(
                Failed { records: count, in_work: batch.in_work(), poison: failure.is_poison(), failures_before: head.failures },
                &self.shared.retry,
            );
            self.shared.metrics.retried();
            let unfinished = batch.into_records();
            self.finish(&unfinished[..verdict.done]);
            // The processor may checkpoint for itself at any time: not beyond what is finished, while the rest is to come again.
            self.shard.checkpointer.note_failed_after(self.prefix.acked());
            alone = alone.saturating_sub(verdict.done);
            for record in unfinished.into_iter().skip(verdict.done).rev() {
                rest.push_front(record);
            }
            if verdict.done > 0 {
                head = Head::default();
                backoff.reset();
            }
            head.failures = verdict.failures;
            let first_failure = *head.first_failure.get_or_insert(now);
            if is_planted(Bug::KeyLogged) {
                tracing::warn!(key = rest.front().and_then(Record::partition_key), "processing failed");
            }
            tracing::warn!(
                %failure,
                failures = verdict.failures,
                first_record = rest.front().map(|record| tracing::field::display(record.position())),
                next = ?verdict.step,
                "processing failed"
            );
            match verdict.step {
                Step::Retry => {
                    self.state(ShardState::Retrying);
                    self.pause(backoff.next_wait()).await?;
                }
                Step::Isolate => alone = count,
                Step::DeadLetter if self.shared.dead_letter_queue.is_some() => {
                    let record = rest.pop_front().expect("invariant: the failed record is at the head of the rest");
                    if is_planted(Bug::FinishedBeforeDeadLetter) {
                        self.shard.checkpointer.note_delivered(record.position());
                        self.finish(std::slice::from_ref(&record));
                    }
                    self.dead_letter(&record, &failure, head.failures, first_failure, now).await?;
                    self.finish(std::slice::from_ref(&record));
                    alone = alone.saturating_sub(1);
                    head = Head::default();
                    backoff.reset();
                }
                Step::DeadLetter => {
                    self.state(ShardState::BlockedByRecord);
                    tracing::error!(
                        record = rest.front().map(|record| tracing::field::display(record.position())),
                        failures = head.failures,
                        "a record can't be processed and there is no dead-letter queue: the shard waits and tries it again"
                    );
                    self.pause(self.shared.retry.max_backoff).await?;
                }
            }
        }
        Ok(())
    }

    async fn call(&mut self, batch: &RecordBatch) -> Result<(), CallFailure> {
        for record in batch.records() {
            self.prefix.deliver(record.position());
            self.shard.checkpointer.note_delivered(record.position());
        }
        let processor = self.processor.as_mut().expect("invariant: a processor is ensured before each delivery");
        let started = Instant::now();
        let result = guarded(processor.get().process_records(batch, &self.shard)).await;
        self.shared.metrics.processed_in(started.elapsed().as_secs_f64());
        if result.as_ref().is_err_and(CallFailure::is_panic) {
            // What a panic leaves behind is anybody's guess: the next delivery goes to a new processor.
            self.processor = None;
        }
        result.map(|_done| ())
    }

    /// Notes records as finished, so that checkpoints may pass them.
    fn finish(&mut self, records: &[Record]) {
        for record in records {
            self.prefix.ack(record.position());
        }
        let acked = if is_planted(Bug::DeliveredIsFinished) { self.prefix.delivered() } else { self.prefix.acked() };
        self.acked.send_if_modified(|before| std::mem::replace(before, acked) != acked);
        let bytes: usize = records.iter().map(Record::size).sum();
        self.shared.metrics.finished(records.len() as u64, bytes as u64);
        self.shared.status.update(self.shard.shard_id(), |status| {
            status.finished = acked;
            status.records += records.len() as u64;
            status.checkpoint = self.shard.checkpointer.last();
        });
    }

    /// Sends a record to the dead-letter queue until it is accepted. The checkpoint can't pass it before: it is not finished.
    async fn dead_letter(
        &self,
        record: &Record,
        failure: &CallFailure,
        attempts: u32,
        first_failure: Timestamp,
        last_failure: Timestamp,
    ) -> Result<(), Stop> {
        let Some(queue) = &self.shared.dead_letter_queue else { return Ok(()) };
        let letter = DeadLetter {
            record: record.clone(),
            stream_arn: self.shared.stream.arn.clone(),
            stream_created: self.shared.stream.created,
            shard_id: self.shard.shard_id().clone(),
            kind: failure.kind,
            condition: Condition::RetryAttemptsExhausted,
            error_chain: failure.chain.clone(),
            attempts,
            first_failure,
            last_failure,
            application: self.shared.application.clone(),
            worker: self.shared.worker.clone(),
            fencing_token: self.shard.fencing_token(),
        };
        let mut backoff = self.backoff();
        loop {
            // The answer is not waited for beyond a request to stop: an unfinished record is delivered again.
            let sent = tokio::select! {
                biased;
                sent = queue.send(std::slice::from_ref(&letter)) => sent.into_iter().collect::<Result<(), _>>(),
                stop = self.interrupted() => return Err(stop),
            };
            match sent {
                Ok(()) => {
                    tracing::error!(record = %record.position(), attempts, kind = failure.kind.as_str(), "record sent to the dead-letter queue");
                    self.shared.metrics.dead_lettered();
                    self.shared.status.update(self.shard.shard_id(), |status| status.dead_letters += 1);
                    return Ok(());
                }
                Err(_) if is_planted(Bug::DeadLetterErrorIgnored) => return Ok(()),
                Err(error) => {
                    self.state(ShardState::WaitingForDeadLetterQueue);
                    let wait = backoff.next_wait();
                    tracing::error!(record = %record.position(), %error, ?wait, "dead letter not accepted; the shard waits");
                    self.pause(wait).await?;
                    self.gate().await?;
                }
            }
        }
    }

    /// Makes and initializes a processor if there is none, however often that fails.
    pub(super) async fn ensure_processor(&mut self) -> Result<(), Stop> {
        let mut backoff = self.backoff();
        while self.processor.is_none() {
            let made = guarded(async {
                let mut processor = self.shared.factory.0.create(&self.shard).await?;
                processor.initialize(&self.shard).await?;
                Ok(processor)
            })
            .await;
            match made {
                Ok(processor) => self.processor = Some(Exclusive::new(processor)),
                Err(failure) => {
                    let wait = backoff.next_wait();
                    tracing::error!(%failure, ?wait, "the processor could not be made; trying again");
                    self.state(ShardState::Retrying);
                    self.pause(wait).await?;
                    self.gate().await?;
                }
            }
        }
        Ok(())
    }

    async fn read_failed(&mut self, error: &StreamError) -> Result<(), Stop> {
        if let (StreamError::InvalidArgument { .. }, Some(gap)) = (error, self.filter.refused()) {
            tracing::warn!(%error, "the checkpoint's record is not known to the shard");
            self.after_gap(gap).await?;
            return Err(Stop::Reopen(StartingPosition::TrimHorizon));
        }
        if is_planted(Bug::EndOnNotFound) && matches!(error, StreamError::NotFound { .. }) {
            return Err(Stop::ShardEnd(self.children_of_trimmed().await.unwrap_or_default()));
        }
        if matches!(error, StreamError::NotFound { .. })
            && let Some(children) = self.children_of_trimmed().await
        {
            tracing::warn!(%error, "the stream lists the shard's children and the shard no more");
            self.after_gap(Gap { first_kept: None }).await?;
            return Err(Stop::ShardEnd(children));
        }
        // The reader paces itself; the shard is never ended because something was not found.
        tracing::error!(%error, "the shard can't be read; trying again");
        self.state(ShardState::ReadFailing);
        self.not_cut_off()
    }

    /// The children of a shard that was closed longer ago than the stream keeps records: it is listed no more, and they are. A listing that lags
    /// would lack the children first.
    async fn children_of_trimmed(&self) -> Option<Vec<ChildShard>> {
        let (stream, shard) = (&self.shared.stream_api, self.shard.shard_id());
        if stream.describe().await.ok()?.created != self.shared.stream.created {
            return None;
        }
        let listing = stream.list_shards(ShardFilter::All).await.ok()?;
        let children = children_of(shard, &listing);
        (listing.iter().all(|listed| listed.shard_id != *shard) && !children.is_empty()).then_some(children)
    }

    /// Records may have been trimmed unread: goes on if that is allowed, else waits until the shard is let go.
    async fn after_gap(&mut self, gap: Gap) -> Result<(), Stop> {
        match self.shared.trimmed {
            TrimmedData::SkipAndAudit => {
                tracing::error!(
                    target: "kcl::audit",
                    stream = %self.shared.stream.arn,
                    checkpoint = %self.shard.checkpointer.last(),
                    first_kept = gap.first_kept.map(tracing::field::display),
                    "records may have been trimmed before they were read; going on with the oldest that is kept, as configured"
                );
                self.shared.metrics.gap();
                self.filter.accept_gap();
                Ok(())
            }
            TrimmedData::Block => {
                self.state(ShardState::BlockedByTrimmedRecords);
                loop {
                    tracing::error!(
                        checkpoint = %self.shard.checkpointer.last(),
                        first_kept = gap.first_kept.map(tracing::field::display),
                        "records may have been trimmed before they were read; the shard waits. To go on with the oldest record that is kept, \
                         start the worker with trimmed_data(TrimmedData::SkipAndAudit)"
                    );
                    self.pause(REMINDER).await?;
                }
            }
        }
    }
}
