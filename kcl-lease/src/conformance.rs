//! What every implementation of the lease table must do, as tests that each of them runs.
//!
//! A case panics if the table does not conform. Each takes a fresh, empty table of its own. `transactions` owns the cases with items of other tables.

mod transactions;

use std::collections::BTreeSet;
use std::time::Duration;

use bytes::Bytes;
use futures::future::join_all;
use kcl_checkpoint::{Checkpoint, ExtendedSequenceNumber, FinishedBeyond, PendingCheckpoint, Timestamp};

pub use self::transactions::{EFFECTS, Effects, transaction_suite};
use crate::lease::{HashKeyRange, Lease, ShardId, StopReason, Stopped, Suspect, Trust, WorkerId};
use crate::table::{LeaseListing, LeaseTable, WriteOutcome};
use crate::write::{Change, LeaseWrite, NewStart, WriteId};

/// Runs all cases, each over a table that `make` gives.
///
/// # Panics
/// If the table does not conform.
pub async fn lease_table_suite<F, Fut, T>(make: F)
where
    F: Fn() -> Fut,
    Fut: Future<Output = T>,
    T: LeaseTable,
{
    a_lease_is_created_once(&make().await).await;
    all_of_a_lease_is_kept(&make().await).await;
    many_leases_are_listed_in_order(&make().await).await;
    every_write_makes_of_a_row_what_it_says(&make().await).await;
    every_condition_counts(&make().await).await;
    a_write_never_makes_a_row(&make().await).await;
    a_repeated_write_is_recognised(&make().await).await;
    another_write_from_the_same_base_is_refused(&make().await).await;
    of_many_takers_one_wins(&make().await).await;
    of_many_askers_for_a_handoff_one_wins(&make().await).await;
    what_is_noted_if_absent_stays(&make().await).await;
    a_checkpoint_is_stored_as_told(&make().await).await;
    a_resumption_clears_only_the_stop_that_was_seen(&make().await).await;
    a_lease_is_deleted_only_as_seen(&make().await).await;
    a_row_made_anew_is_strange_to_its_old_owner(&make().await).await;
}

const SHARD: &str = "shardId-000000000000";

fn at(number: u128, sub_sequence_number: u64) -> Checkpoint {
    Checkpoint::At(ExtendedSequenceNumber::new(number.into(), sub_sequence_number))
}

fn owned(owner: Option<&str>, checkpoint_owner: Option<&str>) -> Lease {
    Lease {
        owner: owner.map(WorkerId::from),
        checkpoint_owner: checkpoint_owner.map(WorkerId::from),
        counter: 7,
        owner_switches_since_checkpoint: 2,
        ..Lease::new(SHARD.into(), at(100, 3))
    }
}

fn note() -> FinishedBeyond {
    let at = |number: u128| ExtendedSequenceNumber::whole(number.into());
    FinishedBeyond { base: Some(at(100)), until: at(300), open: vec![at(101), at(205)] }
}

fn suspect() -> Suspect {
    Suspect { record: ExtendedSequenceNumber::new(101.into(), 2), begun: 3 }
}

fn pending(state: Option<&'static [u8]>) -> PendingCheckpoint {
    PendingCheckpoint { checkpoint: at(150, 4), state: state.map(Bytes::from_static) }
}

fn stop(reason: StopReason) -> Stopped {
    Stopped { reason, since: Timestamp::from_millis(1_700_000_000_004) }
}

fn full() -> Lease {
    Lease {
        parents: BTreeSet::from(["shardId-000000000001".into(), "shardId-000000000002".into()]),
        children: BTreeSet::from(["shardId-000000000008".into(), "shardId-000000000009".into()]),
        hash_range: Some(HashKeyRange { start: 1 << 127, end: u128::MAX }),
        initial_timestamp: Some(Timestamp::from_millis(1_700_000_000_001)),
        watermark: Some(Timestamp::from_millis(1_700_000_000_002)),
        stream_created: Some(Timestamp::from_millis(1_700_000_000_003)),
        finished_beyond: Some(note()),
        suspect: Some(suspect()),
        pending_checkpoint: Some(pending(Some(&[0, 1, 255]))),
        stopped: Some(stop(StopReason::SafetyValve)),
        write_id: Some(WriteId(u64::MAX)),
        ..owned(Some("b"), Some("a"))
    }
}

