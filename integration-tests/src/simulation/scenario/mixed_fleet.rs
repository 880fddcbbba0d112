//! Workers with different lease durations and limits share a lease table with each other, and with workers of the Java library that come and go. All of ours live: nothing is
//! taken from them, nor from the others while they have the right to be silent.

use std::time::Duration;

use kcl_core::RetrievalMode;

use crate::simulation::plan::{Chaos, Options, Plan};

pub(super) fn plan(seed: u64, options: &Options) -> Plan {
    let mut plan = Plan::calm("mixed-fleet", seed, options);
    let dice = plan.dice();
    plan.workers = options.workers.unwrap_or(2 + dice.below(3));
    plan.shards = options.shards.unwrap_or(2 + u32::try_from(dice.below(7)).unwrap_or(0));
    plan.retrieval = dice.one_of(&[RetrievalMode::Polling, RetrievalMode::FanOut]);
    let seconds: &[u64] = dice.one_of(&[&[10, 60], &[60, 10], &[3, 10], &[2, 5, 20], &[10]]);
    plan.lease_durations = seconds.iter().map(|seconds| Duration::from_secs(*seconds)).collect();
    // The longest: what is demanded in the end takes some of them.
    plan.lease_duration = plan.lease_durations.iter().copied().max().unwrap_or(plan.lease_duration);
    if dice.chance(0.4) {
        // One at least takes whatever is left.
        plan.most_leases = vec![usize::MAX];
        plan.most_leases.extend((1..plan.workers).map(|_| if dice.chance(0.5) { 1 + dice.below(2) } else { usize::MAX }));
    }
    plan.traffic.every = dice.seconds(0.5, 3.0);
    plan.handling.longest = Duration::from_millis(20);
    let rolling = dice.chance(0.6);
    let java = !rolling || dice.chance(0.5);
    let mut now = dice.between(30.0, 60.0);
    while now < 600.0 {
        if rolling && dice.chance(0.5) {
            plan.at(now, Chaos::Replace(dice.below(plan.workers)));
        }
        if java && dice.chance(0.7) {
            // Discovered within ten seconds, and renewed within three more.
            let silence = dice.seconds(0.5, 13.2);
            let renewals = 1 + u32::try_from(dice.below(12)).unwrap_or(0);
            plan.at(now + 3.0, Chaos::Assign(dice.number() >> 8, silence, renewals, dice.chance(0.5)));
        }
        now += dice.between(10.0, 60.0);
    }
    plan.duration = options.duration(Duration::from_secs(700));
    plan.demands.nobody_dies = true;
    plan
}
