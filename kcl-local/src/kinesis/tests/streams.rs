//! Streams as wholes: states, settings, names and ARNs.

use super::*;

#[test]
fn a_stream_is_created_described_listed_and_deleted() {
    let fixture = Fixture::new(2);
    let summary = fixture.summary().unwrap();
    assert_eq!(
        (summary.stream_arn.as_str(), summary.stream_status, summary.open_shard_count, summary.consumer_count),
        (ARN, StreamStatus::Active, 2, 0)
    );
    assert_eq!((summary.retention_period_hours, summary.max_record_size_in_kib), (24, 1_024));
    assert_eq!(summary.stream_creation_timestamp, START);
    let description = fixture.kinesis.call(DescribeStreamInput { stream_arn: Some(ARN.into()), limit: Some(1), ..Default::default() });
    let description = description.unwrap().stream_description;
    assert_eq!((description.shards.len(), description.has_more_shards), (1, true));
    let rest =
        fixture.kinesis.call(DescribeStreamInput { stream_name: orders(), exclusive_start_shard_id: Some(shard(0)), ..Default::default() });
    let rest = rest.unwrap().stream_description;
    assert_eq!((rest.shards[0].shard_id.as_str(), rest.has_more_shards), ("shardId-000000000001", false));
    refused(fixture.create("orders", 1), ErrorCode::ResourceInUse);
    fixture.kinesis.call(DeleteStreamInput { stream_name: orders(), ..Default::default() }).unwrap();
    refused(fixture.summary(), ErrorCode::ResourceNotFound);
    fixture.create("orders", 1).unwrap();
}

#[test]
fn states_last_for_the_settable_times() {
    let config = KinesisConfig { creating_ms: 100, updating_ms: 50, deleting_ms: 10, ..Default::default() };
    let fixture = Fixture::with(config, 1);
    let delete = || fixture.kinesis.call(DeleteStreamInput { stream_name: orders(), ..Default::default() });
    assert_eq!(fixture.status(), StreamStatus::Creating);
    assert_eq!(fixture.summary().unwrap().open_shard_count, 0);
    refused(fixture.list(ShardFilterType::AtLatest, None), ErrorCode::ResourceInUse);
    refused(fixture.iterator(0, ShardIteratorType::Latest, None), ErrorCode::ResourceNotFound);
    let put = PutRecordInput { stream_name: orders(), partition_key: "key".into(), ..Default::default() };
    refused(fixture.kinesis.call(put), ErrorCode::ResourceNotFound);
    refused(fixture.split(0, 1 << 127), ErrorCode::ResourceInUse);
    refused(delete(), ErrorCode::ResourceInUse);

    fixture.time.advance(99);
    assert_eq!(fixture.status(), StreamStatus::Creating);
    assert_eq!(fixture.kinesis.with(|model, _| model.next_due()), Some(START + 100));
    fixture.time.advance(1);
    assert_eq!(fixture.status(), StreamStatus::Active);
    assert_eq!(fixture.kinesis.with(|model, _| model.next_due()), None);

    fixture.split(0, 1 << 127).unwrap();
    assert_eq!(fixture.status(), StreamStatus::Updating);
    assert_eq!(fixture.summary().unwrap().open_shard_count, 1, "the parent is open until the end");
    refused(fixture.split(0, 1 << 126), ErrorCode::ResourceInUse);
    assert_eq!(fixture.put("key", "x").shard_id, shard(0));
    fixture.time.advance(50);
    assert_eq!((fixture.status(), fixture.summary().unwrap().open_shard_count), (StreamStatus::Active, 2));

    delete().unwrap();
    assert_eq!(fixture.status(), StreamStatus::Deleting);
    refused(delete(), ErrorCode::ResourceInUse);
    refused(fixture.create("orders", 1), ErrorCode::ResourceInUse);
    refused(fixture.list(ShardFilterType::AtLatest, None), ErrorCode::ResourceInUse);
    assert_eq!(fixture.read(&fixture.horizon(0)), ["x"], "read until it is gone");
    fixture.time.advance(10);
    refused(fixture.summary(), ErrorCode::ResourceNotFound);
}

