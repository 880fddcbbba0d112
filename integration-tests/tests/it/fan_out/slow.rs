//! Processors that stand still while records arrive.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use aws_sdk_kinesis::primitives::Blob;
use futures::future::join_all;
use kcl_core::{Outcome, ProcessResult, RecordBatch, RecordProcessor, ShardContext, async_trait};
use kcl_local::kinesis::KinesisConfig;
use tokio::time::sleep;

use super::scene::{Scene, strict};
use crate::support::{Ledger, Running, eventually};

const STANDSTILL: Duration = Duration::from_secs(8);
const RECORDS: usize = 48;
const SIZE: usize = 256 << 10;
/// An event of the server's is at most 1 MiB. One is in work, and one is read ahead.
const AHEAD: usize = 2 << 20;

/// Stands still at the first record, and notes how much it has had.
struct Slow {
    ledger: Ledger,
    stood: Arc<AtomicBool>,
    bytes: Arc<AtomicUsize>,
}

#[async_trait]
impl RecordProcessor for Slow {
    async fn process_records(&mut self, batch: &RecordBatch, shard: &ShardContext) -> ProcessResult {
        if !self.stood.swap(true, Ordering::SeqCst) {
            sleep(STANDSTILL).await;
        }
        for record in batch {
            self.bytes.fetch_add(record.data().len(), Ordering::SeqCst);
            let name = String::from_utf8(record.data().iter().copied().take_while(|byte| *byte != b' ').collect()).unwrap();
            self.ledger.record_as("a", shard, record, name);
        }
        Ok(Outcome::Done)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_processor_that_stands_still_costs_neither_memory_nor_subscriptions() {
    // (what, how long a subscription lives, most subscriptions, HTTP/2). What there is to read takes six seconds.
    let cases = [("slow", 300_000, 1, true), ("slow over HTTP/1.1", 300_000, 1, false), ("slow beyond the subscription", 2_000, 8, true)];
    join_all(cases.map(async |(name, subscription_life_ms, most, http2)| {
        let mut scene = Scene::new(1, KinesisConfig { subscription_life_ms, resubscribe_ms: 200, ..strict() }).await;
        scene.http2 = http2;
        let (stood, bytes) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let slow = {
            let (ledger, stood, bytes) = (scene.ledger.clone(), Arc::clone(&stood), Arc::clone(&bytes));
            move |_: &ShardContext| Slow { ledger: ledger.clone(), stood: Arc::clone(&stood), bytes: Arc::clone(&bytes) }
        };
        let worker = Running::start(scene.worker("a").processor(slow)).await;
        eventually("the shard is subscribed to", async || (scene.local().open_subscriptions() == 1).then_some(())).await;
        for number in 0..RECORDS {
            let payload = format!("key:{number}");
            let put = scene.world.kinesis.put_record().stream_name(&scene.world.stream).partition_key("key");
            put.data(Blob::new([payload.as_bytes(), &[b' '; SIZE][payload.len()..]].concat())).send().await.unwrap();
            scene.published.insert(payload);
        }
        assert!(stood.load(Ordering::SeqCst));
        let mut most_ahead = 0;
        eventually("it goes on", async || {
            // Read first: what is finished between the two reads makes the difference smaller.
            let processed = bytes.load(Ordering::SeqCst);
            most_ahead = most_ahead.max(scene.calls.bytes_taken() - processed);
            (processed > 0).then_some(())
        })
        .await;
        println!("{name}: {most_ahead} of {} bytes ahead", RECORDS * SIZE);
        // One whose life is over by then may have been renewed at once.
        assert!(scene.calls.count() <= most.min(2), "{name}: nothing is asked for as long as nothing is taken");
        assert!((SIZE..=AHEAD).contains(&most_ahead), "{name}: {most_ahead} bytes taken ahead of the processor");
        scene.all_delivered().await;
        assert_eq!(bytes.load(Ordering::SeqCst), RECORDS * SIZE);
        let accepted = scene.calls.accepted();
        assert!(accepted <= most, "{name}: {accepted} subscriptions");
        scene.finish(name, [worker]).await;
    }))
    .await;
}
