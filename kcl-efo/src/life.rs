//! The life of one shard's subscriptions as plain data: where the next one starts, when, and what an end means for it.
//!
//! There is one subscription at a time, each with a generation of its own. What is told of another generation than the present one is
//! not taken in: an event that comes late from a subscription that was given up would repeat records, or move the position
//! back. Within a subscription the position never goes back either, and no record is given twice, whatever the service repeats.

use std::time::Duration;

use kcl_checkpoint::planted::{Bug, is_planted};
use kcl_checkpoint::{SequenceNumber, StartingPosition};
use tokio::time::Instant;

use crate::error::FanOutError;

/// How long the service lets a subscription live, less a margin. One that ends in order before may have been taken over.
const EXPECTED_LIFE: Duration = Duration::from_secs(290);
/// A subscription that lived this long, or gave something new, was a success: what comes after is no continued failure.
const PROOF_OF_LIFE: Duration = Duration::from_secs(5);
/// Of one whose place was taken, only this long a life is: two readers that take turns would make progress each time.
const LONG_LIFE: Duration = Duration::from_secs(60);

/// How an attempt, or a subscription, came to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// In order.
    Ended,
    /// Refused because another one is too young; or another one has taken its place.
    InUse,
    /// The consumer is still being made.
    NotReady,
    /// Over a rate of the service.
    Throttled,
    /// No answer, a broken connection, silence.
    Broken,
    /// Nothing that passes by itself.
    Hopeless,
}

impl From<&FanOutError> for End {
    fn from(error: &FanOutError) -> Self {
        match error {
            FanOutError::InUse { .. } => Self::InUse,
            FanOutError::ConsumerCreating { .. } => Self::NotReady,
            FanOutError::Throttled { .. } | FanOutError::ConsumerLimit { .. } => Self::Throttled,
            FanOutError::Unavailable { .. } | FanOutError::Silent(_) => Self::Broken,
            _ => Self::Hopeless,
        }
    }
}

impl End {
    /// The ceilings of the first and of the longest wait. Reading goes on by polling meanwhile, if that is allowed.
    fn waits(self) -> (Duration, Duration) {
        let (first, longest) = match self {
            Self::Ended | Self::Broken => (200, 30_000),
            // The other one is younger than five seconds, or has the shard for good.
            Self::InUse => (1_000, 8_000),
            Self::NotReady => (1_000, 5_000),
            Self::Throttled => (1_000, 16_000),
            Self::Hopeless => (1_000, 30_000),
        };
        (Duration::from_millis(first), Duration::from_millis(longest))
    }
}

/// What an event says about the position.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Mark {
    pub(crate) continuation: Option<SequenceNumber>,
    pub(crate) last_record: Option<SequenceNumber>,
    /// It names the shard's children: nothing comes after it.
    pub(crate) end_of_shard: bool,
}

/// The next attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Attempt {
    pub(crate) generation: u64,
    pub(crate) start: StartingPosition,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// No subscription, and no attempt at one before this time.
    Between(Option<Instant>),
    Opening,
    Live {
        since: Instant,
        progressed: bool,
    },
    /// The shard has ended.
    Over,
}

/// See the module.
#[derive(Clone, Debug)]
pub(crate) struct Life {
    position: StartingPosition,
    /// The last record given.
    last_record: Option<SequenceNumber>,
    generation: u64,
    phase: Phase,
    failures: u32,
    look: bool,
}

impl Life {
    pub(crate) fn new(start: StartingPosition) -> Self {
        let last_record = match start {
            StartingPosition::AfterSequenceNumber(number) => Some(number),
            _ => None,
        };
        Self { position: start, last_record, generation: 0, phase: Phase::Between(None), failures: 0, look: false }
    }

    /// No first attempt before this time.
    pub(crate) fn hold_until(&mut self, time: Instant) {
        self.phase = Phase::Between(Some(time));
    }

    /// Where the next record to give is.
    pub(crate) fn position(&self) -> StartingPosition {
        self.position
    }

    /// Attempts and subscriptions in a row that came to nothing.
    pub(crate) fn failures(&self) -> u32 {
        self.failures
    }

    /// No attempt before this time.
    pub(crate) fn not_before(&self) -> Option<Instant> {
        match self.phase {
            Phase::Between(not_before) => not_before,
            _ => None,
        }
    }

    /// Whether the lease table has to be asked who owns the shard before the next attempt.
    pub(crate) fn must_look(&self) -> bool {
        self.look
    }

