//! Sequence numbers and the sub-sequence number of a record inside an aggregated one.
//!
//! Kinesis writes sequence numbers as decimal text of up to 56 digits (186 bits). They are compared as integers: as text,
//! "10" would come before "9".

use std::cmp::Ordering;
use std::fmt;
use std::str::FromStr;

use ethnum::U256;

use crate::planted::{Bug, is_planted};

/// The number that Kinesis gave a record; unique within its shard and growing with time.
///
/// Ordered as the integer that it is. Sequence numbers of different shards are comparable but say nothing about each other,
/// but for one thing: a child shard's numbers are above its parents'.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct SequenceNumber(U256);

impl Ord for SequenceNumber {
    fn cmp(&self, other: &Self) -> Ordering {
        if is_planted(Bug::NumbersAsText) {
            return self.to_string().cmp(&other.to_string());
        }
        self.0.cmp(&other.0)
    }
}

impl PartialOrd for SequenceNumber {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// The text is no sequence number.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is no sequence number: a decimal integer below 2^256 is expected, without sign or spaces")]
pub struct ParseSequenceNumberError {
    text: String,
}

impl FromStr for SequenceNumber {
    type Err = ParseSequenceNumberError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let refuse = || ParseSequenceNumberError { text: text.chars().take(100).collect() };
        // The integer parser would take a sign.
        if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(refuse());
        }
        U256::from_str_radix(text, 10).map(Self).map_err(|_| refuse())
    }
}

impl SequenceNumber {
    /// The number of these upper and lower 128 bits.
    #[must_use]
    pub const fn from_words(high: u128, low: u128) -> Self {
        Self(U256::from_words(high, low))
    }

    /// Its upper and lower 128 bits.
    #[must_use]
    pub const fn into_words(self) -> (u128, u128) {
        self.0.into_words()
    }
}

impl From<u128> for SequenceNumber {
    fn from(value: u128) -> Self {
        Self(U256::from(value))
    }
}

impl fmt::Display for SequenceNumber {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, formatter)
    }
}

impl fmt::Debug for SequenceNumber {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, formatter)
    }
}

/// A record's full address in its shard: the sequence number, and which of the records aggregated under it.
///
/// Ordered by sequence number, then sub-sequence number. A record that is not part of an aggregate has sub-sequence number 0,
/// as in the Java library.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ExtendedSequenceNumber {
    /// The sequence number that Kinesis gave.
    pub sequence_number: SequenceNumber,
    /// Index inside the aggregate, from 0.
    pub sub_sequence_number: u64,
}

impl ExtendedSequenceNumber {
    /// The address of a record inside an aggregate.
    #[must_use]
    pub fn new(sequence_number: SequenceNumber, sub_sequence_number: u64) -> Self {
        Self { sequence_number, sub_sequence_number }
    }

    /// The address of a record that is not aggregated.
    #[must_use]
    pub fn whole(sequence_number: SequenceNumber) -> Self {
        Self::new(sequence_number, 0)
    }
}

impl fmt::Display for ExtendedSequenceNumber {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}", self.sequence_number)?;
        if self.sub_sequence_number > 0 {
            write!(formatter, "/{}", self.sub_sequence_number)?;
        }
        Ok(())
    }
}

impl fmt::Debug for ExtendedSequenceNumber {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, formatter)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn number(text: &str) -> SequenceNumber {
        text.parse().unwrap()
    }

    #[test]
    fn numbers_are_compared_as_integers() {
        assert!(number("9") < number("10"));
        assert!(
            number("49601189658422359378836298521827638475320189012309704722")
                < number("49601189658422359378836298522902373528957594348623495186")
        );
    }

    #[test]
    fn the_largest_numbers_that_kinesis_gives_keep_their_text() {
        for text in
            ["0", "49601189658422359378836298521827638475320189012309704722", "98079714615416886934934209737619787751599303819750539263"]
        {
            assert_eq!(number(text).to_string(), text);
        }
    }

    #[test]
    fn what_is_no_number_is_refused_with_the_text() {
        for text in ["", " 1", "+1", "-1", "1_000", "12a", "LATEST", "0x10", &"9".repeat(90)] {
            let error = text.parse::<SequenceNumber>().unwrap_err();
            assert!(error.to_string().contains(text), "{error}");
        }
    }

    #[test]
    fn within_one_sequence_number_the_sub_sequence_number_decides() {
        let at = |sequence: &str, sub| ExtendedSequenceNumber::new(number(sequence), sub);
        assert!(at("9", 7) < at("10", 0));
        assert!(at("10", 2) < at("10", 10));
        assert_eq!(at("10", 2).to_string(), "10/2");
        assert_eq!(at("10", 0).to_string(), "10");
        assert_eq!(format!("{:?} {:?}", number("10"), at("10", 2)), "10 10/2", "messages show them as they are");
    }

    proptest! {
        #[test]
        fn order_and_text_agree_with_integers(a: u128, b: u128) {
            let (x, y) = (number(&a.to_string()), number(&b.to_string()));
            prop_assert_eq!(x.cmp(&y), a.cmp(&b));
            prop_assert_eq!(x.to_string(), a.to_string());
            prop_assert_eq!(x, SequenceNumber::from(a));
        }
    }
}
