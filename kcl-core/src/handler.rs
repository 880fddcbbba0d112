//! Handlers: one record at a time, plain or as a message of a type. The simplest form of a service.
//!
//! A handler is shared by all shards and lanes of a worker, so that it takes `&self`: with
//! [lanes](crate::Lanes) it is called for many keys at once, and for each key in order. A record is
//! finished as soon as its call has returned `Ok`: it is checkpointed on time, and a shard is handed
//! over, or a worker stopped, between two records. An error, a panic or an overrun of the
//! [`attempt_deadline`](crate::RetryPolicy::attempt_deadline) is of its record alone.

use std::fmt;
use std::marker::PhantomData;

use async_trait::async_trait;
use serde::de::DeserializeOwned;

use crate::processor::{ProcessError, ShardContext};
use crate::record::Record;

/// Handles one record. Given to [`WorkerBuilder::handler`](crate::WorkerBuilder::handler).
///
/// ```
/// use kcl_core::{ProcessError, Record, RecordHandler, ShardContext, async_trait};
///
/// struct Orders;
///
/// #[async_trait]
/// impl RecordHandler for Orders {
///     async fn handle(&self, record: &Record, shard: &ShardContext) -> Result<(), ProcessError> {
///         println!("{} {}: {} bytes", shard.shard_id(), record.sequence_number(), record.data().len());
///         Ok(())
///     }
/// }
/// ```
#[async_trait]
#[diagnostic::on_unimplemented(note = "implement `RecordHandler` with `#[kcl_core::async_trait]` for your type")]
pub trait RecordHandler: Send + Sync {
    /// Handles a record. It is finished when this returns `Ok`. A record may come again after a
    /// crash, or after an error.
    ///
    /// # Errors
    /// [`ProcessError`] says what follows: a retry, the dead-letter queue, or a stop of the shard.
    async fn handle(&self, record: &Record, shard: &ShardContext) -> Result<(), ProcessError>;
}

/// Handles one message: a record's data as a value of a type. Given to [`WorkerBuilder::handler`](crate::WorkerBuilder::handler) in [`Json`].
///
/// ```
/// use kcl_core::{Json, MessageHandler, ProcessError, Record, ShardContext, Worker, async_trait};
///
/// #[derive(serde::Deserialize)]
/// struct Order {
///     id: u64,
/// }
///
/// struct Orders;
///
/// #[async_trait]
/// impl MessageHandler for Orders {
///     type Message = Order;
///
///     async fn handle(&self, order: Order, _record: &Record, _shard: &ShardContext) -> Result<(), ProcessError> {
///         println!("order {}", order.id);
///         Ok(())
///     }
/// }
///
/// let builder = Worker::builder("orders-app", "orders").handler(Json::new(Orders));
/// ```
#[async_trait]
pub trait MessageHandler: Send + Sync {
    /// What records hold.
    type Message: Send;

    /// Handles a message; `record` is what it was read from.
    ///
    /// # Errors
    /// As [`RecordHandler::handle`].
    async fn handle(&self, message: Self::Message, record: &Record, shard: &ShardContext) -> Result<(), ProcessError>;
}

/// Reads a record's data as a message of a type. The error says where it is wrong, and nothing of what is there.
pub trait Format<M>: Send + Sync {
    /// # Errors
    /// In words, without any part of the data: they are logged.
    fn read(data: &[u8]) -> Result<M, String>;
}

/// Data in JSON, by `serde`.
#[derive(Clone, Copy, Debug)]
pub struct JsonFormat;

impl<M: DeserializeOwned> Format<M> for JsonFormat {
    fn read(data: &[u8]) -> Result<M, String> {
        // The error's own words quote the data.
        serde_json::from_slice(data).map_err(|error| {
            let what = match error.classify() {
                serde_json::error::Category::Syntax => "no JSON",
                serde_json::error::Category::Eof => "JSON that ends too early",
                serde_json::error::Category::Data => "JSON that is not of the expected form",
                serde_json::error::Category::Io => "unreadable",
            };
            format!("the data is {what} (line {}, column {})", error.line(), error.column())
        })
    }
}

/// A handler of messages in some format, as a handler of records. Data that can't be read is poison: no retry.
pub struct Messages<H, F> {
    handler: H,
    format: PhantomData<fn() -> F>,
}

/// A handler of messages in JSON.
pub type Json<H> = Messages<H, JsonFormat>;

impl<H, F> Messages<H, F> {
    /// Reads data in this format for this handler.
    #[must_use]
    pub fn new(handler: H) -> Self {
        Self { handler, format: PhantomData }
    }
}

impl<H, F> fmt::Debug for Messages<H, F> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Messages").finish_non_exhaustive()
    }
}

#[async_trait]
impl<H, F> RecordHandler for Messages<H, F>
where
    H: MessageHandler,
    F: Format<H::Message>,
{
    async fn handle(&self, record: &Record, shard: &ShardContext) -> Result<(), ProcessError> {
        let message = F::read(record.data()).map_err(ProcessError::poison)?;
        self.handler.handle(message, record, shard).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(serde::Deserialize, Debug, PartialEq)]
    struct Order {
        id: u64,
    }

    fn read(data: &str) -> Result<Order, String> {
        JsonFormat::read(data.as_bytes())
    }

    #[test]
    fn what_is_wrong_with_data_is_told_without_the_data() {
        assert_eq!(read(r#"{"id": 7}"#), Ok(Order { id: 7 }));
        for (data, words) in [
            (r#"{"id": "secret"}"#, "the data is JSON that is not of the expected form (line 1, column 15)"),
            (r#"{"secret": 7}"#, "the data is JSON that is not of the expected form (line 1, column 13)"),
            ("secret", "the data is no JSON (line 1, column 1)"),
            (r#"{"id": "#, "the data is JSON that ends too early (line 1, column 7)"),
        ] {
            assert_eq!(read(data).unwrap_err(), words, "{data}");
        }
    }
}
