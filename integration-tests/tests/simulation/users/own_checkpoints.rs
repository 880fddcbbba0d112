//! Handlers and processors that checkpoint for themselves although the framework does: nothing is
//! covered that they were not given, and a bad record is found.

use std::time::Duration;

use kcl_core::{Checkpointing, ProcessError, Record, RecordHandler, ShardContext, async_trait};
use tokio::time::sleep;

use super::{Database, QUEUE, Running, STREAM, aws, text, until};

#[derive(Clone, Copy, Debug, PartialEq)]
enum Way {
    Checkpoint,
    CheckpointAt,
    Prepare,
    PrepareAt,
}

#[derive(Clone)]
struct Own(Database, Way);

#[async_trait]
impl RecordHandler for Own {
    async fn handle(&self, record: &Record, shard: &ShardContext) -> Result<(), ProcessError> {
        let prepared = match self.1 {
            Way::Prepare => Some(shard.checkpointer().prepare("state").await?),
            Way::PrepareAt => Some(shard.checkpointer().prepare_at(record.position(), "state").await?),
            _ => None,
        };
        sleep(Duration::from_millis(5)).await;
        if text(record).starts_with("bad") {
            return Err("value out of range".into());
        }
        self.0.insert(record);
        match (prepared, self.1) {
            (Some(prepared), _) => prepared.commit().await?,
            (None, Way::CheckpointAt) => shard.checkpointer().checkpoint_at(record.position()).await?,
            (None, _) => shard.checkpointer().checkpoint().await?,
        }
        Ok(())
    }
}

const WAYS: [Way; 4] = [Way::Checkpoint, Way::CheckpointAt, Way::Prepare, Way::PrepareAt];

#[tokio::test(start_paused = true)]
async fn a_crash_loses_no_record_of_a_batch_that_the_handler_was_not_given() {
    for way in WAYS {
        for checkpointing in [Checkpointing::Automatic { interval: Duration::from_secs(3) }, Checkpointing::Manual] {
            let (aws, handler) = (aws(1), Own(Database::default(), way));
            (0..40).for_each(|number| drop(aws.put(STREAM, &format!("key-{}", number % 20), number.to_string())));
            let first = Running::start(&aws, "first", |builder| builder.checkpointing(checkpointing).handler(handler.clone())).await;
            while handler.0.distinct() < 5 {
                sleep(Duration::from_millis(1)).await;
            }
            first.kill().await;
            let next = Running::start(&aws, "next", |builder| builder.checkpointing(checkpointing).handler(handler.clone())).await;
            sleep(Duration::from_secs(600)).await;
            assert_eq!(handler.0.distinct(), 40, "{way:?} {checkpointing:?}");
            assert!(handler.0.repeated() <= 1, "{way:?} {checkpointing:?}: the record in work, at most");
            next.kill().await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_bad_record_goes_to_the_queue_and_takes_none_along() {
    for way in WAYS {
        let (aws, handler) = (aws(1), Own(Database::default(), way));
        let queue = aws.host("host").dead_letter_queue(QUEUE);
        for number in 0..40 {
            let text = if number == 5 { "bad".to_owned() } else { number.to_string() };
            aws.put(STREAM, &format!("key-{}", number % 20), text);
        }
        let running = Running::start(&aws, "host", |builder| builder.dead_letter_queue(queue).handler(handler.clone())).await;
        until("all others are processed", || handler.0.distinct() == 39).await;
        let letters: Vec<_> = aws.dead_letters(QUEUE).iter().map(|letter| text(&letter.record)).collect();
        assert_eq!(letters, ["bad"], "{way:?}");
        assert!(aws.elapsed() < Duration::from_secs(1_200), "{way:?}: {:?}", aws.elapsed());
        running.kill().await;
    }
}
