//! Building a worker: settings with their defaults, and how the parts are put together. The checks that come before are in `checks`.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32};
use std::time::Duration;

use aws_config::SdkConfig;
use kcl_checkpoint::InitialPosition;
use kcl_efo::{FanOut, FanOutApi};
use kcl_lease::dynamodb::TableOptions;
use kcl_lease::liveness::Liveness;
use kcl_lease::term::{LeaseTiming, TermContext, Vanished};
use kcl_lease::{Clock, Entropy, LeaseTable, OutageLog, SystemClock, WorkerId};
use opentelemetry::metrics::Meter;
use tokio::sync::{Notify, mpsc};
use tokio_util::sync::CancellationToken;

use super::Worker;
use super::coordinator::{Coordinator, Held};
use super::machine::Machine;
use super::shard_sync::{Beginning, ShardSync};
use super::start_retry::{START_PATIENCE, StartRetry};
use super::taking::Asked;
use super::unowned::UnownedLeases;
use crate::blocking::{BlockingHandler, BlockingProcessor};
use crate::consumer::{
    Aggregated, Backlog, Batching, CallbackDeadlines, Checkpointing, CutOff, Factory, Flow, Lanes, MayBlock, Neighbours, PoisonedKey,
    PrefetchBudget, Processing, ReadUntil, Reading, RetryPolicy, SafetyValve, Shared, TrimmedData,
};
use crate::dead_letter::guarded::GuardedQueue;
use crate::dead_letter::{DeadLetterQueue, refuse_own_source};
use crate::error::{ConfigError, WorkerError};
use crate::handler::RecordHandler;
use crate::health::HealthBoard;
use crate::metrics::Metrics;
use crate::processor::{RecordProcessorFactory, ShardContext};
use crate::retrieval::{FanOutConfig, Polling, PollingConfig, RetrievalMode};
use crate::status::StatusBoard;
use crate::stream::{ServiceClock, StreamApi};

/// Settings of a [`Worker`], each with a default that is right for production.
///
/// Required: [`aws_config`](Self::aws_config) (or the ports in its place) and [`processor`](Self::processor).
#[must_use = "nothing happens until `build`"]
pub struct WorkerBuilder {
    pub(super) application: String,
    pub(super) stream: String,
    pub(super) aws: Option<SdkConfig>,
    pub(super) factory: Option<Factory>,
    pub(super) dead_letter_queue: Option<Arc<dyn DeadLetterQueue>>,
    pub(super) initial: InitialPosition,
    pub(super) table_name: Option<String>,
    pub(super) table_options: TableOptions,
    pub(super) worker_name: String,
    pub(super) lease_duration: Duration,
    pub(super) handoff_timeout: Duration,
    pub(super) shutdown_timeout: Duration,
    pub(super) start_patience: Duration,
    pub(super) shard_sync_interval: Duration,
    pub(super) max_leases: usize,
    pub(super) checkpointing: Option<Checkpointing>,
    pub(super) retry: RetryPolicy,
    pub(super) processing: Processing,
    pub(super) retrieval: RetrievalMode,
    pub(super) fan_out: FanOutConfig,
    pub(super) polling: PollingConfig,
    pub(super) prefetch_bytes: usize,
    pub(super) trimmed: TrimmedData,
    pub(super) backlog: Backlog,
    pub(super) read_until: ReadUntil,
    pub(super) adopt: bool,
    pub(super) meter: Option<Meter>,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) entropy: Option<Entropy>,
    pub(super) lease_table: Option<Arc<dyn LeaseTable>>,
    pub(super) stream_api: Option<Arc<dyn StreamApi>>,
    pub(super) fan_out_api: Option<Arc<dyn FanOutApi>>,
    pub(super) machine: Machine,
}

impl fmt::Debug for WorkerBuilder {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("WorkerBuilder")
            .field("application", &self.application)
            .field("stream", &self.stream)
            .finish_non_exhaustive()
    }
}

impl WorkerBuilder {
    pub(super) fn new(application: String, stream: String) -> Self {
        Self {
            application,
            stream,
            aws: None,
            factory: None,
            dead_letter_queue: None,
            initial: InitialPosition::TrimHorizon,
            table_name: None,
            table_options: TableOptions::default(),
            worker_name: "worker".to_owned(),
            lease_duration: Duration::from_secs(10),
            handoff_timeout: Duration::from_secs(30),
            shutdown_timeout: Duration::from_secs(25),
            start_patience: START_PATIENCE,
            shard_sync_interval: Duration::from_secs(60),
            max_leases: usize::MAX,
            checkpointing: None,
            retry: RetryPolicy::default(),
            processing: Processing::default(),
            retrieval: RetrievalMode::default(),
            fan_out: FanOutConfig::default(),
            polling: PollingConfig::default(),
            prefetch_bytes: 128 << 20,
            trimmed: TrimmedData::default(),
            backlog: Backlog::default(),
            read_until: ReadUntil::default(),
            adopt: false,
            meter: None,
            clock: Arc::new(SystemClock),
            entropy: None,
            lease_table: None,
            stream_api: None,
            fan_out_api: None,
            machine: Machine::default(),
        }
    }

