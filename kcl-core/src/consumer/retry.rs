//! What follows a failure: another attempt, one record at a time, or the dead-letter queue. A function of plain data.

use std::time::Duration;

use crate::error::ConfigError;

/// How often, and how soon, what failed is tried again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RetryPolicy {
    /// Attempts at one record (or at a batch that can't tell which of its records failed), the first included. 1 to 1,000; default 5.
    pub max_attempts: u32,
    /// The longest wait after a first failure; it doubles with each further one. Each wait is drawn at random up to its limit.
    /// 1 ms to 1 h; default 200 ms.
    pub first_backoff: Duration,
    /// The longest wait at all. `first_backoff` to 1 h; default 10 s.
    pub max_backoff: Duration,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self { max_attempts: 5, first_backoff: Duration::from_millis(200), max_backoff: Duration::from_secs(10) }
    }
}

impl RetryPolicy {
    pub(crate) fn validate(&self) -> Result<(), ConfigError> {
        let hour = Duration::from_secs(3600);
        if !(1..=1000).contains(&self.max_attempts) {
            return Err(ConfigError::new("retry_policy.max_attempts", self.max_attempts, "must be 1 to 1000"));
        }
        if !(Duration::from_millis(1)..=hour).contains(&self.first_backoff) {
            return Err(ConfigError::new("retry_policy.first_backoff", self.first_backoff, "must be 1 ms to 1 h"));
        }
        if !(self.first_backoff..=hour).contains(&self.max_backoff) {
            return Err(ConfigError::new("retry_policy.max_backoff", self.max_backoff, "must be first_backoff to 1 h"));
        }
        Ok(())
    }
}

/// A failed call, as far as the decision needs it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Failed {
    /// Records in the batch; at least 1.
    pub(crate) records: usize,
    /// Index of the record in work, if the processor went through the batch in order.
    pub(crate) in_work: Option<usize>,
    /// Whether the processor said that retries are pointless.
    pub(crate) poison: bool,
    /// Failures before this one that belong to what was at the head of this batch.
    pub(crate) failures_before: u32,
}

/// What follows a failed call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Verdict {
    /// Records at the head of the batch that are done.
    pub(crate) done: usize,
    /// Failures that now belong to what is at the head after those.
    pub(crate) failures: u32,
    /// What happens to it.
    pub(crate) step: Step,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Try again after a wait.
    Retry,
    /// Deliver each of the batch's records alone: one of them fails, and nobody knows which.
    Isolate,
    /// The record at the head goes to the dead-letter queue.
    DeadLetter,
}

pub(crate) fn after_failure(failed: Failed, policy: &RetryPolicy) -> Verdict {
    // A batch of one can't be in doubt about which record failed.
    let culprit = failed.in_work.or((failed.records == 1).then_some(0));
    let done = culprit.unwrap_or(0);
    // Failures of another record say nothing of this one.
    let failures = if done == 0 { failed.failures_before + 1 } else { 1 };
    let exhausted = failed.poison || failures >= policy.max_attempts;
    let step = match (exhausted, culprit) {
        (false, _) => Step::Retry,
        (true, Some(_)) => Step::DeadLetter,
        (true, None) => Step::Isolate,
    };
    Verdict { done, failures: if step == Step::Isolate { 0 } else { failures }, step }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_record_in_work_fails_alone_and_a_batch_in_doubt_is_taken_apart() {
        let policy = RetryPolicy { max_attempts: 3, ..RetryPolicy::default() };
        let verdict = |records, in_work, poison, failures_before| {
            let verdict = after_failure(Failed { records, in_work, poison, failures_before }, &policy);
            (verdict.done, verdict.failures, verdict.step)
        };
        // records, in work, poison, failures before => done, failures, step
        assert_eq!(verdict(9, Some(4), false, 0), (4, 1, Step::Retry));
        assert_eq!(verdict(9, Some(4), false, 2), (4, 1, Step::Retry), "the earlier failures were another record's");
        assert_eq!(verdict(9, Some(0), false, 1), (0, 2, Step::Retry));
        assert_eq!(verdict(9, Some(0), false, 2), (0, 3, Step::DeadLetter));
        assert_eq!(verdict(9, Some(4), true, 0), (4, 1, Step::DeadLetter), "poison needs no second attempt");
        assert_eq!(verdict(9, None, false, 1), (0, 2, Step::Retry));
        assert_eq!(verdict(9, None, false, 2), (0, 0, Step::Isolate));
        assert_eq!(verdict(9, None, true, 0), (0, 0, Step::Isolate), "something is poison, but what");
        assert_eq!(verdict(1, None, false, 1), (0, 2, Step::Retry));
        assert_eq!(verdict(1, None, false, 2), (0, 3, Step::DeadLetter));
        assert_eq!(verdict(1, None, true, 0), (0, 1, Step::DeadLetter));
    }

    #[test]
    fn an_impossible_policy_is_refused_by_name() {
        let sound = RetryPolicy::default();
        sound.validate().unwrap();
        for (policy, setting) in [
            (RetryPolicy { max_attempts: 0, ..sound }, "retry_policy.max_attempts"),
            (RetryPolicy { first_backoff: Duration::ZERO, ..sound }, "retry_policy.first_backoff"),
            (RetryPolicy { max_backoff: Duration::from_millis(1), ..sound }, "retry_policy.max_backoff"),
        ] {
            assert_eq!(policy.validate().unwrap_err().setting, setting);
        }
    }
}
