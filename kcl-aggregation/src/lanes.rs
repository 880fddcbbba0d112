//! MD5 of several messages at once: one block of each, in SIMD lanes.
//!
//! MD5 is one chain of dependent steps, so a core computes one digest at some 0.55 GB/s, whoever wrote the code; but it can compute several
//! side by side. There is own code for that because no well-kept crate does it in safe Rust. It is nothing but MD5's compression function
//! (RFC 1321, 3.4); padding and scheduling are in `digests.rs`, and the `md-5` crate is what the tests compare with.
//!
//! Nothing here names an instruction: the compiler makes vectors of the loop over lanes in [`compress_block`]. It does so only while the
//! loop's body is straight: with the lanes inside of each step, or with `map` over the state's words, all stays scalar, and the
//! example `throughput` shows digests that are hardly faster side by side.
//!
//! Eight lanes are two vectors of SSE2, which every x86-64 has, and of NEON: two chains that fill each other's waits and fit into
//! the registers. Measured with SSE2: 4 lanes in one chain 1.5 GB/s, 8 lanes 2.6 GB/s, 16 lanes 1.8 GB/s.

/// How many messages are handled at once.
pub(crate) const LANES: usize = 8;
/// The loop over lanes handles two at a time, this far apart: two chains.
const HALF: usize = LANES / 2;

/// What MD5 handles at a time.
pub(crate) type Block = [u8; 64];
/// MD5's state of one message.
pub(crate) type State = [u32; 4];
/// The state of a message of which nothing was read yet.
pub(crate) const INITIAL: State = [0x6745_2301, 0xefcd_ab89, 0x98ba_dcfe, 0x1032_5476];

/// How far each step rotates, by round.
const ROTATIONS: [[u32; 4]; 4] = [[7, 12, 17, 22], [5, 9, 14, 20], [4, 11, 16, 23], [6, 10, 15, 21]];

/// The table T of RFC 1321, made of sines.
#[rustfmt::skip]
const SINES: [u32; 64] = [
    0xd76a_a478, 0xe8c7_b756, 0x2420_70db, 0xc1bd_ceee, 0xf57c_0faf, 0x4787_c62a, 0xa830_4613, 0xfd46_9501,
    0x6980_98d8, 0x8b44_f7af, 0xffff_5bb1, 0x895c_d7be, 0x6b90_1122, 0xfd98_7193, 0xa679_438e, 0x49b4_0821,
    0xf61e_2562, 0xc040_b340, 0x265e_5a51, 0xe9b6_c7aa, 0xd62f_105d, 0x0244_1453, 0xd8a1_e681, 0xe7d3_fbc8,
    0x21e1_cde6, 0xc337_07d6, 0xf4d5_0d87, 0x455a_14ed, 0xa9e3_e905, 0xfcef_a3f8, 0x676f_02d9, 0x8d2a_4c8a,
    0xfffa_3942, 0x8771_f681, 0x6d9d_6122, 0xfde5_380c, 0xa4be_ea44, 0x4bde_cfa9, 0xf6bb_4b60, 0xbebf_bc70,
    0x289b_7ec6, 0xeaa1_27fa, 0xd4ef_3085, 0x0488_1d05, 0xd9d4_d039, 0xe6db_99e5, 0x1fa2_7cf8, 0xc4ac_5665,
    0xf429_2244, 0x432a_ff97, 0xab94_23a7, 0xfc93_a039, 0x655b_59c3, 0x8f0c_cc92, 0xffef_f47d, 0x8584_5dd1,
    0x6fa8_7e4f, 0xfe2c_e6e0, 0xa301_4314, 0x4e08_11a1, 0xf753_7e82, 0xbd3a_f235, 0x2ad7_d2bb, 0xeb86_d391,
];

/// The states of the messages in all lanes: each of the four words for all lanes side by side.
pub(crate) struct Lanes {
    states: [[u32; LANES]; 4],
}

impl Lanes {
    pub(crate) fn new() -> Self {
        Self { states: INITIAL.map(|word| [word; LANES]) }
    }

