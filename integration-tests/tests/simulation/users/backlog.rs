//! A backlog of ten thousand records, and a handler that takes its time with each: restarts, crashes
//! and handoffs in the middle of it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use kcl_core::{ProcessError, Record, RecordHandler, ShardContext, async_trait};
use tokio::time::sleep;

use super::{Database, Running, aws, put, until};

#[derive(Clone)]
struct Handler {
    each: Duration,
    database: Database,
    in_work: Arc<Mutex<BTreeMap<String, u32>>>,
    /// Calls for a shard while there was another one.
    overlaps: Arc<Mutex<u32>>,
}

impl Handler {
    fn new(millis: u64) -> Self {
        let each = Duration::from_millis(millis);
        Self { each, database: Database::default(), in_work: Arc::default(), overlaps: Arc::default() }
    }
}

/// Ends a call, however it ends.
struct InWork<'a>(&'a Handler, String);

impl Drop for InWork<'_> {
    fn drop(&mut self) {
        *self.0.in_work.lock().unwrap().entry(self.1.clone()).or_default() -= 1;
    }
}

#[async_trait]
impl RecordHandler for Handler {
    async fn handle(&self, record: &Record, shard: &ShardContext) -> Result<(), ProcessError> {
        let name = shard.shard_id().to_string();
        let calls = {
            let mut in_work = self.in_work.lock().unwrap();
            let calls = in_work.entry(name.clone()).or_default();
            *calls += 1;
            *calls
        };
        *self.overlaps.lock().unwrap() += u32::from(calls > 1);
        let _in_work = InWork(self, name);
        sleep(self.each).await;
        self.database.insert(record);
        Ok(())
    }
}

#[tokio::test(start_paused = true)]
async fn a_graceful_restart_in_the_middle_repeats_nothing() {
    let aws = aws(1);
    put(&aws, 1, 10_000).await;
    let handler = Handler::new(25);
    let start = async || Running::start(&aws, "host", |builder| builder.handler(handler.clone())).await;
    // Again and again, as by a supervisor that is never content.
    for restart in 1..=5 {
        let running = start().await;
        sleep(Duration::from_secs(20)).await;
        assert!(!running.shard().unwrap().is_stuck());
        let (took, ended) = running.stop().await;
        ended.unwrap();
        assert!(took < Duration::from_secs(2), "{took:?}");
        assert!(handler.database.distinct() > restart * 700, "{restart}: {}", handler.database.distinct());
    }
    let running = start().await;
    until("all is handled", || handler.database.distinct() == 10_000).await;
    assert_eq!(handler.database.repeated(), 0);
    running.stop().await.1.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_crash_in_the_middle_repeats_what_was_handled_since_the_last_checkpoint() {
    let aws = aws(1);
    put(&aws, 1, 10_000).await;
    let handler = Handler::new(25);
    let start = async || Running::start(&aws, "host", |builder| builder.handler(handler.clone())).await;
    let running = start().await;
    sleep(Duration::from_secs(150)).await;
    running.kill().await;
    let running = start().await;
    until("all is handled", || handler.database.distinct() == 10_000).await;
    // Checkpoints are at most three seconds apart, and forty records are handled in a second.
    assert!(handler.database.repeated() <= 130, "{}", handler.database.repeated());
    running.stop().await.1.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_joins_gets_its_shard_between_two_records() {
    let aws = aws(2);
    put(&aws, 2, 20_000).await;
    let handler = Handler::new(50);
    let start = async |machine| Running::start(&aws, machine, |builder| builder.handler(handler.clone())).await;
    let first = start("host-1").await;
    sleep(Duration::from_secs(60)).await;
    let second = start("host-2").await;
    until("it has a shard", || !second.handle.status().shards.is_empty()).await;
    until("all is handled", || handler.database.distinct() == 20_000).await;
    assert_eq!((*handler.overlaps.lock().unwrap(), handler.database.repeated()), (0, 0));
    first.stop().await.1.unwrap();
    second.stop().await.1.unwrap();
}
