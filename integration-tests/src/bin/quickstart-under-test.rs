//! The `quickstart` example once more: only a program of this package has a path that its tests are told.

use std::process::ExitCode;

fn main() -> ExitCode {
    examples::quickstart::main()
}
