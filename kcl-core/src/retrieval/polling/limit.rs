//! The number of records asked for in a read: fewer after reads that took long and gave nothing.
//!
//! An answer has up to 10 MiB. On a line that can't carry that within the timeout of a read, the
//! same read would time out for ever. So a read that gave no answer after seconds is followed by
//! one of half as many records, down to a single one.

use std::time::Duration;

/// A read that failed after at least this time counts as too large. Shorter failures are refusals
/// and broken connections, which a smaller answer does not avoid.
const SLOW: Duration = Duration::from_secs(2);
/// An answer that took no longer than this leaves room for twice as many records.
const QUICK: Duration = Duration::from_secs(1);

/// The records that the next read asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Limit {
    configured: u32,
    present: u32,
}

impl Limit {
    /// As configured, until reads take too long.
    pub(super) fn new(configured: u32) -> Self {
        Self { configured, present: configured }
    }

    /// The most records to ask for.
    pub(super) fn records(&self) -> u32 {
        self.present
    }

    /// Notes a read that gave no answer within `took`. Returns true if the limit is halved.
    pub(super) fn unanswered(&mut self, took: Duration) -> bool {
        let is_too_large = took >= SLOW && self.present > 1;
        if is_too_large {
            self.present /= 2;
        }
        is_too_large
    }

    /// Notes an answer: one that was full and quick doubles the limit, up to the configured one.
    pub(super) fn answered(&mut self, records: usize, took: Duration) {
        if took <= QUICK && records >= self.present as usize {
            self.present = self.present.saturating_mul(2).min(self.configured);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limit_halves_with_reads_that_time_out_and_grows_back_with_quick_full_answers() {
        enum Read {
            Unanswered(u64),
            Answered(usize, u64),
        }
        use Read::{Answered, Unanswered};
        // limit before, read with milliseconds => limit after
        for (before, read, after) in [
            (10_000, Unanswered(10_000), 5_000),
            (5_000, Unanswered(2_000), 2_500),
            (3, Unanswered(10_000), 1),
            (1, Unanswered(10_000), 1),
            (10_000, Unanswered(1_999), 10_000),
            (100, Answered(100, 1_000), 200),
            (100, Answered(100, 1_001), 100),
            (100, Answered(99, 10), 100),
            (6_000, Answered(6_000, 10), 10_000),
            (1, Answered(1, 10), 2),
            (1, Answered(0, 10), 1),
        ] {
            let mut limit = Limit { configured: 10_000, present: before };
            match read {
                Unanswered(millis) => assert_eq!(limit.unanswered(Duration::from_millis(millis)), after < before),
                Answered(records, millis) => limit.answered(records, Duration::from_millis(millis)),
            }
            assert_eq!(limit.records(), after, "from {before}");
        }
    }
}
