//! What makes two letters the same: names derived from a record's address, for queues that drop duplicates, for blobs, and for whoever puts
//! records back.

use kcl_checkpoint::{SequenceNumber, Timestamp};
use md5::{Digest as _, Md5};
use sha2::Sha256;

use super::DeadLetter;

/// A record's address for ever, among all streams there were.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct RecordAddress {
    /// The stream's ARN.
    pub stream_arn: String,
    /// When it was created: a stream deleted and made again under its name is another one.
    pub stream_created: Timestamp,
    /// The shard.
    pub shard_id: String,
    /// The record's number.
    pub sequence_number: SequenceNumber,
    /// Its index among those aggregated under that number.
    pub sub_sequence_number: u64,
}

impl RecordAddress {
    /// The address of a letter's record.
    #[must_use]
    pub fn of(letter: &DeadLetter) -> Self {
        Self {
            stream_arn: letter.stream_arn.clone(),
            stream_created: letter.stream_created,
            shard_id: letter.shard_id.as_str().to_owned(),
            sequence_number: letter.record.sequence_number(),
            sub_sequence_number: letter.record.sub_sequence_number(),
        }
    }
}

/// The letter's identity: the record's address and the application, for two applications may share a queue. 32 hexadecimal digits.
pub(super) fn letter_id(letter: &DeadLetter) -> String {
    md5_hex(&format!(
        "{}\n{}\n{}\n{}\n{}\n{}",
        letter.application,
        letter.stream_arn,
        letter.stream_created.as_millis(),
        letter.shard_id,
        letter.record.sequence_number(),
        letter.record.sub_sequence_number(),
    ))
}

/// What keeps its order: one key of one shard. The key is hashed because SQS takes 128 characters of ASCII and shows group ids in places where
/// keys don't belong.
pub(super) fn group_id(letter: &DeadLetter) -> String {
    format!("{}-{}", letter.shard_id, md5_hex(letter.record.partition_key().unwrap_or_default()))
}

/// The name of the letter's payload in a blob store. It follows from the record alone, so that what is put again takes its own place.
pub(super) fn blob_key(letter: &DeadLetter) -> String {
    format!("{}/{}/{}", letter.application, letter.shard_id, letter_id(letter))
}

/// SHA-256 in 64 hexadecimal digits.
pub(crate) fn sha256_hex(bytes: impl AsRef<[u8]>) -> String {
    hex(&Sha256::digest(bytes))
}

fn md5_hex(text: &str) -> String {
    hex(&Md5::digest(text))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut text, byte| {
        text.push(char::from(b"0123456789abcdef"[usize::from(byte >> 4)]));
        text.push(char::from(b"0123456789abcdef"[usize::from(byte & 15)]));
        text
    })
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use kcl_checkpoint::Timestamp;

    use super::super::envelope::tests::letter;
    use super::*;
    use crate::record::Record;

    fn keyed(number: u128, key: Option<&str>) -> DeadLetter {
        DeadLetter { record: Record::new(number.into(), key.map(Into::into), Bytes::new(), None), ..letter() }
    }

    #[test]
    fn a_group_is_one_key_of_one_shard() {
        assert_eq!(group_id(&keyed(1, Some("a"))), group_id(&keyed(2, Some("a"))));
        assert_ne!(group_id(&keyed(1, Some("a"))), group_id(&keyed(1, Some("b"))));
        assert_ne!(group_id(&keyed(1, Some("a"))), group_id(&DeadLetter { shard_id: "other".into(), ..keyed(1, Some("a")) }));
        assert_eq!(group_id(&keyed(1, None)), "shardId-000000000001-d41d8cd98f00b204e9800998ecf8427e");
        let long = group_id(&keyed(1, Some(&"🦀".repeat(256))));
        assert!(long.len() <= 128 && long.is_ascii(), "{long}");
    }

    #[test]
    fn a_letter_is_known_by_its_record_and_application_alone() {
        let one = letter();
        let id = letter_id(&one);
        assert!(id.len() <= 128 && id.bytes().all(|byte| byte.is_ascii_alphanumeric()), "{id}");
        let again = DeadLetter { attempts: 9, worker: "another".into(), error_chain: Vec::new(), fencing_token: 43, ..one.clone() };
        assert_eq!((letter_id(&again), blob_key(&again)), (id.clone(), blob_key(&one)));
        assert_eq!(RecordAddress::of(&again), RecordAddress::of(&one));
        for other in [
            keyed(1, Some("customer-7")),
            DeadLetter { application: "other".into(), ..one.clone() },
            DeadLetter { stream_arn: "other".into(), ..one.clone() },
            DeadLetter { stream_created: Timestamp::from_millis(1), ..one.clone() },
            DeadLetter { shard_id: "other".into(), ..one },
        ] {
            assert_ne!(letter_id(&other), id);
        }
    }

    #[test]
    fn hashes_are_the_standard_ones() {
        assert_eq!(md5_hex("abc"), "900150983cd24fb0d6963f7d28e17f72");
        assert_eq!(sha256_hex("abc"), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    }
}
