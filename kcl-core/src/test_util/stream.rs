//! The stream port over the model of Kinesis.

use std::fmt;
use std::time::Duration;

use async_trait::async_trait;
use kcl_lease::ShardId;
use kcl_local::kinesis::{ApiError, DescribeStreamSummaryInput, ErrorCode, GetRecordsInput, GetShardIteratorInput};

use super::aws::SimulatedAws;
use super::faults::Service;
use super::host::Held;
use super::model;
use super::network::{Asked, Failure, Link};
use crate::record::Record;
use crate::stream::{RecordsPage, Shard, ShardFilter, ShardIterator, StartingPosition, StreamApi, StreamDescription, StreamError, child};

/// As the worker's own client.
const TIMEOUT: Duration = Duration::from_secs(5);

/// A stream as one host reaches it.
#[derive(Clone, Debug)]
pub struct SimulatedStream {
    aws: SimulatedAws,
    link: Link,
    name: String,
    held: Held,
}

impl SimulatedStream {
    pub(super) fn new(aws: &SimulatedAws, link: Link, name: &str, held: Held) -> Self {
        Self { aws: aws.clone(), link, name: name.to_owned(), held }
    }

    fn asked<'a>(&self, operation: &'static str, shard: &'a str, errors: &'static [&'static str]) -> Asked<'a> {
        Asked { service: Service::Stream, operation, shard, may_be_stale: false, errors, timeout: TIMEOUT }
    }

    fn error(&self, operation: &'static str, failure: Failure) -> StreamError {
        let (stream, message) = (self.name.clone(), "a simulated fault".to_owned());
        match failure {
            Failure::Throttled => StreamError::Throttled { stream, operation },
            Failure::NoAnswer => StreamError::Unavailable { stream, operation, message },
            Failure::Refused("ResourceNotFoundException") => StreamError::NotFound { stream, operation, message },
            Failure::Refused("AccessDeniedException") => StreamError::AccessDenied { stream, operation, message },
            Failure::Refused("KMSDisabledException") => StreamError::Kms { stream, operation, message },
            Failure::Refused("ExpiredIteratorException") => StreamError::ExpiredIterator { stream },
            Failure::Refused("ResourceInUseException") => StreamError::NotReady { stream, operation, message },
            Failure::Refused(error) => StreamError::Unavailable { stream, operation, message: error.to_owned() },
        }
    }

    fn refused(&self, operation: &'static str, error: ApiError) -> StreamError {
        let (stream, ApiError { code, message }) = (self.name.clone(), error);
        match code {
            ErrorCode::ResourceNotFound => StreamError::NotFound { stream, operation, message },
            ErrorCode::ResourceInUse => StreamError::NotReady { stream, operation, message },
            ErrorCode::LimitExceeded | ErrorCode::ProvisionedThroughputExceeded => StreamError::Throttled { stream, operation },
            ErrorCode::ExpiredIterator => StreamError::ExpiredIterator { stream },
            ErrorCode::InvalidArgument | ErrorCode::Validation => StreamError::InvalidArgument { stream, operation, message },
            code => StreamError::Unavailable { stream, operation, message: format!("{code}: {message}") },
        }
    }

    async fn call<T: fmt::Debug>(
        &self,
        operation: &'static str,
        asked: Asked<'_>,
        answer: impl FnOnce(Option<Duration>) -> Result<T, ApiError>,
    ) -> Result<T, StreamError> {
        match self.link.read(asked, answer).await {
            Ok(answer) => answer.map_err(|error| self.refused(operation, error)),
            Err(failure) => Err(self.error(operation, failure)),
        }
    }
}

#[async_trait]
impl StreamApi for SimulatedStream {
    async fn describe(&self) -> Result<StreamDescription, StreamError> {
        const OPERATION: &str = "kinesis:DescribeStreamSummary";
        let errors = &["ResourceNotFoundException", "AccessDeniedException", "InternalFailure"];
        self.call(OPERATION, self.asked(OPERATION, "", errors), |_| {
            let input = DescribeStreamSummaryInput { stream_name: Some(self.name.clone()), ..Default::default() };
            self.aws.kinesis().call(input).map(|output| model::description(output.stream_description_summary, self.aws.time()))
        })
        .await
    }

    /// Listings may lag: it is not documented how far.
    async fn list_shards(&self, filter: ShardFilter) -> Result<Vec<Shard>, StreamError> {
        const OPERATION: &str = "kinesis:ListShards";
        let errors = &["ResourceNotFoundException", "AccessDeniedException", "ResourceInUseException", "InternalFailure"];
        let asked = Asked { may_be_stale: filter == ShardFilter::All, ..self.asked(OPERATION, "", errors) };
        self.call(OPERATION, asked, |stale| self.aws.listing(&self.name, filter, stale)).await
    }

    async fn shard_iterator(&self, shard: &ShardId, start: StartingPosition) -> Result<ShardIterator, StreamError> {
        const OPERATION: &str = "kinesis:GetShardIterator";
        let errors = &["ResourceNotFoundException", "AccessDeniedException", "InternalFailure"];
        self.call(OPERATION, self.asked(OPERATION, shard.as_str(), errors), |_| {
            let (shard_iterator_type, starting_sequence_number, timestamp) = self.aws.numbers().position(start);
            let input = GetShardIteratorInput {
                stream_name: Some(self.name.clone()),
                shard_id: shard.as_str().to_owned(),
                shard_iterator_type,
                starting_sequence_number,
                timestamp,
                ..Default::default()
            };
            // The shard's name stands before the iterator, for traces.
            self.aws.kinesis().call(input).map(|output| ShardIterator(format!("{shard} {}", output.shard_iterator)))
        })
        .await
    }

    async fn get_records(&self, iterator: &ShardIterator, limit: u32) -> Result<RecordsPage, StreamError> {
        const OPERATION: &str = "kinesis:GetRecords";
        let errors =
            &["ResourceNotFoundException", "AccessDeniedException", "KMSDisabledException", "ExpiredIteratorException", "InternalFailure"];
        let (shard, iterator) = iterator.0.split_once(' ').unwrap_or(("", &iterator.0));
        let output = self
            .call(OPERATION, self.asked(OPERATION, shard, errors), |_| {
                self.aws.kinesis().call(GetRecordsInput { shard_iterator: iterator.to_owned(), limit: Some(limit), stream_arn: None })
            })
            .await?;
        let numbers = self.aws.numbers();
        let record = |mut record: kcl_local::kinesis::Record| {
            let data = self.held.count(std::mem::take(&mut record.data));
            Record::from(numbers.record(record, data))
        };
        Ok(RecordsPage {
            records: output.records.into_iter().map(record).collect(),
            next: output.next_shard_iterator.map(|iterator| ShardIterator(format!("{shard} {iterator}"))),
            children: output.child_shards.into_iter().flatten().map(|shard| child(model::child(shard))).collect(),
            millis_behind_latest: Some(output.millis_behind_latest),
        })
    }
}
