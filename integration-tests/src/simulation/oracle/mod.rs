//! The oracle: knows what is true, sees everything that takes effect, and checks every invariant at every step.
//!
//! | file | invariants |
//! |---|---|
//! | `log` | what was published, in the true order of each shard; what of it is finished |
//! | `leases` | S1 nothing at or below a checkpoint is unfinished; S2 checkpoints never move back; S5 no write of an older term; S7 no hole in the lease table; S8 SHARD_END only of a shard that is closed and finished; S14 no lease of another stream |
//! | `deliveries` | S3 each term delivers from its checkpoint on without a gap; S4 children after their parents, keys in order; S6 one owner at a time |
//! | `emptied` | after rows of the lease table were deleted: who held them ends, and nobody who ran then begins anew in an empty table |
//! | `foreigners` | nothing is taken from a worker of the Java library while it has the right to be silent |
//! | `seeks` | S15 what a seek asks for is read again, and nothing before it; nobody reads on who lost a shard by it once another one has it |
//! | `notes` | S16 what a row says of finished records is true: its watermark, and its note of those beyond the checkpoint |
//! | `keys` | S4 where several records are in work: no record before an earlier one of its key is done |
//! | `gaps` | S1 trimmed records are passed over where the audit log says so of this very shard |
//! | `letters` | S9 a dead letter is what was put, whole, for a cause that was seen, as often as was seen, after the letters before it of its key |
//! | `lives` | the life of each processor: one call at a time, in its own term, one farewell, no call after it was lost |
//! | `skips` | what a shard that is too far behind may leave out, and that none goes on that is stopped |
//! | `limits` | S11 bytes held; S12 calls per second; and here: no process spins so that time stands still |
//! | `ending` | what is demanded in the end: everything is finished, leases are even, nothing moves, nobody holds what it does not read |
//!
//! A record is finished by its effect, which is what the users' database holds, or by an accepted letter; never by what a processor says. So S9 (a
//! dead letter is accepted before the checkpoint passes it) is S1. S10 (no
//! payload in any log) is checked where log events are seen. S13 (no safety property reads the wall clock) follows from runs whose wall clocks
//! are wrong.

mod deliveries;
mod emptied;
mod ending;
mod foreigners;
mod gaps;
mod keys;
mod leases;
mod letters;
mod limits;
mod lives;
mod log;
mod notes;
mod seeks;
mod skips;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use kcl_checkpoint::FinishedBeyond;
use kcl_core::test_util::{Event, Service, SimulatedAws};
use kcl_core::{ExtendedSequenceNumber, PoisonedKey, Record, ShardContext, ShardId, Timestamp};
use kcl_lease::{Lease, TransactItems, WorkerId};
use tokio::sync::Notify;

use self::emptied::Emptied;
pub(super) use self::foreigners::FOREIGNER;
pub(super) use self::gaps::Audit;
use self::limits::Limits;
use self::lives::Lives;
pub(super) use self::lives::{Call, CallEnd};
use self::log::Log;
use self::notes::{Clocks, Said};
use self::seeks::Seeks;
use super::fleet::MAX_ATTEMPTS;
use super::plan::{Chaos, Plan, Tells};
use super::publisher::Published;
use super::trace::Trace;
use super::users::Way;

/// The application's name in every run.
pub(super) const APPLICATION: &str = "orders-app";
/// The users' table that items are committed to.
pub(super) const COMMITTED: &str = "counts";
/// The machine from which seeks are made.
pub(super) const OPERATOR: &str = "operator";

/// A broken invariant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// Its short name, such as `S1`.
    pub invariant: &'static str,
    /// What happened.
    pub message: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}: {}", self.invariant, self.message)
    }
}

