//! Pacing after failures: exponential backoff with full jitter.
//!
//! Full jitter (a uniform draw between zero and the exponential ceiling) spreads the retries of a fleet that failed together; see
//! "Exponential Backoff And Jitter" in the AWS Architecture Blog. The series of ceilings comes from `backon`.

use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBackoff, ExponentialBuilder};
use kcl_checkpoint::planted::{Bug, is_planted};

use crate::entropy::Entropy;

/// The waits between the attempts of one thing that keeps failing. It never gives up: whoever retries decides when to stop.
#[derive(Debug)]
pub struct Backoff {
    first: Duration,
    ceiling: Duration,
    series: ExponentialBackoff,
    entropy: Entropy,
    failures: u32,
}

impl Backoff {
    /// Waits that double from `first` up to `ceiling`, each drawn between a tenth of its value and its value: never so
    /// close to zero that a persistent error makes a hot loop.
    #[must_use]
    pub fn new(first: Duration, ceiling: Duration, entropy: &Entropy) -> Self {
        Self { first, ceiling, series: Self::series(first, ceiling), entropy: entropy.clone(), failures: 0 }
    }

    /// Counts one more failure and gives the wait before the next attempt.
    #[must_use]
    pub fn next_wait(&mut self) -> Duration {
        self.failures = self.failures.saturating_add(1);
        let high = self.series.next().unwrap_or(self.ceiling);
        if is_planted(Bug::NoBackoff) {
            return Duration::ZERO;
        }
        self.entropy.between(high / 10, high)
    }

    /// Failures since the last success.
    #[must_use]
    pub fn failures(&self) -> u32 {
        self.failures
    }

    /// After a success: the next failure starts from the first wait again.
    pub fn reset(&mut self) {
        if self.failures > 0 {
            self.failures = 0;
            self.series = Self::series(self.first, self.ceiling);
        }
    }

    fn series(first: Duration, ceiling: Duration) -> ExponentialBackoff {
        ExponentialBuilder::default().with_factor(2.0).with_min_delay(first).with_max_delay(ceiling).without_max_times().build()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_the_ceiling_and_start_over_after_a_success() {
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(1), &Entropy::from_seed(1));
        let ceilings = [100, 200, 400, 800, 1000, 1000];
        for ceiling in ceilings.map(Duration::from_millis) {
            let wait = backoff.next_wait();
            assert!(ceiling / 10 <= wait && wait <= ceiling, "{wait:?} for {ceiling:?}");
        }
        assert_eq!(backoff.failures(), 6);
        backoff.reset();
        assert!(backoff.next_wait() <= Duration::from_millis(100));
    }

    #[test]
    fn it_never_gives_up() {
        let mut backoff = Backoff::new(Duration::from_millis(1), Duration::from_secs(1), &Entropy::from_seed(1));
        assert!((0..10_000).all(|_| backoff.next_wait() > Duration::ZERO));
    }
}
