//! DynamoDB: dynoxide's in-memory database, called in process.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use dynoxide::{Database, DynoxideError};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::Semaphore;
use tokio::task::spawn_blocking;

use super::answer::Answer;

/// Calls in the database at a time. It is one SQLite connection under one lock, so a second call can do no more than
/// read its request meanwhile; the rest wait in the order of their arrival instead of each holding a thread.
const CALLS_AT_A_TIME: usize = 2;

/// An in-memory DynamoDB.
#[derive(Clone)]
pub(super) struct DynamoDb {
    database: Database,
    turns: Arc<Semaphore>,
}

impl DynamoDb {
    /// An empty database, gone with its last handle.
    pub(super) fn memory() -> Result<Self, DynoxideError> {
        Ok(Self { database: Database::memory()?, turns: Arc::new(Semaphore::new(CALLS_AT_A_TIME)) })
    }

    /// One call of the JSON protocol.
    ///
    /// Cancel safety: a call that waits for its turn is not applied, one that has begun is applied whole.
    pub(super) async fn call(&self, operation: &str, body: Bytes) -> Answer {
        let turn = Arc::clone(&self.turns).acquire_owned().await.expect("the semaphore is never closed");
        let (database, operation) = (self.database.clone(), operation.to_owned());
        // SQLite blocks its thread, which must not be one that drives the server's connections.
        let called = spawn_blocking(move || {
            let _turn = turn;
            dispatch(&database, &operation, &body)
        });
        called.await.unwrap_or_else(|_| Answer::error(500, "InternalServerError", "the local database failed"))
    }
}

impl fmt::Debug for DynamoDb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DynamoDb").finish_non_exhaustive()
    }
}

fn dispatch(db: &Database, operation: &str, body: &[u8]) -> Answer {
    match operation {
        "CreateTable" => run(body, |request| db.create_table(request)),
        "DeleteTable" => run(body, |request| db.delete_table(request)),
        "DescribeTable" => run(body, |request| db.describe_table(request)),
        "ListTables" => run(body, |request| db.list_tables(request)),
        "UpdateTable" => run(body, |request| db.update_table(request)),
        "PutItem" => run(body, |request| db.put_item(request)),
        "GetItem" => run(body, |request| db.get_item(request)),
        "DeleteItem" => run(body, |request| db.delete_item(request)),
        "UpdateItem" => run(body, |request| db.update_item(request)),
        "Query" => run(body, |request| db.query(request)),
        "Scan" => run(body, |request| db.scan(request)),
        "BatchGetItem" => run(body, |request| db.batch_get_item(request)),
        "BatchWriteItem" => run(body, |request| db.batch_write_item(request)),
        "TransactWriteItems" => run(body, |request| db.transact_write_items(request)),
        "TransactGetItems" => run(body, |request| db.transact_get_items(request)),
        "UpdateTimeToLive" => run(body, |request| db.update_time_to_live(request)),
        "DescribeTimeToLive" => run(body, |request| db.describe_time_to_live(request)),
        "TagResource" => run(body, |request| db.tag_resource(request)),
        "UntagResource" => run(body, |request| db.untag_resource(request)),
        "ListTagsOfResource" => run(body, |request| db.list_tags_of_resource(request)),
        _ => Answer::error(
            400,
            "com.amazon.coral.service#UnknownOperationException",
            &format!("kcl-local's DynamoDB has no operation {operation}"),
        ),
    }
}

fn run<Q: DeserializeOwned, R: Serialize>(body: &[u8], call: impl FnOnce(Q) -> Result<R, DynoxideError>) -> Answer {
    let request = match serde_json::from_slice(body) {
        Ok(request) => request,
        Err(error) => return failed(&unreadable(&error.to_string())),
    };
    match call(request) {
        Ok(response) => match serde_json::to_vec(&response) {
            Ok(json) => Answer::ok(json),
            Err(error) => failed(&DynoxideError::InternalServerError(error.to_string())),
        },
        Err(error) => failed(&error),
    }
}

fn failed(error: &DynoxideError) -> Answer {
    Answer { status: error.status_code(), ..Answer::ok(error.to_json()) }
}

/// The error for a request that could not be read. The crate's own readers of requests mark what kind it is by the
/// beginning of the message; what serde says of itself is a missing or empty member, or else a wrong type.
fn unreadable(message: &str) -> DynoxideError {
    let text = message.split(" at line ").next().unwrap_or(message);
    match text.split_once(':') {
        Some(("VALIDATION" | "VALIDATION_REQUEST" | "VALIDATION_AS_READ", rest)) => DynoxideError::ValidationException(rest.to_owned()),
        Some(("SERIALIZATION" | "SERIALIZATION_AS_READ", rest)) => DynoxideError::SerializationException(rest.to_owned()),
        _ if ["missing field", "unknown variant", "invalid type: null", "AttributeValue"].iter().any(|part| text.contains(part)) => {
            DynoxideError::ValidationException(text.to_owned())
        }
        _ => DynoxideError::SerializationException(text.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unreadable_request_is_the_callers_mistake() {
        let db = Database::memory().unwrap();
        for (operation, body, code) in [
            ("DescribeTable", "not json", "SerializationException"),
            ("DescribeTable", r#"{"TableName": 7}"#, "SerializationException"),
            ("GetItem", r#"{"TableName":"leases","Key":{"leaseKey":{}}}"#, "ValidationException"),
            ("GetItem", r#"{"TableName":"leases","Key":{"leaseKey":{"S":"a"}}}"#, "ResourceNotFoundException"),
            ("MakeCoffee", "{}", "UnknownOperationException"),
        ] {
            let answer = dispatch(&db, operation, body.as_bytes());
            let body = String::from_utf8(answer.body.to_vec()).unwrap();
            assert_eq!(answer.status, 400, "{operation}: {body}");
            assert!(body.contains(code), "{operation}: {body}");
        }
    }
}
