//! Positions: what a lease's checkpoint can say, where a shard without a checkpoint starts, and where reading may start.

use std::fmt;
use std::str::FromStr;

use crate::sequence_number::{ExtendedSequenceNumber, ParseSequenceNumberError, SequenceNumber};

/// How far a shard is read: a sentinel, or the last record that is finished.
///
/// The order is the Java library's: AT_TIMESTAMP < TRIM_HORIZON < LATEST < any record < SHARD_END.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Hash)]
pub enum Checkpoint {
    /// Nothing is finished; reading starts at a time (which the checkpoint itself does not hold).
    AtTimestamp,
    /// Nothing is finished; reading starts at the oldest record that the stream still holds.
    TrimHorizon,
    /// Nothing is finished; reading starts after the newest record.
    Latest,
    /// This record and all before it are finished.
    At(ExtendedSequenceNumber),
    /// The shard is closed and all of it is finished.
    ShardEnd,
}

/// The text is no checkpoint.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no checkpoint: expected TRIM_HORIZON, LATEST, AT_TIMESTAMP, SHARD_END or a sequence number")]
pub struct ParseCheckpointError {
    /// Why it is no sequence number either.
    #[source]
    source: ParseSequenceNumberError,
}

impl Checkpoint {
    /// The checkpoint whose stored form is this text and sub-sequence number, as a lease table holds them.
    ///
    /// The sub-sequence number of a sentinel is ignored; it is always 0 where it is written.
    pub fn from_stored(text: &str, sub_sequence_number: u64) -> Result<Self, ParseCheckpointError> {
        Ok(match text {
            "AT_TIMESTAMP" => Self::AtTimestamp,
            "TRIM_HORIZON" => Self::TrimHorizon,
            "LATEST" => Self::Latest,
            "SHARD_END" => Self::ShardEnd,
            number => {
                let number = SequenceNumber::from_str(number).map_err(|source| ParseCheckpointError { source })?;
                Self::At(ExtendedSequenceNumber::new(number, sub_sequence_number))
            }
        })
    }

    /// The text that a lease table holds for this checkpoint; the sub-sequence number is stored beside it.
    #[must_use]
    pub fn stored_text(&self) -> String {
        match self {
            Self::AtTimestamp => "AT_TIMESTAMP".to_owned(),
            Self::TrimHorizon => "TRIM_HORIZON".to_owned(),
            Self::Latest => "LATEST".to_owned(),
            Self::ShardEnd => "SHARD_END".to_owned(),
            Self::At(record) => record.sequence_number.to_string(),
        }
    }

    /// The sub-sequence number that a lease table holds for this checkpoint: 0 for sentinels.
    #[must_use]
    pub fn stored_sub_sequence_number(&self) -> u64 {
        self.record().map_or(0, |record| record.sub_sequence_number)
    }

    /// The last finished record, if the checkpoint names one.
    #[must_use]
    pub fn record(&self) -> Option<ExtendedSequenceNumber> {
        match self {
            Self::At(record) => Some(*record),
            _ => None,
        }
    }

    /// Whether nothing of the shard is finished yet.
    #[must_use]
    pub fn is_initial(&self) -> bool {
        matches!(self, Self::AtTimestamp | Self::TrimHorizon | Self::Latest)
    }

    /// Whether all of the shard is finished.
    #[must_use]
    pub fn is_shard_end(&self) -> bool {
        matches!(self, Self::ShardEnd)
    }
}

impl fmt::Display for Checkpoint {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::At(record) => fmt::Display::fmt(record, formatter),
            sentinel => formatter.write_str(&sentinel.stored_text()),
        }
    }
}

impl From<ExtendedSequenceNumber> for Checkpoint {
    fn from(record: ExtendedSequenceNumber) -> Self {
        Self::At(record)
    }
}

/// A wall-clock time in milliseconds since 1970-01-01 00:00 UTC, the resolution of Kinesis.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Hash)]
pub struct Timestamp(u64);

