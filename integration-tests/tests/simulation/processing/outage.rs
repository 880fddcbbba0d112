//! Outages of what processors depend on: no good record goes to the dead-letter queue, however long
//! they last, and a bad one among them still does.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use kcl_core::test_util::SimulatedAws;
use kcl_core::{
    Batching, Checkpoint, Checkpointing, DeadLetter, Lanes, Outcome, PollingConfig, ProcessError, ProcessResult, Record, RecordBatch,
    RecordHandler, RecordProcessor, RetryPolicy, ShardContext, ShardState, WorkerBuilder, WorkerHandle, async_trait,
};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until};

use super::service::{APPLICATION, QUEUE, STREAM, text, until};

/// A database that is away for a while, and refuses bad rows.
#[derive(Clone)]
struct Database {
    away_until: Instant,
    /// Key and text of each row, in order.
    rows: Arc<Mutex<Vec<(String, String)>>>,
    calls: Arc<Mutex<u64>>,
}

impl Database {
    fn new(away: Duration) -> Self {
        Self { away_until: Instant::now() + away, rows: Arc::default(), calls: Arc::default() }
    }

    async fn insert(&self, records: &[Record]) -> std::io::Result<()> {
        *self.calls.lock().unwrap() += 1;
        sleep(Duration::from_millis(2)).await;
        if records.iter().any(|record| text(record).starts_with("hangs")) {
            std::future::pending::<()>().await;
        }
        if Instant::now() < self.away_until {
            return Err(std::io::Error::other("connection refused"));
        }
        if records.iter().any(|record| text(record).starts_with("bad")) {
            return Err(std::io::Error::other("value out of range"));
        }
        let rows = records.iter().map(|record| (record.partition_key().unwrap_or_default().to_owned(), text(record)));
        self.rows.lock().unwrap().extend(rows);
        Ok(())
    }

    fn rows(&self) -> Vec<(String, String)> {
        self.rows.lock().unwrap().clone()
    }

    fn assert_in_order(&self) {
        let mut keys: BTreeMap<String, Vec<u64>> = BTreeMap::new();
        for (key, text) in self.rows() {
            keys.entry(key).or_default().push(text.parse().unwrap());
        }
        for (key, numbers) in keys {
            assert!(numbers.is_sorted(), "{key}: {numbers:?}");
        }
    }
}

/// A handler of records, one by one.
struct Handler(Database);

#[async_trait]
impl RecordHandler for Handler {
    async fn handle(&self, record: &Record, _shard: &ShardContext) -> Result<(), ProcessError> {
        Ok(self.0.insert(std::slice::from_ref(record)).await?)
    }
}

/// A processor that gathers a batch and writes it in one go.
struct Gathers(Database);

#[async_trait]
impl RecordProcessor for Gathers {
    async fn process_records(&mut self, batch: &RecordBatch, _shard: &ShardContext) -> ProcessResult {
        self.0.insert(batch.records()).await?;
        Ok(Outcome::Done)
    }
}

/// One worker with its database.
struct Scene {
    aws: SimulatedAws,
    database: Database,
    handle: WorkerHandle,
    _worker: JoinSet<()>,
}

impl Scene {
    async fn start(shards: u32, away: Duration, settings: impl FnOnce(WorkerBuilder, &Database) -> WorkerBuilder) -> Self {
        let aws = SimulatedAws::new(7);
        aws.create_stream(STREAM, shards);
        let database = Database::new(away);
        let host = aws.host("host-1");
        let builder =
            host.worker(APPLICATION, STREAM).lease_duration(Duration::from_secs(60)).dead_letter_queue(host.dead_letter_queue(QUEUE));
        let worker = settings(builder, &database).build().await.unwrap();
        let handle = worker.handle();
        let mut running = JoinSet::new();
        running.spawn(async move {
            host.run(worker.run()).await.unwrap();
        });
        Self { aws, database, handle, _worker: running }
    }

    fn put(&self, number: u64, keys: u64) {
        self.aws.put(STREAM, &format!("key-{}", number % keys), number.to_string());
    }

    fn letters(&self) -> Vec<DeadLetter> {
        self.aws.dead_letters(QUEUE)
    }

    fn states(&self) -> Vec<ShardState> {
        self.handle.status().shards.values().map(|status| status.state).collect()
    }
}

#[derive(Clone, Copy, Debug)]
enum Form {
    Handler,
    Gathers,
}

/// Records that come before or during the outage, and those that come a second apart after it.
const BEFORE: u64 = 240;
const RECORDS: u64 = 300;
const KEYS: u64 = 40;

