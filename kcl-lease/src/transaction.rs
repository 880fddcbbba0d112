//! What is written together with a checkpoint, in one transaction: the items, and the table's answer.

use aws_sdk_dynamodb::types::{AttributeValue, TransactWriteItem};

use crate::lease::Lease;

/// The most items in one transaction: DynamoDB takes 100 of them, and the lease is one.
pub const MOST_ITEMS: usize = 99;

/// Items of the user's own tables, to be written together with a lease, or not at all. Clones share them.
///
/// Their number is checked here. Their size, 4 MB in all, and that no item occurs twice, are the service's own checks.
#[derive(Clone, Debug, PartialEq)]
pub struct TransactItems(std::sync::Arc<[TransactWriteItem]>);

impl TransactItems {
    /// Up to [`MOST_ITEMS`] items, or none: then the lease is written alone.
    ///
    /// # Errors
    /// There are too many, or one of them does not say what to do.
    pub fn new(items: impl IntoIterator<Item = TransactWriteItem>) -> Result<Self, TransactItemsError> {
        let items: Vec<_> = items.into_iter().collect();
        if items.len() > MOST_ITEMS {
            return Err(TransactItemsError::TooMany { items: items.len() });
        }
        let does_nothing = |item: &TransactWriteItem| {
            item.put().is_none() && item.update().is_none() && item.delete().is_none() && item.condition_check().is_none()
        };
        match items.iter().position(does_nothing) {
            Some(index) => Err(TransactItemsError::Empty { index }),
            None => Ok(Self(items.into())),
        }
    }

    /// The items, in the order in which they were given.
    #[must_use]
    pub fn as_slice(&self) -> &[TransactWriteItem] {
        &self.0
    }
}

/// Why items can't be one transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TransactItemsError {
    /// There are more than [`MOST_ITEMS`].
    #[error("{items} items are too many for one transaction with the checkpoint, which takes {MOST_ITEMS}: commit fewer records at a time")]
    TooMany {
        /// How many there are.
        items: usize,
    },
    /// An item holds no operation.
    #[error("item {index} of the transaction is empty: it must hold a put, an update, a delete or a condition check")]
    Empty {
        /// Its place, from 0.
        index: usize,
    },
}

/// An item that refused its transaction.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct RefusedItem {
    /// Its place among the items that were given, from 0.
    pub index: usize,
    /// DynamoDB's code: `ConditionalCheckFailed`, `ValidationError` or `ItemCollectionSizeLimitExceeded`.
    pub code: String,
    /// DynamoDB's words.
    pub message: Option<String>,
    /// The item as it is, if the operation asked for it with `ReturnValuesOnConditionCheckFailure`, sorted by attribute.
    pub item: Option<std::collections::BTreeMap<String, AttributeValue>>,
}

impl RefusedItem {
    /// An item that was refused for this reason.
    #[must_use]
    pub fn new(index: usize, code: impl Into<String>, message: Option<String>) -> Self {
        Self { index, code: code.into(), message, item: None }
    }
}

/// The answer to one attempt at a transaction.
#[derive(Clone, Debug, PartialEq)]
#[must_use = "a refused transaction is a value, not an error"]
pub enum TransactOutcome {
    /// The lease and all items are written: now, or by an earlier attempt that the service remembers. The row that the transaction left is what
    /// the write makes of the row that it was made of. It may have changed since: the next write of the row tells.
    Applied,
    /// The row shows that an earlier attempt has written the lease and all items. The row as it is.
    Recognised(Box<Lease>),
    /// The row is not as expected: nothing is written. As [`WriteOutcome::Refused`](crate::WriteOutcome::Refused).
    LeaseRefused(Option<Box<Lease>>),
    /// Items were refused, in the order in which they were given: this attempt has written nothing. Of an earlier attempt without an answer, or one that is still on its
    /// way, it says nothing.
    ItemsRefused(Vec<RefusedItem>),
}

#[cfg(test)]
mod tests {
    use aws_sdk_dynamodb::types::Put;

    use super::*;

    fn put() -> TransactWriteItem {
        let put = Put::builder().table_name("t").item("k", AttributeValue::S("v".into())).build().unwrap();
        TransactWriteItem::builder().put(put).build()
    }

    #[test]
    fn a_transaction_has_at_most_99_items_that_say_what_to_do() {
        assert_eq!(TransactItems::new([]).unwrap().as_slice().len(), 0);
        assert_eq!(TransactItems::new(vec![put(); 99]).unwrap().as_slice().len(), 99);
        assert_eq!(TransactItems::new(vec![put(); 100]), Err(TransactItemsError::TooMany { items: 100 }));
        let idle = TransactWriteItem::builder().build();
        assert_eq!(TransactItems::new([put(), idle]), Err(TransactItemsError::Empty { index: 1 }));
    }
}
