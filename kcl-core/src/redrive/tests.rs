//! Runs over a queue and a target in memory, in paused time: killed at any point, with every answer that may be lost, and asked in the end whether
//! anything is.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use kcl_lease::Entropy;
use tokio::time::{Instant, sleep, timeout};

use super::*;
use crate::dead_letter::message_for_tests as message;

/// How long a letter is hidden, and how long a call takes.
const VISIBILITY: Duration = Duration::from_secs(600);
const LATENCY: Duration = Duration::from_millis(10);

/// A queue and a target, and what is true of both.
#[derive(Clone, Debug)]
struct World(Arc<Mutex<State>>, Entropy, f64);

#[derive(Debug, Default)]
struct State {
    messages: BTreeMap<String, (String, Hidden)>,
    accepted: Vec<u64>,
    deleted: BTreeSet<u64>,
    /// Deleted before it was accepted.
    lost: Vec<u64>,
    /// Letters that may be hidden at a time, and whether the queue tells of that before it refuses more.
    most_hidden: Option<(usize, bool)>,
    receives: u64,
}

/// Until when a message is hidden.
type Hidden = Option<Instant>;

impl State {
    fn hidden(&self) -> usize {
        let now = Instant::now();
        self.messages.values().filter(|(_, hidden)| hidden.is_some_and(|until| until > now)).count()
    }
}

impl World {
    /// With so many letters, numbered from 0, of two keys; and a probability of each fault.
    fn new(seed: u64, letters: u64, faults: f64) -> Self {
        let key = |number: u64| if number.is_multiple_of(2) { "even" } else { "odd" };
        let messages = (0..letters).map(|number| (format!("m{number:03}"), (message(number.into(), key(number)), None)));
        let state = State { messages: messages.collect(), ..State::default() };
        Self(Arc::new(Mutex::new(state)), Entropy::from_seed(seed), faults)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }

    /// A call: the answer may be lost after it was applied, or the call before.
    async fn call<T>(&self, apply: impl FnOnce(&mut State) -> T) -> Option<T> {
        sleep(LATENCY).await;
        if self.1.fraction() < self.2 {
            return None;
        }
        let answer = apply(&mut self.lock());
        sleep(LATENCY).await;
        (self.1.fraction() >= self.2).then_some(answer)
    }

    fn redrive(&self) -> Redrive {
        Redrive::new(self.clone(), self.clone()).entropy(self.1.clone())
    }

    fn visible(&self) -> usize {
        let state = self.lock();
        state.messages.len() - state.hidden()
    }
}

fn no_answer(operation: &'static str) -> SourceError {
    SourceError { queue: "letters".into(), operation, message: "no answer".into(), is_retryable: true, is_gone: false, is_full: false }
}

fn number(body: &str) -> u64 {
    number_of(&Envelope::parse(body).unwrap())
}

fn number_of(letter: &Envelope) -> u64 {
    letter.record.sequence_number.to_string().parse().unwrap()
}

#[async_trait]
impl LetterSource for World {
    fn most_held(&self) -> usize {
        self.lock().most_hidden.filter(|(_, is_told)| *is_told).map_or(usize::MAX, |(most, _)| most)
    }

    async fn invisible(&self) -> Result<Option<u64>, SourceError> {
        let counted = self.call(|state| state.hidden() as u64).await;
        counted.map(Some).ok_or_else(|| no_answer("invisible"))
    }

    async fn receive(&self) -> Result<Vec<ReceivedLetter>, SourceError> {
        let received = self.call(|state| {
            state.receives += 1;
            if state.most_hidden.is_some_and(|(most, _)| state.hidden() + 10 > most) {
                return Err(SourceError { is_retryable: false, is_full: true, ..no_answer("receive") });
            }
            let now = Instant::now();
            let visible = state.messages.iter_mut().filter(|(_, (_, hidden))| hidden.is_none_or(|until| until <= now));
            let take = |(id, (body, hidden)): (&String, &mut (String, Hidden))| {
                *hidden = Some(now + VISIBILITY);
                ReceivedLetter { id: id.clone(), handle: id.clone(), body: body.clone() }
            };
            Ok(visible.take(10).map(take).collect::<Vec<_>>())
        });
        received.await.unwrap_or_else(|| Err(no_answer("receive")))
    }

