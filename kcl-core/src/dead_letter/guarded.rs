//! Guarded ports: a dead-letter queue or blob store whose panics are errors.
//!
//! Queues and stores may be users' code. A panic in one must not take the shard's consumer down with
//! it, which would be taken anew, send the same letter, and panic again without a pause: as an error
//! it is waited out with backoff, counted and shown like every other failure of the queue.

use std::any::type_name;
use std::fmt;
use std::panic::AssertUnwindSafe;

use async_trait::async_trait;
use bytes::Bytes;
use futures::FutureExt as _;

use super::blobs::{BlobAddress, BlobError, BlobStore};
use super::{Answer, DeadLetter, DeadLetterError, DeadLetterQueue};

/// A dead-letter queue that answers whatever the one inside does.
///
/// A panic in `check` or `send` is [`DeadLetterError::Unavailable`] for every letter of the call: some may
/// have been accepted. Each letter has exactly one answer: missing ones are `Unavailable`, further
/// ones are dropped. The panic's words are not kept, for they may quote a payload; the panic hook has
/// seen them.
pub(crate) struct GuardedQueue<Q> {
    inner: Q,
}

impl<Q: DeadLetterQueue> GuardedQueue<Q> {
    pub(crate) fn new(inner: Q) -> Self {
        Self { inner }
    }

    fn unavailable(message: &str) -> DeadLetterError {
        DeadLetterError::Unavailable { queue: type_name::<Q>().to_owned(), message: message.to_owned() }
    }
}

#[async_trait]
impl<Q: DeadLetterQueue> DeadLetterQueue for GuardedQueue<Q> {
    fn feeds(&self) -> Option<&str> {
        std::panic::catch_unwind(AssertUnwindSafe(|| self.inner.feeds())).unwrap_or_default()
    }

    async fn check(&self) -> Result<(), DeadLetterError> {
        let checked = caught(async { self.inner.check().await }).await;
        checked.unwrap_or_else(|| Err(Self::unavailable("its `check` panicked")))
    }

    async fn send(&self, letters: &[DeadLetter]) -> Vec<Answer> {
        let sent = caught(async { self.inner.send(letters).await }).await;
        let mut answers = sent.unwrap_or_else(|| vec![Err(Self::unavailable("its `send` panicked")); letters.len()]);
        answers.resize_with(letters.len(), || Err(Self::unavailable("its `send` gave no answer for this record")));
        answers
    }
}

impl<Q: DeadLetterQueue> fmt::Debug for GuardedQueue<Q> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.fmt(formatter)
    }
}

/// A blob store whose panics are [`BlobError::Unavailable`].
pub(crate) struct GuardedBlobs<B> {
    inner: B,
}

impl<B: BlobStore> GuardedBlobs<B> {
    pub(crate) fn new(inner: B) -> Self {
        Self { inner }
    }

    async fn call<T: Send>(
        &self,
        operation: &'static str,
        call: impl Future<Output = Result<T, BlobError>> + Send,
    ) -> Result<T, BlobError> {
        let panicked = || BlobError::Unavailable { bucket: type_name::<B>().to_owned(), operation, message: "it panicked".to_owned() };
        caught(call).await.unwrap_or_else(|| Err(panicked()))
    }
}

#[async_trait]
impl<B: BlobStore> BlobStore for GuardedBlobs<B> {
    async fn check(&self) -> Result<(), BlobError> {
        self.call("check", async { self.inner.check().await }).await
    }

    async fn put(&self, key: &str, data: Bytes) -> Result<BlobAddress, BlobError> {
        self.call("put", async { self.inner.put(key, data).await }).await
    }

    async fn get(&self, address: &BlobAddress) -> Result<Bytes, BlobError> {
        self.call("get", async { self.inner.get(address).await }).await
    }

    async fn delete(&self, address: &BlobAddress) -> Result<(), BlobError> {
        self.call("delete", async { self.inner.delete(address).await }).await
    }
}

impl<B: BlobStore> fmt::Debug for GuardedBlobs<B> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.fmt(formatter)
    }
}

/// Runs a call of a port; `None` if it panicked, when it was begun or while it ran.
pub(crate) async fn caught<T>(call: impl Future<Output = T>) -> Option<T> {
    AssertUnwindSafe(call).catch_unwind().await.ok()
}

#[cfg(test)]
mod tests {
    use super::super::tests::letter;
    use super::*;

    /// A port whose calls panic, or give so many answers.
    #[derive(Debug)]
    struct Wild(Option<usize>);

    #[async_trait]
    impl DeadLetterQueue for Wild {
        fn feeds(&self) -> Option<&str> {
            panic!("secret")
        }

        async fn check(&self) -> Result<(), DeadLetterError> {
            panic!("secret")
        }

        async fn send(&self, _: &[DeadLetter]) -> Vec<Answer> {
            vec![Ok(()); self.0.expect("secret")]
        }
    }

    #[async_trait]
    impl BlobStore for Wild {
        async fn check(&self) -> Result<(), BlobError> {
            panic!("secret")
        }

        async fn put(&self, _: &str, _: Bytes) -> Result<BlobAddress, BlobError> {
            panic!("secret")
        }

        async fn get(&self, _: &BlobAddress) -> Result<Bytes, BlobError> {
            panic!("secret")
        }

        async fn delete(&self, _: &BlobAddress) -> Result<(), BlobError> {
            panic!("secret")
        }
    }

    #[tokio::test]
    async fn a_queue_that_panics_is_unavailable() {
        let queue = GuardedQueue::new(Wild(None));
        assert_eq!(queue.feeds(), None);
        let checked = queue.check().await;
        assert!(matches!(&checked, Err(DeadLetterError::Unavailable { queue, .. }) if queue.ends_with("Wild")), "{checked:?}");
        let answers = queue.send(&[letter(), letter()]).await;
        assert!(matches!(answers[..], [Err(DeadLetterError::Unavailable { .. }), Err(DeadLetterError::Unavailable { .. })]));
        assert!(!format!("{checked:?} {answers:?}").contains("secret"));
    }

    #[tokio::test]
    async fn each_letter_has_one_answer() {
        for (given, expected) in [(0, [false, false]), (1, [true, false]), (2, [true, true]), (3, [true, true])] {
            let answers = GuardedQueue::new(Wild(Some(given))).send(&[letter(), letter()]).await;
            assert_eq!(answers.iter().map(Result::is_ok).collect::<Vec<_>>(), expected, "{given}");
        }
    }

    #[tokio::test]
    async fn a_store_that_panics_is_unavailable() {
        let blobs = GuardedBlobs::new(Wild(None));
        let address = BlobAddress { bucket: "b".into(), key: "k".into() };
        for error in [
            blobs.check().await.unwrap_err(),
            blobs.put("k", Bytes::new()).await.unwrap_err(),
            blobs.get(&address).await.unwrap_err(),
            blobs.delete(&address).await.unwrap_err(),
        ] {
            assert!(matches!(error, BlobError::Unavailable { .. }) && !error.to_string().contains("secret"), "{error}");
        }
    }
}
