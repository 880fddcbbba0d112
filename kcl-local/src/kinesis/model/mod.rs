//! The service as plain data: operations in, answers out, nothing else read and nothing else touched.

mod consumers;
mod records;
mod shards;
mod starting;
mod streams;
mod subscriptions;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use super::config::KinesisConfig;
use super::consumer::RetiredSeconds;
use super::error::ApiError;
use super::stream::{Generations, Stream};
use super::types::{StreamStatus, SubscriptionId};
use super::validate;
use subscriptions::Subscription;

/// The state of Kinesis for one account and region.
///
/// Every operation is a method that takes the time, in milliseconds since the epoch, and the operation's input. Equal
/// configurations, times and inputs give equal answers. What is due by a time, such as a state that ends or a record
/// that is trimmed, is done before anything else; time that runs back is taken as standing still.
pub struct Model {
    config: KinesisConfig,
    streams: BTreeMap<Arc<str>, Stream>,
    generations: Generations,
    retired_seconds: RetiredSeconds,
    subscriptions: BTreeMap<SubscriptionId, Subscription>,
    subscriptions_begun: u64,
    now: u64,
    changed: BTreeSet<Arc<str>>,
}

impl Model {
    /// A model without streams.
    #[must_use]
    pub fn new(config: KinesisConfig) -> Self {
        Self {
            config,
            streams: BTreeMap::new(),
            generations: Generations::default(),
            retired_seconds: RetiredSeconds::default(),
            subscriptions: BTreeMap::new(),
            subscriptions_begun: 0,
            now: 0,
            changed: BTreeSet::new(),
        }
    }

    /// The settings. Their lives and limits hold for the next call; what is under way keeps its time.
    pub fn config_mut(&mut self) -> &mut KinesisConfig {
        &mut self.config
    }

    /// When the next stream or consumer changes by itself, if one does: [`settle`](Self::settle) brings it about, as
    /// does any operation on that stream.
    #[must_use]
    pub fn next_due(&self) -> Option<u64> {
        self.streams.values().filter_map(Stream::due).min()
    }

    /// Does what is due on every stream.
    pub fn settle(&mut self, now: u64) {
        let now = self.tick(now);
        let names: Vec<_> = self.streams.keys().map(Arc::clone).collect();
        for name in names {
            self.settle_stream(&name, now);
        }
    }

    /// The streams that have changed since the last time this was asked.
    pub fn take_changes(&mut self) -> BTreeSet<Arc<str>> {
        std::mem::take(&mut self.changed)
    }

    /// The time of an operation.
    fn tick(&mut self, now: u64) -> u64 {
        self.now = self.now.max(now);
        self.now
    }

    fn settle_stream(&mut self, name: &str, now: u64) {
        let Some(stream) = self.streams.get_mut(name) else { return };
        let gone = stream.is_gone(now);
        if gone || stream.settle(&mut self.generations, now) {
            self.changed.insert(Arc::clone(&stream.name));
        }
        if gone {
            self.streams.remove(name);
        }
    }

    /// The stream of this name as it is now.
    fn by_name(&mut self, name: &str, now: u64) -> Result<&mut Stream, ApiError> {
        self.settle_stream(name, now);
        let account = &self.config.account_id;
        self.streams.get_mut(name).ok_or_else(|| ApiError::not_found(format!("Stream {name} under account {account} not found.")))
    }

    /// The stream that an operation names in one way or in both.
    fn find(&mut self, name: Option<&str>, arn: Option<&str>, now: u64) -> Result<&mut Stream, ApiError> {
        if let Some(name) = name {
            validate::stream_name(name, "streamName")?;
        }
        let name = match (name, arn.map(validate::stream_arn).transpose()?) {
            (None, None) => return Err(ApiError::invalid("Either StreamName or StreamARN must be given.")),
            (Some(name), None) => name,
            (name, Some((before, in_arn))) => {
                if name.is_some_and(|name| name != in_arn) {
                    return Err(ApiError::invalid("StreamName and StreamARN name different streams."));
                }
                if before != self.arn_prefix() {
                    return Err(ApiError::not_found(format!("Stream {} not found.", arn.unwrap_or_default())));
                }
                in_arn
            }
        };
        self.by_name(name, now)
    }

    /// The same, for an operation that only an active stream takes.
    fn find_active(&mut self, name: Option<&str>, arn: Option<&str>, now: u64) -> Result<&mut Stream, ApiError> {
        let stream = self.find(name, arn, now)?;
        let status = stream.status();
        if status != StreamStatus::Active {
            let (name, account) = (&stream.name, &stream.account);
            return Err(ApiError::in_use(format!("Stream {name} under account {account} not ACTIVE, instead in state {status}")));
        }
        Ok(stream)
    }

    fn arn_prefix(&self) -> String {
        format!("arn:aws:kinesis:{}:{}", self.config.region, self.config.account_id)
    }
}

impl fmt::Debug for Model {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Model")
            .field("config", &self.config)
            .field("streams", &self.streams.keys())
            .field("subscriptions", &self.subscriptions.len())
            .field("now", &self.now)
            .finish()
    }
}