    /// Region, credentials, endpoint: what `aws_config::load_from_env()` gives.
    ///
    /// If it has an HTTP client of your own, that one is used, on the worker's runtime and on the
    /// thread that keeps leases alive. One that the SDK's builder has made keeps connections apart
    /// for the two. Another kind should do so too: a connection that a blocked runtime drives
    /// delays renewals.
    pub fn aws_config(mut self, config: &SdkConfig) -> Self {
        self.aws = Some(config.clone());
        self
    }

    /// Sets what handles records one at a time: a [`RecordHandler`], or a
    /// [`MessageHandler`](crate::MessageHandler) in [`Json`](crate::Json).
    ///
    /// One of this, [`processor`](Self::processor) and their blocking forms is needed; the last one
    /// stands.
    pub fn handler(mut self, handler: impl RecordHandler + 'static) -> Self {
        self.factory = Some(Factory::Handler(Arc::new(handler)));
        self
    }

    /// Sets what makes a processor of batches for each shard: a closure from
    /// [`ShardContext`](crate::ShardContext) to a processor, or an own [`RecordProcessorFactory`].
    pub fn processor(mut self, factory: impl RecordProcessorFactory + 'static) -> Self {
        self.factory = Some(Factory::Processors(Arc::new(factory)));
        self
    }

    /// As [`handler`](Self::handler), for code that blocks its thread. See
    /// [`blocking`](crate::blocking).
    pub fn blocking_handler(mut self, handler: impl BlockingHandler + 'static) -> Self {
        self.factory = Some(Factory::BlockingHandler(Arc::new(MayBlock::new(Box::new(handler)))));
        self
    }

