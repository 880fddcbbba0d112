//! A run: letters in windows, from the queue to the target, and what stays back into the queue.
//!
//! The order of steps is the promise: the target accepts, then the letter is deleted, then its payload. Each may be repeated after a crash, none skipped.

use std::collections::{BTreeMap, BTreeSet};
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures::stream::{self, StreamExt as _};
use kcl_lease::backoff::Backoff;
use tokio_util::sync::CancellationToken;

use super::Redrive;
use super::error::RedriveError;
use super::plan::{Job, Lane, jobs, lanes};
use super::report::{Fate, LetterOutcome, RedriveReport, StayReason};
use super::source::{ReceivedLetter, SourceError};
use super::target::TargetError;
use crate::dead_letter::identity::sha256_hex;
use crate::dead_letter::{BlobError, Envelope, Payload, RecordAddress};

/// Letters that are looked at together, so that those of one key can be put in order; and their bytes.
const WINDOW: (usize, usize) = (100, 32 * 1024 * 1024);

/// Most letters of a window: one less than its size, and then those of one more receive.
const MOST_IN_A_WINDOW: usize = WINDOW.0 + 10;

/// Letters that are given back at a time.
const RELEASES_AT_A_TIME: usize = 16;

/// Looks at how many letters are invisible, while there are any, and the pause between them.
const INVISIBLE_LOOKS: u32 = 10;
const INVISIBLE_PAUSE: Duration = Duration::from_secs(1);

/// Receives in a row without a letter, after which the queue counts as empty: a single one proves little with SQS.
const EMPTY_RECEIVES: u32 = 3;

/// Receives in a row that give only letters that this run holds already. A long run sees them again when their visibility timeout is over, and
/// each receive hides them anew; but a queue that gives them for ever ends the run.
const REPEATED_RECEIVES: u32 = 1000;

/// Attempts of a call that gets no answer, or is throttled: about half a minute.
const ATTEMPTS: u32 = 10;

/// Waits between attempts, from and to.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

/// Why a run ended that was told to.
const STOPPED: &str = "asked to stop";

type Identity = (RecordAddress, String);

/// What a run knows so far.
#[derive(Debug, Default)]
struct Progress {
    report: RedriveReport,
    /// Messages whose fate is told or that were set aside, by their ids.
    seen: BTreeSet<String>,
    /// Of them, those to be given back in the end. Their bodies are dropped.
    held: BTreeMap<String, ReceivedLetter>,
    /// Whether a record was accepted, or its letters stay.
    settled: BTreeMap<Identity, bool>,
    /// Keys of which a letter stays.
    behind: BTreeSet<Lane>,
    tried: u64,
}

impl Redrive {
    /// Runs as [`run`](Self::run), and ends in good order when `stop` completes: calls that are under way are finished, and letters whose records
    /// they did not put back are given back.
    ///
    /// # Errors
    /// As [`run`](Self::run).
    ///
    /// # Cancel safety
    /// As [`run`](Self::run).
    pub async fn run_until(self, stop: impl Future<Output = ()>) -> Result<RedriveReport, RedriveError> {
        self.only.validate()?;
        if self.limit == Some(0) {
            return Err(RedriveError::LimitIsZero);
        }
        let stopped = CancellationToken::new();
        let mut run = pin!(self.go(&stopped));
        tokio::select! {
            biased;
            report = &mut run => return report,
            () = stop => stopped.cancel(),
        }
        run.await
    }

    async fn go(&self, stopped: &CancellationToken) -> Result<RedriveReport, RedriveError> {
        // It only reads: nothing is left behind by a check that is dropped.
        let Some(checked) = stopped.run_until_cancelled(self.check_target()).await else {
            return Ok(RedriveReport { stopped: Some(STOPPED.to_owned()), ..RedriveReport::default() });
        };
        checked.map_err(RedriveError::Target)?;
        let mut progress = Progress::default();
        let ended = self.work(stopped, &mut progress).await;
        let releases = std::mem::take(&mut progress.held).into_values().map(|letter| self.release(letter));
        stream::iter(releases).buffer_unordered(RELEASES_AT_A_TIME).collect::<()>().await;
        progress.report.invisible = self.invisible().await;
        progress.report.stopped = ended.err();
        Ok(progress.report)
    }

