//! An operator lets the running application begin elsewhere, again and again, while shards split and merge, processes die and calls fail.

use std::time::Duration;

use kcl_core::RetrievalMode;
use kcl_core::test_util::{FaultRates, Service};

use crate::simulation::plan::{Chaos, Options, Plan};

pub(super) fn plan(seed: u64, options: &Options) -> Plan {
    let mut plan = Plan::calm("seek", seed, options);
    let dice = plan.dice();
    plan.shards = options.shards.unwrap_or(1 + u32::try_from(dice.below(4)).unwrap_or(0));
    plan.workers = options.workers.unwrap_or(1 + dice.below(4));
    plan.duration = options.duration(Duration::from_secs(900));
    plan.patience = Duration::from_secs(900);
    plan.retrieval = dice.one_of(&[RetrievalMode::Polling, RetrievalMode::FanOut]);
    plan.traffic.every = Duration::from_millis(500);
    plan.traffic.poison = dice.one_of(&[0, 10]);
    plan.handling.longest = dice.skewed_seconds(0.001, 2.0);
    plan.handling.stalls = dice.one_of(&[0.0, 0.02]);
    plan.handling.stall = Duration::from_secs(20);
    plan.handling.lanes = dice.one_of(&[1, 1, 4]);
    if dice.chance(0.5) {
        let rate = dice.between(0.0, 0.08);
        let rates = FaultRates {
            slow: rate,
            throttled: rate,
            dropped: rate,
            lost_answer: rate,
            applied_late: rate,
            applied_twice: rate,
            stale: rate,
            ..FaultRates::default()
        };
        plan.rates.insert(Service::LeaseTable, rates);
    }
    let mut now = 30.0;
    while now < plan.duration.as_secs_f64() {
        let machine = dice.below(plan.workers);
        let chaos = match dice.below(12) {
            0..4 => Chaos::Seek(if dice.chance(0.3) { Duration::ZERO } else { dice.seconds(1.0, now) }),
            4..6 => Chaos::Split(dice.number()),
            6..8 => Chaos::Merge(dice.number()),
            8 => Chaos::Kill(machine),
            9 => Chaos::Freeze(machine, dice.seconds(1.0, 40.0)),
            _ => Chaos::Replace(machine),
        };
        plan.at(now, chaos);
        now += dice.between(5.0, 60.0);
    }
    crate::simulation::users::draw(&mut plan);
    super::aggregated::draw(&mut plan, 2);
    plan.patience += once_more(&plan);
    plan
}

/// The time in which a slow processor gets through the whole stream anew, a record at a time, as after deaths: the last seek may ask for that.
fn once_more(plan: &Plan) -> Duration {
    let handling = &plan.handling;
    let call = handling.longest / 2 + handling.stall.mul_f64(handling.stalls / 2.0);
    let aggregated = plan.traffic.aggregates.as_ref().map_or(0.0, |drawn| f64::from(drawn.share) / 1000.0 * drawn.most as f64 / 2.0);
    let records = plan.duration.as_secs_f64() / plan.traffic.every.as_secs_f64() * (1.0 + aggregated);
    call.mul_f64(records * 1.5)
}
