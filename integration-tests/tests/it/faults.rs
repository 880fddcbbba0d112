//! Whole applications while the wire fails: calls refused, dropped, applied without an answer, late, or a service away altogether.
//!
//! Records flow and a shard is split meanwhile. Whatever fails, every record is delivered, those of a key in order, and no operation
//! is called without pause.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use kcl_core::{PollingConfig, ShardId, ShardState, SqsDeadLetterQueue};
use kcl_local::LocalAws;
use kcl_local::kinesis::{KinesisConfig, SplitShardInput};
use kcl_local::wire::{Fault, FaultKind, Faults, Rule, Service};
use tokio::time::{Instant, sleep};

use crate::support::{Ledger, Running, World, eventually};

/// What a consumer calls of Kinesis. The publisher's calls go through: a record that the publisher lost is not the consumer's.
const READS: [&str; 4] = ["GetRecords", "GetShardIterator", "ListShards", "DescribeStreamSummary"];

fn reads(fault: Fault, probability: f64) -> impl Iterator<Item = Rule> {
    READS.into_iter().map(move |operation| Rule::new(fault).service(Service::Kinesis).operation(operation).probability(probability))
}

fn all_of(service: Service, fault: Fault, probability: f64) -> Rule {
    Rule::new(fault).service(service).probability(probability)
}

fn latency() -> Rule {
    Rule::new(Fault::Latency { min: Duration::from_millis(5), max: Duration::from_millis(200) })
}

fn of_dynamodb() -> Vec<Rule> {
    [(Fault::LoseAnswer, 0.2), (Fault::Drop, 0.1), (Fault::ServerError, 0.1)].map(|(fault, p)| all_of(Service::DynamoDb, fault, p)).into()
}

fn of_kinesis() -> Vec<Rule> {
    let faults = [(Fault::Throttle, 0.3), (Fault::ServerError, 0.1), (Fault::Drop, 0.1), (Fault::LoseAnswer, 0.1)];
    faults.into_iter().flat_map(|(fault, p)| reads(fault, p)).collect()
}

/// An application of two workers on three shards, and the embedded endpoint's faults.
struct Scene {
    world: World,
    ledger: Ledger,
    published: BTreeSet<String>,
    next: u64,
    started: Instant,
}

impl Scene {
    async fn new(seed: u64, kinesis: KinesisConfig) -> Self {
        let world = World::embedded(LocalAws::builder().seed(seed).kinesis(kinesis)).await;
        world.create_stream(3).await;
        Self { world, ledger: Ledger::default(), published: BTreeSet::new(), next: 0, started: Instant::now() }
    }

    fn local(&self) -> &LocalAws {
        self.world.local.as_ref().expect("embedded")
    }

    fn faults(&self) -> &Faults {
        self.local().faults()
    }

    /// A worker, however often its start fails: all that a fault of the wire may say is that another start may succeed.
    async fn worker(&self, name: &str, queue: Option<&str>) -> Running {
        eventually("a worker starts", async || {
            let mut builder = self.world.worker(name, &self.ledger);
            if let Some(url) = queue {
                builder = builder.dead_letter_queue(SqsDeadLetterQueue::new(&self.world.config, url));
            }
            match Running::try_start(builder).await {
                Ok(worker) => Some(worker),
                Err(error) => {
                    assert!(error.is_retryable(), "{error}");
                    None
                }
            }
        })
        .await
    }

    async fn publish(&mut self, records: u64) {
        self.published.extend(self.world.publish(30, self.next, records).await);
        self.next += records;
    }

    async fn publish_for(&mut self, time: Duration) {
        let end = Instant::now() + time;
        while Instant::now() < end {
            self.publish(30).await;
            sleep(Duration::from_millis(100)).await;
        }
    }

    /// Past the wire, as a test's own calls are not what is tested.
    fn split_first_shard(&self) {
        let half_of_the_first_third = (u128::MAX / 6).to_string();
        let split = SplitShardInput {
            stream_name: Some(self.world.stream.clone()),
            shard_to_split: "shardId-000000000000".into(),
            new_starting_hash_key: half_of_the_first_third,
            ..Default::default()
        };
        self.local().kinesis().call(split).unwrap();
    }

    /// Every operation kept within what a well-behaved application of this size needs at most.
    fn assert_budgets(&self, workers: f64) {
        let (shards, seconds) = (5.0, self.started.elapsed().as_secs_f64());
        for ((service, operation), requests) in self.faults().requests() {
            #[allow(clippy::cast_precision_loss)] // thousands
            let requests = requests as f64;
            let budget = match operation.as_str() {
                // The service's limit; and a reader that begins does not know when its predecessor read last.
                "GetRecords" => shards * (5.0 * seconds + 1.0),
                "PutRecords" | "CreateStream" | "CreateQueue" | "ReceiveMessage" => continue,
                // A hot loop calls some hundred times a second.
                _ => (workers + shards) * (5.0 * seconds + 10.0),
            };
            assert!(requests <= budget, "{service} {operation}: {requests} requests in {seconds:.1} s, budget {budget:.0}");
        }
    }

