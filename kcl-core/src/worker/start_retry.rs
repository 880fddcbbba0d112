//! Repeating the calls that a worker makes before its first round.
//!
//! Fleets start together, often because a service has just recovered, and the services limit these
//! calls for the whole account: DescribeStreamSummary to 20 a second, DescribeTable to 10,
//! RegisterStreamConsumer to 5. A start that gives up after seconds leaves the rest to a supervisor,
//! which starts all of them again at the same moment. So every call is repeated for minutes, with
//! full-jitter backoff; failures that no waiting changes end the start at once.

use std::fmt::Display;
use std::time::Duration;

use kcl_efo::FanOutError;
use kcl_lease::backoff::Backoff;
use kcl_lease::outages::{OutageLedger, Report};
use kcl_lease::{Cause, Entropy, TableError};
use tokio::time::Instant;

use crate::dead_letter::DeadLetterError;
use crate::stream::StreamError;

/// How long a call is repeated unless [`start_patience`](super::WorkerBuilder::start_patience) says
/// otherwise.
pub(crate) const START_PATIENCE: Duration = Duration::from_secs(300);

/// How long a registration is repeated that the stream has no room for. The limit of consumers in
/// creation passes within seconds, the limit of consumers does not.
const ROOM_FOR_A_CONSUMER: Duration = Duration::from_secs(10);

/// The longest first wait. Waits double up to [`LONGEST_WAIT`].
const FIRST_WAIT: Duration = Duration::from_millis(400);
const LONGEST_WAIT: Duration = Duration::from_secs(15);

/// An error of a call that is made before the first round.
pub(crate) trait StartFailure: Display {
    /// Returns the service and the class of the failure.
    fn cause(&self) -> Cause;

    /// Returns how long the call is worth repeating, given the patience of the start. Zero: no
    /// waiting changes this.
    fn patience(&self, start: Duration) -> Duration;
}

impl StartFailure for StreamError {
    fn cause(&self) -> Cause {
        Self::cause(self)
    }

    fn patience(&self, start: Duration) -> Duration {
        if self.is_retryable() { start } else { Duration::ZERO }
    }
}

impl StartFailure for TableError {
    fn cause(&self) -> Cause {
        Self::cause(self)
    }

    fn patience(&self, start: Duration) -> Duration {
        if self.is_retryable() { start } else { Duration::ZERO }
    }
}

impl StartFailure for DeadLetterError {
    fn cause(&self) -> Cause {
        Self::cause(self)
    }

    fn patience(&self, start: Duration) -> Duration {
        if self.is_retryable() { start } else { Duration::ZERO }
    }
}

impl StartFailure for FanOutError {
    fn cause(&self) -> Cause {
        Cause { service: "enhanced fan-out", class: self.class() }
    }

    fn patience(&self, start: Duration) -> Duration {
        match self {
            Self::ConsumerLimit { .. } => start.min(ROOM_FOR_A_CONSUMER),
            error if error.is_retryable() => start,
            _ => Duration::ZERO,
        }
    }
}

/// Repeats calls for a worker that starts.
#[derive(Clone, Debug)]
pub(crate) struct StartRetry {
    patience: Duration,
    entropy: Entropy,
}

impl StartRetry {
    /// Repeats each call for up to `patience`, counted from its first attempt.
    pub(crate) fn new(patience: Duration, entropy: &Entropy) -> Self {
        Self { patience, entropy: entropy.clone() }
    }

    /// The same with less patience.
    pub(crate) fn at_most(&self, patience: Duration) -> Self {
        Self { patience: self.patience.min(patience), entropy: self.entropy.clone() }
    }

