//! The consumer service: one worker per process, set by flags and the environment. What it does with a record is to print or to count it.
//!
//! | part | owns |
//! |---|---|
//! | `options` | flags and environment, and the worker they describe |
//! | `service` | the processor, and the counts of what it did |
//! | `print` | records as lines on standard output |
//! | `idle` | when there is nothing left to do |
//! | `redrive` | `consumer redrive`: dead letters back into the stream |
//! | `seek` | `consumer seek`: the application begins elsewhere |

mod idle;
mod options;
mod print;
mod redrive;
mod seek;
mod service;

use std::io::{self, IsTerminal as _, Write as _};
use std::pin::pin;
use std::process::ExitCode;

use kcl_core::{WorkerError, WorkerHandle, shutdown_signal};
use tokio::runtime::Runtime;
use tracing_subscriber::EnvFilter;

use self::idle::IdleWatch;
use self::options::{LogFormat, Options};
use self::redrive::RedriveOptions;
use self::seek::SeekOptions;
use self::service::Service;
use crate::flags::{UsageError, parse};

/// What is logged unless `RUST_LOG` says otherwise. That there is no metadata service outside of EC2 is no news.
const LOGGED: &str = "info,aws_config::imds=error";

/// The program: reads the command line, works until it is told to stop, and says how it went.
#[must_use]
pub fn main() -> ExitCode {
    // By hand and not by clap: the worker's flags are of old the program's own, and demanded.
    let mut arguments: Vec<_> = std::env::args_os().collect();
    if arguments.get(1).is_some_and(|first| first == "redrive") {
        arguments.remove(1);
        let options = RedriveOptions::from_arguments(arguments).unwrap_or_else(|error| error.exit());
        log_to_standard_error(options.common.log_format);
        return in_a_runtime(redrive::redrive(options));
    }
    if arguments.get(1).is_some_and(|first| first == "seek") {
        arguments.remove(1);
        let options: SeekOptions = parse(arguments);
        log_to_standard_error(options.common.log_format);
        return in_a_runtime(seek::seek(options));
    }
    let options: Options = parse(arguments);
    log_to_standard_error(options.log_format);
    in_a_runtime(run(&options))
}

fn in_a_runtime(work: impl Future<Output = anyhow::Result<()>>) -> ExitCode {
    let result = Runtime::new().map_err(Into::into).and_then(|runtime| {
        let result = runtime.block_on(work);
        // A write to a standard output that nobody reads may be under way, and would be waited for in vain.
        runtime.shutdown_background();
        result
    });
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Not `eprintln!`: it panics where standard error is closed.
            let _ = writeln!(io::stderr(), "consumer: {}", on_one_line(&error.to_string()));
            if error.is::<UsageError>() { ExitCode::from(2) } else { ExitCode::FAILURE }
        }
    }
}

/// Causes may come with line breaks, as a list of all places where credentials were looked for does.
fn on_one_line(text: &str) -> String {
    text.lines().map(str::trim).collect::<Vec<_>>().join("; ").replace(":; ", ": ")
}

fn log_to_standard_error(format: LogFormat) {
    let wanted = std::env::var(EnvFilter::DEFAULT_ENV).ok().filter(|wanted| !wanted.is_empty());
    let filter = EnvFilter::builder().parse_lossy(wanted.as_deref().unwrap_or(LOGGED));
    let logs = tracing_subscriber::fmt()
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal())
        .with_env_filter(filter)
        // It would be told on standard error, with a panic if that is closed.
        .log_internal_errors(false);
    match format {
        LogFormat::Text => logs.init(),
        LogFormat::Json => logs.json().init(),
    }
}

async fn run(options: &Options) -> anyhow::Result<()> {
    options.check()?;
    let mut signal = pin!(shutdown_signal());
    let service = Service::new(options.print)?;
    loop {
        // The signal comes first: its handlers are then in place before anything is waited for.
        let worker = tokio::select! {
            biased;
            () = &mut signal => {
                tracing::info!("asked to stop before the worker was ready");
                return Ok(());
            }
            worker = options.worker(&service) => worker?,
        };
        let handle = worker.handle();
        let stop = async {
            tokio::select! {
                biased;
                () = shutdown_signal() => {}
                () = service.output_closed() => {}
                () = until_idle(options, &handle, &service) => {}
                () = service.tell_progress() => {}
            }
        };
        let result = worker.run_until(stop).await;
        if let Err(WorkerError::StreamReplaced { stream, .. }) = &result {
            tracing::warn!(stream, "the stream was made anew: the worker starts again and adopts it");
            continue;
        }
        service.tell_total();
        anyhow::ensure!(
            !service.is_output_closed(),
            "standard output was closed by its reader: the records that it did not take are delivered again at the next start"
        );
        return Ok(result?);
    }
}

/// Completes when the worker has been idle for as long as `--until-idle` says; without it, never.
async fn until_idle(options: &Options, handle: &WorkerHandle, service: &Service) {
    let Some(period) = options.until_idle else { return std::future::pending().await };
    let max_leases = options.max_leases.unwrap_or(usize::MAX);
    IdleWatch::new(period, options.lease_duration, max_leases).wait(handle, service.tally()).await;
    tracing::info!(?period, "idle: no records, and all shards at the tip");
}
