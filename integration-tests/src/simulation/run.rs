//! Carries a plan out: one runtime, one thread, time that jumps from event to event.

use std::collections::{BTreeMap, BTreeSet};
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant as WallInstant};

use kcl_core::test_util::kinesis_model::KinesisConfig;
use kcl_core::test_util::{FaultKind, SimulatedAws};
use kcl_core::{Entropy, ShardId};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

use super::fleet::{Exit, Fleet};
use super::fuses::Fuses;
use super::logs::Listener;
use super::operators::Present;
use super::oracle::{Judge, Oracle, Violation};
use super::plan::{Chaos, Plan};
use super::publisher::{Publisher, STREAM};
use super::trace::Trace;

/// How much of a run is kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Detail {
    /// A hash, and the end of it.
    #[default]
    Little,
    /// The same, with the library's own log events.
    Logs,
    /// All of it.
    All,
}

/// What a run came to.
#[derive(Debug, Default)]
pub struct Outcome {
    /// The invariant that was broken, if one was.
    pub violation: Option<Violation>,
    /// What happened.
    pub trace: Trace,
    /// How often each fault of a call happened, and each event of the schedule.
    pub faults: BTreeMap<&'static str, u64>,
    /// States of interest.
    pub states: BTreeMap<&'static str, u64>,
    /// Time simulated.
    pub simulated: Duration,
    /// Time that it took.
    pub wall: Duration,
    /// Records that came again although they were finished and their shard was released in order.
    pub repeated: u64,
}

/// Carries a plan out, on this thread. A panic of the simulator counts as a failure of the run.
///
/// # Panics
/// If no runtime can be made.
#[must_use]
pub fn run(plan: &Plan, detail: Detail) -> Outcome {
    #[expect(clippy::disallowed_methods, reason = "how long the simulation itself takes")]
    let began = WallInstant::now();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().expect("a runtime can be made");
    let carried_out = std::panic::catch_unwind(AssertUnwindSafe(|| runtime.block_on(carry_out(plan, detail))));
    drop(runtime);
    let mut outcome = carried_out.unwrap_or_else(|_| {
        let violation = Violation { invariant: "panic", message: "the simulator itself has panicked, see above".to_owned() };
        Outcome { violation: Some(violation), ..Outcome::default() }
    });
    outcome.wall = began.elapsed();
    outcome
}

async fn carry_out(plan: &Plan, detail: Detail) -> Outcome {
    let updating_ms = u64::try_from(plan.resharding.as_millis()).unwrap_or(0);
    let config = KinesisConfig { enforce_read_limits: true, updating_ms, open_shard_limit: 100_000, ..KinesisConfig::default() };
    let aws = SimulatedAws::with(plan.seed, config, plan.short_numbers);
    let judge = Judge::new(plan, &aws, Trace::new(detail == Detail::All));
    let guard = tracing::subscriber::set_default(Listener::new(judge.clone(), detail != Detail::Little));
    aws.create_stream(STREAM, plan.shards);
    aws.create_table(super::oracle::COMMITTED, &["id"]);
    judge.resharded(STREAM);
    let mut simulation = Simulation::new(plan, &aws, &judge);
    let violated = judge.clone();
    tokio::select! {
        biased;
        () = violated.stopped.notified() => {}
        () = simulation.run() => {}
    }
    drop(guard);
    judge.ends();
    simulation.outcome()
}

/// What is to happen at some time.
#[derive(Clone, Copy, Debug)]
pub(super) enum Due {
    Chaos(Chaos),
    Thaw(usize, u64),
    Start(usize),
    /// The tree of shards has changed.
    Resharded,
    OperatorThaws,
}

pub(super) struct Simulation {
    pub(super) aws: SimulatedAws,
    pub(super) judge: Judge,
    pub(super) plan: Arc<Plan>,
    pub(super) fleet: Fleet,
    pub(super) publisher: Publisher,
    /// In the order of time, and of entry.
    pub(super) due: BTreeMap<(Duration, u64), Due>,
    pub(super) entries: u64,
    /// Freezes of each machine, so that only the last one's end thaws it.
    pub(super) freezes: BTreeMap<usize, u64>,
    pub(super) events: BTreeMap<&'static str, u64>,
    /// Writes after which something happens to a process.
    pub(super) fuses: Fuses,
    pub(super) next_record: Option<Instant>,
    /// Workers of the Java library.
    pub(super) foreigners: JoinSet<()>,
    /// A seek that is being made.
    pub(super) operators: JoinSet<()>,
    /// The process that makes it.
    pub(super) operator: Present,
    /// Resumptions of stopped shards that are under way.
    pub(super) consoles: JoinSet<()>,
    /// Another application's readers.
    pub(super) neighbours: JoinSet<()>,
    /// Shards that somebody has paused, by the number of the machine.
    pub(super) paused: BTreeSet<(usize, ShardId)>,
    /// The time of the next look at what is looked at now and then.
    pub(super) next_look: Duration,
    /// Tasks, bytes and shards when growth began to be watched.
    pub(super) memory: Option<(usize, usize, usize)>,
}

