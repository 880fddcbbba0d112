//! A shared handle of a model, with a source of the time and listeners for changes.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Weak};

use super::config::KinesisConfig;
use super::error::ApiError;
use super::model::Model;
use super::types::{NextEvent, SubscriptionId};

/// Where the model's time comes from: a machine's clock, or a simulation's.
///
/// # Contract
/// Milliseconds since the epoch. Time that runs back is taken as standing still. Called with the model locked: it must
/// be quick, and must not call the model.
pub trait TimeSource: Send + Sync {
    /// The time.
    fn now_millis(&self) -> u64;
}

impl<F: Fn() -> u64 + Send + Sync> TimeSource for F {
    fn now_millis(&self) -> u64 {
        self()
    }
}

/// A time that stands still until it is moved. Clones share it.
#[derive(Clone, Debug)]
pub struct ManualTime(Arc<AtomicU64>);

impl ManualTime {
    /// A time that stands at this one, in milliseconds since the epoch.
    #[must_use]
    pub fn new(now: u64) -> Self {
        Self(Arc::new(AtomicU64::new(now)))
    }

    /// Moves on by this many milliseconds.
    pub fn advance(&self, millis: u64) {
        self.0.fetch_add(millis, Ordering::SeqCst);
    }
}

impl TimeSource for ManualTime {
    fn now_millis(&self) -> u64 {
        self.0.load(Ordering::SeqCst)
    }
}

/// Who wants to know when a stream changes: records were written, shards opened or closed, a consumer or its
/// subscription was replaced or removed, the stream deleted.
///
/// # Contract
/// Called after the change can be seen, with nothing locked, by whoever made the change or was the first to see one
/// that time brought (see [`Model::next_due`]). Several changes may be told as one; none is left out.
pub trait ChangeListener: Send + Sync {
    /// The stream of this name has changed.
    fn stream_changed(&self, stream: &str);
}

/// An operation of Kinesis, by its input.
pub trait Operation: Sized {
    /// What it answers.
    type Output;

    /// Applies it to the model.
    ///
    /// # Errors
    /// What the service refuses; nothing was applied then.
    fn apply(self, model: &mut Model, now: u64) -> Result<Self::Output, ApiError>;
}

struct Shared {
    model: Mutex<Model>,
    time: Box<dyn TimeSource>,
    listeners: Mutex<Vec<Weak<dyn ChangeListener>>>,
}

/// A Kinesis in process. Clones share it; calls from many threads are applied one at a time.
#[derive(Clone)]
pub struct Kinesis(Arc<Shared>);

impl Kinesis {
    /// A Kinesis without streams.
    #[must_use]
    pub fn new(config: KinesisConfig, time: impl TimeSource + 'static) -> Self {
        Self(Arc::new(Shared { model: Mutex::new(Model::new(config)), time: Box::new(time), listeners: Mutex::default() }))
    }

    /// Applies an operation, now.
    ///
    /// A lost answer is a call whose output is dropped: it was applied.
    ///
    /// # Errors
    /// What the service refuses; nothing was applied then.
    pub fn call<O: Operation>(&self, operation: O) -> Result<O::Output, ApiError> {
        self.with(|model, now| operation.apply(model, now))
    }

    /// What a subscriber gets next, now: see [`Model::next_event`].
    pub fn next_event(&self, id: SubscriptionId) -> NextEvent {
        self.with(|model, now| model.next_event(now, id))
    }

    /// A subscriber has left: see [`Model::end_subscription`].
    pub fn end_subscription(&self, id: SubscriptionId) {
        self.with(|model, _| model.end_subscription(id));
    }

    /// Does several things with the model that nobody else's come between, all at one time. `action` must not use this
    /// handle.
    pub fn with<R>(&self, action: impl FnOnce(&mut Model, u64) -> R) -> R {
        let (result, changed) = {
            let mut model = self.0.model.lock().expect(INTACT);
            // The time is read under the lock, so that times and sequence numbers have one order.
            let now = self.0.time.now_millis();
            let result = action(&mut model, now);
            (result, model.take_changes())
        };
        if !changed.is_empty() {
            let listeners: Vec<_> = self.0.listeners.lock().expect(INTACT).iter().filter_map(Weak::upgrade).collect();
            for listener in listeners {
                for stream in &changed {
                    listener.stream_changed(stream);
                }
            }
        }
        result
    }

    /// Tells a listener of every change from now on, as long as somebody holds it.
    pub fn listen(&self, listener: Weak<dyn ChangeListener>) {
        let mut listeners = self.0.listeners.lock().expect(INTACT);
        listeners.retain(|known| known.strong_count() > 0);
        listeners.push(listener);
    }
}

const INTACT: &str = "no operation panics halfway through a change";

impl fmt::Debug for Kinesis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Kinesis").finish_non_exhaustive()
    }
}
