//! The HTTP client that reaches the upstream and nothing else.
//!
//! Whatever a request's target is, it goes to the configured scheme and authority: [`Client::uri`] is the
//! only way to one. The client must never know what a request is for. Its pool owns the connections.
//!
//! ```text
//! Client ─┬─ pool ────┬─ connect: name, TCP, TLS
//!         │           ├─ http1: one request a connection at a time
//!         │           └─ http2: as many as the peer allows
//!         └─ tunnels: another pool, HTTP/1.1 only, which upgrades need
//! ```
//!
//! A request is sent again in two cases only: a kept connection turned out to be closed before any byte of
//! the request was written to it, or an HTTP/2 peer says that it has not looked at the request. Polls are not even
//! then: who was told that one stands must be able to believe it.

mod answer;
mod connect;
mod http1;
mod http2;
mod link;
mod pool;
mod target;
mod upload;

use std::error::Error as StdError;
use std::future::pending;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use http::uri::{PathAndQuery, Scheme};
use http::{Request, Response, Uri};
use hyper_rustls::ConfigBuilderExt;
use tokio::sync::oneshot;

pub(crate) use self::answer::ResponseBody;
use self::connect::{Connector, Protocols};
use self::pool::Pool;
use self::target::Base;
use crate::config;
use crate::protocol::body::Body;
use crate::telemetry::metrics::CallError;

/// How often a silent connection is probed, by TCP and by HTTP/2 pings.
const PROBE_EVERY: Duration = Duration::from_secs(20);
/// How long a probe's answer may take.
const PROBE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a peer that has answered all may take nothing of the rest of a request's body.
const UNWANTED_AFTER: Duration = if cfg!(test) { Duration::from_secs(1) } else { Duration::from_secs(60) };
/// Interim responses (1xx) to one request. Go's client took five for years, so that servers send few.
const MAX_INTERIM: usize = 32;

/// A way to the upstream. Clones share their connections.
///
/// Polls and passed-through requests each get a client of their own, so that neither takes the
/// other's places.
#[derive(Clone)]
pub struct Client {
    base: Arc<Base>,
    pool: Arc<Pool>,
    tunnels: Arc<Pool>,
}

/// Why there is no client.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// `upstream.base_url` is no absolute `http` or `https` URL without userinfo and query.
    #[error("upstream.base_url is no usable URL")]
    BaseUrl,
    /// The TLS library has no common ground with its own crypto provider.
    #[error("TLS cannot be set up")]
    Tls(#[from] rustls::Error),
}

/// Why a target cannot be asked for at the upstream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadTarget {
    /// It does not begin with a slash, as `*` does not.
    #[error("the target is no path")]
    NoPath,
    /// It may lead out of the path prefix of `upstream.base_url`.
    #[error("the target's path climbs")]
    Climbs,
    /// It is too long to be a URI together with the prefix.
    #[error("the target is too long")]
    TooLong,
}

/// What is behind a [`SendError`]. Shared, as a connection that cannot be opened may fail many requests.
pub(crate) type Cause = Arc<dyn StdError + Send + Sync>;

