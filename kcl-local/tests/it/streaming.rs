//! The answer to SubscribeToShard byte for byte, and over HTTP/2, which the Rust SDK does not speak without TLS.

use std::time::Duration;

use aws_smithy_eventstream::frame::{DecodedFrame, MessageFrameDecoder};
use aws_smithy_types::event_stream::Message;
use bytes::BytesMut;
use ciborium::Value as Cbor;
use http::{Request, Version};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use kcl_local::LocalAws;
use kcl_local::kinesis::{KinesisConfig, ManualTime, PutRecordInput};
use kcl_local::wire::{Fault, Rule};
use serde_json::{Value as Json, json};

use crate::support::{Aws, eventually};

const JSON: &str = "application/x-amz-json-1.1";
const CBOR: &str = "application/x-amz-cbor-1.1";

/// What a client takes without reading, a stream of HTTP/2 or a connection of HTTP/1.1: little, so that one that does
/// not read is soon felt.
const WINDOW: u32 = 64 * 1024;

type Http = Client<HttpConnector, Full<bytes::Bytes>>;

fn http(http2: bool) -> Http {
    let mut builder = Client::builder(TokioExecutor::new());
    // Room on the connection for all streams: none is to wait for another.
    builder.http2_only(http2).http2_initial_stream_window_size(WINDOW).http2_initial_connection_window_size(1_000 * WINDOW);
    let mut connector = HttpConnector::new();
    connector.set_nodelay(true);
    if !http2 {
        connector.set_recv_buffer_size(Some(WINDOW as usize));
    }
    builder.build(connector)
}

/// A subscription's frames as they come.
struct Frames {
    version: Version,
    body: Incoming,
    bytes: BytesMut,
    decoder: MessageFrameDecoder,
}

impl Frames {
    async fn subscribe(http: &Http, aws: &LocalAws, consumer: &str, shard: usize) -> Self {
        let position = json!({ "Type": "TRIM_HORIZON" });
        let input = json!({ "ConsumerARN": consumer, "ShardId": format!("shardId-{shard:012}"), "StartingPosition": position });
        Self::ask(http, aws, JSON, input.to_string().into_bytes()).await
    }

    async fn ask(http: &Http, aws: &LocalAws, content_type: &str, body: Vec<u8>) -> Self {
        let request = Request::post(aws.endpoint_url())
            .header("content-type", content_type)
            .header("x-amz-target", "Kinesis_20131202.SubscribeToShard")
            .body(Full::new(body.into()))
            .unwrap();
        let (head, body) = http.request(request).await.unwrap().into_parts();
        assert_eq!((head.status.as_u16(), head.headers["content-type"].as_bytes()), (200, &b"application/vnd.amazon.eventstream"[..]));
        assert!(head.headers.contains_key("x-amzn-requestid"));
        Self { version: head.version, body, bytes: BytesMut::new(), decoder: MessageFrameDecoder::new() }
    }

    /// The next frame; `None` at the end in order, an error if the connection or stream is cut.
    async fn next(&mut self) -> Result<Option<Message>, hyper::Error> {
        loop {
            if let DecodedFrame::Complete(message) = self.decoder.decode_frame(&mut self.bytes).unwrap() {
                return Ok(Some(message));
            }
            let read = tokio::time::timeout(Duration::from_secs(20), self.body.frame()).await.expect("neither a frame nor the end");
            let Some(read) = read.transpose()? else { return Ok(None) };
            self.bytes.extend_from_slice(&read.into_data().unwrap());
        }
    }

    /// The data of the next event, in base64.
    async fn data(&mut self) -> Vec<String> {
        let event: Json = serde_json::from_slice(self.next().await.unwrap().unwrap().payload()).unwrap();
        event["Records"].as_array().unwrap().iter().map(|record| record["Data"].as_str().unwrap().to_owned()).collect()
    }
}

/// Puts a record into the shard that takes this hash key.
fn put(aws: &Aws, hash_key: u128, data: Vec<u8>) {
    let (stream_name, explicit_hash_key) = (Some("orders".to_owned()), Some(hash_key.to_string()));
    let record = PutRecordInput { stream_name, explicit_hash_key, partition_key: "k".into(), data: data.into(), ..Default::default() };
    aws.local.kinesis().call(record).unwrap();
}

