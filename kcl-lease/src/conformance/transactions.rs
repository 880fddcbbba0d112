//! What every lease table must do with items that are written together with a lease.

use async_trait::async_trait;
use aws_sdk_dynamodb::types::{AttributeValue, Put, TransactWriteItem};

use super::{applied, at, owned, put, refused, row};
use crate::lease::{Lease, WorkerId};
use crate::table::{LeaseTable, TableError};
use crate::transaction::{RefusedItem, TransactItems, TransactOutcome};
use crate::write::{LeaseWrite, WriteId};

/// The table of items that the cases write to. Its key is the string `id`.
pub const EFFECTS: &str = "effects";

/// A look at the table of items, past the lease table.
#[async_trait]
pub trait Effects {
    /// The `id` of each item of [`EFFECTS`], sorted.
    async fn ids(&self) -> Vec<String>;
}

/// Runs all cases, each over a fresh, empty lease table, and an empty table [`EFFECTS`], that `make` gives.
///
/// # Panics
/// If the table does not conform.
pub async fn transaction_suite<F, Fut, T, E>(make: F)
where
    F: Fn() -> Fut,
    Fut: Future<Output = (T, E)>,
    T: LeaseTable,
    E: Effects,
{
    let (table, effects) = make().await;
    lease_and_items_are_written_together(&table, &effects).await;
    let (table, effects) = make().await;
    a_refused_lease_writes_no_item(&table, &effects).await;
    let (table, effects) = make().await;
    a_refused_item_leaves_lease_and_items_alone(&table, &effects).await;
    let (table, effects) = make().await;
    a_repeated_transaction_is_in_effect_once(&table, &effects).await;
    let (table, effects) = make().await;
    a_transaction_and_a_write_from_the_same_base_exclude_each_other(&table, &effects).await;
    let (table, effects) = make().await;
    of_many_transactions_from_the_same_base_one_wins(&table, &effects).await;
    let (table, effects) = make().await;
    what_is_wrong_is_told_and_writes_nothing(&table, &effects).await;
}

/// Puts an item of this id into a table, over another one or only if there is none.
fn effect(table: &str, id: &str, only_new: bool) -> TransactWriteItem {
    let put = Put::builder().table_name(table).item("id", AttributeValue::S(id.to_owned()));
    let put = put.set_condition_expression(only_new.then(|| "attribute_not_exists(id)".to_owned()));
    TransactWriteItem::builder().put(put.build().expect("all of it is given")).build()
}

fn with(items: impl IntoIterator<Item = TransactWriteItem>) -> TransactItems {
    TransactItems::new(items).expect("there are few")
}

/// Puts the lease of owner `a` into the table, and gives it.
async fn held<T: LeaseTable>(table: &T) -> Lease {
    let held = owned(Some("a"), None);
    put(table, &held).await;
    held
}

/// The row is what [`LeaseWrite::apply`] makes of it, and all items are there; also if there are none, or as many as may be.
async fn lease_and_items_are_written_together<T: LeaseTable, E: Effects>(table: &T, effects: &E) {
    let mut seen = held(table).await;
    for (number, items) in (1..).zip([0, 1, 2, 99]) {
        let write = LeaseWrite::checkpoint(&seen, at(200 + u128::from(number), 0), WriteId(number));
        let items = (0..items).map(|item| effect(EFFECTS, &format!("{number}-{item:02}"), item % 2 == 0));
        assert_eq!(table.transact(&write, &with(items)).await.unwrap(), TransactOutcome::Applied);
        let after = row(table).await;
        assert_eq!(after, write.apply(&seen));
        seen = after.expect("the row is there");
    }
    assert_eq!(effects.ids().await.len(), 102);
    // the table's other writes go on from there
    let renewal = LeaseWrite::renew(&seen, WriteId(9));
    assert_eq!(Some(applied(table.write(&renewal).await.unwrap())), renewal.apply(&seen));
}

