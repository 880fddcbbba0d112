//! A run as plain data. A scenario makes it from a seed; it can be written down, cut down, and carried out again.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;

use kcl_core::test_util::{Cut, FaultKind, FaultRates, Service};
use kcl_core::{Entropy, InitialPosition, PoisonedKey, RetrievalMode, TrimmedData};

use super::users::Way;

/// When the services of each run begin, in milliseconds since 1970.
pub const BEGINS_MILLIS: u64 = 1_790_000_000_000;

/// What can be set from outside; `None`: as the scenario has it.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Minutes of disturbance.
    pub minutes: Option<u64>,
    /// Workers at the start.
    pub workers: Option<usize>,
    /// Shards at the start.
    pub shards: Option<u32>,
}

impl Options {
    /// The minutes, or what the scenario has.
    #[must_use]
    pub fn duration(&self, otherwise: Duration) -> Duration {
        self.minutes.map_or(otherwise, |minutes| Duration::from_secs(minutes * 60))
    }
}

/// Something that happens to the fleet, the stream or the services. Machines are numbered from 0.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Chaos {
    /// A machine is put into service.
    Start(usize),
    /// SIGTERM, and the machine stays out of service.
    Stop(usize),
    /// SIGTERM, and a new process as soon as the old one has ended: a deploy.
    Replace(usize),
    /// SIGKILL; a new process starts some seconds later.
    Kill(usize),
    /// SIGKILL at the poll of this number from now on.
    KillAtPoll(usize, u64),
    /// SIGKILL when this number of writes of the machine were applied to the lease table, or accepted by the queue, from now on.
    KillAfterWrite(usize, u64),
    /// All processes of the machine stand still for this time.
    Freeze(usize, Duration),
    /// The wall clock is set forward or back.
    StepClock(usize, i64),
    /// The machine's boot time runs at this rate.
    ClockRate(usize, f64),
    /// A shard is split; the number chooses it.
    Split(u64),
    /// Two adjacent shards are merged; the number chooses them.
    Merge(u64),
    /// A service is away for all.
    Outage(Service, Duration),
    /// A machine and a service are cut from each other.
    Partition(usize, Service, Cut, Duration),
    /// This many records are put at once.
    Burst(u32),
    /// The stream is deleted and made anew.
    Recreate,
    /// Somebody deletes so many rows of the lease table, or all.
    Empty(usize),
    /// A leader of the Java library asks for a lease (the number chooses it) for a worker of its own, which is silent for so long when it has it, renews it so often,
    /// and is gone then: with a release if the last is true.
    Assign(u64, Duration, u32, bool),
    /// From now on workers skip trimmed records: what operators do in the end.
    Mend,
    /// An operator lets the application begin so long before now, or, with zero, at the oldest record; and asks again until that is done.
    Seek(Duration),
    /// Something happens to the machine that a seek is being made from.
    Trouble(OperatorTrouble),
    /// The answer to this write of the machine's process to the lease table, counted from now on, is lost, and all that follow for this time.
    CutAfterWrite(usize, u64, Duration),
    /// For the second time, listings of shards show what was true so long ago as the first time says.
    ListingsLag(Duration, Duration),
    /// Leases that are created within this time appear seconds later.
    CreationsLate(Duration),
    /// Somebody pauses the worker of a machine; with a number, the shard of it that the number chooses.
    Pause(usize, Option<u64>),
    /// Somebody resumes what was paused of a machine's worker.
    Resume(usize),
    /// Somebody resumes all shards that their processor or the safety valve has stopped.
    ResumeStopped,
}

/// Something that happens to an operator's machine.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum OperatorTrouble {
    /// The process dies. Another one asks for the same some seconds later.
    Killed,
    /// The same, when so many of its writes were applied from now on.
    KilledAfterWrite(u64),
    /// The process stands still for this time.
    Frozen(Duration),
    /// The machine and a service are cut from each other.
    Cut(Service, Cut, Duration),
    /// The answer to this write, and all that follow for this time, are lost.
    CutAfterWrite(u64, Duration),
    /// Calls take up to the first time each, for the second.
    Slow(Duration, Duration),
    /// The clock runs at this rate, and is set forward or back by so many milliseconds.
    Clock(f64, i64),
}

