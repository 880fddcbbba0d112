//! The mix of everything, and beside it what the older mix never makes: records that panic, letters that are refused one by one, answers that are lost
//! after a certain write, beginnings under load, listings that lag, short handoffs, small slow batches before a deadly record, processors that stop, and
//! operators who pause and resume. Each draw has a source of its own, so that another one more changes none of the others.

use std::time::Duration;

use kcl_core::test_util::Service;
use kcl_core::{InitialPosition, Timestamp};

use crate::simulation::plan::{BEGINS_MILLIS, Chaos, Dice, Options, Plan, Tells};
use crate::simulation::users::{Way, employ};

/// A part of the draws, and how likely it is.
type Part = (f64, fn(&mut Plan, &Dice));

const PARTS: [Part; 21] = [
    (0.25, panicking_records),
    (0.35, letters_refused_one_by_one),
    (0.4, answers_lost_after_a_write),
    (0.2, begins_with_a_burst),
    (0.2, begins_at_an_instant),
    (0.2, freezes_at_the_start),
    (0.25, listings_lag),
    (0.25, creations_come_late),
    (0.2, short_handoffs),
    (0.15, deadly_record_after_small_batches),
    (0.15, acknowledgements_in_no_order),
    (0.15, processors_stop),
    (0.1, valve_closes),
    (0.1, commits),
    (0.1, two_phases),
    (0.2, batches_wait),
    (0.15, records_age),
    (0.1, skips_to_the_latest),
    (0.2, pauses),
    (0.25, limits_of_the_account),
    (0.15, large_records),
];

