//! The quickstart: the whole life of a stream and its workers in about a minute, and a reconciliation at its end.
//!
//! | part | owns |
//! |---|---|
//! | [`options`] | the command line |
//! | [`source`] | what is published: made-up orders or a user's file |
//! | [`site`] | where: embedded local AWS, another endpoint, real AWS |
//! | [`publisher`] | PutRecords, paced, each key in order |
//! | [`processor`], [`fleet`] | the consumers: what they do, and who of them lives |
//! | [`reshard`] | the split and the merge |
//! | [`letters`] | what is in the dead-letter queue |
//! | [`ledger`], [`report`] | who saw which record, and what that comes to |
//! | [`display`] | progress |

pub mod display;
pub mod fleet;
pub mod ledger;
pub mod letters;
pub mod options;
pub mod processor;
pub mod publisher;
pub mod report;
pub mod reshard;
pub mod site;
pub mod source;

use std::pin::pin;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, anyhow};
use kcl_core::{ShardId, shutdown_signal};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, MissedTickBehavior};
use tracing_subscriber::EnvFilter;

use self::display::{Display, Scene, thousands};
use self::fleet::{Fleet, Recipe};
use self::ledger::{Figures, Ledger};
pub use self::options::Options;
use self::processor::Clerk;
use self::publisher::Pace;
use self::report::Report;
use self::site::Site;
use self::source::Source;
use crate::flags::parse;

/// How long records without an owner's or a queue's word are waited for, after the last sign of any progress.
const PATIENCE: Duration = Duration::from_secs(60);

/// How often the picture is drawn anew.
const REDRAW: Duration = Duration::from_millis(200);

/// When what happens.
#[derive(Clone, Copy, Debug)]
struct Schedule {
    split: Duration,
    merge: Duration,
    kill: Duration,
    /// The last record is published.
    published: Duration,
}

impl Schedule {
    /// Elsewhere, each change of the shards takes half a minute.
    fn of(site: &Site) -> Self {
        let second = if site.is_embedded() { Duration::from_secs(1) } else { Duration::from_secs(2) };
        Self { split: second * 6, merge: second * 12, kill: second * 18, published: second * 30 }
    }
}

