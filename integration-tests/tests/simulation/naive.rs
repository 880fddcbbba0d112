//! Services as ordinary users write them: whichever way it is, no record is lost, and keys are in order.

use std::time::Duration;

use integration_tests::simulation::users::Way;
use integration_tests::simulation::{Detail, Options, Plan, run, scenario};

fn plan(seed: u64, minutes: u64) -> Plan {
    let options = Options { minutes: Some(minutes), ..Options::default() };
    (scenario::named("naive-users").expect("a scenario").plan)(seed, &options)
}

#[test]
fn every_way_is_drawn_by_a_seed_of_its_own_and_passes() {
    let seeds = 0..Way::NAIVE.len() as u64;
    for (seed, way) in seeds.zip(Way::NAIVE) {
        let plan = plan(seed, 5);
        assert_eq!(plan.handling.way, way);
        let outcome = run(&plan, Detail::Little);
        assert_eq!(outcome.violation, None, "{way:?}, seed {seed}");
    }
}

/// An effect is what counts: a record that a processor calls done, and has not stored, is missed.
#[test]
fn a_service_that_stores_nothing_is_found_out() {
    let mut plan = plan(0, 2);
    plan.handling.database.outages.push((Duration::ZERO, Duration::MAX));
    plan.handling.queue = false;
    let violation = run(&plan, Detail::Little).violation.expect("records are missing");
    assert_eq!(violation.invariant, "L2", "{violation}");
}
