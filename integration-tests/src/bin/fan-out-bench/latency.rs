//! How soon a record is processed that was put on an idle shard.

use std::fmt;
use std::time::Duration;

use anyhow::Context as _;
use aws_sdk_kinesis::primitives::Blob;
use kcl_core::Entropy;
use serde::Serialize;
use tokio::time::Instant;

use crate::bench::{Bench, Protocol, STREAM, make_stream};
use crate::server::Server;

const SHORTEST_PAUSE: Duration = Duration::from_millis(5);
const LONGEST_PAUSE: Duration = Duration::from_millis(15);

/// Of how many records, and how soon.
#[derive(Debug, Serialize)]
pub(crate) struct Figures {
    protocol: Protocol,
    records: usize,
    /// From PutRecord's answer on. A record may be pushed before its put is answered: that counts as nothing.
    from_answer: Spread,
    /// From PutRecord's request on.
    from_request: Spread,
}

/// In milliseconds.
#[derive(Debug, Serialize)]
struct Spread {
    median: f64,
    p90: f64,
    p99: f64,
    max: f64,
}

impl Spread {
    fn of(mut millis: Vec<f64>) -> Self {
        millis.sort_by(f64::total_cmp);
        let at = |share: usize| millis[(millis.len() * share / 100).min(millis.len() - 1)];
        Self { median: at(50), p90: at(90), p99: at(99), max: at(100) }
    }
}

impl fmt::Display for Spread {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { median, p90, p99, max } = self;
        write!(formatter, "median {median:.2} ms, p90 {p90:.2} ms, p99 {p99:.2} ms, max {max:.2} ms")
    }
}

impl fmt::Display for Figures {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { protocol, records, from_answer, from_request } = self;
        writeln!(formatter, "  {protocol:<9} {records} records, from the put's answer on:  {from_answer}")?;
        write!(formatter, "  {:<9} {records} records, from the put's request on: {from_request}", "")
    }
}

pub(crate) async fn measure(records: u32, seed: u64, protocol: Protocol) -> anyhow::Result<Figures> {
    let server = Server::start().await?;
    let kinesis = aws_sdk_kinesis::Client::new(&server.aws);
    make_stream(&kinesis, 1).await?;
    let mut bench = Bench::start(&server.aws, protocol).await?;
    bench.subscribed(1).await?;
    let pauses = Entropy::from_seed(seed);
    let (mut from_answer, mut from_request) = (Vec::new(), Vec::new());
    // The first is for warmth: connections, and code that was never run.
    for number in 0..=records {
        tokio::time::sleep(pauses.between(SHORTEST_PAUSE, LONGEST_PAUSE)).await;
        let data = number.to_string();
        let asked = Instant::now();
        kinesis.put_record().stream_name(STREAM).partition_key("key").data(Blob::new(data.as_bytes())).send().await?;
        let answered = Instant::now();
        let received = tokio::time::timeout(Duration::from_secs(10), bench.processed.recv()).await;
        let (payload, at) = received.context("a record was not processed within ten seconds")?.context("the worker is gone")?;
        anyhow::ensure!(payload == data, "another record than the one that was put");
        if number > 0 {
            from_answer.push(at.saturating_duration_since(answered).as_secs_f64() * 1000.0);
            from_request.push(at.saturating_duration_since(asked).as_secs_f64() * 1000.0);
        }
    }
    bench.stop().await?;
    Ok(Figures { protocol, records: from_answer.len(), from_answer: Spread::of(from_answer), from_request: Spread::of(from_request) })
}
