//! One consumer of a stream: its state, and which of its subscriptions is the current one of each shard.

use std::collections::BTreeMap;

use super::config::SUBSCRIBES_PER_SECOND;
use super::throttle::TokenBucket;
use super::types::{Consumer, ConsumerStatus, SubscriptionId};

/// Keeps the ARNs of consumers apart, which end in the second of registration: a new consumer's second is above those
/// of all that were deregistered, in whatever stream.
#[derive(Debug, Default)]
pub(super) struct RetiredSeconds(u64);

impl RetiredSeconds {
    /// The second of a consumer that is registered now.
    pub(super) fn next(&self, now: u64) -> u64 {
        (now / 1_000).max(self.0 + 1)
    }

    fn retire(&mut self, second: u64) {
        self.0 = self.0.max(second);
    }
}

/// What a consumer is doing, and until when.
#[derive(Debug)]
enum State {
    Creating { until: u64 },
    Active,
    Deleting { until: u64 },
}

/// The last subscription to a shard that was begun, whether it still lasts or not.
#[derive(Clone, Copy, Debug)]
pub(super) struct Begun {
    pub(super) id: SubscriptionId,
    pub(super) at: u64,
}

pub(super) struct StreamConsumer {
    pub(super) arn: String,
    second: u64,
    created_at: u64,
    state: State,
    /// Calls of SubscribeToShard.
    pub(super) calls: TokenBucket,
    /// By shard.
    pub(super) begun: BTreeMap<u32, Begun>,
}

impl StreamConsumer {
    /// A consumer that is ACTIVE from `until`. Its ARN is the prefix and the second.
    pub(super) fn new(arn_prefix: &str, second: u64, until: u64, now: u64) -> Self {
        Self {
            arn: format!("{arn_prefix}:{second}"),
            second,
            created_at: now,
            state: State::Creating { until },
            calls: TokenBucket::new(SUBSCRIBES_PER_SECOND, now),
            begun: BTreeMap::new(),
        }
    }

    pub(super) fn status(&self) -> ConsumerStatus {
        match self.state {
            State::Creating { .. } => ConsumerStatus::Creating,
            State::Active => ConsumerStatus::Active,
            State::Deleting { .. } => ConsumerStatus::Deleting,
        }
    }

    /// Does what is due. Whether anything was.
    pub(super) fn settle(&mut self, now: u64) -> bool {
        let due = matches!(self.state, State::Creating { until } if until <= now);
        if due {
            self.state = State::Active;
        }
        due
    }

    /// When the state next changes by itself.
    pub(super) fn due(&self) -> Option<u64> {
        match self.state {
            State::Active => None,
            State::Creating { until } | State::Deleting { until } => Some(until),
        }
    }

    pub(super) fn is_gone(&self, now: u64) -> bool {
        matches!(self.state, State::Deleting { until } if until <= now)
    }

    /// Ends its subscriptions. One that is DELETING already stays as it is.
    pub(super) fn delete(&mut self, until: u64, seconds: &mut RetiredSeconds) {
        if self.status() != ConsumerStatus::Deleting {
            self.state = State::Deleting { until };
            seconds.retire(self.second);
        }
    }

    pub(super) fn describe(&self, name: &str) -> Consumer {
        Consumer {
            consumer_name: name.to_owned(),
            consumer_arn: self.arn.clone(),
            consumer_status: self.status(),
            consumer_creation_timestamp: self.created_at,
        }
    }
}
