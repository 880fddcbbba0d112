//! Retention: what is trimmed, and what readers see of it.

use super::*;
use ShardIteratorType::{AfterSequenceNumber, AtSequenceNumber, AtTimestamp};

/// One record an hour for thirty hours; now an hour after the last. Twenty-four hours are kept.
fn thirty() -> (Fixture, Vec<String>) {
    let fixture = Fixture::new(1);
    let put = |hour: u32| {
        let number = fixture.put("key", &hour.to_string()).sequence_number.to_string();
        fixture.time.advance(HOUR);
        number
    };
    let numbers = (0..30).map(put).collect();
    (fixture, numbers)
}

fn hours(range: std::ops::Range<u32>) -> Vec<String> {
    range.map(|hour| hour.to_string()).collect()
}

#[test]
fn records_older_than_retention_are_gone() {
    let (fixture, _) = thirty();
    assert_eq!(fixture.read(&fixture.horizon(0)), hours(6..30));
    fixture.time.advance(1);
    assert_eq!(fixture.read(&fixture.horizon(0)), hours(7..30));
    fixture.time.advance(48 * HOUR);
    let output = fixture.get(&fixture.horizon(0)).unwrap();
    assert_eq!((output.records.len(), output.millis_behind_latest), (0, 0));
    assert!(output.next_shard_iterator.is_some(), "the shard is open");
}

#[test]
fn a_trimmed_number_reads_on_at_the_oldest_record() {
    let (fixture, numbers) = thirty();
    for number in [&numbers[0], &numbers[5]] {
        for kind in [AtSequenceNumber, AfterSequenceNumber] {
            assert_eq!(fixture.read(&fixture.iterator(0, kind, Some(number)).unwrap()), hours(6..30));
        }
    }
    let old = GetShardIteratorInput {
        stream_name: orders(),
        shard_id: shard(0),
        shard_iterator_type: AtTimestamp,
        timestamp: Some(START),
        ..Default::default()
    };
    assert_eq!(fixture.read(&fixture.iterator_of(old).unwrap()), hours(6..30));
    assert_eq!(fixture.read(&fixture.iterator(0, AtSequenceNumber, Some(&numbers[6])).unwrap()), hours(6..30));
    assert_eq!(fixture.read(&fixture.iterator(0, AfterSequenceNumber, Some(&numbers[6])).unwrap()), hours(7..30));
}

#[test]
fn numbers_go_on_after_everything_was_trimmed() {
    let (fixture, numbers) = thirty();
    fixture.time.advance(48 * HOUR);
    let next = fixture.put("key", "next").sequence_number.to_string();
    assert!(next > numbers[29]);
    assert_eq!(fixture.read(&fixture.iterator(0, AfterSequenceNumber, Some(&numbers[29])).unwrap()), ["next"]);
}

#[test]
fn a_reader_that_is_overtaken_goes_on_at_the_oldest_record() {
    let (fixture, _) = thirty();
    let iterator = fixture.horizon(0);
    fixture.time.advance(1);
    assert_eq!(fixture.read(&iterator), hours(7..30));
}

#[test]
fn retention_can_change() {
    let (fixture, _) = thirty();
    let longer = IncreaseStreamRetentionPeriodInput { stream_name: orders(), retention_period_hours: 48, ..Default::default() };
    fixture.kinesis.call(longer).unwrap();
    assert_eq!(fixture.read(&fixture.horizon(0)), hours(6..30), "what was gone stays so");
    fixture.time.advance(10 * HOUR);
    assert_eq!(fixture.read(&fixture.horizon(0)), hours(6..30));
    let shorter = DecreaseStreamRetentionPeriodInput { stream_name: orders(), retention_period_hours: 24, ..Default::default() };
    fixture.kinesis.call(shorter).unwrap();
    assert_eq!(fixture.read(&fixture.horizon(0)), hours(16..30));
}

#[test]
fn a_closed_shard_is_there_until_retention_has_passed_since_it_closed() {
    let fixture = Fixture::new(1);
    fixture.put("key", "x");
    fixture.split(0, 1 << 127).unwrap();
    fixture.time.advance(24 * HOUR);
    assert_eq!(fixture.shards().len(), 3);
    let iterator = fixture.latest(0);
    fixture.time.advance(1);
    assert_eq!(fixture.ids(ShardFilterType::FromTrimHorizon, None), [1, 2]);
    refused(fixture.iterator(0, ShardIteratorType::TrimHorizon, None), ErrorCode::ResourceNotFound);
    refused(fixture.split(0, 5), ErrorCode::ResourceNotFound);
    assert_eq!(children(&fixture.get(&iterator).unwrap()).len(), 2, "an iterator given out before ends as usual");
    assert_eq!(fixture.shards()[0].parent_shard_id.as_deref(), Some("shardId-000000000000"), "the name of the parent stays");
    // A longer retention doesn't bring it back.
    let longer = IncreaseStreamRetentionPeriodInput { stream_name: orders(), retention_period_hours: 48, ..Default::default() };
    fixture.kinesis.call(longer).unwrap();
    assert_eq!(fixture.ids(ShardFilterType::FromTrimHorizon, None), [1, 2]);
    assert_eq!(fixture.ids(ShardFilterType::AtTrimHorizon, None), [1, 2]);
}