/// Every write that can be made of a row: by name, with the row that it was made of.
fn writes() -> Vec<(&'static str, Lease, LeaseWrite)> {
    let (free, held, handed) = (owned(None, None), owned(Some("a"), None), owned(Some("b"), Some("a")));
    let (worker, id) = (WorkerId::from("w"), WriteId(41));
    let children = BTreeSet::from(["shardId-000000000008".into()]);
    let asked = LeaseWrite::request_handoff(&held, &worker).expect("the lease is owned by another worker");
    let mut noted = LeaseWrite::checkpoint(&held, at(200, 0), id);
    noted.watermark = Change::Set(Timestamp::from_millis(5));
    noted.initial_timestamp_if_absent = Some(Timestamp::from_millis(6));
    noted.stream_created_if_absent = Some(Timestamp::from_millis(7));
    noted.finished_beyond = Change::Set(note());
    let watched = Lease { suspect: Some(suspect()), finished_beyond: Some(note()), ..held.clone() };
    let mut cleared = LeaseWrite::checkpoint(&watched, at(400, 0), id);
    cleared.finished_beyond = Change::Remove;
    cleared.suspect = Change::Remove;
    let at_200 = Lease { checkpoint: at(200, 0), ..held.clone() };
    let prepared = Lease { pending_checkpoint: Some(pending(Some(b"state"))), ..held.clone() };
    let stopped = Lease { stopped: Some(stop(StopReason::SafetyValve)), ..handed.clone() };
    let resumed = LeaseWrite::resume(&stopped).expect("the shard is stopped");
    vec![
        ("take of a free lease", free.clone(), LeaseWrite::take(&free, &worker, id)),
        ("take of a dead owner's lease", held.clone(), LeaseWrite::take(&held, &worker, id)),
        ("take of one's own lease", held.clone(), LeaseWrite::take(&held, &WorkerId::from("a"), id)),
        ("take in the middle of a handoff", handed.clone(), LeaseWrite::take(&handed, &WorkerId::from("b"), id)),
        ("renewal", held.clone(), LeaseWrite::renew(&held, id)),
        ("renewal while a handoff is asked for", handed.clone(), LeaseWrite::renew(&handed, id)),
        ("checkpoint", held.clone(), LeaseWrite::checkpoint(&held, at(200, 1), id)),
        ("checkpoint with all that can be noted", held.clone(), noted),
        ("checkpoint that clears what was noted", watched.clone(), cleared),
        ("record in work alone", held.clone(), LeaseWrite::suspect(&held, suspect(), Some(at(150, 0)), id)),
        ("take of a lease with notes", watched.clone(), LeaseWrite::take(&watched, &worker, id)),
        ("release", held.clone(), LeaseWrite::release(&held, None, BTreeSet::new(), id)),
        ("release to the next owner", handed.clone(), LeaseWrite::release(&handed, Some(at(200, 0)), BTreeSet::new(), id)),
        ("end", held.clone(), LeaseWrite::release(&held, Some(Checkpoint::ShardEnd), children.clone(), id)),
        ("begin elsewhere", full(), LeaseWrite::seek(&full(), Some(&worker), NewStart::latest(Timestamp::from_millis(8)), children, id)),
        ("begin elsewhere, and stay the owner", watched.clone(), LeaseWrite::restart(&watched, NewStart::TRIM_HORIZON, id)),
        ("prepared checkpoint", held.clone(), LeaseWrite::prepare(&held, pending(Some(b"state")), id)),
        ("prepared checkpoint in place of another", prepared.clone(), LeaseWrite::prepare(&prepared, pending(None), id)),
        ("prepared checkpoint that is covered", at_200.clone(), LeaseWrite::prepare(&at_200, pending(None), id)),
        ("checkpoint below a prepared one", prepared.clone(), LeaseWrite::checkpoint(&prepared, at(150, 3), id)),
        ("checkpoint of a prepared one", prepared.clone(), LeaseWrite::checkpoint(&prepared, at(150, 4), id)),
        ("release with a prepared checkpoint", prepared.clone(), LeaseWrite::release(&prepared, None, BTreeSet::new(), id)),
        ("stop", held.clone(), LeaseWrite::set_stopped(&held, Some(stop(StopReason::Operator)), id)),
        ("resumption by the owner", stopped.clone(), LeaseWrite::set_stopped(&stopped, None, id)),
        ("resumption from outside", stopped, resumed),
        ("request for a handoff", held, asked),
    ]
}

/// Puts this row in the place of whatever there is.
async fn put<T: LeaseTable>(table: &T, row: &Lease) {
    if let Some(old) = table.get(&row.shard_id).await.unwrap() {
        assert!(table.delete(&old).await.unwrap());
    }
    assert!(table.create(row).await.unwrap());
}

async fn row<T: LeaseTable>(table: &T) -> Option<Lease> {
    table.get(&SHARD.into()).await.unwrap()
}

