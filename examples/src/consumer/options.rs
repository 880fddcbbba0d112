//! Flags and environment, and the worker that they describe.

use std::path::PathBuf;
use std::time::Duration;

use clap::builder::{BoolishValueParser, NonEmptyStringValueParser};
use clap::{ArgAction, Args, Parser, ValueEnum};
use kcl_core::aws_config::{self, BehaviorVersion, Region, SdkConfig};
use kcl_core::{
    Backlog, ConsumerChoice, FanOutConfig, FanOutError, FileDeadLetterQueue, InitialPosition, PartitionKeys, ReadUntil, RetryPolicy,
    S3BlobStore, ShardContext, SqsDeadLetterQueue, Timestamp, TrimmedData, Worker, WorkerError,
};

use super::service::Service;
use crate::environment::{self, Given, region, url};
use crate::flags::UsageError;
use crate::retrieval::Retrieval;

/// Consumes a Kinesis stream, together with all other processes that are started with the same application name.
///
/// Each process is one worker; shards are shared evenly, and those of a process that ends go to the others. Region, credentials and endpoint
/// come from the standard AWS environment and configuration files. Flags win over the environment.
///
/// SIGTERM, SIGHUP and Ctrl-C let the worker finish what is in work, write its checkpoints and hand over its shards; a second SIGTERM
/// or Ctrl-C ends it at once. Logs go to standard error, by RUST_LOG (default: info). Exit status: 0 if it was asked to stop or is idle, 1
/// if it can't start or go on, 2 for flags and variables it can't use, 143 or 130 after a second signal. An empty variable counts as not set,
/// but for those of AWS (AWS_ENDPOINT_URL, AWS_REGION and the like), which are refused.
///
/// `consumer redrive --help` tells how dead letters are put back into the stream, `consumer seek --help` how an application begins elsewhere.
#[derive(Debug, Parser)]
#[command(name = "consumer", version, max_term_width = 100)]
pub(super) struct Options {
    /// The application: its processes share the stream, and it names the lease table. Others read the stream independently
    #[arg(long, value_name = "NAME", env = "KCL_APPLICATION")]
    pub(super) application: String,

    /// The stream
    #[arg(long, value_name = "NAME|ARN", env = "KCL_STREAM")]
    pub(super) stream: String,

    /// Where to start in shards that have no checkpoint yet: trim-horizon, latest, or a time as 2026-01-31T12:00:00Z or in seconds since 1970
    #[arg(long, value_name = "POSITION", env = "KCL_INITIAL_POSITION", default_value = "trim-horizon", value_parser = position)]
    pub(super) initial_position: InitialPosition,

    /// How the stream is read
    #[arg(long, value_name = "HOW", env = "KCL_RETRIEVAL", default_value = "polling")]
    pub(super) retrieval: Retrieval,

    /// The stream consumer of enhanced fan-out: a name, which is registered if need be, or an ARN [default: the application's name]
    #[arg(long, value_name = "NAME|ARN", env = "KCL_FAN_OUT_CONSUMER", value_parser = NonEmptyStringValueParser::new())]
    pub(super) fan_out_consumer: Option<String>,

    /// Another endpoint than AWS' own, e.g. http://127.0.0.1:4566 [env: AWS_ENDPOINT_URL]
    #[arg(long, value_name = "URL", value_parser = url)]
    pub(super) endpoint_url: Option<String>,

    /// The AWS region [env: AWS_REGION]
    #[arg(long, value_name = "REGION", value_parser = region)]
    pub(super) region: Option<String>,

    /// The SQS queue for records that can't be processed. Without one, such a record stops its shard
    #[arg(long, value_name = "URL|NAME", env = "KCL_DEAD_LETTER_QUEUE", value_parser = NonEmptyStringValueParser::new())]
    pub(super) dead_letter_queue: Option<String>,

    /// A file for records that can't be processed, in place of a queue: a line of JSON for each
    #[arg(long, value_name = "PATH", env = "KCL_DEAD_LETTER_FILE", conflicts_with = "dead_letter_queue")]
    pub(super) dead_letter_file: Option<PathBuf>,

