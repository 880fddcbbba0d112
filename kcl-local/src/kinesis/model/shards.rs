//! Operations on a stream's shards: listing, splitting, merging, counting anew.

use std::sync::Arc;

use super::super::error::{ApiError, ErrorCode};
use super::super::sequence::shard_number;
use super::super::shard::Shard;
use super::super::stream::{Reshard, Stream};
use super::super::token::ShardsToken;
use super::super::types::{
    ListShardsInput, ListShardsOutput, MergeShardsInput, ShardFilter, ShardFilterType, SplitShardInput, StreamMode, StreamStatus,
    UpdateShardCountInput, UpdateShardCountOutput,
};
use super::super::validate;
use super::Model;

/// Most shards of one page (AWS limit).
const MAX_PAGE: usize = 1_000;

impl Model {
    /// ListShards. Pages are of the same stream and filter, each as it is when it is asked for.
    ///
    /// # Errors
    /// ResourceInUse while the stream is being created or deleted; ExpiredNextToken; InvalidArgument for members that
    /// don't go together; ResourceNotFound; Validation.
    pub fn list_shards(&mut self, now: u64, input: ListShardsInput) -> Result<ListShardsOutput, ApiError> {
        let now = self.tick(now);
        let page = validate::limit(input.max_results, "maxResults", 10_000, 1_000)?.min(MAX_PAGE);
        let (stream, filter, after) = match &input.next_token {
            Some(token) => self.shards_after_token(token, &input, now)?,
            None => self.shards_of_input(input, now)?,
        };
        let status = stream.status();
        if matches!(status, StreamStatus::Creating | StreamStatus::Deleting) {
            let (name, account) = (&stream.name, &stream.account);
            return Err(ApiError::in_use(format!(
                "Stream {name} under account {account} not ACTIVE or UPDATING, instead in state {status}"
            )));
        }
        let (name, incarnation) = (stream.name.to_string(), stream.incarnation);
        let mut shards = stream.select(&filter, now);
        shards.retain(|shard| after.as_ref().is_none_or(|after| shard.id() > *after));
        let more = shards.len() > page;
        shards.truncate(page);
        let next_token = shards
            .last()
            .filter(|_| more)
            .map(|last| ShardsToken { stream: name, incarnation, after: last.number, filter: filter.clone(), issued_at: now }.encode());
        Ok(ListShardsOutput { shards: shards.into_iter().map(Shard::describe).collect(), next_token })
    }

    fn shards_after_token(
        &mut self,
        token: &str,
        input: &ListShardsInput,
        now: u64,
    ) -> Result<(&mut Stream, ShardFilter, Option<String>), ApiError> {
        let forbidden = [
            (input.stream_name.is_some(), "StreamName"),
            (input.stream_creation_timestamp.is_some(), "StreamCreationTimestamp"),
            (input.exclusive_start_shard_id.is_some(), "ExclusiveStartShardId"),
        ];
        if let Some((_, member)) = forbidden.into_iter().find(|(given, _)| *given) {
            return Err(ApiError::invalid(format!("NextToken and {member} cannot be provided together.")));
        }
        let token = ShardsToken::decode(token).ok_or_else(|| ApiError::invalid("NextToken is invalid."))?;
        self.check_token_life(token.issued_at, now)?;
        let stream = self.by_incarnation(&token.stream, token.incarnation, input.stream_arn.as_deref(), now)?;
        Ok((stream, token.filter, Some(super::super::sequence::shard_id(token.after))))
    }

