//! A stream is trimmed behind a fleet that was stopped for longer than the stream keeps records: the gap is not passed in silence.

use std::time::Duration;

use kcl_core::TrimmedData;

use crate::simulation::plan::{Chaos, Options, Plan};

pub(super) fn plan(seed: u64, options: &Options) -> Plan {
    let mut plan = Plan::calm("trimmed-behind", seed, options);
    let dice = plan.dice();
    let day = 24.0 * 3600.0;
    plan.traffic.every = Duration::from_secs(600);
    plan.idle_interval = Duration::from_secs(5);
    if dice.chance(0.5) {
        plan.trimmed = TrimmedData::SkipAndAudit;
    }
    let stopped = dice.between(600.0, 7_200.0);
    for number in 0..plan.workers {
        plan.at(stopped, if dice.chance(0.5) { Chaos::Stop(number) } else { Chaos::Kill(number) });
        plan.at(stopped + 0.001, Chaos::Stop(number));
    }
    if dice.chance(0.5) {
        plan.at(stopped + dice.between(0.0, 0.5) * day, Chaos::Split(dice.number()));
    }
    let back = stopped + dice.between(0.5, 2.0) * day;
    for number in 0..plan.workers {
        plan.at(back + dice.between(0.0, 10.0), Chaos::Start(number));
    }
    // Those that wait for an operator's word get it an hour later, and are started anew.
    plan.at(back + 3_600.0, Chaos::Mend);
    for number in 0..plan.workers {
        plan.at(back + 3_601.0, Chaos::Replace(number));
    }
    plan.duration = Duration::from_secs_f64(back + 3_700.0);
    plan.patience = Duration::from_secs(600);
    crate::simulation::users::draw(&mut plan);
    super::aggregated::draw(&mut plan, 1);
    plan
}
