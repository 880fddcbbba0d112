//! Time as the libraries see it: boot time for what decides, wall-clock time for what is only told.

use std::time::Duration;

use kcl_checkpoint::Timestamp;

/// Reads the time. Sleeping is not its business: that is `tokio::time`'s.
///
/// # Contract
///
/// [`boot_time`](Self::boot_time) never goes backwards, runs at the rate of true time within 0.2 %, and **goes on while the machine is
/// suspended**: a lease that looks valid after a laptop's sleep or a frozen virtual machine would let two workers
/// process one shard. No property of safety may depend on [`wall_time`](Self::wall_time), which is set and stepped by others.
pub trait Clock: Send + Sync + std::fmt::Debug {
    /// Time since some fixed moment, suspension included.
    fn boot_time(&self) -> Duration;

    /// The wall clock, for messages and for positions in time.
    fn wall_time(&self) -> Timestamp;
}

/// The machine's own clocks: `CLOCK_BOOTTIME` on Linux, the monotonic clock elsewhere.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn boot_time(&self) -> Duration {
        #[cfg(target_os = "linux")]
        const CLOCK: rustix::time::ClockId = rustix::time::ClockId::Boottime;
        #[cfg(not(target_os = "linux"))]
        const CLOCK: rustix::time::ClockId = rustix::time::ClockId::Monotonic;
        let time = rustix::time::clock_gettime(CLOCK);
        Duration::new(u64::try_from(time.tv_sec).unwrap_or(0), u32::try_from(time.tv_nsec).unwrap_or(0))
    }

    fn wall_time(&self) -> Timestamp {
        let time = rustix::time::clock_gettime(rustix::time::ClockId::Realtime);
        whole_millis(u64::try_from(time.tv_sec).unwrap_or(0), u64::try_from(time.tv_nsec).unwrap_or(0))
    }
}

/// The time in the resolution of Kinesis, rounded down.
fn whole_millis(seconds: u64, nanos: u64) -> Timestamp {
    Timestamp::from_millis(seconds * 1000 + nanos / 1_000_000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn boot_time_grows_and_the_wall_clock_is_in_this_century() {
        let (first, second) = (SystemClock.boot_time(), SystemClock.boot_time());
        assert!(Duration::ZERO < first && first <= second);
        let century = Timestamp::from_millis(1_700_000_000_000)..Timestamp::from_millis(4_102_444_800_000);
        assert!(century.contains(&SystemClock.wall_time()));
    }

    #[test]
    fn a_time_is_rounded_down_to_a_millisecond() {
        for (seconds, nanos, millis) in [(0, 0, 0), (0, 999_999, 0), (2, 1_000_000, 2001), (1_700_000_000, 999_999_999, 1_700_000_000_999)]
        {
            assert_eq!(whole_millis(seconds, nanos), Timestamp::from_millis(millis), "{seconds} {nanos}");
        }
    }
}
