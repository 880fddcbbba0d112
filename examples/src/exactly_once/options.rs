//! What can be asked of the example on its command line.

use clap::Parser;

/// Counts records by key in DynamoDB, exactly once each, with a worker that crashes again and again; on this machine, without an account.
///
/// Each commit writes the counts of a few records and the checkpoint behind them in one transaction. Beside it the example counts what was delivered,
/// as a program would that is only called at least once.
///
/// Exit status: 0 if every count is exact, 1 if one is not or the run failed, 2 for flags it can't use. Logs go to standard error, as RUST_LOG says.
#[derive(Debug, Parser)]
#[command(name = "exactly-once", version, max_term_width = 100)]
pub struct Options {
    /// Records to publish, 1 to 1,000,000
    #[arg(long, value_name = "N", default_value_t = 3000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub records: u32,

    /// How often the worker crashes, 0 to 100
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u32).range(0..=100))]
    pub crashes: u32,

    /// All that is random follows from it
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub seed: u64,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Options::command().debug_assert();
    }
}
