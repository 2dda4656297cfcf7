//! The HTTP client that reaches the upstream and nothing else.
//!
//! Whatever a request's target is, it goes to the configured scheme and authority: [`Client::uri`] is the
//! only way to one. The client must never know what a request is for. hyper's pool owns the connections.
//!
//! ```text
//! Client ─┬─ lane 0: hyper's pool, one HTTP/2 connection or many HTTP/1.1 ones
//!         ├─ lane 1: …                    takes over when lane 0 has LANE_PLACES answers outstanding
//!         └─ tunnels: HTTP/1.1 only, which upgrades need
//! ```
//!
//! Lanes, because hyper keeps one HTTP/2 connection a pool, and a server that lets 100 streams be open on it
//! would leave the 101st long-poll waiting for another one's end, unseen. Windows are cut so that a full
//! lane of answers nobody reads cannot use up the connection's: the others on it never stall.
//!
//! A request is sent again, by hyper, in one case only: a pooled connection turned out to be closed before any byte of
//! the request was written to it. Polls are not even then: who was told that one stands must be able to believe it.

mod target;

use std::error::Error as StdError;
use std::future::{Future, pending, poll_fn};
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::uri::{PathAndQuery, Scheme};
use http::{Request, Response, Uri};
use http_body::{Body as HttpBody, Frame, SizeHint};
use hyper::body::Incoming;
use hyper_rustls::{ConfigBuilderExt, HttpsConnector, HttpsConnectorBuilder};
use hyper_timeout::TimeoutConnector;
use hyper_util::client::legacy;
use hyper_util::client::legacy::connect::{CaptureConnection, HttpConnector, capture_connection};
use hyper_util::rt::{TokioExecutor, TokioTimer};

use self::target::Base;
use crate::body::Body;
use crate::config;
use crate::metrics::CallFault;

type Connector = TimeoutConnector<HttpsConnector<HttpConnector>>;
type Hyper = legacy::Client<Connector, Body>;

/// Answers outstanding on a lane. Servers let 100 streams be open at least (RFC 9113 §6.5.2), and see one
/// end a little later than we do.
const LANE_PLACES: usize = 90;
/// Lanes beyond those that `upstream.max_polls` fills: 720 passed-through requests at once.
const SPARE_LANES: usize = 8;
/// What one unread HTTP/2 answer may hold back.
const STREAM_WINDOW: u32 = 256 << 10;
/// What a full lane of them holds back, and one stream more.
const CONNECTION_WINDOW: u32 = STREAM_WINDOW * (LANE_PLACES as u32 + 1);
/// The largest head of an HTTP/2 answer, in bytes.
const MAX_HEAD: u32 = 64 << 10;
/// How long an unused connection stays open; servers commonly close theirs after 60 s or more.
const POOL_IDLE: Duration = Duration::from_secs(30);
/// Unused HTTP/1.1 connections kept a lane.
const MAX_IDLE: usize = 64;
/// How often a silent connection is probed, by TCP and by HTTP/2 pings.
const PROBE_EVERY: Duration = Duration::from_secs(20);
/// How long a probe's answer may take.
const PROBE_TIMEOUT: Duration = Duration::from_secs(10);

/// A way to the upstream. Clones share their connections.
///
/// Polls and passed-through requests each get a client of their own, so that neither takes the
/// other's places.
#[derive(Clone)]
pub struct Client {
    base: Arc<Base>,
    lanes: Arc<[Lane]>,
    tunnels: Hyper,
}