/// An outage of this length with default settings.
async fn outage(seconds: u64, shards: u32, lanes: usize, form: Form, is_one_bad: bool) {
    let away = Duration::from_secs(seconds);
    let mut scene = Scene::start(shards, away, |builder, database| {
        let database = database.clone();
        let builder = builder.lanes(Lanes::new(lanes));
        // Reads that find nothing are most of what a long run costs.
        let idle_interval = Duration::from_secs(if seconds > 3_600 { 10 } else { 1 });
        let builder = builder.polling(PollingConfig { idle_interval, ..PollingConfig::default() });
        match form {
            Form::Handler => builder.handler(Handler(database)),
            Form::Gathers => builder.processor(move |_: &ShardContext| Gathers(database.clone())),
        }
    })
    .await;
    let name = format!("{seconds} s, {shards} shards, {lanes} lanes, {form:?}, one bad: {is_one_bad}");
    for number in 0..BEFORE {
        if is_one_bad && number == BEFORE / 3 {
            scene.aws.put(STREAM, "key-3", "bad".to_owned());
        }
        scene.put(number, KEYS);
        if number == BEFORE / 2 {
            sleep(away / 4).await;
        }
    }
    if seconds >= 60 {
        sleep(away / 4).await;
        assert!(scene.states().contains(&ShardState::DependencyFailing), "{name}: {:?}", scene.states());
        assert!(ShardState::DependencyFailing.is_stuck());
    }
    sleep_until(scene.database.away_until).await;
    assert!(scene.letters().is_empty(), "{name}: {} letters", scene.letters().len());
    let back = Instant::now();
    for number in BEFORE..RECORDS {
        scene.put(number, KEYS);
        sleep(Duration::from_secs(1)).await;
    }
    // The bad record has its attempts before others of its key.
    let soon = Duration::from_secs(if is_one_bad { 130 } else { 75 });
    until("all are processed", || scene.database.rows().len() as u64 == RECORDS || back.elapsed() > soon).await;
    assert_eq!(scene.database.rows().len() as u64, RECORDS, "{name}: {:?}", scene.states());
    until("the bad one is found", || scene.letters().len() == usize::from(is_one_bad) || back.elapsed() > soon).await;
    sleep(Duration::from_secs(60)).await;
    let letters: Vec<_> = scene.letters().iter().map(|letter| text(&letter.record)).collect();
    assert_eq!(letters, vec!["bad"; usize::from(is_one_bad)], "{name}");
    assert_eq!(scene.database.rows().len() as u64, RECORDS, "{name}: each once");
    scene.database.assert_in_order();
    assert!(scene.states().iter().all(|state| *state == ShardState::Processing), "{name}: {:?}", scene.states());
    scene.handle.shutdown();
    scene._worker.join_next().await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn an_outage_costs_no_good_record_of_a_handler() {
    for seconds in [2, 60, 300, 1_800] {
        for (shards, lanes) in [(4, 1), (1, 1), (4, 16), (1, 16)] {
            for is_one_bad in [false, true] {
                outage(seconds, shards, lanes, Form::Handler, is_one_bad).await;
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn an_outage_costs_no_good_record_of_a_processor_that_gathers() {
    for seconds in [2, 60, 300, 1_800] {
        for (shards, lanes) in [(4, 1), (1, 1), (4, 16), (1, 16)] {
            for is_one_bad in [false, true] {
                outage(seconds, shards, lanes, Form::Gathers, is_one_bad).await;
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn an_outage_of_twelve_hours_costs_no_good_record() {
    let half_a_day = 12 * 3600;
    outage(half_a_day, 4, 1, Form::Handler, true).await;
    outage(half_a_day, 1, 1, Form::Gathers, true).await;
    outage(half_a_day, 1, 16, Form::Handler, true).await;
}

/// A call of one record at a time has no other to try: one is looked for in what comes next.
#[tokio::test(start_paused = true)]
async fn a_bad_record_is_found_whatever_the_size_of_batches() {
    for most in [1, 3] {
        let scene =
            Scene::start(1, Duration::ZERO, |builder, database| builder.batching(Batching::up_to(most)).handler(Handler(database.clone())))
                .await;
        scene.aws.put(STREAM, "key-0", "bad".to_owned());
        (0..20).for_each(|number| scene.put(number, 5));
        until("another one was tried", || !scene.database.rows().is_empty()).await;
        sleep(Duration::from_millis(500)).await;
        assert!(scene.letters().is_empty());
        assert_eq!(scene.aws.leases(APPLICATION)[0].checkpoint, Checkpoint::TrimHorizon, "it has not passed the first one");
        until("it is found", || scene.letters().len() == 1).await;
        assert!(scene.aws.elapsed() < Duration::from_secs(120));
        until("all are processed", || scene.database.rows().len() == 20).await;
        scene.database.assert_in_order();
    }
}

/// Without any other record nobody knows whose fault it is.
#[tokio::test(start_paused = true)]
async fn a_record_without_neighbours_has_the_patience_and_no_more() {
    for patience in [Duration::from_secs(900), Duration::MAX] {
        let scene = Scene::start(1, Duration::ZERO, |builder, database| {
            builder.retry_policy(RetryPolicy { patience, ..RetryPolicy::default() }).handler(Handler(database.clone()))
        })
        .await;
        scene.aws.put(STREAM, "key-0", "bad".to_owned());
        // Of the same key: it can't be tried before.
        scene.aws.put(STREAM, "key-0", "1".to_owned());
        sleep(Duration::from_secs(890)).await;
        assert_eq!((scene.letters().len(), scene.database.rows().len()), (0, 0));
        sleep(Duration::from_secs(60)).await;
        let found = usize::from(patience != Duration::MAX);
        assert_eq!((scene.letters().len(), scene.database.rows().len()), (found, found));
    }
}

/// A checkpoint by hand would cover the record that waits.
#[tokio::test(start_paused = true)]
async fn a_processor_that_checkpoints_for_itself_is_given_nothing_ahead() {
    let retry = RetryPolicy { patience: Duration::from_secs(60), ..RetryPolicy::default() };
    let scene = Scene::start(1, Duration::ZERO, |builder, database| {
        let builder = builder.checkpointing(Checkpointing::Manual).batching(Batching::up_to(1)).retry_policy(retry);
        builder.handler(Handler(database.clone()))
    })
    .await;
    scene.aws.put(STREAM, "key-0", "bad".to_owned());
    (1..10).for_each(|number| scene.put(number, 10));
    sleep(Duration::from_secs(55)).await;
    assert_eq!((scene.letters().len(), scene.database.rows().len()), (0, 0));
    until("it is found", || scene.letters().len() == 1).await;
    until("all are processed", || scene.database.rows().len() == 9).await;
}

/// Two bad records of different keys fail alike; those that succeed beside them tell.
#[tokio::test(start_paused = true)]
async fn bad_records_do_not_shield_each_other() {
    for (lanes, form) in [(1, Form::Handler), (16, Form::Handler), (1, Form::Gathers)] {
        let scene = Scene::start(1, Duration::ZERO, |builder, database| {
            let (builder, database) = (builder.lanes(Lanes::new(lanes)), database.clone());
            match form {
                Form::Handler => builder.handler(Handler(database)),
                Form::Gathers => builder.processor(move |_: &ShardContext| Gathers(database.clone())),
            }
        })
        .await;
        for number in 0..120 {
            if [10, 11, 12, 50].contains(&number) {
                scene.aws.put(STREAM, &format!("key-{}", number % KEYS), format!("bad {number}"));
            }
            scene.put(number, KEYS);
        }
        for number in 120..300 {
            sleep(Duration::from_secs(1)).await;
            scene.put(number, KEYS);
        }
        until("they are found", || scene.letters().len() == 4).await;
        until("all are processed", || scene.database.rows().len() == 300).await;
        assert!(scene.aws.elapsed() < Duration::from_secs(400), "{lanes} {form:?}: {:?}", scene.aws.elapsed());
        scene.database.assert_in_order();
    }
}

/// A connection may hang for ever where others are refused: that stops its own key alone.
#[tokio::test(start_paused = true)]
async fn a_call_that_hangs_in_an_outage_keeps_no_other_key_waiting() {
    let away = Duration::from_secs(600);
    let scene = Scene::start(1, away, |builder, database| builder.lanes(Lanes::new(16)).handler(Handler(database.clone()))).await;
    (0..40).for_each(|number| scene.put(number, KEYS));
    until("the outage is noticed", || scene.states() == [ShardState::DependencyFailing]).await;
    for number in 0..3 {
        // Tried least, so it is the next one that finds out whether the database is back.
        scene.aws.put(STREAM, &format!("hangs-{number}"), "hangs".to_owned());
        sleep(Duration::from_secs(60)).await;
    }
    sleep_until(scene.database.away_until).await;
    until("all others are processed", || scene.database.rows().len() == 40).await;
    assert!(scene.database.away_until.elapsed() < Duration::from_secs(60), "{:?}", scene.database.away_until.elapsed());
    assert!(scene.letters().is_empty());
}

/// While the dependency is away a shard makes one call at a time, however many keys it has.
#[tokio::test(start_paused = true)]
async fn a_dependency_that_is_away_is_asked_seldom() {
    let away = Duration::from_secs(3600);
    let scene = Scene::start(1, away, |builder, database| builder.lanes(Lanes::new(64)).handler(Handler(database.clone()))).await;
    (0..2_000).for_each(|number| scene.put(number, 1_000));
    sleep_until(scene.database.away_until - Duration::from_secs(1)).await;
    let calls = *scene.database.calls.lock().unwrap();
    assert!((360..1_000).contains(&calls), "{calls} calls in an hour, a wait of 1 to 10 s after each");
    until("all are processed", || scene.database.rows().len() == 2_000).await;
    assert!(scene.database.away_until.elapsed() < Duration::from_secs(60), "{:?}", scene.database.away_until.elapsed());
    assert!(scene.letters().is_empty());
}
