//! Where a reading of a shard begins: the five kinds that iterators and subscriptions share.

use super::super::error::ApiError;
use super::super::sequence::shard_id;
use super::super::shard::{Foreign, Position, Shard, Start};
use super::super::stream::Stream;
use super::super::types::ShardIteratorType;

/// What a caller asks for; the members must go together.
pub(super) struct Asked<'a> {
    /// For messages.
    pub(super) operation: &'static str,
    pub(super) kind: ShardIteratorType,
    pub(super) number: Option<&'a str>,
    pub(super) timestamp: Option<u64>,
}

impl Asked<'_> {
    /// The shard with this id, and the place in it. A trimmed sequence number is granted.
    ///
    /// # Errors
    /// InvalidArgument for members that don't go together, and for a sequence number that this shard never gave out;
    /// ResourceNotFound for the shard.
    pub(super) fn find<'s>(&self, stream: &'s mut Stream, id: &str, now: u64) -> Result<(&'s Shard, Position), ApiError> {
        let place = format!("on shard {id} in stream {} under account {}", stream.name, stream.account);
        let start = self.start(&place, now)?;
        let shard = stream.shard(id, now)?;
        let position = shard.position(start).map_err(|foreign| {
            let (operation, number) = (self.operation, self.number.unwrap_or_default());
            ApiError::invalid(match foreign {
                Foreign::Shard(other) => format!(
                    "Invalid StartingSequenceNumber. It encodes {}, while it was used in a call to a shard with {id}",
                    shard_id(other)
                ),
                Foreign::Unknown => format!(
                    "StartingSequenceNumber {number} used in {operation} {place} is invalid because it did not come from this stream."
                ),
            })
        })?;
        Ok((shard, position))
    }

    fn start(&self, place: &str, now: u64) -> Result<Start, ApiError> {
        let Self { operation, kind, .. } = *self;
        let by_number = matches!(kind, ShardIteratorType::AtSequenceNumber | ShardIteratorType::AfterSequenceNumber);
        if by_number != self.number.is_some() {
            return Err(ApiError::invalid(format!(
                "Must either specify (1) AT_SEQUENCE_NUMBER or AFTER_SEQUENCE_NUMBER and StartingSequenceNumber or (2) TRIM_HORIZON or \
                 LATEST or AT_TIMESTAMP and no StartingSequenceNumber. Request {place} specified {kind:?} and {} StartingSequenceNumber.",
                if by_number { "no" } else { "also a" }
            )));
        }
        let number = || {
            let text = self.number.unwrap_or_default();
            text.parse().map_err(|_| ApiError::invalid(format!("StartingSequenceNumber {text} used in {operation} {place} is invalid.")))
        };
        Ok(match kind {
            ShardIteratorType::TrimHorizon => Start::TrimHorizon,
            ShardIteratorType::Latest => Start::Latest,
            ShardIteratorType::AtSequenceNumber => Start::At(number()?),
            ShardIteratorType::AfterSequenceNumber => Start::After(number()?),
            ShardIteratorType::AtTimestamp => match self.timestamp {
                Some(time) if time <= now => Start::AtTimestamp(time),
                Some(time) => {
                    return Err(ApiError::invalid(format!(
                        "The timestampInMillis parameter cannot be greater than the currentTimestampInMillis. timestampInMillis: {time}, \
                         currentTimestampInMillis: {now}"
                    )));
                }
                None => {
                    return Err(ApiError::invalid(
                        "Must specify timestampInMillis parameter for iterator of type AT_TIMESTAMP. Current request has no timestamp \
                         parameter.",
                    ));
                }
            },
        })
    }
}
