//! A worker stands still for ten lease durations, in the middle of whatever it does, again and again: it never delivers as if no time had passed.

use std::time::Duration;

use kcl_core::RetrievalMode;

use crate::simulation::plan::{Chaos, Options, Plan};

pub(super) fn plan(seed: u64, options: &Options) -> Plan {
    let mut plan = Plan::calm("frozen-worker", seed, options);
    let dice = plan.dice();
    plan.workers = options.workers.unwrap_or(2 + dice.below(2));
    plan.retrieval = dice.one_of(&[RetrievalMode::Polling, RetrievalMode::FanOut]);
    plan.traffic.every = Duration::from_millis(200);
    plan.handling.longest = dice.skewed_seconds(0.01, 2.0);
    plan.duration = options.duration(Duration::from_secs(1_200));
    let mut now = 30.0;
    while now < plan.duration.as_secs_f64() {
        let around = dice.one_of(&[1.0, 10.0]);
        plan.at(now, Chaos::Freeze(dice.below(plan.workers), plan.lease_duration.mul_f64(around * dice.between(0.9, 1.1))));
        now += dice.between(20.0, 160.0);
    }
    crate::simulation::users::draw(&mut plan);
    super::aggregated::draw(&mut plan, 5);
    if plan.traffic.aggregates.is_some() {
        // Dozens of records a second, and at times one by one, each in a call of its own: those must keep up.
        plan.handling.longest = plan.handling.longest.min(Duration::from_millis(20));
    }
    // Records of up to two seconds, one by one, after many takeovers: those take their time.
    plan.patience = Duration::from_secs(1_800);
    plan
}
