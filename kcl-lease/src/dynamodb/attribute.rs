//! The names of the lease table's attributes: the Java library's, and seven of our own.
//!
//! The Java library leaves attributes that it does not know alone, and so do we.

/// The key: the shard's name (S).
pub(super) const LEASE_KEY: &str = "leaseKey";
/// The owner, or the next one while a handoff is under way (S); absent: none.
pub(super) const LEASE_OWNER: &str = "leaseOwner";
/// The owner while a handoff is under way (S); absent: no handoff.
pub(super) const CHECKPOINT_OWNER: &str = "checkpointOwner";
/// Heartbeat and fence (N).
pub(super) const LEASE_COUNTER: &str = "leaseCounter";
/// Owner changes since the last checkpoint (N).
pub(super) const OWNER_SWITCHES: &str = "ownerSwitchesSinceCheckpoint";
/// A sequence number or a sentinel (S).
pub(super) const CHECKPOINT: &str = "checkpoint";
/// The place inside an aggregated record (N).
pub(super) const CHECKPOINT_SUB_SEQUENCE_NUMBER: &str = "checkpointSubSequenceNumber";
/// A prepared checkpoint: a sequence number or a sentinel (S); absent: none.
pub(super) const PENDING_CHECKPOINT: &str = "pendingCheckpoint";
/// The place of a prepared checkpoint inside an aggregated record (N).
pub(super) const PENDING_CHECKPOINT_SUB_SEQUENCE_NUMBER: &str = "pendingCheckpointSubSequenceNumber";
/// The application's own bytes with a prepared checkpoint (B); absent: it gave none.
pub(super) const PENDING_CHECKPOINT_STATE: &str = "pendingCheckpointState";
/// The parents (SS); the singular is the Java library's.
pub(super) const PARENTS: &str = "parentShardId";
/// The children (SS).
pub(super) const CHILDREN: &str = "childShardIds";
/// The lowest hash key (S, decimal).
pub(super) const STARTING_HASH_KEY: &str = "startingHashKey";
/// The highest hash key (S, decimal).
pub(super) const ENDING_HASH_KEY: &str = "endingHashKey";
/// What the item is (S); absent in tables older than version 3.5 of the Java library, where every item is a lease.
pub(super) const ENTITY_TYPE: &str = "entityType";
/// The [`ENTITY_TYPE`] of a lease.
pub(super) const ENTITY_TYPE_LEASE: &str = "LEASE";
/// The stream's identifier (S), in the leases of a multi-stream application of the Java library only.
pub(super) const STREAM_NAME: &str = "streamName";

/// Ours: the id of the last of our writes that changed the counter (S, 16 hexadecimal digits).
pub(super) const WRITE_ID: &str = "rk_wid";
/// Ours: where reading starts while the checkpoint is LATEST or AT_TIMESTAMP (N, epoch milliseconds).
pub(super) const INITIAL_TIMESTAMP: &str = "rk_initTs";
/// Ours: the watermark (N, epoch milliseconds).
pub(super) const WATERMARK: &str = "rk_ckptTs";
/// Ours: what is finished beyond the checkpoint (B, see [`FinishedBeyond::encode`](kcl_checkpoint::FinishedBeyond::encode)).
pub(super) const FINISHED_BEYOND: &str = "rk_done";
/// Ours: the record in work alone (S: sequence number, sub-sequence number and how often it was begun, with slashes between).
pub(super) const SUSPECT: &str = "rk_suspect";
/// Ours: the stop of the shard (S: the reason and when it was made, in epoch milliseconds, with a slash between).
pub(super) const STOPPED: &str = "rk_stop";
/// Ours: how long the owner trusts a renewal (S: milliseconds and the owner, with a slash between).
pub(super) const TRUST: &str = "rk_term";
/// Ours: when the stream was created (N, epoch milliseconds).
pub(super) const STREAM_CREATED: &str = "rk_streamTs";
