//! The thread on which a worker keeps its leases alive, with a runtime of its own.
//!
//! Code of users that blocks its thread stops every task, timer and connection of the runtime it
//! runs on: of a runtime with one thread always; of one with more if tokio's driver was last polled
//! by the thread that is blocked now. Leases are renewed here, where no user code runs.
//!
//! The thread also wakes the worker's own runtime ten times a second ([`LeaseThread::pulse`]). An
//! idle thread of a multi-threaded runtime that is woken takes over the driver from the one that is
//! blocked. Otherwise neither the time limit of a shutdown nor the records of other shards would
//! be noticed before the block ends.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::runtime::{Builder, Handle, Runtime};
use tokio::sync::Notify;
use tokio_util::sync::{CancellationToken, DropGuard};

/// Time between two wakes of the worker's runtime: how late its timers can be because of a thread
/// that is blocked.
const PULSE: Duration = Duration::from_millis(100);

/// The running thread. Dropping this ends it and everything that runs on it, without waiting.
#[derive(Debug)]
pub(super) struct LeaseThread {
    runtime: Handle,
    pulse: Arc<Notify>,
    /// Cancelled when the thread has ended, for whatever reason.
    ended: CancellationToken,
    _stop: DropGuard,
}

impl LeaseThread {
    /// Starts the thread.
    ///
    /// # Errors
    /// The operating system's, if it has no thread, or no file descriptors for the runtime.
    pub(super) fn start() -> io::Result<Self> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let (stop, ended, pulse) = (CancellationToken::new(), CancellationToken::new(), Arc::new(Notify::new()));
        let handle = runtime.handle().clone();
        // Without a thread for it, it is not dropped here: that waits, which async code must not.
        let runtime = Arc::new(Mutex::new(Some(runtime)));
        let its_runtime = Arc::clone(&runtime);
        let take = |slot: &Mutex<Option<Runtime>>| slot.lock().unwrap_or_else(PoisonError::into_inner).take();
        let (stopped, at_end, beat) = (stop.clone(), ended.clone().drop_guard(), Arc::clone(&pulse));
        // A subscriber that was set for this thread alone gets the keepers' events too.
        let subscriber = tracing::dispatcher::get_default(tracing::Dispatch::clone);
        let spawned = std::thread::Builder::new().name("kcl-leases".to_owned()).spawn(move || {
            let _at_end = at_end;
            let Some(runtime) = take(&its_runtime) else { return };
            tracing::dispatcher::with_default(&subscriber, || {
                runtime.block_on(stopped.run_until_cancelled(beat_for_ever(&beat)));
                // Nobody waits for what still runs on it, such as the resolution of a host's name.
                runtime.shutdown_background();
            });
        });
        if let Err(error) = spawned {
            take(&runtime).into_iter().for_each(Runtime::shutdown_background);
            return Err(error);
        }
        Ok(Self { runtime: handle, pulse, ended, _stop: stop.drop_guard() })
    }

    /// The runtime, to spawn tasks on it.
    pub(super) fn runtime(&self) -> &Handle {
        &self.runtime
    }

    /// Waits until the thread has ended, which it does not do by itself: something is wrong.
    pub(super) async fn ended(&self) {
        self.ended.cancelled().await;
    }

    /// A task for the worker's runtime that does nothing but be woken by the thread.
    pub(super) fn pulse(&self) -> impl Future<Output = ()> + Send + use<> {
        let pulse = Arc::clone(&self.pulse);
        async move {
            loop {
                pulse.notified().await;
            }
        }
    }
}

async fn beat_for_ever(pulse: &Notify) {
    loop {
        tokio::time::sleep(PULSE).await;
        pulse.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use tokio::task::JoinSet;

    use super::*;

    #[tokio::test]
    async fn tasks_run_on_the_thread_and_end_with_it() {
        let thread = LeaseThread::start().unwrap();
        let mut tasks = JoinSet::new();
        tasks.spawn_on(async { std::thread::current().name().map(str::to_owned) }, thread.runtime());
        assert_eq!(tasks.join_next().await.unwrap().unwrap().as_deref(), Some("kcl-leases"));
        tasks.spawn_on(std::future::pending(), thread.runtime());
        let ended = thread.ended.clone();
        drop(thread);
        assert!(tasks.join_next().await.unwrap().unwrap_err().is_cancelled());
        ended.cancelled().await;
    }

    /// With two threads, one that is blocked after a timer has woken it keeps tokio's driver, so
    /// that no other timer fires. The pulse gives it to the other thread.
    #[test]
    fn a_blocked_thread_does_not_stop_the_timers_of_a_runtime_that_has_another() {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let (fired, has_fired) = std::sync::mpsc::channel();
        let (goes_on, may_go_on) = std::sync::mpsc::channel::<()>();
        let (thread, mut tasks) = (LeaseThread::start().unwrap(), JoinSet::new());
        tasks.spawn_on(thread.pulse(), runtime.handle());
        let blocking = async move {
            tokio::time::sleep(Duration::from_millis(50)).await;
            // Until the other timer has fired, as users' code may.
            let _ = may_go_on.recv();
        };
        tasks.spawn_on(blocking, runtime.handle());
        let timer = async move {
            tokio::time::sleep(Duration::from_millis(500)).await;
            fired.send(()).unwrap();
        };
        tasks.spawn_on(timer, runtime.handle());
        has_fired.recv_timeout(Duration::from_secs(30)).expect("the timer fires while a thread is blocked");
        drop(goes_on);
    }
}
