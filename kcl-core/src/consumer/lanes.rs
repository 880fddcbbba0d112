//! The lanes of a shard: a processor each, and the calls that they have under way.
//!
//! Each call is a task of its own, so that one that blocks its thread keeps neither the shard's
//! consumer nor other lanes from running. What has to survive a call that is cut off stands here and
//! not in the task: which records are in work, and which of them are acknowledged.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use kcl_checkpoint::planted::{Bug, is_planted};
use tokio::sync::Notify;
use tokio::task::{AbortHandle, Id, JoinSet};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;

use super::call::{Advice, CallFailure, drop_guarded, panicked};
use super::retry::Ended;
use super::schedule::{Entry, GroupKey, History};
use super::seat::{Announced, Callback, Factory, Seat, Verdict};
use super::settings::CallbackDeadlines;
use super::start::is_covered;
use crate::batch::RecordBatch;
use crate::dead_letter::FailureKind;
use crate::interruption::Interruption;
use crate::processor::ShardContext;
use crate::record::Record;
use crate::worker::Machine;

/// The time for which calls that were cut off are waited for: those that do not block their thread
/// end at once.
const CUT_OFF: Duration = Duration::from_secs(1);

/// Records in a call.
struct InWork {
    group: GroupKey,
    batch: RecordBatch,
    histories: Vec<History>,
    /// The shard's consumer has finished the records that were acknowledged before.
    finished: Vec<bool>,
}

/// A lane.
#[derive(Default)]
enum Lane {
    /// It has no processor.
    #[default]
    Empty,
    /// Its processor waits for a call.
    Free(Seat),
    /// A call is under way.
    Busy(Busy),
}

struct Busy {
    since: Instant,
    job: Job,
    task: AbortHandle,
    /// The user's code has returned; the call waits for what it has asked the lease table for.
    returned: Arc<AtomicBool>,
}

impl Busy {
    fn has_returned(&self) -> bool {
        self.returned.load(Ordering::Relaxed)
    }
}

/// Waits for the lease table after a call has returned. The processor waits with it, and must hear the farewell like any other: so such a wait ends when calls are cut
/// off, and the processor comes back.
struct AfterCall {
    returned: Arc<AtomicBool>,
    cut: CancellationToken,
}

impl AfterCall {
    async fn wait_for(&self, writes: impl Future<Output = ()>) {
        self.returned.store(true, Ordering::Relaxed);
        tokio::select! {
            biased;
            () = writes => {}
            () = self.cut.cancelled() => {}
        }
    }
}

enum Job {
    Making,
    Records(InWork),
    Callback(Callback),
}

impl Job {
    fn method(&self) -> &'static str {
        match self {
            Self::Making => "initialize",
            Self::Records(_) => "process_records",
            Self::Callback(callback) => callback.name(),
        }
    }
}

/// The output of a call's task.
enum Returned {
    Made(Result<Seat, CallFailure>),
    Called { seat: Option<Seat>, verdict: Verdict, took: Duration },
    CalledBack { seat: Option<Seat>, result: Result<(), CallFailure> },
}

/// A call with records that has ended.
pub(super) struct Called {
    pub(super) group: GroupKey,
    pub(super) ended: Ended,
    /// `None`: the call was cut off, and says nothing.
    pub(super) verdict: Option<Verdict>,
    /// The call has cost its processor, and whatever that held.
    pub(super) lost: bool,
    pub(super) began: Instant,
    pub(super) took: Duration,
}

/// A change on the lanes.
pub(super) enum LaneEvent {
    Called(Called),
    Made(Result<(), CallFailure>),
    CalledBack {
        callback: Callback,
        lost: bool,
        result: Result<(), CallFailure>,
    },
    /// Records were acknowledged.
    Acknowledged,
}

/// The way calls run.
#[derive(Clone, Debug)]
pub(super) struct CallSettings {
    pub(super) machine: Machine,
    /// Of one call of `process_records`, or of one record of a handler.
    pub(super) attempt_deadline: Option<Duration>,
    pub(super) callbacks: CallbackDeadlines,
    /// Whether processors checkpoint for themselves.
    pub(super) by_hand: bool,
}

/// See the module.
pub(super) struct Lanes {
    lanes: Vec<Lane>,
    settings: CallSettings,
    calls: JoinSet<Returned>,
    lane_of: BTreeMap<Id, usize>,
    /// Woken by acknowledgements.
    acknowledged: Arc<Notify>,
    /// Ends the waits of calls that have returned.
    cut: CancellationToken,
}

