//! Settings of the processing of records, with their ranges: lanes, batches, deadlines, poisoned keys,
//! aggregates.

use std::time::Duration;

use kcl_aggregation::Rules;
use kcl_checkpoint::Timestamp;

use super::valve::SafetyValve;
use crate::error::ConfigError;

/// How many records of a shard are in work at a time, and how many may be open.
///
/// A lane is one call of [`process_records`](crate::RecordProcessor::process_records) at a time, with a processor of its own. With one lane, the default, a
/// shard is processed batch by batch, in order. With several lanes each call has records of one partition key; calls of different keys run beside each
/// other, those of one key never do, and never out of order. Lanes share their shard's task: they overlap waiting, not computing.
///
/// ```
/// use kcl_core::Lanes;
///
/// let lanes = Lanes { max_records: 5_000, ..Lanes::new(16) };
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lanes {
    /// Lanes per shard. 1 to 1,024; default 1.
    pub lanes: usize,
    /// With several lanes: the most records between the oldest unfinished one and the newest one in work; a key that is stuck stops its shard only
    /// after so many. 1 to 1,000,000; default 10,000.
    pub max_records: usize,
    /// With several lanes: the most bytes of unfinished records, but at least one record. 1 KiB to 1 GiB; default 16 MiB.
    pub max_bytes: usize,
}

impl Lanes {
    /// So many lanes, with the default bounds.
    #[must_use]
    pub fn new(lanes: usize) -> Self {
        Self { lanes, ..Self::default() }
    }

    pub(crate) fn validate(&self) -> Result<(), ConfigError> {
        if !(1..=1024).contains(&self.lanes) {
            return Err(ConfigError::new("lanes.lanes", self.lanes, "must be 1 to 1024"));
        }
        if !(1..=1_000_000).contains(&self.max_records) {
            return Err(ConfigError::new("lanes.max_records", self.max_records, "must be 1 to 1000000"));
        }
        if !(1 << 10..=1 << 30).contains(&self.max_bytes) {
            return Err(ConfigError::new("lanes.max_bytes", self.max_bytes, "must be 1 KiB (1024) to 1 GiB (1073741824)"));
        }
        Ok(())
    }
}

impl Default for Lanes {
    fn default() -> Self {
        Self { lanes: 1, max_records: 10_000, max_bytes: 16 << 20 }
    }
}

/// The shape of batches: how many records a call of
/// [`process_records`](crate::RecordProcessor::process_records) gets, and how long they are waited
/// for.
///
/// The defaults are such that a call of ordinary code takes seconds at most. Larger batches are for
/// sinks that are faster that way: a shard is handed over, or its worker stopped, only between two
/// calls, or when a call [ends early](crate::ShardContext::interruption).
///
/// ```
/// use std::time::Duration;
/// use kcl_core::Batching;
///
/// // Files of up to 5,000 records, or of what has come within half a minute.
/// let batching = Batching { min_records: 5_000, max_wait: Duration::from_secs(30), ..Batching::up_to(5_000) };
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Batching {
    /// The most records of a call. 1 to 100,000; default 100.
    pub max_records: usize,
    /// The most bytes (data and partition keys) of a call's records, but at least one record. 1 KiB
    /// to 1 GiB; default 4 MiB.
    pub max_bytes: usize,
    /// The fill that a call waits for, at most for `max_wait`. 1 up to `max_records`; default 1: a
    /// call never waits for more. With several lanes: of one partition key.
    pub min_records: usize,
    /// The longest wait for `min_records`, from the first record on. Up to 4 min; default none.
    /// Records that have failed, and the last ones of a shard, don't wait.
    pub max_wait: Duration,
}

impl Batching {
    /// Up to so many records, with the default bounds and without a wait.
    #[must_use]
    pub fn up_to(max_records: usize) -> Self {
        Self { max_records, ..Self::default() }
    }