/// The row that refuses is in the answer; a row that is gone is not made.
async fn a_refused_lease_writes_no_item<T: LeaseTable, E: Effects>(table: &T, effects: &E) {
    let held = held(table).await;
    let write = LeaseWrite::checkpoint(&held, at(200, 0), WriteId(1));
    let items = with([effect(EFFECTS, "x", true)]);
    for stranger in [
        Lease { counter: held.counter + 1, ..held.clone() },
        Lease { counter: held.counter - 1, ..held.clone() },
        Lease { owner: Some("somebody else".into()), ..held.clone() },
        Lease { owner: None, ..held.clone() },
        Lease { checkpoint_owner: Some("somebody else".into()), ..held.clone() },
    ] {
        put(table, &stranger).await;
        let outcome = table.transact(&write, &items).await.unwrap();
        assert_eq!(outcome, TransactOutcome::LeaseRefused(Some(Box::new(stranger.clone()))));
        assert_eq!((row(table).await, effects.ids().await.len()), (Some(stranger), 0));
    }
    let last = row(table).await.expect("the row is there");
    assert!(table.delete(&last).await.unwrap());
    assert_eq!(table.transact(&write, &items).await.unwrap(), TransactOutcome::LeaseRefused(None));
    assert_eq!((row(table).await, effects.ids().await.len()), (None, 0));
}

/// Neither the checkpoint nor the counter moves, and no other item of the transaction is written.
async fn a_refused_item_leaves_lease_and_items_alone<T: LeaseTable, E: Effects>(table: &T, effects: &E) {
    let held = held(table).await;
    let first = LeaseWrite::checkpoint(&held, at(200, 0), WriteId(1));
    assert_eq!(table.transact(&first, &with([effect(EFFECTS, "x", true)])).await.unwrap(), TransactOutcome::Applied);
    let before = row(table).await.expect("the row is there");
    let second = LeaseWrite::checkpoint(&before, at(300, 0), WriteId(2));
    let items = [effect(EFFECTS, "y", false), effect(EFFECTS, "x", true), effect(EFFECTS, "z", true)];
    match table.transact(&second, &with(items.clone())).await.unwrap() {
        TransactOutcome::ItemsRefused(refused) => {
            let told: Vec<_> = refused.iter().map(|RefusedItem { index, code, .. }| (*index, code.as_str())).collect();
            assert_eq!(told, [(1, "ConditionalCheckFailed")]);
        }
        other => panic!("{other:?}"),
    }
    assert_eq!((row(table).await.as_ref(), effects.ids().await), (Some(&before), vec!["x".to_owned()]));
    // refused by both, it is the lease that is told
    let stale = LeaseWrite::checkpoint(&held, at(300, 0), WriteId(3));
    let outcome = table.transact(&stale, &with(items)).await.unwrap();
    assert_eq!(outcome, TransactOutcome::LeaseRefused(Some(Box::new(before.clone()))));
    // and the records may be put through with other items, which is another write
    let third = LeaseWrite::checkpoint(&before, at(300, 0), WriteId(4));
    assert_eq!(table.transact(&third, &with([effect(EFFECTS, "y", true)])).await.unwrap(), TransactOutcome::Applied);
    assert_eq!(row(table).await, third.apply(&before));
}

/// A repetition says that it is in effect, changes nothing, and is not refused by what the first one wrote; also when a request for a handoff came between.
async fn a_repeated_transaction_is_in_effect_once<T: LeaseTable, E: Effects>(table: &T, effects: &E) {
    let held = held(table).await;
    let write = LeaseWrite::checkpoint(&held, at(200, 0), WriteId(1));
    let items = with([effect(EFFECTS, "x", true)]);
    assert_eq!(table.transact(&write, &items).await.unwrap(), TransactOutcome::Applied);
    let after = row(table).await.expect("the row is there");
    let in_effect = |outcome: TransactOutcome, row: &Lease| match outcome {
        TransactOutcome::Applied => {}
        TransactOutcome::Recognised(told) => assert_eq!(*told, *row),
        other => panic!("{other:?}"),
    };
    in_effect(table.transact(&write, &items).await.unwrap(), &after);
    assert_eq!((row(table).await.as_ref(), effects.ids().await), (Some(&after), vec!["x".to_owned()]));
    let request = LeaseWrite::request_handoff(&after, &WorkerId::from("next")).expect("the lease is owned by another worker");
    let asked = applied(table.write(&request).await.unwrap());
    in_effect(table.transact(&write, &items).await.unwrap(), &asked);
    assert_eq!((row(table).await, effects.ids().await.len()), (Some(asked), 1));
}

