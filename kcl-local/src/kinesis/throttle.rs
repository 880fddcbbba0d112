//! Limits of throughput, as token buckets in simulated time.

/// A bucket that refills by a second's worth each second and holds at most one second's worth.
///
/// One taking may be larger than what is left, even than the whole bucket: it needs a full bucket or its own size,
/// whichever is less, and leaves a debt. So a 10 MiB record can be written to a 1 MiB/s shard, which then refuses
/// for ten seconds, as the service does.
#[derive(Clone, Debug)]
pub(super) struct TokenBucket {
    per_second: i64,
    /// Thousandths of a token, so that a millisecond's refill is a whole number. Below zero: a debt.
    level: i64,
    refilled_at: u64,
}

impl TokenBucket {
    /// A full bucket.
    pub(super) fn new(per_second: u64, now: u64) -> Self {
        let per_second = i64::try_from(per_second).expect("a limit per second fits in 63 bits");
        Self { per_second, level: per_second * 1_000, refilled_at: now }
    }

    /// Whether `amount` could be taken now.
    pub(super) fn allows(&mut self, amount: u64, now: u64) -> bool {
        self.refill(now);
        let amount = i64::try_from(amount).unwrap_or(i64::MAX).min(self.per_second);
        self.level >= amount * 1_000
    }

    /// When `amount` can be taken: now, or later if nothing is taken meanwhile.
    pub(super) fn allows_at(&mut self, amount: u64, now: u64) -> u64 {
        self.refill(now);
        let amount = i64::try_from(amount).unwrap_or(i64::MAX).min(self.per_second);
        let lacking = u64::try_from(amount * 1_000 - self.level).unwrap_or(0);
        now + lacking.div_ceil(self.per_second.unsigned_abs())
    }

    /// Takes `amount`, whether it is there or not.
    pub(super) fn charge(&mut self, amount: u64, now: u64) {
        self.refill(now);
        let amount = i64::try_from(amount).unwrap_or(i64::MAX).saturating_mul(1_000);
        self.level = self.level.saturating_sub(amount);
    }

    fn refill(&mut self, now: u64) {
        let passed = i64::try_from(now.saturating_sub(self.refilled_at)).unwrap_or(i64::MAX);
        let full = self.per_second * 1_000;
        self.level = self.level.saturating_add(passed.saturating_mul(self.per_second)).min(full);
        self.refilled_at = self.refilled_at.max(now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_s_worth_is_there_at_once_and_comes_back_evenly() {
        let mut bucket = TokenBucket::new(5, 1_000);
        for _ in 0..5 {
            assert!(bucket.allows(1, 1_000));
            bucket.charge(1, 1_000);
        }
        assert!(!bucket.allows(1, 1_199));
        assert!(bucket.allows(1, 1_200));
        bucket.charge(1, 1_200);
        assert!(!bucket.allows(1, 1_399));
        assert_eq!(bucket.allows_at(1, 1_399), 1_400);
        assert_eq!(bucket.allows_at(1, 1_400), 1_400);
    }

    #[test]
    fn what_is_larger_than_the_bucket_leaves_a_debt() {
        let mut bucket = TokenBucket::new(100, 0);
        assert!(bucket.allows(1_000, 0));
        bucket.charge(1_000, 0);
        assert_eq!(bucket.allows_at(1, 0), 9_010);
        assert_eq!(bucket.allows_at(1_000, 0), 10_000);
        assert!(!bucket.allows(1, 9_000));
        assert!(bucket.allows(1, 9_010));
        assert!(!bucket.allows(1_000, 9_999));
        assert!(bucket.allows(1_000, 10_000));
    }
}
