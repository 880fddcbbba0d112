//! SubscribeToShard: beginning subscriptions, and what their subscribers get.
//!
//! A subscription's state is here only while it lasts: once its end was told, or its time is over, nothing is left of
//! it but the time of its beginning, with its consumer and shard.

use std::sync::Arc;

use super::super::config::{MAX_EVENT_BYTES, MAX_EVENT_RECORDS, READ_BYTES_PER_SECOND};
use super::super::consumer::Begun;
use super::super::error::{ApiError, ErrorCode};
use super::super::handle::Operation;
use super::super::sequence::SequenceNumber;
use super::super::shard::Position;
use super::super::stream::Stream;
use super::super::throttle::TokenBucket;
use super::super::types::{ConsumerStatus, NextEvent, SubscribeToShardEvent, SubscribeToShardInput, SubscriptionId};
use super::super::validate;
use super::Model;
use super::consumers::named;
use super::starting::Asked;

/// A subscription that lasts, or whose subscriber has yet to be told why it doesn't.
pub(super) struct Subscription {
    stream: Arc<str>,
    consumer: String,
    /// Tells the consumer, and so the stream, from others of the same name.
    consumer_arn: String,
    shard: u32,
    position: Position,
    /// Of the last record that was given, or before the position.
    continuation: SequenceNumber,
    ends_at: u64,
    /// `None` before the first.
    last_event_at: Option<u64>,
    /// Data and partition keys given.
    bytes: TokenBucket,
}

impl Operation for SubscribeToShardInput {
    type Output = SubscriptionId;

    fn apply(self, model: &mut Model, now: u64) -> Result<SubscriptionId, ApiError> {
        model.subscribe_to_shard(now, self)
    }
}

impl Model {
    /// SubscribeToShard: takes the place of an earlier subscription of this consumer to this shard. What the subscriber
    /// gets is asked for with [`next_event`](Self::next_event).
    ///
    /// # Errors
    /// ResourceInUse unless the consumer is ACTIVE, and for the configured time after the last successful call for this
    /// shard, whether that subscription lasts or not; InvalidArgument for members that don't go together, and for a
    /// sequence number that this shard never gave out; LimitExceeded if limits are enforced; ResourceNotFound; Validation.
    pub fn subscribe_to_shard(&mut self, now: u64, input: SubscribeToShardInput) -> Result<SubscriptionId, ApiError> {
        let now = self.tick(now);
        validate::shard_id(&input.shard_id, "shardId")?;
        let consumer_arn = input.consumer_arn;
        let (stream_arn, name) = named(None, None, Some(&consumer_arn))?;
        let (enforce, resubscribe_ms) = (self.config.enforce_read_limits, self.config.resubscribe_ms);
        let id = SubscriptionId(self.subscriptions_begun);
        let stream = self.find(None, Some(stream_arn), now)?;
        let full_name = full_name(stream, name);
        let consumer = stream.consumer(name, Some(&consumer_arn))?;
        if enforce {
            if !consumer.calls.allows(1, now) {
                let message = format!("Rate of SubscribeToShard exceeded for consumer {full_name}.");
                return Err(ApiError::new(ErrorCode::LimitExceeded, message));
            }
            // Of calls, not of successes.
            consumer.calls.charge(1, now);
        }
        let status = consumer.status();
        if status != ConsumerStatus::Active {
            return Err(ApiError::in_use(format!("Consumer {full_name} not ACTIVE, instead in state {status}")));
        }
        let position = &input.starting_position;
        let asked = Asked {
            operation: "SubscribeToShard",
            kind: position.position_type,
            number: position.sequence_number.as_deref(),
            timestamp: position.timestamp,
        };
        let (shard, position) = asked.find(stream, &input.shard_id, now)?;
        let (shard, continuation) = (shard.number, shard.number_before(position));
        let stream_name = Arc::clone(&stream.name);
        let consumer = stream.consumer(name, Some(&consumer_arn))?;
        if consumer.begun.get(&shard).is_some_and(|last| now < last.at.saturating_add(resubscribe_ms)) {
            return Err(taken(&full_name));
        }
        let last = consumer.begun.insert(shard, Begun { id, at: now });
        let subscription = Subscription {
            stream: Arc::clone(&stream_name),
            consumer: name.to_owned(),
            consumer_arn,
            shard,
            position,
            continuation,
            ends_at: now.saturating_add(self.config.subscription_life_ms),
            last_event_at: None,
            bytes: TokenBucket::new(READ_BYTES_PER_SECOND, now),
        };
        // Whose subscribers never came back to hear of their end.
        self.subscriptions.retain(|_, subscription| now < subscription.ends_at);
        if last.is_some_and(|last| self.subscriptions.contains_key(&last.id)) {
            self.changed.insert(stream_name);
        }
        self.subscriptions.insert(id, subscription);
        self.subscriptions_begun += 1;
        Ok(id)
    }

