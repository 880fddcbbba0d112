//! Results of many runs: added up, printed, and as JSON.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::Duration;

use serde::Serialize;

use super::run::Outcome;

/// States of interest: runs that never reach one of them show nothing about it.
pub const STATES: [&str; 23] = [
    "broken aggregate set aside",
    "dead letter accepted",
    "gap audited",
    "handed over",
    "handed over inside an aggregate",
    "handoff cut short",
    "lease deleted",
    "merged shard ended",
    "note of what is finished inside an aggregate",
    "own write recognised",
    "process killed",
    "process killed by its record",
    "processor lost",
    "record of an aggregate tried alone",
    "record of another shard delivered",
    "released",
    "shard ended",
    "taken over",
    "term began inside an aggregate",
    "trimmed records skipped",
    "users' code hangs",
    "users' code panics",
    "write refused",
];

/// A run that failed.
#[derive(Clone, Debug, Serialize)]
pub struct Failure {
    /// The scenario.
    pub scenario: String,
    /// The seed.
    pub seed: u64,
    /// The invariant that was broken.
    pub invariant: String,
    /// What happened.
    pub message: String,
    /// The shortest schedule found with which it fails.
    pub schedule: Vec<String>,
    /// The command that carries it out again.
    pub replay: String,
}

/// What the runs of one scenario, or of all, came to.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Totals {
    /// Runs.
    pub seeds: u64,
    /// Time simulated, in hours.
    pub simulated_hours: f64,
    /// Time that the runs took, all threads added up, in seconds.
    pub run_seconds: f64,
    /// Faults by kind.
    pub faults: BTreeMap<&'static str, u64>,
    /// States of interest that were reached.
    pub states: BTreeMap<&'static str, u64>,
    /// Records that came again although they were finished and their shard was released in order.
    pub repeated: u64,
    /// Runs that failed.
    pub failed: u64,
}

impl Totals {
    /// Adds a run.
    pub fn add(&mut self, outcome: &Outcome) {
        self.seeds += 1;
        self.simulated_hours += outcome.simulated.as_secs_f64() / 3600.0;
        self.run_seconds += outcome.wall.as_secs_f64();
        for (into, from) in [(&mut self.faults, &outcome.faults), (&mut self.states, &outcome.states)] {
            for (kind, count) in from {
                *into.entry(kind).or_default() += count;
            }
        }
        self.repeated += outcome.repeated;
        self.failed += u64::from(outcome.violation.is_some());
    }
}

/// All of it.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Report {
    /// Runs.
    pub seeds: u64,
    /// Time simulated, in hours.
    pub simulated_hours: f64,
    /// Time from the first run's start to the last one's end, in seconds.
    pub wall_seconds: f64,
    /// Faults by kind.
    pub faults: BTreeMap<&'static str, u64>,
    /// Runs that failed.
    pub failures: Vec<Failure>,
    /// By scenario.
    pub scenarios: BTreeMap<&'static str, Totals>,
}

impl Report {
    /// Adds a run.
    pub fn add(&mut self, scenario: &'static str, outcome: &Outcome) {
        self.scenarios.entry(scenario).or_default().add(outcome);
        self.seeds += 1;
        self.simulated_hours += outcome.simulated.as_secs_f64() / 3600.0;
        for (kind, count) in &outcome.faults {
            *self.faults.entry(kind).or_default() += count;
        }
    }

    /// States of interest that were never reached.
    #[must_use]
    pub fn unreached(&self) -> Vec<&'static str> {
        let reached = |state: &&str| self.scenarios.values().any(|totals| totals.states.contains_key(*state));
        STATES.into_iter().filter(|state| !reached(state)).collect()
    }

    /// In words, when all runs have ended.
    #[must_use]
    pub fn in_words(&mut self, wall: Duration) -> String {
        self.wall_seconds = wall.as_secs_f64();
        let mut text = String::new();
        // Text is written to memory without failure.
        let _ = writeln!(text, "\n  {:<24}{:>7}{:>12}{:>10}{:>10}{:>10}", "scenario", "seeds", "hours", "seconds", "x real", "failed");
        for (name, totals) in &self.scenarios {
            let speed = totals.simulated_hours * 3600.0 / totals.run_seconds.max(1e-9);
            let _ = writeln!(
                text,
                "  {name:<24}{:>7}{:>12.1}{:>10.1}{speed:>10.0}{:>10}",
                totals.seeds, totals.simulated_hours, totals.run_seconds, totals.failed
            );
        }
        let _ = writeln!(
            text,
            "  {:<24}{:>7}{:>12.1}{:>10.1}{:>10}{:>10}\n",
            "all",
            self.seeds,
            self.simulated_hours,
            self.wall_seconds,
            "",
            self.failures.len()
        );
        let _ = writeln!(text, "  faults: {}", listed(&self.faults));
        let mut states: BTreeMap<&str, u64> = BTreeMap::new();
        for totals in self.scenarios.values() {
            for (state, count) in &totals.states {
                *states.entry(state).or_default() += count;
            }
        }
        let _ = writeln!(text, "  reached: {}", listed(&states));
        text
    }
}

fn listed(counts: &BTreeMap<&str, u64>) -> String {
    counts.iter().map(|(name, count)| format!("{name} {count}")).collect::<Vec<_>>().join(", ")
}
