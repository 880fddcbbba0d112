//! Records that can't be processed: where they go, what waits for them, and what does not.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use kcl_core::{
    DeadLetter, DeadLetterError, DeadLetterQueue, KinesisDeadLetterQueue, Outcome, ProcessError, ProcessResult, RecordBatch,
    RecordProcessor, ShardContext, ShardState, SqsDeadLetterQueue, WorkerBuilder, WorkerError, async_trait,
};
use kcl_local::LocalAws;
use kcl_local::wire::{Fault, Rule, Service};
use serde_json::Value;

use crate::support::{Ledger, Running, World, eventually};

const FIRST: &str = "shardId-000000000000";
const SECOND: &str = "shardId-000000000001";

/// A queue of the test's own.
struct Queue {
    sqs: aws_sdk_sqs::Client,
    url: String,
}

impl Queue {
    async fn new(world: &World) -> Self {
        let sqs = aws_sdk_sqs::Client::new(&world.config);
        let url = sqs.create_queue().queue_name(&world.application).send().await.unwrap().queue_url.unwrap();
        Self { sqs, url }
    }

    fn of(&self, world: &World) -> SqsDeadLetterQueue {
        SqsDeadLetterQueue::new(&world.config, &self.url)
    }

    /// Waits for this many letters and returns their envelopes; there are no more.
    async fn letters(&self, count: usize) -> Vec<Value> {
        let mut letters = Vec::new();
        eventually("the dead letters", async || {
            letters.extend(self.receive().await);
            (letters.len() >= count).then_some(())
        })
        .await;
        letters.extend(self.receive().await);
        assert_eq!(letters.len(), count, "{letters:#?}");
        letters
    }

    async fn receive(&self) -> Vec<Value> {
        let received = self.sqs.receive_message().queue_url(&self.url).max_number_of_messages(10).send().await.unwrap();
        for message in received.messages() {
            let delete = self.sqs.delete_message().queue_url(&self.url).receipt_handle(message.receipt_handle().unwrap());
            delete.send().await.unwrap();
        }
        received.messages().iter().map(|message| serde_json::from_str(message.body().unwrap()).unwrap()).collect()
    }
}

fn payload(letter: &Value) -> String {
    String::from_utf8(STANDARD.decode(letter["data"].as_str().unwrap()).unwrap()).unwrap()
}

fn payloads(letters: &[Value]) -> BTreeSet<String> {
    letters.iter().map(payload).collect()
}

fn set<const N: usize>(payloads: [&str; N]) -> BTreeSet<String> {
    payloads.map(ToOwned::to_owned).into()
}

