//! What Kinesis accepts as a partition key and as an explicit hash key, and where a partition key is hashed to.

use md5::{Digest as _, Md5};

use crate::lanes::{Block, LANES, Lanes, State};

/// Longest partition key that Kinesis takes, in characters.
const MAX_PARTITION_KEY_CHARS: usize = 256;
/// Longest partition key of a sub-record that is told, in bytes: four times what Kinesis takes.
///
/// The bound exists because one key is written once and used by any number of sub-records: without
/// it a record made in bad faith could make a million sub-records carry megabytes each.
pub const LONGEST_TOLD_KEY: usize = 4096;
/// 2^128-1 has so many digits. The API's own pattern allows no more either, leading zeros included.
const MAX_HASH_KEY_DIGITS: usize = 39;

/// Returns whether Kinesis accepts this partition key in a put: 1 to 256 Unicode characters
/// (API reference, `PutRecord`).
///
/// A sub-record of an aggregate may have another one: nothing checks keys inside of aggregates.
#[must_use]
pub fn is_valid_partition_key(key: &str) -> bool {
    !key.is_empty() && (key.len() <= MAX_PARTITION_KEY_CHARS || key.chars().nth(MAX_PARTITION_KEY_CHARS).is_none())
}

/// Returns whether a sub-record's partition key is told: text of at most [`LONGEST_TOLD_KEY`] bytes.
pub(crate) fn is_told(key: &[u8]) -> bool {
    key.len() <= LONGEST_TOLD_KEY && std::str::from_utf8(key).is_ok()
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

/// The longest message that is one block of MD5: a mark and eight bytes of length follow it.
const ONE_BLOCK: usize = size_of::<Block>() - 9;

/// Hashes of partition keys, computed side by side; long ones, which are rare, each for itself.
#[derive(Default)]
pub(crate) struct Hashes {
    waiting: Vec<(usize, Block)>,
}

impl Hashes {
    /// Has this key hashed, now or when enough others are there. `known` is told of each key by its number.
    pub(crate) fn push(&mut self, number: usize, key: &[u8], mut known: impl FnMut(usize, u128)) {
        if key.len() > ONE_BLOCK {
            known(number, hash_of_bytes(key));
            return;
        }
        let mut block = [0; size_of::<Block>()];
        block[..key.len()].copy_from_slice(key);
        block[key.len()] = 0x80;
        block[ONE_BLOCK + 1..].copy_from_slice(&(8 * key.len() as u64).to_le_bytes());
        self.waiting.push((number, block));
        if self.waiting.len() == LANES {
            self.finish(known);
        }
    }

    /// Hashes what waits.
    pub(crate) fn finish(&mut self, mut known: impl FnMut(usize, u128)) {
        let Some((_, first)) = self.waiting.first() else { return };
        let mut lanes = Lanes::new();
        // A lane without a key reads what another one reads.
        let blocks = std::array::from_fn(|lane| std::slice::from_ref(self.waiting.get(lane).map_or(first, |(_, block)| block)));
        lanes.compress(&blocks, 1);
        for (lane, (number, _)) in self.waiting.iter().enumerate() {
            known(*number, hash_of_state(lanes.state(lane)));
        }
        self.waiting.clear();
    }
}

fn hash_of_state(state: State) -> u128 {
    state.iter().fold(0, |hash, word| hash << 32 | u128::from(word.swap_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn valid_partition_keys_have_1_to_256_characters() {
        let (one, four) = ("k", "🔑");
        for good in [one.to_owned(), one.repeat(256), four.repeat(256), " ".to_owned()] {
            assert!(is_valid_partition_key(&good), "{} bytes", good.len());
        }
        for bad in [String::new(), one.repeat(257), four.repeat(257)] {
            assert!(!is_valid_partition_key(&bad), "{} bytes", bad.len());
        }
    }

    #[test]
    fn keys_are_told_if_they_are_text_of_bounded_length() {
        let table: [(&[u8], bool); 8] = [
            (b"", true),
            (&[b'k'; LONGEST_TOLD_KEY], true),
            (&[b'k'; LONGEST_TOLD_KEY + 1], false),
            ("🔑".as_bytes(), true),
            (&[b'a', 0xff], false),
            (&[0xed, 0xa0, 0x80], false), // half of a surrogate pair
            (&[0xf0, 0x9f, 0x94], false), // cut off
            (&[0xc0, 0x80], false),       // zero, written too long
        ];
        for (key, expected) in table {
            assert_eq!(is_told(key), expected, "{:02x?}", &key[..key.len().min(4)]);
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
    fn hashes_side_by_side_are_the_same() {
        let keys: Vec<String> = (0..200).map(|length| "k".repeat(length % 70) + &length.to_string()).collect();
        for count in [0, 1, 7, 8, 9, 200] {
            let mut hashes = Hashes::default();
            let mut told = std::collections::BTreeMap::new();
            for (number, key) in keys[..count].iter().enumerate() {
                hashes.push(number, key.as_bytes(), |number, hash| assert_eq!(told.insert(number, hash), None));
            }
            hashes.finish(|number, hash| assert_eq!(told.insert(number, hash), None));
            let expected = keys[..count].iter().map(|key| hash_of(key)).enumerate().collect();
            assert_eq!(told, expected);
        }
    }

    #[test]
    fn a_partition_key_is_hashed_by_md5() {
        // RFC 1321, A.5
        assert_eq!(hash_of(""), 0xd41d_8cd9_8f00_b204_e980_0998_ecf8_427e);
        assert_eq!(hash_of("abc"), 0x9001_5098_3cd2_4fb0_d696_3f7d_28e1_7f72);
    }
}
