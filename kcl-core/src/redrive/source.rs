//! The port that dead letters come from.

use async_trait::async_trait;

/// A letter as its queue gave it.
#[derive(Clone, PartialEq, Eq)]
pub struct ReceivedLetter {
    /// The message's id, the same each time that it is received.
    pub id: String,
    /// By which it is deleted or released; perhaps another one each time that it is received.
    pub handle: String,
    /// The message.
    pub body: String,
}

impl std::fmt::Debug for ReceivedLetter {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("ReceivedLetter").field("id", &self.id).field("bytes", &self.body.len()).finish_non_exhaustive()
    }
}

/// Why a queue did not do it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{operation} on `{queue}`: {message}")]
pub struct SourceError {
    /// The queue.
    pub queue: String,
    /// The operation, as IAM names it.
    pub operation: &'static str,
    /// What is known.
    pub message: String,
    /// Whether trying again may help.
    pub is_retryable: bool,
    /// Whether the letter's handle is of no letter any more: it was deleted, or can be seen by others again.
    pub is_gone: bool,
    /// Whether the queue gives no letters before some that were received are deleted or given back.
    pub is_full: bool,
}

/// A queue of dead letters that is read.
///
/// # Contract
///
/// - A letter that was received is given to nobody else for a while, and comes again unless it is deleted: reading alone loses nothing.
/// - Each call is one attempt with a bounded duration; whoever calls retries.
///
/// # Cancel safety
/// Letters of a dropped `receive` come again. A dropped `delete` may have taken effect.
#[async_trait]
pub trait LetterSource: Send + Sync + std::fmt::Debug {
    /// Returns the most letters that may be received and neither deleted nor released at a time. A run that
    /// comes near it gives back what it holds and ends. Default: no limit.
    fn most_held(&self) -> usize {
        usize::MAX
    }

    /// Returns how many letters are given to nobody now: those that this or another reader has received and
    /// not released, and delayed ones. It may be approximate. `None`, the default: the queue does not tell.
    ///
    /// # Errors
    /// See [`SourceError`].
    async fn invisible(&self) -> Result<Option<u64>, SourceError> {
        Ok(None)
    }

    /// A few letters. None: there was none to be seen for a moment.
    ///
    /// # Errors
    /// See [`SourceError`].
    async fn receive(&self) -> Result<Vec<ReceivedLetter>, SourceError>;

    /// Deletes a letter for good. One that is gone already counts as deleted.
    ///
    /// # Errors
    /// See [`SourceError`].
    async fn delete(&self, letter: &ReceivedLetter) -> Result<(), SourceError>;

    /// Gives a letter back, so that it can be received again at once. Without it that takes a while.
    ///
    /// # Errors
    /// See [`SourceError`].
    async fn release(&self, letter: &ReceivedLetter) -> Result<(), SourceError>;
}
