//! The command line.

use std::path::PathBuf;

use clap::Parser;

/// Runs fleets of real workers in simulated time, under faults that follow from a seed, and checks every invariant at every step.
///
/// Without a scenario, all of them are run. A failure prints its seed, the shortest schedule of faults found with which it fails, the end of
/// its event log, and the command that carries it out again.
#[derive(Debug, Parser)]
#[command(name = "simulate")]
pub(crate) struct Options {
    /// The scenario; all if none is given. `--list` names them
    #[arg(long, value_name = "NAME")]
    pub(crate) scenario: Option<String>,
    /// Seeds to run: of the scenario, or of all of them together
    #[arg(long, default_value_t = 100, value_name = "N")]
    pub(crate) seeds: u64,
    /// The first seed
    #[arg(long, default_value_t = 1, value_name = "SEED")]
    pub(crate) from: u64,
    /// Minutes of disturbance in each run; by default as the scenario has it
    #[arg(long, value_name = "M")]
    pub(crate) minutes: Option<u64>,
    /// Workers at the start; by default as the scenario has it
    #[arg(long, value_name = "N")]
    pub(crate) workers: Option<usize>,
    /// Shards at the start; by default as the scenario has it
    #[arg(long, value_name = "N")]
    pub(crate) shards: Option<u32>,
    /// Writes the report as JSON
    #[arg(long, value_name = "FILE")]
    pub(crate) report: Option<PathBuf>,
    /// Threads; by default one for each processor
    #[arg(long, value_name = "N")]
    pub(crate) threads: Option<usize>,
    /// Only these entries of the schedule, by their place in it, as a failure prints them
    #[arg(long, value_delimiter = ',', value_name = "PLACES", num_args = 0..)]
    pub(crate) keep: Option<Vec<usize>>,
    /// None of these kinds of faults, as a failure prints them; or no `aggregates`
    #[arg(long, value_delimiter = ',', value_name = "KINDS")]
    pub(crate) without: Vec<String>,
    /// Writes the whole event log of the first seed, with the library's own log events
    #[arg(long, value_name = "FILE")]
    pub(crate) trace: Option<PathBuf>,
    /// Runs each seed twice, with all log events, and prints a hash of its event log; fails if the two differ by a byte
    #[arg(long)]
    pub(crate) twice: bool,
    /// Runs the seeds that once failed
    #[arg(long)]
    pub(crate) corpus: bool,
    /// Names the scenarios
    #[arg(long)]
    pub(crate) list: bool,
    /// Prints the plan of the first seed, and does not run it
    #[arg(long)]
    pub(crate) plan: bool,
    /// Puts bugs into the libraries, one at a time, and shows that each is found; with a name, that one alone. Needs a build with
    /// `--features planted-bugs`
    #[arg(long, value_name = "BUG", num_args = 0..=1, default_missing_value = "all")]
    pub(crate) planted: Option<String>,
    /// Fails unless each kind of fault has happened so often, and each state of interest was reached
    #[arg(long, default_value_t = 0, value_name = "N")]
    pub(crate) least_faults: u64,
}