impl Simulation {
    fn new(plan: &Plan, aws: &SimulatedAws, judge: &Judge) -> Self {
        let plan = Arc::new(plan.clone());
        let entropy = Entropy::from_seed(plan.seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0xf1ee7);
        let mut rates = plan.rates.clone();
        for (service, rates) in std::mem::take(&mut rates) {
            aws.faults().set_rates_of(service, rates);
        }
        aws.set_write_budget(super::oracle::APPLICATION, plan.write_budget);
        let fleet = Fleet {
            aws: aws.clone(),
            judge: judge.clone(),
            entropy: entropy.clone(),
            plan: Arc::clone(&plan),
            processes: BTreeMap::new(),
            in_service: BTreeMap::new(),
            exits: JoinSet::new(),
            mended: Arc::new(AtomicBool::new(false)),
            started: 0,
            hosts: Vec::new(),
        };
        let publisher = Publisher::new(aws.clone(), judge.clone(), plan.traffic.clone(), Entropy::from_seed(entropy.u64()));
        let fuses = Fuses::default();
        let (lit, services) = (fuses.clone(), aws.clone());
        aws.observe(move |event| lit.burn(event, &services));
        for (operation, per_second) in &plan.limits {
            aws.faults().limit(operation, *per_second);
        }
        let mut simulation = Self {
            aws: aws.clone(),
            judge: judge.clone(),
            fleet,
            publisher,
            due: BTreeMap::new(),
            entries: 0,
            freezes: BTreeMap::new(),
            events: BTreeMap::new(),
            fuses,
            operators: JoinSet::new(),
            foreigners: JoinSet::new(),
            operator: Present::default(),
            consoles: JoinSet::new(),
            neighbours: JoinSet::new(),
            paused: BTreeSet::new(),
            next_record: Some(Instant::now() + plan.traffic.from),
            next_look: Duration::ZERO,
            memory: None,
            plan,
        };
        for number in 0..simulation.plan.workers {
            simulation.enter(Duration::ZERO, Due::Chaos(Chaos::Start(number)));
        }
        for (at, chaos) in simulation.plan.schedule.clone() {
            simulation.enter(at, Due::Chaos(chaos));
        }
        if simulation.plan.neighbour > 0 {
            simulation.neighbour_reads(simulation.plan.neighbour);
        }
        simulation
    }

    pub(super) fn enter(&mut self, at: Duration, due: Due) {
        self.entries += 1;
        self.due.insert((at, self.entries), due);
    }

    async fn run(&mut self) {
        self.until(self.plan.duration).await;
        self.judge.tell(format_args!("the disturbance is over"));
        self.calm();
        if !self.everything_is_finished().await || !self.leases_are_even().await {
            return;
        }
        if let Some(message) = self.fleet.bytes_too_many() {
            self.judge.with(|oracle, _| oracle.violated("S11", message));
        }
        self.demands_are_met();
        self.all_stop().await;
    }

    /// Lets time pass until then.
    pub(super) async fn until(&mut self, end: Duration) {
        let start = Instant::now().checked_sub(self.aws.elapsed()).expect("the services are older than they are");
        loop {
            let next = self.due.first_key_value().map(|((at, _), _)| *at);
            let wake = next.map_or(end, |next| next.min(end));
            tokio::select! {
                biased;
                Some(exit) = self.fleet.exits.join_next() => self.ended(exit),
                Some(done) = self.operators.join_next() => {
                    done.expect("an operator does not panic");
                    self.judge.with(|oracle, _| oracle.seek_is_made());
                }
                Some(_) = self.consoles.join_next() => {}
                () = sleep_until(start + wake) => {
                    if next.is_none_or(|next| next > end) {
                        return;
                    }
                    if let Some((_, due)) = self.due.pop_first() {
                        self.happen(due);
                    }
                }
                () = at(self.next_record) => {
                    let records = self.publisher.put(1);
                    self.next_record = Some(Instant::now() + self.publisher.pause() * records);
                }
            }
            self.watch();
        }
    }

