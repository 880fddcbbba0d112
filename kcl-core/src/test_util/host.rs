//! A machine with one process on it: its clock, its connections, and its power.

use std::fmt;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use kcl_lease::{Clock, Entropy, LeaseTable};
use tokio::sync::Notify;
use tokio::time::{Instant, Sleep, sleep_until};

use super::aws::SimulatedAws;
use super::clock::SimulatedClock;
use super::events::Event;
use super::network::Link;
use super::{SimulatedDeadLetterQueue, SimulatedFanOut, SimulatedLeaseTable, SimulatedStream};
use crate::seek::{Seek, SeekTo};
use crate::stream::StreamApi;
use crate::worker::{Worker, WorkerBuilder};

/// One process on a machine. Made by [`SimulatedAws::host`]; clones are the same.
///
/// What runs on it, runs inside of [`run`](Self::run): the process itself, and by way of [`worker`](Self::worker) all tasks of a worker.
#[derive(Clone, Debug)]
pub struct Host {
    aws: SimulatedAws,
    link: Link,
    clock: SimulatedClock,
    entropy: Entropy,
    power: Power,
    held: Held,
    call_timeout: Duration,
}

impl Host {
    pub(super) fn new(aws: SimulatedAws, link: Link, clock: SimulatedClock, entropy: Entropy) -> Self {
        let call_timeout = Duration::from_secs(2);
        Self { power: Power::of(&link), aws, link, clock, entropy, held: Held::default(), call_timeout }
    }

    /// Its name: the machine's and the number of the process on it, as in `host-1#2`.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.link.host
    }

    /// The machine's name, which partitions go by.
    #[must_use]
    pub fn machine(&self) -> &str {
        &self.link.machine
    }

    /// The machine's clock.
    #[must_use]
    pub fn clock(&self) -> &SimulatedClock {
        &self.clock
    }

    /// How long calls to the lease table, the queue and the blob store may take (default 2 s, what leases of 10 s come to).
    #[must_use]
    pub fn with_call_timeout(mut self, timeout: Duration) -> Self {
        self.call_timeout = timeout;
        self
    }

    /// A worker on this host, for an application that reads a simulated stream.
    pub fn worker(&self, application: &str, stream: &str) -> WorkerBuilder {
        let stream_api: Arc<dyn StreamApi> = Arc::new(self.stream(stream));
        let table: Arc<dyn LeaseTable> = Arc::new(self.lease_table(application));
        let clock: Arc<dyn Clock> = Arc::new(self.clock.clone());
        Worker::builder(application, stream)
            .worker_name(self.machine())
            .stream_api(stream_api)
            .lease_table(table)
            .fan_out_api(Arc::new(self.fan_out()))
            .clock(clock)
            .entropy(self.entropy.clone())
            .power(self.power.clone())
    }

    /// A seek from this host, of an application that reads a simulated stream.
    pub fn seek(&self, application: &str, stream: &str, to: SeekTo) -> Seek {
        Seek::new(application, stream, to)
            .stream_api(Arc::new(self.stream(stream)))
            .lease_table(Arc::new(self.lease_table(application)))
            .clock(Arc::new(self.clock.clone()))
            .entropy(self.entropy.clone())
    }

    /// The stream, as this host reaches it.
    #[must_use]
    pub fn stream(&self, name: &str) -> SimulatedStream {
        SimulatedStream::new(&self.aws, self.link.clone(), name, self.held.clone())
    }

    /// Enhanced fan-out, as this host reaches it.
    #[must_use]
    pub fn fan_out(&self) -> SimulatedFanOut {
        SimulatedFanOut::new(&self.aws, self.link.clone(), self.held.clone())
    }

    /// The application's lease table, as this host reaches it.
    #[must_use]
    pub fn lease_table(&self, application: &str) -> SimulatedLeaseTable {
        SimulatedLeaseTable::new(application, self.aws.table(application), self.link.clone(), self.call_timeout)
    }

    /// A dead-letter queue, as this host reaches it.
    #[must_use]
    pub fn dead_letter_queue(&self, name: &str) -> SimulatedDeadLetterQueue {
        SimulatedDeadLetterQueue::new(name, self.aws.queue(name), self.link.clone(), self.call_timeout)
    }

    /// The blob store, as this host reaches it.
    #[must_use]
    pub fn blobs(&self) -> super::SimulatedBlobs {
        super::SimulatedBlobs::new(self.aws.blob_store(), self.link.clone(), self.call_timeout)
    }

    /// Runs something on this host: it stands still while the host is frozen, and for ever once it is killed.
    pub fn run<F: Future>(&self, process: F) -> Powered<F> {
        Powered::new(process, Some(self.power.clone()))
    }

    /// Runs something on this host as a worker runs what keeps its leases alive.
    #[cfg(test)]
    pub(super) fn beside_user_code<F: Future>(&self, process: F) -> Powered<F> {
        Powered::beside_user_code(process, self.power.clone())
    }

    /// Blocks the runtime thread of the process for this long, as `std::thread::sleep` in a
    /// processor does on a runtime with one thread: call it from there, and await it.
    ///
    /// Meanwhile nothing of the process is polled, except what a worker runs on a thread of its
    /// own, which keeps its leases alive. What was polled in the same poll of the task as this
    /// call, after it, still ran. The code behind it goes on when the time is over, unless
    /// something in the same task that is due by then, such as a deadline, is polled first and
    /// drops it.
    ///
    /// # Cancel safety
    /// The thread is blocked from the first poll on, even if the future is dropped.
    pub async fn block_thread(&self, duration: Duration) {
        let until = Instant::now() + duration;
        self.power.block(until);
        sleep_until(until).await;
    }

    /// Stops everything on this host where it is, as SIGSTOP or a paused virtual machine does. Boot time goes on.
    pub fn freeze(&self) {
        self.power.set(State::Frozen);
    }

    /// Lets everything go on.
    pub fn thaw(&self) {
        self.power.set(State::Running);
    }

    /// Ends everything on this host where it is, as SIGKILL does: nothing more is done, not even what follows the present await. Drop what
    /// [`run`](Self::run) gave afterwards.
    pub fn kill(&self) {
        self.power.set(State::Dead);
    }

    /// Ends everything at the poll of this number from now on: at whichever await that is.
    pub fn kill_at_poll(&self, number: u64) {
        let mut power = self.power.lock();
        power.dies_at = Some(power.polls + number.max(1));
    }

    /// Takes [`kill_at_poll`](Self::kill_at_poll) back.
    pub fn spare(&self) {
        self.power.lock().dies_at = None;
    }

    /// Whether it was killed.
    #[must_use]
    pub fn is_dead(&self) -> bool {
        self.power.lock().state == State::Dead
    }

    /// Waits until it is killed.
    pub async fn died(&self) {
        loop {
            let died = self.power.0.died.notified();
            if self.is_dead() {
                return;
            }
            died.await;
        }
    }

    /// Bytes of payloads that were read by this process and are still in its memory, and the most there ever were.
    #[must_use]
    pub fn bytes_held(&self) -> (usize, usize) {
        (self.held.0.now.load(Ordering::Relaxed), self.held.0.most.load(Ordering::Relaxed))
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    #[default]
    Running,
    Frozen,
    Dead,
}