fn applied(outcome: WriteOutcome) -> Lease {
    match outcome {
        WriteOutcome::Applied(row) => *row,
        WriteOutcome::Refused(row) => panic!("refused: {row:?}"),
    }
}

fn refused(outcome: WriteOutcome) -> Option<Lease> {
    match outcome {
        WriteOutcome::Refused(row) => row.map(|row| *row),
        WriteOutcome::Applied(row) => panic!("applied: {row:?}"),
    }
}

/// The first create wins; a second one changes nothing. `ensure` may be called on a table in use.
pub async fn a_lease_is_created_once<T: LeaseTable>(table: &T) {
    table.ensure().await.unwrap();
    assert_eq!(table.list().await.unwrap(), LeaseListing::default());
    assert_eq!(row(table).await, None);
    assert!(table.create(&owned(None, None)).await.unwrap());
    assert!(!table.create(&owned(Some("late"), None)).await.unwrap());
    table.ensure().await.unwrap();
    assert_eq!(row(table).await, Some(owned(None, None)));
}

/// Every field comes back as it was written, by key and in the listing.
pub async fn all_of_a_lease_is_kept<T: LeaseTable>(table: &T) {
    let mut leases = vec![full()];
    let checkpoints =
        [Checkpoint::TrimHorizon, Checkpoint::Latest, Checkpoint::AtTimestamp, Checkpoint::ShardEnd, at(u128::MAX, u64::MAX), at(0, 0)];
    for (number, checkpoint) in (1..).zip(checkpoints) {
        leases.push(Lease::new(format!("shardId-{number:012}").into(), checkpoint));
    }
    for lease in &leases {
        assert!(table.create(lease).await.unwrap());
        assert_eq!(table.get(&lease.shard_id).await.unwrap().as_ref(), Some(lease));
    }
    assert_eq!(table.list().await.unwrap(), LeaseListing { leases, unreadable: Vec::new() });
}

/// A listing holds all leases, sorted by shard id.
pub async fn many_leases_are_listed_in_order<T: LeaseTable>(table: &T) {
    let leases: Vec<_> = (0..250).map(|number| Lease::new(format!("shardId-{number:012}").into(), Checkpoint::TrimHorizon)).collect();
    let created = join_all(leases.iter().rev().map(|lease| table.create(lease))).await;
    assert!(created.into_iter().all(|created| created.unwrap()));
    assert_eq!(table.list().await.unwrap().leases, leases);
}

/// The answer and the row are what [`LeaseWrite::apply`] makes of the row before.
pub async fn every_write_makes_of_a_row_what_it_says<T: LeaseTable>(table: &T) {
    for (name, base, write) in writes() {
        // also over a row that has everything
        let rich = Lease { owner: base.owner.clone(), checkpoint_owner: base.checkpoint_owner.clone(), ..full() };
        for before in [base, rich] {
            put(table, &before).await;
            let expected = write.apply(&before);
            assert_eq!(Some(applied(table.write(&write).await.unwrap())), expected, "{name}");
            assert_eq!(row(table).await, expected, "{name}");
        }
    }
}

/// A row that differs in counter, owner or checkpoint owner refuses the write, stays as it is, and is in the answer.
pub async fn every_condition_counts<T: LeaseTable>(table: &T) {
    for (name, base, write) in writes() {
        let other = || Some(WorkerId::from("somebody else"));
        let strangers = [
            // A request for a handoff leaves the counter alone and expects none.
            write.expected.counter.map(|counter| Lease { counter: counter - 1, ..base.clone() }),
            write.expected.counter.map(|counter| Lease { counter: counter + 1, ..base.clone() }),
            Some(Lease { owner: other(), ..base.clone() }),
            base.owner.as_ref().map(|_| Lease { owner: None, ..base.clone() }),
            Some(Lease { checkpoint_owner: other(), ..base.clone() }),
            base.checkpoint_owner.as_ref().map(|_| Lease { checkpoint_owner: None, ..base.clone() }),
        ];
        for stranger in strangers.into_iter().flatten() {
            put(table, &stranger).await;
            assert_eq!(refused(table.write(&write).await.unwrap()).as_ref(), Some(&stranger), "{name}");
            assert_eq!(row(table).await, Some(stranger), "{name}");
        }
    }
}

/// A write to a row that is gone is refused without a row, and does not make one.
pub async fn a_write_never_makes_a_row<T: LeaseTable>(table: &T) {
    for (name, _, write) in writes() {
        assert_eq!(refused(table.write(&write).await.unwrap()), None, "{name}");
    }
    assert_eq!(table.list().await.unwrap(), LeaseListing::default());
}

