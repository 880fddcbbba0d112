//! The JSON face: the service's names and forms, and its errors.

use serde_json::{Value, json};

use super::*;

fn call(kinesis: &Kinesis, operation: &str, body: &Value) -> Value {
    let answer = api::call(kinesis, operation, body.to_string().as_bytes()).unwrap();
    if answer.is_empty() { Value::Null } else { serde_json::from_slice(&answer).unwrap() }
}

#[track_caller]
fn error(kinesis: &Kinesis, operation: &str, body: &str) -> Value {
    let error = api::call(kinesis, operation, body.as_bytes()).unwrap_err();
    assert_eq!(error.http_status(), 400);
    serde_json::from_slice(&error.to_json()).unwrap()
}

#[test]
fn a_stream_s_life() {
    let fixture = Fixture::empty(KinesisConfig::default());
    fixture.time.advance(123);
    let kinesis = &fixture.kinesis;
    let create = json!({
        "StreamName": "orders", "ShardCount": 1, "StreamModeDetails": {"StreamMode": "PROVISIONED"}, "Tags": {"team": "a"}
    });
    assert_eq!(call(kinesis, "CreateStream", &create), Value::Null);
    let summary = call(kinesis, "DescribeStreamSummary", &json!({"StreamARN": ARN, "StreamId": "ignored"}));
    let expected = json!({"StreamDescriptionSummary": {
        "StreamName": "orders",
        "StreamARN": ARN,
        "StreamStatus": "ACTIVE",
        "StreamModeDetails": {"StreamMode": "PROVISIONED"},
        "RetentionPeriodHours": 24,
        "StreamCreationTimestamp": 1_790_000_000.123,
        "EnhancedMonitoring": [{"ShardLevelMetrics": []}],
        "EncryptionType": "NONE",
        "OpenShardCount": 1,
        "ConsumerCount": 0,
        "MaxRecordSizeInKiB": 1024,
    }});
    assert_eq!(summary, expected);
    let tags = call(kinesis, "ListTagsForStream", &json!({"StreamName": "orders"}));
    assert_eq!(tags, json!({"Tags": [{"Key": "team", "Value": "a"}], "HasMoreTags": false}));

    let put = call(kinesis, "PutRecord", &json!({"StreamName": "orders", "Data": "aGVsbG8=", "PartitionKey": "k"}));
    assert_eq!(put["ShardId"], "shardId-000000000000");
    let many = json!({"StreamName": "orders", "Records": [{"Data": "", "PartitionKey": "k"}, {"Data": "/+8=", "PartitionKey": "k"}]});
    let many = call(kinesis, "PutRecords", &many);
    assert_eq!(many["FailedRecordCount"], 0);
    assert!(many["Records"][0]["SequenceNumber"].is_string() && many["Records"][0].get("ErrorCode").is_none());

    let at = json!({
        "StreamName": "orders", "ShardId": "shardId-000000000000", "ShardIteratorType": "AT_TIMESTAMP", "Timestamp": 1_790_000_000.123
    });
    let iterator = call(kinesis, "GetShardIterator", &at);
    let output = call(kinesis, "GetRecords", &json!({"ShardIterator": iterator["ShardIterator"], "Limit": 100}));
    let first = json!({
        "SequenceNumber": put["SequenceNumber"],
        "ApproximateArrivalTimestamp": 1_790_000_000.123,
        "Data": "aGVsbG8=",
        "PartitionKey": "k",
    });
    assert_eq!(output["Records"][0], first);
    assert_eq!((output["Records"][2]["Data"].as_str(), output["MillisBehindLatest"].as_u64()), (Some("/+8="), Some(0)));
    assert!(output.get("ChildShards").is_none());

    let half = (1_u128 << 127).to_string();
    let split = json!({"StreamName": "orders", "ShardToSplit": "shardId-000000000000", "NewStartingHashKey": half});
    assert_eq!(call(kinesis, "SplitShard", &split), Value::Null);
    let output = call(kinesis, "GetRecords", &json!({"ShardIterator": output["NextShardIterator"]}));
    assert!(output.get("NextShardIterator").is_none());
    let child = json!({
        "ShardId": "shardId-000000000002",
        "ParentShards": ["shardId-000000000000"],
        "HashKeyRange": {"StartingHashKey": half, "EndingHashKey": u128::MAX.to_string()},
    });
    assert_eq!(output["ChildShards"][1], child);
    let filter = json!({"Type": "AFTER_SHARD_ID", "ShardId": "shardId-000000000001"});
    let listed = call(kinesis, "ListShards", &json!({"StreamName": "orders", "ShardFilter": filter}));
    assert_eq!(listed["Shards"][0]["ParentShardId"], "shardId-000000000000");
    assert!(listed["Shards"][0]["SequenceNumberRange"].get("EndingSequenceNumber").is_none());
    let at = json!({"Type": "AT_TIMESTAMP", "Timestamp": 1_790_000_000});
    let created = json!({"StreamName": "orders", "ShardFilter": at, "StreamCreationTimestamp": 1_790_000_000.123});
    assert_eq!(call(kinesis, "ListShards", &created)["Shards"].as_array().map(Vec::len), Some(1));
    let described = call(kinesis, "DescribeStream", &json!({"StreamName": "orders"}));
    assert_eq!(described["StreamDescription"]["HasMoreShards"], false);
    let count = json!({"StreamName": "orders", "TargetShardCount": 4, "ScalingType": "UNIFORM_SCALING"});
    assert_eq!(call(kinesis, "UpdateShardCount", &count)["CurrentShardCount"], 2);
    assert_eq!(call(kinesis, "ListStreams", &json!({}))["StreamNames"], json!(["orders"]));
    assert_eq!(call(kinesis, "DeleteStream", &json!({"StreamName": "orders", "EnforceConsumerDeletion": true})), Value::Null);
    assert!(api::call(kinesis, "ListStreams", b"").is_ok(), "an empty body is an empty input");
}

