//! Which letters are meant: plain data, for command lines too.

use kcl_checkpoint::Timestamp;

use crate::dead_letter::identity::sha256_hex;
use crate::dead_letter::{Envelope, FailureKind, ToldKey};
use crate::error::ConfigError;

/// What a letter must be like; each that is set.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    /// The shard's id.
    pub shard_id: Option<String>,
    /// The kind of error, as [`FailureKind::as_str`](crate::dead_letter::FailureKind::as_str) names it.
    pub kind: Option<String>,
    /// The application that sent it.
    pub application: Option<String>,
    /// Failed last at this time or later.
    pub failed_from: Option<Timestamp>,
    /// Failed last before this time.
    pub failed_before: Option<Timestamp>,
    /// The partition key's SHA-256 in lower-case hexadecimal: so a key need not be told to look for it.
    pub key_sha256: Option<String>,
}

impl Filter {
    /// Refuses a filter that no letter can pass: a run with it would end well and do nothing.
    ///
    /// # Errors
    /// The setting that makes it so.
    pub fn validate(&self) -> Result<(), ConfigError> {
        if let Some(kind) = &self.kind
            && FailureKind::ALL.iter().all(|known| known.as_str() != kind)
        {
            let kinds = FailureKind::ALL.map(FailureKind::as_str).join(", ");
            return Err(ConfigError::new("kind", kind, format!("must be one of {kinds}")));
        }
        if let Some(hash) = &self.key_sha256
            && !(hash.len() == 64 && hash.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')))
        {
            return Err(ConfigError::new("key_sha256", hash, "must be the 64 lower-case hexadecimal digits of a SHA-256"));
        }
        if let (Some(from), Some(before)) = (self.failed_from, self.failed_before)
            && from >= before
        {
            let rule = format!("must be later than `failed_from` ({} ms since 1970)", from.as_millis());
            return Err(ConfigError::new("failed_before", format_args!("{} ms since 1970", before.as_millis()), rule));
        }
        Ok(())
    }

    /// Whether the letter is meant.
    #[must_use]
    pub fn matches(&self, letter: &Envelope) -> bool {
        let is = |wanted: &Option<String>, text: &str| wanted.as_deref().is_none_or(|wanted| wanted == text);
        is(&self.shard_id, &letter.record.shard_id)
            && is(&self.kind, &letter.error_kind)
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

#[cfg(test)]
mod tests {
    use super::super::plan::tests::letter;
    use super::*;

    #[test]
    fn a_filter_that_nothing_can_pass_is_refused_by_name() {
        let text = |text: &str| Some(text.to_owned());
        let time = |millis| Some(Timestamp::from_millis(millis));
        let any = Filter::default;
        for (filter, refused) in [
            (any(), None),
            (Filter { kind: text("process_death"), ..any() }, None),
            (Filter { kind: text("poisn"), ..any() }, Some("kind")),
            (Filter { key_sha256: Some(sha256_hex("key")), ..any() }, None),
            (Filter { key_sha256: text("zz"), ..any() }, Some("key_sha256")),
            (Filter { key_sha256: Some(sha256_hex("key").to_uppercase()), ..any() }, Some("key_sha256")),
            (Filter { failed_from: time(1), failed_before: time(2), ..any() }, None),
            (Filter { failed_from: time(2), failed_before: time(2), ..any() }, Some("failed_before")),
            (Filter { failed_from: time(3), failed_before: time(2), ..any() }, Some("failed_before")),
        ] {
            assert_eq!(filter.validate().err().map(|error| error.setting), refused, "{filter:?}");
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
            (Filter { kind: text("poison"), ..any() }, true),
            (Filter { kind: text("panic"), ..any() }, false),
            (Filter { application: text("orders-app"), ..any() }, true),
            (Filter { application: text("other"), ..any() }, false),
            (Filter { failed_from: time(1000), failed_before: time(1001), ..any() }, true),
            (Filter { failed_from: time(1001), ..any() }, false),
            (Filter { failed_before: time(1000), ..any() }, false),
            (Filter { key_sha256: Some(sha256_hex("key")), ..any() }, true),
            (Filter { key_sha256: Some(sha256_hex("other")), ..any() }, false),
            (Filter { key_sha256: Some(sha256_hex("key")), kind: text("panic"), ..any() }, false),
        ] {
            assert_eq!(filter.matches(&letter), expected, "{filter:?}");
        }
        letter.partition_key = ToldKey::Hashed(sha256_hex("key"));
        assert!(Filter { key_sha256: Some(sha256_hex("key")), ..any() }.matches(&letter));
        letter.partition_key = ToldKey::Omitted;
        assert!(!Filter { key_sha256: Some(sha256_hex("key")), ..any() }.matches(&letter));
    }
}
