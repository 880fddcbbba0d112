//! A process is killed after every single write that it makes during one reshard, one takeover, one release, one dead letter: exhaustive, not
//! random. Each run must lose nothing, leave no hole, and end with everything finished.

use std::time::Duration;

use integration_tests::simulation::plan::{Aggregates, Chaos, Options, Tells};
use integration_tests::simulation::{Detail, Plan, run};
use kcl_core::RetrievalMode;

/// When it begins, in seconds.
const BEGIN: f64 = 60.0;

/// Kills a machine after its first write from [`BEGIN`] on, then after its second, until it makes fewer. Returns how many there were.
fn after_every_write(machine: usize, scene: impl Fn(&mut Plan)) -> u64 {
    for writes in 1.. {
        let mut plan = Plan::calm("crash-points", 11, &Options { workers: Some(2), shards: Some(2), ..Options::default() });
        plan.traffic.every = Duration::from_secs(2);
        plan.duration = Duration::from_secs_f64(BEGIN + 75.0);
        plan.idle_interval = Duration::from_secs(2);
        plan.at(BEGIN - 0.001, Chaos::KillAfterWrite(machine, writes));
        scene(&mut plan);
        let outcome = run(&plan, Detail::Little);
        assert_eq!(outcome.violation, None, "killed after write {writes} of machine {machine}\n{}", outcome.trace.tail(60));
        if outcome.states.get("process killed").copied().unwrap_or(0) < killed_by_the_scene(&plan) + 1 {
            return writes - 1;
        }
    }
    unreachable!("a run has an end, and so have its writes")
}

fn killed_by_the_scene(plan: &Plan) -> u64 {
    plan.schedule.iter().filter(|(_, chaos)| matches!(chaos, Chaos::Kill(_))).count() as u64
}

#[test]
fn of_a_split_and_of_a_merge() {
    for retrieval in [RetrievalMode::Polling, RetrievalMode::FanOut] {
        for machine in [0, 1] {
            let writes = after_every_write(machine, |plan| {
                plan.retrieval = retrieval;
                plan.at(BEGIN, Chaos::Split(0));
                plan.at(BEGIN + 10.0, Chaos::Merge(1));
            });
            assert!(writes >= 20, "{retrieval:?} {machine}: {writes}");
        }
    }
}

#[test]
fn of_a_takeover() {
    let writes = after_every_write(1, |plan| plan.at(BEGIN, Chaos::Kill(0)));
    assert!(writes >= 20, "{writes}");
}

#[test]
fn of_an_orderly_release_and_of_who_takes_what_was_released() {
    let stops = after_every_write(0, |plan| plan.at(BEGIN, Chaos::Stop(0)));
    assert!(stops >= 1, "{stops}");
    let takes = after_every_write(1, |plan| plan.at(BEGIN, Chaos::Stop(0)));
    assert!(takes >= 20, "{takes}");
}

/// Each checkpoint is inside an aggregate, or at the end of one.
#[test]
fn of_aggregates() {
    for (lanes, one_key) in [(1, 1000), (3, 0)] {
        let writes = after_every_write(0, |plan| {
            plan.traffic.every = Duration::from_millis(500);
            plan.traffic.poison = 50;
            plan.traffic.aggregates = Some(Aggregates { share: 900, most: 8, one_key, elsewhere: 200, broken: 100 });
            plan.handling.batch = Some(1);
            plan.handling.lanes = lanes;
            plan.handling.longest = Duration::from_secs(1);
        });
        assert!(writes >= 20, "{lanes}: {writes}");
    }
}

#[test]
fn of_a_dead_letter() {
    for tells in [Tells::InOrder, Tells::Nothing, Tells::These] {
        let writes = after_every_write(0, |plan| {
            plan.traffic.poison = 300;
            plan.handling.tells = tells;
        });
        assert!(writes >= 20, "{writes}");
    }
}
