//! Users: ordinary ways to write a processor, as those write it who know nothing of the library's inside. Their code is slow, fails, panics and hangs.
//!
//! | file | owns |
//! |---|---|
//! | `whole` | a batch in one go, or in parts |
//! | `concurrent` | the records of a batch beside each other, or by a task of its own |
//! | `one_by_one` | record by record |
//! | `by_hand` | checkpoints of their own, and commits |
//! | `two_phases` | checkpoints in two phases |
//! | `clones` | contexts and batches that are kept beyond their time |
//! | `handlers` | a record at a time, by the library |
//! | `database` | the database that all of them write to, which is what the oracle believes |
//! | `watched` | what the oracle sees of each call, and panics and hangs |

mod by_hand;
mod clones;
mod concurrent;
mod database;
mod handlers;
mod one_by_one;
mod two_phases;
mod watched;
mod whole;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use kcl_core::test_util::Host;
use kcl_core::{
    CallbackDeadlines, Entropy, PoisonedKey, ProcessError, RecordProcessor, RecordProcessorFactory, ShardContext, WorkerBuilder,
    async_trait,
};

use self::clones::{Attic, KeepsClones};
use self::database::Database;
use self::watched::{Mood, Watched, WatchedHandler};
use super::oracle::Judge;
use super::plan::{Dice, Plan};
use super::processor::{Collected, Processor};

pub use self::watched::A_BUG_OF_THE_SERVICE;

/// The longest time from one idle callback to the next, where processors collect records.
const IDLE: Duration = Duration::from_secs(3);

/// Records of a call from which on a slow call takes no longer with more of them.
const SLOW_RECORDS: u32 = 20;

/// A way to write a processor.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs, reason = "each names the processor of its file")]
pub enum Way {
    /// The model: fails, stalls and panics as the plan has it, and tells the truth.
    #[default]
    Model,
    GatherThenWrite,
    ParseThenWrite,
    WriteInChunks,
    TakeByRef,
    Peekable,
    AggregateByKey,
    Slow,
    BlocksItsThread,
    TryJoinAll,
    Buffered,
    Ordered,
    SpawnAndJoin,
    ChannelToTask,
    ForEach,
    AckEach,
    AckThrough,
    FirstHalf,
    FailedFrom,
    FailsSingleRecords,
    ObeysInterruption,
    IgnoresAnAbsence,
    FlushWhenFull,
    CheckpointsTheLast,
    CheckpointsOddly,
    Commits,
    KeepsClones,
    StoresRecords,
    StoresMessages,
    StoresAndCheckpoints,
    TwoPhases,
}

impl Way {
    /// All but the model, and those that only `wide-mix` draws.
    pub const NAIVE: [Self; 29] = [
        Self::GatherThenWrite,
        Self::ParseThenWrite,
        Self::WriteInChunks,
        Self::TakeByRef,
        Self::Peekable,
        Self::AggregateByKey,
        Self::Slow,
        Self::BlocksItsThread,
        Self::TryJoinAll,
        Self::Buffered,
        Self::Ordered,
        Self::SpawnAndJoin,
        Self::ChannelToTask,
        Self::ForEach,
        Self::AckEach,
        Self::AckThrough,
        Self::FirstHalf,
        Self::FailedFrom,
        Self::FailsSingleRecords,
        Self::ObeysInterruption,
        Self::IgnoresAnAbsence,
        Self::FlushWhenFull,
        Self::CheckpointsTheLast,
        Self::CheckpointsOddly,
        Self::Commits,
        Self::KeepsClones,
        Self::StoresRecords,
        Self::StoresMessages,
        Self::StoresAndCheckpoints,
    ];

    /// Returns whether effects of a key are in order. Not if records of a batch are written beside each other, or after one that
    /// has failed.
    #[must_use]
    pub fn keeps_order(self) -> bool {
        let without = [Self::TryJoinAll, Self::Buffered, Self::Ordered, Self::SpawnAndJoin, Self::FailsSingleRecords];
        !without.contains(&self)
    }

    /// Returns whether it checkpoints for itself.
    #[must_use]
    pub fn checkpoints_by_hand(self) -> bool {
        matches!(self, Self::FlushWhenFull | Self::CheckpointsTheLast | Self::CheckpointsOddly)
    }

    /// Returns whether it checkpoints after each record, as often as they come.
    #[must_use]
    pub fn checkpoints_each_record(self) -> bool {
        matches!(self, Self::StoresAndCheckpoints | Self::TwoPhases)
    }

