//! When a worker has nothing left to do.

use std::collections::BTreeMap;
use std::time::Duration;

use kcl_core::{ShardId, ShardState, ShardStatus, WorkerHandle, WorkerHealth, WorkerState, WorkerStatus};
use tokio::time::Instant;

use super::service::Tally;

/// How often the worker is looked at.
const LOOK: Duration = Duration::from_millis(100);

/// Waits for a period in which nothing came and nothing was to come.
///
/// The period begins anew with each record, with each shard that is taken, ended or lost, and whenever a shard is not at its tip: behind the
/// newest record, not read yet, or stuck. While the worker owns no shard the period is longer: shards of a worker that died become free
/// when their leases expire.
///
/// A worker that can't get leases has nothing to do either, and is not idle: see [`can_get_leases`].
#[derive(Debug)]
pub(super) struct IdleWatch {
    period: Duration,
    period_without_shards: Duration,
    /// The most shards that the worker may own.
    max_leases: usize,
    seen: Option<Seen>,
}

/// What a period must not change in, and when it began.
#[derive(Debug)]
struct Seen {
    records: u64,
    shards: BTreeMap<ShardId, u64>,
    since: Instant,
}

impl IdleWatch {
    /// A watch for a period of this length, on a worker with this lease duration that may own this
    /// many shards.
    pub(super) fn new(period: Duration, lease_duration: Duration, max_leases: usize) -> Self {
        let period_without_shards = period + 2 * lease_duration;
        Self { period, period_without_shards, max_leases, seen: None }
    }

