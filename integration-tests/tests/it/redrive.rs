//! From poison to the queue, back into the stream, and processed in the end; by the library and by the program.

use std::collections::BTreeSet;
use std::process::{Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use kcl_core::redrive::{Redrive, SqsLetters, StreamTarget};
use kcl_core::{
    ProcessError, ProcessResult, RecordBatch, RecordProcessor, S3BlobStore, ShardContext, ShardState, SqsDeadLetterQueue, async_trait,
};
use kcl_local::LocalAws;
use kcl_local::wire::{Fault, Rule, Service};
use serde_json::Value;

use crate::processes::child::program;
use crate::support::{Ledger, Running, World, eventually};

const SHARD: &str = "shardId-000000000000";

/// Calls every second record poison until it is mended.
struct Broken {
    ledger: Ledger,
    mended: Arc<AtomicBool>,
}

#[async_trait]
impl RecordProcessor for Broken {
    async fn process_records(&mut self, batch: &RecordBatch, shard: &ShardContext) -> ProcessResult {
        batch
            .for_each(shard, async |record| {
                let text = String::from_utf8_lossy(record.data());
                let number: u64 = text.rsplit(':').next().unwrap().parse().unwrap();
                if number % 2 == 1 && !self.mended.load(Ordering::SeqCst) {
                    return Err(ProcessError::poison("it can't be read yet"));
                }
                // What is large is known by its number.
                self.ledger.record_as("a", shard, record, format!("key:{number}"));
                Ok(())
            })
            .await
    }
}

/// A stream with a worker whose processor is broken, a queue and a bucket.
struct Scene {
    world: World,
    ledger: Ledger,
    mended: Arc<AtomicBool>,
    sqs: aws_sdk_sqs::Client,
    url: String,
}

impl Scene {
    async fn new() -> Self {
        let world = World::embedded(LocalAws::builder()).await;
        world.create_stream(1).await;
        let sqs = aws_sdk_sqs::Client::new(&world.config);
        let url = sqs.create_queue().queue_name("letters").send().await.unwrap().queue_url.unwrap();
        aws_sdk_s3::Client::new(&world.config).create_bucket().bucket("payloads").send().await.unwrap();
        Self { world, ledger: Ledger::default(), mended: Arc::default(), sqs, url }
    }

    /// Ten records, of which the odd ones are poison; number 5 is too large for a queue.
    async fn publish(&self) {
        for number in 0..10 {
            let filler = "x".repeat(if number == 5 { 400_000 } else { 0 });
            self.world.put(SHARD, "key", &format!("{filler}:{number}")).await;
        }
    }

    async fn worker(&self) -> Running {
        let queue = SqsDeadLetterQueue::new(&self.world.config, &self.url).blob_store(self.bucket());
        let (ledger, mended) = (self.ledger.clone(), Arc::clone(&self.mended));
        let processor = move |_: &ShardContext| Broken { ledger: ledger.clone(), mended: Arc::clone(&mended) };
        Running::start(self.world.worker("a", &self.ledger).dead_letter_queue(queue).processor(processor)).await
    }

    fn bucket(&self) -> S3BlobStore {
        S3BlobStore::new(&self.world.config, "payloads")
    }

    fn fault(&self, fault: Fault, service: Service, operation: &str, times: u64) {
        self.world.local.as_ref().unwrap().faults().add(Rule::new(fault).service(service).operation(operation).times(times));
    }

    /// Messages that can be received, and hidden ones.
    async fn left(&self) -> (String, String) {
        use aws_sdk_sqs::types::QueueAttributeName::{
            ApproximateNumberOfMessages as Visible, ApproximateNumberOfMessagesNotVisible as Hidden,
        };
        let asked = self.sqs.get_queue_attributes().queue_url(&self.url).attribute_names(Visible).attribute_names(Hidden);
        let read = asked.send().await.unwrap().attributes.unwrap();
        (read[&Visible].clone(), read[&Hidden].clone())
    }

    /// Runs `consumer redrive` with these flags; its lines.
    async fn command(&self, flags: &str) -> (Output, Vec<Value>) {
        let mut command = program(&self.world);
        command.args(["redrive", "--from-queue", "letters", "--to-stream", &self.world.stream]).args(flags.split_whitespace());
        let output = command.stdout(Stdio::piped()).stderr(Stdio::piped()).output().await.unwrap();
        let lines = String::from_utf8(output.stdout.clone()).unwrap();
        let lines = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        (output, lines)
    }
}

fn numbers(all: impl Iterator<Item = u64>) -> BTreeSet<String> {
    all.map(|number| format!("key:{number}")).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn poison_is_parked_redriven_and_processed_in_spite_of_faults() {
    let scene = Scene::new().await;
    scene.publish().await;
    let worker = scene.worker().await;
    scene.ledger.has_all(&numbers((0..10).step_by(2))).await;
    eventually("five letters", async || (scene.left().await.0 == "5").then_some(())).await;
    scene.mended.store(true, Ordering::SeqCst);

    scene.fault(Fault::Throttle, Service::Kinesis, "PutRecord", 2);
    scene.fault(Fault::LoseAnswer, Service::Sqs, "DeleteMessage", 1);
    scene.fault(Fault::ServerError, Service::S3, "GetObject", 1);
    let target = StreamTarget::new(&scene.world.config, &scene.world.stream);
    let redrive = Redrive::new(SqsLetters::new(&scene.world.config, "letters"), target).blob_store(scene.bucket());
    let report = redrive.delete_blobs(true).run().await.unwrap();
    assert_eq!((report.accepted, report.stayed, report.blobs_deleted, report.stopped), (5, 0, 1, None));

    scene.ledger.has_all(&numbers(0..10)).await;
    assert_eq!(scene.left().await, ("0".into(), "0".into()));
    let odd: Vec<_> = scene.ledger.deliveries().into_iter().map(|delivery| delivery.payload).skip(5).collect();
    assert_eq!(odd, ["key:1", "key:3", "key:5", "key:7", "key:9"], "in the order of the stream");
    worker.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn while_payloads_can_not_be_stored_the_shard_waits() {
    let scene = Scene::new().await;
    let worker = scene.worker().await;
    let faults = scene.world.local.as_ref().unwrap().faults();
    let outage = faults.add(Rule::new(Fault::ServerError).service(Service::S3));
    scene.publish().await;
    let waits = async || (worker.state(SHARD) == Some(ShardState::WaitingForDeadLetterQueue)).then_some(());
    eventually("the shard waits at the large record", waits).await;
    eventually("S3 was asked more than once", async || (faults.requests_of(Service::S3, "PutObject") > 2).then_some(())).await;
    assert!(!scene.ledger.payloads().contains("key:6"));
    faults.remove(outage);
    scene.ledger.has_all(&numbers((0..10).step_by(2))).await;
    eventually("five letters", async || (scene.left().await.0 == "5").then_some(())).await;
    worker.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_program_redrives_what_it_is_told_to() {
    let scene = Scene::new().await;
    scene.publish().await;
    let worker = scene.worker().await;
    eventually("five letters", async || (scene.left().await.0 == "5").then_some(())).await;
    scene.mended.store(true, Ordering::SeqCst);

    let (output, lines) = scene.command("--dry-run --payload-bucket payloads").await;
    assert!(output.status.success(), "{output:?}");
    assert_eq!(lines.len(), 6);
    assert_eq!((&lines[5]["summary"]["would_be_tried"], &lines[5]["summary"]["dry_run"]), (&5.into(), &true.into()));
    assert!(lines[..5].iter().all(|line| line["kind"] == "poison" && line["fate"] == "would_be_tried"), "{lines:?}");
    assert_eq!(scene.left().await, ("5".into(), "0".into()));

    // Without the bucket the large one stays, and those behind it, for they would overtake it.
    let (output, lines) = scene.command("").await;
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let fates: Vec<_> = lines[..5].iter().map(|line| line["fate"].as_str().unwrap()).collect();
    assert_eq!(fates.iter().filter(|fate| **fate == "accepted").count(), 2, "{lines:?}");
    assert!(lines.iter().any(|line| line["reason"].as_str().is_some_and(|reason| reason.contains("payloads"))), "{lines:?}");
    assert!(String::from_utf8_lossy(&output.stderr).contains("3 letters stay"), "{output:?}");

    let (output, lines) = scene.command("--payload-bucket payloads --kind poison --shard shardId-000000000000 --delete-payloads").await;
    assert!(output.status.success(), "{output:?}");
    assert_eq!((&lines[3]["summary"]["accepted"], &lines[3]["summary"]["payloads_deleted"]), (&3.into(), &1.into()));
    scene.ledger.has_all(&numbers(0..10)).await;
    worker.stop().await.unwrap();

    let (output, _) = scene.command("--limit many").await;
    assert_eq!(output.status.code(), Some(2));
    let missing = tokio::time::timeout(Duration::from_secs(60), async {
        let mut command = program(&scene.world);
        command.args(["redrive", "--from-queue", "no-such-queue", "--to-stream", &scene.world.stream]);
        command.output().await.unwrap()
    });
    let missing = missing.await.unwrap();
    assert_eq!(missing.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&missing.stderr).contains("no-such-queue"), "{missing:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_program_refuses_what_could_do_nothing_and_counts_what_is_invisible() {
    let scene = Scene::new().await;
    let run = async |flags: &str| {
        let mut command = program(&scene.world);
        command.args(["redrive", "--from-queue", "letters"]).args(flags.split_whitespace());
        let output = command.stdout(Stdio::piped()).stderr(Stdio::piped()).output().await.unwrap();
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let stream = &scene.world.stream;
    for (flags, code, said) in [
        ("--to-stream nostream".to_owned(), 1, "`nostream` does not exist"),
        (format!("--to-stream {stream} --kind poisn"), 2, "process_death"),
        (format!("--to-stream {stream} --key-sha256 zz"), 2, "--key-sha256"),
        (format!("--to-stream {stream} --limit 0"), 2, "--limit"),
        (format!("--to-stream {stream} --failed-from 2000 --failed-before 1000"), 2, "--failed-before"),
    ] {
        let (status, stderr) = run(&flags).await;
        assert!(status == Some(code) && stderr.contains(said), "{flags}: {status:?}, {stderr}");
    }
    let receives = |scene: &Scene| scene.world.local.as_ref().unwrap().faults().requests_of(Service::Sqs, "ReceiveMessage");
    assert_eq!(receives(&scene), 0, "before any work");

    // A letter that a run has received before it was killed.
    scene.sqs.send_message().queue_url(&scene.url).message_body("a letter").send().await.unwrap();
    scene.sqs.receive_message().queue_url(&scene.url).visibility_timeout(600).send().await.unwrap();
    let (status, stderr) = run(&format!("--to-stream {stream}")).await;
    assert!(status == Some(1) && stderr.contains("1 letters are invisible"), "{status:?}, {stderr}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_program_puts_letters_of_another_stream_back_on_request_only() {
    let scene = Scene::new().await;
    scene.publish().await;
    let worker = scene.worker().await;
    eventually("five letters", async || (scene.left().await.0 == "5").then_some(())).await;
    worker.stop().await.unwrap();
    let kinesis = aws_sdk_kinesis::Client::new(&scene.world.config);
    kinesis.create_stream().stream_name("another").shard_count(1).send().await.unwrap();

    let redrive = async |flags: &str| {
        let mut command = program(&scene.world);
        command.args(["redrive", "--from-queue", "letters", "--payload-bucket", "payloads", "--to-stream", "another"]);
        let output = command.args(flags.split_whitespace()).stdout(Stdio::piped()).stderr(Stdio::piped()).output().await.unwrap();
        (output.status.code(), String::from_utf8(output.stdout).unwrap())
    };
    for flags in ["--dry-run", ""] {
        let (status, stdout) = redrive(flags).await;
        assert_eq!(status, Some(1), "{stdout}");
        assert_eq!(stdout.matches("a record of another stream").count(), 5, "{stdout}");
    }
    assert_eq!(scene.left().await, ("5".into(), "0".into()));
    let (status, stdout) = redrive("--from-other-streams").await;
    assert_eq!(status, Some(0), "{stdout}");
    assert_eq!(scene.left().await, ("0".into(), "0".into()));
}
