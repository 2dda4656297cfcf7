//! HTTP client of the upstream, with a connection pool of its own.
//!
//! hyper-util's pool was used first. It cannot do four things that the guarantees need:
//!
//! - It keeps one HTTP/2 connection and does not know how many streams the peer allows. At a limit of 10 the eleventh
//!   long-poll waited for another's end (P1). Here `http2` counts streams, and the pool opens further connections.
//! - It does not report when a request has left, so a waiting poll counted as held by the upstream (P7). Here
//!   [`PendingRequest::on_connection`] does.
//! - It dials once for each request of a burst: 60 requests on a cold pool made 60 TLS handshakes and used one. Here
//!   dials belong to the pool and serve many requests.
//! - It never retires a connection by age, so a changed DNS name was not followed while the old host lived. Here
//!   `upstream.connection_max_age` limits it.
//!
//! It also reads interim responses without end, and reports a lack of descriptors as a fault of the upstream.
//!
//! ```text
//! Client ─┬─ pool ────┬─ connect: DNS, TCP, TLS
//!         │           ├─ http1: one request at a time on a connection
//!         │           └─ http2: as many as the peer allows
//!         └─ tunnels: another pool, HTTP/1.1 only, for upgrades
//! ```
//!
//! Every request goes to the configured scheme and authority: [`Client::uri`] is the only source of URIs. The client
//! does not know the purpose of a request.
//!
//! The client resends a request in two cases only: a kept connection was closed before any byte of the request was
//! written to it, or an HTTP/2 peer reports that it has not processed the request. It never resends a poll: the
//! caller was notified that the poll is on a connection.

mod connect;
pub(crate) mod http1;
mod http2;
mod observed_stream;
mod pool;
mod response_body;
mod target;
mod upgrade;
mod upload;

use std::error::Error as StdError;
use std::future::pending;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use http::request::Parts;
use http::uri::{PathAndQuery, Scheme};
use http::{Request, Response, Uri};
use tokio::sync::oneshot;

use self::connect::{Connector, Protocols};
use self::pool::Pool;
pub(crate) use self::response_body::ResponseBody;
use self::target::BaseUrl;
pub(crate) use self::upgrade::{UpgradedStream, UpstreamUpgrade};
use crate::config;
use crate::protocol::added_fields::AddedFields;
use crate::protocol::body::Body;
use crate::telemetry::metrics::CallError;
use crate::tls_roots;

/// Interval of probes on a silent connection: TCP keep-alive and HTTP/2 pings.
const PROBE_INTERVAL: Duration = Duration::from_secs(20);
/// Time for the answer to a probe.
const PROBE_TIMEOUT: Duration = Duration::from_secs(10);
/// Time that an upload may stall after the peer has sent its whole response.
const UNREAD_UPLOAD_TIMEOUT: Duration =
    if cfg!(test) { Duration::from_secs(1) } else { Duration::from_secs(60) };
/// Most interim responses (1xx) to one request. Go's client accepted five for years, so servers send few.
const MAX_INTERIM: usize = 32;

/// Client of the upstream. Clones share their connections.
///
/// Polls and passed-through requests have separate clients, so that neither takes the connections of the other.
#[derive(Clone)]
pub struct Client {
    base: Arc<BaseUrl>,
    pool: Arc<Pool>,
    tunnels: Arc<Pool>,
}

/// Reason why a client cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// `upstream.base_url` is not an absolute `http` or `https` URL, or has userinfo or a query.
    #[error(
        "`upstream.base_url` is not a valid upstream URL; use http://HOST or https://HOST, without userinfo and query"
    )]
    BaseUrl,
    /// rustls and its crypto provider have no TLS version in common.
    #[error("could not set up TLS for the upstream")]
    Tls(#[from] rustls::Error),
}

/// Reason why a target cannot be requested from the upstream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadTarget {
    /// The target does not begin with a slash, such as `*`.
    #[error("the target is not a path")]
    NoPath,
    /// The target may lead out of the path prefix of `upstream.base_url`.
    #[error("the path of the target has a dot segment")]
    DotSegment,
    /// The target and the prefix together are too long for a URI.
    #[error("the target is too long")]
    TooLong,
}

