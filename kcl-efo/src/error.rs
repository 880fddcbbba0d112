//! What can go wrong with a consumer and its subscriptions.

use std::time::Duration;

/// Why a consumer or a subscription can't be had, or ended. Texts in `message` are the service's own words.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FanOutError {
    /// The text is not the ARN of a consumer.
    #[error("`{arn}` is not the ARN of a stream consumer; expected arn:aws:kinesis:REGION:ACCOUNT:stream/STREAM/consumer/NAME:CREATED")]
    NotAConsumerArn {
        /// The text.
        arn: String,
    },
    /// The consumer is registered with another stream.
    #[error(
        "consumer `{consumer}` is registered with another stream than `{stream}`; give the ARN of a consumer of that stream, or a name to register"
    )]
    OtherStream {
        /// The consumer's ARN.
        consumer: String,
        /// The stream that is to be read.
        stream: String,
    },
    /// The name can't be a consumer's.
    #[error(
        "`{name}` can't be the name of a stream consumer: it must be 1 to 128 of the characters a-z A-Z 0-9 _ . - (by default it is the \
         application's name; `FanOutConfig::consumer` sets another)"
    )]
    InvalidName {
        /// The name.
        name: String,
    },
    /// The stream is of a kind that has no enhanced fan-out, as a DynamoDB stream.
    #[error("stream `{stream}` has no enhanced fan-out: only Kinesis data streams have; read it by polling")]
    Unsupported {
        /// The stream's ARN.
        stream: String,
    },
    /// No such consumer (any more).
    #[error("consumer `{consumer}` does not exist: it was deregistered, or never registered")]
    ConsumerNotFound {
        /// Its name or ARN.
        consumer: String,
    },
    /// The consumer is being deleted.
    #[error("consumer `{consumer}` is being deleted; wait until it is gone, or use another name")]
    ConsumerDeleting {
        /// Its name or ARN.
        consumer: String,
    },
    /// The consumer is still being made.
    #[error("consumer `{consumer}` is still being made")]
    ConsumerCreating {
        /// Its name or ARN.
        consumer: String,
    },
    /// The stream can't have another consumer now.
    #[error(
        "no consumer `{consumer}` can be registered with stream `{stream}`: a stream has at most 20 consumers (50 in On-demand Advantage mode), and at \
         most 5 in creation; deregister one that is not needed, or read by polling ({message})"
    )]
    ConsumerLimit {
        /// The consumer's name.
        consumer: String,
        /// The stream's ARN.
        stream: String,
        /// The service's own words.
        message: String,
    },
    /// The stream or the shard does not exist (any more).
    #[error("{operation}: the stream, or the shard asked for, does not exist: {message}")]
    NotFound {
        /// The operation, as IAM names it.
        operation: &'static str,
        /// The service's own words.
        message: String,
    },
    /// Another subscription of this consumer to this shard is younger than five seconds, or has taken this one's place; or the
    /// consumer is not active.
    #[error("{operation}: refused as in use: {message}")]
    InUse {
        /// The operation.
        operation: &'static str,
        /// The service's own words.
        message: String,
    },
    /// Over a rate of the service.
    #[error("{operation} is throttled: {message}")]
    Throttled {
        /// The operation.
        operation: &'static str,
        /// The service's own words.
        message: String,
    },
    /// The credentials do not allow it, or are missing, wrong or expired.
    #[error("{operation} is not allowed: {message}")]
    AccessDenied {
        /// The operation.
        operation: &'static str,
        /// The service's own words.
        message: String,
    },
    /// The key that encrypts the stream can't be used.
    #[error("{operation}: the stream's KMS key can't be used: {message}")]
    Kms {
        /// The operation.
        operation: &'static str,
        /// The service's own words.
        message: String,
    },
    /// The service refused an argument: for SubscribeToShard, a sequence number that is not of this shard.
    #[error("{operation} was refused: {message}")]
    InvalidArgument {
        /// The operation.
        operation: &'static str,
        /// The service's own words.
        message: String,
    },
    /// No answer, a failure of the service, or a broken connection.
    #[error("{operation} got no answer, or a broken one: {message}")]
    Unavailable {
        /// The operation.
        operation: &'static str,
        /// What is known of the failure.
        message: String,
    },
    /// A subscription gave nothing for so long that it must be dead: the service sends an event at least every few seconds.
    #[error("the subscription was silent for {0:?}")]
    Silent(Duration),
}

impl FanOutError {
    /// Returns the class of the failure in two or three words, for logs.
    #[must_use]
    pub fn class(&self) -> &'static str {
        match self {
            Self::ConsumerLimit { .. } => "no room for another consumer",
            Self::ConsumerCreating { .. } => "consumer in creation",
            Self::ConsumerNotFound { .. } | Self::NotFound { .. } => "not found",
            Self::InUse { .. } => "in use",
            Self::Throttled { .. } => "throttled",
            Self::AccessDenied { .. } => "access denied",
            Self::Kms { .. } => "key unusable",
            Self::Unavailable { .. } | Self::Silent(_) => "no answer",
            Self::NotAConsumerArn { .. }
            | Self::OtherStream { .. }
            | Self::InvalidName { .. }
            | Self::Unsupported { .. }
            | Self::ConsumerDeleting { .. }
            | Self::InvalidArgument { .. } => "refused",
        }
    }

    /// Whether the same call may succeed later without anybody doing anything.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        matches!(
            self,
            Self::InUse { .. } | Self::Throttled { .. } | Self::Unavailable { .. } | Self::Silent(_) | Self::ConsumerCreating { .. }
        )
    }
}
