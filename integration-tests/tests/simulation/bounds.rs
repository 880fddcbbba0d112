//! Reading that ends by itself, at a time or at the tip, and reading that leaves out what is too old.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use bytes::Bytes;
use kcl_core::seek::SeekTo;
use kcl_core::test_util::{Cut, Event, Service};
use kcl_core::{
    Backlog, Checkpoint, Checkpointing, InitialPosition, Outcome, ProcessError, ProcessResult, ReadUntil, RecordBatch, RecordProcessor,
    RetrievalMode, ShardContext, ShardState, Timestamp, TrimmedData, WorkerBuilder, WorkerError, async_trait,
};
use tokio::time::{Instant, sleep};

use super::fleet::{APPLICATION, Fleet, Log, STREAM, until};

const FIRST: &str = "shardId-000000000000";

#[tokio::test(start_paused = true)]
async fn reading_ends_at_what_was_the_tip_and_goes_on_from_there() {
    for (seed, retrieval) in [(1, RetrievalMode::Polling), (2, RetrievalMode::FanOut)] {
        let mut fleet = Fleet::new(seed, 2);
        let mut there = fleet.put(60).await;
        fleet.split(FIRST);
        fleet.resharded(3).await;
        there.extend(fleet.put(60).await);
        sleep(Duration::from_secs(5)).await;
        let until_tip = |builder: WorkerBuilder| builder.read_until(ReadUntil::TipAtStart).retrieval(retrieval);
        fleet.start_with(2, until_tip).await;
        // While more is coming.
        sleep(Duration::from_secs(3)).await;
        let later = fleet.put(300).await;
        fleet.ended().await;
        assert_eq!(fleet.log.numbers(), there, "{retrieval:?}: nothing is left out and nothing new is read");
        assert!(fleet.aws.leases(APPLICATION).iter().all(|lease| lease.owner.is_none()), "they have let go");

        let started = Instant::now();
        fleet.start_with(1, |builder| builder.retrieval(retrieval)).await;
        fleet.has("the rest is read by who reads on", &there.union(&later).copied().collect()).await;
        assert!(started.elapsed() < Duration::from_secs(30));
        fleet.stop().await;
        assert_eq!(fleet.log.all().len() as u64, fleet.put, "once each");
    }
}

#[tokio::test(start_paused = true)]
async fn reading_ends_at_a_time_in_the_past() {
    let mut fleet = Fleet::new(3, 2);
    let mut before = fleet.put(40).await;
    fleet.split(FIRST);
    fleet.resharded(3).await;
    before.extend(fleet.put(40).await);
    sleep(Duration::from_secs(1)).await;
    let noon = fleet.aws.time();
    fleet.put(40).await;
    fleet.merge("shardId-000000000003", "shardId-000000000001");
    fleet.resharded(2).await;
    fleet.put(40).await;
    let started = Instant::now();
    fleet.start_with(2, |builder| builder.read_until(ReadUntil::Time(noon))).await;
    fleet.ended().await;
    assert!(started.elapsed() < Duration::from_secs(30), "{:?}", started.elapsed());
    assert_eq!(fleet.log.numbers(), before);
    // Again: there is nothing left to do.
    let started = Instant::now();
    fleet.start_with(1, |builder| builder.read_until(ReadUntil::Time(noon))).await;
    fleet.ended().await;
    assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
    assert_eq!(fleet.log.all().len(), before.len());
}

#[tokio::test(start_paused = true)]
async fn reading_ends_when_a_time_has_come_whether_records_come_or_not() {
    let mut fleet = Fleet::new(4, 3);
    let noon = Timestamp::from_millis(fleet.aws.time().as_millis() + 600_000);
    let started = Instant::now();
    fleet.start_with(1, |builder| builder.read_until(ReadUntil::Time(noon))).await;
    let records = fleet.put(30).await;
    let handle = fleet.running[0].1.clone();
    fleet.ended().await;
    assert!(started.elapsed() >= Duration::from_secs(600) && started.elapsed() < Duration::from_secs(620), "{:?}", started.elapsed());
    assert_eq!(fleet.log.numbers(), records);
    assert!(handle.status().shards.is_empty());
}