/// The program: reads the command line, runs, and says how it went.
#[must_use]
pub fn main() -> ExitCode {
    let options: Options = parse(std::env::args_os());
    // Off unless asked for: a kill makes for warnings, as it should, and they would spoil the picture.
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("off"));
    tracing_subscriber::fmt().with_writer(std::io::stderr).with_env_filter(filter).init();
    let source = match options.prepare() {
        Ok(source) => source,
        Err(error) => {
            eprintln!("quickstart: {error:#}");
            return ExitCode::from(2);
        }
    };
    let runtime = match tokio::runtime::Runtime::new() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("quickstart: the runtime can't be started: {error}");
            return ExitCode::FAILURE;
        }
    };
    match runtime.block_on(run(&options, source)) {
        Ok(report) if report.is_clean() => ExitCode::SUCCESS,
        Ok(_) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("quickstart: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Runs the whole thing and returns its reconciliation, which is printed and written already.
///
/// # Errors
/// What kept the run from its end. What it had made at the site is deleted all the same, or named on standard error.
pub async fn run(options: &Options, source: Source) -> anyhow::Result<Report> {
    let started = Instant::now();
    let site = Site::open(options).await?;
    let (source, ledger, mut display) = (Arc::new(source), Arc::new(Ledger::default()), Display::new());
    let schedule = Schedule::of(&site);
    display.say(&introduction(options, &source, &site, schedule));
    let outcome = tokio::select! {
        biased;
        () = shutdown_signal() => Err(anyhow!("interrupted")),
        outcome = consume(options, &source, &site, schedule, &ledger, &mut display) => outcome,
    };
    if outcome.is_err() && !site.is_embedded() {
        display.say(&format!("deleting {}\n", site.inventory()));
    }
    for left in site.clear().await {
        eprintln!("could not be deleted, and may still be there: {left}");
    }
    outcome?;

    let keys: Vec<u32> = source.events.iter().map(|event| event.key).collect();
    let figures = ledger.reconcile(&keys);
    let report = Report::new(&figures, started.elapsed().as_secs_f64());
    display.say(&conclusion(&source, &figures, &report));
    if let Some(path) = &options.report {
        let json = serde_json::to_string_pretty(&report)?;
        std::fs::write(path, json + "\n").with_context(|| format!("--report {} can't be written", path.display()))?;
    }
    Ok(report)
}

/// Publishes and consumes, with all that happens meanwhile, until every record is accounted for or there is no hope that it will be.
async fn consume(
    options: &Options,
    source: &Arc<Source>,
    site: &Site,
    schedule: Schedule,
    ledger: &Arc<Ledger>,
    display: &mut Display,
) -> anyhow::Result<()> {
    let queue_url = site.make(options.shards).await?;
    // One generator each: then what one draws does not depend on how often another did.
    let mut seeds = fastrand::Rng::with_seed(options.seed);
    let (publisher_rng, reshard_rng, mut kill_rng) = (seeds.fork(), seeds.fork(), seeds.fork());
    let mut fleet = Fleet::new(Recipe {
        aws: site.aws.clone(),
        application: site.application.clone(),
        stream: site.stream.clone(),
        queue_url: queue_url.clone(),
        lease_duration: site.lease_duration(),
        retrieval: options.retrieval,
        clerk: Clerk { ledger: Arc::clone(ledger), source: Arc::clone(source) },
        seed: options.seed,
    });
    for _ in 0..options.workers {
        fleet.hire();
    }

    let started = Instant::now();
    let (happened, all_happened) = watch::channel(false);
    let (news, mut to_tell) = mpsc::unbounded_channel();
    let sqs = aws_sdk_sqs::Client::new(&site.aws);
    let pace = Pace { span: schedule.published, all_happened };
    let mut publisher = pin!(publisher::publish(&site.aws, &site.stream, source, ledger, pace, publisher_rng));
    let mut resharding = pin!(reshard_on_schedule(site, schedule, started, reshard_rng, news));
    let mut letters = pin!(letters::collect(&sqs, &queue_url, ledger));
    let mut ticks = tokio::time::interval(REDRAW);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut published, mut resharded, mut killed) = (false, false, false);
    let mut progress = (ledger.counts(), Instant::now());
    loop {
        tokio::select! {
            biased;
            error = fleet.failure() => return Err(error),
            result = &mut publisher, if !published => {
                result?;
                published = true;
            }
            result = &mut resharding, if !resharded => {
                result?;
                resharded = true;
            }
            result = &mut letters => match result? {},
            Some(text) = to_tell.recv() => tell(display, started, &text),
            _ = ticks.tick() => {
                if !killed && started.elapsed() >= schedule.kill {
                    killed = kill(&mut fleet, &mut kill_rng, display, started);
                }
                let counts = ledger.counts();
                if counts != progress.0 {
                    progress = (counts, Instant::now());
                }
                let finished = published && counts.outstanding == 0;
                let scene = Scene {
                    elapsed: started.elapsed(),
                    total: source.events.len(),
                    counts,
                    workers: fleet.len(),
                    owned: fleet.shards(),
                    ended: ledger.ended(),
                };
                if finished {
                    display.show_now(&scene);
                    tell(display, started, "every record is accounted for; the workers may end");
                    return fleet.dismiss().await;
                }
                display.show(&scene);
                if published && progress.1.elapsed() > PATIENCE {
                    tell(display, started, &format!("no record has moved for {PATIENCE:?}; giving up on the rest"));
                    return Ok(());
                }
            }
        }
        happened.send_replace(resharded && killed);
    }
}

/// The split and the merge, each at its time or as soon as the stream is ready for it.
async fn reshard_on_schedule(
    site: &Site,
    schedule: Schedule,
    started: Instant,
    mut rng: fastrand::Rng,
    news: mpsc::UnboundedSender<String>,
) -> anyhow::Result<()> {
    let kinesis = aws_sdk_kinesis::Client::new(&site.aws);
    tokio::time::sleep_until(started + schedule.split).await;
    let text = reshard::split(&kinesis, &site.stream, &mut rng).await?;
    // Nobody listens only if the run is over.
    let _ = news.send(text);
    tokio::time::sleep_until(started + schedule.merge).await;
    let text = reshard::merge(&kinesis, &site.stream, &mut rng).await?;
    let _ = news.send(text);
    Ok(())
}

/// Kills a worker if one has shards; if it was the only one, another takes its place.
fn kill(fleet: &mut Fleet, rng: &mut fastrand::Rng, display: &mut Display, started: Instant) -> bool {
    let Some((worker, shards)) = fleet.kill_one(rng) else { return false };
    let names: Vec<_> = shards.iter().map(ShardId::as_str).collect();
    tell(display, started, &format!("{worker} was killed, it had {}", names.join(", ")));
    if fleet.is_empty() {
        let successor = fleet.hire();
        tell(display, started, &format!("{successor} takes its place"));
    }
    true
}

fn tell(display: &mut Display, started: Instant, text: &str) {
    display.say(&format!("{:5.1} s  >> {text}", started.elapsed().as_secs_f64()));
}

fn introduction(options: &Options, source: &Source, site: &Site, schedule: Schedule) -> String {
    let count = |count: usize| thousands(count as u64);
    let Schedule { split, merge, kill, published } = schedule;
    let mut lines = vec![
        format!(
            "quickstart: {} records of {} keys, {} shards, {} workers, seed {}, read by {}",
            count(source.events.len()),
            count(source.keys.len()),
            options.shards,
            options.workers,
            options.seed,
            options.retrieval
        ),
        format!("  where: {}", site.place()),
    ];
    if !site.is_embedded() {
        lines.push(format!("  made there, and deleted at the end: {}", site.inventory()));
    }
    lines.push(format!("  records are published for {published:?}, and while they flow:"));
    lines.push(format!("  at {split:?} a shard is split, at {merge:?} two are merged, at {kill:?} a worker is killed"));
    lines.push(format!("  {} records are poison: they belong into the dead-letter queue", count(source.poison.len())));
    if source.unkeyed > 0 {
        lines.push(format!("  {} lines have no such key and are keyed by their own hash", count(source.unkeyed)));
    }
    if source.empty > 0 {
        lines.push(format!("  {} empty lines are left out", count(source.empty)));
    }
    lines.join("\n") + "\n"
}

fn conclusion(source: &Source, figures: &Figures, report: &Report) -> String {
    let mut text = format!("\n{}", report.table());
    if source.unkeyed > 0 {
        text += &format!("  {} lines had no such key and were keyed by their own hash\n", thousands(source.unkeyed as u64));
    }
    if figures.unanswered > 0 {
        text += &format!(
            "  {} records are on the stream twice: the answer to their publisher was lost, and it sent them again\n",
            thousands(figures.unanswered)
        );
    }
    let verdict = if report.is_clean() { "nothing lost, every key in order" } else { "FAILED: records are lost or out of order" };
    format!("{text}\n{verdict}")
}