    async fn check_target(&self) -> Result<(), TargetError> {
        let mut backoff = Backoff::new(BACKOFF.0, BACKOFF.1, &self.entropy);
        loop {
            match self.target.check().await {
                Err(TargetError::Unavailable(_)) if backoff.failures() + 1 < ATTEMPTS => tokio::time::sleep(backoff.next_wait()).await,
                checked => return checked,
            }
        }
    }

    /// Gives a letter back. Best effort: it becomes visible by itself, only later.
    async fn release(&self, letter: ReceivedLetter) {
        if let Err(error) = self.patiently(|| self.source.release(&letter)).await {
            tracing::warn!(%error, "a letter that stays could not be given back; it can be seen again when its visibility timeout is over");
        }
    }

    /// Returns how many letters are still given to nobody, though this run holds none. A count that is not zero
    /// is looked at again for some seconds, for queues take a moment to count right.
    async fn invisible(&self) -> Option<u64> {
        let mut looks = 0;
        loop {
            looks += 1;
            match self.patiently(|| self.source.invisible()).await {
                Ok(Some(1..)) if looks < INVISIBLE_LOOKS => tokio::time::sleep(INVISIBLE_PAUSE).await,
                Ok(counted) => return counted,
                Err(error) => {
                    tracing::warn!(%error, "the queue does not tell how many letters are invisible: there may be more than this run has seen");
                    return None;
                }
            }
        }
    }

    /// Goes through the queue; why that ended early.
    async fn work(&self, stopped: &CancellationToken, progress: &mut Progress) -> Result<(), String> {
        let (mut empty, mut repeated) = (0, 0);
        loop {
            if stopped.is_cancelled() {
                return Err(STOPPED.to_owned());
            }
            let left = self.limit.map(|limit| limit.saturating_sub(progress.tried));
            if left == Some(0) {
                return Ok(());
            }
            if progress.held.len() + MOST_IN_A_WINDOW > self.source.most_held() {
                return Err(format!(
                    "{} letters that stay are held, and the queue lets hardly more be invisible at a time; what is behind them can't be \
                     reached before they are put back or moved elsewhere",
                    progress.held.len()
                ));
            }
            let (window, is_empty) = self.window(stopped, progress).await.map_err(|error| match error.is_full {
                true => format!("{error}; the queue gives no letters while so many are invisible, of this reader and of others"),
                false => error.to_string(),
            })?;
            if window.is_empty() {
                let count = if is_empty { &mut empty } else { &mut repeated };
                *count += 1;
                if empty == EMPTY_RECEIVES {
                    return Ok(());
                }
                if repeated == REPEATED_RECEIVES {
                    return Err("the queue gives only letters that this run holds; is another run at work?".to_owned());
                }
                continue;
            }
            (empty, repeated) = (0, 0);
            let mut jobs = self.sort_out(window, progress).await;
            let beyond = jobs.split_off(left.map_or(jobs.len(), |left| usize::try_from(left).unwrap_or(usize::MAX)).min(jobs.len()));
            progress.tried += jobs.len() as u64;
            for message in beyond.into_iter().flat_map(|job| job.messages) {
                progress.hold(message);
            }
            self.put_back(jobs, stopped, progress).await?;
        }
    }

    /// Letters that were not seen before, as many as are looked at together; and whether the queue gave none at all in the end.
    async fn window(&self, stopped: &CancellationToken, progress: &mut Progress) -> Result<(Vec<ReceivedLetter>, bool), SourceError> {
        let (mut window, mut bytes) = (Vec::new(), 0);
        while window.len() < WINDOW.0 && bytes < WINDOW.1 {
            let received = match self.until_stopped(stopped, || self.source.receive()).await {
                Ok(received) => received,
                Err(error) => {
                    window.into_iter().for_each(|letter| progress.hold(letter));
                    return Err(error);
                }
            };
            let (before, is_empty) = (window.len(), received.is_empty());
            for letter in received {
                if progress.seen.insert(letter.id.clone()) {
                    bytes += letter.body.len();
                    window.push(letter);
                } else if progress.held.contains_key(&letter.id) {
                    // It came again: by its newest handle it is given back.
                    progress.hold(letter);
                }
            }
            if window.len() == before {
                return Ok((window, is_empty));
            }
        }
        Ok((window, false))
    }