/// One term of a shard.
#[derive(Clone, Debug)]
struct Term {
    token: u64,
    host: String,
    /// The worker, by the name in its row.
    worker: Option<WorkerId>,
    taken_at: Duration,
    /// The time at which its owner sent the last write.
    renewed: Duration,
    /// There was a time in which its owner may not have believed in it.
    lapsed: bool,
    /// Released to a worker that had asked for it: a call may have left no time to ask processors to shut down.
    handed_over: bool,
    /// Its row asked for the oldest record that there was when it was read.
    not_begun: bool,
    /// The note of what is finished beyond the checkpoint that it has found.
    spared: Option<FinishedBeyond>,
    /// Keys of which a letter was accepted in this term, and the first such record's index.
    poisoned: BTreeMap<u64, usize>,
    /// The first record that it may deliver, as an index in the shard's log, and the next that it has not delivered.
    first: usize,
    next: usize,
    /// Not released and not taken by another.
    open: bool,
    ended_at: Option<Duration>,
    /// Released in order, by its owner.
    released: bool,
    /// Calls with records that are under way.
    calls: usize,
    /// Ended by a seek: its owner may go on until it finds out, or its lease runs out.
    fenced: bool,
    /// A seek has moved the shard since it began: effects of its calls are no measure of the order any more.
    sought: bool,
    /// Keys of which records are in work, where no key may be twice.
    in_work: BTreeSet<u64>,
}

/// What the oracle knows. Times are since the start of the services.
pub(super) struct Oracle {
    /// Whether keys are processed beside each other.
    lanes: bool,
    poisoned_key: PoisonedKey,
    /// True if calls block their threads, so that nobody can cut them off.
    blocks: bool,
    /// True if effects of a key are in order, as far as it depends on processors.
    keeps_order: bool,
    /// Failures of a record before it may go to the dead-letter queue.
    max_attempts: u32,
    /// How far behind a shard may be before it skips what it has not read.
    skip_beyond: Option<Duration>,
    /// The disturbance is over.
    calm: bool,
    /// The run has ended, and everything is dropped.
    over: bool,
    lives: Lives,
    /// Processes that were told to stop, and when.
    stopping: BTreeMap<String, Duration>,
    /// Terms that ended without a release.
    died: BTreeSet<(ShardId, u64)>,
    /// Checkpoints may be written together with items.
    commits: bool,
    /// What was written and is not judged yet.
    to_judge: Option<Said>,
    /// Records that are to be committed, by the names of their items.
    to_commit: BTreeMap<String, (ShardId, ExtendedSequenceNumber)>,
    /// Good records in the dead-letter queue.
    good_letters: u64,
    /// Whether processors collect records, and checkpoint for themselves when they have flushed them.
    manual: bool,
    /// Whether records are delivered one after the other, without a gap.
    contiguous: bool,
    trimmed_may_be_skipped: bool,
    /// The age from which on a record that has failed may be given up.
    max_age: Option<Duration>,
    retention: Duration,
    /// By so many milliseconds what workers take for the service's time may be early.
    clocks_err: u64,
    lease_duration: Duration,
    clocks: Clocks,
    log: Log,
    limits: Limits,
    /// Recent terms of each shard, the present one last.
    terms: BTreeMap<ShardId, Vec<Term>>,
    /// Rows as they are.
    rows: BTreeMap<ShardId, Lease>,
    /// Shards whose lease was finished once.
    finished: BTreeSet<ShardId>,
    /// Instants of takes.
    seeks: Seeks,
    takes: Vec<Duration>,
    requests: Vec<Duration>,
    states: BTreeMap<&'static str, u64>,
    repeated: u64,
    /// When the stream was made, once it was made anew: rows of another one are none of its.
    made_anew: Option<Timestamp>,
    /// Rows were deleted: what must come of it.
    emptied: Emptied,
    /// Leases of the Java library's workers, and when their rows were changed last.
    foreign: BTreeMap<ShardId, Duration>,
    /// Records that wait for a processor's flush, and how many processors hold them.
    collected: BTreeMap<(ShardId, ExtendedSequenceNumber), usize>,
    /// Terms of the stream before: host, shard, token.
    old_terms: BTreeSet<(String, ShardId, u64)>,
    /// Gaps that the audit log has told of, as indices in each shard's log.
    audits: BTreeMap<ShardId, Vec<Range<usize>>>,
    slowest: Duration,
    violation: Option<Violation>,
    pub(super) trace: Trace,
}

/// What a call has said of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Told {
    /// It is finished: it must not come again.
    Finished,
    /// It, or one of several, has failed.
    Failed(How),
    /// It was not tried.
    Nothing,
}

/// How a call has failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum How {
    /// It has returned, and said so.
    Said,
    Panicked,
    /// It was dropped at an await.
    Dropped,
}

