//! The kit judged by the contracts of the ports, and by what it promises itself.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use aws_sdk_dynamodb::types::{AttributeValue, Put, TransactWriteItem};
use kcl_checkpoint::Checkpoint;
use kcl_lease::conformance::{EFFECTS, Effects};
use kcl_lease::{Lease, LeaseTable, LeaseWrite, TableError, TransactItems, WriteId, WriteOutcome};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use super::*;
use crate::dead_letter::conformance;
use crate::dead_letter::{BlobAddress, BlobError, BlobStore as _, Condition, DeadLetter, DeadLetterQueue, FailureKind};
use crate::record::Record;
use crate::stream::{ShardFilter, StartingPosition, StreamApi, StreamError};
use crate::{SequenceNumber, ShardId, Timestamp};

fn shard() -> ShardId {
    "shardId-000000000000".into()
}

fn all(kind: FaultKind) -> FaultRates {
    let mut rates = FaultRates::default();
    *rates.of(kind).expect("a kind that is drawn") = 1.0;
    rates
}

async fn leased(aws: &SimulatedAws) -> (SimulatedLeaseTable, Lease) {
    let table = aws.host("m").lease_table("app");
    let lease = Lease::new(shard(), Checkpoint::TrimHorizon);
    assert!(table.create(&lease).await.unwrap());
    (table, lease)
}

fn take(lease: &Lease, id: u64) -> LeaseWrite {
    LeaseWrite::take(lease, &"w".into(), WriteId(id))
}

#[tokio::test(start_paused = true)]
async fn the_lease_table_conforms() {
    kcl_lease::conformance::lease_table_suite(|| async { SimulatedAws::new(1).host("m").lease_table("app") }).await;
}

struct ItemsOf(SimulatedAws);

#[async_trait]
impl Effects for ItemsOf {
    async fn ids(&self) -> Vec<String> {
        self.0.items(EFFECTS).iter().map(|item| item["id"].as_s().unwrap().clone()).collect()
    }
}

#[tokio::test(start_paused = true)]
async fn its_transactions_conform() {
    kcl_lease::conformance::transaction_suite(|| async {
        let aws = SimulatedAws::new(1);
        aws.create_table(EFFECTS, &["id"]);
        (aws.host("m").lease_table("app"), ItemsOf(aws))
    })
    .await;
}

