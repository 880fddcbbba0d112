//! Building a worker: settings with their defaults, and every check that can be made before work starts.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32};
use std::time::Duration;

use aws_config::SdkConfig;
use futures::future::BoxFuture;
use kcl_checkpoint::InitialPosition;
use kcl_checkpoint::planted::{Bug, is_planted};
use kcl_efo::{FanOutApi, KinesisFanOut};
use kcl_lease::dynamodb::TableOptions;
use kcl_lease::liveness::Liveness;
use kcl_lease::term::{LeaseTiming, TermContext};
use kcl_lease::{Clock, DynamoDbLeaseTable, Entropy, Lease, LeaseTable, SystemClock, TableError, WorkerId};
use opentelemetry::metrics::Meter;
use tokio::sync::{Notify, mpsc};
use tokio_util::sync::CancellationToken;

use super::Worker;
use super::coordinator::{Coordinator, Held};
use super::machine::Machine;
use super::settings::{self, within};
use super::shard_sync::ShardSync;
use crate::consumer::{
    Aggregated, Checkpointing, Factory, Flow, LARGEST_ANSWER, Lanes, PoisonedKey, PrefetchBudget, Processing, Reading, RetryPolicy,
    SafetyValve, Shared, TrimmedData,
};
use crate::dead_letter::{DeadLetterError, DeadLetterQueue};
use crate::error::{ConfigError, WorkerError};
use crate::handler::{EachRecord, RecordHandler};
use crate::metrics::Metrics;
use crate::processor::RecordProcessorFactory;
use crate::retrieval::polling::PollingConfigError;
use crate::retrieval::{FanOutConfig, Intended, Polling, PollingConfig, RetrievalMode};
use crate::status::StatusBoard;
use crate::stream::{KinesisStream, ServiceClock, StreamApi, StreamDescription, StreamError, StreamStatus};

/// How often a call is repeated that fails before the worker has started.
const HICCUPS: u32 = 5;
/// How long a stream that is being made is waited for.
const STREAM_READY: Duration = Duration::from_secs(120);

type Ports = (Arc<dyn StreamApi>, Arc<dyn LeaseTable>);

/// Settings of a [`Worker`], each with a default that is right for production.
///
/// Required: [`aws_config`](Self::aws_config) (or the ports in its place) and [`processor`](Self::processor).
#[must_use = "nothing happens until `build`"]
pub struct WorkerBuilder {
    application: String,
    stream: String,
    aws: Option<SdkConfig>,
    factory: Option<Factory>,
    dead_letter_queue: Option<Arc<dyn DeadLetterQueue>>,
    initial: InitialPosition,
    table_name: Option<String>,
    table_options: TableOptions,
    worker_name: String,
    lease_duration: Duration,
    handoff_timeout: Duration,
    shutdown_timeout: Duration,
    shard_sync_interval: Duration,
    max_leases: usize,
    checkpointing: Option<Checkpointing>,
    retry: RetryPolicy,
    processing: Processing,
    retrieval: RetrievalMode,
    fan_out: FanOutConfig,
    polling: PollingConfig,
    prefetch_bytes: usize,
    trimmed: TrimmedData,
    adopt: bool,
    meter: Option<Meter>,
    clock: Arc<dyn Clock>,
    entropy: Option<Entropy>,
    lease_table: Option<Arc<dyn LeaseTable>>,
    stream_api: Option<Arc<dyn StreamApi>>,
    fan_out_api: Option<Arc<dyn FanOutApi>>,
    machine: Machine,
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
    pub fn aws_config(mut self, config: &SdkConfig) -> Self {
        self.aws = Some(config.clone());
        self
    }

    /// What makes a processor for each shard: a closure from [`ShardContext`](crate::ShardContext) to a processor, or an own
    /// [`RecordProcessorFactory`].
    pub fn processor(mut self, factory: impl RecordProcessorFactory + 'static) -> Self {
        self.factory = Some(Factory(Arc::new(factory)));
        self
    }

