//! Every worker is replaced, one after the other, twice: nothing is delivered twice, and no record waits for long.

use std::time::Duration;

use kcl_core::RetrievalMode;

use crate::simulation::plan::{Chaos, Options, Plan};

pub(super) fn plan(seed: u64, options: &Options) -> Plan {
    let mut plan = Plan::calm("rolling-deploy", seed, options);
    let dice = plan.dice();
    plan.workers = options.workers.unwrap_or(2 + dice.below(4));
    plan.shards = options.shards.unwrap_or(4 + u32::try_from(dice.below(8)).unwrap_or(0));
    plan.retrieval = dice.one_of(&[RetrievalMode::Polling, RetrievalMode::FanOut]);
    plan.traffic.every = Duration::from_millis(200);
    plan.handling.longest = dice.skewed_seconds(0.001, 0.5);
    let gap = dice.between(10.0, 40.0);
    let mut now = 60.0;
    for _ in 0..2 {
        for number in 0..plan.workers {
            plan.at(now, Chaos::Replace(number));
            now += gap;
        }
    }
    plan.duration = Duration::from_secs_f64(now + 60.0);
    plan.demands.repeated = Some(0);
    plan.demands.always_within = Some(Duration::from_secs(20));
    crate::simulation::users::draw(&mut plan);
    super::aggregated::draw(&mut plan, 3);
    plan
}
