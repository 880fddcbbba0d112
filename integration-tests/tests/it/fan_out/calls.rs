//! The calls of SubscribeToShard that the workers of a test make, and the limits that they have to keep.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use kcl_core::async_trait;
use kcl_core::stream::StartingPosition;
use kcl_efo::{Consumer, Event, EventStream, FanOutApi, FanOutError, KinesisFanOut};
use tokio::time::Instant;

/// The limits are per second; what a busy machine may delay the first of two calls by is taken off.
const SECOND: Duration = Duration::from_millis(950);
/// Calls of one consumer in a second (AWS limit).
const PER_CONSUMER: usize = 5;

/// One call of SubscribeToShard.
#[derive(Clone, Debug)]
pub(super) struct Call {
    pub(super) at: Instant,
    pub(super) worker: String,
    pub(super) shard: String,
    /// `None` while it has no answer, or if nobody waited for it.
    pub(super) answer: Option<Result<(), FanOutError>>,
}

impl Call {
    pub(super) fn was_accepted(&self) -> bool {
        self.answer == Some(Ok(()))
    }

    pub(super) fn was_in_use(&self) -> bool {
        matches!(self.answer, Some(Err(FanOutError::InUse { .. })))
    }
}

#[derive(Debug, Default)]
struct Log {
    calls: Vec<Call>,
    /// Bytes of records that were taken from subscriptions.
    bytes: usize,
}

/// All calls of all workers of a test, in order. Clones share them.
#[derive(Clone, Debug, Default)]
pub(super) struct Calls(Arc<Mutex<Log>>);

impl Calls {
    pub(super) fn all(&self) -> Vec<Call> {
        self.0.lock().unwrap().calls.clone()
    }

    pub(super) fn count(&self) -> usize {
        self.0.lock().unwrap().calls.len()
    }

    pub(super) fn accepted(&self) -> usize {
        self.0.lock().unwrap().calls.iter().filter(|call| call.was_accepted()).count()
    }

    pub(super) fn in_use(&self) -> usize {
        self.0.lock().unwrap().calls.iter().filter(|call| call.was_in_use()).count()
    }

    /// How many were made since then, by this worker.
    pub(super) fn since(&self, worker: &str, time: Instant) -> usize {
        self.all().iter().filter(|call| call.worker == worker && call.at > time).count()
    }

    /// Bytes of records that readers have taken from their subscriptions.
    pub(super) fn bytes_taken(&self) -> usize {
        self.0.lock().unwrap().bytes
    }

    /// Panics unless there was at most one call a second for each shard, and at most five a second of the consumer, all workers together.
    pub(super) fn assert_budget(&self) {
        let calls = self.all();
        let shards: BTreeSet<_> = calls.iter().map(|call| &call.shard).collect();
        for shard in shards {
            let of_shard: Vec<_> = calls.iter().filter(|call| call.shard == *shard).collect();
            for pair in of_shard.windows(2) {
                let between = pair[1].at - pair[0].at;
                assert!(between >= SECOND, "{between:?} between two calls for {shard}: {pair:#?}");
            }
        }
        for six in calls.windows(PER_CONSUMER + 1) {
            let within = six[PER_CONSUMER].at - six[0].at;
            assert!(within >= SECOND, "{} calls within {within:?}: {six:#?}", six.len());
        }
        let over_a_rate =
            |call: &&Call| matches!(&call.answer, Some(Err(FanOutError::Throttled { message, .. })) if message.contains("Rate"));
        let throttled: Vec<_> = calls.iter().filter(over_a_rate).collect();
        assert!(throttled.is_empty(), "the server found them too many: {throttled:?}");
    }

    /// What to print: calls by shard, as accepted of all.
    pub(super) fn summary(&self) -> String {
        let mut shards: BTreeMap<String, (usize, usize, usize)> = BTreeMap::new();
        for call in self.all() {
            let (all, accepted, in_use) = shards.entry(call.shard.trim_start_matches("shardId-0000000000").to_owned()).or_default();
            *all += 1;
            *accepted += usize::from(call.was_accepted());
            *in_use += usize::from(call.was_in_use());
        }
        let shown = shards.iter().map(|(shard, (all, accepted, in_use))| format!("{shard}: {all} ({accepted} accepted, {in_use} in use)"));
        shown.collect::<Vec<_>>().join(", ")
    }
}

/// Kinesis, with each call for a subscription noted.
#[derive(Debug)]
pub(super) struct Noted {
    pub(super) api: KinesisFanOut,
    pub(super) worker: String,
    pub(super) calls: Calls,
}

#[async_trait]
impl FanOutApi for Noted {
    async fn register(&self, stream_arn: &str, name: &str) -> Result<Consumer, FanOutError> {
        self.api.register(stream_arn, name).await
    }

    async fn find(&self, stream_arn: &str, name: &str) -> Result<Consumer, FanOutError> {
        self.api.find(stream_arn, name).await
    }

    async fn describe(&self, consumer_arn: &str) -> Result<Consumer, FanOutError> {
        self.api.describe(consumer_arn).await
    }

    async fn deregister(&self, consumer_arn: &str) -> Result<(), FanOutError> {
        self.api.deregister(consumer_arn).await
    }

    async fn subscribe(&self, consumer_arn: &str, shard: &str, start: StartingPosition) -> Result<Box<dyn EventStream>, FanOutError> {
        let number = {
            let calls = &mut self.calls.0.lock().unwrap().calls;
            calls.push(Call { at: Instant::now(), worker: self.worker.clone(), shard: shard.to_owned(), answer: None });
            calls.len() - 1
        };
        let opened = self.api.subscribe(consumer_arn, shard, start).await;
        self.calls.0.lock().unwrap().calls[number].answer = Some(opened.as_ref().map(|_| ()).map_err(Clone::clone));
        Ok(Box::new(Taken { stream: opened?, calls: self.calls.clone() }))
    }
}

struct Taken {
    stream: Box<dyn EventStream>,
    calls: Calls,
}

#[async_trait]
impl EventStream for Taken {
    async fn next(&mut self) -> Result<Option<Event>, FanOutError> {
        let event = self.stream.next().await?;
        self.calls.0.lock().unwrap().bytes += event.iter().flat_map(|event| &event.records).map(|record| record.data.len()).sum::<usize>();
        Ok(event)
    }
}
