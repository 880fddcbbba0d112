//! The standing of a worker and its shards, for progress displays, health checks and tests.
//!
//! Consumers note times; state, lag and stuckness are derived from them when somebody reads. So a
//! task that hangs, or whose thread is blocked, can't keep them from being true.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use kcl_checkpoint::{Checkpoint, ExtendedSequenceNumber, Timestamp};
use kcl_lease::{Clock, ShardId, WorkerId};

use crate::health::WorkerHealth;

/// The time in a call of the processor after which its shard counts as stuck.
const LONG_CALL: Duration = Duration::from_secs(60);
/// The time in a state that should pass by itself after which the shard counts as stuck.
const LONG_STATE: Duration = Duration::from_secs(300);
/// The time since the last read for which a shard at its tip counts as up to date.
const FRESH: Duration = Duration::from_secs(10);

/// The activity of a shard's consumer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ShardState {
    /// The processor is being made and initialized.
    Starting,
    /// Records are read and processed, or waited for.
    Processing,
    /// The last attempt failed; another one follows, perhaps after what its processor had collected
    /// was read again.
    Retrying,
    /// Different records fail alike: what the processor depends on is away. Attempts go on; no
    /// record goes to the dead-letter queue meanwhile.
    DependencyFailing,
    /// A record can't be processed and the dead-letter queue does not accept it: the shard waits.
    WaitingForDeadLetterQueue,
    /// A record can't be processed and there is no dead-letter queue: it is tried again and again.
    BlockedByRecord,
    /// Records were trimmed before they were read, and nobody has allowed to go on without them.
    BlockedByTrimmedRecords,
    /// Kinesis can't be read.
    ReadFailing,
    /// A call of the processor has been under way for a minute: see [`ShardStatus::call`].
    InLongCall,
    /// The shard is paused, by request.
    Paused,
    /// The processor said stop: see [`ProcessError::stop`](crate::ProcessError::stop).
    StoppedByProcessor,
    /// Too many records went to the dead-letter queue: see [`SafetyValve`](crate::SafetyValve).
    StoppedBySafetyValve,
    /// The lease could not be renewed in time: nothing is delivered until it is.
    Suspended,
    /// The shard is read to its end, which is being written down.
    Ending,
    /// The shard is being let go.
    LettingGo,
    /// The consumer has failed, and begins anew after a wait.
    Failed,
}

impl ShardState {
    /// Returns whether a shard in this state makes no progress by itself, so that somebody should
    /// look. A state that lasts too long is another reason: see [`ShardStatus::is_stuck`].
    #[must_use]
    pub fn is_stuck(self) -> bool {
        matches!(
            self,
            Self::DependencyFailing
                | Self::WaitingForDeadLetterQueue
                | Self::BlockedByRecord
                | Self::BlockedByTrimmedRecords
                | Self::ReadFailing
                | Self::InLongCall
                | Self::StoppedByProcessor
                | Self::StoppedBySafetyValve
                | Self::Suspended
                | Self::Failed
        )
    }

    /// Returns whether a healthy shard leaves this state soon.
    fn is_passing(self) -> bool {
        matches!(self, Self::Starting | Self::Retrying | Self::Ending | Self::LettingGo)
    }
}

/// A call of users' code that is under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CallStatus {
    /// The method, such as `process_records`, `initialize` or `shard_ended`.
    pub method: &'static str,
    /// The time since it began.
    pub running_for: Duration,
}

/// The standing of one shard of a worker, at the time of reading.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShardStatus {
    /// The activity of its consumer.
    pub state: ShardState,
    /// The time in this state.
    pub in_state_for: Duration,
    /// The oldest call of users' code that is under way.
    pub call: Option<CallStatus>,
    /// The last record that was finished in this term, with all before it.
    pub finished: Option<ExtendedSequenceNumber>,
    /// The checkpoint that is written.
    pub checkpoint: Checkpoint,
    /// The age of the oldest record that is not finished, as far as is known: it grows while the
    /// shard makes no progress. Zero: all that is known of is finished. `None`: nothing was read
    /// yet.
    pub lag: Option<Duration>,
    /// The distance of the last read from the newest record, in milliseconds, as Kinesis told it.
    pub millis_behind_latest: Option<u64>,
    /// The time since Kinesis last answered a read.
    pub last_read: Option<Duration>,
    /// The time since a record was last finished, or, before the first one, since the term began.
    pub last_progress: Duration,
    /// Records finished in this term, dead letters included; one that was lost with its processor,
    /// and comes again, each time.
    pub records: u64,
    /// Records sent to the dead-letter queue in this term.
    pub dead_letters: u64,
    /// Skips of this term over what it had not read: see [`Backlog`](crate::Backlog).
    pub skips: u64,
    /// The term's fencing token.
    pub fencing_token: u64,
}

