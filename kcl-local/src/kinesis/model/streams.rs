//! Operations on streams as wholes: making, deleting, describing, listing, their settings and tags.

use std::ops::Bound;
use std::sync::Arc;

use super::super::config::{MAX_RECORD_SIZE_KIB, MAX_RETENTION_HOURS, MIN_RECORD_SIZE_KIB, MIN_RETENTION_HOURS};
use super::super::error::{ApiError, ErrorCode};
use super::super::stream::{NewStream, Stream};
use super::super::token::{decode_streams_token, encode_streams_token};
use super::super::types::{
    AddTagsToStreamInput, CreateStreamInput, DecreaseStreamRetentionPeriodInput, DeleteStreamInput, DescribeStreamInput,
    DescribeStreamOutput, DescribeStreamSummaryInput, DescribeStreamSummaryOutput, EncryptionType, EnhancedMetrics,
    IncreaseStreamRetentionPeriodInput, ListStreamsInput, ListStreamsOutput, ListTagsForStreamInput, ListTagsForStreamOutput,
    RemoveTagsFromStreamInput, ShardFilter, StreamDescription, StreamDescriptionSummary, StreamMode, StreamModeDetails, StreamStatus,
    StreamSummary, Tag, UpdateMaxRecordSizeInput,
};
use super::super::validate;
use super::Model;

impl Model {
    /// CreateStream. The stream is CREATING for the configured time and has no shards until then.
    ///
    /// # Errors
    /// ResourceInUse if there is one of this name; LimitExceeded beyond the account's open shards; Validation.
    pub fn create_stream(&mut self, now: u64, input: CreateStreamInput) -> Result<(), ApiError> {
        let now = self.tick(now);
        let name = input.stream_name;
        validate::stream_name(&name, "streamName")?;
        let mode = input.stream_mode_details.unwrap_or_default().stream_mode;
        let shards = match (mode, input.shard_count) {
            (StreamMode::OnDemand, _) => self.config.on_demand_shards,
            (StreamMode::Provisioned, Some(shards)) => shards,
            (StreamMode::Provisioned, None) => {
                return Err(ApiError::new(ErrorCode::Validation, "ShardCount must be given for a stream in provisioned mode."));
            }
        };
        validate::range(shards, "shardCount", 1, 100_000)?;
        let max_record_size_kib = input.max_record_size_in_kib.unwrap_or(MIN_RECORD_SIZE_KIB);
        validate::range(max_record_size_kib, "maxRecordSizeInKiB", MIN_RECORD_SIZE_KIB, MAX_RECORD_SIZE_KIB)?;
        for (key, value) in &input.tags {
            validate::tag(key, value)?;
        }
        validate::tag_count(input.tags.len())?;
        if self.by_name(&name, now).is_ok() {
            let account = &self.config.account_id;
            return Err(ApiError::in_use(format!("Stream {name} under account {account} already exists.")));
        }
        self.check_shard_limit(shards, now)?;
        let new = NewStream {
            name: name.as_str().into(),
            arn: format!("{}:stream/{name}", self.arn_prefix()),
            account: self.config.account_id.as_str().into(),
            mode,
            shards,
            retention_hours: self.config.retention_hours,
            max_record_size_kib,
            tags: input.tags,
            creating_until: now + self.config.creating_ms,
        };
        let stream = Stream::new(new, &mut self.generations, now);
        self.changed.insert(Arc::clone(&stream.name));
        self.streams.insert(Arc::clone(&stream.name), stream);
        self.settle_stream(&name, now);
        Ok(())
    }