    /// The S3 bucket for payloads that are too large for the dead-letter queue. Without one, such a record stops its shard
    #[arg(long, value_name = "NAME", env = "KCL_PAYLOAD_BUCKET", value_parser = NonEmptyStringValueParser::new())]
    pub(super) payload_bucket: Option<String>,

    /// How dead letters tell partition keys. Only records whose key is told in clear can be put back into a stream
    #[arg(long, value_name = "HOW", env = "KCL_DEAD_LETTER_KEYS", default_value = "clear")]
    pub(super) dead_letter_keys: TellKeys,

    /// Refuse a dead-letter queue that does not encrypt its messages
    #[arg(long, env = "KCL_REQUIRE_ENCRYPTION", action = ArgAction::SetTrue, value_parser = BoolishValueParser::new())]
    pub(super) require_encryption: bool,

    /// How long after the last sign of life a dead worker's shards are taken over, 1s to 5m. The same for all processes
    #[arg(long, value_name = "DURATION", env = "KCL_LEASE_DURATION", default_value = "10s", value_parser = humantime::parse_duration)]
    pub(super) lease_duration: Duration,

    /// The first part of the worker's name in logs and leases
    #[arg(long, value_name = "NAME", env = "KCL_WORKER_NAME", default_value = "consumer")]
    pub(super) worker_name: String,

    /// The most shards that this process may own, 1 or more [default: no limit]
    #[arg(long, value_name = "N", env = "KCL_MAX_LEASES")]
    pub(super) max_leases: Option<usize>,

    /// How long a shutdown may take, up to 1h; keep it below the time after which your supervisor kills
    #[arg(long, value_name = "DURATION", env = "KCL_SHUTDOWN_TIMEOUT", default_value = "25s", value_parser = humantime::parse_duration)]
    pub(super) shutdown_timeout: Duration,

    /// The longest time for which a start repeats calls that are throttled or get no answer, up to 1h
    #[arg(long, value_name = "DURATION", env = "KCL_START_PATIENCE", default_value = "5m", value_parser = humantime::parse_duration)]
    pub(super) start_patience: Duration,

    /// When records were trimmed before they were read: stop the shard and say so, or skip them and log the gap
    #[arg(long, value_name = "WHAT", env = "KCL_TRIMMED_DATA", default_value = "block")]
    pub(super) trimmed_data: OnTrimmed,

    /// Delete the leases of an earlier stream of this name and begin anew, instead of refusing to start
    #[arg(long, env = "KCL_ADOPT_RECREATED_STREAM", action = ArgAction::SetTrue, value_parser = BoolishValueParser::new())]
    pub(super) adopt_recreated_stream: bool,

    /// End by itself when it has been idle this long, 1s or more
    ///
    /// Idle: no record comes, and all shards that this worker owns are read to their tip (0 ms behind), none stuck. The time begins anew with each
    /// record and with each shard taken, ended or lost. While the worker owns no shard, twice the lease duration is
    /// added: shards of a worker that died become free only when their leases expire. For the same reason make it longer than the lease
    /// duration where other workers may die. It is not idle while it can't get leases: some have no owner or are not made, or calls of the lease
    /// table fail.
    #[arg(long, value_name = "DURATION", env = "KCL_UNTIL_IDLE", value_parser = idle_time)]
    pub(super) until_idle: Option<Duration>,

    /// Read up to here and end by itself: tip (all that is there now), or a time as 2026-01-31T12:00:00Z or in seconds since 1970
    #[arg(long, value_name = "POSITION", env = "KCL_UNTIL", value_parser = until)]
    pub(super) until: Option<ReadUntil>,

    /// When a shard is further behind than this, 1s to 365d, leave out what it has not read and go on with what is new. Each time is logged
    /// as an error
    #[arg(long, value_name = "DURATION", env = "KCL_SKIP_BEYOND", value_parser = humantime::parse_duration)]
    pub(super) skip_beyond: Option<Duration>,

    /// Print each record to standard output
    ///
    /// One line of JSON per record: shard_id, sequence_number (a string), sub_sequence_number (a number), partition_key, data (base64). The lines
    /// of a batch are written before it counts as processed. Nothing else is written there. Without it, records are counted.
    #[arg(long, env = "KCL_PRINT", action = ArgAction::SetTrue, value_parser = BoolishValueParser::new())]
    pub(super) print: bool,

