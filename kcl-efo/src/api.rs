//! The port: what is asked of the service, one attempt at a time.

use async_trait::async_trait;
use kcl_checkpoint::{SequenceNumber, StartingPosition};

use crate::error::FanOutError;
use crate::record::{ChildShard, Record};

/// How far a consumer's registration is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConsumerStatus {
    /// It is being made, and can't subscribe yet.
    Creating,
    /// It can subscribe.
    Active,
    /// It is being deleted.
    Deleting,
}

/// A registered consumer of a stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Consumer {
    /// Its ARN. A consumer that is deregistered and registered again has another.
    pub arn: String,
    /// How far it is.
    pub status: ConsumerStatus,
}

/// One event of a subscription: records in order, without a gap to the event before.
#[derive(Clone, Debug, Default)]
pub struct Event {
    /// The records; often none.
    pub records: Vec<Record>,
    /// After which number a later subscription goes on; moves although there are no records. `None` at the end of the shard.
    pub continuation: Option<SequenceNumber>,
    /// How far behind the newest record of the shard.
    pub millis_behind_latest: Option<u64>,
    /// At the end of the shard, after its last record: what it became. Empty otherwise.
    pub children: Vec<ChildShard>,
}

/// An accepted subscription.
#[async_trait]
pub trait EventStream: Send {
    /// The next event; `None` when the service has ended the subscription in order. After that, or an error, it is not called again.
    ///
    /// Not bounded in time: whoever waits sets the limit.
    ///
    /// # Cancel safety
    /// A dropped call loses nothing.
    async fn next(&mut self) -> Result<Option<Event>, FanOutError>;
}

/// Enhanced fan-out, as far as a reader of shards needs it.
///
/// # Contract
///
/// - Each call is **one attempt**; whoever calls it retries and paces. All but [`subscribe`](Self::subscribe) are bounded in time.
/// - A subscription starts at the position and gives all records from there on, in order, each once. Going on after an event's
///   continuation number neither skips nor repeats a record.
/// - While nobody asks for the next event, a bounded number of bytes is held (see each implementation), and other
///   subscriptions go on.
/// - Dropping a stream ends the subscription.
/// - Every implementation passes the suite in `tests/it/conformance.rs`.
#[async_trait]
pub trait FanOutApi: Send + Sync + std::fmt::Debug {
    /// Registers a consumer. [`FanOutError::InUse`] if the stream has one of that name, or is not active.
    async fn register(&self, stream_arn: &str, name: &str) -> Result<Consumer, FanOutError>;

    /// The consumer of this name, or [`FanOutError::ConsumerNotFound`].
    async fn find(&self, stream_arn: &str, name: &str) -> Result<Consumer, FanOutError>;

    /// The consumer with this ARN, or [`FanOutError::ConsumerNotFound`].
    async fn describe(&self, consumer_arn: &str) -> Result<Consumer, FanOutError>;

    /// Deregisters a consumer; its subscriptions end. One that does not exist is as good.
    async fn deregister(&self, consumer_arn: &str) -> Result<(), FanOutError>;

    /// Subscribes a consumer to a shard. Not bounded in time.
    ///
    /// # Cancel safety
    /// The service may have accepted a dropped call: it then refuses the next one for five seconds.
    async fn subscribe(&self, consumer_arn: &str, shard: &str, start: StartingPosition) -> Result<Box<dyn EventStream>, FanOutError>;
}
