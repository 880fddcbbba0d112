//! The lease table in DynamoDB, in the Java library's format: its attributes, types and keys exactly, so that a fleet can
//! move over shard by shard and back.
//!
//! | module | owns |
//! |---|---|
//! | `attribute` | the attributes' names |
//! | `item` | a lease as an item and back |
//! | `expression` | conditional writes as expressions |
//! | `transact` | a conditional write and the items that go with it as one transaction |
//! | `provision` | the table itself: creation, checks, readiness |
//! | `error` | failures of the SDK as the table's errors |

mod attribute;
mod error;
mod expression;
mod item;
mod provision;
mod transact;

use std::collections::BTreeMap;
use std::sync::OnceLock;
use std::time::Duration;

use async_trait::async_trait;
use aws_sdk_dynamodb::Client;
use aws_sdk_dynamodb::config::retry::RetryConfig;
use aws_sdk_dynamodb::config::timeout::TimeoutConfig;
use aws_sdk_dynamodb::error::ProvideErrorMetadata;
use aws_sdk_dynamodb::operation::delete_item::DeleteItemError;
use aws_sdk_dynamodb::operation::update_item::UpdateItemError;
use aws_sdk_dynamodb::types::{ReturnValue, ReturnValuesOnConditionCheckFailure};
use futures::future::try_join_all;

use self::error::table_error;
use self::item::{Item, NoOwner, ReadItem};
use crate::entropy::Entropy;
use crate::lease::{Lease, ShardId};
use crate::table::{LeaseListing, LeaseTable, TableError, WriteOutcome};
use crate::transaction::{TransactItems, TransactOutcome};
use crate::write::LeaseWrite;

/// Time beyond the call's own in which credentials may be fetched: providers may run a program or ask another service.
const CREDENTIALS_TIMEOUT: Duration = Duration::from_secs(5);

/// The code of a conditional write that the row refused.
const CONDITION_FAILED: &str = "ConditionalCheckFailedException";

/// How a [`DynamoDbLeaseTable`] behaves, and how its table is made if there is none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TableOptions {
    /// How long one call may wait for a connection, and then for its answer. Keep it well below the lease duration: a renewal that
    /// hangs must fail while there is time for another one. A call that has to fetch credentials first may take 5 seconds more.
    /// Default: 2 seconds.
    pub call_timeout: Duration,
    /// How long [`ensure`](LeaseTable::ensure) waits for a table to become ready; one that it has just created gets a minute at least.
    /// Default: 10 minutes, as in the Java library.
    pub ready_timeout: Duration,
    /// Tags of a table that is created. Default: none. Needs the permission `dynamodb:TagResource`.
    pub tags: BTreeMap<String, String>,
    /// Whether a table that is created is protected from deletion. Default: no.
    pub deletion_protection: bool,
    /// Whether point-in-time recovery is turned on, if it is not yet. Default: no. Needs the permissions
    /// `dynamodb:DescribeContinuousBackups` and `dynamodb:UpdateContinuousBackups`.
    pub point_in_time_recovery: bool,
}

impl Default for TableOptions {
    fn default() -> Self {
        Self {
            call_timeout: Duration::from_secs(2),
            ready_timeout: Duration::from_secs(600),
            tags: BTreeMap::new(),
            deletion_protection: false,
            point_in_time_recovery: false,
        }
    }
}

/// A lease table in DynamoDB.
///
/// A table that it creates is billed on demand and has the index by owner that workers of the Java library need. An existing
/// one is used as it is (a missing index is asked for, not waited for), which needs no permission but `dynamodb:DescribeTable`,
/// `GetItem`, `PutItem`, `UpdateItem`, `DeleteItem` and `Scan`.
///
/// Refused: a table with another key, and a global table without multi-region strong consistency.
#[derive(Debug)]
pub struct DynamoDbLeaseTable {
    client: Client,
    table: String,
    options: TableOptions,
    entropy: Entropy,
    /// Parallel readers of a listing; known since the table was found ready. Sizes are told by DynamoDB every six hours or so, and
    /// a number that is too low only makes a listing slower, so it is not asked for again.
    scan_segments: OnceLock<i32>,
}

