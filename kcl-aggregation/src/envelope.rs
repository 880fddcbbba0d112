//! The magic number before an aggregate's message and the digest after it.

use std::fmt;

use bytes::{BufMut, Bytes, BytesMut};
use md5::{Digest as _, Md5};

/// The first bytes of each aggregate.
pub const MAGIC: [u8; 4] = [0xF3, 0x89, 0x9A, 0xC2];
/// Length of the MD5 digest at the end.
pub const DIGEST_LEN: usize = 16;
/// What the envelope adds to a message.
pub(crate) const OVERHEAD: usize = MAGIC.len() + DIGEST_LEN;

/// A payload that looks like an aggregate: magic number, a message of at least one byte, and what should be the message's MD5 digest.
///
/// Both rules are the Java library's, whose `AggregatorUtil` delivers everything shorter, and everything whose digest is wrong, as an
/// ordinary record. So a user's own payload that begins with the magic bytes is not mistaken for an aggregate.
///
/// The digest costs more than all else: MD5 is one chain of dependent steps, and no implementation for a single message is much faster
/// than this one. Those of many payloads are checked several times as fast by [`intact`](crate::digests::intact).
#[derive(Clone)]
pub struct Envelope {
    message: Bytes,
    digest: [u8; DIGEST_LEN],
}

impl Envelope {
    /// The envelope of this payload, if it has the shape of one. Nothing is copied but the digest.
    #[must_use]
    pub fn find(payload: &Bytes) -> Option<Self> {
        let (message, digest) = split(payload)?;
        Some(Self { message: payload.slice_ref(message), digest: *digest })
    }

    /// The protobuf message: a part of the payload's own buffer.
    #[must_use]
    pub fn message(&self) -> Bytes {
        self.message.clone()
    }

    /// What the payload says that its message's MD5 digest is.
    #[must_use]
    pub fn digest(&self) -> [u8; DIGEST_LEN] {
        self.digest
    }

    /// Whether the digest is the message's. If not, the payload is no aggregate.
    #[must_use]
    pub fn is_intact(&self) -> bool {
        Md5::digest(&self.message).as_slice() == self.digest
    }
}

/// The message and what should be its digest, if the payload has the shape of an envelope.
pub(crate) fn split(payload: &[u8]) -> Option<(&[u8], &[u8; DIGEST_LEN])> {
    payload.strip_prefix(&MAGIC)?.split_last_chunk().filter(|(message, _)| !message.is_empty())
}

/// The payload of a Kinesis record for this message.
pub(crate) fn seal(message: &[u8]) -> Bytes {
    let mut payload = BytesMut::with_capacity(message.len() + OVERHEAD);
    payload.put_slice(&MAGIC);
    payload.put_slice(message);
    payload.put_slice(&Md5::digest(message));
    payload.freeze()
}

impl fmt::Debug for Envelope {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Envelope").field("message_len", &self.message.len()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sealed_message_is_found_again_without_a_copy() {
        let payload = seal(b"message");
        let envelope = Envelope::find(&payload).unwrap();
        assert!(envelope.is_intact());
        assert_eq!(envelope.message(), &b"message"[..]);
        assert_eq!(envelope.message().as_ptr(), payload[MAGIC.len()..].as_ptr());
    }

    #[test]
    fn what_is_too_short_or_has_no_magic_number_is_none() {
        let sealed = seal(b"");
        for len in 0..=sealed.len() {
            assert!(Envelope::find(&sealed.slice(..len)).is_none(), "{len}");
        }
        let mut other = seal(b"message").to_vec();
        other[3] ^= 1;
        assert!(Envelope::find(&other.into()).is_none());
    }

    #[test]
    fn any_flipped_bit_is_noticed() {
        let sealed = seal(b"a message");
        for bit in 0..sealed.len() * 8 {
            let mut payload = sealed.to_vec();
            payload[bit / 8] ^= 1 << (bit % 8);
            assert!(!Envelope::find(&payload.into()).is_some_and(|envelope| envelope.is_intact()), "{bit}");
        }
    }

    #[test]
    fn debug_output_shows_no_payload() {
        let text = format!("{:?}", Envelope::find(&seal(b"secret")).unwrap());
        assert_eq!(text, "Envelope { message_len: 6, .. }");
    }
}
