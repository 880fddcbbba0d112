//! The processor of a lane, in whichever form the user has given it, and its calls.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use kcl_checkpoint::planted::{Bug, is_planted};
use kcl_checkpoint::{CheckpointControl, ExtendedSequenceNumber};

use super::call::{CallFailure, drop_guarded, guarded, guarded_blocking, panicked};
use super::settings::CallbackDeadlines;
use crate::batch::RecordBatch;
use crate::blocking::{BlockingHandler, BlockingProcessor};
use crate::handler::RecordHandler;
use crate::processor::{Outcome, RecordProcessor, RecordProcessorFactory, ShardContext};

type MakeBlocking = dyn Fn(&ShardContext) -> Box<dyn BlockingProcessor> + Send + Sync;

/// Users' code that may block, and does so in its drop too: that runs on a thread for it, as its
/// calls do. A driver that owns a runtime, say, panics where async code drops it.
pub(crate) struct MayBlock<T: Send + 'static>(Option<T>);

impl<T: Send + 'static> MayBlock<T> {
    pub(crate) fn new(code: T) -> Self {
        Self(Some(code))
    }

    fn get(&self) -> &T {
        self.0.as_ref().expect("invariant: it is taken in drop alone")
    }

    fn get_mut(&mut self) -> &mut T {
        self.0.as_mut().expect("invariant: it is taken in drop alone")
    }
}

impl<T: Send + 'static> Drop for MayBlock<T> {
    fn drop(&mut self) {
        let Some(code) = self.0.take() else { return };
        match tokio::runtime::Handle::try_current() {
            Ok(runtime) => {
                // A runtime that shuts down drops it at once, here.
                let dropped = guarded_blocking(|| {
                    drop(runtime.spawn_blocking(move || drop_guarded(code)));
                    Ok(())
                });
                drop(dropped);
            }
            Err(_) => drop_guarded(code),
        }
    }
}

/// The source of processors; opaque to `Debug`.
#[derive(Clone)]
pub(crate) enum Factory {
    Processors(Arc<dyn RecordProcessorFactory>),
    Handler(Arc<dyn RecordHandler>),
    BlockingProcessors(Arc<MayBlock<Box<MakeBlocking>>>),
    BlockingHandler(Arc<MayBlock<Box<dyn BlockingHandler>>>),
}

impl Factory {
    /// Returns whether it is code that the framework calls once per record.
    pub(crate) fn is_handler(&self) -> bool {
        matches!(self, Self::Handler(_) | Self::BlockingHandler(_))
    }
}

impl fmt::Debug for Factory {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Factory")
    }
}

/// A processor that need not be shareable between threads: it is only ever reached exclusively, so
/// the lock is never locked.
pub(super) struct Exclusive(Mutex<Box<dyn RecordProcessor>>);

impl Exclusive {
    fn get(&mut self) -> &mut dyn RecordProcessor {
        self.0.get_mut().unwrap_or_else(PoisonError::into_inner).as_mut()
    }
}

/// See the module.
pub(super) enum Seat {
    Processor(Exclusive),
    Handler(Arc<dyn RecordHandler>),
    BlockingProcessor(MayBlock<Box<dyn BlockingProcessor>>),
    BlockingHandler(Arc<MayBlock<Box<dyn BlockingHandler>>>),
}

/// A call that is not about records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Callback {
    Idle,
    ShardEnded,
    ShutdownRequested,
    LeaseLost,
}

impl Callback {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Idle => "idle",
            Self::ShardEnded => "shard_ended",
            Self::ShutdownRequested => "shutdown_requested",
            Self::LeaseLost => "lease_lost",
        }
    }
}

/// A processor's statement on a batch. Records that it has acknowledged are finished in any case.
#[derive(Debug)]
pub(super) enum Verdict {
    /// All are processed.
    Done,
    /// Those that were not acknowledged were not tried.
    Acknowledged,
    /// This one failed: those before it are processed, those after it were not tried.
    FailedFrom(ExtendedSequenceNumber, CallFailure),
    /// These failed, each for itself; the others are processed.
    Failed(Vec<(ExtendedSequenceNumber, CallFailure)>),
    /// One of those that were not acknowledged failed, or all of them.
    Unknown(CallFailure),
}

