//! Calls that hang, in each callback: the shard is stuck and says in which call, and no call bars a
//! worker from its shard for ever.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use kcl_core::test_util::kinesis_model::SplitShardInput;
use kcl_core::{
    CallbackDeadlines, Outcome, ProcessError, ProcessResult, RecordBatch, RecordProcessor, RecordProcessorFactory, ShardContext, ShardInfo,
    ShardState, async_trait,
};
use tokio::time::sleep;

use super::{APPLICATION, Running, STREAM, aws, until};

/// A callback.
#[derive(Clone, Copy, Debug, PartialEq)]
enum At {
    Create,
    Initialize,
    Process,
    ShardEnded,
    ShutdownRequested,
    LeaseLost,
}

/// Hangs there as long as it is told to.
#[derive(Clone)]
struct Hanging {
    at: At,
    hangs: Arc<AtomicBool>,
    calls: Arc<AtomicU32>,
}

impl Hanging {
    fn new(at: At) -> Self {
        Self { at, hangs: Arc::new(AtomicBool::new(true)), calls: Arc::default() }
    }

    async fn call(&self, at: At) {
        if at == self.at {
            self.calls.fetch_add(1, Ordering::SeqCst);
            if self.hangs.load(Ordering::SeqCst) {
                std::future::pending::<()>().await;
            }
        }
    }
}

#[async_trait]
impl RecordProcessor for Hanging {
    async fn initialize(&mut self, _shard: &ShardContext) -> Result<(), ProcessError> {
        self.call(At::Initialize).await;
        Ok(())
    }

    async fn process_records(&mut self, _batch: &RecordBatch, _shard: &ShardContext) -> ProcessResult {
        self.call(At::Process).await;
        Ok(Outcome::Done)
    }

    async fn lease_lost(&mut self, _shard: &ShardInfo) {
        self.call(At::LeaseLost).await;
    }

    async fn shard_ended(&mut self, _shard: &ShardContext) -> Result<(), ProcessError> {
        self.call(At::ShardEnded).await;
        Ok(())
    }

    async fn shutdown_requested(&mut self, _shard: &ShardContext) -> Result<(), ProcessError> {
        self.call(At::ShutdownRequested).await;
        Ok(())
    }
}

#[async_trait]
impl RecordProcessorFactory for Hanging {
    async fn create(&self, _shard: &ShardContext) -> Result<Box<dyn RecordProcessor>, ProcessError> {
        self.call(At::Create).await;
        Ok(Box::new(self.clone()))
    }
}

