//! The application begins elsewhere, again and again, by the word of operators whose machines are slow, cut off, frozen or wrong about the time, and who die
//! half way; somebody asks for the same again each time.

use std::time::Duration;

use kcl_core::test_util::{Cut, Service};

use crate::simulation::plan::{Chaos, Dice, OperatorTrouble, Options, Plan};

pub(super) fn plan(seed: u64, options: &Options) -> Plan {
    let mut plan = super::seek::plan(seed, options);
    plan.scenario = "troubled-seek";
    let dice = Dice::new(seed ^ 0x07a0_b1ed);
    let seeks: Vec<_> = plan.schedule.iter().filter(|(_, chaos)| matches!(chaos, Chaos::Seek(_))).map(|(at, _)| at.as_secs_f64()).collect();
    for at in seeks {
        if dice.chance(0.5) {
            // A seek of some shards takes seconds then, and longer than a lease lasts at times.
            let slow = OperatorTrouble::Slow(dice.skewed_seconds(0.1, 1.9), dice.seconds(5.0, 120.0));
            plan.at(at, Chaos::Trouble(slow));
        }
        for _ in 0..dice.below(4) {
            let trouble = trouble(&dice, plan.lease_duration);
            plan.at(at + dice.skewed_seconds(0.005, 20.0).as_secs_f64(), Chaos::Trouble(trouble));
        }
    }
    plan.patience += Duration::from_secs(600);
    plan
}

fn trouble(dice: &Dice, lease: Duration) -> OperatorTrouble {
    let time = dice.skewed_seconds(0.5, lease.as_secs_f64() * 4.0);
    match dice.below(8) {
        0 => OperatorTrouble::Killed,
        1 | 2 => OperatorTrouble::KilledAfterWrite(1 + dice.number() % 6),
        3 => OperatorTrouble::Frozen(time),
        4 => OperatorTrouble::Cut(
            dice.one_of(&[Service::LeaseTable, Service::Stream]),
            dice.one_of(&[Cut::Requests, Cut::Answers]),
            time.min(Duration::from_secs(60)),
        ),
        5 => OperatorTrouble::CutAfterWrite(1 + dice.number() % 6, time.min(Duration::from_secs(60))),
        _ => OperatorTrouble::Clock(
            dice.one_of(&[0.5, 0.9, 1.1, 2.0]),
            i64::try_from(dice.number() % 518_400_000).unwrap_or(0) - 259_200_000,
        ),
    }
}