/// Returns whether effects of a key are in order. Not if a record may be processed before the letter of an earlier one is accepted, or by a model that goes on
/// after one that has failed.
fn keeps_order(plan: &Plan) -> bool {
    let handling = &plan.handling;
    let goes_on = handling.way == Way::Model && matches!(handling.tells, Tells::These | Tells::AnyOrder);
    handling.way.keeps_order() && !goes_on && handling.poisoned_key != PoisonedKey::Pass
}

/// By how much a worker may be wrong about the service's time, in milliseconds. A wall clock that agrees with the service is exact; otherwise it is the
/// second that the service has told, and that is as old as the answer.
fn clocks_err(plan: &Plan) -> u64 {
    let exact = plan.schedule.iter().all(|(_, chaos)| !matches!(chaos, Chaos::StepClock(..) | Chaos::ClockRate(..) | Chaos::Freeze(..)))
        && plan.rates.get(&Service::Stream).is_none_or(|rates| rates.slow == 0.0);
    if exact { 1 } else { 5_000 }
}

/// The oracle, as everybody reaches it. Clones share it.
#[derive(Clone)]
pub(super) struct Judge {
    aws: SimulatedAws,
    oracle: Arc<Mutex<Oracle>>,
    /// Told at a violation.
    pub(super) stopped: Arc<Notify>,
}

impl Judge {
    pub(super) fn new(plan: &Plan, aws: &SimulatedAws, trace: Trace) -> Self {
        let judge = Self {
            aws: aws.clone(),
            oracle: Arc::new(Mutex::new(Oracle {
                lanes: plan.handling.lanes > 1,
                poisoned_key: plan.handling.poisoned_key,
                keeps_order: keeps_order(plan),
                max_attempts: match (plan.handling.max_age, plan.handling.default_retries) {
                    // A record that is too old has one attempt.
                    (Some(_), _) => 1,
                    (None, true) => 5,
                    (None, false) => MAX_ATTEMPTS,
                },
                max_age: plan.handling.max_age,
                skip_beyond: plan.handling.skip_beyond,
                calm: false,
                over: false,
                lives: Lives::default(),
                stopping: BTreeMap::new(),
                died: BTreeSet::new(),
                commits: plan.handling.way == Way::Commits,
                to_judge: None,
                to_commit: BTreeMap::new(),
                good_letters: 0,
                manual: plan.handling.manual,
                blocks: plan.handling.way.blocks(),
                contiguous: plan.handling.lanes == 1 && plan.handling.poisoned_key == PoisonedKey::Wait,
                trimmed_may_be_skipped: plan.trimmed == kcl_core::TrimmedData::SkipAndAudit,
                retention: Duration::from_secs(24 * 3600),
                clocks_err: clocks_err(plan),
                lease_duration: plan.lease_duration,
                clocks: Clocks::of(plan),
                log: Log::default(),
                limits: Limits::new(plan.handling.manual || plan.handling.way.checkpoints_each_record()),
                terms: BTreeMap::new(),
                rows: BTreeMap::new(),
                finished: BTreeSet::new(),
                seeks: Seeks::default(),
                takes: Vec::new(),
                requests: Vec::new(),
                states: BTreeMap::new(),
                repeated: 0,
                made_anew: None,
                emptied: Emptied::default(),
                foreign: BTreeMap::new(),
                collected: BTreeMap::new(),
                old_terms: BTreeSet::new(),
                audits: BTreeMap::new(),
                slowest: Duration::ZERO,
                violation: None,
                trace,
            })),
            stopped: Arc::new(Notify::new()),
        };
        let told = judge.clone();
        aws.observe(move |event| told.with(|oracle, now| oracle.event(event, now)));
        judge
    }

    /// Does something with the oracle, now.
    pub(super) fn with<R>(&self, action: impl FnOnce(&mut Oracle, Duration) -> R) -> R {
        let now = self.aws.elapsed();
        let (result, violated) = {
            let mut oracle = self.lock();
            let before = oracle.violation.is_some();
            let result = action(&mut oracle, now);
            (result, !before && oracle.violation.is_some())
        };
        if violated {
            self.stopped.notify_waiters();
        }
        result
    }

    /// A record was published.
    pub(super) fn put(&self, shard: ShardId, published: Published) {
        let time = self.aws.time();
        self.with(|oracle, now| {
            let Published { position, key, count, kind, .. } = &published;
            oracle.trace.line(now, format_args!("put {shard} {position} key {key} record {count} {kind:?}"));
            oracle.log.put(shard, published, time, now);
        });
    }

