//! The lanes of a shard: a processor each, and the calls that they have under way.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use futures::{FutureExt as _, StreamExt as _};
use tokio::time::Instant;

use super::call::{Advice, CallFailure, guarded};
use super::retry::Blame;
use super::schedule::{Entry, GroupKey};
use super::start::is_covered;
use super::{Factory, RetryPolicy};
use crate::dead_letter::FailureKind;
use crate::processor::{FailedRecord, Outcome, RecordProcessor, ShardContext};
use crate::record::{Record, RecordBatch};

/// A processor, which need not be shareable between threads: it is only ever reached exclusively, so the lock is never locked.
struct Exclusive(Mutex<Box<dyn RecordProcessor>>);

impl Exclusive {
    fn get(&mut self) -> &mut dyn RecordProcessor {
        self.0.get_mut().unwrap_or_else(PoisonError::into_inner).as_mut()
    }
}

/// A lane: its processor, unless there is none yet, or it is in a call.
#[derive(Default)]
struct Lane {
    processor: Option<Exclusive>,
    in_call_since: Option<Instant>,
}

/// A call that has ended.
pub(super) struct Called {
    lane: usize,
    processor: Option<Exclusive>,
    pub(super) group: GroupKey,
    pub(super) entries: Vec<Entry>,
    /// `None`: all is done.
    pub(super) blame: Option<Blame>,
    /// The first so many are covered by the checkpoint, whatever became of the call.
    pub(super) covered: usize,
    /// It has cost its processor, and whatever that held.
    pub(super) lost: bool,
    pub(super) took: Duration,
}

/// A processor that was made, or could not be.
type Made = Result<(usize, Exclusive), CallFailure>;

/// What has happened on the lanes.
pub(super) enum LaneEvent {
    Called(Called),
    Made(Result<(), CallFailure>),
}

/// See the module.
pub(super) struct Lanes {
    lanes: Vec<Lane>,
    calls: FuturesUnordered<BoxFuture<'static, Called>>,
    making: Option<BoxFuture<'static, Made>>,
}

impl Lanes {
    pub(super) fn new(lanes: usize) -> Self {
        Self { lanes: (0..lanes).map(|_| Lane::default()).collect(), calls: FuturesUnordered::new(), making: None }
    }

    /// Whether no call is under way.
    pub(super) fn is_idle(&self) -> bool {
        self.calls.is_empty()
    }

    /// Since when the longest call is under way.
    pub(super) fn longest_since(&self) -> Option<Instant> {
        self.lanes.iter().filter_map(|lane| lane.in_call_since).min()
    }

    /// Whether there is a processor that waits for a call.
    pub(super) fn has_free(&self) -> bool {
        self.lanes.iter().any(|lane| lane.processor.is_some())
    }

    /// Whether there is any processor, in a call or not.
    pub(super) fn has_any(&self) -> bool {
        self.lanes.iter().any(|lane| lane.processor.is_some() || lane.in_call_since.is_some())
    }

    /// Begins to make a processor for a lane that has none, if there is one.
    pub(super) fn make(&mut self, factory: &Factory, shard: &Arc<ShardContext>) {
        let without = self.lanes.iter().position(|lane| lane.processor.is_none() && lane.in_call_since.is_none());
        if let Some(lane) = without {
            self.make_for(lane, factory, shard);
        }
    }

    /// Begins to make a processor for this lane, unless one is being made.
    pub(super) fn make_for(&mut self, lane: usize, factory: &Factory, shard: &Arc<ShardContext>) {
        if self.making.is_some() {
            return;
        }
        let (factory, shard) = (factory.clone(), Arc::clone(shard));
        let make = async move {
            let made = async {
                let mut processor = factory.0.create(&shard).await?;
                processor.initialize(&shard).await?;
                Ok(Exclusive(Mutex::new(processor)))
            };
            guarded(made, None).await.map(|processor| (lane, processor))
        };
        self.making = Some(make.boxed());
    }

    /// Begins a call on a free lane.
    pub(super) fn call(
        &mut self,
        group: GroupKey,
        entries: Vec<Entry>,
        behind: Option<u64>,
        shard: &Arc<ShardContext>,
        retry: &RetryPolicy,
    ) {
        let free = self.lanes.iter_mut().enumerate().find(|(_, lane)| lane.processor.is_some());
        let (lane, free) = free.expect("invariant: a call is begun only if a lane is free");
        let mut processor = free.processor.take();
        free.in_call_since = Some(Instant::now());
        let (shard, deadline) = (Arc::clone(shard), retry.attempt_deadline);
        let call = async move {
            let (records, histories): (Vec<_>, Vec<_>) = entries.into_iter().map(|entry| (entry.record, entry.history)).unzip();
            let batch = RecordBatch::new(records, behind);
            let started = Instant::now();
            let result = match processor.as_mut() {
                Some(processor) => guarded(processor.get().process_records(&batch, &shard), deadline).await,
                None => unreachable!("the lane was free"),
            };
            let lost = result.as_ref().is_err_and(CallFailure::is_fatal_to_processor);
            if lost {
                // What it left behind is anybody's guess: the next call goes to a new one.
                processor = None;
            }
            let took = started.elapsed();
            // No record comes again before it is known whether it is committed.
            shard.committer.settled(&shard.checkpointer).await;
            let checkpoint = shard.checkpointer.last();
            let covered = batch.records().partition_point(|record| is_covered(record.position(), record.is_aggregated(), checkpoint));
            let blame = blame(result, &batch, shard.committer.is_in_use().then_some(covered));
            let entries = batch.into_records().into_iter().zip(histories);
            let entries = entries.map(|(record, history)| Entry { record, history, cut: false }).collect();
            Called { lane, processor, group, entries, blame, covered, lost, took }
        };
        self.calls.push(call.boxed());
    }

