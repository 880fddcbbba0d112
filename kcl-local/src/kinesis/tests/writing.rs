//! PutRecord and PutRecords.

use super::*;

fn entry(hash_key: Option<u128>, bytes: usize) -> PutRecordsEntry {
    let explicit_hash_key = hash_key.map(|key| key.to_string());
    PutRecordsEntry { data: vec![b'x'; bytes].into(), partition_key: "k".into(), explicit_hash_key }
}

fn put_all(fixture: &Fixture, records: Vec<PutRecordsEntry>) -> Result<PutRecordsOutput, ApiError> {
    fixture.kinesis.call(PutRecordsInput { stream_name: orders(), records, ..Default::default() })
}

#[test]
fn the_md5_of_the_partition_key_or_the_explicit_hash_key_chooses_the_shard() {
    let fixture = Fixture::new(4);
    // The first byte of each MD5.
    for (key, expected) in [("a", 0x0c), ("b", 0x92), ("c", 0x4a), ("e", 0xe1)] {
        assert_eq!(fixture.put(key, "x").shard_id, shard(expected / 64), "{key}");
    }
    let quarter = 1_u128 << 126;
    for (hash_key, expected) in
        [(0, 0), (quarter - 1, 0), (quarter, 1), (2 * quarter, 2), (3 * quarter - 1, 2), (3 * quarter, 3), (u128::MAX, 3)]
    {
        assert_eq!(fixture.put_at(hash_key, "x").shard_id, shard(expected));
    }
}

#[test]
fn sequence_numbers_grow_within_one_millisecond() {
    let fixture = Fixture::new(1);
    let start = fixture.shards()[0].sequence_number_range.starting_sequence_number;
    let numbers: Vec<_> = (0..1_000).map(|_| fixture.put("key", "x").sequence_number).collect();
    assert!(start < numbers[0]);
    assert!(numbers.is_sorted_by(|a, b| a < b));
    assert!(numbers.iter().all(|number| number.to_string().len() == 56));
}

#[test]
fn time_that_runs_back_stands_still() {
    let mut model = Model::new(KinesisConfig::default());
    let create = CreateStreamInput { stream_name: "orders".into(), shard_count: Some(1), ..Default::default() };
    model.create_stream(START, create).unwrap();
    let put = PutRecordInput { stream_name: orders(), partition_key: "key".into(), ..Default::default() };
    let first = model.put_record(START + 5_000, put.clone()).unwrap().sequence_number;
    let second = model.put_record(START, put).unwrap().sequence_number;
    assert!(first < second);
    let input = GetShardIteratorInput {
        stream_name: orders(),
        shard_id: shard(0),
        shard_iterator_type: ShardIteratorType::AtTimestamp,
        timestamp: Some(START + 5_000),
        ..Default::default()
    };
    let shard_iterator = model.get_shard_iterator(START, input).unwrap().shard_iterator;
    let output = model.get_records(START, GetRecordsInput { shard_iterator, ..Default::default() }).unwrap();
    assert_eq!(output.records.len(), 2);
}

#[test]
fn many_records_are_stored_in_the_order_of_the_request() {
    let fixture = Fixture::new(1);
    let entries =
        (0..500).map(|index| PutRecordsEntry { data: index.to_string().into(), partition_key: index.to_string(), explicit_hash_key: None });
    let output = put_all(&fixture, entries.collect()).unwrap();
    assert_eq!((output.failed_record_count, output.records.len()), (0, 500));
    assert!(output.records.is_sorted_by(|a, b| a.sequence_number < b.sequence_number));
    assert_eq!(fixture.read(&fixture.horizon(0)), (0..500).map(|index| index.to_string()).collect::<Vec<_>>());
}

#[test]
fn a_request_keeps_to_the_limits_or_nothing_is_stored() {
    let fixture = Fixture::new(1);
    refused(put_all(&fixture, Vec::new()), ErrorCode::Validation);
    refused(put_all(&fixture, vec![entry(None, 1); 501]), ErrorCode::Validation);
    refused(put_all(&fixture, vec![entry(None, 1_000_000); 11]), ErrorCode::InvalidArgument);
    let no_key = PutRecordsEntry { partition_key: String::new(), ..entry(None, 1) };
    refused(put_all(&fixture, vec![entry(None, 1), no_key]), ErrorCode::Validation);
    let hash_key = PutRecordsEntry { explicit_hash_key: Some("-1".into()), ..entry(None, 1) };
    refused(put_all(&fixture, vec![entry(None, 1), hash_key]), ErrorCode::Validation);
    let hash_key = PutRecordsEntry { explicit_hash_key: Some("340282366920938463463374607431768211456".into()), ..entry(None, 1) };
    refused(put_all(&fixture, vec![entry(None, 1), hash_key]), ErrorCode::InvalidArgument);
    assert_eq!(fixture.get(&fixture.horizon(0)).unwrap().records.len(), 0);
    assert_eq!(put_all(&fixture, vec![entry(None, 1_024 * 1_024 - 1); 10]).unwrap().failed_record_count, 0);
}