    /// A call of a processor begins.
    pub(super) fn delivered(&self, host: &str, shard: &ShardContext, records: &[Record]) {
        self.with(|oracle, now| oracle.delivered(host, shard.shard_id(), shard.fencing_token(), records, now));
    }

    /// A call of a processor has ended, and said this of its records, or nothing.
    pub(super) fn returned(&self, host: &str, shard: &ShardContext, records: &[Record], told: Vec<(ExtendedSequenceNumber, Told)>) {
        self.with(|oracle, now| oracle.returned(host, shard.shard_id(), shard.fencing_token(), records, told, now));
    }

    /// A record has had its effect.
    pub(super) fn effect(&self, host: &str, shard: &ShardId, position: ExtendedSequenceNumber) {
        self.with(|oracle, now| oracle.effect(host, shard, position, now));
    }

    /// A record is to be committed. Returns the name of its item.
    pub(super) fn will_commit(&self, shard: &ShardId, position: ExtendedSequenceNumber) -> String {
        let name = format!("{shard} {position}");
        self.with(|oracle, _| oracle.to_commit.insert(name.clone(), (shard.clone(), position)));
        name
    }

    /// A processor was made. Returns its name for the other calls.
    pub(super) fn made(&self, host: &str, shard: &ShardContext) -> u64 {
        self.with(|oracle, _| oracle.made(host, shard))
    }

    /// A call of a processor begins.
    pub(super) fn call_begins(&self, processor: u64, call: Call, shard: &ShardId, token: u64) {
        self.with(|oracle, now| oracle.call_begins(processor, call, shard, token, now));
    }

    /// A call of a processor has ended.
    pub(super) fn call_ends(&self, processor: u64, call: Call, end: CallEnd) {
        self.with(|oracle, _| oracle.call_ends(processor, call, end));
    }

    /// A processor is dropped.
    pub(super) fn gone(&self, processor: u64, with_its_process: bool) {
        self.with(|oracle, now| oracle.gone(processor, with_its_process, now));
    }

    /// A process is told to stop.
    pub(super) fn told_to_stop(&self, host: &str) {
        self.with(|oracle, now| {
            oracle.stopping.entry(host.to_owned()).or_insert(now);
        });
    }

    /// Users' code has seen what must not be.
    pub(super) fn violated(&self, invariant: &'static str, message: &str) {
        self.with(|oracle, _| oracle.violated(invariant, message.to_owned()));
    }

    /// The run has ended: what is dropped from now on says nothing.
    pub(super) fn is_over(&self) -> bool {
        self.lock().over
    }

    /// The disturbance is over.
    pub(super) fn is_calm(&self) -> bool {
        self.lock().calm
    }

    /// See [`is_calm`](Self::is_calm).
    pub(super) fn calms_down(&self) {
        self.lock().calm = true;
    }

    /// See [`is_over`](Self::is_over).
    pub(super) fn ends(&self) {
        self.lock().over = true;
    }

    /// The time since the services began.
    pub(super) fn now(&self) -> Duration {
        self.aws.elapsed()
    }

    /// The tree of shards has changed.
    pub(super) fn resharded(&self, stream: &str) {
        if let Ok(shards) = self.aws.shards(stream) {
            self.with(|oracle, _| oracle.log.resharded(&shards));
        }
    }

    /// A state of interest was reached.
    pub(super) fn note(&self, state: &'static str) {
        self.with(|oracle, now| {
            oracle.trace.line(now, format_args!("{state}"));
            oracle.reached(state);
        });
    }

    /// Adds a line to the trace.
    pub(super) fn tell(&self, what: fmt::Arguments<'_>) {
        self.with(|oracle, now| oracle.trace.line(now, what));
    }

