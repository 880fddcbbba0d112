//! Inputs and outputs of the operations, with the service's names. They are what the model takes and gives, and what
//! the JSON face reads and writes.
//!
//! Times are milliseconds since the epoch; in JSON, seconds with a fraction. Data is bytes; in JSON, base64. Where a
//! stream is named, `stream_name` or `stream_arn` must be there, and both must agree. Members that AWS marks as
//! reserved, such as `StreamId`, are ignored in JSON.

mod consumers;
mod records;
mod shards;
mod streams;
mod subscriptions;

pub use consumers::*;
pub use records::*;
pub use shards::*;
pub use streams::*;
pub use subscriptions::*;