impl fmt::Display for Chaos {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{self:?}")
    }
}

/// What is published.
#[derive(Clone, Debug)]
pub struct Traffic {
    /// Partition keys.
    pub keys: u32,
    /// Mean time between two records while there is traffic.
    pub every: Duration,
    /// Of each thousand records, so many can't be processed and say so.
    pub poison: u32,
    /// Of each thousand records, so many fail at each attempt.
    pub failing: u32,
    /// Of each thousand records, so many panic at each attempt.
    pub panicking: u32,
    /// The record of this number kills each process that has it in work.
    pub killer: Option<u64>,
    /// The records of these numbers fail at each attempt.
    pub bad: BTreeSet<u64>,
    /// The largest payload.
    pub largest: usize,
    /// No records before this time.
    pub from: Duration,
    /// Whether some are put together; `None`: each is a record of its own.
    pub aggregates: Option<Aggregates>,
}

/// Records that are put together, as the Kinesis Producer Library does.
#[derive(Clone, Copy, Debug)]
pub struct Aggregates {
    /// Of each thousand puts, so many are aggregates.
    pub share: u32,
    /// Records of one, at most.
    pub most: u32,
    /// Of each thousand, so many hold records of one key only; the others, of any keys of their shard.
    pub one_key: u32,
    /// Of each thousand of the others, so many hold records of any keys, as producers make them that don't know yet of a reshard.
    pub elsewhere: u32,
    /// Of each thousand, so many are broken: nobody can take them apart.
    pub broken: u32,
}

/// How a processor tells which records have failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tells {
    /// It goes through the batch in order, and gives up at the first that fails.
    InOrder,
    /// Not at all.
    Nothing,
    /// By an outcome that names the first that fails.
    From,
    /// By an outcome that names each that fails.
    These,
    /// It acknowledges each record when it is done, in no order, and fails at the first that does.
    AnyOrder,
}

/// What the processors do. Rates are probabilities from 0 to 1.
#[derive(Clone, Debug)]
pub struct Handling {
    /// The longest time for a batch.
    pub longest: Duration,
    /// Batches that take up to `stall` longer.
    pub stalls: f64,
    /// How long these take.
    pub stall: Duration,
    /// Records that fail once.
    pub errors: f64,
    /// Batches that panic.
    pub panics: f64,
    /// How the processor tells which record failed.
    pub tells: Tells,
    /// The most records of a batch; `None`: as many as the library has by default.
    pub batch: Option<usize>,
    /// Records that a batch waits for, and how long it does.
    pub wait_for: Option<(usize, Duration)>,
    /// Lanes of a shard.
    pub lanes: usize,
    /// What becomes of records of a key that was poisoned.
    pub poisoned_key: PoisonedKey,
    /// How long a call may take.
    pub deadline: Option<Duration>,
    /// The age from which on a record that fails is given up.
    pub max_age: Option<Duration>,
    /// How long another worker waits for a shard; `None`: the library's default.
    pub handoff: Option<Duration>,
    /// How far behind a shard may be before it skips what it has not read.
    pub skip_beyond: Option<Duration>,
    /// The safety valve: of so many records finished last, at most so many may be dead letters; `None`: the library's default.
    pub valve: Option<(usize, usize)>,
    /// Batches in which the processor says that its shard must stop.
    pub stops: f64,
    /// Whether the processor checkpoints for itself.
    pub manual: bool,
    /// Whether there is a dead-letter queue.
    pub queue: bool,
    /// The way in which the service is written.
    pub way: Way,
    /// The longest time of a slow call, for ways that take one.
    pub slow: Duration,
    /// Calls that hang, of whatever kind.
    pub hangs: f64,
    /// Processors that panic when they are dropped.
    pub panics_in_drop: f64,
    /// The users' database.
    pub database: UsersDatabase,
    /// Whether the retry policy is the library's default, and not one with few attempts.
    pub default_retries: bool,
}

