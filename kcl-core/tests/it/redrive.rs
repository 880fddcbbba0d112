//! Redrive against queues, a stream and a bucket: what comes back, what stays, and what faults cost.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use aws_sdk_kinesis::types::ShardIteratorType;
use aws_sdk_sqs::types::QueueAttributeName;
use bytes::Bytes;
use kcl_core::dead_letter::{BlobStore as _, Envelope, FailureKind, PartitionKeys};
use kcl_core::redrive::{
    Fate, FileLetters, Filter, HandlerTarget, Redrive, RedriveError, RedriveReport, SqsLetters, StayReason, StreamTarget,
};
use kcl_core::stream::{KinesisStream, StreamApi as _};
use kcl_core::{DeadLetter, DeadLetterQueue, FileDeadLetterQueue, S3BlobStore, SqsDeadLetterQueue, Timestamp};
use kcl_local::LocalAws;
use kcl_local::wire::{Fault, Rule, Service};
use tokio_util::sync::CancellationToken;

use crate::letters::letter;

/// A server with a queue `letters`, a stream `orders` of one shard and a bucket `payloads`.
struct Aws {
    local: LocalAws,
    sqs: aws_sdk_sqs::Client,
    kinesis: aws_sdk_kinesis::Client,
    url: String,
}

impl Aws {
    async fn start() -> Self {
        Self::with_queue("letters").await
    }

    async fn with_queue(name: &str) -> Self {
        let local = LocalAws::start().await.unwrap();
        let sqs = aws_sdk_sqs::Client::new(&local.sdk_config());
        let create = sqs.create_queue().queue_name(name);
        let create = if name.ends_with(".fifo") { create.attributes(QueueAttributeName::FifoQueue, "true") } else { create };
        let url = create.send().await.unwrap().queue_url.unwrap();
        let kinesis = aws_sdk_kinesis::Client::new(&local.sdk_config());
        kinesis.create_stream().stream_name("orders").shard_count(1).send().await.unwrap();
        aws_sdk_s3::Client::new(&local.sdk_config()).create_bucket().bucket("payloads").send().await.unwrap();
        Self { local, sqs, kinesis, url }
    }

    fn queue(&self) -> SqsDeadLetterQueue {
        SqsDeadLetterQueue::new(&self.local.sdk_config(), &self.url).blob_store(self.bucket())
    }

    fn bucket(&self) -> S3BlobStore {
        S3BlobStore::new(&self.local.sdk_config(), "payloads")
    }

    fn letters(&self) -> SqsLetters {
        SqsLetters::new(&self.local.sdk_config(), &self.url)
    }

    /// The letters of these tests are of a stream elsewhere.
    fn target(&self) -> StreamTarget {
        StreamTarget::new(&self.local.sdk_config(), "orders").from_other_streams(true)
    }

    fn redrive(&self) -> Redrive {
        Redrive::new(self.letters(), self.target())
    }

    fn fault(&self, fault: Fault, service: Service, operation: &str, times: u64) {
        self.local.faults().add(Rule::new(fault).service(service).operation(operation).times(times));
    }

    fn count(&self, service: Service, operation: &str) -> u64 {
        self.local.faults().accepted_of(service, operation)
    }

    /// Key and payload of all records in the stream.
    async fn records(&self) -> Vec<(String, String)> {
        let start = self.kinesis.get_shard_iterator().stream_name("orders").shard_id("shardId-000000000000");
        let start = start.shard_iterator_type(ShardIteratorType::TrimHorizon).send().await.unwrap();
        let read = self.kinesis.get_records().set_shard_iterator(start.shard_iterator).send().await.unwrap();
        let text = |record: &aws_sdk_kinesis::types::Record| String::from_utf8_lossy(record.data().as_ref()).into_owned();
        read.records().iter().map(|record| (record.partition_key().unwrap().to_owned(), text(record))).collect()
    }

    /// Messages that can be received now, and those that are hidden.
    async fn left(&self) -> (usize, usize) {
        let wanted = [QueueAttributeName::ApproximateNumberOfMessages, QueueAttributeName::ApproximateNumberOfMessagesNotVisible];
        let read = self.sqs.get_queue_attributes().queue_url(&self.url).set_attribute_names(Some(wanted.clone().into())).send().await;
        let attributes = read.unwrap().attributes.unwrap();
        let [visible, hidden] = wanted.map(|name| attributes[&name].parse().unwrap());
        (visible, hidden)
    }
}

