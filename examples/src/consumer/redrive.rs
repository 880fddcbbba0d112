//! `consumer redrive`: dead letters back into a stream.

use std::ffi::OsString;
use std::io::{self, Write as _};
use std::path::PathBuf;

use clap::builder::NonEmptyStringValueParser;
use clap::error::ErrorKind;
use clap::{ArgAction, CommandFactory as _, Parser};
use kcl_core::dead_letter::{FailureKind, Payload};
use kcl_core::redrive::{Fate, FileLetters, Filter, LetterOutcome, Redrive, RedriveReport, SqsLetters, StreamTarget};
use kcl_core::{S3BlobStore, Timestamp, shutdown_signal};
use serde_json::{Map, Value, json};

use super::options::{Common, time};

/// Puts dead letters back into a stream: under their partition keys, in order within a key, each record once.
///
/// A letter is deleted only after the stream has accepted its record. One that can't be read or put back stays in the queue. Records come as
/// new ones: every application that reads the stream sees them. Letters of another stream, or of an earlier
/// one of the same name, stay unless --from-other-streams is given.
///
/// Standard output is one line of JSON per letter (message_id, shard_id, sequence_number, sub_sequence_number, kind, bytes, fate, reason), and a last one with
/// the sums. No payload and no partition key is printed. SIGTERM and Ctrl-C end it in good order. Exit status: 0 if all letters that were
/// meant are back; 1 if one of them stays, the run ended early or was refused, or letters are invisible in the
/// queue, where they may be for ten minutes after a run that was killed; 2 for flags it can't use.
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

    /// Put back letters of other streams too, and of earlier streams of the same name
    #[arg(long, action = ArgAction::SetTrue)]
    from_other_streams: bool,

    /// The S3 bucket with payloads that were too large for the queue
    #[arg(long, value_name = "NAME", env = "KCL_PAYLOAD_BUCKET", value_parser = NonEmptyStringValueParser::new())]
    payload_bucket: Option<String>,

    /// Only letters of this shard
    #[arg(long, value_name = "ID", value_parser = NonEmptyStringValueParser::new())]
    shard: Option<String>,

    /// Only letters with this kind of error: poison, error, panic, overrun, process_death, broken_aggregate, follows
    #[arg(long, value_name = "KIND")]
    kind: Option<FailureKind>,

    /// Only letters that this application sent
    #[arg(long, value_name = "NAME", value_parser = NonEmptyStringValueParser::new())]
    application: Option<String>,

    /// Only letters that failed last at this time or later, as 2026-01-31T12:00:00Z or in seconds since 1970
    #[arg(long, value_name = "TIME", value_parser = time)]
    failed_from: Option<Timestamp>,

    /// Only letters that failed last before this time
    #[arg(long, value_name = "TIME", value_parser = time)]
    failed_before: Option<Timestamp>,

    /// Only letters whose partition key has this SHA-256 (printf %s KEY | sha256sum)
    #[arg(long, value_name = "HEX", value_parser = sha256)]
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
    /// Reads the command line.
    ///
    /// # Errors
    /// A flag can't be used, alone or with another one.
    pub(super) fn from_arguments(arguments: impl IntoIterator<Item = impl Into<OsString> + Clone>) -> Result<Self, clap::Error> {
        let options = Self::try_parse_from(arguments)?;
        if let (Some(from), Some(before)) = (options.failed_from, options.failed_before)
            && from >= before
        {
            let rule = "--failed-from must be before --failed-before: no letter has failed between the two";
            return Err(Self::command().error(ErrorKind::ValueValidation, rule));
        }
        if options.delete_payloads && options.payload_bucket.is_none() {
            let rule = "--delete-payloads means nothing without --payload-bucket";
            return Err(Self::command().error(ErrorKind::MissingRequiredArgument, rule));
        }
        Ok(options)
    }
}

/// A SHA-256 in lower case.
fn sha256(text: &str) -> Result<String, String> {
    let is_one = text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    if is_one { Ok(text.to_ascii_lowercase()) } else { Err("a SHA-256 has 64 hexadecimal digits".to_owned()) }
}

