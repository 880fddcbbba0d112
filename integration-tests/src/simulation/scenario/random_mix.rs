//! Everything at once: each seed draws its own fleet, its own faults and its own schedule.

use std::time::Duration;

use kcl_core::test_util::{Cut, FaultRates, Service};
use kcl_core::{InitialPosition, PoisonedKey, RetrievalMode};

use crate::simulation::plan::{Chaos, Dice, Ending, Options, Plan, Tells};

/// Up to 4 workers and 4 shards.
pub(super) fn small(seed: u64, options: &Options) -> Plan {
    let dice = Dice::new(seed ^ 0x51a11);
    let (workers, shards) = (1 + dice.below(4), 1 + dice.below(4));
    mixed("random-mix", seed, options, workers, shards, Duration::from_secs(1_800))
}

/// Up to 16 workers and 32 shards.
pub(super) fn large(seed: u64, options: &Options) -> Plan {
    let dice = Dice::new(seed ^ 0x1a46e);
    let (workers, shards) = (4 + dice.below(13), 8 + dice.below(25));
    mixed("random-mix-large", seed, options, workers, shards, Duration::from_secs(1_200))
}

fn mixed(name: &'static str, seed: u64, options: &Options, workers: usize, shards: usize, duration: Duration) -> Plan {
    let mut plan = Plan::calm(name, seed, options);
    let dice = plan.dice();
    plan.workers = options.workers.unwrap_or(workers);
    plan.shards = options.shards.unwrap_or(u32::try_from(shards).unwrap_or(u32::MAX));
    plan.duration = options.duration(duration);
    plan.patience = Duration::from_secs(1_800);
    plan.lease_duration = Duration::from_secs(dice.one_of(&[5, 10, 10, 20]));
    plan.retrieval = dice.one_of(&[RetrievalMode::Polling, RetrievalMode::FanOut, RetrievalMode::Auto]);
    plan.initial = dice.one_of(&[InitialPosition::TrimHorizon, InitialPosition::TrimHorizon, InitialPosition::Latest]);
    plan.short_numbers = dice.chance(0.5);
    plan.resharding = dice.one_of(&[Duration::ZERO, Duration::from_millis(500), Duration::from_secs(20)]);
    if dice.chance(0.2) {
        plan.write_budget = Some(dice.between(1.0, 5.0) * f64::from(plan.shards));
    }
    traffic(&mut plan, &dice);
    handling(&mut plan, &dice);
    processing(&mut plan);
    not_more_than_can_be_done(&mut plan);
    for service in Service::ALL {
        plan.rates.insert(service, rates(&dice));
    }
    for number in 0..plan.workers {
        if dice.chance(0.5) {
            plan.at(0.0, Chaos::ClockRate(number, dice.between(0.998, 1.002)));
        }
    }
    schedule(&mut plan, &dice);
    if plan.workers > 1 && dice.chance(0.4) {
        plan.ending = Ending::HealthyCore(1 + dice.below(plan.workers - 1));
    }
    crate::simulation::users::draw(&mut plan);
    super::aggregated::draw(&mut plan, 1);
    super::panicking::draw(&mut plan);
    plan
}

fn traffic(plan: &mut Plan, dice: &Dice) {
    plan.traffic.every = dice.skewed_seconds(0.3, 10.0);
    plan.traffic.keys = dice.one_of(&[1, 5, 50]);
    if dice.chance(0.4) {
        plan.traffic.poison = dice.one_of(&[1, 10, 50]);
        plan.traffic.failing = dice.one_of(&[0, 1, 20]);
    }
    if dice.chance(0.1) {
        plan.traffic.largest = (1 << 20) - 200;
    }
    if plan.initial == InitialPosition::Latest || dice.chance(0.2) {
        plan.traffic.from = dice.seconds(0.0, 60.0);
    }
}

fn handling(plan: &mut Plan, dice: &Dice) {
    plan.handling.longest = dice.skewed_seconds(0.001, 1.0);
    plan.handling.tells = if dice.chance(0.7) { Tells::InOrder } else { Tells::Nothing };
    plan.handling.manual = dice.chance(0.2);
    plan.handling.stall = dice.skewed_seconds(5.0, 200.0);
    for (rate, likely, most) in
        [(&mut plan.handling.stalls, 0.3, 0.02), (&mut plan.handling.errors, 0.4, 0.05), (&mut plan.handling.panics, 0.3, 0.02)]
    {
        if dice.chance(likely) {
            *rate = dice.between(0.0, most);
        }
    }
}

