//! Terms against a table whose answers are scripted, in paused time.

mod transactions;

use std::sync::Mutex;

use kcl_checkpoint::ExtendedSequenceNumber;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::*;
use crate::memory::InMemoryLeaseTable;
use crate::table::LeaseListing;
use crate::transaction::{TransactItems, TransactOutcome};

/// Boot time that follows the paused runtime clock.
#[derive(Debug)]
struct PausedClock(Instant);

impl Clock for PausedClock {
    fn boot_time(&self) -> Duration {
        Duration::from_secs(1000) + self.0.elapsed()
    }

    fn wall_time(&self) -> Timestamp {
        Timestamp::from_millis(1_700_000_000_000 + u64::try_from(self.0.elapsed().as_millis()).unwrap())
    }
}

/// What happens to the next write.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Fate {
    DroppedBeforeApplied,
    AppliedAnswerLost,
    Slow(Duration),
    /// Of a transaction: no answer, and it stays on its way until the test lets it arrive.
    Late,
    /// Of a transaction: the tables do not take it as it is.
    Rejected,
}

#[derive(Debug, Default)]
struct ScriptedTable {
    inner: InMemoryLeaseTable,
    fates: Mutex<Vec<Fate>>,
    down: Mutex<bool>,
    writes: Mutex<Vec<LeaseWrite>>,
    /// What happens to the next transactions, which are no writes here.
    transaction_fates: Mutex<Vec<Fate>>,
    transactions: Mutex<Vec<LeaseWrite>>,
    /// Transactions that are still on their way.
    late: Mutex<Vec<(LeaseWrite, TransactItems)>>,
}

impl ScriptedTable {
    fn unavailable() -> TableError {
        TableError::Unavailable { table: "t".into(), operation: "UpdateItem", message: "scripted".into() }
    }

    fn next(&self, fates: &[Fate]) {
        *self.fates.lock().unwrap() = fates.to_vec();
    }
}

#[async_trait]
impl LeaseTable for ScriptedTable {
    async fn ensure(&self) -> Result<(), TableError> {
        Ok(())
    }
    async fn list(&self) -> Result<LeaseListing, TableError> {
        self.inner.list().await
    }
    async fn get(&self, shard_id: &ShardId) -> Result<Option<Lease>, TableError> {
        self.inner.get(shard_id).await
    }
    async fn create(&self, lease: &Lease) -> Result<bool, TableError> {
        self.inner.create(lease).await
    }
    async fn delete(&self, seen: &Lease) -> Result<bool, TableError> {
        self.inner.delete(seen).await
    }
    async fn write(&self, write: &LeaseWrite) -> Result<WriteOutcome, TableError> {
        self.writes.lock().unwrap().push(write.clone());
        if *self.down.lock().unwrap() {
            return Err(Self::unavailable());
        }
        let fate = {
            let mut fates = self.fates.lock().unwrap();
            (!fates.is_empty()).then(|| fates.remove(0))
        };
        match fate {
            Some(Fate::DroppedBeforeApplied) => Err(Self::unavailable()),
            Some(Fate::AppliedAnswerLost) => {
                let _ = self.inner.write(write).await;
                Err(Self::unavailable())
            }
            Some(Fate::Slow(time)) => {
                tokio::time::sleep(time).await;
                self.inner.write(write).await
            }
            Some(Fate::Late | Fate::Rejected) => unreachable!("not of a write"),
            None => self.inner.write(write).await,
        }
    }
    async fn transact(&self, write: &LeaseWrite, with: &TransactItems) -> Result<TransactOutcome, TableError> {
        self.transactions.lock().unwrap().push(write.clone());
        if *self.down.lock().unwrap() {
            return Err(Self::unavailable());
        }
        let fate = {
            let mut fates = self.transaction_fates.lock().unwrap();
            (!fates.is_empty()).then(|| fates.remove(0))
        };
        match fate {
            None => self.inner.transact(write, with).await,
            Some(Fate::Slow(time)) => {
                tokio::time::sleep(time).await;
                self.inner.transact(write, with).await
            }
            Some(Fate::DroppedBeforeApplied) => Err(Self::unavailable()),
            Some(Fate::AppliedAnswerLost) => {
                let _ = self.inner.transact(write, with).await;
                Err(Self::unavailable())
            }
            Some(Fate::Late) => {
                self.late.lock().unwrap().push((write.clone(), with.clone()));
                Err(Self::unavailable())
            }
            Some(Fate::Rejected) => Err(TableError::Rejected { table: "t".into(), operation: "TransactWriteItems", message: "no".into() }),
        }
    }
}