fn header<'a>(message: &'a Message, name: &str) -> &'a str {
    let header = message.headers().iter().find(|header| header.name().as_str() == name);
    header.unwrap_or_else(|| panic!("no {name}")).value().as_string().unwrap().as_str()
}

fn assert_frame(message: &Message, message_type: &str, type_header: &str, type_name: &str, content_type: &str) {
    assert_eq!(header(message, ":message-type"), message_type);
    assert_eq!(header(message, type_header), type_name);
    assert_eq!(header(message, ":content-type"), content_type);
}

fn payload(message: &Message) -> Json {
    serde_json::from_slice(message.payload()).unwrap()
}

#[tokio::test]
async fn frames_are_the_same_over_http_1_and_http_2() {
    for (http2, version) in [(false, Version::HTTP_11), (true, Version::HTTP_2)] {
        let time = ManualTime::new(1_790_000_000_000);
        let aws = Aws::start_at(&time).await;
        let consumer = aws.consumer("orders", 1).await;
        let mut frames = Frames::subscribe(&http(http2), &aws.local, &consumer, 0).await;
        assert_eq!(frames.version, version);
        let initial = frames.next().await.unwrap().unwrap();
        assert_frame(&initial, "event", ":event-type", "initial-response", "application/json");
        assert_eq!(payload(&initial), json!({}));
        let empty = frames.next().await.unwrap().unwrap();
        assert_frame(&empty, "event", ":event-type", "SubscribeToShardEvent", "application/json");
        assert_eq!((&payload(&empty)["Records"], &payload(&empty)["MillisBehindLatest"]), (&json!([]), &json!(0)));
        aws.put("orders", "pushed").await;
        assert_eq!(frames.data().await, ["cHVzaGVk"]);

        time.advance(5_000);
        let _successor = Frames::subscribe(&http(http2), &aws.local, &consumer, 0).await;
        let exception = frames.next().await.unwrap().unwrap();
        assert_frame(&exception, "exception", ":exception-type", "ResourceInUseException", "application/json");
        assert!(payload(&exception)["message"].is_string());
        assert!(frames.next().await.unwrap().is_none());
    }
}

#[tokio::test]
async fn who_asks_in_cbor_gets_frames_of_cbor() {
    let aws = Aws::start().await;
    let consumer = aws.consumer("orders", 1).await;
    aws.put("orders", "pushed").await;
    let text = |text: &str| Cbor::Text(text.to_owned());
    let position = Cbor::Map(vec![(text("Type"), text("TRIM_HORIZON"))]);
    let shard = text("shardId-000000000000");
    let input = Cbor::Map(vec![(text("ConsumerARN"), text(&consumer)), (text("ShardId"), shard), (text("StartingPosition"), position)]);
    let mut body = Vec::new();
    ciborium::into_writer(&input, &mut body).unwrap();

    let mut frames = Frames::ask(&http(true), &aws.local, CBOR, body).await;
    let initial = frames.next().await.unwrap().unwrap();
    assert_frame(&initial, "event", ":event-type", "initial-response", CBOR);
    let event = frames.next().await.unwrap().unwrap();
    assert_frame(&event, "event", ":event-type", "SubscribeToShardEvent", CBOR);
    let event: Cbor = ciborium::from_reader(event.payload().as_ref()).unwrap();
    let member = |of: &Cbor, name: &str| of.as_map().unwrap().iter().find(|(key, _)| *key == text(name)).unwrap().1.clone();
    let record = member(&event, "Records").as_array().unwrap()[0].clone();
    assert_eq!(member(&record, "Data"), Cbor::Bytes(b"pushed".to_vec()));
    assert!(member(&record, "ApproximateArrivalTimestamp").is_tag());
}

