//! Carries a plan out: one runtime, one thread, time that jumps from event to event.

use std::collections::BTreeMap;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant as WallInstant};

use kcl_core::Entropy;
use kcl_core::test_util::kinesis_model::{DeleteStreamInput, KinesisConfig, MergeShardsInput, SplitShardInput};
use kcl_core::test_util::{Cut, Event, FaultKind, Service, SimulatedAws};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until};

use super::fleet::{Exit, Fleet, machine};
use super::logs::Listener;
use super::oracle::{Judge, Violation};
use super::plan::{Chaos, Ending, Plan};
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
    /// Records finished more than once.
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
    judge.resharded(STREAM);
    let mut simulation = Simulation::new(plan, &aws, &judge);
    let violated = judge.clone();
    tokio::select! {
        biased;
        () = violated.stopped.notified() => {}
        () = simulation.run() => {}
    }
    drop(guard);
    simulation.outcome()
}

/// What is to happen at some time.
#[derive(Clone, Copy, Debug)]
enum Due {
    Chaos(Chaos),
    Thaw(usize, u64),
    Start(usize),
    /// The tree of shards has changed.
    Resharded,
}

struct Simulation {
    aws: SimulatedAws,
    judge: Judge,
    plan: Arc<Plan>,
    fleet: Fleet,
    publisher: Publisher,
    /// In the order of time, and of entry.
    due: BTreeMap<(Duration, u64), Due>,
    entries: u64,
    /// Freezes of each machine, so that only the last one's end thaws it.
    freezes: BTreeMap<usize, u64>,
    events: BTreeMap<&'static str, u64>,
    /// Writes after which a process is killed.
    fuses: Fuses,
    next_record: Option<Instant>,
    /// Tasks, bytes and shards when growth began to be watched.
    memory: Option<(usize, usize, usize)>,
}

