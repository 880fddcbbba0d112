//! A stream is trimmed behind a stopped fleet of an application that began at the tip or at an instant: its leases have no checkpoint at first, and the
//! gap is not passed in silence all the same.

use kcl_core::{InitialPosition, Timestamp};

use crate::simulation::plan::{BEGINS_MILLIS, Dice, Options, Plan};

pub(super) fn plan(seed: u64, options: &Options) -> Plan {
    let mut plan = super::trimmed_behind::plan(seed, options);
    plan.scenario = "trimmed-behind-later";
    let dice = Dice::new(seed ^ 0x0007_a7e5);
    // From an hour before the stream was made to a second after.
    let instant = Timestamp::from_millis(BEGINS_MILLIS - 3_600_000 + dice.number() % 3_601_000);
    plan.initial = if dice.chance(0.5) { InitialPosition::Latest } else { InitialPosition::AtTimestamp(instant) };
    plan
}
