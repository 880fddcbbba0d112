//! What the tasks of a worker run on: the process itself, or a simulated host that can be frozen and killed at any await.

#[cfg(feature = "test-util")]
use crate::test_util::{Power, Powered};

/// See the module.
#[derive(Clone, Debug, Default)]
pub(crate) struct Machine {
    #[cfg(feature = "test-util")]
    power: Option<Power>,
}

impl Machine {
    #[cfg(feature = "test-util")]
    pub(super) fn with(power: Power) -> Self {
        Self { power: Some(power) }
    }

    /// The power of the simulated host, if it is one.
    #[cfg(feature = "test-util")]
    pub(super) fn power(&self) -> Option<&Power> {
        self.power.as_ref()
    }

    /// A task of the runtime that users' code runs on, as it is to be spawned.
    #[cfg(feature = "test-util")]
    pub(crate) fn run<F: Future>(&self, task: F) -> Powered<F> {
        Powered::new(task, self.power.clone())
    }

    /// A task of the runtime that users' code runs on, as it is to be spawned.
    #[cfg(not(feature = "test-util"))]
    #[expect(clippy::unused_self, reason = "there is only the process itself")]
    pub(crate) fn run<F: Future>(&self, task: F) -> F {
        task
    }
}
