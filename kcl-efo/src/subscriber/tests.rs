//! Readers against a scripted service, in simulated time.

mod fake;

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use fastrand::Rng;
use tokio::sync::Notify;
use tokio::task::JoinSet;

use self::fake::{Answer, CHILD, FAILURES, Failure, Fake, Fate, LIFE, NAME, Operation, STREAM, Then, error, numbers};
use super::*;
use crate::fan_out::FanOut;
use crate::registration::ConsumerChoice;

const SECOND: Duration = Duration::from_secs(1);
/// A processor that is away for long.
const AWAY: Duration = Duration::from_secs(600);

fn after(number: u128) -> StartingPosition {
    StartingPosition::AfterSequenceNumber(number.into())
}

fn sequence(range: std::ops::RangeInclusive<u128>) -> Vec<SequenceNumber> {
    range.map(SequenceNumber::from).collect()
}

/// The numbers of the next event that has records.
async fn records(reader: &mut Subscriber) -> Vec<SequenceNumber> {
    loop {
        match reader.next().await {
            Next::Event(event) if event.records.is_empty() => {}
            Next::Event(event) => return numbers(&event.records),
            other => panic!("{other:?}"),
        }
    }
}

/// Why there is no subscription, whatever comes before that.
async fn interruption(reader: &mut Subscriber) -> Option<FanOutError> {
    loop {
        match reader.next().await {
            Next::Event(_) => {}
            Next::Interrupted(why) => return why,
            Next::ShardEnd(_) => panic!("the shard has not ended"),
        }
    }
}

fn assert_ended(next: &Next) {
    match next {
        Next::ShardEnd(children) => assert_eq!(children.iter().map(|child| child.shard_id.as_str()).collect::<Vec<_>>(), [CHILD]),
        other => panic!("{other:?}"),
    }
}

/// Draws for the closures of a script.
#[derive(Clone)]
struct Chance(Arc<Mutex<Rng>>);

impl Chance {
    fn new(seed: u64) -> Self {
        Self(Arc::new(Mutex::new(Rng::with_seed(seed))))
    }

    fn below(&self, limit: u64) -> u64 {
        self.0.lock().unwrap().u64(0..limit)
    }

    fn is(&self, probability: f64) -> bool {
        self.0.lock().unwrap().f64() < probability
    }

    fn millis(&self, limit: u64) -> Duration {
        Duration::from_millis(self.below(limit))
    }

    fn failure(&self) -> FanOutError {
        error(FAILURES[usize::try_from(self.below(FAILURES.len() as u64)).unwrap()])
    }
}

#[tokio::test(start_paused = true)]
async fn every_record_comes_once_and_in_order_whatever_fails_and_is_cancelled() {
    for seed in 0..300 {
        let chance = Chance::new(seed);
        let fake = Fake::new(usize::try_from(chance.below(60)).unwrap());
        {
            let mut script = fake.script();
            script.event_records = 1 + usize::try_from(chance.below(12)).unwrap();
            script.on_demand = chance.is(0.5);
            script.creating = chance.millis(10_000);
            let (faults, rate) = (chance.clone(), f64::from(u32::try_from(chance.below(60)).unwrap()) / 100.0);
            script.answer = Box::new(move |operation| match operation {
                Operation::Subscribe if faults.is(rate / 5.0) => Answer::Hangs,
                _ if faults.is(rate) => Answer::Refused(faults.failure()),
                _ => Answer::Served,
            });
            let faults = chance.clone();
            script.fate = Box::new(move || {
                let then = match faults.below(4) {
                    _ if !faults.is(rate) => return Fate::Served,
                    0 => Then::Ends,
                    1 => Then::Silent,
                    _ => Then::Fails(faults.failure()),
                };
                Fate::After(u32::try_from(faults.below(6)).unwrap(), then)
            });
            let latency = chance.clone();
            script.latency = Box::new(move || latency.millis(300));
        }
        let mut reader = fake.named(seed).subscriber("shard", StartingPosition::TrimHorizon, Arc::new(SoleReader));
        let mut seen = Vec::new();
        for turn in 0.. {
            if turn == 60 {
                fake.close();
            } else if turn < 60 {
                fake.put(usize::try_from(chance.below(4)).unwrap());
            }
            if chance.is(0.01) {
                fake.remove_consumers();
            }
            if chance.is(0.02) {
                sleep(chance.millis(600_000)).await;
            }
            if reader.is_interrupted() && chance.is(0.5) {
                // Read in another way until an attempt may be made, as a bridge does.
                if timeout(chance.millis(1_500), reader.ready()).await.is_err() && reader.is_interrupted() {
                    let script = fake.script();
                    let from = script.index(reader.position());
                    let read = numbers(&script.records[from..script.records.len().min(from + 3)]);
                    if let Some(last) = read.last() {
                        reader.advance(*last);
                    }
                    seen.extend(read);
                }
                continue;
            }
            match timeout(chance.millis(2_000), reader.next()).await {
                Ok(Next::Event(event)) => seen.extend(numbers(&event.records)),
                Ok(end @ Next::ShardEnd(_)) => {
                    assert_ended(&end);
                    break;
                }
                Ok(Next::Interrupted(_)) | Err(_) => {}
            }
            assert!(fake.script().open <= 1, "seed {seed}: one subscription at a time");
        }
        assert_eq!(seen, fake.all(), "seed {seed}");
        fake.assert_within_budget(&format!("seed {seed}"));
    }
}

