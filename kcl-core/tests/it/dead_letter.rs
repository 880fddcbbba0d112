//! The SQS dead-letter queue against a queue.

use aws_sdk_sqs::types::QueueAttributeName;
use bytes::Bytes;
use kcl_core::dead_letter::{Condition, FailureKind};
use kcl_core::{DeadLetter, DeadLetterError, DeadLetterQueue, Record, SqsDeadLetterQueue, Timestamp};
use kcl_local::LocalAws;
use kcl_local::wire::{Fault, Rule, Service};
use serde_json::Value;

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

    fn dead_letters(&self, queue: &str) -> SqsDeadLetterQueue {
        SqsDeadLetterQueue::new(&self.local.sdk_config(), queue)
    }

    /// The payloads of all messages, in the order of their arrival. They are taken off the queue.
    async fn payloads(&self, url: &str) -> Vec<String> {
        let mut payloads = Vec::new();
        loop {
            let received = self.sqs.receive_message().queue_url(url).send().await.unwrap();
            let Some(message) = received.messages().first() else { return payloads };
            let envelope: Value = serde_json::from_str(message.body().unwrap()).unwrap();
            payloads.push(envelope["data"].as_str().unwrap().to_owned());
            self.sqs.delete_message().queue_url(url).receipt_handle(message.receipt_handle().unwrap()).send().await.unwrap();
        }
    }
}

fn letter(number: u128, data: impl Into<Bytes>) -> DeadLetter {
    let now = Timestamp::from_millis(1_573_691_884_835);
    DeadLetter {
        record: Record::new(number.into(), Some("clé 🦀".into()), data.into(), Some(now)),
        stream_arn: "arn:aws:kinesis:us-east-2:123456789012:stream/orders".into(),
        stream_created: now,
        shard_id: "shardId-000000000001".into(),
        kind: FailureKind::Poison,
        condition: Condition::RetryAttemptsExhausted,
        error_chain: vec!["no order \u{0}\u{fffe}".into()],
        attempts: 4,
        first_failure: now,
        last_failure: now,
        application: "orders-app".into(),
        worker: "worker".into(),
        fencing_token: 42,
    }
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
    assert_eq!(aws.local.faults().requests_of(Service::Sqs, "SendMessage"), 0);

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
    for (sent, fault) in (1..).zip([Fault::Throttle, Fault::ServerError, Fault::Drop]) {
        aws.local.faults().add(Rule::new(fault).service(Service::Sqs).operation("SendMessage").times(1));
        let error = send(&dead_letters, letter(7, "payload")).await.unwrap_err();
        assert!(matches!(error, DeadLetterError::Unavailable { .. }), "{error:?}");
        assert_eq!(aws.local.faults().requests_of(Service::Sqs, "SendMessage"), sent);
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
    aws.local.faults().add(Rule::new(Fault::WithholdAnswer).service(Service::Sqs).operation("SendMessage").times(1));
    let error = send(&dead_letters, letter(7, "payload")).await.unwrap_err();
    assert!(matches!(&error, DeadLetterError::Unavailable { message, .. } if message.contains("timeout")), "{error:?}");
}

#[tokio::test]
async fn a_fifo_queue_keeps_one_of_a_letter_sent_again_after_a_lost_answer() {
    let aws = Aws::start().await;
    let url = aws.queue("letters.fifo", 262_144).await;
    let dead_letters = aws.dead_letters("letters.fifo");
    aws.local.faults().add(Rule::new(Fault::LoseAnswer).service(Service::Sqs).operation("SendMessage").times(1));
    let error = send(&dead_letters, letter(7, "first")).await.unwrap_err();
    assert!(matches!(error, DeadLetterError::Unavailable { .. }), "{error:?}");

    let again = DeadLetter { attempts: 5, worker: "another".into(), ..letter(7, "first") };
    send(&dead_letters, again).await.unwrap();
    send(&dead_letters, letter(8, "second")).await.unwrap();
    assert_eq!(aws.payloads(&url).await, ["Zmlyc3Q=", "c2Vjb25k"]);
}
