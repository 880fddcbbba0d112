//! A letter as the message that a queue takes: with the payload inside, or, where that is too large, with a pointer to a blob store.
//!
//! The payload is stored first and the message sent second, so that a pointer never leads nowhere; a payload that is not stored is a letter that is
//! not accepted. The other way round a blob may be left over that no message points to, if sending fails for ever: a lifecycle rule of
//! the bucket takes care of both.

use std::sync::Arc;

use super::blobs::BlobError;
use super::envelope::{PartitionKeys, PayloadPlace, envelope, whole_size};
use super::payloads::Payloads;
use super::{Answer, DeadLetter, DeadLetterError};

/// How letters become messages: what all queues share.
#[derive(Clone, Debug, Default)]
pub(super) struct MessageFormat {
    pub(super) partition_keys: PartitionKeys,
    pub(super) payloads: Option<Arc<Payloads>>,
}

impl MessageFormat {
    /// Bytes of the message with the payload inside.
    pub(super) fn whole_size(&self, letter: &DeadLetter) -> usize {
        whole_size(letter, self.partition_keys)
    }

    /// The message with the payload inside, however large.
    pub(super) fn whole(&self, letter: &DeadLetter) -> String {
        envelope(letter, self.partition_keys, PayloadPlace::Inside(letter.record.data()))
    }

    /// Checks the blob store, if there is one.
    pub(super) async fn check(&self, queue: &str) -> Result<(), DeadLetterError> {
        let Some(payloads) = &self.payloads else { return Ok(()) };
        payloads.check().await.map_err(|error| not_stored(queue, error))
    }

    /// The letter's message of up to `limit` bytes; its payload has been stored, if it had to be.
    pub(super) async fn message(&self, letter: &DeadLetter, limit: usize, queue: &str) -> Result<String, DeadLetterError> {
        let size = self.whole_size(letter);
        if size <= limit {
            return Ok(self.whole(letter));
        }
        let too_large = |size| DeadLetterError::TooLarge { queue: queue.to_owned(), size, limit };
        let Some(payloads) = &self.payloads else { return Err(too_large(size)) };
        let location = payloads.place(letter).await.map_err(|error| not_stored(queue, error))?;
        let message = envelope(letter, self.partition_keys, PayloadPlace::At(&location));
        if message.len() <= limit { Ok(message) } else { Err(too_large(message.len())) }
    }

    /// Takes note of what has become of these letters.
    pub(super) fn answered(&self, letters: &[DeadLetter], answers: &[Answer]) {
        let Some(payloads) = &self.payloads else { return };
        letters.iter().zip(answers).filter(|(_, answer)| answer.is_ok()).for_each(|(letter, _)| payloads.accepted(letter));
    }
}

/// A store that gives no answer is as a queue that gives none: it may soon give one.
fn not_stored(queue: &str, error: BlobError) -> DeadLetterError {
    let queue = queue.to_owned();
    match error {
        BlobError::Unavailable { .. } => DeadLetterError::Unavailable { queue, message: error.to_string() },
        error => DeadLetterError::Payload { queue, error },
    }
}