    fn validate(&self) -> Result<(), ConfigError> {
        if !(1..=100_000).contains(&self.max_records) {
            return Err(ConfigError::new("batching.max_records", self.max_records, "must be 1 to 100000"));
        }
        if !(1 << 10..=1 << 30).contains(&self.max_bytes) {
            return Err(ConfigError::new("batching.max_bytes", self.max_bytes, "must be 1 KiB (1024) to 1 GiB (1073741824)"));
        }
        if !(1..=self.max_records).contains(&self.min_records) {
            return Err(ConfigError::new("batching.min_records", self.min_records, "must be 1 up to batching.max_records"));
        }
        if self.max_wait > Duration::from_secs(240) {
            return Err(ConfigError::new("batching.max_wait", self.max_wait, "must be at most 4 min"));
        }
        if self.min_records > 1 && self.max_wait.is_zero() {
            let rule = "does nothing without batching.max_wait: set both, or neither";
            return Err(ConfigError::new("batching.min_records", self.min_records, rule));
        }
        Ok(())
    }
}

impl Default for Batching {
    fn default() -> Self {
        Self { max_records: 100, max_bytes: 4 << 20, min_records: 1, max_wait: Duration::ZERO }
    }
}

/// The longest durations of calls that are not about records. A call that takes longer is dropped at
/// an await and counts as failed; its processor is made anew.
///
/// Each 1 ms to 1 h. Calls of blocking forms can't be dropped: see [`blocking`](crate::blocking).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CallbackDeadlines {
    /// Of [`create`](crate::RecordProcessorFactory::create). Default 5 min.
    pub create: Duration,
    /// Of [`initialize`](crate::RecordProcessor::initialize). Default 5 min.
    pub initialize: Duration,
    /// Of [`idle`](crate::RecordProcessor::idle). Default 1 min.
    pub idle: Duration,
    /// Of [`shard_ended`](crate::RecordProcessor::shard_ended). Default 5 min.
    pub shard_ended: Duration,
    /// Of [`shutdown_requested`](crate::RecordProcessor::shutdown_requested). Default 20 s; it ends
    /// in any case with the handoff or shutdown timeout.
    pub shutdown_requested: Duration,
    /// Of [`lease_lost`](crate::RecordProcessor::lease_lost). Default 10 s: until it returns this
    /// worker can't take the shard again.
    pub lease_lost: Duration,
}

impl CallbackDeadlines {
    fn validate(&self) -> Result<(), ConfigError> {
        for (setting, deadline) in [
            ("callback_deadlines.create", self.create),
            ("callback_deadlines.initialize", self.initialize),
            ("callback_deadlines.idle", self.idle),
            ("callback_deadlines.shard_ended", self.shard_ended),
            ("callback_deadlines.shutdown_requested", self.shutdown_requested),
            ("callback_deadlines.lease_lost", self.lease_lost),
        ] {
            if !(Duration::from_millis(1)..=Duration::from_secs(3600)).contains(&deadline) {
                return Err(ConfigError::new(setting, deadline, "must be 1 ms to 1 h"));
            }
        }
        Ok(())
    }
}

impl Default for CallbackDeadlines {
    fn default() -> Self {
        let minutes = |minutes: u64| Duration::from_secs(60 * minutes);
        Self {
            create: minutes(5),
            initialize: minutes(5),
            idle: minutes(1),
            shard_ended: minutes(5),
            shutdown_requested: Duration::from_secs(20),
            lease_lost: Duration::from_secs(10),
        }
    }
}

/// What becomes of later records of a key after one of its records goes to the dead-letter queue.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PoisonedKey {
    /// They wait until the queue has accepted it, and are then processed. The default. With one lane, all later records of the shard wait.
    #[default]
    Wait,
    /// They are processed without waiting for the queue. A checkpoint does not pass the record before the queue has accepted it: a processor that checkpoints for
    /// itself uses [`checkpoint`](crate::Checkpointer::checkpoint), which covers what it may. Where a processor [commits](crate::ShardContext::commit), they
    /// wait all the same: a commit covers all before it.
    Pass,
    /// They follow it into the queue unseen, so that nothing of the key is processed out of order: for this worker's term of the shard, and for up
    /// to 10,000 keys; beyond that the key that was poisoned longest ago is processed again, which is logged as an error.
    Follow,
}

