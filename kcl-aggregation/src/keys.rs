//! What Kinesis accepts as a partition key and as an explicit hash key, and where a partition key is hashed to.

use md5::{Digest as _, Md5};

/// Longest partition key, in characters.
const MAX_PARTITION_KEY_CHARS: usize = 256;
/// 2^128-1 has so many digits. The API's own pattern allows no more either, leading zeros included.
const MAX_HASH_KEY_DIGITS: usize = 39;

/// Why something is no partition key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum KeyFault {
    Empty,
    TooLong,
    NotUtf8,
}

/// Whether Kinesis would accept this partition key: 1 to 256 Unicode characters (API reference, `PutRecord`).
pub(crate) fn check_partition_key(key: &[u8]) -> Result<(), KeyFault> {
    if key.is_empty() {
        return Err(KeyFault::Empty);
    }
    let text = std::str::from_utf8(key).map_err(|_| KeyFault::NotUtf8)?;
    if text.len() > MAX_PARTITION_KEY_CHARS && text.chars().nth(MAX_PARTITION_KEY_CHARS).is_some() {
        return Err(KeyFault::TooLong);
    }
    Ok(())
}

/// The number that an explicit hash key's text stands for: decimal digits, from 0 to 2^128-1 (API reference, `PutRecord`).
pub(crate) fn parse_explicit_hash_key(text: &[u8]) -> Option<u128> {
    // The integer parser would take a sign; and no bound on the digits would let one long key cost time for each sub-record that uses it.
    if text.len() > MAX_HASH_KEY_DIGITS || !text.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(text).ok()?.parse().ok()
}

/// The hash key that Kinesis gives to a partition key: its MD5 digest as an integer.
#[must_use]
pub fn hash_of(partition_key: &str) -> u128 {
    hash_of_bytes(partition_key.as_bytes())
}

pub(crate) fn hash_of_bytes(partition_key: &[u8]) -> u128 {
    u128::from_be_bytes(Md5::digest(partition_key).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn partition_keys_have_1_to_256_characters() {
        let (one, four) = ("k", "🔑");
        for good in [one.to_owned(), one.repeat(256), four.repeat(256), " ".to_owned()] {
            assert_eq!(check_partition_key(good.as_bytes()), Ok(()), "{} bytes", good.len());
        }
        let table = [
            (vec![], KeyFault::Empty),
            (one.repeat(257).into_bytes(), KeyFault::TooLong),
            (four.repeat(257).into_bytes(), KeyFault::TooLong),
            (vec![b'a', 0xff], KeyFault::NotUtf8),
            (vec![0xed, 0xa0, 0x80], KeyFault::NotUtf8), // half of a surrogate pair
            (vec![0xf0, 0x9f, 0x94], KeyFault::NotUtf8), // cut off
            (vec![0xc0, 0x80], KeyFault::NotUtf8),       // zero, written too long
        ];
        for (key, fault) in table {
            assert_eq!(check_partition_key(&key), Err(fault), "{:02x?}", &key[..key.len().min(4)]);
        }
    }

    #[test]
    fn explicit_hash_keys_are_numbers_of_128_bits() {
        let table = [
            ("0", Some(0)),
            ("007", Some(7)),
            ("340282366920938463463374607431768211455", Some(u128::MAX)),
            ("340282366920938463463374607431768211456", None),
            ("999999999999999999999999999999999999999", None),
            ("0000000000000000000000000000000000000001", None), // 40 digits
            ("", None),
            ("-1", None),
            ("+1", None),
            (" 1", None),
            ("1 ", None),
            ("0x1f", None),
            ("1e3", None),
            ("१", None), // a digit, but none of ours
        ];
        for (text, expected) in table {
            assert_eq!(parse_explicit_hash_key(text.as_bytes()), expected, "{text}");
        }
        assert_eq!(parse_explicit_hash_key(&[b'1', 0xff]), None);
    }

    #[test]
    fn a_partition_key_is_hashed_by_md5() {
        // RFC 1321, A.5
        assert_eq!(hash_of(""), 0xd41d_8cd9_8f00_b204_e980_0998_ecf8_427e);
        assert_eq!(hash_of("abc"), 0x9001_5098_3cd2_4fb0_d696_3f7d_28e1_7f72);
    }
}
