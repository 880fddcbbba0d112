//! The account of one shard's calls, in the log of outages that all shards of a worker share.

use std::fmt;
use std::sync::Arc;

use kcl_lease::{Cause, Clock, OutageLog, ShardId};

use crate::stream::StreamError;

/// Notes each call of one reader that it repeats by itself, and each that was answered.
///
/// An error that a reader gives back is its caller's to note.
#[derive(Clone, Debug)]
pub(crate) struct CallAccount {
    shard: ShardId,
    outages: OutageLog,
    clock: Arc<dyn Clock>,
}

impl CallAccount {
    pub(crate) fn new(shard: ShardId, outages: OutageLog, clock: Arc<dyn Clock>) -> Self {
        Self { shard, outages, clock }
    }

    /// Notes a call that failed and is repeated.
    pub(crate) fn failed(&self, error: &StreamError) {
        self.failed_by(error.cause(), error);
    }

    /// Notes a call that failed by this cause and is repeated.
    pub(crate) fn failed_by(&self, cause: Cause, error: &dyn fmt::Display) {
        self.outages.failed(cause, self.shard.as_str(), self.clock.boot_time(), error);
    }

    /// Notes that the service has answered.
    pub(crate) fn answered(&self, service: &'static str) {
        self.outages.succeeded(service, self.shard.as_str(), self.clock.boot_time());
    }
}