/// A worker dies, others must not end before its shards are read.
#[tokio::test(start_paused = true)]
async fn shards_of_a_worker_that_died_are_read_to_the_bound_by_the_others() {
    let mut fleet = Fleet::new(5, 4);
    fleet.start_with(2, |builder| builder.read_until(ReadUntil::Stopped)).await;
    let mut records = fleet.put(40).await;
    let both = |fleet: &Fleet| fleet.running.iter().all(|(_, handle)| handle.status().shards.len() == 2);
    until("both have shards", || both(&fleet)).await;
    fleet.stop().await;
    records.extend(fleet.put(40).await);
    fleet.start_with(2, |builder| builder.read_until(ReadUntil::TipAtStart)).await;
    let (victim, handle) = fleet.running[0].clone();
    until("it has a shard", || !handle.status().shards.is_empty()).await;
    victim.kill();
    until("the others have ended", || fleet.aws.leases(APPLICATION).iter().all(|lease| lease.owner.is_none())).await;
    assert_eq!(fleet.log.numbers(), records);
}

#[tokio::test(start_paused = true)]
async fn a_shard_at_its_bound_is_let_go_and_left_alone_until_all_are_there() {
    let mut fleet = Fleet::new(6, 2);
    let records = fleet.put(40).await;
    fleet.start_with(1, |builder| builder.read_until(ReadUntil::TipAtStart)).await;
    let handle = fleet.running[0].1.clone();
    handle.pause_shard(&FIRST.into());
    until("it has one shard left", || handle.status().shards.len() == 2).await;
    until("it has one shard left", || handle.status().shards.len() == 1).await;
    let takes = Arc::new(AtomicU32::new(0));
    let count = Arc::clone(&takes);
    fleet.aws.observe(move |event| {
        if let Event::LeaseWritten { before, after, .. } = event
            && before.owner.is_none()
            && after.owner.is_some()
        {
            count.fetch_add(1, Ordering::Relaxed);
        }
    });
    sleep(Duration::from_secs(120)).await;
    // Another worker with that bound comes: it has nothing to do, and waits for the others.
    fleet.start_with(1, |builder| builder.read_until(ReadUntil::TipAtStart)).await;
    sleep(Duration::from_secs(120)).await;
    handle.resume_shard(&FIRST.into());
    fleet.ended().await;
    assert_eq!(fleet.log.numbers(), records);
    assert!(takes.load(Ordering::Relaxed) <= 2, "{takes:?}");
}

/// Keeps what it is given until it is told to finish, and checkpoints only then.
struct Buffering(Log, Vec<(String, u64)>);

#[async_trait]
impl RecordProcessor for Buffering {
    async fn process_records(&mut self, batch: &RecordBatch, _shard: &ShardContext) -> ProcessResult {
        for record in batch {
            self.1.push((record.partition_key().unwrap_or_default().to_owned(), std::str::from_utf8(record.data())?.parse()?));
        }
        Ok(Outcome::Done)
    }

    async fn shutdown_requested(&mut self, shard: &ShardContext) -> Result<(), ProcessError> {
        sleep(Duration::from_secs(2)).await;
        self.1.drain(..).for_each(|(key, number)| self.0.note(key, number));
        shard.checkpointer().checkpoint().await?;
        Ok(())
    }
}

/// A processor that checkpoints by itself gets its chance at the bound; if it dies before, its records come again.
#[tokio::test(start_paused = true)]
async fn at_the_bound_processors_finish_what_they_hold() {
    for dies in [false, true] {
        let mut fleet = Fleet::new(12, 2);
        let records = fleet.put(40).await;
        let log = fleet.log.clone();
        let buffering = move |builder: WorkerBuilder| {
            let log = log.clone();
            builder
                .read_until(ReadUntil::TipAtStart)
                .checkpointing(Checkpointing::Manual)
                .processor(move |_: &ShardContext| Buffering(log.clone(), Vec::new()))
        };
        fleet.start_with(1, &buffering).await;
        if dies {
            let (victim, handle) = fleet.running[0].clone();
            until("a shard finishes", || handle.status().shards.values().any(|status| status.state == ShardState::LettingGo)).await;
            victim.kill();
            // What it knows of its bound is in no row yet: who comes next reads all of it.
            assert!(fleet.log.numbers().is_empty());
            fleet.start_with(1, &buffering).await;
            until("it has ended", || fleet.running[1].1.status().shards.is_empty() && fleet.log.numbers() == records).await;
        } else {
            fleet.ended().await;
            assert_eq!(fleet.log.numbers(), records);
        }
    }
}