fn keyed(number: u128, key: &str) -> DeadLetter {
    letter(number, Some(key), format!("{key}:{number}"))
}

async fn send(queue: &dyn DeadLetterQueue, letters: &[DeadLetter]) {
    for letters in letters.chunks(10) {
        assert!(queue.send(letters).await.iter().all(Result::is_ok));
    }
}

/// Fates by the record's number; letters that can't be read under none.
type Fates = Arc<Mutex<Vec<(Option<String>, Fate)>>>;

fn observed(redrive: Redrive) -> (Redrive, Fates) {
    let fates = Fates::default();
    let told = Arc::clone(&fates);
    let observe = move |outcome: &kcl_core::redrive::LetterOutcome<'_>| {
        let number = outcome.letter.map(|letter| letter.record.sequence_number.to_string());
        told.lock().unwrap().push((number, outcome.fate.clone()));
    };
    (redrive.observe(observe), fates)
}

fn assert_sum(report: &RedriveReport) {
    let RedriveReport { letters, accepted, accepted_not_deleted, would_be_tried, duplicates, not_meant, stayed, .. } = report;
    assert_eq!(*letters, accepted + accepted_not_deleted + would_be_tried + duplicates + not_meant + stayed, "{report:?}");
}

fn assert_ordered(records: &[(String, String)]) {
    let mut last: BTreeMap<&str, u64> = BTreeMap::new();
    for (key, payload) in records {
        let number = payload.rsplit(':').next().unwrap().parse().unwrap();
        let before = last.insert(key, number);
        assert!(before.is_none_or(|before| before < number), "{payload} after {before:?}");
    }
}

#[tokio::test]
async fn records_come_back_in_order_and_each_once() {
    let aws = Aws::start().await;
    // In the wrong order, as a standard queue may give them, and some of them twice.
    let letters: Vec<_> = (0..60_u128).rev().map(|number| keyed(number, ["a", "b", "c"][number as usize % 3])).collect();
    send(&aws.queue(), &letters).await;
    send(&aws.queue(), &letters[..7]).await;
    let report = aws.redrive().run().await.unwrap();
    assert_eq!((report.accepted, report.duplicates, report.stayed, report.stopped.clone()), (60, 7, 0, None), "{report:?}");
    assert_sum(&report);
    let records = aws.records().await;
    assert_eq!(records.len(), 60);
    assert_ordered(&records);
    assert_eq!(aws.left().await, (0, 0));
}

#[tokio::test]
async fn a_fifo_queue_is_redriven_too() {
    let aws = Aws::with_queue("letters.fifo").await;
    send(&aws.queue(), &(0..20).map(|number| keyed(number, "a")).collect::<Vec<_>>()).await;
    let report = aws.redrive().run().await.unwrap();
    assert_eq!((report.accepted, report.stopped), (20, None));
    assert_ordered(&aws.records().await);
    assert_eq!(aws.left().await, (0, 0));
}

#[tokio::test]
async fn a_dry_run_counts_and_changes_nothing() {
    let aws = Aws::start().await;
    let letters: Vec<_> = (0..25).map(|number| keyed(number, "a")).collect();
    send(&aws.queue(), &letters).await;
    send(&aws.queue(), &[letter(100, Some("a"), vec![0; 300_000]), letters[3].clone()]).await;
    send(&aws.queue().partition_keys(PartitionKeys::Omitted), &[keyed(101, "secret")]).await;
    let (redrive, fates) = observed(aws.redrive().blob_store(aws.bucket()).dry_run(true));
    let report = redrive.run().await.unwrap();
    assert_eq!((report.would_be_tried, report.duplicates, report.stayed, report.accepted), (26, 1, 1, 0), "{report:?}");
    assert_sum(&report);
    assert!(fates.lock().unwrap().contains(&(Some("101".into()), Fate::Stays(StayReason::KeyNotTold))));
    assert!(aws.records().await.is_empty());
    assert_eq!(aws.left().await, (28, 0), "all can be seen again");
    assert_eq!(aws.count(Service::S3, "GetObject"), 0);

    let report = aws.redrive().limit(5).dry_run(true).run().await.unwrap();
    assert_eq!(report.would_be_tried, 5);
    assert_eq!(aws.left().await, (28, 0));
}

