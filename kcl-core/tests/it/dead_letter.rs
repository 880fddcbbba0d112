//! The SQS dead-letter queue against a queue.

use aws_sdk_sqs::types::QueueAttributeName;
use bytes::Bytes;
use kcl_core::dead_letter::{BlobError, BlobStore as _, Envelope, Payload};
use kcl_core::{DeadLetter, DeadLetterError, DeadLetterQueue, PartitionKeys, S3BlobStore, SqsDeadLetterQueue, Timestamp};
use kcl_local::LocalAws;
use kcl_local::wire::{Fault, Rule, Service};
use serde_json::Value;

use crate::letters::{self, accepted};

/// A server and a client of its queues.
struct Aws {
    local: LocalAws,
    sqs: aws_sdk_sqs::Client,
}

impl Aws {
    async fn start() -> Self {
        let local = LocalAws::start().await.unwrap();
        let sqs = aws_sdk_sqs::Client::new(&local.sdk_config());
        Self { local, sqs }
    }

    /// A queue that takes messages of this size; its URL.
    async fn queue(&self, name: &str, limit: usize) -> String {
        let create = self.sqs.create_queue().queue_name(name).attributes(QueueAttributeName::MaximumMessageSize, limit.to_string());
        let create = if name.ends_with(".fifo") { create.attributes(QueueAttributeName::FifoQueue, "true") } else { create };
        create.send().await.unwrap().queue_url.unwrap()
    }

    async fn set_limit(&self, url: &str, limit: usize) {
        let set = self.sqs.set_queue_attributes().queue_url(url);
        set.attributes(QueueAttributeName::MaximumMessageSize, limit.to_string()).send().await.unwrap();
    }

    /// A bucket for payloads.
    async fn bucket(&self, name: &str) -> S3BlobStore {
        let s3 = aws_sdk_s3::Client::new(&self.local.sdk_config());
        s3.create_bucket().bucket(name).send().await.unwrap();
        S3BlobStore::new(&self.local.sdk_config(), name)
    }

    fn fault(&self, fault: Fault, service: Service, operation: &str) {
        self.local.faults().add(Rule::new(fault).service(service).operation(operation).times(1));
    }

    fn dead_letters(&self, queue: &str) -> SqsDeadLetterQueue {
        SqsDeadLetterQueue::new(&self.local.sdk_config(), queue)
    }

    /// The payloads of all messages, in the order of their arrival. They are taken off the queue.
    async fn payloads(&self, url: &str) -> Vec<String> {
        self.messages(url).await.iter().map(|envelope| envelope["data"].as_str().unwrap().to_owned()).collect()
    }

    /// All messages, in the order of their arrival. They are taken off the queue.
    async fn messages(&self, url: &str) -> Vec<Value> {
        let mut messages = Vec::new();
        loop {
            let received = self.sqs.receive_message().queue_url(url).send().await.unwrap();
            let Some(message) = received.messages().first() else { return messages };
            messages.push(serde_json::from_str(message.body().unwrap()).unwrap());
            self.sqs.delete_message().queue_url(url).receipt_handle(message.receipt_handle().unwrap()).send().await.unwrap();
        }
    }
}

/// With a key that no queue may stumble over.
fn letter(number: u128, data: impl Into<Bytes>) -> DeadLetter {
    letters::letter(number, Some("clé 🦀"), data)
}

/// Sends one letter.
async fn send(queue: &dyn DeadLetterQueue, letter: DeadLetter) -> Result<(), DeadLetterError> {
    let results = queue.send(&[letter]).await;
    assert_eq!(results.len(), 1);
    results.into_iter().next().unwrap()
}

#[tokio::test]
async fn a_letter_arrives_by_the_queues_name_and_by_its_url() {
    let aws = Aws::start().await;
    let url = aws.queue("letters", 262_144).await;
    for queue in ["letters", &url] {
        let dead_letters = aws.dead_letters(queue);
        dead_letters.check().await.unwrap();
        send(&dead_letters, letter(7, "payload")).await.unwrap();
        assert_eq!(aws.payloads(&url).await, ["cGF5bG9hZA=="]);
    }
}

