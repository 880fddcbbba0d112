//! The requests and answers of the port on the wire of the SDK, against scripted answers.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use aws_credential_types::provider::{self, ProvideCredentials, error::CredentialsError};
use aws_sdk_kinesis::config::{BehaviorVersion, Config, Credentials, Region};
use aws_smithy_runtime_api::client::http::{HttpConnector, HttpConnectorFuture, SharedHttpConnector, http_client_fn};
use aws_smithy_runtime_api::client::orchestrator::{HttpRequest, HttpResponse};
use aws_smithy_runtime_api::http::StatusCode;
use aws_smithy_types::body::SdkBody;
use kcl_checkpoint::{SequenceNumber, Timestamp};
use kcl_lease::HashKeyRange;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::*;
use crate::stream::StreamStatus;

const ARN: &str = "arn:aws:kinesis:eu-west-1:123456789012:stream/orders";
const TIMEOUT: Duration = Duration::from_secs(3);

/// Gives each request the next of its answers; none left: no answer ever.
#[derive(Clone, Debug, Default)]
struct Wire {
    answers: Arc<Mutex<VecDeque<(u16, String)>>>,
    requests: Arc<Mutex<Vec<(String, Value)>>>,
}

impl HttpConnector for Wire {
    fn call(&self, request: HttpRequest) -> HttpConnectorFuture {
        let target = request.headers().get("x-amz-target").unwrap_or_default().to_owned();
        let body = serde_json::from_slice(request.body().bytes().unwrap_or_default()).unwrap();
        self.requests.lock().unwrap().push((target, body));
        let Some((status, body)) = self.answers.lock().unwrap().pop_front() else {
            return HttpConnectorFuture::new(std::future::pending());
        };
        let mut response = HttpResponse::new(StatusCode::try_from(status).unwrap(), SdkBody::from(body));
        response.headers_mut().insert("content-type", "application/x-amz-json-1.1");
        HttpConnectorFuture::ready(Ok(response))
    }
}

impl Wire {
    fn answer(&self, body: &Value) -> &Self {
        self.answers.lock().unwrap().push_back((200, body.to_string()));
        self
    }

    fn refuse(&self, status: u16, code: &str) -> &Self {
        let body = json!({ "__type": code, "message": format!("because of {code}") });
        self.answers.lock().unwrap().push_back((status, body.to_string()));
        self
    }

    fn requests(&self) -> Vec<(String, Value)> {
        self.requests.lock().unwrap().clone()
    }

    fn config(&self) -> aws_sdk_kinesis::config::Builder {
        let wire = self.clone();
        Config::builder()
            .behavior_version(BehaviorVersion::latest())
            .http_client(http_client_fn(move |_, _| SharedHttpConnector::new(wire.clone())))
    }

    fn stream(&self, stream: &str) -> KinesisStream {
        let config = self.config().region(Region::new("eu-west-1")).credentials_provider(Credentials::from_keys("a", "b", None));
        KinesisStream::new(Client::from_conf(config.build()), stream, TIMEOUT)
    }
}

fn description() -> Value {
    json!({
        "StreamName": "orders", "StreamARN": ARN, "StreamStatus": "UPDATING", "RetentionPeriodHours": 24,
        "StreamCreationTimestamp": 1_500_000_000.123, "EnhancedMonitoring": [], "OpenShardCount": 1
    })
}

fn shard(id: &str, parents: (Option<&str>, Option<&str>), ending: Option<&str>) -> Value {
    json!({
        "ShardId": id, "ParentShardId": parents.0, "AdjacentParentShardId": parents.1,
        "HashKeyRange": { "StartingHashKey": "0", "EndingHashKey": u128::MAX.to_string() },
        "SequenceNumberRange": { "StartingSequenceNumber": "7", "EndingSequenceNumber": ending }
    })
}

fn number(text: &str) -> SequenceNumber {
    text.parse().unwrap()
}

#[tokio::test]
async fn a_stream_is_described_by_its_name_or_its_arn() {
    let wire = Wire::default();
    wire.answer(&json!({ "StreamDescriptionSummary": description() })).answer(&json!({ "StreamDescriptionSummary": description() }));
    let described = wire.stream("orders").describe().await.unwrap();
    let expected = StreamDescription {
        name: "orders".into(),
        arn: ARN.into(),
        status: StreamStatus::Active,
        // As floating point this is a little less than .123.
        created: Timestamp::from_millis(1_500_000_000_123),
        retention_hours: 24,
        time: None,
    };
    assert_eq!(described, expected);
    wire.stream(ARN).describe().await.unwrap();
    let target = "Kinesis_20131202.DescribeStreamSummary".to_owned();
    assert_eq!(wire.requests(), [(target.clone(), json!({ "StreamName": "orders" })), (target, json!({ "StreamARN": ARN }))]);
}

