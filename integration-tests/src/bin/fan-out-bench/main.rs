//! Measures enhanced fan-out against a local server in a process of its own: how soon a record is processed, and what many
//! subscriptions cost.
//!
//! | part | owns |
//! |---|---|
//! | `server` | the server's process |
//! | `bench` | a worker that is measured, and what is known of its subscriptions |
//! | `latency` | from PutRecord's answer to `process_records`, on an idle shard |
//! | `subscriptions` | many subscriptions in one worker, and the memory of its process |

mod bench;
mod latency;
mod server;
mod subscriptions;

use std::path::PathBuf;

use anyhow::Context as _;
use clap::{Parser, Subcommand};
use serde::Serialize;

/// Latency and memory of enhanced fan-out, against a local server in another process.
///
/// Run it as a release build on a quiet machine. What it measures is this framework and the local server, on one machine: over the
/// network of a real region the service itself takes about 70 ms.
#[derive(Debug, Parser)]
#[command(name = "fan-out-bench", version, max_term_width = 100)]
struct Options {
    /// Records put one by one on an idle shard, for the latency
    #[arg(long, value_name = "N", default_value_t = 2_000, value_parser = clap::value_parser!(u32).range(1..))]
    records: u32,

    /// Subscriptions of one worker, for the memory
    #[arg(long, value_name = "N", default_value_t = 256, value_parser = clap::value_parser!(u32).range(1..=1000))]
    subscriptions: u32,

    /// Seeds the pauses between puts
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,

    /// Write the figures to this file too, as JSON
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,

    #[command(subcommand)]
    role: Option<Role>,
}

#[derive(Debug, Subcommand)]
enum Role {
    /// The server's process; ends with its standard input
    #[command(hide = true)]
    Serve,
    /// A process that has nothing but subscriptions in its memory; its figures go to its standard output
    #[command(hide = true)]
    Subscribe { protocol: bench::Protocol },
}

#[derive(Debug, Serialize)]
struct Report {
    latency: Vec<latency::Figures>,
    subscriptions: Vec<subscriptions::Figures>,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let options = Options::parse();
    match options.role {
        Some(Role::Serve) => return server::serve().await,
        Some(Role::Subscribe { protocol }) => {
            let figures = subscriptions::measure(options.subscriptions, protocol).await?;
            println!("{}", serde_json::to_string(&figures)?);
            return Ok(());
        }
        None => {}
    }
    let mut report = Report { latency: Vec::new(), subscriptions: Vec::new() };
    println!("memory of a worker with {} subscriptions (limit 100 MiB)", options.subscriptions);
    for protocol in [bench::Protocol::Http1, bench::Protocol::Http2] {
        let figures = subscriptions::measure_apart(options.subscriptions, protocol).await?;
        println!("{figures}");
        report.subscriptions.push(figures);
    }
    println!("to process_records, idle shard (limits, from PutRecord's answer on: median 5 ms, p99 25 ms)");
    for protocol in [bench::Protocol::Http1, bench::Protocol::Http2] {
        let figures = latency::measure(options.records, options.seed, protocol).await?;
        println!("{figures}");
        report.latency.push(figures);
    }
    if let Some(path) = &options.report {
        let json = serde_json::to_string_pretty(&report)?;
        std::fs::write(path, json + "\n").with_context(|| format!("--report {} can't be written", path.display()))?;
    }
    Ok(())
}