#[tokio::test]
async fn what_can_not_be_read_or_put_back_stays_with_its_reason() {
    let aws = Aws::start().await;
    for body in ["hello", r#"{"version":"2"}"#, r#"{"version":"1.0","KinesisBatchInfo":{"shardId":"s"}}"#] {
        aws.sqs.send_message().queue_url(&aws.url).message_body(body).send().await.unwrap();
    }
    send(&aws.queue().partition_keys(PartitionKeys::Hashed), &[keyed(1, "secret")]).await;
    send(&aws.queue(), &[letter(2, Some("b"), vec![7; 300_000]), keyed(3, "b"), keyed(4, "c")]).await;
    let (redrive, fates) = observed(aws.redrive());
    let report = redrive.run().await.unwrap();
    assert_eq!((report.accepted, report.stayed, report.stopped.clone()), (1, 6, None), "{report:?}");
    let fates = fates.lock().unwrap().clone();
    let of = |number: &str| fates.iter().find(|(of, _)| of.as_deref() == Some(number)).unwrap().1.clone();
    assert_eq!(of("1"), Fate::Stays(StayReason::KeyNotTold));
    assert_eq!(of("2"), Fate::Stays(StayReason::NoBlobStore { bucket: "payloads".into() }));
    assert_eq!(of("3"), Fate::Stays(StayReason::Behind), "it would overtake the one before it");
    let unreadable: Vec<_> = fates.iter().filter(|(number, _)| number.is_none()).map(|(_, fate)| format!("{fate:?}")).collect();
    for reason in ["NotJson", "UnknownVersion", "WithoutPayload"] {
        assert!(unreadable.iter().any(|fate| fate.contains(reason)), "{unreadable:?}");
    }
    assert_eq!(aws.left().await, (6, 0));
}

#[tokio::test]
async fn payloads_come_from_the_bucket_and_are_deleted_on_request() {
    let aws = Aws::start().await;
    let large = |number| letter(number, Some("a"), format!("{}:{number}", "x".repeat(300_000)));
    send(&aws.queue(), &[large(1)]).await;
    let report = aws.redrive().blob_store(aws.bucket()).run().await.unwrap();
    assert_eq!((report.accepted, report.blobs_deleted), (1, 0));
    assert_eq!(aws.count(Service::S3, "DeleteObject"), 0);

    send(&aws.queue(), &[large(2)]).await;
    aws.fault(Fault::ServerError, Service::S3, "GetObject", 2);
    aws.fault(Fault::LoseAnswer, Service::S3, "DeleteObject", 1);
    let report = aws.redrive().blob_store(aws.bucket()).delete_blobs(true).run().await.unwrap();
    assert_eq!((report.accepted, report.blobs_deleted, report.blobs_left), (1, 1, 0), "{report:?}");
    assert_eq!(aws.records().await.iter().map(|(_, payload)| payload.len()).collect::<Vec<_>>(), [300_002; 2]);
    assert_eq!(aws.left().await, (0, 0));
}

#[tokio::test]
async fn a_payload_that_is_gone_or_another_one_is_not_put_back() {
    let aws = Aws::start().await;
    send(&aws.queue(), &[letter(1, Some("a"), vec![1; 300_000]), letter(2, Some("b"), vec![2; 300_000])]).await;
    let s3 = aws_sdk_s3::Client::new(&aws.local.sdk_config());
    let objects = s3.list_objects_v2().bucket("payloads").send().await.unwrap();
    let keys: Vec<_> = objects.contents().iter().map(|object| object.key().unwrap()).collect();
    s3.delete_object().bucket("payloads").key(keys[0]).send().await.unwrap();
    s3.put_object().bucket("payloads").key(keys[1]).body(vec![3; 300_000].into()).send().await.unwrap();
    let (redrive, fates) = observed(aws.redrive().blob_store(aws.bucket()));
    let report = redrive.run().await.unwrap();
    assert_eq!((report.accepted, report.stayed), (0, 2), "{report:?}");
    let fates = format!("{:?}", fates.lock().unwrap());
    assert!(fates.contains("PayloadChanged") && fates.contains("NotFound"), "{fates}");
    let (elsewhere, fates) = observed(aws.redrive().blob_store(S3BlobStore::new(&aws.local.sdk_config(), "other")));
    assert_eq!(elsewhere.run().await.unwrap().stayed, 2);
    assert!(format!("{:?}", fates.lock().unwrap()).contains("Elsewhere"), "a message does not choose the bucket");
    assert_eq!(aws.left().await, (2, 0));
}

