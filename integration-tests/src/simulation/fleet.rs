//! Machines and the processes on them. What ends without being asked to is started again some seconds later, as a supervisor does.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use kcl_core::test_util::{Host, SimulatedAws};
use kcl_core::{
    Backlog, Batching, Checkpointing, Entropy, Lanes, PollingConfig, RetryPolicy, SafetyValve, TrimmedData, WorkerError, WorkerHandle,
};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::oracle::{APPLICATION, Judge};
use super::plan::Plan;
use super::publisher::STREAM;
use super::users;

/// The dead-letter queue's name in every run.
pub(super) const QUEUE: &str = "orders-dlq";

fn retry_policy(plan: &Plan) -> RetryPolicy {
    if plan.handling.default_retries {
        return RetryPolicy { attempt_deadline: plan.handling.deadline, max_age: plan.handling.max_age, ..RetryPolicy::default() };
    }
    RetryPolicy {
        max_attempts: MAX_ATTEMPTS,
        // With few keys, several bad records at once look like an outage, and nobody mends them here.
        patience: if plan.traffic.poison + plan.traffic.failing + plan.traffic.panicking > 0 {
            Duration::ZERO
        } else {
            Duration::from_secs(30)
        },
        first_backoff: Duration::from_millis(100),
        max_backoff: Duration::from_secs(5),
        attempt_deadline: plan.handling.deadline,
        max_age: plan.handling.max_age,
        ..RetryPolicy::default()
    }
}

/// How a process ended.
pub(super) enum Exit {
    Killed,
    Ended(Result<(), WorkerError>),
}

/// A process that is running.
pub(super) struct Process {
    pub(super) host: Host,
    stop: CancellationToken,
    handle: watch::Receiver<Option<WorkerHandle>>,
    asked_to_stop: Option<Duration>,
}

impl Process {
    /// The worker's shards, once it has been built.
    pub(super) fn handle(&self) -> Option<WorkerHandle> {
        self.handle.borrow().clone()
    }
}

/// All machines.
pub(super) struct Fleet {
    pub(super) aws: SimulatedAws,
    pub(super) judge: Judge,
    pub(super) entropy: Entropy,
    pub(super) plan: Arc<Plan>,
    pub(super) processes: BTreeMap<usize, Process>,
    /// Machines that are to have a process.
    pub(super) in_service: BTreeMap<usize, bool>,
    pub(super) exits: JoinSet<(usize, Exit)>,
    /// Whether trimmed records are skipped, by processes that start from now on.
    pub(super) mended: Arc<AtomicBool>,
    /// Processes that were started.
    pub(super) started: usize,
    /// The most bytes that a process of the run held beyond what it may.
    pub(super) hosts: Vec<Host>,
}

/// Attempts at a record, where the retry policy is not the library's default.
pub(super) const MAX_ATTEMPTS: u32 = 3;

/// How long a worker may take to stop.
pub(super) const SHUTDOWN: Duration = Duration::from_secs(25);

pub(super) fn machine(number: usize) -> String {
    format!("m{number}")
}

impl Fleet {
    /// Starts a process on a machine, unless there is one.
    pub(super) fn start(&mut self, number: usize) {
        if self.processes.contains_key(&number) {
            return;
        }
        let durations = &self.plan.lease_durations;
        let lease_duration = durations.get(self.started % durations.len().max(1)).copied().unwrap_or(self.plan.lease_duration);
        self.started += 1;
        let host = self.aws.host(&machine(number)).with_call_timeout((lease_duration / 5).min(Duration::from_secs(2)));
        let (stop, (built, handle)) = (CancellationToken::new(), watch::channel(None));
        let process = self.process(host.clone(), stop.clone(), built, lease_duration, self.most_leases(number));
        let process = host.run(process);
        self.judge.tell(format_args!("{} starts", host.name()));
        let killed = host.clone();
        self.exits.spawn(async move {
            tokio::select! {
                biased;
                () = killed.died() => (number, Exit::Killed),
                ended = process => (number, Exit::Ended(ended)),
            }
        });
        self.hosts.push(host.clone());
        self.processes.insert(number, Process { host, stop, handle, asked_to_stop: None });
    }

    /// The most leases that a machine's worker takes.
    pub(super) fn most_leases(&self, number: usize) -> usize {
        let most = &self.plan.most_leases;
        most.get(number % most.len().max(1)).copied().unwrap_or(usize::MAX)
    }

    /// SIGTERM.
    pub(super) fn terminate(&mut self, number: usize) {
        let now = self.aws.elapsed();
        if let Some(process) = self.processes.get_mut(&number) {
            process.stop.cancel();
            self.judge.told_to_stop(process.host.name());
            process.asked_to_stop.get_or_insert(now);
        }
    }

