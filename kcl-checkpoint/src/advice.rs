//! What a reader of the log can do about a call of AWS that failed for want of credentials or of the
//! right endpoint: words for the errors of all adapters.
//!
//! The SDK and the services name what they saw ("dispatch failure", "security token included in the
//! request is invalid"), not what is wrong with the configuration. These functions only read codes and
//! texts; whether a call is repeated is decided elsewhere.

/// Returns what to do about a service's error of this code, if it is about credentials.
///
/// Codes are those of the services' "common errors"; a prefix as in `AWS.SimpleQueueService.X` is
/// left out of account.
#[must_use]
pub fn for_code(code: &str) -> Option<&'static str> {
    Some(match code.rsplit('.').next().unwrap_or_default() {
        "ExpiredToken" | "ExpiredTokenException" | "RequestExpired" => {
            "the credentials have expired: log in again, or use a source that renews them"
        }
        "UnrecognizedClientException" | "InvalidClientTokenId" | "InvalidAccessKeyId" | "InvalidSecurity" => {
            "AWS does not know the access key: check which credentials are in use, and that they belong to this region's partition"
        }
        "InvalidSignatureException" | "SignatureDoesNotMatch" | "IncompleteSignature" | "IncompleteSignatureException" => {
            "the signature is wrong: check the secret access key, and this machine's clock"
        }
        "MissingAuthenticationToken" | "MissingAuthenticationTokenException" => {
            "the request carried no credentials: set them by the standard AWS environment or configuration"
        }
        "OptInRequired" => "the account is not signed up for the service",
        "AccessDenied" | "AccessDeniedException" | "NotAuthorized" => {
            "give the credentials' user or role this permission: the README lists what a worker needs"
        }
        "UnknownOperationException" | "UnknownOperation" => {
            "what answers at the endpoint is another service, or does not have this operation: check the endpoint"
        }
        _ => return None,
    })
}

/// Returns what to do about a call without an answer, by the texts of its error and of the causes.
#[must_use]
pub fn for_failure(texts: &str) -> Option<&'static str> {
    let has = |words: &[&str]| words.iter().any(|word| texts.contains(word));
    Some(if has(&["credential provider was not enabled", "no providers in chain", "no identity resolver"]) {
        "no AWS credentials were found: set them by the standard AWS environment or configuration"
    } else if has(&["the credentials provider was not properly configured", "an error occurred while loading credentials"]) {
        "the AWS credentials can't be loaded: check their source in the AWS environment or configuration"
    } else if has(&["unexpected credentials error", "credentials provider timed out", "loading credentials timed out"]) {
        "the AWS credentials can't be loaded: their source (the container's or instance's credentials endpoint, or an STS or SSO endpoint) \
         did not give any; check that it runs and that AWS_CONTAINER_CREDENTIALS_FULL_URI and the like name the right one"
    } else if has(&["Missing Region", "Invalid Configuration: Missing Region"]) {
        "no AWS region is set: set AWS_REGION, or `region` in the profile of the AWS configuration file"
    } else if has(&["dns error", "failed to lookup address"]) {
        "the endpoint's name is not known: check the region, the endpoint URL and this machine's DNS"
    } else if has(&["Connection refused"]) {
        "nothing listens at the endpoint: check its host and port, and whether the server runs"
    } else if has(&["TLS handshake", "certificate", "InvalidContentType"]) {
        "no TLS connection to the endpoint: check that its URL begins with the right one of http:// and https://, and its certificate"
    } else if has(&["timed out", "timeout", "Network is unreachable", "No route to host"]) {
        "the endpoint did not answer in time: check the network's way to it (security groups, VPC endpoints, proxies)"
    } else {
        return None;
    })
}

/// Returns the words of a service's refusal with the advice for its code.
#[must_use]
pub fn refused(code: &str, words: &str) -> String {
    match for_code(code) {
        Some(advice) => format!("{words} ({advice})"),
        None => words.to_owned(),
    }
}

/// Returns the texts of a call without an answer with advice, which comes first: the texts are long.
#[must_use]
pub fn unanswered(texts: String) -> String {
    match for_failure(&texts) {
        Some(advice) => format!("{advice} ({texts})"),
        None => texts,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_of_credentials_say_what_to_do() {
        for (code, words) in [
            ("ExpiredTokenException", "have expired"),
            ("ExpiredToken", "have expired"),
            ("UnrecognizedClientException", "does not know the access key"),
            ("InvalidClientTokenId", "does not know the access key"),
            ("AWS.SimpleQueueService.InvalidSecurity", "does not know the access key"),
            ("InvalidSignatureException", "clock"),
            ("AccessDeniedException", "README"),
            ("MissingAuthenticationToken", "no credentials"),
            ("OptInRequired", "not signed up"),
            ("UnknownOperationException", "endpoint"),
        ] {
            assert!(for_code(code).unwrap_or_default().contains(words), "{code}");
            assert!(refused(code, "no").starts_with("no ("), "{code}");
        }
        assert_eq!(refused("ThrottlingException", "Rate exceeded"), "Rate exceeded");
    }

    #[test]
    fn failures_of_the_transport_say_what_to_check() {
        let connect = |cause: &str| format!("dispatch failure: io error: client error (Connect): {cause}");
        for (texts, words) in [
            (connect("tcp connect error: Connection refused (os error 111)"), "nothing listens"),
            (connect("dns error: failed to lookup address information: Name or service not known"), "name is not known"),
            (connect("TLS handshake failed: received corrupt message of type InvalidContentType"), "http://"),
            (
                "dispatch failure: other: the credential provider was not enabled: no credentials found in chain".into(),
                "no AWS credentials",
            ),
            (
                "dispatch failure: other: unexpected credentials error: dispatch failure: io error: \
                 client error (Connect): tcp connect error: Connection refused (os error 111)"
                    .into(),
                "credentials endpoint",
            ),
            ("construction failure: Invalid Configuration: Missing Region".into(), "AWS_REGION"),
            ("request has timed out: operation timeout (all attempts including retries) occurred after 5s".into(), "in time"),
        ] {
            assert!(unanswered(texts.clone()).contains(words), "{texts}");
        }
        assert_eq!(unanswered("connection closed before message completed".into()), "connection closed before message completed");
    }
}