    fn assert_struck(&self, service: Service, kinds: &[FaultKind]) {
        let counts = self.faults().counts();
        for kind in kinds {
            let struck: u64 = counts.iter().filter(|(((of, _), is), _)| *of == service && is == kind).map(|(_, struck)| struck).sum();
            assert!(struck > 0, "{kind:?} never struck {service}");
        }
    }

    fn fencing_tokens(workers: &[&Running]) -> BTreeMap<ShardId, u64> {
        let shards = workers.iter().flat_map(|worker| worker.handle.status().shards);
        shards.map(|(shard, status)| (shard, status.fencing_token)).collect()
    }
}

/// Start, records, a split, more records and stop, all under these faults.
async fn survive(seed: u64, rules: Vec<Rule>) -> Scene {
    let mut scene = Scene::new(seed, KinesisConfig::default()).await;
    for rule in rules {
        scene.faults().add(rule);
    }
    let workers = [scene.worker("a", None).await, scene.worker("b", None).await];
    scene.publish_for(Duration::from_secs(2)).await;
    scene.split_first_shard();
    scene.publish_for(Duration::from_secs(2)).await;
    scene.ledger.has_all(&scene.published).await;
    eventually("the split shard has ended", async || scene.ledger.has_ended("shardId-000000000000").then_some(())).await;
    for worker in workers {
        worker.stop().await.unwrap();
    }
    scene.ledger.assert_ordered();
    scene.assert_budgets(2.0);
    scene
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lease_table_that_fails_two_calls_of_five_costs_no_record() {
    let scenes = futures::future::join_all([1, 2].map(|seed| survive(seed, of_dynamodb()))).await;
    for scene in scenes {
        scene.assert_struck(Service::DynamoDb, &[FaultKind::LoseAnswer, FaultKind::Drop, FaultKind::ServerError]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_fails_half_of_the_reads_costs_no_record_and_no_duplicate() {
    let scenes = futures::future::join_all([1, 2].map(|seed| survive(seed, of_kinesis()))).await;
    for scene in scenes {
        scene.assert_struck(Service::Kinesis, &[FaultKind::Throttle, FaultKind::ServerError, FaultKind::Drop, FaultKind::LoseAnswer]);
        assert_eq!(scene.ledger.duplicates(), []);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn latency_costs_no_record() {
    let scene = survive(1, vec![latency()]).await;
    scene.assert_struck(Service::DynamoDb, &[FaultKind::Latency]);
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_failing_at_once_costs_no_record() {
    let mut scene = Scene::new(3, KinesisConfig::default()).await;
    let sqs = aws_sdk_sqs::Client::new(&scene.world.config);
    let queue = sqs.create_queue().queue_name("letters").send().await.unwrap().queue_url.unwrap();
    let rules = of_dynamodb().into_iter().chain(of_kinesis()).chain([latency()]);
    let of_sqs = ["SendMessageBatch", "GetQueueAttributes"].into_iter().flat_map(|operation| {
        let faults = [(Fault::LoseAnswer, 0.2), (Fault::Drop, 0.2), (Fault::ServerError, 0.2)];
        faults.map(|(fault, p)| Rule::new(fault).service(Service::Sqs).operation(operation).probability(p))
    });
    for rule in rules.chain(of_sqs) {
        scene.faults().add(rule);
    }
    let workers = [scene.worker("a", Some(&queue)).await, scene.worker("b", Some(&queue)).await];
    scene.publish_for(Duration::from_secs(2)).await;
    for number in 0..10 {
        let put = scene.world.kinesis.put_record().stream_name(&scene.world.stream).partition_key(format!("key-{number}"));
        put.data(aws_sdk_kinesis::primitives::Blob::new(format!("poison:{number}"))).send().await.unwrap();
    }
    scene.split_first_shard();
    scene.publish_for(Duration::from_secs(2)).await;
    scene.ledger.has_all(&scene.published).await;
    let struck: u64 = scene
        .faults()
        .counts()
        .iter()
        .filter(|((at, kind), _)| at.1 == "SendMessageBatch" && *kind != FaultKind::Latency)
        .map(|(_, struck)| struck)
        .sum();
    assert!(struck > 0, "no letter met a fault");
    scene.faults().clear();
    // A letter whose answer was lost is there twice: the sequence number tells.
    let mut letters = BTreeSet::new();
    eventually("ten different dead letters", async || {
        let received = sqs.receive_message().queue_url(&queue).max_number_of_messages(10).send().await.unwrap();
        for message in received.messages() {
            let envelope: serde_json::Value = serde_json::from_str(message.body().unwrap()).unwrap();
            letters.insert(envelope["sequenceNumber"].as_str().unwrap().to_owned());
        }
        (letters.len() == 10).then_some(())
    })
    .await;
    for worker in workers {
        worker.stop().await.unwrap();
    }
    scene.ledger.assert_ordered();
    scene.assert_budgets(2.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_outage_of_the_lease_table_suspends_the_fleet_and_moves_no_lease() {
    const LEASE_DURATION: Duration = Duration::from_secs(2);
    let mut scene = Scene::new(1, KinesisConfig::default()).await;
    let workers = [scene.worker("a", None).await, scene.worker("b", None).await];
    scene.publish(90).await;
    scene.ledger.has_all(&scene.published).await;
    eventually("an even spread", async || {
        let counts = workers.each_ref().map(|worker| worker.shards().len());
        (counts == [1, 2] || counts == [2, 1]).then_some(())
    })
    .await;
    let tokens = Scene::fencing_tokens(&[&workers[0], &workers[1]]);
    assert_eq!(tokens.len(), 3);

    let outage = scene.faults().add(all_of(Service::DynamoDb, Fault::Drop, 1.0));
    let cut = Instant::now();
    scene.faults().reset_counts();
    scene.started = cut;
    scene.publish_for(LEASE_DURATION * 2).await;
    let suspended = || workers.iter().flat_map(|worker| worker.handle.status().shards.into_values());
    eventually("all shards are suspended", async || suspended().all(|shard| shard.state == ShardState::Suspended).then_some(())).await;
    scene.publish(30).await;
    scene.assert_budgets(2.0);
    let mended = Instant::now();
    scene.faults().remove(outage);
    // No renewal was applied after the cut, so no lease was valid for longer than its duration from then on. A little for a delivery
    // that the machine stopped between the check and the entry in the ledger.
    let latest = cut + LEASE_DURATION + Duration::from_millis(100);
    let deliveries = scene.ledger.deliveries();
    let late: Vec<_> = deliveries.iter().filter(|delivery| delivery.at > latest && delivery.at < mended).collect();
    assert!(late.is_empty(), "delivered while no lease was valid: {late:?}");

    scene.ledger.has_all(&scene.published).await;
    scene.publish_for(LEASE_DURATION).await;
    scene.ledger.has_all(&scene.published).await;
    assert_eq!(Scene::fencing_tokens(&[&workers[0], &workers[1]]), tokens, "no lease has changed hands");
    for worker in workers {
        worker.stop().await.unwrap();
    }
    scene.ledger.assert_ordered();
    assert_eq!(scene.ledger.duplicates(), []);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_outage_of_the_stream_moves_no_lease() {
    let mut scene = Scene::new(1, KinesisConfig::default()).await;
    let workers = [scene.worker("a", None).await, scene.worker("b", None).await];
    eventually("an even spread", async || {
        let counts = workers.each_ref().map(|worker| worker.shards().len());
        (counts == [1, 2] || counts == [2, 1]).then_some(())
    })
    .await;
    scene.publish(90).await;
    scene.ledger.has_all(&scene.published).await;
    let tokens = Scene::fencing_tokens(&[&workers[0], &workers[1]]);

    let outage: Vec<_> = reads(Fault::Drop, 1.0).map(|rule| scene.faults().add(rule)).collect();
    // What was being answered is.
    sleep(Duration::from_millis(100)).await;
    let delivered = scene.ledger.deliveries().len();
    scene.publish_for(Duration::from_secs(3)).await;
    assert_eq!(scene.ledger.deliveries().len(), delivered, "nothing can be read");
    for rule in outage {
        scene.faults().remove(rule);
    }
    scene.ledger.has_all(&scene.published).await;
    assert_eq!(Scene::fencing_tokens(&[&workers[0], &workers[1]]), tokens, "no lease has changed hands");
    for worker in workers {
        worker.stop().await.unwrap();
    }
    scene.ledger.assert_ordered();
    assert_eq!(scene.ledger.duplicates(), []);
    scene.assert_budgets(2.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn iterators_that_expire_lose_and_repeat_nothing() {
    // They live shorter than a reader at the tip waits.
    let mut scene = Scene::new(1, KinesisConfig { iterator_life_ms: 300, ..KinesisConfig::default() }).await;
    let polling = PollingConfig { idle_interval: Duration::from_millis(500), ..PollingConfig::default() };
    let worker = Running::start(scene.world.worker("a", &scene.ledger).polling(polling)).await;
    for _ in 0..6 {
        scene.publish(60).await;
        sleep(Duration::from_millis(600)).await;
    }
    scene.split_first_shard();
    scene.publish(60).await;
    scene.ledger.has_all(&scene.published).await;
    eventually("the split shard has ended", async || scene.ledger.has_ended("shardId-000000000000").then_some(())).await;
    worker.stop().await.unwrap();
    let iterators = scene.faults().requests_of(Service::Kinesis, "GetShardIterator");
    assert!(iterators > 10, "iterators have expired: {iterators} for five shards");
    scene.ledger.assert_ordered();
    assert_eq!(scene.ledger.duplicates(), []);
    scene.assert_budgets(1.0);
}
