//! The stream is deleted and made anew under the same name: no checkpoint of the old one is used with the new one, which is read from its
//! beginning.

use std::time::Duration;

use crate::simulation::plan::{Chaos, Options, Plan};

pub(super) fn plan(seed: u64, options: &Options) -> Plan {
    let mut plan = Plan::calm("recreated-stream", seed, options);
    let dice = plan.dice();
    plan.traffic.every = Duration::from_millis(500);
    let at = dice.between(100.0, 300.0);
    if dice.chance(0.5) {
        // All are away meanwhile.
        for number in 0..plan.workers {
            plan.at(at - 40.0, Chaos::Stop(number));
            plan.at(at + dice.between(1.0, 60.0), Chaos::Start(number));
        }
    }
    plan.at(at, Chaos::Recreate);
    plan.duration = Duration::from_secs_f64(at + 200.0);
    crate::simulation::users::draw(&mut plan);
    plan
}
