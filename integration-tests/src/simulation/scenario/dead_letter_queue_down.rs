//! The dead-letter queue is down for six hours: shards with bad records wait, their leases stay where they are, and the other shards go on.

use std::time::Duration;

use kcl_core::test_util::Service;

use crate::simulation::plan::{Chaos, Options, Plan, Tells};

pub(super) fn plan(seed: u64, options: &Options) -> Plan {
    let mut plan = Plan::calm("dead-letter-queue-down", seed, options);
    let dice = plan.dice();
    plan.idle_interval = Duration::from_secs(5);
    plan.traffic.every = Duration::from_secs(20);
    plan.traffic.keys = 8;
    plan.traffic.poison = 5;
    plan.handling.tells = dice.one_of(&[Tells::InOrder, Tells::Nothing, Tells::From, Tells::These]);
    plan.handling.lanes = dice.one_of(&[1, 1, 4]);
    let (from, time) = (dice.between(60.0, 120.0), options.duration(Duration::from_secs(6 * 3600)));
    plan.at(from, Chaos::Outage(Service::DeadLetters, time));
    // Workers check the queue when they start: one that is replaced meanwhile waits for it too.
    plan.duration = Duration::from_secs_f64(from) + time;
    plan.patience = Duration::from_secs(600);
    plan.demands.takes = Some((Duration::from_secs_f64(from), Duration::MAX, 0));
    plan.demands.neighbours = Some(Duration::from_secs(60));
    super::aggregated::draw(&mut plan, 1);
    plan
}
