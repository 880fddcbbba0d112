//! Operations on consumers: registering, describing, listing, deregistering.

use std::ops::Bound;
use std::sync::Arc;

use super::super::config::MAX_CREATING_CONSUMERS;
use super::super::consumer::StreamConsumer;
use super::super::error::{ApiError, ErrorCode};
use super::super::token::ConsumersToken;
use super::super::types::{
    ConsumerDescription, ConsumerStatus, DeregisterStreamConsumerInput, DescribeStreamConsumerInput, DescribeStreamConsumerOutput,
    ListStreamConsumersInput, ListStreamConsumersOutput, RegisterStreamConsumerInput, RegisterStreamConsumerOutput, StreamStatus,
};
use super::super::validate;
use super::Model;

impl Model {
    /// RegisterStreamConsumer. The consumer is CREATING for the configured time.
    ///
    /// # Errors
    /// ResourceInUse if the stream has a consumer of this name, or is being created or deleted; LimitExceeded beyond the
    /// stream's consumers, or beyond 5 that are CREATING; ResourceNotFound; Validation.
    pub fn register_stream_consumer(
        &mut self,
        now: u64,
        input: RegisterStreamConsumerInput,
    ) -> Result<RegisterStreamConsumerOutput, ApiError> {
        let now = self.tick(now);
        let name = input.consumer_name;
        validate::consumer_name(&name)?;
        let (limit, until) = (self.config.consumer_limit as usize, now + self.config.consumer_creating_ms);
        let second = self.retired_seconds.next(now);
        let stream = self.find(None, Some(&input.stream_arn), now)?;
        let (stream_name, account, status) = (Arc::clone(&stream.name), &stream.account, stream.status());
        if matches!(status, StreamStatus::Creating | StreamStatus::Deleting) {
            return Err(ApiError::in_use(format!(
                "Stream {stream_name} under account {account} not ACTIVE or UPDATING, instead in state {status}"
            )));
        }
        if stream.consumers.contains_key(&name) {
            return Err(ApiError::in_use(format!("Consumer {name} under stream {stream_name} already exists for account {account}.")));
        }
        let limited = |message: String| Err(ApiError::new(ErrorCode::LimitExceeded, message));
        let place = format!("stream {stream_name} under account {account}");
        if stream.consumers.len() >= limit {
            return limited(format!("Cannot register consumer {name}: {place} has reached its limit of {limit} consumers."));
        }
        let creating = stream.consumers.values().filter(|consumer| consumer.status() == ConsumerStatus::Creating).count();
        if creating >= MAX_CREATING_CONSUMERS && until > now {
            return limited(format!("Cannot register consumer {name}: {creating} consumers of {place} are in state CREATING."));
        }
        let mut consumer = StreamConsumer::new(&format!("{}/consumer/{name}", stream.arn), second, until, now);
        consumer.settle(now);
        let output = RegisterStreamConsumerOutput { consumer: consumer.describe(&name) };
        stream.consumers.insert(name, consumer);
        self.changed.insert(stream_name);
        Ok(output)
    }

    /// DescribeStreamConsumer.
    ///
    /// # Errors
    /// InvalidArgument for members that don't go together; ResourceNotFound; Validation.
    pub fn describe_stream_consumer(
        &mut self,
        now: u64,
        input: DescribeStreamConsumerInput,
    ) -> Result<DescribeStreamConsumerOutput, ApiError> {
        let now = self.tick(now);
        let arn = input.consumer_arn.as_deref();
        let (stream_arn, name) = named(input.stream_arn.as_deref(), input.consumer_name.as_deref(), arn)?;
        let stream = self.find(None, Some(stream_arn), now)?;
        let consumer = stream.consumer(name, arn)?.describe(name);
        Ok(DescribeStreamConsumerOutput { consumer_description: ConsumerDescription { consumer, stream_arn: stream.arn.clone() } })
    }

