//! The safety valve: a shard most of whose records fail stops, instead of draining the stream into the dead-letter queue.

use std::collections::VecDeque;

use crate::dead_letter::FailureKind;
use crate::error::ConfigError;

/// When a shard stops because too many of its records go to the dead-letter queue.
///
/// Records that count are those that the processor calls poison, those that were given up although
/// others succeed or after their patience, and broken aggregates. What fails because something that
/// the processor needs is away stays in the shard, and does not come here: see
/// [`RetryPolicy`](crate::RetryPolicy). So many records are refused most often because the program
/// is broken, not because all are bad. The shard then stops with
/// [`ShardState::StoppedBySafetyValve`](crate::ShardState::StoppedBySafetyValve). The stop stands in
/// the lease: it lasts over restarts and other owners, until it is ended by
/// [`resume_shard`](crate::WorkerHandle::resume_shard) in the process that owns the shard, or by
/// [`Stops`](crate::stops::Stops) from any other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SafetyValve {
    /// Of so many records finished last, by shard and term. 10 to 10,000; default 100.
    pub window: usize,
    /// At most so many may be dead letters. 1 up to the window; default 50.
    pub most: usize,
}

impl Default for SafetyValve {
    fn default() -> Self {
        Self { window: 100, most: 50 }
    }
}

impl SafetyValve {
    pub(crate) fn validate(&self) -> Result<(), ConfigError> {
        if !(10..=10_000).contains(&self.window) {
            return Err(ConfigError::new("safety_valve.window", self.window, "must be 10 to 10000"));
        }
        if !(1..=self.window).contains(&self.most) {
            return Err(ConfigError::new("safety_valve.most", self.most, "must be 1 up to the window"));
        }
        Ok(())
    }
}

/// The records finished last, and which of them were dead letters.
#[derive(Debug)]
pub(super) struct Valve {
    settings: Option<SafetyValve>,
    recent: VecDeque<bool>,
    dead: usize,
}

impl Valve {
    /// `None`: it never closes.
    pub(super) fn new(settings: Option<SafetyValve>) -> Self {
        Self { settings, recent: VecDeque::new(), dead: 0 }
    }

    /// Returns whether a dead letter of this kind counts: one that only follows another one of its
    /// key says nothing new of the program.
    pub(super) fn counts(kind: FailureKind) -> bool {
        kind != FailureKind::Follows
    }

    /// How many more dead letters there may be now.
    pub(super) fn room(&self) -> usize {
        self.settings.map_or(usize::MAX, |settings| settings.most.saturating_sub(self.dead))
    }

    /// A record is finished.
    pub(super) fn finished(&mut self, dead: bool) {
        let Some(settings) = self.settings else { return };
        self.dead += usize::from(dead);
        self.recent.push_back(dead);
        if self.recent.len() > settings.window {
            self.dead -= usize::from(self.recent.pop_front() == Some(true));
        }
    }

    /// Begins to count anew.
    pub(super) fn reset(&mut self) {
        self.recent.clear();
        self.dead = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_closes_when_too_many_of_the_last_records_were_dead_letters() {
        let mut valve = Valve::new(Some(SafetyValve { window: 10, most: 3 }));
        for dead in [true, false, true, false] {
            valve.finished(dead);
        }
        assert_eq!(valve.room(), 1);
        valve.finished(true);
        assert_eq!(valve.room(), 0);
        (0..5).for_each(|_| valve.finished(false));
        assert_eq!(valve.room(), 0, "ten records, three of them dead");
        valve.finished(false);
        assert_eq!(valve.room(), 1, "the first is out of the window");
        valve.reset();
        assert_eq!(valve.room(), 3);
    }

    #[test]
    fn a_dead_letter_that_only_follows_another_one_does_not_count() {
        let silent: Vec<_> = FailureKind::ALL.into_iter().filter(|kind| !Valve::counts(*kind)).collect();
        assert_eq!(silent, [FailureKind::Follows]);
    }

    #[test]
    fn without_settings_it_never_closes() {
        let mut valve = Valve::new(None);
        (0..1000).for_each(|_| valve.finished(true));
        assert_eq!(valve.room(), usize::MAX);
    }

    #[test]
    fn impossible_settings_are_refused_by_name() {
        SafetyValve::default().validate().unwrap();
        assert_eq!(SafetyValve { window: 1, most: 1 }.validate().unwrap_err().setting, "safety_valve.window");
        assert_eq!(SafetyValve { window: 10, most: 11 }.validate().unwrap_err().setting, "safety_valve.most");
        assert_eq!(SafetyValve { window: 10, most: 0 }.validate().unwrap_err().setting, "safety_valve.most");
    }
}