    fn shards_of_input(&mut self, input: ListShardsInput, now: u64) -> Result<(&mut Stream, ShardFilter, Option<String>), ApiError> {
        let filter = input.shard_filter.unwrap_or_default();
        check_filter(&filter, now)?;
        let after = match (input.exclusive_start_shard_id, &filter.shard_id) {
            (Some(_), Some(_)) => {
                return Err(ApiError::invalid("ExclusiveStartShardId and ShardFilter.ShardId cannot be provided together."));
            }
            (after, in_filter) => after.or_else(|| in_filter.clone()),
        };
        if let Some(id) = &after {
            validate::shard_id(id, "exclusiveStartShardId")?;
            if shard_number(id).is_none() {
                return Err(ApiError::invalid(format!("{id} is not the id of a shard.")));
            }
        }
        let stream = self.find(input.stream_name.as_deref(), input.stream_arn.as_deref(), now)?;
        stream.check_created(input.stream_creation_timestamp)?;
        Ok((stream, filter, after))
    }

    /// Refuses a token of a listing that is older than its life.
    pub(super) fn check_token_life(&self, issued_at: u64, now: u64) -> Result<(), ApiError> {
        if now.saturating_sub(issued_at) > self.config.next_token_life_ms {
            let message = format!("The NextToken was issued at {issued_at} and has expired by {now}. List from the start.");
            return Err(ApiError::new(ErrorCode::ExpiredNextToken, message));
        }
        Ok(())
    }

    /// The stream that a token or an iterator was given out for, if it is still that one.
    pub(super) fn by_incarnation(&mut self, name: &str, incarnation: u64, arn: Option<&str>, now: u64) -> Result<&mut Stream, ApiError> {
        let stream = match arn {
            Some(_) => self.find(Some(name), arn, now)?,
            None => self.by_name(name, now)?,
        };
        if stream.incarnation != incarnation {
            let (name, account) = (&stream.name, &stream.account);
            return Err(ApiError::not_found(format!("Stream {name} under account {account} not found: it was deleted and made anew.")));
        }
        Ok(stream)
    }

    /// SplitShard. The stream is UPDATING for the configured time; the change happens at its end.
    ///
    /// # Errors
    /// ResourceInUse unless ACTIVE; InvalidArgument for a closed shard or a hash key that isn't inside it; LimitExceeded
    /// beyond the account's open shards; ResourceNotFound; Validation.
    pub fn split_shard(&mut self, now: u64, input: SplitShardInput) -> Result<(), ApiError> {
        let now = self.tick(now);
        let id = &input.shard_to_split;
        validate::shard_id(id, "shardToSplit")?;
        let at = validate::hash_key(&input.new_starting_hash_key, "newStartingHashKey")?;
        let stream = self.find_provisioned(input.stream_name.as_deref(), input.stream_arn.as_deref(), now)?;
        let name = Arc::clone(&stream.name);
        let shard = stream.open_shard(id)?;
        let (first, last) = shard.range;
        if at <= first.saturating_add(1) || at >= last {
            return Err(ApiError::invalid(format!(
                "NewStartingHashKey {at} used in SplitShard() on shard {id} in stream {name} under account {} is not both greater than \
                 one plus the shard's StartingHashKey {first} and less than the shard's EndingHashKey {last}.",
                stream.account
            )));
        }
        let shard = shard.number;
        self.check_shard_limit(1, now)?;
        self.update(&name, Reshard::Split { shard, at }, now);
        Ok(())
    }

    /// MergeShards. The stream is UPDATING for the configured time; the change happens at its end.
    ///
    /// # Errors
    /// ResourceInUse unless ACTIVE; InvalidArgument for closed shards or such that don't touch; ResourceNotFound;
    /// Validation.
    pub fn merge_shards(&mut self, now: u64, input: MergeShardsInput) -> Result<(), ApiError> {
        let now = self.tick(now);
        let ids = [&input.shard_to_merge, &input.adjacent_shard_to_merge];
        validate::shard_id(ids[0], "shardToMerge")?;
        validate::shard_id(ids[1], "adjacentShardToMerge")?;
        let stream = self.find_provisioned(input.stream_name.as_deref(), input.stream_arn.as_deref(), now)?;
        let name = Arc::clone(&stream.name);
        let (shard, adjacent) = (stream.open_shard(ids[0])?, stream.open_shard(ids[1])?);
        let touch = |low: (u128, u128), high: (u128, u128)| low.1.checked_add(1) == Some(high.0);
        if !touch(shard.range, adjacent.range) && !touch(adjacent.range, shard.range) {
            return Err(ApiError::invalid(format!(
                "Shards {} and {} in stream {name} under account {} are not an adjacent pair of shards eligible for merging",
                ids[0], ids[1], stream.account
            )));
        }
        let reshard = Reshard::Merge { shard: shard.number, adjacent: adjacent.number };
        self.update(&name, reshard, now);
        Ok(())
    }

