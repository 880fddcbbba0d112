//! Transactions of a term, whatever becomes of their answers: in effect once or never, and the answer says which.

use aws_sdk_dynamodb::types::{AttributeValue, Put, TransactWriteItem};

use super::*;
use crate::term::TransactError;
use crate::transaction::RefusedItem;

fn record(number: u128) -> ExtendedSequenceNumber {
    ExtendedSequenceNumber::whole(number.into())
}

/// An item that may be put once.
fn effect(id: &str) -> TransactItems {
    let put =
        Put::builder().table_name("effects").item("id", AttributeValue::S(id.into())).condition_expression("attribute_not_exists(id)");
    TransactItems::new([TransactWriteItem::builder().put(put.build().unwrap()).build()]).unwrap()
}

impl World {
    async fn with_effects() -> Self {
        let world = Self::new().await;
        world.table.inner.items().create_table("effects", &["id"]);
        world
    }

    fn effects(&self) -> Vec<String> {
        self.table.inner.items().items("effects").iter().map(|item| item["id"].as_s().unwrap().clone()).collect()
    }

    fn transactions_meet(&self, fates: &[Fate]) {
        *self.table.transaction_fates.lock().unwrap() = fates.to_vec();
    }

    fn attempts(&self) -> usize {
        self.table.transactions.lock().unwrap().len()
    }

    /// Those on their way arrive; what the table makes of them.
    async fn late_ones_arrive(&self) -> Vec<TransactOutcome> {
        let late = std::mem::take(&mut *self.table.late.lock().unwrap());
        let mut outcomes = Vec::new();
        for (write, with) in late {
            outcomes.push(self.table.inner.transact(&write, &with).await.unwrap());
        }
        outcomes
    }