    /// Tells the fate of letters for which it is known at once; the others, each record once, in order.
    async fn sort_out(&self, window: Vec<ReceivedLetter>, progress: &mut Progress) -> Vec<Job<ReceivedLetter>> {
        let mut meant = Vec::new();
        for message in window {
            match Envelope::parse(&message.body) {
                Err(error) => self.tell(progress, message, None, Fate::Stays(error.into())),
                Ok(letter) if !self.is_meant(&letter) => self.tell(progress, message, Some(&letter), Fate::NotMeant),
                Ok(letter) => meant.push((letter, ReceivedLetter { body: String::new(), ..message })),
            }
        }
        let mut open = Vec::new();
        for job in jobs(meant, |letter| self.identity(letter)) {
            if let Some(accepted) = progress.settled.get(&self.identity(&job.letter)).copied() {
                for message in job.messages {
                    let deleted = accepted && self.delete(&message).await;
                    self.tell_duplicate(progress, message, &job.letter, deleted);
                }
                continue;
            }
            let reason = self.known_reason(&job.letter, progress);
            if self.dry_run || reason.is_some() {
                let is_behind = reason.as_ref().is_some_and(StayReason::holds_back_its_key);
                let fate = reason.map_or(Fate::WouldBeTried, Fate::Stays);
                if fate == Fate::WouldBeTried {
                    let is_beyond = self.limit.is_some_and(|limit| progress.tried >= limit);
                    if is_beyond {
                        job.messages.into_iter().for_each(|message| progress.hold(message));
                        continue;
                    }
                    progress.tried += 1;
                } else if is_behind {
                    progress.behind.insert(Lane::of(&job.letter));
                }
                self.settle(progress, job, false, fate);
            } else {
                open.push(job);
            }
        }
        open
    }

    fn is_meant(&self, letter: &Envelope) -> bool {
        self.only.matches(letter) && self.chosen.as_ref().is_none_or(|chosen| chosen(letter))
    }

    fn identity(&self, letter: &Envelope) -> Identity {
        let application = if self.target.is_shared() { String::new() } else { letter.application.clone() };
        (letter.record.clone(), application)
    }

    /// Why the letter stays, if that is known without trying.
    fn known_reason(&self, letter: &Envelope, progress: &Progress) -> Option<StayReason> {
        let reason = self.target.refuses(letter).or_else(|| match (&letter.payload, &self.blobs) {
            (Payload::At(location), None) => Some(StayReason::NoBlobStore { bucket: location.address.bucket.clone() }),
            _ => None,
        });
        reason.or_else(|| progress.behind.contains(&Lane::of(letter)).then_some(StayReason::Behind))
    }

    /// Puts records back, a few keys at a time.
    async fn put_back(&self, jobs: Vec<Job<ReceivedLetter>>, stopped: &CancellationToken, progress: &mut Progress) -> Result<(), String> {
        let closed = AtomicBool::new(false);
        let mut why = None;
        let lanes = lanes(jobs).into_iter().map(|(lane, jobs)| self.lane(lane, jobs, stopped, &closed));
        let mut running = stream::iter(lanes).buffer_unordered(self.keys_at_a_time.get());
        while let Some(done) = running.next().await {
            for Done { job, result } in done.jobs {
                match result {
                    Some(Ok(deleted)) => self.accepted(progress, job, deleted).await,
                    Some(Err(reason)) => {
                        progress.behind.insert(done.lane.clone());
                        self.settle(progress, job, false, Fate::Stays(reason));
                    }
                    // Not tried: the run ends.
                    None => job.messages.into_iter().for_each(|message| progress.hold(message)),
                }
            }
            why = why.or(done.closed);
        }
        why.map_or(Ok(()), Err)
    }

