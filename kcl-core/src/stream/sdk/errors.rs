//! What went wrong with a request, in the port's terms.

use std::error::Error;
use std::fmt;

use aws_sdk_kinesis::error::{ProvideErrorMetadata, SdkError};
use kcl_efo::refusal::Refusal;

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
        self.refused(Refusal::Unavailable(format!("the answer can't be used: {problem}")))
    }

    /// The SDK's error.
    pub(super) fn failed<E>(self, error: &SdkError<E>) -> StreamError
    where
        E: Error + ProvideErrorMetadata + 'static,
    {
        self.refused(Refusal::of(error))
    }

    fn refused(self, refusal: Refusal) -> StreamError {
        let (stream, operation) = (self.stream.to_owned(), self.operation);
        match refusal {
            Refusal::NotFound(message) => StreamError::NotFound { stream, operation, message },
            Refusal::AccessDenied(message) => StreamError::AccessDenied { stream, operation, message },
            Refusal::Kms(message) => StreamError::Kms { stream, operation, message },
            Refusal::Throttled(_) => StreamError::Throttled { stream, operation },
            Refusal::ExpiredIterator => StreamError::ExpiredIterator { stream },
            Refusal::InvalidArgument(message) => StreamError::InvalidArgument { stream, operation, message },
            Refusal::InUse(message) => StreamError::NotReady { stream, operation, message },
            Refusal::Unavailable(message) => StreamError::Unavailable { stream, operation, message },
        }
    }
}
