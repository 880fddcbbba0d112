//! Processors that block their thread, on a runtime with one thread: nothing of the process runs
//! meanwhile but what keeps its leases alive.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use kcl_core::test_util::{Event, Host, SimulatedAws};
use kcl_core::{Outcome, ProcessResult, RecordBatch, RecordProcessor, ShardContext, WorkerError, async_trait};
use tokio::task::JoinSet;
use tokio::time::sleep;

use super::fleet::{APPLICATION, Log, STREAM, until};

const LEASE: Duration = Duration::from_secs(3);
const SHARDS: u32 = 4;

/// Blocks its host's thread for this long in each call.
struct Blocking {
    host: Host,
    duration: Duration,
    log: Log,
}

#[async_trait]
impl RecordProcessor for Blocking {
    async fn process_records(&mut self, batch: &RecordBatch, _: &ShardContext) -> ProcessResult {
        self.host.block_thread(self.duration).await;
        for record in batch.records() {
            let key = record.partition_key().unwrap_or_default().to_owned();
            self.log.note(key, std::str::from_utf8(record.data())?.parse()?);
        }
        Ok(Outcome::Done)
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Takes {
    all: usize,
    /// Of those: from an owner that had not let go, as its lease was not renewed.
    from_the_living: usize,
}

struct Scene {
    aws: SimulatedAws,
    log: Log,
    takes: Arc<Mutex<Takes>>,
    workers: JoinSet<Result<(), WorkerError>>,
}

impl Scene {
    fn new(seed: u64) -> Self {
        let aws = SimulatedAws::new(seed);
        aws.create_stream(STREAM, SHARDS);
        let takes: Arc<Mutex<Takes>> = Arc::default();
        let noted = Arc::clone(&takes);
        aws.observe(move |event| {
            if let Event::LeaseWritten { before, after, .. } = event
                && after.owner.is_some()
                && after.owner != before.owner
            {
                let mut takes = noted.lock().unwrap();
                takes.all += 1;
                takes.from_the_living += usize::from(before.actual_owner().is_some() && after.checkpoint_owner.is_none());
            }
        });
        Self { aws, log: Log::default(), takes, workers: JoinSet::new() }
    }

    async fn start(&mut self, machine: &str, duration: Duration) -> Host {
        let host = self.aws.host(machine).with_call_timeout(LEASE / 5);
        let (log, on) = (self.log.clone(), host.clone());
        let processor = move |_: &ShardContext| Blocking { host: on.clone(), duration, log: log.clone() };
        let worker = host.worker(APPLICATION, STREAM).lease_duration(LEASE).processor(processor).build().await.unwrap();
        self.workers.spawn(host.run(worker.run()));
        host
    }

    fn takes(&self) -> Takes {
        *self.takes.lock().unwrap()
    }

    fn owners(&self) -> Vec<Option<String>> {
        let leases = self.aws.leases(APPLICATION);
        leases.iter().map(|lease| lease.owner.as_ref().map(ToString::to_string)).collect()
    }

    fn are_spread(&self, workers: usize) -> bool {
        let owners: std::collections::BTreeSet<_> = self.owners().into_iter().flatten().collect();
        owners.len() == workers && self.aws.leases(APPLICATION).iter().all(|lease| lease.checkpoint_owner.is_none())
    }
}

/// Twenty lease durations in each call, beside a worker that would take what is not renewed.
#[tokio::test(start_paused = true)]
async fn a_processor_that_blocks_for_a_minute_keeps_its_leases_and_nothing_comes_twice() {
    for seed in 0..10 {
        let mut scene = Scene::new(seed);
        scene.start("a", Duration::from_secs(60)).await;
        scene.start("b", Duration::from_millis(1)).await;
        until("the leases are spread", || scene.are_spread(2)).await;
        sleep(LEASE).await;
        let (owners, takes) = (scene.owners(), scene.takes());
        for number in 0..40_u32 {
            scene.aws.put(STREAM, &format!("key-{number}"), number.to_string());
        }
        until("all is processed", || scene.log.numbers().len() == 40).await;
        sleep(LEASE * 4).await;
        assert_eq!(scene.log.all().len(), 40, "seed {seed}: once each");
        assert_eq!((scene.owners(), scene.takes()), (owners, takes), "seed {seed}");
        scene.aws.stop_observing();
    }
}

/// A worker whose first processor blocks while the takes of other leases are on their way gets them
/// all, and keeps them.
#[tokio::test(start_paused = true)]
async fn leases_that_are_being_taken_when_a_thread_is_blocked_are_kept() {
    for seed in 0..10 {
        let mut scene = Scene::new(seed);
        for number in 0..40_u32 {
            scene.aws.put(STREAM, &format!("key-{number}"), number.to_string());
        }
        scene.aws.faults().set_latency(Duration::from_millis(1), Duration::from_millis(200));
        scene.start("a", Duration::from_secs(20)).await;
        until("a first lease is taken", || scene.takes().all > 0).await;
        // It comes when all are taken, or being taken.
        scene.start("b", Duration::from_millis(1)).await;
        until("all is processed", || scene.log.numbers().len() == 40).await;
        assert_eq!(scene.log.all().len(), 40, "seed {seed}: once each");
        assert_eq!(scene.takes().from_the_living, 0, "seed {seed}");
        scene.aws.stop_observing();
    }
}
