//! The four services on the port: how a request names one, and how each words the errors every service has.

use std::fmt;

use super::answer::Answer;
use super::s3;

/// A service that [`LocalAws`](super::LocalAws) speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Service {
    /// Kinesis Data Streams.
    Kinesis,
    /// DynamoDB.
    DynamoDb,
    /// SQS.
    Sqs,
    /// S3.
    S3,
}

impl Service {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Kinesis, Self::DynamoDb, Self::Sqs, Self::S3];

    /// What `x-amz-target` begins with for this service. S3 has no such header.
    fn target_prefix(self) -> Option<&'static str> {
        match self {
            Self::Kinesis => Some("Kinesis_20131202."),
            Self::DynamoDb => Some("DynamoDB_20120810."),
            Self::Sqs => Some("AmazonSQS."),
            Self::S3 => None,
        }
    }

    /// The service and the operation that an `x-amz-target` header names.
    pub(super) fn of_target(target: &str) -> Option<(Self, &str)> {
        Self::ALL.into_iter().find_map(|service| Some((service, target.strip_prefix(service.target_prefix()?)?)))
    }

    /// The content type of the service's answers: what the official SDKs send and expect.
    pub(super) fn content_type(self) -> &'static str {
        match self {
            Self::Kinesis => "application/x-amz-json-1.1",
            Self::DynamoDb | Self::Sqs => "application/x-amz-json-1.0",
            Self::S3 => "application/xml",
        }
    }

    /// The service's own throttling of this operation: what a caller sees who asks too often.
    pub(super) fn throttled(self, operation: &str) -> Answer {
        let message = "rate exceeded (a fault injected by kcl-local)";
        match (self, operation) {
            (Self::Kinesis, "PutRecord" | "PutRecords" | "GetRecords" | "GetShardIterator") => {
                Answer::error(400, "ProvisionedThroughputExceededException", message)
            }
            (Self::Kinesis, _) => Answer::error(400, "LimitExceededException", message),
            // Tables are managed under the account's request limit, items under the table's throughput.
            (
                Self::DynamoDb,
                "CreateTable" | "DeleteTable" | "DescribeTable" | "ListTables" | "UpdateTable" | "TagResource" | "UntagResource"
                | "ListTagsOfResource" | "UpdateTimeToLive" | "DescribeTimeToLive",
            ) => Answer::error(400, "ThrottlingException", message),
            (Self::DynamoDb, _) => Answer::error(400, "ProvisionedThroughputExceededException", message),
            (Self::Sqs, _) => Answer::query_error(403, "RequestThrottled", message),
            (Self::S3, _) => s3::error(503, "SlowDown", message),
        }
    }

    /// An error of the service's, by its name; of SQS, by its code in the query protocol.
    pub(super) fn error(self, status: u16, code: &str) -> Answer {
        let message = "a fault injected by kcl-local";
        match self {
            Self::Kinesis | Self::DynamoDb => Answer::error(status, code, message),
            Self::Sqs => Answer::query_error(status, code, message),
            Self::S3 => s3::error(status, code, message),
        }
    }

    /// The service's own answer to a failure inside itself.
    pub(super) fn failed(self) -> Answer {
        let message = "internal failure (a fault injected by kcl-local)";
        match self {
            Self::Kinesis => Answer::error(500, "InternalFailure", message),
            Self::DynamoDb => Answer::error(500, "InternalServerError", message),
            Self::Sqs => Answer::query_error(500, "InternalFailure", message),
            Self::S3 => s3::error(500, "InternalError", message),
        }
    }
}

impl fmt::Display for Service {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Kinesis => "kinesis",
            Self::DynamoDb => "dynamodb",
            Self::Sqs => "sqs",
            Self::S3 => "s3",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_names_service_and_operation() {
        assert_eq!(Service::of_target("Kinesis_20131202.PutRecord"), Some((Service::Kinesis, "PutRecord")));
        assert_eq!(Service::of_target("DynamoDB_20120810.GetItem"), Some((Service::DynamoDb, "GetItem")));
        assert_eq!(Service::of_target("AmazonSQS.SendMessage"), Some((Service::Sqs, "SendMessage")));
        assert_eq!(Service::of_target("Firehose_20150804.PutRecord"), None);
        assert_eq!(Service::of_target(""), None);
    }
}
