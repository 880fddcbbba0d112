//! The filter of a run: which letters are meant. Plain data, for command lines too.

use kcl_checkpoint::Timestamp;

use crate::dead_letter::identity::sha256_hex;
use crate::dead_letter::{Envelope, FailureKind, ToldKey};

/// What a letter must be like; each that is set.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    /// The shard's id.
    pub shard_id: Option<String>,
    /// The kind of failure.
    pub kind: Option<FailureKind>,
    /// The application that sent it.
    pub application: Option<String>,
    /// Failed last at this time or later.
    pub failed_from: Option<Timestamp>,
    /// Failed last before this time.
    pub failed_before: Option<Timestamp>,
    /// The partition key's SHA-256 in lower-case hexadecimal: so a key need not be told to look for it.
    pub key_sha256: Option<String>,
}

/// A filter that no letter can pass. Nothing was done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FilterError {
    /// A name is empty.
    #[error("`{field}` is empty: no letter has an empty one")]
    Empty {
        /// The filter's field.
        field: &'static str,
    },
    /// The hash is none.
    #[error("`key_sha256` is not a SHA-256: it must have 64 hexadecimal digits, in lower case")]
    NotASha256,
    /// There is no time between the two.
    #[error("`failed_from` must be before `failed_before`: no letter has failed between the two")]
    NoTimeBetween,
}

impl Filter {
    /// Returns an error if no letter can pass.
    ///
    /// # Errors
    /// See [`FilterError`].
    pub fn validate(&self) -> Result<(), FilterError> {
        for (field, value) in [("shard_id", &self.shard_id), ("application", &self.application)] {
            if value.as_deref() == Some("") {
                return Err(FilterError::Empty { field });
            }
        }
        if self.key_sha256.as_deref().is_some_and(|hash| !is_sha256(hash)) {
            return Err(FilterError::NotASha256);
        }
        match (self.failed_from, self.failed_before) {
            (Some(from), Some(before)) if from >= before => Err(FilterError::NoTimeBetween),
            _ => Ok(()),
        }
    }

    /// Whether the letter is meant.
    #[must_use]
    pub fn matches(&self, letter: &Envelope) -> bool {
        let is = |wanted: &Option<String>, text: &str| wanted.as_deref().is_none_or(|wanted| wanted == text);
        is(&self.shard_id, &letter.record.shard_id)
            && self.kind.is_none_or(|kind| kind.as_str() == letter.error_kind)
            && is(&self.application, &letter.application)
            && self.failed_from.is_none_or(|from| letter.last_failure >= from)
            && self.failed_before.is_none_or(|before| letter.last_failure < before)
            && self.key_sha256.as_deref().is_none_or(|wanted| match &letter.partition_key {
                ToldKey::Clear(key) => sha256_hex(key) == wanted,
                ToldKey::Hashed(hash) => hash == wanted,
                ToldKey::Omitted | ToldKey::None => false,
            })
    }
}

/// Returns whether this is a SHA-256 as letters have it: 64 hexadecimal digits in lower case.
fn is_sha256(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

#[cfg(test)]
mod tests {
    use super::super::plan::tests::letter;
    use super::*;

    #[test]
    fn a_filter_that_no_letter_can_pass_is_refused() {
        let text = |text: &str| Some(text.to_owned());
        let time = |millis| Some(Timestamp::from_millis(millis));
        let any = Filter::default;
        for (filter, expected) in [
            (any(), Ok(())),
            (Filter { shard_id: text("shardId-000000000001"), application: text("app"), ..any() }, Ok(())),
            (Filter { shard_id: text(""), ..any() }, Err(FilterError::Empty { field: "shard_id" })),
            (Filter { application: text(""), ..any() }, Err(FilterError::Empty { field: "application" })),
            (Filter { key_sha256: Some(sha256_hex("key")), ..any() }, Ok(())),
            (Filter { key_sha256: Some(sha256_hex("key").to_uppercase()), ..any() }, Err(FilterError::NotASha256)),
            (Filter { key_sha256: Some(sha256_hex("key")[1..].to_owned()), ..any() }, Err(FilterError::NotASha256)),
            (Filter { key_sha256: text("zz"), ..any() }, Err(FilterError::NotASha256)),
            (Filter { failed_from: time(1000), failed_before: time(1001), ..any() }, Ok(())),
            (Filter { failed_from: time(1000), failed_before: time(1000), ..any() }, Err(FilterError::NoTimeBetween)),
            (Filter { failed_from: time(1001), failed_before: time(1000), ..any() }, Err(FilterError::NoTimeBetween)),
            (Filter { failed_from: time(1001), ..any() }, Ok(())),
        ] {
            assert_eq!(filter.validate(), expected, "{filter:?}");
        }
    }

    #[test]
    fn each_thing_that_is_asked_for_must_be_so() {
        let mut letter = letter(7, "key");
        letter.last_failure = Timestamp::from_millis(1000);
        let text = |text: &str| Some(text.to_owned());
        let time = |millis| Some(Timestamp::from_millis(millis));
        let any = Filter::default;
        for (filter, expected) in [
            (any(), true),
            (Filter { shard_id: text("shardId-000000000001"), ..any() }, true),
            (Filter { shard_id: text("shardId-000000000002"), ..any() }, false),
            (Filter { kind: Some(FailureKind::Poison), ..any() }, true),
            (Filter { kind: Some(FailureKind::Panic), ..any() }, false),
            (Filter { application: text("orders-app"), ..any() }, true),
            (Filter { application: text("other"), ..any() }, false),
            (Filter { failed_from: time(1000), failed_before: time(1001), ..any() }, true),
            (Filter { failed_from: time(1001), ..any() }, false),
            (Filter { failed_before: time(1000), ..any() }, false),
            (Filter { key_sha256: Some(sha256_hex("key")), ..any() }, true),
            (Filter { key_sha256: Some(sha256_hex("other")), ..any() }, false),
            (Filter { key_sha256: Some(sha256_hex("key")), kind: Some(FailureKind::Panic), ..any() }, false),
        ] {
            assert_eq!(filter.matches(&letter), expected, "{filter:?}");
        }
        letter.partition_key = ToldKey::Hashed(sha256_hex("key"));
        assert!(Filter { key_sha256: Some(sha256_hex("key")), ..any() }.matches(&letter));
        letter.partition_key = ToldKey::Omitted;
        assert!(!Filter { key_sha256: Some(sha256_hex("key")), ..any() }.matches(&letter));
    }
}