struct World {
    table: Arc<ScriptedTable>,
    clock: Arc<PausedClock>,
    tasks: JoinSet<TermEnd>,
}

const DURATION: Duration = Duration::from_secs(10);

impl World {
    async fn new() -> Self {
        let world = Self { table: Arc::default(), clock: Arc::new(PausedClock(Instant::now())), tasks: JoinSet::new() };
        let _ = world.table.create(&Lease::new(shard(), Checkpoint::TrimHorizon)).await.unwrap();
        world
    }

    fn context(&self, worker: &str) -> TermContext {
        let table: Arc<ScriptedTable> = Arc::clone(&self.table);
        let clock: Arc<PausedClock> = Arc::clone(&self.clock);
        TermContext {
            table,
            clock,
            entropy: Entropy::from_seed(worker.len() as u64),
            worker: worker.into(),
            timing: LeaseTiming { lease_duration: DURATION, handoff_timeout: Duration::from_secs(30) },
            stream_created: None,
            outages: OutageLog::default(),
            vanished: Vanished::default(),
        }
    }

    async fn row(&self) -> Lease {
        self.table.get(&shard()).await.unwrap().unwrap()
    }

    /// Takes the lease as it stands and runs its keeper.
    async fn take(&mut self, worker: &str) -> Term {
        let (term, keeper) = self.acquire(worker).await;
        self.tasks.spawn(keeper.run());
        term
    }

    /// The same with a worker that gives orders.
    async fn take_with(&mut self, worker: &str, orders: watch::Receiver<KeeperOrder>) -> Term {
        let (term, keeper) = self.acquire(worker).await;
        self.tasks.spawn(keeper.run_with(orders));
        term
    }

    async fn acquire(&self, worker: &str) -> (Term, TermKeeper) {
        match acquire(&self.context(worker), &self.row().await).await.unwrap() {
            Acquired::Yes(term, keeper) => (term, *keeper),
            Acquired::No(row) => panic!("not taken: {row:?}"),
        }
    }
}

fn shard() -> ShardId {
    "shardId-000000000000".into()
}

fn at(number: u128) -> Checkpoint {
    Checkpoint::At(ExtendedSequenceNumber::whole(number.into()))
}

#[tokio::test(start_paused = true)]
async fn an_idle_term_is_renewed_and_stays_valid() {
    let mut world = World::new().await;
    let term = world.take("a").await;
    for _ in 0..100 {
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert!(term.is_valid());
    }
    let counter = world.row().await.counter;
    assert!((30..=31).contains(&counter), "one take and a renewal each 3.3 s: {counter}");
}

#[tokio::test(start_paused = true)]
async fn a_checkpoint_is_written_once_and_spares_a_renewal() {
    let mut world = World::new().await;
    let term = world.take("a").await;
    for n in 0..20 {
        tokio::time::sleep(Duration::from_secs(3)).await;
        term.write(at(n)).await.unwrap();
    }
    let row = world.row().await;
    assert_eq!((row.checkpoint, row.counter), (at(19), 21));
}

