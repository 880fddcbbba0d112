//! Outages and bad records where one is hard to tell from the other: no good record leaves, whatever
//! else happens, and a bad one does when others succeed.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use kcl_core::test_util::SimulatedAws;
use kcl_core::{
    Lanes, Outcome, ProcessError, ProcessResult, Record, RecordBatch, RecordHandler, RecordProcessor, RetryPolicy, ShardContext,
    WorkerBuilder, async_trait,
};
use tokio::time::{Instant, sleep};

use crate::log::Log;

use super::{Database, QUEUE, Running, STREAM, aws, text, until};

/// A sink with its faults. Clones are the same.
#[derive(Clone)]
struct Sink {
    database: Database,
    /// It answers for the first time of each period, and not for the second.
    comes_and_goes: Option<(Duration, Duration)>,
    away_until: Instant,
    /// The most records that it takes at once.
    most: usize,
    in_work: Arc<AtomicU32>,
}

impl Sink {
    fn new() -> Self {
        let away_until = Instant::now();
        Self { database: Database::default(), comes_and_goes: None, away_until, most: usize::MAX, in_work: Arc::default() }
    }

    fn is_away(&self) -> bool {
        let goes = self.comes_and_goes.is_some_and(|(up, down)| {
            let into = self.away_until.elapsed().as_millis() % (up + down).as_millis();
            into >= up.as_millis()
        });
        goes || Instant::now() < self.away_until
    }

    async fn insert(&self, records: &[Record]) -> std::io::Result<()> {
        self.in_work.fetch_add(1, Ordering::SeqCst);
        sleep(Duration::from_millis(3)).await;
        self.in_work.fetch_sub(1, Ordering::SeqCst);
        let is_bad = |record: &Record| text(record).starts_with("bad");
        if self.is_away() || records.len() > self.most || records.iter().any(is_bad) {
            return Err(std::io::Error::other("no"));
        }
        records.iter().for_each(|record| self.database.insert(record));
        Ok(())
    }
}

/// One record at a time.
struct Each(Sink);

#[async_trait]
impl RecordHandler for Each {
    async fn handle(&self, record: &Record, _shard: &ShardContext) -> Result<(), ProcessError> {
        Ok(self.0.insert(std::slice::from_ref(record)).await?)
    }
}

/// A batch in one go.
struct Whole(Sink);

#[async_trait]
impl RecordProcessor for Whole {
    async fn process_records(&mut self, batch: &RecordBatch, _shard: &ShardContext) -> ProcessResult {
        self.0.insert(batch.records()).await?;
        Ok(Outcome::Done)
    }
}

#[derive(Clone, Copy, Debug)]
enum Form {
    Each,
    Whole,
}

async fn start(
    aws: &SimulatedAws,
    machine: &str,
    sink: &Sink,
    form: Form,
    settings: impl FnOnce(WorkerBuilder) -> WorkerBuilder,
) -> Running {
    let queue = aws.host(machine).dead_letter_queue(QUEUE);
    let sink = sink.clone();
    Running::start(aws, machine, |builder| {
        let builder = settings(builder.dead_letter_queue(queue).lease_duration(Duration::from_secs(60)));
        match form {
            Form::Each => builder.handler(Each(sink)),
            Form::Whole => builder.processor(move |_: &ShardContext| Whole(sink.clone())),
        }
    })
    .await
}

fn letters(aws: &SimulatedAws) -> Vec<String> {
    let mut letters: Vec<_> = aws.dead_letters(QUEUE).iter().map(|letter| text(&letter.record)).collect();
    letters.sort();
    letters
}

async fn put(aws: &SimulatedAws, numbers: std::ops::Range<u32>, keys: u32, every: Duration) {
    for number in numbers {
        aws.put(STREAM, &format!("key-{}", number % keys), number.to_string());
        sleep(every).await;
    }
}

/// The two of them fail alike, and no other record has been read yet.
#[tokio::test(start_paused = true)]
async fn two_bad_records_in_a_quiet_moment_leave_when_others_come() {
    for form in [Form::Each, Form::Whole] {
        let (aws, sink) = (aws(1), Sink::new());
        let running = start(&aws, "host", &sink, form, |builder| builder).await;
        put(&aws, 0..20, 20, Duration::ZERO).await;
        until("they are processed", || sink.database.distinct() == 20).await;
        aws.put(STREAM, "key-0", "bad a");
        aws.put(STREAM, "key-1", "bad b");
        sleep(Duration::from_secs(3)).await;
        put(&aws, 20..320, 20, Duration::from_secs(1)).await;
        until("all others are processed", || sink.database.distinct() == 320).await;
        assert!(aws.elapsed() < Duration::from_secs(600), "{form:?}: {:?}", aws.elapsed());
        assert_eq!(letters(&aws), ["bad a", "bad b"], "{form:?}");
        running.kill().await;
    }
}

/// All batches fail alike: for their size, which the trial of an outage must not share.
#[tokio::test(start_paused = true)]
async fn batches_that_are_too_large_for_the_sink_are_divided_although_all_fail_alike() {
    let aws = aws(1);
    let sink = Sink { most: 25, ..Sink::new() };
    put(&aws, 0..800, 4, Duration::ZERO).await;
    let running = start(&aws, "host", &sink, Form::Whole, |builder| builder.lanes(Lanes::new(4))).await;
    until("all are processed", || sink.database.distinct() == 800).await;
    assert!(aws.elapsed() < Duration::from_secs(900), "{:?}", aws.elapsed());
    assert_eq!(letters(&aws), [""; 0]);
    running.kill().await;
}