/// Does it.
///
/// # Errors
/// If the run was refused or ended early, a letter that was meant stays, or letters are invisible.
pub(super) async fn redrive(options: RedriveOptions) -> anyhow::Result<()> {
    let stop = shutdown_signal();
    let aws = options.common.aws().await?;
    let target = StreamTarget::new(&aws, &options.to_stream).from_other_streams(options.from_other_streams);
    let redrive = match (&options.from_queue, &options.from_file) {
        (Some(queue), _) => Redrive::new(SqsLetters::new(&aws, queue), target),
        (None, Some(path)) => Redrive::new(FileLetters::new(path), target),
        (None, None) => anyhow::bail!("invariant: one of --from-queue and --from-file is demanded of the command line"),
    };
    let meant = Filter {
        shard_id: options.shard,
        kind: options.kind,
        application: options.application,
        failed_from: options.failed_from,
        failed_before: options.failed_before,
        key_sha256: options.key_sha256,
    };
    let mut redrive =
        redrive.only(meant).dry_run(options.dry_run).delete_blobs(options.delete_payloads).observe(|outcome| print(&line(outcome)));
    if let Some(bucket) = &options.payload_bucket {
        redrive = redrive.blob_store(S3BlobStore::new(&aws, bucket));
    }
    if let Some(limit) = options.limit {
        redrive = redrive.limit(limit);
    }
    let report = redrive.run_until(stop).await?;
    print(&summary(&report, options.dry_run));
    if let Some(why) = &report.stopped {
        anyhow::bail!("the run ended early: {why}");
    }
    let stay = report.stayed + report.accepted_not_deleted;
    anyhow::ensure!(stay == 0, "{stay} letters stay in the queue; standard output says why");
    let invisible = report.invisible.unwrap_or_default();
    anyhow::ensure!(
        invisible == 0,
        "{invisible} letters are invisible in the queue and were not looked at: another reader holds them, or a run that was killed did; run it \
         again when they are visible, which takes up to ten minutes"
    );
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
        "invisible": report.invisible,
        "stopped": report.stopped,
    }})
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(flags: &str) -> Result<RedriveOptions, String> {
        RedriveOptions::from_arguments(format!("redrive {flags}").split_whitespace()).map_err(|error| {
            assert_eq!(error.exit_code(), 2);
            error.to_string()
        })
    }

    #[test]
    fn the_command_line_is_sound() {
        RedriveOptions::command().debug_assert();
        let options =
            parse("--from-queue q --to-stream s --failed-from 1769860800 --limit 3 --dry-run --kind process_death --from-other-streams")
                .unwrap();
        assert_eq!(options.failed_from, Some(Timestamp::from_millis(1_769_860_800_000)));
        assert_eq!(options.kind, Some(FailureKind::ProcessDeath));
        assert!(options.from_other_streams);
        let hash = "AB".repeat(32);
        let options = parse(&format!("--from-file letters.jsonl --to-stream s --key-sha256 {hash}")).unwrap();
        assert_eq!(options.key_sha256, Some(hash.to_lowercase()));
        for (bad, named) in [
            ("--to-stream s", "--from-queue"),
            ("--from-queue q", "--to-stream"),
            ("--from-queue q --from-file f --to-stream s", "--from-file"),
            ("--from-queue q --to-stream s --failed-before yesterday", "--failed-before"),
            ("--from-queue q --to-stream s --failed-from 2000 --failed-before 1000", "--failed-from must be before --failed-before"),
            ("--from-queue q --to-stream s --failed-from 1000 --failed-before 1000", "--failed-from must be before --failed-before"),
            ("--from-queue q --to-stream s --kind poisn", "--kind"),
            ("--from-queue q --to-stream s --kind poisn", "poison, error, panic, overrun, process_death, broken_aggregate, follows"),
            ("--from-queue q --to-stream s --key-sha256 zz", "--key-sha256"),
            ("--from-queue q --to-stream s --limit 0", "--limit"),
            ("--from-queue q --to-stream s --shard=", "--shard"),
            ("--from-queue q --to-stream s --application=", "--application"),
        ] {
            let error = parse(bad).unwrap_err();
            assert!(error.contains(named), "{bad}: {error}");
        }
    }
}
