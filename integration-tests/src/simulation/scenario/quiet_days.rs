//! Thirty days in which little happens: a record now and then, a split, a merge. No task, no map and no memory may grow.

use std::time::Duration;

use kcl_core::RetrievalMode;

use crate::simulation::plan::{Chaos, Options, Plan};

pub(super) fn plan(seed: u64, options: &Options) -> Plan {
    let mut plan = Plan::calm("quiet-days", seed, options);
    let dice = plan.dice();
    let day = 24 * 3600;
    plan.workers = options.workers.unwrap_or(2);
    plan.shards = options.shards.unwrap_or(2);
    plan.duration = options.duration(Duration::from_secs(30 * day));
    plan.retrieval = dice.one_of(&[RetrievalMode::Polling, RetrievalMode::FanOut]);
    plan.lease_duration = Duration::from_secs(60);
    plan.idle_interval = Duration::from_secs(20);
    plan.traffic.every = Duration::from_secs(1_200);
    let mut now = 0.0;
    while now < plan.duration.as_secs_f64() - 3_600.0 {
        now += dice.between(0.5, 1.5) * 3.0 * 24.0 * 3600.0;
        let chaos = if dice.chance(0.5) { Chaos::Split(dice.number()) } else { Chaos::Merge(dice.number()) };
        plan.at(now, chaos);
    }
    plan.demands.no_growth_after = Some(Duration::from_secs(2 * day));
    plan.demands.always_within = Some(Duration::from_secs(60));
    plan
}
