//! `quickstart`: see `quickstart --help`.

use std::process::ExitCode;

fn main() -> ExitCode {
    examples::quickstart::main()
}
