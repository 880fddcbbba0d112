//! Registering, describing, listing and deregistering consumers.

use super::*;

fn try_register(fixture: &Fixture, name: &str) -> Result<RegisterStreamConsumerOutput, ApiError> {
    fixture.kinesis.call(RegisterStreamConsumerInput { stream_arn: ARN.into(), consumer_name: name.into() })
}

fn describe(
    fixture: &Fixture,
    stream_arn: Option<&str>,
    consumer_name: Option<&str>,
    consumer_arn: Option<&str>,
) -> Result<ConsumerDescription, ApiError> {
    let [stream_arn, consumer_name, consumer_arn] = [stream_arn, consumer_name, consumer_arn].map(|text| text.map(str::to_owned));
    let input = DescribeStreamConsumerInput { stream_arn, consumer_name, consumer_arn };
    fixture.kinesis.call(input).map(|output| output.consumer_description)
}

fn list(fixture: &Fixture, max_results: Option<u32>, next_token: Option<String>) -> Result<ListStreamConsumersOutput, ApiError> {
    fixture.kinesis.call(ListStreamConsumersInput { stream_arn: ARN.into(), max_results, next_token, ..Default::default() })
}

fn names(output: &ListStreamConsumersOutput) -> Vec<&str> {
    output.consumers.iter().map(|consumer| consumer.consumer_name.as_str()).collect()
}

fn delete_stream(fixture: &Fixture, enforce_consumer_deletion: Option<bool>) -> Result<(), ApiError> {
    fixture.kinesis.call(DeleteStreamInput { stream_name: orders(), enforce_consumer_deletion, ..Default::default() })
}

#[test]
fn a_consumer_is_registered_described_listed_and_deregistered() {
    let fixture = Fixture::new(1);
    let consumer = try_register(&fixture, "billing").unwrap().consumer;
    let expected = Consumer {
        consumer_name: "billing".into(),
        consumer_arn: format!("{ARN}/consumer/billing:{}", START / 1_000),
        consumer_status: ConsumerStatus::Active,
        consumer_creation_timestamp: START,
    };
    assert_eq!(consumer, expected);
    let arn = expected.consumer_arn.as_str();
    for (stream, name, consumer) in [(None, None, Some(arn)), (Some(ARN), Some("billing"), None), (Some(ARN), Some("billing"), Some(arn))] {
        let described = describe(&fixture, stream, name, consumer).unwrap();
        assert_eq!((&described.consumer, described.stream_arn.as_str()), (&expected, ARN));
    }
    assert_eq!(list(&fixture, None, None).unwrap().consumers, std::slice::from_ref(&expected));
    assert_eq!(fixture.summary().unwrap().consumer_count, 1);

    refused(try_register(&fixture, "billing"), ErrorCode::ResourceInUse);
    fixture.deregister(arn).unwrap();
    refused(describe(&fixture, None, None, Some(arn)), ErrorCode::ResourceNotFound);
    refused(fixture.deregister(arn), ErrorCode::ResourceNotFound);
    assert_eq!(fixture.summary().unwrap().consumer_count, 0);
    fixture.register("billing");
    let by_name = DeregisterStreamConsumerInput { stream_arn: Some(ARN.into()), consumer_name: Some("billing".into()), consumer_arn: None };
    fixture.kinesis.call(by_name).unwrap();
    assert_eq!(fixture.summary().unwrap().consumer_count, 0);
}

#[test]
fn a_consumer_registered_anew_has_another_arn_in_the_same_second_too() {
    let fixture = Fixture::new(1);
    let other = fixture.register("other");
    assert_eq!(other, format!("{ARN}/consumer/other:{}", START / 1_000));
    let first = fixture.register("billing");
    fixture.deregister(&first).unwrap();
    let second = fixture.register("billing");
    assert_ne!(first, second);
    refused(describe(&fixture, None, None, Some(&first)), ErrorCode::ResourceNotFound);
    refused(fixture.deregister(&first), ErrorCode::ResourceNotFound);

    delete_stream(&fixture, Some(true)).unwrap();
    fixture.create("orders", 1).unwrap();
    let third = fixture.register("billing");
    assert!(third != first && third != second);
    // Seconds pass by and are the time's again.
    fixture.time.advance(60_000);
    assert_eq!(fixture.register("late"), format!("{ARN}/consumer/late:{}", START / 1_000 + 60));
}

#[test]
fn states_last_for_the_settable_times() {
    let config = KinesisConfig { consumer_creating_ms: 100, consumer_deleting_ms: 50, ..Default::default() };
    let fixture = Fixture::with(config, 1);
    let arn = fixture.register("billing");
    let status = || describe(&fixture, None, None, Some(&arn)).map(|described| described.consumer.consumer_status);
    let subscribe = || fixture.subscribe(&arn, 0, ShardIteratorType::Latest, None);
    let due = || fixture.kinesis.with(|model, _| model.next_due());
    assert_eq!((status(), due()), (Ok(ConsumerStatus::Creating), Some(START + 100)));
    let message = refused(subscribe(), ErrorCode::ResourceInUse);
    assert_eq!(message, "Consumer 000000000000:orders:billing not ACTIVE, instead in state CREATING");
    fixture.time.advance(100);
    fixture.kinesis.with(Model::settle);
    assert_eq!((status(), due()), (Ok(ConsumerStatus::Active), None));
    subscribe().unwrap();

    fixture.deregister(&arn).unwrap();
    assert_eq!((status(), due()), (Ok(ConsumerStatus::Deleting), Some(START + 150)));
    refused(subscribe(), ErrorCode::ResourceInUse);
    refused(try_register(&fixture, "billing"), ErrorCode::ResourceInUse);
    refused(delete_stream(&fixture, None), ErrorCode::ResourceInUse);
    fixture.time.advance(49);
    fixture.deregister(&arn).unwrap();
    assert_eq!(status(), Ok(ConsumerStatus::Deleting));
    fixture.time.advance(1);
    refused(status(), ErrorCode::ResourceNotFound);
    assert_eq!(due(), None);
    assert_ne!(fixture.register("billing"), arn);
}