#[tokio::test]
async fn a_listing_has_all_pages_sorted_and_each_shard_once() {
    let wire = Wire::default();
    wire.answer(
        &json!({ "Shards": [shard("s-2", (Some("s-0"), Some("s-1")), None), shard("s-1", (None, None), None)], "NextToken": "on" }),
    )
    .answer(&json!({ "Shards": [shard("s-0", (None, None), Some("8")), shard("s-1", (None, None), Some("9"))] }));
    let shards = wire.stream("orders").list_shards(ShardFilter::AtTimestamp(Timestamp::from_millis(1_500))).await.unwrap();
    let expected = |id: &str, parents: &[&str], ending: Option<&str>| Shard {
        shard_id: id.into(),
        parents: parents.iter().copied().map(ShardId::from).collect(),
        hash_range: HashKeyRange { start: 0, end: u128::MAX },
        starting_sequence_number: number("7"),
        ending_sequence_number: ending.map(number),
    };
    assert_eq!(shards, [expected("s-0", &[], Some("8")), expected("s-1", &[], Some("9")), expected("s-2", &["s-0", "s-1"], None)]);
    let bodies: Vec<_> = wire.requests().into_iter().map(|(_, body)| body).collect();
    let first = json!({ "StreamName": "orders", "ShardFilter": { "Type": "AT_TIMESTAMP", "Timestamp": 1.5 } });
    assert_eq!(bodies, [first, json!({ "NextToken": "on" })]);
}

#[tokio::test]
async fn a_listing_whose_token_expires_is_begun_anew_but_not_for_ever() {
    let page = json!({ "Shards": [shard("s-0", (None, None), None)], "NextToken": "on" });
    let wire = Wire::default();
    wire.answer(&page).refuse(400, "ExpiredNextTokenException").answer(&json!({ "Shards": [shard("s-1", (None, None), None)] }));
    let shards = wire.stream("orders").list_shards(ShardFilter::All).await.unwrap();
    assert_eq!(shards.iter().map(|shard| shard.shard_id.as_str()).collect::<Vec<_>>(), ["s-1"]);

    let wire = Wire::default();
    (0..LISTINGS).for_each(|_| _ = wire.answer(&page).refuse(400, "ExpiredNextTokenException"));
    let error = wire.stream("orders").list_shards(ShardFilter::All).await.unwrap_err();
    assert!(matches!(&error, StreamError::Unavailable { .. }) && error.to_string().contains("token"), "{error}");
}

#[tokio::test]
async fn iterators_are_asked_for_at_each_kind_of_place() {
    let table = [
        (StartingPosition::TrimHorizon, json!({ "ShardIteratorType": "TRIM_HORIZON" })),
        (StartingPosition::Latest, json!({ "ShardIteratorType": "LATEST" })),
        (StartingPosition::AtTimestamp(Timestamp::from_millis(1_250)), json!({ "ShardIteratorType": "AT_TIMESTAMP", "Timestamp": 1.25 })),
        (
            StartingPosition::AtSequenceNumber(number("12")),
            json!({ "ShardIteratorType": "AT_SEQUENCE_NUMBER", "StartingSequenceNumber": "12" }),
        ),
        (
            StartingPosition::AfterSequenceNumber(number("12")),
            json!({ "ShardIteratorType": "AFTER_SEQUENCE_NUMBER", "StartingSequenceNumber": "12" }),
        ),
    ];
    for (start, mut expected) in table {
        let wire = Wire::default();
        wire.answer(&json!({ "ShardIterator": "here" }));
        let iterator = wire.stream("orders").shard_iterator(&"s-0".into(), start).await.unwrap();
        assert_eq!(iterator, ShardIterator("here".into()));
        (expected["StreamName"], expected["ShardId"]) = ("orders".into(), "s-0".into());
        assert_eq!(wire.requests()[0].1, expected);
    }
}

