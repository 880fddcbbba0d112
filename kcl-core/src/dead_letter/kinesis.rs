//! Dead letters in a Kinesis stream: one record per letter, put by PutRecords.

use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use async_trait::async_trait;
use aws_sdk_kinesis::Client;
use aws_sdk_kinesis::error::ProvideErrorMetadata as _;
use aws_sdk_kinesis::primitives::Blob;
use aws_sdk_kinesis::types::PutRecordsRequestEntry;
use aws_types::SdkConfig;
use futures::future::join_all;
use kcl_aggregation::is_valid_partition_key;

use super::batches::{Item, Limits, Plan};
use super::blobs::BlobStore;
use super::identity::{record_id, sha256_hex};
use super::message::MessageFormat;
use super::one_attempt::of_one_attempt;
use super::payloads::Payloads;
use super::refusal::{by_code, refusal};
use super::{DeadLetter, DeadLetterError, DeadLetterQueue, LARGEST_BATCH, PartitionKeys, carry_out};

/// How long one call may take: letters may have megabytes.
const CALL_TIMEOUT: Duration = Duration::from_secs(10);

/// What PutRecords takes: 10 MiB in all, partition keys included; of entries we never have more than a batch.
const LIMITS: Limits = Limits { entries: LARGEST_BATCH, bytes: 10 * 1024 * 1024 };

/// The largest record that any stream takes, if it does not say otherwise: 1 MiB, with its partition key.
const LEAST_LIMIT: usize = 1024 * 1024;

/// A stream's size limit while it has not been read.
const UNKNOWN: usize = 0;

/// A dead-letter queue that is a Kinesis stream.
///
/// Each letter becomes a record: the same JSON object that [`SqsDeadLetterQueue`](super::SqsDeadLetterQueue) sends. Its partition key is the record's
/// own, or its SHA-256 (also for a key of an aggregated record that Kinesis refuses in a put), or, where keys are omitted,
/// one of the letter's own; see [`PartitionKeys`]. It needs
/// `kinesis:DescribeStreamSummary` and `kinesis:PutRecords`, and `kms:GenerateDataKey` on the stream's key if it has one.
///
/// A record may have as many bytes as the stream says (1 MiB, or up to 10 MiB where it was raised); that is read from the stream. What is larger goes to
/// the [blob store](Self::blob_store), if there is one. Letters of one key are put one after the other, each when the one before it has
/// been accepted. A letter that is sent twice is there twice.
///
/// It must not be the stream that the worker reads: every dead letter would become a record that fails
/// again. A worker is not built with such a queue ([`DeadLetterError::FeedsItsSource`]).
///
/// `check` finds out whether the stream exists. Whether it may be written to shows with the first letter.
pub struct KinesisDeadLetterQueue {
    client: Client,
    /// Name or ARN, as given.
    stream: String,
    /// The stream's ARN, once it was asked for its limit.
    arn: OnceLock<String>,
    /// Bytes of the largest record that the stream takes, or [`UNKNOWN`].
    limit: AtomicUsize,
    format: MessageFormat,
}

/// A client whose calls are one attempt each.
pub(crate) fn client_of_one_attempt(aws: &SdkConfig, timeout: Duration) -> Client {
    Client::new(&of_one_attempt(aws, timeout, timeout / 4))
}

impl KinesisDeadLetterQueue {
    /// The stream with this name or ARN, in the configuration's region. Nothing is called yet.
    #[must_use]
    pub fn new(aws: &SdkConfig, stream: impl Into<String>) -> Self {
        Self {
            client: client_of_one_attempt(aws, CALL_TIMEOUT),
            stream: stream.into(),
            arn: OnceLock::new(),
            limit: AtomicUsize::new(UNKNOWN),
            format: MessageFormat::default(),
        }
    }

    /// How messages, and the partition keys that they are put under, tell partition keys. Default: in clear.
    #[must_use]
    pub fn partition_keys(mut self, keys: PartitionKeys) -> Self {
        self.format.partition_keys = keys;
        self
    }

    /// Where payloads go that are too large for the stream.
    #[must_use]
    pub fn blob_store(mut self, blobs: impl BlobStore + 'static) -> Self {
        self.format.payloads = Some(Arc::new(Payloads::new(blobs)));
        self
    }

    /// Name and ARN, one of which is given.
    fn names(&self) -> (Option<String>, Option<String>) {
        let stream = Some(self.stream.clone());
        if self.stream.starts_with("arn:") { (None, stream) } else { (stream, None) }
    }

