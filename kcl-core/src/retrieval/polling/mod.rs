//! Polling: reading shards by GetRecords, the way that every stream offers without registration.
//!
//! | module | owns |
//! |---|---|
//! | `pace` | the settings and the service's limits: how long to wait after an answer |
//! | `contention` | the pace on a shard that other applications read too |
//! | `expected` | how many bytes the next answer may have |
//! | `limit` | how many records a read asks for, on a slow line |
//! | `tip` | the tip of a shard, if the server does not say how far behind it is |
//! | `reader` | one shard: what is called next, and what an answer changes |

mod contention;
mod expected;
mod limit;
mod pace;
mod reader;
#[cfg(test)]
mod tests;
mod tip;

use std::sync::Arc;

use kcl_lease::{Clock, Entropy, OutageLog, ShardId};

pub use self::pace::{PollingConfig, PollingConfigError};
pub(crate) use self::reader::Reader;
use super::{CallAccount, Ownership, Retrieval, ShardReader};
use crate::stream::{StartingPosition, StreamApi};

/// Reads shards by polling.
#[derive(Clone, Debug)]
pub struct Polling {
    api: Arc<dyn StreamApi>,
    config: PollingConfig,
    clock: Arc<dyn Clock>,
    entropy: Entropy,
    outages: OutageLog,
}

impl Polling {
    /// Polling of this stream at this pace, with settings that [`PollingConfig::validate`] accepts.
    ///
    /// The wall clock is asked for one thing alone: a shard that is opened at [`StartingPosition::Latest`], see [`Retrieval::open`].
    /// Boot time dates failed calls in the log of outages.
    #[must_use]
    pub fn new(api: Arc<dyn StreamApi>, config: PollingConfig, clock: Arc<dyn Clock>, entropy: Entropy) -> Self {
        Self { api, config, clock, entropy, outages: OutageLog::default() }
    }

    /// Reports failed and answered calls to this log instead of one of its own.
    #[must_use]
    pub(crate) fn reporting_to(self, outages: OutageLog) -> Self {
        Self { outages, ..self }
    }

    /// The account of this shard's calls.
    pub(crate) fn account(&self, shard: &ShardId) -> CallAccount {
        CallAccount::new(shard.clone(), self.outages.clone(), Arc::clone(&self.clock))
    }

    /// The stream that is polled.
    pub(crate) fn api(&self) -> &dyn StreamApi {
        self.api.as_ref()
    }

    /// See [`Retrieval::open`]: what is read here does not depend on who owns the shard.
    pub(crate) fn reader(&self, shard: &ShardId, start: StartingPosition) -> Reader {
        Reader::new(self, shard.clone(), start)
    }
}

impl Retrieval for Polling {
    /// A reader that starts here.
    ///
    /// Opened at [`StartingPosition::Latest`], the place is fixed when the service first answers. Should reading be interrupted for
    /// more than the five minutes of an iterator's life before any record was given, the reader goes on at the time when it had asked for
    /// that place, less five minutes: a second "latest" would skip what arrived in between. So records of those five minutes may be
    /// given although they were there before.
    fn open(&self, shard: &ShardId, start: StartingPosition, _: Arc<dyn Ownership>) -> Box<dyn ShardReader> {
        Box::new(self.reader(shard, start))
    }
}