/// What becomes of records that the Kinesis Producer Library has aggregated into one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Aggregated {
    /// They are delivered each for itself, with sub-sequence numbers, by these rules. The default.
    ///
    /// A payload that is no aggregate is an ordinary record. An aggregate in which something is wrong goes to the dead-letter queue as a whole.
    TakenApart {
        /// When an aggregate is one, and when it is broken.
        rules: Rules,
        /// What becomes of records in it that belong to another shard.
        elsewhere: Elsewhere,
    },
    /// The Kinesis record is delivered as it is.
    AsIs,
}

impl Default for Aggregated {
    fn default() -> Self {
        Self::TakenApart { rules: Rules::default(), elsewhere: Elsewhere::default() }
    }
}

/// What becomes of records of an aggregate whose partition keys belong to another shard than the one that it was read from.
///
/// There are such after the stream was resharded between aggregating and putting.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Elsewhere {
    /// They are delivered, and counted (`kcl.records.elsewhere`): the producer may have put them again, so that some come twice. The default.
    #[default]
    Deliver,
    /// As the Java library does: nothing of an aggregate that has even one of them is delivered. It relies on the producer to put all of them
    /// again; what it does not put again is lost. Each is logged as an error under the target `kcl::audit`, and counted.
    DropAggregate,
}

/// What a shard does that is far behind the newest record.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Backlog {
    /// It reads on: nothing is left out. The default.
    #[default]
    ReadAll,
    /// When a read is further behind than this, or its first record is older, the shard finishes what is in work, leaves out all that it has not read, and goes on with what arrives
    /// from then on. Each time is logged as an error under the target `kcl::audit`, with the last finished record and the new start, and
    /// counted (`kcl.skips`). For applications to which old records are worth nothing. 1 s to 365 days.
    /// Needs automatic checkpoints.
    SkipToLatest {
        /// How far behind a shard may be.
        beyond: Duration,
    },
}

impl Backlog {
    pub(crate) fn limit(self) -> Option<Duration> {
        match self {
            Self::ReadAll => None,
            Self::SkipToLatest { beyond } => Some(beyond),
        }
    }

    pub(crate) fn validate(self) -> Result<(), ConfigError> {
        let possible = Duration::from_secs(1)..=Duration::from_secs(365 * 24 * 3600);
        match self.limit() {
            Some(limit) if !possible.contains(&limit) => Err(ConfigError::new("backlog.beyond", limit, "must be 1 s to 365 days")),
            _ => Ok(()),
        }
    }
}

/// How far an application reads.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ReadUntil {
    /// On and on. The default.
    #[default]
    Stopped,
    /// All that had arrived when the worker was built, and perhaps what came in the two seconds after. Then the worker ends by itself. Of several workers
    /// each has a time of its own: the last one is reached by all shards.
    TipAtStart,
    /// In each shard up to the first record that arrived at this time or later, as far as the service's own arrival times tell. It may be in the
    /// future. Then the worker ends by itself. A shard without such a record is at the bound when it is seen at its tip two seconds later: clocks of the
    /// service differ.
    Time(Timestamp),
}

/// Everything that is set of processing.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Processing {
    pub(crate) lanes: Lanes,
    pub(crate) batching: Batching,
    pub(crate) callbacks: CallbackDeadlines,
    /// The time without records after which, and in which, `idle` is called.
    pub(crate) idle_callback: Option<Duration>,
    /// Whether logs show the texts of users' errors.
    pub(crate) log_error_text: bool,
    pub(crate) poisoned_key: PoisonedKey,
    pub(crate) valve: Option<SafetyValve>,
    pub(crate) aggregated: Aggregated,
}

impl Default for Processing {
    fn default() -> Self {
        Self {
            lanes: Lanes::default(),
            batching: Batching::default(),
            callbacks: CallbackDeadlines::default(),
            idle_callback: None,
            log_error_text: false,
            poisoned_key: PoisonedKey::default(),
            valve: Some(SafetyValve::default()),
            aggregated: Aggregated::default(),
        }
    }
}

