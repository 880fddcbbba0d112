//! What is wrong is told by a typed error that names it, before any work starts; what goes wrong later stops no more than it must.

use std::collections::BTreeMap;
use std::io::Write;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use aws_config::{BehaviorVersion, Region, SdkConfig};
use aws_sdk_dynamodb::types::{AttributeDefinition, AttributeValue, BillingMode, KeySchemaElement, KeyType, ScalarAttributeType};
use kcl_core::{Checkpointing, ConfigError, RetryPolicy, TableError, Worker, WorkerBuilder, WorkerError};
use kcl_local::LocalAws;
use kcl_local::kinesis::KinesisConfig;

use crate::support::{Ledger, LedgerProcessor, Running, World, eventually};

const FIRST: &str = "shardId-000000000000";
const SECOND: &str = "shardId-000000000001";

fn processor() -> impl Fn(&kcl_core::ShardContext) -> LedgerProcessor + Send + Sync {
    |_: &_| LedgerProcessor { ledger: Ledger::default(), worker: "a".into() }
}

async fn refused(builder: WorkerBuilder) -> ConfigError {
    match builder.build().await.unwrap_err() {
        WorkerError::Config(error) => error,
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_setting_that_cannot_be_used_is_named_with_value_and_rule_before_anything_is_asked() {
    let world = World::embedded(LocalAws::builder()).await;
    let (long, seconds) = ("x".repeat(256), Duration::from_secs);
    let named = |application: &str, stream: &str| Worker::builder(application, stream).aws_config(&world.config).processor(processor());
    let sound = || named("orders-app", "orders");
    let wrong = |wrong: &str| format!("must have {wrong} characters");
    for (builder, setting, value, rule) in [
        (named("", "orders"), "application", "\"\"", wrong("3 to 255").as_str()),
        (named(&long, "orders"), "application", "xxx", &wrong("3 to 255")),
        (named("größe", "orders"), "application", "größe", "each a letter, a digit, `_`, `.` or `-`"),
        (named("orders-app", ""), "stream", "\"\"", &wrong("1 to 128")),
        (named("orders-app", &long), "stream", "xxx", &wrong("1 to 128")),
        (named("orders-app", "arn:aws:sqs:us-east-1:1:orders"), "stream", "sqs", "is no ARN of a Kinesis stream"),
        (
            named("orders-app", "arn:aws:kinesis:eu-west-1:000000000000:stream/orders"),
            "stream",
            "orders",
            "is in region eu-west-1, and the AWS configuration is for us-east-1",
        ),
        (sound().lease_table_name("no"), "lease_table_name", "no", &wrong("3 to 255")),
        (sound().worker_name(""), "worker_name", "\"\"", &wrong("1 to 128")),
        (sound().lease_duration(Duration::from_millis(999)), "lease_duration", "999ms", "1s to 300s"),
        (sound().lease_duration(seconds(301)), "lease_duration", "301s", "1s to 300s"),
        (sound().handoff_timeout(Duration::ZERO), "handoff_timeout", "0ns", "1s to 3600s"),
        (sound().shutdown_timeout(seconds(3601)), "shutdown_timeout", "3601s", "0ns to 3600s"),
        (sound().start_patience(seconds(3601)), "start_patience", "3601s", "0ns to 3600s"),
        (sound().shard_sync_interval(Duration::ZERO), "shard_sync_interval", "0ns", "1s to 3600s"),
        (sound().max_leases(0), "max_leases", "0", "1 to"),
        (sound().prefetch_bytes(1), "prefetch_bytes", "1", "10485760 to 4294967296"),
        (sound().checkpointing(Checkpointing::Automatic { interval: Duration::ZERO }), "checkpointing.interval", "0ns", "10ms to 3600s"),
        (sound().retry_policy(RetryPolicy { max_attempts: 0, ..RetryPolicy::default() }), "retry_policy.max_attempts", "0", "1 to 1000"),
        (sound().polling(kcl_core::PollingConfig { max_records: 0, ..Default::default() }), "max_records", "0", "1 to 10000"),
        (Worker::builder("orders-app", "orders").aws_config(&world.config), "processor", "not set", "a RecordProcessorFactory"),
        (Worker::builder("orders-app", "orders").processor(processor()), "aws_config", "not set", "load_from_env"),
    ] {
        let error = refused(builder).await;
        assert_eq!(error.setting, setting, "{error}");
        assert!(error.value.contains(value) && error.rule.contains(rule), "{error}");
        assert!(error.to_string().contains(setting), "{error}");
    }
    assert_eq!(world.faults().unwrap().requests(), BTreeMap::new(), "nothing was asked of anybody");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_region_and_missing_credentials_say_where_they_come_from() {
    let world = World::embedded(LocalAws::builder()).await;
    let config = || SdkConfig::builder().behavior_version(BehaviorVersion::latest()).endpoint_url(world.config.endpoint_url().unwrap());
    let without_region = config().credentials_provider(world.config.credentials_provider().unwrap()).build();
    let without_credentials = config().region(Region::new("us-east-1")).build();
    for (config, words) in [(without_region, "AWS_REGION"), (without_credentials, "needs credentials")] {
        let error = refused(Worker::builder("orders-app", "orders").aws_config(&config).processor(processor())).await;
        assert!(error.setting == "aws_config" && error.rule.contains(words), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_stream_is_told_with_its_region() {
    let world = World::without_stream().await;
    let error = world.worker("a", &Ledger::default()).build().await.unwrap_err();
    let region = world.config.region().unwrap().to_string();
    assert!(
        matches!(&error, WorkerError::StreamNotFound { stream, region: told } if *stream == world.stream && *told == region),
        "{error:?}"
    );
    assert!(error.to_string().contains(&world.stream) && error.to_string().contains("does not exist"), "{error}");
    assert!(!error.is_retryable());
    let tables = world.dynamodb.list_tables().send().await.unwrap();
    assert!(!tables.table_names().contains(&world.application), "no table was made for it");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_is_being_deleted_is_not_begun() {
    let world = World::embedded(LocalAws::builder().kinesis(KinesisConfig { deleting_ms: 600_000, ..Default::default() })).await;
    world.create_stream(1).await;
    world.kinesis.delete_stream().stream_name(&world.stream).send().await.unwrap();
    let error = world.worker("a", &Ledger::default()).build().await.unwrap_err();
    assert!(matches!(&error, WorkerError::StreamDeleting { stream } if stream.ends_with(&world.stream)), "{error:?}");
    assert!(error.to_string().contains("is being deleted"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_is_being_made_is_waited_for() {
    let world = World::embedded(LocalAws::builder().kinesis(KinesisConfig { creating_ms: 1000, ..Default::default() })).await;
    world.kinesis.create_stream().stream_name(&world.stream).shard_count(1).send().await.unwrap();
    let ledger = Ledger::default();
    let worker = Running::start(world.worker("a", &ledger)).await;
    ledger.has_all(&world.publish(1, 0, 10).await).await;
    worker.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_is_no_lease_table_is_left_alone() {
    let world = World::with_shards(1).await;
    let key = KeySchemaElement::builder().attribute_name("orderId").key_type(KeyType::Hash).build().unwrap();
    let attribute = AttributeDefinition::builder().attribute_name("orderId").attribute_type(ScalarAttributeType::S).build().unwrap();
    let create = world.dynamodb.create_table().table_name(&world.application).billing_mode(BillingMode::PayPerRequest);
    create.key_schema(key).attribute_definitions(attribute).send().await.unwrap();
    eventually("the table is active", async || {
        let table = world.dynamodb.describe_table().table_name(&world.application).send().await.unwrap().table?;
        (table.table_status()?.as_str() == "ACTIVE").then_some(())
    })
    .await;
    let error = world.worker("a", &Ledger::default()).build().await.unwrap_err();
    assert!(matches!(&error, WorkerError::Table(TableError::NotALeaseTable { .. })), "{error:?}");
    for words in [world.application.as_str(), "orderId HASH", "leaseKey HASH"] {
        assert!(error.to_string().contains(words), "{error}");
    }
    world.dynamodb.delete_table().table_name(&world.application).send().await.unwrap();
}

fn text(text: &str) -> AttributeValue {
    AttributeValue::S(text.to_owned())
}

async fn set(world: &World, shard: &str, attribute: &str, value: AttributeValue) {
    let update = world.dynamodb.update_item().table_name(&world.application).key("leaseKey", text(shard));
    let update = update.update_expression("SET #name = :value").expression_attribute_names("#name", attribute);
    update.expression_attribute_values(":value", value).send().await.unwrap();
}

/// The log of one test, for tests whose runtime has one thread.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }
}

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn a_lease_that_cannot_be_read_is_set_aside_and_its_children_wait_for_it() {
    set_aside(false).await;
}

#[tokio::test]
async fn children_that_have_leases_already_wait_for_a_parent_whose_lease_cannot_be_read() {
    set_aside(true).await;
}

/// Spoils a lease whose shard then splits; with `children`, after its last owner has made their leases and died.
async fn set_aside(children: bool) {
    let log = Log::default();
    let writer = log.clone();
    let _guard = tracing::subscriber::set_default(tracing_subscriber::fmt().with_ansi(false).with_writer(move || writer.clone()).finish());
    let world = World::with_shards(2).await;
    let ledger = Ledger::default();
    let builder = || world.worker("a", &ledger).shard_sync_interval(Duration::from_secs(1));
    let mut published = world.publish(20, 0, 100).await;
    let worker = Running::start(builder()).await;
    ledger.has_all(&published).await;
    worker.stop().await.unwrap();
    let checkpoint = world.checkpoint(FIRST).await.unwrap();
    set(&world, FIRST, "checkpoint", text("yesterday")).await;
    let spoilt = world.item(FIRST).await;

    world.put(FIRST, "a", "a:100").await;
    world.split(FIRST).await;
    world.put("shardId-000000000002", "a", "a:101").await;
    if children {
        for child in ["shardId-000000000002", "shardId-000000000003"] {
            set(&world, child, "checkpoint", text("TRIM_HORIZON")).await;
            set(&world, child, "leaseCounter", AttributeValue::N("0".into())).await;
            set(&world, child, "parentShardId", AttributeValue::Ss(vec![FIRST.into()])).await;
        }
    }
    let worker = Running::start(builder()).await;
    // Several comparisons of shards and leases, and the other shard goes on.
    for number in 102..112 {
        world.put(SECOND, "b", &format!("b:{number}")).await;
        eventually("the other shard goes on", async || ledger.payloads().contains(&format!("b:{number}")).then_some(())).await;
        published.insert(format!("b:{number}"));
        tokio::time::sleep(Duration::from_millis(400)).await;
    }
    assert_eq!(ledger.payloads(), published, "nothing of the spoilt lease's shard, and nothing of its children");
    assert_eq!(world.item(FIRST).await, spoilt, "the item is as it was");
    let reports = log.text().lines().filter(|line| line.contains("ERROR") && line.contains(FIRST)).count();
    assert_eq!(reports, 1, "told once:\n{}", log.text());
    assert!(log.text().contains("no checkpoint: expected TRIM_HORIZON"), "{}", log.text());

    set(&world, FIRST, "checkpoint", text(&checkpoint)).await;
    published.extend(["a:100".into(), "a:101".into()]);
    ledger.has_all(&published).await;
    worker.stop().await.unwrap();
    ledger.assert_ordered();
    assert_eq!(ledger.duplicates(), []);
}

#[tokio::test(flavor = "multi_thread")]
async fn items_and_attributes_of_others_survive_a_whole_run() {
    let world = World::with_shards(2).await;
    let ledger = Ledger::default();
    let mut published = world.publish(20, 0, 100).await;
    let worker = Running::start(world.worker("a", &ledger)).await;
    ledger.has_all(&published).await;
    worker.stop().await.unwrap();
    let foreign = [("leaseKey", text("Leader")), ("entityType", text("LEADER")), ("anything", AttributeValue::Bool(true))];
    let put = world.dynamodb.put_item().table_name(&world.application);
    put.set_item(Some(foreign.map(|(name, value)| (name.to_owned(), value)).into())).send().await.unwrap();
    set(&world, SECOND, "throughputKBps", AttributeValue::N("1.5".into())).await;
    set(&world, SECOND, "ofTheFuture", AttributeValue::Ss(vec!["x".into(), "y".into()])).await;
    let (leader, lease) = (world.item("Leader").await.unwrap(), world.item(SECOND).await.unwrap());

    let worker = Running::start(world.worker("b", &ledger).shard_sync_interval(Duration::from_secs(1))).await;
    published.extend(world.publish(20, 100, 100).await);
    world.split(FIRST).await;
    published.extend(world.publish(20, 200, 100).await);
    ledger.has_all(&published).await;
    eventually("the split shard's lease is cleaned up", async || world.item(FIRST).await.is_none().then_some(())).await;
    worker.stop().await.unwrap();
    assert_eq!(world.item("Leader").await, Some(leader));
    let after = world.item(SECOND).await.unwrap();
    assert_ne!(after["checkpoint"], lease["checkpoint"], "the lease was used");
    for name in ["throughputKBps", "ofTheFuture"] {
        assert_eq!(after.get(name), lease.get(name));
    }
    assert_eq!(ledger.duplicates(), []);
}

async fn recreate(world: &World, shards: i32) {
    world.kinesis.delete_stream().stream_name(&world.stream).send().await.unwrap();
    eventually("the stream is gone", async || {
        world.kinesis.describe_stream_summary().stream_name(&world.stream).send().await.is_err().then_some(())
    })
    .await;
    world.create_stream(shards).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_made_anew_under_the_same_name_is_refused_until_it_is_adopted() {
    let world = World::with_shards(2).await;
    let old = Ledger::default();
    let worker = Running::start(world.worker("a", &old)).await;
    old.has_all(&world.publish(20, 0, 100).await).await;
    worker.stop().await.unwrap();
    recreate(&world, 2).await;
    let published = world.publish(20, 1000, 100).await;
    let before = world.item(FIRST).await;

    let error = world.worker("b", &Ledger::default()).build().await.unwrap_err();
    assert!(matches!(&error, WorkerError::StreamRecreated { application, .. } if *application == world.application), "{error:?}");
    assert!(error.to_string().contains("adopt_recreated_stream(true)"), "{error}");
    assert_eq!(world.item(FIRST).await, before, "nothing was changed");

    let new = Ledger::default();
    let worker = Running::start(world.worker("c", &new).adopt_recreated_stream(true)).await;
    new.has_all(&published).await;
    worker.stop().await.unwrap();
    assert_eq!(new.payloads(), published);
    assert_eq!(new.duplicates(), []);
    // Adopted once, the new stream is the application's own.
    Running::start(world.worker("d", &new)).await.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_may_adopt_says_to_start_it_again_and_adopts_then() {
    let world = World::with_shards(2).await;
    let ledger = Ledger::default();
    let start = || {
        let builder = world.worker("a", &ledger).adopt_recreated_stream(true);
        Running::start(builder.shard_sync_interval(Duration::from_secs(1)))
    };
    let worker = start().await;
    ledger.has_all(&world.publish(20, 0, 100).await).await;
    recreate(&world, 2).await;
    let error = worker.end().await.unwrap_err();
    assert!(matches!(error, WorkerError::StreamReplaced { .. }) && error.is_retryable(), "{error:?}");
    let words = error.to_string();
    assert!(words.contains("start the worker again") && !words.contains("adopt_recreated_stream"), "{words}");
    let worker = start().await;
    ledger.has_all(&world.publish(20, 1000, 100).await).await;
    worker.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn workers_whose_stream_is_replaced_under_them_stop_and_say_so() {
    let world = World::with_shards(2).await;
    let ledger = Ledger::default();
    let start = |name: &str| Running::start(world.worker(name, &ledger).shard_sync_interval(Duration::from_secs(1)));
    let workers = [start("a").await, start("b").await];
    let published = world.publish(20, 0, 100).await;
    ledger.has_all(&published).await;
    eventually("one shard each", async || workers.iter().all(|worker| worker.shards().len() == 1).then_some(())).await;
    recreate(&world, 2).await;
    for worker in workers {
        let error = worker.end().await.unwrap_err();
        assert!(matches!(error, WorkerError::StreamRecreated { .. }), "{error:?}");
    }
    for shard in [FIRST, SECOND] {
        assert!(!world.item(shard).await.unwrap().contains_key("leaseOwner"), "the leases were freed");
    }
    // What was read of the new stream while that was found out, if anything, is not the old stream's progress.
    let published = world.publish(20, 1000, 100).await;
    let new = Ledger::default();
    let worker = Running::start(world.worker("c", &new).adopt_recreated_stream(true)).await;
    new.has_all(&published).await;
    worker.stop().await.unwrap();
}
