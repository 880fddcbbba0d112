//! Identities of records and of dead letters, and the names derived from them: for queues that drop
//! duplicates, for blobs, and for redrive.
//!
//! A record's identity is its address. A dead letter's is the record *and* its failure: one record may
//! fail, be redriven by a handler, and fail again after its shard was read anew. The second letter
//! must not count as a duplicate of the first, whose message may be gone from the queue already.

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

/// Identity of the record for its application, for two applications may share a queue: the same for
/// every letter about it. 32 hexadecimal digits.
pub(super) fn record_id(letter: &DeadLetter) -> String {
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

/// Identity of the letter: of the record for its application, and of this failure of it. 32
/// hexadecimal digits.
///
/// It is the same however often this letter is sent, and differs for a letter about another failure:
/// by the times of the first and the last failure, the number of attempts, and the term (fencing
/// token). A worker that fails the record anew because its predecessor died before the checkpoint
/// makes another letter: the record is in the queue twice then, and a redrive puts it back once.
pub(super) fn letter_id(letter: &DeadLetter) -> String {
    md5_hex(&format!(
        "{}\n{}\n{}\n{}\n{}",
        record_id(letter),
        letter.fencing_token,
        letter.first_failure.as_millis(),
        letter.last_failure.as_millis(),
        letter.attempts,
    ))
}

/// What keeps its order: one key of one shard. The key is hashed because SQS takes 128 characters of ASCII and shows group ids in places where
/// keys don't belong.
pub(super) fn group_id(letter: &DeadLetter) -> String {
    format!("{}-{}", letter.shard_id, md5_hex(letter.record.partition_key().unwrap_or_default()))
}

/// Name of the letter's payload in a blob store.
///
/// It follows from the letter alone, so that a payload that is stored again takes its own place; and it
/// is no other letter's, so that a redrive that deletes the payload of one never takes that of another.
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
    fn a_letter_is_known_by_its_record_application_and_failure() {
        let one = letter();
        let id = letter_id(&one);
        assert!(id.len() <= 128 && id.bytes().all(|byte| byte.is_ascii_alphanumeric()), "{id}");
        let again = DeadLetter { worker: "another".into(), error_chain: Vec::new(), ..one.clone() };
        assert_eq!((letter_id(&again), blob_key(&again)), (id.clone(), blob_key(&one)));
        for of_another_failure in [
            DeadLetter { attempts: 9, ..one.clone() },
            DeadLetter { fencing_token: 43, ..one.clone() },
            DeadLetter { first_failure: Timestamp::from_millis(1), ..one.clone() },
            DeadLetter { last_failure: Timestamp::from_millis(1), ..one.clone() },
        ] {
            assert_ne!(letter_id(&of_another_failure), id);
            assert_ne!(blob_key(&of_another_failure), blob_key(&one));
            assert_eq!(record_id(&of_another_failure), record_id(&one));
            assert_eq!(RecordAddress::of(&of_another_failure), RecordAddress::of(&one));
        }
        for other in [
            keyed(1, Some("customer-7")),
            DeadLetter { application: "other".into(), ..one.clone() },
            DeadLetter { stream_arn: "other".into(), ..one.clone() },
            DeadLetter { stream_created: Timestamp::from_millis(1), ..one.clone() },
            DeadLetter { shard_id: "other".into(), ..one },
        ] {
            assert_ne!(letter_id(&other), id);
            assert_ne!(record_id(&other), record_id(&letter()));
        }
    }

    #[test]
    fn hashes_are_the_standard_ones() {
        assert_eq!(md5_hex("abc"), "900150983cd24fb0d6963f7d28e17f72");
        assert_eq!(sha256_hex("abc"), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    }
}
