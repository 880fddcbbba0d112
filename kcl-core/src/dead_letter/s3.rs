//! The blob store over the AWS SDK: one S3 bucket.

use std::error::Error;
use std::fmt;
use std::time::Duration;

use async_trait::async_trait;
use aws_sdk_s3::Client;
use aws_sdk_s3::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_s3::primitives::ByteStream;
use aws_sdk_s3::types::ServerSideEncryption;
use aws_types::SdkConfig;
use bytes::Bytes;

use super::blobs::{BlobAddress, BlobError, BlobStore, LARGEST_BLOB};
use super::one_attempt::of_one_attempt;
use super::refusal::{is_denied, with_causes};

/// How long one call may take: 10 MiB at 4 Mbit/s, and some more.
const CALL_TIMEOUT: Duration = Duration::from_secs(25);

/// How long a connection may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// What `check` puts.
const CHECK_KEY: &str = "kcl-check";

/// An S3 bucket for payloads.
///
/// It needs `s3:PutObject` on the objects below the [prefix](Self::prefix), whoever reads them back `s3:GetObject`, and with a [KMS key](Self::kms_key)
/// `kms:GenerateDataKey` and `kms:Decrypt`. Objects are never deleted by whoever sends dead letters: give the bucket a lifecycle rule that
/// expires them later than the queue's messages (14 days at most).
///
/// `check` puts a small object, `PREFIX` + `kcl-check`: only a put tells whether puts are allowed, key and all. It is written over each time.
#[derive(Clone)]
pub struct S3BlobStore {
    client: Client,
    bucket: String,
    prefix: String,
    kms_key: Option<String>,
}

impl S3BlobStore {
    /// The bucket of this name, which must exist. Nothing is called yet.
    ///
    /// Where the configuration has an endpoint of its own (a local server), the bucket is addressed by path.
    #[must_use]
    pub fn new(aws: &SdkConfig, bucket: impl Into<String>) -> Self {
        let config = aws_sdk_s3::config::Builder::from(&of_one_attempt(aws, CALL_TIMEOUT, CONNECT_TIMEOUT));
        let config = config.force_path_style(aws.endpoint_url().is_some()).build();
        Self { client: Client::from_conf(config), bucket: bucket.into(), prefix: "dead-letters/".into(), kms_key: None }
    }

    /// What the names of all objects begin with. Default: `dead-letters/`.
    #[must_use]
    pub fn prefix(mut self, prefix: impl Into<String>) -> Self {
        self.prefix = prefix.into();
        self
    }

    /// The KMS key (id, ARN or alias) that objects are encrypted with. Default: as the bucket is configured; S3 always encrypts, with keys of its
    /// own if nothing else is said.
    #[must_use]
    pub fn kms_key(mut self, key: impl Into<String>) -> Self {
        self.kms_key = Some(key.into());
        self
    }

    fn refused<E, R>(&self, operation: &'static str, key: &str, error: &SdkError<E, R>) -> BlobError
    where
        E: Error + ProvideErrorMetadata + 'static,
        R: fmt::Debug,
    {
        let (bucket, key) = (self.bucket.clone(), key.to_owned());
        let Some(refused) = error.as_service_error() else {
            return BlobError::Unavailable { bucket, operation, message: with_causes(error) };
        };
        let message = refused.message().map_or_else(|| refused.to_string(), str::to_owned);
        match refused.code().unwrap_or_default() {
            "NoSuchBucket" => BlobError::NoBucket { bucket, message },
            "NoSuchKey" => BlobError::NotFound { bucket, key },
            code if is_denied(code) || code.starts_with("KMS.") || code == "AllAccessDisabled" => {
                BlobError::AccessDenied { bucket, operation, message: format!("{code}: {message}") }
            }
            code => BlobError::Unavailable { bucket, operation, message: format!("{code}: {message}") },
        }
    }

    fn own<'a>(&self, address: &'a BlobAddress) -> Result<&'a str, BlobError> {
        if address.bucket == self.bucket {
            return Ok(&address.key);
        }
        Err(BlobError::Elsewhere { bucket: address.bucket.clone(), configured: self.bucket.clone() })
    }
}

#[async_trait]
impl BlobStore for S3BlobStore {
    async fn check(&self) -> Result<(), BlobError> {
        self.put(CHECK_KEY, Bytes::from_static(b"kcl")).await.map(drop)
    }

    async fn put(&self, key: &str, data: Bytes) -> Result<BlobAddress, BlobError> {
        let key = format!("{}{key}", self.prefix);
        let put = self.client.put_object().bucket(&self.bucket).key(&key).body(ByteStream::from(data));
        let put = match &self.kms_key {
            Some(kms_key) => put.server_side_encryption(ServerSideEncryption::AwsKms).ssekms_key_id(kms_key),
            None => put,
        };
        put.send().await.map_err(|error| self.refused("s3:PutObject", &key, &error))?;
        Ok(BlobAddress { bucket: self.bucket.clone(), key })
    }

    async fn get(&self, address: &BlobAddress) -> Result<Bytes, BlobError> {
        const OPERATION: &str = "s3:GetObject";
        let key = self.own(address)?;
        // The SDK's timeouts end at the answer's head: the body has the rest of the time.
        let got = tokio::time::timeout(CALL_TIMEOUT, async {
            let got = self.client.get_object().bucket(&self.bucket).key(key).send().await;
            let got = got.map_err(|error| self.refused(OPERATION, key, &error))?;
            let bytes = u64::try_from(got.content_length().unwrap_or_default()).unwrap_or_default();
            if bytes > LARGEST_BLOB as u64 {
                return Err(BlobError::TooLarge { bucket: self.bucket.clone(), key: key.to_owned(), bytes });
            }
            let body = got.body.collect().await.map_err(|error| self.unavailable(OPERATION, with_causes(&error)))?;
            Ok(body.into_bytes())
        });
        got.await.unwrap_or_else(|_| Err(self.unavailable(OPERATION, "not answered in time".to_owned())))
    }

    async fn delete(&self, address: &BlobAddress) -> Result<(), BlobError> {
        let key = self.own(address)?;
        let deleted = self.client.delete_object().bucket(&self.bucket).key(key).send().await;
        deleted.map(drop).map_err(|error| self.refused("s3:DeleteObject", key, &error))
    }
}

impl S3BlobStore {
    fn unavailable(&self, operation: &'static str, message: String) -> BlobError {
        BlobError::Unavailable { bucket: self.bucket.clone(), operation, message }
    }
}

impl fmt::Debug for S3BlobStore {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("S3BlobStore").field("bucket", &self.bucket).field("prefix", &self.prefix).finish_non_exhaustive()
    }
}
