//! Keys that stand still while the others go on, and processes that die meanwhile: what is finished beyond the checkpoint is not repeated, and what is
//! not finished is not forgotten.

use std::time::Duration;

use crate::simulation::plan::{Chaos, Options, Plan, Tells};

pub(super) fn plan(seed: u64, options: &Options) -> Plan {
    let mut plan = Plan::calm("slow-keys", seed, options);
    let dice = plan.dice();
    plan.duration = options.duration(Duration::from_secs(600));
    plan.traffic.every = Duration::from_millis(300);
    plan.traffic.keys = dice.one_of(&[10, 40]);
    plan.traffic.failing = dice.one_of(&[0, 10]);
    plan.handling.lanes = dice.one_of(&[2, 4, 8]);
    plan.handling.tells = dice.one_of(&[Tells::InOrder, Tells::Nothing, Tells::From, Tells::These]);
    plan.handling.stalls = 0.02;
    plan.handling.stall = Duration::from_secs(20);
    let mut now = 20.0;
    while now < plan.duration.as_secs_f64() {
        let machine = dice.below(plan.workers);
        plan.at(now, if dice.chance(0.7) { Chaos::Kill(machine) } else { Chaos::Replace(machine) });
        now += dice.between(10.0, 60.0);
    }
    super::aggregated::draw(&mut plan, 1);
    plan
}