/// Refuses every record, and never checkpoints.
struct Refusing(Arc<AtomicU32>);

#[async_trait]
impl RecordProcessor for Refusing {
    async fn process_records(&mut self, batch: &RecordBatch, _shard: &ShardContext) -> ProcessResult {
        self.0.fetch_add(u32::try_from(batch.len()).unwrap(), Ordering::Relaxed);
        Ok(Outcome::failed(batch.records().iter().map(|record| (record, ProcessError::poison("it is poison")))))
    }
}

/// No processor has anything to checkpoint: what went to the queue is checkpointed for them, and comes to nobody again.
#[tokio::test(start_paused = true)]
async fn a_bound_behind_dead_letters_is_reached_with_manual_checkpoints_too() {
    let mut fleet = Fleet::new(16, 2);
    fleet.put(10).await;
    let called = Arc::new(AtomicU32::new(0));
    let queue = fleet.aws.host("dlq").dead_letter_queue("orders-dlq");
    let refusing = |read_until| {
        let (called, queue) = (Arc::clone(&called), queue.clone());
        move |builder: WorkerBuilder| {
            let (called, queue) = (Arc::clone(&called), queue.clone());
            builder
                .read_until(read_until)
                .dead_letter_queue(queue)
                .checkpointing(Checkpointing::Manual)
                .processor(move |_: &ShardContext| Refusing(Arc::clone(&called)))
        }
    };
    fleet.start_with(1, refusing(ReadUntil::TipAtStart)).await;
    fleet.ended().await;
    assert_eq!((called.load(Ordering::Relaxed), fleet.aws.dead_letters("orders-dlq").len()), (10, 10));
    fleet.start_with(1, refusing(ReadUntil::Stopped)).await;
    sleep(Duration::from_secs(60)).await;
    fleet.stop().await;
    assert_eq!(called.load(Ordering::Relaxed), 10, "the next owner does not see them");
}

/// What was read ahead, or waits in a subscription, says that the shard is at its tip, and was so before the bound.
#[tokio::test(start_paused = true)]
async fn a_tip_that_was_seen_before_the_bound_is_not_believed_after_it() {
    for retrieval in [RetrievalMode::Polling, RetrievalMode::FanOut] {
        let mut fleet = Fleet::new(17, 1);
        let noon = Timestamp::from_millis(fleet.aws.time().as_millis() + 60_000);
        let log = fleet.log.clone();
        let slow = move |builder: WorkerBuilder| {
            let log = log.clone();
            builder.read_until(ReadUntil::Time(noon)).retrieval(retrieval).processor(move |_: &ShardContext| Slow(log.clone()))
        };
        fleet.start_with(1, slow).await;
        let handle = fleet.running[0].1.clone();
        until("it reads", || handle.status().shards.values().any(|status| status.state == ShardState::Processing)).await;
        // In work from now on until after the bound, which the second record arrives shortly before.
        let mut records = fleet.put(1).await;
        sleep(Duration::from_secs(45)).await;
        records.extend(fleet.put(1).await);
        fleet.ended().await;
        assert_eq!(fleet.log.numbers(), records, "{retrieval:?}");
    }
}

/// Takes 70 s for a call.
struct Slow(Log);

#[async_trait]
impl RecordProcessor for Slow {
    async fn process_records(&mut self, batch: &RecordBatch, _shard: &ShardContext) -> ProcessResult {
        sleep(Duration::from_secs(70)).await;
        for record in batch.records() {
            self.0.note(record.partition_key().unwrap_or_default().to_owned(), std::str::from_utf8(record.data())?.parse()?);
        }
        Ok(Outcome::Done)
    }
}

