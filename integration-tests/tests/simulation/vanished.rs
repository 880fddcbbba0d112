//! A lease table that is emptied under running workers: they end and say so, and nothing begins anew in silence.

use std::collections::BTreeSet;
use std::time::Duration;

use kcl_core::test_util::SimulatedAws;
use kcl_core::{InitialPosition, ProcessResult, RecordBatch, RecordProcessor, ShardContext, WorkerError, async_trait};
use kcl_lease::LeaseTable;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

use super::fleet::{APPLICATION, Log, STREAM, until};

const LEASE: Duration = Duration::from_secs(10);

struct Note(Log);

#[async_trait]
impl RecordProcessor for Note {
    async fn process_records(&mut self, batch: &RecordBatch, _shard: &ShardContext) -> ProcessResult {
        for record in batch.records() {
            self.0.note("key".to_owned(), String::from_utf8_lossy(record.data()).parse()?);
        }
        Ok(kcl_core::Outcome::Done)
    }
}

struct Scene {
    aws: SimulatedAws,
    log: Log,
    workers: JoinSet<Result<(), WorkerError>>,
}

impl Scene {
    async fn new(seed: u64, workers: usize, shards: u32, initial: InitialPosition) -> Self {
        let aws = SimulatedAws::new(seed);
        aws.create_stream(STREAM, shards);
        let mut scene = Self { aws, log: Log::default(), workers: JoinSet::new() };
        for number in 0..workers {
            let (host, log) = (scene.aws.host(&format!("host-{number}")), scene.log.clone());
            let builder = host.worker(APPLICATION, STREAM).lease_duration(LEASE).initial_position(initial);
            let worker = builder.processor(move |_: &ShardContext| Note(log.clone())).build().await.unwrap();
            scene.workers.spawn(host.run(worker.run()));
        }
        let holders = || scene.aws.leases(APPLICATION).into_iter().filter_map(|lease| lease.owner).collect::<BTreeSet<_>>().len();
        until("they share the shards", || holders() == workers.min(shards as usize)).await;
        for number in 0..60 {
            scene.aws.put(STREAM, &format!("key-{}", number % 16), number.to_string());
            sleep(Duration::from_millis(100)).await;
        }
        until("all is processed", || scene.log.numbers().len() == 60).await;
        scene
    }

    /// Deletes so many rows, or all.
    async fn delete(&self, rows: usize) {
        let table = self.aws.host("somebody").lease_table(APPLICATION);
        for row in self.aws.leases(APPLICATION).into_iter().take(rows) {
            let mut row = row;
            while !table.delete(&row).await.unwrap() {
                row = table.get(&row.shard_id).await.unwrap().unwrap();
            }
        }
    }

    async fn ended(&mut self) -> Vec<WorkerError> {
        let mut errors = Vec::new();
        while let Some(ended) = timeout(LEASE, self.workers.join_next()).await.expect("they end within a lease duration") {
            errors.push(ended.unwrap().unwrap_err());
        }
        errors
    }
}

#[tokio::test(start_paused = true)]
async fn workers_end_when_their_leases_vanish_and_create_none() {
    for initial in [InitialPosition::Latest, InitialPosition::TrimHorizon] {
        for (seed, workers) in [(1, 1), (2, 3), (3, 6)] {
            let mut scene = Scene::new(seed, workers, 4, initial).await;
            scene.delete(usize::MAX).await;
            let since = Instant::now();
            let errors = scene.ended().await;
            assert!(since.elapsed() < LEASE, "{:?}", since.elapsed());
            let vanished = |error: &WorkerError| matches!(error, WorkerError::LeasesVanished { .. });
            assert!(errors.iter().all(vanished), "{initial:?}, {workers} workers: {errors:?}");
            let holders = errors.iter().filter(|error| matches!(error, WorkerError::LeasesVanished { shard: Some(_), .. })).count();
            assert_eq!(holders, workers.min(4), "those that held a lease name it");
            assert_eq!(scene.aws.leases(APPLICATION), [], "nothing began anew");
            assert_eq!(scene.log.all().len(), 60);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_worker_whose_lease_vanishes_names_it() {
    let mut scene = Scene::new(4, 2, 4, InitialPosition::Latest).await;
    scene.delete(1).await;
    let first = scene.workers.join_next().await.unwrap().unwrap().unwrap_err();
    let text = first.to_string();
    assert!(text.contains("shardId-000000000000") && text.contains("Nothing was begun anew"), "{text}");
    assert!(!first.is_retryable());
}
