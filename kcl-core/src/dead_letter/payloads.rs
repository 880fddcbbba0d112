//! Payloads in a blob store: each is put once for all of its letter's attempts at the queue. A queue may be away for hours, and is asked every
//! few seconds meanwhile.
//!
//! What is remembered is what the store has confirmed: these bytes lie under this name. The name follows from the letter's identity
//! and not from the bytes, so it is the digest that says whether they are the same.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::DeadLetter;
use super::blobs::{BlobError, BlobStore, PayloadLocation};
use super::guarded::GuardedBlobs;
use super::identity::{blob_key, sha256_hex};

/// So many puts are remembered, of some hundred bytes each. The oldest is forgotten first; its payload is put again.
const REMEMBERED: usize = 1000;

/// So long a put is relied on. A blob's lifecycle begins with the put, and its message's with the queue's yes: were these far apart, the message could
/// outlive the blob. And where that yes was lost, whoever has read the message may have deleted the blob.
const RELIED_ON: Duration = Duration::from_secs(600);

/// See the module.
#[derive(Debug)]
pub(super) struct Payloads {
    store: Box<dyn BlobStore>,
    /// Of letters that the queue has not accepted yet, oldest first; one of a name.
    confirmed: Mutex<VecDeque<Confirmed>>,
}

#[derive(Debug)]
struct Confirmed {
    key: String,
    location: PayloadLocation,
    at: Instant,
}

impl Payloads {
    pub(super) fn new(store: impl BlobStore + 'static) -> Self {
        Self { store: Box::new(GuardedBlobs::new(store)), confirmed: Mutex::default() }
    }

    /// Checks the store.
    pub(super) async fn check(&self) -> Result<(), BlobError> {
        self.store.check().await
    }

    /// Where the letter's payload is; it is put there, if that is not known to be done.
    pub(super) async fn place(&self, letter: &DeadLetter) -> Result<PayloadLocation, BlobError> {
        let (key, data) = (blob_key(letter), letter.record.data());
        let sha256 = sha256_hex(data);
        if let Some(location) = self.known(&key, &sha256) {
            return Ok(location);
        }
        // A put that is not answered may have taken the place of what was confirmed there.
        self.forget(&key);
        let address = self.store.put(&key, data.clone()).await?;
        let location = PayloadLocation { address, bytes: data.len() as u64, sha256 };
        self.remember(key, location.clone());
        Ok(location)
    }

    /// The queue has accepted the letter: from now on whoever reads it may delete its payload. Should it be sent once more, that is put anew.
    pub(super) fn accepted(&self, letter: &DeadLetter) {
        self.forget(&blob_key(letter));
    }

    fn known(&self, key: &str, sha256: &str) -> Option<PayloadLocation> {
        let confirmed = self.confirmed();
        let put = confirmed.iter().find(|put| put.key == key)?;
        (put.location.sha256 == sha256 && put.at.elapsed() < RELIED_ON).then(|| put.location.clone())
    }

    fn remember(&self, key: String, location: PayloadLocation) {
        // Of two puts at once the later answer stays.
        let mut confirmed = self.confirmed();
        confirmed.retain(|put| put.key != key);
        if confirmed.len() == REMEMBERED {
            confirmed.pop_front();
        }
        confirmed.push_back(Confirmed { key, location, at: Instant::now() });
    }

    fn forget(&self, key: &str) {
        self.confirmed().retain(|put| put.key != key);
    }

    fn confirmed(&self) -> MutexGuard<'_, VecDeque<Confirmed>> {
        self.confirmed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

    use async_trait::async_trait;
    use bytes::Bytes;

    use super::super::blobs::BlobAddress;
    use super::super::envelope::tests::letter;
    use super::*;
    use crate::record::Record;

    /// Counts what it is asked to put, and keeps nothing.
    #[derive(Clone, Debug, Default)]
    struct Counting {
        puts: Arc<AtomicUsize>,
        is_away: Arc<AtomicBool>,
    }

    #[async_trait]
    impl BlobStore for Counting {
        async fn check(&self) -> Result<(), BlobError> {
            Ok(())
        }