/// A write whose answer was lost is repeated: it answers that it is in effect and is not carried out again, also when another
/// worker's request for a handoff came between.
pub async fn a_repeated_write_is_recognised<T: LeaseTable>(table: &T) {
    for (name, base, write) in writes() {
        put(table, &base).await;
        let after = applied(table.write(&write).await.unwrap());
        assert_eq!(applied(table.write(&write).await.unwrap()), after, "{name}");
        let Some(request) = LeaseWrite::request_handoff(&after, &WorkerId::from("next")) else { continue };
        let asked = applied(table.write(&request).await.unwrap());
        assert_eq!(applied(table.write(&write).await.unwrap()), asked, "{name}");
        assert_eq!(row(table).await, Some(asked), "{name}");
    }
}

/// Of two different writes made of the same row, the second is refused, with the row that the first made; so is the first when it
/// comes again after others have written.
pub async fn another_write_from_the_same_base_is_refused<T: LeaseTable>(table: &T) {
    let base = owned(Some("a"), None);
    put(table, &base).await;
    let first = LeaseWrite::checkpoint(&base, at(200, 0), WriteId(1));
    let after = applied(table.write(&first).await.unwrap());
    for second in [
        LeaseWrite::checkpoint(&base, at(200, 0), WriteId(2)),
        LeaseWrite::renew(&base, WriteId(3)),
        LeaseWrite::take(&base, &"b".into(), WriteId(4)),
    ] {
        assert_eq!(refused(table.write(&second).await.unwrap()).as_ref(), Some(&after));
    }
    let renewed = applied(table.write(&LeaseWrite::renew(&after, WriteId(5))).await.unwrap());
    assert_eq!(refused(table.write(&first).await.unwrap()), Some(renewed));
}

/// However many workers take a lease at the same time, one has it, and the others are told who.
pub async fn of_many_takers_one_wins<T: LeaseTable>(table: &T) {
    let seen = owned(Some("dead"), None);
    put(table, &seen).await;
    let takes = (0..20u64).map(|number| LeaseWrite::take(&seen, &format!("worker-{number}").into(), WriteId(number)));
    one_wins(table, takes.collect()).await;
}

/// However many workers ask for a handoff at the same time, one is the next owner.
pub async fn of_many_askers_for_a_handoff_one_wins<T: LeaseTable>(table: &T) {
    let seen = owned(Some("alive"), None);
    put(table, &seen).await;
    let requests = (0..20).filter_map(|number| LeaseWrite::request_handoff(&seen, &format!("worker-{number}").into()));
    one_wins(table, requests.collect()).await;
}

async fn one_wins<T: LeaseTable>(table: &T, writes: Vec<LeaseWrite>) {
    assert_eq!(writes.len(), 20);
    let outcomes = join_all(writes.iter().map(|write| table.write(write))).await;
    let row = row(table).await.expect("the row was put before");
    for (write, outcome) in writes.iter().zip(outcomes) {
        let outcome = outcome.unwrap();
        if write.owner == row.owner {
            assert_eq!(applied(outcome), row);
        } else {
            assert_eq!(refused(outcome).as_ref(), Some(&row));
        }
    }
}

/// What is noted only if absent is noted once; a watermark and children are noted anew, and kept by writes that say nothing of them.
pub async fn what_is_noted_if_absent_stays<T: LeaseTable>(table: &T) {
    let note = |seen: &Lease, millis: u64| {
        let time = Some(Timestamp::from_millis(millis));
        let write = LeaseWrite::renew(seen, WriteId(millis));
        LeaseWrite {
            watermark: Change::from_to(None, time.as_ref()),
            initial_timestamp_if_absent: time,
            stream_created_if_absent: time,
            ..write
        }
    };
    let times = |lease: &Lease| [lease.initial_timestamp, lease.stream_created, lease.watermark].map(|time| time.map(Timestamp::as_millis));
    put(table, &owned(Some("a"), None)).await;
    let first = applied(table.write(&note(&owned(Some("a"), None), 1)).await.unwrap());
    assert_eq!(times(&first), [Some(1), Some(1), Some(1)]);
    let second = applied(table.write(&note(&first, 2)).await.unwrap());
    assert_eq!(times(&second), [Some(1), Some(1), Some(2)]);

    let trust = Trust::new("a/b".into(), Duration::from_micros(1500));
    let trusting = LeaseWrite { trust: Change::Set(trust.clone()), ..LeaseWrite::renew(&second, WriteId(6)) };
    let second = applied(table.write(&trusting).await.unwrap());
    assert_eq!((row(table).await.unwrap().trust, second.trust.clone()), (Some(trust.clone()), Some(trust)));

    let children = |name: &str| BTreeSet::from([ShardId::from(name)]);
    let linked = LeaseWrite { children: children("c1"), ..LeaseWrite::renew(&second, WriteId(3)) };
    let third = applied(table.write(&linked).await.unwrap());
    let fourth = applied(table.write(&LeaseWrite::renew(&third, WriteId(4))).await.unwrap());
    assert_eq!((times(&fourth), fourth.children.clone()), ([Some(1), Some(1), Some(2)], children("c1")));
    let relinked = LeaseWrite { children: children("c2"), ..LeaseWrite::renew(&fourth, WriteId(5)) };
    assert_eq!(applied(table.write(&relinked).await.unwrap()).children, children("c2"));
}