#[tokio::test]
async fn a_queue_that_does_not_exist_is_named() {
    let aws = Aws::start().await;
    let url = aws.queue("letters", 262_144).await;
    let elsewhere = url.replace("letters", "nowhere");
    for queue in ["nowhere", &elsewhere] {
        let error = aws.dead_letters(queue).check().await.unwrap_err();
        assert!(matches!(&error, DeadLetterError::NotFound { queue: named, .. } if named == queue), "{error:?}");
        let error = send(&aws.dead_letters(queue), letter(7, "payload")).await.unwrap_err();
        assert!(matches!(&error, DeadLetterError::NotFound { queue: named, .. } if named == queue), "{error:?}");
    }
}

#[tokio::test]
async fn a_queue_made_later_is_found_without_a_check() {
    let aws = Aws::start().await;
    let dead_letters = aws.dead_letters("letters");
    send(&dead_letters, letter(7, "payload")).await.unwrap_err();
    let url = aws.queue("letters", 262_144).await;
    for _ in 0..3 {
        send(&dead_letters, letter(7, "payload")).await.unwrap();
    }
    assert_eq!(aws.payloads(&url).await.len(), 3);
    let lookups = aws.local.faults().requests_of(Service::Sqs, "GetQueueUrl");
    assert_eq!(lookups, 2, "one that failed, one that is kept");
    assert_eq!(aws.local.faults().requests_of(Service::Sqs, "GetQueueAttributes"), 1);
}

#[tokio::test]
async fn a_record_too_large_for_the_queue_is_refused_until_the_queue_takes_it() {
    let aws = Aws::start().await;
    let url = aws.queue("letters", 4096).await;
    let dead_letters = aws.dead_letters("letters");
    dead_letters.check().await.unwrap();
    let large = letter(7, vec![0; 4096]);

    let error = send(&dead_letters, large.clone()).await.unwrap_err();
    assert!(matches!(error, DeadLetterError::TooLarge { limit: 4096, size, .. } if (5464..8192).contains(&size)), "{error:?}");
    assert_eq!(aws.local.faults().accepted_of(Service::Sqs, "SendMessageBatch"), 0);

    aws.set_limit(&url, 8192).await;
    send(&dead_letters, large.clone()).await.unwrap();
    assert_eq!(aws.payloads(&url).await.len(), 1);
}

#[tokio::test]
async fn a_limit_that_was_lowered_is_noticed() {
    let aws = Aws::start().await;
    let url = aws.queue("letters", 8192).await;
    let dead_letters = aws.dead_letters("letters");
    dead_letters.check().await.unwrap();
    aws.set_limit(&url, 4096).await;
    let large = letter(7, vec![0; 4096]);
    let error = send(&dead_letters, large.clone()).await.unwrap_err();
    assert!(matches!(error, DeadLetterError::Unavailable { .. }), "{error:?}");
    let error = send(&dead_letters, large.clone()).await.unwrap_err();
    assert!(matches!(error, DeadLetterError::TooLarge { limit: 4096, .. }), "{error:?}");
}

#[tokio::test]
async fn a_queue_that_is_down_is_unavailable_and_each_send_is_one_attempt() {
    let aws = Aws::start().await;
    let url = aws.queue("letters", 262_144).await;
    let dead_letters = aws.dead_letters("letters");
    dead_letters.check().await.unwrap();
    // The check has tried the door.
    for (sent, fault) in (2..).zip([Fault::Throttle, Fault::ServerError, Fault::Drop]) {
        aws.local.faults().add(Rule::new(fault).service(Service::Sqs).operation("SendMessageBatch").times(1));
        let error = send(&dead_letters, letter(7, "payload")).await.unwrap_err();
        assert!(matches!(error, DeadLetterError::Unavailable { .. }), "{error:?}");
        assert_eq!(aws.local.faults().requests_of(Service::Sqs, "SendMessageBatch"), sent);
    }
    assert!(aws.payloads(&url).await.is_empty());
    send(&dead_letters, letter(7, "payload")).await.unwrap();
    assert_eq!(aws.payloads(&url).await.len(), 1);
}