    /// Refuses `more` open shards than the account may have.
    pub(super) fn check_shard_limit(&mut self, more: u32, now: u64) -> Result<(), ApiError> {
        self.settle(now);
        let open: u32 = self.streams.values().map(Stream::open_shards).sum();
        let (limit, account, region) = (self.config.open_shard_limit, &self.config.account_id, &self.config.region);
        if open.saturating_add(more) > limit {
            let message = format!(
                "This request would exceed the shard limit for the account {account} in {region}. Current shard count for the \
                 account: {open}. Limit: {limit}. Number of additional shards that would have resulted from this request: {more}."
            );
            return Err(ApiError::new(ErrorCode::LimitExceeded, message));
        }
        Ok(())
    }

    /// DeleteStream. The stream is DELETING for the configured time. Its consumers are deregistered now.
    ///
    /// # Errors
    /// ResourceNotFound; ResourceInUse while it is being created or deleted, and if it has consumers that are not to be
    /// deleted with it.
    pub fn delete_stream(&mut self, now: u64, input: DeleteStreamInput) -> Result<(), ApiError> {
        let now = self.tick(now);
        let (until, consumers_until) = (now + self.config.deleting_ms, now + self.config.consumer_deleting_ms);
        let stream = self.find(input.stream_name.as_deref(), input.stream_arn.as_deref(), now)?;
        let status = stream.status();
        if matches!(status, StreamStatus::Creating | StreamStatus::Deleting) {
            let (name, account) = (&stream.name, &stream.account);
            return Err(ApiError::in_use(format!("Stream {name} under account {account} can't be deleted in state {status}")));
        }
        if !stream.consumers.is_empty() && input.enforce_consumer_deletion != Some(true) {
            let (name, account) = (&stream.name, &stream.account);
            return Err(ApiError::in_use(format!(
                "Stream {name} under account {account} has {} registered consumers: deregister them first, or set \
                 EnforceConsumerDeletion.",
                stream.consumers.len()
            )));
        }
        stream.delete(until);
        let name = Arc::clone(&stream.name);
        for consumer in self.streams.get_mut(&name).into_iter().flat_map(|stream| stream.consumers.values_mut()) {
            consumer.delete(consumers_until, &mut self.retired_seconds);
        }
        self.settle_stream(&name, now);
        self.changed.insert(name);
        Ok(())
    }

    /// DescribeStream.
    ///
    /// # Errors
    /// ResourceNotFound; Validation.
    pub fn describe_stream(&mut self, now: u64, input: DescribeStreamInput) -> Result<DescribeStreamOutput, ApiError> {
        let now = self.tick(now);
        let limit = validate::limit(input.limit, "limit", 10_000, 100)?;
        let after = input.exclusive_start_shard_id;
        if let Some(id) = &after {
            validate::shard_id(id, "exclusiveStartShardId")?;
        }
        let stream = self.find(input.stream_name.as_deref(), input.stream_arn.as_deref(), now)?;
        let mut shards: Vec<_> =
            stream.select(&ShardFilter::default(), now).into_iter().map(super::super::shard::Shard::describe).collect();
        shards.retain(|shard| after.as_ref().is_none_or(|after| shard.shard_id > *after));
        let has_more_shards = shards.len() > limit;
        shards.truncate(limit);
        let stream_description = StreamDescription {
            stream_name: stream.name.to_string(),
            stream_arn: stream.arn.clone(),
            stream_status: stream.status(),
            stream_mode_details: StreamModeDetails { stream_mode: stream.mode },
            shards,
            has_more_shards,
            retention_period_hours: stream.retention_hours,
            stream_creation_timestamp: stream.created_at,
            enhanced_monitoring: vec![EnhancedMetrics::default()],
            encryption_type: EncryptionType::None,
        };
        Ok(DescribeStreamOutput { stream_description })
    }

