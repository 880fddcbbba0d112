//! What a service answered, before it is put into the format the caller speaks.

use bytes::Bytes;
use http::HeaderMap;
use serde_json::json;

/// Status, body (JSON, but for S3), and the headers that some services need beside it.
#[derive(Debug, Clone)]
pub(super) struct Answer {
    /// HTTP status.
    pub(super) status: u16,
    /// JSON text, or what S3 answers; may be empty, as for an operation without an output.
    pub(super) body: Bytes,
    /// `x-amzn-query-error`: the code an SQS error had in the service's older protocol, by which SDKs tell it apart.
    pub(super) query_error: Option<String>,
    /// Of S3, whose answers are made of them; the content type among them.
    pub(super) headers: HeaderMap,
}

impl Answer {
    /// A success.
    pub(super) fn ok(body: impl Into<Bytes>) -> Self {
        Self { status: 200, body: body.into(), query_error: None, headers: HeaderMap::new() }
    }

    /// An error as AWS's JSON protocols word it.
    pub(super) fn error(status: u16, code: &str, message: &str) -> Self {
        let body = json!({ "__type": code, "message": message }).to_string();
        Self { status, ..Self::ok(body) }
    }

    /// An error of SQS, given by its code in the older query protocol.
    pub(super) fn query_error(status: u16, code: &str, message: &str) -> Self {
        let side = if status < 500 { "Sender" } else { "Receiver" };
        let mut answer = Self::error(status, query_shape(code), message);
        answer.query_error = Some(format!("{code};{side}"));
        answer
    }
}

/// The name in the service's model of an error with this code in the query protocol. Most differ by a prefix alone.
fn query_shape(code: &str) -> &str {
    match code {
        "AWS.SimpleQueueService.NonExistentQueue" => "QueueDoesNotExist",
        "QueueAlreadyExists" => "QueueNameExists",
        code => code.strip_prefix("AWS.SimpleQueueService.").unwrap_or(code),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_sqs_error_carries_both_its_names() {
        let answer = Answer::query_error(400, "AWS.SimpleQueueService.NonExistentQueue", "no such queue");
        let body: serde_json::Value = serde_json::from_slice(&answer.body).unwrap();
        assert_eq!(body, json!({ "__type": "QueueDoesNotExist", "message": "no such queue" }));
        assert_eq!(answer.query_error.as_deref(), Some("AWS.SimpleQueueService.NonExistentQueue;Sender"));
    }
}
