//! A key that is stuck on one of several lanes: it stops no other, whatever else happens, and memory
//! stays bounded.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use kcl_core::test_util::{FaultRates, Service};
use kcl_core::{Lanes, Outcome, PollingConfig, ProcessResult, RecordBatch, RecordProcessor, ShardContext, async_trait};
use tokio::time::sleep;

use super::{Database, Running, STREAM, aws, until};

#[derive(Clone)]
struct Service1 {
    database: Database,
    hangs: bool,
    stuck: Arc<AtomicBool>,
}

#[async_trait]
impl RecordProcessor for Service1 {
    async fn process_records(&mut self, batch: &RecordBatch, _shard: &ShardContext) -> ProcessResult {
        if batch.records()[0].partition_key() == Some("bad") && self.stuck.load(Ordering::SeqCst) {
            if self.hangs {
                std::future::pending::<()>().await;
            }
            return Err("no".into());
        }
        batch.into_iter().for_each(|record| self.database.insert(record));
        Ok(Outcome::Done)
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Break {
    Pause,
    TableAway,
}

#[tokio::test(start_paused = true)]
async fn a_long_break_stops_no_other_key() {
    for hangs in [false, true] {
        for kind in [Break::Pause, Break::TableAway] {
            let aws = aws(1);
            let service = Service1 { database: Database::default(), hangs, stuck: Arc::new(AtomicBool::new(true)) };
            let made = service.clone();
            let running =
                Running::start(&aws, "host", |builder| builder.lanes(Lanes::new(8)).processor(move |_: &ShardContext| made.clone())).await;
            aws.put(STREAM, "bad", "bad");
            let mut good = 0;
            let mut put = async |seconds| {
                for _ in 0..seconds {
                    aws.put(STREAM, &format!("good-{}", good % 10), good.to_string());
                    good += 1;
                    sleep(Duration::from_secs(1)).await;
                }
                good
            };
            put(120).await;
            match kind {
                Break::Pause => running.handle.pause(),
                Break::TableAway => {
                    aws.faults().set_rates_of(Service::LeaseTable, FaultRates { dropped: 1.0, ..FaultRates::default() });
                }
            }
            put(300).await;
            running.handle.resume();
            aws.faults().set_rates_of(Service::LeaseTable, FaultRates::default());
            let good = put(600).await;
            sleep(Duration::from_secs(10)).await;
            assert_eq!(service.database.distinct(), good, "{kind:?}, hangs {hangs}: all other keys are done");
            assert_eq!(service.database.repeated(), 0, "{kind:?}, hangs {hangs}");
            if !hangs {
                service.stuck.store(false, Ordering::SeqCst);
                until("the key is done too", || service.database.distinct() == good + 1).await;
            }
            running.kill().await;
        }
    }
}

/// Nothing was trimmed unread where all was seen, however long a record is in work.
#[tokio::test(start_paused = true)]
async fn a_record_in_work_for_longer_than_the_retention_is_no_gap_for_the_others() {
    let aws = aws(1);
    let service = Service1 { database: Database::default(), hangs: true, stuck: Arc::new(AtomicBool::new(true)) };
    let made = service.clone();
    // Reads that find nothing are most of what a long run costs.
    let polling = PollingConfig { idle_interval: Duration::from_secs(60), ..PollingConfig::default() };
    let running = Running::start(&aws, "host", |builder| {
        let builder = builder.lanes(Lanes::new(8)).polling(polling).lease_duration(Duration::from_secs(300));
        builder.processor(move |_: &ShardContext| made.clone())
    })
    .await;
    aws.put(STREAM, "bad", "bad");
    aws.put(STREAM, "good", "0");
    until("it is processed", || service.database.distinct() == 1).await;
    // Twice nothing comes for longer than records are kept, and in between the shard is read anew.
    sleep(Duration::from_secs(30 * 3600)).await;
    running.handle.pause();
    sleep(Duration::from_secs(600)).await;
    running.handle.resume();
    sleep(Duration::from_secs(30 * 3600)).await;
    aws.put(STREAM, "good", "1");
    until("it is processed", || service.database.distinct() == 2).await;
    running.kill().await;
}

#[tokio::test(start_paused = true)]
async fn aggregates_that_a_stuck_key_pins_count_against_the_bound() {
    let aws = aws(1);
    let service = Service1 { database: Database::default(), hangs: true, stuck: Arc::new(AtomicBool::new(true)) };
    let running =
        Running::start(&aws, "host", |builder| builder.lanes(Lanes::new(4)).processor(move |_: &ShardContext| service.clone())).await;
    let most = Lanes::new(4).max_bytes;
    for number in 0..100 {
        // One byte of each waits, and the rest of its buffer with it.
        let mut aggregator = kcl_aggregation::Aggregator::new(usize::MAX);
        aggregator.add("bad", None, Bytes::from_static(b"x")).unwrap();
        aggregator.add("good", None, Bytes::from(vec![0; 900_000])).unwrap();
        let aggregate = aggregator.finish().unwrap();
        aws.put(STREAM, &aggregate.partition_key, aggregate.payload);
        if number % 2 == 1 {
            sleep(Duration::from_secs(1)).await;
        }
    }
    sleep(Duration::from_secs(60)).await;
    let (now, _) = running.host.bytes_held();
    // What is open, one answer that was read, and one that was read ahead.
    assert!(now < most + 2 * (10 << 20), "{now} bytes are held");
    running.kill().await;
}