    /// Begins a message in a lane.
    pub(crate) fn begin(&mut self, lane: usize) {
        for (words, initial) in self.states.iter_mut().zip(INITIAL) {
            words[lane] = initial;
        }
    }

    pub(crate) fn state(&self, lane: usize) -> State {
        state_of(&self.states, lane)
    }

    /// Reads so many blocks into each lane.
    pub(crate) fn compress(&mut self, blocks: &[&[Block]; LANES], count: usize) {
        for at in 0..count {
            let blocks: [&[[u8; 4]; 16]; LANES] = blocks.map(|blocks| blocks[at].as_chunks().0.first_chunk().expect("sixteen words"));
            let words = std::array::from_fn(|word| std::array::from_fn(|lane| u32::from_le_bytes(blocks[lane][word])));
            compress_block(&mut self.states, &words);
        }
    }
}

/// All 64 steps, written out: see above.
macro_rules! steps {
    ($one:ident, $other:ident, $words:ident, $lane:ident: $($step:literal)*) => {$(
        $one = step::<$step>($one, $words[word_of($step)][$lane]);
        $other = step::<$step>($other, $words[word_of($step)][$lane + HALF]);
    )*};
}

/// One block in each lane. A function of its own, so that nothing around it keeps the compiler from seeing the loop.
#[inline(never)]
fn compress_block(states: &mut [[u32; LANES]; 4], words: &[[u32; LANES]; 16]) {
    for lane in 0..HALF {
        let (mut one, mut other) = (state_of(states, lane), state_of(states, lane + HALF));
        steps!(one, other, words, lane:
            0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25 26 27 28 29 30 31
            32 33 34 35 36 37 38 39 40 41 42 43 44 45 46 47 48 49 50 51 52 53 54 55 56 57 58 59 60 61 62 63);
        for word in 0..4 {
            states[word][lane] = states[word][lane].wrapping_add(one[word]);
            states[word][lane + HALF] = states[word][lane + HALF].wrapping_add(other[word]);
        }
    }
}

#[inline(always)]
fn state_of(states: &[[u32; LANES]; 4], lane: usize) -> State {
    [states[0][lane], states[1][lane], states[2][lane], states[3][lane]]
}

/// Which of the block's words a step reads.
const fn word_of(step: usize) -> usize {
    match step / 16 {
        0 => step % 16,
        1 => (5 * step + 1) % 16,
        2 => (3 * step + 5) % 16,
        _ => 7 * step % 16,
    }
}

#[inline(always)]
fn step<const STEP: usize>([a, b, c, d]: State, word: u32) -> State {
    let mixed = match STEP / 16 {
        0 => d ^ (b & (c ^ d)),
        // No bit is in both: the sum is what RFC 1321 writes as "or".
        1 => (b & d).wrapping_add(c & !d),
        2 => b ^ c ^ d,
        _ => c ^ (b | !d),
    };
    let sum = a.wrapping_add(mixed).wrapping_add(SINES[STEP].wrapping_add(word));
    [d, b.wrapping_add(sum.rotate_left(ROTATIONS[STEP / 16][STEP % 4])), b, c]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_lane_is_the_ordinary_compression_of_its_own_blocks() {
        let mut random = fastrand::Rng::with_seed(5);
        let blocks: [[Block; 3]; LANES] = std::array::from_fn(|_| std::array::from_fn(|_| std::array::from_fn(|_| random.u8(..))));
        let mut lanes = Lanes::new();
        lanes.compress(&blocks.each_ref().map(|blocks| &blocks[..]), 2);
        // One begins anew, and all go on.
        lanes.begin(3);
        lanes.compress(&blocks.each_ref().map(|blocks| &blocks[2..]), 1);
        for (lane, blocks) in blocks.iter().enumerate() {
            let mut state = INITIAL;
            md5::block_api::compress(&mut state, if lane == 3 { &blocks[2..] } else { blocks });
            assert_eq!(lanes.state(lane), state, "{lane}");
        }
    }
}
