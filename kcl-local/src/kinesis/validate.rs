//! Constraints on the members of inputs, checked and worded as the service does.

use super::config::{MAX_PARTITION_KEY_CHARS, MAX_TAGS};
use super::error::ApiError;

/// A stream's name: 1 to 128 of `a-z A-Z 0-9 _ . -`.
pub(super) fn stream_name(name: &str, member: &str) -> Result<(), ApiError> {
    pattern(name, member, 128, "[a-zA-Z0-9_.-]+", |byte| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte))
}

/// A shard's id: the same characters.
pub(super) fn shard_id(id: &str, member: &str) -> Result<(), ApiError> {
    stream_name(id, member)
}

/// A consumer's name: the same characters.
pub(super) fn consumer_name(name: &str) -> Result<(), ApiError> {
    stream_name(name, "consumerName")
}

fn pattern(value: &str, member: &str, most: usize, pattern: &str, allowed: impl Fn(u8) -> bool) -> Result<(), ApiError> {
    let constraint = if value.is_empty() {
        "Member must have length greater than or equal to 1".to_owned()
    } else if value.len() > most {
        format!("Member must have length less than or equal to {most}")
    } else if !value.bytes().all(allowed) {
        format!("Member must satisfy regular expression pattern: {pattern}")
    } else {
        return Ok(());
    };
    Err(ApiError::constraint(value, member, &constraint))
}

/// The name in a stream's ARN, with what is before it.
pub(super) fn stream_arn(arn: &str) -> Result<(&str, &str), ApiError> {
    let malformed = || {
        ApiError::constraint(arn, "streamARN", "Member must satisfy regular expression pattern: arn:aws.*:kinesis:.*:\\d{12}:stream/\\S+")
    };
    let (before, name) = arn.split_once(":stream/").ok_or_else(malformed)?;
    let parts: Vec<&str> = before.split(':').collect();
    let [arn, partition, "kinesis", _region, account] = parts[..] else {
        return Err(malformed());
    };
    let digits = account.len() == 12 && account.bytes().all(|byte| byte.is_ascii_digit());
    if arn != "arn" || !partition.starts_with("aws") || !digits || stream_name(name, "streamARN").is_err() {
        return Err(malformed());
    }
    Ok((before, name))
}

/// The stream's ARN and the consumer's name in a consumer's ARN.
pub(super) fn consumer_arn(arn: &str) -> Result<(&str, &str), ApiError> {
    let parts = || {
        let (stream, consumer) = arn.split_once("/consumer/")?;
        let (name, second) = consumer.rsplit_once(':')?;
        let digits = !second.is_empty() && second.bytes().all(|byte| byte.is_ascii_digit());
        (digits && stream_arn(stream).is_ok() && consumer_name(name).is_ok()).then_some((stream, name))
    };
    parts().ok_or_else(|| {
        let pattern = "^(arn):aws.*:kinesis:.*:\\d{12}:.*stream\\/[a-zA-Z0-9_.-]+\\/consumer\\/[a-zA-Z0-9_.-]+:[0-9]+";
        ApiError::constraint(arn, "consumerARN", &format!("Member must satisfy regular expression pattern: {pattern}"))
    })
}

/// A number within `least..=most`.
pub(super) fn range(value: u32, member: &str, least: u32, most: u32) -> Result<(), ApiError> {
    let constraint = if value < least {
        format!("Member must have value greater than or equal to {least}")
    } else if value > most {
        format!("Member must have value less than or equal to {most}")
    } else {
        return Ok(());
    };
    Err(ApiError::constraint(&value.to_string(), member, &constraint))
}

/// A number within `1..=most`, as most limits are; `default` if it isn't given.
pub(super) fn limit(value: Option<u32>, member: &str, most: u32, default: u32) -> Result<usize, ApiError> {
    let value = value.unwrap_or(default);
    range(value, member, 1, most)?;
    Ok(value as usize)
}

