//! The checks before a worker starts: its settings, the ports that they lead to, the stream, and whose leases there are.

use std::sync::Arc;
use std::time::Duration;

use aws_config::SdkConfig;
use futures::future::BoxFuture;
use kcl_checkpoint::planted::{Bug, is_planted};
use kcl_checkpoint::{InitialPosition, Timestamp};
use kcl_efo::{FanOutApi, KinesisFanOut};
use kcl_lease::dynamodb::TableOptions;
use kcl_lease::term::LeaseTiming;
use kcl_lease::{Clock as _, DynamoDbLeaseTable, Entropy, Lease, LeaseTable};
use tokio::time::Instant;

use super::builder::WorkerBuilder;
use super::settings::{self, within};
use super::start_retry::StartRetry;
use crate::consumer::{Backlog, Checkpointing, ReadUntil};
use crate::error::{ConfigError, WorkerError};
use crate::retrieval::LARGEST_ANSWER;
use crate::retrieval::polling::PollingConfigError;
use crate::retrieval::{FanOutConfig, Intended, RetrievalMode};
use crate::stream::{KinesisStream, ServiceClock, ShardFilter, StreamApi, StreamDescription, StreamError, StreamStatus};

/// Repetitions of a failed call of a command that somebody waits for.
const HICCUPS: u32 = 5;
/// How long a stream that is being made is waited for.
const STREAM_READY: Duration = Duration::from_secs(120);

/// Milliseconds that the service's time, as it is known, may be late by: it is told in whole seconds, and an answer takes its time. Arrival times are
/// approximate too.
const TIP_MARGIN: u64 = 2_000;

type Ports = (Arc<dyn StreamApi>, Arc<dyn LeaseTable>);

impl WorkerBuilder {
    pub(super) fn validate(&self) -> Result<(), ConfigError> {
        settings::table_name("application", &self.application)?;
        if let Some(name) = &self.table_name {
            settings::table_name("lease_table_name", name)?;
        }
        settings::stream(&self.stream, self.region().as_deref())?;
        settings::worker_name(&self.worker_name)?;
        within("lease_duration", self.lease_duration, &settings::LEASE_DURATION)?;
        within("handoff_timeout", self.handoff_timeout, &settings::HANDOFF_TIMEOUT)?;
        within("shutdown_timeout", self.shutdown_timeout, &settings::SHUTDOWN_TIMEOUT)?;
        within("start_patience", self.start_patience, &settings::START_PATIENCE)?;
        within("shard_sync_interval", self.shard_sync_interval, &settings::SHARD_SYNC_INTERVAL)?;
        within("max_leases", self.max_leases, &settings::MAX_LEASES)?;
        if let Some(Checkpointing::Automatic { interval }) = self.checkpointing {
            within("checkpointing.interval", interval, &settings::CHECKPOINT_INTERVAL)?;
        }
        if self.prefetch_bytes > 0 {
            within("prefetch_bytes", self.prefetch_bytes, &(LARGEST_ANSWER..=4 << 30))?;
        }
        self.backlog.validate()?;
        if self.backlog != Backlog::ReadAll && self.checkpointing == Some(Checkpointing::Manual) {
            let rule = "needs automatic checkpoints: what a processor has taken and not checkpointed could be left out unseen";
            return Err(ConfigError::new("backlog", self.backlog, rule));
        }
        if let (InitialPosition::AtTimestamp(start), ReadUntil::Time(bound)) = (self.initial, self.read_until)
            && start >= bound
        {
            let rule = format!("must be later than the initial position ({} ms since 1970): there is nothing to read", start.as_millis());
            return Err(ConfigError::new("read_until", format_args!("{} ms since 1970", bound.as_millis()), rule));
        }
        self.retry.validate(self.handoff_timeout)?;
        self.processing.validate()?;
        if self.processing.lanes.lanes > 1 && self.checkpointing == Some(Checkpointing::Manual) {
            let rule = "must be 1 with manual checkpoints: records finish out of order, and no processor sees all of them";
            return Err(ConfigError::new("lanes.lanes", self.processing.lanes.lanes, rule));
        }
        self.refuse_void_settings()?;
        self.polling.validate().map_err(polling_rule)
    }

    /// Refuses settings that the others leave without a meaning. Whoever made them believes that
    /// something is in force which is not.
    fn refuse_void_settings(&self) -> Result<(), ConfigError> {
        if self.retrieval == RetrievalMode::Polling && self.fan_out != FanOutConfig::default() {
            let rule = "means nothing while `retrieval` is Polling: set that to FanOut or Auto too";
            return Err(ConfigError::new("fan_out", &self.fan_out, rule));
        }
        if let (Some(name), Some(_)) = (&self.table_name, &self.lease_table) {
            let rule = "means nothing beside `lease_table`: that table has its own name";
            return Err(ConfigError::new("lease_table_name", name, rule));
        }
        Ok(())
    }

    fn region(&self) -> Option<String> {
        self.aws.as_ref().and_then(|aws| aws.region()).map(ToString::to_string)
    }

    pub(super) fn ports(&mut self, timing: &LeaseTiming, entropy: &Entropy) -> Result<Ports, ConfigError> {
        if let (Some(stream), Some(table)) = (&self.stream_api, &self.lease_table) {
            return Ok((Arc::clone(stream), Arc::clone(table)));
        }
        let aws = usable(self.aws.as_ref())?;
        let stream = self
            .stream_api
            .clone()
            .unwrap_or_else(|| Arc::new(KinesisStream::new(aws_sdk_kinesis::Client::new(aws), &self.stream, Duration::from_secs(5))));
        let table = self.lease_table.clone().unwrap_or_else(|| {
            let options = TableOptions {
                call_timeout: timing.call_timeout(),
                ready_timeout: self.table_options.ready_timeout.min(self.start_patience),
                ..self.table_options.clone()
            };
            let name = self.table_name.as_ref().unwrap_or(&self.application);
            Arc::new(DynamoDbLeaseTable::new(&aws_sdk_dynamodb::Client::new(aws), name, options, entropy))
        });
        Ok((stream, table))
    }

