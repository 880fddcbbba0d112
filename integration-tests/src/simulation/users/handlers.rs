//! Handlers: a record at a time, plain, or as a message in the user's own format.

use kcl_core::handler::{Format, Messages};
use kcl_core::{MessageHandler, ProcessError, Record, RecordHandler, ShardContext, async_trait};

use super::Tools;
use super::database::Row;
use crate::simulation::publisher::{Kind, kind_of};
use crate::simulation::users::A_BUG_OF_THE_SERVICE;

/// Stores each record.
pub(super) struct StoresRecords(pub(super) Tools);

#[async_trait]
impl RecordHandler for StoresRecords {
    async fn handle(&self, record: &Record, shard: &ShardContext) -> Result<(), ProcessError> {
        Ok(self.0.database.insert(shard, &[Row::from(record)]).await?)
    }
}

/// Stores each record, and checkpoints what it was given until now.
pub(super) struct StoresAndCheckpoints(pub(super) Tools);

#[async_trait]
impl RecordHandler for StoresAndCheckpoints {
    async fn handle(&self, record: &Record, shard: &ShardContext) -> Result<(), ProcessError> {
        self.0.database.insert(shard, &[Row::from(record)]).await?;
        Ok(shard.checkpointer().checkpoint().await?)
    }
}

/// The users' own format.
pub(super) struct OrderFormat;

impl Format<Kind> for OrderFormat {
    fn read(data: &[u8]) -> Result<Kind, String> {
        match kind_of(data) {
            Kind::Poison => Err("the order can't be read".to_owned()),
            Kind::Panicking => std::panic::panic_any(A_BUG_OF_THE_SERVICE),
            kind => Ok(kind),
        }
    }
}

/// Stores each message.
pub(super) struct StoresMessages(Tools);

impl StoresMessages {
    pub(super) fn new(tools: Tools) -> Messages<Self, OrderFormat> {
        Messages::new(Self(tools))
    }
}

#[async_trait]
impl MessageHandler for StoresMessages {
    type Message = Kind;

    async fn handle(&self, kind: Kind, record: &Record, shard: &ShardContext) -> Result<(), ProcessError> {
        let row = Row { position: record.position(), kind };
        Ok(self.0.database.insert(shard, &[row]).await?)
    }
}