#[tokio::test(start_paused = true)]
async fn a_shard_that_is_too_far_behind_goes_on_with_what_is_new() {
    for retrieval in [RetrievalMode::Polling, RetrievalMode::FanOut] {
        let mut fleet = Fleet::new(7, 2);
        let settings =
            |builder: WorkerBuilder| builder.backlog(Backlog::SkipToLatest { beyond: Duration::from_secs(600) }).retrieval(retrieval);
        fleet.start_with(1, settings).await;
        let read = fleet.put(40).await;
        fleet.has("it is read", &read).await;
        fleet.stop().await;
        // Not far behind: all of it is read.
        let more = fleet.put(20).await;
        sleep(Duration::from_secs(300)).await;
        fleet.start_with(1, settings).await;
        fleet.has("it is read", &more).await;
        assert!(fleet.running[0].1.status().shards.values().all(|status| status.skips == 0));
        fleet.stop().await;

        let old = fleet.put(60).await;
        fleet.split(FIRST);
        fleet.resharded(3).await;
        let old: BTreeSet<_> = old.union(&fleet.put(60).await).copied().collect();
        sleep(Duration::from_secs(1200)).await;
        fleet.start_with(1, settings).await;
        let handle = fleet.running[0].1.clone();
        until("open shards have skipped", || {
            let shards = handle.status().shards;
            shards.len() == 3 && shards.values().all(|status| status.skips == 1)
        })
        .await;
        let new = fleet.put(60).await;
        fleet.has("what is new is read", &new).await;
        assert!(fleet.log.numbers().is_disjoint(&old), "{retrieval:?}");
        fleet.stop().await;
        // Nothing is skipped twice, and nothing that was skipped is read by the next owner.
        fleet.start_with(1, settings).await;
        let last = fleet.put(20).await;
        fleet.has("what is new is read", &last).await;
        assert!(fleet.running[0].1.status().shards.values().all(|status| status.skips == 0));
        fleet.stop().await;
        assert!(fleet.log.numbers().is_disjoint(&old));
        assert_eq!(fleet.log.all().len(), 40 + 20 + 60 + 20, "once each");
    }
}

/// The owner dies right after the write with which its shard began anew, before it has read anything.
#[tokio::test(start_paused = true)]
async fn a_skip_holds_for_the_next_owner() {
    let mut fleet = Fleet::new(8, 1);
    let old = fleet.put(40).await;
    sleep(Duration::from_secs(1200)).await;
    let settings = |builder: WorkerBuilder| builder.backlog(Backlog::SkipToLatest { beyond: Duration::from_secs(600) });
    fleet.start_with(1, settings).await;
    let victim = fleet.running[0].0.clone();
    fleet.aws.observe(move |event| {
        if let Event::LeaseWritten { after, .. } = event
            && after.checkpoint == Checkpoint::Latest
        {
            victim.kill();
        }
    });
    until("it has skipped", || fleet.aws.leases(APPLICATION).iter().any(|lease| lease.checkpoint == Checkpoint::Latest)).await;
    fleet.aws.stop_observing();
    let new = fleet.put(40).await;
    // One that would read all.
    fleet.start(1).await;
    fleet.has("what is new is read", &new).await;
    assert!(fleet.log.numbers().is_disjoint(&old));
    assert_eq!(fleet.log.numbers(), new);
}

#[tokio::test(start_paused = true)]
async fn what_is_in_work_is_finished_before_a_skip_and_the_table_must_know_of_it() {
    let mut fleet = Fleet::new(9, 1);
    let settings = |builder: WorkerBuilder| builder.backlog(Backlog::SkipToLatest { beyond: Duration::from_secs(600) });
    fleet.start_with(1, settings).await;
    let first = fleet.put(20).await;
    fleet.has("it is read", &first).await;
    let handle = fleet.running[0].1.clone();
    handle.pause();
    let old = fleet.put(40).await;
    sleep(Duration::from_secs(1200)).await;
    // The lease table is away when it goes on.
    fleet.aws.faults().partition("host-0", Service::LeaseTable, Cut::Requests, fleet.aws.elapsed() + Duration::from_secs(60));
    handle.resume();
    sleep(Duration::from_secs(50)).await;
    let new = fleet.put(20).await;
    assert!(fleet.log.numbers().is_disjoint(&new), "nothing is read before the skip is written");
    let later = {
        sleep(Duration::from_secs(120)).await;
        fleet.put(20).await
    };
    fleet.has("it goes on", &later).await;
    assert!(fleet.log.numbers().is_disjoint(&old));
    fleet.stop().await;
}

