//! Somebody empties the lease table, or deletes some rows, while workers read: those that held a lease end and say so, and nothing begins anew but by new
//! processes.

use std::time::Duration;

use kcl_core::test_util::{FaultRates, Service};
use kcl_core::{InitialPosition, RetrievalMode};

use crate::simulation::plan::{Chaos, Options, Plan};

pub(super) fn plan(seed: u64, options: &Options) -> Plan {
    let mut plan = Plan::calm("emptied-table", seed, options);
    let dice = plan.dice();
    plan.workers = options.workers.unwrap_or(1 + dice.below(4));
    plan.shards = options.shards.unwrap_or(1 + u32::try_from(dice.below(5)).unwrap_or(0));
    plan.lease_duration = Duration::from_secs(dice.one_of(&[3, 5, 10]));
    plan.retrieval = dice.one_of(&[RetrievalMode::Polling, RetrievalMode::FanOut]);
    plan.initial = dice.one_of(&[InitialPosition::TrimHorizon, InitialPosition::Latest]);
    plan.traffic.every = dice.seconds(0.1, 1.0);
    plan.traffic.poison = dice.one_of(&[0, 20]);
    let rate = dice.one_of(&[0.0, 0.0, 0.05]);
    let rates = FaultRates { slow: rate, throttled: rate, dropped: rate, lost_answer: rate, ..FaultRates::default() };
    plan.rates.insert(Service::LeaseTable, rates);
    // All rows, or some. Before it the fleet has had time to begin.
    let at = dice.between(60.0, 120.0);
    let rows = if dice.chance(0.7) { usize::MAX } else { 1 + dice.below(plan.shards as usize) };
    if dice.chance(0.3) {
        plan.at(at - dice.between(1.0, 20.0), Chaos::Kill(dice.below(plan.workers)));
    }
    if dice.chance(0.3) {
        let time = dice.seconds(1.0, 15.0);
        plan.at(at - dice.between(0.0, 2.0), Chaos::Freeze(dice.below(plan.workers), time));
    }
    plan.at(at, Chaos::Empty(rows));
    plan.duration = options.duration(Duration::from_secs_f64(at + 120.0));
    crate::simulation::users::draw(&mut plan);
    plan
}