impl DynamoDbLeaseTable {
    /// The table of this name, reached with the client's region, endpoint, credentials and connections.
    ///
    /// The client's own retries and timeouts are not used: each call is one attempt, and whoever calls decides what an
    /// attempt without an answer means.
    #[must_use]
    pub fn new(client: &Client, table: impl Into<String>, options: TableOptions, entropy: &Entropy) -> Self {
        // Time-outs of connection and answer are the connector's and do not count the time in which credentials are fetched; a limit
        // on the operation alone would make credentials that take longer unusable for ever.
        let timeouts = TimeoutConfig::builder()
            .connect_timeout(options.call_timeout)
            .read_timeout(options.call_timeout)
            .operation_timeout(options.call_timeout + CREDENTIALS_TIMEOUT)
            .build();
        let config = client.config().to_builder().retry_config(RetryConfig::disabled()).timeout_config(timeouts).build();
        Self { client: Client::from_conf(config), table: table.into(), options, entropy: entropy.clone(), scan_segments: OnceLock::new() }
    }

    /// The table's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.table
    }

    /// One segment of a consistent scan, page by page.
    async fn scan_segment(&self, segment: i32, segments: i32) -> Result<Vec<Item>, TableError> {
        let mut items = Vec::new();
        let mut next = None;
        loop {
            let page = self.client.scan().table_name(&self.table).consistent_read(true).segment(segment).total_segments(segments);
            let page = page.set_exclusive_start_key(next).send().await;
            let page = page.map_err(|error| table_error(&self.table, "dynamodb:Scan", &error))?;
            items.extend(page.items.unwrap_or_default().into_iter().map(|item| item.into_iter().collect::<Item>()));
            // A page may be empty and not be the last.
            next = page.last_evaluated_key.filter(|key| !key.is_empty());
            if next.is_none() {
                return Ok(items);
            }
        }
    }

    fn unavailable(&self, operation: &'static str, message: &str) -> TableError {
        TableError::Unavailable { table: self.table.clone(), operation, message: message.to_owned() }
    }
}

#[async_trait]
impl LeaseTable for DynamoDbLeaseTable {
    async fn ensure(&self) -> Result<(), TableError> {
        self.ensure_ready().await
    }

    async fn list(&self) -> Result<LeaseListing, TableError> {
        let segments = *self.scan_segments.get().unwrap_or(&1);
        let items = try_join_all((0..segments).map(|segment| self.scan_segment(segment, segments))).await?;
        let mut listing = LeaseListing::default();
        for item in items.into_iter().flatten() {
            match item::read(&item) {
                ReadItem::Lease(lease) => listing.leases.push(*lease),
                ReadItem::Unreadable(unreadable) => listing.unreadable.push(unreadable),
                ReadItem::Foreign => {}
            }
        }
        listing.leases.sort_by(|a, b| a.shard_id.cmp(&b.shard_id));
        listing.unreadable.sort_by(|a, b| a.key.cmp(&b.key));
        Ok(listing)
    }

    async fn get(&self, shard_id: &ShardId) -> Result<Option<Lease>, TableError> {
        let request = self.client.get_item().table_name(&self.table).consistent_read(true);
        let got = request.key(attribute::LEASE_KEY, item::shard_id(shard_id)).send().await;
        let got = got.map_err(|error| table_error(&self.table, "dynamodb:GetItem", &error))?;
        let lease = got.item.and_then(|item| item::read(&item.into_iter().collect()).lease());
        Ok(lease.map(|lease| *lease))
    }

    async fn create(&self, lease: &Lease) -> Result<bool, TableError> {
        let request = self
            .client
            .put_item()
            .table_name(&self.table)
            .set_item(Some(item::write(lease).into_iter().collect()))
            .condition_expression("attribute_not_exists(#key)")
            .expression_attribute_names("#key", attribute::LEASE_KEY);
        match request.send().await {
            Ok(_) => Ok(true),
            Err(error) if error.code() == Some(CONDITION_FAILED) => Ok(false),
            Err(error) => Err(table_error(&self.table, "dynamodb:PutItem", &error)),
        }
    }

    async fn write(&self, write: &LeaseWrite) -> Result<WriteOutcome, TableError> {
        match self.update(write, &NoOwner::default()).await? {
            // The row is as expected, but says in an odd way that it has no owner. Nobody else repairs it.
            Updated::Refused(Some(item)) if is_expected(write, &item) => match NoOwner::odd_in(&item) {
                Some(odd) => Ok(self.update(write, &odd).await?.outcome(write)),
                None => Ok(Updated::Refused(Some(item)).outcome(write)),
            },
            updated => Ok(updated.outcome(write)),
        }
    }

