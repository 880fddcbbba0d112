//! Every dead-letter queue and every blob store, over the wire, put through the one suite that the ports have.

use aws_sdk_kinesis::types::ShardIteratorType;
use aws_sdk_sqs::types::QueueAttributeName;
use kcl_core::dead_letter::conformance::{self, Received};
use kcl_core::{FileDeadLetterQueue, KinesisDeadLetterQueue, S3BlobStore, SqsDeadLetterQueue};
use kcl_local::LocalAws;

async fn sqs(name: &str) {
    let local = LocalAws::start().await.unwrap();
    let config = local.sdk_config();
    let sqs = aws_sdk_sqs::Client::new(&config);
    let is_fifo = name.ends_with(".fifo");
    let create = sqs.create_queue().queue_name(name);
    let create = if is_fifo { create.attributes(QueueAttributeName::FifoQueue, "true") } else { create };
    let url = create.send().await.unwrap().queue_url.unwrap();
    let received = async || {
        let mut found = Vec::new();
        loop {
            let received = sqs.receive_message().queue_url(&url).send().await.unwrap();
            let Some(message) = received.messages().first() else { return found };
            found.push(Received::in_message(message.body().unwrap()));
            sqs.delete_message().queue_url(&url).receipt_handle(message.receipt_handle().unwrap()).send().await.unwrap();
        }
    };
    conformance::dead_letter_queue(&SqsDeadLetterQueue::new(&config, name), is_fifo, received).await;
}

#[tokio::test]
async fn a_standard_queue_conforms() {
    sqs("letters").await;
}

#[tokio::test]
async fn a_fifo_queue_conforms() {
    sqs("letters.fifo").await;
}

#[tokio::test]
async fn a_stream_conforms() {
    let local = LocalAws::start().await.unwrap();
    let config = local.sdk_config();
    let kinesis = aws_sdk_kinesis::Client::new(&config);
    kinesis.create_stream().stream_name("letters").shard_count(1).send().await.unwrap();
    let received = async || {
        let start = kinesis.get_shard_iterator().stream_name("letters").shard_id("shardId-000000000000");
        let start = start.shard_iterator_type(ShardIteratorType::TrimHorizon).send().await.unwrap();
        let read = kinesis.get_records().set_shard_iterator(start.shard_iterator).send().await.unwrap();
        read.records().iter().map(|record| Received::in_message(std::str::from_utf8(record.data().as_ref()).unwrap())).collect()
    };
    conformance::dead_letter_queue(&KinesisDeadLetterQueue::new(&config, "letters"), true, received).await;
}

#[tokio::test]
async fn a_file_conforms() {
    let folder = std::env::temp_dir().join(format!("kcl-file-conforms-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let path = folder.join("letters.jsonl");
    let received = async || std::fs::read_to_string(&path).unwrap().lines().map(Received::in_message).collect();
    conformance::dead_letter_queue(&FileDeadLetterQueue::new(&path), true, received).await;
    std::fs::remove_dir_all(&folder).unwrap();
}

#[tokio::test]
async fn s3_conforms() {
    let local = LocalAws::start().await.unwrap();
    let config = local.sdk_config();
    aws_sdk_s3::Client::new(&config).create_bucket().bucket("payloads").send().await.unwrap();
    conformance::blob_store(&S3BlobStore::new(&config, "payloads")).await;
    conformance::blob_store(&S3BlobStore::new(&config, "payloads").prefix("").kms_key("alias/key")).await;
}
