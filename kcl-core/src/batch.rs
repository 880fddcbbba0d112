//! A batch: records of one shard that are delivered together, and which of them the processor has acknowledged.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kcl_checkpoint::ExtendedSequenceNumber;
use kcl_checkpoint::planted::{Bug, is_planted};
use tokio::sync::Notify;

use crate::processor::{Outcome, ProcessError, ProcessResult, ShardContext};
use crate::record::Record;

/// Records of one shard in their order, delivered together.
///
/// A record of a batch is finished when the processor says so: by `Ok(Outcome::Done)` for the whole
/// batch, by an [`Outcome`] that names records, or by an acknowledgement ([`ack`](Self::ack),
/// [`ack_through`](Self::ack_through)) while the call is under way. Iterating finishes nothing.
///
/// Clones are the same batch, so that a spawned task can own one. An acknowledgement after the end
/// of the call counts for nothing.
#[derive(Clone)]
pub struct RecordBatch(Arc<Inner>);

struct Inner {
    records: Vec<Record>,
    millis_behind_latest: Option<u64>,
    acknowledged: Mutex<Acknowledged>,
    /// Wakes the shard's consumer at the first acknowledgement that it has not taken in.
    wake: Option<Arc<Notify>>,
}

/// The acknowledgements of one call.
#[derive(Default)]
struct Acknowledged {
    /// One bit for each record, made at the first acknowledgement.
    bits: Vec<u64>,
    /// All records before this index are acknowledged.
    through: usize,
    /// Indices that were acknowledged since they were taken in last.
    fresh: Vec<usize>,
    /// The call has ended.
    closed: bool,
}

impl Acknowledged {
    fn contains(&self, index: usize) -> bool {
        self.bits.get(index / 64).is_some_and(|bits| bits & (1 << (index % 64)) != 0)
    }

    /// Acknowledges one record of `records`. Returns whether that is news.
    fn insert(&mut self, index: usize, records: usize) -> bool {
        if self.closed || self.contains(index) {
            return false;
        }
        if self.bits.is_empty() {
            self.bits = vec![0; records.div_ceil(64)];
        }
        self.bits[index / 64] |= 1 << (index % 64);
        while self.through < records && self.contains(self.through) {
            self.through += 1;
        }
        self.fresh.push(index);
        true
    }
}

impl RecordBatch {
    /// Returns a batch of these records, read this far behind the tip of the shard.
    #[must_use]
    pub fn new(records: Vec<Record>, millis_behind_latest: Option<u64>) -> Self {
        Self::with_wake(records, millis_behind_latest, None)
    }

    /// Returns a batch whose acknowledgements wake whoever waits on `wake`.
    pub(crate) fn with_wake(records: Vec<Record>, millis_behind_latest: Option<u64>, wake: Option<Arc<Notify>>) -> Self {
        Self(Arc::new(Inner { records, millis_behind_latest, acknowledged: Mutex::default(), wake }))
    }

    /// The records. Going through them says nothing of what is finished.
    #[must_use]
    pub fn records(&self) -> &[Record] {
        &self.0.records
    }