/// This is what settles a transaction whose answer was lost: a renewal from the same row is refused by a row that shows it, or else keeps it from ever taking
/// effect.
async fn a_transaction_and_a_write_from_the_same_base_exclude_each_other<T: LeaseTable, E: Effects>(table: &T, effects: &E) {
    let base = held(table).await;
    let transaction = LeaseWrite::checkpoint(&base, at(200, 0), WriteId(1));
    let renewal = LeaseWrite::renew(&base, WriteId(2));
    let items = with([effect(EFFECTS, "x", false)]);
    assert_eq!(table.transact(&transaction, &items).await.unwrap(), TransactOutcome::Applied);
    let shown = refused(table.write(&renewal).await.unwrap()).expect("the row is there");
    assert!(transaction.is_in_effect(&shown) && !renewal.is_in_effect(&shown));

    put(table, &base).await;
    // Other ids: a table may remember those that it has seen.
    let transaction = LeaseWrite::checkpoint(&base, at(200, 0), WriteId(3));
    let renewed = applied(table.write(&LeaseWrite::renew(&base, WriteId(4))).await.unwrap());
    let late = with([effect(EFFECTS, "late", false)]);
    assert_eq!(table.transact(&transaction, &late).await.unwrap(), TransactOutcome::LeaseRefused(Some(Box::new(renewed))));
    assert_eq!(effects.ids().await, ["x"]);
}

/// Also those that are refused since others are under way are told so in the end.
async fn of_many_transactions_from_the_same_base_one_wins<T: LeaseTable, E: Effects>(table: &T, effects: &E) {
    let base = held(table).await;
    let attempts = (0..10u64).map(|number| {
        let write = LeaseWrite::checkpoint(&base, at(200 + u128::from(number), 0), WriteId(number));
        async move {
            let items = with([effect(EFFECTS, &number.to_string(), true)]);
            loop {
                match table.transact(&write, &items).await {
                    Ok(outcome) => return (number, outcome),
                    Err(error) => assert!(error.is_retryable(), "{error}"),
                }
            }
        }
    });
    let outcomes = futures::future::join_all(attempts).await;
    let row = row(table).await.expect("the row was put before");
    let mut winners = Vec::new();
    for (number, outcome) in outcomes {
        match outcome {
            TransactOutcome::Applied | TransactOutcome::Recognised(_) => winners.push(number.to_string()),
            TransactOutcome::LeaseRefused(told) => assert_eq!(told.map(|told| *told), Some(row.clone())),
            TransactOutcome::ItemsRefused(items) => panic!("{items:?}"),
        }
    }
    assert_eq!((effects.ids().await, winners.len()), (winners, 1));
}

/// A table that does not exist is an error that no retry helps, and says nothing of the lease table.
async fn what_is_wrong_is_told_and_writes_nothing<T: LeaseTable, E: Effects>(table: &T, effects: &E) {
    let held = held(table).await;
    let write = LeaseWrite::checkpoint(&held, at(200, 0), WriteId(1));
    let items = with([effect(EFFECTS, "x", false), effect("no-such-table", "x", false)]);
    match table.transact(&write, &items).await {
        Err(TableError::Rejected { message, .. }) => assert!(!message.is_empty()),
        other => panic!("{other:?}"),
    }
    assert_eq!((row(table).await, effects.ids().await.len()), (Some(held), 0));
}
