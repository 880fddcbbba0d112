//! SplitShard, MergeShards, UpdateShardCount, and reading across them.

use super::*;
use ShardIteratorType::{AfterSequenceNumber, AtSequenceNumber};

#[test]
fn a_split_closes_the_parent_above_its_records_and_opens_children_above_it() {
    let fixture = Fixture::new(1);
    let last = fixture.put("key", "x").sequence_number;
    fixture.split(0, 1 << 127).unwrap();
    let shards = fixture.shards();
    let ending = shards[0].sequence_number_range.ending_sequence_number.unwrap();
    assert!(ending >= last);
    for (child, range) in shards[1..].iter().zip([(0, (1 << 127) - 1), (1 << 127, u128::MAX)]) {
        assert_eq!(child.parent_shard_id.as_deref(), Some("shardId-000000000000"));
        assert_eq!(child.adjacent_parent_shard_id, None);
        assert_eq!(ranges(std::slice::from_ref(child)), [range]);
        assert!(child.sequence_number_range.starting_sequence_number > ending);
        assert_eq!(child.sequence_number_range.ending_sequence_number, None);
    }
    assert_eq!(fixture.put_at(0, "y").shard_id, shard(1));
    assert_eq!(fixture.put_at(u128::MAX, "y").shard_id, shard(2));
}

#[test]
fn a_merge_closes_both_parents_and_opens_one_child() {
    let fixture = Fixture::new(3);
    fixture.merge(2, 1).unwrap();
    let shards = fixture.shards();
    let child = &shards[3];
    assert_eq!(child.parent_shard_id.as_deref(), Some("shardId-000000000002"));
    assert_eq!(child.adjacent_parent_shard_id.as_deref(), Some("shardId-000000000001"));
    assert_eq!(ranges(&shards[3..]), [(ranges(&shards[1..2])[0].0, u128::MAX)]);
    for parent in &shards[1..3] {
        let ending = parent.sequence_number_range.ending_sequence_number.unwrap();
        assert!(child.sequence_number_range.starting_sequence_number > ending);
        let output = fixture.get(&fixture.horizon(number(&parent.shard_id))).unwrap();
        assert_eq!(children(&output)[0].parent_shards, [shard(2), shard(1)]);
    }
    assert_tiles(&fixture.list(ShardFilterType::AtLatest, None).unwrap());
}

#[test]
fn a_closed_shard_is_read_to_its_end_and_names_its_children() {
    let fixture = Fixture::new(1);
    for index in 0..3 {
        fixture.put("key", &index.to_string());
    }
    let tailing = fixture.get(&fixture.horizon(0)).unwrap().next_shard_iterator.unwrap();
    fixture.split(0, 1 << 127).unwrap();

    let part = fixture.get_some(&fixture.horizon(0), Some(2)).unwrap();
    assert!(part.next_shard_iterator.is_some() && part.child_shards.is_none() && part.millis_behind_latest > 0);
    let end = fixture.get(&part.next_shard_iterator.unwrap()).unwrap();
    assert_eq!((texts(&end.records), end.millis_behind_latest), (vec!["2".to_owned()], 0));
    assert_eq!(end.next_shard_iterator, None);
    let expected: Vec<ChildShard> = [(1, 0_u128, (1_u128 << 127) - 1), (2, 1_u128 << 127, u128::MAX)]
        .into_iter()
        .map(|(number, first, last)| ChildShard {
            shard_id: shard(number),
            parent_shards: vec![shard(0)],
            hash_key_range: HashKeyRange { starting_hash_key: first.to_string(), ending_hash_key: last.to_string() },
        })
        .collect();
    assert_eq!(children(&end), expected);

    let range = &fixture.shards()[0].sequence_number_range;
    let ending = range.ending_sequence_number.unwrap().to_string();
    let last = end.records[0].sequence_number.to_string();
    for iterator in [
        tailing,
        fixture.latest(0),
        fixture.iterator(0, AfterSequenceNumber, Some(&last)).unwrap(),
        fixture.iterator(0, AfterSequenceNumber, Some(&ending)).unwrap(),
        fixture.iterator(0, AtSequenceNumber, Some(&ending)).unwrap(),
    ] {
        let output = fixture.get(&iterator).unwrap();
        assert_eq!((output.records.len(), output.next_shard_iterator.as_ref(), children(&output)), (0, None, &expected[..]));
    }
    let starting = range.starting_sequence_number.to_string();
    assert_eq!(fixture.read(&fixture.iterator(0, AtSequenceNumber, Some(&starting)).unwrap()), ["0", "1", "2"]);
}

#[test]
fn an_open_shard_has_no_ending_number() {
    let fixture = Fixture::new(1);
    fixture.split(0, 1 << 127).unwrap();
    let ending = fixture.shards()[0].sequence_number_range.ending_sequence_number.unwrap();
    let of_open = sequence::Parts { shard: 1, ..sequence::Parts::decode(ending).unwrap() }.encode().to_string();
    refused(fixture.iterator(1, AtSequenceNumber, Some(&of_open)), ErrorCode::InvalidArgument);
}

