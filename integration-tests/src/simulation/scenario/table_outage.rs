//! The lease table is away for four hours: nobody processes without a lease, and when it comes back, all go on with what they had.

use std::time::Duration;

use kcl_core::RetrievalMode;
use kcl_core::test_util::Service;

use crate::simulation::plan::{Chaos, Options, Plan};

pub(super) fn plan(seed: u64, options: &Options) -> Plan {
    let mut plan = Plan::calm("table-outage", seed, options);
    let dice = plan.dice();
    plan.retrieval = dice.one_of(&[RetrievalMode::Polling, RetrievalMode::FanOut]);
    plan.idle_interval = Duration::from_secs(5);
    plan.traffic.every = Duration::from_secs(30);
    let (from, time) = (dice.between(60.0, 120.0), options.duration(Duration::from_secs(4 * 3600)));
    plan.at(from, Chaos::Outage(Service::LeaseTable, time));
    plan.duration = Duration::from_secs_f64(from) + time;
    plan.patience = Duration::from_secs(120);
    // L7: no lease moves, neither in the dark nor when there is light again.
    plan.demands.takes = Some((Duration::from_secs_f64(from), Duration::MAX, 0));
    crate::simulation::users::draw(&mut plan);
    plan
}
