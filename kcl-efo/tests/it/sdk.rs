//! The port over the SDK, against a server on the loopback interface: over HTTP/1.1, and over HTTP/2.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use kcl_efo::{FanOutApi, FanOutHttpClient, KinesisFanOut};
use kcl_local::LocalAws;
use kcl_local::kinesis::{Kinesis, KinesisConfig, ManualTime};

use crate::conformance::{Service, fan_out_suite};

/// A server whose time stands still until it is moved, and the SDK's way to it.
struct Wire {
    aws: LocalAws,
    time: ManualTime,
    api: KinesisFanOut,
}

impl Wire {
    async fn start(config: KinesisConfig, http: FanOutHttpClient) -> Self {
        let time = ManualTime::new(1_790_000_000_000);
        let aws = LocalAws::builder().kinesis(config).time(Arc::new(time.clone())).start().await.unwrap();
        let api = KinesisFanOut::with_http_client(&aws.sdk_config(), http);
        Self { aws, time, api }
    }
}

#[async_trait]
impl Service for Wire {
    fn api(&self) -> Arc<dyn FanOutApi> {
        Arc::new(self.api.clone())
    }

    fn kinesis(&self) -> &Kinesis {
        self.aws.kinesis()
    }

    async fn pass(&self, time: Duration) {
        self.time.advance(u64::try_from(time.as_millis()).unwrap());
    }

    fn open_subscriptions(&self) -> usize {
        self.aws.open_subscriptions()
    }
}

#[tokio::test]
async fn the_sdk_over_http1_conforms() {
    fan_out_suite(|config| Wire::start(config, FanOutHttpClient::new())).await;
}

#[tokio::test]
async fn the_sdk_over_http2_conforms() {
    fan_out_suite(|config| Wire::start(config, FanOutHttpClient::with_cleartext_http2())).await;
}
