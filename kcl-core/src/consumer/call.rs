//! Calls into users' code: a panic, or an overrun of the deadline, becomes a failed call.

use std::any::Any;
use std::panic::AssertUnwindSafe;
use std::time::Duration;

use futures::FutureExt;

use crate::dead_letter::FailureKind;
use crate::processor::ProcessError;

/// What an error says should follow it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Advice {
    /// Try again.
    Retry,
    /// The record is poison: don't.
    Poison,
    /// Stop the shard.
    Stop,
}

/// A failed call of a processor.
#[derive(Clone, Debug)]
pub(crate) struct CallFailure {
    pub(crate) kind: FailureKind,
    pub(crate) advice: Advice,
    /// The error's words and those of its causes, outermost first.
    pub(crate) chain: Vec<String>,
}

impl CallFailure {
    /// Whether nobody knows in which state the call has left its processor.
    pub(crate) fn is_fatal_to_processor(&self) -> bool {
        matches!(self.kind, FailureKind::Panic | FailureKind::Overrun)
    }
}

impl From<ProcessError> for CallFailure {
    fn from(error: ProcessError) -> Self {
        let kind = if error.is_poison() { FailureKind::Poison } else { FailureKind::Error };
        Self { kind, advice: error.advice(), chain: error.chain() }
    }
}

impl std::fmt::Display for CallFailure {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{}: {}", self.kind.as_str(), self.chain.join(": "))
    }
}

/// Runs a call. After a panic or an overrun the processor is in an unknown state: whoever calls makes a new one.
pub(crate) async fn guarded<T>(call: impl Future<Output = Result<T, ProcessError>>, deadline: Option<Duration>) -> Result<T, CallFailure> {
    let call = AssertUnwindSafe(call).catch_unwind();
    let ended = match deadline {
        None => call.await,
        Some(deadline) => match tokio::time::timeout(deadline, call).await {
            Ok(ended) => ended,
            Err(_) => {
                let chain = vec![format!("the call took longer than {deadline:?}, the deadline of an attempt")];
                return Err(CallFailure { kind: FailureKind::Overrun, advice: Advice::Retry, chain });
            }
        },
    };
    match ended {
        Ok(result) => result.map_err(CallFailure::from),
        Err(panic) => Err(CallFailure { kind: FailureKind::Panic, advice: Advice::Retry, chain: vec![words_of(panic.as_ref())] }),
    }
}

fn words_of(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(ToString::to_string);
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "a panic without words".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_panic_and_an_overrun_are_failed_calls() {
        let failure = guarded::<()>(async { panic!("row {}", 7) }, None).await.unwrap_err();
        assert!(failure.is_fatal_to_processor());
        assert_eq!(failure.to_string(), "panic: row 7");
        let failure = guarded::<()>(async { Err(ProcessError::poison("bad")) }, None).await.unwrap_err();
        assert_eq!((failure.to_string().as_str(), failure.is_fatal_to_processor()), ("poison: bad", false));
        let second = Duration::from_secs(1);
        let failure = guarded::<()>(std::future::pending(), Some(second)).await.unwrap_err();
        assert!(failure.is_fatal_to_processor() && failure.to_string().starts_with("overrun: "), "{failure}");
        assert_eq!(guarded(async { Ok(5) }, Some(second)).await.unwrap(), 5);
    }
}