impl From<Result<Outcome, CallFailure>> for Verdict {
    fn from(result: Result<Outcome, CallFailure>) -> Self {
        match result {
            Ok(Outcome::Done) => Self::Done,
            Ok(Outcome::Acknowledged) => Self::Acknowledged,
            Ok(Outcome::FailedFrom(failed)) => Self::FailedFrom(failed.record, failed.error.into()),
            Ok(Outcome::Failed(failed)) => Self::Failed(failed.into_iter().map(|failed| (failed.record, failed.error.into())).collect()),
            Err(failure) => Self::Unknown(failure),
        }
    }
}

/// Up to where a handler may checkpoint while each record of its batch is in work. With several lanes
/// it has nothing to say.
#[derive(Debug, Default)]
pub(super) struct Announced(Option<(CheckpointControl, Vec<Option<ExtendedSequenceNumber>>)>);

impl Announced {
    pub(super) fn new(control: CheckpointControl, reaches: Vec<Option<ExtendedSequenceNumber>>) -> Self {
        Self(Some((control, reaches)))
    }

    /// The record of this index is about to be handled.
    fn begins(&self, index: usize) {
        if let Some((control, reaches)) = &self.0
            && let Some(reached) = reaches.get(index).copied().flatten()
        {
            control.note_delivered(reached);
        }
    }
}

/// The processor, unless the call has cost it, and the call's result.
pub(super) type Returned<T> = (Option<Seat>, T);

impl Seat {
    /// Makes and initializes a processor.
    pub(super) async fn make(factory: &Factory, shard: &Arc<ShardContext>, deadlines: CallbackDeadlines) -> Result<Self, CallFailure> {
        match factory {
            Factory::Handler(handler) => Ok(Self::Handler(Arc::clone(handler))),
            Factory::BlockingHandler(handler) => Ok(Self::BlockingHandler(Arc::clone(handler))),
            Factory::Processors(factory) => {
                let processor = guarded(factory.create(shard), Some(deadlines.create)).await?;
                let mut processor = Exclusive(Mutex::new(processor));
                match guarded(processor.get().initialize(shard), Some(deadlines.initialize)).await {
                    Ok(()) => Ok(Self::Processor(processor)),
                    Err(failure) => {
                        drop_guarded(processor);
                        Err(failure)
                    }
                }
            }
            Factory::BlockingProcessors(make) => {
                let (make, shard) = (Arc::clone(make), Arc::clone(shard));
                let made = move || {
                    let mut processor = MayBlock::new(guarded_blocking(|| Ok((make.get())(&shard)))?);
                    match guarded_blocking(|| processor.get_mut().initialize(&shard)) {
                        Ok(()) => Ok(Self::BlockingProcessor(processor)),
                        Err(failure) => {
                            drop_guarded(processor);
                            Err(failure)
                        }
                    }
                };
                on_own_thread(made).await.and_then(|made| made)
            }
        }
    }

    /// Calls it with records. `deadline`: of the call, or of each record where it is called once
    /// per record.
    pub(super) async fn process(
        self,
        batch: RecordBatch,
        announced: Announced,
        shard: Arc<ShardContext>,
        deadline: Option<Duration>,
    ) -> Returned<Verdict> {
        match self {
            Self::Processor(mut processor) => {
                let result = guarded(processor.get().process_records(&batch, &shard), deadline).await;
                let (seat, result) = kept(Self::Processor(processor), result);
                (seat, result.into())
            }
            Self::Handler(handler) => {
                // Nothing is lost with a handler that panics: it holds nothing of this shard.
                let verdict = each_record(handler.as_ref(), &batch, &announced, &shard, deadline).await;
                (Some(Self::Handler(handler)), verdict)
            }
            Self::BlockingProcessor(mut processor) => {
                let call = move || {
                    let result = guarded_blocking(|| processor.get_mut().process_records(&batch, &shard));
                    let (seat, result) = kept(Self::BlockingProcessor(processor), result);
                    (seat, result.into())
                };
                on_own_thread(call).await.unwrap_or_else(|failure| (None, Verdict::Unknown(failure)))
            }
            Self::BlockingHandler(handler) => {
                let call = move || {
                    let verdict = each_record_blocking(handler.get().as_ref(), &batch, &announced, &shard);
                    (Some(Self::BlockingHandler(handler)), verdict)
                };
                on_own_thread(call).await.unwrap_or_else(|failure| (None, Verdict::Unknown(failure)))
            }
        }
    }

