//! Stops of shards that outlive the process: which shards of an application are stopped, and how to
//! resume them from outside, while workers run or while none does.
//!
//! ```no_run
//! use kcl_core::stops::{Stops, StopsError};
//!
//! # async fn resume() -> Result<(), StopsError> {
//! let aws = kcl_core::aws_config::load_from_env().await;
//! let stops = Stops::new("orders-app").aws_config(&aws).reason("the schema is fixed in 1.4");
//! for shard in stops.list().await?.stopped {
//!     println!("{}: {} since {}", shard.shard_id, shard.stopped.reason, shard.stopped.since.as_millis());
//! }
//! stops.resume_all().await?;
//! # Ok(())
//! # }
//! ```
//!
//! A stop is a part of the shard's lease. It holds for every owner, also after a restart, until it is
//! cleared by the worker that owns the shard or from here. Clearing it costs the owner nothing: it sees
//! it in the answer to its next write of the lease, within a third of the lease duration, and goes on.
//!
//! Each resumption is logged under the target `kcl::audit`.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use aws_config::SdkConfig;
use kcl_checkpoint::Checkpoint;
use kcl_lease::backoff::Backoff;
use kcl_lease::dynamodb::TableOptions;
use kcl_lease::{
    DynamoDbLeaseTable, Entropy, Lease, LeaseTable, LeaseWrite, ShardId, Stopped, TableError, UnreadableLease, WorkerId, WriteOutcome,
};
use tokio::time::Instant;

use crate::error::ConfigError;
use crate::worker::{settings, usable};

/// Time for which a call that is throttled or not answered is repeated.
const PATIENCE: Duration = Duration::from_secs(60);
/// First wait after a call without an answer; it doubles up to the longest.
const FIRST_WAIT: Duration = Duration::from_millis(100);
const LONGEST_WAIT: Duration = Duration::from_secs(5);
/// Maximum attempts at one shard whose lease changes hands in between.
const RACES: u32 = 10;

/// The stops of one application. See the [module](self).
pub struct Stops {
    application: String,
    reason: String,
    aws: Option<SdkConfig>,
    table_name: Option<String>,
    lease_table: Option<Arc<dyn LeaseTable>>,
    entropy: Entropy,
}

impl fmt::Debug for Stops {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Stops").field("application", &self.application).finish_non_exhaustive()
    }
}

/// A shard that is stopped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoppedShard {
    /// The shard.
    pub shard_id: ShardId,
    /// Why, and since when.
    pub stopped: Stopped,
    /// The worker that owns it; `None`: none does. Its owner keeps the lease and processes nothing.
    pub owner: Option<WorkerId>,
    /// The position up to which it is processed.
    pub checkpoint: Checkpoint,
}

/// The answer to [`Stops::list`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StopList {
    /// The shards that are stopped, sorted by their names.
    pub stopped: Vec<StoppedShard>,
    /// Leases that can't be read. No worker processes their shards before the items are repaired.
    pub unreadable: Vec<UnreadableLease>,
}

/// Why stops were not listed, or a shard was not resumed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StopsError {
    /// A setting can't be used. Nothing was changed.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The lease table can't be used, or did not answer for a minute. A resumption without an answer may
    /// still take effect; asking again is safe.
    #[error(transparent)]
    Table(#[from] TableError),
    /// The application has no lease for the shard, or its item can't be read. Nothing was changed.
    #[error("application `{application}` has no lease for shard {shard} that can be read: check the names, and `list`")]
    NoSuchShard {
        /// The application.
        application: String,
        /// The shard.
        shard: ShardId,
    },
    /// The lease changed hands at each attempt. Nothing was changed; try again.
    #[error("the lease of shard {shard} changed hands at each of {RACES} attempts: try again")]
    Contended {
        /// The shard.
        shard: ShardId,
    },
    /// Some shards were resumed, and others not. Asking again resumes the rest.
    #[error("{} shards were resumed; shard {shard} and those after it were not", resumed.len())]
    Partly {
        /// Those that were.
        resumed: Vec<StoppedShard>,
        /// The first one that was not.
        shard: ShardId,
        /// Why.
        #[source]
        source: Box<Self>,
    },
}

impl Stops {
    /// The stops of this application.
    #[must_use]
    pub fn new(application: impl Into<String>) -> Self {
        Self {
            application: application.into(),
            reason: String::new(),
            aws: None,
            table_name: None,
            lease_table: None,
            entropy: Entropy::from_os(),
        }
    }

    /// Sets region, credentials and endpoint: what `aws_config::load_from_env()` returns.
    #[must_use]
    pub fn aws_config(mut self, config: &SdkConfig) -> Self {
        self.aws = Some(config.clone());
        self
    }

    /// Sets the lease table's name. Default: the application's name.
    #[must_use]
    pub fn lease_table_name(mut self, name: impl Into<String>) -> Self {
        self.table_name = Some(name.into());
        self
    }

    /// Sets the reason for the audit log.
    #[must_use]
    pub fn reason(mut self, reason: impl Into<String>) -> Self {
        self.reason = reason.into();
        self
    }

    /// Sets another lease table than DynamoDB's.
    #[must_use]
    pub fn lease_table(mut self, table: Arc<dyn LeaseTable>) -> Self {
        self.lease_table = Some(table);
        self
    }

    /// Sets the source of randomness, for tests and simulation. Default: seeded by the operating system.
    #[must_use]
    pub fn entropy(mut self, entropy: Entropy) -> Self {
        self.entropy = entropy;
        self
    }