/// Polls of a process at one time from which on it counts as one that spins: the busiest have some thousands.
const MOST_POLLS: u32 = 500_000;

#[derive(Debug, Default)]
struct Switch {
    state: State,
    /// Who was to be polled meanwhile.
    waiting: Vec<Waker>,
    /// Until then the thread of users' code is blocked.
    blocked_until: Option<Instant>,
    polls: u64,
    dies_at: Option<u64>,
    /// The time of the last poll, and the polls at that time.
    latest: Option<(Instant, u32)>,
}

impl Switch {
    /// Counts a poll, and returns whether it is one too many for its time.
    fn stands_still(&mut self) -> bool {
        let now = Instant::now();
        let polls = match self.latest {
            Some((time, polls)) if time == now => polls.saturating_add(1),
            _ => 1,
        };
        self.latest = Some((now, polls));
        polls == MOST_POLLS
    }
}

#[derive(Debug, Default)]
struct Shared {
    switch: Mutex<Switch>,
    died: Notify,
    /// Who is told of a process that is too busy.
    link: Option<Link>,
}

/// The power switch of a host. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct Power(Arc<Shared>);

impl Power {
    fn of(link: &Link) -> Self {
        Self(Arc::new(Shared { link: Some(link.clone()), ..Shared::default() }))
    }

    fn lock(&self) -> MutexGuard<'_, Switch> {
        // Plain data that no panic leaves half changed.
        self.0.switch.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set(&self, state: State) {
        let woken = {
            let mut switch = self.lock();
            // Nothing comes back from the dead.
            if switch.state != State::Dead {
                switch.state = state;
            }
            if switch.state == State::Running { std::mem::take(&mut switch.waiting) } else { Vec::new() }
        };
        woken.into_iter().for_each(Waker::wake);
        if state == State::Dead {
            self.0.died.notify_waiters();
        }
    }