#[test]
fn streams_are_listed_in_pages() {
    let fixture = Fixture::empty(KinesisConfig::default());
    for name in ["c", "a", "b"] {
        fixture.create(name, 1).unwrap();
    }
    let first = fixture.kinesis.call(ListStreamsInput { limit: Some(2), ..Default::default() }).unwrap();
    assert_eq!((first.stream_names, first.has_more_streams), (vec!["a".to_owned(), "b".to_owned()], true));
    assert_eq!(first.stream_summaries[1].stream_status, StreamStatus::Active);
    for input in [
        ListStreamsInput { next_token: first.next_token, ..Default::default() },
        ListStreamsInput { exclusive_start_stream_name: Some("b".into()), ..Default::default() },
    ] {
        let rest = fixture.kinesis.call(input).unwrap();
        assert_eq!((rest.stream_names, rest.has_more_streams, rest.next_token), (vec!["c".to_owned()], false, None));
    }
    refused(fixture.kinesis.call(ListStreamsInput { limit: Some(0), ..Default::default() }), ErrorCode::Validation);
    let token = ListStreamsInput { next_token: Some("x".into()), ..Default::default() };
    refused(fixture.kinesis.call(token), ErrorCode::InvalidArgument);
}

#[test]
fn a_stream_is_named_by_name_by_arn_or_by_both_if_they_agree() {
    let fixture = Fixture::new(1);
    let describe = |stream_name: Option<&str>, stream_arn: Option<&str>| {
        let (stream_name, stream_arn) = (stream_name.map(str::to_owned), stream_arn.map(str::to_owned));
        fixture.kinesis.call(DescribeStreamSummaryInput { stream_name, stream_arn })
    };
    for (name, arn) in [(Some("orders"), None), (None, Some(ARN)), (Some("orders"), Some(ARN))] {
        assert!(describe(name, arn).is_ok());
    }
    refused(describe(None, None), ErrorCode::InvalidArgument);
    refused(describe(Some("other"), Some(ARN)), ErrorCode::InvalidArgument);
    refused(describe(Some("a b"), None), ErrorCode::Validation);
    refused(describe(None, Some("orders")), ErrorCode::Validation);
    refused(describe(Some("other"), None), ErrorCode::ResourceNotFound);
    refused(describe(None, Some(&ARN.replace("us-east-1", "eu-west-1"))), ErrorCode::ResourceNotFound);
    refused(describe(None, Some(&ARN.replace("0000:", "0001:"))), ErrorCode::ResourceNotFound);
}

#[test]
fn what_a_new_stream_may_be() {
    let fixture = Fixture::empty(KinesisConfig { open_shard_limit: 5, ..Default::default() });
    refused(fixture.create("a/b", 1), ErrorCode::Validation);
    refused(fixture.create("a", 0), ErrorCode::Validation);
    refused(fixture.create("a", 6), ErrorCode::LimitExceeded);
    let input = CreateStreamInput { stream_name: "a".into(), ..Default::default() };
    refused(fixture.kinesis.call(input.clone()), ErrorCode::Validation);
    let size = CreateStreamInput { shard_count: Some(1), max_record_size_in_kib: Some(10_241), ..input.clone() };
    refused(fixture.kinesis.call(size), ErrorCode::Validation);
    let on_demand = Some(StreamModeDetails { stream_mode: StreamMode::OnDemand });
    fixture.kinesis.call(CreateStreamInput { stream_name: "orders".into(), stream_mode_details: on_demand, ..input }).unwrap();
    assert_eq!(fixture.shards().len(), 4);
    refused(fixture.split(0, 1 << 125), ErrorCode::Validation);
    refused(fixture.create("a", 2), ErrorCode::LimitExceeded);
    fixture.create("a", 1).unwrap();
}