    /// The number of records; never 0 where a batch is delivered.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.records.len()
    }

    /// Returns whether there are no records.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.records.is_empty()
    }

    /// Distance of the batch's end from the newest record of the shard when it was read, in
    /// milliseconds; 0: nothing newer. `None`: the service did not say.
    #[must_use]
    pub fn millis_behind_latest(&self) -> Option<u64> {
        self.0.millis_behind_latest
    }

    /// Acknowledges one record: it is finished, whatever becomes of the call.
    ///
    /// It counts at once: the record is checkpointed with the next automatic checkpoint (as soon as
    /// all before it are finished), and is not delivered again after a failure, a panic, an overrun,
    /// a handoff or a shutdown. It can't be taken back: a later failure that names the record is
    /// ignored.
    ///
    /// Returns whether the record was acknowledged by this call: `false` if it was before, if it is
    /// not of this batch, or if the call has ended.
    pub fn ack(&self, record: &Record) -> bool {
        self.index_of(record).is_some_and(|index| self.ack_range(index..index + 1))
    }

    /// Acknowledges this record and all before it in the batch. See [`ack`](Self::ack).
    ///
    /// Returns whether any record was acknowledged by this call.
    pub fn ack_through(&self, record: &Record) -> bool {
        let Some(index) = self.index_of(record) else { return false };
        let first = self.lock().through;
        self.ack_range(first..index + 1)
    }

    /// Acknowledges the record at this index.
    pub(crate) fn ack_index(&self, index: usize) {
        self.ack_range(index..index + 1);
    }

    /// Returns whether the record was acknowledged.
    #[must_use]
    pub fn is_acknowledged(&self, record: &Record) -> bool {
        self.index_of(record).is_some_and(|index| self.lock().contains(index))
    }

    /// Goes through the records one by one with an async closure, and acknowledges each that it
    /// handles.
    ///
    /// Stops between two records when the call should end early (see
    /// [`ShardContext::interruption`]): records that were not tried are delivered later, here or by
    /// the shard's next owner. An error of the closure belongs to its record.
    ///
    /// The closure may use the processor's fields, and not change them: a processor that has to
    /// goes through [`records`](Self::records) in a loop, and acknowledges each with
    /// [`ack`](Self::ack).
    ///
    /// ```
    /// use kcl_core::{ProcessResult, Record, RecordBatch, RecordProcessor, ShardContext, async_trait};
    ///
    /// struct Orders {
    ///     database: Database,
    /// }
    ///
    /// #[async_trait]
    /// impl RecordProcessor for Orders {
    ///     async fn process_records(&mut self, batch: &RecordBatch, shard: &ShardContext) -> ProcessResult {
    ///         batch.for_each(shard, async |record| self.database.insert(record.data()).await).await
    ///     }
    /// }
    /// # struct Database;
    /// # impl Database { async fn insert(&self, _: &[u8]) -> std::io::Result<()> { Ok(()) } }
    /// ```
    ///
    /// [`Checkpointer::checkpoint`](crate::Checkpointer::checkpoint) in there covers the whole batch,
    /// as all of it was delivered to the processor: leave checkpoints to the framework, or name the
    /// record with `checkpoint_at`. A [`RecordHandler`](crate::RecordHandler) is given one record at a
    /// time.
    ///
    /// # Errors
    /// None of its own: a failure is in the [`Outcome`], with its record.
    ///
    /// # Cancel safety
    /// Records that were handled stay acknowledged; the one in work is not.
    pub async fn for_each<'a, F, H, E>(&'a self, shard: &ShardContext, mut handle: F) -> ProcessResult
    where
        F: FnMut(&'a Record) -> H,
        H: Future<Output = Result<(), E>>,
        E: Into<ProcessError>,
    {
        for (index, record) in self.records().iter().enumerate() {
            if shard.interruption().is_some() {
                return Ok(Outcome::Acknowledged);
            }
            if self.lock().contains(index) {
                continue;
            }
            match handle(record).await {
                Ok(()) => self.ack_index(index),
                Err(error) => return Ok(Outcome::failed_from(record, error)),
            }
            // A closure that never waits must not keep others from running.
            tokio::task::consume_budget().await;
        }
        Ok(Outcome::Done)
    }

    /// The indices that were acknowledged since this was asked last.
    pub(crate) fn take_acknowledged(&self) -> Vec<usize> {
        std::mem::take(&mut self.lock().fresh)
    }

    /// The records that are not acknowledged, oldest first.
    pub(crate) fn open_records(&self) -> impl Iterator<Item = ExtendedSequenceNumber> {
        let open = |(index, record): (usize, &Record)| (!self.lock().contains(index)).then(|| record.position());
        self.records().iter().enumerate().filter_map(open)
    }

    /// Ends the call: no acknowledgement counts from now on. Returns which records were acknowledged.
    pub(crate) fn close(&self) -> Vec<bool> {
        let mut acknowledged = self.lock();
        acknowledged.closed = !is_planted(Bug::AckAfterCallCounts);
        (0..self.len()).map(|index| acknowledged.contains(index)).collect()
    }

    fn index_of(&self, record: &Record) -> Option<usize> {
        self.0.records.binary_search_by_key(&record.position(), Record::position).ok()
    }

    fn ack_range(&self, range: std::ops::Range<usize>) -> bool {
        let (news, wake) = {
            let mut acknowledged = self.lock();
            let was_empty = acknowledged.fresh.is_empty();
            let mut news = false;
            for index in range {
                news |= acknowledged.insert(index, self.len());
            }
            (news, news && was_empty)
        };
        if wake && let Some(notify) = &self.0.wake {
            notify.notify_one();
        }
        news
    }

    fn lock(&self) -> MutexGuard<'_, Acknowledged> {
        // A panic between two insertions leaves each of them whole.
        self.0.acknowledged.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<'a> IntoIterator for &'a RecordBatch {
    type Item = &'a Record;
    type IntoIter = std::slice::Iter<'a, Record>;

    fn into_iter(self) -> Self::IntoIter {
        self.records().iter()
    }
}

impl fmt::Debug for RecordBatch {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("RecordBatch")
            .field("records", &self.0.records)
            .field("millis_behind_latest", &self.0.millis_behind_latest)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn record(number: u128) -> Record {
        Record::new(number.into(), Some("secret-key".into()), Bytes::from_static(b"secret-data"), None)
    }

    fn batch(records: u128) -> RecordBatch {
        RecordBatch::new((0..records).map(record).collect(), None)
    }

    #[test]
    fn debug_shows_no_secrets() {
        let shown = format!("{:?}", batch(1));
        assert!(!shown.contains("secret") && shown.contains("bytes: 11"), "{shown}");
    }

    #[test]
    fn only_an_acknowledgement_finishes_a_record() {
        let batch = batch(5);
        assert_eq!(batch.records().iter().chain(&batch).count(), 10);
        assert!(batch.take_acknowledged().is_empty());
        assert!(batch.ack(&record(3)) && !batch.ack(&record(3)) && !batch.ack(&record(9)));
        assert_eq!(batch.take_acknowledged(), [3]);
        assert!(batch.ack_through(&record(1)) && !batch.ack_through(&record(0)));
        assert!(batch.ack_through(&record(4)));
        assert_eq!(batch.take_acknowledged(), [0, 1, 2, 4]);
        assert!(batch.is_acknowledged(&record(2)) && !batch.is_acknowledged(&record(7)));
    }

    #[test]
    fn an_acknowledgement_after_the_call_counts_for_nothing() {
        let (batch, kept) = {
            let batch = batch(70);
            (batch.clone(), batch)
        };
        assert!(kept.ack(&record(65)));
        let acknowledged = batch.close();
        assert_eq!(acknowledged.iter().filter(|acknowledged| **acknowledged).count(), 1);
        assert!(!kept.ack(&record(66)) && !kept.ack_through(&record(69)));
        assert!(!kept.is_acknowledged(&record(66)));
    }

    #[tokio::test]
    async fn the_consumer_is_woken_once_until_it_has_taken_them_in() {
        let wake = Arc::new(Notify::new());
        let batch = RecordBatch::with_wake((0..5).map(record).collect(), None, Some(Arc::clone(&wake)));
        batch.ack(&record(0));
        wake.notified().await;
        batch.ack(&record(1));
        assert!(futures::FutureExt::now_or_never(wake.notified()).is_none(), "it knows that there are some");
        assert_eq!(batch.take_acknowledged(), [0, 1]);
        batch.ack(&record(2));
        wake.notified().await;
    }
}
