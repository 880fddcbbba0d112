//! Bugs that are put into the libraries on purpose, and how many seeds it takes to find each: the test of the simulator itself.

#[cfg(feature = "planted-bugs")]
pub use self::search::find;

/// Finds the bug of this name, or all of them.
///
/// # Errors
/// This build has no bugs.
#[cfg(not(feature = "planted-bugs"))]
pub fn find(_name: &str, _scenario: Option<&str>, _seeds: u64, _from: u64) -> anyhow::Result<bool> {
    anyhow::bail!("this build has no bugs to put in: build it with `--features planted-bugs`")
}

#[cfg(feature = "planted-bugs")]
mod search {
    use std::sync::Mutex;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use anyhow::Context;
    use kcl_checkpoint::planted::{Bug, plant};

    use crate::simulation::plan::Options;
    use crate::simulation::run::{Detail, run};
    use crate::simulation::scenario::named;
    use crate::simulation::{Plan, Violation};

    /// What is searched, one seed of each after the other: the same for all bugs.
    const SEARCHED: [&str; 36] = [
        "random-mix",
        "naive-users",
        "wide-mix",
        "reshard-storm",
        "first-sync-reshard",
        "random-mix",
        "naive-users",
        "frozen-worker",
        "wide-mix",
        "half-done-aggregates",
        "cut-off-alone",
        "naive-users",
        "trimmed-behind",
        "first-sync-reshard",
        "random-mix",
        "mixed-fleet",
        "wide-mix",
        "recreated-stream",
        "naive-users",
        "flapping-network",
        "emptied-table",
        "table-outage",
        "first-sync-reshard",
        "dead-letter-queue-down",
        "rolling-deploy",
        "cut-off-alone",
        "process-killing-poison",
        "naive-users",
        "slow-keys",
        "wide-mix",
        "seek",
        "troubled-seek",
        "dependency-outage",
        "first-sync-reshard",
        "emptied-table",
        "half-done-aggregates",
    ];

    /// A bug that was found.
    struct Found {
        bug: Bug,
        seeds: u64,
        scenario: &'static str,
        seed: u64,
        violation: Violation,
    }

    fn plan(scenarios: &[&str], place: u64, from: u64) -> Plan {
        let name = scenarios[usize::try_from(place % scenarios.len() as u64).unwrap_or(0)];
        let scenario = named(name).expect("invariant: the scenarios that are searched exist");
        (scenario.plan)(from + place, &Options::default())
    }

    /// Runs seed after seed until one fails, at most so many.
    fn search(bug: Bug, scenarios: &[&str], seeds: u64, from: u64) -> Option<Found> {
        plant(Some(bug));
        let found = (0..seeds).find_map(|place| {
            let plan = plan(scenarios, place, from);
            let violation = run(&plan, Detail::Logs).violation?;
            plant(None);
            let without = run(&plan, Detail::Logs).violation;
            plant(Some(bug));
            if let Some(other) = without {
                println!("  {} {} fails without any bug: {other}", plan.scenario, plan.seed);
                return None;
            }
            Some(Found { bug, seeds: place + 1, scenario: plan.scenario, seed: plan.seed, violation })
        });
        plant(None);
        found
    }

    /// Finds the bug of this name, or all of them, in at most so many seeds each, of one scenario or of several in turns; prints what found it. `false`: one
    /// was not found.
    ///
    /// # Errors
    /// There is none of this name, or no such scenario.
    ///
    /// # Panics
    /// If a thread does.
    pub fn find(name: &str, scenario: Option<&str>, seeds: u64, from: u64) -> anyhow::Result<bool> {
        if let Some(scenario) = scenario {
            super::super::scenario::named(scenario).with_context(|| format!("no scenario `{scenario}`: `--list` names them"))?;
        }
        let one: Vec<_> = scenario.into_iter().collect();
        let scenarios: &[&str] = if one.is_empty() { &SEARCHED } else { &one };
        let named = |bug: &&Bug| name == "all" || bug.name() == name;
        let bugs: Vec<_> = Bug::ALL.iter().filter(named).copied().collect();
        let names = || Bug::ALL.iter().map(|bug| bug.name()).collect::<Vec<_>>().join(", ");
        bugs.first().with_context(|| format!("no bug `{name}`; there are {}", names()))?;
        let (next, results) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
        println!("  {:<32}{:>6}  found by", "bug", "seeds");
        std::thread::scope(|scope| {
            for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
                scope.spawn(|| {
                    while let Some(bug) = bugs.get(next.fetch_add(1, Ordering::Relaxed)) {
                        let found = search(*bug, scenarios, seeds, from);
                        match &found {
                            Some(found) => {
                                let Found { bug, seeds, scenario, seed, violation } = found;
                                let words: String = violation.to_string().chars().take(150).collect();
                                println!("  {:<32}{seeds:>6}  {scenario} {seed}: {words}", bug.name());
                            }
                            None => println!("  {:<32}{seeds:>6}  NOT FOUND", bug.name()),
                        }
                        results.lock().expect("nobody panics with it").push(found.map(|found| found.seeds));
                    }
                });
            }
        });
        let results = results.into_inner().expect("nobody panics with it");
        let mut taken: Vec<_> = results.iter().flatten().copied().collect();
        taken.sort_unstable();
        let median = taken.get(taken.len() / 2).copied().unwrap_or(0);
        println!("\n  {} of {} bugs found; median {median} seeds, most {}", taken.len(), bugs.len(), taken.last().copied().unwrap_or(0));
        Ok(taken.len() == bugs.len())
    }
}
