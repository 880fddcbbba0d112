//! How the services are called: one attempt a call, bounded in time.

use std::time::Duration;

use aws_config::retry::RetryConfig;
use aws_config::timeout::TimeoutConfig;
use aws_types::SdkConfig;

/// The configuration with the SDK's retries switched off. Whoever sends retries: with the SDK retrying too, the attempts would multiply and one
/// call would have no bound.
pub(super) fn of_one_attempt(aws: &SdkConfig, timeout: Duration, connect_timeout: Duration) -> SdkConfig {
    let timeouts = TimeoutConfig::builder().operation_timeout(timeout).connect_timeout(connect_timeout).build();
    aws.to_builder().retry_config(RetryConfig::disabled()).timeout_config(timeouts).build()
}
