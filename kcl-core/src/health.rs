//! The standing of a worker as a whole: whether it can do its work at all, and why not.
//!
//! As with shards, times are noted, and the state is derived from them when somebody reads it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use kcl_lease::outages::Failing;
use kcl_lease::{Clock, OutageLog, TableError};

use crate::worker::{coordinator, shard_sync};

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

/// A kind of call that a worker makes for itself, those that read records apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum WorkerCall {
    /// Reads of all leases.
    TableRead,
    /// The comparison of shards and leases, which lists the shards and creates the leases they lack.
    ShardSync,
    /// Writes of single leases: takes, renewals and checkpoints.
    LeaseWrite,
}

/// The last failure of a worker's own calls.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LastError {
    /// The error, in words.
    pub message: String,
    /// The time since it happened.
    pub ago: Duration,
}

/// A kind of call that fails now: it has not succeeded since. Of [`LeaseWrite`]s, the writes of one
/// lease or more fail; those of others may succeed.
///
/// [`LeaseWrite`]: WorkerCall::LeaseWrite
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FailingCall {
    /// The kind of call.
    pub call: WorkerCall,
    /// The time since the first of these failures.
    pub failing_for: Duration,
    /// Whether that is a lease duration or more.
    pub lasting: bool,
    /// The last of these failures.
    pub last_error: LastError,
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
    /// The kinds of calls that fail now, each at most once.
    pub failing: Vec<FailingCall>,
    /// Workers that own leases, this one included, as far as it knows.
    pub workers: usize,
    /// Leases of shards that are not read to their end. 0: the lease table has none for the open
    /// shards of the stream, so that nobody reads them, or it has not been read yet.
    pub leases: usize,
    /// Leases that could have an owner and have none, after this worker has taken what it should:
    /// all workers that there are have as many as [`max_leases`](crate::WorkerBuilder::max_leases)
    /// allows, or a worker has just died. A lease whose take fails is told by
    /// [`failing`](Self::failing).
    pub unowned_leases: usize,
}

impl WorkerHealth {
    /// Returns whether the worker does what it should: its state is
    /// [`Running`](WorkerState::Running), there are leases, all of them have owners, and no kind of
    /// call has been failing for a lease duration.
    #[must_use]
    pub fn is_well(&self) -> bool {
        self.state == WorkerState::Running && self.leases > 0 && self.unowned_leases == 0 && !self.failing.iter().any(|call| call.lasting)
    }

    /// The most recent failure of the calls that fail now.
    #[must_use]
    pub fn last_error(&self) -> Option<&LastError> {
        self.failing.iter().map(|call| &call.last_error).min_by_key(|error| error.ago)
    }
}

/// The board on which a worker's own tasks note how their calls went. Clones share it.
#[derive(Clone, Debug)]
pub(crate) struct HealthBoard {
    clock: Arc<dyn Clock>,
    /// The time without a look at the table after which that is unreachable.
    patience: Duration,
    notes: Arc<Mutex<Notes>>,
    /// The failures of all calls, those of the lease writes among them.
    outages: OutageLog,
}

/// A kind of call whose outcomes are noted on the board.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Call {
    TableRead,
    ShardSync,
}

/// The outcomes of a kind of call.
#[derive(Debug, Default)]
struct Outcomes {
    succeeded: Option<Duration>,
    /// Failures since the last success.
    failing: Option<Failing>,
}

/// Times are boot time.
#[derive(Debug)]
struct Notes {
    began: Duration,
    table_read: Outcomes,
    shard_sync: Outcomes,
    workers: usize,
    leases: usize,
    unowned: usize,
}

impl Notes {
    fn outcomes(&mut self, call: Call) -> &mut Outcomes {
        match call {
            Call::TableRead => &mut self.table_read,
            Call::ShardSync => &mut self.shard_sync,
        }
    }
}

impl HealthBoard {
    pub(crate) fn new(clock: Arc<dyn Clock>, lease_duration: Duration, outages: OutageLog) -> Self {
        let notes = Notes {
            began: clock.boot_time(),
            table_read: Outcomes::default(),
            shard_sync: Outcomes::default(),
            workers: 1,
            leases: 0,
            unowned: 0,
        };
        Self { clock, patience: lease_duration, notes: Arc::new(Mutex::new(notes)), outages }
    }

    /// A call has succeeded: its failures are over.
    pub(crate) fn succeeded(&self, call: Call) {
        let now = self.clock.boot_time();
        *self.lock().outcomes(call) = Outcomes { succeeded: Some(now), failing: None };
    }

    /// A call has failed, in these words.
    pub(crate) fn failed(&self, call: Call, error: &dyn std::fmt::Display) {
        let now = self.clock.boot_time();
        let mut notes = self.lock();
        let outcomes = notes.outcomes(call);
        let since = outcomes.failing.as_ref().map_or(now, |failing| failing.since);
        outcomes.failing = Some(Failing { since, last: now, error: error.to_string() });
    }

    /// Notes what the last look at the table has shown.
    pub(crate) fn seen(&self, workers: usize, leases: usize, unowned: usize) {
        let mut notes = self.lock();
        (notes.workers, notes.leases, notes.unowned) = (workers, leases, unowned);
    }

