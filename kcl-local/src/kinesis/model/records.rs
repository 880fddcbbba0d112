//! Operations on records: writing them, and reading them by iterators.

use std::sync::Arc;

use bytes::Bytes;
use md5::{Digest, Md5};

use super::super::config::{MAX_GET_BYTES, MAX_GET_RECORDS, MAX_PUT_BYTES, MAX_PUT_RECORDS, MAX_RECORD_SIZE_KIB};
use super::super::error::{ApiError, ErrorCode};
use super::super::sequence::{SequenceNumber, shard_id};
use super::super::stream::Stream;
use super::super::token::ShardIterator;
use super::super::types::{
    GetRecordsInput, GetRecordsOutput, GetShardIteratorInput, GetShardIteratorOutput, PutRecordInput, PutRecordOutput, PutRecordsInput,
    PutRecordsOutput, PutRecordsResult,
};
use super::super::validate;
use super::Model;
use super::starting::Asked;

impl Model {
    /// PutRecord.
    ///
    /// # Errors
    /// ProvisionedThroughputExceeded if limits are enforced; InvalidArgument for a record above the stream's largest;
    /// ResourceNotFound, also while the stream is being created; Validation.
    pub fn put_record(&mut self, now: u64, input: PutRecordInput) -> Result<PutRecordOutput, ApiError> {
        let now = self.tick(now);
        let hash_key = check_record(&input.data, &input.partition_key, input.explicit_hash_key.as_deref(), "")?;
        if let Some(number) = &input.sequence_number_for_ordering
            && number.parse::<SequenceNumber>().is_err()
        {
            return Err(ApiError::invalid(format!("ExclusiveMinimumSequenceNumber {number} used in PutRecord is invalid.")));
        }
        let enforce = self.config.enforce_write_limits;
        let stream = self.find(input.stream_name.as_deref(), input.stream_arn.as_deref(), now)?;
        check_size(stream, input.data.len() + input.partition_key.len())?;
        let (shard, sequence_number) = store(stream, hash_key, input.partition_key, input.data, enforce, now)?;
        let name = Arc::clone(&stream.name);
        self.changed.insert(name);
        Ok(PutRecordOutput { shard_id: shard_id(shard), sequence_number })
    }

    /// PutRecords. Records that one shard's limits refuse fail for themselves; the others are stored, in the order of the
    /// request.
    ///
    /// # Errors
    /// For the request as a whole, nothing of which is stored then: InvalidArgument for too many bytes;
    /// ResourceNotFound, also while the stream is being created; Validation.
    pub fn put_records(&mut self, now: u64, input: PutRecordsInput) -> Result<PutRecordsOutput, ApiError> {
        let now = self.tick(now);
        let entries = input.records;
        if entries.is_empty() || entries.len() > MAX_PUT_RECORDS {
            let constraint = format!("Member must have length between 1 and {MAX_PUT_RECORDS}");
            return Err(ApiError::constraint(&format!("{} records", entries.len()), "records", &constraint));
        }
        let mut hash_keys = Vec::with_capacity(entries.len());
        for (index, entry) in entries.iter().enumerate() {
            let member = format!("records.{}.member.", index + 1);
            hash_keys.push(check_record(&entry.data, &entry.partition_key, entry.explicit_hash_key.as_deref(), &member)?);
        }
        let bytes: usize = entries.iter().map(|entry| entry.data.len() + entry.partition_key.len()).sum();
        if bytes > MAX_PUT_BYTES {
            return Err(ApiError::invalid(format!("Records size exceeds 10 MB limit: {bytes} bytes of data and partition keys.")));
        }
        let enforce = self.config.enforce_write_limits;
        let stream = self.find(input.stream_name.as_deref(), input.stream_arn.as_deref(), now)?;
        for entry in &entries {
            check_size(stream, entry.data.len() + entry.partition_key.len())?;
        }
        let mut output = PutRecordsOutput { failed_record_count: 0, records: Vec::with_capacity(entries.len()) };
        for (entry, hash_key) in entries.into_iter().zip(hash_keys) {
            let result = match store(stream, hash_key, entry.partition_key, entry.data, enforce, now) {
                Ok((shard, number)) => {
                    PutRecordsResult { sequence_number: Some(number), shard_id: Some(shard_id(shard)), ..PutRecordsResult::default() }
                }
                // A stream that takes no records takes none of them: no record was stored before.
                Err(error) if error.code == ErrorCode::ResourceNotFound => return Err(error),
                Err(error) => {
                    output.failed_record_count += 1;
                    PutRecordsResult {
                        error_code: Some(error.code.to_string()),
                        error_message: Some(error.message),
                        ..PutRecordsResult::default()
                    }
                }
            };
            output.records.push(result);
        }
        let name = Arc::clone(&stream.name);
        self.changed.insert(name);
        Ok(output)
    }

