//! Processors that gather a batch and write it in one go, in all the ways that one can: a failed
//! write loses nothing.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures::StreamExt as _;
use kcl_core::{Outcome, ProcessError, ProcessResult, Record, RecordBatch, RecordProcessor, RetryPolicy, ShardContext, async_trait};

use super::{Database, QUEUE, Running, aws, text, until};

#[derive(Clone, Copy, Debug, PartialEq)]
enum Way {
    FlushAfterLoop,
    PanicAtFlush,
    OverrunAtFlush,
    ParseThenInsert,
    TryJoinAll,
    Buffered,
    Peekable,
    Chunks,
    SpawnAndJoin,
    AcknowledgedInPart,
}

#[derive(Clone)]
struct Gathering {
    way: Way,
    database: Database,
    fails: Arc<AtomicBool>,
}

impl Gathering {
    fn fails_once(&self) -> bool {
        self.fails.swap(false, Ordering::SeqCst)
    }

    async fn store(&self, records: &[&Record]) -> Result<(), std::io::Error> {
        tokio::time::sleep(Duration::from_millis(5)).await;
        if self.fails_once() {
            return Err(std::io::Error::other("the database is away"));
        }
        records.iter().for_each(|record| self.database.insert(record));
        Ok(())
    }
}

#[async_trait]
impl RecordProcessor for Gathering {
    async fn process_records(&mut self, batch: &RecordBatch, _shard: &ShardContext) -> ProcessResult {
        let this = &*self;
        match self.way {
            Way::FlushAfterLoop | Way::PanicAtFlush | Way::OverrunAtFlush => {
                let mut buffer = Vec::new();
                for record in batch {
                    buffer.push(record);
                }
                if self.way == Way::PanicAtFlush && self.fails_once() {
                    panic!("a bug of the service");
                }
                if self.way == Way::OverrunAtFlush && self.fails_once() {
                    std::future::pending::<()>().await;
                }
                self.store(&buffer).await?;
            }
            Way::ParseThenInsert => {
                let parse = |record| {
                    // The third is not there yet.
                    if text(record) == "2" && self.fails_once() { Err(ProcessError::retry("no schema yet")) } else { Ok(record) }
                };
                let rows = batch.records().iter().map(parse).collect::<Result<Vec<_>, _>>()?;
                self.store(&rows).await?;
            }
            Way::TryJoinAll => {
                futures::future::try_join_all(batch.records().iter().map(async |record| this.store(&[record]).await)).await?;
            }
            Way::Buffered => {
                let work: Vec<_> = batch.records().iter().map(async |record| this.store(&[record]).await).collect();
                let results: Vec<_> = futures::stream::iter(work).buffered(4).collect().await;
                for result in results {
                    result?;
                }
            }
            Way::Peekable => {
                let mut records = batch.records().iter().peekable();
                while let Some(record) = records.next() {
                    let _is_last = records.peek().is_none();
                    self.store(&[record]).await?;
                }
            }
            Way::Chunks => {
                let mut records = batch.into_iter();
                loop {
                    let chunk: Vec<_> = records.by_ref().take(4).collect();
                    if chunk.is_empty() {
                        break;
                    }
                    self.store(&chunk).await?;
                }
            }
            Way::SpawnAndJoin => {
                let mut tasks = tokio::task::JoinSet::new();
                for index in 0..batch.len() {
                    let (batch, this) = (batch.clone(), self.clone());
                    tasks.spawn(async move {
                        let record = &batch.records()[index];
                        this.store(&[record]).await.map(|()| batch.ack(record))
                    });
                }
                while let Some(stored) = tasks.join_next().await {
                    stored??;
                }
            }
            Way::AcknowledgedInPart => {
                let (first, rest) = batch.records().split_at(batch.len() / 2);
                let half: Vec<_> = first.iter().collect();
                first.iter().for_each(|record| self.database.insert(record));
                if let Some(last) = half.last() {
                    batch.ack_through(last);
                }
                let rest: Vec<_> = rest.iter().collect();
                self.store(&rest).await?;
            }
        }
        Ok(Outcome::Done)
    }
}

#[tokio::test(start_paused = true)]
async fn a_write_that_fails_once_loses_nothing() {
    for way in [
        Way::FlushAfterLoop,
        Way::PanicAtFlush,
        Way::OverrunAtFlush,
        Way::ParseThenInsert,
        Way::TryJoinAll,
        Way::Buffered,
        Way::Peekable,
        Way::Chunks,
        Way::SpawnAndJoin,
        Way::AcknowledgedInPart,
    ] {
        let aws = aws(1);
        (0..10).for_each(|number| {
            aws.put(super::STREAM, "key", number.to_string());
        });
        let processor = Gathering { way, database: Database::default(), fails: Arc::new(AtomicBool::new(true)) };
        let (database, fails) = (processor.database.clone(), Arc::clone(&processor.fails));
        let deadline = RetryPolicy { attempt_deadline: Some(Duration::from_secs(20)), ..RetryPolicy::default() };
        let running = Running::start(&aws, "host", |builder| {
            builder
                .retry_policy(deadline)
                .dead_letter_queue(aws.host("queue").dead_letter_queue(QUEUE))
                .processor(move |_: &ShardContext| processor.clone())
        })
        .await;
        until("all is finished", || running.shard().is_some_and(|shard| shard.records == 10)).await;
        assert!(!fails.load(Ordering::SeqCst), "{way:?}: it has failed");
        assert_eq!(database.distinct(), 10, "{way:?}");
        assert!(aws.dead_letters(QUEUE).is_empty(), "{way:?}");
        if way == Way::AcknowledgedInPart {
            assert_eq!(database.repeated(), 0, "{way:?}");
        }
        running.stop().await.1.unwrap();
    }
}
