//! What went wrong with a request to Kinesis, as far as any caller cares: the SDK's errors by their kind.

use std::error::Error;
use std::fmt::Write;

use aws_credential_types::provider::error::CredentialsError;
use aws_sdk_kinesis::error::{ProvideErrorMetadata, SdkError};
use kcl_checkpoint::advice;

/// A failed request by its kind. Texts are the service's own words, or what is known of the failure; never a payload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// What was asked for does not exist.
    NotFound(String),
    /// The credentials do not allow it, or are missing, wrong or expired.
    AccessDenied(String),
    /// The key that encrypts the stream can't be used.
    Kms(String),
    /// Over a rate, or a limit of the account.
    Throttled(String),
    /// The iterator is older than five minutes.
    ExpiredIterator,
    /// The service refused an argument.
    InvalidArgument(String),
    /// What was asked for is in use, or in a state that does not allow it.
    InUse(String),
    /// No answer, or a failure of the service.
    Unavailable(String),
}

impl Refusal {
    /// The kind of the SDK's error.
    pub fn of<E, R>(error: &SdkError<E, R>) -> Self
    where
        E: Error + ProvideErrorMetadata + 'static,
        R: std::fmt::Debug + 'static,
    {
        match error {
            SdkError::ServiceError(refusal) => {
                let refusal = refusal.err();
                match refusal.code() {
                    Some(code) => Self::of_code(code, refusal.message().unwrap_or(code)),
                    None => Self::Unavailable(format!("what answers at the endpoint may be another service ({})", chain(error))),
                }
            }
            _ if is_misconfigured(error) => {
                let texts = chain(error);
                Self::AccessDenied(match advice::for_failure(&texts) {
                    Some(advice) => format!("{advice} ({texts})"),
                    None => format!("the AWS configuration has no usable credentials or no region ({texts})"),
                })
            }
            _ => Self::Unavailable(advice::unanswered(chain(error))),
        }
    }

    /// The kind of the service's error of this code.
    #[must_use]
    pub fn of_code(code: &str, message: &str) -> Self {
        let said = advice::refused(code, message);
        match code {
            "ResourceNotFoundException" => Self::NotFound(said),
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
            | "ExpiredTokenException" => Self::AccessDenied(said),
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
            | "SlowDown" => Self::Throttled(said),
            "ExpiredIteratorException" => Self::ExpiredIterator,
            "InvalidArgumentException" | "ValidationException" | "ValidationError" | "SerializationException" => {
                Self::InvalidArgument(said)
            }
            "ResourceInUseException" => Self::InUse(said),
            kms if kms.starts_with("KMS") => Self::Kms(said),
            other => Self::Unavailable(format!("{other}: {said}")),
        }
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
