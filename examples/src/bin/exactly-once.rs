//! `exactly-once`: see `exactly-once --help`.

use std::process::ExitCode;

use examples::exactly_once::{self, Options};
use examples::flags::parse;
use tracing_subscriber::EnvFilter;

#[tokio::main]
async fn main() -> ExitCode {
    let options: Options = parse(std::env::args_os());
    // Off unless asked for: crashes make for warnings, as they should, and they would spoil the picture.
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("off"));
    tracing_subscriber::fmt().with_writer(std::io::stderr).with_env_filter(filter).init();
    match exactly_once::run(&options).await {
        Ok(report) => {
            println!("\n{}", report.table());
            if report.is_exact() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
        }
        Err(error) => {
            eprintln!("exactly-once: {error:#}");
            ExitCode::FAILURE
        }
    }
}
