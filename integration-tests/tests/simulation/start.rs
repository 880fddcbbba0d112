//! Starting while the services are away or throttle, and what the log says of an outage.

use std::time::Duration;

use kcl_core::test_util::{FaultRates, Host, Service, SimulatedAws};
use kcl_core::{
    InitialPosition, Outcome, ProcessResult, RecordBatch, RecordProcessor, RetrievalMode, ShardContext, Timestamp, Worker, WorkerBuilder,
    WorkerError, async_trait,
};
use tokio::time::Instant;

use super::fleet::{APPLICATION, Fleet, STREAM, until};
use super::log::Log;

struct Nothing;

#[async_trait]
impl RecordProcessor for Nothing {
    async fn process_records(&mut self, _batch: &RecordBatch, _shard: &ShardContext) -> ProcessResult {
        Ok(Outcome::Done)
    }
}

fn worker(host: &Host) -> WorkerBuilder {
    host.worker(APPLICATION, STREAM).processor(|_: &ShardContext| Nothing).dead_letter_queue(host.dead_letter_queue("letters"))
}

/// Builds a worker while this fault is in force; returns how long it took.
async fn built(
    fault: impl Fn(&SimulatedAws),
    ends_after: Option<Duration>,
    settings: impl FnOnce(WorkerBuilder) -> WorkerBuilder,
) -> (Result<Worker, WorkerError>, Duration) {
    let aws = SimulatedAws::new(1);
    aws.create_stream(STREAM, 4);
    let host = aws.host("a");
    fault(&aws);
    let began = Instant::now();
    let mut building = std::pin::pin!(settings(worker(&host)).build());
    let Some(ends_after) = ends_after else { return (building.await, began.elapsed()) };
    tokio::select! {
        biased;
        built = &mut building => return (built, began.elapsed()),
        () = tokio::time::sleep(ends_after) => aws.faults().clear(),
    }
    let built = building.await;
    (built, began.elapsed())
}

const SERVICES: [Service; 3] = [Service::Stream, Service::LeaseTable, Service::DeadLetters];

