//! The opaque texts that callers hand back: shard iterators and the tokens of listings.
//!
//! They hold all that they mean, so the model remembers none of them, and equal calls give equal texts. A checksum
//! tells a text that the model never made, or that was cut.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;

use super::shard::Position;
use super::types::{ShardFilter, ShardFilterType};

/// A place in a shard, given out at a time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ShardIterator {
    pub(super) stream: String,
    /// Which of the streams that had this name.
    pub(super) incarnation: u64,
    pub(super) shard: u32,
    pub(super) position: Position,
    pub(super) issued_at: u64,
}

impl ShardIterator {
    pub(super) fn encode(&self) -> String {
        let mut writer = Writer::new(Kind::ShardIterator);
        writer.number(self.incarnation).number(self.shard.into()).number(self.position).number(self.issued_at);
        writer.text(&self.stream).finish()
    }

    pub(super) fn decode(text: &str) -> Option<Self> {
        let mut reader = Reader::new(Kind::ShardIterator, text)?;
        Some(Self {
            incarnation: reader.number()?,
            shard: reader.number()?.try_into().ok()?,
            position: reader.number()?,
            issued_at: reader.number()?,
            stream: reader.text()?,
        })
    }
}

/// Where a listing of shards goes on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ShardsToken {
    pub(super) stream: String,
    pub(super) incarnation: u64,
    /// The last shard that was listed.
    pub(super) after: u32,
    pub(super) filter: ShardFilter,
    pub(super) issued_at: u64,
}

impl ShardsToken {
    pub(super) fn encode(&self) -> String {
        let mut writer = Writer::new(Kind::Shards);
        let kind = FILTERS.iter().position(|kind| *kind == self.filter.filter_type).expect("all filters are listed");
        writer.number(self.incarnation).number(self.after.into()).number(self.issued_at).number(kind as u64);
        // 0 for none: a shard's id isn't needed again, `after` is beyond it.
        writer.number(self.filter.timestamp.map_or(0, |time| time + 1));
        writer.text(&self.stream).finish()
    }

    pub(super) fn decode(text: &str) -> Option<Self> {
        let mut reader = Reader::new(Kind::Shards, text)?;
        Some(Self {
            incarnation: reader.number()?,
            after: reader.number()?.try_into().ok()?,
            issued_at: reader.number()?,
            filter: ShardFilter {
                filter_type: *FILTERS.get(usize::try_from(reader.number()?).ok()?)?,
                shard_id: None,
                timestamp: reader.number()?.checked_sub(1),
            },
            stream: reader.text()?,
        })
    }
}

/// In the order of their numbers in a token. What comes after a shard is, from then on, what comes after the last
/// one listed: all of them.
const FILTERS: [ShardFilterType; 6] = [
    ShardFilterType::FromTrimHorizon,
    ShardFilterType::AtTrimHorizon,
    ShardFilterType::AtLatest,
    ShardFilterType::AtTimestamp,
    ShardFilterType::FromTimestamp,
    ShardFilterType::AfterShardId,
];

/// Where a listing of consumers goes on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ConsumersToken {
    pub(super) incarnation: u64,
    /// The last consumer that was listed.
    pub(super) after: String,
    pub(super) issued_at: u64,
}

impl ConsumersToken {
    pub(super) fn encode(&self) -> String {
        let mut writer = Writer::new(Kind::Consumers);
        writer.number(self.incarnation).number(self.issued_at).text(&self.after).finish()
    }

    pub(super) fn decode(text: &str) -> Option<Self> {
        let mut reader = Reader::new(Kind::Consumers, text)?;
        Some(Self { incarnation: reader.number()?, issued_at: reader.number()?, after: reader.text()? })
    }
}

/// Where a listing of streams goes on: after this name.
pub(super) fn encode_streams_token(after: &str) -> String {
    Writer::new(Kind::Streams).text(after).finish()
}

/// The name in a token of [`encode_streams_token`].
pub(super) fn decode_streams_token(text: &str) -> Option<String> {
    Reader::new(Kind::Streams, text)?.text()
}

#[derive(Clone, Copy)]
enum Kind {
    ShardIterator = 1,
    Shards = 2,
    Streams = 3,
    Consumers = 4,
}

struct Writer(Vec<u8>);

impl Writer {
    fn new(kind: Kind) -> Self {
        Self(vec![0, kind as u8])
    }

    fn number(&mut self, number: u64) -> &mut Self {
        self.0.extend(number.to_be_bytes());
        self
    }

    /// Comes last.
    fn text(&mut self, text: &str) -> &mut Self {
        self.0.extend(text.as_bytes());
        self
    }

    fn finish(&mut self) -> String {
        let sum = checksum(&self.0);
        self.number(sum);
        BASE64.encode(&self.0)
    }
}

struct Reader {
    bytes: Vec<u8>,
    at: usize,
}

impl Reader {
    fn new(kind: Kind, text: &str) -> Option<Self> {
        let mut bytes = BASE64.decode(text).ok()?;
        let sum = bytes.split_off(bytes.len().checked_sub(8)?);
        let valid = sum == checksum(&bytes).to_be_bytes() && bytes.starts_with(&[0, kind as u8]);
        valid.then_some(Self { bytes, at: 2 })
    }

    fn number(&mut self) -> Option<u64> {
        let bytes = self.bytes.get(self.at..self.at + 8)?;
        self.at += 8;
        Some(u64::from_be_bytes(bytes.try_into().ok()?))
    }

    fn text(self) -> Option<String> {
        String::from_utf8(self.bytes.get(self.at..)?.to_vec()).ok()
    }
}

/// FNV-1a: against mistakes, not against forgery.
fn checksum(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |sum, byte| (sum ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_encoded_comes_back() {
        let iterator = ShardIterator {
            stream: "orders".to_owned(),
            incarnation: 1_790_000_000,
            shard: u32::MAX,
            position: u64::MAX,
            issued_at: 1_790_000_000_123,
        };
        assert_eq!(ShardIterator::decode(&iterator.encode()), Some(iterator));
        for filter_type in FILTERS {
            for timestamp in [None, Some(0), Some(1_790_000_000_123)] {
                let filter = ShardFilter { filter_type, shard_id: None, timestamp };
                let token = ShardsToken { stream: "orders".to_owned(), incarnation: 7, after: 3, filter, issued_at: 9 };
                assert_eq!(ShardsToken::decode(&token.encode()), Some(token));
            }
        }
        let token = ConsumersToken { incarnation: 7, after: "billing".to_owned(), issued_at: 9 };
        assert_eq!(ConsumersToken::decode(&token.encode()), Some(token));
        assert_eq!(decode_streams_token(&encode_streams_token("orders")).as_deref(), Some("orders"));
    }

    #[test]
    fn an_iterator_of_the_longest_name_is_within_the_service_s_512_characters() {
        let iterator = ShardIterator { stream: "x".repeat(128), incarnation: u64::MAX, shard: 0, position: 0, issued_at: 0 };
        assert!(iterator.encode().len() <= 512);
    }

    #[test]
    fn what_was_not_made_here_is_refused() {
        let token = encode_streams_token("orders");
        assert_eq!(ShardIterator::decode(&token), None, "of another kind");
        let mut cut = token.clone();
        cut.truncate(token.len() - 4);
        for text in ["", "AAAA", "no base64", cut.as_str()] {
            assert_eq!(decode_streams_token(text), None, "{text}");
        }
    }
}