#[tokio::test(start_paused = true)]
async fn validity_is_stamped_before_the_write_is_sent() {
    let mut world = World::new().await;
    let term = world.take("a").await;
    let taken = Instant::now();
    // the first renewal is sent after 3.3 s and its answer takes until 12.3 s
    world.table.next(&[Fate::Slow(Duration::from_secs(9))]);
    tokio::time::sleep_until(taken + Duration::from_millis(9_700)).await;
    assert!(term.is_valid());
    tokio::time::sleep_until(taken + Duration::from_millis(9_900)).await;
    assert!(!term.is_valid(), "the take is 10 s old and no renewal is confirmed");
    // that renewal's validity counts from its sending; all others get no answer
    *world.table.down.lock().unwrap() = true;
    tokio::time::sleep_until(taken + Duration::from_millis(12_400)).await;
    assert!(term.is_valid());
    tokio::time::sleep_until(taken + Duration::from_millis(13_400)).await;
    assert!(!term.is_valid(), "stamped at 3.3 s, valid until 13.1 s");
}

#[tokio::test(start_paused = true)]
async fn lost_answers_are_settled_by_the_identical_write() {
    let mut world = World::new().await;
    world.table.next(&[Fate::AppliedAnswerLost, Fate::DroppedBeforeApplied]);
    let term = world.take("a").await;
    assert_eq!(term.fencing_token(), 1);
    world.table.next(&[Fate::DroppedBeforeApplied, Fate::AppliedAnswerLost, Fate::DroppedBeforeApplied]);
    term.write(at(5)).await.unwrap();
    let row = world.row().await;
    assert_eq!((row.checkpoint, row.counter), (at(5), 2));
    let writes = world.table.writes.lock().unwrap();
    assert!(writes[..3].windows(2).all(|pair| pair[0] == pair[1]));
    assert!(writes[3..7].windows(2).all(|pair| pair[0] == pair[1]));
}

#[tokio::test(start_paused = true)]
async fn a_table_that_is_away_for_hours_suspends_the_term_and_does_not_end_it() {
    let mut world = World::new().await;
    let term = world.take("a").await;
    *world.table.down.lock().unwrap() = true;
    tokio::time::sleep(Duration::from_secs(4 * 3600)).await;
    assert!(!term.is_valid());
    assert!(matches!(term.write(at(1)).await, Err(CheckpointWriteError::Unavailable(_))));
    let writes = world.table.writes.lock().unwrap().len();
    assert!(writes < 4 * 3600, "{writes} attempts in four hours");
    *world.table.down.lock().unwrap() = false;
    term.valid().await.unwrap();
    term.write(at(2)).await.unwrap();
    assert_eq!(world.row().await.checkpoint, at(2));
}

