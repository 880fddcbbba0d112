//! The tasks of one server: all in one set, so that stopping the server stops them all.

use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use hyper::rt::Executor;
use tokio::task::JoinSet;

/// A handle on the set; clones share it. Also the executor of hyper's tasks (one for each HTTP/2 stream), which would
/// otherwise be detached.
///
/// A task may hold a handle on the set it runs in, so dropping handles stops nothing: the owner calls
/// [`abort`](Self::abort) or [`shutdown`](Self::shutdown).
#[derive(Debug, Clone, Default)]
pub(super) struct Tasks(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    running: JoinSet<()>,
    stopped: bool,
}

impl Tasks {
    /// Runs `task` until it ends or the set is stopped; does nothing in a set that was stopped.
    pub(super) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let mut state = self.lock();
        if state.stopped {
            return;
        }
        // Reaped here, because nobody waits for them: a long-lived server must not hoard ended tasks.
        while state.running.try_join_next().is_some() {}
        state.running.spawn(task);
    }

    /// Tells all tasks to stop, without waiting for it.
    pub(super) fn abort(&self) {
        let mut state = self.lock();
        state.stopped = true;
        state.running.abort_all();
    }

    /// Stops all tasks; returns when the last is gone.
    pub(super) async fn shutdown(&self) {
        let mut running = {
            let mut state = self.lock();
            state.stopped = true;
            std::mem::take(&mut state.running)
        };
        running.shutdown().await;
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<F: Future<Output = ()> + Send + 'static> Executor<F> for Tasks {
    fn execute(&self, task: F) {
        self.spawn(task);
    }
}