impl Processing {
    pub(crate) fn validate(&self) -> Result<(), ConfigError> {
        self.lanes.validate()?;
        self.batching.validate()?;
        self.callbacks.validate()?;
        let possible = Duration::from_millis(100)..=Duration::from_secs(3600);
        if let Some(every) = self.idle_callback.filter(|every| !possible.contains(every)) {
            return Err(ConfigError::new("idle_callback", every, "must be 100 ms to 1 h"));
        }
        if let Aggregated::TakenApart { rules: Rules { max_sub_records: 0, .. }, .. } = self.aggregated {
            return Err(ConfigError::new("aggregated.rules.max_sub_records", 0, "must be at least 1"));
        }
        self.valve.map_or(Ok(()), |valve| valve.validate())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn impossible_settings_are_refused_by_name() {
        let sound = Processing::default();
        sound.validate().unwrap();
        let lanes = |lanes| Processing { lanes, ..sound };
        let batching = |batching| Processing { batching, ..sound };
        let none = Rules { max_sub_records: 0, ..Rules::default() };
        for (processing, setting) in [
            (lanes(Lanes::new(0)), "lanes.lanes"),
            (lanes(Lanes { max_records: 0, ..Lanes::default() }), "lanes.max_records"),
            (lanes(Lanes { max_bytes: 1, ..Lanes::default() }), "lanes.max_bytes"),
            (batching(Batching { max_records: 0, ..Batching::default() }), "batching.max_records"),
            (batching(Batching { max_bytes: 0, ..Batching::default() }), "batching.max_bytes"),
            (batching(Batching { min_records: 101, ..Batching::default() }), "batching.min_records"),
            (batching(Batching { min_records: 2, ..Batching::default() }), "batching.min_records"),
            (batching(Batching { max_wait: Duration::from_secs(241), ..Batching::default() }), "batching.max_wait"),
            (Processing { idle_callback: Some(Duration::ZERO), ..sound }, "idle_callback"),
            (
                Processing { callbacks: CallbackDeadlines { idle: Duration::ZERO, ..CallbackDeadlines::default() }, ..sound },
                "callback_deadlines.idle",
            ),
            (Processing { valve: Some(SafetyValve { window: 10, most: 0 }), ..sound }, "safety_valve.most"),
            (
                Processing { aggregated: Aggregated::TakenApart { rules: none, elsewhere: Elsewhere::Deliver }, ..sound },
                "aggregated.rules.max_sub_records",
            ),
        ] {
            assert_eq!(processing.validate().unwrap_err().setting, setting);
        }
    }
    #[test]
    fn the_bounds_of_a_setting_are_allowed() {
        let day = Duration::from_secs(24 * 3600);
        for batching in [
            Batching::up_to(1),
            Batching::up_to(100_000),
            Batching { max_bytes: 1 << 10, ..Batching::default() },
            Batching { max_bytes: 1 << 30, ..Batching::default() },
            Batching { min_records: 100, max_wait: Duration::from_secs(240), ..Batching::default() },
        ] {
            Processing { batching, ..Processing::default() }.validate().unwrap();
        }
        assert_eq!(Batching::up_to(7), Batching { max_records: 7, ..Batching::default() });
        for (beyond, is_possible) in [
            (Duration::from_millis(999), false),
            (Duration::from_secs(1), true),
            (365 * day, true),
            (365 * day + Duration::from_millis(1), false),
        ] {
            let backlog = Backlog::SkipToLatest { beyond };
            assert_eq!(backlog.limit(), Some(beyond));
            assert_eq!(
                backlog.validate().map_err(|error| error.setting),
                if is_possible { Ok(()) } else { Err("backlog.beyond") },
                "{beyond:?}"
            );
        }
        assert_eq!((Backlog::ReadAll.limit(), Backlog::ReadAll.validate().is_ok()), (None, true));
    }
}