pub(super) fn plan(seed: u64, options: &Options) -> Plan {
    let mut plan = super::random_mix::small(seed, options);
    plan.scenario = "wide-mix";
    for (place, (likely, part)) in (1..).zip(PARTS) {
        let dice = Dice::new(seed ^ (0x00d1_de00_u64 + place).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        if dice.chance(likely) {
            part(&mut plan, &dice);
        }
    }
    fit(&mut plan);
    plan
}

/// Takes back what does not go together.
fn fit(plan: &mut Plan) {
    let handling = &mut plan.handling;
    if !handling.way.survives_panics() {
        plan.traffic.panicking = 0;
    }
    if let Some(handoff) = handling.handoff {
        handling.deadline = handling.deadline.map(|deadline| deadline.min(handoff));
    }
    if handling.manual {
        handling.skip_beyond = None;
    }
    super::random_mix::not_more_than_can_be_done(plan);
    if plan.traffic.poison + plan.traffic.failing + plan.traffic.panicking > 10
        && let Some(rates) = plan.rates.get_mut(&Service::DeadLetters)
    {
        // Else the queue takes fewer letters than there are.
        rates.refused_entry = rates.refused_entry.min(0.3);
    }
    plan.handling.database.stalls = plan.handling.database.stalls.min(plan.handling.stalls);
}

/// Lets the service be the model, which draws its own troubles.
fn model(plan: &mut Plan) {
    plan.handling.way = Way::Model;
    plan.handling.manual = false;
}

fn some_machine(plan: &Plan, dice: &Dice) -> usize {
    dice.below(plan.workers + 1)
}

/// Instants of the run, with this mean time between them.
fn instants(plan: &Plan, dice: &Dice, mean: f64) -> Vec<f64> {
    let (mut now, mut all) = (dice.between(0.0, mean), Vec::new());
    while now < plan.duration.as_secs_f64() {
        all.push(now);
        now += dice.between(0.0, 2.0 * mean);
    }
    all
}

fn panicking_records(plan: &mut Plan, dice: &Dice) {
    plan.traffic.panicking = dice.one_of(&[2, 20]);
}

fn letters_refused_one_by_one(plan: &mut Plan, dice: &Dice) {
    plan.rates.entry(Service::DeadLetters).or_default().refused_entry = dice.one_of(&[0.1, 0.4, 0.8]);
    plan.traffic.poison = plan.traffic.poison.max(dice.one_of(&[10, 50]));
}

fn answers_lost_after_a_write(plan: &mut Plan, dice: &Dice) {
    let mean = dice.between(30.0, 200.0);
    for at in instants(plan, dice, mean) {
        let time = dice.skewed_seconds(0.5, plan.lease_duration.as_secs_f64() * 4.0);
        let machine = some_machine(plan, dice);
        plan.at(at, Chaos::CutAfterWrite(machine, 1 + dice.number() % 8, time));
    }
}

fn begins_with_a_burst(plan: &mut Plan, dice: &Dice) {
    plan.initial = InitialPosition::Latest;
    plan.traffic.from = Duration::ZERO;
    for _ in 0..1 + dice.below(3) {
        plan.at(dice.between(0.0, 1.0), Chaos::Burst(1 + u32::try_from(dice.number() % 20).unwrap_or(0)));
    }
}

fn begins_at_an_instant(plan: &mut Plan, dice: &Dice) {
    // From a minute before the stream was made to a minute after: workers that find it in the future are started again.
    plan.initial = InitialPosition::AtTimestamp(Timestamp::from_millis(BEGINS_MILLIS - 60_000 + dice.number() % 120_000));
    plan.traffic.from = Duration::ZERO;
}

fn freezes_at_the_start(plan: &mut Plan, dice: &Dice) {
    for _ in 0..1 + dice.below(3) {
        let (machine, time) = (dice.below(plan.workers), dice.skewed_seconds(0.1, plan.lease_duration.as_secs_f64() * 3.0));
        plan.at(dice.skewed_seconds(0.005, 3.0).as_secs_f64(), Chaos::Freeze(machine, time));
    }
}

fn listings_lag(plan: &mut Plan, dice: &Dice) {
    for at in instants(plan, dice, 200.0) {
        plan.at(at, Chaos::ListingsLag(dice.skewed_seconds(2.0, 60.0), dice.skewed_seconds(10.0, 300.0)));
        if dice.chance(0.7) {
            // What they don't show yet.
            plan.at(at + dice.between(0.0, 10.0), if dice.chance(0.5) { Chaos::Split(dice.number()) } else { Chaos::Merge(dice.number()) });
        }
    }
}

fn creations_come_late(plan: &mut Plan, dice: &Dice) {
    if dice.chance(0.5) {
        plan.at(0.0, Chaos::CreationsLate(dice.seconds(0.1, 20.0)));
    }
    for at in instants(plan, dice, 200.0) {
        plan.at(at, Chaos::CreationsLate(dice.skewed_seconds(5.0, 120.0)));
        plan.at(at + dice.between(0.0, 10.0), if dice.chance(0.7) { Chaos::Split(dice.number()) } else { Chaos::Merge(dice.number()) });
    }
}

fn short_handoffs(plan: &mut Plan, dice: &Dice) {
    plan.handling.handoff = Some(dice.seconds(1.0, 5.0));
    plan.handling.stall = dice.skewed_seconds(3.0, 40.0);
    plan.handling.stalls = 0.2;
    plan.rates.entry(Service::LeaseTable).or_default().slow = dice.one_of(&[0.02, 0.1, 0.3]);
    for at in instants(plan, dice, 60.0) {
        let machine = some_machine(plan, dice);
        plan.at(at, if dice.chance(0.5) { Chaos::Start(machine) } else { Chaos::Replace(machine) });
    }
}

/// The process dies seconds after it has taken the shard, and has written a checkpoint or two in between.
fn deadly_record_after_small_batches(plan: &mut Plan, dice: &Dice) {
    model(plan);
    plan.traffic.killer = Some(1 + dice.number() % 60);
    plan.traffic.every = plan.traffic.every.max(Duration::from_secs(6));
    plan.handling.longest = dice.seconds(0.5, 2.0);
    plan.handling.batch = Some(dice.one_of(&[1, 2, 3]));
    plan.handling.wait_for = None;
}

fn acknowledgements_in_no_order(plan: &mut Plan, _: &Dice) {
    model(plan);
    plan.handling.tells = Tells::AnyOrder;
}

fn processors_stop(plan: &mut Plan, dice: &Dice) {
    model(plan);
    plan.handling.stops = dice.one_of(&[0.002, 0.02]);
    for at in instants(plan, dice, 120.0) {
        plan.at(at, Chaos::ResumeStopped);
    }
}

fn valve_closes(plan: &mut Plan, dice: &Dice) {
    plan.handling.valve = Some(dice.one_of(&[(10, 2), (20, 5), (50, 5)]));
    plan.traffic.poison = plan.traffic.poison.max(50);
    for at in instants(plan, dice, 60.0) {
        plan.at(at, Chaos::ResumeStopped);
    }
}

fn commits(plan: &mut Plan, _: &Dice) {
    let (waits, tells) = (plan.handling.stops > 0.0, plan.handling.tells == Tells::AnyOrder);
    if !waits && !tells {
        employ(plan, Way::Commits);
    }
}

fn two_phases(plan: &mut Plan, _: &Dice) {
    let (waits, tells) = (plan.handling.stops > 0.0, plan.handling.tells == Tells::AnyOrder);
    if !waits && !tells {
        employ(plan, Way::TwoPhases);
    }
}

fn batches_wait(plan: &mut Plan, dice: &Dice) {
    plan.handling.wait_for = Some((2 + dice.below(30), dice.skewed_seconds(0.2, 30.0)));
}

fn records_age(plan: &mut Plan, dice: &Dice) {
    plan.handling.max_age = Some(dice.skewed_seconds(1.0, 120.0));
    plan.traffic.failing = plan.traffic.failing.max(10);
    if dice.chance(0.5) && plan.handling.valve.is_none() {
        // Others tell whose fault it is then: few may be bad, and of many keys.
        plan.handling.default_retries = true;
        (plan.traffic.poison, plan.traffic.panicking, plan.traffic.failing, plan.traffic.keys) = (0, 0, 1, 50);
        plan.patience += Duration::from_secs(3_600);
    }
}

fn skips_to_the_latest(plan: &mut Plan, dice: &Dice) {
    plan.handling.skip_beyond = Some(dice.skewed_seconds(5.0, 200.0));
}

fn pauses(plan: &mut Plan, dice: &Dice) {
    let stops = plan.handling.stops > 0.0 || plan.handling.valve.is_some();
    for at in instants(plan, dice, 100.0) {
        let machine = some_machine(plan, dice);
        // Who resumes a shard takes its stop away as well.
        let shard = (!stops && dice.chance(0.5)).then(|| dice.number());
        plan.at(at, Chaos::Pause(machine, shard));
        plan.at(at + dice.skewed_seconds(0.1, 400.0).as_secs_f64(), Chaos::Resume(machine));
    }
}

fn limits_of_the_account(plan: &mut Plan, dice: &Dice) {
    plan.limits = vec![
        ("kinesis:DescribeStreamSummary", dice.one_of(&[1, 20])),
        ("kinesis:ListShards", dice.one_of(&[1, 5, 1_000])),
        ("kinesis:GetShardIterator", dice.one_of(&[2, 5, 1_000])),
        ("kinesis:SubscribeToShard", dice.one_of(&[1, 5])),
    ];
    plan.neighbour = dice.one_of(&[0, 1, 3, 4]);
}

fn large_records(plan: &mut Plan, dice: &Dice) {
    plan.traffic.largest = (1 << 20) - 200;
    plan.prefetch = dice.one_of(&[10 << 20, 24 << 20]);
    for at in instants(plan, dice, 300.0) {
        plan.at(at, Chaos::Burst(20 + u32::try_from(dice.number() % 40).unwrap_or(0)));
    }
}
