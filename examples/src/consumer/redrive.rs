//! `consumer redrive`: dead letters back into a stream.

use std::io::{self, Write as _};
use std::path::PathBuf;
use std::time::Duration;

use clap::builder::NonEmptyStringValueParser;
use clap::{ArgAction, Parser};
use kcl_core::aws_config::SdkConfig;
use kcl_core::dead_letter::Payload;
use kcl_core::redrive::{Fate, FileLetters, Filter, LetterOutcome, Redrive, RedriveReport, SqsLetters, StreamTarget};
use kcl_core::stream::{KinesisStream, StreamApi as _, StreamError};
use kcl_core::{S3BlobStore, Timestamp, shutdown_signal};
use serde_json::{Map, Value, json};

use super::options::{Common, time};
use crate::flags::UsageError;

/// How long the look for the stream may take.
const CALL_TIMEOUT: Duration = Duration::from_secs(5);

/// Puts dead letters back into a stream: under their partition keys, in order within a key, each record once.
///
/// A letter is deleted only after the stream has accepted its record. One that can't be read or put back stays in the queue. Records come as
/// new ones: every application that reads the stream sees them.
///
/// Standard output is one line of JSON per letter (message_id, shard_id, sequence_number, sub_sequence_number, kind, bytes, fate, reason), and a last one with
/// the sums. No payload and no partition key is printed. SIGTERM and Ctrl-C end it in good order. Exit status: 0 if all letters that were
/// meant are back, 1 if one of them stays or the run ended early, 2 for flags it can't use.
#[derive(Debug, Parser)]
#[command(name = "consumer redrive", bin_name = "consumer redrive", version, max_term_width = 100)]
pub(super) struct RedriveOptions {
    /// The SQS queue with the letters
    #[arg(long, value_name = "URL|NAME", value_parser = NonEmptyStringValueParser::new(), required_unless_present = "from_file", conflicts_with = "from_file")]
    from_queue: Option<String>,

    /// The file with the letters. It is not changed: what is put back is noted in PATH.redriven
    #[arg(long, value_name = "PATH")]
    from_file: Option<PathBuf>,

    /// The stream that records are put into
    #[arg(long, value_name = "NAME|ARN", value_parser = NonEmptyStringValueParser::new())]
    to_stream: String,

    /// The S3 bucket with payloads that were too large for the queue
    #[arg(long, value_name = "NAME", env = "KCL_PAYLOAD_BUCKET", value_parser = NonEmptyStringValueParser::new())]
    payload_bucket: Option<String>,

    /// Only letters of this shard
    #[arg(long, value_name = "ID")]
    shard: Option<String>,

    /// Only letters with this kind of error: poison, error, panic, overrun, process_death, broken_aggregate, follows
    #[arg(long, value_name = "KIND")]
    kind: Option<String>,

    /// Only letters that this application sent
    #[arg(long, value_name = "NAME")]
    application: Option<String>,

    /// Only letters that failed last at this time or later, as 2026-01-31T12:00:00Z or in seconds since 1970
    #[arg(long, value_name = "TIME", value_parser = time)]
    failed_from: Option<Timestamp>,

    /// Only letters that failed last before this time
    #[arg(long, value_name = "TIME", value_parser = time)]
    failed_before: Option<Timestamp>,

    /// Only letters whose partition key has this SHA-256 (printf %s KEY | sha256sum)
    #[arg(long, value_name = "HEX")]
    key_sha256: Option<String>,

    /// The most records that are tried, 1 or more
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    limit: Option<u64>,

    /// Only say what would be done; change nothing
    #[arg(long, action = ArgAction::SetTrue)]
    dry_run: bool,

    /// Delete payloads from the bucket after their letters, instead of leaving them to its lifecycle rule
    #[arg(long, action = ArgAction::SetTrue)]
    delete_payloads: bool,

    #[command(flatten)]
    pub(super) common: Common,
}

impl RedriveOptions {
    /// The letters that are meant.
    ///
    /// # Errors
    /// Flags that no letter can meet, and such that mean nothing.
    fn meant(&self) -> Result<Filter, UsageError> {
        if self.delete_payloads && self.payload_bucket.is_none() {
            return Err(UsageError::new("--delete-payloads", None, "means nothing without --payload-bucket"));
        }
        let filter = Filter {
            shard_id: self.shard.clone(),
            kind: self.kind.clone(),
            application: self.application.clone(),
            failed_from: self.failed_from,
            failed_before: self.failed_before,
            key_sha256: self.key_sha256.as_ref().map(|hash| hash.to_ascii_lowercase()),
        };
        filter.validate().map_err(|error| {
            let flag = format!("--{}", error.setting.replace('_', "-"));
            UsageError::new(&flag, None, format_args!("is {}: {}", error.value, error.rule))
        })?;
        Ok(filter)
    }
}

/// Refuses a stream that does not exist, before a queue that happens to be empty makes the run look
/// good. Any other failure proves nothing: the permission to describe it is not needed otherwise.
async fn check_stream(aws: &SdkConfig, stream: &str) -> anyhow::Result<()> {
    let client = aws_sdk_kinesis::Client::new(aws);
    match KinesisStream::new(client, stream, CALL_TIMEOUT).describe().await {
        Err(error @ StreamError::NotFound { .. }) => anyhow::bail!("--to-stream can't be used: {error}"),
        Err(error) => tracing::debug!(%error, "the stream could not be looked up"),
        Ok(_) => {}
    }
    Ok(())
}