#[test]
fn a_consumer_s_life() {
    let fixture = Fixture::new(1);
    fixture.time.advance(123);
    let kinesis = &fixture.kinesis;
    let arn = format!("{ARN}/consumer/billing:1790000000");
    let consumer = json!({
        "ConsumerName": "billing", "ConsumerARN": arn, "ConsumerStatus": "ACTIVE", "ConsumerCreationTimestamp": 1_790_000_000.123
    });
    let register = json!({"StreamARN": ARN, "ConsumerName": "billing", "Tags": {"team": "a"}, "StreamId": "ignored"});
    assert_eq!(call(kinesis, "RegisterStreamConsumer", &register), json!({"Consumer": consumer}));
    let mut description = consumer.clone();
    description["StreamARN"] = ARN.into();
    for by in [json!({"ConsumerARN": arn}), json!({"StreamARN": ARN, "ConsumerName": "billing"})] {
        assert_eq!(call(kinesis, "DescribeStreamConsumer", &by), json!({"ConsumerDescription": description}));
    }
    assert_eq!(call(kinesis, "ListStreamConsumers", &json!({"StreamARN": ARN})), json!({"Consumers": [consumer]}));
    call(kinesis, "RegisterStreamConsumer", &json!({"StreamARN": ARN, "ConsumerName": "other"}));
    let page = call(kinesis, "ListStreamConsumers", &json!({"StreamARN": ARN, "MaxResults": 1}));
    let rest = call(kinesis, "ListStreamConsumers", &json!({"StreamARN": ARN, "NextToken": page["NextToken"]}));
    assert_eq!((&rest["Consumers"][0]["ConsumerName"], rest.get("NextToken")), (&json!("other"), None));
    let summary = call(kinesis, "DescribeStreamSummary", &json!({"StreamName": "orders"}));
    assert_eq!(summary["StreamDescriptionSummary"]["ConsumerCount"], 2);

    let refused = error(kinesis, "DeleteStream", r#"{"StreamName": "orders"}"#);
    assert_eq!(refused["__type"], "ResourceInUseException");
    assert_eq!(call(kinesis, "DeregisterStreamConsumer", &json!({"ConsumerARN": arn})), Value::Null);
    let gone = error(kinesis, "DescribeStreamConsumer", &json!({"ConsumerARN": arn}).to_string());
    let expected = format!("Consumer {arn} under stream orders not found for account 000000000000.");
    assert_eq!(gone, json!({"__type": "ResourceNotFoundException", "message": expected}));
    assert_eq!(call(kinesis, "DeleteStream", &json!({"StreamName": "orders", "EnforceConsumerDeletion": true})), Value::Null);
}

#[test]
fn a_subscription_s_input_and_events() {
    let fixture = Fixture::with(KinesisConfig { resubscribe_ms: 0, ..Default::default() }, 1);
    let arn = fixture.register("billing");
    let position = json!({"Type": "AT_TIMESTAMP", "Timestamp": 1_790_000_000.0});
    let body = json!({"ConsumerARN": arn, "ShardId": "shardId-000000000000", "StartingPosition": position, "StreamId": "ignored"});
    let subscribe = |body: &Value| api::input::<SubscribeToShardInput>(body.to_string().as_bytes());
    let event = |id| serde_json::to_value(fixture.event(id)).unwrap();

    let id = fixture.kinesis.call(subscribe(&body).unwrap()).unwrap();
    let start = fixture.shards()[0].sequence_number_range.starting_sequence_number.to_string();
    assert_eq!(event(id), json!({"Records": [], "ContinuationSequenceNumber": start, "MillisBehindLatest": 0}));
    let number = fixture.put("k", "hello").sequence_number.to_string();
    let record = json!({
        "SequenceNumber": number, "ApproximateArrivalTimestamp": 1_790_000_000.0, "Data": "aGVsbG8=", "PartitionKey": "k"
    });
    assert_eq!(event(id), json!({"Records": [record], "ContinuationSequenceNumber": number, "MillisBehindLatest": 0}));
    fixture.split(0, 1 << 127).unwrap();
    let child = |number: u32, first: u128, last: u128| {
        let range = json!({"StartingHashKey": first.to_string(), "EndingHashKey": last.to_string()});
        json!({"ShardId": shard(number), "ParentShards": ["shardId-000000000000"], "HashKeyRange": range})
    };
    let half = 1_u128 << 127;
    let children = json!([child(1, 0, half - 1), child(2, half, u128::MAX)]);
    assert_eq!(event(id), json!({"Records": [], "MillisBehindLatest": 0, "ChildShards": children}));

    let mut after = body.clone();
    after["StartingPosition"] = json!({"Type": "AFTER_SEQUENCE_NUMBER", "SequenceNumber": number});
    assert_eq!(subscribe(&after).unwrap().starting_position.sequence_number, Some(number));
    for (position, expected) in [
        (json!({}), "1 validation error detected: Value null at 'type' failed to satisfy constraint: Member must not be null"),
        (json!({"Type": "SOMEWHERE"}), "unknown variant `SOMEWHERE`"),
    ] {
        let mut bad = body.clone();
        bad["StartingPosition"] = position;
        let error = subscribe(&bad).unwrap_err();
        assert_eq!(error.code, ErrorCode::Validation);
        assert!(error.message.starts_with(expected), "{error}");
    }
    let call = api::call(&fixture.kinesis, "SubscribeToShard", body.to_string().as_bytes());
    assert_eq!(call.unwrap_err().code, ErrorCode::UnknownOperation, "its answer is no JSON");
}

#[test]
fn errors_have_the_service_s_names() {
    let fixture = Fixture::new(1);
    for (operation, body, expected) in [
        ("MakeCoffee", "{}", "UnknownOperationException"),
        ("ListShards", "not json", "SerializationException"),
        ("ListShards", r#"{"StreamName": 7}"#, "SerializationException"),
        ("PutRecord", r#"{"StreamName": "orders", "Data": "secret!", "PartitionKey": "k"}"#, "SerializationException"),
        ("PutRecord", r#"{"StreamName": "orders", "PartitionKey": "k"}"#, "ValidationException"),
        ("GetRecords", r#"{"ShardIterator": "x", "Limit": -1}"#, "ValidationException"),
        ("GetRecords", r#"{"ShardIterator": "x"}"#, "InvalidArgumentException"),
        (
            "GetShardIterator",
            r#"{"StreamName": "orders", "ShardId": "shardId-000000000000", "ShardIteratorType": "SOMEWHERE"}"#,
            "ValidationException",
        ),
        ("DescribeStreamSummary", r#"{"StreamName": "none"}"#, "ResourceNotFoundException"),
        ("CreateStream", r#"{"StreamName": "orders", "ShardCount": 1}"#, "ResourceInUseException"),
        ("CreateStream", r#"{"StreamName": "more", "ShardCount": 10000}"#, "LimitExceededException"),
    ] {
        let error = error(&fixture.kinesis, operation, body);
        assert_eq!(error["__type"], expected, "{operation} {body}: {error}");
        assert!(!error["message"].as_str().unwrap().contains("secret"), "{error}");
    }
    let missing = error(&fixture.kinesis, "PutRecord", r#"{"StreamName": "orders", "Data": ""}"#);
    let expected = "1 validation error detected: Value null at 'partitionKey' failed to satisfy constraint: Member must not be null";
    assert_eq!(missing["message"], expected);
}

#[test]
fn every_operation_on_a_stream_takes_its_name_or_its_arn() {
    let operations = [
        ("DescribeStream", json!({})),
        ("DescribeStreamSummary", json!({})),
        ("ListShards", json!({})),
        ("PutRecord", json!({"Data": "aGVsbG8=", "PartitionKey": "k"})),
        ("PutRecords", json!({"Records": [{"Data": "aGVsbG8=", "PartitionKey": "k"}]})),
        ("GetShardIterator", json!({"ShardId": "shardId-000000000000", "ShardIteratorType": "LATEST"})),
        ("AddTagsToStream", json!({"Tags": {"team": "a"}})),
        ("ListTagsForStream", json!({})),
        ("RemoveTagsFromStream", json!({"TagKeys": ["team"]})),
        ("IncreaseStreamRetentionPeriod", json!({"RetentionPeriodHours": 48})),
        ("DecreaseStreamRetentionPeriod", json!({"RetentionPeriodHours": 24})),
        ("UpdateMaxRecordSize", json!({"MaxRecordSizeInKiB": 2048})),
        ("SplitShard", json!({"ShardToSplit": "shardId-000000000000", "NewStartingHashKey": (1_u128 << 127).to_string()})),
        ("MergeShards", json!({"ShardToMerge": "shardId-000000000001", "AdjacentShardToMerge": "shardId-000000000002"})),
        ("UpdateShardCount", json!({"TargetShardCount": 2, "ScalingType": "UNIFORM_SCALING"})),
        ("DeleteStream", json!({})),
    ];
    let run = |member: &str, value: &str| {
        let fixture = Fixture::new(1);
        let answer = |(operation, body): &(&str, Value)| {
            let mut body = body.clone();
            assert_eq!(error(&fixture.kinesis, operation, &body.to_string())["__type"], "InvalidArgumentException", "{operation}");
            body[member] = value.into();
            call(&fixture.kinesis, operation, &body)
        };
        operations.iter().map(answer).collect::<Vec<_>>()
    };
    assert_eq!(run("StreamName", "orders"), run("StreamARN", ARN));
}
