//! The dead-letter queue that is a Kinesis stream, against a stream.

use aws_sdk_kinesis::types::ShardIteratorType;
use kcl_core::dead_letter::{Envelope, Payload, ToldKey};
use kcl_core::{DeadLetterError, DeadLetterQueue, KinesisDeadLetterQueue, PartitionKeys, S3BlobStore};
use kcl_local::LocalAws;
use kcl_local::wire::{Fault, Rule, Service};

use crate::letters::{accepted, letter};

const SHARD: &str = "shardId-000000000000";

struct Aws {
    local: LocalAws,
    kinesis: aws_sdk_kinesis::Client,
}

impl Aws {
    /// A server with a stream `letters` of one shard.
    async fn start() -> Self {
        let local = LocalAws::start().await.unwrap();
        let kinesis = aws_sdk_kinesis::Client::new(&local.sdk_config());
        kinesis.create_stream().stream_name("letters").shard_count(1).send().await.unwrap();
        Self { local, kinesis }
    }

    fn queue(&self) -> KinesisDeadLetterQueue {
        KinesisDeadLetterQueue::new(&self.local.sdk_config(), "letters")
    }

    fn fault(&self, fault: Fault) {
        self.local.faults().add(Rule::new(fault).service(Service::Kinesis).operation("PutRecords").times(1));
    }

    /// The letters in the stream, with the keys that they were put under.
    async fn letters(&self) -> Vec<(String, Envelope)> {
        let start = self.kinesis.get_shard_iterator().stream_name("letters").shard_id(SHARD);
        let start = start.shard_iterator_type(ShardIteratorType::TrimHorizon).send().await.unwrap();
        let read = self.kinesis.get_records().set_shard_iterator(start.shard_iterator).send().await.unwrap();
        let letter = |record: &aws_sdk_kinesis::types::Record| {
            let text = std::str::from_utf8(record.data().as_ref()).unwrap();
            (record.partition_key().unwrap().to_owned(), Envelope::parse(text).unwrap())
        };
        read.records().iter().map(letter).collect()
    }

    async fn numbers(&self) -> Vec<String> {
        self.letters().await.iter().map(|(_, letter)| letter.record.sequence_number.to_string()).collect()
    }
}

#[tokio::test]
async fn a_letter_is_put_under_its_key_as_far_as_that_may_be_told() {
    let aws = Aws::start().await;
    for keys in [PartitionKeys::Clear, PartitionKeys::Hashed, PartitionKeys::Omitted] {
        let queue = aws.queue().partition_keys(keys);
        queue.check().await.unwrap();
        let letters = [letter(1, Some("secret"), vec![1]), letter(2, Some("secret"), vec![2]), letter(3, None, vec![3])];
        assert_eq!(accepted(&queue.send(&letters).await), [true; 3]);
    }
    let found = aws.letters().await;
    let keys: Vec<_> = found.iter().map(|(key, _)| key.as_str()).collect();
    assert_eq!(keys.iter().filter(|key| **key == "secret").count(), 2);
    assert_eq!(keys.iter().filter(|key| key.len() == 64).count(), 2, "SHA-256: {keys:?}");
    assert_eq!(keys.iter().filter(|key| key.len() == 32).count(), 5, "a key of the letter's own: {keys:?}");
}

#[tokio::test]
async fn a_key_that_kinesis_refuses_is_put_under_its_hash() {
    let aws = Aws::start().await;
    let too_long = "k".repeat(257);
    let letters = [letter(1, Some(""), vec![1]), letter(2, Some(&too_long), vec![2]), letter(3, Some(&"k".repeat(256)), vec![3])];
    assert_eq!(accepted(&aws.queue().send(&letters).await), [true; 3]);
    let found = aws.letters().await;
    let told: Vec<_> = found.iter().map(|(key, letter)| (key.len(), letter.partition_key.clone())).collect();
    let clear = |key: &str| ToldKey::Clear(key.to_owned());
    assert_eq!(told, [(64, clear("")), (64, clear(&too_long)), (256, clear(&"k".repeat(256)))]);
}

#[tokio::test]
async fn the_stream_that_it_feeds_is_told_by_its_arn() {
    let aws = Aws::start().await;
    let queue = aws.queue();
    assert_eq!(queue.feeds(), Some("letters"));
    queue.check().await.unwrap();
    assert!(queue.feeds().is_some_and(|arn| arn.starts_with("arn:") && arn.ends_with(":stream/letters")), "{:?}", queue.feeds());
}

#[tokio::test]
async fn records_that_fail_are_told_and_hold_back_those_of_their_key() {
    let aws = Aws::start().await;
    let queue = aws.queue();
    let letters = [(1, "a"), (2, "b"), (3, "a"), (4, "b")].map(|(number, key)| letter(number, Some(key), vec![0]));
    aws.fault(Fault::FailEntries { entries: &[0], code: "ProvisionedThroughputExceededException" });
    assert_eq!(accepted(&queue.send(&letters).await), [false, true, false, true]);
    assert_eq!(aws.numbers().await, ["2", "4"]);
    assert_eq!(accepted(&queue.send(&letters).await), [true; 4]);
    assert_eq!(aws.numbers().await, ["2", "4", "1", "2", "3", "4"]);
}

#[tokio::test]
async fn a_stream_that_does_not_take_it_is_unavailable_and_a_missing_one_named() {
    let aws = Aws::start().await;
    let queue = aws.queue();
    for fault in [Fault::Throttle, Fault::ServerError, Fault::Drop, Fault::LoseAnswer] {
        aws.fault(fault);
        let results = queue.send(&[letter(1, Some("a"), vec![0])]).await;
        assert!(matches!(results[..], [Err(DeadLetterError::Unavailable { .. })]), "{results:?}");
    }
    let error = KinesisDeadLetterQueue::new(&aws.local.sdk_config(), "nowhere").check().await.unwrap_err();
    assert!(matches!(&error, DeadLetterError::NotFound { queue, .. } if queue == "nowhere"), "{error:?}");
}

#[tokio::test]
async fn the_streams_own_limit_decides_what_goes_to_s3() {
    let aws = Aws::start().await;
    let large = letter(1, Some("a"), vec![0; 1_000_000]);
    let results = aws.queue().send(std::slice::from_ref(&large)).await;
    assert!(matches!(results[..], [Err(DeadLetterError::TooLarge { .. })]), "{results:?}");

    let s3 = aws_sdk_s3::Client::new(&aws.local.sdk_config());
    s3.create_bucket().bucket("payloads").send().await.unwrap();
    let queue = aws.queue().blob_store(S3BlobStore::new(&aws.local.sdk_config(), "payloads"));
    assert_eq!(accepted(&queue.send(std::slice::from_ref(&large)).await), [true]);
    let arn = aws.kinesis.describe_stream_summary().stream_name("letters").send().await.unwrap();
    let arn = arn.stream_description_summary.unwrap().stream_arn;
    aws.kinesis.update_max_record_size().stream_arn(arn).max_record_size_in_kib(4096).send().await.unwrap();
    assert_eq!(accepted(&queue.send(std::slice::from_ref(&large)).await), [true]);
    let payloads: Vec<_> = aws.letters().await.into_iter().map(|(_, letter)| letter.payload).collect();
    assert!(matches!(&payloads[0], Payload::At(location) if location.bytes == 1_000_000), "{payloads:?}");
    assert!(matches!(&payloads[1], Payload::Inside(data) if data.len() == 1_000_000), "{payloads:?}");
}