    /// One key's records, one after the other.
    async fn lane(&self, lane: Lane, jobs: Vec<Job<ReceivedLetter>>, stopped: &CancellationToken, closed: &AtomicBool) -> LaneDone {
        let mut done = LaneDone { lane, jobs: Vec::new(), closed: None };
        let mut stays = false;
        for job in jobs {
            if stopped.is_cancelled() || closed.load(Ordering::Relaxed) {
                done.jobs.push(Done { job, result: None });
                continue;
            }
            let result = if stays { Err(Unaccepted::Stays(StayReason::Behind)) } else { self.accept(&job.letter, stopped).await };
            let result = match result {
                Ok(()) => Some(Ok(self.delete(&job.messages[0]).await)),
                Err(Unaccepted::Stays(reason)) => {
                    stays = true;
                    Some(Err(reason))
                }
                Err(Unaccepted::Stopped) => None,
                Err(Unaccepted::Closed(why)) => {
                    closed.store(true, Ordering::Relaxed);
                    done.closed = Some(why);
                    None
                }
            };
            done.jobs.push(Done { job, result });
        }
        done
    }

    /// Has the target accept the record, with patience.
    async fn accept(&self, letter: &Envelope, stopped: &CancellationToken) -> Result<(), Unaccepted> {
        let payload = self.payload(letter, stopped).await?;
        let mut backoff = Backoff::new(BACKOFF.0, BACKOFF.1, &self.entropy);
        loop {
            match self.target.accept(letter, &payload).await {
                Ok(()) => return Ok(()),
                Err(TargetError::Refused(message)) => return Err(Unaccepted::Stays(StayReason::Refused { message })),
                Err(TargetError::Closed(why)) => return Err(Unaccepted::Closed(why)),
                // What took so long to fail fails for the next one as well.
                Err(TargetError::Unavailable(why)) if backoff.failures() + 1 >= ATTEMPTS => return Err(Unaccepted::Closed(why)),
                Err(TargetError::Unavailable(_)) => {
                    if !goes_on_after(backoff.next_wait(), stopped).await {
                        return Err(Unaccepted::Stopped);
                    }
                }
            }
        }
    }

    /// The record's payload, from wherever it is.
    async fn payload(&self, letter: &Envelope, stopped: &CancellationToken) -> Result<Bytes, Unaccepted> {
        let location = match &letter.payload {
            Payload::Inside(data) => return Ok(data.clone()),
            Payload::At(location) => location,
        };
        let bucket = || location.address.bucket.clone();
        let blobs = self.blobs.as_ref().ok_or_else(|| StayReason::NoBlobStore { bucket: bucket() });
        let blobs = blobs.map_err(Unaccepted::Stays)?;
        let mut backoff = Backoff::new(BACKOFF.0, BACKOFF.1, &self.entropy);
        let data = loop {
            match blobs.get(&location.address).await {
                Err(BlobError::Unavailable { .. }) if backoff.failures() + 1 < ATTEMPTS => {
                    if !goes_on_after(backoff.next_wait(), stopped).await {
                        return Err(Unaccepted::Stopped);
                    }
                }
                got => break got.map_err(|error| Unaccepted::Stays(StayReason::Payload(error)))?,
            }
        };
        let is_right = data.len() as u64 == location.bytes && sha256_hex(&data) == location.sha256;
        if is_right { Ok(data) } else { Err(Unaccepted::Stays(StayReason::PayloadChanged)) }
    }

    /// The record is accepted, and its first letter deleted or not: the others are deleted too, and then the payload.
    async fn accepted(&self, progress: &mut Progress, job: Job<ReceivedLetter>, deleted: bool) {
        let mut all = deleted;
        for message in &job.messages[1..] {
            all &= self.delete(message).await;
        }
        if let (true, true, Payload::At(location), Some(blobs)) = (self.delete_blobs, all, &job.letter.payload, &self.blobs) {
            let mut result = blobs.delete(&location.address).await;
            if matches!(result, Err(BlobError::Unavailable { .. })) {
                result = blobs.delete(&location.address).await;
            }
            match result {
                Ok(()) => progress.report.blobs_deleted += 1,
                Err(_) => progress.report.blobs_left += 1,
            }
        }
        self.settle(progress, job, true, if deleted { Fate::Accepted } else { Fate::AcceptedNotDeleted });
    }

