//! How fast aggregates are taken apart on one core: `cargo run --release -p kcl-aggregation --example throughput`
//!
//! First single aggregates, part by part; then whole answers of `GetRecords`: their digests, and all, each for itself and side by side.
//!
//! GB are 10^9 bytes of payload. Each figure is the best of many short runs: what the core does when nobody else uses it; those of a
//! line take turns. The ratio is of the two medians before it.

use std::hint::black_box;
use std::time::{Duration, Instant};

use bytes::Bytes;
use kcl_aggregation::{Aggregate, Aggregator, Disaggregated, Envelope, Rules, disaggregate, disaggregate_all, intact};

const RUNS: usize = 40;
const RUN: Duration = Duration::from_millis(20);

fn main() {
    single_aggregates();
    println!();
    answers();
}

fn single_aggregates() {
    let rules = Rules { max_sub_records: usize::MAX, ..Rules::default() };
    let half = 0..=u128::MAX / 2;
    println!("{:<34} {:>10} {:>12} {:>12} {:>12} {:>12}", "aggregate", "bytes", "digest", "check+walk", "whole", "with range");
    for (records, data_len, keys) in
        [(100, 20, 100), (100, 200, 100), (100, 200, 5), (100, 1_000, 100), (1_000, 1_000, 1_000), (10, 100_000, 10), (1_700_000, 0, 1)]
    {
        let payload = aggregate(records, data_len, keys);
        let message = Envelope::find(&payload).expect("just packed").message();
        let [digest, walk_only, whole, with_range] = rates(
            payload.len(),
            [
                &|| usize::from(Envelope::find(black_box(&payload)).is_some_and(|envelope| envelope.is_intact())),
                &|| walk(Aggregate::open(black_box(&message).clone(), None, &rules).expect("just packed")),
                &|| take_apart(disaggregate(black_box(&payload), None, &rules)),
                &|| take_apart(disaggregate(black_box(&payload), Some(&half), &rules)),
            ],
        )
        .map(|rate| rate.best);
        let name = format!("{records} records of {data_len} B, {keys} keys");
        println!("{name:<34} {:>10} {digest:>7.2} GB/s {walk_only:>7.2} GB/s {whole:>7.2} GB/s {with_range:>7.2} GB/s", payload.len());
    }
}

fn answers() {
    let rules = Rules::default();
    let half = 0..=u128::MAX / 2;
    let columns = ["digests", "side by side", "one by one", "side by side", "ratio", "with range"];
    println!("{:<34} {:>10} {}", "answer", "bytes", columns.map(|column| format!("{column:>12}")).join(" "));
    let many = |times, records, data_len, keys| vec![aggregate(records, data_len, keys); times].into_iter().map(own).collect::<Vec<_>>();
    for (name, payloads) in [
        ("40 of 50 x 1000 B", many(40, 50, 1_000, 50)),
        ("40 of 220 x 200 B", many(40, 220, 200, 220)),
        ("40 of 220 x 200 B, 5 keys", many(40, 220, 200, 5)),
        ("200 of 10 x 1000 B", many(200, 10, 1_000, 10)),
        ("200 of 45 x 200 B", many(200, 45, 200, 45)),
        ("10000 of 4 x 200 B", many(10_000, 4, 200, 4)),
        ("100 of mixed lengths", mixed(100)),
        ("12 of mixed lengths", mixed(12)),
        ("2 of 50 x 1000 B", many(2, 50, 1_000, 50)),
        ("1 of 50 x 1000 B", many(1, 50, 1_000, 50)),
        ("10000 of 1000 B, not aggregated", vec![Bytes::from(vec![7; 1_000]); 10_000]),
    ] {
        let bytes = payloads.iter().map(Bytes::len).sum();
        let [alone, side_by_side, one_by_one, whole, with_range] = rates(
            bytes,
            [
                &|| payloads.iter().filter_map(Envelope::find).filter(Envelope::is_intact).count(),
                &|| intact(black_box(&payloads)).len(),
                &|| payloads.iter().map(|payload| take_apart(disaggregate(payload, None, &rules))).sum(),
                &|| disaggregate_all(black_box(&payloads).iter().cloned(), None, &rules).map(take_apart).sum(),
                &|| disaggregate_all(black_box(&payloads).iter().cloned(), Some(&half), &rules).map(take_apart).sum(),
            ],
        );
        println!(
            "{name:<34} {bytes:>10} {:>7.2} GB/s {:>7.2} GB/s {:>7.2} GB/s {:>7.2} GB/s {:>10.2} x {:>7.2} GB/s",
            alone.best,
            side_by_side.best,
            one_by_one.best,
            whole.best,
            whole.median / one_by_one.median,
            with_range.best
        );
    }
}

/// An answer's payloads don't share their memory.
fn own(payload: Bytes) -> Bytes {
    Bytes::copy_from_slice(&payload)
}

/// Aggregates of 0.3 to 300 kB, as many of each magnitude, of records of 20 to 2000 B.
fn mixed(times: usize) -> Vec<Bytes> {
    let mut random = fastrand::Rng::with_seed(11);
    let mut next = || {
        let data_len = (20.0 * 100_f64.powf(random.f64())) as usize;
        let len = 300.0 * 1_000_f64.powf(random.f64());
        let records = (len / (data_len + 30) as f64).ceil() as usize;
        aggregate(records, data_len, records)
    };
    (0..times).map(|_| next()).collect()
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
        Disaggregated::NotAggregated => 1,
        Disaggregated::Broken(_) => unreachable!("just packed"),
    }
}

/// Everything that a consumer touches of each sub-record but the payload's bytes.
fn walk(aggregate: Aggregate) -> usize {
    aggregate.into_iter().map(|sub_record| black_box(sub_record).data.len()).sum()
}

/// Billions of bytes of payload per second.
struct Rate {
    best: f64,
    median: f64,
}

/// How fast each of some works on `len` bytes is; they take turns.
#[expect(clippy::disallowed_methods, reason = "how long the work itself takes")]
fn rates<const WORKS: usize>(len: usize, works: [&dyn Fn() -> usize; WORKS]) -> [Rate; WORKS] {
    let run = |work: &dyn Fn() -> usize| {
        let (began, mut bytes) = (Instant::now(), 0);
        while began.elapsed() < RUN {
            black_box(work());
            bytes += len;
        }
        bytes as f64 / began.elapsed().as_secs_f64() / 1e9
    };
    let mut measured = [const { Vec::new() }; WORKS];
    for _ in 0..RUNS {
        for (measured, work) in measured.iter_mut().zip(works) {
            measured.push(run(work));
        }
    }
    measured.map(|mut rates| {
        rates.sort_by(f64::total_cmp);
        Rate { best: rates[rates.len() - 1], median: rates[rates.len() / 2] }
    })
}
