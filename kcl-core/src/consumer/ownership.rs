//! Whether this worker still owns the shard that it reads, as far as a reader has to ask.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use kcl_lease::backoff::Backoff;
use kcl_lease::term::Term;

use super::Shared;
use crate::retrieval::Ownership;

const FIRST_WAIT: Duration = Duration::from_millis(200);
const LONGEST_WAIT: Duration = Duration::from_secs(5);

/// The hold of one term on its shard.
pub(super) struct TermOwnership {
    pub(super) term: Term,
    pub(super) shared: Arc<Shared>,
}

#[async_trait]
impl Ownership for TermOwnership {
    async fn granted(&self, ask: bool) -> bool {
        let mut backoff = Backoff::new(FIRST_WAIT, LONGEST_WAIT, &self.shared.entropy);
        loop {
            if self.term.valid().await.is_err() {
                return false;
            }
            if !ask {
                return true;
            }
            let shard = &self.term.taken().shard_id;
            match self.shared.table.get(shard).await {
                Ok(row) => {
                    let mine = row.is_some_and(|row| row.actual_owner() == Some(&self.shared.worker));
                    if !mine {
                        tracing::info!(%shard, "another worker owns the shard: it is not subscribed to again");
                    }
                    return mine;
                }
                // Without an answer there is no certainty.
                Err(error) => {
                    tracing::debug!(%shard, %error, "the lease can't be read; trying again");
                    tokio::time::sleep(backoff.next_wait()).await;
                }
            }
        }
    }

    fn is_certain(&self) -> bool {
        self.term.is_valid()
    }

    /// The first take of a lease makes its counter 1.
    fn is_inherited(&self) -> bool {
        self.term.taken().counter > 1
    }
}