    /// What handles records one at a time, in place of a [`processor`](Self::processor): a [`RecordHandler`], or a
    /// [`MessageHandler`](crate::MessageHandler) in [`Json`](crate::Json).
    pub fn handler(self, handler: impl RecordHandler + 'static) -> Self {
        self.processor(EachRecord::new(handler))
    }

    /// Where records go that can't be processed. Without one, such a record stops its shard until it can be.
    pub fn dead_letter_queue(mut self, queue: impl DeadLetterQueue + 'static) -> Self {
        self.dead_letter_queue = Some(Arc::new(queue));
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
    /// lead to duplicates. The same for all workers of an application. 1 s to 5 min; default 10 s.
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

    /// The most records that one call of `process_records` gets. 1 to 100,000; default 10,000, the most that Kinesis gives at once.
    pub fn max_batch_records(mut self, records: usize) -> Self {
        self.processing.max_batch_records = records;
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
    pub fn prefetch_bytes(mut self, bytes: usize) -> Self {
        self.prefetch_bytes = bytes;
        self
    }

    /// What happens when records were trimmed before they were read. Default: the shard stops and says so.
    pub fn trimmed_data(mut self, policy: TrimmedData) -> Self {
        self.trimmed = policy;
        self
    }

    /// Whether leases of another stream of the same name are deleted and this stream is begun at the initial position. Otherwise the worker
    /// refuses to start. Default: no.
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

    /// Another lease table than DynamoDB's.
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
        let factory = self.factory.take().ok_or_else(|| {
            ConfigError::new("processor", "not set", "is needed: a closure or a RecordProcessorFactory; or a `handler` in its place")
        })?;

        let clock = Arc::new(ServiceClock::new(Arc::clone(&self.clock)));
        let stream = self.wait_for_stream(stream_api.as_ref(), &clock).await?;
        let intended = self.intended_retrieval(&stream, &entropy)?;
        if let Some(queue) = &self.dead_letter_queue {
            patiently(|| queue.check(), |error| matches!(error, DeadLetterError::Unavailable { .. })).await?;
        }
        patiently(|| table.ensure(), TableError::is_retryable).await?;
        self.check_identity(table.as_ref(), &stream).await?;

        let as_clock: Arc<dyn Clock> = Arc::<ServiceClock>::clone(&clock);
        let polling = Polling::new(Arc::clone(&stream_api), self.polling, Arc::clone(&as_clock), entropy.clone());
        // Last: nothing is registered for a worker that can't start.
        let (retrieval, fan_out) = intended.establish(polling).await?;
        let worker = WorkerId::from(format!("{}-{}", self.worker_name, entropy.uuid()));
        let meter = self.meter.take().unwrap_or_else(|| opentelemetry::global::meter("kcl"));
        let shared = Arc::new(Shared {
            metrics: Metrics::new(&meter, &self.application, &stream.name),
            application: self.application,
            worker: worker.clone(),
            retention_hours: AtomicU32::new(stream.retention_hours),
            factory,
            retrieval: Arc::clone(&retrieval),
            stream_api,
            table: Arc::clone(&table),
            dead_letter_queue: self.dead_letter_queue,
            clock,
            entropy: entropy.clone(),
            retry: self.retry,
            processing: self.processing,
            flow: Flow::default(),
            checkpointing: self.checkpointing.unwrap_or(Checkpointing::Automatic { interval: timing.renewal_interval().mul_f64(0.9) }),
            trimmed: self.trimmed,
            initial: self.initial,
            budget: PrefetchBudget::new(self.prefetch_bytes),
            reading: Arc::new(Reading::default()),
            status: StatusBoard::default(),
            let_go: CancellationToken::new(),
            stream,
        });
        let (held, look_again) = (Held::default(), Arc::new(Notify::new()));
        // A few takes may be ahead of the worker that starts them; more would only wait in memory.
        let (start, started) = mpsc::channel(16);
        let coordinator = Coordinator {
            terms: TermContext { table, clock: as_clock, entropy, worker, timing, stream_created: Some(shared.stream.created) },
            application: shared.application.clone(),
            stream: shared.stream.arn.clone(),
            max_leases: self.max_leases,
            held: held.clone(),
            look_again: Arc::clone(&look_again),
            started: start,
            liveness: Liveness::new(self.lease_duration),
            retrieval,
            reading: Arc::clone(&shared.reading),
            outrun: AtomicBool::new(false),
            unreadable: Vec::new(),
        };
        let shard_sync = ShardSync {
            shared: Arc::clone(&shared),
            look_again: Arc::clone(&look_again),
            interval: self.shard_sync_interval,
            suspected: std::collections::BTreeSet::new(),
        };
        Ok(Worker {
            shared,
            coordinator,
            shard_sync,
            held,
            look_again,
            started,
            shutdown_timeout: self.shutdown_timeout,
            deregister: fan_out.filter(|_| self.fan_out.deregister_at_end),
            asked_to_stop: CancellationToken::new(),
            machine: self.machine,
        })
    }

    fn validate(&self) -> Result<(), ConfigError> {
        settings::table_name("application", &self.application)?;
        if let Some(name) = &self.table_name {
            settings::table_name("lease_table_name", name)?;
        }
        settings::stream(&self.stream, self.region().as_deref())?;
        settings::worker_name(&self.worker_name)?;
        within("lease_duration", self.lease_duration, &settings::LEASE_DURATION)?;
        within("handoff_timeout", self.handoff_timeout, &settings::HANDOFF_TIMEOUT)?;
        within("shutdown_timeout", self.shutdown_timeout, &settings::SHUTDOWN_TIMEOUT)?;
        within("shard_sync_interval", self.shard_sync_interval, &settings::SHARD_SYNC_INTERVAL)?;
        within("max_leases", self.max_leases, &settings::MAX_LEASES)?;
        if let Some(Checkpointing::Automatic { interval }) = self.checkpointing {
            within("checkpointing.interval", interval, &settings::CHECKPOINT_INTERVAL)?;
        }
        if self.prefetch_bytes > 0 {
            within("prefetch_bytes", self.prefetch_bytes, &(LARGEST_ANSWER..=4 << 30))?;
        }
        self.retry.validate(self.handoff_timeout)?;
        self.processing.validate()?;
        if self.processing.lanes.lanes > 1 && self.checkpointing == Some(Checkpointing::Manual) {
            let rule = "must be 1 with manual checkpoints: records finish out of order, and no processor sees all of them";
            return Err(ConfigError::new("lanes.lanes", self.processing.lanes.lanes, rule));
        }
        self.polling.validate().map_err(polling_rule)
    }

    fn region(&self) -> Option<String> {
        self.aws.as_ref().and_then(|aws| aws.region()).map(ToString::to_string)
    }

    fn ports(&mut self, timing: &LeaseTiming, entropy: &Entropy) -> Result<Ports, ConfigError> {
        if let (Some(stream), Some(table)) = (&self.stream_api, &self.lease_table) {
            return Ok((Arc::clone(stream), Arc::clone(table)));
        }
        let aws = self.aws.as_ref().ok_or_else(|| {
            ConfigError::new("aws_config", "not set", "is needed: give it what aws_config::load_from_env().await returns")
        })?;
        if aws.region().is_none() {
            return Err(ConfigError::new(
                "aws_config",
                "without a region",
                "needs a region: set AWS_REGION, or `region` in the profile of the AWS configuration file",
            ));
        }
        if aws.credentials_provider().is_none() {
            return Err(ConfigError::new(
                "aws_config",
                "without credentials",
                "needs credentials: see the standard AWS environment and configuration",
            ));
        }
        let stream = self
            .stream_api
            .clone()
            .unwrap_or_else(|| Arc::new(KinesisStream::new(aws_sdk_kinesis::Client::new(aws), &self.stream, Duration::from_secs(5))));
        let table = self.lease_table.clone().unwrap_or_else(|| {
            let options = TableOptions { call_timeout: timing.call_timeout(), ..self.table_options.clone() };
            let name = self.table_name.as_ref().unwrap_or(&self.application);
            Arc::new(DynamoDbLeaseTable::new(&aws_sdk_dynamodb::Client::new(aws), name, options, entropy))
        });
        Ok((stream, table))
    }

    fn intended_retrieval(&self, stream: &StreamDescription, entropy: &Entropy) -> Result<Intended, WorkerError> {
        let api = match (&self.fan_out_api, &self.aws) {
            (Some(api), _) => Some(Arc::clone(api)),
            (None, Some(aws)) if self.retrieval != RetrievalMode::Polling => Some(Arc::new(KinesisFanOut::new(aws)) as Arc<dyn FanOutApi>),
            (None, _) => None,
        };
        if api.is_none() && self.retrieval == RetrievalMode::FanOut {
            let rule = "needs `aws_config` or `fan_out_api`: the stream given by `stream_api` has no subscriptions";
            return Err(ConfigError::new("retrieval", self.retrieval, rule).into());
        }
        // Without anything to subscribe with, automatic means polling.
        let mode = if api.is_some() { self.retrieval } else { RetrievalMode::Polling };
        Ok(Intended::new(mode, &self.fan_out, &self.application, &stream.arn, api, entropy)?)
    }

    /// Describes the stream, and waits for one that is being made.
    async fn wait_for_stream(&self, api: &dyn StreamApi, clock: &ServiceClock) -> Result<StreamDescription, WorkerError> {
        let deadline = tokio::time::Instant::now() + STREAM_READY;
        let mut failures = 0;
        loop {
            let overdue = tokio::time::Instant::now() >= deadline;
            match clock.describe(api).await {
                Ok(stream) => match stream.status {
                    StreamStatus::Active => return Ok(stream),
                    StreamStatus::Deleting => return Err(WorkerError::StreamDeleting { stream: stream.arn }),
                    StreamStatus::Creating if overdue => {
                        let message = format!("it is still being made after {STREAM_READY:?}");
                        return Err(
                            StreamError::NotReady { stream: stream.arn, operation: "kinesis:DescribeStreamSummary", message }.into()
                        );
                    }
                    StreamStatus::Creating => tracing::info!(stream = stream.arn, "the stream is being made; waiting"),
                },
                Err(StreamError::NotFound { .. }) => {
                    let region = self.region().unwrap_or_else(|| "unknown".to_owned());
                    return Err(WorkerError::StreamNotFound { stream: self.stream.clone(), region });
                }
                // A hiccup is no reason to refuse; an endpoint that never answers is.
                Err(error) if error.is_retryable() && failures < HICCUPS && !overdue => failures += 1,
                Err(error) => return Err(error.into()),
            }
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    }

    /// Refuses leases that another stream of the same name has left, or deletes them if that is allowed.
    async fn check_identity(&self, table: &dyn LeaseTable, stream: &StreamDescription) -> Result<(), WorkerError> {
        let strangers: Vec<Lease> = {
            let listing = patiently(|| table.list(), TableError::is_retryable).await?;
            let strange = |lease: &Lease| lease.stream_created.is_some_and(|created| created != stream.created);
            listing.leases.into_iter().filter(strange).collect()
        };
        if is_planted(Bug::IdentityNotChecked) {
            return Ok(());
        }
        if !strangers.is_empty() && !self.adopt {
            return Err(WorkerError::StreamRecreated { application: self.application.clone(), stream: stream.arn.clone() });
        }
        for lease in strangers {
            let deleted = table.delete(&lease).await?;
            tracing::error!(
                target: "kcl::audit",
                shard = %lease.shard_id, checkpoint = %lease.checkpoint, deleted,
                "the stream was made anew: the lease of its predecessor is deleted, as configured"
            );
        }
        Ok(())
    }
}

/// Makes a call, and again some times if that may help: a hiccup is no reason to refuse.
async fn patiently<'a, T, E>(call: impl Fn() -> BoxFuture<'a, Result<T, E>>, is_retryable: impl Fn(&E) -> bool) -> Result<T, E> {
    let mut failures = 0;
    loop {
        match call().await {
            Err(error) if is_retryable(&error) && failures < HICCUPS => failures += 1,
            result => return result,
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

fn polling_rule(error: PollingConfigError) -> ConfigError {
    ConfigError { setting: error.setting, value: error.value, rule: error.range }
}