#[tokio::test(start_paused = true)]
async fn a_term_that_was_taken_over_is_lost_and_can_write_nothing() {
    let mut world = World::new().await;
    let old = world.take("a").await;
    *world.table.down.lock().unwrap() = true;
    tokio::time::sleep(Duration::from_secs(20)).await;
    *world.table.down.lock().unwrap() = false;
    let new = world.take("bb").await;
    assert!(new.fencing_token() > old.fencing_token());
    assert!(matches!(old.write(at(9)).await, Err(CheckpointWriteError::LeaseLost)));
    assert_eq!(old.valid().await, Err(TermEnd::Lost));
    assert_eq!(world.row().await.checkpoint, Checkpoint::TrimHorizon);
    new.write(at(3)).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_handoff_lets_the_owner_finish_and_starts_the_next_term_at_its_last_checkpoint() {
    let mut world = World::new().await;
    let old = world.take("a").await;
    old.write(at(1)).await.unwrap();
    let request = LeaseWrite::request_handoff(&world.row().await, &"bb".into()).unwrap();
    assert!(matches!(world.table.write(&request).await.unwrap(), WriteOutcome::Applied(_)));

    assert_eq!(old.status_other_than(TermStatus::Held).await, TermStatus::HandoffRequested);
    assert!(old.is_valid());
    old.write(at(2)).await.unwrap();
    old.release(Some(at(3)), BTreeSet::new()).await.unwrap();
    assert_eq!(old.status(), TermStatus::Ended(TermEnd::Released));
    assert!(!old.is_valid());

    let row = world.row().await;
    assert_eq!((row.owner.as_ref().map(WorkerId::as_str), row.checkpoint_owner.as_ref(), row.checkpoint), (Some("bb"), None, at(3)));
    let new = world.take("bb").await;
    assert_eq!(new.taken().checkpoint, at(3));
}

/// Whatever answer was lost, the request comes between the write and its repetition, and the row that settles the write shows it.
#[tokio::test(start_paused = true)]
async fn a_request_that_comes_while_an_answer_is_lost_is_noticed() {
    for lost_by_the_take in [true, false] {
        let mut world = World::new().await;
        let (table, context, free) = (Arc::clone(&world.table), world.context("a"), world.row().await);
        if lost_by_the_take {
            table.next(&[Fate::AppliedAnswerLost]);
        }
        let owner = async {
            let Acquired::Yes(term, keeper) = acquire(&context, &free).await.unwrap() else { panic!("not taken") };
            world.tasks.spawn(keeper.run());
            if !lost_by_the_take {
                table.next(&[Fate::AppliedAnswerLost]);
                term.write(at(1)).await.unwrap();
            }
            term
        };
        let asking = async {
            let row = loop {
                let row = table.get(&shard()).await.unwrap().unwrap();
                if row.counter == 2 - u64::from(lost_by_the_take) {
                    break row;
                }
                tokio::task::yield_now().await;
            };
            let request = LeaseWrite::request_handoff(&row, &"bb".into()).unwrap();
            assert!(matches!(table.inner.write(&request).await.unwrap(), WriteOutcome::Applied(_)));
        };
        let (term, ()) = tokio::join!(owner, asking);
        let status = tokio::time::timeout(DURATION, term.status_other_than(TermStatus::Held)).await;
        assert_eq!(status, Ok(TermStatus::HandoffRequested), "lost by the take: {lost_by_the_take}");
        term.release(None, BTreeSet::new()).await.unwrap();
        assert_eq!(table.get(&shard()).await.unwrap().unwrap().actual_owner().map(WorkerId::as_str), Some("bb"));
    }
}

#[tokio::test(start_paused = true)]
async fn an_owner_that_does_not_finish_a_handoff_lets_go_after_the_timeout() {
    let mut world = World::new().await;
    let old = world.take("a").await;
    let request = LeaseWrite::request_handoff(&world.row().await, &"bb".into()).unwrap();
    let _ = world.table.write(&request).await.unwrap();
    assert_eq!(old.status_other_than(TermStatus::Held).await, TermStatus::HandoffRequested);
    tokio::time::sleep(Duration::from_secs(31)).await;
    assert_eq!(old.status(), TermStatus::Ended(TermEnd::Released));
    assert_eq!(world.row().await.actual_owner().map(WorkerId::as_str), Some("bb"));
    assert!(matches!(old.write(at(9)).await, Err(CheckpointWriteError::LeaseLost)));
}

#[tokio::test(start_paused = true)]
async fn a_term_whose_holder_is_gone_frees_its_lease() {
    let mut world = World::new().await;
    drop(world.take("a").await);
    assert_eq!(world.tasks.join_next().await.unwrap().unwrap(), TermEnd::Released);
    assert_eq!(world.row().await.owner, None);
}

#[tokio::test(start_paused = true)]
async fn a_keeper_that_is_told_to_let_go_frees_the_lease_although_its_holder_lives() {
    let mut world = World::new().await;
    let orders = watch::Sender::new(KeeperOrder::Keep);
    let holder = world.take_with("a", orders.subscribe()).await;
    orders.send_replace(KeeperOrder::LetGo);
    assert_eq!(world.tasks.join_next().await.unwrap().unwrap(), TermEnd::Released);
    assert_eq!(world.row().await.owner, None);
    assert!(!holder.is_valid());
    assert!(matches!(holder.write(at(9)).await, Err(CheckpointWriteError::LeaseLost)));
    assert_eq!(world.row().await.checkpoint, Checkpoint::TrimHorizon);
}

#[tokio::test(start_paused = true)]
async fn what_was_asked_before_the_order_to_let_go_is_written() {
    let mut world = World::new().await;
    let orders = watch::Sender::new(KeeperOrder::Keep);
    let holder = world.take_with("a", orders.subscribe()).await;
    // The keeper is busy with this one when the others come.
    world.table.next(&[Fate::Slow(Duration::from_secs(1))]);
    let (first, second, ()) = tokio::join!(
        holder.write(at(1)),
        async {
            tokio::task::yield_now().await;
            holder.write(at(2)).await
        },
        async {
            tokio::time::sleep(Duration::from_millis(500)).await;
            orders.send_replace(KeeperOrder::LetGo);
        }
    );
    assert!(first.is_ok() && second.is_ok(), "{first:?} {second:?}");
    assert_eq!(world.tasks.join_next().await.unwrap().unwrap(), TermEnd::Released);
    assert_eq!((world.row().await.owner, world.row().await.checkpoint), (None, at(2)));
}

#[tokio::test(start_paused = true)]
async fn the_first_renewal_is_due_from_the_takes_attempt_on_and_not_from_its_answer() {
    let mut world = World::new().await;
    world.table.next(&[Fate::Slow(Duration::from_secs(2))]);
    let term = world.take("a").await;
    let taken = world.row().await.counter;
    // An interval is a third of the lease duration.
    tokio::time::sleep(Duration::from_millis(1_400)).await;
    assert_eq!(world.row().await.counter, taken + 1);
    assert!(term.is_valid());
}

/// Who waits for the end of a term must not turn in circles when its keeper is gone.
#[tokio::test(start_paused = true)]
async fn a_term_without_a_keeper_is_over() {
    let world = World::new().await;
    let (term, keeper) = world.acquire("a").await;
    assert!(term.is_valid() && term.status() == TermStatus::Held);
    drop(keeper);
    assert_eq!((term.status(), term.is_valid()), (TermStatus::Ended(TermEnd::Lost), false));
    assert_eq!(term.status_other_than(TermStatus::Held).await, TermStatus::Ended(TermEnd::Lost));
}

/// A worker that is dropped is like a process that dies: what its consumers' end looks like to the
/// keepers must not free the leases.
#[tokio::test(start_paused = true)]
async fn a_keeper_that_is_told_to_stop_writes_nothing_more() {
    for gone in [false, true] {
        let mut world = World::new().await;
        let orders = watch::Sender::new(KeeperOrder::Keep);
        let holder = world.take_with("a", orders.subscribe()).await;
        tokio::task::yield_now().await;
        let before = world.row().await;
        if gone {
            drop(orders);
        } else {
            orders.send_replace(KeeperOrder::Stop);
        }
        drop(holder);
        tokio::time::sleep(Duration::from_secs(60)).await;
        assert_eq!(world.row().await, before, "the sender of orders is gone: {gone}");
        assert!(world.tasks.try_join_next().is_none());
    }
}

#[tokio::test(start_paused = true)]
async fn a_race_for_a_lease_has_one_winner_and_the_loser_does_nothing() {
    let mut world = World::new().await;
    let seen = world.row().await;
    let _winner = world.take("a").await;
    match acquire(&world.context("bb"), &seen).await.unwrap() {
        Acquired::No(Some(row)) => assert_eq!(row.owner.as_ref().map(WorkerId::as_str), Some("a")),
        other => panic!("{other:?}"),
    }
}

#[tokio::test(start_paused = true)]
async fn latest_is_resolved_once() {
    let mut world = World::new().await;
    let seen = world.row().await;
    assert!(world.table.delete(&seen).await.unwrap());
    let _ = world.table.create(&Lease::new(shard(), Checkpoint::Latest)).await.unwrap();
    let first = world.take("a").await;
    let instant = first.taken().initial_timestamp.expect("noted by the take");
    first.release(None, BTreeSet::new()).await.unwrap();
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(world.take("bb").await.taken().initial_timestamp, Some(instant));
}

#[tokio::test(start_paused = true)]
async fn what_is_finished_beyond_the_checkpoint_travels_with_the_next_write() {
    let mut world = World::new().await;
    let term = world.take("a").await;
    let at = |number: u128| ExtendedSequenceNumber::whole(number.into());
    let note = FinishedBeyond { base: None, until: at(9), open: vec![at(6)] };
    term.set_finished_beyond(Some(note.clone()));
    term.write(Checkpoint::At(at(5))).await.unwrap();
    assert_eq!(world.row().await.finished_beyond, Some(FinishedBeyond { base: Some(at(5)), ..note.clone() }));
    term.write(Checkpoint::At(at(6))).await.unwrap();
    assert_eq!(world.row().await.finished_beyond, Some(FinishedBeyond { base: Some(at(5)), ..note }), "it says the same");
    term.set_finished_beyond(None);
    term.write(Checkpoint::At(at(9))).await.unwrap();
    assert_eq!(world.row().await.finished_beyond, None);
}

#[tokio::test(start_paused = true)]
async fn a_record_in_work_alone_is_found_by_who_takes_the_lease_from_the_dead() {
    let mut world = World::new().await;
    let term = world.take("a").await;
    assert!(!term.is_from_the_dead());
    let suspect = Suspect { record: ExtendedSequenceNumber::whole(7.into()), begun: 1 };
    term.note_suspect(suspect, None).await.unwrap();
    // The process dies: nothing more is written.
    world.tasks.shutdown().await;
    let term = world.take("b").await;
    assert!(term.is_from_the_dead());
    assert_eq!(term.taken().suspect, Some(suspect));
    // Let go in peace: whoever comes next is careful, and counts no death for this time.
    let given_back = Suspect { begun: 1, ..suspect };
    term.note_suspect(Suspect { begun: 2, ..suspect }, None).await.unwrap();
    term.set_given_back(given_back);
    term.release(None, BTreeSet::new()).await.unwrap();
    assert_eq!(world.row().await.suspect, Some(given_back));
    let term = world.take("b2").await;
    term.set_carefree();
    term.release(None, BTreeSet::new()).await.unwrap();
    assert_eq!(world.row().await.suspect, None);
    let term = world.take("c").await;
    assert!(!term.is_from_the_dead());
    // It is asked for, and dies before it hands over.
    let asked = LeaseWrite::request_handoff(&world.row().await, &"d".into()).unwrap();
    assert!(matches!(world.table.write(&asked).await, Ok(WriteOutcome::Applied(_))));
    world.tasks.shutdown().await;
    let term_after = world.take("d").await;
    assert!(term_after.is_from_the_dead());
    assert!(!term.is_from_the_dead());
}

#[tokio::test(start_paused = true)]
async fn after_a_death_checkpoints_do_not_hide_the_next_one_for_a_while() {
    let mut world = World::new().await;
    let at = |number: u128| Checkpoint::At(ExtendedSequenceNumber::whole(number.into()));
    let term = world.take("a").await;
    term.write(at(1)).await.unwrap();
    assert_eq!(world.row().await.owner_switches_since_checkpoint, 0);
    world.tasks.shutdown().await;
    let term = world.take("b").await;
    term.write(at(2)).await.unwrap();
    assert_eq!(world.row().await.owner_switches_since_checkpoint, 1);
    tokio::time::sleep(DURATION * 6).await;
    term.write(at(3)).await.unwrap();
    assert_eq!(world.row().await.owner_switches_since_checkpoint, 0);
}

#[tokio::test(start_paused = true)]
async fn the_watermark_travels_with_the_next_write() {
    let mut world = World::new().await;
    let term = world.take("a").await;
    term.set_watermark(Timestamp::from_millis(42));
    tokio::time::sleep(Duration::from_secs(4)).await;
    assert_eq!(world.row().await.watermark, Some(Timestamp::from_millis(42)));
}

#[tokio::test(start_paused = true)]
async fn a_term_can_begin_its_shard_elsewhere_and_goes_on() {
    let mut world = World::new().await;
    let term = world.take("a").await;
    let at = |number: u128| Checkpoint::At(ExtendedSequenceNumber::whole(number.into()));
    term.write(at(5)).await.unwrap();
    let now = Timestamp::from_millis(77);
    term.set_watermark(Timestamp::from_millis(70));
    world.table.next(&[Fate::AppliedAnswerLost]);
    term.restart(NewStart::latest(now)).await.unwrap();
    let row = world.row().await;
    assert_eq!((row.checkpoint, row.initial_timestamp, row.watermark), (Checkpoint::Latest, Some(now), None));
    assert!(term.is_valid(), "it proves life like any other write");
    term.write(at(6)).await.unwrap();
    let row = world.row().await;
    let noted = Some(Timestamp::from_millis(70));
    assert_eq!((row.checkpoint, row.watermark), (at(6), noted), "what is left out here may be there in the shard's children");
}

#[tokio::test(start_paused = true)]
async fn a_checkpoint_is_prepared_and_then_made() {
    let mut world = World::new().await;
    let term = world.take("a").await;
    let pending = |number| PendingCheckpoint { checkpoint: at(number), state: Some(bytes::Bytes::from_static(b"state")) };
    world.table.next(&[Fate::AppliedAnswerLost, Fate::DroppedBeforeApplied]);
    term.prepare(pending(5)).await.unwrap();
    let row = world.row().await;
    assert_eq!((row.checkpoint, row.pending_checkpoint, row.counter), (Checkpoint::TrimHorizon, Some(pending(5)), 2));

    // A checkpoint of what came before it, as automatic ones are, leaves it; its own removes it.
    term.write(at(3)).await.unwrap();
    assert_eq!(world.row().await.pending_checkpoint, Some(pending(5)));
    term.write(at(5)).await.unwrap();
    assert_eq!(world.row().await.pending_checkpoint, None);

    // The next owner sees what this one had prepared.
    term.prepare(pending(9)).await.unwrap();
    term.release(None, BTreeSet::new()).await.unwrap();
    assert!(matches!(term.prepare(pending(10)).await, Err(CheckpointWriteError::LeaseLost)));
    let next = world.take("b").await;
    assert_eq!((next.taken().checkpoint, next.taken().pending_checkpoint.clone()), (at(5), Some(pending(9))));
}

#[tokio::test(start_paused = true)]
async fn a_preparation_that_nobody_waits_for_is_not_begun_after_a_later_checkpoint() {
    let mut world = World::new().await;
    let term = world.take("a").await;
    *world.table.down.lock().unwrap() = true;
    // The keeper repeats a checkpoint; the preparation behind it in the queue is given up.
    let (first, prepared) = tokio::join!(term.write(at(1)), term.prepare(PendingCheckpoint { checkpoint: at(9), state: None }),);
    assert!(matches!(first, Err(CheckpointWriteError::Unavailable(_))) && matches!(prepared, Err(CheckpointWriteError::Unavailable(_))));
    *world.table.down.lock().unwrap() = false;
    term.write(at(2)).await.unwrap();
    let row = world.row().await;
    assert_eq!((row.checkpoint, row.pending_checkpoint), (at(2), None));
}

fn stop(millis: u64) -> Stopped {
    Stopped { reason: crate::lease::StopReason::SafetyValve, since: Timestamp::from_millis(millis) }
}

/// Clears the stop as an operator does.
async fn resume(world: &World) {
    let write = LeaseWrite::resume(&world.row().await).expect("the shard is stopped");
    assert!(matches!(world.table.inner.write(&write).await.unwrap(), WriteOutcome::Applied(_)));
}

#[tokio::test(start_paused = true)]
async fn a_stop_is_written_at_once_and_outlives_the_term() {
    let mut world = World::new().await;
    let term = world.take("a").await;
    assert_eq!(term.stopped(), None);
    let begun = Instant::now();
    term.set_stopped(Some(stop(1))).await.unwrap();
    assert!(begun.elapsed() < Duration::from_millis(1), "not with the next renewal");
    assert_eq!((term.stopped(), world.row().await.stopped), (Some(stop(1)), Some(stop(1))));
    tokio::time::sleep(Duration::from_secs(30)).await;
    term.write(at(5)).await.unwrap();
    assert_eq!(term.stopped(), Some(stop(1)));
    term.release(None, BTreeSet::new()).await.unwrap();
    assert!(matches!(term.set_stopped(None).await, Err(CheckpointWriteError::LeaseLost)));
    assert_eq!(term.stopped_other_than(Some(stop(1))).await, Err(TermEnd::Released));

    let next = world.take("b").await;
    assert_eq!((next.stopped(), next.taken().stopped), (Some(stop(1)), Some(stop(1))));
    next.set_stopped(None).await.unwrap();
    assert_eq!((next.stopped(), world.row().await.stopped), (None, None));
}

#[tokio::test(start_paused = true)]
async fn a_stop_that_is_cleared_from_outside_is_seen_within_a_renewal_interval() {
    let mut world = World::new().await;
    let term = world.take("a").await;
    term.set_stopped(Some(stop(1))).await.unwrap();
    tokio::time::sleep(Duration::from_secs(5)).await;
    resume(&world).await;
    let cleared = Instant::now();
    assert_eq!(term.stopped_other_than(Some(stop(1))).await, Ok(None));
    assert!(cleared.elapsed() <= DURATION / 3, "{:?}", cleared.elapsed());
    assert!(term.is_valid(), "it costs the owner nothing");
    // A later stop is another one.
    term.set_stopped(Some(stop(2))).await.unwrap();
    assert_eq!(term.stopped_other_than(None).await, Ok(Some(stop(2))));
}

#[tokio::test(start_paused = true)]
async fn a_stop_whose_answer_was_lost_is_not_written_again_over_a_resumption() {
    let mut world = World::new().await;
    let term = world.take("a").await;
    world.table.next(&[Fate::AppliedAnswerLost]);
    let resumed = async {
        // The write is in effect, and the keeper waits to repeat it.
        while world.row().await.stopped.is_none() {
            tokio::task::yield_now().await;
        }
        resume(&world).await;
    };
    let (stopping, ()) = tokio::join!(term.set_stopped(Some(stop(1))), resumed);
    stopping.unwrap();
    assert_eq!((term.stopped(), world.row().await.stopped), (None, None));
}

#[tokio::test(start_paused = true)]
async fn a_request_for_a_handoff_and_a_resumption_at_once_are_both_seen() {
    let mut world = World::new().await;
    let term = world.take("a").await;
    term.set_stopped(Some(stop(1))).await.unwrap();
    let request = LeaseWrite::request_handoff(&world.row().await, &"b".into()).unwrap();
    assert!(matches!(world.table.inner.write(&request).await.unwrap(), WriteOutcome::Applied(_)));
    resume(&world).await;
    assert_eq!(term.stopped_other_than(Some(stop(1))).await, Ok(None));
    assert_eq!(term.status(), TermStatus::HandoffRequested);
}
