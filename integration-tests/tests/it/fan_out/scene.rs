//! An application that reads by enhanced fan-out, its publisher, and what was asked of the service meanwhile.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use kcl_core::{FanOutConfig, RetrievalMode, WorkerBuilder};
use kcl_efo::{FanOutHttpClient, KinesisFanOut};
use kcl_local::LocalAws;
use kcl_local::kinesis::KinesisConfig;
use kcl_local::wire::{Fault, Faults, Rule, Service};
use tokio::time::{Instant, sleep};

use super::calls::{Calls, Noted};
use crate::support::{Ledger, PATIENCE, Running, World, eventually};

/// The service's limits hold, and its five seconds between two subscriptions.
pub(super) fn strict() -> KinesisConfig {
    KinesisConfig { enforce_read_limits: true, ..KinesisConfig::default() }
}

/// What strikes each subscription, or each attempt at one.
pub(super) fn on_subscribe(fault: Fault) -> Rule {
    Rule::new(fault).service(Service::Kinesis).operation("SubscribeToShard")
}

/// One application at an embedded endpoint.
pub(super) struct Scene {
    pub(super) world: World,
    pub(super) ledger: Ledger,
    pub(super) calls: Calls,
    /// Whether shards are polled while they can't be subscribed to.
    pub(super) bridge: bool,
    /// Whether subscriptions share a connection, as they do at AWS.
    pub(super) http2: bool,
    pub(super) published: BTreeSet<String>,
    pub(super) began: Instant,
    next: u64,
}

impl Scene {
    pub(super) async fn new(shards: i32, kinesis: KinesisConfig) -> Self {
        let world = World::embedded(LocalAws::builder().kinesis(kinesis)).await;
        world.create_stream(shards).await;
        Self {
            world,
            ledger: Ledger::default(),
            calls: Calls::default(),
            bridge: true,
            http2: true,
            published: BTreeSet::new(),
            began: Instant::now(),
            next: 0,
        }
    }

    pub(super) fn local(&self) -> &LocalAws {
        self.world.local.as_ref().expect("embedded")
    }

    pub(super) fn faults(&self) -> &Faults {
        self.local().faults()
    }

    /// A worker whose calls are noted.
    pub(super) fn worker(&self, name: &str) -> WorkerBuilder {
        let http = if self.http2 { FanOutHttpClient::with_cleartext_http2() } else { FanOutHttpClient::new() };
        let api = KinesisFanOut::with_http_client(&self.world.config, http);
        self.world
            .worker(name, &self.ledger)
            .retrieval(RetrievalMode::FanOut)
            .fan_out(FanOutConfig { bridge: self.bridge, ..FanOutConfig::default() })
            .fan_out_api(Arc::new(Noted { api, worker: name.to_owned(), calls: self.calls.clone() }))
    }

    pub(super) async fn start(&self, name: &str) -> Running {
        Running::start(self.worker(name)).await
    }

    pub(super) async fn publish(&mut self, records: u64) {
        self.published.extend(self.world.publish(20, self.next, records).await);
        self.next += records;
    }

    pub(super) async fn publish_for(&mut self, time: Duration) {
        let end = Instant::now() + time;
        while Instant::now() < end {
            self.publish(20).await;
            sleep(Duration::from_millis(100)).await;
        }
    }

    /// Publishes until the condition gives something.
    pub(super) async fn publish_until<T>(&mut self, what: &str, mut condition: impl FnMut(&Self) -> Option<T>) -> T {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(value) = condition(self) {
                return value;
            }
            assert!(Instant::now() < deadline, "not within {PATIENCE:?}: {what}; calls: {:#?}", self.calls.all());
            self.publish(20).await;
            sleep(Duration::from_millis(100)).await;
        }
    }

    pub(super) async fn all_delivered(&self) {
        self.ledger.has_all(&self.published).await;
    }

    /// Reads of the bridges.
    pub(super) fn polls(&self) -> u64 {
        self.faults().requests_of(Service::Kinesis, "GetRecords")
    }

    /// Publishes until so many shards are subscribed to.
    pub(super) async fn subscribed(&mut self, shards: usize) {
        self.publish_until("all shards are subscribed to", |scene| (scene.local().open_subscriptions() == shards).then_some(())).await;
    }

    /// Publishes until records come by subscription alone.
    pub(super) async fn by_subscription_alone(&mut self, shards: usize) {
        self.subscribed(shards).await;
        let deadline = Instant::now() + PATIENCE;
        loop {
            let before = self.polls();
            self.publish(40).await;
            self.all_delivered().await;
            if self.polls() == before && self.local().open_subscriptions() == shards {
                return;
            }
            assert!(Instant::now() < deadline, "still polled: {:#?}", self.calls.all());
            sleep(Duration::from_millis(300)).await;
        }
    }

    /// Waits until everything is delivered, stops the workers, and panics unless all went as it must where nobody has crashed.
    pub(super) async fn finish(self, name: &str, workers: impl IntoIterator<Item = Running>) {
        self.all_delivered().await;
        for worker in workers {
            worker.stop().await.unwrap();
        }
        self.assert_in_order_and_budget(name);
        assert_eq!(self.ledger.duplicates(), [], "{name}");
        eventually("no subscription is left", async || (self.local().open_subscriptions() == 0).then_some(())).await;
    }

    /// The part of [`finish`](Self::finish) that holds in any case.
    pub(super) fn assert_in_order_and_budget(&self, name: &str) {
        println!(
            "{name}: {} records in {:.1?}, {} polls, subscribe calls {}",
            self.published.len(),
            self.began.elapsed(),
            self.polls(),
            self.calls.summary()
        );
        self.ledger.assert_ordered();
        self.calls.assert_budget();
        let requests = self.faults().requests_of(Service::Kinesis, "SubscribeToShard");
        assert!(requests <= self.calls.count() as u64, "{name}: {requests} requests for {} calls: something retries", self.calls.count());
    }
}
