//! Many workers start in the same second, on a table that has no leases yet: the calls stay within bounds, and leases settle.

use std::time::Duration;

use crate::simulation::plan::{Chaos, Options, Plan};

pub(super) fn plan(seed: u64, options: &Options) -> Plan {
    let mut plan = Plan::calm("thundering-start", seed, options);
    let dice = plan.dice();
    plan.workers = 0;
    plan.shards = options.shards.unwrap_or(64);
    for number in 0..options.workers.unwrap_or(200) {
        plan.at(dice.between(0.0, 1.0), Chaos::Start(number));
    }
    plan.duration = options.duration(Duration::from_secs(120));
    plan.traffic.every = Duration::from_millis(500);
    // Each shard is taken once; what is uneven then moves once.
    plan.demands.takes = Some((Duration::ZERO, Duration::MAX, u64::from(plan.shards) * 3));
    crate::simulation::users::draw(&mut plan);
    plan
}