/// Takes the five seconds that a call may take.
#[tokio::test]
async fn a_queue_that_does_not_answer_is_given_up() {
    let aws = Aws::start().await;
    aws.queue("letters", 262_144).await;
    let dead_letters = aws.dead_letters("letters");
    aws.local.faults().add(Rule::new(Fault::WithholdAnswer).service(Service::Sqs).operation("SendMessageBatch").times(1));
    let error = send(&dead_letters, letter(7, "payload")).await.unwrap_err();
    assert!(matches!(&error, DeadLetterError::Unavailable { message, .. } if message.contains("timeout")), "{error:?}");
}

#[tokio::test]
async fn a_fifo_queue_keeps_one_of_a_letter_sent_again_after_a_lost_answer() {
    let aws = Aws::start().await;
    let url = aws.queue("letters.fifo", 262_144).await;
    let dead_letters = aws.dead_letters("letters.fifo");
    aws.local.faults().add(Rule::new(Fault::LoseAnswer).service(Service::Sqs).operation("SendMessageBatch").times(1));
    let error = send(&dead_letters, letter(7, "first")).await.unwrap_err();
    assert!(matches!(error, DeadLetterError::Unavailable { .. }), "{error:?}");

    let again = DeadLetter { worker: "another".into(), ..letter(7, "first") };
    send(&dead_letters, again).await.unwrap();
    send(&dead_letters, letter(8, "second")).await.unwrap();
    assert_eq!(aws.payloads(&url).await, ["Zmlyc3Q=", "c2Vjb25k"]);
}

#[tokio::test]
async fn a_fifo_queue_takes_a_letter_about_another_failure_of_the_same_record() {
    let aws = Aws::start().await;
    let url = aws.queue("letters.fifo", 262_144).await;
    let dead_letters = aws.dead_letters("letters.fifo");
    let first = letter(7, "payload");
    send(&dead_letters, first.clone()).await.unwrap();
    // A redrive by a handler takes it off, within the five minutes of de-duplication.
    assert_eq!(aws.payloads(&url).await.len(), 1);
    // The shard is read anew, and the record fails again.
    let failed_again = [
        DeadLetter { fencing_token: first.fencing_token + 1, ..first.clone() },
        DeadLetter { first_failure: Timestamp::from_millis(1), ..first.clone() },
        DeadLetter { last_failure: Timestamp::from_millis(1), ..first.clone() },
        DeadLetter { attempts: first.attempts + 1, ..first },
    ];
    for letter in failed_again {
        for _ in 0..2 {
            send(&dead_letters, letter.clone()).await.unwrap();
        }
        assert_eq!(aws.payloads(&url).await, ["cGF5bG9hZA=="], "the new failure arrives, once");
    }
}

fn keyed(number: u128, key: &str) -> DeadLetter {
    letters::letter(number, Some(key), number.to_string())
}

/// The sequence numbers of all messages.
fn numbers(messages: &[Value]) -> Vec<u64> {
    messages.iter().map(|envelope| envelope["sequenceNumber"].as_str().unwrap().parse().unwrap()).collect()
}

#[tokio::test]
async fn ten_letters_are_one_call_and_each_has_an_answer_of_its_own() {
    let aws = Aws::start().await;
    let url = aws.queue("letters", 262_144).await;
    let dead_letters = aws.dead_letters("letters");
    let letters: Vec<_> = (0..10).map(|number| keyed(number, "a")).collect();
    aws.fault(Fault::FailEntries { entries: &[0, 7], code: "InternalError" }, Service::Sqs, "SendMessageBatch");
    let results = dead_letters.send(&letters).await;
    assert_eq!(accepted(&results), [false, true, true, true, true, true, true, false, true, true]);
    assert!(matches!(&results[7], Err(DeadLetterError::Unavailable { message, .. }) if message.contains("InternalError")), "{results:?}");
    assert_eq!(aws.local.faults().requests_of(Service::Sqs, "SendMessageBatch"), 1);
    assert_eq!(numbers(&aws.messages(&url).await), [1, 2, 3, 4, 5, 6, 8, 9]);
}

