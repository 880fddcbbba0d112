//! The blob store port: where payloads go that are too large for a queue (a "claim check": the message carries a pointer).

use async_trait::async_trait;
use bytes::Bytes;
use serde::Serialize;

/// Bytes of the largest blob: a record of Kinesis has no more.
pub const LARGEST_BLOB: usize = 10 * 1024 * 1024;

/// Where a blob is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct BlobAddress {
    /// The store: an S3 bucket's name.
    pub bucket: String,
    /// The blob's name there, whole.
    pub key: String,
}

/// Where a letter's payload is, and how to tell that it is the right one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PayloadLocation {
    /// The blob.
    #[serde(flatten)]
    pub address: BlobAddress,
    /// Its size.
    pub bytes: u64,
    /// Its SHA-256, in lower-case hexadecimal.
    pub sha256: String,
}

/// Why the blob store did not do it. Texts in `message` are the service's own words.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BlobError {
    /// There is no such store.
    #[error("bucket `{bucket}` does not exist: {message}")]
    NoBucket {
        /// The store.
        bucket: String,
        /// What is known.
        message: String,
    },
    /// There is no blob of this name: it was deleted, or its lifecycle is over.
    #[error("there is no blob `{key}` in bucket `{bucket}`")]
    NotFound {
        /// The store.
        bucket: String,
        /// The blob's name.
        key: String,
    },
    /// The blob is in another store than this one. What a message says is not followed anywhere but to the store that was configured.
    #[error("the blob is in bucket `{bucket}`, and the store configured is `{configured}`; configure that bucket to read it")]
    Elsewhere {
        /// The store that the address names.
        bucket: String,
        /// The store that was asked.
        configured: String,
    },
    /// The credentials do not allow it.
    #[error("bucket `{bucket}`: {operation} is not allowed: {message}")]
    AccessDenied {
        /// The store.
        bucket: String,
        /// The operation, as IAM names it.
        operation: &'static str,
        /// What is known.
        message: String,
    },
    /// No answer, throttled, or a failure of the service. A put or a deletion may have taken effect: doing the same again is right.
    #[error("bucket `{bucket}`: {operation} failed: {message}")]
    Unavailable {
        /// The store.
        bucket: String,
        /// The operation.
        operation: &'static str,
        /// What is known.
        message: String,
    },
    /// The blob is larger than any payload.
    #[error("blob `{key}` in bucket `{bucket}` has {bytes} bytes; a payload has {LARGEST_BLOB} at most")]
    TooLarge {
        /// The store.
        bucket: String,
        /// The blob's name.
        key: String,
        /// Its size.
        bytes: u64,
    },
}

/// A store of blobs by name.
///
/// # Contract
///
/// - `Ok` of [`put`](Self::put) means durably stored and readable at once. A blob that is put again takes the place of the one of its name.
/// - Each call is one attempt with a bounded duration; whoever calls retries.
/// - Blobs have up to [`LARGEST_BLOB`] bytes, of any value.
/// - Nothing is deleted but by [`delete`](Self::delete). What is gone already counts as deleted.
///
/// `conformance::blob_store` (feature `test-util`) checks an implementation against it.
///
/// # Cancel safety
/// A dropped `put` or `delete` may or may not have taken effect.
#[async_trait]
pub trait BlobStore: Send + Sync + std::fmt::Debug {
    /// Checks that blobs may be put, before any work starts.
    ///
    /// # Errors
    /// See [`BlobError`].
    async fn check(&self) -> Result<(), BlobError>;

    /// Puts a blob under a name of up to 500 characters of ASCII, to which the store may add; says where it is.
    ///
    /// # Errors
    /// See [`BlobError`].
    async fn put(&self, key: &str, data: Bytes) -> Result<BlobAddress, BlobError>;

    /// The blob at this address.
    ///
    /// # Errors
    /// See [`BlobError`].
    async fn get(&self, address: &BlobAddress) -> Result<Bytes, BlobError>;

    /// Deletes the blob at this address.
    ///
    /// # Errors
    /// See [`BlobError`].
    async fn delete(&self, address: &BlobAddress) -> Result<(), BlobError>;
}
