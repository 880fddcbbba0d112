//! Enhanced fan-out: shards read by push, and by polling while they can't be subscribed to.
//!
//! | module | owns |
//! |---|---|
//! | `settings` | the settings, and the choice between fan-out and polling |
//! | `reader` | one shard: its subscriptions, and the bridge between them |
//!
//! What a subscription is, and when there may be one, is `kcl-efo`'s.

mod reader;
mod settings;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use kcl_efo::FanOut;
use kcl_lease::ShardId;

use self::reader::Reader;
pub(crate) use self::settings::Intended;
pub use self::settings::{ConsumerChoice, FanOutConfig, RetrievalMode};
use super::{Ownership, Polling, Retrieval, ShardReader, Share};
use crate::stream::StartingPosition;

/// Reads shards by subscriptions.
#[derive(Clone, Debug)]
pub struct FanOutRetrieval {
    fan_out: FanOut,
    polling: Polling,
    may_bridge: bool,
}

impl FanOutRetrieval {
    /// Reads with these subscriptions. `may_bridge`: a shard without one is polled meanwhile; otherwise it waits, and of the stream that
    /// `polling` reads only the shards are listed, at the end of one.
    #[must_use]
    pub fn new(fan_out: FanOut, polling: Polling, may_bridge: bool) -> Self {
        Self { fan_out, polling, may_bridge }
    }
}

impl Retrieval for FanOutRetrieval {
    /// A reader that starts here.
    ///
    /// Opened at [`StartingPosition::Latest`], the place is fixed by the first event of a subscription: there is no bridge before it.
    fn open(&self, shard: &ShardId, start: StartingPosition, ownership: Arc<dyn Ownership>) -> Box<dyn ShardReader> {
        let subscriber = self.fan_out.subscriber(shard.as_str(), start, ownership);
        Box::new(Reader::new(self.fan_out.stream_arn(), shard.clone(), subscriber, self.polling.clone(), self.may_bridge))
    }

    fn needs_share(&self) -> bool {
        true
    }

    fn share(&self, share: Share) {
        self.fan_out.share(share.workers, share.place, share.time);
    }
}
