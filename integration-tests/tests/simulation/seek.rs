//! An application that begins elsewhere while its workers run: everything from there on comes again and in order, and nobody reads a shard whose
//! old owner may still be at work.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use kcl_core::seek::{SeekError, SeekReport, SeekTo};
use kcl_core::stream::{RecordsPage, Shard, ShardFilter, ShardIterator, StartingPosition, StreamApi, StreamDescription, StreamError};
use kcl_core::test_util::{Event, FaultRates, Host, SimulatedStream};
use kcl_core::{Checkpoint, ExtendedSequenceNumber, SequenceNumber, ShardId, Timestamp, WorkerHandle, async_trait};
use tokio::time::{Instant, sleep};

use super::fleet::{APPLICATION, Fleet, KEYS, Log, STREAM, until};

impl Fleet {
    async fn seek(&self, to: SeekTo) -> SeekReport {
        self.aws.host("operator").seek(APPLICATION, STREAM, to).reason("a test").run().await.unwrap()
    }
}

/// Of each key: what came before the seek may stop anywhere; from the first repetition on it is exactly `again`, in order.
fn assert_repeated(log: &Log, again: &BTreeSet<u64>) {
    for (key, numbers) in log.by_key() {
        let expected: Vec<u64> = again.iter().copied().filter(|number| format!("key-{}", number % KEYS as u64) == key).collect();
        let tail = &numbers[numbers.len().saturating_sub(expected.len())..];
        assert_eq!(tail, expected, "{key}: {numbers:?}");
        let before = &numbers[..numbers.len() - tail.len()];
        assert!(before.windows(2).all(|pair| pair[0] < pair[1]), "{key}: in order before the seek too: {before:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_running_application_goes_back_to_a_time_across_splits_and_merges() {
    for seed in 0..5 {
        let mut fleet = Fleet::new(seed, 2);
        fleet.start(2).await;
        let before = fleet.put(60).await;
        sleep(Duration::from_secs(5)).await;
        let noon = fleet.aws.time();
        sleep(Duration::from_secs(1)).await;
        let mut again = fleet.put(60).await;
        fleet.split("shardId-000000000000");
        fleet.resharded(3).await;
        again.extend(fleet.put(60).await);
        fleet.merge("shardId-000000000003", "shardId-000000000001");
        fleet.resharded(2).await;
        again.extend(fleet.put(60).await);
        let all = before.union(&again).copied().collect();
        fleet.has("all is processed", &all).await;
        // Some leases are cleaned up by then, some are not.
        sleep(Duration::from_secs(60 * seed)).await;
        assert_eq!(fleet.log.all().len(), all.len(), "once each so far");

        // While records keep coming.
        let report = fleet.seek(SeekTo::Time(noon)).await;
        assert!(report.moves.iter().all(|moved| !moved.after.is_shard_end()), "{report:?}");
        again.extend(fleet.put(200).await);
        until("all from then on is processed again", || {
            let repeated = fleet.log.all().len() - all.len();
            repeated >= again.len() && fleet.log.numbers().len() == fleet.put as usize
        })
        .await;
        sleep(Duration::from_secs(60)).await;
        fleet.stop().await;
        assert_repeated(&fleet.log, &again);
    }
}

/// A lease's counter, from which its next term takes its fencing token.
fn counter_of(fleet: &Fleet, shard: &str) -> Option<u64> {
    fleet.aws.leases(APPLICATION).iter().find(|lease| lease.shard_id.as_str() == shard).map(|lease| lease.counter)
}

#[tokio::test(start_paused = true)]
async fn to_the_oldest_record_after_leases_were_cleaned_up() {
    let mut fleet = Fleet::new(11, 1);
    fleet.start(2).await;
    let mut all = fleet.put(30).await;
    fleet.split("shardId-000000000000");
    fleet.resharded(2).await;
    all.extend(fleet.put(30).await);
    fleet.split("shardId-000000000001");
    fleet.resharded(3).await;
    all.extend(fleet.put(30).await);
    fleet.has("all is processed", &all).await;
    let old: Vec<_> = ["shardId-000000000000", "shardId-000000000001"].map(|shard| counter_of(&fleet, shard)).into();
    until("finished leases are cleaned up", || fleet.aws.leases(APPLICATION).len() == 3).await;

    let report = fleet.seek(SeekTo::TrimHorizon).await;
    let new: Vec<_> = ["shardId-000000000000", "shardId-000000000001"].map(|shard| counter_of(&fleet, shard)).into();
    assert!(old.iter().zip(&new).all(|(old, new)| old < new), "fencing tokens grow: {new:?} after {old:?}");
    let made: Vec<_> = report.moves.iter().filter(|moved| moved.before.is_none()).map(|moved| moved.shard_id.as_str()).collect();
    assert_eq!(made, ["shardId-000000000000", "shardId-000000000001"]);
    until("all is processed again", || fleet.log.all().len() == 2 * all.len()).await;
    fleet.stop().await;
    assert_repeated(&fleet.log, &all);
}

#[tokio::test(start_paused = true)]
async fn to_the_latest_skips_what_was_not_read() {
    let mut fleet = Fleet::new(12, 2);
    fleet.start(1).await;
    let first = fleet.put(20).await;
    fleet.has("it is processed", &first).await;
    fleet.stop().await;
    fleet.put(40).await;
    fleet.split("shardId-000000000001");
    fleet.resharded(3).await;
    fleet.put(40).await;

    let report = fleet.seek(SeekTo::Latest).await;
    let told: Vec<_> = report.moves.iter().map(|moved| (moved.shard_id.as_str(), moved.after)).collect();
    let (end, latest) = (Checkpoint::ShardEnd, Checkpoint::Latest);
    let shards = ["shardId-000000000000", "shardId-000000000001", "shardId-000000000002", "shardId-000000000003"];
    assert_eq!(told, [(shards[0], latest), (shards[1], end), (shards[2], latest), (shards[3], latest)]);

    // Records that come before the worker does are read: the instant is that of the seek.
    sleep(Duration::from_secs(1)).await;
    let mut new = fleet.put(40).await;
    fleet.start(1).await;
    new.extend(fleet.put(40).await);
    fleet.has("what is new is processed", &new).await;
    fleet.stop().await;
    assert_eq!(fleet.log.numbers(), first.union(&new).copied().collect());
}

#[tokio::test(start_paused = true)]
async fn to_a_record_or_after_it() {
    let mut fleet = Fleet::new(13, 1);
    let mut records = Vec::new();
    let text = |number: u64| Bytes::from(number.to_string());
    for number in 0..30 {
        // Some together in one millisecond, some a second apart.
        if number % 5 == 0 {
            sleep(Duration::from_secs(number)).await;
        }
        records.push(fleet.aws.put(STREAM, "key-0", text(number)).1);
    }
    let (_, aggregate) = fleet.aws.put_aggregate(STREAM, (30..34).map(|number| ("key-0", text(number))));
    let (_, after) = fleet.aws.put(STREAM, "key-0", text(34));
    fleet.start(1).await;
    let all: BTreeSet<u64> = (0..35).collect();
    fleet.has("all is processed", &all).await;

    let whole = ExtendedSequenceNumber::whole;
    let cases = [
        (SeekTo::Record(whole(records[0])), 0),
        (SeekTo::Record(whole(records[12])), 12),
        (SeekTo::Record(whole(records[15])), 15),
        (SeekTo::AfterRecord(whole(records[12])), 13),
        (SeekTo::Record(whole(aggregate)), 30),
        (SeekTo::Record(ExtendedSequenceNumber::new(aggregate, 2)), 32),
        (SeekTo::AfterRecord(ExtendedSequenceNumber::new(aggregate, 2)), 33),
        (SeekTo::Record(whole(after)), 34),
    ];
    for (to, first) in cases {
        fleet.log.clear();
        let operator = fleet.aws.host("operator");
        let report = operator.seek(APPLICATION, STREAM, to).shard("shardId-000000000000").run().await.unwrap();
        assert_eq!(report.moves.len(), 1);
        let expected = all.range(first..).copied().collect();
        fleet.has("what follows is processed again", &expected).await;
        assert_eq!(fleet.log.numbers(), expected, "{to:?}");
    }
    // A part that the record does not have is not passed over.
    for (record, part) in [(records[12], 1), (aggregate, 4), (aggregate, 99)] {
        let nowhere = ExtendedSequenceNumber::new(record, part);
        for to in [SeekTo::Record(nowhere), SeekTo::AfterRecord(nowhere)] {
            let error = fleet.aws.host("operator").seek(APPLICATION, STREAM, to).shard("shardId-000000000000").run().await.unwrap_err();
            assert!(matches!(error, SeekError::NoSuchRecord { .. }), "{to:?}: {error}");
        }
    }
    fleet.stop().await;
}

/// The other parent's lease never comes: it was read to its end and cleaned up.
#[tokio::test(start_paused = true)]
async fn one_parent_of_a_merged_shard_is_read_anew_and_ends_again() {
    for cleaned_up in [false, true] {
        let mut fleet = Fleet::new(14, 2);
        fleet.start(1).await;
        let old = fleet.put(40).await;
        fleet.merge("shardId-000000000000", "shardId-000000000001");
        fleet.resharded(1).await;
        let mut new = fleet.put(20).await;
        if cleaned_up {
            until("its parents' leases are cleaned up", || fleet.aws.leases(APPLICATION).len() == 1).await;
        }
        fleet.log.clear();
        let operator = fleet.aws.host("operator");
        let report = operator.seek(APPLICATION, STREAM, SeekTo::TrimHorizon).shard("shardId-000000000000").run().await.unwrap();
        assert_eq!(report.moves.len(), 2, "the shard, and the one that came of it");
        new.extend(fleet.put(20).await);
        fleet.has("what is in the merged shard is processed again, and what comes", &new).await;
        assert!(fleet.log.numbers().iter().any(|number| old.contains(number)), "the sought shard is read anew");
        fleet.stop().await;
    }
}

#[tokio::test(start_paused = true)]
async fn an_owner_that_slept_through_it_undoes_nothing() {
    let mut fleet = Fleet::new(14, 1);
    fleet.start(2).await;
    let all = fleet.put(30).await;
    fleet.has("all is processed", &all).await;
    let owns = |(_, handle): &&(Host, WorkerHandle)| !handle.status().shards.is_empty();
    let sleeper = fleet.running.iter().find(owns).unwrap().0.clone();
    // It has processed records that it could not checkpoint yet.
    let more = fleet.put(10).await;
    fleet.has("more is processed", &more).await;
    sleeper.freeze();
    let sought = Instant::now();
    fleet.seek(SeekTo::TrimHorizon).await;
    assert_eq!(fleet.checkpoint("shardId-000000000000"), Checkpoint::TrimHorizon);
    sleep(Duration::from_secs(3)).await;
    sleeper.thaw();
    sleep(Duration::from_secs(2)).await;
    assert_eq!(fleet.checkpoint("shardId-000000000000"), Checkpoint::TrimHorizon, "its checkpoint was refused");
    until("all is processed again", || fleet.log.all().len() >= 2 * 40).await;
    // An owner may go on for a lease duration from its last renewal before the seek.
    let again = fleet.log.all()[40].at.duration_since(sought);
    assert!(Duration::from_secs(10) <= again && again < Duration::from_secs(15), "{again:?}");
    fleet.stop().await;
    assert_repeated(&fleet.log, &(0..40).collect());
}

/// The seek's process is killed after every single write that it makes; then it is made again.
#[tokio::test(start_paused = true)]
async fn a_seek_that_dies_half_way_leaves_keys_in_order_and_is_completed_by_another() {
    for write in 1.. {
        let mut fleet = Fleet::new(100 + write, 1);
        fleet.start(2).await;
        let mut all = fleet.put(24).await;
        fleet.split("shardId-000000000000");
        fleet.resharded(2).await;
        all.extend(fleet.put(24).await);
        fleet.split("shardId-000000000001");
        fleet.resharded(3).await;
        all.extend(fleet.put(24).await);
        fleet.has("all is processed", &all).await;
        until("finished leases are cleaned up", || fleet.aws.leases(APPLICATION).len() == 3).await;

        let operator = fleet.aws.host("operator");
        let (victim, writes) = (operator.clone(), Arc::new(Mutex::new(0)));
        let name = operator.name().to_owned();
        fleet.aws.observe(move |event| {
            let (Event::LeaseWritten { host, .. } | Event::LeaseCreated { host, .. }) = event else { return };
            if *host == name {
                let mut writes = writes.lock().unwrap();
                *writes += 1;
                if *writes == write {
                    victim.kill();
                }
            }
        });
        let seek = operator.seek(APPLICATION, STREAM, SeekTo::TrimHorizon).run();
        let survived = tokio::time::timeout(Duration::from_secs(60), operator.run(seek)).await.is_ok();
        fleet.aws.stop_observing();
        // The fleet goes on from whatever is there.
        sleep(Duration::from_secs(60)).await;
        let repeated = fleet.log.all();
        for (key, numbers) in fleet.log.by_key() {
            let steps_back = numbers.windows(2).filter(|pair| pair[1] <= pair[0]).count();
            assert!(steps_back <= 1, "write {write}, {key}: {numbers:?}");
        }
        if survived {
            assert_eq!(repeated.len(), 2 * all.len());
            assert!(write > 10, "five leases were written twice");
            fleet.stop().await;
            break;
        }
        fleet.log.clear();
        fleet.seek(SeekTo::TrimHorizon).await;
        until("all is processed again", || fleet.log.numbers() == all).await;
        sleep(Duration::from_secs(30)).await;
        fleet.stop().await;
        assert_repeated(&fleet.log, &all);
    }
}

/// Answers are lost, writes are applied late or twice, owners renew in between.
#[tokio::test(start_paused = true)]
async fn a_seek_through_unreliable_services_is_made_or_says_that_it_was_not() {
    let mut made = 0;
    for seed in 0..30 {
        let mut fleet = Fleet::new(200 + seed, 2);
        fleet.start(2).await;
        let all = fleet.put(48).await;
        fleet.has("all is processed", &all).await;
        let rates = FaultRates {
            lost_answer: 0.15,
            dropped: 0.1,
            slow: 0.2,
            applied_late: 0.1,
            applied_twice: 0.1,
            throttled: 0.1,
            ..FaultRates::default()
        };
        fleet.aws.faults().set_rates(rates);
        fleet.log.clear();
        let sought = fleet.aws.host("operator").seek(APPLICATION, STREAM, SeekTo::TrimHorizon).run().await;
        fleet.aws.faults().set_rates(FaultRates::default());
        match sought {
            Ok(report) => {
                made += 1;
                assert_eq!(report.moves.len(), 2);
            }
            Err(SeekError::Partly { .. } | SeekError::Stream(_) | SeekError::Table(_)) => {
                fleet.seek(SeekTo::TrimHorizon).await;
            }
            Err(error) => panic!("{error}"),
        }
        until("all is processed again", || fleet.log.numbers() == all).await;
        fleet.stop().await;
    }
    // About half of them, by the draws.
    assert!(made >= 10, "{made} of 30");
}

#[tokio::test(start_paused = true)]
async fn a_dry_run_changes_nothing() {
    let mut fleet = Fleet::new(15, 2);
    fleet.start(1).await;
    let all = fleet.put(20).await;
    fleet.has("all is processed", &all).await;
    sleep(Duration::from_secs(10)).await;
    let rows = |fleet: &Fleet| fleet.aws.leases(APPLICATION).into_iter().map(|lease| (lease.owner, lease.checkpoint)).collect::<Vec<_>>();
    let before = rows(&fleet);
    let report = fleet.aws.host("operator").seek(APPLICATION, STREAM, SeekTo::TrimHorizon).dry_run(true).run().await.unwrap();
    assert_eq!(report.moves.len(), 2);
    assert!(report.moves[0].owner.is_some());
    sleep(Duration::from_secs(30)).await;
    assert_eq!(rows(&fleet), before);
    fleet.stop().await;
}

/// A stream whose filtered listing lags: it lacks its last shard.
#[derive(Debug)]
struct Lagging(SimulatedStream);

#[async_trait]
impl StreamApi for Lagging {
    async fn describe(&self) -> Result<StreamDescription, StreamError> {
        self.0.describe().await
    }

    async fn list_shards(&self, filter: ShardFilter) -> Result<Vec<Shard>, StreamError> {
        let mut shards = self.0.list_shards(filter).await?;
        if filter != ShardFilter::All {
            shards.pop();
        }
        Ok(shards)
    }

    async fn shard_iterator(&self, shard: &ShardId, start: StartingPosition) -> Result<ShardIterator, StreamError> {
        self.0.shard_iterator(shard, start).await
    }

    async fn get_records(&self, iterator: &ShardIterator, limit: u32) -> Result<RecordsPage, StreamError> {
        self.0.get_records(iterator, limit).await
    }
}

/// Shards that the listing lacks would stay where they are, or be read from elsewhere: nothing is moved.
#[tokio::test(start_paused = true)]
async fn a_listing_that_lacks_shards_is_refused_and_moves_nothing() {
    let mut fleet = Fleet::new(17, 3);
    fleet.start(1).await;
    let all = fleet.put(30).await;
    fleet.has("all is processed", &all).await;
    let operator = fleet.aws.host("operator");
    for to in [SeekTo::TrimHorizon, SeekTo::Latest, SeekTo::Time(fleet.aws.time())] {
        let seek = operator.seek(APPLICATION, STREAM, to).stream_api(Arc::new(Lagging(operator.stream(STREAM))));
        let error = seek.run().await.unwrap_err();
        assert!(matches!(error, SeekError::Incomplete(_)), "{to:?}: {error}");
    }
    sleep(Duration::from_secs(60)).await;
    assert_eq!(fleet.log.all().len(), all.len(), "nothing comes again");
    fleet.stop().await;
}

#[tokio::test(start_paused = true)]
async fn what_can_not_be_sought_is_refused_in_words() {
    let mut fleet = Fleet::new(16, 1);
    let operator = fleet.aws.host("operator");
    let seek = |to| operator.seek(APPLICATION, STREAM, to);
    let says = |error: SeekError, words: &str| assert!(error.to_string().contains(words), "{words}: {error}");
    says(seek(SeekTo::Latest).run().await.unwrap_err(), "has not begun");
    fleet.start(1).await;
    let all = fleet.put(20).await;
    fleet.has("all is processed", &all).await;
    let now = fleet.aws.time().as_millis();
    let record = |number: u128| ExtendedSequenceNumber::whole(SequenceNumber::from(number));
    let shard: ShardId = "shardId-000000000000".into();
    says(seek(SeekTo::Time(Timestamp::from_millis(now + 5_000))).run().await.unwrap_err(), "in the future");
    says(seek(SeekTo::Time(Timestamp::from_millis(now - 25 * 3_600_000))).run().await.unwrap_err(), "24 hours");
    says(seek(SeekTo::Record(record(7))).run().await.unwrap_err(), "name it with `shard`");
    says(seek(SeekTo::Latest).shard("shardId-000000000077").run().await.unwrap_err(), "no shard shardId-000000000077");
    says(seek(SeekTo::Record(record(7))).shard(shard.clone()).run().await.unwrap_err(), "no record 7");
    says(seek(SeekTo::AfterRecord(record(7))).shard(shard).run().await.unwrap_err(), "no record 7");
    says(operator.seek("a b", STREAM, SeekTo::Latest).run().await.unwrap_err(), "application");
    sleep(Duration::from_secs(30)).await;
    assert_eq!(fleet.log.numbers(), all, "nothing was changed");
    assert_eq!(fleet.log.all().len(), all.len());
    fleet.stop().await;
}

/// Of two operators who want different things the later one is told, and their seeks don't mix.
#[tokio::test(start_paused = true)]
async fn two_seeks_at_once_do_not_mix() {
    for seed in 0..12 {
        let mut fleet = Fleet::new(seed, 4);
        fleet.start(2).await;
        fleet.put(60).await;
        sleep(Duration::from_secs(60)).await;
        let noon = fleet.aws.time();
        let all = fleet.put(60).await;
        fleet.has("all is processed", &all).await;
        fleet.aws.faults().set_latency(Duration::from_millis(5), Duration::from_millis(80));
        let back = fleet.aws.host("one").seek(APPLICATION, STREAM, SeekTo::TrimHorizon).run();
        let (other, delay) = (fleet.aws.host("other"), Duration::from_millis(seed * 40));
        let to_noon = async {
            sleep(delay).await;
            other.seek(APPLICATION, STREAM, SeekTo::Time(noon)).run().await
        };
        let (one, two) = tokio::join!(back, to_noon);
        let checkpoints: BTreeSet<_> = fleet.aws.leases(APPLICATION).into_iter().map(|lease| lease.checkpoint.to_string()).collect();
        let made = match (&one, &two) {
            (Ok(_), Err(SeekError::UnderWay { .. })) => "TRIM_HORIZON",
            (Err(SeekError::UnderWay { .. }), Ok(_)) => "AT_TIMESTAMP",
            // One was over before the other began to move.
            (Ok(_), Ok(_)) => "AT_TIMESTAMP",
            other => panic!("seed {seed}: {other:?}"),
        };
        assert_eq!(checkpoints, BTreeSet::from([made.to_owned()]), "seed {seed}: {one:?} {two:?}");
        // The one that was told is made afterwards.
        let report = fleet.seek(SeekTo::Time(noon)).await;
        assert_eq!(report.moves.len(), 4);
        fleet.stop().await;
    }
}