    /// The form of logs
    #[arg(long, value_name = "FORM", env = "KCL_LOG_FORMAT", default_value = "text")]
    pub(super) log_format: LogFormat,
}

/// What to do about records that were trimmed unread.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(super) enum OnTrimmed {
    /// The shard waits.
    Block,
    /// The shard goes on.
    Skip,
}

/// How dead letters tell partition keys.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(super) enum TellKeys {
    /// As they are.
    Clear,
    /// By their SHA-256.
    Hashed,
    /// Not at all.
    Omitted,
}

/// How logs look.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(super) enum LogFormat {
    /// Lines for people.
    Text,
    /// Lines of JSON.
    Json,
}

impl Options {
    /// Builds the worker that runs this service.
    ///
    /// # Errors
    /// As [`WorkerBuilder::build`](kcl_core::WorkerBuilder::build); a [`UsageError`] for settings that
    /// have a flag.
    pub(super) async fn worker(&self, service: &Service) -> anyhow::Result<Worker> {
        let (aws, service) = (aws(self.region.as_deref(), self.endpoint_url.as_deref()).await?, service.clone());
        let mut builder = Worker::builder(&self.application, &self.stream)
            .aws_config(&aws)
            .initial_position(self.initial_position)
            .retrieval(self.retrieval.into())
            .fan_out(FanOutConfig { consumer: self.fan_out_consumer.as_deref().map(ConsumerChoice::from), ..FanOutConfig::default() })
            .lease_duration(self.lease_duration)
            .worker_name(&self.worker_name)
            .shutdown_timeout(self.shutdown_timeout)
            .start_patience(self.start_patience)
            .trimmed_data(match self.trimmed_data {
                OnTrimmed::Block => TrimmedData::Block,
                OnTrimmed::Skip => TrimmedData::SkipAndAudit,
            })
            .adopt_recreated_stream(self.adopt_recreated_stream)
            .read_until(self.until.unwrap_or_default())
            .backlog(self.skip_beyond.map_or(Backlog::ReadAll, |beyond| Backlog::SkipToLatest { beyond }))
            // Nothing is wrong with a record that a full disk did not take, if no other can be tried.
            .retry_policy(RetryPolicy { patience: Duration::MAX, ..RetryPolicy::default() })
            // They are this program's own and quote no record.
            .log_error_text(true)
            .processor(move |_shard: &ShardContext| service.clone());
        if let Some(leases) = self.max_leases {
            builder = builder.max_leases(leases);
        }
        let keys = match self.dead_letter_keys {
            TellKeys::Clear => PartitionKeys::Clear,
            TellKeys::Hashed => PartitionKeys::Hashed,
            TellKeys::Omitted => PartitionKeys::Omitted,
        };
        if let Some(path) = &self.dead_letter_file {
            builder = builder.dead_letter_queue(FileDeadLetterQueue::new(path).partition_keys(keys));
        }
        if let Some(queue) = &self.dead_letter_queue {
            let mut queue = SqsDeadLetterQueue::new(&aws, queue).partition_keys(keys).require_encryption(self.require_encryption);
            if let Some(bucket) = &self.payload_bucket {
                queue = queue.blob_store(S3BlobStore::new(&aws, bucket));
            }
            builder = builder.dead_letter_queue(queue);
        }
        builder.build().await.map_err(by_flag)
    }

    /// Refuses flags that the others leave without a meaning.
    ///
    /// # Errors
    /// The first of them.
    pub(super) fn check(&self) -> Result<(), UsageError> {
        let queue = self.dead_letter_queue.is_some();
        let letters = queue || self.dead_letter_file.is_some();
        let without_queue = "means nothing without --dead-letter-queue";
        let hidden_keys = !matches!(self.dead_letter_keys, TellKeys::Clear);
        let polling = self.retrieval == Retrieval::Polling;
        for (void, flag, variable, wrong) in [
            (self.require_encryption && !queue, "--require-encryption", "KCL_REQUIRE_ENCRYPTION", without_queue),
            (self.payload_bucket.is_some() && !queue, "--payload-bucket", "KCL_PAYLOAD_BUCKET", without_queue),
            (
                hidden_keys && !letters,
                "--dead-letter-keys",
                "KCL_DEAD_LETTER_KEYS",
                "means nothing without --dead-letter-queue or --dead-letter-file",
            ),
            (
                self.fan_out_consumer.is_some() && polling,
                "--fan-out-consumer",
                "KCL_FAN_OUT_CONSUMER",
                "means nothing without --retrieval fan-out or --retrieval auto",
            ),
        ] {
            if void {
                return Err(UsageError::new(flag, Some(variable), wrong));
            }
        }
        Ok(())
    }
}

