//! What went wrong with a request, in the port's terms.

use std::error::Error;
use std::fmt::{self, Write};

use aws_credential_types::provider::error::CredentialsError;
use aws_sdk_kinesis::error::{ProvideErrorMetadata, SdkError};

use crate::stream::StreamError;

/// Names the request for its errors.
#[derive(Clone, Copy)]
pub(super) struct Call<'a> {
    /// The stream, as the user named it.
    pub(super) stream: &'a str,
    /// The operation, as IAM names it.
    pub(super) operation: &'static str,
}

impl Call<'_> {
    /// The service answered with what can't be an answer.
    pub(super) fn malformed(self, problem: impl fmt::Display) -> StreamError {
        self.unavailable(format!("the answer can't be used: {problem}"))
    }

    /// The SDK's error.
    pub(super) fn failed<E>(self, error: &SdkError<E>) -> StreamError
    where
        E: Error + ProvideErrorMetadata + 'static,
    {
        match error {
            SdkError::ServiceError(refusal) => {
                let refusal = refusal.err();
                match refusal.code() {
                    Some(code) => self.refused(code, refusal.message().unwrap_or(code)),
                    None => self.unavailable(chain(error)),
                }
            }
            _ if is_misconfigured(error) => {
                let how = "the AWS configuration has no usable credentials or no region; set them by the standard AWS environment or configuration";
                self.denied(&format!("{how} ({})", chain(error)))
            }
            _ => self.unavailable(chain(error)),
        }
    }

    /// The service's error of this code.
    fn refused(self, code: &str, message: &str) -> StreamError {
        let (stream, operation, message) = (self.stream.to_owned(), self.operation, message.to_owned());
        match code {
            "ResourceNotFoundException" => StreamError::NotFound { stream, operation, message },
            "AccessDeniedException"
            | "AccessDenied"
            | "NotAuthorized"
            | "OptInRequired"
            | "UnrecognizedClientException"
            | "InvalidClientTokenId"
            | "MissingAuthenticationToken"
            | "MissingAuthenticationTokenException"
            | "IncompleteSignature"
            | "IncompleteSignatureException"
            | "InvalidSignatureException"
            | "ExpiredToken"
            | "ExpiredTokenException" => StreamError::AccessDenied { stream, operation, message },
            "ProvisionedThroughputExceededException"
            | "LimitExceededException"
            | "KMSThrottlingException"
            | "Throttling"
            | "ThrottlingException"
            | "ThrottledException"
            | "RequestLimitExceeded"
            | "RequestThrottled"
            | "RequestThrottledException"
            | "TooManyRequestsException"
            | "SlowDown" => StreamError::Throttled { stream, operation },
            "ExpiredIteratorException" => StreamError::ExpiredIterator { stream },
            "InvalidArgumentException" | "ValidationException" | "ValidationError" | "SerializationException" => {
                StreamError::InvalidArgument { stream, operation, message }
            }
            "ResourceInUseException" => StreamError::NotReady { stream, operation, message },
            kms if kms.starts_with("KMS") => StreamError::Kms { stream, operation, message },
            other => self.unavailable(format!("{other}: {message}")),
        }
    }

    fn denied(self, message: &str) -> StreamError {
        StreamError::AccessDenied { stream: self.stream.to_owned(), operation: self.operation, message: message.to_owned() }
    }

    fn unavailable(self, message: String) -> StreamError {
        StreamError::Unavailable { stream: self.stream.to_owned(), operation: self.operation, message }
    }
}

/// Whether the request was never sent for want of credentials or of a region: no later attempt mends that.
///
/// A source of credentials that fails or is slow may recover, so that is not among them.
fn is_misconfigured(error: &(dyn Error + 'static)) -> bool {
    causes(error).any(|cause| match cause.downcast_ref::<CredentialsError>() {
        Some(credentials) => {
            matches!(credentials, CredentialsError::CredentialsNotLoaded(_) | CredentialsError::InvalidConfiguration(_))
        }
        // The SDK has no public types for these two.
        None => {
            let said = cause.to_string();
            said.contains("no identity resolver") || said.contains("Missing Region")
        }
    })
}

/// The error and its causes in their own words.
///
/// Not the SDK's `DisplayErrorContext`: that adds the `Debug` form, which shows the answer's body and with it the users' records.
fn chain(error: &(dyn Error + 'static)) -> String {
    let mut text = String::new();
    for cause in causes(error) {
        let separator = if text.is_empty() { "" } else { ": " };
        write!(text, "{separator}{cause}").expect("writing to a string does not fail");
    }
    text
}

fn causes<'a>(error: &'a (dyn Error + 'static)) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    std::iter::successors(Some(error), |&error| error.source())
}