/// Source of a [`SendError`]. Shared, because one failed connection may fail many requests.
pub(crate) type ErrorSource = Arc<dyn StdError + Send + Sync>;

/// Reason why a request got no response.
#[derive(Clone, Debug, thiserror::Error)]
pub enum SendError {
    /// No connection could be opened. No byte was sent.
    #[error("could not connect to the upstream")]
    Connect(#[source] ErrorSource),
    /// No connection, TLS included, was open within `upstream.connect_timeout`. No byte was sent.
    #[error("the upstream did not accept a connection in time")]
    ConnectTimeout(#[source] ErrorSource),
    /// The TLS handshake failed, mostly for an untrusted or wrong certificate. No byte was sent.
    #[error("the TLS handshake with the upstream failed")]
    Tls(#[source] ErrorSource),
    /// The gateway has no descriptor or memory for a connection. No byte was sent. P12: not counted against the
    /// upstream.
    #[error("the gateway has no descriptor or memory for a connection to the upstream")]
    LocalResources(#[source] ErrorSource),
    /// A kept connection was closed before the request was sent, or the upstream reports that it has not processed
    /// the request.
    #[error("the upstream had closed the connection")]
    Closed(#[source] ErrorSource),
    /// The connection ended before a response. The upstream may have received the request.
    #[error("the upstream closed the connection before it responded")]
    Reset(#[source] ErrorSource),
    /// The upstream sent too many interim responses (1xx). It has received the request.
    #[error("the upstream sent too many interim responses")]
    TooManyInterim,
}

impl SendError {
    /// Returns the error under which metrics count it.
    pub fn fault(&self) -> CallError {
        match self {
            Self::Connect(_) => CallError::Connect,
            Self::ConnectTimeout(_) => CallError::ConnectTimeout,
            Self::Tls(_) => CallError::Tls,
            Self::LocalResources(_) => CallError::LocalResources,
            Self::Closed(_) | Self::Reset(_) => CallError::Reset,
            Self::TooManyInterim => CallError::Invalid,
        }
    }

    /// Returns the fixed word for logs, metrics and `Cache-Status`.
    pub fn reason(&self) -> &'static str {
        self.fault().into_str()
    }

    /// Returns whether the upstream may have received a part of the request.
    pub fn may_have_been_sent(&self) -> bool {
        match self {
            Self::Reset(_) | Self::TooManyInterim => true,
            Self::Connect(_) | Self::ConnectTimeout(_) | Self::Tls(_) => false,
            Self::LocalResources(_) | Self::Closed(_) => false,
        }
    }
}

/// A request whose URI comes from [`Client::uri`]. Boxed, because it passes through several futures.
pub(crate) struct OutgoingRequest {
    /// `Host` is not sent: the upstream gets a `Host` with its own name.
    pub(crate) head: Parts,
    pub(crate) body: Body,
    /// Fields beside those of the head.
    pub(crate) added: AddedFields,
}

impl From<Request<Body>> for Box<OutgoingRequest> {
    fn from(request: Request<Body>) -> Self {
        let (head, body) = request.into_parts();
        Box::new(OutgoingRequest { head, body, added: AddedFields::default() })
    }
}

/// Request whose caller needs to know when it is on a connection.
///
/// Both futures are `Unpin`, and cancel safe to poll by reference in a `select!`. Dropping `response` cancels the
/// request.
pub struct PendingRequest {
    /// Resolves once the request is on a connection. Over HTTP/1.1 its first byte has been written. Over HTTP/2 its
    /// HEADERS have been passed to h2, and do not wait for the peer's stream limit. Never resolves if the request
    /// fails before.
    pub on_connection: Pin<Box<dyn Future<Output = ()> + Send>>,
    /// Resolves with the head of the response.
    pub response: Pin<Box<dyn Future<Output = Result<Response<ResponseBody>, SendError>> + Send>>,
}

impl Client {
    /// Returns a client that trusts the root certificates of the platform, or the built-in ones of Mozilla if it has
    /// none.
    pub fn new(config: &config::UpstreamConfig) -> Result<Self, ClientError> {
        Self::trusting_roots(config, ResendPolicy::Unsent)
    }

    /// Like [`Client::new`], but trusts these authorities only.
    pub(crate) fn trusting_only(
        config: &config::UpstreamConfig,
        roots: rustls::RootCertStore,
    ) -> Result<Self, ClientError> {
        Self::build(config, tls_roots::trusting(roots)?, ResendPolicy::Unsent)
    }

    /// Like [`Client::new`], for polls: never resends a request.
    pub fn for_polls(config: &config::UpstreamConfig) -> Result<Self, ClientError> {
        Self::trusting_roots(config, ResendPolicy::Never)
    }

    fn trusting_roots(config: &config::UpstreamConfig, resend: ResendPolicy) -> Result<Self, ClientError> {
        let tls = if config.base_url.scheme() == Some(&Scheme::HTTPS) {
            tls_roots::trusting_platform()?
        } else {
            tls_roots::trusting(rustls::RootCertStore::empty())?
        };
        Self::build(config, tls, resend)
    }

    /// Like [`Client::new`] with these TLS settings.
    #[cfg(test)]
    pub(crate) fn with_tls(
        config: &config::UpstreamConfig,
        tls: rustls::ClientConfig,
    ) -> Result<Self, ClientError> {
        Self::build(config, tls, ResendPolicy::Unsent)
    }

    fn build(
        config: &config::UpstreamConfig,
        tls: rustls::ClientConfig,
        resend: ResendPolicy,
    ) -> Result<Self, ClientError> {
        let base = Arc::new(BaseUrl::new(&config.base_url).ok_or(ClientError::BaseUrl)?);
        let pool = |protocols| {
            let connector = Connector::new(&base, tls.clone(), protocols, config.connect_timeout)?;
            Ok::<_, ClientError>(Pool::new(Arc::clone(&base), connector, config.connection_max_age, resend))
        };
        Ok(Self { pool: pool(Protocols::Any)?, tunnels: pool(Protocols::Http1)?, base: Arc::clone(&base) })
    }

    /// Returns the URI of an origin-form target: the configured scheme, authority and path prefix, then the target
    /// byte for byte. With a prefix, rejects a target with a `.` or `..` segment in any encoding, because it could
    /// lead out of the prefix.
    pub fn uri(&self, target: &PathAndQuery) -> Result<Uri, BadTarget> {
        self.base.uri(target)
    }

    /// Sends a request whose URI comes from [`Client::uri`]. Cancel safe: dropping the future, or later the response body,
    /// cancels the request at the upstream.
    pub(crate) fn send(
        &self,
        request: impl Into<Box<OutgoingRequest>>,
    ) -> impl Future<Output = Result<Response<ResponseBody>, SendError>> {
        self.send_upgradable(request.into(), false)
    }

    /// Like [`Client::send`]. A request to upgrade its connection goes over HTTP/1.1.
    pub(crate) fn send_upgradable(
        &self,
        request: Box<OutgoingRequest>,
        is_upgrade: bool,
    ) -> impl Future<Output = Result<Response<ResponseBody>, SendError>> {
        let pool = if is_upgrade { &self.tunnels } else { &self.pool };
        pool.send(request, None)
    }

    /// Like [`Client::send`], and reports when the request is on a connection.
    pub fn start(&self, request: Request<Body>) -> PendingRequest {
        let (notice, sent) = oneshot::channel();
        let pool = Arc::clone(&self.pool);
        PendingRequest {
            on_connection: Box::pin(async move {
                if sent.await.is_err() {
                    pending::<()>().await; // the request failed before it was sent
                }
            }),
            response: Box::pin(async move { pool.send(request.into(), Some(notice)).await }),
        }
    }
}

/// Sender that is used when a request is on a connection. Dropped unused if the request fails before.
type SentNotice = oneshot::Sender<()>;

/// Requests that the client resends if the upstream has not processed them.
#[derive(Clone, Copy, PartialEq, Eq)]
enum ResendPolicy {
    Unsent,
    Never,
}

#[cfg(test)]
pub(crate) mod tests;