impl Lanes {
    pub(super) fn new(lanes: usize, settings: CallSettings) -> Self {
        Self {
            lanes: (0..lanes).map(|_| Lane::Empty).collect(),
            settings,
            calls: JoinSet::new(),
            lane_of: BTreeMap::new(),
            acknowledged: Arc::default(),
            cut: CancellationToken::new(),
        }
    }

    fn jobs(&self) -> impl Iterator<Item = &Busy> {
        self.lanes.iter().filter_map(|lane| match lane {
            Lane::Busy(busy) => Some(busy),
            _ => None,
        })
    }

    /// Returns whether no call with a processor is under way.
    pub(super) fn is_idle(&self) -> bool {
        self.jobs().all(|busy| matches!(busy.job, Job::Making))
    }

    /// The begin of the latest call with a processor that is under way.
    pub(super) fn latest(&self) -> Option<Instant> {
        self.jobs().filter(|busy| !matches!(busy.job, Job::Making)).map(|busy| busy.since).max()
    }

    /// The oldest call that is under way, of whatever kind: its method, and when it began.
    pub(super) fn longest(&self) -> Option<(&'static str, Instant)> {
        self.jobs().map(|busy| (busy.job.method(), busy.since)).min_by_key(|(_, since)| *since)
    }

    fn is_making(&self) -> bool {
        self.jobs().any(|busy| matches!(busy.job, Job::Making))
    }

    /// Returns whether there is a processor that waits for a call.
    pub(super) fn has_free(&self) -> bool {
        self.lanes.iter().any(|lane| matches!(lane, Lane::Free(_)))
    }

    /// Returns whether there is any processor, in a call or not.
    pub(super) fn has_any(&self) -> bool {
        let making = |lane: &Lane| matches!(lane, Lane::Busy(Busy { job: Job::Making, .. }));
        self.lanes.iter().any(|lane| !matches!(lane, Lane::Empty) && !making(lane))
    }

    /// Begins to make a processor for a lane that has none, if there is one.
    pub(super) fn make(&mut self, factory: &Factory, shard: &Arc<ShardContext>) {
        if let Some(lane) = self.lanes.iter().position(|lane| matches!(lane, Lane::Empty)) {
            self.make_for(lane, factory, shard);
        }
    }

    /// Begins to make a processor for this lane, unless it has one or one is being made.
    pub(super) fn make_for(&mut self, lane: usize, factory: &Factory, shard: &Arc<ShardContext>) {
        if self.is_making() || !matches!(self.lanes[lane], Lane::Empty) {
            return;
        }
        let (factory, shard, deadlines) = (factory.clone(), Arc::clone(shard), self.settings.callbacks);
        let make = async move { Returned::Made(Seat::make(&factory, &shard, deadlines).await) };
        self.begin(lane, Job::Making, |_| make);
    }

    /// Begins a call with records on a free lane.
    pub(super) fn call(
        &mut self,
        group: GroupKey,
        entries: Vec<Entry>,
        announced: Announced,
        behind: Option<u64>,
        shard: &Arc<ShardContext>,
    ) {
        let free = self.lanes.iter().position(|lane| matches!(lane, Lane::Free(_)));
        let lane = free.expect("invariant: a call is begun only if a lane is free");
        let Lane::Free(seat) = std::mem::take(&mut self.lanes[lane]) else { unreachable!("the lane is free") };
        let (records, histories): (Vec<_>, Vec<_>) = entries.into_iter().map(|entry| (entry.record, entry.history)).unzip();
        let finished = vec![false; records.len()];
        let batch = RecordBatch::with_wake(records, behind, Some(Arc::clone(&self.acknowledged)));
        let job = Job::Records(InWork { group, batch: batch.clone(), histories, finished });
        let (shard, deadline, by_hand) = (Arc::clone(shard), self.settings.attempt_deadline, self.settings.by_hand);
        let call = move |after: AfterCall| async move {
            let started = Instant::now();
            if matches!(shard.interruption(), Some(Interruption::LeaseLost | Interruption::LeaseExpired)) {
                // The thread was blocked since the call was begun: nothing is delivered past the term.
                return Returned::Called { seat: Some(seat), verdict: Verdict::Acknowledged, took: Duration::ZERO };
            }
            if let Some(turn) = shard.committer.turn() {
                turn.call_begins(&batch);
            }
            let (seat, verdict) = seat.process(batch, announced, Arc::clone(&shard), deadline).await;
            let took = started.elapsed();
            if let Some(turn) = shard.committer.turn() {
                turn.call_ends(by_hand, shard.checkpointer.last());
            }
            // No record comes again before it is known whether it is committed, or checkpointed.
            let writes = async {
                shard.committer.settled(&shard.checkpointer).await;
                if by_hand && !matches!(verdict, Verdict::Done) {
                    shard.committer.writes_are_through().await;
                }
            };
            after.wait_for(writes).await;
            Returned::Called { seat, verdict, took }
        };
        self.begin(lane, job, call);
    }