/// Processes that die at a write, by their machine's name.
type Fuses = Arc<std::sync::Mutex<BTreeMap<String, (u64, kcl_core::test_util::Host)>>>;

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
            hosts: Vec::new(),
        };
        let publisher = Publisher::new(aws.clone(), judge.clone(), plan.traffic.clone(), Entropy::from_seed(entropy.u64()));
        let fuses = Fuses::default();
        let lit = Arc::clone(&fuses);
        aws.observe(move |event| burn(&lit, event));
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
            next_record: Some(Instant::now() + plan.traffic.from),
            memory: None,
            plan,
        };
        for number in 0..simulation.plan.workers {
            simulation.enter(Duration::ZERO, Due::Chaos(Chaos::Start(number)));
        }
        for (at, chaos) in simulation.plan.schedule.clone() {
            simulation.enter(at, Due::Chaos(chaos));
        }
        simulation
    }

    fn enter(&mut self, at: Duration, due: Due) {
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
        self.judge.with(|oracle, _| oracle.skips_are_audited());
        if let Some(message) = self.fleet.bytes_too_many() {
            self.judge.with(|oracle, _| oracle.violated("S11", message));
        }
        self.demands_are_met();
        self.all_stop().await;
    }

    /// Lets time pass until then.
    async fn until(&mut self, end: Duration) {
        let start = Instant::now().checked_sub(self.aws.elapsed()).expect("the services are older than they are");
        loop {
            let next = self.due.first_key_value().map(|((at, _), _)| *at);
            let wake = next.map_or(end, |next| next.min(end));
            tokio::select! {
                biased;
                Some(exit) = self.fleet.exits.join_next() => self.ended(exit),
                () = sleep_until(start + wake) => {
                    if next.is_none_or(|next| next > end) {
                        return;
                    }
                    if let Some((_, due)) = self.due.pop_first() {
                        self.happen(due);
                    }
                }
                () = at(self.next_record) => {
                    self.publisher.put(1);
                    self.next_record = Some(Instant::now() + self.publisher.pause());
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
        }
    }

    fn count(&mut self, event: &'static str) {
        *self.events.entry(event).or_default() += 1;
    }

    fn chaos(&mut self, chaos: Chaos) {
        let now = self.aws.elapsed();
        self.judge.tell(format_args!("chaos {chaos}"));
        match chaos {
            Chaos::Start(number) => {
                self.fleet.in_service.insert(number, true);
                self.fleet.start(number);
            }
            Chaos::Stop(number) => {
                self.count("stop");
                self.fleet.in_service.insert(number, false);
                self.fleet.terminate(number);
            }
            Chaos::Replace(number) => {
                self.count("replace");
                self.fleet.terminate(number);
            }
            Chaos::Kill(number) => {
                self.count("kill");
                self.with_host(number, |host| host.kill());
            }
            Chaos::KillAtPoll(number, poll) => {
                self.count("kill at an await");
                self.with_host(number, |host| host.kill_at_poll(poll));
            }
            Chaos::KillAfterWrite(number, writes) => {
                self.count("kill after a write");
                if let Some(process) = self.fleet.processes.get(&number) {
                    let fuse = (writes.max(1), process.host.clone());
                    self.fuses.lock().expect("nobody panics with it").insert(process.host.name().to_owned(), fuse);
                }
            }
            Chaos::Freeze(number, time) => {
                self.count("freeze");
                self.with_host(number, |host| host.freeze());
                let freeze = self.freezes.entry(number).or_default();
                *freeze += 1;
                let freeze = *freeze;
                self.enter(now + time, Due::Thaw(number, freeze));
            }
            Chaos::StepClock(number, millis) => {
                self.count("clock step");
                self.with_host(number, |host| host.clock().step_wall(millis));
            }
            Chaos::ClockRate(number, rate) => {
                self.count("clock rate");
                self.with_host(number, |host| host.clock().set_rate(rate));
            }
            Chaos::Split(choice) => self.split(choice),
            Chaos::Merge(choice) => self.merge(choice),
            Chaos::Outage(service, time) => {
                self.count("outages");
                self.aws.faults().outage(service, now + time);
            }
            Chaos::Partition(number, service, cut, time) => {
                self.count("partitions");
                self.aws.faults().partition(&machine(number), service, cut, now + time);
            }
            Chaos::Burst(count) => {
                self.count("burst");
                self.publisher.put(count);
            }
            Chaos::Recreate => self.recreate(),
            Chaos::Mend => {
                self.fleet.mended.store(true, Ordering::Relaxed);
                self.judge.with(|oracle, _| oracle.allow_skips());
            }
        }
    }

    fn with_host(&self, number: usize, action: impl FnOnce(&kcl_core::test_util::Host)) {
        if let Some(process) = self.fleet.processes.get(&number) {
            action(&process.host);
        }
    }

    fn open_shards(&self) -> Vec<kcl_core::stream::Shard> {
        let mut open: Vec<_> = self.aws.shards(STREAM).unwrap_or_default().into_iter().filter(kcl_core::stream::Shard::is_open).collect();
        open.sort_by_key(|shard| shard.hash_range.start);
        open
    }

    fn split(&mut self, choice: u64) {
        let open = self.open_shards();
        let shard = &open[usize::try_from(choice % open.len() as u64).unwrap_or(0)];
        let (low, high) = (shard.hash_range.start, shard.hash_range.end);
        if high - low < 4 {
            return;
        }
        let split = SplitShardInput {
            stream_name: Some(STREAM.to_owned()),
            shard_to_split: shard.shard_id.to_string(),
            new_starting_hash_key: (low + (high - low) / 2 + 1).to_string(),
            ..Default::default()
        };
        // Refused while another change is under way.
        if self.aws.kinesis().call(split).is_ok() {
            self.count("split");
            self.enter(self.aws.elapsed() + self.plan.resharding + Duration::from_millis(1), Due::Resharded);
        }
    }

    fn merge(&mut self, choice: u64) {
        let open = self.open_shards();
        if open.len() < 2 {
            return;
        }
        let first = usize::try_from(choice % (open.len() as u64 - 1)).unwrap_or(0);
        let merge = MergeShardsInput {
            stream_name: Some(STREAM.to_owned()),
            shard_to_merge: open[first].shard_id.to_string(),
            adjacent_shard_to_merge: open[first + 1].shard_id.to_string(),
            ..Default::default()
        };
        if self.aws.kinesis().call(merge).is_ok() {
            self.count("merge");
            self.enter(self.aws.elapsed() + self.plan.resharding + Duration::from_millis(1), Due::Resharded);
        }
    }

    fn recreate(&mut self) {
        self.count("recreate");
        let delete =
            DeleteStreamInput { stream_name: Some(STREAM.to_owned()), enforce_consumer_deletion: Some(true), ..Default::default() };
        self.aws.kinesis().call(delete).expect("the stream can be deleted");
        let made = self.aws.time();
        self.aws.create_stream(STREAM, self.plan.shards);
        self.judge.with(|oracle, _| oracle.recreated(made));
        self.judge.resharded(STREAM);
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

    /// Ends the disturbance as the plan has it.
    fn calm(&mut self) {
        self.due.retain(|_, due| matches!(due, Due::Thaw(..) | Due::Start(_) | Due::Resharded));
        self.next_record = None;
        self.aws.set_write_budget(super::oracle::APPLICATION, None);
        self.fuses.lock().expect("nobody panics with it").clear();
        self.fleet.processes.values().for_each(|process| process.host.spare());
        match self.plan.ending {
            Ending::Heal => self.aws.faults().clear(),
            Ending::HealthyCore(core) => {
                let others: Vec<_> = self.fleet.in_service.iter().filter(|(_, on)| **on).map(|(number, _)| *number).skip(core).collect();
                self.aws.faults().clear();
                for number in others {
                    self.break_for_ever(number);
                }
            }
        }
        let now = self.aws.elapsed();
        let broken = self.broken();
        for number in self.fleet.in_service.keys().copied().filter(|number| !broken.contains(number)).collect::<Vec<_>>() {
            let freeze = self.freezes.entry(number).or_default();
            *freeze += 1;
            let freeze = *freeze;
            self.enter(now, Due::Thaw(number, freeze));
        }
        if !self.fleet.in_service.values().any(|on| *on) {
            self.enter(now, Due::Chaos(Chaos::Start(0)));
        }
    }

    fn broken(&self) -> Vec<usize> {
        match self.plan.ending {
            Ending::Heal => Vec::new(),
            Ending::HealthyCore(core) => {
                self.fleet.in_service.iter().filter(|(_, on)| **on).map(|(number, _)| *number).skip(core).collect()
            }
        }
    }

    fn break_for_ever(&mut self, number: usize) {
        let for_ever = Duration::MAX;
        let choice = self.fleet.entropy.u64() % 5;
        self.judge.tell(format_args!("machine {number} is broken for ever in way {choice}"));
        let cut = if self.fleet.entropy.u64().is_multiple_of(2) { Cut::Requests } else { Cut::Answers };
        match choice {
            0 => {
                *self.freezes.entry(number).or_default() += 1;
                self.with_host(number, |host| host.freeze());
            }
            1 => {
                // It is started again and again, and can't do anything.
                for service in Service::ALL {
                    self.aws.faults().partition(&machine(number), service, cut, for_ever);
                }
            }
            2 => self.aws.faults().partition(&machine(number), Service::LeaseTable, cut, for_ever),
            3 => self.aws.faults().partition(&machine(number), Service::Stream, cut, for_ever),
            _ => {
                self.fleet.in_service.insert(number, false);
                self.with_host(number, |host| host.kill());
            }
        }
    }

    async fn everything_is_finished(&mut self) -> bool {
        let end = self.aws.elapsed() + self.plan.patience;
        loop {
            if self.judge.violation().is_some() {
                return false;
            }
            if self.judge.lock().undone() == 0 && self.aws.elapsed() > Duration::from_secs(30) {
                return true;
            }
            if self.aws.elapsed() > end {
                let missing = self.judge.lock().missing();
                self.judge.with(|oracle, _| oracle.violated("L2", format!("not finished within {:?}: {missing}", self.plan.patience)));
                return false;
            }
            self.until(self.aws.elapsed() + Duration::from_secs(1)).await;
        }
    }

    /// Waits until leases are spread evenly over the machines that work, then demands that nothing moves any more.
    async fn leases_are_even(&mut self) -> bool {
        let duration = self.plan.lease_duration;
        // Calls that travel late, and what comes of them.
        self.until(self.aws.elapsed() + Duration::from_secs(30)).await;
        // A worker that reads nothing, and knows of no other, takes five minutes to find out.
        let patience = if self.plan.ending == Ending::Heal { 120 } else { 480 };
        let end = self.aws.elapsed() + duration * 30 + Duration::from_secs(patience);
        while let Err(uneven) = self.uneven() {
            if self.aws.elapsed() > end {
                self.judge.with(|oracle, _| oracle.violated("L3", uneven));
                return false;
            }
            self.until(self.aws.elapsed() + Duration::from_secs(1)).await;
        }
        if self.plan.ending != Ending::Heal {
            // Processes that can't live come and go.
            return true;
        }
        let still = self.aws.elapsed();
        self.until(still + duration * 5).await;
        let moves = self.judge.lock().moves_since(still);
        if moves > 0 {
            self.judge.with(|oracle, _| oracle.violated("L3", format!("{moves} leases moved although they were even")));
            return false;
        }
        self.judge.violation().is_none()
    }

    /// `Err`: leases are not even, or a worker owns one that it does not read.
    fn uneven(&self) -> Result<(), String> {
        let broken = self.broken();
        let mut counts = BTreeMap::new();
        for (number, process) in self.fleet.processes.iter().filter(|(number, _)| !broken.contains(number)) {
            let handle = process.handle().ok_or_else(|| format!("machine {number} has no worker"))?;
            let status = handle.status();
            counts.insert(status.worker.to_string(), (0_usize, status.shards));
        }
        for (shard, owner) in self.judge.lock().owners() {
            let Some((count, shards)) = owner.as_ref().and_then(|owner| counts.get_mut(owner)) else {
                return Err(format!("{shard} belongs to {owner:?}, which is no worker that works"));
            };
            if !shards.contains_key(&shard) {
                return Err(format!("{shard} belongs to {owner:?}, which does not read it"));
            }
            *count += 1;
        }
        let most = counts.values().map(|(count, _)| *count).max().unwrap_or(0);
        let fewest = counts.values().map(|(count, _)| *count).min().unwrap_or(0);
        if most > fewest + 1 {
            return Err(format!("leases are spread from {fewest} to {most} a worker"));
        }
        Ok(())
    }

    fn demands_are_met(&self) {
        let demands = self.plan.demands;
        self.judge.with(|oracle, _| {
            if let Some((from, to, most)) = demands.takes {
                let takes = oracle.takes_between(from, to);
                if takes > most {
                    oracle.violated("L7", format!("{takes} leases were taken from {from:?} to {to:?}, at most {most} are right"));
                }
            }
            if let Some(most) = demands.deaths {
                let deaths = oracle.states().get("process killed by its record").copied().unwrap_or(0);
                if deaths > most {
                    oracle.violated("isolation", format!("a record has killed {deaths} processes, at most {most} are right"));
                }
            }
            if let Some(most) = demands.repeated
                && oracle.repeated() > most
            {
                oracle.violated("duplicates", format!("{} records were finished again, at most {most} are right", oracle.repeated()));
            }
            if let Some(most) = demands.always_within
                && oracle.slowest() > most
            {
                oracle.violated("L2", format!("a record took {:?}, at most {most:?} are right", oracle.slowest()));
            }
        });
    }

    /// All are told to stop, and have to.
    async fn all_stop(&mut self) {
        let broken = self.broken();
        for number in self.fleet.in_service.keys().copied().collect::<Vec<_>>() {
            self.fleet.in_service.insert(number, false);
            if broken.contains(&number) {
                self.with_host(number, |host| host.kill());
            } else {
                self.fleet.terminate(number);
            }
        }
        let end = self.aws.elapsed() + super::fleet::SHUTDOWN + Duration::from_secs(5);
        while !self.fleet.processes.is_empty() {
            if self.aws.elapsed() > end {
                let left: Vec<_> = self.fleet.processes.values().map(|process| process.host.name().to_owned()).collect();
                self.judge.with(|oracle, _| oracle.violated("L6", format!("still running after they were told to stop: {left:?}")));
                return;
            }
            self.until(self.aws.elapsed() + Duration::from_millis(100)).await;
        }
        if broken.is_empty() {
            let checkpointed = !self.plan.handling.manual;
            self.judge.with(|oracle, _| oracle.all_is_released(checkpointed));
        }
        // Calls that travel late.
        sleep(Duration::from_secs(60)).await;
        let tasks = tokio::runtime::Handle::current().metrics().num_alive_tasks();
        if tasks > 0 {
            self.judge.with(|oracle, _| oracle.violated("growth", format!("{tasks} tasks are left after all have stopped")));
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

/// Counts writes that were applied, and kills whose number has come: before it hears of it.
fn burn(fuses: &Fuses, event: &Event<'_>) {
    let host = match event {
        Event::LeaseWritten { host, .. } | Event::LeaseCreated { host, .. } | Event::LeaseDeleted { host, .. } => *host,
        Event::DeadLetterAccepted { host, .. } => *host,
        _ => return,
    };
    let mut fuses = fuses.lock().expect("nobody panics with it");
    if let Some((left, process)) = fuses.get_mut(host) {
        *left -= 1;
        if *left == 0 {
            process.kill();
            fuses.remove(host);
        }
    }
}

async fn at(time: Option<Instant>) {
    match time {
        Some(time) => sleep_until(time).await,
        None => std::future::pending().await,
    }
}
