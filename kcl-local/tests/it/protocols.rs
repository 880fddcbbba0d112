//! HTTP versions and formats that the Rust SDK does not use, by hand-made requests.

use bytes::Bytes;
use ciborium::Value as Cbor;
use http::{Request, Response, StatusCode, Version};
use http_body_util::{BodyExt as _, Full};
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use kcl_local::LocalAws;
use kcl_local::wire::{Fault, Rule};
use serde_json::{Value as Json, json};

const JSON: &str = "application/x-amz-json-1.1";
const CBOR: &str = "application/x-amz-cbor-1.1";

/// One call of Kinesis, over HTTP/2 from the first byte or over HTTP/1.1.
async fn call(
    aws: &LocalAws,
    http2: bool,
    content_type: &str,
    target: &str,
    body: Vec<u8>,
) -> Result<Response<Bytes>, hyper_util::client::legacy::Error> {
    let client = Client::builder(TokioExecutor::new()).http2_only(http2).build_http::<Full<Bytes>>();
    let request = Request::post(aws.endpoint_url())
        .header("content-type", content_type)
        .header("x-amz-target", target)
        .body(Full::new(body.into()))
        .unwrap();
    let (head, body) = client.request(request).await?.into_parts();
    Ok(Response::from_parts(head, body.collect().await.unwrap().to_bytes()))
}

async fn json(aws: &LocalAws, http2: bool, operation: &str, body: Json) -> (Response<Bytes>, Json) {
    let target = format!("Kinesis_20131202.{operation}");
    let response = call(aws, http2, JSON, &target, body.to_string().into_bytes()).await.unwrap();
    let body = if response.body().is_empty() { Json::Null } else { serde_json::from_slice(response.body()).unwrap() };
    (response, body)
}

async fn cbor(aws: &LocalAws, operation: &str, members: Vec<(&str, Cbor)>) -> (Response<Bytes>, Cbor) {
    let map = Cbor::Map(members.into_iter().map(|(name, value)| (Cbor::Text(name.into()), value)).collect());
    let mut body = Vec::new();
    ciborium::into_writer(&map, &mut body).unwrap();
    let target = format!("Kinesis_20131202.{operation}");
    let response = call(aws, false, CBOR, &target, body).await.unwrap();
    assert_eq!(response.headers()["content-type"], CBOR);
    let body = match response.body() {
        body if body.is_empty() => Cbor::Null,
        body => ciborium::from_reader(body.as_ref()).unwrap(),
    };
    (response, body)
}

fn member(of: &Cbor, name: &str) -> Cbor {
    let members = of.as_map().unwrap_or_else(|| panic!("{of:?} has no members"));
    let found = members.iter().find(|(key, _)| key.as_text() == Some(name));
    found.unwrap_or_else(|| panic!("no {name} in {of:?}")).1.clone()
}

fn text(value: &str) -> Cbor {
    Cbor::Text(value.to_owned())
}

#[tokio::test]
async fn one_port_speaks_http_1_and_http_2() {
    let aws = LocalAws::start().await.unwrap();
    for (http2, version, stream) in [(true, Version::HTTP_2, "orders"), (false, Version::HTTP_11, "letters")] {
        let (created, _) = json(&aws, http2, "CreateStream", json!({ "StreamName": stream, "ShardCount": 1 })).await;
        assert_eq!((created.version(), created.status()), (version, StatusCode::OK));
        let (_, summary) = json(&aws, http2, "DescribeStreamSummary", json!({ "StreamName": stream })).await;
        assert_eq!(summary["StreamDescriptionSummary"]["OpenShardCount"], 1);
    }
}

#[tokio::test]
async fn a_dropped_call_over_http_2_ends_its_stream() {
    let aws = LocalAws::start().await.unwrap();
    aws.faults().add(Rule::new(Fault::Drop).times(1));
    let body = json!({ "StreamName": "orders", "ShardCount": 1 }).to_string().into_bytes();
    let target = "Kinesis_20131202.CreateStream";
    assert!(call(&aws, true, JSON, target, body.clone()).await.is_err());
    assert_eq!(call(&aws, true, JSON, target, body).await.unwrap().status(), StatusCode::OK);
}