#[tokio::test]
async fn records_come_with_all_that_is_known_of_them() {
    let wire = Wire::default();
    wire.answer(&json!({
        "Records": [
            { "SequenceNumber": "12", "Data": "aGVsbG8=", "PartitionKey": "key", "ApproximateArrivalTimestamp": 1_500_000_000.123 },
            { "SequenceNumber": "13", "Data": "" },
        ],
        "NextShardIterator": "on", "MillisBehindLatest": 17,
    }))
    .answer(&json!({
        "Records": [], "MillisBehindLatest": 0,
        "ChildShards": [{
            "ShardId": "s-2", "ParentShards": ["s-0", "s-1"],
            "HashKeyRange": { "StartingHashKey": "5", "EndingHashKey": "6" },
        }],
    }));
    let stream = wire.stream(ARN);
    let page = stream.get_records(&ShardIterator("here".into()), 500).await.unwrap();
    let arrival = Timestamp::from_millis(1_500_000_000_123);
    let expected = [
        crate::record::Record::new(number("12"), Some("key".into()), "hello".into(), Some(arrival)),
        crate::record::Record::new(number("13"), None, "".into(), None),
    ];
    assert_eq!(page.records, expected);
    assert_eq!((page.next, page.millis_behind_latest, page.children.len()), (Some(ShardIterator("on".into())), Some(17), 0));
    assert_eq!(wire.requests()[0].1, json!({ "StreamARN": ARN, "ShardIterator": "here", "Limit": 500 }));

    let end = stream.get_records(&ShardIterator("on".into()), 500).await.unwrap();
    let child = crate::stream::ChildShard {
        shard_id: "s-2".into(),
        parents: ["s-0", "s-1"].map(ShardId::from).into(),
        hash_range: HashKeyRange { start: 5, end: 6 },
    };
    assert_eq!((end.next, end.children), (None, vec![child]));
}

#[tokio::test]
async fn an_answer_that_can_t_be_used_is_an_error_that_says_why() {
    let mut ranged = shard("s-7", (None, None), None);
    ranged["HashKeyRange"] = Value::Null;
    let mut reversed = shard("s-7", (None, None), None);
    reversed["HashKeyRange"] = json!({ "StartingHashKey": "9", "EndingHashKey": "8" });
    let mut unnumbered = shard("s-7", (None, None), None);
    unnumbered["SequenceNumberRange"] = Value::Null;
    for (shard, said) in [
        (ranged, "`s-7` has no hash key range"),
        (reversed, "`9` to `8`"),
        (unnumbered, "`s-7` has no sequence number range"),
        (shard("s-7", (None, None), Some("x9")), "`s-7`: `x9` is no sequence number"),
        (shard("", (None, None), None), "without id"),
    ] {
        let wire = Wire::default();
        wire.answer(&json!({ "Shards": [shard] }));
        let error = wire.stream("orders").list_shards(ShardFilter::All).await.unwrap_err();
        assert!(matches!(&error, StreamError::Unavailable { .. }) && error.to_string().contains(said), "{error}");
    }
    for (page, said) in [
        (json!({ "Records": [{ "SequenceNumber": "1-2", "Data": "c2VjcmV0" }] }), "`1-2` is no sequence number"),
        (json!({ "Records": [], "ChildShards": [{ "ShardId": "s-9" }] }), "`s-9` has no parents"),
    ] {
        let wire = Wire::default();
        wire.answer(&page);
        let error = wire.stream("orders").get_records(&ShardIterator("here".into()), 1).await.unwrap_err();
        assert!(matches!(&error, StreamError::Unavailable { .. }) && error.to_string().contains(said), "{error}");
    }
    let mut unborn = description();
    unborn["StreamCreationTimestamp"] = Value::Null;
    let wire = Wire::default();
    wire.answer(&json!({ "StreamDescriptionSummary": unborn })).answer(&json!({})).answer(&json!({}));
    let stream = wire.stream("orders");
    let error = stream.describe().await.unwrap_err().to_string();
    assert!(error.contains("no creation time"), "{error}");
    assert!(matches!(stream.describe().await, Err(StreamError::Unavailable { .. })));
    assert!(matches!(stream.shard_iterator(&"s-0".into(), StartingPosition::Latest).await, Err(StreamError::Unavailable { .. })));
}

#[tokio::test]
async fn no_error_shows_what_is_in_a_record() {
    let wire = Wire::default();
    let cut = r#"{ "Records": [{ "SequenceNumber": "12", "Data": "c2VjcmV0", "PartitionKey": "secret-key" }], "Mill"#;
    wire.answers.lock().unwrap().push_back((200, cut.to_owned()));
    let error = wire.stream("orders").get_records(&ShardIterator("here".into()), 1).await.unwrap_err();
    assert!(matches!(error, StreamError::Unavailable { .. }));
    for shown in [error.to_string(), format!("{error:?}")] {
        assert!(!shown.contains("c2VjcmV0") && !shown.contains("secret"), "{shown}");
    }
}

