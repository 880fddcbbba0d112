//! The log of outages: what stands in it of each service, however many shards there are.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use kcl_aggregation::envelope::MAGIC;
use kcl_core::test_util::{Event, FaultRates, Service};
use kcl_core::{Outcome, ProcessError, ProcessResult, RecordBatch, RecordProcessor, RetrievalMode, ShardContext, async_trait};
use kcl_lease::TableError;
use md5::{Digest as _, Md5};
use tokio::time::sleep;

use super::fleet::{APPLICATION, Fleet, STREAM, until};
use super::log::Log;
use super::struck_table::StruckTable;

const SHARDS: u32 = 40;
const BEGAN: &str = "calls fail and are repeated";
const GOES_ON: &str = "calls still fail";
const OVER: &str = "calls are answered again";

/// The number after this name in a line.
fn number(line: &str, name: &str) -> u64 {
    let digits = line.split(&format!("{name}=")).nth(1).unwrap_or_else(|| panic!("{name} in {line}"));
    digits.chars().take_while(char::is_ascii_digit).collect::<String>().parse().unwrap_or_else(|_| panic!("{name} in {line}"))
}

/// A worker that reads all shards, and what it logs from now on.
async fn reading(seed: u64, mode: RetrievalMode) -> (Fleet, Log) {
    let mut fleet = Fleet::new(seed, SHARDS);
    fleet.start_with(1, |builder| builder.retrieval(mode)).await;
    until("all shards", || fleet.running[0].1.status().shards.len() == SHARDS as usize).await;
    sleep(Duration::from_secs(20)).await;
    (fleet, Log::listen())
}

#[tokio::test(start_paused = true)]
async fn an_outage_of_kinesis_is_one_account_of_all_shards() {
    for (seed, seconds) in [(1, 15), (2, 70), (3, 200)] {
        let (mut fleet, log) = reading(seed, RetrievalMode::Polling).await;
        let calls = Arc::new(AtomicU64::new(0));
        let counted = Arc::clone(&calls);
        fleet.aws.observe(move |event| {
            if let Event::Sent { service: Service::Stream, fault: Some(_), .. } = event {
                counted.fetch_add(1, Ordering::SeqCst);
            }
        });
        let end = fleet.aws.elapsed() + Duration::from_secs(seconds);
        fleet.aws.faults().outage(Service::Stream, end);
        sleep(Duration::from_secs(seconds + 60)).await;
        let [began, goes_on, over] = [BEGAN, GOES_ON, OVER].map(|words| log.lines(words));
        let case = format!("{seconds} s: {began:?} {goes_on:?} {over:?}");
        assert_eq!((began.len(), goes_on.len() as u64, over.len()), (1, seconds / 60, 1), "{case}");
        assert_eq!(log.lines("WARN").len(), 1 + goes_on.len(), "{:?}", log.lines("WARN"));
        assert!(began[0].contains("Kinesis") && began[0].contains("no answer"), "{case}");
        // The shards, and the comparison of shards and leases if it was made meanwhile.
        let shards = u64::from(SHARDS);
        assert!((shards..=shards + 1).contains(&number(&over[0], "affected")), "{case}");
        assert_eq!(number(&over[0], "failures"), calls.load(Ordering::SeqCst), "{case}");
        assert!(number(&over[0], "duration").abs_diff(seconds) <= 6, "{case}");
        fleet.stop().await;
    }
}

#[tokio::test(start_paused = true)]
async fn an_outage_of_kinesis_is_two_accounts_where_shards_are_subscribed_to() {
    for (seed, seconds) in [(1, 70), (2, 200)] {
        let (mut fleet, log) = reading(seed, RetrievalMode::FanOut).await;
        let end = fleet.aws.elapsed() + Duration::from_secs(seconds);
        fleet.aws.faults().outage(Service::Stream, end);
        sleep(Duration::from_secs(seconds + 120)).await;
        for service in ["\"Kinesis\"", "\"Kinesis enhanced fan-out\""] {
            let of = |words| log.lines(words).into_iter().filter(|line| line.contains(service)).collect::<Vec<_>>();
            let (began, over) = (of(BEGAN), of(OVER));
            assert_eq!((began.len(), over.len()), (1, 1), "{seconds} s: {began:?} {over:?}");
        }
        assert!(log.lines("WARN").len() as u64 <= 2 + 2 * (seconds / 60 + 1), "{:?}", log.lines("WARN"));
        fleet.stop().await;
    }
}

#[tokio::test(start_paused = true)]
async fn throttled_reads_are_one_account_and_a_single_one_is_none() {
    let (mut fleet, log) = reading(1, RetrievalMode::Polling).await;
    fleet.aws.faults().set_rates_of(Service::Stream, FaultRates { throttled: 1.0, ..FaultRates::default() });
    sleep(Duration::from_secs(45)).await;
    fleet.aws.faults().clear();
    sleep(Duration::from_secs(30)).await;
    let [began, over] = [BEGAN, OVER].map(|words| log.lines(words));
    assert_eq!((began.len(), log.lines("WARN").len(), over.len()), (1, 1, 1), "{began:?} {over:?}");
    assert!(began[0].contains("throttled"), "{began:?}");
    fleet.stop().await;
}