#[tokio::test]
async fn throttling_and_lost_answers_cost_duplicates_at_worst() {
    let aws = Aws::start().await;
    send(&aws.queue(), &(0..12).map(|number| keyed(number, "a")).collect::<Vec<_>>()).await;
    aws.fault(Fault::Throttle, Service::Kinesis, "PutRecord", 3);
    aws.fault(Fault::LoseAnswer, Service::Kinesis, "PutRecord", 1);
    aws.fault(Fault::LoseAnswer, Service::Sqs, "DeleteMessage", 2);
    aws.fault(Fault::ServerError, Service::Sqs, "ReceiveMessage", 2);
    let report = aws.redrive().run().await.unwrap();
    assert_eq!((report.accepted, report.stopped), (12, None));
    let mut records = aws.records().await;
    assert_eq!(records.len(), 13, "the record whose answer was lost is there twice");
    records.dedup();
    assert_eq!(records.len(), 12);
    assert_ordered(&records);
    assert_eq!(aws.left().await, (0, 0));
}

#[tokio::test]
async fn a_stream_that_takes_nothing_ends_the_run_and_all_letters_stay() {
    let aws = Aws::start().await;
    let letters: Vec<_> = (0..15).map(|number| keyed(number, ["a", "b"][number as usize % 2])).collect();
    send(&aws.queue(), &letters).await;
    let refused = Redrive::new(aws.letters(), StreamTarget::new(&aws.local.sdk_config(), "nowhere")).run().await.unwrap_err();
    assert!(matches!(&refused, RedriveError::Target(_)) && refused.to_string().contains("`nowhere` does not exist"), "{refused:?}");
    assert_eq!(aws.left().await, (15, 0));
    assert_eq!(aws.count(Service::Sqs, "ReceiveMessage"), 0);

    aws.fault(Fault::Error { status: 400, code: "AccessDeniedException" }, Service::Kinesis, "PutRecord", 1);
    let report = aws.redrive().run().await.unwrap();
    assert!(report.stopped.as_ref().is_some_and(|why| why.contains("AccessDenied")), "{report:?}");
    let (visible, hidden) = aws.left().await;
    assert_eq!((visible as u64 + report.accepted, hidden), (15, 0));

    let report =
        Redrive::new(SqsLetters::new(&aws.local.sdk_config(), "missing"), HandlerTarget::new(|_, _| async { Ok::<_, std::io::Error>(()) }));
    let report = report.run().await.unwrap();
    assert!(report.stopped.as_ref().is_some_and(|why| why.contains("missing")), "{report:?}");
}

#[tokio::test]
async fn only_letters_that_are_meant_are_touched() {
    let aws = Aws::start().await;
    let letters: Vec<_> = (0..20)
        .map(|number| DeadLetter { kind: if number % 4 == 0 { FailureKind::Panic } else { FailureKind::Poison }, ..keyed(number, "a") })
        .collect();
    send(&aws.queue(), &letters).await;
    let meant = Filter { kind: Some(FailureKind::Panic), ..Filter::default() };
    let report = aws.redrive().only(meant).filter(|letter| letter.record.sequence_number != 8.into()).run().await.unwrap();
    assert_eq!((report.accepted, report.not_meant), (4, 16), "{report:?}");
    let payloads: Vec<_> = aws.records().await.into_iter().map(|(_, payload)| payload).collect();
    assert_eq!(payloads, ["a:0", "a:4", "a:12", "a:16"]);
    assert_eq!(aws.left().await, (16, 0));

    let report = aws.redrive().limit(3).run().await.unwrap();
    assert_eq!(report.accepted, 3);
    assert_eq!(aws.left().await, (13, 0));
}

