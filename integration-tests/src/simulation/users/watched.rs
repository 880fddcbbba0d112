//! What the oracle sees of users' code: each call and its end, the records in it, and the moods of the code: it panics and hangs.

use std::time::Duration;

use kcl_core::test_util::Host;
use kcl_core::{
    Entropy, ExtendedSequenceNumber, Outcome, ProcessError, ProcessResult, Record, RecordBatch, RecordHandler, RecordProcessor,
    ShardContext, ShardInfo, async_trait,
};
use tokio::time::sleep;

use crate::simulation::oracle::{Call, CallEnd, How, Judge, Told};

/// The text of panics of users' code.
pub const A_BUG_OF_THE_SERVICE: &str = "a bug of the service";

/// Panics and hangs, at random. Rates are probabilities of one call.
#[derive(Clone)]
pub(super) struct Mood {
    pub(super) judge: Judge,
    pub(super) entropy: Entropy,
    pub(super) panics: f64,
    pub(super) hangs: f64,
    /// Calls with records have a deadline, so that they may hang for ever.
    pub(super) has_deadline: bool,
    pub(super) panics_in_drop: f64,
}

impl Mood {
    fn happens(&self, rate: f64) -> bool {
        rate > 0.0 && self.entropy.fraction() < rate
    }

    /// Panics, hangs, or does nothing.
    pub(super) async fn swing(&self) {
        if self.happens(self.panics) {
            self.judge.note("users' code panics");
            std::panic::panic_any(A_BUG_OF_THE_SERVICE);
        }
        if self.happens(self.hangs) {
            self.judge.note("users' code hangs");
            if self.has_deadline && self.entropy.u64().is_multiple_of(2) {
                std::future::pending::<()>().await;
            }
            // Until whatever it waits for is repaired.
            while !self.judge.is_calm() {
                sleep(Duration::from_secs(5)).await;
            }
        }
    }
}

/// A processor, and what the oracle knows of its life.
pub(super) struct Watched {
    judge: Judge,
    host: Host,
    mood: Mood,
    /// Names it to the oracle.
    life: u64,
    inner: Box<dyn RecordProcessor>,
}

impl Watched {
    pub(super) fn new(host: &Host, mood: Mood, shard: &ShardContext, inner: Box<dyn RecordProcessor>) -> Self {
        let judge = mood.judge.clone();
        let life = judge.made(host.name(), shard);
        Self { judge, host: host.clone(), mood, life, inner }
    }

    fn begin(&self, call: Call, shard: &ShardInfo) -> UnderWay {
        self.judge.call_begins(self.life, call, shard.shard_id(), shard.fencing_token());
        UnderWay { judge: self.judge.clone(), host: self.host.clone(), life: self.life, call, end: CallEnd::Dropped }
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        let is_dead = self.host.is_dead();
        self.judge.gone(self.life, is_dead);
        // A panic on top of another one would end the process, as it does with any program.
        if !is_dead && !std::thread::panicking() && !self.judge.is_over() && self.mood.happens(self.mood.panics_in_drop) {
            self.judge.note("users' code panics in drop");
            std::panic::panic_any(A_BUG_OF_THE_SERVICE);
        }
    }
}

/// A call of a processor.
struct UnderWay {
    judge: Judge,
    host: Host,
    life: u64,
    call: Call,
    end: CallEnd,
}

impl UnderWay {
    fn ends<T, E>(mut self, result: &Result<T, E>) {
        self.end = if result.is_ok() { CallEnd::Done } else { CallEnd::Failed };
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        if self.host.is_dead() {
            return;
        }
        let end = if std::thread::panicking() { CallEnd::Panicked } else { self.end };
        self.judge.call_ends(self.life, self.call, end);
    }
}

/// Records in a call.
struct InWork<'a> {
    judge: &'a Judge,
    host: &'a Host,
    shard: &'a ShardContext,
    records: &'a [Record],
    batch: Option<&'a RecordBatch>,
    /// The result, once there is one.
    said: Option<Said>,
}

/// A processor's statement on its records.
enum Said {
    All,
    Acknowledged,
    From(ExtendedSequenceNumber),
    These(Vec<ExtendedSequenceNumber>),
    Failed,
}

impl<'a> InWork<'a> {
    fn new(judge: &'a Judge, host: &'a Host, shard: &'a ShardContext, records: &'a [Record], batch: Option<&'a RecordBatch>) -> Self {
        judge.delivered(host.name(), shard, records);
        Self { judge, host, shard, records, batch, said: None }
    }

