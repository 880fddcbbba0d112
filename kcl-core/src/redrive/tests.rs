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
}

/// Until when a message is hidden.
type Hidden = Option<Instant>;

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
        let now = Instant::now();
        self.lock().messages.values().filter(|(_, hidden)| hidden.is_none_or(|until| until <= now)).count()
    }
}

fn no_answer(operation: &'static str) -> SourceError {
    SourceError { queue: "letters".into(), operation, message: "no answer".into(), is_retryable: true, is_gone: false }
}

fn number(body: &str) -> u64 {
    Envelope::parse(body).unwrap().record.sequence_number.to_string().parse().unwrap()
}

#[async_trait]
impl LetterSource for World {
    async fn receive(&self) -> Result<Vec<ReceivedLetter>, SourceError> {
        let received = self.call(|state| {
            let now = Instant::now();
            let visible = state.messages.iter_mut().filter(|(_, (_, hidden))| hidden.is_none_or(|until| until <= now));
            let take = |(id, (body, hidden)): (&String, &mut (String, Hidden))| {
                *hidden = Some(now + VISIBILITY);
                ReceivedLetter { id: id.clone(), handle: id.clone(), body: body.clone() }
            };
            visible.take(10).map(take).collect::<Vec<_>>()
        });
        received.await.ok_or_else(|| no_answer("receive"))
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
            assert!(report.is_err() || report.is_ok_and(|report| report.stopped.is_none() && report.stayed == 0), "seed {seed}");
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
    let report = redrive.run().await;
    assert_eq!((report.accepted, report.not_meant, report.stopped), (50, 200, None));
    assert_eq!(world.visible(), 200);
}

#[test]
fn a_run_may_be_a_task() {
    fn is_send(_: impl Send) {}
    is_send(World::new(1, 1, 0.0).redrive().run());
}
