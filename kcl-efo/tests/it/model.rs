//! The port over the test kit: the model of Kinesis in process, no wire, and time is tokio's, so that it can be simulated.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use kcl_checkpoint::StartingPosition;
use kcl_core::test_util::{SimulatedAws, SimulatedFanOut};
use kcl_efo::FanOutApi;
use kcl_local::kinesis::{Kinesis, KinesisConfig};
use tokio::time::{Instant, sleep};

use crate::conformance::{self, Service};

/// A simulated Kinesis whose calls take no time, as one host reaches it.
struct Simulated {
    aws: SimulatedAws,
    fan_out: SimulatedFanOut,
}

impl Simulated {
    fn new(config: KinesisConfig) -> Self {
        let aws = SimulatedAws::with(1, config, false);
        aws.faults().set_latency(Duration::ZERO, Duration::ZERO);
        let fan_out = aws.host("host").fan_out();
        Self { aws, fan_out }
    }
}

#[async_trait]
impl Service for Simulated {
    fn api(&self) -> Arc<dyn FanOutApi> {
        Arc::new(self.fan_out.clone())
    }

    fn kinesis(&self) -> &Kinesis {
        self.aws.kinesis()
    }

    async fn pass(&self, time: Duration) {
        sleep(time).await;
    }

    fn open_subscriptions(&self) -> usize {
        self.fan_out.open_subscriptions()
    }
}

#[tokio::test(start_paused = true)]
async fn the_test_kit_conforms() {
    conformance::fan_out_suite(|config| async { Simulated::new(config) }).await;
}

#[tokio::test(start_paused = true)]
async fn a_subscription_sleeps_until_its_time_or_a_change() {
    let service = Simulated::new(KinesisConfig::default());
    let stream = conformance::create_stream(&service, "orders", 1);
    let arn = service.api().register(&stream, "app").await.unwrap().arn;
    let mut events = service.api().subscribe(&arn, conformance::SHARD, StartingPosition::Latest).await.unwrap();
    let began = Instant::now();
    for heartbeat in 0..60 {
        assert!(events.next().await.unwrap().unwrap().records.is_empty());
        // A timer's tick may have passed between the subscription and its answer.
        let late = began.elapsed().checked_sub(Duration::from_secs(5) * heartbeat);
        assert!(late.is_some_and(|late| late <= Duration::from_millis(1)) || heartbeat > 0, "{heartbeat}: {:?}", began.elapsed());
    }
    assert!(events.next().await.unwrap().is_none());
    let life = began.elapsed();
    assert!(life <= Duration::from_secs(300) && life + Duration::from_millis(5) >= Duration::from_secs(300), "{life:?}");
}
