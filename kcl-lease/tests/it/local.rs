//! A DynamoDB in this process, served on the loopback interface.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use aws_credential_types::Credentials;
use aws_sdk_dynamodb::Client;
use aws_sdk_dynamodb::config::{BehaviorVersion, Region};
use aws_sdk_dynamodb::types::{
    AttributeDefinition, AttributeValue, BillingMode, KeySchemaElement, KeyType, ScalarAttributeType, TableDescription,
};
use kcl_lease::{DynamoDbLeaseTable, Entropy, LeaseTable, TableOptions};
use tokio::net::TcpListener;
use tokio::task::JoinSet;

/// An item as it is on the wire.
pub(crate) type RawItem = BTreeMap<String, AttributeValue>;

/// An empty DynamoDB, gone when dropped.
pub(crate) struct LocalDynamoDb {
    client: Client,
    tables: AtomicU32,
    _server: JoinSet<()>,
}

impl LocalDynamoDb {
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let database = dynoxide::Database::memory().unwrap();
        let mut server = JoinSet::new();
        server.spawn(dynoxide::server::serve_on(listener, database));
        Self { client: client(address), tables: AtomicU32::new(0), _server: server }
    }

    /// A client as an application would make it, with the SDK's own retries and timeouts.
    pub(crate) fn client(&self) -> &Client {
        &self.client
    }

    /// A lease table's adapter; the table need not exist.
    pub(crate) fn lease_table(&self, name: &str) -> DynamoDbLeaseTable {
        lease_table(&self.client, name)
    }

    /// A new, empty lease table.
    pub(crate) async fn new_lease_table(&self) -> DynamoDbLeaseTable {
        let table = self.lease_table(&format!("leases-{}", self.tables.fetch_add(1, Ordering::Relaxed)));
        table.ensure().await.unwrap();
        table
    }

    /// A new, empty lease table without the index by owner, as version 2 of the Java library made it: an
    /// owner may be anything in it.
    pub(crate) async fn new_table_without_index(&self) -> DynamoDbLeaseTable {
        let name = format!("leases-{}", self.tables.fetch_add(1, Ordering::Relaxed));
        self.make_table(&name, &[("leaseKey", KeyType::Hash)]).await;
        self.lease_table(&name)
    }

    /// Makes a table with these keys, all of type S.
    pub(crate) async fn make_table(&self, name: &str, keys: &[(&str, KeyType)]) {
        let mut request = self.client.create_table().table_name(name).billing_mode(BillingMode::PayPerRequest);
        for (key, key_type) in keys {
            let definition = AttributeDefinition::builder().attribute_name(*key).attribute_type(ScalarAttributeType::S).build().unwrap();
            let element = KeySchemaElement::builder().attribute_name(*key).key_type(key_type.clone()).build().unwrap();
            request = request.attribute_definitions(definition).key_schema(element);
        }
        request.send().await.unwrap();
    }

    pub(crate) async fn describe(&self, table: &str) -> TableDescription {
        self.client.describe_table().table_name(table).send().await.unwrap().table.unwrap()
    }

    /// Writes an item as it is.
    pub(crate) async fn put_item(&self, table: &DynamoDbLeaseTable, item: RawItem) {
        self.client.put_item().table_name(table.name()).set_item(Some(item.into_iter().collect())).send().await.unwrap();
    }

    /// Reads an item as it is.
    pub(crate) async fn item(&self, table: &DynamoDbLeaseTable, key: &str) -> Option<RawItem> {
        let request = self.client.get_item().table_name(table.name()).consistent_read(true);
        let got = request.key("leaseKey", s(key)).send().await.unwrap();
        got.item.map(|item| item.into_iter().collect())
    }
}

/// A client of the server at this address.
pub(crate) fn client(address: SocketAddr) -> Client {
    let config = aws_sdk_dynamodb::Config::builder()
        .behavior_version(BehaviorVersion::latest())
        .region(Region::new("us-east-1"))
        .endpoint_url(format!("http://{address}"))
        .credentials_provider(Credentials::new("test", "test", None, None, "test"))
        .build();
    Client::from_conf(config)
}

pub(crate) fn lease_table(client: &Client, name: &str) -> DynamoDbLeaseTable {
    // Patient with a busy machine: hundreds of calls wait for one database.
    let options = TableOptions { call_timeout: Duration::from_secs(60), ..TableOptions::default() };
    DynamoDbLeaseTable::new(client, name, options, &Entropy::from_seed(1))
}

pub(crate) fn s(text: &str) -> AttributeValue {
    AttributeValue::S(text.to_owned())
}

pub(crate) fn n(number: &str) -> AttributeValue {
    AttributeValue::N(number.to_owned())
}

pub(crate) fn ss(texts: &[&str]) -> AttributeValue {
    AttributeValue::Ss(texts.iter().map(ToString::to_string).collect())
}

pub(crate) fn raw_item<const N: usize>(attributes: [(&str, AttributeValue); N]) -> RawItem {
    attributes.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}

/// A lease as the Java library's version 3.5 writes it when it has been processed for a while.
pub(crate) fn java_lease(key: &str) -> RawItem {
    raw_item([
        ("leaseKey", s(key)),
        ("entityType", s("LEASE")),
        ("leaseOwner", s("java-worker")),
        ("leaseCounter", n("4711")),
        ("ownerSwitchesSinceCheckpoint", n("1")),
        ("checkpoint", s("49590338271490256608559692538361571095921575989136588898")),
        ("checkpointSubSequenceNumber", n("0")),
        ("parentShardId", ss(&["shardId-000000000000", "shardId-000000000001"])),
        ("startingHashKey", s("0")),
        ("endingHashKey", s("170141183460469231731687303715884105727")),
        ("throughputKBps", n("12.75")),
    ])
}