fn split(aws: &kcl_core::test_util::SimulatedAws) {
    let split = SplitShardInput {
        stream_name: Some(STREAM.into()),
        shard_to_split: "shardId-000000000000".into(),
        new_starting_hash_key: (1_u128 << 127).to_string(),
        ..Default::default()
    };
    aws.kinesis().call(split).unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_call_that_hangs_is_shown_and_tried_again_at_its_deadline() {
    for (at, method) in
        [(At::Create, "initialize"), (At::Initialize, "initialize"), (At::Process, "process_records"), (At::ShardEnded, "shard_ended")]
    {
        let aws = aws(1);
        aws.put(STREAM, "key", "one");
        let hanging = Hanging::new(at);
        let factory = hanging.clone();
        let running = Running::start(&aws, "host", |builder| builder.processor(factory)).await;
        if at == At::ShardEnded {
            sleep(Duration::from_secs(20)).await;
            split(&aws);
        }
        until("it hangs", || hanging.calls.load(Ordering::SeqCst) > 0).await;
        sleep(Duration::from_secs(50)).await;
        assert!(!running.shard().unwrap().is_stuck(), "{at:?}: not yet");
        sleep(Duration::from_secs(15)).await;
        let shard = running.shard().unwrap();
        assert_eq!((shard.is_stuck(), shard.state), (true, ShardState::InLongCall), "{at:?}");
        assert_eq!(shard.call.unwrap().method, method, "{at:?}");
        if at != At::Process {
            hanging.hangs.store(false, Ordering::SeqCst);
            let done = || match at {
                At::ShardEnded => aws.leases(APPLICATION).iter().any(|lease| lease.is_finished()),
                _ => running.shard().is_some_and(|shard| shard.records == 1),
            };
            until("it was dropped at its deadline, and made anew", done).await;
        }
        running.kill().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_worker_stops_in_time_whatever_hangs() {
    for at in [At::Create, At::Initialize, At::Process, At::ShardEnded, At::ShutdownRequested, At::LeaseLost] {
        let aws = aws(1);
        aws.put(STREAM, "key", "one");
        let hanging = Hanging::new(at);
        let factory = hanging.clone();
        let timeout = Duration::from_secs(10);
        let running = Running::start(&aws, "host", |builder| builder.shutdown_timeout(timeout).processor(factory)).await;
        sleep(Duration::from_secs(20)).await;
        if at == At::ShardEnded {
            split(&aws);
            sleep(Duration::from_secs(20)).await;
        }
        let (took, ended) = running.stop().await;
        assert!(took <= timeout + Duration::from_secs(1), "{at:?}: {took:?}");
        // A hung farewell costs nothing: the lease is released all the same.
        assert!(aws.leases(APPLICATION).iter().all(|lease| lease.owner.is_none()), "{at:?}: {ended:?}");
        let is_cut_off = matches!(at, At::Process | At::ShardEnded);
        assert_eq!(ended.is_err(), is_cut_off, "{at:?}: {ended:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_call_that_hangs_over_a_lost_lease_keeps_nobody_from_the_shard() {
    for at in [At::Process, At::LeaseLost] {
        let aws = aws(1);
        aws.put(STREAM, "key", "one");
        let hanging = Hanging::new(at);
        let factory = hanging.clone();
        let deadlines = CallbackDeadlines { lease_lost: Duration::from_secs(10), ..CallbackDeadlines::default() };
        let first = Running::start(&aws, "host-1", |builder| builder.callback_deadlines(deadlines).processor(factory)).await;
        sleep(Duration::from_secs(10)).await;
        first.host.freeze();
        let well = Hanging::new(At::Create);
        well.hangs.store(false, Ordering::SeqCst);
        let second = Running::start(&aws, "host-2", |builder| builder.processor(well)).await;
        until("the other one has it", || second.shard().is_some_and(|shard| shard.state == ShardState::Processing)).await;
        first.host.thaw();
        until("the first one has let go of it", || first.handle.status().shards.is_empty()).await;
        hanging.hangs.store(false, Ordering::SeqCst);
        second.kill().await;
        aws.put(STREAM, "key", "two");
        let died = aws.elapsed();
        until("the first one has it again", || first.shard().is_some_and(|shard| shard.records >= 1)).await;
        assert!(aws.elapsed() - died < Duration::from_secs(30), "{at:?}: {:?}", aws.elapsed() - died);
        first.stop().await.1.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_shown_of_a_shard_that_hangs_is_true() {
    let aws = aws(1);
    let hanging = Hanging::new(At::Process);
    let factory = hanging.clone();
    let running = Running::start(&aws, "host", |builder| builder.processor(factory)).await;
    until("it has read", || running.shard().is_some_and(|shard| shard.lag == Some(Duration::ZERO))).await;
    aws.put(STREAM, "key", "one");
    for _ in 0..1_800 {
        sleep(Duration::from_secs(1)).await;
        aws.put(STREAM, "key", "more");
    }
    let shard = running.shard().unwrap();
    let minutes = |minutes: u64| Duration::from_secs(60 * minutes);
    assert!(shard.is_stuck() && shard.lag.unwrap() >= minutes(29), "{shard:?}");
    assert!(shard.last_progress >= minutes(29) && shard.call.unwrap().running_for >= minutes(29), "{shard:?}");
    assert!(shard.in_state_for >= minutes(28) && shard.in_state_for < minutes(30), "{shard:?}");
    running.kill().await;
}
