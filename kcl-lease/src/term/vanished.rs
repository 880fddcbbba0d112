//! The proof that somebody has deleted leases under a running worker: the table was emptied, or deleted and made anew.
//!
//! While a term is valid nobody else may end its shard, and the row of a shard that has ended is kept for half a minute. A term that finds its row gone earlier than that has the
//! proof. One that ran out long ago, while the process stood still, has not: others may have ended the shard, and cleaned up the row. But the counter of a shard's row only grows, also over a row that a seek makes anew:
//! a row with a lower counter is the proof at any time. A worker that went on would begin shards anew, at the initial position, and nobody would know.

use kcl_checkpoint::planted::{Bug, is_planted};
use tokio::sync::watch;

use crate::lease::{Lease, ShardId};

/// Shared by all terms of a worker, which ends with the first proof.
#[derive(Clone, Debug)]
pub struct Vanished(watch::Sender<Option<ShardId>>);

impl Default for Vanished {
    fn default() -> Self {
        Self(watch::Sender::new(None))
    }
}

impl Vanished {
    /// A write of a term was refused, and the row is this one.
    pub(super) fn look(&self, held: &Lease, may_be_deleted: bool, row: Option<&Lease>) {
        let is_gone = row.map_or(!may_be_deleted, |row| row.counter < held.counter);
        if is_gone && !held.is_finished() && !is_planted(Bug::VanishedUnseen) {
            self.0.send_if_modified(|shard| {
                let is_first = shard.is_none();
                shard.get_or_insert_with(|| held.shard_id.clone());
                is_first
            });
        }
    }

    /// Waits for the first proof: the shard whose lease has vanished.
    ///
    /// # Cancel safety
    /// Safe: it only waits.
    pub async fn seen(&self) -> ShardId {
        let mut shards = self.0.subscribe();
        let seen = shards.wait_for(Option::is_some).await.ok().and_then(|shard| shard.clone());
        seen.expect("invariant: its sender is borrowed here, and it waited for a shard")
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;
    use kcl_checkpoint::Checkpoint;

    use super::*;

    #[test]
    fn a_row_that_is_gone_or_began_anew_is_the_proof() {
        let lease = |counter, checkpoint| Lease { counter, ..Lease::new("shard".into(), checkpoint) };
        let held = lease(7, Checkpoint::TrimHorizon);
        let look = |held: &Lease, may_be_deleted: bool, row: Option<Lease>| {
            let vanished = Vanished::default();
            vanished.look(held, may_be_deleted, row.as_ref());
            vanished.seen().now_or_never().is_some()
        };
        let proof = |held: &Lease, row: Option<Lease>| look(held, false, row);
        assert!(proof(&held, None));
        assert!(proof(&held, Some(lease(6, Checkpoint::TrimHorizon))));
        assert!(!proof(&held, Some(lease(8, Checkpoint::TrimHorizon))), "somebody took it");
        assert!(!proof(&held, Some(lease(7, Checkpoint::TrimHorizon))), "somebody asked for it");
        assert!(!proof(&lease(7, Checkpoint::ShardEnd), None), "it was finished, and may go");
        assert!(!look(&held, true, None), "others may have finished it since");
        assert!(look(&held, true, Some(lease(6, Checkpoint::TrimHorizon))), "nobody counts backwards");
    }
}