impl ShardStatus {
    /// Returns the status of a shard in this state of which nothing else is known yet: for tests of
    /// what reads it.
    #[must_use]
    pub fn in_state(state: ShardState) -> Self {
        Self {
            state,
            in_state_for: Duration::ZERO,
            call: None,
            finished: None,
            checkpoint: Checkpoint::TrimHorizon,
            lag: None,
            millis_behind_latest: None,
            last_read: None,
            last_progress: Duration::ZERO,
            records: 0,
            dead_letters: 0,
            skips: 0,
            fencing_token: 1,
        }
    }

    /// Returns whether the shard makes no progress and somebody should look: its state says so, it
    /// has been in a passing state for five minutes, or it has finished nothing for five minutes
    /// although something has waited for as long.
    #[must_use]
    pub fn is_stuck(&self) -> bool {
        let is_working = self.state.is_passing() || self.state == ShardState::Processing;
        let waits = self.last_progress >= LONG_STATE && self.lag.is_some_and(|lag| lag >= LONG_STATE);
        self.state.is_stuck() || (self.state.is_passing() && self.in_state_for >= LONG_STATE) || (is_working && waits)
    }
}

/// The standing of a worker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkerStatus {
    /// The worker.
    pub worker: WorkerId,
    /// The health of the worker as a whole.
    pub health: WorkerHealth,
    /// The shards that it owns.
    pub shards: BTreeMap<ShardId, ShardStatus>,
}

/// The notes of one shard's consumer. Times are boot time, unless they say otherwise.
#[derive(Clone, Debug)]
pub(crate) struct Notes {
    state: ShardState,
    state_since: Duration,
    /// The time at which the shard's end was reached, if nothing was finished since: it may come again and again
    /// if `shard_ended` fails.
    ending_since: Option<Duration>,
    call: Option<(&'static str, Duration)>,
    pub(crate) finished: Option<ExtendedSequenceNumber>,
    pub(crate) checkpoint: Checkpoint,
    /// Arrival of the oldest record that is not finished.
    oldest: Option<Timestamp>,
    millis_behind_latest: Option<u64>,
    last_read: Option<Duration>,
    last_progress: Duration,
    pub(crate) records: u64,
    pub(crate) dead_letters: u64,
    pub(crate) skips: u64,
    fencing_token: u64,
}

impl Notes {
    /// Derives the status at this time.
    fn status(&self, now: Duration, wall: Timestamp) -> ShardStatus {
        let since = |time: Duration| now.saturating_sub(time);
        let call = self.call.map(|(method, began)| CallStatus { method, running_for: since(began) });
        let (mut state, mut state_since) = (self.state, self.state_since);
        let may_be_long = !state.is_stuck() || state == ShardState::InLongCall;
        // A call that finishes records as it goes takes as long as it likes.
        let quiet_since = |began: Duration| began.max(self.last_progress);
        if let Some((_, began)) = self.call.filter(|(_, began)| may_be_long && since(quiet_since(*began)) >= LONG_CALL) {
            (state, state_since) = (ShardState::InLongCall, quiet_since(began) + LONG_CALL);
        }
        let unread = self.last_read.map(since);
        let lag = match (self.oldest, unread) {
            (Some(arrival), _) => Some(Duration::from_millis(wall.as_millis().saturating_sub(arrival.as_millis()))),
            (None, Some(unread)) => {
                let behind = Duration::from_millis(self.millis_behind_latest.unwrap_or(0));
                Some(if behind.is_zero() && unread < FRESH { Duration::ZERO } else { behind + unread })
            }
            (None, None) => None,
        };
        ShardStatus {
            state,
            in_state_for: since(state_since),
            call,
            finished: self.finished,
            checkpoint: self.checkpoint,
            lag,
            millis_behind_latest: self.millis_behind_latest,
            last_read: unread,
            last_progress: since(self.last_progress),
            records: self.records,
            dead_letters: self.dead_letters,
            skips: self.skips,
            fencing_token: self.fencing_token,
        }
    }
}

/// The board on which consumers note what they do. Clones share it.
#[derive(Clone, Debug)]
pub(crate) struct StatusBoard {
    notes: Arc<Mutex<BTreeMap<ShardId, Notes>>>,
    /// Its wall time is the service's.
    clock: Arc<dyn Clock>,
}

impl StatusBoard {
    pub(crate) fn new(clock: Arc<dyn Clock>) -> Self {
        Self { notes: Arc::default(), clock }
    }

