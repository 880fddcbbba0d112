//! A blob store in memory, behind the fault layer: for what is too large for a queue.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;

use super::faults::Service;
use super::network::{Asked, Failure, Link};
use crate::dead_letter::{BlobAddress, BlobError, BlobStore};

type Blobs = BTreeMap<String, Bytes>;

/// All blobs, whoever reaches them. Clones share them.
#[derive(Clone, Debug, Default)]
pub(super) struct Store(Arc<Mutex<Blobs>>);

impl Store {
    fn lock(&self) -> MutexGuard<'_, Blobs> {
        // Each change is one insertion or removal: no panic leaves it half done.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
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

    fn asked(&self, operation: &'static str) -> Asked<'static> {
        let errors = &["AccessDenied", "InternalError"];
        Asked { service: Service::Blobs, operation, shard: "", may_be_stale: false, errors, timeout: self.timeout }
    }
}

/// The name of the one store there is.
const BUCKET: &str = "simulated";

#[async_trait]
impl BlobStore for SimulatedBlobs {
    async fn check(&self) -> Result<(), BlobError> {
        self.put("check", Bytes::new()).await.map(drop)
    }

    async fn put(&self, key: &str, data: Bytes) -> Result<BlobAddress, BlobError> {
        const OPERATION: &str = "s3:PutObject";
        let (store, name) = (self.store.clone(), key.to_owned());
        let put = self.link.write(self.asked(OPERATION), move || {
            let _ = store.lock().insert(name.clone(), Bytes::copy_from_slice(&data));
        });
        put.await.map_err(|failure| error(OPERATION, failure))?;
        Ok(BlobAddress { bucket: BUCKET.to_owned(), key: key.to_owned() })
    }

    async fn get(&self, address: &BlobAddress) -> Result<Bytes, BlobError> {
        const OPERATION: &str = "s3:GetObject";
        let BlobAddress { bucket, key } = own(address)?.clone();
        let found = self.link.read(self.asked(OPERATION), |_| self.store.lock().get(&key).cloned()).await;
        found.map_err(|failure| error(OPERATION, failure))?.ok_or(BlobError::NotFound { bucket, key })
    }

    async fn delete(&self, address: &BlobAddress) -> Result<(), BlobError> {
        const OPERATION: &str = "s3:DeleteObject";
        let (store, name) = (self.store.clone(), own(address)?.key.clone());
        let deleted = self.link.write(self.asked(OPERATION), move || drop(store.lock().remove(&name)));
        deleted.await.map_err(|failure| error(OPERATION, failure))
    }
}

fn own(address: &BlobAddress) -> Result<&BlobAddress, BlobError> {
    if address.bucket == BUCKET {
        return Ok(address);
    }
    Err(BlobError::Elsewhere { bucket: address.bucket.clone(), configured: BUCKET.to_owned() })
}

fn error(operation: &'static str, failure: Failure) -> BlobError {
    let (bucket, message) = (BUCKET.to_owned(), "a simulated fault".to_owned());
    match failure {
        Failure::Refused("AccessDenied") => BlobError::AccessDenied { bucket, operation, message },
        _ => BlobError::Unavailable { bucket, operation, message },
    }
}