    pub(super) fn violation(&self) -> Option<Violation> {
        self.lock().violation.clone()
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Oracle> {
        // A panic of the oracle is a failure of the run, whatever it left behind.
        self.oracle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Oracle {
    fn event(&mut self, event: &Event<'_>, now: Duration) {
        if !matches!(event, Event::ItemsWritten { .. }) {
            self.judge_said(now);
        }
        match *event {
            Event::Sent { host, service, operation, shard, fault } => {
                let fault = fault.map_or("", |fault| fault.name());
                self.trace.line(now, format_args!("{host} -> {} {operation} {shard} {fault}", service.name()));
                if let Some(message) = self.limits.sent(host, operation, shard, now) {
                    self.violated("S12", message);
                }
            }
            Event::LeaseWritten { after: lease, .. } | Event::LeaseCreated { lease, .. } | Event::LeaseDeleted { lease, .. }
                if self.is_of_another_stream(lease) => {}
            Event::LeaseWritten { host, write, before, after, .. } if seeks::is_operator(host) => {
                self.sought(host, write, before, after, now);
            }
            Event::LeaseCreated { host, lease } if seeks::is_operator(host) => self.made_by_operator(host, lease, now),
            Event::LeaseWritten { host, before, after, .. } if foreigners::is_one(host) => self.written_elsewhere(host, before, after, now),
            Event::LeaseWritten { host, sent, write, before, after } => self.written(host, sent, write, before, after, now),
            Event::LeaseWriteRecognised { host, write } => {
                self.trace.line(now, format_args!("{host} write of {} found in effect", write.shard_id));
                self.reached("own write recognised");
            }
            Event::LeaseWriteRefused { host, write, .. } => {
                self.trace.line(now, format_args!("{host} write of {} refused", write.shard_id));
                self.reached("write refused");
            }
            Event::LeaseCreated { host, lease } => self.created(host, lease, now),
            Event::LeaseDeleted { host, lease } => self.deleted(host, lease, now),
            Event::DeadLetterAccepted { host, letter } => self.dead_lettered(host, letter, now),
            Event::ItemsWritten { host, items, .. } => {
                self.committed(host, items, now);
                self.judge_said(now);
            }
            Event::TimeStandsStill { host } => self.violated("still", format!("{host} is busy without end, and time stands still")),
            _ => {}
        }
    }

    pub(super) fn reached(&mut self, state: &'static str) {
        *self.states.entry(state).or_default() += 1;
    }

    pub(super) fn violation(&self) -> Option<Violation> {
        self.violation.clone()
    }

    pub(super) fn states(&self) -> BTreeMap<&'static str, u64> {
        self.states.clone()
    }

    /// From now on trimmed records may be skipped.
    pub(super) fn allow_skips(&mut self) {
        self.trimmed_may_be_skipped = true;
    }

    /// The users' database holds a record from now on.
    fn effect(&mut self, host: &str, shard: &ShardId, position: ExtendedSequenceNumber, now: Duration) {
        self.trace.line(now, format_args!("{host} finished {shard} {position}"));
        if !self.finish(host, shard, position, now) || !self.keeps_order || self.seeks.under_way {
            return;
        }
        if let Err((key, count, later)) = self.log.first_effect(shard, position) {
            self.violated(
                "S4",
                format!("record {count} of key {key} in {shard} has its effect by {host} after record {later} of the same key"),
            );
        }
    }

    /// Items were written together with a checkpoint: the effects of their records.
    fn committed(&mut self, host: &str, items: &TransactItems, now: Duration) {
        for item in items.as_slice() {
            let name = item.put().and_then(|put| put.item().get("id")).and_then(|id| id.as_s().ok());
            if let Some((shard, position)) = name.and_then(|name| self.to_commit.remove(name)) {
                self.effect(host, &shard, position, now);
            }
        }
    }

    /// A record is finished. Returns whether it is for the first time.
    fn finish(&mut self, host: &str, shard: &ShardId, position: ExtendedSequenceNumber, now: Duration) -> bool {
        if self.emptied.held(host, shard) {
            // What it had is asked for again.
            return false;
        }
        let terms = self.terms.get(shard).into_iter().flatten();
        if terms.rev().find(|term| term.host == host).is_some_and(|term| term.sought) {
            // Asked for again since.
            return false;
        }
        match self.log.finish(shard, position) {
            Some(log::Finished::Again) => return false,
            Some(log::Finished::First { put }) => self.slowest = self.slowest.max(now.saturating_sub(put)),
            None if self.made_anew.is_some() => return false,
            None => self.violated("S3", format!("record {position} of {shard} was finished and never published")),
        }
        true
    }

    fn is_of_another_stream(&self, lease: &Lease) -> bool {
        self.made_anew.is_some_and(|made| lease.stream_created.is_some_and(|created| created != made))
    }

    /// The first violation stands.
    pub(super) fn violated(&mut self, invariant: &'static str, message: String) {
        if self.violation.is_none() {
            self.violation = Some(Violation { invariant, message });
        }
    }
}
