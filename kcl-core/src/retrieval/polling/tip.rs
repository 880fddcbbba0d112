//! The tip of a shard, as far as answers without MillisBehindLatest tell.
//!
//! Kinesis says in every answer how far behind it is. Some servers that stand in for it do not, and
//! an empty answer alone proves nothing: there are such on the way to the next record too. Without
//! any evidence of the tip a bounded reading would never end, and a shard's watermark would never
//! move while it is idle. So a row of empty answers counts as evidence, if none of them says how
//! far behind it is.

use std::time::Duration;

use tokio::time::Instant;

/// Empty answers in a row that count as the tip.
const ANSWERS: u32 = 5;
/// The time over which they must have come, at least.
const SPAN: Duration = Duration::from_secs(4);

/// The present row of empty answers.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct SilentTip {
    answers: u32,
    since: Option<Instant>,
}

impl SilentTip {
    /// Notes an answer that came at `now`. `says`: it said how far behind it is. Returns true if
    /// the shard counts as read to its tip although it did not say.
    pub(super) fn answered(&mut self, is_empty: bool, says: bool, now: Instant) -> bool {
        if says || !is_empty {
            *self = Self::default();
            return false;
        }
        self.answers = self.answers.saturating_add(1);
        let since = *self.since.get_or_insert(now);
        self.answers >= ANSWERS && now.duration_since(since) >= SPAN
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_of_empty_answers_over_some_seconds_is_the_tip() {
        let began = Instant::now();
        // (milliseconds, empty, says) => is the tip
        let mut tip = SilentTip::default();
        for (millis, is_empty, says, expected) in [
            (0, true, false, false),
            (1_000, true, false, false),
            (2_000, true, false, false),
            (3_000, true, false, false),
            (3_999, true, false, false),
            (4_000, true, false, true),
            (5_000, true, false, true),
            (5_200, false, false, false),
            (6_200, true, false, false),
            (7_200, true, true, false),
            (60_000, true, false, false),
            (70_000, true, false, false),
            (80_000, true, false, false),
            (90_000, true, false, false),
            (100_000, true, false, true),
        ] {
            let now = began + Duration::from_millis(millis);
            assert_eq!(tip.answered(is_empty, says, now), expected, "after {millis} ms");
        }
    }
}
