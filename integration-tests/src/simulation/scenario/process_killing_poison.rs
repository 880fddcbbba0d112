//! A record kills every process that touches it: it is found by the deaths that it causes, and goes to the dead-letter queue. The other shards go
//! on, and the fleet survives.

use std::time::Duration;

use crate::simulation::plan::{Options, Plan, Tells};

/// The retry policy's `max_deaths`, and two: the first death may come after a checkpoint, the second before the next.
const DEATHS: u64 = 3 + 2;

pub(super) fn plan(seed: u64, options: &Options) -> Plan {
    let mut plan = Plan::calm("process-killing-poison", seed, options);
    let dice = plan.dice();
    plan.traffic.killer = Some(20 + dice.number() % 50);
    plan.handling.tells = dice.one_of(&[Tells::InOrder, Tells::Nothing, Tells::From, Tells::These]);
    plan.handling.lanes = dice.one_of(&[1, 1, 4]);
    plan.duration = options.duration(Duration::from_secs(600));
    plan.patience = Duration::from_secs(300);
    plan.demands.deaths = Some(DEATHS);
    // A shard of a process that died waits for its lease to expire, and may meet the next victim then: but not for ever.
    plan.demands.neighbours = Some(Duration::from_secs(180));
    super::aggregated::draw(&mut plan, 1);
    plan
}