#[test]
fn the_largest_record_is_the_stream_s() {
    let fixture = Fixture::new(1);
    let put = |bytes: usize| {
        let data = vec![0; bytes].into();
        fixture.kinesis.call(PutRecordInput { stream_name: orders(), data, partition_key: "k".into(), ..Default::default() })
    };
    let mib = 1_024 * 1_024;
    put(mib - 1).unwrap();
    refused(put(mib), ErrorCode::InvalidArgument);
    let size = UpdateMaxRecordSizeInput { stream_name: orders(), max_record_size_in_kib: 10_240, ..Default::default() };
    fixture.kinesis.call(size).unwrap();
    put(10 * mib - 1).unwrap();
    refused(put(10 * mib), ErrorCode::InvalidArgument);
    refused(put(10 * mib + 1), ErrorCode::Validation);
}

#[test]
fn a_shard_s_limit_fails_some_records_and_stores_the_others() {
    let fixture = Fixture::with(KinesisConfig { enforce_write_limits: true, ..Default::default() }, 2);
    let high = Some(u128::MAX);
    for _ in 0..2 {
        assert_eq!(put_all(&fixture, vec![entry(Some(0), 1); 499]).unwrap().failed_record_count, 0);
    }
    // Shard 0 takes two more.
    let output = put_all(&fixture, vec![entry(Some(0), 1), entry(Some(0), 2), entry(high, 1), entry(Some(0), 3), entry(high, 2)]).unwrap();
    let stored: Vec<_> = output.records.iter().map(|record| record.sequence_number.is_some()).collect();
    assert_eq!((output.failed_record_count, stored), (1, vec![true, true, true, false, true]));
    let failed = &output.records[3];
    assert_eq!(failed.error_code.as_deref(), Some("ProvisionedThroughputExceededException"));
    assert_eq!(
        failed.error_message.as_deref(),
        Some("Rate exceeded for shard shardId-000000000000 in stream orders under account 000000000000.")
    );
    let put =
        PutRecordInput { stream_name: orders(), partition_key: "k".into(), explicit_hash_key: Some("0".into()), ..Default::default() };
    refused(fixture.kinesis.call(put.clone()), ErrorCode::ProvisionedThroughputExceeded);
    fixture.time.advance(1);
    fixture.kinesis.call(put).unwrap();
    assert_eq!(fixture.get(&fixture.horizon(0)).unwrap().records.len(), 1_001);
}

#[test]
fn a_shard_takes_a_mebibyte_a_second() {
    let fixture = Fixture::with(KinesisConfig { enforce_write_limits: true, ..Default::default() }, 1);
    let half = 512 * 1_024 - 1;
    let output = put_all(&fixture, vec![entry(None, half); 3]).unwrap();
    assert_eq!(output.failed_record_count, 1);
    fixture.time.advance(500);
    assert_eq!(put_all(&fixture, vec![entry(None, half); 2]).unwrap().failed_record_count, 1);
}

#[test]
fn debug_output_shows_no_payload_and_no_partition_key() {
    let fixture = Fixture::new(1);
    let data = Bytes::from_static(b"payload");
    let entry = PutRecordsEntry { data: data.clone(), partition_key: "customer".into(), explicit_hash_key: None };
    let put = PutRecordInput { stream_name: orders(), data, partition_key: "customer".into(), ..Default::default() };
    fixture.kinesis.call(put.clone()).unwrap();
    let shown = format!("{entry:?} {put:?} {:?} {:?}", fixture.get(&fixture.horizon(0)).unwrap(), fixture.kinesis);
    assert!(shown.contains("bytes: 7") && !shown.contains("customer") && !shown.contains("payload") && !shown.contains("112"), "{shown}");
}