    /// Returns the shards that are stopped.
    ///
    /// # Errors
    /// [`StopsError::Config`] and [`StopsError::Table`].
    ///
    /// # Cancel safety
    /// Safe: it only reads.
    pub async fn list(&self) -> Result<StopList, StopsError> {
        let table = self.table()?;
        let listing = self.retried(|| table.list()).await?;
        Ok(StopList { stopped: listing.leases.iter().filter_map(stopped).collect(), unreadable: listing.unreadable })
    }

    /// Resumes one shard, and returns the stop that was cleared; `None`: it was not stopped.
    ///
    /// Only the stop that stands when the call begins is cleared. A worker that stops the shard again
    /// meanwhile is not overruled.
    ///
    /// # Errors
    /// [`StopsError`], but [`Partly`](StopsError::Partly).
    ///
    /// # Cancel safety
    /// Dropping the future leaves the shard resumed or not; asking again is safe.
    pub async fn resume(&self, shard: &ShardId) -> Result<Option<StoppedShard>, StopsError> {
        let table = self.table()?;
        let seen = self.retried(|| table.get(shard)).await?.ok_or_else(|| self.no_such(shard))?;
        self.resume_seen(table.as_ref(), seen).await
    }

    /// Resumes all shards that are stopped, and returns the stops that were cleared.
    ///
    /// # Errors
    /// [`StopsError`]; [`Partly`](StopsError::Partly) if some were resumed before.
    ///
    /// # Cancel safety
    /// Dropping the future leaves some shards resumed and others not; asking again resumes the rest.
    pub async fn resume_all(&self) -> Result<Vec<StoppedShard>, StopsError> {
        let table = self.table()?;
        let mut resumed = Vec::new();
        for lease in self.retried(|| table.list()).await?.leases {
            if stopped(&lease).is_none() {
                continue;
            }
            let shard = lease.shard_id.clone();
            match self.resume_seen(table.as_ref(), lease).await {
                Ok(cleared) => resumed.extend(cleared),
                Err(error) if resumed.is_empty() => return Err(error),
                Err(error) => return Err(StopsError::Partly { resumed, shard, source: Box::new(error) }),
            }
        }
        Ok(resumed)
    }

    async fn resume_seen(&self, table: &dyn LeaseTable, mut seen: Lease) -> Result<Option<StoppedShard>, StopsError> {
        for _ in 0..RACES {
            let (Some(write), Some(shard)) = (LeaseWrite::resume(&seen), stopped(&seen)) else { return Ok(None) };
            match self.retried(|| table.write(&write)).await? {
                WriteOutcome::Applied(_) => {
                    self.audit(&shard);
                    return Ok(Some(shard));
                }
                // The same stop, and another owner.
                WriteOutcome::Refused(Some(row)) => seen = *row,
                WriteOutcome::Refused(None) => return Err(self.no_such(&seen.shard_id)),
            }
        }
        Err(StopsError::Contended { shard: seen.shard_id })
    }

    fn audit(&self, shard: &StoppedShard) {
        tracing::warn!(
            target: "kcl::audit",
            application = self.application,
            shard = %shard.shard_id,
            stopped_by = %shard.stopped.reason,
            stopped_since = shard.stopped.since.as_millis(),
            owner = shard.owner.as_ref().map(tracing::field::display),
            checkpoint = %shard.checkpoint,
            reason = self.reason,
            "the shard is resumed, as an operator asked"
        );
    }

    fn table(&self) -> Result<Arc<dyn LeaseTable>, ConfigError> {
        settings::table_name("application", &self.application)?;
        if let Some(table) = &self.lease_table {
            return Ok(Arc::clone(table));
        }
        let name = self.table_name.as_ref().unwrap_or(&self.application);
        settings::table_name("lease_table_name", name)?;
        let client = aws_sdk_dynamodb::Client::new(usable(self.aws.as_ref())?);
        Ok(Arc::new(DynamoDbLeaseTable::new(&client, name, TableOptions::default(), &self.entropy)))
    }

    fn no_such(&self, shard: &ShardId) -> StopsError {
        StopsError::NoSuchShard { application: self.application.clone(), shard: shard.clone() }
    }

    /// Repeats a call that was throttled or got no answer, until its patience ends. Writes are repeated
    /// as they are, so that the table recognises them.
    async fn retried<T, F>(&self, call: impl Fn() -> F) -> Result<T, TableError>
    where
        F: Future<Output = Result<T, TableError>>,
    {
        let until = Instant::now() + PATIENCE;
        let mut backoff = Backoff::new(FIRST_WAIT, LONGEST_WAIT, &self.entropy);
        loop {
            let error = match call().await {
                Err(error) if error.is_retryable() => error,
                answer => return answer,
            };
            let wait = backoff.next_wait();
            if Instant::now() + wait >= until {
                return Err(error);
            }
            tracing::warn!(application = self.application, %error, ?wait, "the lease table did not answer; trying again");
            tokio::time::sleep(wait).await;
        }
    }
}

/// The lease as a stopped shard, if it is one that records are left for.
fn stopped(lease: &Lease) -> Option<StoppedShard> {
    let stopped = lease.stopped.filter(|_| !lease.is_finished())?;
    Some(StoppedShard { shard_id: lease.shard_id.clone(), stopped, owner: lease.actual_owner().cloned(), checkpoint: lease.checkpoint })
}

#[cfg(test)]
mod tests;