    /// Returns whether a call blocks its thread, so that nobody can cut it off.
    #[must_use]
    pub fn blocks(self) -> bool {
        matches!(self, Self::BlocksItsThread)
    }

    /// Returns whether a panic on a record ends no more than the call that has it. A task that writes
    /// for a processor is gone after a panic, and nobody starts it again.
    #[must_use]
    pub fn survives_panics(self) -> bool {
        self != Self::ChannelToTask
    }

    /// Returns whether a call takes about as long as an insert into the database.
    #[must_use]
    pub fn is_quick(self) -> bool {
        !matches!(self, Self::Slow | Self::BlocksItsThread | Self::ObeysInterruption | Self::FirstHalf)
    }
}

/// Lets the plan's service be written in this way, and the plan fit it.
pub(super) fn employ(plan: &mut Plan, way: Way) {
    let handling = &mut plan.handling;
    handling.way = way;
    handling.manual = way.checkpoints_by_hand();
    if handling.manual || matches!(way, Way::Commits | Way::TwoPhases) {
        handling.lanes = 1;
    }
    if handling.manual && handling.poisoned_key == PoisonedKey::Follow {
        // A processor that is never called, as all of a key follows, never checkpoints.
        handling.poisoned_key = PoisonedKey::Wait;
    }
    // One record at a time must be quicker than the traffic.
    handling.database.latency = handling.longest.min(plan.traffic.every / 3);
    handling.database.errors = handling.errors;
    handling.database.lost_answers = handling.errors / 2.0;
    handling.database.stalls = handling.stalls;
    handling.database.stall = handling.stall;
    handling.slow = (plan.traffic.every * plan.shards * SLOW_RECORDS).clamp(Duration::from_millis(20), Duration::from_secs(600));
    if let Some(deadline) = handling.deadline {
        // Else each call overruns.
        handling.slow = handling.slow.min(deadline / 2);
    }
}

/// Draws for plans that are not about processors. Apart from the others, so that those of older seeds stay what they were.
const APART: u64 = 0x0005_e25e_a11e;

/// One of these ways, in two of three seeds; else the model.
fn draw_of(plan: &mut Plan, may: impl Fn(Way) -> bool) {
    let dice = Dice::new(plan.seed ^ APART);
    if dice.chance(1.0 / 3.0) {
        return;
    }
    let ways: Vec<_> = Way::NAIVE.into_iter().filter(|way| may(*way)).collect();
    employ(plan, dice.one_of(&ways));
}

/// A way that is about as quick as the database. The slow ones, and the one that blocks its thread,
/// have their turn in `naive-users`: here there may be too many shards for them to get through.
pub(super) fn draw(plan: &mut Plan) {
    draw_of(plan, Way::is_quick);
}

/// What users' code has at hand.
#[derive(Clone)]
struct Tools {
    database: Database,
    host: Host,
    entropy: Entropy,
    plan: Arc<Plan>,
    attic: Attic,
}

impl Tools {
    /// The time of a slow call with so many records: now and then a long one.
    fn slow(&self, records: usize) -> Duration {
        let share = u32::try_from(records).unwrap_or(u32::MAX).min(SLOW_RECORDS);
        let longest = self.plan.handling.slow * share / SLOW_RECORDS;
        self.entropy.between(Duration::ZERO, longest).mul_f64(self.entropy.fraction())
    }

    /// Blocks the thread: nothing of this process runs meanwhile but what keeps its leases alive.
    async fn block_thread(&self, time: Duration) {
        self.host.block_thread(time).await;
    }
}

/// Makes the processors of a process.
struct Users {
    tools: Tools,
    mood: Mood,
}

#[async_trait]
impl RecordProcessorFactory for Users {
    async fn create(&self, shard: &ShardContext) -> Result<Box<dyn RecordProcessor>, ProcessError> {
        self.mood.swing().await;
        let inner = self.processor(shard);
        Ok(Box::new(Watched::new(&self.tools.host, self.mood.clone(), shard, inner)))
    }
}

