//! Records that are put together, of which some stand still: processes die and shards are handed over in the middle of them, and what is finished of
//! one is neither repeated nor taken for the whole.

use std::time::Duration;

use kcl_core::RetrievalMode;

use crate::simulation::plan::{Aggregates, Chaos, Options, Plan, Tells};

pub(super) fn plan(seed: u64, options: &Options) -> Plan {
    let mut plan = Plan::calm("half-done-aggregates", seed, options);
    let dice = plan.dice();
    plan.duration = options.duration(Duration::from_secs(600));
    plan.patience = Duration::from_secs(900);
    // Short, so that what is finished is often written down.
    plan.lease_duration = Duration::from_secs(5);
    plan.retrieval = dice.one_of(&[RetrievalMode::Polling, RetrievalMode::FanOut]);
    plan.traffic.every = Duration::from_millis(300);
    plan.traffic.keys = dice.one_of(&[5, 40]);
    plan.traffic.poison = dice.one_of(&[0, 10]);
    plan.traffic.failing = dice.one_of(&[0, 10]);
    plan.traffic.aggregates = Some(Aggregates {
        share: dice.one_of(&[500, 900]),
        most: dice.one_of(&[5, 20]),
        one_key: dice.one_of(&[0, 300]),
        elsewhere: dice.one_of(&[0, 100]),
        broken: dice.one_of(&[0, 0, 50]),
    });
    plan.handling.batch = dice.one_of(&[None, Some(1), Some(4)]);
    plan.handling.lanes = dice.one_of(&[1, 2, 4, 8]);
    plan.handling.tells = dice.one_of(&[Tells::InOrder, Tells::Nothing, Tells::From, Tells::These]);
    // On several lanes the other keys go on meanwhile.
    plan.handling.stalls = if plan.handling.lanes > 1 { 0.15 } else { 0.05 };
    plan.handling.stall = Duration::from_secs(10);
    let mut now = 20.0;
    while now < plan.duration.as_secs_f64() {
        let machine = dice.below(plan.workers);
        let chaos = match dice.below(10) {
            0..5 => Chaos::Kill(machine),
            5..8 => Chaos::Replace(machine),
            8 => Chaos::Split(dice.number()),
            _ => Chaos::Merge(dice.number()),
        };
        plan.at(now, chaos);
        now += dice.between(5.0, 40.0);
    }
    plan
}