#[tokio::test]
async fn letters_of_another_stream_stay_unless_that_is_asked_for() {
    let aws = Aws::start().await;
    // As a worker has it, to the millisecond: the wire has seconds with a fraction.
    let stream = KinesisStream::new(aws.kinesis.clone(), "orders", Duration::from_secs(5));
    let described = stream.describe().await.unwrap();
    let (arn, created) = (described.arn, described.created);
    let own = |number| DeadLetter { stream_arn: arn.clone(), stream_created: created, ..keyed(number, "a") };
    let earlier = DeadLetter { stream_created: Timestamp::from_millis(1000), ..own(2) };
    send(&aws.queue(), &[keyed(1, "a"), earlier, own(3)]).await;

    let strict = || Redrive::new(aws.letters(), StreamTarget::new(&aws.local.sdk_config(), "orders"));
    let (redrive, fates) = observed(strict().dry_run(true));
    let report = redrive.run().await.unwrap();
    assert_eq!((report.would_be_tried, report.stayed), (1, 2), "a dry run shows it: {report:?}");
    let of = |number: &str| fates.lock().unwrap().iter().find(|(of, _)| of.as_deref() == Some(number)).unwrap().1.clone();
    let elsewhere = "arn:aws:kinesis:us-east-2:123456789012:stream/orders";
    assert_eq!(of("1"), Fate::Stays(StayReason::OtherStream { stream: elsewhere.into() }));
    assert_eq!(of("2"), Fate::Stays(StayReason::EarlierStream { stream: arn.clone() }));

    // By name and by ARN; those of the key that stay do not hold it back.
    let report = strict().run().await.unwrap();
    assert_eq!((report.accepted, report.stayed), (1, 2), "{report:?}");
    let by_arn = Redrive::new(aws.letters(), StreamTarget::new(&aws.local.sdk_config(), &arn));
    assert_eq!(by_arn.run().await.unwrap().stayed, 2);
    assert_eq!(aws.records().await, [("a".to_owned(), "a:3".to_owned())]);
    assert_eq!(aws.left().await, (2, 0));
    assert_eq!(aws.redrive().run().await.unwrap().accepted, 2);
}

#[tokio::test]
async fn records_with_keys_that_no_stream_takes_stay_once_and_a_handler_takes_them() {
    let aws = Aws::start().await;
    let too_long = "k".repeat(257);
    send(&aws.queue(), &[keyed(1, ""), keyed(2, &too_long), keyed(3, "a"), keyed(4, "")]).await;
    let (redrive, fates) = observed(aws.redrive());
    let report = redrive.run().await.unwrap();
    assert_eq!((report.accepted, report.stayed, report.stopped.clone()), (1, 3, None), "{report:?}");
    assert_eq!(aws.count(Service::Kinesis, "PutRecord"), 1, "what is known to be refused is not tried");
    let fates = fates.lock().unwrap().clone();
    assert_eq!(fates.iter().filter(|(_, fate)| *fate == Fate::Stays(StayReason::KeyNotTaken)).count(), 3, "{fates:?}");
    let handler = HandlerTarget::new(|_, _| async { Ok::<_, std::io::Error>(()) });
    assert_eq!(Redrive::new(aws.letters(), handler).run().await.unwrap().accepted, 3);
    assert_eq!(aws.left().await, (0, 0));
}

#[tokio::test]
async fn letters_that_others_hold_are_counted() {
    let aws = Aws::start().await;
    send(&aws.queue(), &(0..5).map(|number| keyed(number, "a")).collect::<Vec<_>>()).await;
    // As a run does that is killed.
    let received = aws.sqs.receive_message().queue_url(&aws.url).max_number_of_messages(2).visibility_timeout(600).send().await.unwrap();
    assert_eq!(received.messages().len(), 2);
    aws.sqs.send_message().queue_url(&aws.url).message_body("delayed").delay_seconds(600).send().await.unwrap();
    let report = aws.redrive().run().await.unwrap();
    assert_eq!((report.accepted, report.stayed, report.invisible), (3, 0, Some(3)), "{report:?}");

    // Who may not ask is told nothing, and the run is as good as without.
    aws.fault(Fault::Error { status: 403, code: "AccessDenied" }, Service::Sqs, "GetQueueAttributes", 1);
    let report = aws.redrive().run().await.unwrap();
    assert_eq!((report.letters, report.invisible, report.stopped), (0, None, None));
}

#[tokio::test]
async fn a_queue_that_lets_no_more_be_invisible_ends_the_run_and_all_is_given_back() {
    let aws = Aws::start().await;
    send(&aws.queue(), &(0..30).map(|number| keyed(number, "a")).collect::<Vec<_>>()).await;
    let rule = Rule::new(Fault::Error { status: 403, code: "OverLimit" }).service(Service::Sqs).operation("ReceiveMessage");
    aws.local.faults().add(rule.times(1));
    let report = aws.redrive().run().await.unwrap();
    assert!(report.stopped.as_ref().is_some_and(|why| why.contains("so many are invisible")), "{report:?}");
    assert_eq!((aws.left().await, report.invisible), ((30, 0), Some(0)));
    assert_eq!(aws.count(Service::Sqs, "ReceiveMessage"), 0, "it is not asked again and again");
}