    /// ListStreamConsumers.
    ///
    /// # Errors
    /// ExpiredNextToken; InvalidArgument for members that don't go together; ResourceNotFound; Validation.
    pub fn list_stream_consumers(&mut self, now: u64, input: ListStreamConsumersInput) -> Result<ListStreamConsumersOutput, ApiError> {
        let now = self.tick(now);
        let page = validate::limit(input.max_results, "maxResults", 10_000, 100)?;
        if input.next_token.is_some() && input.stream_creation_timestamp.is_some() {
            return Err(ApiError::invalid("NextToken and StreamCreationTimestamp cannot be provided together."));
        }
        let token = match &input.next_token {
            Some(text) => Some(ConsumersToken::decode(text).ok_or_else(|| ApiError::invalid("NextToken is invalid."))?),
            None => None,
        };
        if let Some(token) = &token {
            self.check_token_life(token.issued_at, now)?;
        }
        let stream = self.find(None, Some(&input.stream_arn), now)?;
        stream.check_created(input.stream_creation_timestamp)?;
        if token.as_ref().is_some_and(|token| token.incarnation != stream.incarnation) {
            let (name, account) = (&stream.name, &stream.account);
            return Err(ApiError::not_found(format!(
                "NextToken is not of stream {name} under account {account}, but of another one, or of one deleted."
            )));
        }
        let from = token.map_or(Bound::Unbounded, |token| Bound::Excluded(token.after));
        let mut rest = stream.consumers.range((from, Bound::Unbounded));
        let consumers: Vec<_> = rest.by_ref().take(page).map(|(name, consumer)| consumer.describe(name)).collect();
        let last = consumers.last().filter(|_| rest.next().is_some());
        let next_token =
            last.map(|last| ConsumersToken { incarnation: stream.incarnation, after: last.consumer_name.clone(), issued_at: now }.encode());
        Ok(ListStreamConsumersOutput { consumers, next_token })
    }

    /// DeregisterStreamConsumer. Its subscriptions end at once; it is DELETING for the configured time. One that is
    /// DELETING already stays so.
    ///
    /// # Errors
    /// InvalidArgument for members that don't go together; ResourceNotFound; Validation.
    pub fn deregister_stream_consumer(&mut self, now: u64, input: DeregisterStreamConsumerInput) -> Result<(), ApiError> {
        let now = self.tick(now);
        let until = now + self.config.consumer_deleting_ms;
        let arn = input.consumer_arn.as_deref();
        let (stream_arn, name) = named(input.stream_arn.as_deref(), input.consumer_name.as_deref(), arn)?;
        let stream = self.find(None, Some(stream_arn), now)?;
        stream.consumer(name, arn)?;
        let stream_name = Arc::clone(&stream.name);
        if let Some(consumer) = self.streams.get_mut(&stream_name).and_then(|stream| stream.consumers.get_mut(name)) {
            consumer.delete(until, &mut self.retired_seconds);
        }
        self.settle_stream(&stream_name, now);
        self.changed.insert(stream_name);
        Ok(())
    }
}

/// The stream's ARN and the consumer's name, from members that must go together.
pub(super) fn named<'a>(
    stream_arn: Option<&'a str>,
    name: Option<&'a str>,
    consumer_arn: Option<&'a str>,
) -> Result<(&'a str, &'a str), ApiError> {
    if let Some(name) = name {
        validate::consumer_name(name)?;
    }
    match (consumer_arn, stream_arn, name) {
        (Some(arn), stream_arn, name) => {
            let (of_stream, of_consumer) = validate::consumer_arn(arn)?;
            if stream_arn.is_some_and(|given| given != of_stream) || name.is_some_and(|given| given != of_consumer) {
                return Err(ApiError::invalid("ConsumerARN, StreamARN and ConsumerName name different consumers."));
            }
            Ok((of_stream, of_consumer))
        }
        (None, Some(stream_arn), Some(name)) => Ok((stream_arn, name)),
        (None, _, _) => Err(ApiError::invalid("Either ConsumerARN, or StreamARN and ConsumerName must be given.")),
    }
}