/// The database that users write to. Rates are probabilities of one insert.
#[derive(Clone, Debug, Default)]
pub struct UsersDatabase {
    /// The longest time of an insert.
    pub latency: Duration,
    /// Inserts that take up to `stall` longer.
    pub stalls: f64,
    /// The longest time of a stall.
    pub stall: Duration,
    /// Inserts that fail without an effect.
    pub errors: f64,
    /// Inserts that have their effect and fail.
    pub lost_answers: f64,
    /// From when to when it is away.
    pub outages: Vec<(Duration, Duration)>,
}

impl Default for Handling {
    fn default() -> Self {
        Self {
            longest: Duration::from_millis(50),
            stalls: 0.0,
            stall: Duration::from_secs(60),
            errors: 0.0,
            panics: 0.0,
            tells: Tells::InOrder,
            batch: None,
            wait_for: None,
            lanes: 1,
            poisoned_key: PoisonedKey::Wait,
            deadline: None,
            max_age: None,
            handoff: None,
            skip_beyond: None,
            valve: None,
            stops: 0.0,
            manual: false,
            queue: true,
            way: Way::Model,
            slow: Duration::ZERO,
            hangs: 0.0,
            panics_in_drop: 0.0,
            database: UsersDatabase::default(),
            default_retries: false,
        }
    }
}

/// How the disturbance ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// All is healed.
    Heal,
    /// This many machines are healed; the others are broken for ever, each in its own way.
    HealthyCore(usize),
}

/// What a scenario demands beside the invariants.
#[derive(Clone, Copy, Debug, Default)]
pub struct Demands {
    /// Leases taken in a time: at most so many.
    pub takes: Option<(Duration, Duration, u64)>,
    /// No growth of tasks and memory from this time on.
    pub no_growth_after: Option<Duration>,
    /// Records that come again although they were finished and their shard was released in order: at most so many.
    pub repeated: Option<u64>,
    /// Good records in the dead-letter queue: at most so many.
    pub good_letters: Option<u64>,
    /// While a queue is away, records of shards without bad records are finished within this time.
    pub neighbours: Option<Duration>,
    /// While a queue is away, good records of keys without bad records before them are finished within this time.
    pub other_keys: Option<Duration>,
    /// All records are finished within this time of their arrival, at all times.
    pub always_within: Option<Duration>,
    /// Calls end within this time of the end of their term, on machines that run.
    pub calls_end: Option<Duration>,
    /// Processes that are killed by a record: at most so many.
    pub deaths: Option<u64>,
    /// Nobody dies, or seems to: no lease is taken from an owner.
    pub nobody_dies: bool,
}

/// One run.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The scenario's name.
    pub scenario: &'static str,
    /// What all draws follow from.
    pub seed: u64,
    /// Shards at the start.
    pub shards: u32,
    /// Machines in service at the start.
    pub workers: usize,
    /// The lease duration.
    pub lease_duration: Duration,
    /// Those of the processes, one after the other as they start; if there are none, all have the above.
    pub lease_durations: Vec<Duration>,
    /// The most leases of each machine, in turns; if there are none, all take as many as they can.
    pub most_leases: Vec<usize>,
    /// How the stream is read.
    pub retrieval: RetrievalMode,
    /// Time between two reads of a shard without records.
    pub idle_interval: Duration,
    /// Where the application starts.
    pub initial: InitialPosition,
    /// What happens when records were trimmed.
    pub trimmed: TrimmedData,
    /// Whether sequence numbers are short.
    pub short_numbers: bool,
    /// Writes per second that the lease table takes.
    pub write_budget: Option<f64>,
    /// Bytes that are read ahead by each worker.
    pub prefetch: usize,
    /// Calls of an operation that a service takes in a second, from all workers together.
    pub limits: Vec<(&'static str, u32)>,
    /// Reads a second and shard of another application.
    pub neighbour: u32,
    /// How long a change of shards takes.
    pub resharding: Duration,
    /// What is published.
    pub traffic: Traffic,
    /// What is done with it.
    pub handling: Handling,
    /// Faults of calls during the disturbance.
    pub rates: BTreeMap<Service, FaultRates>,
    /// What happens when.
    pub schedule: Vec<(Duration, Chaos)>,
    /// How long the disturbance lasts.
    pub duration: Duration,
    /// How it ends.
    pub ending: Ending,
    /// How long after it all records must be finished.
    pub patience: Duration,
    /// What is demanded beside the invariants.
    pub demands: Demands,
}

