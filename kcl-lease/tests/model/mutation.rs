//! What can be wrong on purpose, so that the properties show that they can fail.

/// One mistake in the protocol.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Mutation {
    /// The writes of a term expect the owner alone.
    TermsIgnoreTheCounter,
    /// A take expects the owner alone.
    TakesIgnoreTheCounter,
    /// A take expects the owner alone, and the term starts at the checkpoint that was read before it.
    StartsWhereItLooked,
    /// Validity counts from the answer of a write, not from before it was sent.
    ValidFromTheAnswer,
    /// An owner is declared dead a tick too early.
    Impatient,
    /// After an unknown outcome the keeper goes on with another write from the same row.
    AnotherWriteAfterUnknownOutcome,
    /// The row that refuses a renewal is not searched for the transaction that the renewal settles.
    SettledBlindly,
    /// A transaction that is settled counts as sent when the renewal was.
    SettledValidFromTheRenewal,
    /// The table does not recognise a repeated write.
    OwnWritesNotRecognised,
    /// A refusal because of a request for a handoff counts as the loss of the lease.
    RequestTakenForLoss,
    /// A request that came between a write and its repetition is overlooked.
    RequestOverlooked,
    /// The next owner does not wait for the present one.
    HandoffNotAwaited,
    /// A checkpoint covers the record in work.
    CheckpointsWhatIsInWork,
    /// A write sets whatever checkpoint it was asked for.
    CheckpointsMoveBack,
    /// A child is taken without a look at its parent.
    ChildrenStartAtOnce,
    /// A shard is ended before its child has a lease.
    ChildrenMadeAfterTheEnd,
    /// A finished lease is deleted without a look at its children.
    DeletedAtOnce,
}
