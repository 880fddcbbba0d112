//! Seek: an application begins elsewhere, forwards or back, while its workers run or while none does.
//!
//! ```no_run
//! use kcl_core::Timestamp;
//! use kcl_core::seek::{Seek, SeekTo};
//!
//! # async fn seek() -> Result<(), kcl_core::seek::SeekError> {
//! let aws = kcl_core::aws_config::load_from_env().await;
//! let noon = Timestamp::from_millis(1_769_860_800_000);
//! let report = Seek::new("orders-app", "orders", SeekTo::Time(noon)).aws_config(&aws).reason("a bug in prices, mended in 1.4").run().await?;
//! for moved in report.moves {
//!     println!("{}: from {:?} to {}", moved.shard_id, moved.before, moved.after);
//! }
//! # Ok(())
//! # }
//! ```
//!
//! What it promises:
//!
//! - **Fenced.** Each lease is moved by one conditional write that ends its owner's term: no late checkpoint of that one can undo it. All are then held for
//!   a lease duration, as if by a worker that died, so that nobody reads a shard while the old owner of that shard, or of one that came of it,
//!   may still believe in its term. Workers go on by themselves after that, or when they are started; nothing has to be restarted.
//! - **In order.** What came of a sought shard is read after it, from its beginning; leases that were cleaned up are made anew. Of an application as a whole, what came
//!   before the new position counts as read.
//! - **Audited.** Each move is logged under the target `kcl::audit`, with the checkpoint before and after, the owner that lost its term, and the reason.
//! - **Safe to repeat.** After a crash half-way some shards have moved and others have not; the same seek again completes it.
//!
//! Workers of the Java library lose their leases by it as ours do. They take a time, and what LATEST means, from their own settings and
//! clock, not from the lease: seek to a record or to the oldest where they are to take over.
//!
//! | module | owns |
//! |---|---|
//! | this | the settings, the errors, the report |
//! | `run` | a seek from the checks to the last write |
//! | `record` | which checkpoint makes a record the next one |

mod record;
mod run;

use std::fmt;
use std::sync::Arc;

use aws_config::SdkConfig;
use kcl_checkpoint::{Checkpoint, ExtendedSequenceNumber, Timestamp};
use kcl_lease::shard_sync::Hole;
use kcl_lease::{Clock, Entropy, LeaseTable, ShardId, SystemClock, TableError, WorkerId};

use crate::error::ConfigError;
use crate::stream::{StreamApi, StreamError};

/// Where to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SeekTo {
    /// The oldest record that the stream keeps.
    TrimHorizon,
    /// Records that arrive from now on. What was not read yet is skipped.
    Latest,
    /// The first record that arrived at this time or later. Within what the stream keeps, and not in the future.
    Time(Timestamp),
    /// This record, of the [shard](Seek::shard) that must be named with it, is the next one.
    Record(ExtendedSequenceNumber),
    /// The one after this record is the next one.
    AfterRecord(ExtendedSequenceNumber),
}

/// A seek that is to be made. See the [module](self).
#[must_use = "nothing happens until `run`"]
pub struct Seek {
    application: String,
    stream: String,
    to: SeekTo,
    shard: Option<ShardId>,
    reason: String,
    dry_run: bool,
    aws: Option<SdkConfig>,
    table_name: Option<String>,
    clock: Arc<dyn Clock>,
    entropy: Entropy,
    lease_table: Option<Arc<dyn LeaseTable>>,
    stream_api: Option<Arc<dyn StreamApi>>,
}

impl fmt::Debug for Seek {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Seek")
            .field("application", &self.application)
            .field("stream", &self.stream)
            .field("to", &self.to)
            .field("shard", &self.shard)
            .field("dry_run", &self.dry_run)
            .finish_non_exhaustive()
    }
}

impl Seek {
    /// A seek of this application on this stream (a name or an ARN), all shards of it.
    pub fn new(application: impl Into<String>, stream: impl Into<String>, to: SeekTo) -> Self {
        Self {
            application: application.into(),
            stream: stream.into(),
            to,
            shard: None,
            reason: String::new(),
            dry_run: false,
            aws: None,
            table_name: None,
            clock: Arc::new(SystemClock),
            entropy: Entropy::from_os(),
            lease_table: None,
            stream_api: None,
        }
    }

    /// Region, credentials, endpoint: what `aws_config::load_from_env()` gives.
    pub fn aws_config(mut self, config: &SdkConfig) -> Self {
        self.aws = Some(config.clone());
        self
    }

    /// The lease table's name. Default: the application's name.
    pub fn lease_table_name(mut self, name: impl Into<String>) -> Self {
        self.table_name = Some(name.into());
        self
    }

    /// This shard only, and what came of it. Needed for a record.
    pub fn shard(mut self, shard: impl Into<ShardId>) -> Self {
        self.shard = Some(shard.into());
        self
    }

