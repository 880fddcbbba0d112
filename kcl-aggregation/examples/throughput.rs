//! How fast aggregates are taken apart on one core: `cargo run --release -p kcl-aggregation --example throughput`
//!
//! GB are 10^9 bytes of aggregated payload. Each figure is the best of many short runs: what the core does when nobody else uses it.

use std::hint::black_box;
use std::time::{Duration, Instant};

use bytes::Bytes;
use kcl_aggregation::{Aggregate, Aggregator, Disaggregated, Envelope, Rules, disaggregate};

const RUNS: usize = 40;
const RUN: Duration = Duration::from_millis(20);

fn main() {
    let rules = Rules { max_sub_records: usize::MAX, ..Rules::default() };
    let half = 0..=u128::MAX / 2;
    println!("{:<34} {:>10} {:>12} {:>12} {:>12} {:>12}", "aggregate", "bytes", "digest", "check+walk", "whole", "with range");
    for (records, data_len, keys) in
        [(100, 20, 100), (100, 200, 100), (100, 200, 5), (100, 1_000, 100), (1_000, 1_000, 1_000), (10, 100_000, 10), (1_700_000, 0, 1)]
    {
        let payload = aggregate(records, data_len, keys);
        let message = Envelope::find(&payload).expect("just packed").message();
        let name = format!("{records} records of {data_len} B, {keys} keys");
        let digest = rate(&payload, |payload| usize::from(Envelope::find(payload).is_some_and(|envelope| envelope.is_intact())));
        let walk_only = rate(&payload, |_| walk(Aggregate::open(message.clone(), None, &rules).expect("just packed")));
        let whole = rate(&payload, |payload| take_apart(disaggregate(payload, None, &rules)));
        let with_range = rate(&payload, |payload| take_apart(disaggregate(payload, Some(&half), &rules)));
        println!("{name:<34} {:>10} {digest:>7.2} GB/s {walk_only:>7.2} GB/s {whole:>7.2} GB/s {with_range:>7.2} GB/s", payload.len());
    }
}

fn aggregate(records: usize, data_len: usize, keys: usize) -> Bytes {
    let mut random = fastrand::Rng::with_seed(7);
    let mut aggregator = Aggregator::new(usize::MAX);
    for index in 0..records {
        let data: Vec<u8> = std::iter::repeat_with(|| random.u8(..)).take(data_len).collect();
        aggregator.add(&format!("customer-{:08}", index % keys), None, data).expect("within the limits");
    }
    aggregator.finish().expect("records were added").payload
}

fn take_apart(disaggregated: Disaggregated) -> usize {
    match disaggregated {
        Disaggregated::Aggregate(aggregate) => walk(aggregate),
        Disaggregated::NotAggregated | Disaggregated::Broken(_) => unreachable!("just packed"),
    }
}

/// Everything that a consumer touches of each sub-record but the payload's bytes.
fn walk(aggregate: Aggregate) -> usize {
    aggregate.into_iter().map(|sub_record| black_box(sub_record).data.len()).sum()
}

/// Billions of bytes of payload per second.
#[expect(clippy::disallowed_methods, reason = "how long the work itself takes")]
fn rate(payload: &Bytes, work: impl Fn(&Bytes) -> usize) -> f64 {
    let run = || {
        let (began, mut bytes) = (Instant::now(), 0);
        while began.elapsed() < RUN {
            black_box(work(black_box(payload)));
            bytes += payload.len();
        }
        bytes as f64 / began.elapsed().as_secs_f64() / 1e9
    };
    (0..RUNS).map(|_| run()).fold(0.0, f64::max)
}