    /// DescribeStreamSummary.
    ///
    /// # Errors
    /// ResourceNotFound; Validation.
    pub fn describe_stream_summary(
        &mut self,
        now: u64,
        input: DescribeStreamSummaryInput,
    ) -> Result<DescribeStreamSummaryOutput, ApiError> {
        let now = self.tick(now);
        let stream = self.find(input.stream_name.as_deref(), input.stream_arn.as_deref(), now)?;
        let creating = stream.status() == StreamStatus::Creating;
        let stream_description_summary = StreamDescriptionSummary {
            stream_name: stream.name.to_string(),
            stream_arn: stream.arn.clone(),
            stream_status: stream.status(),
            stream_mode_details: StreamModeDetails { stream_mode: stream.mode },
            retention_period_hours: stream.retention_hours,
            stream_creation_timestamp: stream.created_at,
            enhanced_monitoring: vec![EnhancedMetrics::default()],
            encryption_type: EncryptionType::None,
            open_shard_count: if creating { 0 } else { stream.open_shards() },
            consumer_count: u32::try_from(stream.consumers.len()).expect("the limit of consumers is 32 bits"),
            max_record_size_in_kib: stream.max_record_size_kib,
        };
        Ok(DescribeStreamSummaryOutput { stream_description_summary })
    }

    /// ListStreams.
    ///
    /// # Errors
    /// InvalidArgument for a token that isn't one; Validation.
    pub fn list_streams(&mut self, now: u64, input: ListStreamsInput) -> Result<ListStreamsOutput, ApiError> {
        let now = self.tick(now);
        let limit = validate::limit(input.limit, "limit", 10_000, 100)?;
        let mut after = input.exclusive_start_stream_name;
        if let Some(name) = &after {
            validate::stream_name(name, "exclusiveStartStreamName")?;
        }
        if let Some(token) = input.next_token {
            after = Some(decode_streams_token(&token).ok_or_else(|| ApiError::invalid("NextToken is invalid."))?);
        }
        self.settle(now);
        let from = after.as_deref().map_or(Bound::Unbounded, Bound::Excluded);
        let mut streams = self.streams.range::<str, _>((from, Bound::Unbounded)).map(|(_, stream)| stream);
        let stream_summaries: Vec<_> = streams
            .by_ref()
            .take(limit)
            .map(|stream| StreamSummary {
                stream_name: stream.name.to_string(),
                stream_arn: stream.arn.clone(),
                stream_status: stream.status(),
                stream_mode_details: StreamModeDetails { stream_mode: stream.mode },
                stream_creation_timestamp: stream.created_at,
            })
            .collect();
        let has_more_streams = streams.next().is_some();
        let last = stream_summaries.last().filter(|_| has_more_streams);
        Ok(ListStreamsOutput {
            stream_names: stream_summaries.iter().map(|stream| stream.stream_name.clone()).collect(),
            has_more_streams,
            next_token: last.map(|stream| encode_streams_token(&stream.stream_name)),
            stream_summaries,
        })
    }

    /// IncreaseStreamRetentionPeriod, at once.
    ///
    /// # Errors
    /// InvalidArgument for less than now or more than 8,760 hours; ResourceNotFound; ResourceInUse unless ACTIVE.
    pub fn increase_stream_retention_period(&mut self, now: u64, input: IncreaseStreamRetentionPeriodInput) -> Result<(), ApiError> {
        let hours = input.retention_period_hours;
        self.set_retention(now, input.stream_name.as_deref(), input.stream_arn.as_deref(), hours, |hours, current| hours >= current)
    }

    /// DecreaseStreamRetentionPeriod, at once: what is too old then is trimmed.
    ///
    /// # Errors
    /// InvalidArgument for more than now or less than 24 hours; ResourceNotFound; ResourceInUse unless ACTIVE.
    pub fn decrease_stream_retention_period(&mut self, now: u64, input: DecreaseStreamRetentionPeriodInput) -> Result<(), ApiError> {
        let hours = input.retention_period_hours;
        self.set_retention(now, input.stream_name.as_deref(), input.stream_arn.as_deref(), hours, |hours, current| hours <= current)
    }