    /// Makes the call until it is answered, fails for good, or the patience is over. Logs one line
    /// per cause, one a minute while it lasts, and one when the service answers.
    ///
    /// # Errors
    /// The last attempt's.
    ///
    /// # Cancel safety
    /// As the call's.
    pub(crate) async fn call<T, E: StartFailure, F>(&self, purpose: &'static str, mut call: impl FnMut() -> F) -> Result<T, E>
    where
        F: Future<Output = Result<T, E>>,
    {
        let began = Instant::now();
        let mut backoff = Backoff::new(FIRST_WAIT, LONGEST_WAIT, &self.entropy);
        let mut ledger = OutageLedger::default();
        loop {
            let error = match call().await {
                Ok(answer) => {
                    if backoff.failures() > 0 {
                        let (failures, after) = (backoff.failures(), began.elapsed());
                        tracing::info!(purpose, failures, ?after, "answered; the start goes on");
                    }
                    return Ok(answer);
                }
                Err(error) => error,
            };
            let (elapsed, wait) = (began.elapsed(), backoff.next_wait());
            let patience = error.patience(self.patience);
            if elapsed + wait >= patience {
                return Err(error);
            }
            let Cause { service, class } = error.cause();
            match ledger.failed(error.cause(), purpose, elapsed, &error) {
                Report::Began => tracing::warn!(
                    purpose, service, class, %error, ?patience,
                    "the start waits: the call is repeated"
                ),
                Report::GoesOn(extent) => tracing::warn!(
                    purpose, service, class, %error, failures = extent.failures, ?elapsed, ?patience,
                    "the start still waits: the call is repeated"
                ),
                Report::Known => tracing::debug!(purpose, service, class, %error, ?wait, "again"),
            }
            tokio::time::sleep(wait).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    const OPERATION: &str = "kinesis:DescribeStreamSummary";

    fn throttled() -> StreamError {
        StreamError::Throttled { stream: "orders".into(), operation: OPERATION }
    }

    fn denied() -> StreamError {
        let (stream, message) = ("orders".into(), "no".into());
        StreamError::AccessDenied { stream, operation: OPERATION, message }
    }

    fn limit() -> FanOutError {
        let (consumer, stream) = ("app".into(), "orders".into());
        FanOutError::ConsumerLimit { consumer, stream, message: "20".into() }
    }

    /// Makes a call that fails for this long; returns how often it was made, how long that took,
    /// and whether it ended well.
    async fn tried<E: StartFailure>(seconds: u64, error: impl Fn() -> E) -> (u32, Duration, bool) {
        let retry = StartRetry::new(START_PATIENCE, &Entropy::from_seed(seconds));
        let (began, calls) = (Instant::now(), Cell::new(0));
        let result = retry
            .call("a test", || {
                calls.set(calls.get() + 1);
                let away = began.elapsed() < Duration::from_secs(seconds);
                std::future::ready(if away { Err(error()) } else { Ok(()) })
            })
            .await;
        (calls.get(), began.elapsed(), result.is_ok())
    }

    #[tokio::test(start_paused = true)]
    async fn throttling_of_minutes_is_waited_out_with_few_calls() {
        for seconds in [1, 10, 60, 240] {
            let (calls, took, well) = tried(seconds, throttled).await;
            let late = took.saturating_sub(Duration::from_secs(seconds));
            assert!(well && late < LONGEST_WAIT, "{seconds} s: {took:?}");
            assert!(calls < 60, "{seconds} s: {calls} calls");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_lasts_longer_than_the_patience_is_told() {
        let (_, took, well) = tried(3_600, throttled).await;
        assert!(!well && took < START_PATIENCE && took > START_PATIENCE / 2, "{took:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn what_no_waiting_changes_is_told_at_once() {
        assert_eq!(tried(1, denied).await, (1, Duration::ZERO, false));
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_without_room_for_a_consumer_is_waited_for_some_seconds() {
        let (_, took, well) = tried(2, limit).await;
        assert!(well, "{took:?}");
        let (_, took, well) = tried(60, limit).await;
        assert!(!well && took < ROOM_FOR_A_CONSUMER, "{took:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_fleet_that_fails_together_does_not_call_together() {
        let draw = |seed| Backoff::new(FIRST_WAIT, LONGEST_WAIT, &Entropy::from_seed(seed));
        let second: std::collections::BTreeSet<_> = (0..100).map(|seed| draw(seed).next_wait().as_millis()).collect();
        assert!(second.len() > 50, "{second:?}");
    }
}
