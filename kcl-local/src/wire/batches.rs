//! Calls that carry many entries, some of which fail by a fault while the others are applied.
//!
//! The entries that are to fail are taken out of the request before the service sees it, and put into its answer. All of it is JSON.

use serde_json::{Map, Value, json};

use super::Service;

/// The operations of this kind, each with the list that carries its entries.
fn entries_of(service: Service, operation: &str) -> Option<&'static str> {
    match (service, operation) {
        (Service::Kinesis, "PutRecords") => Some("Records"),
        (Service::Sqs, "SendMessageBatch") => Some("Entries"),
        _ => None,
    }
}

/// Whether single entries of this operation can fail.
pub(super) fn has_entries(service: Service, operation: &str) -> bool {
    entries_of(service, operation).is_some()
}

/// A request without the entries that are to fail, and what its answer lacks therefore.
#[derive(Debug)]
pub(super) struct Taken {
    service: Service,
    code: &'static str,
    /// Index and entry of each.
    entries: Vec<(usize, Value)>,
    left: usize,
}

const MESSAGE: &str = "a fault injected by kcl-local";

/// Takes the entries at these places out of a request. `None`: there is nothing to take.
pub(super) fn take(service: Service, operation: &str, body: &[u8], places: &[usize], code: &'static str) -> Option<(Vec<u8>, Taken)> {
    let list = entries_of(service, operation)?;
    let mut request: Map<String, Value> = serde_json::from_slice(body).ok()?;
    let all = std::mem::take(request.get_mut(list)?.as_array_mut()?);
    let (gone, left): (Vec<_>, Vec<_>) = all.into_iter().enumerate().partition(|(at, _)| places.contains(at));
    let taken = Taken { service, code, entries: gone, left: left.len() };
    request[list] = left.into_iter().map(|(_, entry)| entry).collect();
    (!taken.entries.is_empty()).then(|| (Value::Object(request).to_string().into_bytes(), taken))
}

impl Taken {
    /// Whether nothing is left to be applied.
    pub(super) fn is_all(&self) -> bool {
        self.left == 0
    }

    /// The answer to the request that is left, or `{}` if nothing is, completed by the entries that failed.
    pub(super) fn complete(self, answer: &[u8]) -> Vec<u8> {
        let mut answer: Map<String, Value> = serde_json::from_slice(answer).unwrap_or_default();
        let failed = self.entries.len();
        match self.service {
            Service::Kinesis => {
                let records = answer.entry("Records").or_insert_with(|| json!([]));
                if let Some(records) = records.as_array_mut() {
                    for (at, _) in self.entries {
                        records.insert(at.min(records.len()), json!({ "ErrorCode": self.code, "ErrorMessage": MESSAGE }));
                    }
                }
                let before = answer.get("FailedRecordCount").and_then(Value::as_u64).unwrap_or_default();
                answer.insert("FailedRecordCount".to_owned(), json!(before + failed as u64));
            }
            _ => {
                answer.entry("Successful").or_insert_with(|| json!([]));
                let list = answer.entry("Failed").or_insert_with(|| json!([]));
                if let Some(list) = list.as_array_mut() {
                    let entry = |(_, entry): (usize, Value)| json!({ "Id": entry["Id"], "SenderFault": false, "Code": self.code, "Message": MESSAGE });
                    list.extend(self.entries.into_iter().map(entry));
                }
            }
        }
        Value::Object(answer).to_string().into_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(bytes: &[u8]) -> Value {
        serde_json::from_slice(bytes).unwrap()
    }

    #[test]
    fn entries_of_a_message_batch_fail_by_their_ids() {
        let body = json!({ "QueueUrl": "q", "Entries": [{ "Id": "a" }, { "Id": "b" }, { "Id": "c" }] }).to_string();
        let (left, taken) = take(Service::Sqs, "SendMessageBatch", body.as_bytes(), &[1, 7], "InternalError").unwrap();
        assert_eq!(value(&left), json!({ "QueueUrl": "q", "Entries": [{ "Id": "a" }, { "Id": "c" }] }));
        assert!(!taken.is_all());
        let answer = value(&taken.complete(br#"{"Successful":[{"Id":"a"},{"Id":"c"}],"Failed":[]}"#));
        assert_eq!(answer["Successful"], json!([{ "Id": "a" }, { "Id": "c" }]));
        assert_eq!((&answer["Failed"][0]["Id"], &answer["Failed"][0]["Code"]), (&json!("b"), &json!("InternalError")));
    }

    #[test]
    fn records_that_fail_keep_their_places() {
        let body = json!({ "StreamName": "s", "Records": [1, 2, 3, 4] }).to_string();
        let (left, taken) = take(Service::Kinesis, "PutRecords", body.as_bytes(), &[0, 2], "InternalFailure").unwrap();
        assert_eq!(value(&left)["Records"], json!([2, 4]));
        let answer = value(&taken.complete(br#"{"FailedRecordCount":0,"Records":[{"ShardId":"2"},{"ShardId":"4"}]}"#));
        assert_eq!(answer["FailedRecordCount"], 2);
        let shards: Vec<_> = answer["Records"].as_array().unwrap().iter().map(|record| record["ShardId"].as_str()).collect();
        assert_eq!(shards, [None, Some("2"), None, Some("4")]);
    }

    #[test]
    fn other_calls_are_left_alone() {
        assert!(take(Service::Sqs, "SendMessage", b"{}", &[0], "x").is_none());
        assert!(take(Service::Sqs, "SendMessageBatch", br#"{"Entries":[]}"#, &[0], "x").is_none());
        assert!(take(Service::Kinesis, "PutRecords", b"not JSON", &[0], "x").is_none());
        let (_, taken) = take(Service::Sqs, "SendMessageBatch", br#"{"Entries":[{"Id":"a"}]}"#, &[0], "x").unwrap();
        assert!(taken.is_all());
    }
}
