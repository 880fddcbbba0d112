//! What can go wrong before and while a worker runs.

use std::time::Duration;

use kcl_efo::FanOutError;
use kcl_lease::{ShardId, TableError};

use crate::dead_letter::DeadLetterError;
use crate::stream::StreamError;

/// A setting that can't be used. Nothing was started.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("setting `{setting}` is {value}: {rule}")]
pub struct ConfigError {
    /// The setting's name, as on the builder.
    pub setting: &'static str,
    /// What it was set to.
    pub value: String,
    /// What it may be.
    pub rule: String,
}

impl ConfigError {
    pub(crate) fn new(setting: &'static str, value: impl std::fmt::Debug, rule: impl Into<String>) -> Self {
        Self { setting, value: format!("{value:?}"), rule: rule.into() }
    }
}

/// Why a worker did not start, or stopped.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WorkerError {
    /// A setting can't be used.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// There is no such stream in this account and region.
    #[error("stream `{stream}` does not exist in this account and region ({region}); check its name, the region and the endpoint")]
    StreamNotFound {
        /// The stream's name or ARN as it was given.
        stream: String,
        /// The region that was asked.
        region: String,
    },
    /// The stream is being deleted.
    #[error("stream `{stream}` is being deleted")]
    StreamDeleting {
        /// The stream.
        stream: String,
    },
    /// The stream was deleted and made anew, or the application's leases belong to another stream of that name: its checkpoints mean nothing
    /// here, and reading on from them would skip records.
    #[error(
        "the leases of application `{application}` are of another stream than `{stream}`: the stream was re-created under the same name, or the \
         application read another stream before. Use another application name, or adopt the stream with \
         `adopt_recreated_stream(true)` (the consumer's --adopt-recreated-stream): that deletes the old leases and starts at the initial position"
    )]
    StreamRecreated {
        /// The application.
        application: String,
        /// The stream.
        stream: String,
    },
    /// The stream was deleted and made anew while the worker ran, and the worker may adopt it. A
    /// start does that: it deletes the leases of the old stream and begins at the initial position.
    #[error(
        "stream `{stream}` was deleted and made anew while application `{application}` read it: start the worker again, and it adopts the new \
         stream as configured"
    )]
    StreamReplaced {
        /// The application.
        application: String,
        /// The stream.
        stream: String,
    },
    /// Kinesis did not answer as needed.
    #[error(transparent)]
    Stream(#[from] StreamError),
    /// The stream can't be read by enhanced fan-out.
    #[error(transparent)]
    FanOut(#[from] FanOutError),
    /// The lease table can't be used.
    #[error(transparent)]
    Table(#[from] TableError),
    /// The dead-letter queue can't be used.
    #[error(transparent)]
    DeadLetter(#[from] DeadLetterError),
    /// The operating system did not give the thread on which the worker keeps its leases alive.
    #[error(
        "the thread that keeps leases alive can't be started; check the limits on threads and open \
         files of this process"
    )]
    LeaseThread(#[source] std::io::Error),
    /// Leases have vanished while the worker ran: the lease table was emptied, or deleted and made anew. What they said of the progress is gone; going on would begin
    /// shards anew at the initial position, and nobody would know. The worker has ended instead.
    #[error(
        "leases of application `{application}`{} have vanished while this worker ran: somebody has emptied the lease table, or deleted it and made it \
         anew. Nothing was begun anew. Restore the table from a backup to go on where the application was; or start the workers again, and it begins at \
         its initial position, as one that has no leases does (a seek moves it elsewhere)",
        vanished(shard.as_ref())
    )]
    LeasesVanished {
        /// The application.
        application: String,
        /// The shard whose lease this worker held; `None`: all leases are gone.
        shard: Option<ShardId>,
    },
    /// Leases are not renewed any more, as their keeper has panicked. The worker has ended so that
    /// other workers take its shards. Its other leases were freed.
    #[error(
        "leases can't be kept alive any more: {reason}; this is a bug, of this library or of a \
         `lease_table` of your own"
    )]
    LeaseKeeping {
        /// Which task or thread ended, and the message of its panic.
        reason: String,
    },
    /// Some shards' processors did not finish in time. Their leases were freed; records since their last checkpoints are delivered again.
    #[error("shutdown took longer than {timeout:?}: {}", unfinished(shards))]
    ShutdownTimedOut {
        /// The time that was allowed.
        timeout: Duration,
        /// The shards. None: all was finished, and the lease table did not confirm in time that the
        /// leases are free.
        shards: Vec<ShardId>,
    },
}

fn vanished(shard: Option<&ShardId>) -> String {
    shard.map(|shard| format!(", that of {shard} among them,")).unwrap_or_default()
}

impl WorkerError {
    /// The leases are of another stream than the one that is read. Only a start may adopt it.
    pub(crate) fn other_stream(application: &str, stream: &str, adopt: bool) -> Self {
        let (application, stream) = (application.to_owned(), stream.to_owned());
        if adopt { Self::StreamReplaced { application, stream } } else { Self::StreamRecreated { application, stream } }
    }

    /// Whether the same start may succeed later without anybody doing anything.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Stream(error) => error.is_retryable(),
            Self::FanOut(error) => error.is_retryable(),
            Self::Table(error) => error.is_retryable(),
            Self::DeadLetter(error) => error.is_retryable(),
            Self::StreamReplaced { .. } => true,
            Self::LeaseThread(_) => true,
            _ => false,
        }
    }
}

/// The reason why a shutdown took too long, in words.
fn unfinished(shards: &[ShardId]) -> String {
    if shards.is_empty() {
        return "the lease table does not confirm that the leases are free; they expire by themselves".to_owned();
    }
    format!("{} still in work", shards.iter().map(ShardId::as_str).collect::<Vec<_>>().join(", "))
}
