//! Runs fleets of workers in simulated time under faults, and judges them: `simulate --help`.

mod options;
mod runs;

use std::process::ExitCode;

use clap::Parser;

use self::options::Options;

/// Counts what is allocated, for runs in which nothing may grow.
#[global_allocator]
static ALLOCATOR: cap::Cap<std::alloc::System> = cap::Cap::new(std::alloc::System, usize::MAX);

fn main() -> ExitCode {
    integration_tests::simulation::memory::count_with(|| ALLOCATOR.allocated());
    // A panic of a simulated service is one of its faults, and caught: nobody has to read of it.
    let usual = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        if panic.payload().downcast_ref::<&str>() != Some(&integration_tests::simulation::A_BUG_OF_THE_SERVICE) {
            usual(panic);
        }
    }));
    match runs::carry_out(&Options::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("simulate: {error:#}");
            ExitCode::from(2)
        }
    }
}
