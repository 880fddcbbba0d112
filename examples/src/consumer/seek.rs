//! `consumer seek`: the application begins elsewhere.

use std::io::{self, Write as _};

use clap::builder::NonEmptyStringValueParser;
use clap::{ArgAction, ArgGroup, Parser};
use kcl_core::seek::{Seek, SeekError, SeekMove, SeekTo};
use kcl_core::{ExtendedSequenceNumber, ShardId};
use serde_json::{Value, json};

use super::options::{Common, time};

/// Lets an application go on elsewhere, forwards or back, whether its processes run or not.
///
/// Each lease is moved by one write that ends its owner's term, and is logged with what it was before. Processes that run go on by themselves, a lease
/// duration later: nothing has to be restarted. What came of a shard by splits and merges is read after it, from its beginning.
///
/// Standard output is one line of JSON per lease (shard_id, before, after, instant, owner), and a last one with the sums. Exit status: 0 if all
/// leases have moved, 1 if not (make the same seek again to complete it), 2 for flags it can't use.
#[derive(Debug, Parser)]
#[command(name = "consumer seek", bin_name = "consumer seek", version, max_term_width = 100)]
#[command(group = ArgGroup::new("where").required(true).args(["to", "at_record", "after_record"]))]
pub(super) struct SeekOptions {
    /// The application
    #[arg(long, value_name = "NAME", env = "KCL_APPLICATION")]
    application: String,

    /// The stream
    #[arg(long, value_name = "NAME|ARN", env = "KCL_STREAM")]
    stream: String,

    /// Where to: trim-horizon, latest (what was not read yet is skipped), or a time as 2026-01-31T12:00:00Z or in seconds since 1970
    #[arg(long, value_name = "POSITION", value_parser = position)]
    to: Option<SeekTo>,

    /// The record that is to come next: its sequence number, or NUMBER:SUB for one of an aggregate
    #[arg(long, value_name = "NUMBER", value_parser = record, requires = "shard")]
    at_record: Option<ExtendedSequenceNumber>,

    /// The record after which to go on
    #[arg(long, value_name = "NUMBER", value_parser = record, requires = "shard")]
    after_record: Option<ExtendedSequenceNumber>,

    /// This shard only, and what came of it
    #[arg(long, value_name = "ID", value_parser = NonEmptyStringValueParser::new())]
    shard: Option<String>,

    /// Why, for the audit log
    #[arg(long, value_name = "TEXT", default_value = "")]
    reason: String,

    /// Only say what would be done; change nothing
    #[arg(long, action = ArgAction::SetTrue)]
    dry_run: bool,

    #[command(flatten)]
    pub(super) common: Common,
}

impl SeekOptions {
    fn target(&self) -> Option<SeekTo> {
        self.to.or(self.at_record.map(SeekTo::Record)).or(self.after_record.map(SeekTo::AfterRecord))
    }
}

/// Does it.
///
/// # Errors
/// If not all leases have moved.
pub(super) async fn seek(options: SeekOptions) -> anyhow::Result<()> {
    let aws = options.common.aws().await?;
    let Some(to) = options.target() else {
        anyhow::bail!("invariant: one of --to, --at-record and --after-record is demanded of the command line")
    };
    let mut seek = Seek::new(&options.application, &options.stream, to).aws_config(&aws).reason(&options.reason).dry_run(options.dry_run);
    if let Some(shard) = &options.shard {
        seek = seek.shard(ShardId::from(shard.as_str()));
    }
    let (moves, left, error) = match seek.run().await {
        Ok(report) => (report.moves, 0, None),
        Err(SeekError::Partly { done, left, source }) => {
            let words = format!("{} of {} leases have moved, make the same seek again: {source}", done.len(), done.len() + left);
            (done, left, Some(words))
        }
        Err(error) => return Err(error.into()),
    };
    moves.iter().for_each(|moved| print(&line(moved)));
    print(&json!({ "summary": { "dry_run": options.dry_run, "leases": moves.len(), "left": left } }));
    match error {
        Some(words) => Err(anyhow::Error::msg(words)),
        None => Ok(()),
    }
}

/// A reader that has left misses the rest.
fn print(line: &Value) {
    let _ = writeln!(io::stdout(), "{line}");
}

fn line(moved: &SeekMove) -> Value {
    json!({
        "shard_id": moved.shard_id.as_str(),
        "before": moved.before.map(|before| before.to_string()),
        "after": moved.after.to_string(),
        "instant": moved.instant.map(|instant| instant.as_millis()),
        "owner": moved.owner.as_ref().map(ToString::to_string),
    })
}

fn position(text: &str) -> Result<SeekTo, String> {
    match text {
        "trim-horizon" => Ok(SeekTo::TrimHorizon),
        "latest" => Ok(SeekTo::Latest),
        text => time(text).map(SeekTo::Time).map_err(|error| format!("neither trim-horizon, nor latest, nor a time: {error}")),
    }
}

fn record(text: &str) -> Result<ExtendedSequenceNumber, String> {
    let (number, sub) = text.split_once(':').unwrap_or((text, "0"));
    let number = number.parse().map_err(|error| format!("no sequence number: {error}"))?;
    let sub = sub.parse().map_err(|error| format!("no sub-sequence number: {error}"))?;
    Ok(ExtendedSequenceNumber::new(number, sub))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;
    use kcl_core::Timestamp;

    use super::*;

    fn parse(flags: &str) -> Result<SeekOptions, String> {
        SeekOptions::try_parse_from(format!("seek --application app --stream s {flags}").split_whitespace())
            .map_err(|error| error.to_string())
    }

    #[test]
    fn the_command_line_is_sound() {
        SeekOptions::command().debug_assert();
        let at = |number: u128, sub| ExtendedSequenceNumber::new(number.into(), sub);
        for (flags, to) in [
            ("--to trim-horizon", SeekTo::TrimHorizon),
            ("--to latest --shard shardId-000000000000", SeekTo::Latest),
            ("--to 2026-01-31T12:00:00Z", SeekTo::Time(Timestamp::from_millis(1_769_860_800_000))),
            ("--at-record 4957 --shard shardId-000000000000", SeekTo::Record(at(4957, 0))),
            ("--after-record 4957:3 --shard shardId-000000000000 --dry-run", SeekTo::AfterRecord(at(4957, 3))),
        ] {
            assert_eq!(parse(flags).unwrap().target(), Some(to), "{flags}");
        }
        for (bad, named) in [
            ("", "--to"),
            ("--to yesterday", "--to"),
            ("--at-record 7", "--shard"),
            ("--at-record seven --shard s", "--at-record"),
            ("--to latest --after-record 7 --shard s", "--after-record"),
        ] {
            let error = parse(bad).unwrap_err();
            assert!(error.contains(named), "{bad}: {error}");
        }
    }
}
