//! Which of many payloads are aggregates whose digest is right: digests computed side by side.
//!
//! The digest is what taking an aggregate apart costs: one at a time it runs at some 0.55 GB/s, everything else several times as fast.
//! An answer of `GetRecords` holds many aggregates, so their digests are computed in the lanes of SIMD registers (`lanes.rs`).
//!
//! The longest messages come first, and each lane takes the next one as soon as it is done. So all lanes are busy until no message
//! waits any more, and the last ones are short. A lane without a message is merely idle: two messages in eight lanes still
//! take less time than one after the other. One that is alone goes through the `md-5` crate.

use bytes::Bytes;
use md5::block_api;

use crate::envelope::{self, DIGEST_LEN};
use crate::lanes::{Block, LANES, Lanes, State};

/// Says for each payload whether it is an [`Envelope`](crate::Envelope) that is intact. The same as to find and to check each, but several
/// times as fast if there are many.
///
/// Takes an index and a byte of memory per payload, whatever is in them.
#[must_use]
pub fn intact(payloads: &[Bytes]) -> Vec<bool> {
    let mut intact = vec![false; payloads.len()];
    let mut waiting: Vec<usize> = (0..payloads.len()).filter(|index| envelope::split(&payloads[*index]).is_some()).collect();
    // Taken from the end.
    waiting.sort_unstable_by_key(|index| payloads[*index].len());
    let mut next = || {
        let index = waiting.pop()?;
        envelope::split(&payloads[index]).map(|(message, digest)| Message::new(index, message, *digest))
    };

    let mut lanes = Lanes::new();
    let mut messages: [Option<Message<'_>>; LANES] = std::array::from_fn(|_| next());
    loop {
        let mut in_work = messages.iter().flatten();
        let (Some(first), Some(_)) = (in_work.next(), in_work.next()) else { break };
        // A lane without a message reads what another one reads; nobody asks for its state.
        let blocks = messages.each_ref().map(|message| message.as_ref().unwrap_or(first).blocks());
        let count = blocks.iter().map(|blocks| blocks.len()).min().unwrap_or_default();
        lanes.compress(&blocks, count);
        for (lane, slot) in messages.iter_mut().enumerate() {
            if let Some(message) = slot
                && message.advance(count)
            {
                intact[message.index] = message.is_intact(lanes.state(lane));
                lanes.begin(lane);
                *slot = next();
            }
        }
    }
    // No message waits any more, and at most one is in work.
    for (lane, message) in messages.into_iter().enumerate() {
        if let Some(message) = message {
            intact[message.index] = message.finish(lanes.state(lane));
        }
    }
    intact
}

/// A message in work.
struct Message<'a> {
    /// Which payload it is of.
    index: usize,
    /// What is left of its whole blocks.
    body: &'a [Block],
    /// What comes after the whole blocks, with MD5's padding: one block, the second, or two.
    end: [Block; 2],
    /// How many blocks of the end are done or empty.
    end_done: usize,
    /// What the digest must be.
    digest: State,
}

impl<'a> Message<'a> {
    fn new(index: usize, message: &'a [u8], digest: [u8; DIGEST_LEN]) -> Self {
        let (body, rest) = message.as_chunks();
        let mut end = [[0; size_of::<Block>()]; 2];
        let bytes = end.as_flattened_mut();
        let bits = 8 * message.len() as u64;
        let bits_at = bytes.len() - size_of_val(&bits);
        bytes[bits_at..].copy_from_slice(&bits.to_le_bytes());
        // The mark after the message and the length go into one block if there is room.
        let end_done = usize::from(size_of::<Block>() + rest.len() < bits_at);
        let padded = &mut bytes[end_done * size_of::<Block>()..];
        padded[..rest.len()].copy_from_slice(rest);
        padded[rest.len()] = 0x80;
        let words = digest.as_chunks().0;
        Self { index, body, end, end_done, digest: std::array::from_fn(|word| u32::from_le_bytes(words[word])) }
    }

    /// Some of the blocks that are left, or none if it is done.
    fn blocks(&self) -> &[Block] {
        if self.body.is_empty() { &self.end[self.end_done..] } else { self.body }
    }

    /// Goes on by so many of [`blocks`](Self::blocks); says whether that was all.
    fn advance(&mut self, count: usize) -> bool {
        if self.body.is_empty() {
            self.end_done += count;
        } else {
            self.body = &self.body[count..];
        }
        self.end_done == self.end.len()
    }

    /// Reads what is left alone; says whether the digest is right.
    fn finish(&self, mut state: State) -> bool {
        block_api::compress(&mut state, self.body);
        block_api::compress(&mut state, &self.end[self.end_done..]);
        self.is_intact(state)
    }

    /// Whether the state at the end is what the digest says.
    fn is_intact(&self, state: State) -> bool {
        state == self.digest
    }
}