    /// Completes when the worker is idle.
    pub(super) async fn wait(mut self, handle: &WorkerHandle, tally: &Tally) {
        loop {
            // The shards before the counts: a batch that is taken into work in between is seen in the counts.
            let WorkerStatus { shards, health, .. } = handle.status();
            let (records, in_work) = tally.read();
            if self.is_over(&health, &shards, records, in_work, Instant::now()) {
                return;
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Whether the period is over, with the worker looking like this now.
    fn is_over(
        &mut self,
        health: &WorkerHealth,
        shards: &BTreeMap<ShardId, ShardStatus>,
        records: u64,
        in_work: usize,
        now: Instant,
    ) -> bool {
        let terms: BTreeMap<_, _> = shards.iter().map(|(shard, status)| (shard.clone(), status.fencing_token)).collect();
        let has_all = shards.len() >= self.max_leases || can_get_leases(health, self.period);
        let quiet = in_work == 0 && has_all && shards.values().all(is_at_tip);
        match &self.seen {
            Some(seen) if quiet && seen.records == records && seen.shards == terms => {
                let period = if shards.is_empty() { self.period_without_shards } else { self.period };
                now.duration_since(seen.since) >= period
            }
            _ => {
                self.seen = Some(Seen { records, shards: terms, since: now });
                false
            }
        }
    }
}

/// Returns whether the worker owns what it should, as far as it can tell: the table is read and holds
/// leases, none of them is free, and no call that makes or takes leases keeps failing. A failure
/// younger than half of the period is a hiccup.
fn can_get_leases(health: &WorkerHealth, period: Duration) -> bool {
    health.state == WorkerState::Running
        && health.leases > 0
        && health.unowned_leases == 0
        && health.failing.iter().all(|call| call.failing_for < period / 2)
}

fn is_at_tip(status: &ShardStatus) -> bool {
    status.state == ShardState::Processing && status.millis_behind_latest == Some(0)
}

#[cfg(test)]
mod tests {
    use kcl_core::{FailingCall, LastError, WorkerCall};

    use super::*;

    fn shards(of: &[(&str, ShardState, Option<u64>)]) -> BTreeMap<ShardId, ShardStatus> {
        let status = |(id, state, behind): &(&str, ShardState, Option<u64>)| {
            let status = ShardStatus { millis_behind_latest: *behind, ..ShardStatus::in_state(*state) };
            (ShardId::from(*id), status)
        };
        of.iter().map(status).collect()
    }

    /// The first second at which the watch is over, if the worker looks the same from then on.
    fn over_at(watch: &mut IdleWatch, look: impl Fn(u64) -> (BTreeMap<ShardId, ShardStatus>, u64, usize)) -> Option<u64> {
        let start = Instant::now();
        (0..100).find(|second| {
            let (shards, records, in_work) = look(*second);
            let now = start + Duration::from_secs(*second);
            watch.is_over(&healthy(), &shards, records, in_work, now)
        })
    }

    fn healthy() -> WorkerHealth {
        WorkerHealth {
            state: WorkerState::Running,
            last_table_read: Some(Duration::ZERO),
            last_shard_sync: Some(Duration::ZERO),
            failing: Vec::new(),
            workers: 2,
            leases: 2,
            unowned_leases: 0,
        }
    }

    const TIP: &[(&str, ShardState, Option<u64>)] = &[("a", ShardState::Processing, Some(0)), ("b", ShardState::Processing, Some(0))];

    #[test]
    fn a_period_begins_anew_whenever_something_comes_or_changes() {
        let watch = || IdleWatch::new(Duration::from_secs(5), Duration::from_secs(10), usize::MAX);
        let at_tip = || shards(TIP);
        assert_eq!(over_at(&mut watch(), |_| (at_tip(), 7, 0)), Some(5));
        assert_eq!(over_at(&mut watch(), |second| (at_tip(), second.min(3), 0)), Some(8), "the last record came at 3");
        assert_eq!(over_at(&mut watch(), |second| (at_tip(), 0, usize::from(second <= 4))), Some(9), "a batch was in work until 4");
        let taken_later = |second| if second < 2 { shards(&TIP[..1]) } else { at_tip() };
        assert_eq!(over_at(&mut watch(), |second| (taken_later(second), 0, 0)), Some(7));
    }

    #[test]
    fn a_shard_that_is_behind_or_stuck_is_not_idle() {
        for (state, behind) in [
            (ShardState::Processing, Some(1)),
            (ShardState::Processing, None),
            (ShardState::Starting, Some(0)),
            (ShardState::Retrying, Some(0)),
            (ShardState::BlockedByTrimmedRecords, Some(0)),
            (ShardState::Suspended, Some(0)),
            (ShardState::Ending, Some(0)),
        ] {
            let mut watch = IdleWatch::new(Duration::from_secs(5), Duration::from_secs(10), usize::MAX);
            let stuck = shards(&[TIP[0], ("b", state, behind)]);
            assert_eq!(over_at(&mut watch, |_| (stuck.clone(), 7, 0)), None, "{state:?} {behind:?}");
        }
    }

    #[test]
    fn without_shards_the_leases_of_the_dead_are_waited_for() {
        let mut watch = IdleWatch::new(Duration::from_secs(5), Duration::from_secs(10), usize::MAX);
        assert_eq!(over_at(&mut watch, |_| (BTreeMap::new(), 0, 0)), Some(25));
    }

    #[test]
    fn a_worker_that_cannot_get_leases_is_not_idle() {
        let failing = |call, millis| FailingCall {
            call,
            failing_for: Duration::from_millis(millis),
            lasting: false,
            last_error: LastError { message: "not allowed".into(), ago: Duration::ZERO },
        };
        let failing = |call, millis| WorkerHealth { failing: vec![failing(call, millis)], ..healthy() };
        let cases = [
            ("well", healthy(), true),
            ("no lease could be made", WorkerHealth { leases: 0, ..healthy() }, false),
            ("a lease is free", WorkerHealth { unowned_leases: 1, ..healthy() }, false),
            ("the table is away", WorkerHealth { state: WorkerState::TableUnreachable, ..healthy() }, false),
            ("it rests", WorkerHealth { state: WorkerState::Resting, ..healthy() }, false),
            ("takes fail", failing(WorkerCall::LeaseWrite, 2500), false),
            ("leases can't be made", failing(WorkerCall::ShardSync, 2500), false),
            ("the table can't be read", failing(WorkerCall::TableRead, 2500), false),
            ("a hiccup", failing(WorkerCall::TableRead, 2499), true),
        ];
        for (what, health, idle) in cases {
            for owned in [0, 1] {
                let shards = shards(&TIP[..owned]);
                let over = |max_leases| {
                    let ten = Duration::from_secs(10);
                    let mut watch = IdleWatch::new(Duration::from_secs(5), ten, max_leases);
                    let start = Instant::now();
                    let look = |second| {
                        let now = start + Duration::from_secs(second);
                        watch.is_over(&health, &shards, 0, 0, now)
                    };
                    (0..100).any(look)
                };
                assert_eq!(over(usize::MAX), idle, "{what}, {owned} owned");
                assert_eq!(over(1), idle || owned == 1, "{what}, {owned} owned, and no more may be");
            }
        }
    }
}