/// Why a request got no answer.
#[derive(Clone, Debug, thiserror::Error)]
pub enum SendError {
    /// There is no connection, so no byte was sent.
    #[error("could not connect to the upstream")]
    Connect(#[source] Cause),
    /// The connection, TLS included, was not there within `upstream.connect_timeout`. No byte was sent.
    #[error("the upstream did not accept a connection in time")]
    ConnectTimeout(#[source] Cause),
    /// The TLS handshake failed: an untrusted or wrong certificate, mostly. No byte was sent.
    #[error("no secure connection to the upstream")]
    Tls(#[source] Cause),
    /// The gateway itself has no descriptor or no memory for a connection. No byte was sent, and the upstream has no
    /// part in it.
    #[error("the gateway has run out of descriptors or memory for connections to the upstream")]
    LocalResources(#[source] Cause),
    /// The kept connection that it was given turned out to be closed, or the upstream says that it has not looked at
    /// the request.
    #[error("the upstream had closed the connection")]
    Closed(#[source] Cause),
    /// The connection ended before an answer came. The upstream may have seen the request.
    #[error("the upstream broke off before it answered")]
    Broke(#[source] Cause),
    /// Interim responses (1xx) came without end. The upstream has seen the request.
    #[error("the upstream sent interim responses without end")]
    TooManyInterim,
}

impl SendError {
    /// The same, for what is counted.
    pub fn fault(&self) -> CallError {
        match self {
            Self::Connect(_) => CallError::Connect,
            Self::ConnectTimeout(_) => CallError::ConnectTimeout,
            Self::Tls(_) => CallError::Tls,
            Self::LocalResources(_) => CallError::LocalResources,
            Self::Closed(_) | Self::Broke(_) => CallError::Reset,
            Self::TooManyInterim => CallError::Invalid,
        }
    }

    /// A fixed word for logs, metrics and `Cache-Status`.
    pub fn reason(&self) -> &'static str {
        self.fault().into_str()
    }

    /// Whether the upstream may have seen some of the request.
    pub fn may_have_been_sent(&self) -> bool {
        match self {
            Self::Broke(_) | Self::TooManyInterim => true,
            Self::Connect(_) | Self::ConnectTimeout(_) | Self::Tls(_) => false,
            Self::LocalResources(_) | Self::Closed(_) => false,
        }
    }
}

/// A request on its way, for a caller that needs to know when it stands on a connection.
///
/// Both futures are `Unpin` and cancel safe to poll by reference in a `select!`. Dropping `response` ends
/// the request.
pub struct PendingRequest {
    /// Ends once the request is on its way: HTTP/1.1 has written a first byte of it; HTTP/2 has handed on its HEADERS,
    /// which do not wait behind the peer's limit on streams. Never ends if that never happens.
    pub on_connection: Pin<Box<dyn Future<Output = ()> + Send>>,
    /// Ends with the answer's head.
    pub response: Pin<Box<dyn Future<Output = Result<Response<ResponseBody>, SendError>> + Send>>,
}

impl Client {
    /// The client of this upstream. Reads the platform's root certificates; where there are none, Mozilla's
    /// are used, which are built in.
    pub fn new(config: &config::Upstream) -> Result<Self, ClientError> {
        Self::trusting_roots(config, ResendPolicy::Unsent)
    }

    /// The same for polls: what it starts stands on one connection or fails.
    pub fn for_polls(config: &config::Upstream) -> Result<Self, ClientError> {
        Self::trusting_roots(config, ResendPolicy::Nothing)
    }

    fn trusting_roots(config: &config::Upstream, resend: ResendPolicy) -> Result<Self, ClientError> {
        let builder = || {
            rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
                .with_safe_default_protocol_versions()
        };
        let trusting = if config.base_url.scheme() == Some(&Scheme::HTTPS) {
            match builder()?.with_native_roots() {
                Ok(trusting) => trusting,
                Err(error) => {
                    tracing::warn!(%error, "no platform root certificates, built-in ones are used");
                    builder()?.with_webpki_roots()
                }
            }
        } else {
            builder()?.with_root_certificates(rustls::RootCertStore::empty())
        };
        Self::build(config, trusting.with_no_client_auth(), resend)
    }

    /// The same as [`Client::new`] with other trust.
    #[cfg(test)]
    pub(crate) fn with_tls(
        config: &config::Upstream,
        tls: rustls::ClientConfig,
    ) -> Result<Self, ClientError> {
        Self::build(config, tls, ResendPolicy::Unsent)
    }

    fn build(
        config: &config::Upstream,
        tls: rustls::ClientConfig,
        resend: ResendPolicy,
    ) -> Result<Self, ClientError> {
        let base = Arc::new(Base::new(&config.base_url).ok_or(ClientError::BaseUrl)?);
        let pool = |protocols| {
            let connector = Connector::new(&base, tls.clone(), protocols, config.connect_timeout)?;
            Ok::<_, ClientError>(Pool::new(Arc::clone(&base), connector, config.connection_max_age, resend))
        };
        Ok(Self { pool: pool(Protocols::Any)?, tunnels: pool(Protocols::Http1)?, base: Arc::clone(&base) })
    }

    /// The URI of an origin-form target at the upstream: scheme and authority are always the configured
    /// ones, the path prefix comes first, and then the target, byte for byte. Where there is a prefix, a
    /// target with a `.` or `..` segment in any disguise is refused, since it could lead out of it.
    pub fn uri(&self, target: &PathAndQuery) -> Result<Uri, BadTarget> {
        self.base.uri(target)
    }

    /// Sends a request whose URI is one of [`Client::uri`]'s. Adds `Host` over HTTP/1.1, so the request must
    /// have none. Cancel safe: dropping the future, or the answer's body later, ends the request at the
    /// upstream.
    pub async fn send(&self, request: Request<Body>) -> Result<Response<ResponseBody>, SendError> {
        self.pool.send(request, None).await
    }

    /// The same over HTTP/1.1 whatever else the upstream speaks, so that the connection can be taken over.
    pub async fn send_upgrade(&self, request: Request<Body>) -> Result<Response<ResponseBody>, SendError> {
        self.tunnels.send(request, None).await
    }

    /// The same as [`Client::send`], and tells when the request is on its way.
    pub fn start(&self, request: Request<Body>) -> PendingRequest {
        let (notice, sent) = oneshot::channel();
        let pool = Arc::clone(&self.pool);
        PendingRequest {
            on_connection: Box::pin(async move {
                if sent.await.is_err() {
                    pending::<()>().await; // the request is gone without having been sent
                }
            }),
            response: Box::pin(async move { pool.send(request, Some(notice)).await }),
        }
    }
}

/// What is sent again that no upstream has looked at.
#[derive(Clone, Copy, PartialEq, Eq)]
enum ResendPolicy {
    Unsent,
    Nothing,
}

#[cfg(test)]
pub(crate) mod tests;