/// The flag, and the variable in its place, that a setting of the library comes from.
fn flag_of(setting: &str) -> Option<(&'static str, &'static str)> {
    Some(match setting {
        "application" => ("--application", "KCL_APPLICATION"),
        "stream" => ("--stream", "KCL_STREAM"),
        "initial_position" => ("--initial-position", "KCL_INITIAL_POSITION"),
        "retrieval" => ("--retrieval", "KCL_RETRIEVAL"),
        "fan_out" => ("--fan-out-consumer", "KCL_FAN_OUT_CONSUMER"),
        "lease_duration" => ("--lease-duration", "KCL_LEASE_DURATION"),
        "worker_name" => ("--worker-name", "KCL_WORKER_NAME"),
        "max_leases" => ("--max-leases", "KCL_MAX_LEASES"),
        "shutdown_timeout" => ("--shutdown-timeout", "KCL_SHUTDOWN_TIMEOUT"),
        "start_patience" => ("--start-patience", "KCL_START_PATIENCE"),
        "read_until" => ("--until", "KCL_UNTIL"),
        backlog if backlog.starts_with("backlog") => ("--skip-beyond", "KCL_SKIP_BEYOND"),
        _ => return None,
    })
}

/// The error in terms of the command line, where it is about a flag.
fn by_flag(error: WorkerError) -> anyhow::Error {
    match &error {
        WorkerError::Config(config) => match flag_of(config.setting) {
            Some((flag, variable)) => UsageError::new(flag, Some(variable), format_args!("is {}: {}", config.value, config.rule)).into(),
            None => error.into(),
        },
        WorkerError::FanOut(
            wrong @ (FanOutError::InvalidName { .. } | FanOutError::NotAConsumerArn { .. } | FanOutError::OtherStream { .. }),
        ) => UsageError::new("--fan-out-consumer", Some("KCL_FAN_OUT_CONSUMER"), format_args!("can't be used: {wrong}")).into(),
        _ => error.into(),
    }
}

/// What the commands beside the worker have in common: where AWS is, and how they log.
#[derive(Debug, Args)]
pub(super) struct Common {
    /// Another endpoint than AWS' own, e.g. http://127.0.0.1:4566 [env: AWS_ENDPOINT_URL]
    #[arg(long, value_name = "URL", value_parser = url)]
    endpoint_url: Option<String>,

    /// The AWS region [env: AWS_REGION]
    #[arg(long, value_name = "REGION", value_parser = region)]
    region: Option<String>,

    /// The form of logs, which go to standard error
    #[arg(long, value_name = "FORM", env = "KCL_LOG_FORMAT", default_value = "text")]
    pub(super) log_format: LogFormat,
}

impl Common {
    /// The AWS configuration of the environment, with what the command line says in its place.
    ///
    /// # Errors
    /// A variable of the environment that can't be used.
    pub(super) async fn aws(&self) -> Result<SdkConfig, UsageError> {
        aws(self.region.as_deref(), self.endpoint_url.as_deref()).await
    }
}

/// The AWS configuration of the environment, with what the command line says in its place.
///
/// # Errors
/// A variable of the environment that can't be used.
async fn aws(region: Option<&str>, endpoint_url: Option<&str>) -> Result<SdkConfig, UsageError> {
    environment::check(Given { endpoint: endpoint_url.is_some(), region: region.is_some() })?;
    let mut aws = aws_config::defaults(BehaviorVersion::latest());
    if let Some(region) = region {
        aws = aws.region(Region::new(region.to_owned()));
    }
    if let Some(url) = endpoint_url {
        aws = aws.endpoint_url(url);
    }
    Ok(aws.load().await)
}

