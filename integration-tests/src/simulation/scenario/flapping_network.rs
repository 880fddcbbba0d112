//! A worker's connection to the lease table comes and goes, for about as long as a lease lasts: it never believes in its lease for longer than the
//! others do.

use std::time::Duration;

use kcl_core::test_util::{Cut, Service};

use crate::simulation::plan::{Chaos, Options, Plan};

pub(super) fn plan(seed: u64, options: &Options) -> Plan {
    let mut plan = Plan::calm("flapping-network", seed, options);
    let dice = plan.dice();
    plan.workers = options.workers.unwrap_or(2 + dice.below(2));
    plan.traffic.every = Duration::from_millis(150);
    plan.handling.longest = Duration::from_millis(20);
    plan.duration = options.duration(Duration::from_secs(1_200));
    let lease = plan.lease_duration.as_secs_f64();
    let mut now = 30.0;
    while now < plan.duration.as_secs_f64() {
        let number = dice.below(plan.workers);
        for _ in 0..1 + dice.below(3) {
            let cut = dice.one_of(&[Cut::Requests, Cut::Answers, Cut::Answers]);
            let away = dice.between(0.1, 1.6) * lease;
            plan.at(now, Chaos::Partition(number, Service::LeaseTable, cut, Duration::from_secs_f64(away)));
            now += away + dice.between(0.1, 0.4) * lease;
        }
        now += dice.between(0.0, 3.0) * lease;
    }
    crate::simulation::users::draw(&mut plan);
    plan
}