#[tokio::test(start_paused = true)]
async fn impossible_bounds_are_refused_by_name() {
    let fleet = Fleet::new(10, 1);
    let host = fleet.aws.host("host");
    let build = |settings: fn(WorkerBuilder) -> WorkerBuilder| settings(host.worker(APPLICATION, STREAM)).build();
    for (error, setting) in [
        (build(|builder| builder.backlog(Backlog::SkipToLatest { beyond: Duration::ZERO })).await.unwrap_err(), "backlog.beyond"),
        (
            build(|builder| {
                let start = InitialPosition::AtTimestamp(Timestamp::from_millis(5_000));
                builder.initial_position(start).read_until(ReadUntil::Time(Timestamp::from_millis(5_000)))
            })
            .await
            .unwrap_err(),
            "read_until",
        ),
        (
            build(|builder| {
                let backlog = Backlog::SkipToLatest { beyond: Duration::from_secs(60) };
                builder.backlog(backlog).checkpointing(Checkpointing::Manual)
            })
            .await
            .unwrap_err(),
            "backlog",
        ),
    ] {
        let WorkerError::Config(error) = error else { panic!("{error}") };
        assert_eq!(error.setting, setting);
    }
}

#[tokio::test(start_paused = true)]
async fn records_that_were_trimmed_unread_are_left_out_too() {
    let mut fleet = Fleet::new(11, 1);
    let settings = |builder: WorkerBuilder| builder.backlog(Backlog::SkipToLatest { beyond: Duration::from_secs(600) });
    fleet.start_with(1, settings).await;
    let first = fleet.put(20).await;
    fleet.has("it is read", &first).await;
    fleet.stop().await;
    fleet.put(20).await;
    sleep(Duration::from_secs(25 * 3600)).await;
    fleet.start_with(1, settings).await;
    let handle = fleet.running[0].1.clone();
    until("it has skipped", || handle.status().shards.values().any(|status| status.skips == 1)).await;
    let new = fleet.put(20).await;
    fleet.has("it goes on", &new).await;
    fleet.stop().await;
    assert_eq!(fleet.log.all().len(), 40);
}

/// Reading begins at the checkpoint's own record, which may be as old as it likes.
#[tokio::test(start_paused = true)]
async fn a_quiet_shard_is_not_behind_however_old_its_last_record_is() {
    let mut fleet = Fleet::new(13, 1);
    let settings = |builder: WorkerBuilder| builder.backlog(Backlog::SkipToLatest { beyond: Duration::from_secs(600) });
    fleet.start_with(1, settings).await;
    fleet.aws.put_aggregate(STREAM, (0..3).map(|number: u64| ("key-0", Bytes::from(number.to_string()))));
    fleet.has("it is read", &(0..3).collect()).await;
    fleet.stop().await;
    sleep(Duration::from_secs(7200)).await;
    fleet.start_with(1, settings).await;
    sleep(Duration::from_secs(60)).await;
    let handle = fleet.running[0].1.clone();
    assert!(handle.status().shards.values().all(|status| status.skips == 0) && !handle.status().shards.is_empty());
    fleet.stop().await;
    assert_eq!(fleet.log.all().len(), 3);
}