    /// Waits until another attempt than these was made.
    async fn attempts_beyond(&self, attempts: usize) {
        while self.attempts() <= attempts {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn whatever_answers_are_lost_it_is_in_effect_once() {
    use Fate::{AppliedAnswerLost, DroppedBeforeApplied, Rejected, Slow};
    for fates in [
        vec![],
        vec![DroppedBeforeApplied],
        vec![AppliedAnswerLost],
        vec![DroppedBeforeApplied, AppliedAnswerLost, DroppedBeforeApplied, AppliedAnswerLost],
        // permission was taken away, or a table deleted, after it took effect
        vec![AppliedAnswerLost, Rejected],
        vec![Slow(Duration::from_secs(5))],
        // beyond the renewal that is due meanwhile
        vec![
            AppliedAnswerLost,
            DroppedBeforeApplied,
            DroppedBeforeApplied,
            DroppedBeforeApplied,
            DroppedBeforeApplied,
            DroppedBeforeApplied,
        ],
        vec![DroppedBeforeApplied; 8],
    ] {
        let mut world = World::with_effects().await;
        let term = world.take("a").await;
        world.transactions_meet(&fates);
        term.transact(record(1), record(5), effect("x")).await.unwrap();
        let row = world.row().await;
        assert_eq!((row.checkpoint, world.effects().len()), (at(5), 1), "{fates:?}");
        // the keeper goes on from the row as it is
        term.transact(record(6), record(6), effect("y")).await.unwrap();
        term.write(at(7)).await.unwrap();
        assert_eq!((world.row().await.checkpoint, world.effects()), (at(7), vec!["x".into(), "y".into()]), "{fates:?}");
        assert!(term.is_valid());
    }
}

#[tokio::test(start_paused = true)]
async fn an_item_that_refuses_leaves_lease_and_items_alone_and_costs_nothing_else() {
    let mut world = World::with_effects().await;
    let term = world.take("a").await;
    term.transact(record(1), record(1), effect("x")).await.unwrap();
    let refused = term.transact(record(2), record(2), effect("x")).await.unwrap_err();
    let TransactError::Refused(items) = refused else { panic!("{refused}") };
    assert_eq!(items, [RefusedItem::new(0, "ConditionalCheckFailed", items[0].message.clone())]);
    assert_eq!((world.row().await.checkpoint, world.effects().len()), (at(1), 1));
    assert!(term.is_valid());
    term.transact(record(2), record(2), effect("y")).await.unwrap();
    assert_eq!((world.row().await.checkpoint, world.effects().len()), (at(2), 2));
}

/// An attempt is on its way while the next one is refused: whoever is told that nothing is written can rely on it.
#[tokio::test(start_paused = true)]
async fn what_was_refused_never_takes_effect_later() {
    let mut world = World::new().await;
    let term = world.take("a").await;
    world.transactions_meet(&[Fate::Late]);
    let rejected = term.transact(record(1), record(1), effect("x")).await.unwrap_err();
    assert!(matches!(rejected, TransactError::Rejected(_)), "there is no such table: {rejected}");
    world.table.inner.items().create_table("effects", &["id"]);
    assert!(matches!(world.late_ones_arrive().await[..], [TransactOutcome::LeaseRefused(Some(_))]));
    assert_eq!((world.effects().len(), world.row().await.checkpoint), (0, Checkpoint::TrimHorizon));
    assert!(term.is_valid());
    term.transact(record(1), record(1), effect("y")).await.unwrap();
    assert_eq!(world.effects(), ["y"]);
}

/// Items of a table that is throttled for long must not cost the lease; and what was given up is not tried on.
#[tokio::test(start_paused = true)]
async fn items_that_are_never_taken_do_not_cost_the_lease() {
    let mut world = World::with_effects().await;
    let term = world.take("a").await;
    let mut fates = vec![Fate::DroppedBeforeApplied; 1000];
    fates[3] = Fate::Late;
    world.transactions_meet(&fates);
    assert!(matches!(term.transact(record(1), record(1), effect("x")).await, Err(TransactError::Unavailable)));
    assert!(term.is_valid());
    assert_eq!(term.settled().await, Some(Checkpoint::TrimHorizon));
    let attempts = world.attempts();
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(world.attempts(), attempts, "nobody waits for it");
    assert!(matches!(world.late_ones_arrive().await[..], [TransactOutcome::LeaseRefused(Some(_))]));
    world.transactions_meet(&[]);
    term.transact(record(1), record(2), effect("y")).await.unwrap();
    assert_eq!((world.effects(), term.is_valid()), (vec!["y".to_owned()], true));
}

/// Told that nothing is known, the caller asks again, with more records and other items, before the first one is settled.
#[tokio::test(start_paused = true)]
async fn what_may_be_in_effect_is_not_written_again_under_another_name() {
    let mut world = World::with_effects().await;
    let term = world.take("a").await;
    world.transactions_meet(&[Fate::AppliedAnswerLost]);
    {
        let first = term.transact(record(1), record(5), effect("1 to 5"));
        let given_up = tokio::time::timeout(Duration::from_millis(1), first).await;
        assert!(given_up.is_err());
    }
    let covered = term.transact(record(1), record(7), effect("1 to 7")).await.unwrap_err();
    assert!(matches!(covered, TransactError::Covered(checkpoint) if checkpoint == at(5)), "{covered}");
    assert_eq!(term.settled().await, Some(at(5)));
    term.transact(record(6), record(7), effect("6 to 7")).await.unwrap();
    assert_eq!((world.effects(), world.row().await.checkpoint), (vec!["1 to 5".to_owned(), "6 to 7".to_owned()], at(7)));
}

#[tokio::test(start_paused = true)]
async fn what_nobody_waits_for_any_more_is_not_begun() {
    let mut world = World::with_effects().await;
    let term = world.take("a").await;
    world.table.next(&[Fate::Slow(Duration::from_secs(5))]);
    let checkpoint = async { term.write(at(1)).await.unwrap() };
    let given_up = tokio::time::timeout(Duration::from_secs(1), term.transact(record(2), record(2), effect("x")));
    let ((), given_up) = tokio::join!(checkpoint, given_up);
    assert!(given_up.is_err());
    assert_eq!(term.settled().await, Some(at(1)));
    assert_eq!((world.attempts(), world.effects().len()), (0, 0));
}

/// The request comes before the transaction is applied, or between that and its repetition.
#[tokio::test(start_paused = true)]
async fn a_request_for_a_handoff_stops_no_transaction_and_is_noticed() {
    for fate in [Fate::DroppedBeforeApplied, Fate::AppliedAnswerLost] {
        let mut world = World::with_effects().await;
        let term = world.take("a").await;
        world.transactions_meet(&[fate]);
        let asking = async {
            world.attempts_beyond(0).await;
            let request = LeaseWrite::request_handoff(&world.row().await, &"bb".into()).unwrap();
            assert!(matches!(world.table.inner.write(&request).await.unwrap(), WriteOutcome::Applied(_)));
        };
        let (done, ()) = tokio::join!(term.transact(record(1), record(5), effect("x")), asking);
        done.unwrap();
        assert_eq!(term.status(), TermStatus::HandoffRequested, "{fate:?}");
        let row = world.row().await;
        assert_eq!((row.checkpoint, row.next_owner().map(WorkerId::as_str), world.effects().len()), (at(5), Some("bb"), 1), "{fate:?}");
        term.release(None, BTreeSet::new()).await.unwrap();
        assert_eq!(world.row().await.actual_owner().map(WorkerId::as_str), Some("bb"));
    }
}

/// An item refuses, and the renewal that settles the refusal finds that the lease was asked for.
#[tokio::test(start_paused = true)]
async fn a_request_that_comes_while_a_refusal_is_settled_is_noticed() {
    let mut world = World::with_effects().await;
    let term = world.take("a").await;
    term.transact(record(1), record(1), effect("x")).await.unwrap();
    world.transactions_meet(&[Fate::DroppedBeforeApplied]);
    let asking = async {
        world.attempts_beyond(1).await;
        // The next attempt is made of the row with the request.
        let request = LeaseWrite::request_handoff(&world.row().await, &"bb".into()).unwrap();
        assert!(matches!(world.table.inner.write(&request).await.unwrap(), WriteOutcome::Applied(_)));
    };
    let (refused, ()) = tokio::join!(term.transact(record(2), record(2), effect("x")), asking);
    assert!(matches!(refused, Err(TransactError::Refused(_))), "{refused:?}");
    assert_eq!((term.status(), world.row().await.checkpoint), (TermStatus::HandoffRequested, at(1)));
}

#[tokio::test(start_paused = true)]
async fn a_term_that_was_taken_over_writes_nothing() {
    for fate in [Fate::Slow(Duration::from_secs(30)), Fate::DroppedBeforeApplied] {
        let mut world = World::with_effects().await;
        let term = world.take("a").await;
        let taken = {
            let row = world.row().await;
            LeaseWrite::take(&row, &"bb".into(), WriteId(7))
        };
        world.transactions_meet(&[fate]);
        let taking = async {
            world.attempts_beyond(0).await;
            assert!(matches!(world.table.inner.write(&taken).await.unwrap(), WriteOutcome::Applied(_)));
        };
        let (answer, ()) = tokio::join!(term.transact(record(1), record(5), effect("x")), taking);
        assert!(matches!(answer, Err(TransactError::LeaseLost | TransactError::Unavailable)), "{answer:?}");
        assert_eq!(term.settled().await, None, "the term is over");
        assert_eq!((term.status(), world.effects().len()), (TermStatus::Ended(TermEnd::Lost), 0));
        assert!(matches!(term.transact(record(1), record(5), effect("x")).await, Err(TransactError::LeaseLost)));
    }
}

#[tokio::test(start_paused = true)]
async fn a_checkpoint_never_moves_back_and_covers_what_is_before_it() {
    let mut world = World::with_effects().await;
    let term = world.take("a").await;
    term.write(at(5)).await.unwrap();
    for (first, last) in [(1, 3), (5, 9), (3, 5)] {
        let covered = term.transact(record(first), record(last), effect("x")).await;
        assert!(matches!(covered, Err(TransactError::Covered(checkpoint)) if checkpoint == at(5)), "{covered:?}");
    }
    assert_eq!((world.attempts(), world.row().await.checkpoint), (0, at(5)));
}