#[tokio::test]
async fn each_refusal_is_told_by_its_code_and_nothing_is_tried_twice() {
    type Test = fn(&StreamError) -> bool;
    let table: &[(u16, &str, Test)] = &[
        (400, "ResourceNotFoundException", |error| matches!(error, StreamError::NotFound { .. })),
        (400, "AccessDeniedException", |error| matches!(error, StreamError::AccessDenied { .. })),
        (400, "UnrecognizedClientException", |error| matches!(error, StreamError::AccessDenied { .. })),
        (400, "ExpiredTokenException", |error| matches!(error, StreamError::AccessDenied { .. })),
        (400, "ProvisionedThroughputExceededException", |error| matches!(error, StreamError::Throttled { .. })),
        (400, "LimitExceededException", |error| matches!(error, StreamError::Throttled { .. })),
        (400, "ThrottlingException", |error| matches!(error, StreamError::Throttled { .. })),
        (400, "KMSThrottlingException", |error| matches!(error, StreamError::Throttled { .. })),
        (400, "KMSAccessDeniedException", |error| matches!(error, StreamError::Kms { .. })),
        (400, "KMSOptInRequired", |error| matches!(error, StreamError::Kms { .. })),
        (400, "ExpiredIteratorException", |error| matches!(error, StreamError::ExpiredIterator { .. })),
        (400, "InvalidArgumentException", |error| matches!(error, StreamError::InvalidArgument { .. })),
        (400, "ValidationException", |error| matches!(error, StreamError::InvalidArgument { .. })),
        (400, "ResourceInUseException", |error| matches!(error, StreamError::NotReady { .. })),
        (500, "InternalFailureException", |error| matches!(error, StreamError::Unavailable { .. })),
        (503, "ServiceUnavailable", |error| matches!(error, StreamError::Unavailable { .. })),
        (400, "SomethingNewException", |error| matches!(error, StreamError::Unavailable { .. })),
    ];
    for (status, code, is_right) in table {
        let wire = Wire::default();
        wire.refuse(*status, code).answer(&json!({ "Records": [] }));
        let error = wire.stream("orders").get_records(&ShardIterator("here".into()), 1).await.unwrap_err();
        assert!(is_right(&error), "{code}: {error:?}");
        assert_eq!(wire.requests().len(), 1, "{code}");
        let silent = matches!(error, StreamError::Throttled { .. } | StreamError::ExpiredIterator { .. });
        assert!(silent || error.to_string().contains(&format!("because of {code}")), "{error}");
        assert!(error.to_string().contains("orders"), "{error}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_call_without_an_answer_ends_at_its_timeout() {
    let wire = Wire::default();
    let stream = wire.stream("orders").with_read_timeout(Duration::from_secs(20));
    let began = Instant::now();
    assert!(matches!(stream.describe().await, Err(StreamError::Unavailable { .. })));
    assert!(began.elapsed() >= TIMEOUT && began.elapsed() < TIMEOUT * 2, "{:?}", began.elapsed());
    let began = Instant::now();
    let error = stream.get_records(&ShardIterator("here".into()), 1).await.unwrap_err();
    assert!(matches!(&error, StreamError::Unavailable { .. }) && error.to_string().contains("timeout"), "{error}");
    assert!(began.elapsed() >= Duration::from_secs(20) && began.elapsed() < Duration::from_secs(25), "{:?}", began.elapsed());
    assert_eq!(wire.requests().len(), 2);
}

/// A source of credentials that fails in its own way.
#[derive(Debug)]
struct Failing(fn() -> CredentialsError);

impl ProvideCredentials for Failing {
    fn provide_credentials<'a>(&'a self) -> provider::future::ProvideCredentials<'a>
    where
        Self: 'a,
    {
        provider::future::ProvideCredentials::ready(Err((self.0)()))
    }
}

#[tokio::test]
async fn missing_credentials_or_region_are_told_from_a_source_that_may_recover() {
    let wire = Wire::default();
    let region = || Region::new("eu-west-1");
    let denied = [
        ("no source of credentials", wire.config().region(region())),
        ("no credentials", wire.config().region(region()).credentials_provider(Failing(CredentialsError::not_loaded_no_source))),
        ("no region", wire.config().credentials_provider(Credentials::from_keys("a", "b", None))),
    ];
    for (case, config) in denied {
        let stream = KinesisStream::new(Client::from_conf(config.build()), "orders", TIMEOUT);
        let error = stream.describe().await.unwrap_err();
        assert!(matches!(error, StreamError::AccessDenied { .. }), "{case}: {error:?}");
    }
    let config = wire.config().region(region()).credentials_provider(Failing(|| CredentialsError::provider_error("STS is down")));
    let stream = KinesisStream::new(Client::from_conf(config.build()), "orders", TIMEOUT);
    let error = stream.describe().await.unwrap_err();
    assert!(matches!(&error, StreamError::Unavailable { .. }) && error.to_string().contains("STS is down"), "{error}");
    assert!(wire.requests().is_empty());
}