    /// Why, for the audit log.
    pub fn reason(mut self, reason: impl Into<String>) -> Self {
        self.reason = reason.into();
        self
    }

    /// Only say what would be done; change nothing.
    pub fn dry_run(mut self, dry_run: bool) -> Self {
        self.dry_run = dry_run;
        self
    }

    /// Another clock, for tests and simulation.
    pub fn clock(mut self, clock: Arc<dyn Clock>) -> Self {
        self.clock = clock;
        self
    }

    /// Another source of randomness, for tests and simulation. Default: seeded by the operating system.
    pub fn entropy(mut self, entropy: Entropy) -> Self {
        self.entropy = entropy;
        self
    }

    /// Another lease table than DynamoDB's.
    pub fn lease_table(mut self, table: Arc<dyn LeaseTable>) -> Self {
        self.lease_table = Some(table);
        self
    }

    /// Another stream than Kinesis'.
    pub fn stream_api(mut self, api: Arc<dyn StreamApi>) -> Self {
        self.stream_api = Some(api);
        self
    }
}

/// What a seek did, or would do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SeekReport {
    /// The leases that it moved or made, parents before their children.
    pub moves: Vec<SeekMove>,
}

/// A lease that was moved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SeekMove {
    /// The shard.
    pub shard_id: ShardId,
    /// The checkpoint before; `None`: there was no lease.
    pub before: Option<Checkpoint>,
    /// The checkpoint now.
    pub after: Checkpoint,
    /// What LATEST or AT_TIMESTAMP means here.
    pub instant: Option<Timestamp>,
    /// Whose term it ended.
    pub owner: Option<WorkerId>,
}

/// Why a seek was not made, or not completely.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SeekError {
    /// A setting can't be used.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The application has no leases.
    #[error(
        "application `{application}` has no leases: it has not begun, or its lease table has another name. Where it begins is its workers' \
         `initial_position`"
    )]
    NotBegun {
        /// The application.
        application: String,
    },
    /// The leases are of another stream.
    #[error(
        "the leases of application `{application}` are of another stream than `{stream}`: it was re-created under the same name, or is not the one \
         that the application reads"
    )]
    OtherStream {
        /// The application.
        application: String,
        /// The stream.
        stream: String,
    },
    /// The time is in the future.
    #[error("{time} (in milliseconds since 1970) is in the future: the service's time is {now}", time = time.as_millis(), now = now.as_millis())]
    InTheFuture {
        /// The time that was asked for.
        time: Timestamp,
        /// The service's time.
        now: Timestamp,
    },
    /// The stream does not keep records for so long.
    #[error(
        "{time} (in milliseconds since 1970) is before the oldest record that the stream keeps ({hours} hours): to begin with that one, seek to \
         TRIM_HORIZON",
        time = time.as_millis()
    )]
    NotKept {
        /// The time that was asked for.
        time: Timestamp,
        /// How long records are kept.
        hours: u32,
    },
    /// A record needs its shard.
    #[error("a record is found by its shard: name it with `shard`")]
    ShardNeeded,
    /// There is no such shard.
    #[error("stream `{stream}` has no shard {shard}, and the application no lease for it")]
    NoSuchShard {
        /// The stream.
        stream: String,
        /// The shard.
        shard: ShardId,
    },
    /// The shard has no such record.
    #[error("shard {shard} has no record {record}: it was trimmed, or is of another shard")]
    NoSuchRecord {
        /// The shard.
        shard: ShardId,
        /// The record that was asked for.
        record: ExtendedSequenceNumber,
    },
    /// Nothing was changed: another seek moves the same leases just now. The two would mix.
    #[error(
        "another seek of application `{application}` is under way ({holder} holds its leases): wait until it is over, then make this one"
    )]
    UnderWay {
        /// The application.
        application: String,
        /// The owner that the other seek gives to leases until workers take them.
        holder: WorkerId,
    },
    /// Leases can't be read.
    #[error("lease {lease} can't be read ({reason}): nobody knows how the others are related to it. Mend the item first")]
    Unreadable {
        /// The item's key.
        lease: String,
        /// What is wrong with it.
        reason: String,
    },
    /// Nothing was changed: Kinesis has not listed all shards. Make the seek again.
    #[error(transparent)]
    Incomplete(#[from] Hole),
    /// Nothing was changed: Kinesis did not answer as needed.
    #[error(transparent)]
    Stream(#[from] StreamError),
    /// Nothing was changed: the lease table can't be used.
    #[error(transparent)]
    Table(#[from] TableError),
    /// Some leases have moved and others have not.
    #[error("{} of {} leases have moved, the others have not: make the same seek again", done.len(), done.len() + left)]
    Partly {
        /// Those that have.
        done: Vec<SeekMove>,
        /// How many have not.
        left: usize,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}