        async fn put(&self, key: &str, _: Bytes) -> Result<BlobAddress, BlobError> {
            self.puts.fetch_add(1, Ordering::Relaxed);
            if self.is_away.load(Ordering::Relaxed) {
                return Err(BlobError::Unavailable { bucket: "b".into(), operation: "put", message: "away".into() });
            }
            Ok(BlobAddress { bucket: "b".into(), key: format!("prefix/{key}") })
        }

        async fn get(&self, address: &BlobAddress) -> Result<Bytes, BlobError> {
            Err(BlobError::NotFound { bucket: address.bucket.clone(), key: address.key.clone() })
        }

        async fn delete(&self, _: &BlobAddress) -> Result<(), BlobError> {
            Ok(())
        }
    }

    struct Case {
        store: Counting,
        payloads: Payloads,
    }

    impl Case {
        fn new() -> Self {
            let store = Counting::default();
            Self { payloads: Payloads::new(store.clone()), store }
        }

        /// How many puts it takes to place the payload of this record.
        async fn puts(&self, number: usize, data: &'static str) -> usize {
            let before = self.store.puts.load(Ordering::Relaxed);
            if let Ok(location) = self.payloads.place(&of(number, data)).await {
                let expected = (format!("prefix/{}", blob_key(&of(number, data))), data.len() as u64, sha256_hex(data));
                assert_eq!((location.address.key, location.bytes, location.sha256), expected);
            }
            self.store.puts.load(Ordering::Relaxed) - before
        }
    }

    fn of(number: usize, data: &'static str) -> DeadLetter {
        DeadLetter { record: Record::new((number as u128).into(), None, data.into(), None), ..letter() }
    }

    #[tokio::test(start_paused = true)]
    async fn a_payload_is_put_once_until_its_letter_is_accepted() {
        let case = Case::new();
        assert_eq!([case.puts(1, "a").await, case.puts(1, "a").await, case.puts(2, "a").await, case.puts(1, "a").await], [1, 0, 1, 0]);
        case.payloads.accepted(&DeadLetter { attempts: 9, ..of(1, "a") });
        assert_eq!(case.puts(1, "a").await, 0, "that was a letter about another failure of the record");
        case.payloads.accepted(&DeadLetter { worker: "another".into(), ..of(1, "a") });
        assert_eq!([case.puts(1, "a").await, case.puts(2, "a").await], [1, 0]);
    }

    #[tokio::test(start_paused = true)]
    async fn other_bytes_under_the_same_name_are_put() {
        let case = Case::new();
        assert_eq!([case.puts(1, "a").await, case.puts(1, "b").await, case.puts(1, "b").await, case.puts(1, "a").await], [1, 1, 0, 1]);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_not_confirmed_is_put_again() {
        let case = Case::new();
        let away = |is_away| case.store.is_away.store(is_away, Ordering::Relaxed);
        away(true);
        assert_eq!([case.puts(1, "a").await, case.puts(1, "a").await], [1, 1]);
        away(false);
        assert_eq!([case.puts(1, "a").await, case.puts(1, "a").await], [1, 0]);
        // It may have arrived all the same, in the place of the first.
        away(true);
        assert_eq!(case.puts(1, "b").await, 1);
        away(false);
        assert_eq!(case.puts(1, "a").await, 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_put_is_relied_on_for_a_while() {
        let case = Case::new();
        assert_eq!(case.puts(1, "a").await, 1);
        tokio::time::advance(RELIED_ON - Duration::from_secs(1)).await;
        assert_eq!(case.puts(1, "a").await, 0, "to have been asked does not make it younger");
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!([case.puts(1, "a").await, case.puts(1, "a").await], [1, 0]);
    }

    #[tokio::test(start_paused = true)]
    async fn the_oldest_is_forgotten_first() {
        let case = Case::new();
        for number in 0..=REMEMBERED {
            assert_eq!(case.puts(number, "a").await, 1);
        }
        assert_eq!(
            [case.puts(1, "a").await, case.puts(REMEMBERED, "a").await, case.puts(0, "a").await, case.puts(1, "a").await],
            [0, 0, 1, 1]
        );
        assert_eq!(case.payloads.confirmed().len(), REMEMBERED);
    }
}
