//! Processors that are slow: their work is checkpointed all the same, and nobody takes them for dead.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use kcl_core::test_util::Event;
use kcl_core::{Outcome, ProcessResult, RecordBatch, RecordProcessor, RetrievalMode, ShardContext, async_trait};
use kcl_lease::{LeaseTable as _, LeaseWrite, WriteOutcome};
use tokio::sync::Notify;
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

/// The shard is asked for while its owner notes a record that may be deadly, and the lease table is slow: when the note is answered most of the
/// time for the handoff is over. The record is left to the next owner: a call that began now would go on beside that one's.
#[tokio::test(start_paused = true)]
async fn a_record_that_is_noted_while_its_shard_is_asked_for_is_not_begun() {
    let aws = aws(1);
    aws.put(STREAM, "key", "record");
    let slow = Slow(Database::default(), Duration::from_secs(60));
    let begun = Arc::new(AtomicUsize::new(0));
    let start = async |machine: &str| {
        let (slow, begun) = (slow.clone(), Arc::clone(&begun));
        let factory = move |_: &ShardContext| Counted(slow.clone(), Arc::clone(&begun));
        let seconds = Duration::from_secs;
        Running::start(&aws, machine, |builder| builder.lease_duration(seconds(60)).handoff_timeout(seconds(2)).processor(factory)).await
    };
    for calls in 1..=2 {
        let victim = start("victim").await;
        until("it has begun", || begun.load(Ordering::Relaxed) == calls).await;
        victim.kill().await;
    }
    // Owner changes since the last checkpoint: the next owner is careful. It reads, and then notes the record.
    let (noted, has_read) = (Arc::new(Notify::new()), AtomicBool::new(false));
    let note = Arc::clone(&noted);
    aws.observe(move |event| match event {
        Event::Sent { host: "owner#1", operation: "kinesis:GetRecords", .. } => has_read.store(true, Ordering::Relaxed),
        Event::Sent { host: "owner#1", operation: "dynamodb:UpdateItem", .. } if has_read.load(Ordering::Relaxed) => note.notify_one(),
        _ => {}
    });
    let owner = start("owner").await;
    let [low, high] = [800, 900].map(Duration::from_millis);
    aws.faults().slow_machine("owner", low, high, Duration::MAX);
    noted.notified().await;
    let row = aws.leases(APPLICATION).remove(0);
    let request = LeaseWrite::request_handoff(&row, &"next".into()).unwrap();
    let asked = aws.host("next").lease_table(APPLICATION).write(&request).await;
    assert!(matches!(asked, Ok(WriteOutcome::Applied(_))), "{asked:?}");
    until("the shard is let go", || aws.leases(APPLICATION)[0].actual_owner().is_some_and(|owner| owner.as_str() == "next")).await;
    assert_eq!(begun.load(Ordering::Relaxed), 2, "a call was begun that the handoff does not wait for");
    owner.kill().await;
}

/// Counts its calls when they begin.
struct Counted(Slow, Arc<AtomicUsize>);

#[async_trait]
impl RecordProcessor for Counted {
    async fn process_records(&mut self, batch: &RecordBatch, shard: &ShardContext) -> ProcessResult {
        self.1.fetch_add(1, Ordering::Relaxed);
        self.0.process_records(batch, shard).await
    }
}
