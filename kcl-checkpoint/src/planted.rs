//! Bugs that are put in on purpose, one at a time, to show that the simulator finds them. Not part of the API.
//!
//! Each stands where the real one would: `if is_planted(Bug::X)`. Without the feature `planted-bugs` that is `false` to the compiler, and nothing
//! of them is built.

macro_rules! bugs {
    ($($(#[doc = $doc:literal])+ $bug:ident = $name:literal,)+) => {
        /// A bug.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[allow(missing_docs)]
        pub enum Bug {
            $($(#[doc = $doc])+ $bug,)+
        }

        impl Bug {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$bug,)+];

            /// Its name, as on the command line.
            #[must_use]
            pub fn name(self) -> &'static str {
                match self {
                    $(Self::$bug => $name,)+
                }
            }
        }
    };
}

bugs! {
    /// The lease's validity counts from the answer to a renewal.
    StampAfterAnswer = "stamp-after-answer",
    /// Writes of a lease do not look at its counter.
    CounterNotChecked = "counter-not-checked",
    /// A write that is repeated does not recognise itself.
    OwnWriteNotRecognised = "own-write-not-recognised",
    /// After a lost answer another write is made.
    OtherWriteAfterLostAnswer = "other-write-after-lost-answer",
    /// A child shard does not wait for its parents.
    ChildBeforeParent = "child-before-parent",
    /// A shard is ended before its children have leases.
    ParentEndedBeforeChild = "parent-ended-before-child",
    /// The checkpoint may pass a record whose dead letter is not accepted yet.
    FinishedBeforeDeadLetter = "finished-before-dead-letter",
    /// A refused dead letter counts as accepted.
    DeadLetterErrorIgnored = "dead-letter-error-ignored",
    /// Sequence numbers are compared as text.
    NumbersAsText = "numbers-as-text",
    /// LATEST is resolved by each term anew.
    LatestResolvedTwice = "latest-resolved-twice",
    /// An event of a subscription that was given up is accepted.
    StaleEventAccepted = "stale-event-accepted",
    /// A shard that is not found counts as ended.
    EndOnNotFound = "end-on-not-found",
    /// Time in which an observer could not read counts against owners.
    DeadInTheDark = "dead-in-the-dark",
    /// Records are delivered without a look at the lease.
    GateOpen = "gate-open",
    /// A failed batch counts as done.
    FailedBatchSkipped = "failed-batch-skipped",
    /// A finished lease is deleted before its children have begun.
    DeletedBeforeChildrenBegan = "deleted-before-children-began",
    /// Children start at LATEST.
    ChildrenAtLatest = "children-at-latest",
    /// An expired iterator is replaced by one at the start of the term.
    IteratorFromStart = "iterator-from-start",
    /// A lease that was asked for is taken before it is handed over.
    HandoffNotAwaited = "handoff-not-awaited",
    /// Automatic checkpoints cover what is delivered.
    DeliveredIsFinished = "delivered-is-finished",
    /// A refused renewal counts as a renewal.
    RefusalIgnored = "refusal-ignored",
    /// Trimmed records are not noticed.
    GapNotNoticed = "gap-not-noticed",
    /// The stream's identity is not checked.
    IdentityNotChecked = "identity-not-checked",
    /// A request for a handoff that came between a write and its repetition is overlooked.
    RequestOverlooked = "request-overlooked",
    /// A processor may checkpoint what has failed.
    FailedMayBeCheckpointed = "failed-may-be-checkpointed",
    /// A worker that can't read the stream keeps its leases.
    CutOffKeepsLeases = "cut-off-keeps-leases",
    /// The machine's wall clock is believed.
    WallClockBelieved = "wall-clock-believed",
    /// What fails is tried again at once.
    NoBackoff = "no-backoff",
    /// A partition key is logged.
    KeyLogged = "key-logged",
    /// With several lanes, two records of a key may be in work at once.
    KeysNotKeptApart = "keys-not-kept-apart",
    /// When some records of a batch fail, those that succeeded come again too.
    NeighboursRepeated = "neighbours-repeated",
    /// All up to the last finished record counts as finished after a restart.
    OpenRecordsForgotten = "open-records-forgotten",
    /// A record that kills its process is never found.
    DeathsNotCounted = "deaths-not-counted",
    /// A lease is let go without its last checkpoint.
    LastCheckpointForgotten = "last-checkpoint-forgotten",
    /// A checkpoint inside an aggregate is written without its sub-sequence number.
    SubSequenceForgotten = "sub-sequence-forgotten",
    /// A term that begins inside an aggregate takes all of it for finished.
    RestOfAggregateDropped = "rest-of-aggregate-dropped",
    /// All of an aggregate that is in work counts as finished with the first record of it.
    AggregateFinishedWhole = "aggregate-finished-whole",
    /// What is noted as finished is known by sequence numbers alone.
    NoteBySequenceNumber = "note-by-sequence-number",
    /// With several lanes, an aggregate is processed beside other records of its records' keys.
    AggregateIsOneKey = "aggregate-is-one-key",
    /// Records after a broken aggregate do not wait until that is set aside.
    BrokenHoldsNothingBack = "broken-holds-nothing-back",
    /// A broken aggregate is logged and passed over.
    BrokenPassedOver = "broken-passed-over",
    /// Leases that a seek has moved are free to take at once.
    SoughtIsFree = "sought-is-free",
    /// A seek leaves alone what came of the shards that it moves.
    DescendantsNotSought = "descendants-not-sought",
    /// What a processor that checkpoints for itself had collected is not delivered again when it is lost.
    CollectedIsForgotten = "collected-is-forgotten",
    /// An error that names no record finishes all records of its batch but the last.
    ErrorFinishesHanded = "error-finishes-handed",
    /// Acknowledgements of a call that has cost its processor are forgotten.
    AckForgottenAtCut = "ack-forgotten-at-cut",
    /// An acknowledgement after the end of its call is accepted.
    AckAfterCallCounts = "ack-after-call-counts",
    /// Automatic checkpoints forget their target when the shard is read anew.
    CheckpointLoopDropped = "checkpoint-loop-dropped",
    /// A call that hangs when its lease is lost is waited for.
    HungCallKeepsShard = "hung-call-keeps-shard",
    /// A shard is let go while calls with its records are under way.
    HandoffDuringCall = "handoff-during-call",
    /// A processor that has panicked or overrun is called again.
    LostProcessorCalledAgain = "lost-processor-called-again",
    /// A processor is told twice that its lease is lost.
    FarewellTwice = "farewell-twice",
    /// A processor is not told that its lease is lost.
    FarewellForgotten = "farewell-forgotten",
    /// A panic of a processor's `Drop` ends the task that drops it.
    DropPanicEscapes = "drop-panic-escapes",
    /// Processors that collect records are not called while none come.
    IdleForgotten = "idle-forgotten",
    /// Attempts alone decide whether a record is given up, whatever becomes of others.
    OutageIsPoison = "outage-is-poison",
    /// A handler may checkpoint all of a batch while its first record is in work.
    HandlerCoversBatch = "handler-covers-batch",
    /// A commit may leave out older records that nobody has finished.
    CommitOutOfTurn = "commit-out-of-turn",
    /// A first shard sync goes on with its own listing although another one has begun.
    FirstSyncsMix = "first-syncs-mix",
    /// Leases that are made later start where the worker that makes them does, and not where the first ones do.
    OwnStart = "own-start",
    /// A lease whose row is gone is lost like any other.
    VanishedUnseen = "vanished-unseen",
    /// An owner does not note for how long it trusts its lease.
    TrustNotNoted = "trust-not-noted",
    /// An observer measures all owners by its own lease duration.
    OwnDurationForAll = "own-duration-for-all",
    /// Owners of another library are given no longer than ours.
    ForeignersAsOurs = "foreigners-as-ours",
    /// A finished lease is deleted as soon as it may be.
    FinishedGoesAtOnce = "finished-goes-at-once",
    /// A merged shard's lease is made though its other parent has none.
    MergeNotAwaited = "merge-not-awaited",
    /// A release that finds no place in the keeper's queue is not asked again.
    ReleaseAskedOnce = "release-asked-once",
    /// The record of the checkpoint is delivered once more at the start of a term.
    FirstRecordAgain = "first-record-again",
    /// A lower checkpoint that is asked for later is written.
    CheckpointGoesBack = "checkpoint-goes-back",
    /// Records after one that is named as failed count as finished.
    AfterFailureFinished = "after-failure-finished",
    /// When a batch is divided its last record is lost.
    HalvesLoseOne = "halves-lose-one",
    /// What a call has acknowledged comes again if it says no more.
    AckedComesBack = "acked-comes-back",
    /// A record is given up one attempt too early.
    GivenUpEarly = "given-up-early",
    /// Successes do not end an outage.
    OutageNeverEnds = "outage-never-ends",
    /// A subscription that has given no record yet is renewed at LATEST.
    StartsAtLatest = "starts-at-latest",
    /// Checkpoints are written for processors that checkpoint for themselves.
    ManualIsAutomatic = "manual-is-automatic",
    /// A worker takes more leases than it may.
    LimitIgnored = "limit-ignored",
    /// Leases move only when two workers differ by three.
    UnevenIsEven = "uneven-is-even",
    /// A lease that was asked for waits for the worker that asked, dead or alive.
    DeadNextOwnerAwaited = "dead-next-owner-awaited",
    /// A lease that a take with a lost answer has made the worker's own is not taken up.
    OwnRowNotTaken = "own-row-not-taken",
    /// A seek to a time begins with what arrives from now on.
    SeekTargetIsNow = "seek-target-is-now",
    /// A seek makes no lease anew that was cleaned up.
    CleanedUpNotSought = "cleaned-up-not-sought",
    /// A shard that begins anew keeps its watermark.
    SeekKeepsWatermark = "seek-keeps-watermark",
    /// The watermark covers what is delivered.
    WatermarkCoversDelivered = "watermark-covers-delivered",
    /// Trimmed records of shards that came of others are skipped without an audit event.
    ChildGapNotAudited = "child-gap-not-audited",
    /// A lease is handed over without its last checkpoint.
    HandoffForgetsCheckpoint = "handoff-forgets-checkpoint",
    /// The note of what is finished beyond the checkpoint is not looked at.
    NoteIgnored = "note-ignored",
    /// Of several processors of a shard, the first alone is asked to shut down.
    OneLaneIsTold = "one-lane-is-told",
    /// Of the records that follow a poisoned one into the dead-letter queue, the last is sent first.
    FollowersBackwards = "followers-backwards",
    /// A dead letter tells of an attempt more than there was.
    AttemptTooMany = "attempt-too-many",
    /// Records follow a poisoned one only, and none that has used up its attempts.
    FollowsPoisonOnly = "follows-poison-only",
    /// Later records of a key do not wait until the queue has accepted the earlier one.
    LetterNotAwaited = "letter-not-awaited",
    /// A panic does not count as an attempt.
    PanicIsNoAttempt = "panic-is-no-attempt",
    /// The answer to the first letter of a batch counts for all of them.
    FirstAnswerForAll = "first-answer-for-all",
    /// A pause of the worker never ends.
    PauseNeverEnds = "pause-never-ends",
    /// A batch that waits to be filled waits for ever.
    MaxWaitForgotten = "max-wait-forgotten",
    /// A shard that is too far behind leaves out what is in work, too.
    SkipLeavesWork = "skip-leaves-work",
    /// A prepared checkpoint is written at once.
    PreparedIsWritten = "prepared-is-written",
}

#[cfg(feature = "planted-bugs")]
thread_local! {
    static PLANTED: std::cell::Cell<Option<Bug>> = const { std::cell::Cell::new(None) };
}

/// Puts a bug into everything that runs on this thread from now on, or takes it out.
#[cfg(feature = "planted-bugs")]
pub fn plant(bug: Option<Bug>) {
    PLANTED.set(bug);
}

/// Whether this bug is put in.
#[cfg(feature = "planted-bugs")]
#[must_use]
pub fn is_planted(bug: Bug) -> bool {
    PLANTED.get() == Some(bug)
}

/// Whether this bug is put in: never.
#[cfg(not(feature = "planted-bugs"))]
#[must_use]
#[inline]
pub const fn is_planted(_: Bug) -> bool {
    false
}
