//! What can't work is refused with a sentence, before anything is done.

use aws_sdk_dynamodb::types::{AttributeDefinition, BillingMode, KeySchemaElement, KeyType, ScalarAttributeType};
use kcl_local::LocalAws;
use kcl_local::kinesis::KinesisConfig;
use tokio::process::Command;

use super::child::{Consumer, program, worker};
use super::log::Log;
use crate::support::World;

/// Runs a program that must not start, and returns the last line that it wrote to standard error. It prints nothing.
async fn refused(command: Command, code: i32) -> String {
    let shown = format!("{:?}", command.as_std());
    let log = Log::default();
    let mut consumer = Consumer::start("a", command, &log);
    let status = consumer.end().await;
    assert_eq!(status.code(), Some(code), "{shown}: {}", consumer.logs());
    assert!(log.all().is_empty(), "{shown}");
    assert!(!consumer.logs().contains("worker started"), "{shown}: {}", consumer.logs());
    if code == 2 { consumer.logs() } else { consumer.logs().lines().last().unwrap_or_default().to_owned() }
}

fn with(world: &World, application: &str, stream: &str, flags: &str) -> Command {
    let mut command = program(world);
    command.args(["--application", application, "--stream", stream, "--print"]).args(flags.split_whitespace());
    command
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_names_and_settings_are_named() {
    let world = World::with_shards(1).await;
    let (app, stream) = (world.application.as_str(), world.stream.as_str());
    let long = "x".repeat(256);
    let other = "arn:aws:kinesis:xx-nowhere-1:123456789012:stream/orders";
    for (application, stream, flags, words) in [
        (app, "no-such-stream", "", "consumer: stream `no-such-stream` does not exist in this account and region"),
        ("", stream, "", "consumer: setting `application` is \"\": must have 3 to 255 characters"),
        (long.as_str(), stream, "", "consumer: setting `application` is"),
        (app, "", "", "consumer: setting `stream` is \"\": must have 1 to 128 characters"),
        (app, "arn:aws:sqs:us-east-1:123456789012:orders", "", "is no ARN of a Kinesis stream"),
        (app, other, "", "is in region xx-nowhere-1, and the AWS configuration is for"),
        (app, stream, "--lease-duration 500ms", "consumer: setting `lease_duration` is 500ms: must be 1s to 300s"),
        (app, stream, "--shutdown-timeout 2h", "consumer: setting `shutdown_timeout` is 7200s"),
        (app, stream, "--max-leases 0", "consumer: setting `max_leases` is 0"),
        (app, stream, "--dead-letter-queue no-such-queue", "consumer: dead-letter queue `no-such-queue` does not exist"),
    ] {
        let said = refused(with(&world, application, stream, flags), 1).await;
        assert!(said.contains(words), "{flags}: {said}");
    }
    for (flags, words) in [
        ("--initial-position nowhere", "--initial-position"),
        ("--lease-duration soon", "--lease-duration"),
        ("--no-such-flag", "--no-such-flag"),
    ] {
        let said = refused(with(&world, app, stream, flags), 2).await;
        assert!(said.contains(words), "{flags}: {said}");
    }
    assert!(refused(program(&world), 2).await.contains("--application"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_region_or_missing_credentials_are_named() {
    let world = World::embedded(LocalAws::builder()).await;
    world.create_stream(1).await;

    let mut nowhere = worker(&world, "");
    nowhere.env_remove("AWS_REGION");
    let said = refused(nowhere, 1).await;
    assert!(said.contains("needs a region: set AWS_REGION"), "{said}");

    let mut nobody = worker(&world, "");
    nobody.env_remove("AWS_ACCESS_KEY_ID").env_remove("AWS_SECRET_ACCESS_KEY");
    let said = refused(nobody, 1).await;
    assert!(said.starts_with("consumer: ") && said.contains("no credentials found"), "{said}");

    let mut elsewhere = worker(&world, "--region eu-west-1 --until-idle 1s");
    elsewhere.env_remove("AWS_REGION");
    let mut by_flag = Consumer::start("a", elsewhere, &Log::default());
    assert_eq!(by_flag.end().await.code(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_is_being_deleted_is_refused() {
    let slow = KinesisConfig { deleting_ms: 600_000, ..KinesisConfig::default() };
    let world = World::embedded(LocalAws::builder().kinesis(slow)).await;
    world.create_stream(1).await;
    world.kinesis.delete_stream().stream_name(&world.stream).send().await.unwrap();
    let said = refused(worker(&world, ""), 1).await;
    assert!(said.contains(&world.stream) && said.ends_with("is being deleted"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_of_somebody_else_is_refused_and_left_alone() {
    let world = World::with_shards(1).await;
    let key = KeySchemaElement::builder().attribute_name("order").key_type(KeyType::Hash).build().unwrap();
    let attribute = AttributeDefinition::builder().attribute_name("order").attribute_type(ScalarAttributeType::S).build().unwrap();
    let table = world.dynamodb.create_table().table_name(&world.application).billing_mode(BillingMode::PayPerRequest);
    table.key_schema(key).attribute_definitions(attribute).send().await.unwrap();
    let said = refused(worker(&world, ""), 1).await;
    assert!(said.contains("is no lease table"), "{said}");
    let scanned = world.dynamodb.scan().table_name(&world.application).send().await.unwrap();
    assert_eq!(scanned.count(), 0);
}
