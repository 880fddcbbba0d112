//! Records that keep coming while processes come and go.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::support::World;

const PAUSE: Duration = Duration::from_millis(50);
/// Many, so that every shard has some.
const KEYS: u64 = 100;

/// Publishes until it is stopped.
pub(super) struct Publisher {
    tasks: JoinSet<BTreeSet<String>>,
    stop: CancellationToken,
}

impl Publisher {
    pub(super) fn start(world: &Arc<World>) -> Self {
        let (mut tasks, stop) = (JoinSet::new(), CancellationToken::new());
        let (world, stopped) = (Arc::clone(world), stop.clone());
        tasks.spawn(async move {
            let (mut published, mut next) = (BTreeSet::new(), 0);
            while !stopped.is_cancelled() {
                published.extend(world.publish(KEYS, next, KEYS).await);
                next += KEYS;
                tokio::time::sleep(PAUSE).await;
            }
            published
        });
        Self { tasks, stop }
    }

    /// Stops, and tells all payloads that were published.
    pub(super) async fn stop(mut self) -> BTreeSet<String> {
        self.stop.cancel();
        self.tasks.join_next().await.unwrap().unwrap()
    }
}