async fn shard_is(worker: &Running, shard: &str, state: ShardState) {
    eventually(&format!("{shard} is {state:?}"), async || (worker.state(shard) == Some(state)).then_some(())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn poison_goes_to_the_queue_and_its_neighbours_are_delivered_once() {
    let world = World::with_shards(2).await;
    let queue = Queue::new(&world).await;
    let mut published = BTreeSet::new();
    for number in 0..30 {
        let (shard, key) = if number % 2 == 0 { (FIRST, "even") } else { (SECOND, "odd") };
        let payload = if number % 10 == 3 { format!("poison:{number}") } else { format!("{key}:{number}") };
        world.put(shard, key, &payload).await;
        published.insert(payload);
    }
    let ledger = Ledger::default();
    let worker = Running::start(world.worker("a", &ledger).dead_letter_queue(queue.of(&world))).await;
    let letters = queue.letters(3).await;
    let (poison, sound): (BTreeSet<_>, BTreeSet<_>) = published.into_iter().partition(|payload| payload.starts_with("poison"));
    ledger.has_all(&sound).await;
    assert_eq!(payloads(&letters), poison);
    for letter in &letters {
        assert_eq!((letter["shardId"].as_str(), letter["partitionKey"].as_str()), (Some(SECOND), Some("odd")), "{letter:#}");
        assert_eq!((letter["error"]["kind"].as_str(), letter["attempts"].as_u64()), (Some("poison"), Some(1)), "{letter:#}");
        assert_eq!(letter["application"].as_str(), Some(world.application.as_str()));
    }
    let dead_letters: u64 = worker.handle.status().shards.values().map(|status| status.dead_letters).sum();
    assert_eq!(dead_letters, 3);
    worker.stop().await.unwrap();
    assert_eq!(ledger.payloads(), sound);
    assert_eq!(ledger.duplicates(), []);
    ledger.assert_ordered();
}

/// An aggregate of these keys and payloads, whatever the keys are. All texts are short.
fn aggregate(records: &[(&[u8], &str)]) -> Vec<u8> {
    use md5::Digest as _;
    let field = |number: u8, content: &[u8]| {
        let length = u16::try_from(content.len()).unwrap();
        // A number of two bytes, whether it needs them or not.
        let length = [u8::try_from(length & 0x7f).unwrap() | 0x80, u8::try_from(length >> 7).unwrap()];
        [&[number << 3 | 2][..], &length, content].concat()
    };
    let keys = records.iter().flat_map(|(key, _)| field(1, key));
    let records = (0..).zip(records).flat_map(|(index, (_, data))| field(3, &[&[0x08, index][..], &field(3, data.as_bytes())].concat()));
    let message: Vec<u8> = keys.chain(records).collect();
    [&[0xF3, 0x89, 0x9A, 0xC2][..], &message, &md5::Md5::digest(&message)].concat()
}

#[tokio::test(flavor = "multi_thread")]
async fn odd_keys_in_an_aggregate_hold_nothing_up_without_any_queue() {
    let world = World::with_shards(1).await;
    let too_long = "k".repeat(257);
    let odd: [&[u8]; 3] = [b"", too_long.as_bytes(), &[b'k', 0xff]];
    let mut expected = Vec::new();
    for (number, key) in odd.into_iter().enumerate() {
        let payloads = ["before", "odd", "after"].map(|place| format!("{place}:{number}"));
        let data = aggregate(&[(b"good", &payloads[0]), (key, &payloads[1]), (b"good", &payloads[2])]);
        let put = world.kinesis.put_record().stream_name(&world.stream).partition_key("k");
        put.data(aws_sdk_kinesis::primitives::Blob::new(data)).send().await.unwrap();
        expected.extend(payloads);
    }
    let ledger = Ledger::default();
    let worker = Running::start(world.worker("a", &ledger)).await;
    ledger.has_all(&expected.iter().cloned().collect()).await;
    worker.stop().await.unwrap();
    let deliveries = ledger.deliveries();
    let payloads: Vec<_> = deliveries.iter().map(|delivery| delivery.payload.clone()).collect();
    assert_eq!(payloads, expected, "all of them, once, in their order");
    // A key that is no text is none.
    let keys: Vec<_> = deliveries.iter().skip(1).step_by(3).map(|delivery| delivery.key.as_str()).collect();
    assert_eq!(keys, ["", too_long.as_str(), ""]);
}

/// A queue of a user's own that panics wherever it is told to.
#[derive(Debug)]
struct Panicking {
    in_check: bool,
    sends: Arc<AtomicU32>,
}

#[async_trait]
impl DeadLetterQueue for Panicking {
    async fn check(&self) -> Result<(), DeadLetterError> {
        assert!(!self.in_check, "a check that panics");
        Ok(())
    }

    async fn send(&self, letters: &[DeadLetter]) -> Vec<Result<(), DeadLetterError>> {
        let sent = self.sends.fetch_add(1, Ordering::SeqCst);
        assert!(sent >= 3, "a send that panics");
        vec![Ok(()); letters.len()]
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_queue_that_panics_is_one_that_is_away() {
    let world = World::with_shards(1).await;
    let ledger = Ledger::default();
    let sends = Arc::<AtomicU32>::default();
    let queue = |in_check| Panicking { in_check, sends: Arc::clone(&sends) };
    let builder = world.worker("a", &ledger).start_patience(Duration::ZERO);
    let refused = builder.dead_letter_queue(queue(true)).build().await.unwrap_err();
    assert!(matches!(&refused, WorkerError::DeadLetter(DeadLetterError::Unavailable { .. })), "{refused:?}");
    assert!(refused.to_string().contains("Panicking") && refused.to_string().contains("panicked"), "{refused}");

    world.put(FIRST, "a", "poison:0").await;
    world.put(FIRST, "a", "a:1").await;
    let worker = Running::start(world.worker("a", &ledger).dead_letter_queue(queue(false))).await;
    ledger.has_all(&set(["a:1"])).await;
    let status = worker.handle.status();
    let shard = &status.shards[&FIRST.into()];
    assert_eq!((shard.dead_letters, sends.load(Ordering::SeqCst)), (1, 4), "the same consumer has tried until it was accepted");
    worker.stop().await.unwrap();
    assert_eq!(ledger.duplicates(), []);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_letter_stream_that_is_the_workers_own_source_is_refused() {
    let world = World::with_shards(1).await;
    let described = world.kinesis.describe_stream_summary().stream_name(&world.stream).send().await.unwrap();
    let arn = described.stream_description_summary.unwrap().stream_arn;
    let ledger = Ledger::default();
    for own in [&world.stream, &arn] {
        let queue = KinesisDeadLetterQueue::new(&world.config, own);
        let refused = world.worker("a", &ledger).dead_letter_queue(queue).build().await.unwrap_err();
        assert!(matches!(&refused, WorkerError::DeadLetter(DeadLetterError::FeedsItsSource { stream }) if *stream == arn), "{refused:?}");
    }
    let tables = world.dynamodb.list_tables().send().await.unwrap();
    assert!(!tables.table_names().contains(&world.application), "no work was begun");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_queue_that_is_missing_is_told_before_any_work() {
    let world = World::with_shards(1).await;
    let url = Queue::new(&world).await.url.replace(&world.application, "another-queue");
    for queue in ["another-queue", &url] {
        let builder = world.worker("a", &Ledger::default()).dead_letter_queue(SqsDeadLetterQueue::new(&world.config, queue));
        let error = builder.build().await.unwrap_err();
        assert!(matches!(&error, WorkerError::DeadLetter(DeadLetterError::NotFound { .. })), "{error:?}");
        assert!(error.to_string().contains(queue) && error.to_string().contains("does not exist"), "{error}");
        assert!(!error.is_retryable());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shard_waits_for_a_queue_that_is_down_and_the_others_go_on() {
    let world = World::with_shards(2).await;
    let Some(faults) = world.faults() else { return };
    let queue = Queue::new(&world).await;
    let outage = faults.add(Rule::new(Fault::ServerError).service(Service::Sqs).operation("SendMessageBatch"));
    let before = world.put(FIRST, "a", "a:0").await;
    let poison = world.put(FIRST, "a", "poison:1").await;
    world.put(FIRST, "a", "a:2").await;
    let ledger = Ledger::default();
    let worker = Running::start(world.worker("a", &ledger).dead_letter_queue(queue.of(&world))).await;
    shard_is(&worker, FIRST, ShardState::WaitingForDeadLetterQueue).await;
    assert!(ShardState::WaitingForDeadLetterQueue.is_stuck());
    eventually("the checkpoint stands before the poison", async || (world.checkpoint(FIRST).await? == before.to_string()).then_some(()))
        .await;
    for number in 3..8 {
        world.put(SECOND, "b", &format!("b:{number}")).await;
        eventually("the other shard goes on", async || ledger.payloads().contains(&format!("b:{number}")).then_some(())).await;
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
    // Several checkpoints have been due since.
    assert_eq!(world.checkpoint(FIRST).await.unwrap(), before.to_string());
    assert_eq!(worker.state(FIRST), Some(ShardState::WaitingForDeadLetterQueue));
    assert!(!ledger.payloads().contains("a:2"));
    assert_eq!(queue.receive().await, Vec::<Value>::new());
    let attempts = faults.requests_of(Service::Sqs, "SendMessageBatch");
    assert!(attempts < 100, "{attempts} attempts within seconds");

    faults.remove(outage);
    let letters = queue.letters(1).await;
    assert_eq!(letters[0]["sequenceNumber"].as_str(), Some(poison.to_string().as_str()));
    ledger.has_all(&set(["a:2"])).await;
    shard_is(&worker, FIRST, ShardState::Processing).await;
    worker.stop().await.unwrap();
    assert!(world.checkpoint(FIRST).await.unwrap() > poison.to_string());
    assert_eq!(ledger.duplicates(), []);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_queue_the_shard_stops_at_the_record_until_there_is_one() {
    let world = World::with_shards(2).await;
    let before = world.put(FIRST, "a", "a:0").await;
    world.put(FIRST, "a", "poison:1").await;
    world.put(FIRST, "a", "a:2").await;
    let ledger = Ledger::default();
    let worker = Running::start(world.worker("a", &ledger)).await;
    shard_is(&worker, FIRST, ShardState::BlockedByRecord).await;
    world.put(SECOND, "b", "b:3").await;
    ledger.has_all(&set(["a:0", "b:3"])).await;
    worker.stop().await.unwrap();
    assert_eq!(ledger.payloads(), set(["a:0", "b:3"]));
    assert_eq!(world.checkpoint(FIRST).await.unwrap(), before.to_string());

    let queue = Queue::new(&world).await;
    let worker = Running::start(world.worker("b", &ledger).dead_letter_queue(queue.of(&world))).await;
    assert_eq!(payloads(&queue.letters(1).await), set(["poison:1"]));
    ledger.has_all(&set(["a:2"])).await;
    worker.stop().await.unwrap();
    assert_eq!(ledger.duplicates(), []);
}

/// Runs a processor of a test's own over ten records of one shard, until all but those that it can't process are in the ledger.
struct Run {
    world: World,
    ledger: Ledger,
    queue: Queue,
    sound: BTreeSet<String>,
}

impl Run {
    /// Ten records `key:0` to `key:9`, but for this one, which is `bad:NUMBER`.
    async fn with_bad(bad: u64) -> Self {
        let world = World::embedded(LocalAws::builder()).await;
        world.create_stream(1).await;
        let queue = Queue::new(&world).await;
        let mut sound = BTreeSet::new();
        for number in 0..10 {
            let payload = if number == bad { format!("bad:{number}") } else { format!("key:{number}") };
            world.put(FIRST, "key", &payload).await;
            sound.extend((number != bad).then_some(payload));
        }
        Self { world, ledger: Ledger::default(), queue, sound }
    }

    fn builder(&self) -> WorkerBuilder {
        self.world.worker("a", &self.ledger).dead_letter_queue(self.queue.of(&self.world))
    }

    async fn all_sound_are_delivered_once(&self, worker: Running) {
        self.ledger.has_all(&self.sound).await;
        worker.stop().await.unwrap();
        assert_eq!(self.ledger.duplicates(), []);
        self.ledger.assert_ordered();
    }
}

fn is_bad(record: &kcl_core::Record) -> bool {
    record.data().starts_with(b"bad")
}

/// Fails this often at the bad record, and then processes it too.
struct Moody {
    ledger: Ledger,
    failures_left: Arc<AtomicU32>,
}

#[async_trait]
impl RecordProcessor for Moody {
    async fn process_records(&mut self, batch: &RecordBatch, shard: &ShardContext) -> ProcessResult {
        batch
            .for_each(shard, async |record| {
                let fail = || self.failures_left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)).is_ok();
                if is_bad(record) && fail() {
                    return Err("the database is away");
                }
                self.ledger.record("a", shard, record);
                Ok(())
            })
            .await
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_fails_for_a_while_needs_no_dead_letter() {
    let mut run = Run::with_bad(4).await;
    run.sound.insert("bad:4".into());
    // One attempt more than failures: the retry policy of the tests makes three.
    let failures_left = Arc::new(AtomicU32::new(2));
    let (ledger, left) = (run.ledger.clone(), Arc::clone(&failures_left));
    let processor = move |_: &ShardContext| Moody { ledger: ledger.clone(), failures_left: Arc::clone(&left) };
    let worker = Running::start(run.builder().processor(processor)).await;
    run.all_sound_are_delivered_once(worker).await;
    assert_eq!(failures_left.load(Ordering::SeqCst), 0);
    assert_eq!(run.world.faults().unwrap().accepted_of(Service::Sqs, "SendMessageBatch"), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_fails_each_time_is_a_dead_letter_after_the_attempts_allowed() {
    let run = Run::with_bad(4).await;
    let ledger = run.ledger.clone();
    let processor = move |_: &ShardContext| Moody { ledger: ledger.clone(), failures_left: Arc::new(AtomicU32::new(u32::MAX)) };
    let worker = Running::start(run.builder().processor(processor)).await;
    run.all_sound_are_delivered_once(worker).await;
    let letters = run.queue.letters(1).await;
    assert_eq!(payload(&letters[0]), "bad:4");
    let error = &letters[0]["error"];
    assert_eq!((error["kind"].as_str(), error["message"].as_str()), (Some("error"), Some("the database is away")));
    assert_eq!(letters[0]["attempts"].as_u64(), Some(3));
}

/// Processes batches all at once or not at all, and can't tell which record it was.
struct AllAtOnce(Ledger);

#[async_trait]
impl RecordProcessor for AllAtOnce {
    async fn process_records(&mut self, batch: &RecordBatch, shard: &ShardContext) -> ProcessResult {
        if batch.records().iter().any(is_bad) {
            return Err(ProcessError::retry("one of them is bad"));
        }
        for record in batch.records() {
            self.0.record("a", shard, record);
        }
        Ok(Outcome::Done)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn of_a_batch_that_fails_as_a_whole_only_the_bad_record_is_a_dead_letter() {
    let run = Run::with_bad(7).await;
    let ledger = run.ledger.clone();
    let worker = Running::start(run.builder().processor(move |_: &ShardContext| AllAtOnce(ledger.clone()))).await;
    run.all_sound_are_delivered_once(worker).await;
    assert_eq!(payloads(&run.queue.letters(1).await), set(["bad:7"]));
}

/// Panics at the bad record, and is in a bad way from then on.
struct Panicky {
    ledger: Ledger,
    broken: bool,
}

#[async_trait]
impl RecordProcessor for Panicky {
    async fn process_records(&mut self, batch: &RecordBatch, shard: &ShardContext) -> ProcessResult {
        assert!(!self.broken, "a processor that has panicked is not called again");
        for record in batch {
            if is_bad(record) {
                self.broken = true;
                panic!("row {} is bad", 7);
            }
            self.ledger.record("a", shard, record);
            batch.ack(record);
        }
        Ok(Outcome::Done)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_panic_costs_the_processor_and_the_record_is_a_dead_letter() {
    let run = Run::with_bad(2).await;
    let (ledger, made) = (run.ledger.clone(), Arc::new(Mutex::new(0)));
    let count = Arc::clone(&made);
    let processor = move |_: &ShardContext| {
        *count.lock().unwrap() += 1;
        Panicky { ledger: ledger.clone(), broken: false }
    };
    let worker = Running::start(run.builder().processor(processor)).await;
    run.all_sound_are_delivered_once(worker).await;
    let letters = run.queue.letters(1).await;
    assert_eq!(payload(&letters[0]), "bad:2");
    let error = &letters[0]["error"];
    assert_eq!((error["kind"].as_str(), error["message"].as_str()), (Some("panic"), Some("row 7 is bad")));
    // A panic names no record: it takes some to find out which one it is, and three attempts then.
    let attempts = letters[0]["attempts"].as_u64().unwrap();
    assert!((3..=7).contains(&attempts), "{attempts}");
    assert_eq!(*made.lock().unwrap(), 1 + attempts, "a new one after each panic");
}
