//! A few workers, or one alone, are cut off from the lease table and from the stream for minutes, again and again. After each time all shards go on: whatever
//! a worker wanted to do when it was cut off, a release above all, it remembers or finds out anew. Calls that hang outlive their terms meanwhile.

use std::time::Duration;

use kcl_core::RetrievalMode;
use kcl_core::test_util::{Cut, Service};

use crate::simulation::plan::{Chaos, Options, Plan};
use crate::simulation::users::{Way, employ};

pub(super) fn plan(seed: u64, options: &Options) -> Plan {
    let mut plan = Plan::calm("cut-off-alone", seed, options);
    let dice = plan.dice();
    plan.workers = options.workers.unwrap_or(dice.one_of(&[1, 1, 2, 3]));
    plan.shards = options.shards.unwrap_or(1 + u32::try_from(dice.below(4)).unwrap_or(0));
    plan.lease_duration = Duration::from_secs(dice.one_of(&[2, 3, 5, 10]));
    plan.retrieval = dice.one_of(&[RetrievalMode::Polling, RetrievalMode::FanOut, RetrievalMode::Auto]);
    plan.traffic.every = dice.seconds(0.5, 5.0);
    plan.handling.longest = dice.skewed_seconds(0.001, 0.5);
    plan.handling.lanes = dice.one_of(&[1, 1, 4]);
    let ways: Vec<_> = Way::NAIVE.into_iter().filter(|way| way.is_quick()).collect();
    employ(&mut plan, dice.one_of(&ways));
    if dice.chance(0.4) {
        // A call that never ends holds its worker up until somebody takes the shard, or the process is replaced: both come.
        plan.handling.hangs = 0.005;
        plan.handling.deadline = dice.one_of(&[None, Some(Duration::from_secs(20))]);
    }
    // Who is cut off can't know that its term is over.
    plan.demands.calls_end = Some(Duration::from_secs(1_100));
    let mut now = dice.between(20.0, 60.0);
    for _ in 0..1 + dice.below(2) {
        let time = dice.seconds(300.0, 900.0);
        for number in 0..plan.workers {
            // All of them, most of the time; one that is left takes what the others had.
            if number > 0 && dice.chance(0.2) {
                continue;
            }
            for service in [Service::LeaseTable, Service::Stream] {
                let cut = dice.one_of(&[Cut::Requests, Cut::Answers]);
                plan.at(now + dice.between(0.0, 8.0), Chaos::Partition(number, service, cut, time));
            }
        }
        if dice.chance(0.3) {
            plan.at(now + dice.between(0.0, time.as_secs_f64()), Chaos::Kill(dice.below(plan.workers)));
        }
        now += time.as_secs_f64() + dice.between(30.0, 300.0);
    }
    if plan.handling.hangs > 0.0 {
        for number in 0..plan.workers {
            plan.at(now - dice.between(5.0, 25.0), Chaos::Replace(number));
        }
    }
    plan.duration = options.duration(Duration::from_secs_f64(now));
    // A worker that reads nothing, and knows of no other, lets go after five minutes.
    plan.patience = Duration::from_secs(420);
    plan
}
