//! A worker that commits counters over the wire, and is struck at each of its commits in turn: killed before and after, requests dropped, answers lost. The sums are
//! exact in the end. And the suite of transactions against what is served here.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use aws_sdk_dynamodb::types::{
    AttributeDefinition, AttributeValue, BillingMode, KeySchemaElement, KeyType, ScalarAttributeType, TransactWriteItem, Update,
};
use futures::future::join_all;
use kcl_core::{
    DynamoDbLeaseTable, Entropy, InitialPosition, Outcome, ProcessResult, Record, RecordBatch, RecordProcessor, ShardContext, ShardId,
    TableError, async_trait,
};
use kcl_lease::conformance::{EFFECTS, Effects, transaction_suite};
use kcl_lease::table::{LeaseListing, WriteOutcome};
use kcl_lease::{Lease, LeaseTable, LeaseWrite, TableOptions, TransactItems, TransactOutcome};
use kcl_local::LocalAws;
use kcl_local::wire::{Fault, Faults, Rule, Service};

use crate::support::{Ledger, Running, World, eventually};

const RECORDS: u64 = 40;
const KEYS: u64 = 7;
const CHUNK: usize = 10;
/// Commits that are struck in turn: as many as there are without a fault.
const COMMITS: u64 = 4;

/// What happens to one commit.
#[derive(Clone, Copy, Debug)]
enum Strike {
    Fault(Fault),
    /// The process dies before the request is sent.
    KilledBefore,
    /// The process dies when the request has been carried out.
    KilledAfter,
}

/// The lease table, whose commit of a given number is struck.
#[derive(Debug)]
struct Struck {
    table: DynamoDbLeaseTable,
    faults: Faults,
    strike: Strike,
    at: u64,
    commits: AtomicU64,
    dies: Arc<AtomicBool>,
}

impl Struck {
    async fn die(&self) -> ! {
        self.dies.store(true, Ordering::SeqCst);
        std::future::pending().await
    }
}

#[async_trait]
impl LeaseTable for Struck {
    async fn ensure(&self) -> Result<(), TableError> {
        self.table.ensure().await
    }

    async fn list(&self) -> Result<LeaseListing, TableError> {
        self.table.list().await
    }

    async fn get(&self, shard_id: &ShardId) -> Result<Option<Lease>, TableError> {
        self.table.get(shard_id).await
    }

    async fn create(&self, lease: &Lease) -> Result<bool, TableError> {
        self.table.create(lease).await
    }

    async fn write(&self, write: &LeaseWrite) -> Result<WriteOutcome, TableError> {
        self.table.write(write).await
    }

    async fn transact(&self, write: &LeaseWrite, with: &TransactItems) -> Result<TransactOutcome, TableError> {
        if self.commits.fetch_add(1, Ordering::SeqCst) + 1 == self.at {
            match self.strike {
                Strike::Fault(fault) => {
                    self.faults.add(Rule::new(fault).service(Service::DynamoDb).operation("TransactWriteItems").times(1));
                }
                Strike::KilledBefore => self.die().await,
                Strike::KilledAfter => {
                    let _ = self.table.transact(write, with).await;
                    self.die().await;
                }
            }
        }
        self.table.transact(write, with).await
    }

    async fn delete(&self, seen: &Lease) -> Result<bool, TableError> {
        self.table.delete(seen).await
    }
}

/// Adds up the records' numbers, and their count, by key.
struct Sums {
    table: String,
    ledger: Ledger,
}

fn number(record: &Record) -> u64 {
    std::str::from_utf8(record.data()).unwrap().rsplit(':').next().unwrap().parse().unwrap()
}

#[async_trait]
impl RecordProcessor for Sums {
    async fn process_records(&mut self, batch: &RecordBatch, shard: &ShardContext) -> ProcessResult {
        for chunk in batch.records().chunks(CHUNK) {
            let mut sums: BTreeMap<&str, (u64, u64)> = BTreeMap::new();
            for record in chunk {
                self.ledger.record("any", shard, record);
                let (count, sum) = sums.entry(record.partition_key().unwrap()).or_default();
                *count += 1;
                *sum += number(record);
            }
            let add = |(key, (count, sum)): (&str, (u64, u64))| {
                let update = Update::builder().table_name(&self.table).key("id", AttributeValue::S(key.to_owned()));
                let update = update.update_expression("ADD occurrences :count, numbers :sum");
                let update = update.expression_attribute_values(":count", AttributeValue::N(count.to_string()));
                let update = update.expression_attribute_values(":sum", AttributeValue::N(sum.to_string()));
                TransactWriteItem::builder().update(update.build().unwrap()).build()
            };
            shard.commit(sums.into_iter().map(add).collect(), chunk).await?;
        }
        Ok(Outcome::Done)
    }
}

async fn make_table(world: &World, name: &str) {
    let id = AttributeDefinition::builder().attribute_name("id").attribute_type(ScalarAttributeType::S).build().unwrap();
    let key = KeySchemaElement::builder().attribute_name("id").key_type(KeyType::Hash).build().unwrap();
    let request = world.dynamodb.create_table().table_name(name).billing_mode(BillingMode::PayPerRequest);
    request.attribute_definitions(id).key_schema(key).send().await.unwrap();
}