    async fn delete(&self, letter: &ReceivedLetter) -> Result<(), SourceError> {
        let deleted = self.call(|state| {
            let Some((body, _)) = state.messages.remove(&letter.handle) else {
                return Err(SourceError { is_retryable: false, is_gone: true, ..no_answer("delete") });
            };
            let number = number(&body);
            if !state.accepted.contains(&number) {
                state.lost.push(number);
            }
            state.deleted.insert(number);
            Ok(())
        });
        deleted.await.unwrap_or_else(|| Err(no_answer("delete")))
    }

    async fn release(&self, letter: &ReceivedLetter) -> Result<(), SourceError> {
        let released = self.call(|state| {
            if let Some((_, hidden)) = state.messages.get_mut(&letter.handle) {
                *hidden = None;
            }
        });
        released.await.ok_or_else(|| no_answer("release"))
    }
}

#[async_trait]
impl RedriveTarget for World {
    fn refuses(&self, _letter: &Envelope) -> Option<StayReason> {
        None
    }

    fn is_shared(&self) -> bool {
        true
    }

    async fn accept(&self, letter: &Envelope, _payload: &Bytes) -> Result<(), TargetError> {
        let number = letter.record.sequence_number.to_string().parse().unwrap();
        self.call(|state| state.accepted.push(number)).await.ok_or_else(|| TargetError::Unavailable("no answer".into()))
    }
}

#[tokio::test(start_paused = true)]
async fn killed_at_any_point_a_run_costs_duplicates_at_worst() {
    for seed in 0..100 {
        let world = World::new(seed, 24, 0.1);
        // The first runs die. The others are left alone; what a run does not see, since the answer with it was lost, a later one does.
        for run in 0..10 {
            let life = if run < 3 { world.1.between(Duration::ZERO, Duration::from_secs(2)) } else { Duration::MAX };
            let report = timeout(life, world.redrive().run()).await;
            assert!(world.lock().lost.is_empty(), "seed {seed}: {:?}", world.lock().lost);
            assert!(
                report.is_err() || report.is_ok_and(|report| report.is_ok_and(|report| report.stopped.is_none() && report.stayed == 0)),
                "seed {seed}"
            );
            sleep(VISIBILITY).await;
        }
        let state = world.lock();
        assert!(state.lost.is_empty(), "seed {seed}: {:?}", state.lost);
        assert_eq!(state.accepted.iter().copied().collect::<BTreeSet<_>>(), (0..24).collect(), "seed {seed}");
        assert_eq!(state.deleted, (0..24).collect(), "seed {seed}");
    }
}

#[tokio::test(start_paused = true)]
async fn letters_that_stay_through_a_long_run_are_told_once_and_end_visible() {
    // So slow that what it holds comes again while it goes on.
    let world = World::new(1, 250, 0.0);
    let handler = |_: Envelope, _: Bytes| async {
        sleep(Duration::from_secs(60)).await;
        Ok::<_, std::io::Error>(())
    };
    let redrive = Redrive::new(world.clone(), HandlerTarget::new(handler)).filter(|letter| letter.record.sequence_number >= 200.into());
    let report = redrive.run().await.unwrap();
    assert_eq!((report.accepted, report.not_meant, report.stopped, report.invisible), (50, 200, None, Some(0)));
    assert_eq!(world.visible(), 200);
}

#[tokio::test(start_paused = true)]
async fn a_run_that_holds_as_much_as_the_queue_allows_gives_it_back_and_says_so() {
    for is_told in [true, false] {
        let world = World::new(1, 600, 0.0);
        world.lock().most_hidden = Some((300, is_told));
        let redrive = world.redrive().filter(|letter| letter.record.sequence_number >= 500.into());
        let report = redrive.run().await.unwrap();
        let stopped = report.stopped.unwrap();
        assert!(stopped.contains(if is_told { "letters that stay are held" } else { "so many are invisible" }), "{stopped}");
        assert_eq!((report.accepted, report.invisible), (0, Some(0)), "told beforehand: {is_told}");
        assert_eq!(world.visible(), 600);
        assert!(world.lock().receives < 40);
        // Nothing is held of what is put back: the limit is none of its own.
        let report = world.redrive().run().await.unwrap();
        assert_eq!((report.accepted, report.stopped, report.invisible), (600, None, Some(0)));
    }
}

