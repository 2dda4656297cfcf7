//! Passes requests other than waits through to the upstream.
//!
//! Bodies stream both ways and are never collected. An upload that the upstream does not read is not read from the
//! client either. Owns nothing that outlives a request: the caller runs the future of an upgraded connection.
//!
//! ```text
//! client ── request ──▶ target, length, hop-by-hop, Forwarded, Via ─ UploadBody ──▶ upstream
//! client ◀── DownloadBody ── hop-by-hop, Via ◀────────── response ──────────────── upstream
//! client ◀════════════════════ Tunnel, after a 101 ═══════════════════════════════▶ upstream
//! ```
//!
//! Details:
//! - A request is sent at most once (P12). `upstream/client` sends again only requests that no upstream has processed.
//! - A response keeps the upstream's `Date`, `Server`, `X-Request-Id`, caching and CORS fields.
//! - Interim responses (1xx) other than 101 are not forwarded. hyper answers `Expect: 100-continue` itself once the
//!   gateway reads the body; the field is forwarded too.
//! - `CONNECT` is rejected, extended `CONNECT` (RFC 8441) is not offered, `Upgrade: h2c` is ignored.
//! - Trailers reach an HTTP/1 client only if it sends `TE: trailers` and the upstream announces them in `Trailer`.

use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::header::{self, HeaderMap, HeaderValue};
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{Extensions, Method, Request, Response, StatusCode, Version};
use http_body::Body as HttpBody;
use hyper::ext::ReasonPhrase;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tracing::debug;

use self::download::DownloadBody;
pub(super) use self::slots::{PassthroughSlot, PassthroughSlots, SlotError};
use self::spare_timers::SpareTimers;
use self::upload::{UploadBody, UploadFailure, UploadProgress};
use crate::auth::Credential;
use crate::gateway::response::X_REQUEST_ID;
use crate::protocol::added_fields::AddedFields;
use crate::protocol::body::{Body, BoxError};
use crate::protocol::cookies::join_cookie_fields;
use crate::protocol::field_value::tokens;
use crate::protocol::found_fields::FoundFields;
use crate::protocol::hop_by_hop::strip_hop_by_hop;
use crate::protocol::host::{is_same_host_port, requested_host_text};
use crate::protocol::request::RequestCtx;
use crate::protocol::spoofed_headers::strip_spoofable;
use crate::protocol::via::{append_via, decrement_max_forwards, via_member};
use crate::telemetry::metrics::{CallCause, CallError, CallKind, Code, Metrics};
use crate::telemetry::trace::RequestSpan;
use crate::upstream::client::{
    BadTarget, Client, OutgoingRequest, ResponseBody, SendError, UpgradedStream, UpstreamUpgrade,
};

mod download;
mod handler;
mod slots;
mod spare_timers;
mod upload;

/// Time after which a request without a response ends if its client's access is revoked. Most are answered before.
const UNWATCHED: Duration = Duration::from_millis(500);

#[derive(Clone)]
pub(super) struct Passthrough {
    client: Client,
    max_body: u64,
    head_timeout: Duration,
    /// Timers of [`UNWATCHED`].
    timers: Arc<SpareTimers>,
    metrics: Arc<Metrics>,
}

/// Copies the bytes of an upgraded connection both ways until both sides have ended. The server runs it at once, as
/// hyper sends the 101 only after this was returned. Dropping it closes both connections.
pub(super) type Tunnel = Pin<Box<dyn Future<Output = ()> + Send>>;

/// The upstream account of a request.
#[derive(Clone, Debug, Default)]
struct UpstreamAccount {
    /// A key of the gateway's own replaces the client's; `None` leaves it.
    credential: Option<Credential>,
    /// Whether the account is the gateway's, not the client's own. Then cookies are removed in both directions.
    is_lent: bool,
}