/// Lost on the way, applied without an answer, late, or twice: lease and item are there once, together, or not at all.
#[tokio::test(start_paused = true)]
async fn a_transaction_travels_like_any_other_write() {
    for (kind, at_once, in_the_end) in
        [(FaultKind::Dropped, 0, 0), (FaultKind::LostAnswer, 1, 1), (FaultKind::AppliedLate, 0, 1), (FaultKind::AppliedTwice, 1, 1)]
    {
        let aws = SimulatedAws::new(1);
        aws.create_table(EFFECTS, &["id"]);
        let (table, lease) = leased(&aws).await;
        aws.faults().set_rates(all(kind));
        let put = Put::builder().table_name(EFFECTS).item("id", AttributeValue::S("x".into())).build().unwrap();
        let items = TransactItems::new([TransactWriteItem::builder().put(put).build()]).unwrap();
        let answer = table.transact(&take(&lease, 1), &items).await;
        assert_eq!(answer.is_ok(), kind == FaultKind::AppliedTwice, "{kind:?}: {answer:?}");
        let seen = || (aws.items(EFFECTS).len(), aws.leases("app")[0].counter);
        assert_eq!(seen(), (at_once, at_once as u64), "{kind:?}");
        sleep(Duration::from_secs(120)).await;
        assert_eq!(seen(), (in_the_end, in_the_end as u64), "{kind:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_write_whose_answer_is_lost_is_in_effect_and_recognised() {
    let aws = SimulatedAws::new(1);
    let (table, lease) = leased(&aws).await;
    aws.faults().set_rates(all(FaultKind::LostAnswer));
    assert!(matches!(table.write(&take(&lease, 1)).await, Err(TableError::Unavailable { .. })));
    aws.faults().clear();
    assert!(matches!(table.write(&take(&lease, 2)).await, Ok(WriteOutcome::Refused(_))));
    assert!(matches!(table.write(&take(&lease, 1)).await, Ok(WriteOutcome::Applied(_))));
    assert_eq!(aws.leases("app")[0].counter, 1);
    assert_eq!(aws.faults().counts()[&FaultKind::LostAnswer], 1);
}

#[tokio::test(start_paused = true)]
async fn a_write_that_was_given_up_is_applied_later() {
    let aws = SimulatedAws::new(1);
    let (table, lease) = leased(&aws).await;
    aws.faults().set_rates(all(FaultKind::AppliedLate));
    assert!(table.write(&take(&lease, 1)).await.is_err());
    let begun = |aws: &SimulatedAws| aws.leases("app")[0].counter;
    assert_eq!(begun(&aws), 0);
    sleep(Duration::from_secs(25)).await;
    assert_eq!(begun(&aws), 1);
}

#[tokio::test(start_paused = true)]
async fn a_torn_scan_shows_two_times() {
    let aws = SimulatedAws::new(1);
    let table = aws.host("m").lease_table("app");
    for name in ["a", "b"] {
        assert!(table.create(&Lease::new(name.into(), Checkpoint::TrimHorizon)).await.unwrap());
    }
    aws.faults().set_rates(all(FaultKind::Stale));
    let other = aws.host("n").lease_table("app");
    let (scan, ()) = tokio::join!(table.list(), async {
        // After the first half was read, before the second is.
        sleep(Duration::from_millis(20)).await;
        for lease in aws.leases("app") {
            let _ = other.write(&take(&lease, 9)).await.unwrap();
        }
    });
    let counters: Vec<_> = scan.unwrap().leases.iter().map(|lease| lease.counter).collect();
    assert_eq!(counters, [0, 1]);
}

#[tokio::test(start_paused = true)]
async fn writes_over_the_budget_are_throttled() {
    let aws = SimulatedAws::new(1);
    let (table, lease) = leased(&aws).await;
    aws.set_write_budget("app", Some(2.0));
    for id in 0..2 {
        let _ = table.write(&take(&lease, id)).await.unwrap();
    }
    assert!(matches!(table.write(&take(&lease, 3)).await, Err(TableError::Throttled { .. })));
    sleep(Duration::from_secs(1)).await;
    let _ = table.write(&take(&lease, 4)).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_partition_cuts_one_machine_one_way() {
    let aws = SimulatedAws::new(1);
    let (table, lease) = leased(&aws).await;
    aws.faults().partition("m", Service::LeaseTable, Cut::Answers, Duration::from_secs(60));
    assert!(table.write(&take(&lease, 1)).await.is_err());
    assert_eq!(aws.leases("app")[0].counter, 1, "what was sent is applied");
    assert!(aws.host("n").lease_table("app").list().await.is_ok());
    sleep(Duration::from_secs(60)).await;
    assert!(table.list().await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn what_runs_on_a_host_stands_still_with_it_and_dies_with_it() {
    let aws = SimulatedAws::new(1);
    let host = aws.host("m");
    let ticks = Arc::new(Mutex::new(0));
    let count = || *ticks.lock().unwrap();
    let ticking = Arc::clone(&ticks);
    let mut tasks = JoinSet::new();
    tasks.spawn(host.run(async move {
        loop {
            sleep(Duration::from_secs(1)).await;
            *ticking.lock().unwrap() += 1;
        }
    }));
    sleep(Duration::from_millis(3_500)).await;
    assert_eq!(count(), 3);
    let before = kcl_lease::Clock::boot_time(host.clock());
    host.freeze();
    sleep(Duration::from_secs(10)).await;
    assert_eq!((count(), kcl_lease::Clock::boot_time(host.clock()) - before), (3, Duration::from_secs(10)));
    host.thaw();
    sleep(Duration::from_millis(1_500)).await;
    assert_eq!(count(), 5, "the one that was due at once, and the next");
    host.kill();
    host.thaw();
    host.died().await;
    sleep(Duration::from_secs(10)).await;
    assert_eq!((count(), host.is_dead()), (5, true));
    assert_eq!((host.name(), aws.host("m").name()), ("m#1", "m#2"));
}

#[tokio::test(start_paused = true)]
async fn a_blocked_thread_stops_what_runs_on_it_and_nothing_else() {
    let aws = SimulatedAws::new(1);
    let host = aws.host("m");
    let seconds = Duration::from_secs;
    let ticking = |ticks: &Arc<Mutex<Vec<Duration>>>| {
        let (aws, ticks) = (aws.clone(), Arc::clone(ticks));
        async move {
            loop {
                sleep(seconds(1)).await;
                ticks.lock().unwrap().push(aws.elapsed());
            }
        }
    };
    let users: Arc<Mutex<Vec<Duration>>> = Arc::default();
    let leases: Arc<Mutex<Vec<Duration>>> = Arc::default();
    let mut tasks = JoinSet::new();
    tasks.spawn(host.run(ticking(&users)));
    tasks.spawn(host.beside_user_code(ticking(&leases)));
    let (blocking, ended) = (host.clone(), Arc::new(Mutex::new(None)));
    let (noted, at_end) = (Arc::clone(&ended), aws.clone());
    let mut blocker = JoinSet::new();
    blocker.spawn(host.run(async move {
        sleep(Duration::from_millis(2_500)).await;
        blocking.block_thread(seconds(10)).await;
        *noted.lock().unwrap() = Some(at_end.elapsed());
    }));
    sleep(Duration::from_millis(11_500)).await;
    assert_eq!((users.lock().unwrap().len(), leases.lock().unwrap().len(), *ended.lock().unwrap()), (2, 11, None));
    blocker.join_next().await.unwrap().unwrap();
    let block_ended = ended.lock().unwrap().unwrap();
    assert!(block_ended >= Duration::from_millis(12_500) && block_ended < Duration::from_millis(12_510), "{block_ended:?}");
    sleep(Duration::from_millis(1_200)).await;
    assert_eq!(users.lock().unwrap().len(), 4, "the tick that was overdue, and the next: {users:?}");

    // A freeze, and death, stop both.
    host.freeze();
    let before = (users.lock().unwrap().len(), leases.lock().unwrap().len());
    sleep(seconds(10)).await;
    assert_eq!((users.lock().unwrap().len(), leases.lock().unwrap().len()), before);
    host.kill();
    host.thaw();
    sleep(seconds(10)).await;
    assert_eq!((users.lock().unwrap().len(), leases.lock().unwrap().len()), before);
}

#[tokio::test(start_paused = true)]
async fn a_host_can_be_killed_at_each_of_its_awaits() {
    for kill_at in 1..=4 {
        let aws = SimulatedAws::new(1);
        let host = aws.host("m");
        let reached = Arc::new(Mutex::new(0));
        let reaching = Arc::clone(&reached);
        host.kill_at_poll(kill_at);
        let process = host.run(async move {
            for _ in 0..3 {
                *reaching.lock().unwrap() += 1;
                tokio::task::yield_now().await;
            }
        });
        tokio::select! {
            biased;
            () = host.died() => {}
            () = process => {}
        }
        assert_eq!((*reached.lock().unwrap(), host.is_dead()), (kill_at - 1, true), "poll {kill_at}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_call_of_a_host_that_was_killed_still_arrives() {
    let aws = SimulatedAws::new(1);
    let (_, lease) = leased(&aws).await;
    let host = aws.host("m");
    aws.faults().set_latency(Duration::from_millis(100), Duration::from_millis(100));
    let table = host.lease_table("app");
    let mut tasks = JoinSet::new();
    tasks.spawn(host.run(async move { table.write(&take(&lease, 1)).await.is_ok() }));
    sleep(Duration::from_millis(50)).await;
    host.kill();
    tasks.shutdown().await;
    sleep(Duration::from_millis(100)).await;
    assert_eq!(aws.leases("app")[0].counter, 1);
}

#[tokio::test(start_paused = true)]
async fn short_sequence_numbers_grow_in_length_and_lead_back_to_their_records() {
    let aws = SimulatedAws::with(1, kinesis_model::KinesisConfig::default(), true);
    aws.create_stream("orders", 1);
    let numbers: Vec<SequenceNumber> = (0..20).map(|n| aws.put("orders", "k", n.to_string()).1).collect();
    let lengths: Vec<_> = numbers.iter().map(|number| number.to_string().len()).collect();
    assert!(numbers.is_sorted() && lengths.first() < lengths.last(), "{lengths:?}");
    let stream = aws.host("m").stream("orders");
    let iterator = stream.shard_iterator(&shard(), StartingPosition::AfterSequenceNumber(numbers[9])).await.unwrap();
    let page = stream.get_records(&iterator, 3).await.unwrap();
    assert_eq!(page.records.iter().map(Record::sequence_number).collect::<Vec<_>>(), numbers[10..13]);
}

#[tokio::test(start_paused = true)]
async fn a_listing_of_shards_may_lag_and_an_open_one_may_not() {
    let aws = SimulatedAws::new(1);
    aws.create_stream("orders", 1);
    let stream = aws.host("m").stream("orders");
    assert_eq!(stream.list_shards(ShardFilter::All).await.unwrap().len(), 1);
    sleep(Duration::from_secs(5)).await;
    let split = kinesis_model::SplitShardInput {
        stream_name: Some("orders".into()),
        shard_to_split: shard().to_string(),
        new_starting_hash_key: (u128::MAX / 2).to_string(),
        ..Default::default()
    };
    aws.kinesis().call(split).unwrap();
    aws.faults().set_rates(all(FaultKind::Stale));
    assert_eq!(stream.list_shards(ShardFilter::All).await.unwrap().len(), 1);
    assert_eq!(stream.list_shards(ShardFilter::AtLatest).await.unwrap().len(), 2);
    sleep(Duration::from_secs(10)).await;
    assert_eq!(stream.list_shards(ShardFilter::All).await.unwrap().len(), 3);
}

#[tokio::test(start_paused = true)]
async fn every_documented_error_is_given_in_the_port_s_terms() {
    let aws = SimulatedAws::new(1);
    aws.create_stream("orders", 1);
    let stream = aws.host("m").stream("orders");
    let iterator = stream.shard_iterator(&shard(), StartingPosition::TrimHorizon).await.unwrap();
    aws.faults().set_rates(all(FaultKind::Error));
    let mut seen = [false; 5];
    for _ in 0..200 {
        let kind = match stream.get_records(&iterator, 1).await.unwrap_err() {
            StreamError::NotFound { .. } => 0,
            StreamError::AccessDenied { .. } => 1,
            StreamError::Kms { .. } => 2,
            StreamError::ExpiredIterator { .. } => 3,
            StreamError::Unavailable { .. } => 4,
            other => panic!("{other}"),
        };
        seen[kind] = true;
    }
    assert_eq!(seen, [true; 5]);
    aws.faults().set_rates(all(FaultKind::Throttled));
    assert!(matches!(stream.describe().await, Err(StreamError::Throttled { .. })));
}

#[tokio::test(start_paused = true)]
async fn a_dead_letter_may_be_accepted_though_the_sender_never_hears_of_it() {
    let aws = SimulatedAws::new(1);
    let queue = aws.host("m").dead_letter_queue("dlq");
    queue.check().await.unwrap();
    let letter = DeadLetter {
        record: Record::new(1u128.into(), None, "payload".into(), None),
        stream_arn: "arn".into(),
        stream_created: Timestamp::from_millis(1),
        shard_id: shard(),
        kind: FailureKind::Error,
        condition: Condition::RetryAttemptsExhausted,
        error_chain: Vec::new(),
        attempts: 1,
        first_failure: Timestamp::from_millis(1),
        last_failure: Timestamp::from_millis(1),
        application: "app".into(),
        worker: "w".into(),
        fencing_token: 1,
    };
    aws.faults().set_rates(all(FaultKind::LostAnswer));
    assert!(queue.send(std::slice::from_ref(&letter)).await[0].is_err());
    aws.faults().set_rates(all(FaultKind::Dropped));
    assert!(queue.send(std::slice::from_ref(&letter)).await[0].is_err());
    aws.faults().clear();
    queue.send(std::slice::from_ref(&letter)).await[0].clone().unwrap();
    assert_eq!(aws.dead_letters("dlq").len(), 2);
}

#[tokio::test(start_paused = true)]
async fn blobs_are_kept_and_a_missing_one_is_told() {
    let aws = SimulatedAws::new(1);
    let blobs = aws.host("m").blobs();
    let address = blobs.put("a", "data".into()).await.unwrap();
    let missing = BlobAddress { key: "b".into(), ..address.clone() };
    assert!(matches!(blobs.get(&missing).await, Err(BlobError::NotFound { key, .. }) if key == "b"));
    assert_eq!(aws.host("n").blobs().get(&address).await.unwrap(), "data");
    aws.faults().outage(Service::Blobs, Duration::MAX);
    let began = Instant::now();
    assert!(matches!(blobs.get(&address).await, Err(BlobError::Unavailable { .. })));
    assert!(began.elapsed() <= Duration::from_secs(2));
}

#[tokio::test(start_paused = true)]
async fn queue_and_blob_store_do_what_their_ports_say() {
    let aws = SimulatedAws::new(1);
    let received = async || aws.dead_letters("dlq").iter().map(conformance::Received::from).collect();
    conformance::dead_letter_queue(&aws.host("m").dead_letter_queue("dlq"), true, received).await;
    conformance::blob_store(&aws.host("m").blobs()).await;
}

#[tokio::test(start_paused = true)]
async fn an_aggregate_is_one_record_that_holds_many() {
    let aws = SimulatedAws::new(1);
    aws.create_stream("orders", 1);
    aws.put_aggregate("orders", [("a", "1".into()), ("b", "2".into()), ("a", "3".into())]);
    let stream = aws.host("m").stream("orders");
    let iterator = stream.shard_iterator(&shard(), StartingPosition::TrimHorizon).await.unwrap();
    let page = stream.get_records(&iterator, 10).await.unwrap();
    let [record] = &page.records[..] else { panic!("{} records", page.records.len()) };
    assert_eq!(record.partition_key(), Some("a"));
    let found = kcl_aggregation::disaggregate(record.data(), None, &kcl_aggregation::Rules::default());
    let kcl_aggregation::Disaggregated::Aggregate(aggregate) = found else { panic!("{found:?}") };
    let payloads: Vec<_> = aggregate.sub_records().map(|sub_record| sub_record.data).collect();
    assert_eq!(payloads, ["1", "2", "3"]);
}

#[tokio::test(start_paused = true)]
async fn bytes_are_counted_until_their_last_clone_is_gone() {
    let aws = SimulatedAws::new(1);
    aws.create_stream("orders", 1);
    aws.put("orders", "k", vec![0; 100]);
    let host = aws.host("m");
    let stream = host.stream("orders");
    let iterator = stream.shard_iterator(&shard(), StartingPosition::TrimHorizon).await.unwrap();
    let page = stream.get_records(&iterator, 1).await.unwrap();
    let clone = page.records[0].clone();
    drop(page);
    assert_eq!(host.bytes_held(), (100, 100));
    drop(clone);
    assert_eq!(host.bytes_held(), (0, 100));
}