    fn set_retention(
        &mut self,
        now: u64,
        name: Option<&str>,
        arn: Option<&str>,
        hours: u32,
        allowed: impl Fn(u32, u32) -> bool,
    ) -> Result<(), ApiError> {
        let now = self.tick(now);
        let stream = self.find_active(name, arn, now)?;
        let current = stream.retention_hours;
        if !(MIN_RETENTION_HOURS..=MAX_RETENTION_HOURS).contains(&hours) {
            return Err(ApiError::invalid(format!(
                "Retention period must be between {MIN_RETENTION_HOURS} and {MAX_RETENTION_HOURS} hours. Requested: {hours}."
            )));
        }
        if !allowed(hours, current) {
            return Err(ApiError::invalid(format!(
                "Requested retention period ({hours} hours) for stream {} is on the wrong side of the existing retention period \
                 ({current} hours). Use the other of IncreaseStreamRetentionPeriod and DecreaseStreamRetentionPeriod.",
                stream.name
            )));
        }
        // By both: what the old period has passed over doesn't come back with a longer one.
        stream.trim(now);
        stream.retention_hours = hours;
        stream.trim(now);
        Ok(())
    }

    /// UpdateMaxRecordSize, at once.
    ///
    /// # Errors
    /// Validation outside of 1,024 to 10,240 KiB; ResourceNotFound; ResourceInUse unless ACTIVE.
    pub fn update_max_record_size(&mut self, now: u64, input: UpdateMaxRecordSizeInput) -> Result<(), ApiError> {
        let now = self.tick(now);
        let size = input.max_record_size_in_kib;
        validate::range(size, "maxRecordSizeInKiB", MIN_RECORD_SIZE_KIB, MAX_RECORD_SIZE_KIB)?;
        self.find_active(input.stream_name.as_deref(), input.stream_arn.as_deref(), now)?.max_record_size_kib = size;
        Ok(())
    }

    /// AddTagsToStream.
    ///
    /// # Errors
    /// InvalidArgument beyond 50 tags; ResourceNotFound; Validation.
    pub fn add_tags_to_stream(&mut self, now: u64, input: AddTagsToStreamInput) -> Result<(), ApiError> {
        let now = self.tick(now);
        for (key, value) in &input.tags {
            validate::tag(key, value)?;
        }
        let stream = self.find(input.stream_name.as_deref(), input.stream_arn.as_deref(), now)?;
        let added = input.tags.keys().filter(|key| !stream.tags.contains_key(*key)).count();
        validate::tag_count(stream.tags.len() + added)?;
        stream.tags.extend(input.tags);
        Ok(())
    }

    /// RemoveTagsFromStream.
    ///
    /// # Errors
    /// ResourceNotFound; Validation.
    pub fn remove_tags_from_stream(&mut self, now: u64, input: RemoveTagsFromStreamInput) -> Result<(), ApiError> {
        let now = self.tick(now);
        let stream = self.find(input.stream_name.as_deref(), input.stream_arn.as_deref(), now)?;
        for key in &input.tag_keys {
            stream.tags.remove(key);
        }
        Ok(())
    }

    /// ListTagsForStream.
    ///
    /// # Errors
    /// ResourceNotFound; Validation.
    pub fn list_tags_for_stream(&mut self, now: u64, input: ListTagsForStreamInput) -> Result<ListTagsForStreamOutput, ApiError> {
        let now = self.tick(now);
        let limit = validate::limit(input.limit, "limit", 50, 50)?;
        let stream = self.find(input.stream_name.as_deref(), input.stream_arn.as_deref(), now)?;
        let from = input.exclusive_start_tag_key.map_or(Bound::Unbounded, Bound::Excluded);
        let mut tags = stream.tags.range((from, Bound::Unbounded)).map(|(key, value)| Tag { key: key.clone(), value: value.clone() });
        Ok(ListTagsForStreamOutput { tags: tags.by_ref().take(limit).collect(), has_more_tags: tags.next().is_some() })
    }
}