impl Plan {
    /// A calm run of a small fleet: scenarios change what they are about.
    #[must_use]
    pub fn calm(scenario: &'static str, seed: u64, options: &Options) -> Self {
        Self {
            scenario,
            seed,
            shards: options.shards.unwrap_or(4),
            workers: options.workers.unwrap_or(3),
            lease_duration: Duration::from_secs(10),
            lease_durations: Vec::new(),
            most_leases: Vec::new(),
            retrieval: RetrievalMode::Polling,
            idle_interval: Duration::from_secs(1),
            initial: InitialPosition::TrimHorizon,
            trimmed: TrimmedData::Block,
            short_numbers: false,
            write_budget: None,
            prefetch: 12 << 20,
            limits: Vec::new(),
            neighbour: 0,
            resharding: Duration::from_millis(500),
            traffic: Traffic {
                keys: 20,
                every: Duration::from_secs(1),
                poison: 0,
                failing: 0,
                panicking: 0,
                killer: None,
                bad: BTreeSet::new(),
                largest: 40,
                from: Duration::ZERO,
                aggregates: None,
            },
            handling: Handling::default(),
            rates: BTreeMap::new(),
            schedule: Vec::new(),
            duration: options.duration(Duration::from_secs(600)),
            ending: Ending::Heal,
            patience: Duration::from_secs(300),
            demands: Demands::default(),
        }
    }

    /// The plan's own source of draws, apart from those of the run.
    #[must_use]
    pub fn dice(&self) -> Dice {
        Dice(Entropy::from_seed(self.seed ^ 0x005e_ed0f_1a17))
    }

    /// Adds to the schedule.
    pub fn at(&mut self, seconds: f64, chaos: Chaos) {
        self.schedule.push((Duration::from_secs_f64(seconds), chaos));
    }

    /// Only these entries of the schedule, by their place in it.
    pub fn keep_only(&mut self, entries: &[usize]) {
        let mut place = 0;
        self.schedule.retain(|_| {
            place += 1;
            entries.contains(&(place - 1))
        });
    }

    /// None of these kinds of faults of calls.
    pub fn without(&mut self, kinds: &[FaultKind]) {
        for rates in self.rates.values_mut() {
            for kind in kinds {
                if let Some(rate) = rates.of(*kind) {
                    *rate = 0.0;
                }
            }
        }
    }
}

/// Draws for plans.
#[derive(Clone, Debug)]
pub struct Dice(Entropy);

impl Dice {
    /// From a seed of its own.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(Entropy::from_seed(seed))
    }

    /// True with this probability.
    #[must_use]
    pub fn chance(&self, probability: f64) -> bool {
        self.0.fraction() < probability
    }

    /// From 0 to below `end`; 0 if that is 0.
    #[must_use]
    pub fn below(&self, end: usize) -> usize {
        usize::try_from(self.0.u64() % end.max(1) as u64).unwrap_or(0)
    }

    /// From `low` to `high`.
    #[must_use]
    pub fn between(&self, low: f64, high: f64) -> f64 {
        low + (high - low) * self.0.fraction()
    }

    /// From `low` to `high` seconds.
    #[must_use]
    pub fn seconds(&self, low: f64, high: f64) -> Duration {
        Duration::from_secs_f64(self.between(low, high))
    }

    /// Small most of the time, and large at times.
    #[must_use]
    pub fn skewed_seconds(&self, low: f64, high: f64) -> Duration {
        Duration::from_secs_f64(low * (high / low).powf(self.0.fraction()))
    }

    /// Any number.
    #[must_use]
    pub fn number(&self) -> u64 {
        self.0.u64()
    }

    /// One of these.
    #[must_use]
    pub fn one_of<T: Copy>(&self, choices: &[T]) -> T {
        choices[self.below(choices.len())]
    }
}