#[tokio::test]
async fn a_handler_processes_in_place_and_what_it_refuses_stays() {
    let aws = Aws::start().await;
    // A handler needs no key.
    send(&aws.queue().partition_keys(PartitionKeys::Hashed), &(0..6).map(|number| keyed(number, "a")).collect::<Vec<_>>()).await;
    let seen = Arc::new(Mutex::new(Vec::new()));
    let handled = Arc::clone(&seen);
    let handler = move |letter: Envelope, payload: Bytes| {
        let handled = Arc::clone(&handled);
        async move {
            if letter.record.sequence_number == 4.into() {
                return Err(std::io::Error::other("still no order"));
            }
            handled.lock().unwrap().push(payload);
            Ok(())
        }
    };
    let (redrive, fates) = observed(Redrive::new(aws.letters(), HandlerTarget::new(handler)));
    let report = redrive.run().await.unwrap();
    assert_eq!((report.accepted, report.stayed), (4, 2), "{report:?}");
    assert_eq!(*seen.lock().unwrap(), ["a:0", "a:1", "a:2", "a:3"]);
    let refused = Fate::Stays(StayReason::Refused { message: "still no order".into() });
    assert!(fates.lock().unwrap().contains(&(Some("4".into()), refused)));
    assert_eq!(aws.left().await, (2, 0));
}

#[tokio::test]
async fn a_run_that_is_asked_to_stop_gives_back_what_it_holds() {
    let aws = Aws::start().await;
    send(&aws.queue(), &(0..10).map(|number| keyed(number, "a")).collect::<Vec<_>>()).await;
    let stop = CancellationToken::new();
    let stopping = stop.clone();
    let handler = move |letter: Envelope, _: Bytes| {
        let stopping = stopping.clone();
        async move {
            if letter.record.sequence_number == 2.into() {
                stopping.cancel();
                // The run's other half hears of it before this one is done.
                tokio::task::yield_now().await;
            }
            Ok::<_, std::io::Error>(())
        }
    };
    let report = Redrive::new(aws.letters(), HandlerTarget::new(handler)).run_until(stop.cancelled_owned()).await.unwrap();
    assert_eq!((report.accepted, report.stopped.as_deref()), (3, Some("asked to stop")), "{report:?}");
    assert_eq!(aws.left().await, (7, 0));
}

#[tokio::test]
async fn a_file_is_redriven_and_keeps_its_lines() {
    let aws = Aws::start().await;
    let folder = std::env::temp_dir().join(format!("kcl-redrive-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let path = folder.join("letters.jsonl");
    let queue = FileDeadLetterQueue::new(&path);
    send(&queue, &(0..25).map(|number| keyed(number, "a")).collect::<Vec<_>>()).await;
    let written = std::fs::read(&path).unwrap();
    let redrive = || Redrive::new(FileLetters::new(&path), aws.target());
    assert_eq!(redrive().dry_run(true).run().await.unwrap().would_be_tried, 25);
    assert_eq!(redrive().limit(10).run().await.unwrap().accepted, 10);
    send(&queue, &[keyed(25, "a")]).await;
    std::fs::OpenOptions::new().append(true).open(&path).and_then(|mut file| std::io::Write::write_all(&mut file, b"{\"half")).unwrap();
    let report = redrive().run().await.unwrap();
    assert_eq!((report.accepted, report.stayed), (16, 0), "{report:?}");
    assert_eq!(redrive().run().await.unwrap().letters, 0, "what was put back is known");
    let records = aws.records().await;
    assert_eq!(records.len(), 26);
    assert_ordered(&records);
    assert!(std::fs::read(&path).unwrap().starts_with(&written));
    std::fs::remove_dir_all(&folder).unwrap();
}

#[tokio::test]
async fn the_bucket_does_what_its_port_says_when_asked_through_a_redrive() {
    // A blob under a name that needs escaping in a URL: an application may be called so.
    let aws = Aws::start().await;
    let address = aws.bucket().put("my app/shard-1/ü+%", "data".into()).await.unwrap();
    assert_eq!(aws.bucket().get(&address).await.unwrap(), "data");
}