struct Lane {
    hyper: Hyper,
    taken: Arc<AtomicUsize>,
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

/// Why a request got no answer.
#[derive(Debug, thiserror::Error)]
pub enum SendError {
    /// There is no connection, so no byte was sent.
    #[error("could not connect to the upstream")]
    Connect(#[source] legacy::Error),
    /// The connection, TLS included, was not there within `upstream.connect_timeout`. No byte was sent.
    #[error("the upstream did not accept a connection in time")]
    ConnectTimeout(#[source] legacy::Error),
    /// The TLS handshake failed: an untrusted or wrong certificate, mostly. No byte was sent.
    #[error("no secure connection to the upstream")]
    Tls(#[source] legacy::Error),
    /// The kept connection that it was given turned out to be closed. No byte was sent.
    #[error("the upstream had closed the connection")]
    Closed(#[source] legacy::Error),
    /// The connection ended before an answer came. The upstream may have seen the request.
    #[error("the upstream broke off before it answered")]
    Broke(#[source] legacy::Error),
}

impl SendError {
    /// The same, for what is counted.
    pub fn fault(&self) -> CallFault {
        match self {
            Self::Connect(_) => CallFault::Connect,
            Self::ConnectTimeout(_) => CallFault::ConnectTimeout,
            Self::Tls(_) => CallFault::Tls,
            Self::Closed(_) | Self::Broke(_) => CallFault::Broke,
        }
    }

    /// A fixed word for logs, metrics and `Cache-Status`.
    pub fn reason(&self) -> &'static str {
        self.fault().word()
    }

    /// Whether the upstream may have seen some of the request.
    pub fn may_have_been_sent(&self) -> bool {
        match self {
            Self::Broke(_) => true,
            Self::Connect(_) | Self::ConnectTimeout(_) | Self::Tls(_) | Self::Closed(_) => false,
        }
    }

    /// The same of a request that was given a kept connection.
    fn on_kept_connection(self) -> Self {
        match self {
            Self::Broke(error) if was_handed_back(&error) => Self::Closed(error),
            other => other,
        }
    }
}

impl From<legacy::Error> for SendError {
    fn from(error: legacy::Error) -> Self {
        if !error.is_connect() {
            return Self::Broke(error);
        }
        match connect_fault(&error) {
            Some(Fault::TimedOut) => Self::ConnectTimeout(error),
            Some(Fault::Tls) => Self::Tls(error),
            None => Self::Connect(error),
        }
    }
}

/// Whether no byte of the request was written: hyper calls that canceled.
fn was_handed_back(error: &legacy::Error) -> bool {
    error
        .source()
        .and_then(|source| source.downcast_ref::<hyper::Error>())
        .is_some_and(hyper::Error::is_canceled)
}

enum Fault {
    TimedOut,
    Tls,
}

/// Looks down the chain of sources. `io::Error` skips the error it wraps there, so that one is opened.
fn connect_fault(error: &(dyn StdError + 'static)) -> Option<Fault> {
    if error.is::<rustls::Error>() {
        return Some(Fault::Tls);
    }
    if let Some(io) = error.downcast_ref::<io::Error>() {
        if io.kind() == io::ErrorKind::TimedOut {
            return Some(Fault::TimedOut);
        }
        if let Some(inner) = io.get_ref() {
            return connect_fault(inner);
        }
    }
    error.source().and_then(connect_fault)
}

/// A request on its way, for a caller that needs to know when it stands on a connection.
///
/// Both futures are `Unpin` and cancel safe to poll by reference in a `select!`. Dropping `response` ends
/// the request.
pub struct Started {
    /// Ends once the request has a connection to be written to; never, if it gets none. Moves only
    /// while `response` is polled.
    pub on_connection: Pin<Box<dyn Future<Output = ()> + Send>>,
    /// Ends with the answer's head.
    pub response: Pin<Box<dyn Future<Output = Result<Response<Answer>, SendError>> + Send>>,
}

impl Client {
    /// The client of this upstream. Reads the platform's root certificates; where there are none, Mozilla's
    /// are used, which are built in.
    pub fn new(config: &config::Upstream) -> Result<Self, ClientError> {
        Self::trusting_roots(config, Resend::Unsent)
    }

    /// The same for polls: what it starts stands on one connection or fails.
    pub fn for_polls(config: &config::Upstream) -> Result<Self, ClientError> {
        Self::trusting_roots(config, Resend::Nothing)
    }

    fn trusting_roots(config: &config::Upstream, resend: Resend) -> Result<Self, ClientError> {
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
        Self::build(config, tls, Resend::Unsent)
    }

    fn build(
        config: &config::Upstream,
        tls: rustls::ClientConfig,
        resend: Resend,
    ) -> Result<Self, ClientError> {
        let base = Arc::new(Base::new(&config.base_url).ok_or(ClientError::BaseUrl)?);
        let lanes = match base.is_https() {
            true => config.max_polls.div_ceil(LANE_PLACES) + SPARE_LANES,
            false => 1, // plain HTTP/1.1 has as many connections as it needs
        };
        let any = connector(config.connect_timeout, tls.clone(), Protocols::Any);
        Ok(Self {
            base,
            lanes: (0..lanes).map(|_| Lane::new(any.clone(), resend)).collect(),
            tunnels: pool(connector(config.connect_timeout, tls, Protocols::Http1), resend),
        })
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
    pub async fn send(&self, request: Request<Body>) -> Result<Response<Answer>, SendError> {
        let (place, hyper) = Place::take(&self.lanes);
        let response = hyper.request(request).await?;
        Ok(response.map(|incoming| Answer { incoming, _place: Some(place) }))
    }

    /// The same over HTTP/1.1 whatever else the upstream speaks, so that the connection can be taken over.
    pub async fn send_upgrade(&self, request: Request<Body>) -> Result<Response<Answer>, SendError> {
        let response = self.tunnels.request(request).await?;
        Ok(response.map(|incoming| Answer { incoming, _place: None }))
    }

    /// The same as [`Client::send`], and tells when the request stands on a connection.
    pub fn start(&self, mut request: Request<Body>) -> Started {
        let mut connection = capture_connection(&mut request);
        let response = self.clone().send_noting_kept(request, connection.clone());
        Started {
            on_connection: Box::pin(async move {
                if connection.wait_for_connection_metadata().await.is_none() {
                    pending::<()>().await; // the request is gone without having had one
                }
            }),
            response: Box::pin(response),
        }
    }

    /// A kept connection is there at the first look, one that is made first never is.
    async fn send_noting_kept(
        self,
        request: Request<Body>,
        connection: CaptureConnection,
    ) -> Result<Response<Answer>, SendError> {
        let mut sending = pin!(self.send(request));
        let first = poll_fn(|context| Poll::Ready(sending.as_mut().poll(context))).await;
        let is_kept = connection.connection_metadata().is_some();
        let sent = match first {
            Poll::Ready(sent) => sent,
            Poll::Pending => sending.await,
        };
        sent.map_err(|error| if is_kept { error.on_kept_connection() } else { error })
    }
}

/// What hyper sends again by itself.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Resend {
    /// What no byte was written of.
    Unsent,
    Nothing,
}

#[derive(Clone, Copy)]
enum Protocols {
    Any,
    Http1,
}

fn connector(timeout: Duration, tls: rustls::ClientConfig, protocols: Protocols) -> Connector {
    let mut http = HttpConnector::new();
    http.enforce_http(false);
    http.set_nodelay(true);
    http.set_keepalive(Some(PROBE_EVERY));
    http.set_keepalive_interval(Some(PROBE_TIMEOUT));
    http.set_keepalive_retries(Some(3));
    http.set_connect_timeout(Some(timeout)); // shared out among a name's addresses
    let https = HttpsConnectorBuilder::new().with_tls_config(tls).https_or_http();
    let https = match protocols {
        Protocols::Any => https.enable_all_versions().wrap_connector(http),
        Protocols::Http1 => https.enable_http1().wrap_connector(http),
    };
    let mut connector = TimeoutConnector::new(https);
    connector.set_connect_timeout(Some(timeout));
    connector
}

fn pool(connector: Connector, resend: Resend) -> Hyper {
    legacy::Client::builder(TokioExecutor::new())
        .timer(TokioTimer::new())
        .pool_timer(TokioTimer::new())
        .pool_idle_timeout(POOL_IDLE)
        .pool_max_idle_per_host(MAX_IDLE)
        .retry_canceled_requests(resend == Resend::Unsent)
        .http2_initial_stream_window_size(STREAM_WINDOW)
        .http2_initial_connection_window_size(CONNECTION_WINDOW)
        .http2_max_header_list_size(MAX_HEAD)
        .http2_keep_alive_interval(PROBE_EVERY)
        .http2_keep_alive_timeout(PROBE_TIMEOUT)
        .build(connector)
}

impl Lane {
    fn new(connector: Connector, resend: Resend) -> Self {
        Self { hyper: pool(connector, resend), taken: Arc::default() }
    }
}

/// An answer outstanding on a lane, from its request to its body's end.
#[derive(Debug)]
struct Place(Arc<AtomicUsize>);

impl Place {
    /// On the first lane that has one, so that few connections do; else on the emptiest.
    fn take(lanes: &[Lane]) -> (Self, &Hyper) {
        let free = |lane: &&Lane| lane.taken.load(Ordering::Relaxed) < LANE_PLACES;
        let lane = lanes
            .iter()
            .find(free)
            .or_else(|| lanes.iter().min_by_key(|lane| lane.taken.load(Ordering::Relaxed)))
            .expect("there is one lane at least");
        lane.taken.fetch_add(1, Ordering::Relaxed);
        (Self(lane.taken.clone()), &lane.hyper)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// An upstream answer's body as it arrives. Dropping it early ends the request.
#[derive(Debug)]
pub struct Answer {
    incoming: Incoming,
    _place: Option<Place>,
}

impl HttpBody for Answer {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        Pin::new(&mut self.incoming).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.incoming.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.incoming.size_hint()
    }
}

#[cfg(test)]
pub(crate) mod tests;