    /// Begins a call that is not about records, if the lane has a processor that is free for it.
    pub(super) fn call_back(&mut self, lane: usize, callback: Callback, deadline: Duration, shard: &Arc<ShardContext>) -> bool {
        let Some(free @ Lane::Free(_)) = self.lanes.get_mut(lane) else { return false };
        let Lane::Free(seat) = std::mem::take(free) else { unreachable!("the lane is free") };
        let shard = Arc::clone(shard);
        let call = move |after: AfterCall| async move {
            let is_over = matches!(shard.interruption(), Some(Interruption::LeaseLost | Interruption::LeaseExpired));
            if is_over && callback != Callback::LeaseLost {
                // As before a call with records: whoever has lost its lease is asked for nothing any more.
                let words = "the lease has run out, and it was not called".to_owned();
                return Returned::CalledBack { seat: Some(seat), result: Err(CallFailure::own(FailureKind::Error, Advice::Retry, words)) };
            }
            let (seat, result) = seat.call(callback, Arc::clone(&shard), deadline).await;
            if callback != Callback::LeaseLost {
                // As after a call with records: a commit may have been dropped without an answer.
                let writes = shard.committer.settled(&shard.checkpointer);
                match callback {
                    // It has heard its last word, and may go.
                    Callback::ShardEnded if result.is_ok() => writes.await,
                    _ => after.wait_for(writes).await,
                }
            }
            Returned::CalledBack { seat, result }
        };
        self.begin(lane, Job::Callback(callback), call);
        true
    }