    /// A process has ended. Returns the time after which the next one starts, if one should.
    pub(super) fn ended(&mut self, number: usize, exit: &Exit) -> Option<Duration> {
        let process = self.processes.remove(&number)?;
        let now = self.aws.elapsed();
        let is_error = matches!(exit, Exit::Ended(Err(_)));
        match exit {
            Exit::Killed => self.judge.tell(format_args!("{} killed", process.host.name())),
            Exit::Ended(Ok(())) => self.judge.tell(format_args!("{} ended", process.host.name())),
            Exit::Ended(Err(error)) => {
                self.judge.tell(format_args!("{} ended: {error}", process.host.name()));
                self.judge.with(|oracle, _| oracle.has_ended(process.host.name(), error));
            }
        }
        if !is_error {
            self.judge.with(|oracle, _| oracle.is_gone(process.host.name()));
        }
        if let Some(asked) = process.asked_to_stop
            && now > asked + SHUTDOWN + Duration::from_secs(3)
            && !process.host.is_dead()
        {
            // A machine that stood still can't keep time.
            self.judge.tell(format_args!("{} took {:?} to stop", process.host.name(), now - asked));
        }
        let again = self.in_service.get(&number).copied().unwrap_or(false);
        again.then(|| match process.asked_to_stop {
            Some(_) => Duration::ZERO,
            None => self.entropy.between(Duration::from_millis(100), Duration::from_secs(5)),
        })
    }

    fn process(
        &self,
        host: Host,
        stop: CancellationToken,
        built: watch::Sender<Option<WorkerHandle>>,
        lease_duration: Duration,
        most_leases: usize,
    ) -> impl Future<Output = Result<(), WorkerError>> + Send + 'static {
        let plan = Arc::clone(&self.plan);
        let (judge, entropy) = (self.judge.clone(), self.entropy.clone());
        let trimmed = if self.mended.load(Ordering::Relaxed) { TrimmedData::SkipAndAudit } else { plan.trimmed };
        async move {
            let builder = host
                .worker(APPLICATION, STREAM)
                .lease_duration(lease_duration)
                .max_leases(most_leases)
                .shutdown_timeout(SHUTDOWN)
                .retrieval(plan.retrieval)
                .initial_position(plan.initial)
                .trimmed_data(trimmed)
                .adopt_recreated_stream(true)
                .prefetch_bytes(plan.prefetch)
                .polling(PollingConfig { idle_interval: plan.idle_interval, ..PollingConfig::default() })
                .retry_policy(retry_policy(&plan))
                .lanes(Lanes::new(plan.handling.lanes))
                .poisoned_key(plan.handling.poisoned_key);
            let builder = users::serve(builder, &judge, &host, &entropy, &plan);
            let batching = plan.handling.batch.map_or_else(Batching::default, Batching::up_to);
            let builder = match plan.handling.wait_for {
                Some((least, wait)) => {
                    builder.batching(Batching { min_records: least.min(batching.max_records), max_wait: wait, ..batching })
                }
                None => builder.batching(batching),
            };
            let builder = plan.handling.handoff.into_iter().fold(builder, kcl_core::WorkerBuilder::handoff_timeout);
            let valve = plan.handling.valve.map(|(window, most)| SafetyValve { window, most });
            let builder = valve.into_iter().fold(builder, |builder, valve| builder.safety_valve(Some(valve)));
            let builder =
                plan.handling.skip_beyond.into_iter().fold(builder, |builder, beyond| builder.backlog(Backlog::SkipToLatest { beyond }));
            let builder = if plan.handling.manual { builder.checkpointing(Checkpointing::Manual) } else { builder };
            let builder = if plan.handling.queue { builder.dead_letter_queue(host.dead_letter_queue(QUEUE)) } else { builder };
            let worker = tokio::select! {
                biased;
                () = stop.cancelled() => return Ok(()),
                worker = builder.build() => worker?,
            };
            built.send_replace(Some(worker.handle()));
            worker.run_until(stop.cancelled_owned()).await
        }
    }

    /// Bytes of payloads that a process held beyond what it may.
    pub(super) fn bytes_too_many(&self) -> Option<String> {
        let oracle = self.judge.lock();
        self.hosts.iter().find_map(|host| {
            let (_, most) = host.bytes_held();
            // What is read ahead by all, and for each shard an answer that is taken apart and what is in work: another answer, or with several lanes, or
            // beside records on their way to the queue, what the lanes' bound allows.
            let (traffic, answer) = (&self.plan.traffic, 10 << 20);
            let is_wide = self.plan.handling.lanes > 1 || traffic.poison + traffic.failing + traffic.panicking > 0;
            let in_work = if is_wide { Lanes::default().max_bytes + (1 << 20) } else { answer };
            let right = self.plan.prefetch + oracle.most_held(host.name()).max(1) * (answer + in_work);
            (most > right).then(|| format!("{} held {most} bytes of payloads, {right} are right", host.name()))
        })
    }
}