    /// A term of the shard begins.
    pub(crate) fn enter(&self, shard: &ShardId, checkpoint: Checkpoint, fencing_token: u64) {
        let now = self.clock.boot_time();
        let notes = Notes {
            state: ShardState::Starting,
            state_since: now,
            ending_since: None,
            call: None,
            finished: None,
            checkpoint,
            oldest: None,
            millis_behind_latest: None,
            last_read: None,
            last_progress: now,
            records: 0,
            dead_letters: 0,
            skips: 0,
            fencing_token,
        };
        self.lock().insert(shard.clone(), notes);
    }

    pub(crate) fn update(&self, shard: &ShardId, change: impl FnOnce(&mut Notes)) {
        if let Some(notes) = self.lock().get_mut(shard) {
            change(notes);
        }
    }

    /// Notes the state, and returns whether that is news.
    pub(crate) fn state(&self, shard: &ShardId, state: ShardState) -> bool {
        let now = self.clock.boot_time();
        let mut news = false;
        self.update(shard, |notes| {
            news = notes.state != state;
            if news {
                let since = if state == ShardState::Ending { *notes.ending_since.get_or_insert(now) } else { now };
                (notes.state, notes.state_since) = (state, since);
            }
        });
        news
    }

    /// Notes the oldest call of users' code that is under way, and for how long.
    pub(crate) fn call(&self, shard: &ShardId, call: Option<(&'static str, Duration)>) {
        let now = self.clock.boot_time();
        self.update(shard, |notes| notes.call = call.map(|(method, running)| (method, now.saturating_sub(running))));
    }

    /// Notes that Kinesis has answered a read, this far behind the newest record.
    pub(crate) fn read_answered(&self, shard: &ShardId, millis_behind_latest: Option<u64>) {
        let now = self.clock.boot_time();
        self.update(shard, |notes| {
            (notes.last_read, notes.millis_behind_latest) = (Some(now), millis_behind_latest);
        });
    }

    /// Notes that records were finished. `is_news`: not all of them were finished before.
    pub(crate) fn progress(&self, shard: &ShardId, records: u64, is_news: bool) {
        let now = self.clock.boot_time();
        self.update(shard, |notes| {
            notes.records += records;
            if is_news {
                (notes.last_progress, notes.ending_since) = (now, None);
            }
        });
    }

    /// Notes the arrival of the oldest record that is not finished.
    pub(crate) fn oldest(&self, shard: &ShardId, arrival: Option<Timestamp>) {
        self.update(shard, |notes| notes.oldest = arrival);
    }

    pub(crate) fn leave(&self, shard: &ShardId) {
        self.lock().remove(shard);
    }

    /// Reads the standing of all shards.
    pub(crate) fn read(&self) -> BTreeMap<ShardId, ShardStatus> {
        let (now, wall) = (self.clock.boot_time(), self.clock.wall_time());
        self.lock().iter().map(|(shard, notes)| (shard.clone(), notes.status(now, wall))).collect()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<ShardId, Notes>> {
        // A status is told, not decided on: one that a panic left half changed does no harm.
        self.notes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;

    /// A clock that stands at so many seconds.
    #[derive(Debug, Default)]
    pub(crate) struct Seconds(pub(crate) AtomicU64);

    impl Clock for Seconds {
        fn boot_time(&self) -> Duration {
            Duration::from_secs(self.0.load(Ordering::SeqCst))
        }

        fn wall_time(&self) -> Timestamp {
            Timestamp::from_millis(1_800_000_000_000 + self.0.load(Ordering::SeqCst) * 1000)
        }
    }

    fn board() -> (StatusBoard, Arc<Seconds>, ShardId) {
        let clock = Arc::new(Seconds::default());
        let board = StatusBoard::new(Arc::clone(&clock) as Arc<dyn Clock>);
        let shard = ShardId::from("shardId-000000000000");
        board.enter(&shard, Checkpoint::TrimHorizon, 1);
        (board, clock, shard)
    }

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn a_shard_that_finishes_nothing_for_long_is_stuck_whatever_it_does_meanwhile() {
        let (board, clock, shard) = board();
        board.read_answered(&shard, Some(0));
        board.oldest(&shard, Some(Timestamp::from_millis(1_800_000_000_000)));
        let at = |now: u64, state: ShardState| {
            clock.0.store(now, Ordering::SeqCst);
            board.state(&shard, state);
            board.read()[&shard].is_stuck()
        };
        for now in (10..300).step_by(10) {
            assert!(!at(now, ShardState::Processing) && !at(now + 5, ShardState::Retrying), "{now}");
        }
        assert!(at(300, ShardState::Processing) && at(305, ShardState::Retrying));
        assert!(!at(310, ShardState::Paused), "that is what was asked for");
        board.progress(&shard, 1, false);
        assert!(at(320, ShardState::Processing), "what was finished before is no progress");
        board.progress(&shard, 1, true);
        assert!(!at(330, ShardState::Processing));
    }

    #[test]
    fn an_end_that_fails_again_and_again_is_stuck() {
        let (board, clock, shard) = board();
        let at = |now: u64, state: ShardState| {
            clock.0.store(now, Ordering::SeqCst);
            board.state(&shard, state);
            board.read()[&shard].is_stuck()
        };
        assert!(!at(1_000, ShardState::Ending), "an idle shard that ends");
        for now in (1_010..1_300).step_by(10) {
            assert!(!at(now, ShardState::Processing) && !at(now + 1, ShardState::Ending), "{now}");
        }
        assert!(at(1_300, ShardState::Ending));
        board.progress(&shard, 1, true);
        assert!(!at(1_310, ShardState::Processing) && !at(1_311, ShardState::Ending));
    }

    #[test]
    fn a_call_that_finishes_records_as_it_goes_is_not_long() {
        let (board, clock, shard) = board();
        board.state(&shard, ShardState::Processing);
        board.call(&shard, Some(("process_records", Duration::ZERO)));
        for (now, progresses, expected) in [
            (50, true, ShardState::Processing),
            (100, true, ShardState::Processing),
            (159, false, ShardState::Processing),
            (160, false, ShardState::InLongCall),
        ] {
            clock.0.store(now, Ordering::SeqCst);
            if progresses {
                board.progress(&shard, 1, true);
            }
            assert_eq!(board.read()[&shard].state, expected, "{now}");
        }
    }

    #[test]
    fn a_call_that_hangs_is_stuck_though_nobody_says_so() {
        let (board, clock, shard) = board();
        board.state(&shard, ShardState::Processing);
        board.call(&shard, Some(("process_records", Duration::ZERO)));
        let at = |now: u64| {
            clock.0.store(now, Ordering::SeqCst);
            board.read().remove(&shard).unwrap()
        };
        assert!(!at(59).is_stuck());
        let stuck = at(90);
        assert!(stuck.is_stuck());
        assert_eq!((stuck.state, stuck.in_state_for), (ShardState::InLongCall, seconds(30)));
        assert_eq!(stuck.call, Some(CallStatus { method: "process_records", running_for: seconds(90) }));
        board.state(&shard, ShardState::Suspended);
        assert_eq!(at(91).state, ShardState::Suspended, "a state with a reason of its own stays");
        board.call(&shard, None);
        board.state(&shard, ShardState::Ending);
        assert!(!at(390).is_stuck() && at(391).is_stuck(), "a state that should pass by itself");
    }

    #[test]
    fn lag_grows_while_nothing_moves() {
        let (board, clock, shard) = board();
        let lag = |now: u64| {
            clock.0.store(now, Ordering::SeqCst);
            board.read()[&shard].lag
        };
        assert_eq!(lag(5), None, "nothing was read");
        board.read_answered(&shard, Some(0));
        assert_eq!((lag(7), lag(14)), (Some(Duration::ZERO), Some(Duration::ZERO)));
        assert_eq!(lag(65), Some(seconds(60)), "not read for a minute");
        board.read_answered(&shard, Some(3_000));
        assert_eq!(lag(70), Some(seconds(8)));
        board.oldest(&shard, Some(Timestamp::from_millis(1_800_000_000_000 + 60_000)));
        assert_eq!((lag(70), lag(1_860)), (Some(seconds(10)), Some(seconds(1_800))));
    }
}
