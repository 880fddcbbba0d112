//! The pace at which shards are taken anew whose consumers panic.
//!
//! Users' panics are caught where their code is called. What still ends a consumer is a bug of this
//! library or of a port of the user's. The shard is given up and taken anew, as that may help; but
//! not at once, or a fault that stays would be a hot loop of takes.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use kcl_lease::backoff::Backoff;
use kcl_lease::{Entropy, ShardId};

/// The first wait, at most; it doubles with each further panic.
const FIRST_WAIT: Duration = Duration::from_secs(5);
const LONGEST_WAIT: Duration = Duration::from_secs(300);

/// Consumers that have panicked, and have not ended otherwise since.
#[derive(Debug)]
pub(super) struct Relapses {
    entropy: Entropy,
    shards: Mutex<BTreeMap<ShardId, Backoff>>,
}

impl Relapses {
    pub(super) fn new(entropy: Entropy) -> Self {
        Self { entropy, shards: Mutex::default() }
    }

    /// A shard's consumer has panicked: the time for which this worker leaves the shard alone.
    pub(super) fn panicked(&self, shard: &ShardId) -> Duration {
        let mut shards = self.lock();
        let backoff = shards.entry(shard.clone()).or_insert_with(|| Backoff::new(FIRST_WAIT, LONGEST_WAIT, &self.entropy));
        // Each wait is drawn at random up to its limit; even the shortest is no hot loop.
        backoff.next_wait() + FIRST_WAIT / 5
    }

    /// A shard's consumer has ended as it should.
    pub(super) fn ended(&self, shard: &ShardId) {
        self.lock().remove(shard);
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<ShardId, Backoff>> {
        // Each change is one insertion or removal.
        self.shards.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shard_whose_consumer_panics_again_and_again_is_taken_ever_more_seldom() {
        let (relapses, shard) = (Relapses::new(Entropy::from_seed(1)), ShardId::from("shardId-000000000000"));
        let waits: Vec<_> = (0..40).map(|_| relapses.panicked(&shard)).collect();
        assert!(waits.iter().all(|wait| (Duration::from_secs(1)..=Duration::from_secs(301)).contains(wait)));
        assert!(waits.iter().sum::<Duration>() > Duration::from_secs(1_000), "{waits:?}");
        assert!(waits[0] <= Duration::from_secs(6));
        relapses.ended(&shard);
        assert!(relapses.panicked(&shard) <= Duration::from_secs(6));
    }
}