/// What came later draws for itself, so that older seeds are what they were.
fn processing(plan: &mut Plan) {
    let dice = Dice::new(plan.seed ^ 0x1a4e5);
    if dice.chance(0.4) {
        plan.handling.tells = dice.one_of(&[Tells::From, Tells::These]);
    }
    let lanes = dice.chance(0.4);
    if lanes && !plan.handling.manual {
        plan.handling.lanes = 2 + dice.below(8);
    }
    if plan.handling.manual {
        if dice.chance(0.2) {
            plan.handling.deadline = Some(dice.seconds(5.0, 20.0));
        }
        // A processor that is never called, as all of a key follows, never checkpoints.
        plan.handling.poisoned_key = dice.one_of(&[PoisonedKey::Wait, PoisonedKey::Pass]);
        return;
    }
    plan.handling.poisoned_key = dice.one_of(&[PoisonedKey::Wait, PoisonedKey::Wait, PoisonedKey::Pass, PoisonedKey::Follow]);
    if dice.chance(0.2) {
        plan.handling.deadline = Some(dice.seconds(5.0, 20.0));
    }
    if dice.chance(0.1) {
        plan.traffic.killer = Some(1 + dice.number() % 200);
    }
}

/// A fleet that is slower than its traffic never gets through, which is nobody's fault: even one record at a time must take less than its share.
pub(super) fn not_more_than_can_be_done(plan: &mut Plan) {
    let between = plan.traffic.every.as_secs_f64();
    let handling = &mut plan.handling;
    handling.longest = handling.longest.min(plan.traffic.every / 3);
    handling.stalls = handling.stalls.min(0.3 * between / handling.stall.as_secs_f64());
}

/// Each kind of fault is there in half of the runs: all at once would hide each other.
fn rates(dice: &Dice) -> FaultRates {
    let most = dice.one_of(&[0.0, 0.01, 0.03, 0.06]);
    let rate = || if dice.chance(0.5) { dice.between(0.0, most) } else { 0.0 };
    FaultRates {
        slow: rate(),
        error: rate(),
        throttled: rate(),
        dropped: rate(),
        lost_answer: rate(),
        applied_late: rate(),
        applied_twice: rate(),
        stale: rate(),
        broken_stream: rate(),
        refused_entry: 0.0,
    }
}

fn schedule(plan: &mut Plan, dice: &Dice) {
    let (end, duration) = (plan.duration.as_secs_f64(), plan.lease_duration.as_secs_f64());
    let mean = dice.between(20.0, 200.0);
    let mut now = dice.between(0.0, mean);
    // Machines beyond those of the start come into service later.
    let machines = plan.workers + 2;
    // Each run has its favourites.
    let kinds: Vec<usize> = (0..13).filter(|_| dice.chance(0.6)).collect();
    while now < end && !kinds.is_empty() {
        let number = dice.below(machines);
        let service = dice.one_of(&[Service::LeaseTable, Service::LeaseTable, Service::Stream, Service::DeadLetters]);
        let cut = dice.one_of(&[Cut::Requests, Cut::Answers]);
        let chaos = match dice.one_of(&kinds) {
            0 => Chaos::Start(number),
            1 => Chaos::Stop(number),
            2 => Chaos::Replace(number),
            3 => Chaos::Kill(number),
            4 => Chaos::KillAtPoll(number, 1 + dice.number() % 2_000),
            5 => Chaos::KillAfterWrite(number, 1 + dice.number() % 10),
            6 => Chaos::Freeze(number, dice.skewed_seconds(0.1, duration * 10.0)),
            // By up to three days: what the stream keeps, a day, is wrong by most of them.
            7 => Chaos::StepClock(number, i64::try_from(dice.number() % 518_400_000).unwrap_or(0) - 259_200_000),
            8 => Chaos::Split(dice.number()),
            9 => Chaos::Merge(dice.number()),
            10 => Chaos::Outage(service, dice.skewed_seconds(1.0, duration * 6.0)),
            11 => Chaos::Partition(number, service, cut, dice.skewed_seconds(1.0, duration * 6.0)),
            _ => Chaos::Burst(u32::try_from(dice.number() % 50).unwrap_or(1)),
        };
        // Machine 0 stays in service: somebody has to.
        if chaos != Chaos::Stop(0) {
            plan.at(now, chaos);
        }
        now += dice.between(0.0, 2.0 * mean);
    }
}
