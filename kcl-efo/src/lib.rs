//! Enhanced fan-out of Amazon Kinesis: a shard read by push, at 2 MB per second of its own.
//!
//! A subscription lives five minutes at most, and a second one of the same consumer to the same shard is refused within five
//! seconds of the first and takes its place afterwards. This crate renews subscriptions without a gap or a duplicate, never asks
//! more often than the service allows, whatever goes wrong, and never fights with another worker over a shard.
//!
//! | module | owns |
//! |---|---|
//! | [`api`] | the port: what is asked of the service |
//! | [`sdk`], [`convert`] | the port over the AWS SDK; its types and ours |
//! | [`http`] | the HTTP client of subscriptions, whose windows keep one stalled shard from starving the others |
//! | [`registration`] | the consumer: found or registered, and waited for |
//! | [`fan_out`] | what all shards of a worker share |
//! | [`subscriber`] | one shard: its attempts and events |
//! | `life` | what follows from what: the decisions of a subscriber, as plain data |
//! | `pace` | the limits on SubscribeToShard |
//! | [`record`] | what is read, as plain data |
//! | [`refusal`] | the SDK's errors by their kind |
//! | [`error`] | what can go wrong |

pub mod api;
pub mod convert;
pub mod error;
pub mod fan_out;
pub mod http;
mod life;
mod pace;
pub mod record;
pub mod refusal;
pub mod registration;
pub mod sdk;
pub mod subscriber;

pub use self::api::{Consumer, ConsumerStatus, Event, EventStream, FanOutApi};
pub use self::error::FanOutError;
pub use self::fan_out::{FanOut, Jitter};
pub use self::http::FanOutHttpClient;
pub use self::record::{ChildShard, Record};
pub use self::registration::ConsumerChoice;
pub use self::sdk::KinesisFanOut;
pub use self::subscriber::{Next, Ownership, SoleReader, Subscriber};