#[tokio::test]
async fn a_cut_stream_is_no_end_in_order() {
    for http2 in [false, true] {
        let aws = Aws::start().await;
        let consumer = aws.consumer("orders", 1).await;
        aws.local.faults().add(Rule::new(Fault::CutStream { after: Duration::from_millis(300) }));
        let client = http(http2);
        let mut frames = Frames::subscribe(&client, &aws.local, &consumer, 0).await;
        let end = loop {
            match frames.next().await {
                Ok(Some(_)) => {}
                end => break end,
            }
        };
        assert!(end.is_err(), "{end:?}");
        eventually("nothing is left of it", async || aws.local.open_subscriptions() == 0).await;
    }
}

#[tokio::test]
async fn a_client_that_leaves_over_http_2_ends_its_subscription_alone() {
    let aws = Aws::start().await;
    let consumer = aws.consumer("orders", 2).await;
    let client = http(true);
    let mut stays = Frames::subscribe(&client, &aws.local, &consumer, 0).await;
    let leaves = Frames::subscribe(&client, &aws.local, &consumer, 1).await;
    assert_eq!(aws.local.open_subscriptions(), 2);
    drop(leaves);
    eventually("the server sees it", async || aws.local.open_subscriptions() == 1).await;
    stays.next().await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_does_not_read_is_held_back_and_nobody_else() {
    for http2 in [false, true] {
        let aws = Aws::start().await;
        let consumer = aws.consumer("orders", 2).await;
        let client = http(http2);
        let mut slow = Frames::subscribe(&client, &aws.local, &consumer, 0).await;
        let mut quick = Frames::subscribe(&client, &aws.local, &consumer, 1).await;
        quick.next().await.unwrap();
        // More than the server's side of the connection takes.
        let fill = if http2 { 3 } else { 16 };
        for _ in 0..fill {
            put(&aws, 0, vec![0; 1024 * 1024 - 1]);
        }
        for n in 0..20_u8 {
            put(&aws, 0, vec![n]);
            put(&aws, u128::MAX, vec![n]);
            // Nothing but empty events in between.
            while quick.data().await.is_empty() {}
        }

        // Had the model been asked meanwhile, each of the last records would have been an event of its own.
        slow.next().await.unwrap();
        let mut records = Vec::new();
        while records.iter().sum::<usize>() < fill + 20 {
            records.push(slow.data().await.len());
        }
        assert!(*records.last().unwrap() >= 20, "{records:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hundreds_of_subscriptions_share_a_connection() {
    const SHARDS: usize = 300;
    let aws = Aws::start().await;
    let consumer = aws.consumer("orders", i32::try_from(SHARDS).unwrap()).await;
    let client = http(true);
    let mut subscriptions = Vec::new();
    for shard in 0..SHARDS {
        let mut frames = Frames::subscribe(&client, &aws.local, &consumer, shard).await;
        for _ in 0..2 {
            frames.next().await.unwrap();
        }
        subscriptions.push(frames);
    }
    assert_eq!(aws.local.open_subscriptions(), SHARDS);
    for shard in 0..SHARDS {
        // In the middle of the shard's range.
        put(&aws, u128::MAX / SHARDS as u128 * shard as u128 + u128::MAX / (2 * SHARDS as u128), b"pushed".to_vec());
    }
    for mut frames in subscriptions {
        while frames.data().await.is_empty() {}
    }
}

#[tokio::test]
async fn a_connection_has_as_many_streams_as_the_server_allows() {
    let config = KinesisConfig { resubscribe_ms: 0, ..KinesisConfig::default() };
    let aws = Aws::clients_of(LocalAws::builder().kinesis(config).max_concurrent_streams(2).start().await.unwrap());
    let consumer = aws.consumer("orders", 3).await;
    let client = http(true);
    let first = Frames::subscribe(&client, &aws.local, &consumer, 0).await;
    let _second = Frames::subscribe(&client, &aws.local, &consumer, 1).await;
    {
        let third = Frames::subscribe(&client, &aws.local, &consumer, 2);
        assert!(tokio::time::timeout(Duration::from_millis(300), third).await.is_err());
        assert_eq!(aws.local.open_subscriptions(), 2);
    }
    drop(first);
    let mut third = Frames::subscribe(&client, &aws.local, &consumer, 2).await;
    third.next().await.unwrap().unwrap();
}
