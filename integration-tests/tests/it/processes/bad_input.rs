//! What can't work is refused with a sentence, before anything is done.

use aws_sdk_dynamodb::types::{AttributeDefinition, BillingMode, KeySchemaElement, KeyType, ScalarAttributeType};
use kcl_local::LocalAws;
use kcl_local::kinesis::KinesisConfig;
use tokio::process::Command;

use super::child::{Consumer, environment, program, worker};
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
        (app, stream, "--dead-letter-queue no-such-queue", "consumer: dead-letter queue `no-such-queue` does not exist"),
    ] {
        let said = refused(with(&world, application, stream, flags), 1).await;
        assert!(said.contains(words), "{flags}: {said}");
    }
    for (application, stream, flags, words) in [
        ("", stream, "", "consumer: --application (or KCL_APPLICATION) is \"\": must have 3 to 255 characters"),
        (long.as_str(), stream, "", "consumer: --application (or KCL_APPLICATION) is"),
        (app, "", "", "consumer: --stream (or KCL_STREAM) is \"\": must have 1 to 128 characters"),
        (app, "arn:aws:sqs:us-east-1:123456789012:orders", "", "is no ARN of a Kinesis stream"),
        (app, other, "", "is in region xx-nowhere-1, and the AWS configuration is for"),
        (app, stream, "--lease-duration 500ms", "consumer: --lease-duration (or KCL_LEASE_DURATION) is 500ms: must be 1s to 300s"),
        (app, stream, "--shutdown-timeout 2h", "consumer: --shutdown-timeout (or KCL_SHUTDOWN_TIMEOUT) is 7200s"),
        (app, stream, "--max-leases 0", "consumer: --max-leases (or KCL_MAX_LEASES) is 0"),
        (app, stream, "--initial-position 2127-01-31T12:00:00Z", "consumer: --initial-position (or KCL_INITIAL_POSITION) is"),
        (app, stream, "--require-encryption", "consumer: --require-encryption (or KCL_REQUIRE_ENCRYPTION) means nothing without"),
        (app, stream, "--payload-bucket payloads", "consumer: --payload-bucket (or KCL_PAYLOAD_BUCKET) means nothing without"),
        (app, stream, "--fan-out-consumer efo", "consumer: --fan-out-consumer (or KCL_FAN_OUT_CONSUMER) means nothing without"),
    ] {
        let said = refused(with(&world, application, stream, flags), 2).await;
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
async fn an_empty_variable_is_no_value() {
    let world = World::with_shards(1).await;
    let variables =
        ["KCL_MAX_LEASES", "KCL_UNTIL", "KCL_DEAD_LETTER_QUEUE", "KCL_LEASE_DURATION", "KCL_REQUIRE_ENCRYPTION", "KCL_RETRIEVAL"];
    let mut command = worker(&world, "--until-idle 1s");
    command.envs(variables.map(|name| (name, "")));
    let mut consumer = Consumer::start("a", command, &Log::default());
    assert_eq!(consumer.end().await.code(), Some(0), "{}", consumer.logs());

    let mut nameless = program(&world);
    nameless.args(["--stream", &world.stream]).env("KCL_APPLICATION", "");
    let said = refused(nameless, 2).await;
    assert!(said.contains("--application"), "{said}");
}

#[cfg(target_os = "linux")]
#[tokio::test(flavor = "multi_thread")]
async fn a_closed_standard_output_is_refused_if_records_are_to_be_printed() {
    let world = World::with_shards(1).await;
    for (closed, refuses) in [(">&-", true), ("1</dev/null", true), (">/dev/null", false)] {
        let mut command = Command::new("sh");
        environment(&mut command, world.local.as_ref().map(LocalAws::endpoint_url).as_deref());
        command.env("PATH", "/usr/bin:/bin").kill_on_drop(true);
        command.args(["-c", &format!("exec \"$0\" \"$@\" {closed}"), env!("CARGO_BIN_EXE_consumer-under-test")]);
        command.args(["--application", &world.application, "--stream", &world.stream, "--print", "--until-idle", "1s"]);
        if refuses {
            let said = refused(command, 2).await;
            assert!(said.contains("consumer: --print (or KCL_PRINT) can't print: standard output is"), "{closed}: {said}");
        } else {
            let mut consumer = Consumer::start("a", command, &Log::default());
            assert_eq!(consumer.end().await.code(), Some(0), "{closed}: {}", consumer.logs());
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redrive_that_can_do_nothing_is_refused_although_the_queue_is_empty() {
    let world = World::with_shards(1).await;
    aws_sdk_sqs::Client::new(&world.config).create_queue().queue_name("letters").send().await.unwrap();
    let stream = world.stream.as_str();
    for (to, flags, code, words) in [
        ("no-such-stream", "", 1, "no-such-stream"),
        (stream, "--kind poisn", 2, "--kind"),
        (stream, "--key-sha256 zz", 2, "--key-sha256"),
        (stream, "--limit 0", 2, "--limit"),
        (stream, "--failed-from 7 --failed-before 6", 2, "--failed-from must be before"),
        (stream, "", 0, ""),
    ] {
        let mut command = program(&world);
        command.args(["redrive", "--from-queue", "letters", "--to-stream", to]).args(flags.split_whitespace());
        let ended = command.stderr(std::process::Stdio::piped()).output().await.unwrap();
        let said = String::from_utf8_lossy(&ended.stderr);
        assert!(ended.status.code() == Some(code) && said.contains(words), "{to} {flags}: {:?} {said}", ended.status);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_endpoint_is_said_in_words_while_it_is_waited_for() {
    let world = World::embedded(LocalAws::builder()).await;
    for (url, words) in
        [("http://127.0.0.1:9", "nothing listens at the endpoint"), ("http://no-such-host.invalid", "the endpoint's name is not known")]
    {
        let mut command = with(&world, "orders-app", "orders", "--start-patience 2s");
        command.env("AWS_ENDPOINT_URL", url);
        let said = refused(command, 1).await;
        assert!(said.contains(words), "{url}: {said}");
    }
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
    assert!(said.starts_with("consumer: ") && said.contains("no AWS credentials were found: set them"), "{said}");

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