#[tokio::test(start_paused = true)]
async fn letters_that_a_killed_run_has_hidden_are_counted_by_the_next() {
    let world = World::new(1, 60, 0.0);
    assert!(timeout(Duration::from_millis(200), world.redrive().run()).await.is_err());
    let hidden = world.lock().hidden() as u64;
    let left = world.lock().messages.len() as u64;
    assert!(0 < hidden && hidden <= left, "{hidden} of {left}");
    let report = world.redrive().run().await.unwrap();
    assert_eq!((report.accepted, report.stayed, report.invisible), (left - hidden, 0, Some(hidden)));
    let report = world.redrive().dry_run(true).run().await.unwrap();
    assert_eq!((report.would_be_tried, report.invisible), (0, Some(hidden)), "a dry run says it too");
    sleep(VISIBILITY).await;
    let report = world.redrive().run().await.unwrap();
    assert_eq!((report.accepted, report.invisible), (hidden, Some(0)));
}

#[tokio::test(start_paused = true)]
async fn what_could_do_nothing_is_refused_before_any_letter_is_received() {
    /// Takes nothing.
    #[derive(Debug)]
    struct Closed;

    #[async_trait]
    impl RedriveTarget for Closed {
        async fn check(&self) -> Result<(), TargetError> {
            Err(TargetError::Closed("no such stream".into()))
        }

        fn refuses(&self, _: &Envelope) -> Option<StayReason> {
            None
        }

        fn is_shared(&self) -> bool {
            true
        }

        async fn accept(&self, _: &Envelope, _: &Bytes) -> Result<(), TargetError> {
            Ok(())
        }
    }

    for letters in [0, 20] {
        let world = World::new(1, letters, 0.0);
        let malformed = Filter { key_sha256: Some("zz".into()), ..Filter::default() };
        assert_eq!(world.redrive().only(malformed).run().await, Err(RedriveError::Filter(FilterError::NotASha256)));
        assert_eq!(world.redrive().limit(0).run().await, Err(RedriveError::LimitIsZero));
        let closed = Redrive::new(world.clone(), Closed).dry_run(true).run().await;
        assert_eq!(closed, Err(RedriveError::Target(TargetError::Closed("no such stream".into()))));
        assert_eq!(world.lock().receives, 0);
    }
}

#[tokio::test(start_paused = true)]
async fn a_handler_that_panics_leaves_its_letter_and_the_run_goes_on() {
    let world = World::new(1, 20, 0.0);
    let handler = |letter: Envelope, _: Bytes| {
        let number = number_of(&letter);
        assert_ne!(number, 4, "before there is a future");
        async move {
            assert_ne!(number, 7, "within it");
            Ok::<_, std::io::Error>(())
        }
    };
    let report = Redrive::new(world.clone(), HandlerTarget::new(handler)).run().await.unwrap();
    // Two of them, and those of their keys behind them.
    assert_eq!((report.accepted, report.stayed, report.stopped), (2 + 3, 8 + 7, None));
    assert_eq!(world.visible(), 15);
}

/// Nothing is accepted: each attempt takes as long as a call may.
#[derive(Debug)]
struct Hangs;

#[async_trait]
impl RedriveTarget for Hangs {
    async fn check(&self) -> Result<(), TargetError> {
        Ok(())
    }

    fn refuses(&self, _: &Envelope) -> Option<StayReason> {
        None
    }

    fn is_shared(&self) -> bool {
        true
    }

    async fn accept(&self, _: &Envelope, _: &Bytes) -> Result<(), TargetError> {
        sleep(Duration::from_secs(15)).await;
        Err(TargetError::Unavailable("no answer".into()))
    }
}

#[tokio::test(start_paused = true)]
async fn a_run_that_is_told_to_stop_makes_no_further_attempt() {
    let world = World::new(1, 20, 0.0);
    let began = Instant::now();
    let redrive = Redrive::new(world.clone(), Hangs);
    let report = redrive.run_until(sleep(Duration::from_secs(20))).await.unwrap();
    let took = began.elapsed();
    assert!(took < Duration::from_secs(35), "the attempt that was under way, and no other: {took:?}");
    assert_eq!((report.accepted, report.stayed, report.stopped.as_deref()), (0, 0, Some("asked to stop")));
    assert_eq!(world.visible(), 20, "all letters are given back");
}

#[test]
fn a_run_may_be_a_task() {
    fn is_send(_: impl Send) {}
    is_send(World::new(1, 1, 0.0).redrive().run());
}