#[tokio::test]
async fn letters_too_large_for_one_call_take_as_many_as_they_need() {
    let aws = Aws::start().await;
    let url = aws.queue("letters", 1_048_576).await;
    let dead_letters = aws.dead_letters("letters");
    // Some 400 kB each, and one that no queue takes.
    let letters: Vec<_> = (0..6).map(|number| letter(number, vec![0; if number == 3 { 800_000 } else { 300_000 }])).collect();
    let results = dead_letters.send(&letters).await;
    assert_eq!(accepted(&results), [true, true, true, false, true, true]);
    assert!(matches!(results[3], Err(DeadLetterError::TooLarge { limit: 1_048_576, .. })), "{:?}", results[3]);
    assert_eq!(aws.local.faults().requests_of(Service::Sqs, "SendMessageBatch"), 3);
    assert_eq!(aws.messages(&url).await.len(), 5);
}

#[tokio::test]
async fn a_fifo_queue_keeps_the_order_of_a_key_whatever_fails() {
    let aws = Aws::start().await;
    let url = aws.queue("letters.fifo", 262_144).await;
    let dead_letters = aws.dead_letters("letters.fifo");
    let letters: Vec<_> = [(1, "a"), (2, "a"), (3, "b"), (4, "a"), (5, "b")].map(|(number, key)| keyed(number, key)).into();
    // The first of key `a` fails: those behind it are not tried, and `b` goes on.
    aws.fault(Fault::FailEntries { entries: &[0], code: "InternalError" }, Service::Sqs, "SendMessageBatch");
    let results = dead_letters.send(&letters).await;
    assert_eq!(accepted(&results), [false, false, true, false, true]);
    assert!(matches!(&results[1], Err(DeadLetterError::Unavailable { message, .. }) if message.contains("not tried")), "{results:?}");
    let results = dead_letters.send(&letters).await;
    assert_eq!(accepted(&results), [true; 5]);
    let numbers = numbers(&aws.messages(&url).await);
    let of_key = |keys: &[u64]| numbers.iter().filter(|number| keys.contains(number)).copied().collect::<Vec<_>>();
    assert_eq!((of_key(&[1, 2, 4]), of_key(&[3, 5])), (vec![1, 2, 4], vec![3, 5]), "in order, and those sent twice once");
}

#[tokio::test]
async fn encryption_that_is_demanded_is_looked_for() {
    let aws = Aws::start().await;
    let url = aws.queue("letters", 262_144).await;
    aws.dead_letters("letters").check().await.unwrap();
    let demanding = || aws.dead_letters("letters").require_encryption(true);
    let set = async |name, value: &str| {
        aws.sqs.set_queue_attributes().queue_url(&url).attributes(name, value).send().await.unwrap();
    };
    set(QueueAttributeName::SqsManagedSseEnabled, "false").await;
    let error = demanding().check().await.unwrap_err();
    assert!(matches!(error, DeadLetterError::NotEncrypted { .. }) && error.to_string().contains("SqsManagedSseEnabled"), "{error}");
    set(QueueAttributeName::SqsManagedSseEnabled, "true").await;
    demanding().check().await.unwrap();
    set(QueueAttributeName::SqsManagedSseEnabled, "false").await;
    set(QueueAttributeName::KmsMasterKeyId, "alias/letters").await;
    demanding().check().await.unwrap();
}

#[tokio::test]
async fn a_check_finds_out_that_nothing_may_be_sent_and_sends_nothing() {
    let aws = Aws::start().await;
    let url = aws.queue("letters", 262_144).await;
    aws.fault(Fault::Error { status: 403, code: "AccessDenied" }, Service::Sqs, "SendMessageBatch");
    let error = aws.dead_letters("letters").check().await.unwrap_err();
    assert!(matches!(error, DeadLetterError::AccessDenied { operation: "sqs:SendMessage", .. }), "{error:?}");
    // What proves nothing does not keep a worker from starting.
    aws.fault(Fault::ServerError, Service::Sqs, "SendMessageBatch");
    aws.dead_letters("letters").check().await.unwrap();
    assert!(aws.messages(&url).await.is_empty());
}

