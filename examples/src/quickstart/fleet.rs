//! The workers: several in this one process, each with its own clients, knowing of each other only by the lease table.

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use anyhow::{Context as _, anyhow};
use kcl_core::aws_config::SdkConfig;
use kcl_core::{Entropy, ShardContext, ShardId, ShardStatus, SqsDeadLetterQueue, Worker, WorkerError, WorkerHandle};
use tokio::task::{AbortHandle, JoinSet};

use super::processor::Clerk;
use crate::retrieval::Retrieval;

/// How each worker is built.
#[derive(Clone, Debug)]
pub struct Recipe {
    /// Where AWS is.
    pub aws: SdkConfig,
    /// The application, which names the lease table.
    pub application: String,
    /// The stream.
    pub stream: String,
    /// The dead-letter queue's URL.
    pub queue_url: String,
    /// How long a killed worker's shards wait for another.
    pub lease_duration: Duration,
    /// How they read.
    pub retrieval: Retrieval,
    /// What processes the records.
    pub clerk: Clerk,
    /// Seeds the workers' own randomness.
    pub seed: u64,
}

/// All workers that run.
#[derive(Debug)]
pub struct Fleet {
    recipe: Recipe,
    running: BTreeMap<u64, Running>,
    tasks: JoinSet<(u64, Result<(), WorkerError>)>,
    hired: u64,
}

#[derive(Debug)]
struct Running {
    /// Set once the worker is built.
    handle: Arc<OnceLock<WorkerHandle>>,
    task: AbortHandle,
}

impl Running {
    fn shards(&self) -> BTreeMap<ShardId, ShardStatus> {
        self.handle.get().map(|handle| handle.status().shards).unwrap_or_default()
    }
}

impl Fleet {
    /// No workers yet.
    #[must_use]
    pub fn new(recipe: Recipe) -> Self {
        Self { recipe, running: BTreeMap::new(), tasks: JoinSet::new(), hired: 0 }
    }

    /// Starts one more worker and returns its name.
    pub fn hire(&mut self) -> String {
        self.hired += 1;
        let (number, recipe) = (self.hired, self.recipe.clone());
        let handle = Arc::new(OnceLock::new());
        let task = self.tasks.spawn({
            let handle = Arc::clone(&handle);
            async move { (number, work(recipe, number, &handle).await) }
        });
        self.running.insert(number, Running { handle, task });
        name(number)
    }

    /// How many workers run.
    #[must_use]
    pub fn len(&self) -> usize {
        self.running.len()
    }

    /// Whether none runs.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.running.is_empty()
    }

    /// Kills one of the workers that have shards, wherever it is in its work: its future is dropped, so that it writes nothing more, frees no
    /// lease and tells nobody, just as after `kill -9`. Returns its name and its shards; `None` while no worker has any.
    pub fn kill_one(&mut self, rng: &mut fastrand::Rng) -> Option<(String, Vec<ShardId>)> {
        let shards = self.running.iter().map(|(number, worker)| (*number, worker.shards()));
        let (number, shards) = rng.choice(shards.filter(|(_, shards)| !shards.is_empty()).collect::<Vec<_>>())?;
        self.running.remove(&number)?.task.abort();
        tracing::info!(worker = name(number), shards = ?shards.keys(), "killed");
        Some((name(number), shards.into_keys().collect()))
    }

    /// Who has which shard, and how it stands.
    #[must_use]
    pub fn shards(&self) -> BTreeMap<ShardId, (String, ShardStatus)> {
        let mut all: BTreeMap<ShardId, (String, ShardStatus)> = BTreeMap::new();
        for (number, worker) in &self.running {
            for (shard, status) in worker.shards() {
                // While a shard changes hands, two may show it: the newer term is right.
                if all.get(&shard).is_none_or(|(_, other)| other.fencing_token < status.fencing_token) {
                    all.insert(shard, (name(*number), status));
                }
            }
        }
        all
    }

    /// Completes when a worker ends that should not have.
    ///
    /// # Cancel safety
    /// Nothing is missed.
    pub async fn failure(&mut self) -> anyhow::Error {
        loop {
            match self.tasks.join_next().await {
                Some(Ok((number, Ok(())))) => return anyhow!("{} ended although nobody asked it to", name(number)),
                Some(Ok((number, Err(error)))) => return anyhow::Error::new(error).context(format!("{} failed", name(number))),
                Some(Err(error)) if error.is_cancelled() => {} // the one that was killed
                Some(Err(error)) => return anyhow::Error::new(error).context("a worker panicked"),
                None => std::future::pending().await,
            }
        }
    }

    /// Lets all workers finish what they have in work, checkpoint it and free their leases.
    ///
    /// # Errors
    /// If one could not.
    pub async fn dismiss(mut self) -> anyhow::Result<()> {
        for worker in self.running.values() {
            match worker.handle.get() {
                Some(handle) => handle.shutdown(),
                None => worker.task.abort(),
            }
        }
        while let Some(ended) = self.tasks.join_next().await {
            if let Ok((number, result)) = ended {
                result.with_context(|| format!("{} could not end in peace", name(number)))?;
            }
        }
        Ok(())
    }
}

fn name(number: u64) -> String {
    format!("worker-{number}")
}

async fn work(recipe: Recipe, number: u64, handle: &OnceLock<WorkerHandle>) -> Result<(), WorkerError> {
    let Recipe { aws, application, stream, queue_url, lease_duration, retrieval, clerk, seed } = recipe;
    let worker = Worker::builder(application, stream)
        .aws_config(&aws)
        .processor(move |_shard: &ShardContext| clerk.clone())
        .dead_letter_queue(SqsDeadLetterQueue::new(&aws, queue_url))
        .worker_name(name(number))
        .lease_duration(lease_duration)
        .retrieval(retrieval.into())
        .shard_sync_interval(Duration::from_secs(10))
        .entropy(Entropy::from_seed(seed.wrapping_add(number)))
        .build()
        .await?;
    handle.get_or_init(|| worker.handle());
    worker.run().await
}