/// Count and sum by key, as the table has them.
async fn sums(world: &World, table: &str) -> BTreeMap<String, (u64, u64)> {
    let scanned = world.dynamodb.scan().table_name(table).consistent_read(true).send().await.unwrap();
    let number = |value: &AttributeValue| value.as_n().unwrap().parse().unwrap();
    let of = |item: &BTreeMap<&String, &AttributeValue>| {
        let get = |name: &str| item[&name.to_owned()];
        (get("id").as_s().unwrap().clone(), (number(get("occurrences")), number(get("numbers"))))
    };
    scanned.items().iter().map(|item| of(&item.iter().collect())).collect()
}

fn expected() -> BTreeMap<String, (u64, u64)> {
    let mut expected: BTreeMap<_, (u64, u64)> = BTreeMap::new();
    for number in 0..RECORDS {
        let (count, sum) = expected.entry(format!("key-{}", number % KEYS)).or_default();
        *count += 1;
        *sum += number;
    }
    expected
}

/// One run for each commit that is struck, each an application of its own on the same stream. Returns how many deliveries were repeated.
async fn struck_at_each_commit(strike: Strike) -> usize {
    let mut world = World::embedded(LocalAws::builder()).await;
    world.create_stream(1).await;
    world.publish(KEYS, 0, RECORDS).await;
    let (application, mut repeated) = (world.application.clone(), 0);
    for at in 1..=COMMITS {
        world.application = format!("{application}-{at}");
        let (table, ledger, dies) = (format!("sums-{at}"), Ledger::default(), Arc::new(AtomicBool::new(false)));
        make_table(&world, &table).await;
        let options = TableOptions { call_timeout: Duration::from_millis(400), ..TableOptions::default() };
        let leases = DynamoDbLeaseTable::new(&world.dynamodb, &world.application, options, &Entropy::from_seed(at));
        let faults = world.local.as_ref().expect("embedded").faults().clone();
        let leases = Arc::new(Struck { table: leases, faults, strike, at, commits: AtomicU64::new(0), dies: Arc::clone(&dies) });
        let start = async |name: &str| {
            let (table, ledger, leases) = (table.clone(), ledger.clone(), Arc::<Struck>::clone(&leases));
            let builder = world.worker(name, &ledger).initial_position(InitialPosition::TrimHorizon).lease_table(leases);
            Running::start(builder.processor(move |_: &ShardContext| Sums { table: table.clone(), ledger: ledger.clone() })).await
        };
        let mut worker = start("first").await;
        let is_done = async || (sums(&world, &table).await.values().map(|(count, _)| count).sum::<u64>() >= RECORDS).then_some(());
        if !matches!(strike, Strike::Fault(_)) {
            eventually("the worker dies", async || dies.load(Ordering::SeqCst).then_some(())).await;
            worker.kill().await;
            worker = start("second").await;
        }
        eventually("all is counted", is_done).await;
        // Whatever is repeated would be counted by now: this waits for the last commit to be answered, and then for the release.
        worker.stop().await.unwrap();
        assert_eq!(sums(&world, &table).await, expected(), "{strike:?} at commit {at}");
        assert!(leases.commits.load(Ordering::SeqCst) >= at, "{strike:?}: there was no commit {at}");
        repeated += ledger.duplicates().len();
    }
    repeated
}

#[tokio::test(flavor = "multi_thread")]
async fn sums_are_exact_whichever_commit_is_struck() {
    let faults = [Fault::Drop, Fault::LoseAnswer, Fault::WithholdAnswer, Fault::ServerError, Fault::Throttle];
    let strikes = faults.map(Strike::Fault).into_iter().chain([Strike::KilledBefore, Strike::KilledAfter]);
    let repeated: usize = join_all(strikes.map(struck_at_each_commit)).await.into_iter().sum();
    assert!(repeated > 0, "a killed worker's records are delivered again, and are not counted again");
}

struct Table(World);

#[async_trait]
impl Effects for Table {
    async fn ids(&self) -> Vec<String> {
        let scanned = self.0.dynamodb.scan().table_name(EFFECTS).consistent_read(true).send().await.unwrap();
        let mut ids: Vec<_> = scanned.items().iter().map(|item| item["id"].as_s().unwrap().clone()).collect();
        ids.sort();
        ids
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_lease_table_conforms_in_its_transactions() {
    transaction_suite(|| async {
        let world = World::embedded(LocalAws::builder()).await;
        make_table(&world, EFFECTS).await;
        // Patient with a busy machine.
        let options = TableOptions { call_timeout: Duration::from_secs(60), ..TableOptions::default() };
        let leases = DynamoDbLeaseTable::new(&world.dynamodb, "leases", options, &Entropy::from_seed(1));
        leases.ensure().await.unwrap();
        (leases, Table(world))
    })
    .await;
}
