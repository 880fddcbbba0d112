//! Tables of items beside the leases, for transactions in memory: as little of DynamoDB as tests of processors need.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use aws_sdk_dynamodb::types::{AttributeValue, Put, TransactWriteItem};

use crate::transaction::{RefusedItem, TransactItems};

/// An item: its attributes by name.
pub type Item = BTreeMap<String, AttributeValue>;

/// Tables of items in this process's memory. Clones share them.
///
/// Transactions may put items, without a condition or under the condition that there is none of this key (`attribute_not_exists` of one of the
/// key's attributes). All else is refused in words: it needs DynamoDB, or `kcl-local`.
#[derive(Clone, Debug, Default)]
pub struct InMemoryItems(Arc<Mutex<BTreeMap<String, Table>>>);

#[derive(Debug)]
struct Table {
    key: Vec<String>,
    items: BTreeMap<Key, Item>,
}

/// The values of an item's key, made comparable.
type Key = Vec<KeyPart>;

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum KeyPart {
    Text(String),
    Number(String),
    Bytes(Vec<u8>),
}

/// Why items were not written.
#[derive(Debug, PartialEq)]
pub(super) enum NotWritten {
    /// Conditions do not hold.
    Refused(Vec<RefusedItem>),
    /// The request is wrong, or more than memory can do.
    Wrong(String),
}

/// Items that may be written: each with its table and key.
type Checked = Vec<(String, Key, Item)>;

impl InMemoryItems {
    /// Makes a table whose items are told apart by these attributes: a partition key, and a sort key if there are two. One that exists stays as it is.
    pub fn create_table(&self, name: &str, key: &[&str]) {
        let key = key.iter().map(ToString::to_string).collect();
        self.tables().entry(name.to_owned()).or_insert_with(|| Table { key, items: BTreeMap::new() });
    }

    /// The items of a table, in the order of their keys; none if there is no such table.
    #[must_use]
    pub fn items(&self, table: &str) -> Vec<Item> {
        self.tables().get(table).map(|table| table.items.values().cloned().collect()).unwrap_or_default()
    }

    /// Writes all items, or none.
    pub(super) fn write(&self, with: &TransactItems) -> Result<(), NotWritten> {
        // Tables are shared between lease tables: they are locked from the check to the end.
        let mut tables = self.tables();
        for (name, key, item) in check(&tables, with)? {
            if let Some(table) = tables.get_mut(&name) {
                table.items.insert(key, item);
            }
        }
        Ok(())
    }

