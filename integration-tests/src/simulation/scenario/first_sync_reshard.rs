//! Workers begin at LATEST while shards split and merge: they list the shards at different times, and some of them stand still, are cut off or die before they
//! have created what they have listed.

use std::time::Duration;

use kcl_core::test_util::{Cut, FaultRates, Service};
use kcl_core::{InitialPosition, RetrievalMode};

use crate::simulation::plan::{Chaos, Options, Plan};

/// The time in which workers start and shards are changed.
const BEGINNING: f64 = 15.0;

pub(super) fn plan(seed: u64, options: &Options) -> Plan {
    let mut plan = Plan::calm("first-sync-reshard", seed, options);
    let dice = plan.dice();
    plan.initial = InitialPosition::Latest;
    plan.workers = 0;
    plan.shards = options.shards.unwrap_or(dice.one_of(&[1, 1, 2, 3, 3]));
    plan.retrieval = dice.one_of(&[RetrievalMode::Polling, RetrievalMode::FanOut]);
    plan.lease_duration = Duration::from_secs(dice.one_of(&[5, 10]));
    plan.duration = options.duration(Duration::from_secs(60));
    plan.resharding = dice.one_of(&[Duration::ZERO, Duration::from_millis(50), Duration::from_secs(1)]);
    plan.traffic.every = dice.skewed_seconds(0.02, 0.5);
    plan.traffic.keys = dice.one_of(&[3, 10, 50]);
    plan.handling.longest = Duration::from_millis(2);
    let machines = options.workers.unwrap_or(2 + dice.below(4));
    // The stream may have been resharded before anybody looks at it.
    let mut start = dice.one_of(&[0.1, 3.0]);
    for number in 0..machines {
        plan.at(start, Chaos::Start(number));
        // What it has listed lies there for a while: cut off from the lease table, or standing still.
        let trouble = start + dice.between(0.02, 0.4);
        let time = dice.skewed_seconds(0.5, 12.0);
        match dice.below(7) {
            0 | 1 => plan.at(trouble, Chaos::Partition(number, Service::LeaseTable, Cut::Requests, time)),
            2 => plan.at(trouble, Chaos::Partition(number, Service::LeaseTable, Cut::Answers, time)),
            3 | 4 => plan.at(trouble, Chaos::Freeze(number, time)),
            5 => plan.at(start, Chaos::KillAfterWrite(number, 1 + dice.number() % 4)),
            _ => {}
        }
        // Meanwhile the shards change, and the next one lists them.
        let change = trouble + dice.skewed_seconds(0.02, 2.0).as_secs_f64();
        plan.at(change, if dice.chance(0.7) { Chaos::Split(dice.number()) } else { Chaos::Merge(dice.number()) });
        start = change + plan.resharding.as_secs_f64() + dice.skewed_seconds(0.01, 2.0).as_secs_f64();
    }
    if dice.chance(0.6) {
        // What they create comes late, and everybody's at another time.
        plan.at(0.0, Chaos::CreationsLate(dice.seconds(5.0, 20.0)));
    }
    if plan.shards > 2 && dice.chance(0.5) {
        // A shard that was merged is merged again, which a listing that lags does not show yet.
        let first = dice.between(2.0, BEGINNING);
        plan.at(first, Chaos::Merge(dice.number()));
        plan.at(first + plan.resharding.as_secs_f64() + dice.between(0.05, 1.0), Chaos::Merge(dice.number()));
        plan.at(first, Chaos::ListingsLag(dice.seconds(0.5, 5.0), Duration::from_secs(10)));
    }
    for _ in 0..dice.below(4) {
        let at = dice.between(0.0, BEGINNING);
        plan.at(at, if dice.chance(0.6) { Chaos::Split(dice.number()) } else { Chaos::Merge(dice.number()) });
    }
    let rate = dice.one_of(&[0.0, 0.0, 0.05, 0.15]);
    let table = FaultRates {
        slow: rate,
        throttled: rate,
        dropped: rate,
        lost_answer: rate,
        applied_late: rate,
        stale: rate,
        ..FaultRates::default()
    };
    plan.rates.insert(Service::LeaseTable, table);
    let stale = dice.one_of(&[0.0, 0.2]);
    plan.rates.insert(Service::Stream, FaultRates { stale, ..FaultRates::default() });
    plan
}
