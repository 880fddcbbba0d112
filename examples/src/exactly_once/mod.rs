//! Exactly once: counts in DynamoDB that stay exact although the worker crashes, answers are lost, and records are delivered again.
//!
//! | part | owns |
//! |---|---|
//! | [`options`] | the command line |
//! | [`counter`] | the processor: what it commits |
//! | [`site`] | AWS in this process: the stream, the table, the faults |

pub mod counter;
pub mod options;
pub mod site;

use std::time::Duration;

use anyhow::{Context as _, bail};
use kcl_core::{Entropy, PollingConfig, ShardContext, Worker, WorkerError, WorkerHandle};
use tokio::task::JoinSet;
use tokio::time::Instant;

use self::counter::{Counter, Counts};
pub use self::options::Options;
use self::site::{STREAM, Site};

/// Keys that are counted.
const KEYS: u32 = 20;

/// How long counts may stand still before the run is given up.
const PATIENCE: Duration = Duration::from_secs(60);

/// What a run has come to.
#[derive(Debug)]
pub struct Report {
    /// How often each key was published.
    pub published: Counts,
    /// What the table says.
    pub counted: Counts,
    /// What was delivered.
    pub delivered: Counts,
    /// How often the worker crashed.
    pub crashes: u32,
}

impl Report {
    /// Whether every count is exact.
    #[must_use]
    pub fn is_exact(&self) -> bool {
        self.published == self.counted
    }

    /// For people.
    #[must_use]
    pub fn table(&self) -> String {
        let sum = |counts: &Counts| counts.values().sum::<u64>();
        let wrong = self.published.iter().filter(|(key, count)| self.counted.get(*key) != Some(count)).count();
        let (published, delivered, counted) = (sum(&self.published), sum(&self.delivered), sum(&self.counted));
        format!(
            "  published      {published:>8}   records of {} keys\n  \
               crashes        {:>8}   of the worker, without warning\n  \
               delivered      {delivered:>8}   {} of them again: delivery is at least once\n  \
               counted        {counted:>8}   in DynamoDB, with the checkpoint in one transaction\n  \
               wrong counts   {wrong:>8}\n\n{}",
            self.published.len(),
            self.crashes,
            delivered.saturating_sub(published),
            if self.is_exact() { "every count is exact: each record was counted once" } else { "FAILED: counts are wrong" }
        )
    }
}

/// Runs the whole thing.
///
/// # Errors
/// What kept the run from its end.
pub async fn run(options: &Options) -> anyhow::Result<Report> {
    let site = Site::open(options.seed).await?;
    let mut dice = fastrand::Rng::with_seed(options.seed);
    let keys: Vec<String> = (0..options.records).map(|_| format!("customer-{:02}", dice.u32(..KEYS))).collect();
    let mut published = Counts::new();
    for key in &keys {
        *published.entry(key.clone()).or_default() += 1;
    }

    let counter = Counter::default();
    let publishing = site.publish(&keys, Duration::from_millis(300));
    let counting = async {
        let mut last = crash_and_go_on(&site, &counter, options, &mut dice).await?;
        last.while_it_runs(all_counted(&site, u64::from(options.records))).await?;
        Ok(last)
    };
    let (last, ()) = tokio::try_join!(counting, publishing)?;
    // Whatever would be counted twice is by then: the worker finishes what it has in work.
    last.stop().await?;
    Ok(Report { published, counted: site.counts().await?, delivered: counter.delivered(), crashes: options.crashes })
}

/// Waits until so many records are counted, or nothing has moved for long.
async fn all_counted(site: &Site, records: u64) -> anyhow::Result<()> {
    let (mut before, mut moved) = (0, Instant::now());
    loop {
        let counted = site.counts().await?.values().sum::<u64>();
        if counted != before {
            (before, moved) = (counted, Instant::now());
        }
        if counted >= records || moved.elapsed() > PATIENCE {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// Runs one worker after another, each until it crashes, and gives the last one.
async fn crash_and_go_on(site: &Site, counter: &Counter, options: &Options, dice: &mut fastrand::Rng) -> anyhow::Result<Running> {
    for number in 0..options.crashes {
        let mut worker = Running::start(site, counter, options.seed, number).await?;
        let handle = worker.handle.clone();
        worker.while_it_runs(in_the_middle_of_work(&handle, counter, dice)).await?;
        println!("  {} crashes", worker.name);
        drop(worker);
    }
    Running::start(site, counter, options.seed, options.crashes).await
}

/// Waits for a moment at which a crash would hurt.
async fn in_the_middle_of_work(worker: &WorkerHandle, counter: &Counter, dice: &mut fastrand::Rng) -> anyhow::Result<()> {
    // It crashes while it works, not while it waits for what its predecessor had.
    while worker.status().shards.is_empty() {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    tokio::time::sleep(Duration::from_millis(dice.u64(100..1500))).await;
    // In the middle of records, before their commit or while it is on its way; or without any, if none come.
    let _ = tokio::time::timeout(Duration::from_secs(2), counter.begins()).await;
    tokio::time::sleep(Duration::from_millis(dice.u64(0..30))).await;
    Ok(())
}

/// A worker that runs. Dropped, it is gone as after `kill -9`: nothing more is written, no lease freed.
#[derive(Debug)]
struct Running {
    name: String,
    handle: WorkerHandle,
    task: JoinSet<Result<(), WorkerError>>,
}

impl Running {
    async fn start(site: &Site, counter: &Counter, seed: u64, number: u32) -> anyhow::Result<Self> {
        let (name, counter) = (format!("worker-{number}"), counter.clone());
        let worker = Worker::builder("exactly-once", STREAM)
            .aws_config(&site.aws)
            .worker_name(&name)
            .entropy(Entropy::from_seed(seed ^ (u64::from(number) << 32)))
            .lease_duration(Duration::from_secs(2))
            .polling(PollingConfig { idle_interval: Duration::from_millis(250), ..PollingConfig::default() })
            .processor(move |_: &ShardContext| counter.clone())
            .build()
            .await?;
        let (handle, mut task) = (worker.handle(), JoinSet::new());
        task.spawn(worker.run());
        Ok(Self { name, handle, task })
    }

    /// What comes of this while the worker runs.
    ///
    /// # Errors
    /// Its own, or that the worker has ended, which nobody has asked it to: what waits for its work would wait for ever.
    async fn while_it_runs<T>(&mut self, work: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
        tokio::select! {
            biased;
            ended = self.ended() => ended.and_then(|()| bail!("{} ended although nobody asked it to", self.name)),
            done = work => done,
        }
    }

    async fn stop(mut self) -> anyhow::Result<()> {
        self.handle.shutdown();
        self.ended().await
    }

    /// How the worker ends.
    async fn ended(&mut self) -> anyhow::Result<()> {
        let ended = self.task.join_next().await.context("the worker has a task")?;
        ended.with_context(|| format!("{} panicked", self.name))?.with_context(|| format!("{} failed", self.name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_worker_that_fails_ends_what_waits_for_it() {
        let site = Site::open(1).await.unwrap();
        let mut worker = Running::start(&site, &Counter::default(), 1, 0).await.unwrap();
        aws_sdk_dynamodb::Client::new(&site.aws).delete_table().table_name("exactly-once").send().await.unwrap();
        let waiting = worker.while_it_runs(std::future::pending::<anyhow::Result<()>>());
        let error = tokio::time::timeout(PATIENCE, waiting).await.unwrap().unwrap_err();
        assert!(format!("{error:#}").starts_with("worker-0 failed: "), "{error:#}");
    }
}
