//! The bytes to expect of the next answer, for which its share of the budget is reserved.
//!
//! Any answer may have 10 MiB, but most are far smaller, and a budget that is held for what does not
//! come keeps other shards from reading. Two things bound an answer. A shard that was read to its tip
//! has only what was put since, at the 1 MiB per second that Kinesis takes. And one whose answers
//! have as many records as were asked for gives records like the last ones. Both are bounds by
//! experience: a record of 10 MiB may come at any time. What comes is counted as it is.

use std::time::Duration;

use tokio::time::Instant;

use crate::retrieval::LARGEST_ANSWER;

/// The bytes that a shard takes in a second (AWS limit).
const PUT_PER_SECOND: usize = 1 << 20;
/// The least to expect: records differ, and times are measured here and not where records arrive.
const LEAST: usize = 64 << 10;

/// The last answer.
#[derive(Clone, Copy, Debug)]
pub(super) struct Answered {
    pub(super) bytes: usize,
    /// It had as many records as were asked for.
    pub(super) is_full: bool,
    /// Nothing came after it.
    pub(super) at_tip: bool,
    pub(super) at: Instant,
}

/// The bytes to expect of an answer to a read at `now`.
pub(super) fn expected(last: Option<Answered>, now: Instant) -> usize {
    let Some(Answered { bytes, is_full, at_tip, at }) = last else { return LARGEST_ANSWER };
    let bound = if at_tip {
        put_in(now.duration_since(at))
    } else if is_full {
        bytes.saturating_mul(2)
    } else {
        LARGEST_ANSWER
    };
    bound.saturating_add(LEAST).min(LARGEST_ANSWER)
}

fn put_in(time: Duration) -> usize {
    usize::try_from(time.as_millis()).unwrap_or(usize::MAX).saturating_mul(PUT_PER_SECOND) / 1_000
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_expected_follows_the_last_answer_and_the_time_since() {
        const MIB: usize = 1 << 20;
        assert_eq!(expected(None, Instant::now()), LARGEST_ANSWER, "nothing is known");
        // bytes, full, at the tip, milliseconds since => expected
        for (bytes, is_full, at_tip, millis, bound) in [
            (0, false, true, 0, LEAST),
            (0, false, true, 1_000, MIB + LEAST),
            (5 * MIB, true, true, 1_000, MIB + LEAST),
            (0, false, true, 3_600_000, LARGEST_ANSWER),
            (1_000, true, false, 200, 2_000 + LEAST),
            (1_000, true, false, 3_600_000, 2_000 + LEAST),
            (6 * MIB, true, false, 200, LARGEST_ANSWER),
            (0, false, false, 200, LARGEST_ANSWER),
            (1_000, false, false, 200, LARGEST_ANSWER),
        ] {
            let at = Instant::now();
            let last = Answered { bytes, is_full, at_tip, at };
            let expected = expected(Some(last), at + Duration::from_millis(millis));
            assert_eq!(expected, bound, "{last:?} after {millis} ms");
        }
    }
}
