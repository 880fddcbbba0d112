//! The forms for code that blocks its thread, in real time.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use kcl_core::test_util::SimulatedAws;
use kcl_core::{BlockingHandler, BlockingProcessor, Lanes, Outcome, ProcessError, ProcessResult, Record, RecordBatch, ShardContext};

use super::{Database, Running, STREAM};

/// Blocks for a while with each record, and knows how many others do at the same time.
#[derive(Clone, Default)]
struct Blocking {
    database: Database,
    at_once: Arc<AtomicU32>,
    most_at_once: Arc<AtomicU32>,
}

impl Blocking {
    fn work(&self, record: &Record) {
        let at_once = self.at_once.fetch_add(1, Ordering::SeqCst) + 1;
        self.most_at_once.fetch_max(at_once, Ordering::SeqCst);
        #[expect(clippy::disallowed_methods, reason = "the user's code blocks its thread")]
        std::thread::sleep(Duration::from_millis(20));
        self.at_once.fetch_sub(1, Ordering::SeqCst);
        self.database.insert(record);
    }
}

impl BlockingHandler for Blocking {
    fn handle(&self, record: &Record, _shard: &ShardContext) -> Result<(), ProcessError> {
        assert!(
            record.data().as_ref() != b"7" || self.database.count("7 has failed") > 0 || {
                *self.database.0.lock().unwrap().entry("7 has failed".to_owned()).or_default() += 1;
                false
            }
        );
        self.work(record);
        Ok(())
    }
}

impl BlockingProcessor for Blocking {
    fn process_records(&mut self, batch: &RecordBatch, shard: &ShardContext) -> ProcessResult {
        for record in batch {
            if shard.interruption().is_some() {
                return Ok(Outcome::Acknowledged);
            }
            self.work(record);
            batch.ack(record);
        }
        tokio::runtime::Handle::current().block_on(shard.checkpointer().checkpoint())?;
        Ok(Outcome::Done)
    }
}

#[test]
fn blocking_forms_run_beside_each_other_and_lose_nothing() {
    for as_handler in [true, false] {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        runtime.block_on(async {
            let aws = SimulatedAws::new(1);
            aws.create_stream(STREAM, 1);
            (0..40).for_each(|number| {
                aws.put(STREAM, &format!("key-{}", number % 4), number.to_string());
            });
            let blocking = Blocking::default();
            let made = blocking.clone();
            let running = Running::start(&aws, "host", |builder| {
                let builder = builder.lanes(Lanes::new(4));
                if as_handler { builder.blocking_handler(made) } else { builder.blocking_processor(move |_: &ShardContext| made.clone()) }
            })
            .await;
            let expected = if as_handler { 41 } else { 40 };
            while blocking.database.distinct() < expected {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            assert_eq!(blocking.database.repeated(), 0);
            assert!(blocking.most_at_once.load(Ordering::SeqCst) > 1, "lanes are threads of their own");
            running.stop().await.1.unwrap();
        });
    }
}