#[tokio::test]
async fn keys_are_told_as_they_are_to_be() {
    let aws = Aws::start().await;
    let url = aws.queue("letters", 262_144).await;
    for (keys, form) in [(PartitionKeys::Clear, "clear"), (PartitionKeys::Hashed, "hashed"), (PartitionKeys::Omitted, "omitted")] {
        send(&aws.dead_letters("letters").partition_keys(keys), keyed(1, "secret")).await.unwrap();
        let messages = aws.messages(&url).await;
        assert_eq!(messages[0]["partitionKeyForm"], form);
        assert_eq!(messages[0].to_string().contains("secret"), keys == PartitionKeys::Clear);
    }
}

#[tokio::test]
async fn a_payload_too_large_for_the_queue_goes_to_s3_first() {
    let aws = Aws::start().await;
    let url = aws.queue("letters", 262_144).await;
    let bucket = aws.bucket("payloads").await;
    let dead_letters = aws.dead_letters("letters").blob_store(bucket.clone());
    dead_letters.check().await.unwrap();
    // As large as a record can be.
    let data: Vec<u8> = (0..10 * 1024 * 1024).map(|at: u32| (at % 253) as u8).collect();
    let letters = [letter(1, "small"), letter(2, data.clone()), letter(3, vec![7; 262_144])];
    assert_eq!(accepted(&dead_letters.send(&letters).await), [true; 3]);
    // Sent again it takes the same place.
    send(&dead_letters, letters[1].clone()).await.unwrap();

    let messages = aws.messages(&url).await;
    assert_eq!(messages.len(), 4);
    assert_eq!(messages[1]["payloadLocation"], messages[3]["payloadLocation"]);
    let read: Vec<_> = messages.iter().map(|message| Envelope::parse(&message.to_string()).unwrap().payload).collect();
    assert_eq!(read[0], Payload::Inside("small".into()));
    let Payload::At(location) = &read[1] else { panic!("{read:?}") };
    assert_eq!(location.bytes, data.len() as u64);
    assert!(location.address.key.starts_with("dead-letters/orders-app/shardId-000000000001/"), "{location:?}");
    assert!(bucket.get(&location.address).await.unwrap() == data);
}

#[tokio::test]
async fn while_payloads_can_not_be_stored_their_letters_are_not_accepted() {
    let aws = Aws::start().await;
    let url = aws.queue("letters", 262_144).await;
    let dead_letters = aws.dead_letters("letters").blob_store(aws.bucket("payloads").await);
    let large = letter(7, vec![0; 300_000]);
    for fault in [Fault::ServerError, Fault::Throttle, Fault::LoseAnswer] {
        aws.fault(fault, Service::S3, "PutObject");
        let results = dead_letters.send(&[large.clone(), letter(8, "small")]).await;
        assert!(
            matches!(&results[0], Err(DeadLetterError::Unavailable { message, .. }) if message.contains("s3:PutObject")),
            "{results:?}"
        );
        assert!(results[1].is_ok());
    }
    aws.fault(Fault::Error { status: 403, code: "AccessDenied" }, Service::S3, "PutObject");
    let error = send(&dead_letters, large.clone()).await.unwrap_err();
    assert!(
        matches!(&error, DeadLetterError::Payload { error: BlobError::AccessDenied { operation: "s3:PutObject", .. }, .. }),
        "{error:?}"
    );
    assert_eq!(numbers(&aws.messages(&url).await), [8, 8, 8]);
    send(&dead_letters, large).await.unwrap();
    assert_eq!(numbers(&aws.messages(&url).await), [7]);
}