    async fn transact(&self, write: &LeaseWrite, with: &TransactItems) -> Result<TransactOutcome, TableError> {
        self.transact_write(write, with).await
    }

    async fn delete(&self, seen: &Lease) -> Result<bool, TableError> {
        match self.delete_as(seen, &NoOwner::default()).await? {
            Deleted::Refused(Some(item)) => match NoOwner::odd_in(&item) {
                Some(odd) => Ok(matches!(self.delete_as(seen, &odd).await?, Deleted::Gone)),
                None => Ok(false),
            },
            Deleted::Refused(None) => Ok(false),
            Deleted::Gone => Ok(true),
        }
    }
}

/// The answer to one attempt at a conditional write.
enum Updated {
    /// The item as the write made it.
    Written(Item),
    /// The item that refused it, if there is one.
    Refused(Option<Item>),
}

impl Updated {
    // An item that was a lease when it was last seen and can't be read now was spoilt by hand in between. It is answered like one
    // that is gone, whether the write is in effect or not: nobody can take or keep such a lease until it is repaired, so
    // its owner has to let go, and what it owned is judged by the counter once the item is readable again.
    fn outcome(self, write: &LeaseWrite) -> WriteOutcome {
        match self {
            Self::Written(item) => item::read(&item).lease().map_or(WriteOutcome::Refused(None), WriteOutcome::Applied),
            Self::Refused(item) => match item.and_then(|item| item::read(&item).lease()) {
                Some(row) if write.is_in_effect(&row) => WriteOutcome::Applied(row),
                row => WriteOutcome::Refused(row),
            },
        }
    }
}

/// Whether the write expects this row.
fn is_expected(write: &LeaseWrite, item: &Item) -> bool {
    item::read(item).lease().is_some_and(|row| write.apply(&row).is_some())
}

/// The answer to one attempt at a deletion.
enum Deleted {
    Gone,
    /// The item that refused it, if the table shows it.
    Refused(Option<Item>),
}

impl DynamoDbLeaseTable {
    async fn update(&self, write: &LeaseWrite, no_owner: &NoOwner) -> Result<Updated, TableError> {
        let expression = expression::of_write(write, no_owner);
        let request = self
            .client
            .update_item()
            .table_name(&self.table)
            .key(attribute::LEASE_KEY, item::shard_id(&write.shard_id))
            .condition_expression(expression.condition)
            .update_expression(expression.update)
            .set_expression_attribute_names(Some(expression.names.into_iter().collect()))
            .set_expression_attribute_values(Some(expression.values.into_iter().collect()))
            .return_values(ReturnValue::AllNew)
            .return_values_on_condition_check_failure(ReturnValuesOnConditionCheckFailure::AllOld);
        match request.send().await {
            Ok(updated) => Ok(Updated::Written(updated.attributes.unwrap_or_default().into_iter().collect())),
            Err(error) => match error.as_service_error() {
                Some(UpdateItemError::ConditionalCheckFailedException(refused)) => {
                    Ok(Updated::Refused(refused.item().map(|item| item.clone().into_iter().collect())))
                }
                _ => Err(table_error(&self.table, "dynamodb:UpdateItem", &error)),
            },
        }
    }

    async fn delete_as(&self, seen: &Lease, no_owner: &NoOwner) -> Result<Deleted, TableError> {
        let expression = expression::of_deletion(seen, no_owner);
        let request = self
            .client
            .delete_item()
            .table_name(&self.table)
            .key(attribute::LEASE_KEY, item::shard_id(&seen.shard_id))
            .condition_expression(expression.condition)
            .set_expression_attribute_names(Some(expression.names.into_iter().collect()))
            .set_expression_attribute_values(Some(expression.values.into_iter().collect()))
            .return_values_on_condition_check_failure(ReturnValuesOnConditionCheckFailure::AllOld);
        match request.send().await {
            Ok(_) => Ok(Deleted::Gone),
            Err(error) => match error.as_service_error() {
                Some(DeleteItemError::ConditionalCheckFailedException(refused)) => {
                    Ok(Deleted::Refused(refused.item().map(|item| item.clone().into_iter().collect())))
                }
                _ => Err(table_error(&self.table, "dynamodb:DeleteItem", &error)),
            },
        }
    }
}
