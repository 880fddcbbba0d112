//! Reading as a whole worker does it: what a fault or a setting of reading costs, and what it does not.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use kcl_core::stream::{RecordsPage, Shard, ShardFilter, ShardIterator, StartingPosition, StreamApi, StreamDescription, StreamError};
use kcl_core::test_util::{Event, SimulatedAws};
use kcl_core::{
    Outcome, PollingConfig, ProcessResult, ReadUntil, RecordBatch, RecordProcessor, RetrievalMode, ShardContext, ShardId, ShardState,
    TrimmedData, WorkerBuilder, async_trait,
};
use tokio::time::sleep;

use super::fleet::{APPLICATION, Fleet, STREAM, until};

/// What becomes of an answer to GetRecords.
type Fate = Box<dyn Fn(RecordsPage) -> Result<RecordsPage, StreamError> + Send + Sync>;

/// A stream whose answers to GetRecords are changed on their way.
struct Changed<S> {
    stream: S,
    fate: Fate,
}

impl<S> std::fmt::Debug for Changed<S> {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("Changed")
    }
}

#[async_trait]
impl<S: StreamApi> StreamApi for Changed<S> {
    async fn describe(&self) -> Result<StreamDescription, StreamError> {
        self.stream.describe().await
    }

    async fn list_shards(&self, filter: ShardFilter) -> Result<Vec<Shard>, StreamError> {
        self.stream.list_shards(filter).await
    }

    async fn shard_iterator(&self, shard: &ShardId, start: StartingPosition) -> Result<ShardIterator, StreamError> {
        self.stream.shard_iterator(shard, start).await
    }

    async fn get_records(&self, iterator: &ShardIterator, limit: u32) -> Result<RecordsPage, StreamError> {
        (self.fate)(self.stream.get_records(iterator, limit).await?)
    }
}

impl Fleet {
    /// Starts a worker whose answers to GetRecords meet this fate.
    async fn start_changed(&mut self, fate: Fate, settings: impl Fn(WorkerBuilder) -> WorkerBuilder) {
        let stream = self.aws.host("stream").stream(STREAM);
        let stream: Arc<dyn StreamApi> = Arc::new(Changed { stream, fate });
        self.start_with(1, |builder| settings(builder.stream_api(Arc::clone(&stream)))).await;
    }

    fn state(&self) -> Option<ShardState> {
        self.running[0].1.status().shards.values().next().map(|shard| shard.state)
    }
}

/// Counts how often a lease changes hands.
fn takes(aws: &SimulatedAws) -> Arc<AtomicU64> {
    let takes = Arc::<AtomicU64>::default();
    let count = Arc::clone(&takes);
    aws.observe(move |event| {
        if let Event::LeaseWritten { before, after, .. } = event
            && before.owner != after.owner
            && after.owner.is_some()
        {
            count.fetch_add(1, Ordering::Relaxed);
        }
    });
    takes
}

