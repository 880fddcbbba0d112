//! The rules that a worker's settings must keep, checked before anything is asked of AWS.

use std::fmt::Debug;
use std::ops::RangeInclusive;
use std::time::Duration;

use crate::error::ConfigError;

const SECOND: Duration = Duration::from_secs(1);

/// The lease duration: 1 s to 5 min.
pub(super) const LEASE_DURATION: RangeInclusive<Duration> = SECOND..=Duration::from_secs(300);
/// The handoff timeout: 1 s to 1 h.
pub(super) const HANDOFF_TIMEOUT: RangeInclusive<Duration> = SECOND..=Duration::from_secs(3600);
/// The shutdown timeout: 0 s to 1 h.
pub(super) const SHUTDOWN_TIMEOUT: RangeInclusive<Duration> = Duration::ZERO..=Duration::from_secs(3600);
/// The patience of a start: 0 s to 1 h.
pub(super) const START_PATIENCE: RangeInclusive<Duration> = Duration::ZERO..=Duration::from_secs(3600);
/// The time between two comparisons of shards and leases: 1 s to 1 h.
pub(super) const SHARD_SYNC_INTERVAL: RangeInclusive<Duration> = SECOND..=Duration::from_secs(3600);
/// The time between two automatic checkpoints: 10 ms to 1 h.
pub(super) const CHECKPOINT_INTERVAL: RangeInclusive<Duration> = Duration::from_millis(10)..=Duration::from_secs(3600);
/// Leases of one worker: at least 1.
pub(super) const MAX_LEASES: RangeInclusive<usize> = 1..=usize::MAX;

/// Refuses a value outside of its range.
pub(super) fn within<T: PartialOrd + Debug>(setting: &'static str, value: T, range: &RangeInclusive<T>) -> Result<T, ConfigError> {
    if range.contains(&value) {
        return Ok(value);
    }
    Err(ConfigError::new(setting, value, format!("must be {:?} to {:?}", range.start(), range.end())))
}

/// Refuses a name that is empty, too long, or has other characters than letters, digits, `_`, `.` and `-`.
fn name(setting: &'static str, value: &str, length: &RangeInclusive<usize>) -> Result<(), ConfigError> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte);
    if length.contains(&value.len()) && value.bytes().all(allowed) {
        return Ok(());
    }
    let rule = format!("must have {} to {} characters, each a letter, a digit, `_`, `.` or `-`", length.start(), length.end());
    Err(ConfigError::new(setting, value, rule))
}

/// The application names the lease table, so the rules of DynamoDB's table names hold.
pub(crate) fn table_name(setting: &'static str, value: &str) -> Result<(), ConfigError> {
    name(setting, value, &(3..=255))
}

pub(super) fn worker_name(value: &str) -> Result<(), ConfigError> {
    name("worker_name", value, &(1..=128))
}

/// A stream's name, or its ARN in the configured region.
pub(super) fn stream(value: &str, region: Option<&str>) -> Result<(), ConfigError> {
    if !value.starts_with("arn:") {
        return name("stream", value, &(1..=128));
    }
    let parts: Vec<_> = value.splitn(6, ':').collect();
    let [_, partition, "kinesis", arn_region, account, resource] = parts[..] else {
        return Err(ConfigError::new(
            "stream",
            value,
            "is no ARN of a Kinesis stream: expected arn:aws:kinesis:REGION:ACCOUNT:stream/NAME",
        ));
    };
    let Some(stream) = resource.strip_prefix("stream/").filter(|_| partition.starts_with("aws") && !account.is_empty()) else {
        return Err(ConfigError::new(
            "stream",
            value,
            "is no ARN of a Kinesis stream: expected arn:aws:kinesis:REGION:ACCOUNT:stream/NAME",
        ));
    };
    name("stream", stream, &(1..=128))?;
    match region {
        Some(region) if region != arn_region => {
            Err(ConfigError::new("stream", value, format!("is in region {arn_region}, and the AWS configuration is for {region}")))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_refused_with_the_rule() {
        table_name("application", "orders-app_1.x").unwrap();
        for bad in ["", "ab", "a b c", "größe", "a/b", &"x".repeat(256)] {
            let error = table_name("application", bad).unwrap_err();
            assert!(error.to_string().contains("3 to 255"), "{error}");
        }
        assert!(worker_name("").is_err());
        worker_name("seek-orders").unwrap();
        assert!(worker_name(kcl_lease::seek::SEEKER).is_err(), "no worker can be taken for a seek");
    }

    #[test]
    fn a_stream_is_a_name_or_an_arn_of_the_configured_region() {
        for good in ["orders", "arn:aws:kinesis:eu-west-1:123456789012:stream/orders", "arn:aws-cn:kinesis:eu-west-1:1:stream/a.b"] {
            stream(good, Some("eu-west-1")).unwrap();
        }
        for bad in [
            "",
            "a/b",
            "arn:aws:sqs:eu-west-1:123456789012:orders",
            "arn:aws:kinesis:eu-west-1:123456789012:stream/",
            "arn:aws:kinesis:eu-west-1:123456789012:stream/a/consumer/b:1",
            "arn:aws:kinesis:us-east-1:123456789012:stream/orders",
            "arn:aws:kinesis",
        ] {
            assert!(stream(bad, Some("eu-west-1")).is_err(), "{bad}");
        }
    }

    #[test]
    fn durations_out_of_range_are_refused_by_name() {
        let error = within("lease_duration", Duration::from_millis(10), &LEASE_DURATION).unwrap_err();
        assert_eq!(error.to_string(), "setting `lease_duration` is 10ms: must be 1s to 300s");
    }
}
