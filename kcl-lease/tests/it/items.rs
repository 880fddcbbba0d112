//! Items in the table: ours, the Java library's, other people's, broken ones.

use std::collections::BTreeSet;

use aws_sdk_dynamodb::primitives::Blob;
use aws_sdk_dynamodb::types::AttributeValue;
use bytes::Bytes;
use kcl_checkpoint::{Checkpoint, ExtendedSequenceNumber, PendingCheckpoint, Timestamp};
use kcl_lease::conformance::lease_table_suite;
use kcl_lease::{
    Change, DynamoDbLeaseTable, HashKeyRange, Lease, LeaseTable, LeaseWrite, UnreadableLease, WorkerId, WriteId, WriteOutcome,
};

use crate::local::{LocalDynamoDb, RawItem, java_lease, n, raw_item, s};

const KEY: &str = "shardId-000000000002";

fn at(number: &str) -> Checkpoint {
    Checkpoint::At(ExtendedSequenceNumber::whole(number.parse().unwrap()))
}

async fn applied(table: &DynamoDbLeaseTable, write: &LeaseWrite) -> Lease {
    match table.write(write).await.unwrap() {
        WriteOutcome::Applied(row) => *row,
        WriteOutcome::Refused(row) => panic!("{write:?} was refused by {row:?}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_conforms() {
    let local = LocalDynamoDb::start().await;
    lease_table_suite(|| local.new_lease_table()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lease_of_the_java_library_is_read_taken_and_checkpointed() {
    let local = LocalDynamoDb::start().await;
    let table = local.new_lease_table().await;
    // version 2 knew no entity type
    let mut java = java_lease(KEY);
    java.remove("entityType");
    local.put_item(&table, java).await;

    let seen = table.get(&KEY.into()).await.unwrap().unwrap();
    let expected = Lease {
        owner: Some("java-worker".into()),
        counter: 4711,
        owner_switches_since_checkpoint: 1,
        parents: BTreeSet::from(["shardId-000000000000".into(), "shardId-000000000001".into()]),
        hash_range: Some(HashKeyRange { start: 0, end: u128::MAX / 2 }),
        ..Lease::new(KEY.into(), at("49590338271490256608559692538361571095921575989136588898"))
    };
    assert_eq!(seen, expected);
    assert_eq!(table.list().await.unwrap().leases, std::slice::from_ref(&seen));

    let worker = WorkerId::from("rust-worker");
    let taken = applied(&table, &LeaseWrite::take(&seen, &worker, WriteId(1))).await;
    applied(&table, &LeaseWrite::checkpoint(&taken, at("49590338271490256608559692538361571095921575989136588899"), WriteId(2))).await;
    let mut expected = java_lease(KEY);
    expected.remove("entityType");
    expected.extend(raw_item([
        ("leaseOwner", s("rust-worker")),
        ("leaseCounter", n("4713")),
        ("ownerSwitchesSinceCheckpoint", n("0")),
        ("checkpoint", s("49590338271490256608559692538361571095921575989136588899")),
        ("rk_wid", s("0000000000000002")),
    ]));
    assert_eq!(local.item(&table, KEY).await.unwrap(), expected);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_handoff_that_a_java_worker_began_is_finished() {
    let local = LocalDynamoDb::start().await;
    let table = local.new_lease_table().await;
    let mut java = java_lease(KEY);
    java.extend(raw_item([("leaseOwner", s("java-worker")), ("checkpointOwner", s("rust-worker"))]));
    local.put_item(&table, java).await;
    let seen = table.get(&KEY.into()).await.unwrap().unwrap();
    assert_eq!((seen.actual_owner(), seen.next_owner()), (Some(&"rust-worker".into()), Some(&"java-worker".into())));
    applied(&table, &LeaseWrite::release(&seen, None, BTreeSet::new(), WriteId(1))).await;
    let mut expected = java_lease(KEY);
    expected.extend(raw_item([("leaseCounter", n("4712")), ("ownerSwitchesSinceCheckpoint", n("2")), ("rk_wid", s("0000000000000001"))]));
    assert_eq!(local.item(&table, KEY).await.unwrap(), expected);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_prepared_checkpoint_of_the_java_library_is_read_kept_and_cleared() {
    let local = LocalDynamoDb::start().await;
    let table = local.new_lease_table().await;
    let (pending_at, beyond) =
        ("49590338271490256608559692538361571095921575989136588999", "49590338271490256608559692538361571095921575989136589000");
    let attributes = raw_item([
        ("pendingCheckpoint", s(pending_at)),
        ("pendingCheckpointSubSequenceNumber", n("2")),
        ("pendingCheckpointState", AttributeValue::B(Blob::new([1, 2, 3]))),
    ]);
    let mut java = java_lease(KEY);
    java.extend(attributes.clone());
    local.put_item(&table, java).await;
    let pending_in = |item: RawItem| item.into_iter().filter(|(name, _)| name.starts_with("pending")).collect::<RawItem>();

    let seen = table.get(&KEY.into()).await.unwrap().unwrap();
    let position = |sub| Checkpoint::At(ExtendedSequenceNumber::new(pending_at.parse().unwrap(), sub));
    let expected = PendingCheckpoint { checkpoint: position(2), state: Some(Bytes::from_static(&[1, 2, 3])) };
    assert_eq!(seen.pending_checkpoint, Some(expected));
    let taken = applied(&table, &LeaseWrite::take(&seen, &"rust-worker".into(), WriteId(1))).await;
    let renewed = applied(&table, &LeaseWrite::renew(&taken, WriteId(2))).await;
    let below = applied(&table, &LeaseWrite::checkpoint(&renewed, position(1), WriteId(3))).await;
    assert_eq!(pending_in(local.item(&table, KEY).await.unwrap()), attributes);
    let covered = applied(&table, &LeaseWrite::checkpoint(&below, at(beyond), WriteId(4))).await;
    assert_eq!(pending_in(local.item(&table, KEY).await.unwrap()), RawItem::new());

    // ours is written as theirs is, and one without a state leaves none behind
    let after = Checkpoint::At(ExtendedSequenceNumber::new(beyond.parse().unwrap(), 1));
    let ours = PendingCheckpoint { checkpoint: after, state: Some(Bytes::from_static(&[9])) };
    let prepared = applied(&table, &LeaseWrite::prepare(&covered, ours, WriteId(5))).await;
    let mut expected = raw_item([
        ("pendingCheckpoint", s(beyond)),
        ("pendingCheckpointSubSequenceNumber", n("1")),
        ("pendingCheckpointState", AttributeValue::B(Blob::new([9]))),
    ]);
    assert_eq!(pending_in(local.item(&table, KEY).await.unwrap()), expected);
    let without = PendingCheckpoint { checkpoint: after, state: None };
    applied(&table, &LeaseWrite::prepare(&prepared, without, WriteId(6))).await;
    expected.remove("pendingCheckpointState");
    assert_eq!(pending_in(local.item(&table, KEY).await.unwrap()), expected);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_state_of_the_largest_size_fits_into_the_item() {
    let local = LocalDynamoDb::start().await;
    let table = local.new_lease_table().await;
    let seen = Lease { owner: Some("a".into()), ..Lease::new(KEY.into(), Checkpoint::TrimHorizon) };
    assert!(table.create(&seen).await.unwrap());
    let pending = PendingCheckpoint { checkpoint: at("7"), state: Some(vec![7; PendingCheckpoint::MAX_STATE_BYTES].into()) };
    let prepared = applied(&table, &LeaseWrite::prepare(&seen, pending.clone(), WriteId(1))).await;
    assert_eq!(prepared.pending_checkpoint, Some(pending));
    assert_eq!(table.list().await.unwrap().leases, [prepared]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_owner_that_is_empty_or_null_is_none() {
    let local = LocalDynamoDb::start().await;
    let nobody = [s(""), AttributeValue::Null(true)];
    for owner in nobody.clone() {
        for checkpoint_owner in nobody.clone() {
            let table = local.new_table_without_index().await;
            let mut java = java_lease(KEY);
            java.extend(raw_item([("leaseOwner", owner.clone()), ("checkpointOwner", checkpoint_owner)]));
            local.put_item(&table, java).await;

            let seen = table.get(&KEY.into()).await.unwrap().unwrap();
            assert_eq!((&seen.owner, &seen.checkpoint_owner), (&None, &None));
            assert_eq!(table.list().await.unwrap().leases, std::slice::from_ref(&seen));
            let taken = applied(&table, &LeaseWrite::take(&seen, &"rust-worker".into(), WriteId(1))).await;
            assert_eq!(taken.owner, Some("rust-worker".into()));
            applied(&table, &LeaseWrite::renew(&taken, WriteId(2))).await;
            let item = local.item(&table, KEY).await.unwrap();
            assert_eq!((item.get("leaseOwner"), item.get("checkpointOwner")), (Some(&s("rust-worker")), None));
        }
        // one that another worker took is no longer free
        let table = local.new_table_without_index().await;
        let mut java = java_lease(KEY);
        java.insert("leaseOwner".to_owned(), owner.clone());
        local.put_item(&table, java).await;
        let seen = table.get(&KEY.into()).await.unwrap().unwrap();
        let mut taken = java_lease(KEY);
        taken.insert("leaseOwner".to_owned(), s("java-worker"));
        local.put_item(&table, taken).await;
        let late = table.write(&LeaseWrite::take(&seen, &"rust-worker".into(), WriteId(1))).await.unwrap();
        assert!(matches!(late, WriteOutcome::Refused(Some(_))), "{late:?}");
        assert!(!table.delete(&seen).await.unwrap());
        // and one that is finished can be deleted
        let mut finished = java_lease(KEY);
        finished.extend(raw_item([("leaseOwner", owner.clone()), ("checkpoint", s("SHARD_END"))]));
        local.put_item(&table, finished).await;
        let seen = table.get(&KEY.into()).await.unwrap().unwrap();
        assert!(!table.delete(&Lease { counter: seen.counter - 1, ..seen.clone() }).await.unwrap());
        assert!(table.delete(&seen).await.unwrap());
        assert_eq!(local.item(&table, KEY).await, None);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_belongs_to_others_survives_every_write() {
    let local = LocalDynamoDb::start().await;
    let table = local.new_lease_table().await;
    let leader = raw_item([("leaseKey", s("Leader")), ("entityType", s("LEADER")), ("ownerName", s("java-worker"))]);
    let metrics = raw_item([
        ("leaseKey", s("java-worker")),
        ("entityType", s("WORKER_METRIC_STATS")),
        ("lut", n("1700000000")),
        ("sts", AttributeValue::M([("C".to_owned(), AttributeValue::L(vec![n("12.5")]))].into())),
    ]);
    let mark = raw_item([("theirs", AttributeValue::L(vec![s("anything"), n("1")])), ("throughputKBps", n("3.5"))]);
    for foreign in [&leader, &metrics] {
        local.put_item(&table, foreign.clone()).await;
    }
    let mut java = java_lease(KEY);
    java.extend(mark.clone());
    local.put_item(&table, java).await;

    let (a, b) = (WorkerId::from("a"), WorkerId::from("b"));
    let seen = table.get(&KEY.into()).await.unwrap().unwrap();
    let taken = applied(&table, &LeaseWrite::take(&seen, &a, WriteId(1))).await;
    let asked = applied(&table, &LeaseWrite::request_handoff(&taken, &b).unwrap()).await;
    let renewed = applied(&table, &LeaseWrite::renew(&asked, WriteId(2))).await;
    let given = applied(&table, &LeaseWrite::release(&renewed, Some(at("7")), BTreeSet::new(), WriteId(3))).await;
    let noting = LeaseWrite { watermark: Change::Set(Timestamp::from_millis(9)), ..LeaseWrite::take(&given, &b, WriteId(4)) };
    let held = applied(&table, &noting).await;
    let end = LeaseWrite::release(&held, Some(Checkpoint::ShardEnd), BTreeSet::from(["shardId-000000000003".into()]), WriteId(5));
    let ended = applied(&table, &end).await;

    let item = local.item(&table, KEY).await.unwrap();
    assert!(mark.iter().all(|(name, value)| item.get(name) == Some(value)), "{item:?}");
    let listing = table.list().await.unwrap();
    assert_eq!((listing.leases, listing.unreadable), (vec![ended.clone()], vec![]));
    assert!(table.delete(&ended).await.unwrap());
    assert_eq!(local.item(&table, "Leader").await, Some(leader));
    assert_eq!(local.item(&table, "java-worker").await, Some(metrics));
    assert_eq!(table.get(&"Leader".into()).await.unwrap(), None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lease_that_cannot_be_read_is_reported_and_left_alone() {
    let local = LocalDynamoDb::start().await;
    let table = local.new_lease_table().await;
    let seen = Lease { owner: Some("a".into()), ..Lease::new(KEY.into(), Checkpoint::TrimHorizon) };
    let good = Lease::new("shardId-000000000009".into(), Checkpoint::TrimHorizon);
    for lease in [&seen, &good] {
        assert!(table.create(lease).await.unwrap());
    }
    let mut broken = local.item(&table, KEY).await.unwrap();
    broken.insert("checkpoint".to_owned(), s("nowhere"));
    broken.insert("leaseCounter".to_owned(), n("1"));
    local.put_item(&table, broken.clone()).await;

    let listing = table.list().await.unwrap();
    assert_eq!(listing.leases, [good]);
    let [UnreadableLease { key, reason }] = &listing.unreadable[..] else { panic!("{listing:?}") };
    assert_eq!(key, KEY);
    assert!(reason.contains("`checkpoint`"), "{reason}");
    assert_eq!(table.get(&KEY.into()).await.unwrap(), None);

    // whoever held it loses it, and it is made anew by nobody
    assert_eq!(table.write(&LeaseWrite::renew(&seen, WriteId(1))).await.unwrap(), WriteOutcome::Refused(None));
    assert!(!table.create(&seen).await.unwrap());
    assert!(!table.delete(&seen).await.unwrap());
    assert_eq!(local.item(&table, KEY).await, Some(broken));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_listing_goes_on_beyond_its_first_page() {
    let local = LocalDynamoDb::start().await;
    let table = local.new_lease_table().await;
    // a page ends after 1 MiB
    let (count, ballast) = (60, "x".repeat(40_000));
    for number in 0..count {
        let mut item = java_lease(&format!("shardId-{number:012}"));
        item.insert("theirs".to_owned(), s(&ballast));
        local.put_item(&table, item).await;
    }
    let first_page = local.client().scan().table_name(table.name()).send().await.unwrap();
    assert!(first_page.last_evaluated_key().is_some());
    let listed: Vec<_> = table.list().await.unwrap().leases.iter().map(|lease| lease.shard_id.to_string()).collect();
    assert_eq!(listed, (0..count).map(|number| format!("shardId-{number:012}")).collect::<Vec<_>>());
}
