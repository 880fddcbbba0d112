//! ListShards: tiling, paging, filters.

use super::*;

#[test]
fn open_shards_tile_the_key_space() {
    for count in [1, 2, 3, 7, 100] {
        let fixture = Fixture::new(count);
        assert_tiles(&fixture.list(ShardFilterType::AtLatest, None).unwrap());
        assert_eq!(fixture.shards().len(), count as usize);
    }
}

#[test]
fn pages_go_on_by_the_token_alone_for_its_life() {
    let fixture = Fixture::new(5);
    let input = ListShardsInput { stream_name: orders(), max_results: Some(2), ..Default::default() };
    let mut page = fixture.kinesis.call(input).unwrap();
    let first = page.next_token.clone();
    let mut ids: Vec<String> = Vec::new();
    loop {
        ids.extend(page.shards.into_iter().map(|shard| shard.shard_id));
        let Some(next_token) = page.next_token else { break };
        fixture.time.advance(300_000);
        let input = ListShardsInput { next_token: Some(next_token), max_results: Some(2), ..Default::default() };
        page = fixture.kinesis.call(input).unwrap();
    }
    assert_eq!(ids, (0..5).map(shard).collect::<Vec<_>>());
    let again = ListShardsInput { next_token: first.clone(), ..Default::default() };
    refused(fixture.kinesis.call(again), ErrorCode::ExpiredNextToken);
    let both = ListShardsInput { next_token: first, stream_name: orders(), ..Default::default() };
    refused(fixture.kinesis.call(both), ErrorCode::InvalidArgument);
    let none = ListShardsInput { next_token: Some("AAAA".into()), ..Default::default() };
    refused(fixture.kinesis.call(none), ErrorCode::InvalidArgument);
}

#[test]
fn a_page_keeps_the_filter_and_has_at_most_a_thousand() {
    let fixture = Fixture::new(1_500);
    fixture.merge(0, 1).unwrap();
    let shard_filter = Some(ShardFilter { filter_type: ShardFilterType::AtLatest, ..Default::default() });
    let input = ListShardsInput { stream_name: orders(), max_results: Some(10_000), shard_filter, ..Default::default() };
    let page = fixture.kinesis.call(input).unwrap();
    assert_eq!((page.shards.len(), page.shards[0].shard_id.as_str()), (1_000, "shardId-000000000002"));
    let rest = fixture.kinesis.call(ListShardsInput { next_token: page.next_token, ..Default::default() }).unwrap();
    assert_eq!((rest.shards.len(), rest.next_token), (499, None));
}

/// Shard 0 splits into 2 and 3 after an hour; 2 and 3 merge into 4 after three.
fn resharded() -> Fixture {
    let fixture = Fixture::new(2);
    fixture.time.advance(HOUR);
    fixture.split(0, 1 << 126).unwrap();
    fixture.time.advance(2 * HOUR);
    fixture.merge(2, 3).unwrap();
    fixture.time.advance(HOUR);
    fixture
}

#[test]
fn filters() {
    use ShardFilterType::{AtLatest, AtTimestamp, AtTrimHorizon, FromTimestamp, FromTrimHorizon};
    let fixture = resharded();
    let split = START + HOUR;
    let merge = START + 3 * HOUR;
    for (filter, time, expected) in [
        (FromTrimHorizon, None, vec![0, 1, 2, 3, 4]),
        (AtTrimHorizon, None, vec![0, 1]),
        (AtLatest, None, vec![1, 4]),
        (AtTimestamp, Some(0), vec![0, 1]),
        (AtTimestamp, Some(START), vec![0, 1]),
        (AtTimestamp, Some(split - 1), vec![0, 1]),
        (AtTimestamp, Some(split), vec![0, 1, 2, 3]),
        (AtTimestamp, Some(split + 1), vec![1, 2, 3]),
        (AtTimestamp, Some(merge + 1), vec![1, 4]),
        (FromTimestamp, Some(0), vec![0, 1, 2, 3, 4]),
        (FromTimestamp, Some(split), vec![0, 1, 2, 3, 4]),
        (FromTimestamp, Some(split + 1), vec![1, 2, 3, 4]),
        (FromTimestamp, Some(merge + 1), vec![1, 4]),
    ] {
        assert_eq!(fixture.ids(filter, time), expected, "{filter:?} {time:?}");
    }
    refused(fixture.list(AtTimestamp, Some(START + 5 * HOUR)), ErrorCode::InvalidArgument);
    refused(fixture.list(AtTimestamp, None), ErrorCode::InvalidArgument);
    refused(fixture.list(AtLatest, Some(START)), ErrorCode::InvalidArgument);
    refused(fixture.list(ShardFilterType::AfterShardId, None), ErrorCode::InvalidArgument);

    let shard_filter = Some(ShardFilter { filter_type: ShardFilterType::AfterShardId, shard_id: Some(shard(2)), timestamp: None });
    for input in [
        ListShardsInput { stream_name: orders(), shard_filter, ..Default::default() },
        ListShardsInput { stream_name: orders(), exclusive_start_shard_id: Some(shard(2)), ..Default::default() },
    ] {
        let listed = fixture.kinesis.call(input).unwrap().shards;
        assert_eq!(listed.iter().map(|shard| number(&shard.shard_id)).collect::<Vec<_>>(), [3, 4]);
    }
}

#[test]
fn the_trim_horizon_moves_on_generation_by_generation() {
    use ShardFilterType::{AtTrimHorizon, FromTrimHorizon};
    let fixture = resharded();
    // Now at four hours; retention is 24.
    for (advance, at, from) in [
        (21 * HOUR, vec![0, 1], vec![0, 1, 2, 3, 4]),
        (1, vec![1, 2, 3], vec![1, 2, 3, 4]),
        (2 * HOUR - 1, vec![1, 2, 3], vec![1, 2, 3, 4]),
        (1, vec![1, 4], vec![1, 4]),
    ] {
        fixture.time.advance(advance);
        assert_eq!((fixture.ids(AtTrimHorizon, None), fixture.ids(FromTrimHorizon, None)), (at, from));
        assert_tiles(&fixture.list(AtTrimHorizon, None).unwrap());
    }
    refused(fixture.iterator(0, ShardIteratorType::TrimHorizon, None), ErrorCode::ResourceNotFound);
}

#[test]
fn all_in_one_millisecond_the_trim_horizon_is_still_at_the_first_shards() {
    let fixture = Fixture::new(1);
    fixture.put("key", "parent's");
    fixture.split(0, 1 << 127).unwrap();
    assert_eq!(fixture.ids(ShardFilterType::AtTrimHorizon, None), [0]);
}

#[test]
fn a_creation_time_tells_streams_of_one_name_apart() {
    let fixture = Fixture::new(1);
    let list = |time| {
        let input = ListShardsInput { stream_name: orders(), stream_creation_timestamp: Some(time), ..Default::default() };
        fixture.kinesis.call(input)
    };
    assert_eq!(list(START).unwrap().shards.len(), 1);
    refused(list(START - 60_000), ErrorCode::ResourceNotFound);
}
