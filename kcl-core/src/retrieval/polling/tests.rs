//! The reader against a scripted shard, in simulated time.

use std::collections::VecDeque;
use std::time::Duration;

use kcl_checkpoint::{SequenceNumber, Timestamp};
use tokio::time::{Instant, sleep, timeout};

use super::*;
use crate::record::Record;
use crate::retrieval::fake::{
    EPOCH, FAILURES, Failure, Fake, ITERATOR_LIFE, MENDED, Operation, PARENT, ReadLimit, SimulatedClock, assert_ended, error, numbers,
};
use crate::retrieval::{Fetched, LARGEST_ANSWER};
use crate::stream::StreamError;

impl Fake {
    fn reader(&self, config: PollingConfig, start: StartingPosition, seed: u64) -> Box<dyn ShardReader> {
        config.validate().unwrap();
        let clock = Arc::new(SimulatedClock(self.script().began));
        Box::new(Polling::new(Arc::new(self.clone()), config, clock, Entropy::from_seed(seed)).reader(&ShardId::from(PARENT), start))
    }

    /// With what it reports.
    fn reported(&self) -> (Box<dyn ShardReader>, OutageLog) {
        let clock = Arc::new(SimulatedClock(self.script().began));
        let outages = OutageLog::default();
        let polling = Polling::new(Arc::new(self.clone()), PollingConfig::default(), clock, Entropy::from_seed(0));
        let reader = polling.reporting_to(outages.clone()).reader(&ShardId::from(PARENT), StartingPosition::TrimHorizon);
        (Box::new(reader), outages)
    }

    fn open_at_the_oldest(&self) -> Box<dyn ShardReader> {
        self.reader(PollingConfig::default(), StartingPosition::TrimHorizon, 0)
    }
}

#[tokio::test(start_paused = true)]
async fn every_record_comes_once_and_in_order_whatever_fails_and_is_cancelled() {
    for seed in 0..300 {
        let chance = Entropy::from_seed(seed);
        let fake = Fake::new((chance.u64() % 200) as usize);
        {
            let mut script = fake.script();
            script.closed = true;
            script.children_in_page = chance.fraction() < 0.5;
            script.empty_pages = (chance.u64() % 3) as u32;
            let (faults, rate) = (chance.clone(), chance.fraction() * 0.6);
            script.fault =
                Box::new(move |_| (faults.fraction() < rate).then(|| error(FAILURES[(faults.u64() % FAILURES.len() as u64) as usize])));
            let latency = chance.clone();
            script.latency = Box::new(move || latency.between(Duration::ZERO, Duration::from_millis(300)));
        }
        let config = PollingConfig { max_records: 1 + (chance.u64() % 30) as u32, ..PollingConfig::default() };
        let mut reader = fake.reader(config, StartingPosition::TrimHorizon, seed);
        let mut seen = Vec::new();
        loop {
            match timeout(chance.between(Duration::ZERO, Duration::from_millis(400)), reader.fetch()).await {
                Ok(Ok(Fetched::Records { records, .. })) => seen.extend(records.iter().map(Record::sequence_number)),
                Ok(Ok(end @ Fetched::ShardEnd { .. })) => {
                    assert_ended(&end);
                    break;
                }
                Ok(Err(_)) | Err(_) => {}
            }
            // A processor that takes longer than an iterator lives, and a listing that lags.
            if chance.fraction() < 0.05 {
                sleep(ITERATOR_LIFE + Duration::from_secs(1)).await;
            }
            let listed = chance.fraction() < 0.01;
            fake.script().children_listed |= listed;
        }
        assert_eq!(seen, fake.all(), "seed {seed}");
        fake.assert_within_budget();
    }
}