    /// GetShardIterator. LATEST means the place after the newest record at this moment, whenever it is read from.
    ///
    /// # Errors
    /// InvalidArgument for members that don't go together, and for a sequence number that this shard never gave out;
    /// ResourceNotFound; Validation.
    pub fn get_shard_iterator(&mut self, now: u64, input: GetShardIteratorInput) -> Result<GetShardIteratorOutput, ApiError> {
        let now = self.tick(now);
        let id = &input.shard_id;
        validate::shard_id(id, "shardId")?;
        let stream = self.find(input.stream_name.as_deref(), input.stream_arn.as_deref(), now)?;
        let (name, incarnation) = (stream.name.to_string(), stream.incarnation);
        let asked = Asked {
            operation: "GetShardIterator",
            kind: input.shard_iterator_type,
            number: input.starting_sequence_number.as_deref(),
            timestamp: input.timestamp,
        };
        let (shard, position) = asked.find(stream, id, now)?;
        let iterator = ShardIterator { stream: name, incarnation, shard: shard.number, position, issued_at: now };
        Ok(GetShardIteratorOutput { shard_iterator: iterator.encode() })
    }

    /// GetRecords. A closed shard's last records come without a next iterator and with the child shards; if they were
    /// read before it closed, an answer without records does.
    ///
    /// # Errors
    /// ExpiredIterator; ProvisionedThroughputExceeded if limits are enforced; InvalidArgument for an iterator that isn't
    /// one, or is of another stream than the ARN; ResourceNotFound; Validation.
    pub fn get_records(&mut self, now: u64, input: GetRecordsInput) -> Result<GetRecordsOutput, ApiError> {
        let now = self.tick(now);
        let limit = validate::limit(input.limit, "limit", MAX_GET_RECORDS, MAX_GET_RECORDS)?;
        let iterator = ShardIterator::decode(&input.shard_iterator).ok_or_else(|| ApiError::invalid("Invalid ShardIterator."))?;
        let (life, enforce) = (self.config.iterator_life_ms, self.config.enforce_read_limits);
        let ShardIterator { stream: name, incarnation, shard: number, position, issued_at } = &iterator;
        let stream = self.by_incarnation(name, *incarnation, input.stream_arn.as_deref(), now)?;
        if now.saturating_sub(*issued_at) > life {
            let message = format!(
                "Iterator expired. The iterator was created at time {issued_at} while right now it is {now} which is further in the \
                 future than the tolerated delay of {life} milliseconds."
            );
            return Err(ApiError::new(ErrorCode::ExpiredIterator, message));
        }
        let account = Arc::clone(&stream.account);
        let shard = stream.shard_by_number(*number, now).ok_or_else(|| ApiError::invalid("Invalid ShardIterator."))?;
        if enforce && !(shard.limits[0].allows(1, now) && shard.limits[1].allows(1, now)) {
            return Err(rate_exceeded(&shard.id(), name, &account));
        }
        let batch = shard.read(*position, limit, MAX_GET_BYTES, now);
        if enforce {
            shard.limits[0].charge(1, now);
            shard.limits[1].charge(batch.bytes as u64, now);
        }
        let child_shards = batch.ended.then(|| stream.children(*number));
        let next = ShardIterator { position: batch.next, issued_at: now, ..iterator };
        Ok(GetRecordsOutput {
            records: batch.records,
            next_shard_iterator: (!batch.ended).then(|| next.encode()),
            millis_behind_latest: batch.behind_ms,
            child_shards,
        })
    }
}

/// The hash key of a record that is well-formed.
fn check_record(data: &Bytes, partition_key: &str, explicit: Option<&str>, member: &str) -> Result<u128, ApiError> {
    let most = MAX_RECORD_SIZE_KIB as usize * 1_024;
    if data.len() > most {
        let constraint = format!("Member must have length less than or equal to {most}");
        return Err(ApiError::constraint(&format!("{} bytes", data.len()), &format!("{member}data"), &constraint));
    }
    validate::partition_key(partition_key, &format!("{member}partitionKey"))?;
    match explicit {
        Some(text) => validate::hash_key(text, "ExplicitHashKey"),
        None => Ok(u128::from_be_bytes(Md5::digest(partition_key.as_bytes()).into())),
    }
}

fn check_size(stream: &Stream, bytes: usize) -> Result<(), ApiError> {
    let most = stream.max_record_size_kib;
    if bytes > most as usize * 1_024 {
        return Err(ApiError::invalid(format!(
            "Record of {bytes} bytes of data and partition key exceeds the maximum record size of {most} KiB of stream {} under account {}.",
            stream.name, stream.account
        )));
    }
    Ok(())
}

/// Stores a record in the shard that takes its hash key.
fn store(
    stream: &mut Stream,
    hash_key: u128,
    partition_key: String,
    data: Bytes,
    enforce: bool,
    now: u64,
) -> Result<(u32, SequenceNumber), ApiError> {
    let (name, account) = (Arc::clone(&stream.name), Arc::clone(&stream.account));
    let bytes = (data.len() + partition_key.len()) as u64;
    let Some(shard) = stream.route(hash_key) else {
        return Err(ApiError::not_found(format!("Stream {name} under account {account} not found.")));
    };
    if enforce {
        if !(shard.limits[2].allows(1, now) && shard.limits[3].allows(bytes, now)) {
            return Err(rate_exceeded(&shard.id(), &name, &account));
        }
        shard.limits[2].charge(1, now);
        shard.limits[3].charge(bytes, now);
    }
    Ok((shard.number, shard.append(partition_key, data, now)))
}

fn rate_exceeded(shard: &str, stream: &str, account: &str) -> ApiError {
    let message = format!("Rate exceeded for shard {shard} in stream {stream} under account {account}.");
    ApiError::new(ErrorCode::ProvisionedThroughputExceeded, message)
}