/// The table stores the checkpoint that it is told and compares none: whether it may move is its owner's business.
pub async fn a_checkpoint_is_stored_as_told<T: LeaseTable>(table: &T) {
    let mut seen = owned(Some("a"), None);
    put(table, &seen).await;
    for (id, checkpoint) in (0..).zip([at(9, 0), at(10, 0), at(10, 4), at(9, 9), Checkpoint::TrimHorizon, Checkpoint::ShardEnd]) {
        let write = LeaseWrite { checkpoint: Some(checkpoint), ..LeaseWrite::checkpoint(&seen, checkpoint, WriteId(id)) };
        seen = applied(table.write(&write).await.unwrap());
        assert_eq!((seen.checkpoint, seen.owner_switches_since_checkpoint), (checkpoint, 0));
        assert_eq!(row(table).await.as_ref(), Some(&seen));
    }
}

/// A row with another counter, owner or checkpoint than seen stays; one that is gone is gone.
pub async fn a_lease_is_deleted_only_as_seen<T: LeaseTable>(table: &T) {
    for seen in [full(), owned(None, None), Lease::new(SHARD.into(), Checkpoint::ShardEnd)] {
        put(table, &seen).await;
        for stale in [
            Lease { counter: seen.counter + 1, ..seen.clone() },
            Lease { owner: Some("somebody else".into()), ..seen.clone() },
            Lease { owner: seen.owner.is_none().then(|| "somebody".into()), ..seen.clone() },
            Lease { checkpoint: Checkpoint::TrimHorizon, ..seen.clone() },
            Lease { checkpoint: at(100, 4), ..seen.clone() },
        ] {
            assert!(!table.delete(&stale).await.unwrap(), "{stale:?}");
            assert_eq!(row(table).await.as_ref(), Some(&seen));
        }
        assert!(table.delete(&seen).await.unwrap());
        assert_eq!(row(table).await, None);
        assert!(table.delete(&seen).await.unwrap());
    }
}

/// A resumption from outside leaves a later stop alone and is recognised all the same; the owner's writes
/// from the row before it are not refused, and their answer shows that the stop is gone.
pub async fn a_resumption_clears_only_the_stop_that_was_seen<T: LeaseTable>(table: &T) {
    let held = Lease { stopped: Some(stop(StopReason::SafetyValve)), ..owned(Some("a"), None) };
    put(table, &held).await;
    let resume = LeaseWrite::resume(&held).expect("the shard is stopped");
    let resumed = applied(table.write(&resume).await.unwrap());
    assert_eq!(resumed, Lease { stopped: None, ..held.clone() });
    let renewed = applied(table.write(&LeaseWrite::renew(&held, WriteId(1))).await.unwrap());
    assert_eq!((renewed.counter, renewed.stopped), (held.counter + 1, None));
    let later = stop(StopReason::Processor);
    let stopped = applied(table.write(&LeaseWrite::set_stopped(&renewed, Some(later), WriteId(2))).await.unwrap());
    assert_eq!(stopped.stopped, Some(later));
    assert_eq!(applied(table.write(&resume).await.unwrap()), stopped);
    assert_eq!(row(table).await, Some(stopped));
}

/// An owner whose row was deleted and made anew is refused, even if the counter happens to be the same.
pub async fn a_row_made_anew_is_strange_to_its_old_owner<T: LeaseTable>(table: &T) {
    let held = owned(Some("a"), None);
    put(table, &held).await;
    let anew = Lease { counter: held.counter - 1, ..Lease::new(SHARD.into(), Checkpoint::TrimHorizon) };
    put(table, &anew).await;
    let taken = applied(table.write(&LeaseWrite::take(&anew, &"b".into(), WriteId(1))).await.unwrap());
    assert_eq!(taken.counter, held.counter);
    let late = LeaseWrite::checkpoint(&held, at(500, 0), WriteId(2));
    assert_eq!(refused(table.write(&late).await.unwrap()), Some(taken));
}