    /// Notes and tells a record's fate.
    fn settle(&self, progress: &mut Progress, job: Job<ReceivedLetter>, accepted: bool, fate: Fate) {
        progress.settled.insert(self.identity(&job.letter), accepted);
        let mut messages = job.messages.into_iter();
        if let Some(first) = messages.next() {
            self.tell(progress, first, Some(&job.letter), fate);
        }
        for message in messages {
            self.tell_duplicate(progress, message, &job.letter, accepted);
        }
    }

    fn tell_duplicate(&self, progress: &mut Progress, message: ReceivedLetter, letter: &Envelope, gone: bool) {
        let held = (!gone).then(|| message.clone());
        self.tell_only(progress, &message, Some(letter), &Fate::Duplicate);
        held.into_iter().for_each(|message| progress.hold(message));
    }

    /// Tells a letter's fate; if it stays it is held until the end.
    fn tell(&self, progress: &mut Progress, message: ReceivedLetter, letter: Option<&Envelope>, fate: Fate) {
        self.tell_only(progress, &message, letter, &fate);
        if !matches!(fate, Fate::Accepted | Fate::AcceptedNotDeleted) {
            progress.hold(message);
        }
    }

    fn tell_only(&self, progress: &mut Progress, message: &ReceivedLetter, letter: Option<&Envelope>, fate: &Fate) {
        progress.report.count(fate);
        if let Some(observer) = &self.observer {
            observer(&LetterOutcome { message_id: &message.id, letter, fate });
        }
    }

    /// Deletes a letter whose record was accepted; whether that is certain.
    async fn delete(&self, letter: &ReceivedLetter) -> bool {
        let mut is_repeated = false;
        let deleted = self.patiently(|| {
            let deletes = self.source.delete(letter);
            let repeats = std::mem::replace(&mut is_repeated, true);
            async move {
                match deletes.await {
                    // The attempt before it had no answer, and did it.
                    Err(error) if error.is_gone && repeats => Ok(()),
                    result => result,
                }
            }
        });
        match deleted.await {
            Ok(()) => true,
            Err(error) => {
                tracing::warn!(%error, "a letter whose record was accepted could not be deleted; it will come again");
                false
            }
        }
    }

    /// A call to the queue, repeated while that may help.
    async fn patiently<T, F>(&self, call: impl FnMut() -> F) -> Result<T, SourceError>
    where
        F: Future<Output = Result<T, SourceError>>,
    {
        self.until_stopped(&CancellationToken::new(), call).await
    }

    /// The same, but not repeated after the run was told to stop.
    async fn until_stopped<T, F>(&self, stopped: &CancellationToken, mut call: impl FnMut() -> F) -> Result<T, SourceError>
    where
        F: Future<Output = Result<T, SourceError>>,
    {
        let mut backoff = Backoff::new(BACKOFF.0, BACKOFF.1, &self.entropy);
        loop {
            match call().await {
                Err(error) if error.is_retryable && backoff.failures() + 1 < ATTEMPTS => {
                    if !goes_on_after(backoff.next_wait(), stopped).await {
                        return Err(error);
                    }
                }
                result => return result,
            }
        }
    }
}

/// Waits before the next attempt; returns whether there is to be one.
async fn goes_on_after(wait: Duration, stopped: &CancellationToken) -> bool {
    stopped.run_until_cancelled(tokio::time::sleep(wait)).await.is_some()
}

impl Progress {
    /// Sets a message aside until the end.
    fn hold(&mut self, message: ReceivedLetter) {
        self.held.insert(message.id.clone(), ReceivedLetter { body: String::new(), ..message });
    }
}

/// Why a record was not accepted: it stays, or the run ends.
enum Unaccepted {
    Stays(StayReason),
    /// The run was told to stop before it was known.
    Stopped,
    Closed(String),
}

struct LaneDone {
    lane: Lane,
    jobs: Vec<Done>,
    /// Why the run ends.
    closed: Option<String>,
}

/// A job, and whether its first letter was deleted after the record was accepted, or why it stays; `None`: it was not tried to its end.
struct Done {
    job: Job<ReceivedLetter>,
    result: Option<Result<bool, StayReason>>,
}