    /// An attempt is made now. Whatever was before it is given up.
    pub(crate) fn begin(&mut self) -> Attempt {
        self.generation += 1;
        (self.phase, self.look) = (Phase::Opening, false);
        let is_renewal = self.generation > 1 && !matches!(self.position, StartingPosition::AfterSequenceNumber(_));
        let start = if is_renewal && is_planted(Bug::StartsAtLatest) { StartingPosition::Latest } else { self.position };
        Attempt { generation: self.generation, start }
    }

    /// The attempt was accepted. `false`: it is not the present one.
    pub(crate) fn opened(&mut self, generation: u64, now: Instant) -> bool {
        let present = generation == self.generation && self.phase == Phase::Opening;
        if present {
            self.phase = Phase::Live { since: now, progressed: false };
        }
        present
    }

    /// Returns true for a record that was given before, or one before it: the service repeats itself.
    pub(crate) fn is_repeated(&self, record: SequenceNumber) -> bool {
        self.last_record.is_some_and(|last| record <= last) && !is_planted(Bug::StaleEventAccepted)
    }

    /// An event came. `false`: it is of another subscription than the present one, and must be dropped.
    pub(crate) fn event(&mut self, generation: u64, mark: Mark) -> bool {
        let Phase::Live { since, progressed } = self.phase else { return false };
        if generation != self.generation {
            return false;
        }
        let before = self.position;
        // The last record's number is as good where a server leaves the continuation out, or gives an old one.
        if let Some(number) = mark.continuation.max(mark.last_record) {
            self.go_on_after(number);
        }
        self.last_record = self.last_record.max(mark.last_record);
        let progressed = progressed || mark.last_record.is_some() || self.position != before;
        self.phase = if mark.end_of_shard { Phase::Over } else { Phase::Live { since, progressed } };
        true
    }

    /// Records up to this one were read in another way while there was no subscription.
    pub(crate) fn advance(&mut self, last_record: SequenceNumber) {
        debug_assert!(matches!(self.phase, Phase::Between(_)), "nothing else is read while a subscription is made or lives");
        self.go_on_after(last_record);
        self.last_record = self.last_record.max(Some(last_record));
    }

    /// Moves the position to after this number, unless that is back.
    fn go_on_after(&mut self, number: SequenceNumber) {
        let is_back = match self.position {
            StartingPosition::AfterSequenceNumber(present) | StartingPosition::AtSequenceNumber(present) => number < present,
            _ => false,
        };
        if !is_back || is_planted(Bug::StaleEventAccepted) {
            self.position = StartingPosition::AfterSequenceNumber(number);
        }
    }

    /// The attempt or the subscription is over. `jitter` from 0 to 1. `false`: it is not the present one.
    pub(crate) fn over(&mut self, generation: u64, end: End, now: Instant, jitter: f64) -> bool {
        let age = match self.phase {
            Phase::Opening => None,
            Phase::Live { since, progressed } => Some((now - since, progressed)),
            Phase::Between(_) | Phase::Over => return false,
        };
        if generation != self.generation {
            return false;
        }
        if let Some((age, progressed)) = age
            && (if end == End::InUse { age >= LONG_LIFE } else { progressed || age >= PROOF_OF_LIFE })
        {
            self.failures = 0;
        }
        self.look |= match end {
            End::InUse => true,
            End::Ended => age.is_none_or(|(age, _)| age < EXPECTED_LIFE),
            _ => false,
        };
        self.wait(end, age.is_some(), now, jitter);
        true
    }

    /// No attempt could be made.
    pub(crate) fn hindered(&mut self, end: End, now: Instant, jitter: f64) {
        self.wait(end, false, now, jitter);
    }

    fn wait(&mut self, end: End, lived: bool, now: Instant, jitter: f64) {
        if end == End::Ended && lived && self.failures == 0 {
            // Renewal. Should it come to nothing, it is the first failure; so that a service that accepts and ends is asked ever
            // more seldom.
            self.failures = 1;
            self.phase = Phase::Between(None);
            return;
        }
        self.failures = self.failures.saturating_add(1);
        let (first, longest) = end.waits();
        let ceiling = first.saturating_mul(1 << (self.failures - 1).min(16)).min(longest);
        // Full jitter above a floor: never so close to zero that a persistent error makes a hot loop.
        let wait = ceiling / 10 + (ceiling - ceiling / 10).mul_f64(jitter.clamp(0.0, 1.0));
        self.phase = Phase::Between(Some(now + wait));
    }
}

#[cfg(test)]
#[path = "life/tests.rs"]
mod tests;