    /// The time up to which records are read.
    pub(super) fn bound(&self, clock: &ServiceClock) -> Option<Timestamp> {
        match self.read_until {
            ReadUntil::Stopped => None,
            ReadUntil::TipAtStart => Some(Timestamp::from_millis(clock.wall_time().as_millis().saturating_add(TIP_MARGIN))),
            ReadUntil::Time(bound) => Some(bound),
        }
    }

    pub(super) fn intended_retrieval(&self, stream: &StreamDescription, entropy: &Entropy) -> Result<Intended, WorkerError> {
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
    pub(super) async fn wait_for_stream(
        &self,
        api: &dyn StreamApi,
        clock: &ServiceClock,
        retry: &StartRetry,
    ) -> Result<StreamDescription, WorkerError> {
        let mut deadline = None;
        loop {
            let stream = match retry.call("looking up the stream", || clock.describe(api)).await {
                Ok(stream) => stream,
                Err(StreamError::NotFound { .. }) => {
                    let region = self.region().unwrap_or_else(|| "unknown".to_owned());
                    return Err(WorkerError::StreamNotFound { stream: self.stream.clone(), region });
                }
                Err(error) => return Err(error.into()),
            };
            match stream.status {
                StreamStatus::Active => return Ok(stream),
                StreamStatus::Deleting => return Err(WorkerError::StreamDeleting { stream: stream.arn }),
                StreamStatus::Creating => {}
            }
            let now = Instant::now();
            if deadline.is_none() {
                tracing::info!(stream = stream.arn, "the stream is being made; waiting");
            }
            if now >= *deadline.get_or_insert(now + STREAM_READY) {
                let message = format!("it is still being made after {STREAM_READY:?}");
                let operation = "kinesis:DescribeStreamSummary";
                return Err(StreamError::NotReady { stream: stream.arn, operation, message }.into());
            }
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    }

    /// Refuses an initial position that the stream has not reached yet: nothing could be read from
    /// there, and the service refuses to list shards for it.
    pub(super) fn check_initial_position(&self, clock: &ServiceClock) -> Result<(), ConfigError> {
        let now = clock.wall_time();
        match self.initial {
            InitialPosition::AtTimestamp(start) if start.as_millis() > now.as_millis().saturating_add(TIP_MARGIN) => {
                let rule = format!(
                    "must not be in the future (the service's time is {} ms since 1970): start the \
                     worker then, or give an earlier time",
                    now.as_millis()
                );
                Err(ConfigError::new("initial_position", format_args!("{} ms since 1970", start.as_millis()), rule))
            }
            _ => Ok(()),
        }
    }

    /// Lists the stream's open shards once. A worker that must not do this would never get a lease,
    /// and look healthy.
    pub(super) async fn check_listing(&self, api: &dyn StreamApi, retry: &StartRetry) -> Result<(), WorkerError> {
        match retry.call("listing the shards", || api.list_shards(ShardFilter::AtLatest)).await {
            // Another worker's matter, or that of a later listing: this one only asks for permission.
            Ok(_) | Err(StreamError::NotFound { .. } | StreamError::InvalidArgument { .. }) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Refuses leases that another stream of the same name has left, or deletes them if that is allowed.
    pub(super) async fn check_identity(
        &self,
        table: &dyn LeaseTable,
        stream: &StreamDescription,
        retry: &StartRetry,
    ) -> Result<(), WorkerError> {
        let listing = retry.call("reading the leases", || table.list()).await?;
        let strange = |lease: &Lease| lease.stream_created.is_some_and(|created| created != stream.created);
        let strangers: Vec<Lease> = listing.leases.into_iter().filter(strange).collect();
        if is_planted(Bug::IdentityNotChecked) {
            return Ok(());
        }
        if !strangers.is_empty() && !self.adopt {
            return Err(WorkerError::StreamRecreated { application: self.application.clone(), stream: stream.arn.clone() });
        }
        for lease in strangers {
            let deleted = retry.call("deleting leases of another stream", || table.delete(&lease)).await?;
            tracing::error!(
                target: "kcl::audit",
                shard = %lease.shard_id, checkpoint = %lease.checkpoint, deleted,
                "the stream was made anew: the lease of its predecessor is deleted, as configured"
            );
        }
        Ok(())
    }
}

/// An AWS configuration that calls can be made with.
pub(crate) fn usable(aws: Option<&SdkConfig>) -> Result<&SdkConfig, ConfigError> {
    let aws =
        aws.ok_or_else(|| ConfigError::new("aws_config", "not set", "is needed: give it what aws_config::load_from_env().await returns"))?;
    if aws.region().is_none() {
        let rule = "needs a region: set AWS_REGION, or `region` in the profile of the AWS configuration file";
        return Err(ConfigError::new("aws_config", "without a region", rule));
    }
    if aws.credentials_provider().is_none() {
        let rule = "needs credentials: see the standard AWS environment and configuration";
        return Err(ConfigError::new("aws_config", "without credentials", rule));
    }
    Ok(aws)
}

/// Makes a call, and repeats it a few times within seconds if that may help: for commands that
/// somebody waits for.
pub(crate) async fn retry_briefly<'a, T, E>(
    call: impl Fn() -> BoxFuture<'a, Result<T, E>>,
    is_retryable: impl Fn(&E) -> bool,
) -> Result<T, E> {
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