    fn begin<C: Future<Output = Returned> + Send + 'static>(&mut self, lane: usize, job: Job, call: impl FnOnce(AfterCall) -> C) {
        let returned = Arc::new(AtomicBool::new(false));
        let call = call(AfterCall { returned: Arc::clone(&returned), cut: self.cut.clone() });
        let task = self.calls.spawn(self.settings.machine.run(call.in_current_span()));
        self.lane_of.insert(task.id(), lane);
        self.lanes[lane] = Lane::Busy(Busy { since: Instant::now(), job, task, returned });
    }

    /// The records that were acknowledged in calls under way since this was asked last, each with
    /// the begin of its call.
    pub(super) fn take_acknowledged(&mut self) -> Vec<(GroupKey, Instant, Vec<Record>)> {
        let mut taken = Vec::new();
        for lane in &mut self.lanes {
            let Lane::Busy(Busy { job: Job::Records(in_work), since, .. }) = lane else { continue };
            let indices = in_work.batch.take_acknowledged();
            if indices.is_empty() {
                continue;
            }
            for index in &indices {
                in_work.finished[*index] = true;
            }
            let records = indices.iter().map(|index| in_work.batch.records()[*index].clone()).collect();
            taken.push((in_work.group, *since, records));
        }
        taken
    }

    /// Waits until a call has ended, a processor was made or could not be, or records were
    /// acknowledged. Pending while nothing is under way.
    ///
    /// Cancel-safe: what is under way is here.
    pub(super) async fn next(&mut self, shard: &ShardContext) -> LaneEvent {
        loop {
            let ended = tokio::select! {
                biased;
                Some(ended) = self.calls.join_next_with_id(), if !self.calls.is_empty() => ended,
                () = self.acknowledged.notified() => return LaneEvent::Acknowledged,
            };
            let (id, returned) = match ended {
                Ok((id, returned)) => (id, Some(returned)),
                Err(error) => (error.id(), None),
            };
            // Of a call that was cut off nobody wants to hear.
            if let Some(event) = self.lane_of.remove(&id).and_then(|lane| self.ended(lane, returned, shard)) {
                return event;
            }
        }
    }

    /// A call has ended. `returned`: unless its task has panicked, outside of the user's code.
    fn ended(&mut self, lane: usize, returned: Option<Returned>, shard: &ShardContext) -> Option<LaneEvent> {
        let Lane::Busy(busy) = std::mem::take(&mut self.lanes[lane]) else { return None };
        let unknown = || panicked(Box::new("the call's task has panicked"));
        match (busy.job, returned) {
            (Job::Making, Some(Returned::Made(Ok(seat)))) => {
                self.lanes[lane] = Lane::Free(seat);
                Some(LaneEvent::Made(Ok(())))
            }
            (Job::Making, Some(Returned::Made(Err(failure)))) => Some(LaneEvent::Made(Err(failure))),
            (Job::Making, _) => Some(LaneEvent::Made(Err(unknown()))),
            (Job::Records(in_work), returned) => {
                let (seat, verdict, took) = match returned {
                    Some(Returned::Called { seat, verdict, took }) => (seat, verdict, took),
                    _ => (None, Verdict::Unknown(unknown()), busy.since.elapsed()),
                };
                let lost = seat.is_none();
                if let Some(seat) = seat {
                    self.lanes[lane] = Lane::Free(seat);
                }
                Some(LaneEvent::Called(in_work.called(Some(verdict), lost, busy.since, took, shard)))
            }
            (Job::Callback(callback), returned) => {
                let (seat, result) = match returned {
                    Some(Returned::CalledBack { seat, result }) => (seat, result),
                    _ => (None, Err(unknown())),
                };
                let lost = seat.is_none();
                if let Some(seat) = seat {
                    self.lanes[lane] = Lane::Free(seat);
                }
                Some(LaneEvent::CalledBack { callback, lost, result })
            }
        }
    }

    /// Gives up a processor that is being made.
    pub(super) fn stop_making(&mut self) {
        self.cut_where(|job| matches!(job, Job::Making));
    }

    /// Lets calls that have returned, and wait for the lease table, wait no more. Returns whether there are any: they end now.
    pub(super) fn end_waits(&mut self) -> bool {
        std::mem::take(&mut self.cut).cancel();
        self.jobs().any(Busy::has_returned)
    }

    /// Cuts off all calls that are under way, with their processors, and waits until they are gone,
    /// but not for those that block their thread. Returns those with records.
    pub(super) async fn cut_off(&mut self, shard: &ShardContext) -> Vec<Called> {
        let cut = self.cut_where(|_| true);
        let gone = async { while self.calls.join_next().await.is_some() {} };
        if tokio::time::timeout(CUT_OFF, gone).await.is_err() {
            tracing::error!(
                calls = self.calls.len(),
                "calls block their threads and can't be ended: they are left alone, and their results count for nothing"
            );
            // Not awaited any more; they end when they return.
            self.calls.detach_all();
        }
        let in_work = cut.into_iter().filter_map(|busy| match busy.job {
            Job::Records(in_work) => Some((in_work, busy.since)),
            _ => None,
        });
        in_work.map(|(in_work, since)| in_work.called(None, true, since, since.elapsed(), shard)).collect()
    }

    fn cut_where(&mut self, which: impl Fn(&Job) -> bool) -> Vec<Busy> {
        let mut cut = Vec::new();
        for lane in &mut self.lanes {
            if matches!(lane, Lane::Busy(busy) if which(&busy.job))
                && let Lane::Busy(busy) = std::mem::take(lane)
            {
                busy.task.abort();
                self.lane_of.remove(&busy.task.id());
                cut.push(busy);
            }
        }
        cut
    }

    /// Returns whether the lane has a processor that is free.
    pub(super) fn is_free(&self, lane: usize) -> bool {
        matches!(self.lanes.get(lane), Some(Lane::Free(_)))
    }

    /// Drops a lane's processor that is free.
    pub(super) fn discard(&mut self, lane: usize) {
        if let Some(free @ Lane::Free(_)) = self.lanes.get_mut(lane)
            && let Lane::Free(seat) = std::mem::take(free)
        {
            drop_guarded(seat);
        }
    }

    /// The number of lanes.
    pub(super) fn len(&self) -> usize {
        self.lanes.len()
    }
}

impl Drop for Lanes {
    fn drop(&mut self) {
        for lane in &mut self.lanes {
            if let Lane::Free(seat) = std::mem::take(lane) {
                drop_guarded(seat);
            }
        }
    }
}

impl InWork {
    /// Ends the call.
    fn called(mut self, verdict: Option<Verdict>, lost: bool, began: Instant, took: Duration, shard: &ShardContext) -> Called {
        let mut acknowledged = self.batch.close();
        if lost && is_planted(Bug::AckForgottenAtCut) {
            acknowledged.fill(false);
        }
        let checkpoint = shard.checkpointer.last();
        let records = self.batch.records();
        let covered = records.partition_point(|record| is_covered(record.position(), record.is_aggregated(), checkpoint));
        let histories = std::mem::take(&mut self.histories);
        let entries = records.iter().cloned().zip(histories);
        let entries = entries.map(|(record, history)| Entry { record, history, cut: false }).collect();
        let interrupted = shard.interruption().is_some();
        let ended = Ended { entries, acknowledged, taken_in: self.finished, covered, interrupted };
        Called { group: self.group, ended, verdict, lost, began, took }
    }
}