/// The first answer that `matches` is replaced by an error.
fn once(matches: fn(&RecordsPage) -> bool, error: fn(String, &'static str, String) -> StreamError) -> Fate {
    let failed = std::sync::atomic::AtomicBool::new(false);
    Box::new(move |page| {
        if matches(&page) && !failed.swap(true, Ordering::Relaxed) {
            return Err(error(STREAM.to_owned(), "kinesis:GetRecords", "a fault on the way".to_owned()));
        }
        Ok(page)
    })
}

#[tokio::test(start_paused = true)]
async fn one_refused_read_is_not_taken_for_trimmed_records() {
    for policy in [TrimmedData::Block, TrimmedData::SkipAndAudit] {
        let mut fleet = Fleet::new(1, 1);
        let mut records = fleet.put(5).await;
        fleet.start(1).await;
        fleet.has("the first are processed", &records).await;
        fleet.stop().await;
        // The next worker begins at the checkpoint, and its first read is refused.
        let refused = |stream, operation, message| StreamError::InvalidArgument { stream, operation, message };
        fleet.start_changed(once(|_| true, refused), |builder| builder.trimmed_data(policy)).await;
        records.extend(fleet.put(5).await);
        fleet.has("the rest is processed", &records).await;
        assert_eq!(fleet.state(), Some(ShardState::Processing));
        fleet.stop().await;
        assert_eq!(fleet.log.all().len(), records.len(), "{policy:?}: and nothing is read again");
    }
}

/// Takes 310 s for a call.
struct Slow;

#[async_trait]
impl RecordProcessor for Slow {
    async fn process_records(&mut self, _batch: &RecordBatch, _shard: &ShardContext) -> ProcessResult {
        sleep(Duration::from_secs(310)).await;
        Ok(Outcome::Done)
    }
}

#[tokio::test(start_paused = true)]
async fn a_failed_read_behind_a_long_call_does_not_cost_the_lease() {
    let mut fleet = Fleet::new(2, 1);
    fleet.put(1).await;
    let takes = takes(&fleet.aws);
    let denied = |stream, operation, message| StreamError::AccessDenied { stream, operation, message };
    let fate = once(|page| page.records.is_empty(), denied);
    fleet.start_changed(fate, |builder| builder.processor(|_: &ShardContext| Slow)).await;
    until("the shard is read", || fleet.state() == Some(ShardState::Processing)).await;
    for _ in 0..900 {
        sleep(Duration::from_secs(1)).await;
        assert_ne!(fleet.state(), None, "it is kept");
    }
    assert_eq!(fleet.state(), Some(ShardState::Processing));
    assert_eq!(takes.load(Ordering::Relaxed), 1);
    fleet.stop().await;
}

#[tokio::test(start_paused = true)]
async fn the_longest_waits_that_the_settings_allow_cost_no_lease_and_look_like_no_failure() {
    let settings = [
        PollingConfig { idle_interval: Duration::from_secs(60), ..PollingConfig::default() },
        PollingConfig { min_interval: Duration::from_secs(60), idle_interval: Duration::from_secs(60), ..PollingConfig::default() },
        PollingConfig { max_bytes_per_second: Some(64 << 10), ..PollingConfig::default() },
    ];
    for polling in settings {
        let mut fleet = Fleet::new(3, 2);
        // An answer of 8 MiB is paid off in two minutes.
        let is_slow = polling.max_bytes_per_second.is_some_and(|rate| rate < 1 << 20);
        for number in 0..if is_slow { 18 } else { 0 } {
            fleet.aws.put(STREAM, &number.to_string(), vec![b'1'; 900_000]);
            sleep(Duration::from_secs(1)).await;
        }
        let takes = takes(&fleet.aws);
        fleet.start_with(2, |builder| builder.polling(polling.clone()).processor(|_: &ShardContext| Quick)).await;
        let spread = |fleet: &Fleet| fleet.running.iter().all(|(_, handle)| handle.status().shards.len() == 1);
        until("each has a shard", || spread(&fleet)).await;
        sleep(Duration::from_secs(5)).await;
        let begun = takes.load(Ordering::Relaxed);
        for _ in 0..3_600 {
            sleep(Duration::from_secs(1)).await;
            let states = fleet.running.iter().flat_map(|(_, handle)| handle.status().shards.into_values().map(|shard| shard.state));
            assert_eq!(states.collect::<Vec<_>>(), [ShardState::Processing; 2], "{polling:?}");
        }
        assert_eq!(takes.load(Ordering::Relaxed), begun, "{polling:?}");
        fleet.stop().await;
    }
}

struct Quick;

#[async_trait]
impl RecordProcessor for Quick {
    async fn process_records(&mut self, _batch: &RecordBatch, _shard: &ShardContext) -> ProcessResult {
        Ok(Outcome::Done)
    }
}

/// A worker that can't read is cut off as before, whatever its interval.
#[tokio::test(start_paused = true)]
async fn a_worker_whose_reads_all_fail_lets_go_after_its_patience() {
    let mut fleet = Fleet::new(4, 1);
    let takes = takes(&fleet.aws);
    let fate: Fate = Box::new(|_| {
        let (stream, operation, message) = (STREAM.to_owned(), "kinesis:GetRecords", "always".to_owned());
        Err(StreamError::AccessDenied { stream, operation, message })
    });
    fleet.start_changed(fate, |builder| builder).await;
    until("it has the shard", || fleet.state().is_some()).await;
    sleep(Duration::from_secs(290)).await;
    assert_eq!(fleet.state(), Some(ShardState::ReadFailing));
    sleep(Duration::from_secs(20)).await;
    assert_eq!(fleet.state(), None, "it let go after five minutes");
    assert_eq!(takes.load(Ordering::Relaxed), 1);
    fleet.stop().await;
}

/// Takes 400 ms for a call, and counts records.
struct Counting(Arc<AtomicU64>);

#[async_trait]
impl RecordProcessor for Counting {
    async fn process_records(&mut self, batch: &RecordBatch, _shard: &ShardContext) -> ProcessResult {
        sleep(Duration::from_millis(400)).await;
        self.0.fetch_add(batch.len() as u64, Ordering::Relaxed);
        Ok(Outcome::Done)
    }
}

async fn records_in_five_seconds(mode: RetrievalMode, prefetch_bytes: usize) -> u64 {
    const SHARDS: u32 = 60;
    let mut fleet = Fleet::new(5, SHARDS);
    let count = Arc::<AtomicU64>::default();
    let counted = Arc::clone(&count);
    let settings = move |builder: WorkerBuilder| {
        let counted = Arc::clone(&counted);
        builder
            .retrieval(mode)
            .prefetch_bytes(prefetch_bytes)
            .polling(PollingConfig { max_records: 20, ..PollingConfig::default() })
            .processor(move |_: &ShardContext| Counting(Arc::clone(&counted)))
    };
    fleet.start_with(1, settings).await;
    sleep(Duration::from_secs(90)).await;
    fleet.aws.faults().set_latency(Duration::from_millis(150), Duration::from_millis(250));
    for record in 0..SHARDS * 400 {
        fleet.aws.put(STREAM, &format!("key-{record}"), "a payload");
    }
    let before = count.load(Ordering::Relaxed);
    sleep(Duration::from_secs(5)).await;
    let processed = count.load(Ordering::Relaxed) - before;
    fleet.running[0].0.kill();
    processed
}

#[tokio::test(start_paused = true)]
async fn many_shards_read_as_fast_with_the_default_budget_as_with_a_large_one() {
    for mode in [RetrievalMode::Polling, RetrievalMode::FanOut] {
        let with_default = records_in_five_seconds(mode, 128 << 20).await;
        let with_large = records_in_five_seconds(mode, 4 << 30).await;
        assert!(with_default * 10 >= with_large * 9, "{mode:?}: {with_default} records against {with_large}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_bounded_reading_ends_although_no_answer_says_how_far_behind_it_is() {
    let mut fleet = Fleet::new(6, 2);
    let records = fleet.put(40).await;
    fleet.split("shardId-000000000000");
    fleet.resharded(3).await;
    sleep(Duration::from_secs(5)).await;
    let silent: Fate = Box::new(|page| Ok(RecordsPage { millis_behind_latest: None, ..page }));
    fleet.start_changed(silent, |builder| builder.read_until(ReadUntil::TipAtStart)).await;
    fleet.ended().await;
    assert_eq!(fleet.log.numbers(), records);
    assert!(fleet.aws.leases(APPLICATION).iter().all(|lease| lease.owner.is_none()), "they have let go");
}
