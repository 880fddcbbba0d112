//! Cuts a failing plan down: to plain records, the fewest entries of its schedule, and the fewest kinds of faults, with which it still fails in the
//! same way.

use kcl_core::test_util::FaultKind;

use super::plan::Plan;
use super::run::{Detail, Outcome, run};

/// A plan that fails, cut down.
#[derive(Clone, Debug)]
pub struct Shrunk {
    /// The plan.
    pub plan: Plan,
    /// The entries of the original schedule that are left, by their place.
    pub kept: Vec<usize>,
    /// Kinds of faults that it fails without.
    pub without: Vec<FaultKind>,
    /// Whether it fails without aggregates.
    pub plain: bool,
    /// Runs that it took.
    pub runs: u32,
}

/// Cuts the plan down in at most so many runs. `original` is its outcome.
#[must_use]
pub fn shrink(plan: &Plan, original: &Outcome, most_runs: u32) -> Shrunk {
    let invariant = original.violation.as_ref().map(|violation| violation.invariant);
    let mut shrunk = Shrunk { plan: plan.clone(), kept: (0..plan.schedule.len()).collect(), without: Vec::new(), plain: false, runs: 0 };
    let fails_so = |plan: &Plan| run(plan, Detail::Little).violation.map(|violation| violation.invariant) == invariant;
    let mut plain = plan.clone();
    if plain.traffic.aggregates.take().is_some() && most_runs > 0 {
        shrunk.runs += 1;
        shrunk.plain = fails_so(&plain);
    }
    let plan = if shrunk.plain { &plain } else { plan };
    let fails = |kept: &[usize], without: &[FaultKind], runs: &mut u32| {
        *runs += 1;
        fails_so(&cut(plan, kept, without))
    };
    for kind in FaultKind::ALL {
        let without: Vec<_> = shrunk.without.iter().copied().chain([kind]).collect();
        if shrunk.runs < most_runs && fails(&shrunk.kept, &without, &mut shrunk.runs) {
            shrunk.without = without;
        }
    }
    // Ever smaller parts are left out, as delta debugging does.
    let mut part = shrunk.kept.len().div_ceil(2);
    while part > 0 && !shrunk.kept.is_empty() && shrunk.runs < most_runs {
        let mut from = 0;
        while from < shrunk.kept.len() && shrunk.runs < most_runs {
            let kept: Vec<_> =
                shrunk.kept.iter().enumerate().filter(|(place, _)| !(from..from + part).contains(place)).map(|(_, entry)| *entry).collect();
            if fails(&kept, &shrunk.without, &mut shrunk.runs) {
                shrunk.kept = kept;
            } else {
                from += part;
            }
        }
        part = if part == 1 { 0 } else { part.div_ceil(2) };
    }
    shrunk.plan = cut(plan, &shrunk.kept, &shrunk.without);
    shrunk
}

fn cut(plan: &Plan, kept: &[usize], without: &[FaultKind]) -> Plan {
    let mut plan = plan.clone();
    plan.keep_only(kept);
    plan.without(without);
    plan
}
