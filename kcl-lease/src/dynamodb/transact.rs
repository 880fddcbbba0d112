//! A conditional write of a lease and the items that go with it, as one `TransactWriteItems`.

use aws_sdk_dynamodb::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_dynamodb::operation::transact_write_items::TransactWriteItemsError;
use aws_sdk_dynamodb::types::{CancellationReason, ReturnValuesOnConditionCheckFailure, TransactWriteItem, Update};

use super::error::table_error;
use super::item::NoOwner;
use super::{DynamoDbLeaseTable, attribute, expression, item};
use crate::table::TableError;
use crate::transaction::{RefusedItem, TransactItems, TransactOutcome};
use crate::write::LeaseWrite;

const OPERATION: &str = "dynamodb:TransactWriteItems";

impl DynamoDbLeaseTable {
    pub(super) async fn transact_write(&self, write: &LeaseWrite, with: &TransactItems) -> Result<TransactOutcome, TableError> {
        if let Some(index) = with.as_slice().iter().position(|item| table_of(item).is_some_and(|table| is_table(table, &self.table))) {
            return Err(self.rejected(format!("item {index} is in the lease table itself, whose rows are not for others to write")));
        }
        let lease = self.lease_update(write).map_err(|error| self.rejected(error.to_string()))?;
        let items = std::iter::once(TransactWriteItem::builder().update(lease).build()).chain(with.as_slice().iter().cloned());
        // A repetition within ten minutes is answered by the service without being carried out, whatever has become of the row. After that its
        // condition refuses it.
        let request = self.client.transact_write_items().set_transact_items(Some(items.collect()));
        let request = request.set_client_request_token(write.write_id.map(|id| id.to_string()));
        match request.send().await {
            Ok(_) => Ok(TransactOutcome::Applied),
            Err(error) => match cancelled(&error) {
                Some(reasons) => outcome(reasons, write).map_err(|busy| match busy {
                    Busy::Throttled => TableError::Throttled { table: self.table.clone(), operation: OPERATION },
                    Busy::Conflict(words) => self.unavailable(OPERATION, &words),
                    Busy::Never(words) => self.rejected(words),
                }),
                None => Err(match table_error(&self.table, OPERATION, &error) {
                    // Whichever of the tables it is: the lease table's own calls tell if it is that one.
                    TableError::NotFound { .. } => {
                        let words = error.as_service_error().and_then(ProvideErrorMetadata::message).unwrap_or("it is not said which");
                        self.rejected(format!("a table of the transaction does not exist: {words}"))
                    }
                    other => other,
                }),
            },
        }
    }

    fn lease_update(&self, write: &LeaseWrite) -> Result<Update, aws_sdk_dynamodb::error::BuildError> {
        let expression = expression::of_write(write, &NoOwner::default());
        Update::builder()
            .table_name(&self.table)
            .key(attribute::LEASE_KEY, item::shard_id(&write.shard_id))
            .condition_expression(expression.condition)
            .update_expression(expression.update)
            .set_expression_attribute_names(Some(expression.names.into_iter().collect()))
            .set_expression_attribute_values(Some(expression.values.into_iter().collect()))
            .return_values_on_condition_check_failure(ReturnValuesOnConditionCheckFailure::AllOld)
            .build()
    }

    fn rejected(&self, message: String) -> TableError {
        TableError::Rejected { table: self.table.clone(), operation: OPERATION, message }
    }
}

/// The table that an item's operation is about.
fn table_of(item: &TransactWriteItem) -> Option<&str> {
    let put = item.put().map(|put| put.table_name());
    let update = || item.update().map(|update| update.table_name());
    let delete = || item.delete().map(|delete| delete.table_name());
    let check = || item.condition_check().map(|check| check.table_name());
    put.or_else(update).or_else(delete).or_else(check)
}

/// Whether a table's name, or its ARN, is that of this one.
fn is_table(name_or_arn: &str, table: &str) -> bool {
    name_or_arn.rsplit_once(":table/").map_or(name_or_arn, |(_, name)| name) == table
}

fn cancelled(error: &SdkError<TransactWriteItemsError>) -> Option<&[CancellationReason]> {
    match error.as_service_error()? {
        // Without reasons nothing can be told of it; it is refused as wrong, which is settled like any other refusal.
        TransactWriteItemsError::TransactionCanceledException(cancelled) => {
            Some(cancelled.cancellation_reasons()).filter(|all| !all.is_empty())
        }
        _ => None,
    }
}

/// Why a transaction was not tried: the next attempt may pass, or none ever will.
#[derive(Debug, PartialEq)]
enum Busy {
    Throttled,
    Conflict(String),
    Never(String),
}

