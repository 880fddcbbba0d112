//! GetShardIterator and GetRecords.

use super::*;
use ShardIteratorType::{AfterSequenceNumber, AtSequenceNumber, AtTimestamp, Latest, TrimHorizon};

fn at_time(fixture: &Fixture, time: u64) -> Result<String, ApiError> {
    fixture.iterator_of(GetShardIteratorInput {
        stream_name: orders(),
        shard_id: shard(0),
        shard_iterator_type: AtTimestamp,
        timestamp: Some(time),
        ..Default::default()
    })
}

/// Records "0" to "9", a second apart; now one second after the last.
fn ten() -> (Fixture, Vec<String>) {
    let fixture = Fixture::new(1);
    let put = |index: u32| {
        let number = fixture.put("key", &index.to_string()).sequence_number.to_string();
        fixture.time.advance(1_000);
        number
    };
    let numbers = (0..10).map(put).collect();
    (fixture, numbers)
}

#[test]
fn the_five_types_of_iterators() {
    let (fixture, numbers) = ten();
    let all: Vec<String> = (0..10).map(|index| index.to_string()).collect();
    assert_eq!(fixture.read(&fixture.horizon(0)), all);
    assert_eq!(fixture.read(&fixture.latest(0)), Vec::<String>::new());
    for index in [0, 4, 9] {
        let at = fixture.iterator(0, AtSequenceNumber, Some(&numbers[index])).unwrap();
        assert_eq!(fixture.read(&at), all[index..]);
        let after = fixture.iterator(0, AfterSequenceNumber, Some(&numbers[index])).unwrap();
        assert_eq!(fixture.read(&after), all[index + 1..]);
        let time = START + 1_000 * index as u64;
        assert_eq!(fixture.read(&at_time(&fixture, time).unwrap()), all[index..]);
        assert_eq!(fixture.read(&at_time(&fixture, time + 1).unwrap()), all[index + 1..]);
    }
    assert_eq!(fixture.read(&at_time(&fixture, 0).unwrap()), all);
    let start = fixture.shards()[0].sequence_number_range.starting_sequence_number.to_string();
    for kind in [AtSequenceNumber, AfterSequenceNumber] {
        assert_eq!(fixture.read(&fixture.iterator(0, kind, Some(&start)).unwrap()), all);
    }
}

#[test]
fn an_iterator_s_members_go_together() {
    let (fixture, numbers) = ten();
    refused(fixture.iterator(0, AtSequenceNumber, None), ErrorCode::InvalidArgument);
    refused(fixture.iterator(0, TrimHorizon, Some(&numbers[0])), ErrorCode::InvalidArgument);
    refused(fixture.iterator(0, AtTimestamp, None), ErrorCode::InvalidArgument);
    refused(at_time(&fixture, START + 10_001), ErrorCode::InvalidArgument);
    refused(fixture.iterator(1, Latest, None), ErrorCode::ResourceNotFound);
    let bad = GetShardIteratorInput { stream_name: orders(), shard_id: "0".into(), ..Default::default() };
    refused(fixture.iterator_of(bad.clone()), ErrorCode::ResourceNotFound);
    refused(fixture.iterator_of(GetShardIteratorInput { shard_id: "a b".into(), ..bad }), ErrorCode::Validation);
}

#[test]
fn a_number_that_the_shard_never_gave_out_is_refused() {
    let fixture = Fixture::new(2);
    let low = fixture.put_at(0, "x").sequence_number.to_string();
    let message = refused(fixture.iterator(1, AtSequenceNumber, Some(&low)), ErrorCode::InvalidArgument);
    let expected =
        "Invalid StartingSequenceNumber. It encodes shardId-000000000000, while it was used in a call to a shard with shardId-000000000001";
    assert_eq!(message, expected);

    fixture.create("other", 1).unwrap();
    let other = PutRecordInput { stream_name: Some("other".into()), partition_key: "key".into(), ..Default::default() };
    let other = fixture.kinesis.call(other).unwrap().sequence_number.to_string();
    let last = fixture.put_at(0, "y").sequence_number;
    let beyond = format!("{}99", &last.to_string()[..54]);
    for number in [other.as_str(), &beyond, "0", "17", "TRIM_HORIZON"] {
        refused(fixture.iterator(0, AfterSequenceNumber, Some(number)), ErrorCode::InvalidArgument);
    }
}

#[test]
fn a_reader_goes_on_where_it_ended_and_knows_how_far_behind_it_is() {
    let (fixture, _) = ten();
    let first = fixture.get_some(&fixture.horizon(0), Some(4)).unwrap();
    assert_eq!(texts(&first.records), ["0", "1", "2", "3"]);
    assert_eq!(first.records[3].approximate_arrival_timestamp, START + 3_000);
    assert_eq!(first.millis_behind_latest, 6_000, "record 4 is six seconds old");
    let rest = fixture.get(&first.next_shard_iterator.unwrap()).unwrap();
    assert_eq!((rest.records.len(), rest.millis_behind_latest), (6, 0));
    let tip = rest.next_shard_iterator.unwrap();
    let empty = fixture.get(&tip).unwrap();
    assert_eq!((empty.records.len(), empty.millis_behind_latest, empty.child_shards), (0, 0, None));
    // Two in this millisecond.
    fixture.put("key", "10");
    fixture.put("key", "11");
    let one = fixture.get_some(&tip, Some(1)).unwrap();
    assert_eq!((texts(&one.records), one.millis_behind_latest), (vec!["10".to_owned()], 1));
    // An iterator can be used again.
    assert_eq!(fixture.read(&tip), ["10", "11"]);
}

