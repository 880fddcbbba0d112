//! Redrive: dead letters back into their stream, or through a handler, once the cause is fixed.
//!
//! ```no_run
//! use kcl_core::dead_letter::FailureKind;
//! use kcl_core::redrive::{Filter, Redrive, RedriveError, SqsLetters, StreamTarget};
//! use kcl_core::S3BlobStore;
//!
//! # async fn redrive() -> Result<(), RedriveError> {
//! let aws = kcl_core::aws_config::load_from_env().await;
//! let report = Redrive::new(SqsLetters::new(&aws, "orders-dlq"), StreamTarget::new(&aws, "orders"))
//!     .blob_store(S3BlobStore::new(&aws, "orders-payloads")) // where letters say that their payload is there
//!     .only(Filter { kind: Some(FailureKind::Poison), ..Filter::default() })
//!     .dry_run(true)
//!     .run()
//!     .await?;
//! println!("{report:?}");
//! # Ok(())
//! # }
//! ```
//!
//! What it promises:
//!
//! - A letter is deleted only after its record was accepted, by the stream or the handler. A crash at any point leaves duplicates at worst.
//! - Letters of one partition key are put back one after the other, in the order of their sequence numbers as far as they are in sight (up to 100
//!   letters at a time; a standard queue gives its messages in any order). When one of them is not accepted, later ones of its key stay too.
//! - A letter that can't be read or put back stays in the queue, and is reported with the reason.
//! - Letters of the same record are put back once in a run.
//! - A stream is given its own letters alone, unless it is told to take those of others.
//! - A run that could do nothing, by its settings or its target, is refused before any letter is received.
//! - Letters that the queue hides from the run are counted at its end. See [`RedriveReport::invisible`].
//!
//! | module | owns |
//! |---|---|
//! | this, `run` | the settings; a run from the first letter to the report |
//! | `plan` | who is put back in which order: a function of letters |
//! | `error` | why a run is refused |
//! | `filter` | which letters are meant |
//! | `report` | what became of letters |
//! | `source` | the port that letters come from |
//! | `sqs`, `file` | its implementations |
//! | `target` | the port that records go to: a stream, a handler |

mod error;
mod file;
mod filter;
mod plan;
mod report;
mod run;
mod source;
mod sqs;
mod target;
#[cfg(test)]
mod tests;

use std::fmt;
use std::num::NonZeroUsize;
use std::sync::Arc;

use kcl_lease::Entropy;

pub use self::error::RedriveError;
pub use self::file::FileLetters;
pub use self::filter::{Filter, FilterError};
pub use self::report::{Fate, LetterOutcome, RedriveReport, StayReason};
pub use self::source::{LetterSource, ReceivedLetter, SourceError};
pub use self::sqs::SqsLetters;
pub use self::target::{HandlerTarget, RedriveTarget, StreamTarget, TargetError};
use crate::dead_letter::guarded::GuardedBlobs;
use crate::dead_letter::{BlobStore, Envelope};

type Chosen = Arc<dyn Fn(&Envelope) -> bool + Send + Sync>;
type Observer = Arc<dyn Fn(&LetterOutcome<'_>) + Send + Sync>;

/// A run over a queue of dead letters that is to be made. See the [module](self).
#[derive(Clone)]
pub struct Redrive {
    source: Arc<dyn LetterSource>,
    target: Arc<dyn RedriveTarget>,
    blobs: Option<Arc<dyn BlobStore>>,
    only: Filter,
    chosen: Option<Chosen>,
    observer: Option<Observer>,
    limit: Option<u64>,
    keys_at_a_time: NonZeroUsize,
    dry_run: bool,
    delete_blobs: bool,
    entropy: Entropy,
}

impl Redrive {
    /// A run from this queue to this target, over all letters.
    #[must_use]
    pub fn new(source: impl LetterSource + 'static, target: impl RedriveTarget + 'static) -> Self {
        Self {
            source: Arc::new(source),
            target: Arc::new(target),
            blobs: None,
            only: Filter::default(),
            chosen: None,
            observer: None,
            limit: None,
            keys_at_a_time: const { NonZeroUsize::new(8).expect("8 is not zero") },
            dry_run: false,
            delete_blobs: false,
            entropy: Entropy::from_os(),
        }
    }

    /// Where payloads are that were too large for the queue. A letter whose payload is there stays without it.
    #[must_use]
    pub fn blob_store(mut self, blobs: impl BlobStore + 'static) -> Self {
        self.blobs = Some(Arc::new(GuardedBlobs::new(blobs)));
        self
    }

    /// Only these letters. Others stay.
    #[must_use]
    pub fn only(mut self, filter: Filter) -> Self {
        self.only = filter;
        self
    }

    /// Only letters for which this is true, besides [`only`](Self::only).
    #[must_use]
    pub fn filter(mut self, chosen: impl Fn(&Envelope) -> bool + Send + Sync + 'static) -> Self {
        self.chosen = Some(Arc::new(chosen));
        self
    }

    /// Told of each letter once, when it is known what becomes of it.
    #[must_use]
    pub fn observe(mut self, observer: impl Fn(&LetterOutcome<'_>) + Send + Sync + 'static) -> Self {
        self.observer = Some(Arc::new(observer));
        self
    }

    /// Most records that are put back (in a dry run: counted), from 1. Default: no limit.
    #[must_use]
    pub fn limit(mut self, letters: u64) -> Self {
        self.limit = Some(letters);
        self
    }

    /// How many partition keys are worked on at a time. Default: 8.
    #[must_use]
    pub fn keys_at_a_time(mut self, keys: NonZeroUsize) -> Self {
        self.keys_at_a_time = keys;
        self
    }

    /// Reads and counts letters, and changes nothing: nothing is put back, nothing deleted, and all letters can be seen again at the end. Payloads in a
    /// blob store are not fetched. Default: no.
    #[must_use]
    pub fn dry_run(mut self, dry_run: bool) -> Self {
        self.dry_run = dry_run;
        self
    }

    /// Deletes a letter's payload from the blob store after the letter itself was deleted. A duplicate of the letter that is found by a later run
    /// then stays, for it can't be read. Default: no, payloads are left to a lifecycle rule of the bucket.
    #[must_use]
    pub fn delete_blobs(mut self, delete: bool) -> Self {
        self.delete_blobs = delete;
        self
    }

    /// Where the jitter of retries comes from. Default: the operating system's randomness.
    #[must_use]
    pub fn entropy(mut self, entropy: Entropy) -> Self {
        self.entropy = entropy;
        self
    }

    /// Runs until the queue gives no letters any more that were not seen, or the limit is reached. See [`RedriveReport::stopped`] for runs
    /// that end early.
    ///
    /// # Errors
    /// [`RedriveError`], if the run was not begun: no letter was received.
    ///
    /// # Cancel safety
    /// Nothing is lost: letters in work are in the queue again when its visibility timeout is over (see [`SqsLetters`]), and one of them may
    /// have been put back already. [`run_until`](Self::run_until) ends a run in good order.
    pub async fn run(self) -> Result<RedriveReport, RedriveError> {
        self.run_until(std::future::pending()).await
    }
}

impl fmt::Debug for Redrive {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Redrive")
            .field("source", &self.source)
            .field("target", &self.target)
            .field("dry_run", &self.dry_run)
            .finish_non_exhaustive()
    }
}
