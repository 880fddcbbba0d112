//! Many runs: on all processors, with progress, and a report in the end.

use std::collections::VecDeque;
use std::sync::Mutex;
use std::sync::mpsc::{Sender, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use integration_tests::simulation::report::{Failure, Report};
use integration_tests::simulation::scenario::named;
use integration_tests::simulation::shrink::shrink;
use integration_tests::simulation::{Detail, Options as Wanted, Outcome, Plan, SCENARIOS, Scenario, run};
use kcl_core::test_util::FaultKind;

use crate::options::Options;

/// Failures that are cut down and shown; the others are counted.
const SHOWN: usize = 3;
/// Runs that cutting down takes, at most, and seconds.
const SHRINK_RUNS: u32 = 60;
const SHRINK_SECONDS: f64 = 60.0;
/// Lines of the event log that a failure shows.
const TAIL: usize = 60;
/// Seeds that failed once: scenario and seed, and what was wrong.
const CORPUS: &str = include_str!("../../../corpus.txt");

/// What `--without` calls records that are put together.
const AGGREGATES: &str = "aggregates";

type Job = (&'static Scenario, u64);

/// Does what was asked for. `false`: something failed.
pub(crate) fn carry_out(options: &Options) -> anyhow::Result<bool> {
    if options.list {
        for scenario in SCENARIOS {
            println!("{:<26}{}", scenario.name, scenario.about);
        }
        return Ok(true);
    }
    if let Some(name) = &options.planted {
        return integration_tests::simulation::planted::find(name, options.scenario.as_deref(), options.seeds, options.from);
    }
    let jobs = jobs(options)?;
    if options.plan {
        let (scenario, seed) = jobs.first().context("no seed")?;
        println!("{:#?}", plan_of(scenario, *seed, options)?);
        return Ok(true);
    }
    if let Some(path) = &options.trace {
        let (scenario, seed) = jobs.first().context("no seed")?;
        let mut outcome = run(&plan_of(scenario, *seed, options)?, Detail::All);
        std::fs::write(path, outcome.trace.take_all().unwrap_or_default()).with_context(|| format!("writing {}", path.display()))?;
        println!("{}", outcome.violation.as_ref().map_or_else(|| "no failure".to_owned(), ToString::to_string));
        return Ok(outcome.violation.is_none());
    }
    if options.twice {
        return twice(&jobs, options);
    }
    many(jobs, options)
}

fn jobs(options: &Options) -> anyhow::Result<Vec<Job>> {
    if options.corpus {
        let line = |line: &'static str| {
            let mut words = line.split_whitespace();
            let scenario = words.next().and_then(named).with_context(|| format!("no scenario in `{line}`"))?;
            let seed = words.next().and_then(|word| word.parse().ok()).with_context(|| format!("no seed in `{line}`"))?;
            Ok((scenario, seed))
        };
        return CORPUS.lines().filter(|line| !line.is_empty() && !line.starts_with('#')).map(line).collect();
    }
    let seeds = options.from..options.from + options.seeds;
    if let Some(name) = &options.scenario {
        let scenario = named(name).with_context(|| format!("no scenario `{name}`: --list names them"))?;
        return Ok(seeds.map(|seed| (scenario, seed)).collect());
    }
    // Each scenario has its share, and at least one; the first has what is left.
    let mut jobs = Vec::new();
    let mut next = options.from;
    for scenario in SCENARIOS.iter().rev() {
        let share = if scenario.name == SCENARIOS[0].name {
            (options.from + options.seeds).saturating_sub(next)
        } else {
            (options.seeds * u64::from(scenario.share) / 100).max(1)
        };
        jobs.extend((next..next + share).map(|seed| (scenario, seed)));
        next += share;
    }
    Ok(jobs)
}

fn plan_of(scenario: &Scenario, seed: u64, options: &Options) -> anyhow::Result<Plan> {
    let wanted = Wanted { minutes: options.minutes, workers: options.workers, shards: options.shards };
    let mut plan = (scenario.plan)(seed, &wanted);
    if let Some(keep) = &options.keep {
        plan.keep_only(keep);
    }
    let (aggregates, faults): (Vec<_>, Vec<_>) = options.without.iter().partition(|name| *name == AGGREGATES);
    if !aggregates.is_empty() {
        plan.traffic.aggregates = None;
    }
    plan.without(&kinds(&faults)?);
    Ok(plan)
}

fn kinds(names: &[&String]) -> anyhow::Result<Vec<FaultKind>> {
    let kind = |name: &&String| {
        FaultKind::ALL
            .into_iter()
            .find(|kind| kind.name().replace(' ', "-") == **name)
            .with_context(|| format!("no kind of faults `{name}`"))
    };
    names.iter().map(kind).collect()
}

/// Each seed twice: the event logs must not differ by a byte. Prints a hash of each, which another build must print too.
fn twice(jobs: &[Job], options: &Options) -> anyhow::Result<bool> {
    let mut same = true;
    for (scenario, seed) in jobs {
        let plan = plan_of(scenario, *seed, options)?;
        let (mut first, mut second) = (run(&plan, Detail::All), run(&plan, Detail::All));
        let (left, right) = (first.trace.take_all().unwrap_or_default(), second.trace.take_all().unwrap_or_default());
        println!("{} {seed} {:016x} {} lines", scenario.name, first.trace.hash(), first.trace.lines());
        if left != right {
            same = false;
            let differs = left.lines().zip(right.lines()).find(|(left, right)| left != right);
            println!("differs: {differs:?}");
        }
    }
    Ok(same)
}

fn many(jobs: Vec<Job>, options: &Options) -> anyhow::Result<bool> {
    #[expect(clippy::disallowed_methods, reason = "how long the simulation itself takes")]
    let began = Instant::now();
    let total = jobs.len();
    let threads = options.threads.or_else(|| std::thread::available_parallelism().ok().map(usize::from)).unwrap_or(1).max(1);
    // Whoever measures memory runs alone.
    let measures = |(scenario, seed): &Job| plan_of(scenario, *seed, options).is_ok_and(|plan| plan.demands.no_growth_after.is_some());
    let (alone, together): (Vec<_>, Vec<_>) = jobs.into_iter().partition(measures);
    let [together, alone] = [together, alone].map(|jobs| Mutex::new(VecDeque::from(jobs)));
    let mut report = Report::default();
    let mut failed = Vec::new();
    let result: anyhow::Result<()> = std::thread::scope(|scope| {
        let (done, results) = channel();
        scope.spawn(move || {
            std::thread::scope(|scope| {
                for _ in 0..threads {
                    scope.spawn(|| work(&together, &done, options));
                }
            });
            work(&alone, &done, options);
        });
        let (mut ended, mut told) = (0, Duration::ZERO);
        for (scenario, seed, result) in results {
            let (plan, outcome) = result?;
            ended += 1;
            report.add(scenario.name, &outcome);
            if let Some(violation) = &outcome.violation {
                println!("FAILED {} {seed}: {violation}", scenario.name);
                failed.push((plan, outcome));
            }
            if began.elapsed() >= told + Duration::from_secs(10) {
                told = began.elapsed();
                eprintln!("{ended} of {total} seeds, {:.0} simulated hours, {} failed", report.simulated_hours, failed.len());
            }
        }
        Ok(())
    });
    result?;
    for (place, (plan, outcome)) in failed.iter().enumerate() {
        report.failures.push(explained(plan, outcome, place < SHOWN, options));
    }
    println!("{}", report.in_words(began.elapsed()));
    if let Some(path) = &options.report {
        let json = serde_json::to_string_pretty(&report)?;
        std::fs::write(path, json).with_context(|| format!("writing {}", path.display()))?;
    }
    let rare: Vec<_> = FaultKind::ALL
        .iter()
        .map(|kind| kind.name())
        .filter(|name| report.faults.get(name).copied().unwrap_or(0) < options.least_faults)
        .collect();
    if !rare.is_empty() {
        bail!("happened less than {} times: {}", options.least_faults, rare.join(", "));
    }
    let unreached = report.unreached();
    if options.least_faults > 0 && !unreached.is_empty() {
        bail!("never reached: {}", unreached.join(", "));
    }
    if report.failures.is_empty() {
        println!("no failure");
    }
    Ok(report.failures.is_empty())
}

type Result = (&'static Scenario, u64, anyhow::Result<(Plan, Outcome)>);

fn work(queue: &Mutex<VecDeque<Job>>, done: &Sender<Result>, options: &Options) {
    loop {
        let job = queue.lock().expect("nobody panics with it").pop_front();
        let Some((scenario, seed)) = job else { return };
        let result = plan_of(scenario, seed, options).map(|plan| {
            let outcome = run(&plan, Detail::Little);
            (plan, outcome)
        });
        if done.send((scenario, seed, result)).is_err() {
            return;
        }
    }
}

/// How many runs like this one cutting down may take.
fn affordable(outcome: &Outcome) -> u32 {
    let runs = SHRINK_SECONDS / outcome.wall.as_secs_f64().max(0.001);
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a small positive number")]
    let runs = runs.min(f64::from(SHRINK_RUNS)) as u32;
    runs
}

/// Cuts a failure down, and shows it.
fn explained(plan: &Plan, outcome: &Outcome, show: bool, options: &Options) -> Failure {
    let violation = outcome.violation.clone().expect("only failures are explained");
    let mut replay =
        format!("cargo run --release -p integration-tests --bin simulate -- --scenario {} --from {} --seeds 1", plan.scenario, plan.seed);
    for (flag, value) in
        [("minutes", options.minutes), ("workers", options.workers.map(|n| n as u64)), ("shards", options.shards.map(u64::from))]
    {
        replay.extend(value.map(|value| format!(" --{flag} {value}")));
    }
    let mut schedule = plan.schedule.clone();
    if show && options.keep.is_none() {
        let shrunk = shrink(plan, outcome, affordable(outcome));
        let places: Vec<_> = shrunk.kept.iter().map(ToString::to_string).collect();
        replay.push_str(&format!(" --keep {}", places.join(",")));
        let mut names: Vec<_> = shrunk.without.iter().map(|kind| kind.name().replace(' ', "-")).collect();
        names.extend(shrunk.plain.then(|| AGGREGATES.to_owned()));
        if !names.is_empty() {
            replay.push_str(&format!(" --without {}", names.join(",")));
        }
        let again = run(&shrunk.plan, Detail::Logs);
        schedule.clone_from(&shrunk.plan.schedule);
        println!("\n{} {} fails: {violation}", plan.scenario, plan.seed);
        println!("  with this schedule, of {} entries, found in {} runs:", plan.schedule.len(), shrunk.runs);
        for (at, chaos) in &schedule {
            println!("    {:>9.3} {chaos}", at.as_secs_f64());
        }
        println!("  the end of its event log:\n{}", again.trace.tail(TAIL));
        println!("  again: {replay}\n");
    }
    Failure {
        scenario: plan.scenario.to_owned(),
        seed: plan.seed,
        invariant: violation.invariant.to_owned(),
        message: violation.message,
        schedule: schedule.iter().map(|(at, chaos)| format!("{:.3} {chaos}", at.as_secs_f64())).collect(),
        replay,
    }
}
