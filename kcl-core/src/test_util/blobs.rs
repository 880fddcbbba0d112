//! A blob store in memory, behind the fault layer: for what is too large for a queue.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;

use super::faults::Service;
use super::network::{Asked, Failure, Link};

type Blobs = BTreeMap<String, Bytes>;

/// All blobs, whoever reaches them. Clones share them.
#[derive(Clone, Debug, Default)]
pub(super) struct Store(Arc<Mutex<Blobs>>);

/// Why the blob store gave no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BlobError {
    /// There is none of this name.
    #[error("there is no blob `{key}`")]
    NotFound {
        /// Its name.
        key: String,
    },
    /// The credentials do not allow it.
    #[error("{operation} of blob `{key}` is not allowed")]
    AccessDenied {
        /// Its name.
        key: String,
        /// The operation, as IAM names it.
        operation: &'static str,
    },
    /// No answer, throttled, or a failure of the service. A put may have taken effect: putting the same again is right.
    #[error("{operation} of blob `{key}` got no answer")]
    Unavailable {
        /// Its name.
        key: String,
        /// The operation.
        operation: &'static str,
    },
}

/// The blob store as one host reaches it.
#[derive(Clone, Debug)]
pub struct SimulatedBlobs {
    store: Store,
    link: Link,
    timeout: Duration,
}

impl SimulatedBlobs {
    pub(super) fn new(store: Store, link: Link, timeout: Duration) -> Self {
        Self { store, link, timeout }
    }

    /// Puts a blob in the place of one of the same name, if there is one.
    ///
    /// # Errors
    /// See [`BlobError`].
    ///
    /// # Cancel safety
    /// The blob may or may not have been put.
    pub async fn put(&self, key: &str, data: Bytes) -> Result<(), BlobError> {
        let (store, name) = (self.store.clone(), key.to_owned());
        let put = self.link.write(self.asked("s3:PutObject"), move || {
            let _ = store.0.lock().unwrap_or_else(PoisonError::into_inner).insert(name.clone(), Bytes::copy_from_slice(&data));
        });
        put.await.map_err(|failure| error("s3:PutObject", key, failure))
    }

    /// The blob of this name.
    ///
    /// # Errors
    /// See [`BlobError`].
    pub async fn get(&self, key: &str) -> Result<Bytes, BlobError> {
        let found =
            self.link.read(self.asked("s3:GetObject"), |_| self.store.0.lock().unwrap_or_else(PoisonError::into_inner).get(key).cloned());
        found.await.map_err(|failure| error("s3:GetObject", key, failure))?.ok_or_else(|| BlobError::NotFound { key: key.to_owned() })
    }

    fn asked(&self, operation: &'static str) -> Asked<'static> {
        let errors = &["AccessDenied", "InternalError"];
        Asked { service: Service::Blobs, operation, shard: "", may_be_stale: false, errors, timeout: self.timeout }
    }
}

fn error(operation: &'static str, key: &str, failure: Failure) -> BlobError {
    let key = key.to_owned();
    match failure {
        Failure::Refused("AccessDenied") => BlobError::AccessDenied { key, operation },
        _ => BlobError::Unavailable { key, operation },
    }
}
