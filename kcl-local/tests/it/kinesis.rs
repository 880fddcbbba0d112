//! Kinesis through its SDK: the model itself is tested where it is; here that it comes through the wire whole.

use std::time::{Duration, SystemTime};

use aws_sdk_kinesis::operation::get_records::GetRecordsOutput;
use aws_sdk_kinesis::types::{PutRecordsRequestEntry, ShardFilter, ShardFilterType, ShardIteratorType};

use crate::support::Aws;

async fn iterator(aws: &Aws, stream: &str, shard: &str) -> String {
    let answer = aws
        .kinesis
        .get_shard_iterator()
        .stream_name(stream)
        .shard_id(shard)
        .shard_iterator_type(ShardIteratorType::TrimHorizon)
        .send()
        .await
        .unwrap();
    answer.shard_iterator.unwrap()
}

async fn read(aws: &Aws, iterator: &str) -> GetRecordsOutput {
    aws.kinesis.get_records().shard_iterator(iterator).send().await.unwrap()
}

#[tokio::test]
async fn what_is_put_is_read_in_order() {
    let aws = Aws::start().await;
    aws.stream("orders", 1).await;
    let entries = (0..100_u8)
        .map(|n| PutRecordsRequestEntry::builder().data(vec![n, 0, 255].into()).partition_key(format!("key-{n}")).build().unwrap());
    let put = aws.kinesis.put_records().stream_name("orders").set_records(Some(entries.collect())).send().await.unwrap();
    assert_eq!(put.failed_record_count, Some(0));

    let shard = aws.kinesis.list_shards().stream_name("orders").send().await.unwrap().shards.unwrap().remove(0);
    let answer = read(&aws, &iterator(&aws, "orders", &shard.shard_id).await).await;
    let read: Vec<_> = answer.records.iter().map(|record| record.data.as_ref().to_vec()).collect();
    assert_eq!(read, (0..100).map(|n| vec![n, 0, 255]).collect::<Vec<_>>());
    assert_eq!(answer.records[7].partition_key.as_deref(), Some("key-7"));
    assert_eq!(answer.records[7].sequence_number, put.records[7].sequence_number.clone().unwrap());
    assert_eq!(answer.millis_behind_latest, Some(0));
    // The machine's clock is the server's: a record that has just arrived says so.
    let arrived = SystemTime::try_from(answer.records[0].approximate_arrival_timestamp.unwrap()).unwrap();
    let age = arrived.elapsed().unwrap_or_default();
    assert!(age < Duration::from_secs(60), "{age:?}");
}

#[tokio::test]
async fn a_record_of_the_largest_size_comes_through() {
    let aws = Aws::start().await;
    aws.stream("orders", 1).await;
    let data = vec![7; 1024 * 1024 - 1];
    aws.kinesis.put_record().stream_name("orders").partition_key("k").data(data.clone().into()).send().await.unwrap();
    let answer = read(&aws, &iterator(&aws, "orders", "shardId-000000000000").await).await;
    assert_eq!(answer.records[0].data.as_ref(), data);
}

#[tokio::test]
async fn a_split_is_seen_by_listing_and_by_reading_to_the_end() {
    let aws = Aws::start().await;
    aws.stream("orders", 1).await;
    aws.kinesis.put_record().stream_name("orders").partition_key("k").data(b"before".to_vec().into()).send().await.unwrap();
    aws.kinesis
        .split_shard()
        .stream_name("orders")
        .shard_to_split("shardId-000000000000")
        .new_starting_hash_key((u128::MAX / 2 + 1).to_string())
        .send()
        .await
        .unwrap();

    let shards = aws.kinesis.list_shards().stream_name("orders").send().await.unwrap().shards.unwrap();
    assert_eq!(shards.len(), 3);
    let parent = &shards[0];
    assert!(parent.sequence_number_range.as_ref().unwrap().ending_sequence_number.is_some());
    let children: Vec<_> = shards[1..].iter().inspect(|child| assert_eq!(child.parent_shard_id, Some(parent.shard_id.clone()))).collect();

    let latest = ShardFilter::builder().r#type(ShardFilterType::AtLatest).build().unwrap();
    let open = aws.kinesis.list_shards().stream_name("orders").shard_filter(latest).send().await.unwrap();
    assert_eq!(open.shards.unwrap().len(), 2);

    let mut next = Some(iterator(&aws, "orders", &parent.shard_id).await);
    let mut records = Vec::new();
    let mut seen = Vec::new();
    while let Some(iterator) = next {
        let answer = read(&aws, &iterator).await;
        records.extend(answer.records);
        seen.extend(answer.child_shards.unwrap_or_default().into_iter().map(|child| child.shard_id));
        next = answer.next_shard_iterator;
    }
    assert_eq!(records.len(), 1);
    assert_eq!(seen, children.iter().map(|child| child.shard_id.clone()).collect::<Vec<_>>());
}

#[tokio::test]
async fn errors_have_their_types() {
    let aws = Aws::start().await;
    let error = aws.kinesis.describe_stream_summary().stream_name("nowhere").send().await.unwrap_err();
    assert!(error.into_service_error().is_resource_not_found_exception());

    aws.stream("orders", 1).await;
    let error = aws.kinesis.create_stream().stream_name("orders").shard_count(1).send().await.unwrap_err();
    assert!(error.into_service_error().is_resource_in_use_exception());

    let error = aws.kinesis.get_records().shard_iterator("made up").send().await.unwrap_err();
    assert!(error.into_service_error().is_invalid_argument_exception());
}
