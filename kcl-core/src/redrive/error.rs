//! Reasons for which a run is refused.

use super::filter::FilterError;
use super::target::TargetError;

/// Why a run was not begun. No letter was received.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RedriveError {
    /// No letter can pass the filter.
    #[error("the redrive's filter: {0}")]
    Filter(#[from] FilterError),
    /// The limit allows no record.
    #[error("the redrive's `limit` is 0: it must be 1 or more; a dry run changes nothing")]
    LimitIsZero,
    /// The target takes no record.
    #[error("the redrive's target takes no records: {0}")]
    Target(TargetError),
}
