//! Shards split and merge faster than they are read, while workers come and go: children after their parents, no hole, no key out of order.

use std::time::Duration;

use kcl_core::RetrievalMode;

use crate::simulation::plan::{Chaos, Options, Plan};

pub(super) fn plan(seed: u64, options: &Options) -> Plan {
    let mut plan = Plan::calm("reshard-storm", seed, options);
    let dice = plan.dice();
    plan.retrieval = dice.one_of(&[RetrievalMode::Polling, RetrievalMode::FanOut]);
    plan.short_numbers = dice.chance(0.5);
    plan.resharding = dice.one_of(&[Duration::ZERO, Duration::from_secs(1), Duration::from_secs(10)]);
    plan.traffic.every = Duration::from_millis(300);
    plan.handling.longest = Duration::from_secs(1);
    plan.duration = options.duration(Duration::from_secs(900));
    plan.patience = Duration::from_secs(1_200);
    let mut now = 20.0;
    while now < plan.duration.as_secs_f64() {
        let chaos = match dice.below(10) {
            0..4 => Chaos::Split(dice.number()),
            4..8 => Chaos::Merge(dice.number()),
            8 => Chaos::Kill(dice.below(plan.workers)),
            _ => Chaos::Replace(dice.below(plan.workers)),
        };
        plan.at(now, chaos);
        now += dice.skewed_seconds(0.5, 60.0).as_secs_f64();
    }
    crate::simulation::users::draw(&mut plan);
    super::aggregated::draw(&mut plan, 10);
    plan
}