    /// Makes a call that is not about records.
    pub(super) async fn call(self, callback: Callback, shard: Arc<ShardContext>, deadline: Duration) -> Returned<Result<(), CallFailure>> {
        match self {
            Self::Processor(mut processor) => {
                let result = {
                    let processor = processor.get();
                    let call = async {
                        match callback {
                            Callback::Idle => processor.idle(&shard).await,
                            Callback::ShardEnded => processor.shard_ended(&shard).await,
                            Callback::ShutdownRequested => processor.shutdown_requested(&shard).await,
                            Callback::LeaseLost => {
                                processor.lease_lost(&shard.info).await;
                                Ok(())
                            }
                        }
                    };
                    guarded(call, Some(deadline)).await
                };
                kept(Self::Processor(processor), result)
            }
            Self::BlockingProcessor(mut processor) => {
                let call = move || {
                    let result = guarded_blocking(|| match callback {
                        Callback::Idle => processor.get_mut().idle(&shard),
                        Callback::ShardEnded => processor.get_mut().shard_ended(&shard),
                        Callback::ShutdownRequested => processor.get_mut().shutdown_requested(&shard),
                        Callback::LeaseLost => {
                            processor.get_mut().lease_lost(&shard.info);
                            Ok(())
                        }
                    });
                    kept(Self::BlockingProcessor(processor), result)
                };
                on_own_thread(call).await.unwrap_or_else(|failure| (None, Err(failure)))
            }
            handler @ (Self::Handler(_) | Self::BlockingHandler(_)) => (Some(handler), Ok(())),
        }
    }
}

/// Keeps the processor, unless the call has left it in an unknown state.
fn kept<T>(seat: Seat, result: Result<T, CallFailure>) -> Returned<Result<T, CallFailure>> {
    if result.as_ref().is_err_and(CallFailure::is_fatal_to_processor) && !is_planted(Bug::LostProcessorCalledAgain) {
        drop_guarded(seat);
        return (None, result);
    }
    (Some(seat), result)
}

/// Runs something that blocks. It can't be stopped: dropping the future leaves it alone.
async fn on_own_thread<T: Send + 'static>(run: impl FnOnce() -> T + Send + 'static) -> Result<T, CallFailure> {
    tokio::task::spawn_blocking(run).await.map_err(|error| match error.try_into_panic() {
        Ok(panic) => panicked(panic),
        // The runtime shuts down.
        Err(_) => panicked(Box::new("the runtime is shutting down")),
    })
}

/// Hands the records of a batch to a handler, one at a time, until one fails or the call should end
/// early. Each that is handled is acknowledged at once.
async fn each_record(
    handler: &dyn RecordHandler,
    batch: &RecordBatch,
    announced: &Announced,
    shard: &ShardContext,
    deadline: Option<Duration>,
) -> Verdict {
    for (index, record) in batch.records().iter().enumerate() {
        if shard.interruption().is_some() {
            return Verdict::Acknowledged;
        }
        announced.begins(index);
        match guarded(handler.handle(record, shard), deadline).await {
            Ok(()) => batch.ack_index(index),
            Err(failure) => return Verdict::FailedFrom(record.position(), failure),
        }
        // A handler that never waits must not keep others from running.
        tokio::task::consume_budget().await;
    }
    Verdict::Done
}

fn each_record_blocking(handler: &dyn BlockingHandler, batch: &RecordBatch, announced: &Announced, shard: &ShardContext) -> Verdict {
    for (index, record) in batch.records().iter().enumerate() {
        if shard.interruption().is_some() {
            return Verdict::Acknowledged;
        }
        announced.begins(index);
        match guarded_blocking(|| handler.handle(record, shard)) {
            Ok(()) => batch.ack_index(index),
            Err(failure) => return Verdict::FailedFrom(record.position(), failure),
        }
    }
    Verdict::Done
}

#[cfg(test)]
mod tests {
    use tokio::runtime::{Builder, Runtime};
    use tokio::sync::oneshot;

    use super::*;

    /// Tells whether the thread panics when it is dropped.
    struct Tells(Option<oneshot::Sender<bool>>);

    impl Drop for Tells {
        fn drop(&mut self) {
            let told = self.0.take().map(|told| told.send(std::thread::panicking()));
            assert_eq!(told, Some(Ok(())), "somebody listens");
        }
    }

    /// As synchronous drivers are: a runtime must not be dropped by async code.
    struct Driver {
        _runtime: Runtime,
        _tells: Tells,
    }

    #[tokio::test]
    async fn code_that_may_block_is_dropped_where_it_may() {
        let (told, tells) = oneshot::channel();
        let runtime = Builder::new_current_thread().build().unwrap();
        drop(MayBlock::new(Driver { _runtime: runtime, _tells: Tells(Some(told)) }));
        assert_eq!(tells.await, Ok(false));
    }
}