/// A partition key: 1 to 256 characters. The message doesn't show it.
pub(super) fn partition_key(key: &str, member: &str) -> Result<(), ApiError> {
    // Most keys are short: only long ones need to be counted.
    let constraint = if key.is_empty() {
        "Member must have length greater than or equal to 1".to_owned()
    } else if key.len() > MAX_PARTITION_KEY_CHARS && key.chars().count() > MAX_PARTITION_KEY_CHARS {
        format!("Member must have length less than or equal to {MAX_PARTITION_KEY_CHARS}")
    } else {
        return Ok(());
    };
    Err(ApiError::constraint("***", member, &constraint))
}

/// A hash key in decimal, without a leading zero.
pub(super) fn hash_key(text: &str, member: &str) -> Result<u128, ApiError> {
    let digits = !text.is_empty() && text.len() <= 39 && text.bytes().all(|byte| byte.is_ascii_digit());
    if !digits || (text.len() > 1 && text.starts_with('0')) {
        let constraint = "Member must satisfy regular expression pattern: 0|([1-9]\\d{0,38})";
        return Err(ApiError::constraint(text, member, constraint));
    }
    text.parse().map_err(|_| {
        ApiError::invalid(format!("Invalid {member}. {member} must be in the range: [0, 2^128-1]. Specified value was {text}"))
    })
}

/// A tag.
pub(super) fn tag(key: &str, value: &str) -> Result<(), ApiError> {
    if key.is_empty() || key.chars().count() > 128 {
        return Err(ApiError::constraint(key, "tags", "Map keys must have length between 1 and 128"));
    }
    if value.chars().count() > 256 {
        return Err(ApiError::constraint(value, "tags", "Map values must have length less than or equal to 256"));
    }
    Ok(())
}

/// How many tags a stream has.
pub(super) fn tag_count(count: usize) -> Result<(), ApiError> {
    if count > MAX_TAGS {
        return Err(ApiError::invalid(format!("A stream can have at most {MAX_TAGS} tags. It would have {count}.")));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        for good in ["a", "Orders_v1.2-x", &"x".repeat(128)] {
            assert_eq!(stream_name(good, "streamName"), Ok(()), "{good}");
        }
        for bad in ["", "a b", "a/b", "ä", &"x".repeat(129)] {
            assert!(stream_name(bad, "streamName").is_err(), "{bad}");
        }
    }

    #[test]
    fn arns() {
        let good = "arn:aws:kinesis:us-east-1:000000000000:stream/orders";
        assert_eq!(stream_arn(good), Ok(("arn:aws:kinesis:us-east-1:000000000000", "orders")));
        for bad in [
            "",
            "orders",
            "arn:aws:sqs:us-east-1:000000000000:stream/orders",
            "arn:aws:kinesis:us-east-1:0:stream/orders",
            "arn:aws:kinesis:us-east-1:000000000000:stream/",
            "arn:aws:kinesis:us-east-1:000000000000:stream/a/consumer/b:1",
        ] {
            assert!(stream_arn(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn consumer_arns() {
        let good = "arn:aws:kinesis:us-east-1:000000000000:stream/orders/consumer/billing:1790000000";
        assert_eq!(consumer_arn(good), Ok(("arn:aws:kinesis:us-east-1:000000000000:stream/orders", "billing")));
        for bad in ["", "billing", &good[..good.len() - 11], &good[..good.len() - 10], &good.replace("billing", ""), &format!("{good}x")] {
            assert!(consumer_arn(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn hash_keys() {
        assert_eq!(hash_key("0", "ExplicitHashKey"), Ok(0));
        assert_eq!(hash_key(&u128::MAX.to_string(), "ExplicitHashKey"), Ok(u128::MAX));
        for bad in ["", "-1", "01", "1e3", "340282366920938463463374607431768211456", &"9".repeat(40)] {
            assert!(hash_key(bad, "ExplicitHashKey").is_err(), "{bad}");
        }
    }

    #[test]
    fn a_refused_partition_key_is_not_shown() {
        let error = partition_key(&"secret".repeat(50), "partitionKey").unwrap_err();
        assert!(!error.to_string().contains("secret"));
        assert_eq!(partition_key(&"ä".repeat(256), "partitionKey"), Ok(()));
    }
}
