//! The dead-letter queue is away for longer than the stream keeps records. A shard that waits for it loses what it has not read meanwhile, and says so;
//! where the policy lets other keys go on, they do.

use std::time::Duration;

use kcl_core::test_util::Service;
use kcl_core::{PoisonedKey, TrimmedData};

use crate::simulation::plan::{Chaos, Options, Plan, Tells};

pub(super) fn plan(seed: u64, options: &Options) -> Plan {
    let mut plan = Plan::calm("queue-away-for-days", seed, options);
    let dice = plan.dice();
    plan.idle_interval = Duration::from_secs(5);
    plan.traffic.every = Duration::from_secs(20);
    plan.traffic.keys = 200;
    plan.traffic.poison = 2;
    plan.traffic.panicking = dice.one_of(&[0, 1]);
    plan.handling.tells = dice.one_of(&[Tells::InOrder, Tells::Nothing, Tells::From, Tells::These]);
    plan.handling.lanes = dice.one_of(&[1, 4]);
    plan.handling.poisoned_key = dice.one_of(&[PoisonedKey::Wait, PoisonedKey::Pass]);
    if dice.chance(0.5) {
        plan.trimmed = TrimmedData::SkipAndAudit;
    }
    let (from, time) = (dice.between(60.0, 600.0), dice.between(25.0, 40.0) * 3_600.0);
    let back = from + time;
    plan.at(from, Chaos::Outage(Service::DeadLetters, Duration::from_secs_f64(time)));
    // Workers check the queue when they start: one that dies meanwhile stays away, and the others take its shards.
    let dies = dice.chance(0.3);
    if dies {
        plan.at(from + dice.between(0.0, 1.0) * time, Chaos::Kill(dice.below(plan.workers)));
    }
    // Those that wait for an operator's word get it an hour later, and are started anew.
    plan.at(back + 3_600.0, Chaos::Mend);
    for number in 0..plan.workers {
        plan.at(back + 3_601.0, Chaos::Replace(number));
    }
    plan.duration = Duration::from_secs_f64(back + 3_700.0);
    plan.patience = Duration::from_secs(900);
    if (plan.handling.lanes > 1 || plan.handling.poisoned_key == PoisonedKey::Pass) && !dies {
        plan.demands.other_keys = Some(Duration::from_secs(180));
    }
    plan
}
