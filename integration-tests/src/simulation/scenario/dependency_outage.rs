//! The users' database is away, for seconds or for half a day, at once or again and again, under the
//! default retry policy: no good record goes to the dead-letter queue, all of them are processed soon
//! after, and the few records that are truly bad are dead-lettered.

use std::time::Duration;

use crate::simulation::plan::{Chaos, Dice, Options, Plan};
use crate::simulation::users::{Way, employ};

/// Ways that leave the retries to the library.
const WAYS: [Way; 8] = [
    Way::GatherThenWrite,
    Way::WriteInChunks,
    Way::TryJoinAll,
    Way::ForEach,
    Way::AckEach,
    Way::FailedFrom,
    Way::StoresRecords,
    Way::StoresMessages,
];

pub(super) fn plan(seed: u64, options: &Options) -> Plan {
    let mut plan = Plan::calm("dependency-outage", seed, options);
    let dice = plan.dice();
    plan.workers = options.workers.unwrap_or(1 + dice.below(2));
    plan.shards = options.shards.unwrap_or(1 + u32::try_from(dice.below(4)).unwrap_or(0));
    let (from, time) = (dice.seconds(30.0, 60.0), dice.skewed_seconds(2.0, 12.0 * 3600.0));
    // At most some thousand records wait in the end.
    plan.traffic.every = (time / 2_000).max(Duration::from_millis(500));
    plan.idle_interval = Duration::from_secs(5).min(plan.traffic.every * 10);
    plan.handling.lanes = dice.one_of(&[1, 1, 8]);
    plan.handling.longest = Duration::from_millis(50);
    plan.handling.default_retries = true;
    let until = from + time;
    let expected = |time: Duration| (time.as_secs_f64() / plan.traffic.every.as_secs_f64()).max(1.0);
    // Before the outage, in it, or after it.
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a small positive number")]
    let bad = |dice: &Dice| dice.between(1.0, expected(until)) as u64;
    plan.traffic.bad = (0..dice.one_of(&[1, 1, 2, 3])).map(|_| bad(&dice)).collect();
    // What tells bad records from an outage is that others succeed, of keys that wait for no bad one: where records are rare it takes a while until there are some.
    plan.traffic.keys = 40;
    plan.duration = until + Duration::from_secs(120).max(plan.traffic.every * 120);
    plan.patience = Duration::from_secs(900);
    employ(&mut plan, dice.one_of(&WAYS));
    plan.handling.database.outages = if dice.chance(0.5) { flapping(&dice, from, until) } else { vec![(from, until)] };
    // A death in an outage, when no checkpoint moves, makes the next owner careful.
    for _ in 0..dice.one_of(&[0, 0, 1, 2]) {
        plan.at(dice.between(from.as_secs_f64(), until.as_secs_f64()), Chaos::Kill(dice.below(plan.workers)));
    }
    plan.demands.good_letters = Some(0);
    plan
}

/// Outages in a row, with short times between them in which the database answers.
fn flapping(dice: &Dice, from: Duration, until: Duration) -> Vec<(Duration, Duration)> {
    let (mut outages, mut begin) = (Vec::new(), from);
    while begin < until && outages.len() < 100 {
        let end = (begin + dice.skewed_seconds(1.0, 300.0)).min(until);
        outages.push((begin, end));
        begin = end + dice.skewed_seconds(0.5, 60.0);
    }
    outages
}