    fn ended(&mut self, exit: Result<(usize, Exit), tokio::task::JoinError>) {
        let (number, exit) = match exit {
            Ok(ended) => ended,
            Err(error) => {
                self.judge.with(|oracle, _| oracle.violated("panic", format!("a process panicked outside of users' code: {error}")));
                return;
            }
        };
        if matches!(exit, Exit::Killed) {
            self.judge.note("process killed");
        }
        if let Some(pause) = self.fleet.ended(number, &exit) {
            self.enter(self.aws.elapsed() + pause, Due::Start(number));
        }
    }

    fn happen(&mut self, due: Due) {
        match due {
            Due::Chaos(chaos) => self.chaos(chaos),
            Due::Thaw(number, freeze) => {
                if self.freezes.get(&number) == Some(&freeze)
                    && let Some(process) = self.fleet.processes.get(&number)
                {
                    self.judge.tell(format_args!("{} thaws", process.host.name()));
                    process.host.thaw();
                }
            }
            Due::Start(number) => {
                if self.fleet.in_service.get(&number).copied().unwrap_or(false) {
                    self.fleet.start(number);
                }
            }
            Due::Resharded => self.judge.resharded(STREAM),
            Due::OperatorThaws => self.operator_thaws(),
        }
    }

    pub(super) fn count(&mut self, event: &'static str) {
        *self.events.entry(event).or_default() += 1;
    }

    pub(super) fn with_host(&self, number: usize, action: impl FnOnce(&kcl_core::test_util::Host)) {
        if let Some(process) = self.fleet.processes.get(&number) {
            action(&process.host);
        }
    }

    /// The invariants that are looked at from time to time.
    fn watch(&mut self) {
        let now = self.aws.elapsed();
        let demands = self.plan.demands;
        if let Some(limit) = demands.neighbours.or(demands.always_within) {
            let oldest = self.judge.lock().oldest_of_good_shards(now);
            if oldest > limit {
                self.judge.with(|oracle, _| {
                    oracle.violated(
                        "L8",
                        format!("a good record waits for {oldest:?} in a shard without bad ones, at most {limit:?} are right"),
                    );
                });
            }
        }
        self.judge.with(Oracle::all_have_ended);
        if let Some(within) = demands.other_keys
            && now >= self.next_look
        {
            // All open records are looked at, which takes its time.
            self.next_look = now + within / 4;
            self.judge.with(|oracle, now| oracle.other_keys_go_on(now, within));
        }
        if let Some(within) = demands.calls_end {
            self.judge.with(|oracle, now| oracle.calls_end_with_their_terms(now, within));
        }
        if let Some(from) = demands.no_growth_after
            && now >= from
        {
            let tasks = tokio::runtime::Handle::current().metrics().num_alive_tasks();
            let bytes = super::memory::allocated();
            let shards = self.judge.lock().owners().len();
            let (tasks_before, bytes_before, shards_before) = *self.memory.get_or_insert((tasks, bytes, shards));
            // Two tasks more for each shard more, some for what is handed over or travels just now; and what the oracle itself remembers.
            let more = 8 + 2 * shards.saturating_sub(shards_before);
            if tasks > tasks_before + more || bytes > bytes_before + (8 << 20) {
                self.judge.with(|oracle, _| {
                    oracle.violated(
                        "growth",
                        format!("{tasks_before} tasks and {bytes_before} bytes grew to {tasks} tasks and {bytes} bytes"),
                    );
                });
            }
        }
    }

    fn outcome(&mut self) -> Outcome {
        // The oracle observes the services, and knows them.
        self.aws.stop_observing();
        let mut oracle = self.judge.lock();
        let mut faults = std::mem::take(&mut self.events);
        for kind in FaultKind::ALL {
            let count = self.aws.faults().counts().get(&kind).copied().unwrap_or(0);
            *faults.entry(kind.name()).or_default() += count;
        }
        Outcome {
            violation: oracle.violation(),
            trace: std::mem::take(&mut oracle.trace),
            faults,
            states: oracle.states(),
            simulated: self.aws.elapsed(),
            wall: Duration::ZERO,
            repeated: oracle.repeated(),
        }
    }
}

async fn at(time: Option<Instant>) {
    match time {
        Some(time) => sleep_until(time).await,
        None => std::future::pending().await,
    }
}