    fn says(mut self, result: &ProcessResult) {
        self.said = Some(match result {
            Ok(Outcome::Done) => Said::All,
            Ok(Outcome::FailedFrom(failed)) => Said::From(failed.record),
            Ok(Outcome::Failed(failed)) => Said::These(failed.iter().map(|failed| failed.record).collect()),
            Ok(_) => Said::Acknowledged,
            Err(_) => Said::Failed,
        });
    }

    fn told_of(&self, record: &Record) -> Told {
        let position = record.position();
        if self.batch.is_some_and(|batch| batch.is_acknowledged(record)) {
            return Told::Finished;
        }
        match &self.said {
            Some(Said::All) => Told::Finished,
            Some(Said::From(failed)) if position < *failed => Told::Finished,
            Some(Said::From(failed)) if position == *failed => Told::Failed(How::Said),
            Some(Said::These(failed)) if !failed.contains(&position) => Told::Finished,
            Some(Said::From(_) | Said::Acknowledged) => Told::Nothing,
            Some(Said::These(_) | Said::Failed) => Told::Failed(How::Said),
            None if std::thread::panicking() => Told::Failed(How::Panicked),
            None => Told::Failed(How::Dropped),
        }
    }
}

impl Drop for InWork<'_> {
    fn drop(&mut self) {
        let told = self.records.iter().map(|record| (record.position(), self.told_of(record))).collect();
        self.judge.returned(self.host.name(), self.shard, self.records, told);
    }
}

#[async_trait]
impl RecordProcessor for Watched {
    async fn initialize(&mut self, shard: &ShardContext) -> Result<(), ProcessError> {
        let call = self.begin(Call::Initialize, shard);
        self.mood.swing().await;
        let result = self.inner.initialize(shard).await;
        call.ends(&result);
        result
    }

    async fn process_records(&mut self, batch: &RecordBatch, shard: &ShardContext) -> ProcessResult {
        let call = self.begin(Call::Process, shard);
        let (judge, host) = (self.judge.clone(), self.host.clone());
        let in_work = InWork::new(&judge, &host, shard, batch.records(), Some(batch));
        self.mood.swing().await;
        let result = self.inner.process_records(batch, shard).await;
        // All is done by now, and nothing of it is told yet.
        self.mood.swing().await;
        in_work.says(&result);
        call.ends(&result);
        result
    }

    async fn idle(&mut self, shard: &ShardContext) -> Result<(), ProcessError> {
        let call = self.begin(Call::Idle, shard);
        self.mood.swing().await;
        let result = self.inner.idle(shard).await;
        call.ends(&result);
        result
    }

    async fn lease_lost(&mut self, shard: &ShardInfo) {
        let call = self.begin(Call::LeaseLost, shard);
        self.inner.lease_lost(shard).await;
        self.mood.swing().await;
        call.ends(&Ok::<(), ()>(()));
    }

    async fn shard_ended(&mut self, shard: &ShardContext) -> Result<(), ProcessError> {
        let call = self.begin(Call::ShardEnded, shard);
        self.mood.swing().await;
        let result = self.inner.shard_ended(shard).await;
        call.ends(&result);
        result
    }

    async fn shutdown_requested(&mut self, shard: &ShardContext) -> Result<(), ProcessError> {
        let call = self.begin(Call::ShutdownRequested, shard);
        self.mood.swing().await;
        let result = self.inner.shutdown_requested(shard).await;
        call.ends(&result);
        result
    }
}

/// A handler: each record is a call of its own.
pub(super) struct WatchedHandler<H> {
    pub(super) host: Host,
    pub(super) mood: Mood,
    pub(super) inner: H,
}

#[async_trait]
impl<H: RecordHandler> RecordHandler for WatchedHandler<H> {
    async fn handle(&self, record: &Record, shard: &ShardContext) -> Result<(), ProcessError> {
        let in_work = InWork::new(&self.mood.judge, &self.host, shard, std::slice::from_ref(record), None);
        self.mood.swing().await;
        let result = self.inner.handle(record, shard).await;
        self.mood.swing().await;
        // Of one record there is nothing to name.
        in_work.says(&match &result {
            Ok(()) => Ok(Outcome::Done),
            Err(_) => Err(ProcessError::retry("it failed")),
        });
        result
    }
}
