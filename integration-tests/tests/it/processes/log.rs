//! What children have printed, in the order in which the test has read it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use kcl_core::SequenceNumber;
use serde_json::Value;
use tokio::time::Instant;

use crate::support::eventually;

/// One printed record.
#[derive(Clone, Debug)]
pub(super) struct Printed {
    pub(super) worker: String,
    pub(super) shard: String,
    pub(super) key: String,
    pub(super) payload: String,
    pub(super) at: Instant,
}

/// All that was printed. Clones share it.
#[derive(Clone, Debug, Default)]
pub(super) struct Log(Arc<Mutex<Vec<Printed>>>);

impl Log {
    /// Takes a line, which must have exactly the fields that are promised.
    pub(super) fn note(&self, worker: &str, line: &[u8]) {
        let value: Value = serde_json::from_slice(line).unwrap();
        let fields: BTreeSet<_> = value.as_object().unwrap().keys().map(String::as_str).collect();
        assert_eq!(fields, BTreeSet::from(["data", "partition_key", "sequence_number", "shard_id", "sub_sequence_number"]));
        let text = |field: &str| value[field].as_str().unwrap().to_owned();
        text("sequence_number").parse::<SequenceNumber>().unwrap();
        assert_eq!(value["sub_sequence_number"], 0);
        let payload = String::from_utf8(STANDARD.decode(text("data")).unwrap()).unwrap();
        let (key, shard) = (text("partition_key"), text("shard_id"));
        self.0.lock().unwrap().push(Printed { worker: worker.to_owned(), shard, key, payload, at: Instant::now() });
    }

    pub(super) fn all(&self) -> Vec<Printed> {
        self.0.lock().unwrap().clone()
    }

    pub(super) fn payloads(&self) -> BTreeSet<String> {
        self.0.lock().unwrap().iter().map(|printed| printed.payload.clone()).collect()
    }

    /// Whether this worker has printed anything since.
    pub(super) fn has_printed(&self, worker: &str, since: Instant) -> bool {
        self.0.lock().unwrap().iter().any(|printed| printed.worker == worker && printed.at >= since)
    }

    /// Waits until all of these were printed.
    pub(super) async fn has_all(&self, expected: &BTreeSet<String>) {
        eventually("all records are printed", async || expected.is_subset(&self.payloads()).then_some(())).await;
    }

    /// When a worker other than this one first printed a record of each of these shards since. Waits until it has happened.
    pub(super) async fn taken_over(&self, shards: &BTreeSet<String>, from: &str, since: Instant) -> BTreeMap<String, Instant> {
        eventually("others print from all shards of the one that is gone", async || {
            let mut first = BTreeMap::new();
            for printed in self.0.lock().unwrap().iter() {
                if printed.worker != from && printed.at >= since && shards.contains(&printed.shard) {
                    first.entry(printed.shard.clone()).or_insert(printed.at);
                }
            }
            (first.len() == shards.len()).then_some(first)
        })
        .await
    }

    pub(super) fn assert_no_duplicates(&self) {
        let mut seen: BTreeMap<String, Printed> = BTreeMap::new();
        for printed in self.all() {
            if let Some(before) = seen.insert(printed.payload.clone(), printed.clone()) {
                panic!("printed twice: {before:?} and {printed:?}");
            }
        }
    }

    /// Panics unless, within each key, first deliveries are in the order of publication.
    pub(super) fn assert_ordered(&self) {
        let (mut last, mut seen): (BTreeMap<String, Printed>, _) = (BTreeMap::new(), BTreeSet::new());
        let number = |printed: &Printed| printed.payload.rsplit(':').next().unwrap().parse::<u64>().unwrap();
        for printed in self.all() {
            if seen.insert(printed.payload.clone())
                && let Some(before) = last.insert(printed.key.clone(), printed.clone())
            {
                assert!(number(&before) < number(&printed), "{before:?}, and only then {printed:?}");
            }
        }
    }
}
