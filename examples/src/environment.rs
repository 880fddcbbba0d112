//! The variables of the standard AWS environment that would stop the SDK, and values that both they
//! and flags can have.
//!
//! The SDK reads the environment by itself, and takes an empty variable for a value: it panics at an
//! empty endpoint, and calls without a region that can be one get no answer. A program can't change
//! its own environment safely, so such variables are refused by name before anything is called.

use crate::flags::UsageError;

/// The services that the programs call. Each may have an endpoint variable of its own.
const SERVICES: [&str; 5] = ["KINESIS", "DYNAMODB", "SQS", "S3", "STS"];

/// The settings that the command line gives in place of the environment.
#[derive(Clone, Copy, Debug, Default)]
pub struct Given {
    /// The endpoint is given by a flag.
    pub endpoint: bool,
    /// The region is given by a flag.
    pub region: bool,
}

/// Refuses variables of this process that the SDK can't use.
///
/// # Errors
/// The first of them.
pub fn check(given: Given) -> Result<(), UsageError> {
    // One that is no UTF-8 counts as one that can't be used.
    let variable = |name: &str| Some(std::env::var_os(name)?.to_string_lossy().into_owned());
    check_variables(given, variable)
}

/// The same for any environment.
fn check_variables(given: Given, variable: impl Fn(&str) -> Option<String>) -> Result<(), UsageError> {
    let refuse = |name: &str, check: &dyn Fn(&str) -> Result<(), String>| {
        let Some(value) = variable(name) else { return Ok(()) };
        let wrong = match check(&value) {
            Ok(()) => return Ok(()),
            Err(rule) if value.is_empty() => format!("is empty: unset it, or give it a value ({rule})"),
            Err(rule) => format!("is {value:?}: {rule}; unset it, or give it such a value"),
        };
        Err(UsageError::new(name, None, wrong))
    };
    let ignored = variable("AWS_IGNORE_CONFIGURED_ENDPOINT_URLS");
    if !ignored.is_some_and(|ignored| ignored.eq_ignore_ascii_case("true")) {
        if !given.endpoint {
            refuse("AWS_ENDPOINT_URL", &|value| url(value).map(drop))?;
        }
        for service in SERVICES {
            refuse(&format!("AWS_ENDPOINT_URL_{service}"), &|value| url(value).map(drop))?;
        }
    }
    if !given.region {
        // The SDK takes the first that is set, empty or not.
        let first = ["AWS_REGION", "AWS_DEFAULT_REGION"].into_iter().find(|it| variable(it).is_some());
        first.map_or(Ok(()), |first| refuse(first, &|value| region(value).map(drop)))?;
    }
    refuse("AWS_MAX_ATTEMPTS", &|value| match value.parse::<u32>() {
        Ok(1..) => Ok(()),
        _ => Err("expected a number of 1 or more".to_owned()),
    })?;
    refuse("AWS_RETRY_MODE", &|value| {
        let value = value.trim();
        let is_one = ["standard", "adaptive"].iter().any(|mode| value.eq_ignore_ascii_case(mode));
        if is_one { Ok(()) } else { Err("expected standard or adaptive".to_owned()) }
    })
}

/// An endpoint.
///
/// # Errors
/// The form that is expected.
pub fn url(text: &str) -> Result<String, String> {
    let host = text.strip_prefix("http://").or_else(|| text.strip_prefix("https://"));
    match host {
        Some(host) if !host.is_empty() && !host.starts_with('/') && !host.contains(char::is_whitespace) => Ok(text.to_owned()),
        _ => Err("expected http://HOST[:PORT] or https://HOST[:PORT]".to_owned()),
    }
}

/// A region: part of a host's name.
///
/// # Errors
/// The form that is expected.
pub fn region(text: &str) -> Result<String, String> {
    let is_label =
        (1..=63).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-') && !text.starts_with('-');
    if is_label { Ok(text.to_owned()) } else { Err("expected a region such as eu-west-1".to_owned()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(given: Given, variables: &[(&str, &str)]) -> Option<String> {
        let value = |name: &str| {
            let mut found = variables.iter().filter(|(known, _)| *known == name);
            found.next().map(|(_, value)| (*value).to_owned())
        };
        check_variables(given, value).err().map(|error| error.to_string())
    }

    #[test]
    fn what_the_sdk_cannot_use_is_refused_by_name() {
        for (name, value) in [
            ("AWS_ENDPOINT_URL", ""),
            ("AWS_ENDPOINT_URL", "127.0.0.1:4566"),
            ("AWS_ENDPOINT_URL_KINESIS", ""),
            ("AWS_ENDPOINT_URL_DYNAMODB", "localhost"),
            ("AWS_REGION", ""),
            ("AWS_REGION", "us east 1"),
            ("AWS_REGION", "US_EAST_1"),
            ("AWS_REGION", "-west-1"),
            ("AWS_DEFAULT_REGION", ""),
            ("AWS_MAX_ATTEMPTS", ""),
            ("AWS_MAX_ATTEMPTS", "0"),
            ("AWS_RETRY_MODE", ""),
            ("AWS_RETRY_MODE", "legacy"),
        ] {
            let said = said(Given::default(), &[(name, value)]).unwrap_or_default();
            assert!(said.starts_with(&format!("{name} is ")), "{name}={value}: {said}");
            assert!(said.contains("unset it"), "{name}={value}: {said}");
            assert_eq!(said.contains("is empty"), value.is_empty(), "{said}");
        }
    }

    #[test]
    fn what_counts_for_nothing_is_let_pass() {
        let (none, both) = (Given::default(), Given { endpoint: true, region: true });
        for (given, variables) in [
            (none, &[][..]),
            (none, &[("AWS_ENDPOINT_URL", "http://127.0.0.1:4566"), ("AWS_REGION", "eu-west-1")]),
            (none, &[("AWS_REGION", "eu-west-1"), ("AWS_DEFAULT_REGION", "")]),
            (none, &[("AWS_ENDPOINT_URL", ""), ("AWS_IGNORE_CONFIGURED_ENDPOINT_URLS", "true")]),
            (none, &[("AWS_ENDPOINT_URL_LAMBDA", ""), ("AWS_RETRY_MODE", "Adaptive")]),
            (both, &[("AWS_ENDPOINT_URL", ""), ("AWS_REGION", "")]),
        ] {
            assert_eq!(said(given, variables), None, "{variables:?}");
        }
        let default = said(none, &[("AWS_REGION", ""), ("AWS_DEFAULT_REGION", "eu-west-1")]);
        assert!(default.is_some_and(|said| said.starts_with("AWS_REGION ")), "the first counts");
    }
}
