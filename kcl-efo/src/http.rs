//! The HTTP client of subscriptions.
//!
//! Over HTTP/2 all subscriptions share a connection, and with the usual windows (2 MiB a stream, 5 MiB a connection) three of them whose
//! processors stand still starve all others on it. The SDK's own client has no setting for that. This one gives every stream a
//! window of its own and every connection the sum of them, and spreads subscriptions over as many connections as they need: servers
//! allow about a hundred streams on one. Pings find a connection that is dead.
//!
//! What a stream holds unread is bounded by its window, so a processor that stands still costs that much and no more.

use std::fmt;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use aws_smithy_runtime_api::client::http::{HttpClient, HttpConnector, HttpConnectorFuture, HttpConnectorSettings, SharedHttpConnector};
use aws_smithy_runtime_api::client::orchestrator::HttpRequest;
use aws_smithy_runtime_api::client::result::ConnectorError;
use aws_smithy_runtime_api::client::runtime_components::RuntimeComponents;
use aws_smithy_types::body::SdkBody;
use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector as TcpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};

/// Unread bytes of one stream: 2 MiB per second, the most that a shard gives, over a line with a quarter of a second there and back.
const STREAM_WINDOW: u32 = 512 << 10;
/// Streams on one connection: below the hundred that HTTP/2 recommends servers to allow.
const STREAMS_PER_CONNECTION: usize = 64;
/// Like the SDK's own.
const CONNECT_TIMEOUT: Duration = Duration::from_millis(3_100);
/// How often an idle connection is asked for a sign of life, and how long that may take.
const PING_INTERVAL: Duration = Duration::from_secs(10);
const PING_TIMEOUT: Duration = Duration::from_secs(10);

/// An HTTP client for the SDK that is made for subscriptions. Clones share its connections.
///
/// TLS is rustls with the system's certificates. Over TLS HTTP/2 is spoken where the server offers it; over cleartext HTTP/1.1, with a connection
/// for each subscription. Settings of the SDK for connect and read timeouts have no effect: connecting takes 3.1 s at most, and
/// subscriptions are watched by their readers.
#[derive(Clone)]
pub struct FanOutHttpClient(Arc<Connections>);

struct Connections {
    tls: rustls::ClientConfig,
    cleartext_http2: bool,
    all: Mutex<Vec<Arc<Connection>>>,
}

/// A connection, over HTTP/2; or a pool of them, over HTTP/1.1.
struct Connection {
    client: Client<HttpsConnector<TcpConnector>, SdkBody>,
    streams: AtomicUsize,
}

impl fmt::Debug for FanOutHttpClient {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("FanOutHttpClient").field("cleartext_http2", &self.0.cleartext_http2).finish_non_exhaustive()
    }
}

impl Default for FanOutHttpClient {
    fn default() -> Self {
        Self::new()
    }
}

impl FanOutHttpClient {
    /// A client without connections.
    #[must_use]
    pub fn new() -> Self {
        Self::with(false)
    }

    /// The same, but it speaks HTTP/2 to cleartext endpoints, without asking whether they do ("prior knowledge"). For local servers.
    #[must_use]
    pub fn with_cleartext_http2() -> Self {
        Self::with(true)
    }

    fn with(cleartext_http2: bool) -> Self {
        Self(Arc::new(Connections { tls: tls(), cleartext_http2, all: Mutex::default() }))
    }
}

/// With the system's certificates. Without any, connections over TLS fail, and say so.
fn tls() -> rustls::ClientConfig {
    let mut roots = rustls::RootCertStore::empty();
    let found = rustls_native_certs::load_native_certs();
    roots.add_parsable_certificates(found.certs);
    if roots.is_empty() {
        tracing::warn!(errors = found.errors.len(), "the system has no root certificates: no TLS connection will be trusted");
    }
    rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("invariant: the provider supports the protocol versions that it was built with")
        .with_root_certificates(roots)
        .with_no_client_auth()
}

impl Connections {
    /// Room for one more stream, on the first connection that has it.
    fn room(&self) -> Room {
        let mut all = self.all.lock().unwrap_or_else(PoisonError::into_inner);
        // Changed under the lock alone, but for the end of a stream, which only makes room.
        let free = all.iter().find(|connection| connection.streams.load(Ordering::Relaxed) < STREAMS_PER_CONNECTION);
        let connection = match free {
            Some(connection) => Arc::clone(connection),
            None => {
                let connection = Arc::new(self.connection());
                all.push(Arc::clone(&connection));
                connection
            }
        };
        connection.streams.fetch_add(1, Ordering::Relaxed);
        Room(connection)
    }

    fn connection(&self) -> Connection {
        let mut tcp = TcpConnector::new();
        tcp.enforce_http(false);
        tcp.set_nodelay(true);
        tcp.set_connect_timeout(Some(CONNECT_TIMEOUT));
        let connector =
            HttpsConnectorBuilder::new().with_tls_config(self.tls.clone()).https_or_http().enable_all_versions().wrap_connector(tcp);
        let streams = u32::try_from(STREAMS_PER_CONNECTION).expect("invariant: a small number");
        let client = Client::builder(TokioExecutor::new())
            .timer(TokioTimer::new())
            .pool_timer(TokioTimer::new())
            .http2_only(self.cleartext_http2)
            .http2_initial_stream_window_size(STREAM_WINDOW)
            .http2_initial_connection_window_size(STREAM_WINDOW * streams)
            .http2_keep_alive_interval(PING_INTERVAL)
            .http2_keep_alive_timeout(PING_TIMEOUT)
            .build(connector);
        Connection { client, streams: AtomicUsize::new(0) }
    }
}

/// One stream's room on its connection, until it is dropped.
struct Room(Arc<Connection>);

impl Drop for Room {
    fn drop(&mut self) {
        self.0.streams.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A response's body, which holds its room.
struct Held {
    body: Incoming,
    _room: Room,
}

impl Body for Held {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl HttpConnector for FanOutHttpClient {
    fn call(&self, request: HttpRequest) -> HttpConnectorFuture {
        let connections = Arc::clone(&self.0);
        HttpConnectorFuture::new(async move {
            let request = request.try_into_http1x().map_err(|error| ConnectorError::user(error.into()))?;
            let room = connections.room();
            let response = room.0.client.request(request).await.map_err(|error| ConnectorError::io(error.into()))?;
            let response = response.map(|body| SdkBody::from_body_1_x(Held { body, _room: room }));
            response.try_into().map_err(|error: aws_smithy_runtime_api::http::HttpError| ConnectorError::other(error.into(), None))
        })
    }
}

impl HttpClient for FanOutHttpClient {
    fn http_connector(&self, _: &HttpConnectorSettings, _: &RuntimeComponents) -> SharedHttpConnector {
        SharedHttpConnector::new(self.clone())
    }
}