#[test]
fn retention_and_record_size_keep_to_their_ranges() {
    let fixture = Fixture::new(1);
    let up = |hours| {
        let input = IncreaseStreamRetentionPeriodInput { stream_name: orders(), retention_period_hours: hours, ..Default::default() };
        fixture.kinesis.call(input)
    };
    let down = |hours| {
        let input = DecreaseStreamRetentionPeriodInput { stream_name: orders(), retention_period_hours: hours, ..Default::default() };
        fixture.kinesis.call(input)
    };
    up(48).unwrap();
    assert_eq!(fixture.summary().unwrap().retention_period_hours, 48);
    refused(up(47), ErrorCode::InvalidArgument);
    refused(up(8_761), ErrorCode::InvalidArgument);
    refused(down(49), ErrorCode::InvalidArgument);
    refused(down(23), ErrorCode::InvalidArgument);
    down(24).unwrap();
    let size = |kib| {
        let input = UpdateMaxRecordSizeInput { stream_arn: Some(ARN.into()), max_record_size_in_kib: kib, ..Default::default() };
        fixture.kinesis.call(input)
    };
    refused(size(1_023), ErrorCode::Validation);
    refused(size(10_241), ErrorCode::Validation);
    size(10_240).unwrap();
    assert_eq!(fixture.summary().unwrap().max_record_size_in_kib, 10_240);
}

#[test]
fn tags() {
    let fixture = Fixture::new(1);
    let tags = |pairs: &[(&str, &str)]| pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
    let add = |pairs: &[(&str, &str)]| {
        fixture.kinesis.call(AddTagsToStreamInput { stream_name: orders(), tags: tags(pairs), ..Default::default() })
    };
    add(&[("team", "a"), ("env", "test")]).unwrap();
    add(&[("team", "b")]).unwrap();
    let list = |limit| fixture.kinesis.call(ListTagsForStreamInput { stream_name: orders(), limit, ..Default::default() }).unwrap();
    assert_eq!((list(Some(1)).tags.len(), list(Some(1)).has_more_tags), (1, true));
    assert_eq!(list(None).tags[1], Tag { key: "team".into(), value: "b".into() });
    let remove = RemoveTagsFromStreamInput { stream_name: orders(), tag_keys: vec!["env".into(), "none".into()], ..Default::default() };
    fixture.kinesis.call(remove).unwrap();
    assert_eq!(list(None).tags.len(), 1);
    let many: Vec<String> = (0..50).map(|index| format!("tag{index}")).collect();
    let many: Vec<_> = many.iter().map(|key| (key.as_str(), "")).collect();
    refused(add(&many), ErrorCode::InvalidArgument);
    assert_eq!(list(None).tags.len(), 1, "nothing was applied");
}

#[test]
fn a_stream_made_anew_is_another_one() {
    let fixture = Fixture::new(2);
    let put = fixture.put("key", "old");
    let (iterator, number) = (fixture.horizon(0), put.sequence_number.to_string());
    let page = fixture.kinesis.call(ListShardsInput { stream_name: orders(), max_results: Some(1), ..Default::default() }).unwrap();
    fixture.kinesis.call(DeleteStreamInput { stream_name: orders(), ..Default::default() }).unwrap();
    refused(fixture.get(&iterator), ErrorCode::ResourceNotFound);
    // In the very millisecond.
    fixture.create("orders", 2).unwrap();
    refused(fixture.get(&iterator), ErrorCode::ResourceNotFound);
    let next = ListShardsInput { next_token: page.next_token, ..Default::default() };
    refused(fixture.kinesis.call(next), ErrorCode::ResourceNotFound);
    let kind = ShardIteratorType::AfterSequenceNumber;
    let message = refused(fixture.iterator(self::number(&put.shard_id), kind, Some(&number)), ErrorCode::InvalidArgument);
    assert!(message.ends_with("is invalid because it did not come from this stream."), "{message}");
    assert_eq!(fixture.read(&fixture.horizon(0)), Vec::<String>::new());
}
