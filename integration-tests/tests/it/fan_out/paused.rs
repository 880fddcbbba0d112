//! A worker whose lease has run out, while its subscription has not: another one has taken the shard, and its subscription the
//! other's place.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::time::Duration;

use futures::join;
use kcl_core::{DynamoDbLeaseTable, Entropy, LeaseTable, ShardId, ShardState, TableError, async_trait};
use kcl_lease::Lease;
use kcl_lease::dynamodb::TableOptions;
use kcl_lease::table::{LeaseListing, WriteOutcome};
use kcl_lease::transaction::{TransactItems, TransactOutcome};
use kcl_lease::write::LeaseWrite;
use tokio::runtime::Runtime;
use tokio::time::Instant;

use super::scene::{Scene, strict};
use crate::support::{Running, eventually};

const SHARD: &str = "shardId-000000000000";

/// A runtime with one thread, which can be stopped as a whole: as by SIGSTOP, or by a machine that sleeps.
struct Machine {
    runtime: Option<Runtime>,
}

impl Machine {
    fn new() -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        Self { runtime: Some(runtime) }
    }

    fn runtime(&self) -> &Runtime {
        self.runtime.as_ref().expect("not dropped")
    }

    /// Nothing runs until what is returned is dropped.
    async fn freeze(&self) -> mpsc::Sender<()> {
        let (thaw, thawed) = mpsc::channel::<()>();
        let (stands, standing) = tokio::sync::oneshot::channel();
        self.runtime().spawn(async move {
            stands.send(()).unwrap();
            // Blocks the only thread.
            let _ = thawed.recv();
        });
        standing.await.unwrap();
        thaw
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // A runtime that is dropped in another one would wait for its thread.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// A worker's own way to the lease table, which can be closed.
#[derive(Debug)]
struct Road {
    table: DynamoDbLeaseTable,
    closed: Arc<AtomicBool>,
}

impl Road {
    fn of(scene: &Scene) -> (Arc<Self>, Arc<AtomicBool>) {
        let closed = Arc::new(AtomicBool::new(false));
        let options = TableOptions { call_timeout: Duration::from_secs(1), ..TableOptions::default() };
        let table = DynamoDbLeaseTable::new(&scene.world.dynamodb, &scene.world.application, options, &Entropy::from_os());
        (Arc::new(Self { table, closed: Arc::clone(&closed) }), closed)
    }

    fn open(&self) -> Result<&DynamoDbLeaseTable, TableError> {
        match self.closed.load(Ordering::SeqCst) {
            false => Ok(&self.table),
            true => Err(TableError::Unavailable { table: "leases".into(), operation: "any", message: "the road is closed".into() }),
        }
    }
}

#[async_trait]
impl LeaseTable for Road {
    async fn ensure(&self) -> Result<(), TableError> {
        self.open()?.ensure().await
    }

    async fn list(&self) -> Result<LeaseListing, TableError> {
        self.open()?.list().await
    }

    async fn get(&self, shard_id: &ShardId) -> Result<Option<Lease>, TableError> {
        self.open()?.get(shard_id).await
    }

    async fn create(&self, lease: &Lease) -> Result<bool, TableError> {
        self.open()?.create(lease).await
    }

    async fn write(&self, write: &LeaseWrite) -> Result<WriteOutcome, TableError> {
        self.open()?.write(write).await
    }

    async fn transact(&self, write: &LeaseWrite, with: &TransactItems) -> Result<TransactOutcome, TableError> {
        self.open()?.transact(write, with).await
    }

    async fn delete(&self, seen: &Lease) -> Result<bool, TableError> {
        self.open()?.delete(seen).await
    }
}

/// `b` takes over from `a`, which can't hold its lease; then `a` is back.
async fn taken_over(scene: &mut Scene, b: &Running) {
    let mine = |scene: &Scene| scene.calls.all().iter().any(|call| call.worker == "b" && call.was_accepted());
    scene.publish_until("b has subscribed", |scene| mine(scene).then_some(())).await;
    scene.all_delivered().await;
    assert_eq!(b.shards().len(), 1);
}

/// The two leave each other alone from then on.
async fn at_peace(name: &str, scene: &mut Scene, back: Instant) {
    let (of_a, of_b) = (scene.calls.since("a", back), scene.calls.since("b", scene.began));
    scene.publish_for(Duration::from_secs(3)).await;
    scene.by_subscription_alone(1).await;
    println!("{name}: {of_b} calls by the new owner");
    assert_eq!((of_a, scene.calls.since("a", back)), (0, 0), "{name}: {:#?}", scene.calls.all());
    assert!((1..=6).contains(&of_b), "{name}: {:#?}", scene.calls.all());
    assert_eq!(scene.calls.since("b", scene.began), of_b, "{name}: the new owner keeps its subscription");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_was_taken_over_does_not_subscribe_again() {
    join!(frozen(), cut_off());
}

async fn frozen() {
    let mut scene = Scene::new(1, strict()).await;
    let machine = Machine::new();
    let (road, closed) = Road::of(&scene);
    let builder = scene.worker("a").lease_table(road);
    let a = machine.runtime().spawn(Running::start(builder)).await.unwrap();
    scene.by_subscription_alone(1).await;
    let frozen = machine.freeze().await;
    // The thread that renews leases would go on: a machine that stands still stops it too.
    closed.store(true, Ordering::SeqCst);
    let b = scene.start("b").await;
    taken_over(&mut scene, &b).await;
    let back = Instant::now();
    closed.store(false, Ordering::SeqCst);
    drop(frozen);
    eventually("a has noticed", async || a.shards().is_empty().then_some(())).await;
    at_peace("frozen", &mut scene, back).await;
    for worker in [a, b] {
        worker.stop().await.unwrap();
    }
    // What it had in work when it froze came twice; it was not stopped in peace.
    scene.assert_in_order_and_budget("frozen");
}

async fn cut_off() {
    let mut scene = Scene::new(1, strict()).await;
    let (road, closed) = Road::of(&scene);
    let a = Running::start(scene.worker("a").lease_table(road)).await;
    scene.by_subscription_alone(1).await;
    let b = scene.start("b").await;
    closed.store(true, Ordering::SeqCst);
    let cut = Instant::now();
    taken_over(&mut scene, &b).await;
    assert_eq!(a.state(SHARD), Some(ShardState::Suspended));
    scene.publish_for(Duration::from_secs(1)).await;
    closed.store(false, Ordering::SeqCst);
    eventually("a has noticed", async || a.shards().is_empty().then_some(())).await;
    at_peace("cut off", &mut scene, cut).await;
    for worker in [a, b] {
        worker.stop().await.unwrap();
    }
    scene.assert_in_order_and_budget("cut off");
}