#[tokio::test(start_paused = true)]
async fn a_start_waits_out_minutes_of_throttling_and_of_outage_of_every_service() {
    let rates = FaultRates { throttled: 1.0, ..FaultRates::default() };
    for service in SERVICES {
        for retrieval in [RetrievalMode::Polling, RetrievalMode::FanOut, RetrievalMode::Auto] {
            for seconds in [10, 200] {
                let lasts = Duration::from_secs(seconds);
                let throttled = |aws: &SimulatedAws| aws.faults().set_rates_of(service, rates);
                let away = |aws: &SimulatedAws| aws.faults().outage(service, lasts);
                for (result, took) in [
                    built(throttled, Some(lasts), |builder| builder.retrieval(retrieval)).await,
                    built(away, None, |builder| builder.retrieval(retrieval)).await,
                ] {
                    let case = format!("{service:?} {retrieval:?} {seconds} s: {took:?} {:?}", result.as_ref().err());
                    assert!(result.is_ok() && took >= lasts && took < lasts + Duration::from_secs(25), "{case}");
                }
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn patience_is_a_setting_and_ends_with_the_last_error() {
    for service in SERVICES {
        for patience in [0, 20, 300] {
            let patience = Duration::from_secs(patience);
            let away = |aws: &SimulatedAws| aws.faults().outage(service, Duration::from_secs(86_400));
            let (result, took) = built(away, None, |builder| builder.start_patience(patience)).await;
            let error = result.err().unwrap_or_else(|| panic!("{service:?} is away"));
            assert!(error.is_retryable(), "{error:?}");
            assert!(took < patience + Duration::from_secs(6), "{service:?} {patience:?}: {took:?}");
            assert!(took >= patience / 2, "{service:?} {patience:?}: {took:?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_fleet_that_starts_while_calls_are_throttled_starts_whole() {
    let aws = SimulatedAws::new(1);
    aws.create_stream(STREAM, 4);
    aws.faults().set_rates(FaultRates { throttled: 0.8, ..FaultRates::default() });
    for number in 0..50 {
        let host = aws.host(&format!("host-{number}"));
        let built = worker(&host).retrieval(RetrievalMode::Auto).build().await;
        assert!(built.is_ok(), "{:?}", built.err());
    }
}

#[tokio::test(start_paused = true)]
async fn an_initial_position_in_the_future_is_refused_by_the_services_clock() {
    let aws = SimulatedAws::new(1);
    aws.create_stream(STREAM, 1);
    let at = |seconds: i64| {
        let now = i64::try_from(aws.time().as_millis()).unwrap();
        InitialPosition::AtTimestamp(Timestamp::from_millis(u64::try_from(now + seconds * 1_000).unwrap()))
    };
    let host = aws.host("a");
    for (seconds, refused) in [(-3_600, false), (0, false), (10, true), (31_536_000, true)] {
        let built = worker(&host).initial_position(at(seconds)).build().await;
        match built {
            Ok(_) => assert!(!refused, "{seconds} s from now"),
            Err(WorkerError::Config(error)) => {
                assert!(refused && error.setting == "initial_position", "{seconds} s from now: {error}");
                assert!(error.rule.contains("in the future"), "{error}");
            }
            Err(error) => panic!("{error:?}"),
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_start_that_waits_says_so_once_per_cause_and_says_when_it_goes_on() {
    let log = Log::listen();
    let away = |aws: &SimulatedAws| aws.faults().outage(Service::LeaseTable, Duration::from_secs(200));
    let (result, _) = built(away, None, |builder| builder).await;
    drop(result.unwrap());
    let [began, goes_on, over] = ["the start waits", "the start still waits", "the start goes on"].map(|words| log.lines(words));
    assert_eq!((began.len(), over.len()), (1, 1), "{began:?} {over:?}");
    assert!((2..=3).contains(&goes_on.len()), "{goes_on:?}");
    assert!(began[0].contains("lease table") && began[0].contains("no answer"), "{began:?}");
}

#[tokio::test(start_paused = true)]
async fn an_outage_of_the_lease_table_is_a_line_a_minute_however_many_shards_there_are() {
    let log = Log::listen();
    let mut fleet = Fleet::new(1, 40);
    fleet.start(1).await;
    until("all shards", || fleet.running[0].1.status().shards.len() == 40).await;
    let outage = Duration::from_secs(600);
    let end = fleet.aws.elapsed() + outage;
    fleet.aws.faults().outage(Service::LeaseTable, end);
    tokio::time::sleep(outage + Duration::from_secs(60)).await;
    let [began, goes_on, over] = ["calls fail", "calls still fail", "calls are answered again"].map(|words| log.lines(words));
    assert_eq!((began.len(), over.len()), (1, 1), "{began:?} {over:?}");
    assert!((8..=10).contains(&goes_on.len()), "{goes_on:?}");
    assert!(goes_on.last().unwrap().contains("affected=42"), "{goes_on:?}");
    assert_eq!(log.lines("lease write failed"), [""; 0]);
    fleet.stop().await;
}

#[tokio::test(start_paused = true)]
async fn leases_that_nobody_may_own_are_reported_until_somebody_may() {
    let log = Log::listen();
    let mut fleet = Fleet::new(1, 4);
    fleet.start_with(1, |builder| builder.max_leases(1)).await;
    tokio::time::sleep(Duration::from_secs(300)).await;
    let warned = log.lines("shards are not read");
    assert_eq!(warned.len(), 1, "{warned:?}");
    assert!(warned[0].contains("WARN") && warned[0].contains("leases=3") && warned[0].contains("max_leases=1"), "{warned:?}");
    fleet.start(1).await;
    until("all shards are owned", || fleet.running.iter().map(|(_, handle)| handle.status().shards.len()).sum::<usize>() == 4).await;
    tokio::time::sleep(Duration::from_secs(10)).await;
    assert_eq!(log.lines("all leases that can be owned have owners").len(), 1);
    fleet.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_take_says_whose_the_shard_was_and_why() {
    let log = Log::listen();
    let mut fleet = Fleet::new(1, 2);
    fleet.start(1).await;
    until("both shards", || fleet.running[0].1.status().shards.len() == 2).await;
    assert_eq!(log.lines("reason=\"new\"").len(), 2, "{:?}", log.lines("lease taken"));
    fleet.start(1).await;
    until("one each", || fleet.running.iter().all(|(_, handle)| handle.status().shards.len() == 1)).await;
    let first = fleet.running[0].1.status().worker.to_string();
    let handed = log.lines("reason=\"handed over\"");
    assert!(handed.len() == 1 && handed[0].contains(&first), "{handed:?}");
    fleet.running[0].0.kill();
    until("the other one has both", || fleet.running[1].1.status().shards.len() == 2).await;
    let expired = log.lines("reason=\"expired\"");
    assert!(expired.len() == 1 && expired[0].contains(&first), "{expired:?}");
}
