//! What can be asked of the quickstart on its command line.

use std::fs::OpenOptions;
use std::path::PathBuf;

use anyhow::Context as _;
use clap::Parser;

use super::source::Source;
use crate::environment::{self, Given, url};
use crate::retrieval::Retrieval;

/// Kinesis, three workers and every trouble they are made for, in about a minute, on this machine: no account, no containers.
///
/// Publishes records to a stream of several shards and consumes them with several workers; meanwhile splits a shard, merges two,
/// kills a worker, and lets one record in a thousand be poison. Then reconciles what was published with what was delivered.
///
/// Exit status: 0 if nothing is lost or out of order within a key, 1 if something is or the run failed, 2 for flags it can't use. Logs
/// go to standard error, as RUST_LOG says; without it there are none.
#[derive(Debug, Parser)]
#[command(name = "quickstart", version, max_term_width = 100, allow_negative_numbers = true)]
pub struct Options {
    /// Workers, 1 to 100; one of them is killed (the only one is replaced)
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    pub workers: u32,

    /// Shards of the stream, 1 to 1,000
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub shards: u32,

    /// Records to publish, 1 to 10,000,000 [default: 20000]
    #[arg(long, value_name = "N", conflicts_with = "input", value_parser = clap::value_parser!(u32).range(1..=10_000_000))]
    pub records: Option<u32>,

    /// How the workers read the stream
    #[arg(long, value_name = "HOW", default_value = "polling")]
    pub retrieval: Retrieval,

    /// All that is random follows from it: records, keys, which are poison, which shards are split and merged, who is killed
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub seed: u64,

    /// Publish the lines of this file instead, byte by byte; empty lines are left out
    #[arg(long, value_name = "FILE")]
    pub input: Option<PathBuf>,

    /// The lines are JSON objects: key each by this field of it, or by a field in a field, as customer.id. Without --key, and where a line
    /// has no such field, by the line's hash
    #[arg(long, value_name = "FIELD", requires = "input")]
    pub key: Option<String>,

    /// Write the figures of the reconciliation to this file too, as JSON
    #[arg(long, value_name = "FILE")]
    pub report: Option<PathBuf>,

    /// Run against this endpoint instead of embedded local AWS, e.g. http://127.0.0.1:4566
    #[arg(long, value_name = "URL", value_parser = url, conflicts_with = "aws")]
    pub endpoint_url: Option<String>,

    /// Run against real AWS, by the standard AWS environment and configuration. What the run makes it deletes at its end; AWS charges for it
    #[arg(long)]
    pub aws: bool,
}

/// Records that are published unless the user says otherwise.
const RECORDS: u32 = 20_000;

impl Options {
    /// What is to be published. Also makes sure that the report can be written.
    ///
    /// # Errors
    /// A file that can't be used, by name. Nothing was started.
    pub fn prepare(&self) -> anyhow::Result<Source> {
        if self.aws || self.endpoint_url.is_some() {
            let given = Given { endpoint: self.endpoint_url.is_some(), region: false };
            environment::check(given)?;
        }
        if let Some(report) = &self.report {
            // Better now than after a minute. An older report stays until there is a new one.
            let opened = OpenOptions::new().create(true).append(true).open(report);
            opened.with_context(|| format!("--report {} can't be written", report.display()))?;
        }
        let Some(input) = &self.input else {
            return Ok(Source::made_up(self.records.unwrap_or(RECORDS) as usize, self.seed));
        };
        let content = std::fs::read(input).with_context(|| format!("--input {} can't be read", input.display()))?;
        Source::lines(content.into(), self.key.as_deref(), self.seed).with_context(|| format!("--input {} can't be used", input.display()))
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    fn parse(flags: &str) -> Result<Options, String> {
        Options::try_parse_from(std::iter::once("quickstart").chain(flags.split_whitespace())).map_err(|error| {
            assert_eq!(error.exit_code(), 2);
            error.to_string()
        })
    }

    #[test]
    fn the_command_line_is_sound() {
        Options::command().debug_assert();
        let options = parse("").unwrap();
        assert_eq!((options.workers, options.shards, options.retrieval), (3, 4, Retrieval::Polling));
        assert_eq!(parse("--retrieval fan-out").unwrap().retrieval, Retrieval::FanOut);
        parse("--retrieval auto").unwrap();
        parse("--workers 1 --shards 1 --records 1 --seed 18446744073709551615 --endpoint-url http://127.0.0.1:4566").unwrap();
        parse("--input events.jsonl --key customer --report out.json --aws").unwrap();
    }

    #[test]
    fn what_makes_no_sense_is_refused_by_name() {
        for (flags, named) in [
            ("--workers 0", "--workers"),
            ("--shards 0", "--shards"),
            ("--records 0", "--records"),
            ("--records many", "--records"),
            ("--seed -1", "--seed"),
            ("--retrieval pull", "--retrieval"),
            ("--key customer", "--input"),
            ("--records 5 --input events.jsonl", "--input"),
            ("--aws --endpoint-url http://127.0.0.1:4566", "--endpoint-url"),
            ("--endpoint-url 127.0.0.1:4566", "http://HOST"),
            ("--endpoint-url http://", "http://HOST"),
        ] {
            let error = parse(flags).unwrap_err();
            assert!(error.contains(named), "{flags}: {error}");
        }
    }

    #[test]
    fn a_file_that_is_not_there_is_named() {
        let error = parse("--input /no/such/file.jsonl").unwrap().prepare().unwrap_err();
        assert!(format!("{error:#}").starts_with("--input /no/such/file.jsonl can't be read: "), "{error:#}");
        let error = parse("--report /no/such/directory/report.json").unwrap().prepare().unwrap_err();
        assert!(error.to_string().contains("--report /no/such/directory/report.json"), "{error}");
    }
}