    fn tables(&self) -> MutexGuard<'_, BTreeMap<String, Table>> {
        // Each change is one insertion, and insertions do not panic: nothing is left half done.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What the items would come to, all or none.
fn check(tables: &BTreeMap<String, Table>, with: &TransactItems) -> Result<Checked, NotWritten> {
    let (mut checked, mut refused) = (Checked::new(), Vec::new());
    for (index, item) in with.as_slice().iter().enumerate() {
        let (put, must_be_new) = understood(item).map_err(|words| NotWritten::Wrong(format!("item {index}: {words}")))?;
        let table = tables.get(put.table_name());
        let table = table.ok_or_else(|| NotWritten::Wrong(format!("item {index}: there is no table `{}`", put.table_name())))?;
        let attributes: Item = put.item().iter().map(|(name, value)| (name.clone(), value.clone())).collect();
        let key = table.key_of(&attributes).map_err(|words| NotWritten::Wrong(format!("item {index}: {words}")))?;
        if let Some(attribute) = must_be_new {
            if !table.key.contains(&attribute) {
                return Err(NotWritten::Wrong(format!(
                    "item {index}: `{attribute}` is not in the key, and memory knows no other condition"
                )));
            }
            if table.items.contains_key(&key) {
                refused.push(RefusedItem::new(index, "ConditionalCheckFailed", Some("The conditional request failed".to_owned())));
            }
        }
        if checked.iter().any(|(name, other, _)| name == put.table_name() && *other == key) {
            return Err(NotWritten::Wrong("Transaction request cannot include multiple operations on one item".to_owned()));
        }
        checked.push((put.table_name().to_owned(), key, attributes));
    }
    if refused.is_empty() { Ok(checked) } else { Err(NotWritten::Refused(refused)) }
}

impl Table {
    fn key_of(&self, item: &Item) -> Result<Key, String> {
        let part = |name: &String| match item.get(name) {
            Some(AttributeValue::S(text)) => Ok(KeyPart::Text(text.clone())),
            Some(AttributeValue::N(number)) => Ok(KeyPart::Number(number.clone())),
            Some(AttributeValue::B(bytes)) => Ok(KeyPart::Bytes(bytes.as_ref().to_vec())),
            Some(_) => Err(format!("key attribute `{name}` must be a string, a number or bytes")),
            None => Err(format!("key attribute `{name}` is missing")),
        };
        self.key.iter().map(part).collect()
    }
}

/// The put, and the attribute that no item with its key may have, if it says so.
fn understood(item: &TransactWriteItem) -> Result<(&Put, Option<String>), String> {
    let only_puts = || "a table in memory supports only puts; use DynamoDB, or kcl-local, for the rest".to_owned();
    let put = item.put().ok_or_else(only_puts)?;
    let Some(condition) = put.condition_expression() else { return Ok((put, None)) };
    let inner = condition.trim().strip_prefix("attribute_not_exists").map(str::trim);
    let name = inner.and_then(|inner| inner.strip_prefix('(')).and_then(|inner| inner.strip_suffix(')')).map(str::trim);
    let name = name.filter(|name| name.chars().all(|c| c.is_alphanumeric() || "#_-.".contains(c)));
    let name =
        name.ok_or_else(|| format!("a table in memory supports the condition `attribute_not_exists(key)` alone, not `{condition}`"))?;
    if !name.starts_with('#') {
        return Ok((put, Some(name.to_owned())));
    }
    let meaning = put.expression_attribute_names().and_then(|names| names.get(name));
    let meaning = meaning.ok_or_else(|| format!("the placeholder `{name}` has no meaning"))?;
    Ok((put, Some(meaning.clone())))
}

#[cfg(test)]
mod tests {
    use aws_sdk_dynamodb::types::Delete;

    use super::*;

    fn put(id: &str, condition: Option<&str>) -> TransactWriteItem {
        let put =
            Put::builder().table_name("t").item("id", AttributeValue::S(id.into())).set_condition_expression(condition.map(Into::into));
        TransactWriteItem::builder().put(put.expression_attribute_names("#id", "id").build().unwrap()).build()
    }

    fn write(items: &InMemoryItems, with: Vec<TransactWriteItem>) -> Result<(), NotWritten> {
        items.write(&TransactItems::new(with).unwrap())
    }

    fn wrong(result: Result<(), NotWritten>) -> String {
        match result {
            Err(NotWritten::Wrong(words)) => words,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn items_are_put_once_or_over_each_other() {
        let items = InMemoryItems::default();
        items.create_table("t", &["id"]);
        for condition in ["attribute_not_exists(id)", " attribute_not_exists( #id ) "] {
            let new = write(&items, vec![put("b", Some(condition)), put("a", None)]);
            if condition.starts_with('a') {
                new.unwrap();
                write(&items, vec![put("b", None)]).unwrap();
            } else {
                assert!(matches!(new, Err(NotWritten::Refused(refused)) if refused.len() == 1 && refused[0].index == 0));
            }
        }
        let ids: Vec<_> = items.items("t").iter().map(|item| item["id"].as_s().unwrap().clone()).collect();
        assert_eq!(ids, ["a", "b"]);
        assert_eq!(items.items("none"), []);
    }

    #[test]
    fn what_memory_can_not_do_is_refused_in_words() {
        let items = InMemoryItems::default();
        assert!(wrong(write(&items, vec![put("a", None)])).contains("no table `t`"));
        items.create_table("t", &["id"]);
        assert!(wrong(write(&items, vec![put("a", Some("id = :x"))])).contains("attribute_not_exists(key)"));
        assert!(wrong(write(&items, vec![put("a", Some("attribute_not_exists(other)"))])).contains("not in the key"));
        assert!(wrong(write(&items, vec![put("a", None), put("a", None)])).contains("multiple operations"));
        let delete = Delete::builder().table_name("t").key("id", AttributeValue::S("a".into())).build().unwrap();
        assert!(wrong(write(&items, vec![TransactWriteItem::builder().delete(delete).build()])).contains("only puts"));
    }
}
