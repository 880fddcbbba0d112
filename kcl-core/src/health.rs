//! The standing of a worker as a whole: whether it can do its work at all, and why not.
//!
//! As with shards, times are noted, and the state is derived from them when somebody reads it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use kcl_lease::Clock;

/// The state of a worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum WorkerState {
    /// Leases and shards are looked after.
    Running,
    /// The lease table has not been read for a lease duration: this worker takes no lease, replaces
    /// no owner that has died, and delivers records only as long as its leases are valid.
    TableUnreachable,
    /// Nothing of the stream could be read for a minute or more: the worker has left its shards to
    /// others, and takes only what nobody else takes.
    Resting,
    /// The worker lets go of its shards, and ends.
    ShuttingDown,
}

/// The last failure of a worker's own calls, those of single shards apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LastError {
    /// The error, in words.
    pub message: String,
    /// The time since it happened.
    pub ago: Duration,
}

/// The health of a worker as a whole, at the time of reading.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkerHealth {
    /// The state.
    pub state: WorkerState,
    /// The time since the lease table was last read whole. `None`: not yet.
    pub last_table_read: Option<Duration>,
    /// The time since the stream was last asked for its shards. `None`: not yet.
    pub last_shard_sync: Option<Duration>,
    /// The last failure, if there was one since the last success of its kind.
    pub last_error: Option<LastError>,
    /// Workers that own leases, this one included, as far as it knows.
    pub workers: usize,
    /// Leases of shards that are not read to their end.
    pub leases: usize,
    /// Leases that could have an owner and have none, after this worker has taken what it should:
    /// all workers that there are have as many as [`max_leases`](crate::WorkerBuilder::max_leases)
    /// allows, or a worker has just died.
    pub unowned_leases: usize,
}

impl WorkerHealth {
    /// Returns whether the worker does what it should: its state is
    /// [`Running`](WorkerState::Running), and all leases have owners.
    #[must_use]
    pub fn is_well(&self) -> bool {
        self.state == WorkerState::Running && self.unowned_leases == 0
    }
}

/// The board on which a worker's own tasks note how their calls went. Clones share it.
#[derive(Clone, Debug)]
pub(crate) struct HealthBoard {
    clock: Arc<dyn Clock>,
    /// The time without a look at the table after which that is unreachable.
    patience: Duration,
    notes: Arc<Mutex<Notes>>,
}

/// A call of a worker's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Call {
    TableRead,
    ShardSync,
}

/// Times are boot time.
#[derive(Debug)]
struct Notes {
    began: Duration,
    table_read: Option<Duration>,
    shard_sync: Option<Duration>,
    error: Option<(Call, String, Duration)>,
    workers: usize,
    leases: usize,
    unowned: usize,
}

impl HealthBoard {
    pub(crate) fn new(clock: Arc<dyn Clock>, lease_duration: Duration) -> Self {
        let began = clock.boot_time();
        let notes = Notes { began, table_read: None, shard_sync: None, error: None, workers: 1, leases: 0, unowned: 0 };
        Self { clock, patience: lease_duration, notes: Arc::new(Mutex::new(notes)) }
    }

    /// A call has succeeded: its failures are over.
    pub(crate) fn succeeded(&self, call: Call) {
        let now = self.clock.boot_time();
        let mut notes = self.lock();
        match call {
            Call::TableRead => notes.table_read = Some(now),
            Call::ShardSync => notes.shard_sync = Some(now),
        }
        notes.error = notes.error.take().filter(|(failed, ..)| *failed != call);
    }

    /// A call has failed, in these words.
    pub(crate) fn failed(&self, call: Call, error: &dyn std::fmt::Display) {
        let now = self.clock.boot_time();
        self.lock().error = Some((call, error.to_string(), now));
    }

    /// Notes what the last look at the table has shown.
    pub(crate) fn seen(&self, workers: usize, leases: usize, unowned: usize) {
        let mut notes = self.lock();
        (notes.workers, notes.leases, notes.unowned) = (workers, leases, unowned);
    }

    /// Reads the health. `shuts_down`, `rests`: what else is known of the worker.
    pub(crate) fn read(&self, shuts_down: bool, rests: bool) -> WorkerHealth {
        let now = self.clock.boot_time();
        let notes = self.lock();
        let since = |time: Duration| now.saturating_sub(time);
        let unread = since(notes.table_read.unwrap_or(notes.began));
        let state = match () {
            () if shuts_down => WorkerState::ShuttingDown,
            () if unread >= self.patience => WorkerState::TableUnreachable,
            () if rests => WorkerState::Resting,
            () => WorkerState::Running,
        };
        let last_error = notes.error.as_ref();
        WorkerHealth {
            state,
            last_table_read: notes.table_read.map(since),
            last_shard_sync: notes.shard_sync.map(since),
            last_error: last_error.map(|(_, message, at)| LastError { message: message.clone(), ago: since(*at) }),
            workers: notes.workers,
            leases: notes.leases,
            unowned_leases: notes.unowned,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Notes> {
        // A health is told, not decided on.
        self.notes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering;

    use super::*;
    use crate::status::tests::Seconds;

    #[test]
    fn a_table_that_is_not_read_is_seen_without_anybody_saying_so() {
        let clock = Arc::new(Seconds::default());
        let board = HealthBoard::new(Arc::clone(&clock) as Arc<dyn Clock>, Duration::from_secs(10));
        let at = |now: u64| {
            clock.0.store(now, Ordering::SeqCst);
            board.read(false, false)
        };
        assert_eq!((at(9).state, at(10).state), (WorkerState::Running, WorkerState::TableUnreachable), "from the start");
        board.succeeded(Call::TableRead);
        board.seen(2, 4, 1);
        let health = at(15);
        assert_eq!((health.state, health.last_table_read), (WorkerState::Running, Some(Duration::from_secs(5))));
        assert!(!health.is_well(), "a lease has no owner");
        board.failed(Call::TableRead, &"throttled");
        assert_eq!(at(20).last_error, Some(LastError { message: "throttled".into(), ago: Duration::from_secs(5) }));
        assert_eq!(at(20).state, WorkerState::TableUnreachable);
        board.succeeded(Call::ShardSync);
        assert!(at(20).last_error.is_some(), "another call's success is no end of it");
        board.succeeded(Call::TableRead);
        assert!(at(20).last_error.is_none());
        assert_eq!(board.read(false, true).state, WorkerState::Resting);
        assert_eq!(board.read(true, true).state, WorkerState::ShuttingDown);
    }
}
