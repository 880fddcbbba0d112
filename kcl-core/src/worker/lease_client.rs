//! The lease table as the lease thread reaches it: with a client that shares nothing with the
//! clients of the worker's runtime.
//!
//! Connections of the SDK's clients are driven by tasks on the runtime that opened them. While that
//! runtime is blocked, whoever shares them waits for ever; the same holds for a fetch of
//! credentials. So the lease thread has a client with connections and credentials
//! ([`LeaseCredentials`]) of its own.

use std::sync::Arc;
use std::time::Duration;

use aws_config::SdkConfig;
use aws_sdk_dynamodb::Client;
use aws_sdk_dynamodb::config::{Builder, IdentityCache, SharedCredentialsProvider};
use kcl_lease::dynamodb::TableOptions;
use kcl_lease::term::LeaseTiming;
use kcl_lease::{Clock, DynamoDbLeaseTable, Entropy, LeaseTable};

use super::builder::WorkerBuilder;
use super::checks::usable;
use super::lease_credentials::LeaseCredentials;
use crate::error::ConfigError;

impl WorkerBuilder {
    /// The lease table for the lease thread. The user's own port is used as it is.
    pub(super) fn table_of_lease_thread(&self, timing: &LeaseTiming, entropy: &Entropy) -> Result<Arc<dyn LeaseTable>, ConfigError> {
        if let Some(table) = &self.lease_table {
            return Ok(Arc::clone(table));
        }
        let call_timeout = own_pool(timing.call_timeout());
        let client = client(usable(self.aws.as_ref())?, &self.clock);
        let name = self.table_name.as_ref().unwrap_or(&self.application);
        let options = TableOptions { call_timeout, ..self.table_options.clone() };
        Ok(Arc::new(DynamoDbLeaseTable::new(&client, name, options, entropy)))
    }
}

/// A call timeout that no other client of the worker has.
///
/// Without an HTTP client in the configuration each client of the SDK makes one of its own. One
/// that is set there, for a proxy or certificates, is shared by all. The SDK's own kind of HTTP
/// client keeps a pool of connections for each pair of timeouts, so that this gives the lease
/// thread its own.
fn own_pool(call_timeout: Duration) -> Duration {
    call_timeout - Duration::from_millis(1)
}

fn client(config: &SdkConfig, clock: &Arc<dyn Clock>) -> Client {
    let mut builder = Builder::from(config);
    if let Some(provider) = config.credentials_provider() {
        let credentials = LeaseCredentials::new(provider, Arc::clone(clock));
        // They are kept by the provider itself.
        builder = builder.credentials_provider(SharedCredentialsProvider::new(credentials)).identity_cache(IdentityCache::no_cache());
    }
    Client::from_conf(builder.build())
}