impl Timestamp {
    /// The time that is this many milliseconds after 1970-01-01 00:00 UTC.
    #[must_use]
    pub const fn from_millis(millis: u64) -> Self {
        Self(millis)
    }

    /// Milliseconds since 1970-01-01 00:00 UTC.
    #[must_use]
    pub const fn as_millis(self) -> u64 {
        self.0
    }
}

/// Where an application starts in shards that it has no lease for yet. An existing checkpoint always wins.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum InitialPosition {
    /// With the oldest record that the stream still holds.
    TrimHorizon,
    /// With records that arrive after the application's first start. That instant is resolved once and kept with the leases, so
    /// that a crash before the first checkpoint or a reshard in between loses nothing.
    Latest,
    /// With the first record that arrived at this time or later.
    AtTimestamp(Timestamp),
}

impl InitialPosition {
    /// The checkpoint that a new lease starts with.
    #[must_use]
    pub fn checkpoint(self) -> Checkpoint {
        match self {
            Self::TrimHorizon => Checkpoint::TrimHorizon,
            Self::Latest => Checkpoint::Latest,
            Self::AtTimestamp(_) => Checkpoint::AtTimestamp,
        }
    }
}

/// Where reading of a shard starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StartingPosition {
    /// The oldest record kept.
    TrimHorizon,
    /// After the newest record.
    Latest,
    /// The first record that arrived at this time or later.
    AtTimestamp(Timestamp),
    /// This record.
    AtSequenceNumber(SequenceNumber),
    /// The record after this one.
    AfterSequenceNumber(SequenceNumber),
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(sequence: u128, sub: u64) -> Checkpoint {
        Checkpoint::At(ExtendedSequenceNumber::new(sequence.into(), sub))
    }

    #[test]
    fn the_documented_order_holds() {
        let ascending = [
            Checkpoint::AtTimestamp,
            Checkpoint::TrimHorizon,
            Checkpoint::Latest,
            at(0, 0),
            at(9, 3),
            at(10, 0),
            at(10, 1),
            Checkpoint::ShardEnd,
        ];
        assert!(ascending.is_sorted());
        assert!(ascending.windows(2).all(|pair| pair[0] < pair[1]));
    }

    #[test]
    fn what_is_stored_reads_back() {
        for checkpoint in [Checkpoint::AtTimestamp, Checkpoint::TrimHorizon, Checkpoint::Latest, at(7, 0), at(7, 12), Checkpoint::ShardEnd]
        {
            let read = Checkpoint::from_stored(&checkpoint.stored_text(), checkpoint.stored_sub_sequence_number());
            assert_eq!(read, Ok(checkpoint));
        }
    }

    #[test]
    fn only_a_sentinel_other_than_the_end_is_initial() {
        for (checkpoint, is_initial, is_end, shown) in [
            (Checkpoint::AtTimestamp, true, false, "AT_TIMESTAMP"),
            (Checkpoint::TrimHorizon, true, false, "TRIM_HORIZON"),
            (Checkpoint::Latest, true, false, "LATEST"),
            (at(0, 0), false, false, "0"),
            (at(7, 12), false, false, "7/12"),
            (Checkpoint::ShardEnd, false, true, "SHARD_END"),
        ] {
            assert_eq!((checkpoint.is_initial(), checkpoint.is_shard_end()), (is_initial, is_end), "{checkpoint:?}");
            assert_eq!(checkpoint.to_string(), shown);
        }
    }

    #[test]
    fn a_time_keeps_its_milliseconds() {
        assert_eq!([0, 1, u64::MAX].map(|millis| Timestamp::from_millis(millis).as_millis()), [0, 1, u64::MAX]);
    }

    #[test]
    fn a_text_that_is_no_checkpoint_is_refused() {
        for text in ["", "latest", "TRIM-HORIZON", "12x"] {
            assert!(Checkpoint::from_stored(text, 0).is_err(), "{text}");
        }
    }
}
