//! The pace on a shard whose limits other applications use too.
//!
//! Kinesis allows five reads per second and shard, whoever makes them. A reader that keeps asking
//! at full pace while others are refused takes every read that becomes free, and the others starve,
//! the more so the longer they wait after each refusal. So a refused reader does two things: it
//! asks again soon, however often it was refused, and it reads about once a second for a while
//! afterwards. Readers that do the same share the shard evenly. AWS recommends one read per second
//! to each of several applications, so that five fit. The numbers were found by simulation of two
//! to eight readers, with refused reads that count against the limit and such that do not; intervals
//! are drawn, as readers in step would refuse each other for ever.

use std::time::Duration;

/// The interval between reads after a first refusal.
const SHARED: Duration = Duration::from_millis(1_200);
/// The pause after a first refusal, on top of the least interval between reads.
const PAUSE: Duration = Duration::from_millis(300);
/// The longest interval between reads, and the longest pause: for more applications than fit.
const LONGEST: Duration = Duration::from_secs(2);
/// An interval shorter than this is forgotten: it is hardly above the limit of one reader.
const SHORTEST: Duration = Duration::from_millis(250);

/// The state of one reader. Plain data: draws are given.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Contention {
    interval: Duration,
    refusals: u32,
}

impl Contention {
    /// The shortest time from an answer to the next read, a tenth more or less by `draw` from 0 to 1.
    /// Zero unless the shard is shared.
    pub(super) fn interval(&self, draw: f64) -> Duration {
        self.interval.mul_f64(0.9 + 0.2 * draw.clamp(0.0, 1.0))
    }

    /// Throttled reads in a row.
    pub(super) fn refusals(&self) -> u32 {
        self.refusals
    }

    /// Notes a throttled call. Returns the pause before the next one, by `draw` from 0 to 1: a
    /// quarter of a second and more, and up to two seconds if refusals go on.
    pub(super) fn throttled(&mut self, draw: f64) -> Duration {
        self.interval = if self.interval < SHARED { SHARED } else { (self.interval * 5 / 4).min(LONGEST) };
        let ceiling = (PAUSE + PAUSE * self.refusals.min(32) / 4).min(LONGEST);
        self.refusals = self.refusals.saturating_add(1);
        ceiling.mul_f64(0.8 + 0.2 * draw.clamp(0.0, 1.0))
    }

    /// Notes a read that was answered: the pace recovers by a hundredth.
    pub(super) fn answered(&mut self) {
        self.refusals = 0;
        self.interval = self.interval * 99 / 100;
        if self.interval < SHORTEST {
            self.interval = Duration::ZERO;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refused_reader_asks_again_soon_and_then_reads_less_often() {
        let mut shared = Contention::default();
        assert_eq!((shared.interval(1.0), shared.refusals()), (Duration::ZERO, 0));
        // refusals in a row, draw => pause and interval, in milliseconds
        for (refusals, draw, pause, interval) in
            [(1, 1.0, 300, 1_200), (2, 0.0, 300, 1_500), (3, 1.0, 450, 1_875), (4, 1.0, 525, 2_000), (40, 1.0, 2_000, 2_000)]
        {
            let paused = loop {
                let paused = shared.throttled(draw);
                if shared.refusals() == refusals {
                    break paused;
                }
            };
            assert_eq!((paused.as_millis(), shared.interval(0.5).as_millis()), (pause, interval), "{refusals} refusals");
        }
        assert_eq!((shared.interval(0.0).as_millis(), shared.interval(1.0).as_millis()), (1_800, 2_200));
        shared.answered();
        assert_eq!(shared.refusals(), 0);
        assert_eq!(shared.throttled(1.0).as_millis(), 300, "an answer ends the row");
    }

    #[test]
    fn the_pace_recovers_with_each_answer() {
        let mut shared = Contention::default();
        let _ = shared.throttled(0.0);
        let answers = (1..).find(|_| {
            shared.answered();
            shared.interval(0.5).is_zero()
        });
        assert_eq!(answers, Some(157));
    }
}
