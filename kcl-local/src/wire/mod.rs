//! AWS on one loopback port: the model of Kinesis, DynamoDB, SQS and S3, with faults on request.
//!
//! [`LocalAws`] owns the server. It speaks HTTP/1.1 and, to clients that begin with it, HTTP/2 without TLS. Signatures
//! are not checked, regions and accounts of requests not regarded.
//!
//! | part | owns |
//! |---|---|
//! | `server` | connections; a request from arrival to answer |
//! | `service`, `answer` | how a request names its service; how each words its errors |
//! | `format`, `cbor` | the format the caller speaks: JSON, or Kinesis' CBOR |
//! | `body`, `subscription`, `event_stream` | what is sent whole, and what event by event |
//! | `dynamodb`, `sqs`, `s3` | the services that are other crates' work |
//! | `batches` | calls some of whose entries fail |
//! | `faults` | which requests go wrong, and the counts |
//! | `tasks` | the server's tasks, stopped together |

mod answer;
mod batches;
mod body;
mod cbor;
mod clock;
mod dynamodb;
mod event_stream;
mod faults;
mod format;
mod s3;
mod server;
mod service;
mod sqs;
mod subscription;
mod tasks;

use std::fmt;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Weak};

use aws_credential_types::Credentials;
use aws_credential_types::provider::SharedCredentialsProvider;
use aws_smithy_runtime_api::client::behavior_version::BehaviorVersion;
use aws_types::SdkConfig;
use aws_types::region::Region;
use tokio::net::TcpListener;

pub use self::faults::{Fault, FaultKind, Faults, Operation, Rule, RuleId};
pub use self::service::Service;

use self::dynamodb::DynamoDb;
use self::s3::S3;
use self::server::Server;
use self::sqs::Sqs;
use self::subscription::Subscribers;
use self::tasks::Tasks;
use crate::kinesis::{Kinesis, KinesisConfig, TimeSource};

/// A running server with its own, empty Kinesis, DynamoDB, SQS and S3, all in memory. Dropping it stops it.
pub struct LocalAws {
    address: SocketAddr,
    region: String,
    server: Arc<Server>,
}

impl LocalAws {
    /// Starts a server with default settings on a free port.
    ///
    /// # Errors
    /// See [`StartError`].
    pub async fn start() -> Result<Self, StartError> {
        Self::builder().start().await
    }

    /// Settings for a server that is to be started.
    #[must_use]
    pub fn builder() -> LocalAwsBuilder {
        LocalAwsBuilder::default()
    }

    /// `http://127.0.0.1:PORT`.
    #[must_use]
    pub fn endpoint_url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Where the server listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// A configuration for SDK clients of this server: its endpoint, its region, made-up credentials, the SDK's latest
    /// behaviour. Nothing is read from the environment.
    #[must_use]
    pub fn sdk_config(&self) -> SdkConfig {
        let credentials = Credentials::from_keys("kcl-local", "kcl-local", None);
        SdkConfig::builder()
            .behavior_version(BehaviorVersion::latest())
            .endpoint_url(self.endpoint_url())
            .region(Region::new(self.region.clone()))
            .credentials_provider(SharedCredentialsProvider::new(credentials))
            .build()
    }

    /// The faults in force and the counts of requests, to change and to read while the server runs.
    #[must_use]
    pub fn faults(&self) -> &Faults {
        &self.server.faults
    }

    /// The model behind the port. Calls on it are not requests: no fault strikes them and nothing counts them.
    #[must_use]
    pub fn kinesis(&self) -> &Kinesis {
        &self.server.kinesis
    }

    /// How many subscriptions are being served: answers to SubscribeToShard that have not ended, and whose callers have
    /// not left.
    #[must_use]
    pub fn open_subscriptions(&self) -> usize {
        self.server.subscribers.open()
    }

    /// Stops the server; returns when the port is free again and no request is under way.
    ///
    /// Cancel safety: cancelled, the server stops all the same, but nobody has waited for it.
    pub async fn shutdown(self) {
        self.server.tasks.shutdown().await;
    }
}

impl Drop for LocalAws {
    fn drop(&mut self) {
        self.server.tasks.abort();
    }
}

impl fmt::Debug for LocalAws {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LocalAws").field("address", &self.address).finish_non_exhaustive()
    }
}

/// Settings of a [`LocalAws`] that is to be started.
#[derive(Clone)]
pub struct LocalAwsBuilder {
    port: u16,
    seed: u64,
    max_concurrent_streams: u32,
    kinesis: KinesisConfig,
    rules: Vec<Rule>,
    time: Option<Arc<dyn TimeSource>>,
}