/// The next owner is careful, one record at a time, and must find out all the same that it is the
/// world that fails.
#[tokio::test(start_paused = true)]
async fn a_death_in_an_outage_costs_no_good_record() {
    let aws = aws(1);
    let away = Duration::from_secs(3 * 3600);
    let sink = Sink { away_until: Instant::now() + away, ..Sink::new() };
    put(&aws, 0..60, 6, Duration::ZERO).await;
    start(&aws, "first", &sink, Form::Each, |builder| builder).await.kill().await;
    let running = start(&aws, "second", &sink, Form::Each, |builder| builder).await;
    sleep(Duration::from_secs(600)).await;
    running.kill().await;
    let running = start(&aws, "third", &sink, Form::Each, |builder| builder).await;
    sleep(away).await;
    until("all are processed", || sink.database.distinct() == 60).await;
    assert_eq!(letters(&aws), [""; 0]);
    running.kill().await;
}

/// Processes that die while the record waits for its next attempt have not died of it.
#[tokio::test(start_paused = true)]
async fn deaths_between_attempts_are_not_the_records() {
    let aws = aws(1);
    let sink = Sink { away_until: Instant::now() + Duration::from_secs(24 * 3600), ..Sink::new() };
    put(&aws, 0..12, 1, Duration::ZERO).await;
    for death in 0..8 {
        let patient = RetryPolicy { patience: Duration::MAX, ..RetryPolicy::default() };
        let running = start(&aws, &format!("host-{death}"), &sink, Form::Each, |builder| builder.retry_policy(patient)).await;
        sleep(Duration::from_secs(300)).await;
        let under_way = |calls| move |sink: &Sink| sink.in_work.load(Ordering::SeqCst) == calls;
        if death % 2 == 1 {
            // In a pause too it is known that the attempt has come back.
            while !under_way(1)(&sink) {
                sleep(Duration::from_millis(1)).await;
            }
            running.handle.pause();
            sleep(Duration::from_secs(30)).await;
        }
        until("no call is under way", || under_way(0)(&sink)).await;
        running.kill().await;
    }
    assert_eq!(letters(&aws), [""; 0]);
}

/// The outage is a line, and not each of its calls.
#[tokio::test(start_paused = true)]
async fn calls_that_fail_in_an_outage_are_no_news() {
    let aws = aws(1);
    let sink = Sink { away_until: Instant::now() + Duration::from_secs(6 * 3600), ..Sink::new() };
    let log = Log::listen();
    put(&aws, 0..60, 6, Duration::ZERO).await;
    let running = start(&aws, "host", &sink, Form::Each, |builder| builder).await;
    sleep(Duration::from_secs(5 * 3600)).await;
    let [failed, told] = ["processing failed", "different records fail alike"].map(|words| log.lines(words).len());
    assert_eq!(log.lines("records are processed again"), [""; 0]);
    assert!((1..=10).contains(&failed) && told == 1, "{failed} {told}");
    running.kill().await;
}

/// All that wait have failed before, and others have succeeded since: none of them is at fault.
#[tokio::test(start_paused = true)]
async fn a_dependency_that_comes_and_goes_costs_no_good_record() {
    let seconds = Duration::from_secs;
    for (up, down) in [(seconds(2), seconds(30)), (seconds(1), seconds(8)), (seconds(5), seconds(20))] {
        for (form, lanes) in [(Form::Each, 1), (Form::Whole, 1), (Form::Each, 16)] {
            let aws = aws(1);
            let mut sink = Sink { comes_and_goes: Some((up, down)), ..Sink::new() };
            let running = start(&aws, "host", &sink, form, |builder| builder.lanes(Lanes::new(lanes))).await;
            put(&aws, 0..1_200, 20, Duration::from_secs(1)).await;
            assert_eq!(letters(&aws), [""; 0], "{up:?} {down:?} {form:?} {lanes}");
            running.kill().await;
            // Nothing is lost either.
            sink.comes_and_goes = None;
            let running = start(&aws, "next", &sink, form, |builder| builder).await;
            until("all are processed", || sink.database.distinct() == 1_200).await;
            running.kill().await;
        }
    }
}

/// Others first have their chance to tell whose fault it is.
#[tokio::test(start_paused = true)]
async fn an_outage_costs_no_good_record_for_its_age() {
    for form in [Form::Each, Form::Whole] {
        let aws = aws(1);
        let sink = Sink { away_until: Instant::now() + Duration::from_secs(600), ..Sink::new() };
        let old = RetryPolicy { max_age: Some(Duration::from_secs(1)), ..RetryPolicy::default() };
        let running = start(&aws, "host", &sink, form, |builder| builder.retry_policy(old)).await;
        put(&aws, 0..600, 20, Duration::from_secs(1)).await;
        aws.put(STREAM, "key-0", "bad");
        put(&aws, 600..900, 20, Duration::from_secs(1)).await;
        until("all others are processed", || sink.database.distinct() == 900).await;
        assert_eq!(letters(&aws), ["bad"], "{form:?}");
        running.kill().await;
    }
}