#[tokio::test]
async fn every_answer_names_its_type_and_its_request() {
    let aws = LocalAws::start().await.unwrap();
    let (first, body) = json(&aws, false, "ListStreams", json!({})).await;
    assert_eq!(first.headers()["content-type"], JSON);
    assert_eq!(body["StreamNames"], json!([]));
    let (second, body) = json(&aws, false, "MakeCoffee", json!({})).await;
    assert_eq!((second.status(), second.headers()["content-type"].to_str().unwrap()), (StatusCode::BAD_REQUEST, JSON));
    assert_eq!(body["__type"], "UnknownOperationException");
    let id = |response: &Response<Bytes>| response.headers()["x-amzn-requestid"].clone();
    assert_ne!(id(&first), id(&second));

    let unknown = call(&aws, false, JSON, "Firehose_20150804.PutRecord", b"{}".to_vec()).await.unwrap();
    assert_eq!(unknown.status(), StatusCode::BAD_REQUEST);
}

#[tokio::test]
async fn records_travel_in_cbor_as_the_java_sdk_sends_it() {
    let aws = LocalAws::start().await.unwrap();
    let (created, _) = cbor(&aws, "CreateStream", vec![("StreamName", text("orders")), ("ShardCount", Cbor::Integer(1.into()))]).await;
    assert_eq!(created.status(), StatusCode::OK);
    let put = vec![("StreamName", text("orders")), ("PartitionKey", text("k")), ("Data", Cbor::Bytes(vec![0, 159, 146, 150]))];
    let (_, put) = cbor(&aws, "PutRecord", put).await;

    let at = |millis: i64| Cbor::Tag(1, Box::new(Cbor::Integer(millis.into())));
    let from_timestamp = |timestamp| {
        vec![
            ("StreamName", text("orders")),
            ("ShardId", text("shardId-000000000000")),
            ("ShardIteratorType", text("AT_TIMESTAMP")),
            ("Timestamp", timestamp),
        ]
    };
    let (_, iterator) = cbor(&aws, "GetShardIterator", from_timestamp(at(1_000))).await;
    let (_, read) = cbor(&aws, "GetRecords", vec![("ShardIterator", member(&iterator, "ShardIterator"))]).await;
    let record = member(&read, "Records").into_array().unwrap().remove(0);
    assert_eq!(member(&record, "Data"), Cbor::Bytes(vec![0, 159, 146, 150]));
    assert_eq!(member(&record, "SequenceNumber"), member(&put, "SequenceNumber"));
    let (tag, arrived) = member(&record, "ApproximateArrivalTimestamp").into_tag().unwrap();
    let arrived = i64::try_from(arrived.into_integer().unwrap()).unwrap();
    assert_eq!(tag, 1);
    assert!(arrived > 1_700_000_000_000, "{arrived} is not in milliseconds");

    // The record's own timestamp, sent back, finds it; one later does not.
    for (timestamp, records) in [(arrived, 1), (arrived + 1, 0)] {
        let (_, iterator) = cbor(&aws, "GetShardIterator", from_timestamp(at(timestamp))).await;
        let (_, read) = cbor(&aws, "GetRecords", vec![("ShardIterator", member(&iterator, "ShardIterator"))]).await;
        assert_eq!(member(&read, "Records").into_array().unwrap().len(), records);
    }
}

#[tokio::test]
async fn errors_travel_in_cbor_too() {
    let aws = LocalAws::start().await.unwrap();
    let (response, error) = cbor(&aws, "DescribeStreamSummary", vec![("StreamName", text("nowhere"))]).await;
    assert_eq!(response.status(), StatusCode::BAD_REQUEST);
    assert_eq!(member(&error, "__type"), text("ResourceNotFoundException"));
    assert!(member(&error, "message").is_text());

    let garbage = call(&aws, false, CBOR, "Kinesis_20131202.ListStreams", b"\xff\xff".to_vec()).await.unwrap();
    let error: Cbor = ciborium::from_reader(garbage.body().as_ref()).unwrap();
    assert_eq!(member(&error, "__type"), text("SerializationException"));
}