/// What goes wrong each time, and where.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Trouble {
    Fails(Operation, Failure),
    SubscribeHangs,
    FirstEvent(Failure),
    EndsAtOnce,
    EndsAfterAnEvent,
    Silent,
}

fn troubles() -> Vec<Trouble> {
    let mut troubles = vec![Trouble::SubscribeHangs, Trouble::EndsAtOnce, Trouble::EndsAfterAnEvent, Trouble::Silent];
    for failure in FAILURES {
        let calls = [Operation::Subscribe, Operation::Describe, Operation::Register];
        troubles.extend(calls.map(|operation| Trouble::Fails(operation, failure)));
        troubles.push(Trouble::FirstEvent(failure));
    }
    troubles
}

#[tokio::test(start_paused = true)]
async fn no_lasting_error_makes_a_hot_loop() {
    for trouble in troubles() {
        for (patience, long) in [(Duration::from_millis(30), 20), (AWAY, 90)] {
            let context = format!("{trouble:?}, patience {patience:?}");
            let fake = Fake::new(3);
            let failing = match trouble {
                Trouble::Fails(operation, _) => operation,
                _ => Operation::Subscribe,
            };
            if failing != Operation::Register {
                fake.consumer();
            }
            fake.script().answer = Box::new(move |operation| match trouble {
                Trouble::Fails(failing, failure) if operation == failing => Answer::Refused(error(failure)),
                Trouble::SubscribeHangs if operation == Operation::Subscribe => Answer::Hangs,
                _ => Answer::Served,
            });
            fake.script().fate = Box::new(move || match trouble {
                Trouble::FirstEvent(failure) => Fate::After(0, Then::Fails(error(failure))),
                Trouble::EndsAtOnce => Fate::After(0, Then::Ends),
                Trouble::EndsAfterAnEvent => Fate::After(1, Then::Ends),
                Trouble::Silent => Fate::After(0, Then::Silent),
                _ => Fate::Served,
            });
            let (fan_out, end) = (fake.named(7), Instant::now() + SECOND * long);
            let mut readers = JoinSet::new();
            for shard in 0..7 {
                let mut reader = fan_out.subscriber(&shard.to_string(), StartingPosition::TrimHorizon, Arc::new(SoleReader));
                readers.spawn(async move {
                    let mut returned = 0;
                    while Instant::now() < end {
                        returned += u32::from(timeout(patience.min(end - Instant::now()), reader.next()).await.is_ok());
                    }
                    returned
                });
            }
            for returned in readers.join_all().await {
                // Of a subscription that gives an event before it ends, both are returned.
                assert!(returned <= 2 * long, "{context}: {returned} answers");
            }
            fake.assert_within_budget(&context);
            let calls = fake.count(failing);
            assert!(calls >= 7, "{context}: it is tried on, {calls} calls");
            assert_eq!(fake.script().open, 0, "{context}: none is left behind");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn many_shards_subscribe_at_the_pace_of_the_service() {
    let fake = Fake::new(3);
    let (fan_out, began) = (fake.named(0), Instant::now());
    let mut readers = JoinSet::new();
    for shard in 0..50 {
        let mut reader = fan_out.subscriber(&shard.to_string(), StartingPosition::TrimHorizon, Arc::new(SoleReader));
        readers.spawn(async move {
            assert_eq!(records(&mut reader).await.len(), 3);
            began.elapsed()
        });
    }
    let slowest = readers.join_all().await.into_iter().max().unwrap();
    fake.assert_within_budget("50 shards");
    assert!(slowest < SECOND * 12, "{slowest:?}");
    assert_eq!((fake.count(Operation::Describe), fake.count(Operation::Register), fake.count(Operation::Subscribe)), (1, 1, 50));
}

#[tokio::test(start_paused = true)]
async fn readers_that_come_back_together_keep_to_the_pace() {
    for stage in ["waiting", "ready"] {
        let fake = Fake::new(3);
        let fan_out = fake.named(0);
        let reader = |shard: u32| fan_out.subscriber(&shard.to_string(), StartingPosition::TrimHorizon, Arc::new(SoleReader));
        let mut readers: Vec<_> = (0..20).map(reader).collect();
        for reader in &mut readers {
            // Some wait for their turn, which comes while nobody looks.
            let patience = if stage == "ready" { SECOND * 60 } else { Duration::from_millis(1) };
            let _ = timeout(patience, reader.ready()).await;
        }
        sleep(AWAY).await;
        assert_eq!(fake.count(Operation::Subscribe), 0);
        let mut tasks = JoinSet::new();
        for mut reader in readers {
            tasks.spawn(async move { assert_eq!(records(&mut reader).await, sequence(1..=3)) });
        }
        tasks.join_all().await;
        fake.assert_within_budget(stage);
        assert_eq!(fake.count(Operation::Subscribe), 20);
    }
}

#[tokio::test(start_paused = true)]
async fn an_attempt_that_comes_late_counts_from_when_it_was_made() {
    let fake = Fake::new(3);
    fake.consumer();
    fake.script().answer = Box::new(|operation| match operation {
        Operation::Subscribe => Answer::Refused(error(Failure::Unavailable)),
        _ => Answer::Served,
    });
    let mut reader = fake.reader();
    assert!(interruption(&mut reader).await.is_some());
    for _ in 0..20 {
        reader.ready().await.unwrap();
        sleep(Duration::from_millis(1_900)).await;
        for _ in 0..2 {
            assert!(interruption(&mut reader).await.is_some());
        }
    }
    fake.assert_within_budget("one shard");
}

#[tokio::test(start_paused = true)]
async fn a_subscription_that_falls_silent_is_replaced() {
    for patience in [Duration::from_millis(30), AWAY] {
        let fake = Fake::new(5);
        let mut stalls = vec![Fate::Served, Fate::After(2, Then::Silent)];
        fake.script().fate = Box::new(move || stalls.pop().unwrap());
        fake.script().event_records = 2;
        let mut reader = fake.reader();
        for numbers in [1..=2, 3..=4] {
            assert_eq!(records(&mut reader).await, sequence(numbers));
        }
        let began = Instant::now();
        let why = loop {
            match timeout(patience, reader.next()).await {
                Ok(Next::Interrupted(why)) => break why,
                Ok(other) => panic!("{other:?}"),
                Err(_) => {}
            }
        };
        assert_eq!(why, Some(FanOutError::Silent(SILENCE)));
        assert!(began.elapsed() >= SILENCE && began.elapsed() < SILENCE + SECOND, "{:?}", began.elapsed());
        assert_eq!(records(&mut reader).await, sequence(5..=5));
        // It had given something: no backoff to speak of.
        assert!(began.elapsed() < SILENCE + SECOND * 2, "{:?}", began.elapsed());
        assert_eq!((fake.starts(), fake.script().open), (vec![StartingPosition::TrimHorizon, after(4)], 1));
    }
}

#[tokio::test(start_paused = true)]
async fn a_subscription_with_heartbeats_is_never_replaced() {
    let fake = Fake::new(0);
    let mut reader = fake.reader();
    let began = Instant::now();
    while began.elapsed() < SECOND * 295 {
        match reader.next().await {
            Next::Event(event) => assert_eq!((event.records.len(), event.millis_behind_latest), (0, Some(0))),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(fake.count(Operation::Subscribe), 1);
}

#[tokio::test(start_paused = true)]
async fn time_in_which_nobody_waits_is_no_silence() {
    for on_demand in [false, true] {
        let fake = Fake::new(1);
        fake.script().on_demand = on_demand;
        let mut reader = fake.reader();
        assert_eq!(records(&mut reader).await, sequence(1..=1));
        // It was waited for a while, and then the processor was busy.
        assert!(timeout(SECOND, reader.next()).await.is_err());
        sleep(SECOND * 120).await;
        fake.put(1);
        assert_eq!(records(&mut reader).await, sequence(2..=2), "an event that is only read on demand: {on_demand}");
        assert_eq!(fake.count(Operation::Subscribe), 1);
    }
}

#[tokio::test(start_paused = true)]
async fn an_attempt_without_answer_is_given_up() {
    for patience in [Duration::from_millis(30), AWAY] {
        let fake = Fake::new(1);
        fake.consumer();
        let mut hangs = 1;
        fake.script().answer = Box::new(move |operation| match operation {
            Operation::Subscribe if hangs > 0 => {
                hangs -= 1;
                Answer::Hangs
            }
            _ => Answer::Served,
        });
        let mut reader = fake.reader();
        let began = Instant::now();
        let why = loop {
            if let Ok(next) = timeout(patience, reader.next()).await {
                break next;
            }
            assert!(!reader.is_interrupted(), "an attempt under way may have been accepted");
        };
        assert!(matches!(why, Next::Interrupted(Some(FanOutError::Unavailable { .. }))), "{why:?}");
        assert!(began.elapsed() >= SECOND * 5 && began.elapsed() < SECOND * 6, "{:?}", began.elapsed());
        assert_eq!(records(&mut reader).await, sequence(1..=1));
        assert_eq!(fake.count(Operation::Subscribe), 2);
    }
}

#[tokio::test(start_paused = true)]
async fn a_cancelled_attempt_is_waited_for_and_not_made_again() {
    let fake = Fake::new(3);
    fake.consumer();
    fake.script().latency = Box::new(|| SECOND);
    let mut reader = fake.reader();
    let mut cancelled = 0;
    while timeout(Duration::from_millis(100), records(&mut reader)).await.is_err() {
        cancelled += 1;
    }
    assert!(cancelled >= 19, "{cancelled}");
    assert_eq!((fake.count(Operation::Describe), fake.count(Operation::Subscribe)), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn a_subscription_is_renewed_at_once_after_its_last_event() {
    let fake = Fake::new(1);
    let mut reader = fake.reader();
    for life in 1..=5 {
        assert_eq!(records(&mut reader).await, sequence(life..=life));
        assert_eq!(interruption(&mut reader).await, None);
        assert_eq!(reader.failures(), 1, "until the next one has given something");
        fake.put(1);
    }
    let times = fake.times(Operation::Subscribe);
    assert!(times.windows(2).all(|two| two[1] - two[0] == LIFE), "{times:?}");
    assert_eq!(fake.starts()[1..], [1, 2, 3, 4].map(after));
}

/// A lease as the table shows it.
struct Lease {
    certain: AtomicBool,
    lost: AtomicBool,
    changed: Notify,
    asked: Mutex<Vec<bool>>,
}

impl Lease {
    fn held() -> Arc<Self> {
        Arc::new(Self { certain: true.into(), lost: false.into(), changed: Notify::new(), asked: Mutex::default() })
    }

    fn certain(&self, certain: bool) {
        self.certain.store(certain, Ordering::Relaxed);
        self.changed.notify_waiters();
    }

    fn lose(&self) {
        self.lost.store(true, Ordering::Relaxed);
        self.changed.notify_waiters();
    }

    fn asked(&self) -> Vec<bool> {
        std::mem::take(&mut self.asked.lock().unwrap())
    }
}

#[async_trait]
impl Ownership for Lease {
    async fn granted(&self, ask: bool) -> bool {
        self.asked.lock().unwrap().push(ask);
        loop {
            let changed = self.changed.notified();
            if self.lost.load(Ordering::Relaxed) {
                return false;
            }
            if self.certain.load(Ordering::Relaxed) {
                return true;
            }
            changed.await;
        }
    }

    fn is_certain(&self) -> bool {
        self.certain.load(Ordering::Relaxed) && !self.lost.load(Ordering::Relaxed)
    }

    fn is_inherited(&self) -> bool {
        false
    }
}

fn leased(fake: &Fake, lease: &Arc<Lease>) -> Subscriber {
    let lease: Arc<Lease> = Arc::clone(lease);
    fake.named(0).subscriber("shard", StartingPosition::TrimHorizon, lease)
}

#[tokio::test(start_paused = true)]
async fn the_lease_table_is_asked_when_another_reader_may_have_the_shard() {
    let in_use = || Then::Fails(error(Failure::InUse));
    let broken = || Then::Fails(error(Failure::Unavailable));
    let table: [(&str, Fate, Option<Failure>, bool); 7] = [
        ("refused as in use", Fate::Served, Some(Failure::InUse), true),
        ("pre-empted", Fate::After(2, in_use()), None, true),
        ("ended in order, early", Fate::After(2, Then::Ends), None, true),
        ("ended in order, in time", Fate::Served, None, false),
        ("broken", Fate::After(2, broken()), None, false),
        ("throttled", Fate::Served, Some(Failure::Throttled), false),
        ("silent", Fate::After(2, Then::Silent), None, false),
    ];
    for (what, fate, refused, asked) in table {
        let fake = Fake::new(2);
        let mut fates = vec![Fate::Served, fate];
        fake.script().fate = Box::new(move || fates.pop().unwrap_or(Fate::Served));
        let mut refusals = Vec::from_iter(refused.map(error));
        fake.script().answer = Box::new(move |operation| match operation {
            Operation::Subscribe => refusals.pop().map_or(Answer::Served, Answer::Refused),
            _ => Answer::Served,
        });
        let lease = Lease::held();
        let mut reader = leased(&fake, &lease);
        interruption(&mut reader).await;
        assert_eq!(lease.asked(), [false], "{what}: nobody else has tried");
        // Also if the wait is dropped and taken up again.
        while timeout(Duration::from_millis(10), reader.ready()).await.is_err() {}
        assert_eq!(fake.count(Operation::Subscribe), 1, "{what}");
        assert_eq!(lease.asked(), [asked], "{what}");
        assert!(matches!(reader.next().await, Next::Event(_)), "{what}");
        assert_eq!((fake.count(Operation::Subscribe), lease.asked()), (2, vec![]), "{what}");
    }
}

#[tokio::test(start_paused = true)]
async fn who_lost_the_lease_subscribes_never_again() {
    let fake = Fake::new(1);
    let mut fates = vec![Fate::After(1, Then::Fails(error(Failure::InUse)))];
    fake.script().fate = Box::new(move || fates.pop().unwrap_or(Fate::Served));
    let lease = Lease::held();
    let mut reader = leased(&fake, &lease);
    assert_eq!(records(&mut reader).await, sequence(1..=1));
    lease.lose();
    assert_eq!(interruption(&mut reader).await, Some(error(Failure::InUse)));
    for _ in 0..3 {
        assert!(timeout(AWAY, reader.next()).await.is_err());
        assert!(timeout(AWAY, reader.ready()).await.is_err());
    }
    assert!(reader.is_interrupted());
    assert_eq!((fake.count(Operation::Subscribe), fake.script().open), (1, 0));
    assert_eq!(lease.asked(), [false, true]);
}

#[tokio::test(start_paused = true)]
async fn none_subscribes_while_it_is_not_certain_who_has_the_lease() {
    let fake = Fake::new(1);
    let lease = Lease::held();
    lease.certain(false);
    let mut reader = leased(&fake, &lease);
    assert!(timeout(AWAY, reader.next()).await.is_err());
    assert_eq!(fake.count(Operation::Subscribe), 0);
    lease.certain(true);
    assert_eq!(records(&mut reader).await, sequence(1..=1));

    // Uncertain again: while the turn is waited for, and after it came.
    for delay in [Duration::from_millis(500), SECOND * 10] {
        let fake = Fake::new(1);
        fake.consumer();
        let mut refusals = vec![error(Failure::Throttled)];
        fake.script().answer = Box::new(move |operation| match operation {
            Operation::Subscribe => refusals.pop().map_or(Answer::Served, Answer::Refused),
            _ => Answer::Served,
        });
        let mut reader = leased(&fake, &lease);
        assert!(interruption(&mut reader).await.is_some());
        let _ = timeout(delay, reader.ready()).await;
        lease.certain(false);
        assert!(timeout(AWAY, reader.next()).await.is_err());
        assert_eq!(fake.count(Operation::Subscribe), 1);
        lease.certain(true);
        assert_eq!(records(&mut reader).await, sequence(1..=1));
        fake.assert_within_budget("one shard");
    }
}

#[tokio::test(start_paused = true)]
async fn a_consumer_in_creation_is_waited_for() {
    let fake = Fake::new(1);
    fake.script().creating = SECOND * 20;
    let (fan_out, began) = (fake.named(0), Instant::now());
    fan_out.establish().await.unwrap();
    assert_eq!(began.elapsed(), Duration::ZERO, "the rest is the readers' business");
    let mut readers = JoinSet::new();
    for shard in 0..50 {
        let mut reader = fan_out.subscriber(&shard.to_string(), StartingPosition::TrimHorizon, Arc::new(SoleReader));
        readers.spawn(async move {
            loop {
                match reader.next().await {
                    Next::Interrupted(Some(FanOutError::ConsumerCreating { consumer })) => assert_eq!(consumer, NAME),
                    Next::Event(event) => break assert_eq!(numbers(&event.records), sequence(1..=1)),
                    other => panic!("{other:?}"),
                }
            }
        });
    }
    fan_out.active(SECOND * 60).await.unwrap();
    assert!(began.elapsed() >= SECOND * 20 && began.elapsed() <= SECOND * 22, "{:?}", began.elapsed());
    readers.join_all().await;
    assert!(began.elapsed() < SECOND * 40, "{:?}", began.elapsed());
    assert_eq!(fake.count(Operation::Register), 1);
    // One look a second for all of them.
    assert!((15..=22).contains(&fake.count(Operation::Describe)), "{}", fake.count(Operation::Describe));
    fake.assert_within_budget("50 shards");
}

#[tokio::test(start_paused = true)]
async fn who_waits_only_so_long_for_the_consumer_is_told() {
    let fake = Fake::new(0);
    fake.script().creating = AWAY;
    let (fan_out, began) = (fake.named(0), Instant::now());
    fan_out.establish().await.unwrap();
    assert_eq!(fan_out.active(SECOND * 10).await, Err(error(Failure::Creating)));
    assert!(began.elapsed() < SECOND * 12, "{:?}", began.elapsed());
}

/// Reads all of 20 shards, has `happen` happen, and reads on, telling of the consumer that subscribed last and of the errors in between.
async fn shards_of_a_consumer_that_changes(fake: &Fake, fan_out: &FanOut, happen: impl Fn()) -> Vec<Option<FanOutError>> {
    let mut readers = Vec::new();
    for shard in 0..20 {
        let mut reader = fan_out.subscriber(&shard.to_string(), StartingPosition::TrimHorizon, Arc::new(SoleReader));
        records(&mut reader).await;
        readers.push(reader);
    }
    happen();
    let mut tasks = JoinSet::new();
    for mut reader in readers {
        tasks.spawn(async move {
            let mut told = Vec::new();
            let read = async {
                loop {
                    match reader.next().await {
                        Next::Interrupted(error) => told.push(error),
                        Next::Event(event) if !event.records.is_empty() => break,
                        Next::Event(_) => {}
                        Next::ShardEnd(_) => panic!("the shard has not ended"),
                    }
                }
            };
            let _ = timeout(SECOND * 60, read).await;
            told
        });
    }
    sleep(SECOND * 5).await;
    fake.put(1);
    let told = tasks.join_all().await;
    fake.assert_within_budget("20 shards");
    told.into_iter().flatten().collect()
}

#[tokio::test(start_paused = true)]
async fn a_consumer_that_was_deregistered_is_registered_anew_if_known_by_name() {
    let fake = Fake::new(1);
    let told = shards_of_a_consumer_that_changes(&fake, &fake.named(0), || fake.remove_consumers()).await;
    assert_eq!(fake.count(Operation::Register), 2);
    assert!(fake.script().made.last().unwrap().consumer.ends_with(":2"));
    let missing =
        |error: &Option<FanOutError>| matches!(error, Some(FanOutError::ConsumerNotFound { consumer }) if consumer.ends_with(":1"));
    assert!(told.iter().any(missing), "{told:?}");
    assert!(!told.iter().any(|error| matches!(error, Some(FanOutError::NotFound { .. }))), "not taken for a missing shard: {told:?}");
}

#[tokio::test(start_paused = true)]
async fn a_consumer_that_was_deregistered_is_missed_if_known_by_its_arn() {
    let fake = Fake::new(1);
    let arn = fake.consumer();
    let fan_out = fake.fan_out(ConsumerChoice::Arn(arn.clone()), 0);
    let told = shards_of_a_consumer_that_changes(&fake, &fan_out, || fake.remove_consumers()).await;
    let broken = error(Failure::Unavailable);
    let gone = FanOutError::ConsumerNotFound { consumer: arn };
    assert!(told.iter().flatten().all(|error| *error == broken || *error == gone), "{told:?}");
    assert!(told.iter().flatten().filter(|error| **error == gone).count() >= 20 * 3, "{told:?}");
    assert_eq!(fake.count(Operation::Register), 0);
}

#[tokio::test(start_paused = true)]
async fn a_shard_that_is_gone_is_told_from_a_consumer_that_is_gone() {
    let fake = Fake::new(1);
    fake.consumer();
    let answer = |describe: Option<Failure>| {
        move |operation| match operation {
            Operation::Subscribe => Answer::Refused(error(Failure::NotFound)),
            Operation::Describe => describe.map_or(Answer::Served, |failure| Answer::Refused(error(failure))),
            _ => Answer::Served,
        }
    };
    fake.script().answer = Box::new(answer(None));
    let mut reader = fake.reader();
    for _ in 0..3 {
        assert_eq!(interruption(&mut reader).await, Some(error(Failure::NotFound)));
    }
    // Not known which of the two it is.
    fake.script().answer = Box::new(answer(Some(Failure::Unavailable)));
    assert_eq!(interruption(&mut reader).await, Some(error(Failure::Unavailable)));
    fake.assert_within_budget("one shard");
}

#[tokio::test(start_paused = true)]
async fn a_reader_that_is_away_holds_up_no_other() {
    for failing in [false, true] {
        let fake = Fake::new(1);
        fake.script().latency = Box::new(|| Duration::from_millis(100));
        if failing {
            fake.script().answer = Box::new(|_| Answer::Refused(error(Failure::Unavailable)));
        }
        let fan_out = fake.named(0);
        let reader = |shard: u32| fan_out.subscriber(&shard.to_string(), StartingPosition::TrimHorizon, Arc::new(SoleReader));
        // In the middle of a look at the consumer.
        let mut away: Vec<_> = (0..3).map(reader).collect();
        for away in &mut away {
            assert!(timeout(Duration::from_millis(20), away.ready()).await.is_err());
        }
        let mut other = reader(3);
        let next = timeout(SECOND, other.next()).await.expect("held up");
        assert_eq!(matches!(next, Next::Interrupted(_)), failing, "{next:?}");
        // And those come to it later.
        fake.script().answer = Box::new(|_| Answer::Served);
        for away in &mut away {
            while !matches!(timeout(SECOND * 20, away.next()).await.unwrap(), Next::Event(_)) {}
        }
        fake.assert_within_budget("four shards");
    }
}

#[tokio::test(start_paused = true)]
async fn the_last_records_come_before_the_end() {
    for records_left in [0, 3] {
        let fake = Fake::new(records_left);
        fake.close();
        let mut reader = fake.reader();
        if records_left > 0 {
            assert_eq!(records(&mut reader).await, fake.all());
            assert_eq!(reader.position(), after(3));
        }
        for _ in 0..5 {
            assert_ended(&reader.next().await);
            assert!(!reader.is_interrupted());
            reader.ready().await.unwrap();
        }
        assert_eq!((fake.count(Operation::Subscribe), fake.script().open), (1, 0));
    }
}

#[tokio::test(start_paused = true)]
async fn after_a_long_absence_comes_what_is_there_and_then_one_new_subscription() {
    let fake = Fake::new(2);
    fake.script().event_records = 2;
    let mut reader = fake.reader();
    assert_eq!(records(&mut reader).await, sequence(1..=2));
    let _ = timeout(SECOND * 20, reader.next()).await;
    fake.put(4);
    sleep(AWAY).await;
    assert_eq!(fake.count(Operation::Subscribe), 1, "nobody asked for another one");
    let began = Instant::now();
    assert_eq!(records(&mut reader).await, sequence(3..=4));
    assert_eq!(records(&mut reader).await, sequence(5..=6));
    assert_eq!((interruption(&mut reader).await, began.elapsed()), (None, Duration::ZERO));
    fake.put(1);
    assert_eq!(records(&mut reader).await, sequence(7..=7));
    assert!(began.elapsed() < Duration::from_millis(10), "{:?}", began.elapsed());
    assert_eq!(fake.starts(), [StartingPosition::TrimHorizon, after(6)]);
}

#[tokio::test(start_paused = true)]
async fn an_absence_in_the_middle_of_an_attempt_makes_no_second_one() {
    let fake = Fake::new(2);
    fake.consumer();
    fake.script().latency = Box::new(|| SECOND);
    let mut reader = fake.reader();
    assert!(timeout(Duration::from_millis(1_500), reader.next()).await.is_err());
    assert_eq!(fake.count(Operation::Subscribe), 1);
    sleep(AWAY).await;
    assert_eq!(records(&mut reader).await, sequence(1..=2));
    assert_eq!(fake.count(Operation::Subscribe), 1);
}

#[tokio::test(start_paused = true)]
async fn what_may_pass_is_tried_a_few_times_to_establish_a_consumer() {
    let passing = [Failure::Limit, Failure::Throttled, Failure::Unavailable];
    for failing in [Operation::Register, Operation::Describe] {
        for failure in FAILURES {
            // No consumer means that one is registered; of one in creation the readers take care; who was quicker is seen at the next look.
            if failure == Failure::Creating || (failing, failure) == (Operation::Describe, Failure::Missing) {
                continue;
            }
            for lasts in [2, u32::MAX] {
                let (fake, left) = (Fake::new(0), AtomicU32::new(lasts));
                fake.script().answer = Box::new(move |operation| {
                    let fails = operation == failing && left.load(Ordering::Relaxed) > 0;
                    if fails {
                        left.fetch_sub(1, Ordering::Relaxed);
                    }
                    if fails { Answer::Refused(error(failure)) } else { Answer::Served }
                });
                let began = Instant::now();
                let established = fake.named(0).establish().await;
                let context = format!("{failure:?} at {failing:?}, {lasts} times: {established:?}");
                let quicker = (failing, failure) == (Operation::Register, Failure::InUse);
                let mended = passing.contains(&failure) || failure == Failure::InUse;
                let (ends_well, calls) = match (quicker, mended, lasts) {
                    (true, ..) => (true, 1),
                    (_, true, 2) => (true, 3),
                    (_, true, _) => (false, 6),
                    (_, false, _) => (false, 1),
                };
                assert_eq!(established, if ends_well { Ok(()) } else { Err(error(failure)) }, "{context}");
                assert_eq!(fake.count(failing), calls, "{context}");
                assert!(began.elapsed() < SECOND * 6, "{context}");
                fake.assert_within_budget(&context);
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_consumer_that_is_being_deleted_is_told_at_once() {
    let fake = Fake::new(0);
    let arn = fake.consumer();
    fake.delete_consumers();
    for (choice, consumer) in [(ConsumerChoice::Named(NAME.into()), NAME), (ConsumerChoice::Arn(arn.clone()), arn.as_str())] {
        let began = Instant::now();
        let established = fake.fan_out(choice, 0).establish().await;
        assert_eq!(established, Err(FanOutError::ConsumerDeleting { consumer: consumer.to_owned() }));
        assert_eq!(began.elapsed(), Duration::ZERO);
    }
    assert_eq!((fake.count(Operation::Describe), fake.count(Operation::Register)), (2, 0));
}

#[tokio::test(start_paused = true)]
async fn a_consumer_that_does_not_exist_can_be_deregistered() {
    let fake = Fake::new(0);
    let fan_out = fake.named(0);
    assert_eq!(fan_out.stream_arn(), STREAM);
    fan_out.deregister().await.unwrap();
    assert_eq!(fake.count(Operation::Deregister), 0);
    fan_out.establish().await.unwrap();
    fan_out.deregister().await.unwrap();
    assert_eq!(fake.count(Operation::Deregister), 1);
    fake.consumer();
    fake.delete_consumers();
    fan_out.deregister().await.unwrap();
    assert_eq!(fake.count(Operation::Deregister), 1, "another one deregisters it already");
}

/// Events that the service repeats, whole or in part, and continuation numbers that lag behind.
#[tokio::test(start_paused = true)]
async fn what_the_service_repeats_is_given_once_and_the_position_never_goes_back() {
    for seed in 0..100 {
        let chance = Chance::new(seed);
        let fake = Fake::new(0);
        fake.consumer();
        let (twists, mut before) = (chance.clone(), Vec::<Event>::new());
        fake.script().twist = Box::new(move |mut event| {
            before.push(event.clone());
            let earlier = before[usize::try_from(twists.below(before.len() as u64)).unwrap()].clone();
            match twists.below(6) {
                0 => vec![event.clone(), event],
                1 => vec![earlier, event],
                2 => vec![event, earlier],
                3 => {
                    event.continuation = earlier.continuation;
                    vec![event]
                }
                4 => {
                    let own = std::mem::take(&mut event.records);
                    event.records = earlier.records.into_iter().filter(|record| !own.contains(record)).chain(own.clone()).collect();
                    vec![event]
                }
                _ => vec![event],
            }
        });
        let lives = chance.clone();
        fake.script().fate = Box::new(move || Fate::After(1 + u32::try_from(lives.below(8)).unwrap(), Then::Ends));
        let mut reader = fake.reader();
        let (mut seen, mut positions) = (Vec::new(), Vec::new());
        for _ in 0..20 {
            fake.put(usize::try_from(chance.below(15)).unwrap());
            while seen.len() < fake.all().len() {
                if let Next::Event(event) = timeout(AWAY, reader.next()).await.unwrap() {
                    seen.extend(numbers(&event.records));
                }
                if let StartingPosition::AfterSequenceNumber(number) = reader.position() {
                    positions.push(number);
                }
            }
        }
        assert_eq!(seen, fake.all(), "seed {seed}");
        assert!(positions.is_sorted(), "seed {seed}");
    }
}

/// The last event of a shard, and one that is not.
#[tokio::test(start_paused = true)]
async fn an_end_without_children_is_told_from_a_renewal() {
    for (tip, records, continuation, expected) in [
        (Some(0), 0, None, true),
        (Some(7), 0, None, false),
        (None, 0, None, false),
        (Some(0), 3, None, false),
        (Some(0), 0, Some(5), false),
    ] {
        let fake = Fake::new(records);
        fake.consumer();
        fake.script().twist = Box::new(move |mut event| {
            (event.continuation, event.millis_behind_latest) = (continuation.map(|number: u128| number.into()), tip);
            event.children.clear();
            vec![event]
        });
        fake.script().fate = Box::new(|| Fate::After(1, Then::Ends));
        let mut reader = fake.reader();
        assert!(matches!(reader.next().await, Next::Event(_)));
        assert!(!reader.ended_without_children(), "it lives");
        assert!(matches!(reader.next().await, Next::Interrupted(None)));
        assert_eq!(reader.ended_without_children(), expected, "{tip:?} {records} {continuation:?}");
    }
}
