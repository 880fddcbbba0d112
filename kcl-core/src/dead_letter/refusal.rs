//! What an unsuccessful call of an AWS service means to whoever sends dead letters.

use std::error::Error;
use std::fmt;

use aws_sdk_sqs::error::{ProvideErrorMetadata, SdkError};

use kcl_checkpoint::advice;

use super::DeadLetterError;

/// Codes by which AWS services refuse credentials, or what these may do.
const DENIED: &[&str] = &[
    "AccessDenied",
    "AccessDeniedException",
    "ExpiredToken",
    "ExpiredTokenException",
    "IncompleteSignature",
    "IncompleteSignatureException",
    "InvalidAccessKeyId",
    "InvalidClientTokenId",
    "InvalidSecurity",
    "InvalidSignatureException",
    "KMSAccessDeniedException",
    "KmsAccessDenied",
    "MissingAuthenticationToken",
    "MissingAuthenticationTokenException",
    "NotAuthorized",
    "OptInRequired",
    "SignatureDoesNotMatch",
    "UnrecognizedClientException",
];

/// Codes that say that the queue is not there.
const MISSING: &[&str] = &["QueueDoesNotExist", "NonExistentQueue", "InvalidAddress", "ResourceNotFoundException"];

/// Whether this code refuses credentials, or what these may do. Codes may come with a service's name before them.
pub(crate) fn is_denied(code: &str) -> bool {
    DENIED.contains(&last_part(code))
}

/// What an unsuccessful call means.
pub(crate) fn refusal<E, R>(queue: &str, operation: &'static str, error: &SdkError<E, R>) -> DeadLetterError
where
    E: Error + ProvideErrorMetadata + 'static,
    R: fmt::Debug,
{
    match error.as_service_error() {
        Some(refused) => {
            let words = refused.message().map_or_else(|| refused.to_string(), str::to_owned);
            by_code(queue, operation, refused.code().unwrap_or_default(), words)
        }
        None => DeadLetterError::Unavailable {
            queue: queue.to_owned(),
            message: format!("{operation}: {}", advice::unanswered(with_causes(error))),
        },
    }
}

/// What a refusal with this code means. The same code may come in two spellings: the JSON protocol's and the older query protocol's.
///
/// See the common errors and the errors of each operation in the APIs of SQS and Kinesis.
pub(super) fn by_code(queue: &str, operation: &'static str, code: &str, message: String) -> DeadLetterError {
    let queue = queue.to_owned();
    let bare = last_part(code);
    // Asked for by something that no queue can be called.
    let impossible = operation == "sqs:GetQueueUrl" && bare.starts_with("InvalidParameterValue");
    if MISSING.contains(&bare) || impossible {
        DeadLetterError::NotFound { queue, message }
    } else if is_denied(code) {
        DeadLetterError::AccessDenied { queue, operation, message: advice::refused(code, &message) }
    } else {
        DeadLetterError::Unavailable { queue, message: format!("{operation}: {code}: {message}") }
    }
}

fn last_part(code: &str) -> &str {
    code.rsplit('.').next().unwrap_or_default()
}

/// An error's words and those of its causes. Display only: Debug of an SDK error may show a whole answer.
pub(crate) fn with_causes(error: &dyn Error) -> String {
    let mut words = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        words = format!("{words}: {error}");
        cause = error.source();
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_mean_what_their_codes_say() {
        let meaning = |operation, code: &str| match by_code("q", operation, code, "words".into()) {
            DeadLetterError::NotFound { .. } => "not found",
            DeadLetterError::AccessDenied { operation: named, .. } if named == operation => "denied",
            DeadLetterError::Unavailable { message, .. } if message == format!("{operation}: {code}: words") => "unavailable",
            other => panic!("{other}"),
        };
        for (code, expected) in [
            ("QueueDoesNotExist", "not found"),
            ("AWS.SimpleQueueService.NonExistentQueue", "not found"),
            ("InvalidAddress", "not found"),
            ("ResourceNotFoundException", "not found"),
            ("AccessDeniedException", "denied"),
            ("InvalidClientTokenId", "denied"),
            ("ExpiredTokenException", "denied"),
            ("KMS.AccessDeniedException", "denied"),
            ("KMSAccessDeniedException", "denied"),
            ("RequestThrottled", "unavailable"),
            ("AWS.SimpleQueueService.RequestThrottled", "unavailable"),
            ("ProvisionedThroughputExceededException", "unavailable"),
            ("InternalFailure", "unavailable"),
            ("InvalidParameterValue", "unavailable"),
            ("", "unavailable"),
        ] {
            assert_eq!(meaning("sqs:SendMessage", code), expected, "{code}");
        }
        assert_eq!(meaning("sqs:GetQueueUrl", "InvalidParameterValue"), "not found");
        assert_eq!(meaning("sqs:GetQueueUrl", "InvalidParameterValueException"), "not found");
    }
}
