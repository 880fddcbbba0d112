//! Calls into users' code: a panic, or an overrun of the deadline, becomes a failed call.

use std::any::Any;
use std::panic::AssertUnwindSafe;
use std::time::Duration;

use futures::FutureExt;
use kcl_checkpoint::planted::{Bug, is_planted};

use crate::dead_letter::FailureKind;
use crate::processor::ProcessError;

/// What an error asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Advice {
    /// Another attempt: the world failed.
    Retry,
    /// None: the record is poison.
    Poison,
    /// A stop of the shard.
    Stop,
}

/// A failed call of a processor.
#[derive(Clone, Debug)]
pub(crate) struct CallFailure {
    pub(crate) kind: FailureKind,
    pub(crate) advice: Advice,
    /// The next attempt must not begin before this time has passed.
    pub(crate) retry_after: Option<Duration>,
    /// The type of the user's error, if it was one.
    error_type: Option<&'static str>,
    /// The texts of the error and of its causes, outermost first. Those of users may quote records.
    pub(crate) chain: Vec<String>,
}

impl CallFailure {
    /// A failure that the framework has found, in its own words.
    pub(crate) fn own(kind: FailureKind, advice: Advice, words: String) -> Self {
        Self { kind, advice, retry_after: None, error_type: None, chain: vec![words] }
    }

    /// Returns whether the call has left its processor in an unknown state.
    pub(crate) fn is_fatal_to_processor(&self) -> bool {
        matches!(self.kind, FailureKind::Panic | FailureKind::Overrun)
    }

    /// The failure as it is logged. A user's text may quote a payload, so that it is shown on
    /// request only; else the kind and the error's type are.
    pub(crate) fn shown(&self, with_text: bool) -> String {
        let kind = self.kind.as_str();
        let is_users = self.error_type.is_some() || self.kind == FailureKind::Panic;
        match self.error_type {
            _ if with_text || !is_users => format!("{kind}: {}", self.chain.join(": ")),
            Some(error_type) => format!("{kind} ({error_type})"),
            None => kind.to_owned(),
        }
    }
}

impl From<ProcessError> for CallFailure {
    fn from(error: ProcessError) -> Self {
        let kind = if error.is_poison() { FailureKind::Poison } else { FailureKind::Error };
        Self { kind, advice: error.advice(), retry_after: error.wait(), error_type: error.error_type(), chain: error.chain() }
    }
}

/// Runs an async call of users' code. After a panic or an overrun the processor is in an unknown
/// state: whoever calls makes a new one.
pub(crate) async fn guarded<T>(call: impl Future<Output = Result<T, ProcessError>>, deadline: Option<Duration>) -> Result<T, CallFailure> {
    // A call that overruns is dropped in here: that may panic as well.
    let bounded = async move {
        match deadline {
            None => Ok(call.await),
            Some(deadline) => tokio::time::timeout(deadline, call).await.map_err(|_| deadline),
        }
    };
    match AssertUnwindSafe(bounded).catch_unwind().await {
        Ok(Ok(result)) => result.map_err(CallFailure::from),
        Ok(Err(deadline)) => {
            let words = format!("the call took longer than {deadline:?}, its deadline");
            Err(CallFailure::own(FailureKind::Overrun, Advice::Retry, words))
        }
        Err(panic) => Err(panicked(panic)),
    }
}

/// Runs a blocking call of users' code, on the thread that calls this.
pub(crate) fn guarded_blocking<T>(call: impl FnOnce() -> Result<T, ProcessError>) -> Result<T, CallFailure> {
    match std::panic::catch_unwind(AssertUnwindSafe(call)) {
        Ok(result) => result.map_err(CallFailure::from),
        Err(panic) => Err(panicked(panic)),
    }
}

/// Drops something of the user's. A panic of its `Drop` is logged and ends here.
pub(crate) fn drop_guarded<T>(value: T) {
    if is_planted(Bug::DropPanicEscapes) {
        return drop(value);
    }
    if let Err(panic) = std::panic::catch_unwind(AssertUnwindSafe(|| drop(value))) {
        tracing::error!("a processor has panicked while it was dropped");
        forget_panic(panic);
    }
}

pub(crate) fn panicked(panic: Box<dyn Any + Send>) -> CallFailure {
    let text = panic.downcast_ref::<&str>().map(ToString::to_string);
    let text = text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "a panic without a text".to_owned());
    forget_panic(panic);
    CallFailure::own(FailureKind::Panic, Advice::Retry, text)
}

/// Drops a panic's payload, which may itself panic.
fn forget_panic(panic: Box<dyn Any + Send>) {
    if let Err(another) = std::panic::catch_unwind(AssertUnwindSafe(|| drop(panic))) {
        std::mem::forget(another);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct PanicsInDrop;

    impl Drop for PanicsInDrop {
        fn drop(&mut self) {
            panic!("in drop");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_panic_and_an_overrun_are_failed_calls() {
        let failure = guarded::<()>(async { panic!("row {}", 7) }, None).await.unwrap_err();
        assert!(failure.is_fatal_to_processor());
        assert_eq!(failure.shown(true), "panic: row 7");
        let failure = guarded::<()>(async { Err(ProcessError::poison("bad")) }, None).await.unwrap_err();
        assert_eq!((failure.shown(true).as_str(), failure.is_fatal_to_processor()), ("poison: bad", false));
        let second = Duration::from_secs(1);
        let failure = guarded::<()>(std::future::pending(), Some(second)).await.unwrap_err();
        assert!(failure.is_fatal_to_processor() && failure.shown(false).starts_with("overrun: "), "{failure:?}");
        assert_eq!(guarded(async { Ok(5) }, Some(second)).await.unwrap(), 5);
    }

    #[tokio::test(start_paused = true)]
    async fn a_panic_while_something_is_dropped_ends_here() {
        drop_guarded(PanicsInDrop);
        let held = async {
            let _held = PanicsInDrop;
            std::future::pending().await
        };
        let failure = guarded::<()>(held, Some(Duration::from_secs(1))).await.unwrap_err();
        assert!(failure.is_fatal_to_processor());
        assert!(guarded::<()>(async { std::panic::panic_any(PanicsInDrop) }, None).await.is_err());
        assert_eq!(guarded_blocking::<()>(|| panic!("row 7")).unwrap_err().shown(true), "panic: row 7");
    }

    #[test]
    fn the_text_of_a_users_error_is_shown_on_request_only() {
        let quotes = serde_json::from_str::<u64>("\"4111-1111\"").unwrap_err();
        let failure = CallFailure::from(ProcessError::poison(quotes));
        assert!(failure.shown(true).contains("4111-1111"));
        assert_eq!(failure.shown(false), "poison (serde_json::error::Error)");
        let delivered = Some(kcl_checkpoint::ExtendedSequenceNumber::whole(5u128.into()));
        let refused = kcl_checkpoint::CheckpointError::BeyondDelivered { requested: kcl_checkpoint::Checkpoint::TrimHorizon, delivered };
        let shown = CallFailure::from(ProcessError::retry(refused)).shown(false);
        assert!(shown.contains("beyond what was delivered"), "this library's own words quote nothing: {shown}");
        let panic = guarded_blocking::<()>(|| panic!("4111-1111")).unwrap_err();
        assert_eq!((panic.shown(false), panic.shown(true)), ("panic".to_owned(), "panic: 4111-1111".to_owned()));
    }
}