/// The leases of what came of the shard are there already, and are not to be read.
#[tokio::test(start_paused = true)]
async fn after_a_seek_reading_ends_at_a_time_before_a_reshard() {
    let mut fleet = Fleet::new(14, 1);
    fleet.start(1).await;
    let mut all = fleet.put(20).await;
    let before: BTreeSet<u64> = all.clone();
    sleep(Duration::from_secs(1)).await;
    let noon = fleet.aws.time();
    all.extend(fleet.put(20).await);
    fleet.split(FIRST);
    fleet.resharded(2).await;
    all.extend(fleet.put(20).await);
    fleet.has("all is read", &all).await;
    fleet.stop().await;
    fleet.aws.host("operator").seek(APPLICATION, STREAM, SeekTo::TrimHorizon).run().await.unwrap();
    fleet.log.clear();
    fleet.start_with(2, |builder| builder.read_until(ReadUntil::Time(noon))).await;
    fleet.ended().await;
    assert_eq!(fleet.log.numbers(), before);
}

#[tokio::test(start_paused = true)]
async fn a_shard_that_is_listed_no_more_ends_and_its_children_are_read() {
    let mut fleet = Fleet::new(15, 1);
    let settings = |builder: WorkerBuilder| builder.backlog(Backlog::SkipToLatest { beyond: Duration::from_secs(600) });
    fleet.start_with(1, settings).await;
    let first = fleet.put(20).await;
    fleet.has("it is read", &first).await;
    fleet.stop().await;
    fleet.put(20).await;
    fleet.split(FIRST);
    fleet.resharded(2).await;
    sleep(Duration::from_secs(26 * 3600)).await;
    fleet.start_with(1, settings).await;
    let handle = fleet.running[0].1.clone();
    until("its children are read", || handle.status().shards.len() == 2).await;
    let new = fleet.put(20).await;
    fleet.has("what is new is read", &new).await;
    fleet.stop().await;
}

/// The application was down for longer than the stream keeps records, and its shard, and what that was split into, are gone.
#[tokio::test(start_paused = true)]
async fn a_shard_that_was_trimmed_together_with_its_children_ends() {
    for retrieval in [RetrievalMode::Polling, RetrievalMode::FanOut] {
        for ends in [false, true] {
            let mut fleet = Fleet::new(31, 1);
            fleet.start(1).await;
            let first = fleet.put(20).await;
            fleet.has("it is processed", &first).await;
            fleet.stop().await;
            fleet.put(20).await;
            fleet.split(FIRST);
            fleet.resharded(2).await;
            sleep(Duration::from_secs(3600)).await;
            fleet.put(20).await;
            fleet.merge("shardId-000000000001", "shardId-000000000002");
            fleet.resharded(1).await;
            sleep(Duration::from_secs(26 * 3600)).await;
            let listed = fleet.aws.shards(STREAM).unwrap();
            assert_eq!(listed.iter().map(|shard| shard.shard_id.as_str()).collect::<Vec<_>>(), ["shardId-000000000003"]);

            // Nothing is left out unless that is allowed.
            fleet.start_with(1, |builder| builder.retrieval(retrieval)).await;
            let blocked = |fleet: &Fleet| {
                let status = fleet.running[0].1.status();
                status.shards.iter().any(|(shard, status)| shard.as_str() == FIRST && status.state == ShardState::BlockedByTrimmedRecords)
            };
            until("it says that records are gone", || blocked(&fleet)).await;
            assert!(!fleet.checkpoint(FIRST).is_shard_end());
            fleet.stop().await;

            let settings = |builder: WorkerBuilder| {
                let builder = builder.retrieval(retrieval).trimmed_data(TrimmedData::SkipAndAudit);
                if ends { builder.read_until(ReadUntil::TipAtStart) } else { builder }
            };
            let new = fleet.put(20).await;
            fleet.start_with(1, settings).await;
            fleet.has("what comes is processed", &new).await;
            if ends {
                fleet.ended().await;
            } else {
                let is_done = |fleet: &Fleet| {
                    let leases = fleet.aws.leases(APPLICATION);
                    leases.iter().all(|lease| lease.shard_id.as_str() != FIRST || lease.checkpoint.is_shard_end())
                };
                until("the shard is ended", || is_done(&fleet)).await;
                fleet.stop().await;
            }
            assert_eq!(fleet.log.numbers(), first.union(&new).copied().collect());
        }
    }
}
