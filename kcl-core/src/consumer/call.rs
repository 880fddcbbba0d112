//! Calls into users' code: a panic becomes a failed call.

use std::any::Any;
use std::panic::AssertUnwindSafe;

use futures::FutureExt;

use crate::dead_letter::FailureKind;
use crate::processor::ProcessError;

/// A failed call of a processor.
#[derive(Debug)]
pub(crate) struct CallFailure {
    pub(crate) kind: FailureKind,
    /// The error's words and those of its causes, outermost first.
    pub(crate) chain: Vec<String>,
}

impl CallFailure {
    pub(crate) fn is_poison(&self) -> bool {
        self.kind == FailureKind::Poison
    }

    pub(crate) fn is_panic(&self) -> bool {
        self.kind == FailureKind::Panic
    }
}

impl std::fmt::Display for CallFailure {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{}: {}", self.kind.as_str(), self.chain.join(": "))
    }
}

/// Runs a call. After a panic the processor is in an unknown state: whoever calls makes a new one.
pub(crate) async fn guarded<T>(call: impl Future<Output = Result<T, ProcessError>>) -> Result<T, CallFailure> {
    match AssertUnwindSafe(call).catch_unwind().await {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => {
            Err(CallFailure { kind: if error.is_poison() { FailureKind::Poison } else { FailureKind::Error }, chain: error.chain() })
        }
        Err(panic) => Err(CallFailure { kind: FailureKind::Panic, chain: vec![words_of(panic.as_ref())] }),
    }
}

fn words_of(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(ToString::to_string);
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "a panic without words".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_panic_is_a_failed_call() {
        let failure = guarded::<()>(async { panic!("row {}", 7) }).await.unwrap_err();
        assert!(failure.is_panic());
        assert_eq!(failure.to_string(), "panic: row 7");
        assert_eq!(guarded::<()>(async { Err(ProcessError::poison("bad")) }).await.unwrap_err().to_string(), "poison: bad");
        assert_eq!(guarded(async { Ok(5) }).await.unwrap(), 5);
    }
}