#[test]
fn what_cannot_be_split_or_merged() {
    let fixture = Fixture::new(4);
    let quarter = 1_u128 << 126;
    for at in [0, 1, quarter - 1, quarter, u128::MAX] {
        refused(fixture.split(0, at), ErrorCode::InvalidArgument);
    }
    refused(fixture.split(9, 5), ErrorCode::ResourceNotFound);
    refused(fixture.merge(0, 9), ErrorCode::ResourceNotFound);
    refused(fixture.merge(0, 2), ErrorCode::InvalidArgument);
    refused(fixture.merge(3, 0), ErrorCode::InvalidArgument);
    refused(fixture.merge(1, 1), ErrorCode::InvalidArgument);
    fixture.split(0, 2).unwrap();
    fixture.merge(2, 3).unwrap();
    refused(fixture.split(0, 2), ErrorCode::InvalidArgument);
    refused(fixture.merge(1, 2), ErrorCode::InvalidArgument);
    let text =
        SplitShardInput { stream_name: orders(), shard_to_split: shard(1), new_starting_hash_key: "half".into(), ..Default::default() };
    refused(fixture.kinesis.call(text), ErrorCode::Validation);
}

#[test]
fn the_account_s_open_shards_are_limited() {
    let fixture = Fixture::with(KinesisConfig { open_shard_limit: 3, ..Default::default() }, 2);
    refused(fixture.resize(4), ErrorCode::LimitExceeded);
    fixture.split(0, 1 << 126).unwrap();
    refused(fixture.split(1, 3 << 126), ErrorCode::LimitExceeded);
}

#[test]
fn a_shard_count_goes_from_two_to_four_to_three_with_full_lineage() {
    let fixture = Fixture::new(2);
    for index in 0..20 {
        fixture.put(&index.to_string(), &index.to_string());
    }
    let output = fixture.resize(4).unwrap();
    assert_eq!((output.current_shard_count, output.target_shard_count, output.stream_arn.as_str()), (2, 4, ARN));
    let open = fixture.list(ShardFilterType::AtLatest, None).unwrap();
    assert_eq!(ranges(&open).iter().map(|range| range.0 >> 126).collect::<Vec<_>>(), [0, 1, 2, 3]);
    for index in 20..40 {
        fixture.put(&index.to_string(), &index.to_string());
    }
    fixture.resize(3).unwrap();
    let open = fixture.list(ShardFilterType::AtLatest, None).unwrap();
    assert_eq!(ranges(&open), ranges(&Fixture::new(3).shards()));
    for index in 40..60 {
        fixture.put(&index.to_string(), &index.to_string());
    }

    let shards = fixture.shards();
    let by_id: BTreeMap<_, _> = shards.iter().map(|shard| (shard.shard_id.as_str(), shard)).collect();
    for shard in &shards[2..] {
        let parents: Vec<_> = shard.parent_shard_id.iter().chain(&shard.adjacent_parent_shard_id).collect();
        assert!(!parents.is_empty(), "{shard:?}");
        for parent in parents {
            let ending = by_id[parent.as_str()].sequence_number_range.ending_sequence_number.unwrap();
            assert!(ending < shard.sequence_number_range.starting_sequence_number);
        }
    }
    let read = fixture.read_tree();
    assert_eq!(read.len(), shards.len(), "every shard is reached");
    let mut all: Vec<u32> = read.values().flatten().map(|text| text.parse().unwrap()).collect();
    all.sort_unstable();
    assert_eq!(all, (0..60).collect::<Vec<_>>());
}

#[test]
fn a_shard_count_at_most_doubles_and_at_most_halves() {
    let fixture = Fixture::new(3);
    refused(fixture.resize(7), ErrorCode::LimitExceeded);
    refused(fixture.resize(1), ErrorCode::LimitExceeded);
    refused(fixture.resize(0), ErrorCode::Validation);
    fixture.resize(3).unwrap();
    assert_eq!(fixture.shards().len(), 3, "nothing to do");
    fixture.resize(2).unwrap();
    fixture.resize(1).unwrap();
    assert_tiles(&fixture.list(ShardFilterType::AtLatest, None).unwrap());
}

#[test]
fn records_written_while_updating_are_the_parent_s() {
    let fixture = Fixture::with(KinesisConfig { updating_ms: 30_000, ..Default::default() }, 1);
    fixture.split(0, 1 << 127).unwrap();
    let iterator = fixture.latest(0);
    fixture.time.advance(29_999);
    fixture.put("key", "in time");
    let output = fixture.get(&iterator).unwrap();
    assert_eq!((texts(&output.records), children(&output).len()), (vec!["in time".to_owned()], 0));
    // Nobody looks when it is due; the change still dates from then.
    fixture.time.advance(60_000);
    assert_ne!(fixture.put("key", "later").shard_id, shard(0));
    let output = fixture.get(&output.next_shard_iterator.unwrap()).unwrap();
    assert_eq!((output.records.len(), children(&output).len()), (0, 2));
    assert_eq!(fixture.ids(ShardFilterType::AtTimestamp, Some(START + 30_001)), [1, 2]);
}
