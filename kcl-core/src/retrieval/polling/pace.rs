//! The pace of polling: its settings, and how long to wait after an answer.

use std::time::Duration;

/// Records in one answer, at most: the service's own limit.
const MAX_RECORDS: u32 = 10_000;
/// The service takes five reads per second and shard.
const LEAST_INTERVAL: Duration = Duration::from_millis(200);
/// Well below the five minutes of an iterator's life.
const LONGEST_INTERVAL: Duration = Duration::from_secs(60);
/// The service gives 2 MB per second and shard, and refuses reads after a larger answer until the time for it has passed.
const MAX_BYTES_PER_SECOND: u64 = 2 * 1024 * 1024;
/// The largest answer, 10 MiB, then takes 160 seconds: still below an iterator's life.
const LEAST_BYTES_PER_SECOND: u64 = 64 * 1024;

/// How polling keeps pace with a shard. All applications that poll a stream share its limits: give each a part of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PollingConfig {
    /// Records asked for in one read: 1 to 10,000, which is the default.
    pub max_records: u32,
    /// The time from an answer to the next read while there is more to read: 200 ms to 60 s. By default 200 ms, which keeps to the limit
    /// of five reads per second and shard.
    pub min_interval: Duration,
    /// The time from an empty answer at the tip of a shard to the next read: `min_interval` to 60 s, by default 1 s.
    pub idle_interval: Duration,
    /// Bytes (data and partition keys) to read per second and shard: 65,536 to 2,097,152, the service's limit and the default. A
    /// large answer is followed by the wait that makes up for it. `None`: not limited here; the service throttles.
    pub max_bytes_per_second: Option<u64>,
}

impl Default for PollingConfig {
    fn default() -> Self {
        Self {
            max_records: MAX_RECORDS,
            min_interval: LEAST_INTERVAL,
            idle_interval: Duration::from_secs(1),
            max_bytes_per_second: Some(MAX_BYTES_PER_SECOND),
        }
    }
}

/// A setting of [`PollingConfig`] is out of its range.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("polling setting `{setting}` is {value}; it must be {range}")]
pub struct PollingConfigError {
    /// The setting's name.
    pub setting: &'static str,
    /// Its value.
    pub value: String,
    /// What it must be.
    pub range: String,
}

impl PollingConfig {
    /// Checks each setting against its range.
    ///
    /// # Errors
    /// The first setting that is out of its range.
    pub fn validate(&self) -> Result<(), PollingConfigError> {
        check("max_records", self.max_records, 1, MAX_RECORDS, u32::to_string)?;
        let shown = |duration: &Duration| format!("{duration:?}");
        check("min_interval", self.min_interval, LEAST_INTERVAL, LONGEST_INTERVAL, shown)?;
        check("idle_interval", self.idle_interval, self.min_interval, LONGEST_INTERVAL, shown)?;
        if let Some(rate) = self.max_bytes_per_second {
            check("max_bytes_per_second", rate, LEAST_BYTES_PER_SECOND, MAX_BYTES_PER_SECOND, u64::to_string)?;
        }
        Ok(())
    }

    /// How long to wait after an answer with these records and bytes. `behind`: there is more to read.
    ///
    /// The wait is counted from the answer, not from the request: so the service sees the interval too, however unevenly the network
    /// delays the two.
    pub(super) fn wait_after(&self, bytes: u64, records: usize, behind: bool) -> Duration {
        let interval = if behind || records > 0 { self.min_interval } else { self.idle_interval };
        // In nanoseconds, rounded up: never a little above the limit.
        let paid_off = self.max_bytes_per_second.map_or(0, |rate| (u128::from(bytes) * 1_000_000_000).div_ceil(u128::from(rate.max(1))));
        interval.max(Duration::from_nanos(u64::try_from(paid_off).unwrap_or(u64::MAX)))
    }
}

fn check<T: PartialOrd>(setting: &'static str, value: T, low: T, high: T, shown: impl Fn(&T) -> String) -> Result<(), PollingConfigError> {
    if low <= value && value <= high {
        return Ok(());
    }
    Err(PollingConfigError { setting, value: shown(&value), range: format!("from {} to {}", shown(&low), shown(&high)) })
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1024 * 1024;

    #[test]
    fn the_wait_follows_the_answer() {
        let config = PollingConfig::default();
        let unlimited = PollingConfig { max_bytes_per_second: None, ..PollingConfig::default() };
        let table = [
            (&config, 0, 0, false, 1_000),        // at the tip
            (&config, 0, 0, true, 200),           // an empty answer on the way
            (&config, 100, 1, false, 200),        // where something came, more may come
            (&config, 400 * 1024, 9, true, 200),  // 195 ms worth of bytes
            (&config, MIB, 9, true, 500),         // bytes decide
            (&config, 10 * MIB, 9, true, 5_000),  // the largest answer
            (&config, 10 * MIB, 9, false, 5_000), // even if nothing is left
            (&unlimited, 10 * MIB, 9, true, 200),
        ];
        for (config, bytes, records, behind, millis) in table {
            assert_eq!(config.wait_after(bytes, records, behind), Duration::from_millis(millis), "{bytes} {records} {behind}");
        }
    }

    #[test]
    fn a_setting_out_of_range_is_named_with_its_value_and_range() {
        let config = PollingConfig::default;
        let seconds = Duration::from_secs;
        let table = [
            (PollingConfig { max_records: 0, ..config() }, "`max_records` is 0; it must be from 1 to 10000"),
            (PollingConfig { max_records: 10_001, ..config() }, "`max_records` is 10001"),
            (
                PollingConfig { min_interval: Duration::from_millis(199), ..config() },
                "`min_interval` is 199ms; it must be from 200ms to 60s",
            ),
            (PollingConfig { min_interval: seconds(2), ..config() }, "`idle_interval` is 1s; it must be from 2s to 60s"),
            (PollingConfig { idle_interval: seconds(61), ..config() }, "`idle_interval` is 61s"),
            (PollingConfig { max_bytes_per_second: Some(0), ..config() }, "`max_bytes_per_second` is 0; it must be from 65536 to 2097152"),
            (PollingConfig { max_bytes_per_second: Some(2_097_153), ..config() }, "`max_bytes_per_second` is 2097153"),
        ];
        assert_eq!(config().validate(), Ok(()));
        assert_eq!(PollingConfig { max_bytes_per_second: None, ..config() }.validate(), Ok(()));
        for (config, said) in table {
            let error = config.validate().unwrap_err().to_string();
            assert!(error.contains(said), "{error}");
        }
    }
}