/// A request that is ready to be sent.
struct PreparedRequest {
    outgoing: Box<OutgoingRequest>,
    /// `None` without a body.
    progress: Option<Arc<UploadProgress>>,
    /// The client's connection, if the client offers to switch protocols.
    upgrade: Option<OnUpgrade>,
    is_lent: bool,
}

/// A response whose body is still arriving.
pub struct PassthroughResponse {
    pub response: Response<Body>,
    /// The upgraded connection, after a 101.
    pub tunnel: Option<Tunnel>,
}

impl From<Response<Body>> for PassthroughResponse {
    fn from(response: Response<Body>) -> Self {
        Self { response, tunnel: None }
    }
}

/// The cause why a request was not passed through.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PassthroughError {
    #[error("the gateway does not support CONNECT")]
    Connect,
    /// The target cannot be requested at the upstream.
    #[error(transparent)]
    Target(#[from] BadTarget),
    /// The target names another host than `Host`, or a resource of another scheme, as requests to a forward proxy do.
    #[error("the target names another host than the request was sent to")]
    Misdirected,
    #[error("the body is larger than the gateway's limits.max_body")]
    TooLarge,
    #[error("the body of the request stalled for too long")]
    Stalled,
    #[error("the body of the request ended early")]
    Upload(#[source] BoxError),
    /// For the head timeout the upstream did not answer and the upload did not move. The upstream may have acted.
    #[error("the upstream did not answer in time")]
    Timeout,
    /// The upstream could not be reached, or the connection broke.
    #[error(transparent)]
    Send(#[from] SendError),
    #[error("the upstream switched protocols without a request to do so")]
    UnexpectedUpgrade,
    /// A reload has revoked the client's access. The upstream may have acted.
    #[error("the client's access was revoked")]
    Revoked,
}

impl PassthroughError {
    /// Returns whether the upstream may have received a part of the request.
    pub(super) fn may_have_been_sent(&self) -> bool {
        match self {
            Self::Connect | Self::Target(_) | Self::Misdirected => false,
            Self::TooLarge | Self::Stalled | Self::Upload(_) | Self::Timeout => true,
            Self::UnexpectedUpgrade | Self::Revoked => true,
            Self::Send(error) => error.may_have_been_sent(),
        }
    }

    /// Returns the fixed word for logs and `Cache-Status`.
    pub(crate) fn reason(&self) -> &'static str {
        match self {
            Self::Connect => "connect-unsupported",
            Self::Target(_) => "bad-target",
            Self::Misdirected => "misdirected",
            Self::TooLarge => "body-too-large",
            Self::Stalled => "body-stalled",
            Self::Upload(_) => "body-incomplete",
            Self::Timeout => "upstream-timeout",
            Self::Send(error) => match error.fault() {
                CallError::Reset => "upstream-reset",
                CallError::Timeout => "upstream-timeout",
                CallError::Invalid => "invalid-upstream-response",
                error => error.into_str(),
            },
            Self::UnexpectedUpgrade => "invalid-upstream-response",
            Self::Revoked => "unknown-token",
        }
    }
}

impl Passthrough {
    /// `head_timeout` is the time from the last progress of the upload to the head of the response. It should be well
    /// over `upstream.poll_timeout`, as long-polls of unknown form are passed through too.
    pub(super) fn new(client: Client, max_body: u64, head_timeout: Duration, metrics: Arc<Metrics>) -> Self {
        Self { client, max_body, head_timeout, timers: Arc::default(), metrics }
    }

    /// Builds the request to the upstream. `found` are its fields, `guard` wraps its body, and `span` becomes its
    /// `traceparent`.
    fn prepare<B, G>(
        &self,
        mut request: Request<B>,
        found: FoundFields,
        guard: impl FnOnce(B) -> G,
        ctx: &RequestCtx,
        account: UpstreamAccount,
        span: &RequestSpan,
    ) -> Result<PreparedRequest, PassthroughError>
    where
        B: HttpBody<Data = Bytes>,
        G: HttpBody<Data = Bytes> + Send + Unpin + 'static,
        G::Error: Into<BoxError>,
    {
        if request.method() == Method::CONNECT {
            return Err(PassthroughError::Connect);
        }
        let uri = self.client.uri(target(&request)?)?;
        if request.body().size_hint().lower() > self.max_body {
            return Err(PassthroughError::TooLarge);
        }
        let protocols = if found.has_hop_by_hop { requested_upgrade(&request) } else { None };
        let upgrade = protocols.is_some().then(|| hyper::upgrade::on(&mut request));

        let (mut head, body) = request.into_parts();
        let headers = &mut head.headers;
        let mut added = AddedFields::new();
        ctx.forwarded.write(&mut added, ctx.is_tls, requested_host_text(&head.uri, headers));
        if found.has_hop_by_hop {
            strip_hop_by_hop(headers);
        }
        set_framing(headers, found.has_content_length, &head.method, &body);
        if found.has_cookie && account.is_lent {
            headers.remove(header::COOKIE);
        } else if found.has_cookie {
            join_cookie_fields(headers);
        }
        if head.method == Method::OPTIONS {
            decrement_max_forwards(headers);
        }
        if let Some(credential) = &account.credential {
            credential.replace_in(headers);
        }
        if found.has_spoofable {
            strip_spoofable(headers);
        }
        if found.has_request_id {
            headers.remove(&X_REQUEST_ID);
        }
        added.push(&X_REQUEST_ID, ctx.id.value());
        added.push_own("via", |value| value.extend_from_slice(via_member(head.version).as_bytes()));
        span.add(headers, found.has_trace_context, &mut added);
        if let Some(protocols) = protocols {
            headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
            headers.insert(header::UPGRADE, protocols);
        }
        head.uri = uri;
        head.extensions = Extensions::new(); // those of the client's connection

        let UpstreamAccount { credential, is_lent } = account;
        let (body, progress) = match body.is_end_stream() {
            true => (Body::empty(), None),
            false => {
                let progress = Arc::new(UploadProgress::new());
                let (left, progress_of_body) = (self.max_body, Arc::clone(&progress));
                let body = UploadBody { body: guard(body), left, progress: progress_of_body, credential };
                (Body::stream(body), Some(progress))
            }
        };
        let outgoing = Box::new(OutgoingRequest { head, body, added });
        Ok(PreparedRequest { outgoing, progress, upgrade, is_lent })
    }

    /// Sends the request to the upstream and returns the response. `revoked` ends once the client's access is revoked. Only
    /// a request that takes long polls it.
    ///
    /// Cancel safe: dropping the future, or later the body of the response, ends the request at the upstream.
    async fn forward(
        &self,
        request: PreparedRequest,
        revoked: impl Future<Output = ()>,
    ) -> Result<PassthroughResponse, PassthroughError> {
        let PreparedRequest { outgoing, progress, upgrade, is_lent } = request;
        let mut call = self.metrics.upstream.call(CallKind::Passthrough, CallCause::Passthrough);
        let sending = pin!(self.client.send_upgradable(outgoing, upgrade.is_some()));
        let sent = self.response_head(call.began(), progress.as_deref(), sending, revoked).await;
        if let Err(PassthroughError::Send(error)) = &sent {
            call.note_error(error);
        }
        call.finish(metric_code(&sent));
        let response = sent?;
        match (response.status(), upgrade) {
            (StatusCode::SWITCHING_PROTOCOLS, Some(downstream)) => {
                Ok(upgraded(response, downstream, is_lent))
            }
            (StatusCode::SWITCHING_PROTOCOLS, None) => Err(PassthroughError::UnexpectedUpgrade),
            _ => Ok(PassthroughResponse { response: client_response(response, is_lent), tunnel: None }),
        }
    }

    /// Waits for the head of the response until `head_timeout` after the last progress of the upload.
    async fn response_head(
        &self,
        sent_at: Instant,
        progress: Option<&UploadProgress>,
        mut sending: Pin<&mut impl Future<Output = Result<Response<ResponseBody>, SendError>>>,
        revoked: impl Future<Output = ()>,
    ) -> Result<Response<ResponseBody>, PassthroughError> {
        let mut timer = self.timers.at(sent_at + UNWATCHED.min(self.head_timeout));
        let early = poll_fn(|cx| match sending.as_mut().poll(cx) {
            Poll::Ready(sent) => Poll::Ready(Some(sent)),
            Poll::Pending => timer.poll_fired(cx).map(|()| None),
        });
        let sent = match early.await {
            Some(sent) => sent,
            // Boxed: only these requests need the space.
            None => Box::pin(self.late_response(sent_at, progress, sending, revoked)).await?,
        };
        sent.map_err(|error| match progress.and_then(UploadProgress::failure) {
            None => PassthroughError::Send(error),
            Some(UploadFailure::TooLarge) => PassthroughError::TooLarge,
            Some(UploadFailure::Stalled) => PassthroughError::Stalled,
            Some(UploadFailure::Incomplete) => PassthroughError::Upload(error.into()),
        })
    }

    /// Waits on after [`UNWATCHED`].
    async fn late_response<T>(
        &self,
        sent_at: Instant,
        progress: Option<&UploadProgress>,
        mut sending: Pin<&mut impl Future<Output = T>>,
        revoked: impl Future<Output = ()>,
    ) -> Result<T, PassthroughError> {
        let mut revoked = pin!(revoked);
        let head_deadline = || progress.map_or(sent_at, UploadProgress::last_progress) + self.head_timeout;
        loop {
            let deadline = head_deadline();
            // Cancel safe: both futures are polled by reference, and after a revocation the response is not needed.
            let sent = tokio::select! {
                biased;
                sent = tokio::time::timeout_at(deadline.into(), &mut sending) => sent,
                () = &mut revoked => return Err(PassthroughError::Revoked),
            };
            match sent {
                Ok(sent) => return Ok(sent),
                Err(_) if head_deadline() > deadline => {}
                Err(_) => return Err(PassthroughError::Timeout),
            }
        }
    }
}

/// Returns the metrics label `code`.
fn metric_code(sent: &Result<Response<ResponseBody>, PassthroughError>) -> Code {
    match sent {
        Ok(response) => Code::Status(response.status().as_u16()),
        Err(PassthroughError::Send(error)) => Code::Fault(error.fault()),
        Err(PassthroughError::Timeout) => Code::Fault(CallError::Timeout),
        // Errors of the client.
        Err(PassthroughError::Upload(_) | PassthroughError::TooLarge | PassthroughError::Stalled) => {
            Code::Cancelled
        }
        // The gateway ends the exchange.
        Err(PassthroughError::UnexpectedUpgrade | PassthroughError::Revoked) => Code::Cancelled,
        // `prepare` rejects such requests, and they are not counted.
        Err(PassthroughError::Connect | PassthroughError::Target(_) | PassthroughError::Misdirected) => {
            Code::Cancelled
        }
    }
}

/// Returns the path and query of the target. An absolute form is accepted if its host agrees with `Host`; it never
/// decides where the request is sent (RFC 9112 §3.2.2).
fn target<B>(request: &Request<B>) -> Result<&PathAndQuery, PassthroughError> {
    let uri = request.uri();
    let target = uri.path_and_query().ok_or(BadTarget::NoPath)?;
    if uri.scheme().is_none() && uri.authority().is_none() {
        return Ok(target);
    }
    let (Some(scheme), Some(authority)) = (uri.scheme(), uri.authority()) else {
        return Err(PassthroughError::Misdirected);
    };
    if ![Scheme::HTTP, Scheme::HTTPS].contains(scheme) || authority.as_str().contains('@') {
        return Err(PassthroughError::Misdirected);
    }
    let agrees = |field: &HeaderValue| {
        Authority::try_from(field.as_bytes()).is_ok_and(|host| is_same_host_port(scheme, authority, &host))
    };
    let mut hosts = request.headers().get_all(header::HOST).iter().peekable();
    let needs_host = request.version() == Version::HTTP_11;
    if (needs_host && hosts.peek().is_none()) || !hosts.all(agrees) {
        return Err(PassthroughError::Misdirected);
    }
    Ok(target)
}

/// Returns the protocols that an HTTP/1.1 client offers to switch to. Never HTTP/2: the gateway could not see the
/// requests in such a tunnel.
fn requested_upgrade<B>(request: &Request<B>) -> Option<HeaderValue> {
    let headers = request.headers();
    let has_upgrade = tokens(headers, &header::CONNECTION).any(|token| token.eq_ignore_ascii_case("upgrade"));
    if request.version() != Version::HTTP_11 || !has_upgrade {
        return None;
    }
    let is_h2c = |token: &str| token.eq_ignore_ascii_case("h2c") || token.eq_ignore_ascii_case("h2");
    let protocols: Vec<_> = tokens(headers, &header::UPGRADE).filter(|token| !is_h2c(token)).collect();
    (!protocols.is_empty()).then(|| protocols.join(", ").parse().ok()).flatten()
}

/// Sets `Content-Length` and `Transfer-Encoding` by the body itself, which prevents request smuggling.
fn set_framing(headers: &mut HeaderMap, has_length: bool, method: &Method, body: &impl HttpBody) {
    let length = body.size_hint().exact();
    let had_length = has_length && headers.remove(header::CONTENT_LENGTH).is_some();
    if let Some(length) = length.filter(|length| had_length || *length > 0) {
        headers.insert(header::CONTENT_LENGTH, length.into());
    }
    // hyper drops the body of a GET without framing fields.
    if length.is_none() && !body.is_end_stream() && [Method::GET, Method::HEAD].contains(method) {
        headers.insert(header::TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
    }
}

/// Builds the response to the client. `Gateway::respond` removes the cookies of a lent account.
fn client_response(response: Response<ResponseBody>, is_lent: bool) -> Response<Body> {
    let (mut parts, body) = response.into_parts();
    strip_hop_by_hop(&mut parts.headers);
    append_via(&mut parts.headers, parts.version);
    let body = match body.into_complete() {
        Ok(body) => Body::Full(body),
        Err(body) => Body::stream(DownloadBody { body, is_lent }),
    };
    parts.version = Version::HTTP_11; // hyper sets the client's
    if let Some(phrase) = std::mem::take(&mut parts.extensions).remove::<ReasonPhrase>() {
        parts.extensions.insert(phrase);
    }
    Response::from_parts(parts, body)
}

/// Returns a 101 and its tunnel.
fn upgraded(
    mut response: Response<ResponseBody>,
    downstream: OnUpgrade,
    is_lent: bool,
) -> PassthroughResponse {
    let upstream = response.extensions_mut().remove::<UpstreamUpgrade>().and_then(|upgrade| upgrade.take());
    let protocols = response.headers().get(header::UPGRADE).cloned();
    let mut response = client_response(response, is_lent);
    response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    if let Some(protocols) = protocols {
        response.headers_mut().insert(header::UPGRADE, protocols);
    }
    PassthroughResponse { response, tunnel: Some(Box::pin(tunnel(downstream, upstream))) }
}

async fn tunnel(downstream: OnUpgrade, upstream: Option<UpgradedStream>) {
    let (downstream, mut upstream) = match (downstream.await, upstream) {
        (Ok(downstream), Some(upstream)) => (downstream, upstream),
        (Ok(_), None) => return debug!("the upstream's connection cannot be upgraded"),
        (Err(error), _) => return debug!(%error, "upgrade failed"),
    };
    let mut downstream = TokioIo::new(downstream);
    match tokio::io::copy_bidirectional(&mut downstream, &mut upstream).await {
        Ok((up, down)) => debug!(up, down, "tunnel ended"),
        Err(error) => debug!(%error, "tunnel failed"),
    }
}

#[cfg(test)]
mod tests;