#[test]
fn a_stream_has_twenty_consumers_and_five_in_creation() {
    let fixture = Fixture::new(1);
    for index in 0..20 {
        fixture.register(&format!("consumer-{index}"));
    }
    refused(try_register(&fixture, "one-more"), ErrorCode::LimitExceeded);
    refused(try_register(&fixture, "consumer-0"), ErrorCode::ResourceInUse);

    let fixture = Fixture::with(KinesisConfig { consumer_creating_ms: 100, consumer_limit: 7, ..Default::default() }, 1);
    for index in 0..5 {
        fixture.register(&format!("consumer-{index}"));
    }
    refused(try_register(&fixture, "sixth"), ErrorCode::LimitExceeded);
    fixture.time.advance(100);
    fixture.register("sixth");
    fixture.register("seventh");
    refused(try_register(&fixture, "eighth"), ErrorCode::LimitExceeded);
}

#[test]
fn a_stream_with_consumers_is_deleted_only_with_them() {
    let fixture = Fixture::new(1);
    let arn = fixture.register("billing");
    for enforce in [None, Some(false)] {
        refused(delete_stream(&fixture, enforce), ErrorCode::ResourceInUse);
    }
    delete_stream(&fixture, Some(true)).unwrap();
    refused(fixture.summary(), ErrorCode::ResourceNotFound);
    refused(describe(&fixture, None, None, Some(&arn)), ErrorCode::ResourceNotFound);
    fixture.create("orders", 1).unwrap();
    assert_eq!(list(&fixture, None, None).unwrap().consumers, []);
    delete_stream(&fixture, None).unwrap();
}

#[test]
fn consumers_are_listed_in_pages() {
    let fixture = Fixture::with(KinesisConfig { next_token_life_ms: 1_000, ..Default::default() }, 1);
    for name in ["c", "a", "b"] {
        fixture.register(name);
    }
    let first = list(&fixture, Some(2), None).unwrap();
    assert_eq!(names(&first), ["a", "b"]);
    fixture.time.advance(1_000);
    let rest = list(&fixture, Some(2), first.next_token.clone()).unwrap();
    assert_eq!((names(&rest), &rest.next_token), (vec!["c"], &None));
    assert_eq!(list(&fixture, Some(3), None).unwrap().next_token, None);

    let token = first.next_token.unwrap();
    let created = |time, next_token| {
        let input =
            ListStreamConsumersInput { stream_arn: ARN.into(), next_token, stream_creation_timestamp: Some(time), max_results: None };
        fixture.kinesis.call(input)
    };
    assert_eq!(created(START, None).unwrap().consumers.len(), 3);
    refused(created(START - 60_000, None), ErrorCode::ResourceNotFound);
    refused(created(START, Some(token.clone())), ErrorCode::InvalidArgument);
    refused(list(&fixture, None, Some("x".into())), ErrorCode::InvalidArgument);
    for limit in [0, 10_001] {
        refused(list(&fixture, Some(limit), None), ErrorCode::Validation);
    }
    fixture.create("other", 1).unwrap();
    let other =
        ListStreamConsumersInput { stream_arn: ARN.replace("orders", "other"), next_token: Some(token.clone()), ..Default::default() };
    refused(fixture.kinesis.call(other), ErrorCode::ResourceNotFound);
    fixture.time.advance(1);
    refused(list(&fixture, None, Some(token)), ErrorCode::ExpiredNextToken);
}

#[test]
fn what_names_no_consumer_is_refused() {
    let fixture = Fixture::new(1);
    let arn = fixture.register("billing");
    for (stream, name, consumer) in [
        (None, None, None),
        (Some(ARN), None, None),
        (None, Some("billing"), None),
        (Some(ARN), Some("other"), Some(arn.as_str())),
        (Some(&ARN.replace("orders", "other")), None, Some(arn.as_str())),
    ] {
        refused(describe(&fixture, stream, name, consumer), ErrorCode::InvalidArgument);
    }
    for malformed in ["billing", ARN, &format!("{ARN}/consumer/billing"), &format!("{arn}x")] {
        refused(describe(&fixture, None, None, Some(malformed)), ErrorCode::Validation);
        refused(fixture.subscribe(malformed, 0, ShardIteratorType::Latest, None), ErrorCode::Validation);
    }
    let later = format!("{arn}0");
    for unknown in [&arn.replace("billing", "other"), &arn.replace("orders", "other"), &arn.replace("us-east-1", "eu-west-1"), &later] {
        refused(describe(&fixture, None, None, Some(unknown)), ErrorCode::ResourceNotFound);
        refused(fixture.deregister(unknown), ErrorCode::ResourceNotFound);
        refused(fixture.subscribe(unknown, 0, ShardIteratorType::Latest, None), ErrorCode::ResourceNotFound);
    }
    for bad in ["", "a b", "a/b", &"x".repeat(129)] {
        refused(try_register(&fixture, bad), ErrorCode::Validation);
    }
    let other = |stream_arn: &str| RegisterStreamConsumerInput { stream_arn: stream_arn.into(), consumer_name: "a".into() };
    refused(fixture.kinesis.call(other(&ARN.replace("orders", "other"))), ErrorCode::ResourceNotFound);
    refused(fixture.kinesis.call(other("orders")), ErrorCode::Validation);
}
