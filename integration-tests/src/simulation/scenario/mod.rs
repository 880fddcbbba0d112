//! The scenarios: each makes a plan from a seed.

mod aggregated;
mod cut_off_alone;
mod dead_letter_queue_down;
mod dependency_outage;
mod emptied_table;
mod first_sync_reshard;
mod flapping_network;
mod frozen_worker;
mod half_done_aggregates;
mod mixed_fleet;
mod naive_users;
mod panicking;
mod process_killing_poison;
mod queue_away_for_days;
mod quiet_days;
mod random_mix;
mod recreated_stream;
mod reshard_storm;
mod rolling_deploy;
mod seek;
mod slow_keys;
mod table_outage;
mod thundering_start;
mod trimmed_behind;
mod trimmed_behind_later;
mod troubled_seek;
mod wide_mix;

use super::plan::{Options, Plan};

/// A way to make plans.
#[derive(Clone, Copy, Debug)]
pub struct Scenario {
    /// Its name, as on the command line.
    pub name: &'static str,
    /// What it tries.
    pub about: &'static str,
    /// Makes the plan of a seed.
    pub plan: fn(u64, &Options) -> Plan,
    /// How many seeds a run of all scenarios gives it, of each hundred.
    pub share: u32,
}

/// All of them.
pub const SCENARIOS: &[Scenario] = &[
    Scenario { name: "random-mix", about: "everything at once, in small fleets", plan: random_mix::small, share: 27 },
    Scenario { name: "wide-mix", about: "the same, and what users and operators do beside it", plan: wide_mix::plan, share: 3 },
    Scenario { name: "random-mix-large", about: "everything at once, in large fleets", plan: random_mix::large, share: 7 },
    Scenario { name: "naive-users", about: "services as ordinary users write them", plan: naive_users::plan, share: 12 },
    Scenario {
        name: "dependency-outage",
        about: "the users' database is away for up to half a day",
        plan: dependency_outage::plan,
        share: 3,
    },
    Scenario { name: "rolling-deploy", about: "every worker is replaced, one after the other", plan: rolling_deploy::plan, share: 4 },
    Scenario { name: "thundering-start", about: "200 workers start in the same second", plan: thundering_start::plan, share: 1 },
    Scenario { name: "table-outage", about: "the lease table is away for four hours", plan: table_outage::plan, share: 2 },
    Scenario { name: "reshard-storm", about: "shards split and merge faster than they are read", plan: reshard_storm::plan, share: 4 },
    Scenario {
        name: "process-killing-poison",
        about: "a record kills every process that touches it",
        plan: process_killing_poison::plan,
        share: 2,
    },
    Scenario {
        name: "dead-letter-queue-down",
        about: "the dead-letter queue is down for six hours",
        plan: dead_letter_queue_down::plan,
        share: 2,
    },
    Scenario {
        name: "queue-away-for-days",
        about: "the dead-letter queue is away for longer than the stream keeps records",
        plan: queue_away_for_days::plan,
        share: 1,
    },
    Scenario { name: "slow-keys", about: "keys that stand still, and processes that die meanwhile", plan: slow_keys::plan, share: 3 },
    Scenario {
        name: "half-done-aggregates",
        about: "processes die and shards are handed over in the middle of aggregates",
        plan: half_done_aggregates::plan,
        share: 3,
    },
    Scenario { name: "seek", about: "the application begins elsewhere, again and again, while it runs", plan: seek::plan, share: 4 },
    Scenario {
        name: "cut-off-alone",
        about: "workers are cut off from all services for minutes, again and again",
        plan: cut_off_alone::plan,
        share: 3,
    },
    Scenario {
        name: "emptied-table",
        about: "somebody empties the lease table, or deletes rows of it",
        plan: emptied_table::plan,
        share: 2,
    },
    Scenario {
        name: "mixed-fleet",
        about: "workers with different settings, and of another library, share a table",
        plan: mixed_fleet::plan,
        share: 2,
    },
    Scenario {
        name: "first-sync-reshard",
        about: "workers begin at LATEST while shards split and merge",
        plan: first_sync_reshard::plan,
        share: 3,
    },
    Scenario {
        name: "troubled-seek",
        about: "operators that are slow, cut off, frozen, wrong about the time, or die in the middle of a seek",
        plan: troubled_seek::plan,
        share: 0,
    },
    Scenario { name: "frozen-worker", about: "a worker stands still for ten lease durations", plan: frozen_worker::plan, share: 3 },
    Scenario {
        name: "flapping-network",
        about: "a worker's connection to the lease table comes and goes",
        plan: flapping_network::plan,
        share: 3,
    },
    Scenario { name: "trimmed-behind", about: "a stream is trimmed behind a fleet that was stopped", plan: trimmed_behind::plan, share: 2 },
    Scenario {
        name: "trimmed-behind-later",
        about: "the same, of an application that began at the tip or at an instant",
        plan: trimmed_behind_later::plan,
        share: 2,
    },
    Scenario {
        name: "recreated-stream",
        about: "the stream is deleted and made anew under the same name",
        plan: recreated_stream::plan,
        share: 2,
    },
    Scenario { name: "quiet-days", about: "thirty days in which little happens: nothing may grow", plan: quiet_days::plan, share: 0 },
];

/// The scenario of this name.
#[must_use]
pub fn named(name: &str) -> Option<&'static Scenario> {
    SCENARIOS.iter().find(|scenario| scenario.name == name)
}