impl Default for LocalAwsBuilder {
    fn default() -> Self {
        Self { port: 0, seed: 0, max_concurrent_streams: 1_000, kinesis: KinesisConfig::default(), rules: Vec::new(), time: None }
    }
}

impl LocalAwsBuilder {
    /// The port on 127.0.0.1; 0, the default, takes a free one.
    #[must_use]
    pub fn port(mut self, port: u16) -> Self {
        self.port = port;
        self
    }

    /// The model's limits and delays. Its account and region are those of SQS and S3 and of
    /// [`LocalAws::sdk_config`] too.
    #[must_use]
    pub fn kinesis(mut self, config: KinesisConfig) -> Self {
        self.kinesis = config;
        self
    }

    /// What the model of Kinesis takes for the time; the machine's clock by default. DynamoDB, SQS and S3 have clocks of
    /// their own.
    #[must_use]
    pub fn time(mut self, time: Arc<dyn TimeSource>) -> Self {
        self.time = Some(time);
        self
    }

    /// A rule for faults that is in force from the first request on. May be given more than once.
    #[must_use]
    pub fn fault(mut self, rule: Rule) -> Self {
        self.rules.push(rule);
        self
    }

    /// Seed of the faults' randomness; 0 by default.
    #[must_use]
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    /// How many requests an HTTP/2 connection may have under way, subscriptions included; 1,000 by default. The client is
    /// told, and has to wait or to open another connection.
    #[must_use]
    pub fn max_concurrent_streams(mut self, streams: u32) -> Self {
        self.max_concurrent_streams = streams;
        self
    }

    /// Starts the server. It runs on the tokio runtime this is called in, and no longer than it.
    ///
    /// # Errors
    /// See [`StartError`].
    pub async fn start(self) -> Result<LocalAws, StartError> {
        let dynamodb = DynamoDb::memory().map_err(|error| StartError::Database(error.to_string()))?;
        let (address, listener) = listen(self.port).await.map_err(|error| StartError::listen(self.port, error))?;
        let faults = Faults::new(self.seed);
        for rule in self.rules {
            faults.add(rule);
        }
        let region = self.kinesis.region.clone();
        let time = self.time.unwrap_or_else(|| Arc::new(clock::MachineTime));
        let sqs = Sqs::new(address.to_string(), self.kinesis.account_id.clone(), region.clone());
        let s3 = S3::new(self.kinesis.account_id.clone(), region.clone());
        let kinesis = Kinesis::new(self.kinesis, move || time.now_millis());
        let subscribers = Arc::new(Subscribers::default());
        let told: Weak<Subscribers> = Arc::downgrade(&subscribers);
        kinesis.listen(told);
        let server = Arc::new(Server {
            kinesis,
            subscribers,
            sqs,
            s3,
            dynamodb,
            faults,
            tasks: Tasks::default(),
            requests: AtomicU64::new(0),
            max_concurrent_streams: self.max_concurrent_streams,
        });
        server.tasks.spawn(server::accept(Arc::clone(&server), listener));
        Ok(LocalAws { address, region, server })
    }
}

impl fmt::Debug for LocalAwsBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LocalAwsBuilder")
            .field("port", &self.port)
            .field("seed", &self.seed)
            .field("max_concurrent_streams", &self.max_concurrent_streams)
            .field("kinesis", &self.kinesis)
            .field("rules", &self.rules)
            .finish_non_exhaustive()
    }
}

async fn listen(port: u16) -> io::Result<(SocketAddr, TcpListener)> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await?;
    Ok((listener.local_addr()?, listener))
}

/// Why a server could not be started.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// Something else listens on the port.
    #[error("port {port} of 127.0.0.1 is in use: stop what listens there, or choose another port (0 takes a free one)")]
    PortInUse {
        /// The port asked for.
        port: u16,
    },
    /// The port can't be listened on for another reason.
    #[error("can't listen on 127.0.0.1:{port}: {source}")]
    Listen {
        /// The port asked for.
        port: u16,
        /// What the operating system said.
        source: io::Error,
    },
    /// The in-memory database can't be opened.
    #[error("can't open the in-memory database of DynamoDB: {0}")]
    Database(String),
}

impl StartError {
    fn listen(port: u16, source: io::Error) -> Self {
        match source.kind() {
            io::ErrorKind::AddrInUse => Self::PortInUse { port },
            _ => Self::Listen { port, source },
        }
    }
}