    fn block(&self, until: Instant) {
        let mut switch = self.lock();
        switch.blocked_until = switch.blocked_until.max(Some(until));
    }

    /// The time until which the thread of users' code is blocked, if it is.
    fn blocked_until(&self) -> Option<Instant> {
        let mut switch = self.lock();
        if switch.blocked_until.is_some_and(|until| until <= Instant::now()) {
            switch.blocked_until = None;
        }
        switch.blocked_until
    }

    fn may_run(&self, context: &Context<'_>) -> bool {
        let (dies, stands_still) = {
            let mut switch = self.lock();
            match switch.state {
                State::Dead => return false,
                State::Frozen => {
                    switch.waiting.push(context.waker().clone());
                    return false;
                }
                State::Running => {}
            }
            switch.polls += 1;
            (switch.dies_at.is_some_and(|at| at <= switch.polls), switch.stands_still())
        };
        if let Some(link) = self.0.link.as_ref().filter(|_| stands_still) {
            link.network.observers.tell(&Event::TimeStandsStill { host: &link.host });
        }
        if dies {
            self.set(State::Dead);
        }
        !dies
    }
}

/// The thread of a simulated process on which something runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Thread {
    /// The one that runs users' code, which may block it.
    Users,
    /// The one on which a worker keeps its leases alive.
    Leases,
}

/// A future that runs while its host does. See [`Host::run`].
pub struct Powered<F: Future> {
    future: Pin<Box<F>>,
    power: Option<Power>,
    thread: Thread,
    /// Wakes the future when its thread is no longer blocked.
    unblocked: Option<Pin<Box<Sleep>>>,
}

impl<F: Future> Powered<F> {
    pub(crate) fn new(future: F, power: Option<Power>) -> Self {
        Self { future: Box::pin(future), power, thread: Thread::Users, unblocked: None }
    }

    /// A future that goes on while users' code blocks its thread ([`Host::block_thread`]).
    pub(crate) fn beside_user_code(future: F, power: Power) -> Self {
        Self { thread: Thread::Leases, ..Self::new(future, Some(power)) }
    }

    fn is_blocked(&mut self, context: &mut Context<'_>) -> bool {
        if self.thread == Thread::Leases {
            return false;
        }
        while let Some(until) = self.power.as_ref().and_then(Power::blocked_until) {
            let sleep = self.unblocked.get_or_insert_with(|| Box::pin(sleep_until(until)));
            if sleep.deadline() != until {
                sleep.as_mut().reset(until);
            }
            if sleep.as_mut().poll(context).is_pending() {
                return true;
            }
        }
        self.unblocked = None;
        false
    }
}

impl<F: Future> Future for Powered<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        if self.is_blocked(context) || self.power.as_ref().is_some_and(|power| !power.may_run(context)) {
            return Poll::Pending;
        }
        let polled = self.future.as_mut().poll(context);
        // Killed in the middle of it, nobody hears of the result.
        if self.power.as_ref().is_some_and(|power| power.lock().state == State::Dead) { Poll::Pending } else { polled }
    }
}

impl<F: Future> fmt::Debug for Powered<F> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Powered").field("power", &self.power).field("thread", &self.thread).finish_non_exhaustive()
    }
}

#[derive(Debug, Default)]
struct Bytes {
    now: AtomicUsize,
    most: AtomicUsize,
}

/// Counts the bytes of payloads that a process holds.
#[derive(Clone, Debug, Default)]
pub(super) struct Held(Arc<Bytes>);

impl Held {
    /// The payload, counted until its last clone is dropped.
    pub(super) fn count(&self, data: bytes::Bytes) -> bytes::Bytes {
        let now = self.0.now.fetch_add(data.len(), Ordering::Relaxed) + data.len();
        self.0.most.fetch_max(now, Ordering::Relaxed);
        bytes::Bytes::from_owner(Counted { data, held: self.clone() })
    }
}

struct Counted {
    data: bytes::Bytes,
    held: Held,
}

impl AsRef<[u8]> for Counted {
    fn as_ref(&self) -> &[u8] {
        &self.data
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.held.0.now.fetch_sub(self.data.len(), Ordering::Relaxed);
    }
}