    /// Reads the health. `shuts_down`, `rests`: what else is known of the worker.
    pub(crate) fn read(&self, shuts_down: bool, rests: bool) -> WorkerHealth {
        let now = self.clock.boot_time();
        let of_a_lease = |caller: &str| ![coordinator::CALLER, shard_sync::CALLER].contains(&caller);
        let lease_write = self.outages.failing(TableError::SERVICE, of_a_lease, now);
        let notes = self.lock();
        let since = |time: Duration| now.saturating_sub(time);
        let unread = since(notes.table_read.succeeded.unwrap_or(notes.began));
        let state = match () {
            () if shuts_down => WorkerState::ShuttingDown,
            () if unread >= self.patience => WorkerState::TableUnreachable,
            () if rests => WorkerState::Resting,
            () => WorkerState::Running,
        };
        let failing = [
            (WorkerCall::TableRead, notes.table_read.failing.clone()),
            (WorkerCall::ShardSync, notes.shard_sync.failing.clone()),
            (WorkerCall::LeaseWrite, lease_write),
        ];
        let failing = failing.into_iter().filter_map(|(call, failing)| {
            let Failing { since: first, last, error } = failing?;
            let failing_for = since(first);
            let last_error = LastError { message: error, ago: since(last) };
            let lasting = failing_for >= self.patience;
            Some(FailingCall { call, failing_for, lasting, last_error })
        });
        WorkerHealth {
            state,
            last_table_read: notes.table_read.succeeded.map(since),
            last_shard_sync: notes.shard_sync.succeeded.map(since),
            failing: failing.collect(),
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

    use kcl_lease::Cause;

    use super::*;
    use crate::status::tests::Seconds;

    /// A board with a lease duration of 10 s, its outages, and its reading at a second.
    fn board() -> (HealthBoard, OutageLog, impl Fn(u64) -> WorkerHealth) {
        let clock = Arc::new(Seconds::default());
        let as_clock = Arc::clone(&clock) as Arc<dyn Clock>;
        let outages = OutageLog::default();
        let board = HealthBoard::new(as_clock, Duration::from_secs(10), outages.clone());
        let read = board.clone();
        let at = move |now: u64| {
            clock.0.store(now, Ordering::SeqCst);
            read.read(false, false)
        };
        (board, outages, at)
    }

    #[test]
    fn a_table_that_is_not_read_is_seen_without_anybody_saying_so() {
        let (board, _, at) = board();
        let state = |second| at(second).state;
        assert_eq!(state(9), WorkerState::Running);
        assert_eq!(state(10), WorkerState::TableUnreachable, "from the start");
        board.succeeded(Call::TableRead);
        board.seen(2, 4, 1);
        let health = at(15);
        assert_eq!(health.state, WorkerState::Running);
        assert_eq!(health.last_table_read, Some(Duration::from_secs(5)));
        assert!(!health.is_well(), "a lease has no owner");
        board.failed(Call::TableRead, &"throttled");
        let error = LastError { message: "throttled".into(), ago: Duration::from_secs(5) };
        assert_eq!(at(20).last_error(), Some(&error));
        assert_eq!(state(20), WorkerState::TableUnreachable);
        board.succeeded(Call::ShardSync);
        assert!(at(20).last_error().is_some(), "another call's success is no end of it");
        board.succeeded(Call::TableRead);
        assert!(at(20).last_error().is_none());
        assert_eq!(board.read(false, true).state, WorkerState::Resting);
        assert_eq!(board.read(true, true).state, WorkerState::ShuttingDown);
    }

    #[test]
    fn a_worker_whose_calls_fail_for_a_lease_duration_is_not_well() {
        const REFUSED: Cause = Cause { service: TableError::SERVICE, class: "refused" };
        let (board, outages, at) = board();
        let read_at = |second| {
            at(second);
            board.succeeded(Call::TableRead);
            let health = at(second);
            let lasting = health.failing.iter().map(|it| (it.call, it.lasting));
            let lasting: Vec<_> = lasting.collect();
            (health.is_well(), lasting)
        };
        assert_eq!(read_at(0), (false, vec![]), "no lease, so nobody reads anything");
        board.seen(1, 4, 0);
        assert_eq!(read_at(0), (true, vec![]));
        outages.failed(REFUSED, "shard-1", Duration::from_secs(5), &"no such item");
        assert_eq!(read_at(14), (true, vec![(WorkerCall::LeaseWrite, false)]), "a hiccup");
        board.failed(Call::ShardSync, &"dynamodb:PutItem is not allowed");
        let both = vec![(WorkerCall::ShardSync, false), (WorkerCall::LeaseWrite, true)];
        assert_eq!(read_at(15), (false, both), "takes or renewals fail");
        let messages: Vec<_> = at(15).failing.into_iter().map(|it| it.last_error.message).collect();
        assert_eq!(messages, ["dynamodb:PutItem is not allowed", "no such item"], "each its own");
        outages.succeeded(TableError::SERVICE, "shard-1", Duration::from_secs(16));
        assert_eq!(read_at(23), (true, vec![(WorkerCall::ShardSync, false)]));
        board.failed(Call::ShardSync, &"dynamodb:PutItem is not allowed");
        assert_eq!(read_at(24), (false, vec![(WorkerCall::ShardSync, true)]), "no lease is made");
        board.succeeded(Call::ShardSync);
        assert_eq!(read_at(24), (true, vec![]));
        outages.failed(REFUSED, coordinator::CALLER, Duration::from_secs(25), &"refused");
        assert_eq!(read_at(26), (true, vec![]), "no lease write");
    }
}
