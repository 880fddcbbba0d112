//! A record kills every process that touches it, until somebody mends the program: no record is skipped, the processes come back each time, and
//! the other shards go on.

use std::time::Duration;

use crate::simulation::plan::{Chaos, Options, Plan};

pub(super) fn plan(seed: u64, options: &Options) -> Plan {
    let mut plan = Plan::calm("process-killing-poison", seed, options);
    let dice = plan.dice();
    plan.traffic.killer = Some((20 + dice.number() % 50, u32::MAX));
    plan.handling.in_order = dice.chance(0.5);
    plan.duration = options.duration(Duration::from_secs(1_800));
    let mended = plan.duration.as_secs_f64() - 60.0;
    plan.at(mended, Chaos::Mend);
    plan.patience = Duration::from_secs(300);
    // A shard of a process that died waits for its lease to expire, and may meet the next victim then: but not for ever.
    plan.demands.neighbours = Some(Duration::from_secs(180));
    plan
}
