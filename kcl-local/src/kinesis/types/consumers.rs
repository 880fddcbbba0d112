//! Inputs and outputs of the operations on consumers: readers with a throughput of their own.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The state of a consumer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum ConsumerStatus {
    /// Asked for; it can't subscribe yet.
    Creating,
    /// It can subscribe.
    Active,
    /// About to be gone. Its subscriptions have ended.
    Deleting,
}

/// Registers a consumer of a stream. Tags are ignored in JSON.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct RegisterStreamConsumerInput {
    /// The stream's ARN.
    #[serde(rename = "StreamARN")]
    pub stream_arn: String,
    /// 1 to 128 of `a-z A-Z 0-9 _ . -`, no other consumer's of this stream.
    pub consumer_name: String,
}

/// The answer to [`RegisterStreamConsumerInput`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct RegisterStreamConsumerOutput {
    /// The consumer.
    pub consumer: Consumer,
}

/// A consumer as listings show it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Consumer {
    /// Its name.
    pub consumer_name: String,
    /// Its ARN: another one each time that a consumer of this name is registered.
    #[serde(rename = "ConsumerARN")]
    pub consumer_arn: String,
    /// Its state.
    pub consumer_status: ConsumerStatus,
    /// When it was registered.
    #[serde(with = "crate::kinesis::encoding::seconds")]
    pub consumer_creation_timestamp: u64,
}

/// Describes a consumer: by its ARN, or by its stream's ARN and its name, or by all of them if they agree.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct DescribeStreamConsumerInput {
    /// The stream's ARN.
    #[serde(rename = "StreamARN")]
    pub stream_arn: Option<String>,
    /// The consumer's name.
    pub consumer_name: Option<String>,
    /// The consumer's ARN.
    #[serde(rename = "ConsumerARN")]
    pub consumer_arn: Option<String>,
}

/// The answer to [`DescribeStreamConsumerInput`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct DescribeStreamConsumerOutput {
    /// The consumer.
    pub consumer_description: ConsumerDescription,
}

/// A consumer and its stream.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct ConsumerDescription {
    /// The consumer.
    #[serde(flatten)]
    pub consumer: Consumer,
    /// The stream's ARN.
    #[serde(rename = "StreamARN")]
    pub stream_arn: String,
}

/// Lists a stream's consumers by name.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct ListStreamConsumersInput {
    /// The stream's ARN; needed with a token too.
    #[serde(rename = "StreamARN")]
    pub stream_arn: String,
    /// Goes on where an earlier answer ended.
    pub next_token: Option<String>,
    /// Most consumers in the answer: 1 to 10,000; 100 if not given.
    pub max_results: Option<u32>,
    /// Only the stream that was made then; not with a token.
    #[serde(default, with = "crate::kinesis::encoding::optional_seconds")]
    pub stream_creation_timestamp: Option<u64>,
}

/// The answer to [`ListStreamConsumersInput`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct ListStreamConsumersOutput {
    /// The consumers.
    pub consumers: Vec<Consumer>,
    /// For the rest, if there are more.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next_token: Option<String>,
}

/// Removes a consumer and ends its subscriptions. It is named as in [`DescribeStreamConsumerInput`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct DeregisterStreamConsumerInput {
    /// The stream's ARN.
    #[serde(rename = "StreamARN")]
    pub stream_arn: Option<String>,
    /// The consumer's name.
    pub consumer_name: Option<String>,
    /// The consumer's ARN.
    #[serde(rename = "ConsumerARN")]
    pub consumer_arn: Option<String>,
}

impl fmt::Display for ConsumerStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Creating => "CREATING",
            Self::Active => "ACTIVE",
            Self::Deleting => "DELETING",
        })
    }
}