/// What the reasons of a cancelled transaction mean: one for each item, the lease first.
fn outcome(reasons: &[CancellationReason], write: &LeaseWrite) -> Result<TransactOutcome, Busy> {
    let code = |reason: &CancellationReason| reason.code().unwrap_or_default().to_owned();
    let Some((lease, items)) = reasons.split_first() else { return Err(Busy::Never("it was cancelled without a reason".to_owned())) };
    // The row comes first: if it shows that an earlier attempt is in effect, what the items say of this one means nothing.
    if code(lease) == "ConditionalCheckFailed" {
        let row = lease.item().and_then(|item| item::read(&item.clone().into_iter().collect()).lease());
        return Ok(match row {
            Some(row) if write.is_in_effect(&row) => TransactOutcome::Recognised(row),
            row => TransactOutcome::LeaseRefused(row),
        });
    }
    let refused = |reason: &CancellationReason| !matches!(code(reason).as_str(), "" | "None") && !is_busy(reason);
    let all_refused: Vec<_> = items
        .iter()
        .enumerate()
        .filter(|(_, reason)| refused(reason))
        .map(|(index, reason)| RefusedItem {
            item: reason.item().map(|item| item.clone().into_iter().collect()),
            ..RefusedItem::new(index, code(reason), reason.message().map(ToOwned::to_owned))
        })
        .collect();
    // What is refused is refused, whoever else is writing other items.
    if !all_refused.is_empty() {
        return Ok(TransactOutcome::ItemsRefused(all_refused));
    }
    if refused(lease) {
        return Err(Busy::Never(format!("the lease was refused: {}: {}", code(lease), lease.message().unwrap_or_default())));
    }
    Err(match reasons.iter().map(code).find(|code| code.contains("Conflict") || code.contains("InProgress")) {
        Some(code) => Busy::Conflict(format!("{code}: another write of one of the items is under way")),
        None => Busy::Throttled,
    })
}

/// Whether an item was not looked at for now: by "CancellationReasons" of the DynamoDB documentation.
fn is_busy(reason: &CancellationReason) -> bool {
    matches!(
        reason.code(),
        Some(
            "TransactionConflict"
                | "TransactionInProgress"
                | "ProvisionedThroughputExceeded"
                | "ThrottlingError"
                | "ThrottlingException"
                | "RequestLimitExceeded"
        )
    )
}

#[cfg(test)]
mod tests {
    use kcl_checkpoint::Checkpoint;

    use super::*;
    use crate::lease::Lease;
    use crate::write::WriteId;

    fn held() -> Lease {
        Lease { owner: Some("a".into()), counter: 7, ..Lease::new("shardId-000000000000".into(), Checkpoint::TrimHorizon) }
    }

    fn write() -> LeaseWrite {
        LeaseWrite::renew(&held(), WriteId(1))
    }

    fn reason(code: &str, row: Option<&Lease>) -> CancellationReason {
        let item = row.map(|row| item::write(row).into_iter().collect());
        CancellationReason::builder().code(code).set_item(item).build()
    }

    /// What the reasons with these codes mean, the lease's first.
    fn told(codes: &[&str], row: Option<&Lease>) -> String {
        let (lease, items) = codes.split_first().unwrap();
        let reasons: Vec<_> = std::iter::once(reason(lease, row)).chain(items.iter().map(|code| reason(code, None))).collect();
        match outcome(&reasons, &write()) {
            Ok(TransactOutcome::Applied) => "applied".to_owned(),
            Ok(TransactOutcome::Recognised(row)) => format!("recognised {}", row.counter),
            Ok(TransactOutcome::LeaseRefused(row)) => format!("lease refused {:?}", row.map(|row| row.counter)),
            Ok(TransactOutcome::ItemsRefused(items)) => format!("items {:?}", items.iter().map(|item| item.index).collect::<Vec<_>>()),
            Err(busy) => format!("{busy:?}").split('(').next().unwrap_or_default().to_owned(),
        }
    }

    #[test]
    fn what_the_reasons_of_a_cancelled_transaction_mean() {
        let (failed, ours) = ("ConditionalCheckFailed", write().apply(&held()).unwrap());
        let stranger = Lease { counter: 9, ..held() };
        for (codes, row, expected) in [
            (vec!["None", failed], None, "items [0]"),
            (vec!["None", "None", "ValidationError"], None, "items [1]"),
            (vec![failed, "None"], Some(&stranger), "lease refused Some(9)"),
            (vec![failed, failed], None, "lease refused None"),
            // the items of a transaction that is in effect refuse its repetition as well
            (vec![failed, failed], Some(&ours), "recognised 8"),
            (vec!["TransactionConflict", "None"], None, "Conflict"),
            (vec!["None", "TransactionConflict"], None, "Conflict"),
            (vec!["None", "ThrottlingError"], None, "Throttled"),
            (vec!["ProvisionedThroughputExceeded", "None"], None, "Throttled"),
            (vec!["TransactionConflict", failed], None, "items [0]"),
            (vec!["ValidationError", "None"], None, "Never"),
        ] {
            assert_eq!(told(&codes, row), expected, "{codes:?}");
        }
    }

    #[test]
    fn a_table_is_known_by_its_name_and_by_its_arn() {
        assert!(is_table("leases", "leases"));
        assert!(is_table("arn:aws:dynamodb:eu-west-1:123456789012:table/leases", "leases"));
        assert!(!is_table("leases-2", "leases") && !is_table("arn:aws:dynamodb:eu-west-1:123456789012:table/other", "leases"));
    }
}