fn position(text: &str) -> Result<InitialPosition, String> {
    match text {
        "trim-horizon" => Ok(InitialPosition::TrimHorizon),
        "latest" => Ok(InitialPosition::Latest),
        text => {
            let at = time(text).map(InitialPosition::AtTimestamp);
            at.map_err(|error| format!("neither trim-horizon, nor latest, nor a time: {error}"))
        }
    }
}

/// A time in RFC 3339, or in seconds since 1970 with up to three decimals.
pub(super) fn time(text: &str) -> Result<Timestamp, String> {
    let is_number = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
    let time = if is_number { seconds(text) } else { text.parse::<jiff::Timestamp>().map_err(|error| error.to_string()) };
    let time = time.map_err(|error| format!("not a time such as 2026-01-31T12:00:00Z or 1769860800 (seconds since 1970): {error}"))?;
    let millis = u64::try_from(time.as_millisecond()).map_err(|_| "the time is before 1970".to_owned())?;
    Ok(Timestamp::from_millis(millis))
}

fn seconds(text: &str) -> Result<jiff::Timestamp, String> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, "0"));
    let whole: i64 = whole.parse().map_err(|_| "not a number of seconds".to_owned())?;
    let millis: i64 = match fraction.len() {
        1..=3 => format!("{fraction:0<3}").parse().map_err(|_| "not a number of seconds".to_owned())?,
        _ => return Err("up to three decimals are possible".to_owned()),
    };
    let millis = whole.checked_mul(1000).and_then(|whole| whole.checked_add(millis));
    let time = millis.and_then(|millis| jiff::Timestamp::from_millisecond(millis).ok());
    time.ok_or_else(|| "beyond the year 9999; are these milliseconds?".to_owned())
}

fn until(text: &str) -> Result<ReadUntil, String> {
    match text {
        "tip" => Ok(ReadUntil::TipAtStart),
        text => time(text).map(ReadUntil::Time).map_err(|error| format!("neither tip nor a time: {error}")),
    }
}