#[test]
fn a_read_keeps_to_its_limits() {
    let fixture = Fixture::new(1);
    for limit in [0, 10_001] {
        refused(fixture.get_some(&fixture.horizon(0), Some(limit)), ErrorCode::Validation);
    }
    for _ in 0..21 {
        let records = vec![PutRecordsEntry { partition_key: "k".into(), ..Default::default() }; 500];
        fixture.kinesis.call(PutRecordsInput { stream_name: orders(), records, ..Default::default() }).unwrap();
    }
    let first = fixture.get(&fixture.horizon(0)).unwrap();
    assert_eq!(first.records.len(), 10_000);
    assert_eq!(fixture.get(&first.next_shard_iterator.unwrap()).unwrap().records.len(), 500);
}

#[test]
fn a_read_has_at_most_ten_mebibytes_but_one_record_of_any_size() {
    let fixture = Fixture::new(1);
    let size = UpdateMaxRecordSizeInput { stream_name: orders(), max_record_size_in_kib: 10_240, ..Default::default() };
    fixture.kinesis.call(size).unwrap();
    let mib = 1_024 * 1_024;
    for bytes in [10 * mib - 1, 4 * mib, 5 * mib, 2 * mib] {
        let data = vec![0; bytes].into();
        let input = PutRecordInput { stream_name: orders(), data, partition_key: "k".into(), ..Default::default() };
        fixture.kinesis.call(input).unwrap();
    }
    let mut iterator = fixture.horizon(0);
    let mut counts = Vec::new();
    for _ in 0..3 {
        let output = fixture.get(&iterator).unwrap();
        counts.push(output.records.len());
        iterator = output.next_shard_iterator.unwrap();
    }
    assert_eq!(counts, [1, 2, 1]);
}

#[test]
fn iterators_expire() {
    let fixture = Fixture::with(KinesisConfig { iterator_life_ms: 1_000, ..Default::default() }, 1);
    let iterator = fixture.horizon(0);
    fixture.time.advance(1_000);
    let next = fixture.get(&iterator).unwrap().next_shard_iterator.unwrap();
    fixture.time.advance(1);
    refused(fixture.get(&iterator), ErrorCode::ExpiredIterator);
    assert!(fixture.get(&next).is_ok(), "the next one has its own life");
    assert_eq!(KinesisConfig::default().iterator_life_ms, 300_000);
}

#[test]
fn what_is_no_iterator_is_refused() {
    let fixture = Fixture::new(1);
    for text in ["", "x", "AAAA", &fixture.horizon(0)[1..]] {
        refused(fixture.get(text), ErrorCode::InvalidArgument);
    }
    fixture.create("other", 1).unwrap();
    let get = |arn: &str| {
        fixture.kinesis.call(GetRecordsInput { shard_iterator: fixture.horizon(0), stream_arn: Some(arn.into()), ..Default::default() })
    };
    assert!(get(ARN).is_ok());
    refused(get(&ARN.replace("orders", "other")), ErrorCode::InvalidArgument);
}

#[test]
fn a_shard_can_be_read_five_times_and_two_mebibytes_a_second() {
    let fixture = Fixture::with(KinesisConfig { enforce_read_limits: true, ..Default::default() }, 2);
    let (low, high) = (fixture.horizon(0), fixture.horizon(1));
    for _ in 0..5 {
        fixture.get(&low).unwrap();
    }
    refused(fixture.get(&low), ErrorCode::ProvisionedThroughputExceeded);
    assert!(fixture.get(&high).is_ok(), "each shard has its own limit");
    fixture.time.advance(200);
    fixture.get(&low).unwrap();
    refused(fixture.get(&low), ErrorCode::ProvisionedThroughputExceeded);

    fixture.time.advance(1_000);
    for _ in 0..8 {
        fixture.put_at(0, &"x".repeat(1_000_000));
    }
    assert_eq!(fixture.get(&low).unwrap().records.len(), 8);
    fixture.time.advance(2_800);
    refused(fixture.get(&low), ErrorCode::ProvisionedThroughputExceeded);
    fixture.time.advance(100);
    assert!(fixture.get(&low).is_ok());
}

#[test]
fn latest_then_put_loses_none() {
    let fixture = Fixture::new(1);
    for index in 0..300 {
        let iterator = fixture.latest(0);
        fixture.put("key", &index.to_string());
        assert_eq!(fixture.read(&iterator), [index.to_string()]);
    }
}
