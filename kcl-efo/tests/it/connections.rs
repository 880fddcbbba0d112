//! Many subscriptions over HTTP/2: what they share is the connection, and nothing else.

use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use kcl_checkpoint::StartingPosition;
use kcl_efo::{EventStream, FanOutApi, FanOutHttpClient, KinesisFanOut};
use kcl_local::LocalAws;
use kcl_local::kinesis::{CreateStreamInput, PutRecordInput, RegisterStreamConsumerInput};
use tokio::time::{sleep, timeout};

const STREAM_ARN: &str = "arn:aws:kinesis:us-east-1:000000000000:stream/orders";
/// With its partition key just what a record may have.
const LARGE: usize = (1 << 20) - 3;
const PATIENCE: Duration = Duration::from_secs(20);

struct Site {
    aws: LocalAws,
    api: Arc<dyn FanOutApi>,
    consumer: String,
    shards: u32,
}

impl Site {
    async fn new(shards: u32, streams_per_connection: u32) -> Self {
        let aws = LocalAws::builder().max_concurrent_streams(streams_per_connection).start().await.unwrap();
        let create = CreateStreamInput { stream_name: "orders".into(), shard_count: Some(shards), ..Default::default() };
        aws.kinesis().call(create).unwrap();
        let register = RegisterStreamConsumerInput { stream_arn: STREAM_ARN.into(), consumer_name: "app".into() };
        let consumer = aws.kinesis().call(register).unwrap().consumer.consumer_arn;
        let api = Arc::new(KinesisFanOut::with_http_client(&aws.sdk_config(), FanOutHttpClient::with_cleartext_http2()));
        Self { aws, api, consumer, shards }
    }

    fn put(&self, shard: u32, data: Vec<u8>) {
        let width = u128::MAX / u128::from(self.shards);
        let put = PutRecordInput {
            stream_name: Some("orders".into()),
            partition_key: "key".into(),
            // The middle of the shard's range.
            explicit_hash_key: Some((width * u128::from(shard) + width / 2).to_string()),
            data: data.into(),
            ..Default::default()
        };
        self.aws.kinesis().call(put).unwrap();
    }

    async fn subscribe(&self, shard: u32) -> Box<dyn EventStream> {
        let shard = format!("shardId-{shard:012}");
        let subscribed = self.api.subscribe(&self.consumer, &shard, StartingPosition::TrimHorizon);
        timeout(PATIENCE, subscribed).await.unwrap_or_else(|_| panic!("{shard} can't be subscribed to")).unwrap()
    }
}

/// The next record's size.
async fn record(events: &mut Box<dyn EventStream>) -> usize {
    loop {
        let event = timeout(PATIENCE, events.next()).await.expect("an event in time").unwrap().expect("the subscription lasts");
        if let Some(record) = event.records.first() {
            return record.data.len();
        }
    }
}

#[tokio::test]
async fn eight_subscribers_that_stand_still_do_not_starve_the_ninth() {
    let site = Site::new(9, 1_000).await;
    for shard in 0..8 {
        (0..4).for_each(|_| site.put(shard, vec![0; LARGE]));
    }
    // Subscribed to, and never read on from.
    let mut standing = join_all((0..8).map(|shard| site.subscribe(shard))).await;
    let mut reading = site.subscribe(8).await;
    // The server has sent by now what the windows of the eight take.
    sleep(Duration::from_millis(500)).await;
    for number in 1..=20 {
        site.put(8, vec![0; number * 10_000]);
        assert_eq!(record(&mut reading).await, number * 10_000);
    }
    // Nothing is lost for those that stood still, either.
    for events in &mut standing {
        for _ in 0..4 {
            assert_eq!(record(events).await, LARGE);
        }
    }
}

#[tokio::test]
async fn more_subscriptions_than_a_connection_takes_have_several() {
    let site = Site::new(150, 70).await;
    let mut subscriptions = join_all((0..150).map(|shard| site.subscribe(shard))).await;
    assert_eq!(site.aws.open_subscriptions(), 150);
    for (shard, events) in (0..).zip(&mut subscriptions) {
        site.put(shard, vec![0; 1_000 + shard as usize]);
        assert_eq!(record(events).await, 1_000 + shard as usize);
    }
    // Room that is given back is used again, by those that come later.
    drop(subscriptions);
    timeout(PATIENCE, async {
        while site.aws.open_subscriptions() > 0 {
            sleep(Duration::from_millis(10)).await;
        }
    })
    .await
    .expect("dropped subscriptions end");
}
