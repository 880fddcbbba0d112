//! Letters for the tests of queues and of redrive.

use bytes::Bytes;
use kcl_core::dead_letter::{Condition, FailureKind};
use kcl_core::{DeadLetter, DeadLetterError, Record, Timestamp};

/// A letter of a record with this number, key and payload. Its error has characters in it that no queue may stumble over.
pub(crate) fn letter(number: u128, key: Option<&str>, data: impl Into<Bytes>) -> DeadLetter {
    let now = Timestamp::from_millis(1_573_691_884_835);
    DeadLetter {
        record: Record::new(number.into(), key.map(Into::into), data.into(), Some(now)),
        stream_arn: "arn:aws:kinesis:us-east-2:123456789012:stream/orders".into(),
        stream_created: now,
        shard_id: "shardId-000000000001".into(),
        kind: FailureKind::Poison,
        condition: Condition::RetryAttemptsExhausted,
        error_chain: vec!["no order \u{0}\u{fffe}".into()],
        attempts: 4,
        first_failure: now,
        last_failure: now,
        application: "orders-app".into(),
        worker: "worker".into(),
        fencing_token: 42,
    }
}

/// Which letters were accepted.
pub(crate) fn accepted(answers: &[Result<(), DeadLetterError>]) -> Vec<bool> {
    answers.iter().map(Result::is_ok).collect()
}
