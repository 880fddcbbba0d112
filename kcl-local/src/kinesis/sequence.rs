//! Sequence numbers and shard ids as Kinesis writes them.
//!
//! A sequence number is 186 bits in 47 hexadecimal digits (the published layout of version 2 numbers), from the top:
//!
//! | bits | what |
//! |---|---|
//! | 184..188 | 2 |
//! | 148..184 | the shard's generation: for the service the second it was created in |
//! | 144..148 | 0 here |
//! | 80..144 | the index in the shard: 0 its start, 1 its first record, 2^63-1 its end |
//! | 72..80 | 0 here |
//! | 36..72 | the second of the record's arrival |
//! | 4..36 | the shard's number |
//! | 0..4 | 2, the version |
//!
//! So numbers order by generation, then by index. Indexes give the order in a shard, however many records arrive in
//! one millisecond; generations put every child above all of its parents.

use std::fmt;
use std::str::FromStr;

use ethnum::U256;
use serde::{Serialize, Serializer};

const INDEX_OF_START: u64 = 0;
const INDEX_OF_END: u64 = i64::MAX as u64;
const MASK_36: u64 = (1 << 36) - 1;

/// The sequence number of a record, or of a shard's start or end: 56 decimal digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SequenceNumber(U256);

impl SequenceNumber {
    /// Its upper and lower 128 bits.
    #[must_use]
    pub const fn into_words(self) -> (u128, u128) {
        self.0.into_words()
    }
}

/// What a sequence number is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Parts {
    /// Which incarnation of which shard: no two shards of a model share one but for those of one new stream.
    pub(super) generation: u64,
    /// The index in the shard.
    pub(super) index: u64,
    /// Seconds since the epoch.
    pub(super) second: u64,
    /// The shard's number.
    pub(super) shard: u32,
}

impl Parts {
    pub(super) fn start(generation: u64, shard: u32, second: u64) -> Self {
        Self { generation, index: INDEX_OF_START, second, shard }
    }

    pub(super) fn end(generation: u64, shard: u32, second: u64) -> Self {
        Self { generation, index: INDEX_OF_END, second, shard }
    }

    pub(super) fn encode(self) -> SequenceNumber {
        let high = (2_u128 << 56) | (u128::from(self.generation & MASK_36) << 20) | u128::from(self.index >> 48);
        let low = (u128::from(self.index) << 80) | (u128::from(self.second & MASK_36) << 36) | (u128::from(self.shard) << 4) | 2;
        SequenceNumber(U256::from_words(high, low))
    }

    /// `None` for what is no version 2 number.
    pub(super) fn decode(number: SequenceNumber) -> Option<Self> {
        let (high, low) = number.0.into_words();
        let valid = high >> 56 == 2 && low & 0xf == 2;
        #[expect(clippy::cast_possible_truncation, reason = "each field is masked to its own width")]
        valid.then_some(Self {
            generation: (high >> 20) as u64 & MASK_36,
            index: ((high & 0xffff) as u64) << 48 | (low >> 80) as u64,
            second: (low >> 36) as u64 & MASK_36,
            shard: (low >> 4) as u32,
        })
    }
}

impl fmt::Display for SequenceNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl fmt::Debug for SequenceNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl Serialize for SequenceNumber {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// The text is no sequence number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a sequence number: it isn't 0 or a decimal number without a leading zero and of at most 186 bits")]
pub struct NotASequenceNumber;

impl FromStr for SequenceNumber {
    type Err = NotASequenceNumber;

    fn from_str(text: &str) -> Result<Self, NotASequenceNumber> {
        // The service's pattern: 0|([1-9]\d{0,128}).
        let digits = text.bytes().all(|byte| byte.is_ascii_digit());
        if text.is_empty() || !digits || (text.len() > 1 && text.starts_with('0')) {
            return Err(NotASequenceNumber);
        }
        let number = U256::from_str_radix(text, 10).map_err(|_| NotASequenceNumber)?;
        if number >> 186_u32 == U256::ZERO { Ok(Self(number)) } else { Err(NotASequenceNumber) }
    }
}

/// The id of a shard by its number.
pub(super) fn shard_id(number: u32) -> String {
    format!("shardId-{number:012}")
}

/// The number of a shard by its id; `None` if no shard has such an id.
pub(super) fn shard_number(id: &str) -> Option<u32> {
    let digits = id.strip_prefix("shardId-")?;
    (digits.len() == 12 && digits.bytes().all(|byte| byte.is_ascii_digit())).then(|| digits.parse().ok())?
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A time in 2026.
    const SECOND: u64 = 1_790_000_000;

    #[test]
    fn numbers_are_56_digits_of_186_bits_and_carry_version_and_shard() {
        for shard in [0, 7, u32::MAX] {
            for parts in [
                Parts::start(SECOND, shard, SECOND),
                Parts { generation: SECOND, index: 1, second: SECOND + 1, shard },
                Parts { generation: SECOND, index: 0x0123_4567_89ab_cdef, second: SECOND, shard },
                Parts::end(SECOND, shard, SECOND + 9),
            ] {
                let number = parts.encode();
                let text = number.to_string();
                assert_eq!(text.len(), 56, "{text}");
                assert_eq!(text.parse(), Ok(number));
                assert_eq!(256 - number.0.leading_zeros(), 186);
                assert_eq!(number.0 >> 184_u32, U256::new(2));
                assert_eq!(number.0 & U256::new(0xf), U256::new(2));
                assert_eq!((number.0 >> 4_u32) & U256::new(0xffff_ffff), U256::new(u128::from(shard)));
                assert_eq!(Parts::decode(number), Some(parts));
            }
        }
    }

    #[test]
    fn a_number_of_the_service_reads_as_the_published_layout_says() {
        let number: SequenceNumber = "49601189658422359378836298522902373528957594348623495186".parse().unwrap();
        let parts = Parts::decode(number).unwrap();
        // Of shardId-000000000001, on 2019-11-14.
        assert_eq!((parts.shard, parts.second), (1, 1573691884));
    }

    #[test]
    fn order_is_by_generation_then_index() {
        let number = |generation, index, second| Parts { generation, index, second, shard: 3 }.encode();
        assert!(number(SECOND, 1, SECOND) < number(SECOND, 2, SECOND));
        assert!(number(SECOND, 1 << 50, SECOND + 9) < number(SECOND, (1 << 50) + 1, SECOND));
        assert!(Parts::end(SECOND, 9, SECOND + 100).encode() < Parts::start(SECOND + 1, 0, SECOND).encode());
    }

    #[test]
    fn what_is_no_number_is_refused() {
        let too_large = "9".repeat(57);
        for text in ["", "-1", "01", "TRIM_HORIZON", "1.5", " 1", too_large.as_str()] {
            assert_eq!(text.parse::<SequenceNumber>(), Err(NotASequenceNumber), "{text}");
        }
        assert_eq!(Parts::decode("0".parse().unwrap()), None);
        assert_eq!(Parts::decode("17".parse().unwrap()), None);
    }

    #[test]
    fn shard_ids_have_twelve_digits() {
        assert_eq!(shard_id(12), "shardId-000000000012");
        assert_eq!(shard_number("shardId-000000000012"), Some(12));
        for id in ["shardId-12", "shard-000000000012", "shardId-00000000001x", "shardId-999999999999", ""] {
            assert_eq!(shard_number(id), None, "{id}");
        }
    }
}