    /// What the subscriber gets next. The first time, an event at once; then records as soon as there are any, and an
    /// event without records after each silence of the configured time. Whoever asks has taken it: a subscription knows
    /// no lost events.
    ///
    /// A subscription that isn't there, because its end was told or [`end_subscription`](Self::end_subscription) was
    /// called, has ended.
    pub fn next_event(&mut self, now: u64, id: SubscriptionId) -> NextEvent {
        let now = self.tick(now);
        let Some(mut subscription) = self.subscriptions.remove(&id) else { return NextEvent::Ended };
        let next = self.advance(id, &mut subscription, now).unwrap_or_else(NextEvent::Failed);
        let goes_on = match &next {
            NextEvent::Event(event) => event.continuation_sequence_number.is_some(),
            NextEvent::Wait { .. } => true,
            NextEvent::Ended | NextEvent::Failed(_) => false,
        };
        if goes_on {
            self.subscriptions.insert(id, subscription);
        }
        next
    }

    /// The subscriber has left. An id that isn't there is ignored.
    pub fn end_subscription(&mut self, id: SubscriptionId) {
        self.subscriptions.remove(&id);
    }

    fn advance(&mut self, id: SubscriptionId, subscription: &mut Subscription, now: u64) -> Result<NextEvent, ApiError> {
        if now >= subscription.ends_at {
            return Ok(NextEvent::Ended);
        }
        let (heartbeat_ms, enforce) = (self.config.heartbeat_ms.max(1), self.config.enforce_read_limits);
        let stream = self.by_name(&subscription.stream, now)?;
        check_current(stream, id, subscription)?;
        let due = stream.due();
        let shard = stream.shard_by_number(subscription.shard, now).expect("a stream's shards stay in its tree");

        let mut batch = shard.read(subscription.position, MAX_EVENT_RECORDS, MAX_EVENT_BYTES, now);
        let heartbeat_at = subscription.last_event_at.map_or(now, |at| at.saturating_add(heartbeat_ms));
        let mut until = heartbeat_at.min(subscription.ends_at).min(due.unwrap_or(u64::MAX));
        if enforce && !batch.records.is_empty() && !subscription.bytes.allows(batch.bytes as u64, now) {
            until = until.min(subscription.bytes.allows_at(batch.bytes as u64, now));
            batch = shard.read(subscription.position, 0, 0, now);
        }
        if batch.records.is_empty() && !batch.ended && now < heartbeat_at {
            return Ok(NextEvent::Wait { until });
        }

        if enforce {
            subscription.bytes.charge(batch.bytes as u64, now);
        }
        subscription.position = batch.next;
        subscription.last_event_at = Some(now);
        if let Some(last) = batch.records.last() {
            subscription.continuation = last.sequence_number;
        }
        Ok(NextEvent::Event(SubscribeToShardEvent {
            records: batch.records,
            continuation_sequence_number: (!batch.ended).then_some(subscription.continuation),
            millis_behind_latest: batch.behind_ms,
            child_shards: if batch.ended { stream.children(subscription.shard) } else { Vec::new() },
        }))
    }
}

/// Refuses a subscription whose consumer is gone or has begun another one to this shard.
fn check_current(stream: &mut Stream, id: SubscriptionId, subscription: &Subscription) -> Result<(), ApiError> {
    let full_name = full_name(stream, &subscription.consumer);
    let consumer = stream.consumer(&subscription.consumer, Some(&subscription.consumer_arn))?;
    if consumer.status() == ConsumerStatus::Deleting {
        return Err(ApiError::not_found(format!("Consumer {full_name} is being deleted.")));
    }
    if consumer.begun.get(&subscription.shard).is_none_or(|begun| begun.id != id) {
        return Err(taken(&full_name));
    }
    Ok(())
}

fn taken(full_name: &str) -> ApiError {
    ApiError::in_use(format!("Another active subscription exists for this consumer: {full_name}"))
}

/// A consumer as the service's messages name it.
fn full_name(stream: &Stream, consumer: &str) -> String {
    format!("{}:{}:{consumer}", stream.account, stream.name)
}
