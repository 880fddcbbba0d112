//! Small fleets of services as ordinary users write them: slow, failing, panicking and hanging, while processes die, stand still, are deployed anew, and
//! shards split, merge and change hands. The oracle believes the users' database alone.

use std::time::Duration;

use kcl_core::test_util::Service;
use kcl_core::{PoisonedKey, RetrievalMode};

use crate::simulation::plan::{Chaos, Dice, Options, Plan};
use crate::simulation::users::{Way, employ};

pub(super) fn plan(seed: u64, options: &Options) -> Plan {
    let mut plan = Plan::calm("naive-users", seed, options);
    let dice = plan.dice();
    plan.workers = options.workers.unwrap_or(1 + dice.below(3));
    plan.shards = options.shards.unwrap_or(1 + u32::try_from(dice.below(3)).unwrap_or(0));
    plan.lease_duration = Duration::from_secs(dice.one_of(&[5, 10]));
    plan.retrieval = dice.one_of(&[RetrievalMode::Polling, RetrievalMode::FanOut]);
    plan.duration = options.duration(Duration::from_secs(600));
    plan.patience = Duration::from_secs(1_800);
    plan.traffic.every = dice.skewed_seconds(0.3, 5.0);
    plan.traffic.keys = dice.one_of(&[1, 5, 50]);
    plan.traffic.poison = dice.one_of(&[0, 0, 20]);
    plan.traffic.failing = dice.one_of(&[0, 0, 20]);
    if dice.chance(0.1) {
        plan.traffic.killer = Some(1 + dice.number() % 100);
    }
    handling(&mut plan, &dice);
    // Each way has its turn.
    let ways = Way::NAIVE.len() as u64;
    employ(&mut plan, Way::NAIVE[usize::try_from(seed % ways).unwrap_or(0)]);
    plan.demands.calls_end = Some(Duration::from_secs(120));
    schedule(&mut plan, &dice);
    super::aggregated::draw(&mut plan, 2);
    if !plan.handling.way.is_quick() && dice.chance(0.6) {
        at_length(&mut plan);
    } else {
        super::panicking::draw(&mut plan);
    }
    plan
}

fn handling(plan: &mut Plan, dice: &Dice) {
    let handling = &mut plan.handling;
    handling.longest = dice.skewed_seconds(0.001, 1.0);
    handling.lanes = dice.one_of(&[1, 1, 3]);
    handling.batch = dice.one_of(&[None, None, Some(2), Some(10)]);
    handling.poisoned_key = dice.one_of(&[PoisonedKey::Wait, PoisonedKey::Wait, PoisonedKey::Pass, PoisonedKey::Follow]);
    if dice.chance(0.3) {
        handling.deadline = Some(dice.seconds(5.0, 20.0));
        handling.hangs = dice.one_of(&[0.0, 0.01]);
    } else {
        handling.hangs = dice.one_of(&[0.0, 0.01]);
    }
    handling.errors = dice.one_of(&[0.0, 0.01, 0.05]);
    handling.panics = dice.one_of(&[0.0, 0.01, 0.03]);
    handling.panics_in_drop = dice.one_of(&[0.0, 0.0, 0.3]);
    if dice.chance(0.3) {
        handling.stall = dice.skewed_seconds(5.0, 60.0);
        handling.stalls = 0.02_f64.min(0.3 * plan.traffic.every.as_secs_f64() / handling.stall.as_secs_f64());
    }
}

/// Calls that take longer than an iterator lives: whole batches only, or the fleet never gets through.
fn at_length(plan: &mut Plan) {
    plan.traffic.every = plan.traffic.every.max(Duration::from_secs(3));
    plan.traffic.aggregates = None;
    (plan.traffic.poison, plan.traffic.failing, plan.traffic.killer) = (0, 0, None);
    let handling = &mut plan.handling;
    (handling.panics, handling.database.errors, handling.database.lost_answers) = (0.0, 0.0, 0.0);
    (handling.lanes, handling.batch, handling.deadline) = (1, None, None);
    handling.slow = Duration::from_secs(1_200);
    // One by one, after deaths.
    plan.patience = Duration::from_secs(4 * 3_600);
}

fn schedule(plan: &mut Plan, dice: &Dice) {
    let (end, lease) = (plan.duration.as_secs_f64(), plan.lease_duration.as_secs_f64());
    let mean = dice.between(15.0, 60.0);
    let mut now = dice.between(5.0, mean);
    while now < end {
        let machine = dice.below(plan.workers + 1);
        let chaos = match dice.below(12) {
            0..3 => Chaos::Replace(machine),
            3 => Chaos::Kill(machine),
            4 => Chaos::KillAtPoll(machine, 1 + dice.number() % 1_000),
            5 => Chaos::Start(plan.workers),
            6 => Chaos::Stop(plan.workers),
            7 => Chaos::Split(dice.number()),
            8 => Chaos::Merge(dice.number()),
            9 => Chaos::Freeze(machine, dice.skewed_seconds(0.1, lease * 4.0)),
            10 => Chaos::Outage(Service::LeaseTable, dice.skewed_seconds(1.0, lease * 3.0)),
            _ => Chaos::Burst(u32::try_from(dice.number() % 100).unwrap_or(1)),
        };
        plan.at(now, chaos);
        now += dice.between(0.0, 2.0 * mean);
    }
}
