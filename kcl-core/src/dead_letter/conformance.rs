//! What every dead-letter queue and every blob store must do, as suites that an implementation is put through. They panic at what is wrong.

use bytes::Bytes;
use kcl_checkpoint::Timestamp;

use super::{BlobAddress, BlobError, BlobStore, Condition, DeadLetter, DeadLetterQueue, Envelope, FailureKind, LARGEST_BATCH, Payload};
use super::{RecordAddress, ToldKey};
use crate::record::Record;

/// A letter as it was found in a queue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Received {
    /// The record's address.
    pub record: RecordAddress,
    /// The record's partition key.
    pub partition_key: Option<String>,
    /// The record's payload.
    pub payload: Bytes,
}

impl Received {
    /// What a message says.
    ///
    /// # Panics
    /// If it is not a dead letter with its payload inside and its key in clear.
    #[must_use]
    pub fn in_message(message: &str) -> Self {
        let envelope = Envelope::parse(message).expect("the message can be read");
        let Payload::Inside(payload) = envelope.payload else { panic!("the payload is inside") };
        let partition_key = match envelope.partition_key {
            ToldKey::Clear(key) => Some(key),
            ToldKey::None => None,
            other => panic!("the key is told in clear, and not {other:?}"),
        };
        Self { record: envelope.record, partition_key, payload }
    }
}

impl From<&DeadLetter> for Received {
    fn from(letter: &DeadLetter) -> Self {
        let partition_key = letter.record.partition_key().map(str::to_owned);
        Self { record: RecordAddress::of(letter), partition_key, payload: letter.record.data().clone() }
    }
}

/// A letter for tests, of a record with this number, key and payload.
#[must_use]
pub fn letter(number: u128, partition_key: Option<&str>, payload: impl Into<Bytes>) -> DeadLetter {
    let now = Timestamp::from_millis(1_573_691_884_835);
    DeadLetter {
        record: Record::new(number.into(), partition_key.map(Into::into), payload.into(), Some(now)),
        stream_arn: "arn:aws:kinesis:us-east-2:123456789012:stream/orders".into(),
        stream_created: now,
        shard_id: "shardId-000000000001".into(),
        kind: FailureKind::Poison,
        condition: Condition::RetryAttemptsExhausted,
        error_chain: vec!["no order \u{0}\u{fffe}".into()],
        attempts: 4,
        first_failure: now,
        last_failure: now,
        application: "orders-app".into(),
        worker: "worker".into(),
        fencing_token: 42,
    }
}

/// Puts an empty queue through the suite. `received` gives what is in the queue, in its order, and may take it off or leave it; `keeps_order`: the queue promises that the letters
/// of one key keep their order.
///
/// # Panics
/// If the queue does not do what [`DeadLetterQueue`] says.
pub async fn dead_letter_queue(queue: &dyn DeadLetterQueue, keeps_order: bool, mut received: impl AsyncFnMut() -> Vec<Received>) {
    queue.check().await.expect("the queue can be used");
    assert!(queue.send(&[]).await.is_empty(), "no letters, no answers");
    assert!(received().await.is_empty(), "a check leaves nothing behind");

    // The last two are keys that an aggregated record may have, and that Kinesis refuses in a put.
    let too_long = "k".repeat(257);
    let keys = [Some("a"), Some("b"), Some("clé 🦀 \u{0}\u{fffe}\"\\"), None, Some(""), Some(too_long.as_str())];
    let letters: Vec<_> = (0..LARGEST_BATCH)
        .map(|number| {
            let payload: Vec<u8> = (0..=255).cycle().take(number * 97).collect();
            letter(1 + number as u128, keys[number % keys.len()], payload)
        })
        .collect();
    let answers = queue.send(&letters).await;
    assert_eq!(answers.len(), letters.len(), "an answer for each letter");
    for answer in answers {
        answer.expect("a letter is accepted");
    }
    let found = received().await;
    let numbered = |found: &[Received]| {
        let mut numbers: Vec<_> = found.iter().map(|found| found.record.sequence_number).collect();
        numbers.dedup();
        numbers
    };
    for letter in &letters {
        assert!(found.contains(&Received::from(letter)), "what was accepted is there, whole: {:?}", RecordAddress::of(letter));
    }
    if keeps_order {
        for key in keys {
            let of_key: Vec<_> = found.iter().filter(|found| found.partition_key.as_deref() == key).cloned().collect();
            assert!(numbered(&of_key).is_sorted(), "letters of one key keep their order: {of_key:?}");
        }
    }

    let again = letter(1000, Some("a"), "again");
    for _ in 0..2 {
        let answers = queue.send(std::slice::from_ref(&again)).await;
        assert!(matches!(answers[..], [Ok(())]), "a letter may be sent again: {answers:?}");
    }
    assert!(received().await.contains(&Received::from(&again)));
}

/// Puts a store through the suite, with blobs under names that begin with `conformance/`.
///
/// # Panics
/// If the store does not do what [`BlobStore`] says.
pub async fn blob_store(store: &dyn BlobStore) {
    store.check().await.expect("the store can be used");
    let large: Vec<u8> = (0..super::LARGEST_BLOB).map(|at| (at % 251) as u8).collect();
    let contents: [&[u8]; 5] = [b"", b"\x00\xff\r\n", b"<order/>", b"{\"json\":true}", &large];
    let mut addresses = Vec::new();
    for (number, content) in contents.iter().enumerate() {
        let key = format!("conformance/shardId-000000000001/{number}");
        let address = store.put(&key, Bytes::copy_from_slice(content)).await.expect("a blob is put");
        assert!(address.key.ends_with(&key), "the address has the name: {address:?}");
        addresses.push(address);
    }
    for (address, content) in addresses.iter().zip(contents) {
        let found = store.get(address).await.expect("what was put is there");
        assert!(found == content, "a blob keeps its bytes: {address:?}");
    }
    let again = store.put("conformance/shardId-000000000001/0", Bytes::from_static(b"again")).await.expect("a blob is put again");
    assert_eq!(again, addresses[0], "the same name is the same place");
    assert_eq!(store.get(&again).await.expect("it is there"), "again");

    store.delete(&again).await.expect("a blob is deleted");
    store.delete(&again).await.expect("what is gone counts as deleted");
    let gone = store.get(&again).await;
    assert!(matches!(gone, Err(BlobError::NotFound { .. })), "{gone:?}");
    let elsewhere = BlobAddress { bucket: "another-store".into(), ..addresses[1].clone() };
    let refused = store.get(&elsewhere).await;
    assert!(matches!(refused, Err(BlobError::Elsewhere { .. })), "an address of another store is not followed: {refused:?}");
    assert!(matches!(store.delete(&elsewhere).await, Err(BlobError::Elsewhere { .. })));
    for address in &addresses[1..] {
        store.delete(address).await.expect("a blob is deleted");
    }
}
