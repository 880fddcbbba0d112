//! What can be set about the model, and the fixed limits of the service.

/// Settings of a [`Model`](super::Model). The default is the service without waiting and without throttling: states
/// change at once, and only limits of sizes and lives hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KinesisConfig {
    /// The account in every ARN: 12 digits.
    pub account_id: String,
    /// The region in every ARN.
    pub region: String,
    /// How long a new stream is CREATING, in milliseconds. 0: it is ACTIVE at once.
    pub creating_ms: u64,
    /// How long a deleted stream is DELETING, in milliseconds. 0: it is gone at once.
    pub deleting_ms: u64,
    /// How long a stream is UPDATING when shards are split, merged or counted anew, in milliseconds. Parents take
    /// records until it has passed; then, at one instant, they close and their children open. 0: at once.
    pub updating_ms: u64,
    /// How long a new consumer is CREATING, in milliseconds. 0: it is ACTIVE at once.
    pub consumer_creating_ms: u64,
    /// How long a deregistered consumer is DELETING, in milliseconds. 0: it is gone at once.
    pub consumer_deleting_ms: u64,
    /// How many consumers a stream may have.
    pub consumer_limit: u32,
    /// How long a subscription lasts, in milliseconds.
    pub subscription_life_ms: u64,
    /// How long after a successful SubscribeToShard another one of the same consumer and shard is refused, in
    /// milliseconds.
    pub resubscribe_ms: u64,
    /// After how much silence a subscriber gets an empty event, in milliseconds (at least 1).
    pub heartbeat_ms: u64,
    /// How long a shard iterator can be used, in milliseconds.
    pub iterator_life_ms: u64,
    /// How long the next token of a listing of shards or consumers can be used, in milliseconds.
    pub next_token_life_ms: u64,
    /// Whether a shard refuses more than 5 reads or 2 MiB of them a second, a subscription gets at most 2 MiB a second,
    /// and a consumer may call SubscribeToShard at most 5 times a second.
    pub enforce_read_limits: bool,
    /// Whether a shard refuses more than 1,000 records or 1 MiB of them a second.
    pub enforce_write_limits: bool,
    /// How many open shards the account may have.
    pub open_shard_limit: u32,
    /// How many shards a new stream in on-demand mode has.
    pub on_demand_shards: u32,
    /// How long a new stream keeps records, in hours (24 to 8,760).
    pub retention_hours: u32,
}

impl Default for KinesisConfig {
    fn default() -> Self {
        Self {
            account_id: "000000000000".to_owned(),
            region: "us-east-1".to_owned(),
            creating_ms: 0,
            deleting_ms: 0,
            updating_ms: 0,
            consumer_creating_ms: 0,
            consumer_deleting_ms: 0,
            consumer_limit: 20,
            subscription_life_ms: 300_000,
            resubscribe_ms: 5_000,
            heartbeat_ms: 5_000,
            iterator_life_ms: 300_000,
            next_token_life_ms: 300_000,
            enforce_read_limits: false,
            enforce_write_limits: false,
            open_shard_limit: 10_000,
            on_demand_shards: 4,
            retention_hours: MIN_RETENTION_HOURS,
        }
    }
}

/// Shortest retention, in hours (AWS limit).
pub(super) const MIN_RETENTION_HOURS: u32 = 24;
/// Longest retention, in hours: 365 days (AWS limit).
pub(super) const MAX_RETENTION_HOURS: u32 = 8_760;
/// Smallest setting of a stream's largest record, and its default, in KiB (AWS limit).
pub(super) const MIN_RECORD_SIZE_KIB: u32 = 1_024;
/// Largest setting of a stream's largest record, in KiB (AWS limit).
pub(super) const MAX_RECORD_SIZE_KIB: u32 = 10_240;
/// Most records of one PutRecords (AWS limit).
pub(super) const MAX_PUT_RECORDS: usize = 500;
/// Most bytes of one PutRecords, data and partition keys (AWS limit).
pub(super) const MAX_PUT_BYTES: usize = 10 * 1024 * 1024;
/// Longest partition key, in characters (AWS limit).
pub(super) const MAX_PARTITION_KEY_CHARS: usize = 256;
/// Most records of one GetRecords (AWS limit).
pub(super) const MAX_GET_RECORDS: u32 = 10_000;
/// Most bytes of one GetRecords, data and partition keys (AWS limit).
pub(super) const MAX_GET_BYTES: usize = 10 * 1024 * 1024;
/// Most records of one event of a subscription: as a GetRecords has.
pub(super) const MAX_EVENT_RECORDS: usize = MAX_GET_RECORDS as usize;
/// Most bytes of one event of a subscription, data and partition keys.
pub(super) const MAX_EVENT_BYTES: usize = 1024 * 1024;
/// Most consumers of a stream that are CREATING at once (AWS limit).
pub(super) const MAX_CREATING_CONSUMERS: usize = 5;
/// Calls of SubscribeToShard of a consumer in a second (AWS limit).
pub(super) const SUBSCRIBES_PER_SECOND: u64 = 5;
/// Reads of a shard in a second (AWS limit).
pub(super) const READS_PER_SECOND: u64 = 5;
/// Bytes read of a shard in a second, and by each subscription to it (AWS limit).
pub(super) const READ_BYTES_PER_SECOND: u64 = 2 * 1024 * 1024;
/// Records written to a shard in a second (AWS limit).
pub(super) const WRITES_PER_SECOND: u64 = 1_000;
/// Bytes written to a shard in a second (AWS limit).
pub(super) const WRITE_BYTES_PER_SECOND: u64 = 1024 * 1024;
/// Most tags of a stream (AWS limit).
pub(super) const MAX_TAGS: usize = 50;
