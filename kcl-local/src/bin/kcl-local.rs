//! `kcl-local`: Kinesis, DynamoDB, SQS and S3 on one loopback port, until Ctrl-C or SIGTERM.
//!
//! Standard output is one line, `kcl-local ready on http://127.0.0.1:PORT`, printed once requests are answered. All
//! else goes to standard error.

use std::io::Write as _;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::{CommandFactory as _, FromArgMatches as _, Parser};
use kcl_local::LocalAws;
use kcl_local::kinesis::KinesisConfig;
use tracing_subscriber::EnvFilter;

/// Kinesis, DynamoDB, SQS and S3 on one port of 127.0.0.1, all in memory.
///
/// Any credentials and any region will do. Logs go to standard error, as RUST_LOG says.
#[derive(Debug, Parser)]
#[command(version, max_term_width = 100)]
struct Options {
    /// Port on 127.0.0.1; 0 takes a free one
    #[arg(long, default_value_t = 4566, env = "KCL_LOCAL_PORT")]
    port: u16,

    /// Enforce the limits a second of a shard (5 reads and 2 MiB read, 1,000 records and 1 MiB written), of a
    /// subscription (2 MiB) and of a consumer (5 subscriptions begun)
    #[arg(long)]
    throttle: bool,

    /// How long a shard iterator can be used
    #[arg(long, value_name = "SECONDS", default_value_t = 300)]
    iterator_ttl: u64,

    /// How long a subscription of an enhanced fan-out consumer lasts
    #[arg(long, value_name = "SECONDS", default_value_t = 300)]
    subscription_ttl: u64,

    /// How long streams take to be created, resharded or deleted, and consumers to be registered or deregistered
    #[arg(long, value_name = "MILLISECONDS", default_value_t = 0)]
    transition: u64,
}

impl Options {
    fn kinesis(&self) -> KinesisConfig {
        KinesisConfig {
            enforce_read_limits: self.throttle,
            enforce_write_limits: self.throttle,
            iterator_life_ms: self.iterator_ttl.saturating_mul(1000),
            subscription_life_ms: self.subscription_ttl.saturating_mul(1000),
            creating_ms: self.transition,
            updating_ms: self.transition,
            deleting_ms: self.transition,
            consumer_creating_ms: self.transition,
            consumer_deleting_ms: self.transition,
            ..KinesisConfig::default()
        }
    }
}

/// Reads the command line. A variable that is set and empty counts as not set.
fn parse() -> Result<Options, clap::Error> {
    let command = Options::command().mut_args(|argument| {
        let is_empty = |name| std::env::var_os(name).is_some_and(|value| value.is_empty());
        let empty = argument.get_env().is_some_and(is_empty);
        if empty { argument.env(None::<&str>) } else { argument }
    });
    Options::from_arg_matches(&command.try_get_matches()?)
}

fn main() -> ExitCode {
    let options = parse().unwrap_or_else(|error| error.exit());
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("warn"));
    tracing_subscriber::fmt().with_writer(std::io::stderr).with_env_filter(filter).init();
    match run(&options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("kcl-local: {error:#}");
            ExitCode::FAILURE
        }
    }
}

#[tokio::main]
async fn run(options: &Options) -> anyhow::Result<()> {
    // Before the port is open: a signal sent at the sight of the line must already be heard.
    let stop = stop_signal().context("can't listen for signals")?;
    let aws = LocalAws::builder().port(options.port).kinesis(options.kinesis()).start().await?;
    let mut out = std::io::stdout().lock();
    // Whoever started this may not care for the line and have closed the pipe: no reason to stop.
    let _ = writeln!(out, "kcl-local ready on {}", aws.endpoint_url()).and_then(|()| out.flush());
    drop(out);
    stop.await;
    aws.shutdown().await;
    Ok(())
}

/// Listens from now on; the future ends at Ctrl-C or SIGTERM.
#[cfg(unix)]
fn stop_signal() -> std::io::Result<impl Future<Output = ()>> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    Ok(async move {
        tokio::select! {
            biased;
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}

/// Listens from now on; the future ends at Ctrl-C.
#[cfg(not(unix))]
fn stop_signal() -> std::io::Result<impl Future<Output = ()>> {
    Ok(async {
        // An error means that the signal can't be heard; then only killing the process stops it.
        if tokio::signal::ctrl_c().await.is_err() {
            std::future::pending::<()>().await;
        }
    })
}