    /// As [`processor`](Self::processor), for code that blocks its thread. See
    /// [`blocking`](crate::blocking).
    pub fn blocking_processor<P: BlockingProcessor + 'static>(mut self, make: impl Fn(&ShardContext) -> P + Send + Sync + 'static) -> Self {
        self.factory = Some(Factory::BlockingProcessors(Arc::new(MayBlock::new(Box::new(move |shard| Box::new(make(shard)))))));
        self
    }

    /// Where records go that can't be processed. Without one, such a record stops its shard until it can be.
    pub fn dead_letter_queue(mut self, queue: impl DeadLetterQueue + 'static) -> Self {
        self.dead_letter_queue = Some(Arc::new(GuardedQueue::new(queue)));
        self
    }

    /// Where shards start that the application has no lease for. Default: the oldest record that the stream holds.
    pub fn initial_position(mut self, position: InitialPosition) -> Self {
        self.initial = position;
        self
    }

    /// The lease table's name. Default: the application's name.
    pub fn lease_table_name(mut self, name: impl Into<String>) -> Self {
        self.table_name = Some(name.into());
        self
    }

    /// How the lease table is made if there is none: tags, protection from deletion, point-in-time recovery.
    pub fn lease_table_options(mut self, options: TableOptions) -> Self {
        self.table_options = options;
        self
    }

    /// The first part of the worker's name, for people; a UUID follows, so that no start of a process is taken for another.
    /// 1 to 128 characters. Default: `worker`.
    pub fn worker_name(mut self, name: impl Into<String>) -> Self {
        self.worker_name = name.into();
        self
    }

    /// How long a lease is valid after the last proof of life: a dead worker's shards are taken after this time, and a pause beyond it may
    /// lead to duplicates. Where workers of an application differ, as in a rolling change of the setting, the longer of the owner's and the observer's counts, and a
    /// warning says so. 1 s to 5 min; default 10 s.
    pub fn lease_duration(mut self, duration: Duration) -> Self {
        self.lease_duration = duration;
        self
    }

    /// How long records in work may take when another worker asks for the shard. 1 s to 1 h; default 30 s.
    pub fn handoff_timeout(mut self, timeout: Duration) -> Self {
        self.handoff_timeout = timeout;
        self
    }

    /// How long a shutdown may take. Keep it below the time after which your supervisor kills: 30 s by default on ECS and
    /// Kubernetes. Up to 1 h; default 25 s.
    pub fn shutdown_timeout(mut self, timeout: Duration) -> Self {
        self.shutdown_timeout = timeout;
        self
    }

    /// The longest time for which [`build`](Self::build) repeats a call that is throttled or gets no
    /// answer, counted for each call anew. 0 s (give up at the first failure) to 1 h; default 5 min.
    /// It also bounds the wait for a lease table that is being created or deleted, unless
    /// [`ready_timeout`](TableOptions::ready_timeout) is shorter; a table that this start has created
    /// gets a minute at least.
    ///
    /// Fleets that start together are throttled by limits of the whole account; a start that gives up
    /// leaves them to a supervisor that starts all of them again at once.
    pub fn start_patience(mut self, patience: Duration) -> Self {
        self.start_patience = patience;
        self
    }

    /// Time between two comparisons of the stream's shards with the leases; they find what the ends of shards did not tell.
    /// 1 s to 1 h; default 60 s.
    pub fn shard_sync_interval(mut self, interval: Duration) -> Self {
        self.shard_sync_interval = interval;
        self
    }

    /// How many shards this worker may own. At least 1; no limit by default.
    pub fn max_leases(mut self, leases: usize) -> Self {
        self.max_leases = leases;
        self
    }

    /// Who moves checkpoints. Default: automatic, a little more often than leases are renewed (each 3 s with leases of 10 s): a checkpoint
    /// proves life as well, so that it takes the place of the renewal and costs nothing extra.
    pub fn checkpointing(mut self, checkpointing: Checkpointing) -> Self {
        self.checkpointing = Some(checkpointing);
        self
    }

    /// How often, and how soon, what failed is tried again.
    pub fn retry_policy(mut self, policy: RetryPolicy) -> Self {
        self.retry = policy;
        self
    }

    /// How many records of a shard are in work at a time: one batch after the other, or several partition keys beside each other. Default: one
    /// lane.
    pub fn lanes(mut self, lanes: Lanes) -> Self {
        self.processing.lanes = lanes;
        self
    }

    /// Sets the shape of batches: most records and bytes, and how long a call waits for them.
    /// Default: up to 100 records, without a wait.
    pub fn batching(mut self, batching: Batching) -> Self {
        self.processing.batching = batching;
        self
    }

    /// Sets the longest durations of calls that are not about records.
    pub fn callback_deadlines(mut self, deadlines: CallbackDeadlines) -> Self {
        self.processing.callbacks = deadlines;
        self
    }

    /// Asks for [`RecordProcessor::idle`](crate::RecordProcessor::idle), each time that a shard has
    /// had no records for this long. 100 ms to 1 h; default: never.
    pub fn idle_callback(mut self, every: Duration) -> Self {
        self.processing.idle_callback = Some(every);
        self
    }

    /// Sets whether logs show the texts of errors and panics of your code. They may quote records,
    /// as those of `serde_json` do, so that logs show only the kind of a failure, the type of its
    /// error and its record by default. Dead letters have the texts in any case.
    pub fn log_error_text(mut self, shown: bool) -> Self {
        self.processing.log_error_text = shown;
        self
    }

    /// What becomes of later records of a key after one of its records goes to the dead-letter queue. Default: they wait until it is accepted there,
    /// and are then processed.
    pub fn poisoned_key(mut self, policy: PoisonedKey) -> Self {
        self.processing.poisoned_key = policy;
        self
    }

    /// When a shard stops because too many of its records go to the dead-letter queue; `None`: never. Default: when more than 50 of the 100 records
    /// finished last would.
    pub fn safety_valve(mut self, valve: Option<SafetyValve>) -> Self {
        self.processing.valve = valve;
        self
    }

    /// What becomes of records that the Kinesis Producer Library has aggregated. Default: they are taken apart.
    pub fn aggregated_records(mut self, aggregated: Aggregated) -> Self {
        self.processing.aggregated = aggregated;
        self
    }

    /// How the stream is read: by polling, which is the default, by enhanced fan-out, or by the latter where it can be had.
    pub fn retrieval(mut self, mode: RetrievalMode) -> Self {
        self.retrieval = mode;
        self
    }

    /// Settings of enhanced fan-out: which consumer, and what reads a shard that can't be subscribed to.
    pub fn fan_out(mut self, config: FanOutConfig) -> Self {
        self.fan_out = config;
        self
    }

    /// How shards are polled; also by the bridge of enhanced fan-out.
    pub fn polling(mut self, config: PollingConfig) -> Self {
        self.polling = config;
        self
    }

    /// Bytes that all shards of this worker may have read ahead, beside the one answer (at most 10 MiB) that each shard has in work. 0: nothing is
    /// read ahead. Otherwise 10 MiB to 4 GiB; default 128 MiB.
    ///
    /// Room for an answer is reserved before it is asked for, by what the last answer and the time since lead to expect. One that is larger counts as
    /// it is: nothing more is read ahead until all are within the budget again.
    pub fn prefetch_bytes(mut self, bytes: usize) -> Self {
        self.prefetch_bytes = bytes;
        self
    }

    /// What happens when records were trimmed before they were read. Default: the shard stops and says so.
    pub fn trimmed_data(mut self, policy: TrimmedData) -> Self {
        self.trimmed = policy;
        self
    }

    /// What a shard does that is far behind the newest record. Default: it reads on.
    pub fn backlog(mut self, backlog: Backlog) -> Self {
        self.backlog = backlog;
        self
    }

    /// How far to read: on and on, or up to a time or to what is there now, whereupon [`Worker::run`] returns `Ok`. Shards that wait for something, such as a
    /// dead-letter queue, are waited for. Default: on and on.
    pub fn read_until(mut self, until: ReadUntil) -> Self {
        self.read_until = until;
        self
    }

    /// Deletes leases of another stream of the same name at the start, and begins this stream at the
    /// initial position. Otherwise the worker refuses to start. Default: no.
    ///
    /// A worker whose stream is made anew while it runs ends with [`WorkerError::StreamReplaced`];
    /// started again, it adopts the new stream.
    pub fn adopt_recreated_stream(mut self, adopt: bool) -> Self {
        self.adopt = adopt;
        self
    }

    /// Where metrics go. Default: the global OpenTelemetry meter provider.
    pub fn meter(mut self, meter: Meter) -> Self {
        self.meter = Some(meter);
        self
    }

    /// Another clock, for tests and simulation.
    pub fn clock(mut self, clock: Arc<dyn Clock>) -> Self {
        self.clock = clock;
        self
    }

    /// Another source of randomness, for tests and simulation. Default: seeded by the operating system.
    pub fn entropy(mut self, entropy: Entropy) -> Self {
        self.entropy = Some(entropy);
        self
    }

    /// Another lease table than DynamoDB's. Leases are taken and renewed on a thread of the
    /// worker's own, with a runtime of its own, and everything else is done on the runtime that
    /// runs the worker: its calls must not wait for tasks or connections of either.
    pub fn lease_table(mut self, table: Arc<dyn LeaseTable>) -> Self {
        self.lease_table = Some(table);
        self
    }

    /// Another stream than Kinesis'.
    pub fn stream_api(mut self, api: Arc<dyn StreamApi>) -> Self {
        self.stream_api = Some(api);
        self
    }

    /// Other enhanced fan-out than Kinesis'.
    pub fn fan_out_api(mut self, api: Arc<dyn FanOutApi>) -> Self {
        self.fan_out_api = Some(api);
        self
    }

    /// The simulated host whose power the worker's tasks need.
    #[cfg(feature = "test-util")]
    pub(crate) fn power(mut self, power: crate::test_util::Power) -> Self {
        self.machine = Machine::with(power);
        self
    }

    /// Checks the settings, the stream, the stream consumer (which is registered if need be), the dead-letter queue, and the lease table, which is made if there is none.
    ///
    /// Calls that are throttled or get no answer are repeated for up to the
    /// [`start_patience`](Self::start_patience), with growing jittered pauses, and that is logged.
    ///
    /// # Errors
    /// [`WorkerError`] saying what is wrong with which of them. Nothing was read and no lease was taken.
    ///
    /// # Cancel safety
    /// Dropping the future may leave a new, empty lease table.
    pub async fn build(mut self) -> Result<Worker, WorkerError> {
        self.validate()?;
        let entropy = self.entropy.take().unwrap_or_else(Entropy::from_os);
        let timing = LeaseTiming { lease_duration: self.lease_duration, handoff_timeout: self.handoff_timeout };
        let (stream_api, table) = self.ports(&timing, &entropy)?;
        let lease_table = self.table_of_lease_thread(&timing, &entropy)?;
        let factory = self.factory.take().ok_or_else(|| {
            ConfigError::new("processor", "not set", "is needed: a closure or a RecordProcessorFactory; or a `handler` in its place")
        })?;

        let clock = Arc::new(ServiceClock::new(Arc::clone(&self.clock)));
        let retry = StartRetry::new(self.start_patience, &entropy);
        let stream = self.wait_for_stream(stream_api.as_ref(), &clock, &retry).await?;
        self.check_initial_position(&clock)?;
        let bound = self.bound(&clock);
        let intended = self.intended_retrieval(&stream, &entropy)?;
        self.check_listing(stream_api.as_ref(), &retry).await?;
        if let Some(queue) = &self.dead_letter_queue {
            retry.call("checking the dead-letter queue", || queue.check()).await?;
            refuse_own_source(queue.as_ref(), &stream.arn, &stream.name)?;
        }
        retry.call("making sure of the lease table", || table.ensure()).await?;
        self.check_identity(table.as_ref(), &stream, &retry).await?;

        let as_clock: Arc<dyn Clock> = Arc::<ServiceClock>::clone(&clock);
        let outages = OutageLog::default();
        let polling =
            Polling::new(Arc::clone(&stream_api), self.polling, Arc::clone(&as_clock), entropy.clone()).reporting_to(outages.clone());
        // Last: nothing is registered for a worker that can't start.
        let (retrieval, fan_out) = intended.establish(polling, &retry).await?;
        // The coordinator tells, as soon as it knows who else there is.
        fan_out.iter().for_each(FanOut::expect_share);
        let worker = WorkerId::from(format!("{}-{}", self.worker_name, entropy.uuid()));
        let meter = self.meter.take().unwrap_or_else(|| opentelemetry::global::meter("kcl"));
        let health = HealthBoard::new(Arc::clone(&as_clock), timing.lease_duration, outages.clone());
        let shared = Arc::new(Shared {
            neighbours: Neighbours::default(),
            metrics: Metrics::new(&meter, &self.application, &stream.name),
            application: self.application,
            worker: worker.clone(),
            retention_hours: AtomicU32::new(stream.retention_hours),
            factory,
            retrieval: Arc::clone(&retrieval),
            stream_api,
            table: Arc::clone(&table),
            dead_letter_queue: self.dead_letter_queue,
            status: StatusBoard::new(Arc::clone(&as_clock)),
            clock,
            entropy: entropy.clone(),
            retry: self.retry,
            processing: self.processing,
            flow: Flow::default(),
            checkpointing: self.checkpointing.unwrap_or(Checkpointing::Automatic { interval: timing.renewal_interval().mul_f64(0.9) }),
            trimmed: self.trimmed,
            backlog: self.backlog,
            bound,
            initial: self.initial,
            budget: PrefetchBudget::new(self.prefetch_bytes),
            reading: Arc::new(Reading::default()),
            let_go: CancellationToken::new(),
            outages: outages.clone(),
            health: health.clone(),
            cut_off: CutOff::default(),
            lease_duration: timing.lease_duration,
            handoff_timeout: timing.handoff_timeout,
            shutdown_timeout: self.shutdown_timeout,
            machine: self.machine.clone(),
            stream,
        });
        let (held, look_again, begun) = (Held::default(), Arc::new(Notify::new()), Arc::default());
        // A few takes may be ahead of the worker that starts them; more would only wait in memory.
        let (start, started) = mpsc::channel(16);
        let terms = TermContext {
            table,
            clock: as_clock,
            entropy,
            worker,
            timing,
            stream_created: Some(shared.stream.created),
            outages: outages.clone(),
            vanished: Vanished::default(),
        };
        let lease_terms = TermContext { table: lease_table, ..terms.clone() };
        let coordinator = Coordinator {
            terms,
            application: shared.application.clone(),
            stream: shared.stream.arn.clone(),
            max_leases: self.max_leases,
            held: held.clone(),
            look_again: Arc::clone(&look_again),
            started: start,
            liveness: Liveness::new(self.lease_duration),
            retrieval,
            reading: Arc::clone(&shared.reading),
            bound,
            outrun: AtomicBool::new(false),
            unreadable: Vec::new(),
            adopt: self.adopt,
            other_duration: None,
            has_looked: false,
            begun: Arc::clone(&begun),
            empty_since: None,
            asked: Asked::default(),
            health,
            unowned: UnownedLeases::new(self.lease_duration),
        };
        let shard_sync = ShardSync {
            shared: Arc::clone(&shared),
            look_again: Arc::clone(&look_again),
            interval: self.shard_sync_interval,
            outages,
            adopt: self.adopt,
            begun,
            suspected: std::collections::BTreeSet::new(),
            going: std::collections::BTreeMap::new(),
            beginning: Beginning::default(),
        };
        Ok(Worker {
            shared,
            coordinator,
            shard_sync,
            held,
            look_again,
            started,
            lease_terms,
            shutdown_timeout: self.shutdown_timeout,
            deregister: fan_out.filter(|_| self.fan_out.deregister_at_end),
            asked_to_stop: CancellationToken::new(),
            machine: self.machine,
        })
    }
}
