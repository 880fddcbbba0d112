//! What became of letters.

use crate::dead_letter::{BlobError, Envelope, EnvelopeError};

/// What became of one letter.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct LetterOutcome<'a> {
    /// The message's id in its queue: SQS's message id; where the line begins in its file.
    pub message_id: &'a str,
    /// The letter, if it could be read.
    pub letter: Option<&'a Envelope>,
    /// What became of it.
    pub fate: &'a Fate,
}

/// What became of a letter.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Fate {
    /// The record was accepted and the letter deleted.
    Accepted,
    /// The record was accepted, and the letter could not be deleted: it will come again.
    AcceptedNotDeleted,
    /// A dry run: the record would have been put back.
    WouldBeTried,
    /// Another letter of the same record decides; this one shares its fate.
    Duplicate,
    /// Not meant by the filter. It stays.
    NotMeant,
    /// It stays, for this reason.
    Stays(StayReason),
}

/// Why a letter stays in its queue.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum StayReason {
    /// The message can't be read.
    #[error("{0}")]
    Unreadable(#[from] EnvelopeError),
    /// The record is of another stream than the one that it would be put into.
    #[error("it is a record of another stream, `{stream}`; it is put back on request only (`StreamTarget::from_other_streams`)")]
    OtherStream {
        /// The ARN of the record's stream.
        stream: String,
    },
    /// The record is of a stream that was deleted; the stream that it would be put into was made anew under its name.
    #[error(
        "it is a record of an earlier stream of the name `{stream}`, which was made anew since; it is put back on request only \
         (`StreamTarget::from_other_streams`)"
    )]
    EarlierStream {
        /// The ARN of both streams.
        stream: String,
    },
    /// A stream does not take the record's partition key, which it had inside of an aggregate.
    #[error(
        "a stream takes partition keys of 1 to 256 characters, and this record, which was part of an aggregate, has another one; a handler can \
         process it"
    )]
    KeyNotTaken,
    /// A stream needs the record's partition key, and the message does not tell it.
    #[error(
        "the message does not tell the record's partition key in clear, without which a stream does not take it; a handler can process it"
    )]
    KeyNotTold,
    /// The payload is in a blob store, and none is configured.
    #[error("the payload is in bucket `{bucket}`; configure that bucket as the blob store")]
    NoBlobStore {
        /// The bucket.
        bucket: String,
    },
    /// The payload could not be fetched.
    #[error("the payload could not be fetched: {0}")]
    Payload(BlobError),
    /// What the blob store has in the payload's place is something else.
    #[error("what is stored in the payload's place has another size or SHA-256 than the message says")]
    PayloadChanged,
    /// The stream or the handler refused it. The words of a handler are its error's: they may quote the payload.
    #[error("not accepted: {message}")]
    Refused {
        /// Its words.
        message: String,
    },
    /// An earlier letter of its partition key stays, and it would overtake it.
    #[error("an earlier letter of its partition key was not accepted")]
    Behind,
}

impl StayReason {
    /// Returns whether later letters of its partition key stay too, so that they don't overtake it. A record of
    /// another stream has no place in the order of this one.
    pub(super) fn holds_back_its_key(&self) -> bool {
        !matches!(self, Self::OtherStream { .. } | Self::EarlierStream { .. })
    }
}

/// What a run did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct RedriveReport {
    /// Letters whose fate was told, each message once: the sum of the next six.
    pub letters: u64,
    /// Records put back and letters deleted.
    pub accepted: u64,
    /// Records put back whose letters could not be deleted: they will come again.
    pub accepted_not_deleted: u64,
    /// A dry run: records that would have been tried.
    pub would_be_tried: u64,
    /// Further letters of the same records.
    pub duplicates: u64,
    /// Letters that the filter did not mean.
    pub not_meant: u64,
    /// Letters that stay for a reason of their own.
    pub stayed: u64,
    /// Payloads deleted from the blob store.
    pub blobs_deleted: u64,
    /// Payloads that should have been deleted from the blob store and were not.
    pub blobs_left: u64,
    /// Letters that the queue gives to nobody now, though this run has given back all that it held: other
    /// readers have received them, or a run that was killed, or they are delayed. They are in none of the
    /// counts above; run again later. By the queue's own, approximate count. `None`: it was not told.
    pub invisible: Option<u64>,
    /// Why the run ended before the queue did; `None`: it did not, or its limit was reached.
    pub stopped: Option<String>,
}

impl RedriveReport {
    pub(super) fn count(&mut self, fate: &Fate) {
        self.letters += 1;
        *match fate {
            Fate::Accepted => &mut self.accepted,
            Fate::AcceptedNotDeleted => &mut self.accepted_not_deleted,
            Fate::WouldBeTried => &mut self.would_be_tried,
            Fate::Duplicate => &mut self.duplicates,
            Fate::NotMeant => &mut self.not_meant,
            Fate::Stays(_) => &mut self.stayed,
        } += 1;
    }
}
