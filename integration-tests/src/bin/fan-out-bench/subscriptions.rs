//! What many subscriptions cost one worker: the memory of this process, which holds nothing else, when all live and after each has carried a record.

use std::collections::BTreeSet;
use std::fmt;
use std::process::Stdio;
use std::time::Duration;

use anyhow::Context as _;
use aws_sdk_kinesis::primitives::Blob;
use clap::ValueEnum as _;
use serde::{Deserialize, Serialize};
use tokio::process::Command;
use tokio::time::Instant;

use crate::bench::{Bench, Protocol, STREAM, make_stream};
use crate::server::Server;

/// Memory in MiB, time in seconds.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Figures {
    protocol: Protocol,
    subscriptions: u32,
    subscribed_after: f64,
    resident_before: f64,
    resident_idle: f64,
    resident_after_records: f64,
}

impl fmt::Display for Figures {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { protocol, subscriptions, subscribed_after, resident_before, resident_idle, resident_after_records } = self;
        write!(
            formatter,
            "  {protocol:<9} {subscriptions} subscriptions after {subscribed_after:.1} s: resident {resident_idle:.1} MiB, {resident_after_records:.1} MiB after a \
             record of 10 kB on each (before the worker {resident_before:.1} MiB)"
        )
    }
}

/// The same in a process of its own: one that has done other things already holds on to memory that it has given back.
pub(crate) async fn measure_apart(subscriptions: u32, protocol: Protocol) -> anyhow::Result<Figures> {
    let program = std::env::current_exe().context("this program's own file is not known")?;
    let protocol = protocol.to_possible_value().context("every protocol has a name")?;
    let mut process = Command::new(program);
    process.args(["--subscriptions", &subscriptions.to_string(), "subscribe", protocol.get_name()]);
    let output = process.stderr(Stdio::inherit()).kill_on_drop(true).output().await?;
    anyhow::ensure!(output.status.success(), "the process with the subscriptions failed: {}", output.status);
    Ok(serde_json::from_slice(&output.stdout)?)
}

pub(crate) async fn measure(subscriptions: u32, protocol: Protocol) -> anyhow::Result<Figures> {
    let server = Server::start().await?;
    let kinesis = aws_sdk_kinesis::Client::new(&server.aws);
    make_stream(&kinesis, subscriptions).await?;
    let resident_before = resident()?;
    let began = Instant::now();
    let mut bench = Bench::start(&server.aws, protocol).await?;
    bench.subscribed(subscriptions).await?;
    let subscribed_after = began.elapsed().as_secs_f64();
    let resident_idle = resident()?;

    let mut sent = BTreeSet::new();
    let width = u128::MAX / u128::from(subscriptions);
    for shard in 0..subscriptions {
        // The middle of the shard's range.
        let hash_key = (width * u128::from(shard) + width / 2).to_string();
        let payload = format!("{shard:010000}");
        let put = kinesis.put_record().stream_name(STREAM).partition_key("key").explicit_hash_key(hash_key);
        put.data(Blob::new(payload.as_bytes())).send().await?;
        sent.insert(payload);
    }
    while !sent.is_empty() {
        let received = tokio::time::timeout(Duration::from_secs(30), bench.processed.recv()).await;
        let (payload, _) =
            received.with_context(|| format!("{} subscriptions carried nothing", sent.len()))?.context("the worker is gone")?;
        sent.remove(std::str::from_utf8(&payload)?);
    }
    let resident_after_records = resident()?;
    bench.stop().await?;
    Ok(Figures { protocol, subscriptions, subscribed_after, resident_before, resident_idle, resident_after_records })
}

/// The resident memory of this process, in MiB.
fn resident() -> anyhow::Result<f64> {
    let status = std::fs::read_to_string("/proc/self/status").context("resident memory is read from Linux' /proc")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    let kib: f64 = line.trim().trim_end_matches(" kB").parse().context("VmRSS is no number")?;
    Ok(kib / 1024.0)
}
