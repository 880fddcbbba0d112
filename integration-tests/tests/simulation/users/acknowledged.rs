//! Progress inside of a call: what is acknowledged counts at once, whatever becomes of the call.

use std::time::Duration;

use kcl_core::{
    Batching, Checkpointing, Interruption, Lanes, Outcome, ProcessResult, RecordBatch, RecordProcessor, RetryPolicy, ShardContext,
    async_trait,
};
use tokio::time::{Instant, sleep};

use super::{Database, Running, STREAM, aws, checkpoint, until};

/// What ends the call in the middle.
#[derive(Clone, Copy, Debug, PartialEq)]
enum End {
    Crash,
    Panic,
    Overrun,
    Shutdown,
    Error,
}

/// Takes a second for each record, and comes to its end after twenty, once.
#[derive(Clone)]
struct Slow {
    database: Database,
    end: End,
}

#[async_trait]
impl RecordProcessor for Slow {
    async fn process_records(&mut self, batch: &RecordBatch, _shard: &ShardContext) -> ProcessResult {
        for record in batch {
            if self.database.distinct() == 20 && self.database.count("the end") == 0 {
                self.database.0.lock().unwrap().insert("the end".to_owned(), 1);
                match self.end {
                    End::Panic => panic!("a bug of the service"),
                    End::Overrun | End::Crash | End::Shutdown => std::future::pending().await,
                    End::Error => return Err("not now".into()),
                }
            }
            sleep(Duration::from_secs(1)).await;
            self.database.insert(record);
            batch.ack(record);
        }
        Ok(Outcome::Done)
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_acknowledged_is_neither_lost_nor_repeated_however_the_call_ends() {
    for lanes in [1, 4] {
        for aggregated in [false, true] {
            for end in [End::Crash, End::Panic, End::Overrun, End::Shutdown, End::Error] {
                let name = format!("{end:?} on {lanes} lanes, aggregated {aggregated}");
                let aws = aws(1);
                if aggregated {
                    let records: Vec<_> = (0..50).map(|number: u32| number.to_string()).collect();
                    aws.put_aggregate(STREAM, records.iter().map(|text| ("key", text.clone().into())));
                } else {
                    (0..50).for_each(|number| {
                        aws.put(STREAM, "key", number.to_string());
                    });
                }
                let slow = Slow { database: Database::default(), end };
                let start = async |machine: &'static str| {
                    let slow = slow.clone();
                    let deadline = (end == End::Overrun).then_some(Duration::from_secs(28));
                    Running::start(&aws, machine, |builder| {
                        builder
                            .lanes(Lanes::new(lanes))
                            .checkpointing(Checkpointing::Automatic { interval: Duration::from_secs(1) })
                            .retry_policy(RetryPolicy { attempt_deadline: deadline, ..RetryPolicy::default() })
                            .processor(move |_: &ShardContext| slow.clone())
                    })
                    .await
                };
                let mut running = start("host-1").await;
                let database = &slow.database;
                until("the call is in its middle", || database.count("the end") == 1).await;
                sleep(Duration::from_secs(3)).await;
                if matches!(end, End::Crash | End::Shutdown) {
                    let number = checkpoint(&aws).record().unwrap();
                    assert_eq!(running.shard().unwrap().finished, Some(number), "{name}: it is checkpointed inside of the call");
                    if end == End::Crash {
                        running.kill().await;
                    } else {
                        running.stop().await.1.unwrap_err();
                    }
                    running = start("host-2").await;
                }
                until(&format!("{name}: all is done"), || database.distinct() == 51).await;
                assert_eq!(database.repeated(), 0, "{name}");
                running.stop().await.1.unwrap();
            }
        }
    }
}

/// Collects, and acknowledges what it has taken, with manual checkpoints.
struct Collecting(Database, Vec<String>);

#[async_trait]
impl RecordProcessor for Collecting {
    async fn process_records(&mut self, batch: &RecordBatch, shard: &ShardContext) -> ProcessResult {
        for record in batch {
            self.1.push(super::text(record));
            batch.ack(record);
            if self.1.len() == 5 {
                self.1.drain(..).for_each(|text| *self.0.0.lock().unwrap().entry(text).or_default() += 1);
                shard.checkpointer().checkpoint_at(record.position()).await?;
                // Whatever follows: those five are written and checkpointed.
                return Err("a failure after it".into());
            }
        }
        Ok(Outcome::Done)
    }
}

#[tokio::test(start_paused = true)]
async fn with_manual_checkpoints_a_failed_call_repeats_nothing_that_it_has_acknowledged() {
    let aws = aws(1);
    (0..25).for_each(|number| {
        aws.put(STREAM, "key", number.to_string());
    });
    let database = Database::default();
    let shared = database.clone();
    let running = Running::start(&aws, "host", |builder| {
        builder
            .checkpointing(Checkpointing::Manual)
            .batching(Batching::up_to(10))
            .processor(move |_: &ShardContext| Collecting(shared.clone(), Vec::new()))
    })
    .await;
    until("all is written", || database.distinct() == 25).await;
    assert_eq!(database.repeated(), 0);
    running.stop().await.1.unwrap();
}

/// Ends early when it is asked to; counts how often, and for which reason.
struct Obedient(Database);

#[async_trait]
impl RecordProcessor for Obedient {
    async fn process_records(&mut self, batch: &RecordBatch, shard: &ShardContext) -> ProcessResult {
        for record in batch {
            tokio::select! {
                biased;
                reason = shard.interrupted() => {
                    *self.0.0.lock().unwrap().entry(format!("{reason:?}")).or_default() += 1;
                    return Ok(Outcome::Acknowledged);
                }
                () = sleep(Duration::from_secs(1)) => {}
            }
            self.0.insert(record);
            batch.ack(record);
        }
        Ok(Outcome::Done)
    }
}

#[tokio::test(start_paused = true)]
async fn a_call_hears_that_its_shard_is_going_and_why() {
    let aws = aws(1);
    (0..200).for_each(|number| {
        aws.put(STREAM, "key", number.to_string());
    });
    let database = Database::default();
    let shared = database.clone();
    let running = Running::start(&aws, "host", |builder| builder.processor(move |_: &ShardContext| Obedient(shared.clone()))).await;
    until("it works", || database.distinct() > 3).await;
    running.handle.pause();
    until("it has paused", || database.count(&format!("{:?}", Interruption::Paused)) == 1).await;
    let paused_at = database.distinct();
    sleep(Duration::from_secs(30)).await;
    assert_eq!(database.distinct(), paused_at);
    running.handle.resume();
    until("it goes on", || database.distinct() > paused_at + 3).await;
    let (took, ended) = running.stop().await;
    ended.unwrap();
    assert!(took < Duration::from_secs(2), "{took:?}");
    assert_eq!((database.count("Shutdown"), database.count("Paused"), database.repeated()), (1, 1, 0));
    // A processor that gives up again and again makes no hot loop.
    let begun = Instant::now();
    let calls = Database::default();
    let counted = calls.clone();
    struct Idler(Database);
    #[async_trait]
    impl RecordProcessor for Idler {
        async fn process_records(&mut self, batch: &RecordBatch, _shard: &ShardContext) -> ProcessResult {
            self.0.insert(&batch.records()[0]);
            Ok(Outcome::Acknowledged)
        }
    }
    let running = Running::start(&aws, "host", |builder| builder.processor(move |_: &ShardContext| Idler(counted.clone()))).await;
    sleep(Duration::from_secs(600)).await;
    assert!((1..600).contains(&calls.repeated()), "{} calls in {:?}", calls.repeated(), begun.elapsed());
    running.kill().await;
}
