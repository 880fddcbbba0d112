//! The JSON face: an operation by its name, its input and output as the service's JSON.
//!
//! Owns the list of operations. There is no HTTP here.

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::error::{ApiError, ErrorCode};
use super::handle::{Kinesis, Operation};
use super::model::Model;
use super::types::{
    AddTagsToStreamInput, CreateStreamInput, DecreaseStreamRetentionPeriodInput, DeleteStreamInput, DeregisterStreamConsumerInput,
    DescribeStreamConsumerInput, DescribeStreamConsumerOutput, DescribeStreamInput, DescribeStreamOutput, DescribeStreamSummaryInput,
    DescribeStreamSummaryOutput, GetRecordsInput, GetRecordsOutput, GetShardIteratorInput, GetShardIteratorOutput,
    IncreaseStreamRetentionPeriodInput, ListShardsInput, ListShardsOutput, ListStreamConsumersInput, ListStreamConsumersOutput,
    ListStreamsInput, ListStreamsOutput, ListTagsForStreamInput, ListTagsForStreamOutput, MergeShardsInput, PutRecordInput,
    PutRecordOutput, PutRecordsInput, PutRecordsOutput, RegisterStreamConsumerInput, RegisterStreamConsumerOutput,
    RemoveTagsFromStreamInput, SplitShardInput, UpdateMaxRecordSizeInput, UpdateShardCountInput, UpdateShardCountOutput,
};

/// Every operation once: its name on the wire, the model's method, input and output.
macro_rules! operations {
    ($($name:literal: $method:ident($input:ident) -> $output:ty;)*) => {
        $(impl Operation for $input {
            type Output = $output;

            fn apply(self, model: &mut Model, now: u64) -> Result<$output, ApiError> {
                model.$method(now, self)
            }
        })*

        /// Calls an operation: `operation` is what follows `Kinesis_20131202.` in the `x-amz-target` header, `body` the
        /// JSON input. The answer is the JSON output, empty for an operation that has none.
        ///
        /// # Errors
        /// What the service refuses; nothing was applied then.
        pub fn call(kinesis: &Kinesis, operation: &str, body: &[u8]) -> Result<Vec<u8>, ApiError> {
            match operation {
                $($name => run::<$input>(kinesis, body),)*
                _ => Err(ApiError::new(ErrorCode::UnknownOperation, format!("kcl-local has no operation {operation} of Kinesis"))),
            }
        }
    };
}

operations! {
    "AddTagsToStream": add_tags_to_stream(AddTagsToStreamInput) -> ();
    "CreateStream": create_stream(CreateStreamInput) -> ();
    "DecreaseStreamRetentionPeriod": decrease_stream_retention_period(DecreaseStreamRetentionPeriodInput) -> ();
    "DeleteStream": delete_stream(DeleteStreamInput) -> ();
    "DeregisterStreamConsumer": deregister_stream_consumer(DeregisterStreamConsumerInput) -> ();
    "DescribeStream": describe_stream(DescribeStreamInput) -> DescribeStreamOutput;
    "DescribeStreamConsumer": describe_stream_consumer(DescribeStreamConsumerInput) -> DescribeStreamConsumerOutput;
    "DescribeStreamSummary": describe_stream_summary(DescribeStreamSummaryInput) -> DescribeStreamSummaryOutput;
    "GetRecords": get_records(GetRecordsInput) -> GetRecordsOutput;
    "GetShardIterator": get_shard_iterator(GetShardIteratorInput) -> GetShardIteratorOutput;
    "IncreaseStreamRetentionPeriod": increase_stream_retention_period(IncreaseStreamRetentionPeriodInput) -> ();
    "ListShards": list_shards(ListShardsInput) -> ListShardsOutput;
    "ListStreamConsumers": list_stream_consumers(ListStreamConsumersInput) -> ListStreamConsumersOutput;
    "ListStreams": list_streams(ListStreamsInput) -> ListStreamsOutput;
    "ListTagsForStream": list_tags_for_stream(ListTagsForStreamInput) -> ListTagsForStreamOutput;
    "MergeShards": merge_shards(MergeShardsInput) -> ();
    "PutRecord": put_record(PutRecordInput) -> PutRecordOutput;
    "PutRecords": put_records(PutRecordsInput) -> PutRecordsOutput;
    "RegisterStreamConsumer": register_stream_consumer(RegisterStreamConsumerInput) -> RegisterStreamConsumerOutput;
    "RemoveTagsFromStream": remove_tags_from_stream(RemoveTagsFromStreamInput) -> ();
    "SplitShard": split_shard(SplitShardInput) -> ();
    "UpdateMaxRecordSize": update_max_record_size(UpdateMaxRecordSizeInput) -> ();
    "UpdateShardCount": update_shard_count(UpdateShardCountInput) -> UpdateShardCountOutput;
}

fn run<O: Operation<Output: Serialize> + DeserializeOwned>(kinesis: &Kinesis, body: &[u8]) -> Result<Vec<u8>, ApiError> {
    let output = serde_json::to_vec(&kinesis.call(input::<O>(body)?)?).expect("outputs are maps with text keys and finite numbers");
    // An operation without output answers with no body at all.
    Ok(if output == b"null" { Vec::new() } else { output })
}

/// The input of an operation from its JSON: for one that [`call`] doesn't have, because its answer is not JSON but a
/// stream ([`SubscribeToShardInput`](super::SubscribeToShardInput)).
///
/// # Errors
/// Validation for a member that is missing or out of its set, Serialization for what isn't the operation's JSON.
pub fn input<O: Operation + DeserializeOwned>(body: &[u8]) -> Result<O, ApiError> {
    let body = if body.is_empty() { b"{}" } else { body };
    serde_json::from_slice(body).map_err(|error| unreadable(&error))
}

/// The service tells broken constraints of members from a body that isn't the operation's at all.
fn unreadable(error: &serde_json::Error) -> ApiError {
    let text = error.to_string();
    if let Some(member) = text.strip_prefix("missing field `").and_then(|rest| rest.split('`').next()) {
        let mut member = member.to_owned();
        member[..1].make_ascii_lowercase();
        let message =
            format!("1 validation error detected: Value null at '{member}' failed to satisfy constraint: Member must not be null");
        return ApiError::new(ErrorCode::Validation, message);
    }
    // A name that isn't of the enumeration, a number out of its type's range. Neither quotes a payload: blobs and
    // partition keys are texts of no fixed set.
    let constraint = text.starts_with("unknown variant") || text.starts_with("invalid value: integer");
    let code = if constraint { ErrorCode::Validation } else { ErrorCode::Serialization };
    let message = if constraint { text } else { format!("the body isn't the operation's JSON, at {}:{}", error.line(), error.column()) };
    ApiError::new(code, message)
}