    /// UpdateShardCount. The stream is UPDATING for the configured time; the change happens at its end.
    ///
    /// # Errors
    /// ResourceInUse unless ACTIVE; LimitExceeded for more than double or less than half the open shards, or beyond the
    /// account's; ResourceNotFound; Validation.
    pub fn update_shard_count(&mut self, now: u64, input: UpdateShardCountInput) -> Result<UpdateShardCountOutput, ApiError> {
        let now = self.tick(now);
        let target = input.target_shard_count;
        validate::range(target, "targetShardCount", 1, u32::MAX)?;
        let stream = self.find_provisioned(input.stream_name.as_deref(), input.stream_arn.as_deref(), now)?;
        let current = stream.open_shards();
        let refused = |what: &str| {
            let message = format!(
                "UpdateShardCount cannot scale {what} your current open shard count. Current open shard count: {current} Target shard \
                 count: {target}"
            );
            Err(ApiError::new(ErrorCode::LimitExceeded, message))
        };
        if target > current.saturating_mul(2) {
            return refused("up over double");
        }
        if target < current.div_ceil(2) {
            return refused("down below half");
        }
        let (name, stream_arn) = (Arc::clone(&stream.name), stream.arn.clone());
        self.check_shard_limit(target.saturating_sub(current), now)?;
        self.update(&name, Reshard::Resize { target }, now);
        Ok(UpdateShardCountOutput { stream_name: name.to_string(), stream_arn, current_shard_count: current, target_shard_count: target })
    }

    /// The stream, if it is active and its shards are the user's to change.
    fn find_provisioned(&mut self, name: Option<&str>, arn: Option<&str>, now: u64) -> Result<&mut Stream, ApiError> {
        let stream = self.find_active(name, arn, now)?;
        if stream.mode == StreamMode::OnDemand {
            let message = format!("Request is invalid. Stream {} under account {} is in On-Demand mode.", stream.name, stream.account);
            return Err(ApiError::new(ErrorCode::Validation, message));
        }
        Ok(stream)
    }

    fn update(&mut self, name: &Arc<str>, reshard: Reshard, now: u64) {
        let until = now + self.config.updating_ms;
        if let Some(stream) = self.streams.get_mut(name) {
            stream.update(reshard, until);
        }
        self.settle_stream(name, now);
        self.changed.insert(Arc::clone(name));
    }
}

fn check_filter(filter: &ShardFilter, now: u64) -> Result<(), ApiError> {
    let kind = filter.filter_type;
    let needs_shard = kind == ShardFilterType::AfterShardId;
    if filter.shard_id.is_some() != needs_shard {
        return Err(ApiError::invalid("ShardFilter.ShardId is needed by, and only by, the type AFTER_SHARD_ID."));
    }
    let needs_time = matches!(kind, ShardFilterType::AtTimestamp | ShardFilterType::FromTimestamp);
    if filter.timestamp.is_some() != needs_time {
        return Err(ApiError::invalid("ShardFilter.Timestamp is needed by, and only by, the types AT_TIMESTAMP and FROM_TIMESTAMP."));
    }
    if filter.timestamp.is_some_and(|time| time > now) {
        return Err(ApiError::invalid(format!("ShardFilter.Timestamp must not be in the future: it is {now} now.")));
    }
    Ok(())
}