impl Users {
    fn processor(&self, shard: &ShardContext) -> Box<dyn RecordProcessor> {
        use self::{by_hand, concurrent, one_by_one, whole};
        let tools = self.tools.clone();
        match tools.plan.handling.way {
            Way::Model => Box::new(Processor {
                judge: tools.database.judge.clone(),
                host: tools.host.clone(),
                handling: tools.plan.handling.clone(),
                entropy: tools.entropy.clone(),
                collected: Collected::new(tools.database.judge.clone(), shard.shard_id().clone()),
                calls: 0,
            }),
            Way::GatherThenWrite => Box::new(whole::GatherThenWrite(tools)),
            Way::ParseThenWrite => Box::new(whole::ParseThenWrite(tools)),
            Way::WriteInChunks => Box::new(whole::WriteInChunks(tools)),
            Way::TakeByRef => Box::new(whole::TakeByRef(tools)),
            Way::Peekable => Box::new(whole::Peekable(tools)),
            Way::AggregateByKey => Box::new(whole::AggregateByKey { tools, cache: BTreeMap::new() }),
            Way::Slow => Box::new(whole::Slow(tools)),
            Way::BlocksItsThread => Box::new(whole::BlocksItsThread(tools)),
            Way::TryJoinAll => Box::new(concurrent::TryJoinAll(tools)),
            Way::Buffered => Box::new(concurrent::Buffered(tools)),
            Way::Ordered => Box::new(concurrent::Ordered(tools)),
            Way::SpawnAndJoin => Box::new(concurrent::SpawnAndJoin(tools)),
            Way::ChannelToTask => Box::new(concurrent::ChannelToTask::new(tools, shard)),
            Way::ForEach => Box::new(one_by_one::ForEach(tools)),
            Way::AckEach => Box::new(one_by_one::AckEach(tools)),
            Way::AckThrough => Box::new(one_by_one::AckThrough(tools)),
            Way::FirstHalf => Box::new(one_by_one::FirstHalf(tools)),
            Way::FailedFrom => Box::new(one_by_one::FailedFrom(tools)),
            Way::FailsSingleRecords => Box::new(one_by_one::FailsSingleRecords(tools)),
            Way::ObeysInterruption => Box::new(one_by_one::ObeysInterruption(tools)),
            Way::IgnoresAnAbsence => Box::new(one_by_one::IgnoresAnAbsence(tools)),
            Way::FlushWhenFull => Box::new(by_hand::FlushWhenFull { tools, rows: Vec::new() }),
            Way::CheckpointsTheLast => Box::new(by_hand::CheckpointsTheLast(tools)),
            Way::CheckpointsOddly => Box::new(by_hand::CheckpointsOddly(tools)),
            Way::Commits => Box::new(by_hand::Commits(tools)),
            Way::TwoPhases => Box::new(two_phases::TwoPhases(tools)),
            // Handlers have no processor.
            Way::KeepsClones | Way::StoresRecords | Way::StoresMessages | Way::StoresAndCheckpoints => {
                Box::new(KeepsClones { tools, context: None, batch: None })
            }
        }
    }
}

/// Gives a worker the plan's service.
pub(super) fn serve(builder: WorkerBuilder, judge: &Judge, host: &Host, entropy: &Entropy, plan: &Arc<Plan>) -> WorkerBuilder {
    let (judge, host, entropy, plan) = (judge.clone(), host.clone(), entropy.clone(), Arc::clone(plan));
    let way = plan.handling.way;
    // The model draws its own panics.
    let rate = |rate: f64| if way == Way::Model { 0.0 } else { rate };
    let handling = &plan.handling;
    let mood = Mood {
        judge: judge.clone(),
        entropy: entropy.clone(),
        panics: rate(handling.panics),
        hangs: rate(handling.hangs),
        has_deadline: handling.deadline.is_some(),
        panics_in_drop: rate(handling.panics_in_drop),
    };
    let builder = if handling.hangs > 0.0 {
        let [short, long] = [10, 30].map(Duration::from_secs);
        builder.callback_deadlines(CallbackDeadlines {
            create: long,
            initialize: long,
            idle: short,
            shard_ended: long,
            ..CallbackDeadlines::default()
        })
    } else {
        builder
    };
    let builder = if way.checkpoints_by_hand() { builder.idle_callback(IDLE) } else { builder };
    let database = Database { judge, host: host.clone(), entropy: entropy.clone(), plan: Arc::clone(&plan) };
    let tools = Tools { database, host: host.clone(), entropy, plan, attic: Attic::default() };
    match way {
        Way::StoresRecords => builder.handler(WatchedHandler { host, mood, inner: handlers::StoresRecords(tools) }),
        Way::StoresAndCheckpoints => builder.handler(WatchedHandler { host, mood, inner: handlers::StoresAndCheckpoints(tools) }),
        Way::StoresMessages => builder.handler(WatchedHandler { host, mood, inner: handlers::StoresMessages::new(tools) }),
        _ => builder.processor(Users { tools, mood }),
    }
}
