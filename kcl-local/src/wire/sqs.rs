//! SQS: awsim's in-memory queues, called in process.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

use awsim_core::protocol::json::serialize_response;
use awsim_core::{AwsError, RequestContext, ServiceHandler as _};
use awsim_sqs::SqsService;
use serde_json::{Value, json};

use super::answer::Answer;

/// Bytes that a batch may have.
const LARGEST_BATCH: usize = 1_048_576;

/// An in-memory SQS.
#[derive(Clone)]
pub(super) struct Sqs {
    queues: Arc<SqsService>,
    /// `host:port`, which queue URLs begin with.
    authority: String,
    account: String,
    region: String,
}

impl Sqs {
    /// A service without queues, reached at `authority`.
    pub(super) fn new(authority: String, account: String, region: String) -> Self {
        Self { queues: Arc::new(SqsService::new()), authority, account, region }
    }

    /// One call of the JSON protocol.
    ///
    /// Cancel safety: ReceiveMessage waits for messages; cancelled while it waits it has taken none. Any other call is
    /// applied at once.
    pub(super) async fn call(&self, operation: &str, body: &[u8], request_id: &str) -> Answer {
        let input = if body.is_empty() { Ok(json!({})) } else { serde_json::from_slice::<Value>(body) };
        let input = match input {
            Ok(input) => input,
            Err(error) => return Answer::error(400, "SerializationException", &error.to_string()),
        };
        let context = RequestContext {
            account_id: self.account.clone(),
            region: self.region.clone(),
            service: "sqs".to_owned(),
            request_id: request_id.to_owned(),
            endpoint_authority: Some(self.authority.clone()),
            ..RequestContext::default()
        };
        match self.handle(operation, input, &context).await {
            Ok(output) => Answer::ok(serialize_response(&output, request_id).2),
            Err(error) => Answer::query_error(error.status.as_u16(), &error.code, &error.message),
        }
    }

    async fn handle(&self, operation: &str, input: Value, context: &RequestContext) -> Result<Value, AwsError> {
        match operation {
            "SendMessage" => {
                self.check_size(&input, context).await?;
                self.queues.handle(operation, input, context).await
            }
            "SendMessageBatch" => self.send_batch(&input, context).await,
            _ => self.queues.handle(operation, input, context).await,
        }
    }

    /// A batch, as SQS takes it since August 2025: 1 MiB in all, each message within its queue's limit. The crate has the former limit, and none
    /// for the single message.
    async fn send_batch(&self, batch: &Value, context: &RequestContext) -> Result<Value, AwsError> {
        let entries = batch["Entries"].as_array().map(Vec::as_slice).unwrap_or_default();
        let bytes: usize = entries.iter().map(message_size).sum();
        let ids: BTreeSet<_> = entries.iter().map(|entry| entry["Id"].as_str()).collect();
        let refused = |code: &str, message: &str| Err(AwsError::bad_request(format!("AWS.SimpleQueueService.{code}"), message));
        match entries.len() {
            0 => return refused("EmptyBatchRequest", "There should be at least one SendMessageBatchRequestEntry in the request."),
            11.. => return refused("TooManyEntriesInBatchRequest", "Maximum number of entries per request are 10."),
            count if ids.len() < count => return refused("BatchEntryIdsNotDistinct", "Two or more batch entries have the same Id."),
            _ if bytes > LARGEST_BATCH => {
                return refused(
                    "BatchRequestTooLong",
                    &format!("Batch requests cannot be longer than {LARGEST_BATCH} bytes. You have sent {bytes} bytes."),
                );
            }
            _ => {}
        }
        let (mut successful, mut failed) = (Vec::new(), Vec::new());
        for entry in entries {
            let mut message = entry.clone();
            message["QueueUrl"] = batch["QueueUrl"].clone();
            let sent = match self.check_size(&message, context).await {
                Ok(()) => self.queues.handle("SendMessage", message, context).await,
                Err(error) => Err(error),
            };
            match sent {
                Ok(mut sent) => {
                    sent["Id"] = entry["Id"].clone();
                    successful.push(sent);
                }
                // The queue is missing for all of them.
                Err(error) if error.code.ends_with("NonExistentQueue") => return Err(error),
                Err(error) => failed.push(json!({ "Id": entry["Id"], "SenderFault": true, "Code": error.code, "Message": error.message })),
            }
        }
        Ok(json!({ "Successful": successful, "Failed": failed }))
    }

    /// Refuses a message above its queue's `MaximumMessageSize`, as SQS does and the crate does not: a dead-letter
    /// queue must not seem to take what the real one would refuse.
    async fn check_size(&self, message: &Value, context: &RequestContext) -> Result<(), AwsError> {
        let wanted = json!({ "QueueUrl": message["QueueUrl"], "AttributeNames": ["MaximumMessageSize"] });
        let queue = self.queues.handle("GetQueueAttributes", wanted, context).await?;
        let limit = queue["Attributes"]["MaximumMessageSize"].as_str().and_then(|limit| limit.parse().ok());
        match limit {
            Some(limit) if message_size(message) > limit => Err(AwsError::bad_request(
                "InvalidParameterValue",
                format!("One or more parameters are invalid. Reason: Message must be shorter than {limit} bytes."),
            )),
            _ => Ok(()),
        }
    }
}

/// What SQS counts against the limit: the body, and names, types and values of the attributes.
fn message_size(message: &Value) -> usize {
    let text = |value: &Value| value.as_str().map_or(0, str::len);
    let attributes = message["MessageAttributes"].as_object().into_iter().flatten().map(|(name, attribute)| {
        // Base64: four characters for three bytes.
        let binary = attribute["BinaryValue"].as_str().map_or(0, |text| text.trim_end_matches('=').len() * 3 / 4);
        name.len() + text(&attribute["DataType"]) + text(&attribute["StringValue"]) + binary
    });
    text(&message["MessageBody"]) + attributes.sum::<usize>()
}

impl fmt::Debug for Sqs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sqs").field("authority", &self.authority).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_count_against_the_limit() {
        let message = json!({
            "MessageBody": "12345",
            "MessageAttributes": {
                "text": { "DataType": "String", "StringValue": "abc" },
                "bytes": { "DataType": "Binary", "BinaryValue": "AAECAw==" },
            },
        });
        assert_eq!(message_size(&message), 5 + (4 + 6 + 3) + (5 + 6 + 4));
    }
}
