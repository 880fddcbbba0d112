//! Failures of the SDK as the table's errors.

use std::error::Error;

use aws_sdk_dynamodb::error::{ProvideErrorMetadata, SdkError};

use kcl_checkpoint::advice;

use crate::table::TableError;

/// What a failed call means for the table's users.
pub(super) fn table_error<E>(table: &str, operation: &'static str, error: &SdkError<E>) -> TableError
where
    E: Error + ProvideErrorMetadata + 'static,
{
    let table = table.to_owned();
    match error {
        SdkError::ServiceError(service) => {
            let code = service.err().code().unwrap_or(WITHOUT_CODE);
            let message = match service.err().message() {
                Some(words) => format!("{code}: {}", advice::refused(code, words)),
                None => advice::refused(code, code),
            };
            match kind(code, service.raw().status().as_u16()) {
                Kind::NotFound => TableError::NotFound { table },
                Kind::AccessDenied => TableError::AccessDenied { table, operation, message },
                Kind::Throttled => TableError::Throttled { table, operation },
                Kind::Unavailable => TableError::Unavailable { table, operation, message },
                Kind::Rejected => TableError::Rejected { table, operation, message },
            }
        }
        SdkError::ConstructionFailure(_) => TableError::Rejected { table, operation, message: advice::unanswered(chain(error)) },
        // A timeout, a connection that failed, credentials that could not be had, an answer that can't be read.
        _ => TableError::Unavailable { table, operation, message: advice::unanswered(chain(error)) },
    }
}

/// Stands for the code of an answer that has none.
const WITHOUT_CODE: &str = "an error without a code";

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    NotFound,
    AccessDenied,
    Throttled,
    Unavailable,
    Rejected,
}

/// By "Error handling with DynamoDB" and "Common errors" of the DynamoDB documentation.
fn kind(code: &str, http_status: u16) -> Kind {
    match code {
        "ResourceNotFoundException" | "TableNotFoundException" => Kind::NotFound,
        "AccessDeniedException"
        | "UnrecognizedClientException"
        | "InvalidSignatureException"
        | "IncompleteSignatureException"
        | "IncompleteSignature"
        | "MissingAuthenticationTokenException"
        | "MissingAuthenticationToken"
        | "InvalidClientTokenId"
        | "ExpiredTokenException"
        | "ExpiredToken"
        | "RequestExpired"
        | "NotAuthorized"
        | "OptInRequired" => Kind::AccessDenied,
        "ProvisionedThroughputExceededException"
        | "ThrottlingException"
        | "Throttling"
        | "ThrottledException"
        | "RequestThrottled"
        | "TooManyRequestsException"
        | "RequestLimitExceeded"
        | "LimitExceededException" => Kind::Throttled,
        // The row is part of a transaction, or is being written in another region: the next attempt may pass.
        "TransactionConflictException" | "ReplicatedWriteConflictException" => Kind::Unavailable,
        // An earlier attempt at the same transaction is being carried out.
        "TransactionInProgressException" => Kind::Unavailable,
        "InternalServerError" | "InternalFailure" | "ServiceUnavailable" => Kind::Unavailable,
        // The request did not arrive whole: nothing was decided about it.
        "RequestTimeout" | "RequestTimeoutException" | "RequestAbortedException" => Kind::Unavailable,
        _ if http_status == 429 => Kind::Throttled,
        _ if http_status >= 500 || http_status == 408 => Kind::Unavailable,
        // Not DynamoDB's own words: a proxy or a gateway on the way. What it refuses now, it may let pass later.
        WITHOUT_CODE => Kind::Unavailable,
        _ => Kind::Rejected,
    }
}

/// An error and its causes in one line. The causes' `Debug` is left out: it would print whole answers, rows included.
fn chain(error: &(dyn Error + 'static)) -> String {
    let causes = std::iter::successors(Some(error), |error| (*error).source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_sorted_by_what_the_caller_can_do() {
        for (code, status, expected) in [
            ("ResourceNotFoundException", 400, Kind::NotFound),
            ("AccessDeniedException", 400, Kind::AccessDenied),
            ("UnrecognizedClientException", 400, Kind::AccessDenied),
            ("ExpiredTokenException", 400, Kind::AccessDenied),
            ("ProvisionedThroughputExceededException", 400, Kind::Throttled),
            ("RequestLimitExceeded", 400, Kind::Throttled),
            ("TransactionConflictException", 400, Kind::Unavailable),
            ("TransactionInProgressException", 400, Kind::Unavailable),
            ("InternalServerError", 500, Kind::Unavailable),
            ("RequestExpired", 400, Kind::AccessDenied),
            ("RequestTimeout", 400, Kind::Unavailable),
            ("RequestAbortedException", 400, Kind::Unavailable),
            ("a code of a later version", 408, Kind::Unavailable),
            ("a code of a later version", 429, Kind::Throttled),
            ("a code of a later version", 400, Kind::Rejected),
            (WITHOUT_CODE, 503, Kind::Unavailable),
            (WITHOUT_CODE, 403, Kind::Unavailable),
            ("ValidationException", 400, Kind::Rejected),
        ] {
            assert_eq!(kind(code, status), expected, "{code}");
        }
    }
}