    /// Waits until a call has ended, or a processor was made and initialized, or could not be. Pending while neither is under way.
    ///
    /// Cancel-safe: what is under way is here.
    pub(super) async fn next(&mut self) -> LaneEvent {
        let making = async {
            match &mut self.making {
                Some(making) => making.await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            Some(mut called) = self.calls.next(), if !self.calls.is_empty() => {
                self.lanes[called.lane] = Lane { processor: called.processor.take(), in_call_since: None };
                LaneEvent::Called(called)
            }
            made = making => {
                self.making = None;
                LaneEvent::Made(made.map(|(lane, processor)| self.lanes[lane].processor = Some(processor)))
            }
        }
    }

    /// Gives up a processor that is being made.
    pub(super) fn stop_making(&mut self) {
        self.making = None;
    }

    /// The processor of a lane, if it has one that is in no call.
    pub(super) fn processor(&mut self, lane: usize) -> Option<&mut dyn RecordProcessor> {
        Some(self.lanes.get_mut(lane)?.processor.as_mut()?.get())
    }

    /// How many lanes there are.
    pub(super) fn len(&self) -> usize {
        self.lanes.len()
    }

    /// Throws a processor away.
    pub(super) fn discard(&mut self, lane: usize) {
        self.lanes[lane].processor = None;
    }
}

/// Whose fault it was, if it was a failure. Of a processor that commits, its commits say what is done: so many of the first records.
fn blame(result: Result<Outcome, CallFailure>, batch: &RecordBatch, committed: Option<usize>) -> Option<Blame> {
    let index_of = |failed: &FailedRecord| batch.records().binary_search_by_key(&failed.record, Record::position).ok();
    let stranger = |failed: &FailedRecord| {
        let words = format!("the processor said that record {} failed, which is not in the batch", failed.record);
        Some(Blame::Unknown(CallFailure { kind: FailureKind::Error, advice: Advice::Retry, chain: vec![words] }))
    };
    match result {
        Ok(Outcome::Done) => None,
        Ok(Outcome::FailedFrom(failed)) => match index_of(&failed) {
            Some(index) => Some(Blame::From(index, failed.error.into())),
            None => stranger(&failed),
        },
        Ok(Outcome::Failed(failures)) => {
            let mut by_index = BTreeMap::new();
            for failed in failures {
                let Some(index) = index_of(&failed) else { return stranger(&failed) };
                // Of two reasons for one record the first is told.
                by_index.entry(index).or_insert_with(|| failed.error.into());
            }
            (!by_index.is_empty()).then_some(Blame::These(by_index))
        }
        Err(failure) => Some(match batch.in_work() {
            // It may have gone through the batch to collect what it has not committed: those before the last one are not done by that.
            Some(index) if committed.is_some_and(|committed| committed < index) => Blame::Unknown(failure),
            Some(index) => Blame::From(index, failure),
            None => Blame::Unknown(failure),
        }),
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::processor::ProcessError;

    fn batch() -> RecordBatch {
        RecordBatch::new((0..5u128).map(|number| Record::new(number.into(), None, Bytes::new(), None)).collect(), None)
    }

    fn told(blame: Option<Blame>) -> String {
        match blame {
            None => "none".to_owned(),
            Some(Blame::Unknown(_)) => "unknown".to_owned(),
            Some(Blame::From(index, _)) => format!("from {index}"),
            Some(Blame::These(failures)) => format!("these {:?}", failures.keys().collect::<Vec<_>>()),
        }
    }

    #[test]
    fn whose_fault_it_was() {
        let (batch, stranger) = (batch(), Record::new(99.into(), None, Bytes::new(), None));
        let (two, four) = (&batch.records()[2], &batch.records()[4]);
        assert_eq!(told(blame(Ok(Outcome::Done), &batch, None)), "none");
        assert_eq!(told(blame(Ok(Outcome::failed_from(two, "no")), &batch, None)), "from 2");
        assert_eq!(told(blame(Ok(Outcome::failed([(four, "no"), (two, "no"), (four, "again")])), &batch, None)), "these [2, 4]");
        assert_eq!(told(blame(Ok(Outcome::failed(std::iter::empty::<(&Record, ProcessError)>())), &batch, None)), "none");
        assert_eq!(told(blame(Ok(Outcome::failed_from(&stranger, "no")), &batch, None)), "unknown");
        assert_eq!(told(blame(Ok(Outcome::failed([(two, "no"), (&stranger, "no")])), &batch, None)), "unknown");
        assert_eq!(told(blame(Err(ProcessError::retry("no").into()), &batch, None)), "unknown");
        batch.in_order().take(3).for_each(drop);
        for (committed, expected) in
            [(None, "from 2"), (Some(0), "unknown"), (Some(1), "unknown"), (Some(2), "from 2"), (Some(3), "from 2")]
        {
            assert_eq!(told(blame(Err(ProcessError::retry("no").into()), &batch, committed)), expected, "{committed:?}");
        }
    }
}