    async fn read_limit(&self) -> Result<usize, DeadLetterError> {
        let (name, arn) = self.names();
        let read = self.client.describe_stream_summary().set_stream_name(name).set_stream_arn(arn).send().await;
        let read = read.map_err(|error| refusal(&self.stream, "kinesis:DescribeStreamSummary", &error))?;
        if let Some(summary) = read.stream_description_summary() {
            self.arn.get_or_init(|| summary.stream_arn().to_owned());
        }
        let kib = read.stream_description_summary().and_then(|summary| summary.max_record_size_in_kib());
        let limit = kib.and_then(|kib| usize::try_from(kib).ok()).map_or(LEAST_LIMIT, |kib| kib * 1024).min(LIMITS.bytes);
        self.limit.store(limit, Ordering::Relaxed);
        Ok(limit)
    }

    fn key_of(&self, letter: &DeadLetter) -> String {
        match (letter.record.partition_key(), self.format.partition_keys) {
            (Some(key), PartitionKeys::Clear) if is_valid_partition_key(key) => key.to_owned(),
            // A key inside of an aggregate may be one that PutRecords refuses.
            (Some(key), PartitionKeys::Clear | PartitionKeys::Hashed) => sha256_hex(key),
            (None, _) | (_, PartitionKeys::Omitted) => record_id(letter),
        }
    }

    async fn put(&self, entries: Vec<PutRecordsRequestEntry>) -> Vec<Result<(), DeadLetterError>> {
        const OPERATION: &str = "kinesis:PutRecords";
        let count = entries.len();
        let (name, arn) = self.names();
        let put = self.client.put_records().set_stream_name(name).set_stream_arn(arn).set_records(Some(entries)).send().await;
        let put = match put {
            Ok(put) => put,
            Err(error) => {
                // A record above a limit that was lowered meanwhile: the next attempt reads the limit first.
                if error.code().is_some_and(|code| matches!(code, "InvalidArgumentException" | "ValidationException")) {
                    self.limit.store(UNKNOWN, Ordering::Relaxed);
                }
                let error = refusal(&self.stream, OPERATION, &error);
                return vec![Err(error); count];
            }
        };
        let answer = |at: usize| match put.records().get(at) {
            Some(entry) if entry.error_code().is_none() => Ok(()),
            Some(entry) => {
                let words = entry.error_message().unwrap_or_default().to_owned();
                Err(by_code(&self.stream, OPERATION, entry.error_code().unwrap_or_default(), words))
            }
            None => {
                let message = "kinesis:PutRecords answered without a word of this record".to_owned();
                Err(DeadLetterError::Unavailable { queue: self.stream.clone(), message })
            }
        };
        (0..count).map(answer).collect()
    }
}

#[async_trait]
impl DeadLetterQueue for KinesisDeadLetterQueue {
    /// The stream's ARN; until it is known, the stream as it was given.
    fn feeds(&self) -> Option<&str> {
        Some(self.arn.get().unwrap_or(&self.stream))
    }

    async fn check(&self) -> Result<(), DeadLetterError> {
        self.read_limit().await?;
        self.format.check(&self.stream).await
    }

    async fn send(&self, letters: &[DeadLetter]) -> Vec<Result<(), DeadLetterError>> {
        let keys: Vec<_> = letters.iter().map(|letter| self.key_of(letter)).collect();
        let known = self.limit.load(Ordering::Relaxed);
        let is_above = |(letter, key): (&DeadLetter, &String)| self.format.whole_size(letter) + key.len() > known;
        let limit = if letters.iter().zip(&keys).any(is_above) { self.read_limit().await } else { Ok(known) };
        let limit = match limit {
            Ok(limit) => limit,
            Err(error) => return vec![Err(error); letters.len()],
        };
        let message = |(letter, key): (_, &String)| self.format.message(letter, limit.saturating_sub(key.len()), &self.stream);
        let mut messages = join_all(letters.iter().zip(&keys).map(message)).await;
        let item = |(message, key): (&Result<String, _>, &'_ String)| message.as_ref().map_or(0, |message| message.len() + key.len());
        let sizes: Vec<_> = messages.iter().zip(&keys).map(item).collect();
        let mut plan = Plan::new(LIMITS, sizes.iter().zip(&keys).map(|(bytes, key)| Item { bytes: *bytes, group: Some(key) }).collect());
        for (at, message) in messages.iter_mut().enumerate() {
            if let Err(error) = message {
                plan.settle(at, Err(error.clone()));
            }
        }
        let entry = |at: &usize| {
            let data = messages[*at].as_ref().map_or_else(|_| Vec::new(), |message| message.as_bytes().to_vec());
            let entry = PutRecordsRequestEntry::builder().data(Blob::new(data)).partition_key(&keys[*at]);
            entry.build().expect("an entry with data is complete")
        };
        let answers = carry_out(&self.stream, plan, |places| self.put(places.iter().map(entry).collect())).await;
        self.format.answered(letters, &answers);
        answers
    }
}

impl fmt::Debug for KinesisDeadLetterQueue {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("KinesisDeadLetterQueue").field("stream", &self.stream).finish_non_exhaustive()
    }
}
