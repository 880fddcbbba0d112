//! `consumer`: see `consumer --help`.

use std::process::ExitCode;

fn main() -> ExitCode {
    examples::consumer::main()
}