fn idle_time(text: &str) -> Result<Duration, String> {
    let time = humantime::parse_duration(text).map_err(|error| error.to_string())?;
    if time < Duration::from_secs(1) {
        Err("must be 1s or more: shards at their tip are read about once a second".to_owned())
    } else {
        Ok(time)
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    fn parse(flags: &str) -> Result<Options, String> {
        let flags = format!("consumer --application app --stream orders {flags}");
        Options::try_parse_from(flags.split_whitespace()).map_err(|error| {
            assert_eq!(error.exit_code(), 2);
            error.to_string()
        })
    }

    #[test]
    fn the_command_line_is_sound() {
        Options::command().debug_assert();
        let options = parse(
            "--initial-position latest --endpoint-url http://127.0.0.1:4566 --region eu-west-1 --dead-letter-queue orders-dlq \
             --lease-duration 2500ms --worker-name w --retrieval fan-out --fan-out-consumer orders-efo --until-idle 1m --adopt-recreated-stream --trimmed-data skip --max-leases 3 \
             --shutdown-timeout 0s --until tip --skip-beyond 2h --print --log-format json",
        )
        .unwrap();
        assert_eq!(options.lease_duration, Duration::from_millis(2500));
        assert_eq!(options.until_idle, Some(Duration::from_secs(60)));
        assert_eq!((options.until, options.skip_beyond), (Some(ReadUntil::TipAtStart), Some(Duration::from_secs(7200))));
        assert!(options.print && options.adopt_recreated_stream);
        assert_eq!(options.retrieval, Retrieval::FanOut);
    }

    #[test]
    fn a_position_is_a_name_or_a_time() {
        let at = |millis| Ok(InitialPosition::AtTimestamp(Timestamp::from_millis(millis)));
        assert_eq!(position("trim-horizon"), Ok(InitialPosition::TrimHorizon));
        assert_eq!(position("latest"), Ok(InitialPosition::Latest));
        assert_eq!(position("2026-01-31T12:00:00Z"), at(1_769_860_800_000));
        assert_eq!(position("2026-01-31T14:00:00.250+02:00"), at(1_769_860_800_250));
        assert_eq!(position("1769860800"), at(1_769_860_800_000));
        assert_eq!(position("1769860800.25"), at(1_769_860_800_250));
        assert_eq!(position("0"), at(0));
        for (bad, said) in [
            ("", "trim-horizon"),
            ("TRIM_HORIZON", "trim-horizon"),
            ("yesterday", "seconds since 1970"),
            ("2026-01-31", "2026-01-31T12:00:00Z"),
            ("1969-12-31T23:59:59Z", "before 1970"),
            ("1769860800000", "milliseconds"),
            ("99999999999999999999", "not a number of seconds"),
            ("1.2.3", "seconds since 1970"),
            ("1.2345", "three decimals"),
            (".5", "not a number of seconds"),
        ] {
            let error = position(bad).unwrap_err();
            assert!(error.contains(said), "{bad}: {error}");
        }
    }

    #[test]
    fn flags_that_the_others_make_void_are_refused_by_name() {
        for (flags, void) in [
            ("--require-encryption", Some("--require-encryption (or KCL_REQUIRE_ENCRYPTION)")),
            ("--require-encryption --dead-letter-file letters.jsonl", Some("--require-encryption")),
            ("--require-encryption --dead-letter-queue letters", None),
            ("--payload-bucket payloads", Some("--payload-bucket (or KCL_PAYLOAD_BUCKET)")),
            ("--payload-bucket payloads --dead-letter-queue letters", None),
            ("--dead-letter-keys hashed", Some("--dead-letter-keys")),
            ("--dead-letter-keys hashed --dead-letter-file letters.jsonl", None),
            ("--fan-out-consumer orders-efo", Some("--fan-out-consumer (or KCL_FAN_OUT_CONSUMER)")),
            ("--fan-out-consumer orders-efo --retrieval auto", None),
            ("", None),
        ] {
            let checked = parse(flags).unwrap().check().map_err(|error| error.to_string());
            match void {
                Some(named) => assert!(checked.as_ref().is_err_and(|said| said.starts_with(named)), "{flags}: {checked:?}"),
                None => assert_eq!(checked, Ok(()), "{flags}"),
            }
        }
    }

    #[test]
    fn settings_of_the_library_are_named_by_their_flags() {
        let config = |setting| kcl_core::ConfigError { setting, value: "0".into(), rule: "must be more".into() };
        let said = |setting| by_flag(WorkerError::Config(config(setting))).to_string();
        assert_eq!(said("max_leases"), "--max-leases (or KCL_MAX_LEASES) is 0: must be more");
        assert_eq!(said("backlog.beyond"), "--skip-beyond (or KCL_SKIP_BEYOND) is 0: must be more");
        assert_eq!(said("aws_config"), "setting `aws_config` is 0: must be more");
        let usage = by_flag(WorkerError::FanOut(FanOutError::InvalidName { name: "a b".into() }));
        assert!(usage.is::<UsageError>() && usage.to_string().starts_with("--fan-out-consumer"), "{usage}");
        for argument in Options::command().get_arguments() {
            let (Some(flag), Some(variable)) = (argument.get_long(), argument.get_env()) else { continue };
            if let Some((named, from)) = flag_of(&flag.replace('-', "_")) {
                assert_eq!((named, from), (format!("--{flag}").as_str(), variable.to_str().unwrap()));
            }
        }
    }

    #[test]
    fn what_makes_no_sense_is_refused_by_name() {
        for (flags, named) in [
            ("--initial-position nowhere", "--initial-position"),
            ("--lease-duration 10", "--lease-duration"),
            ("--retrieval pull", "--retrieval"),
            ("--until-idle 10ms", "--until-idle"),
            ("--until yesterday", "--until"),
            ("--skip-beyond far", "--skip-beyond"),
            ("--max-leases many", "--max-leases"),
            ("--trimmed-data lose", "--trimmed-data"),
            ("--endpoint-url 127.0.0.1:4566", "--endpoint-url"),
            ("--region US_EAST_1", "--region"),
            ("--unknown", "--unknown"),
        ] {
            let error = parse(flags).unwrap_err();
            assert!(error.contains(named), "{flags}: {error}");
        }
    }
}
