//! Clocks that are wrong: by an offset, by steps, by their rate.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use kcl_checkpoint::Timestamp;
use kcl_lease::Clock;
use tokio::time::Instant;

/// The clock of one machine, over tokio's (paused) time. Clones share it.
///
/// Boot time and wall time are set apart: a step of the wall clock does not move boot time, and boot time that stands still while the
/// machine is suspended is a fault of its own.
#[derive(Clone, Debug)]
pub struct SimulatedClock(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    /// True time at which this part began, and what the clock showed then.
    since: Instant,
    boot: Duration,
    rate: f64,
    /// Wall time less true time, in milliseconds.
    wall_offset: i64,
    /// True wall time at `epoch`.
    epoch: Instant,
    epoch_millis: u64,
    stopped: bool,
}

impl SimulatedClock {
    /// A clock that is right: at this instant the wall clock shows this time, in milliseconds since 1970.
    #[must_use]
    pub fn new(epoch: Instant, epoch_millis: u64) -> Self {
        // A machine has been up for a while.
        let boot = Duration::from_secs(1_000);
        Self(Arc::new(Mutex::new(State { since: epoch, boot, rate: 1.0, wall_offset: 0, epoch, epoch_millis, stopped: false })))
    }

    /// Boot time runs at this rate from now on: 1.002 is 0.2 % too fast, the most that [`Clock`] allows.
    pub fn set_rate(&self, rate: f64) {
        let mut state = self.lock();
        state.settle();
        state.rate = rate;
    }

    /// Sets the wall clock forward, or back, by this many milliseconds.
    pub fn step_wall(&self, millis: i64) {
        self.lock().wall_offset += millis;
    }

    /// Stops boot time, as the monotonic clock of a suspended machine does; or lets it go on. The contract of [`Clock`] forbids it.
    pub fn stop(&self, stopped: bool) {
        let mut state = self.lock();
        state.settle();
        state.stopped = stopped;
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Plain data that no panic leaves half changed.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn boot_time(&self) -> Duration {
        let passed = if self.stopped { Duration::ZERO } else { self.since.elapsed() };
        // A rate of 1 is exact.
        #[expect(clippy::float_cmp, reason = "the value that was set, not a computed one")]
        let passed = if self.rate == 1.0 { passed } else { passed.mul_f64(self.rate) };
        self.boot + passed
    }

    fn settle(&mut self) {
        self.boot = self.boot_time();
        self.since = Instant::now();
    }
}

impl Clock for SimulatedClock {
    fn boot_time(&self) -> Duration {
        self.lock().boot_time()
    }

    fn wall_time(&self) -> Timestamp {
        let state = self.lock();
        let passed = u64::try_from(state.epoch.elapsed().as_millis()).unwrap_or(u64::MAX);
        Timestamp::from_millis((state.epoch_millis + passed).saturating_add_signed(state.wall_offset))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn rate_steps_and_stops_are_apart() {
        let clock = SimulatedClock::new(Instant::now(), 1_000_000);
        let seconds = Duration::from_secs;
        let began = clock.boot_time();
        tokio::time::advance(seconds(10)).await;
        assert_eq!((clock.boot_time() - began, clock.wall_time()), (seconds(10), Timestamp::from_millis(1_010_000)));
        clock.set_rate(0.5);
        clock.step_wall(-5_000);
        tokio::time::advance(seconds(10)).await;
        assert_eq!((clock.boot_time() - began, clock.wall_time()), (seconds(15), Timestamp::from_millis(1_015_000)));
        clock.set_rate(1.0);
        clock.stop(true);
        tokio::time::advance(seconds(10)).await;
        assert_eq!(clock.boot_time() - began, seconds(15));
        clock.stop(false);
        tokio::time::advance(seconds(1)).await;
        assert_eq!(clock.boot_time() - began, seconds(16));
    }
}
