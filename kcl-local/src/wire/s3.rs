//! S3: awsim's in-memory buckets, called in process.
//!
//! S3 has no `x-amz-target`: method, path and query name the operation. Buckets are addressed by path (`/BUCKET/KEY`), as SDKs do where the
//! endpoint is an address.

use std::fmt;
use std::sync::Arc;

use awsim_core::protocol::rest::{parse_xml_request, serialize_error, serialize_xml_response};
use awsim_core::{AwsError, RequestContext, ServiceHandler as _};
use awsim_s3::S3Service;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::header::{AUTHORIZATION, HeaderMap};
use http::request::Parts;
use http::{Method, StatusCode};
use serde_json::Value;

use super::answer::Answer;

/// An in-memory S3.
#[derive(Clone)]
pub(super) struct S3 {
    buckets: Arc<S3Service>,
    account: String,
    region: String,
}

impl S3 {
    /// A service without buckets.
    pub(super) fn new(account: String, region: String) -> Self {
        Self { buckets: Arc::new(S3Service::new()), account, region }
    }

    /// The operation that a request asks for, if it is signed for S3.
    pub(super) fn operation(&self, head: &Parts) -> Option<String> {
        is_for_s3(head).then(|| self.parse(head, &Bytes::new()).map_or_else(|_| "Unknown".to_owned(), |(operation, _)| operation))
    }

    /// One call.
    ///
    /// Cancel safety: applied at once.
    pub(super) async fn call(&self, head: &Parts, body: &Bytes, request_id: &str) -> Answer {
        let context = RequestContext {
            account_id: self.account.clone(),
            region: self.region.clone(),
            service: "s3".to_owned(),
            request_id: request_id.to_owned(),
            ..RequestContext::default()
        };
        let answered = match self.parse(head, body) {
            Ok((operation, input)) => self.buckets.handle(&operation, input, &context).await,
            Err(error) => Err(error),
        };
        let (status, headers, body) = match answered {
            Ok(output) => serialize_xml_response(&output, request_id),
            Err(error) => serialize_error(&error, request_id),
        };
        // What a HEAD has in place of a body is its headers.
        let body = if head.method == Method::HEAD { Bytes::new() } else { body };
        Answer { headers, ..Answer { status: status.as_u16(), ..Answer::ok(body) } }
    }

    fn parse(&self, head: &Parts, body: &Bytes) -> Result<(String, Value), AwsError> {
        let routes = self.buckets.routes();
        let mut parsed = parse_xml_request(&head.method, &head.uri, &head.headers, &Bytes::new(), &routes)?;
        // Asked for by this header, and looked for by the crate under another name.
        if let Some(key) = parsed.input.get("ServerSideEncryptionAwsKmsKeyId").cloned() {
            parsed.input["SSEKMSKeyId"] = key;
        }
        if body.is_empty() {
            return Ok((parsed.operation, parsed.input));
        }
        if matches!(parsed.operation.as_str(), "PutObject" | "UploadPart") {
            // An object's bytes are its own: the parser would take those apart that look like XML.
            let mut input = parsed.input;
            input["__raw_body"] = Value::String(STANDARD.encode(body));
            return Ok((parsed.operation, input));
        }
        let parsed = parse_xml_request(&head.method, &head.uri, &head.headers, body, &routes)?;
        Ok((parsed.operation, parsed.input))
    }
}

impl fmt::Debug for S3 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("S3").finish_non_exhaustive()
    }
}

/// Whether the request's signature is for S3, in the header or in a URL that was signed beforehand.
fn is_for_s3(head: &Parts) -> bool {
    let signed = head.headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok()).unwrap_or_default();
    signed.contains("/s3/aws4_request") || head.uri.query().is_some_and(|query| query.contains("%2Fs3%2Faws4_request"))
}

/// An error as S3 words it.
pub(super) fn error(status: u16, code: &str, message: &str) -> Answer {
    let mut error = AwsError::bad_request(code, message);
    error.status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let (_, headers, body): (_, HeaderMap, _) = serialize_error(&error, "kcl-local");
    Answer { headers, ..Answer { status, ..Answer::ok(body) } }
}
