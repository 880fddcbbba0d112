//! Leases that nobody takes: when that is worth a warning.
//!
//! A free lease is left to whoever has fewest leases, and is taken within a round or two. One that
//! stays free for longer is left by all: no worker may own more (`max_leases`), or the others can't
//! take it. Its shard is not read meanwhile, which must not go unsaid.

use std::time::Duration;

/// Lease durations for which leases may be free before that is reported.
const PATIENCE: u32 = 4;

/// Time between two warnings while it lasts.
const REMINDER: Duration = Duration::from_secs(600);

/// A line for the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Line {
    /// This many leases have had no owner for this long: a warning.
    Unowned(usize, Duration),
    /// All leases have owners again, after this long.
    Ended(Duration),
}

/// Follows how many free leases a worker leaves, round by round. Times are boot time.
#[derive(Debug)]
pub(super) struct UnownedLeases {
    patience: Duration,
    since: Option<Duration>,
    last_line: Option<Duration>,
}

impl UnownedLeases {
    /// A watch that begins with everything owned.
    pub(super) fn new(lease_duration: Duration) -> Self {
        Self { patience: lease_duration * PATIENCE, since: None, last_line: None }
    }

    /// Notes that a round left this many free leases; returns the line that this deserves.
    pub(super) fn left(&mut self, leases: usize, now: Duration) -> Option<Line> {
        if leases == 0 {
            let since = self.since.take()?;
            return self.last_line.take().map(|_| Line::Ended(now.saturating_sub(since)));
        }
        let unowned = now.saturating_sub(*self.since.get_or_insert(now));
        let due = match self.last_line {
            None => unowned >= self.patience,
            Some(last) => now.saturating_sub(last) >= REMINDER,
        };
        due.then(|| {
            self.last_line = Some(now);
            Line::Unowned(leases, unowned)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The lines of rounds a second apart, with their seconds.
    fn lines(seconds: u64, left: impl Fn(u64) -> usize) -> Vec<(u64, Line)> {
        let mut watch = UnownedLeases::new(Duration::from_secs(10));
        let line = |second| Some((second, watch.left(left(second), Duration::from_secs(second))?));
        (0..seconds).filter_map(line).collect()
    }

    #[test]
    fn leases_that_are_taken_in_time_are_not_mentioned() {
        assert_eq!(lines(300, |second| usize::from(second % 40 != 0)), []);
    }

    #[test]
    fn leases_that_nobody_takes_are_reported_at_a_slow_pace_and_so_is_the_end() {
        let unowned = |second| Line::Unowned(3, Duration::from_secs(second));
        assert_eq!(
            lines(2_000, |second| if second < 1_300 { 3 } else { 0 }),
            [(40, unowned(40)), (640, unowned(640)), (1_240, unowned(1_240)), (1_300, Line::Ended(Duration::from_secs(1_300))),]
        );
    }
}
