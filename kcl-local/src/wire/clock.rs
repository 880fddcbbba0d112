//! The machine's clock: the one place of this crate where the time of day comes from.

use std::time::{SystemTime, UNIX_EPOCH};

use crate::kinesis::TimeSource;

/// The time of day as the machine knows it.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct MachineTime;

impl TimeSource for MachineTime {
    // The edge where the time comes from: everything behind it is handed the time through the port.
    #[allow(clippy::disallowed_methods)]
    fn now_millis(&self) -> u64 {
        let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        u64::try_from(since_epoch.as_millis()).unwrap_or(u64::MAX)
    }
}