#[tokio::test]
async fn a_payload_is_stored_once_while_the_queue_does_not_accept_its_letter() {
    let aws = Aws::start().await;
    let url = aws.queue("letters", 262_144).await;
    let bucket = aws.bucket("payloads").await;
    let dead_letters = aws.dead_letters("letters").blob_store(bucket.clone());
    let stored = || aws.local.faults().requests_of(Service::S3, "PutObject");
    let large = letter(7, vec![0; 300_000]);
    for fault in [Fault::ServerError, Fault::Throttle, Fault::FailEntries { entries: &[0], code: "InternalError" }, Fault::Drop] {
        aws.fault(fault, Service::Sqs, "SendMessageBatch");
        send(&dead_letters, large.clone()).await.unwrap_err();
    }
    assert_eq!(stored(), 1, "a queue that is away costs no more than one put");
    // A letter of the same record with other bytes: the name is the same, and what was put is not relied on.
    let other = letter(7, vec![1; 300_000]);
    send(&dead_letters, other.clone()).await.unwrap();
    assert_eq!(stored(), 2);
    let messages = aws.messages(&url).await;
    let Payload::At(location) = Envelope::parse(&messages[0].to_string()).unwrap().payload else { panic!("{messages:?}") };
    assert!(bucket.get(&location.address).await.unwrap() == vec![1; 300_000]);
    // Whoever has read the message may have deleted the blob.
    bucket.delete(&location.address).await.unwrap();
    send(&dead_letters, other).await.unwrap();
    assert_eq!(stored(), 3);
    assert!(bucket.get(&location.address).await.unwrap() == vec![1; 300_000]);
}

#[tokio::test]
async fn a_bucket_that_is_missing_is_told_by_the_check() {
    let aws = Aws::start().await;
    aws.queue("letters", 262_144).await;
    let dead_letters = aws.dead_letters("letters").blob_store(S3BlobStore::new(&aws.local.sdk_config(), "nowhere"));
    let error = dead_letters.check().await.unwrap_err();
    assert!(matches!(&error, DeadLetterError::Payload { error: BlobError::NoBucket { .. }, .. }), "{error:?}");
    assert!(error.to_string().contains("nowhere"), "{error}");
}

#[tokio::test]
async fn objects_are_encrypted_with_the_key_that_was_given() {
    let aws = Aws::start().await;
    let bucket = aws.bucket("payloads").await.prefix("letters/").kms_key("alias/letters");
    let address = bucket.put("k", "data".into()).await.unwrap();
    assert_eq!(address.key, "letters/k");
    let s3 = aws_sdk_s3::Client::new(&aws.local.sdk_config());
    let got = s3.get_object().bucket("payloads").key("letters/k").send().await.unwrap();
    assert_eq!(got.ssekms_key_id(), Some("alias/letters"));
}

/// Sizes around the queue's limit: what fits is sent whole, what does not goes to S3, and without S3 is refused.
#[tokio::test]
async fn at_the_limit_a_byte_decides() {
    let aws = Aws::start().await;
    let url = aws.queue("letters", 4096).await;
    let (plain, with_bucket) = (aws.dead_letters("letters"), aws.dead_letters("letters").blob_store(aws.bucket("payloads").await));
    let DeadLetterError::TooLarge { size, .. } = send(&plain, letter(7, vec![0; 6000])).await.unwrap_err() else {
        panic!("it is too large")
    };
    let overhead = size - 8000 - "6000".len();
    // Base64 comes in fours, and so every fourth byte of the limit is reached by a payload.
    for room in 0..4 {
        let limit = 5000 + room;
        aws.set_limit(&url, limit).await;
        let fits = (limit - overhead - "3333".len()) / 4 * 3;
        assert!((1000..10_000).contains(&fits));
        send(&plain, letter(7, vec![0; fits])).await.unwrap();
        let error = send(&plain, letter(7, vec![0; fits + 1])).await.unwrap_err();
        assert!(
            matches!(error, DeadLetterError::TooLarge { limit: told, size, .. } if told == limit && (limit + 1..=limit + 4).contains(&size)),
            "{error:?}"
        );
        send(&with_bucket, letter(7, vec![0; fits + 1])).await.unwrap();
        let whole: Vec<_> = aws.messages(&url).await.iter().map(|message| message["data"].is_string()).collect();
        assert_eq!(whole, [true, false]);
    }
}