/// Calls each record poison.
struct Poison;

#[async_trait]
impl RecordProcessor for Poison {
    async fn process_records(&mut self, batch: &RecordBatch, _: &ShardContext) -> ProcessResult {
        let first = &batch.records()[0];
        Ok(Outcome::failed_from(first, ProcessError::poison("bad")))
    }
}

#[tokio::test(start_paused = true)]
async fn the_end_of_an_outage_of_the_dead_letter_queue_is_logged_though_nobody_calls_it_again() {
    for seed in 0..3 {
        let mut fleet = Fleet::new(seed, 1);
        let queue = fleet.aws.host("queue").dead_letter_queue("letters");
        fleet.start_with(1, |builder| builder.dead_letter_queue(queue.clone()).processor(|_: &ShardContext| Poison)).await;
        sleep(Duration::from_secs(20)).await;
        let log = Log::listen();
        let end = fleet.aws.elapsed() + Duration::from_secs(90);
        fleet.aws.faults().outage(Service::DeadLetters, end);
        fleet.put(1).await;
        until("the letter", || fleet.aws.dead_letters("letters").len() == 1).await;
        sleep(Duration::from_secs(30)).await;
        let [began, over] = [BEGAN, OVER].map(|words| log.lines(words));
        assert_eq!((began.len(), over.len()), (1, 1), "{began:?} {over:?}");
        assert!(over[0].contains("dead-letter queue") && number(&over[0], "affected") == 1, "{over:?}");
        fleet.stop().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_broken_aggregate_without_a_queue_says_that_the_shard_stands_still() {
    for has_queue in [true, false] {
        let log = Log::listen();
        let mut fleet = Fleet::new(1, 1);
        let queue = fleet.aws.host("queue").dead_letter_queue("letters");
        let settings = |builder: kcl_core::WorkerBuilder| if has_queue { builder.dead_letter_queue(queue.clone()) } else { builder };
        fleet.start_with(1, settings).await;
        // Field 3, a record: partition_key_index 7, data "x". No table has a key 7.
        let message = [0x1a, 5, 0x08, 7, 0x1a, 1, b'x'];
        fleet.aws.put(STREAM, "key", [&MAGIC[..], &message, &Md5::digest(message)].concat());
        until("the aggregate was read", || !log.lines("an aggregate is broken").is_empty()).await;
        let line = log.lines("an aggregate is broken").remove(0);
        assert_eq!(line.contains("goes to the dead-letter queue"), has_queue, "{line}");
        let says = ["there is no dead-letter queue", "stands still", "start the worker with a dead-letter queue"];
        assert!(has_queue || says.iter().all(|words| line.contains(words)), "{line}");
        fleet.stop().await;
    }
}

#[tokio::test(start_paused = true)]
async fn takes_that_are_refused_are_one_account_of_all_shards() {
    let log = Log::listen();
    let mut fleet = Fleet::new(1, SHARDS);
    let refuses = Arc::new(AtomicBool::new(true));
    let refused = Arc::clone(&refuses);
    let table = Arc::new(StruckTable::new(fleet.aws.host("table").lease_table(APPLICATION), move |_, _| {
        let (table, message) = ("leases".to_owned(), "no such attribute".to_owned());
        let refusal = TableError::Rejected { table, operation: "dynamodb:UpdateItem", message };
        if refused.load(Ordering::SeqCst) { Err(refusal) } else { Ok(()) }
    }));
    fleet.start_with(1, |builder| builder.lease_table(Arc::<StruckTable>::clone(&table))).await;
    sleep(Duration::from_secs(90)).await;
    refuses.store(false, Ordering::SeqCst);
    until("all shards", || fleet.running[0].1.status().shards.len() == SHARDS as usize).await;
    sleep(Duration::from_secs(30)).await;
    let [began, goes_on, over] = [BEGAN, GOES_ON, OVER].map(|words| log.lines(words));
    assert_eq!((began.len(), goes_on.len(), over.len()), (1, 1, 1), "{began:?} {goes_on:?} {over:?}");
    assert!(began[0].contains("no such attribute"), "{began:?}");
    assert_eq!(number(&over[0], "affected"), u64::from(SHARDS), "{over:?}");
    assert_eq!(log.lines("ERROR"), [""; 0]);

    refuses.store(true, Ordering::SeqCst);
    until("the shards are given up", || log.lines("the shard is given up").len() == SHARDS as usize).await;
    let line = log.lines("the shard is given up").remove(0);
    assert!(line.contains("the lease table has refused a write of this lease") && !line.contains("gone"), "{line}");
    refuses.store(false, Ordering::SeqCst);
    fleet.stop().await;
}
