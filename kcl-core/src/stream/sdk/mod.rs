//! The stream port over the AWS SDK: which request is made for which call. One attempt each, bounded in time.

mod convert;
mod date;
mod errors;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fmt;
use std::time::Duration;

use async_trait::async_trait;
use aws_sdk_kinesis::Client;
use aws_sdk_kinesis::config::retry::RetryConfig;
use aws_sdk_kinesis::config::timeout::TimeoutConfig;
use aws_sdk_kinesis::config::{Builder, StalledStreamProtectionConfig};
use aws_sdk_kinesis::error::ProvideErrorMetadata;
use kcl_lease::ShardId;

pub(crate) use self::convert::child;
use self::date::Date;
use self::errors::Call;
use super::{RecordsPage, Shard, ShardFilter, ShardIterator, StartingPosition, StreamApi, StreamDescription, StreamError};

/// How long GetRecords may take if nothing else is said: its answers have up to 10 MiB.
const READ_TIMEOUT: Duration = Duration::from_secs(10);
/// How often a listing whose page token expired on the way is begun anew. A token lives five minutes: once is rare already.
const LISTINGS: u32 = 3;
/// A listing with more pages than this is a server that goes round in circles: pages have up to 1,000 shards.
const PAGES: u32 = 1_000;

/// A stream of Amazon Kinesis.
///
/// Every call is one attempt: the SDK's retries are switched off for it, whatever the client's own settings, as whoever calls
/// retries and paces (two layers of retries multiply). The SDK's stalled-stream protection is off too: the timeouts bound a
/// call's body as well, and it would read the machine's clock.
#[derive(Clone)]
pub struct KinesisStream {
    client: Client,
    stream: String,
    call_timeout: Duration,
    read_timeout: Duration,
}

impl KinesisStream {
    /// The stream of this name, or, if it begins with `arn:`, of this ARN.
    ///
    /// `call_timeout` bounds each request but GetRecords, from the look for credentials to the end of the answer. A listing of
    /// shards is a request for each 1,000 shards.
    #[must_use]
    pub fn new(client: Client, stream: &str, call_timeout: Duration) -> Self {
        Self { client, stream: stream.to_owned(), call_timeout, read_timeout: READ_TIMEOUT }
    }

    /// Bounds GetRecords; 10 seconds if not set. Give it the time that 10 MiB need on a slow line.
    #[must_use]
    pub fn with_read_timeout(mut self, read_timeout: Duration) -> Self {
        self.read_timeout = read_timeout;
        self
    }

    fn arn(&self) -> Option<String> {
        self.stream.starts_with("arn:").then(|| self.stream.clone())
    }

    fn name(&self) -> Option<String> {
        (!self.stream.starts_with("arn:")).then(|| self.stream.clone())
    }

    fn call(&self, operation: &'static str) -> Call<'_> {
        Call { stream: &self.stream, operation }
    }

    /// One listing. `None`: the page token expired before the last page.
    async fn list_once(&self, filter: ShardFilter) -> Result<Option<Vec<Shard>>, StreamError> {
        let call = self.call("kinesis:ListShards");
        // By id: that sorts them, and a shard that moved from one page to another while they were read is there once.
        let mut shards: BTreeMap<ShardId, Shard> = BTreeMap::new();
        let mut token = None;
        for _ in 0..PAGES {
            let request = self.client.list_shards();
            let request = match token.take() {
                // The service refuses a token beside any other argument.
                Some(token) => request.next_token(token),
                None => request.set_stream_name(self.name()).set_stream_arn(self.arn()).set_shard_filter(convert::filter(filter)),
            };
            let page = match request.customize().config_override(one_attempt(self.call_timeout)).send().await {
                Ok(page) => page,
                Err(error) if error.code() == Some("ExpiredNextTokenException") => return Ok(None),
                Err(error) => return Err(call.failed(&error)),
            };
            for shard in page.shards.ok_or_else(|| call.malformed("a page without shards"))? {
                let shard = convert::shard(shard).map_err(|problem| call.malformed(problem))?;
                match shards.entry(shard.shard_id.clone()) {
                    Entry::Vacant(entry) => _ = entry.insert(shard),
                    // Listed twice, of which once before it was closed: that it is closed is the newer truth.
                    Entry::Occupied(mut entry) if shard.ending_sequence_number.is_some() => _ = entry.insert(shard),
                    Entry::Occupied(_) => {}
                }
            }
            token = page.next_token;
            if token.is_none() {
                return Ok(Some(shards.into_values().collect()));
            }
        }
        Err(call.malformed(format_args!("more than {PAGES} pages")))
    }
}

/// Settings of one request: no retry by the SDK, and a bound for all of it.
fn one_attempt(timeout: Duration) -> Builder {
    Builder::new()
        .retry_config(RetryConfig::disabled())
        .timeout_config(TimeoutConfig::builder().operation_timeout(timeout).operation_attempt_timeout(timeout).build())
        .stalled_stream_protection(StalledStreamProtectionConfig::disabled())
}

#[async_trait]
impl StreamApi for KinesisStream {
    async fn describe(&self) -> Result<StreamDescription, StreamError> {
        let call = self.call("kinesis:DescribeStreamSummary");
        let request = self.client.describe_stream_summary().set_stream_name(self.name()).set_stream_arn(self.arn());
        let date = Date::default();
        let answer = request.customize().config_override(one_attempt(self.call_timeout)).interceptor(date.clone()).send().await;
        let summary = answer.map_err(|error| call.failed(&error))?.stream_description_summary;
        let summary = summary.ok_or_else(|| call.malformed("no description"))?;
        convert::description(summary, date.seen()).map_err(|problem| call.malformed(problem))
    }

    async fn list_shards(&self, filter: ShardFilter) -> Result<Vec<Shard>, StreamError> {
        for _ in 0..LISTINGS {
            if let Some(shards) = self.list_once(filter).await? {
                return Ok(shards);
            }
        }
        Err(self.call("kinesis:ListShards").malformed(format_args!("its page token expired in each of {LISTINGS} listings")))
    }

    async fn shard_iterator(&self, shard: &ShardId, start: StartingPosition) -> Result<ShardIterator, StreamError> {
        let call = self.call("kinesis:GetShardIterator");
        let (kind, sequence_number, timestamp) = kcl_efo::convert::start(start);
        let request = self
            .client
            .get_shard_iterator()
            .set_stream_name(self.name())
            .set_stream_arn(self.arn())
            .shard_id(shard.as_str())
            .shard_iterator_type(kind)
            .set_starting_sequence_number(sequence_number)
            .set_timestamp(timestamp);
        let answer = request.customize().config_override(one_attempt(self.call_timeout)).send().await;
        let iterator = answer.map_err(|error| call.failed(&error))?.shard_iterator;
        convert::iterator(iterator).ok_or_else(|| call.malformed("no iterator"))
    }

    async fn get_records(&self, iterator: &ShardIterator, limit: u32) -> Result<RecordsPage, StreamError> {
        let call = self.call("kinesis:GetRecords");
        let request = self
            .client
            .get_records()
            .set_stream_arn(self.arn())
            .shard_iterator(iterator.0.as_str())
            .limit(i32::try_from(limit).unwrap_or(i32::MAX));
        let answer = request.customize().config_override(one_attempt(self.read_timeout)).send().await;
        convert::page(answer.map_err(|error| call.failed(&error))?).map_err(|problem| call.malformed(problem))
    }
}

impl fmt::Debug for KinesisStream {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("KinesisStream").field("stream", &self.stream).finish_non_exhaustive()
    }
}
