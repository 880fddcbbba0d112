//! Collecting processors: an occasion to flush while nothing comes, and batches that are waited for.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use kcl_core::{
    Batching, Checkpointing, Lanes, Outcome, ProcessError, ProcessResult, RecordBatch, RecordProcessor, ShardContext, async_trait,
};
use tokio::time::{Instant, sleep};

use super::{Database, Running, STREAM, aws, checkpoint, text, until};

/// Writes out a hundred records at a time, or what it has when nothing comes.
struct Collecting {
    database: Database,
    held: Vec<String>,
}

impl Collecting {
    async fn flush(&mut self, shard: &ShardContext) -> Result<(), ProcessError> {
        self.held.drain(..).for_each(|text| *self.database.0.lock().unwrap().entry(text).or_default() += 1);
        Ok(shard.checkpointer().checkpoint().await?)
    }
}

#[async_trait]
impl RecordProcessor for Collecting {
    async fn process_records(&mut self, batch: &RecordBatch, shard: &ShardContext) -> ProcessResult {
        self.held.extend(batch.into_iter().map(text));
        if self.held.len() >= 100 {
            self.flush(shard).await?;
        }
        Ok(Outcome::Done)
    }

    async fn idle(&mut self, shard: &ShardContext) -> Result<(), ProcessError> {
        self.flush(shard).await
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_collected_is_flushed_when_nothing_comes() {
    let aws = aws(1);
    let database = Database::default();
    let shared = database.clone();
    let running = Running::start(&aws, "host", |builder| {
        builder
            .checkpointing(Checkpointing::Manual)
            .idle_callback(Duration::from_secs(10))
            .processor(move |_: &ShardContext| Collecting { database: shared.clone(), held: Vec::new() })
    })
    .await;
    for round in 1..=5 {
        (0..7).for_each(|number| {
            aws.put(STREAM, "key", format!("{round}-{number}"));
        });
        let put = Instant::now();
        until("they are flushed", || database.distinct() == round * 7).await;
        assert!((10..13).contains(&put.elapsed().as_secs()), "{:?}", put.elapsed());
        until("and checkpointed", || checkpoint(&aws).record() == running.shard().unwrap().finished).await;
        sleep(Duration::from_secs(100)).await;
    }
    assert_eq!(database.repeated(), 0);
    running.kill().await;
}

/// Notes the sizes of its batches, and when they came.
struct Sizes(Arc<Mutex<Vec<(Instant, usize, usize)>>>);

#[async_trait]
impl RecordProcessor for Sizes {
    async fn process_records(&mut self, batch: &RecordBatch, _shard: &ShardContext) -> ProcessResult {
        let bytes = batch.into_iter().map(kcl_core::Record::size).sum();
        self.0.lock().unwrap().push((Instant::now(), batch.len(), bytes));
        Ok(Outcome::Done)
    }
}

#[tokio::test(start_paused = true)]
async fn a_batch_is_waited_for_until_it_is_full_or_the_wait_is_over() {
    for lanes in [1, 4] {
        let aws = aws(1);
        let sizes: Arc<Mutex<Vec<(Instant, usize, usize)>>> = Arc::default();
        let shared = Arc::clone(&sizes);
        let batching = Batching { min_records: 50, max_wait: Duration::from_secs(30), ..Batching::up_to(50) };
        let running = Running::start(&aws, "host", |builder| {
            builder.lanes(Lanes::new(lanes)).batching(batching).processor(move |_: &ShardContext| Sizes(Arc::clone(&shared)))
        })
        .await;
        until("it has read", || running.shard().is_some_and(|shard| shard.lag == Some(Duration::ZERO))).await;
        let begun = Instant::now();
        for number in 0..120 {
            aws.put(STREAM, "key", number.to_string());
            sleep(Duration::from_millis(200)).await;
        }
        until("all came", || sizes.lock().unwrap().iter().map(|(_, records, _)| records).sum::<usize>() == 120).await;
        let seen = sizes.lock().unwrap().clone();
        assert_eq!(seen.iter().map(|(_, records, _)| *records).collect::<Vec<_>>(), [50, 50, 20], "{lanes} lanes");
        let at = |batch: usize| (seen[batch].0 - begun).as_secs();
        assert!((9..13).contains(&at(0)) && (19..23).contains(&at(1)) && (49..53).contains(&at(2)), "{lanes} lanes: {seen:?}");
        // Let go, a shard does not wait to be filled: what was not called comes again.
        aws.put(STREAM, "key", "last");
        sleep(Duration::from_secs(3)).await;
        let (took, ended) = running.stop().await;
        ended.unwrap();
        assert!(took < Duration::from_secs(2));
    }
}

#[tokio::test(start_paused = true)]
async fn a_batch_has_no_more_bytes_than_it_may() {
    let aws = aws(1);
    let sizes: Arc<Mutex<Vec<(Instant, usize, usize)>>> = Arc::default();
    let shared = Arc::clone(&sizes);
    for number in 0..30 {
        aws.put(STREAM, "key", vec![0; 1_000 + number]);
    }
    let batching = Batching { max_bytes: 5_000, ..Batching::default() };
    let running =
        Running::start(&aws, "host", |builder| builder.batching(batching).processor(move |_: &ShardContext| Sizes(Arc::clone(&shared))))
            .await;
    until("all came", || sizes.lock().unwrap().iter().map(|(_, records, _)| records).sum::<usize>() == 30).await;
    assert!(sizes.lock().unwrap().iter().all(|(_, records, bytes)| *bytes <= 5_000 && *records <= 4), "{sizes:?}");
    running.stop().await.1.unwrap();
}
