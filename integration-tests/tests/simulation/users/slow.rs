//! Processors that are slow: their work is checkpointed all the same, and nobody takes them for dead.

use std::time::Duration;

use kcl_core::{Outcome, ProcessResult, RecordBatch, RecordProcessor, RetrievalMode, ShardContext, async_trait};
use tokio::time::{Instant, sleep};

use super::{APPLICATION, Database, QUEUE, Running, STREAM, aws, checkpoint, put, until};

#[derive(Clone)]
struct Slow(Database, Duration);

#[async_trait]
impl RecordProcessor for Slow {
    async fn process_records(&mut self, batch: &RecordBatch, _shard: &ShardContext) -> ProcessResult {
        sleep(self.1).await;
        batch.into_iter().for_each(|record| self.0.insert(record));
        Ok(Outcome::Done)
    }
}

#[tokio::test(start_paused = true)]
async fn calls_of_any_length_are_checkpointed_when_they_have_ended() {
    for mode in [RetrievalMode::Polling, RetrievalMode::FanOut] {
        for seconds in [10, 230, 250, 600] {
            let aws = aws(1);
            put(&aws, 1, 1_000).await;
            let slow = Slow(Database::default(), Duration::from_secs(seconds));
            let (database, factory) = (slow.0.clone(), slow.clone());
            let running =
                Running::start(&aws, "host", |builder| builder.retrieval(mode).processor(move |_: &ShardContext| factory.clone())).await;
            for call in 1..=10 {
                until("a call has ended", || database.distinct() >= call * 100).await;
                let (ended, finished) = (Instant::now(), database.distinct());
                let before = checkpoint(&aws);
                until("it is checkpointed", || checkpoint(&aws) > before || database.distinct() > finished).await;
                assert!(ended.elapsed() < Duration::from_secs(8), "{mode:?}, {seconds} s, call {call}: {:?}", ended.elapsed());
            }
            until("all is checkpointed", || running.shard().is_some_and(|shard| checkpoint(&aws).record() == shard.finished)).await;
            running.kill().await;
            let slow = slow.clone();
            let running = Running::start(&aws, "host", |builder| builder.processor(move |_: &ShardContext| slow.clone())).await;
            sleep(Duration::from_secs(1_000)).await;
            assert_eq!(database.repeated(), 0, "{mode:?}, {seconds} s");
            running.kill().await;
        }
    }
}

/// Two deaths have made the shard suspicious; then calls are longer than shutdowns and handoffs wait.
#[tokio::test(start_paused = true)]
async fn timeouts_of_handoffs_and_shutdowns_are_no_deaths() {
    for joins in [false, true] {
        let aws = aws(if joins { 2 } else { 1 });
        (0..4).for_each(|number| {
            aws.put(STREAM, &format!("key-{number}"), number.to_string());
        });
        let slow = Slow(Database::default(), Duration::from_secs(60));
        let start = async |machine: String| {
            let slow = slow.clone();
            let queue = aws.host("queue").dead_letter_queue(QUEUE);
            Running::start(&aws, &machine, |builder| builder.dead_letter_queue(queue).processor(move |_: &ShardContext| slow.clone())).await
        };
        let counter = || aws.leases(APPLICATION).iter().map(|lease| lease.counter).sum::<u64>();
        for _ in 0..2 {
            let before = counter();
            let victim = start("victim".to_owned()).await;
            until("it has begun", || counter() > before && victim.shard().is_some_and(|shard| shard.call.is_some())).await;
            victim.kill().await;
        }
        for deploy in 0..5 {
            let running = start(format!("pod-{deploy}")).await;
            sleep(Duration::from_secs(45)).await;
            if joins {
                let other = start(format!("other-{deploy}")).await;
                sleep(Duration::from_secs(45)).await;
                let _ = other.stop().await;
            }
            let (took, _) = running.stop().await;
            assert!(took <= Duration::from_secs(27), "{took:?}");
        }
        let last = start("last".to_owned()).await;
        until("all is done", || slow.0.distinct() == 4).await;
        assert!(aws.dead_letters(QUEUE).is_empty(), "nobody has died of a record: {:?}", aws.dead_letters(QUEUE));
        last.kill().await;
    }
}