#[tokio::test(start_paused = true)]
async fn no_lasting_error_makes_a_hot_loop() {
    for failure in FAILURES {
        for failing in [Operation::Open, Operation::Read, Operation::List] {
            for patience in [Duration::from_millis(30), Duration::from_secs(600)] {
                let fake = Fake::new(1);
                fake.script().closed = true;
                fake.script().fault = Box::new(move |operation| (operation == failing).then(|| error(failure)));
                let mut reader = fake.open_at_the_oldest();
                let (mut errors, end) = (0, Instant::now() + Duration::from_secs(300));
                while Instant::now() < end {
                    match timeout(patience.min(end - Instant::now()), reader.fetch()).await {
                        Ok(Err(_)) => errors += 1,
                        Ok(Ok(fetched)) => assert_eq!(numbers(fetched).len(), 1),
                        Err(_) => {}
                    }
                }
                fake.assert_within_budget();
                let calls = fake.count(failing);
                // Throttled calls are repeated about once a second or two: others need the shard as well, and pass soon.
                let most = if failure == Failure::Throttled { 250 } else { 120 };
                assert!((20..=most).contains(&calls), "{calls} calls of {failing:?} under {failure:?}");
                // Only reads use iterators.
                let mended = MENDED.contains(&failure) && (failure != Failure::Expired || failing == Operation::Read);
                let returned = if mended { 0 } else { calls };
                assert_eq!(errors, returned, "{failing:?} under {failure:?}");
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn reads_keep_to_five_per_second_and_to_two_mebibytes_per_second() {
    let fake = Fake::new(50);
    let sizes = Entropy::from_seed(1);
    (0..200).for_each(|_| fake.put((sizes.fraction().powi(3) * 1_500_000.0) as usize));
    let config = PollingConfig { max_records: 8, ..PollingConfig::default() };
    let mut reader = fake.reader(config, StartingPosition::TrimHorizon, 0);
    let mut seen = Vec::new();
    while seen.len() < 250 {
        seen.extend(numbers(reader.fetch().await.unwrap()));
    }
    assert_eq!(seen, fake.all());
    fake.assert_within_budget();
    let script = fake.script();
    let reads: Vec<_> = script.made.iter().filter(|made| made.operation == Operation::Read).collect();
    for (from, first) in reads.iter().enumerate() {
        let mut bytes = 0;
        for pair in reads[from..].windows(2) {
            bytes += pair[0].bytes;
            let allowed = (pair[1].at - first.at).as_secs_f64() * 2.0 * 1024.0 * 1024.0;
            assert!(bytes as f64 <= allowed, "{bytes} bytes where {allowed} are allowed");
        }
    }
    let (bytes, time): (u64, _) = (reads.iter().map(|read| read.bytes).sum(), (reads[reads.len() - 1].at - reads[0].at).as_secs_f64());
    assert!(bytes as f64 / time > 1_500_000.0, "the budget is used: {bytes} bytes in {time} s");
}

#[tokio::test(start_paused = true)]
async fn the_first_read_is_at_once_and_an_idle_shard_is_read_each_second() {
    let fake = Fake::new(1);
    let mut reader = fake.open_at_the_oldest();
    let began = Instant::now();
    assert_eq!(numbers(reader.fetch().await.unwrap()).len(), 1);
    assert_eq!(began.elapsed(), Duration::ZERO);
    for _ in 0..10 {
        assert_eq!(numbers(reader.fetch().await.unwrap()).len(), 0);
    }
    // The first of them after a read that gave something.
    assert!((began.elapsed() - Duration::from_millis(9_200)) < Duration::from_millis(50), "{:?}", began.elapsed());
    fake.put(10);
    assert_eq!(numbers(reader.fetch().await.unwrap()).len(), 1);
}

#[tokio::test(start_paused = true)]
async fn empty_answers_on_the_way_are_read_past_at_full_pace() {
    let fake = Fake::new(1);
    fake.script().empty_pages_left = 20;
    let mut reader = fake.open_at_the_oldest();
    let began = Instant::now();
    while numbers(reader.fetch().await.unwrap()).is_empty() {}
    assert!(began.elapsed() < Duration::from_millis(4_100), "{:?}", began.elapsed());
}

#[tokio::test(start_paused = true)]
async fn an_expired_iterator_is_replaced_by_one_after_the_last_record_given() {
    let fake = Fake::new(9);
    let start = StartingPosition::AtSequenceNumber(2.into());
    let mut reader = fake.reader(PollingConfig { max_records: 2, ..PollingConfig::default() }, start, 0);
    sleep(ITERATOR_LIFE * 2).await;
    assert_eq!(numbers(reader.fetch().await.unwrap()), [2.into(), 3.into()]);
    // Each pause anew is no failure: no backoff.
    for next in [[4, 5], [6, 7], [8, 9]] {
        sleep(ITERATOR_LIFE * 2).await;
        let resumed = Instant::now();
        assert_eq!(numbers(reader.fetch().await.unwrap()), next.map(SequenceNumber::from));
        assert!(resumed.elapsed() < Duration::from_millis(250), "{:?}", resumed.elapsed());
    }
    let after = |number: u128| StartingPosition::AfterSequenceNumber(number.into());
    assert_eq!(fake.starts(), [start, after(3), after(5), after(7)]);
}

#[tokio::test(start_paused = true)]
async fn a_success_ends_the_backoff() {
    for (failure, most) in [(Failure::Throttled, 3_100), (Failure::Unavailable, 602)] {
        let fake = Fake::new(1);
        let mut reader = fake.open_at_the_oldest();
        fake.script().fault = Box::new(move |_| Some(error(failure)));
        assert!(timeout(Duration::from_secs(120), reader.fetch()).await.is_err());
        fake.script().fault = Box::new(|_| None);
        assert_eq!(numbers(reader.fetch().await.unwrap()).len(), 1);
        fake.put(10);
        let mut once = Some(error(failure));
        fake.script().fault = Box::new(move |_| once.take());
        let began = Instant::now();
        assert_eq!(numbers(reader.fetch().await.unwrap()).len(), 1);
        // The pace, and the least interval with the first, short draw. After throttling the pace is that of a shared shard.
        assert!(began.elapsed() <= Duration::from_millis(most), "{failure:?}: {:?}", began.elapsed());
    }
}

#[tokio::test(start_paused = true)]
async fn an_iterator_that_expires_before_any_record_came_starts_where_reading_was_to_start() {
    let fake = Fake::new(0);
    let start = StartingPosition::AtTimestamp(Timestamp::from_millis(EPOCH));
    let mut reader = fake.reader(PollingConfig::default(), start, 0);
    assert!(numbers(reader.fetch().await.unwrap()).is_empty());
    sleep(ITERATOR_LIFE * 2).await;
    fake.put(10);
    assert_eq!(numbers(reader.fetch().await.unwrap()), fake.all());
    assert_eq!(fake.starts(), [start, start]);
}

#[tokio::test(start_paused = true)]
async fn nothing_that_arrives_after_latest_is_lost_although_the_iterator_expires() {
    let fake = Fake::new(3);
    sleep(Duration::from_secs(3600)).await;
    let opened = EPOCH + 3_600_000;
    let mut reader = fake.reader(PollingConfig::default(), StartingPosition::Latest, 0);
    assert!(numbers(reader.fetch().await.unwrap()).is_empty());
    fake.put(10);
    sleep(ITERATOR_LIFE * 3).await;
    fake.put(10);
    assert_eq!(numbers(reader.fetch().await.unwrap()), [4.into(), 5.into()]);
    let again = StartingPosition::AtTimestamp(Timestamp::from_millis(opened - 300_000));
    assert_eq!(fake.starts(), [StartingPosition::Latest, again]);
}

#[tokio::test(start_paused = true)]
async fn the_last_records_come_before_the_end() {
    let fake = Fake::new(3);
    (fake.script().closed, fake.script().children_in_page) = (true, true);
    let mut reader = fake.open_at_the_oldest();
    assert_eq!(numbers(reader.fetch().await.unwrap()), fake.all());
    assert_ended(&reader.fetch().await.unwrap());
    assert_ended(&reader.fetch().await.unwrap());
    assert_eq!(fake.count(Operation::List), 0);
}

#[tokio::test(start_paused = true)]
async fn an_end_without_children_waits_until_they_are_listed() {
    let fake = Fake::new(3);
    fake.script().closed = true;
    let mut reader = fake.open_at_the_oldest();
    assert_eq!(numbers(reader.fetch().await.unwrap()), fake.all());
    assert!(timeout(Duration::from_secs(60), reader.fetch()).await.is_err(), "no children, no end");
    assert!(fake.count(Operation::List) > 5);
    fake.script().children_listed = true;
    assert_ended(&reader.fetch().await.unwrap());
    fake.assert_within_budget();
}

#[tokio::test(start_paused = true)]
async fn what_is_tried_again_is_in_the_log_of_outages_unless_it_is_expected_once() {
    let classes = |outages: &OutageLog| outages.causes().into_iter().map(|cause| cause.class).collect::<Vec<_>>();
    // What a read fails of, how often in a row => the class in the log.
    for (failure, times, class) in [
        (Failure::Unavailable, 1, Some("no answer")),
        (Failure::NotReady, 1, Some("not ready")),
        (Failure::Throttled, 1, None),
        (Failure::Throttled, 2, Some("throttled")),
        (Failure::Expired, 1, None),
        (Failure::Expired, 2, Some("expired iterator")),
        // Given back: whoever reads reports them.
        (Failure::Denied, 2, None),
        (Failure::Invalid, 2, None),
    ] {
        let fake = Fake::new(1);
        let (mut reader, outages) = fake.reported();
        reader.fetch().await.unwrap();
        let mut left = times;
        fake.script().fault = Box::new(move |operation| {
            let fails = operation == Operation::Read && left > 0;
            left -= i32::from(fails);
            fails.then(|| error(failure))
        });
        while reader.fetch().await.is_err() {}
        assert_eq!(classes(&outages), Vec::from_iter(class), "{failure:?} {times}");
        sleep(kcl_lease::outages::QUIET).await;
        reader.fetch().await.unwrap();
        assert_eq!(classes(&outages), [""; 0], "{failure:?} {times}: it is over");
    }
    let fake = Fake::new(1);
    fake.script().closed = true;
    let (mut reader, outages) = fake.reported();
    reader.fetch().await.unwrap();
    assert!(timeout(Duration::from_secs(60), reader.fetch()).await.is_err());
    assert_eq!(classes(&outages), ["children not listed"]);
}

#[tokio::test(start_paused = true)]
async fn a_shard_that_is_listed_as_open_has_not_ended() {
    let fake = Fake::new(3);
    fake.script().ends_in_error = true;
    let mut reader = fake.open_at_the_oldest();
    assert_eq!(numbers(reader.fetch().await.unwrap()).len(), 3);
    fake.put(10);
    assert_eq!(numbers(reader.fetch().await.unwrap()), [4.into()]);
    assert_eq!(fake.starts(), [StartingPosition::TrimHorizon, StartingPosition::AfterSequenceNumber(3.into())]);
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_is_gone_is_an_error_and_no_end() {
    let fake = Fake::new(3);
    fake.script().closed = true;
    let mut reader = fake.open_at_the_oldest();
    assert_eq!(numbers(reader.fetch().await.unwrap()).len(), 3);
    fake.script().fault = Box::new(|_| Some(error(Failure::NotFound)));
    assert!(matches!(reader.fetch().await, Err(StreamError::NotFound { .. })));
    assert!(matches!(reader.fetch().await, Err(StreamError::NotFound { .. })));
    fake.script().fault = Box::new(|_| None);
    fake.script().children_listed = true;
    assert_ended(&reader.fetch().await.unwrap());
}

#[tokio::test(start_paused = true)]
async fn a_cancelled_call_is_waited_for_and_not_made_again() {
    let fake = Fake::new(3);
    fake.script().latency = Box::new(|| Duration::from_secs(1));
    let mut reader = fake.open_at_the_oldest();
    let mut cancelled = 0;
    let fetched = loop {
        match timeout(Duration::from_millis(100), reader.fetch()).await {
            Ok(fetched) => break fetched.unwrap(),
            Err(_) => cancelled += 1,
        }
    };
    assert_eq!(numbers(fetched), fake.all());
    assert!(cancelled >= 19, "{cancelled}");
    assert_eq!((fake.count(Operation::Open), fake.count(Operation::Read)), (1, 1));
}

/// Four applications read one shard, each at its best, and records flow.
#[tokio::test(start_paused = true)]
async fn readers_of_one_shard_share_its_limit_evenly() {
    for seed in 0..60 {
        let fake = Fake::new(1);
        let (limit, most) = match seed % 2 {
            0 => (ReadLimit::Bucket(5.0, Instant::now()), Duration::from_secs(3)),
            _ => (ReadLimit::Window(VecDeque::new()), Duration::from_secs(6)),
        };
        let latency = Entropy::from_seed(seed);
        fake.script().latency = Box::new(move || latency.between(Duration::from_millis(5), Duration::from_millis(60)));
        fake.script().read_limit = Some(limit);
        let began = Instant::now();
        let end = began + Duration::from_secs(60);
        let mut readers = tokio::task::JoinSet::new();
        for reader in 0..4 {
            let fake = fake.clone();
            readers.spawn(async move {
                sleep(Duration::from_millis(70) * reader).await;
                let mut reader = fake.reader(PollingConfig::default(), StartingPosition::TrimHorizon, 100 * seed + u64::from(reader));
                let (mut heard, mut longest) = (Instant::now(), Duration::ZERO);
                while let Ok(fetched) = tokio::time::timeout_at(end, reader.fetch()).await {
                    if !numbers(fetched.unwrap()).is_empty() {
                        longest = longest.max(heard.elapsed());
                        heard = Instant::now();
                    }
                }
                longest.max(heard.elapsed())
            });
        }
        while Instant::now() < end {
            fake.put(10);
            sleep(Duration::from_millis(50)).await;
        }
        let longest = readers.join_all().await.into_iter().max().unwrap();
        assert!(longest <= most, "seed {seed}: a reader without a record for {longest:?}");
        let answered = fake.script().made.iter().filter(|made| made.operation == Operation::Read && made.bytes > 0).count();
        assert!(answered >= 100, "seed {seed}: the limit is used: {answered} answers in a minute");
    }
}

#[tokio::test(start_paused = true)]
async fn ready_waits_and_only_next_calls() {
    let fake = Fake::new(3);
    let mut reader = fake.open_at_the_oldest();
    for (is_read, calls) in [(false, (1, 0)), (true, (1, 1)), (true, (1, 2)), (true, (1, 3))] {
        let made = |fake: &Fake| (fake.count(Operation::Open), fake.count(Operation::Read));
        let before = made(&fake);
        let bytes = reader.ready().await.unwrap();
        assert!((bytes > 0) == is_read && bytes <= LARGEST_ANSWER, "{bytes}");
        assert_eq!(made(&fake), before);
        let ready = Instant::now();
        assert_eq!(reader.next().await.unwrap().is_some(), is_read);
        assert_eq!((made(&fake), ready.elapsed()), (calls, Duration::ZERO));
    }
    // After a failure the next call is waited for in `ready`.
    fake.script().fault = Box::new(|_| Some(error(Failure::Unavailable)));
    reader.ready().await.unwrap();
    assert!(reader.next().await.unwrap().is_none());
    let failed = Instant::now();
    assert!(reader.ready().await.unwrap() > 0);
    assert!(failed.elapsed() >= Duration::from_millis(200));
    fake.assert_within_budget();
}

#[tokio::test(start_paused = true)]
async fn a_read_that_is_refused_says_nothing_of_the_starting_position() {
    let fake = Fake::new(5);
    let mut reader = fake.reader(PollingConfig::default(), StartingPosition::AtSequenceNumber(3.into()), 0);
    let mut refusals = 5;
    fake.script().fault = Box::new(move |operation| {
        let refused = operation == Operation::Read && refusals > 0;
        refusals -= u32::from(refused);
        refused.then(|| error(Failure::Invalid))
    });
    for _ in 0..5 {
        assert!(matches!(reader.fetch().await, Err(StreamError::InvalidArgument { .. })));
    }
    assert_eq!(numbers(reader.fetch().await.unwrap()), [3.into(), 4.into(), 5.into()]);
    assert_eq!(fake.count(Operation::Open), 6, "each time with a new iterator");
}

#[tokio::test(start_paused = true)]
async fn a_starting_position_counts_as_refused_the_second_time() {
    for failure in [Failure::Throttled, Failure::Unavailable, Failure::Denied] {
        let fake = Fake::new(5);
        let mut reader = fake.reader(PollingConfig::default(), StartingPosition::AtSequenceNumber(3.into()), 0);
        // With other failures in between, which say nothing of it.
        let mut calls = 0;
        fake.script().fault = Box::new(move |operation| {
            calls += 1;
            (operation == Operation::Open).then(|| error(if calls == 2 { failure } else { Failure::Invalid }))
        });
        assert!(matches!(reader.fetch().await, Err(StreamError::InvalidArgument { .. })));
        let mut second = reader.fetch().await;
        if failure == Failure::Denied {
            assert!(matches!(second, Err(StreamError::AccessDenied { .. })));
            second = reader.fetch().await;
        }
        assert!(matches!(second, Err(StreamError::StartRefused { .. })), "{failure:?}: {second:?}");
        fake.script().fault = Box::new(|_| None);
        assert_eq!(numbers(reader.fetch().await.unwrap()), [3.into(), 4.into(), 5.into()], "it may be asked on");
    }
}

#[tokio::test(start_paused = true)]
async fn what_the_server_repeats_is_not_given_again() {
    for seed in 0..50 {
        let chance = Entropy::from_seed(seed);
        let fake = Fake::new(0);
        let repeats = chance.clone();
        fake.script().repeats = Box::new(move || repeats.fraction() < 0.6);
        let config = PollingConfig { max_records: 4, ..PollingConfig::default() };
        let mut reader = fake.reader(config, StartingPosition::TrimHorizon, seed);
        let mut seen = Vec::new();
        for _ in 0..20 {
            (0..chance.u64() % 9).for_each(|_| fake.put(10));
            while seen.len() < fake.all().len() {
                seen.extend(numbers(timeout(Duration::from_secs(600), reader.fetch()).await.unwrap().unwrap()));
            }
        }
        assert_eq!(seen, fake.all(), "seed {seed}");
        fake.assert_within_budget();
    }
    // For ever: nothing is given twice, and the server is not asked without end.
    let fake = Fake::new(3);
    let mut reader = fake.open_at_the_oldest();
    assert_eq!(numbers(reader.fetch().await.unwrap()), fake.all());
    fake.script().repeats = Box::new(|| true);
    fake.put(10);
    assert!(timeout(Duration::from_secs(300), reader.fetch()).await.is_err());
    assert!(fake.count(Operation::Read) < 120, "{}", fake.count(Operation::Read));
    fake.script().repeats = Box::new(|| false);
    assert_eq!(numbers(reader.fetch().await.unwrap()), [4.into()]);
}

/// A line on which a full answer takes far longer than a read may.
#[tokio::test(start_paused = true)]
async fn reads_that_time_out_are_followed_by_smaller_ones() {
    let fake = Fake::new(400);
    fake.script().per_record = Duration::from_millis(300);
    let mut reader = fake.open_at_the_oldest();
    let mut seen = numbers(timeout(Duration::from_secs(200), reader.fetch()).await.unwrap().unwrap());
    assert!(!seen.is_empty() && seen.len() < 400);
    let before = fake.count(Operation::Read);
    while seen.len() < 300 {
        seen.extend(numbers(reader.fetch().await.unwrap()));
    }
    let answers = fake.script().made.iter().skip(before).filter(|made| made.operation == Operation::Read && made.bytes > 0).count();
    assert!(fake.count(Operation::Read) - before <= answers + 2, "it does not try in vain again and again");
    // And grows back when the line is better.
    fake.script().per_record = Duration::ZERO;
    let before = fake.count(Operation::Read);
    (0..5_000).for_each(|_| fake.put(10));
    while seen.len() < 5_400 {
        seen.extend(numbers(reader.fetch().await.unwrap()));
    }
    assert_eq!(seen, fake.all());
    assert!(fake.count(Operation::Read) - before < 20, "{}", fake.count(Operation::Read) - before);
}

#[tokio::test(start_paused = true)]
async fn without_millis_behind_latest_a_row_of_empty_answers_is_the_tip() {
    let fake = Fake::new(3);
    fake.script().tells_behind = false;
    fake.script().empty_pages = 3;
    let mut reader = fake.open_at_the_oldest();
    let mut next = async || match reader.fetch().await.unwrap() {
        Fetched::Records { records, millis_behind_latest } => (records.len(), millis_behind_latest),
        Fetched::ShardEnd { .. } => panic!("the shard has not ended"),
    };
    assert_eq!(next().await, (3, None));
    let began = Instant::now();
    let empty = loop {
        match next().await {
            (0, Some(0)) => break began.elapsed(),
            (0, None) => {}
            other => panic!("{other:?}"),
        }
    };
    assert!(empty >= Duration::from_secs(4) && empty < Duration::from_secs(7), "{empty:?}");
    // Empty answers before a record are none.
    fake.put(10);
    while next().await.0 == 0 {}
    assert_eq!(next().await, (0, None));
}