/// Does it.
///
/// # Errors
/// If a letter that was meant stays, or the run ended early.
pub(super) async fn redrive(options: RedriveOptions) -> anyhow::Result<()> {
    let meant = options.meant()?;
    let stop = shutdown_signal();
    let aws = options.common.aws().await;
    check_stream(&aws, &options.to_stream).await?;
    let target = StreamTarget::new(&aws, &options.to_stream);
    let redrive = match (&options.from_queue, &options.from_file) {
        (Some(queue), _) => Redrive::new(SqsLetters::new(&aws, queue), target),
        (None, Some(path)) => Redrive::new(FileLetters::new(path), target),
        (None, None) => anyhow::bail!("invariant: one of --from-queue and --from-file is demanded of the command line"),
    };
    let mut redrive =
        redrive.only(meant).dry_run(options.dry_run).delete_blobs(options.delete_payloads).observe(|outcome| print(&line(outcome)));
    if let Some(bucket) = &options.payload_bucket {
        redrive = redrive.blob_store(S3BlobStore::new(&aws, bucket));
    }
    if let Some(limit) = options.limit {
        redrive = redrive.limit(limit);
    }
    let report = redrive.run_until(stop).await;
    print(&summary(&report, options.dry_run));
    if let Some(why) = &report.stopped {
        anyhow::bail!("the run ended early: {why}");
    }
    let stay = report.stayed + report.accepted_not_deleted;
    anyhow::ensure!(stay == 0, "{stay} letters stay in the queue; standard output says why");
    Ok(())
}

/// A reader that has left misses the rest: the work goes on.
fn print(line: &Value) {
    let _ = writeln!(io::stdout(), "{line}");
}

fn line(outcome: &LetterOutcome<'_>) -> Value {
    let mut line = Map::new();
    line.insert("message_id".to_owned(), outcome.message_id.into());
    if let Some(letter) = outcome.letter {
        let bytes = match &letter.payload {
            Payload::Inside(data) => data.len() as u64,
            Payload::At(location) => location.bytes,
        };
        line.extend([
            ("shard_id".to_owned(), letter.record.shard_id.as_str().into()),
            ("sequence_number".to_owned(), letter.record.sequence_number.to_string().into()),
            ("sub_sequence_number".to_owned(), letter.record.sub_sequence_number.into()),
            ("kind".to_owned(), letter.error_kind.as_str().into()),
            ("bytes".to_owned(), bytes.into()),
        ]);
    }
    let (fate, reason) = match outcome.fate {
        Fate::Accepted => ("accepted", None),
        Fate::AcceptedNotDeleted => ("accepted_not_deleted", None),
        Fate::WouldBeTried => ("would_be_tried", None),
        Fate::Duplicate => ("duplicate", None),
        Fate::NotMeant => ("not_meant", None),
        Fate::Stays(reason) => ("stays", Some(reason.to_string())),
        _ => ("unknown", None),
    };
    line.insert("fate".to_owned(), fate.into());
    line.extend(reason.map(|reason| ("reason".to_owned(), reason.into())));
    Value::Object(line)
}

fn summary(report: &RedriveReport, dry_run: bool) -> Value {
    json!({ "summary": {
        "dry_run": dry_run,
        "letters": report.letters,
        "accepted": report.accepted,
        "accepted_not_deleted": report.accepted_not_deleted,
        "would_be_tried": report.would_be_tried,
        "duplicates": report.duplicates,
        "not_meant": report.not_meant,
        "stayed": report.stayed,
        "payloads_deleted": report.blobs_deleted,
        "payloads_left": report.blobs_left,
        "stopped": report.stopped,
    }})
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    fn parse(flags: &str) -> Result<RedriveOptions, String> {
        RedriveOptions::try_parse_from(format!("redrive {flags}").split_whitespace()).map_err(|error| error.to_string())
    }

    #[test]
    fn the_command_line_is_sound() {
        RedriveOptions::command().debug_assert();
        let options = parse("--from-queue q --to-stream s --failed-from 1769860800 --limit 3 --dry-run").unwrap();
        assert_eq!(options.failed_from, Some(Timestamp::from_millis(1_769_860_800_000)));
        parse("--from-file letters.jsonl --to-stream s").unwrap();
        for (bad, named) in [
            ("--to-stream s", "--from-queue"),
            ("--from-queue q", "--to-stream"),
            ("--from-queue q --from-file f --to-stream s", "--from-file"),
            ("--from-queue q --to-stream s --failed-before yesterday", "--failed-before"),
            ("--from-queue q --to-stream s --limit 0", "--limit"),
        ] {
            let error = parse(bad).unwrap_err();
            assert!(error.contains(named), "{bad}: {error}");
        }
    }

    #[test]
    fn flags_that_no_letter_can_meet_are_refused_by_name() {
        let hash = "AB".repeat(32);
        let meant = |flags: &str| parse(&format!("--from-queue q --to-stream s {flags}")).unwrap().meant();
        assert_eq!(meant(&format!("--key-sha256 {hash}")).unwrap().key_sha256, Some(hash.to_ascii_lowercase()));
        for (flags, named) in [
            ("--kind poisn", "--kind is \"poisn\": must be one of poison, error"),
            ("--key-sha256 zz", "--key-sha256 is"),
            ("--failed-from 7 --failed-before 6", "--failed-before is 6000 ms"),
            ("--delete-payloads", "--delete-payloads means nothing without --payload-bucket"),
        ] {
            let error = meant(flags).unwrap_err().to_string();
            assert!(error.starts_with(named), "{flags}: {error}");
        }
    }
}
