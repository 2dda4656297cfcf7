//! What is no wait goes through untouched.
//!
//! Bodies stream both ways and are never collected; an upload that the upstream does not read is not read
//! from the client either. It must never know what an answer means, and it owns nothing that outlives a
//! request: the future of an upgraded connection goes to the caller, who runs it.
//!
//! ```text
//! client ── request ──▶ target, length, hop-by-hop, Forwarded, Via ── Upload ──▶ upstream
//! client ◀── Answer ── hop-by-hop, Via ◀───────────── response ────────────── upstream
//! client ◀═══════════════════ Tunnel, after a 101 ═══════════════════════════▶ upstream
//! ```
//!
//! What is not obvious:
//! - A request goes out at most once; the client repeats only what no upstream has looked at (`upstream/client.rs`).
//! - An answer keeps the upstream's `Date`, `Server`, `X-Request-Id`, caching and CORS fields.
//! - Interim answers (1xx) other than 101 end here. `Expect: 100-continue` is answered by hyper on the
//!   client's side, once the body is wanted, and still sent on.
//! - `CONNECT` is refused, extended `CONNECT` (RFC 8441) is not offered, `Upgrade: h2c` is ignored.
//! - Trailers reach an HTTP/1 client only where `TE: trailers` and `Trailer` ask for and announce them.

use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{Method, Request, Response, StatusCode, Uri, Version};
use http_body::Body as HttpBody;
use hyper::ext::ReasonPhrase;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tracing::debug;

use self::download::Download;
pub(super) use self::slots::{Slot, SlotError, Slots};
use self::upload::{UploadBody, UploadFailure, UploadProgress};
use crate::protocol::body::{Body, BoxError};
use crate::protocol::headers;
use crate::protocol::request::RequestCtx;
use crate::telemetry::metrics::{CallError, CallKind, Code, Metrics};
use crate::telemetry::trace::RequestSpan;
use crate::upstream::client::{BadTarget, Client, ResponseBody, SendError};

mod download;
mod slots;
mod upload;

/// The way through.
#[derive(Clone)]
pub(super) struct Passthrough {
    client: Client,
    max_body: u64,
    head_timeout: Duration,
    metrics: Arc<Metrics>,
}

/// Carries an upgraded connection's bytes both ways until both sides have ended. Whoever gets it runs it,
/// at once: the 101 is only sent after this was returned. Dropping it closes both connections.
pub(super) type Tunnel = Pin<Box<dyn Future<Output = ()> + Send>>;

/// The account with which a request is made at the upstream.
#[derive(Clone, Debug, Default)]
pub(super) struct Credential {
    /// Replaces the client's `Authorization`; `None` leaves it.
    pub authorization: Option<HeaderValue>,
    /// Whether the account is the gateway's, not the client's own: then no cookie passes in either direction.
    pub is_lent: bool,
}

/// What came back.
pub struct PassthroughResponse {
    /// The answer, its body still on its way.
    pub response: Response<Body>,
    /// The connection's further life, after a 101.
    pub tunnel: Option<Tunnel>,
}

impl From<Response<Body>> for PassthroughResponse {
    fn from(response: Response<Body>) -> Self {
        Self { response, tunnel: None }
    }
}

/// Why a request did not go through.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PassthroughError {
    /// `CONNECT`: the gateway is no tunnel to anywhere.
    #[error("the gateway opens no tunnels")]
    Connect,
    /// The target cannot be asked for at the upstream.
    #[error(transparent)]
    Target(#[from] BadTarget),
    /// The target names another host than `Host` does, or no HTTP resource: a forward proxy's request.
    #[error("the target names another host than the request was sent to")]
    Misdirected,
    /// The body is larger than `limits.max_body`.
    #[error("the request's body is too large")]
    TooLarge,
    /// Nothing of the client's body came for too long.
    #[error("nothing of the request's body came for too long")]
    Stalled,
    /// The client's body broke off.
    #[error("the request's body could not be read")]
    Upload(#[source] BoxError),
    /// Neither did the upstream answer nor the upload move for the head timeout. It may have acted.
    #[error("the upstream did not answer in time")]
    Overdue,
    /// The upstream could not be reached, or broke off.
    #[error(transparent)]
    Send(#[from] SendError),
    /// The upstream switched to a protocol that nobody had asked for.
    #[error("the upstream switched protocols unasked")]
    BadAnswer,
}

impl PassthroughError {
    /// A fixed word for logs, metrics and `Cache-Status`.
    pub(crate) fn reason(&self) -> &'static str {
        match self {
            Self::Connect => "connect-unsupported",
            Self::Target(_) => "bad-target",
            Self::Misdirected => "misdirected",
            Self::TooLarge => "body-too-large",
            Self::Stalled => "body-stalled",
            Self::Upload(_) => "body-incomplete",
            Self::Overdue => "upstream-timeout",
            Self::Send(error) => match error.fault() {
                CallError::Reset => "upstream-reset",
                CallError::Timeout => "upstream-timeout",
                CallError::Invalid => "invalid-upstream-response",
                cause => cause.into_str(),
            },
            Self::BadAnswer => "invalid-upstream-response",
        }
    }
}

impl Passthrough {
    /// `head_timeout` is how long an answer's head may take after the upload last moved. It should be well
    /// over `upstream.poll_timeout`: a long-poll that is not understood goes this way too.
    pub(super) fn new(client: Client, max_body: u64, head_timeout: Duration, metrics: Arc<Metrics>) -> Self {
        Self { client, max_body, head_timeout, metrics }
    }

    /// Sends the request to the upstream and hands back its answer. `span` is what the upstream is told to be the
    /// cause.
    ///
    /// Cancel safe: dropping the future, or the answer's body later, ends the request at the upstream.
    pub(super) async fn forward<B>(
        &self,
        mut request: Request<B>,
        ctx: &RequestCtx,
        credential: Credential,
        span: &RequestSpan,
    ) -> Result<PassthroughResponse, PassthroughError>
    where
        B: HttpBody<Data = Bytes> + Send + Unpin + 'static,
        B::Error: Into<BoxError>,
    {
        if request.method() == Method::CONNECT {
            return Err(PassthroughError::Connect);
        }
        let uri = self.client.uri(target(&request)?)?;
        if request.body().size_hint().lower() > self.max_body {
            return Err(PassthroughError::TooLarge);
        }
        let upgrade = wanted_upgrade(&request);
        let downstream = hyper::upgrade::on(&mut request);

        let is_lent = credential.is_lent;
        let (mut request, progress) = self.outgoing(request, uri, ctx, credential, upgrade.as_ref());
        span.write(request.headers_mut());
        let call = self.metrics.upstream.call(CallKind::Passthrough);
        let sent = match upgrade {
            Some(_) => self.head_in_time(&progress, self.client.send_upgrade(request)).await,
            None => self.head_in_time(&progress, self.client.send(request)).await,
        };
        call.finish(code(&sent));
        let response = sent?;
        match (response.status(), upgrade) {
            (StatusCode::SWITCHING_PROTOCOLS, Some(_)) => Ok(switched(response, downstream, is_lent)),
            (StatusCode::SWITCHING_PROTOCOLS, None) => Err(PassthroughError::BadAnswer),
            _ => Ok(PassthroughResponse { response: incoming(response, is_lent), tunnel: None }),
        }
    }

    /// The request as the upstream gets it, and a look at its upload.
    fn outgoing<B>(
        &self,
        request: Request<B>,
        uri: Uri,
        ctx: &RequestCtx,
        credential: Credential,
        upgrade: Option<&HeaderValue>,
    ) -> (Request<Body>, Arc<UploadProgress>)
    where
        B: HttpBody<Data = Bytes> + Send + Unpin + 'static,
        B::Error: Into<BoxError>,
    {
        let host = headers::asked_host(request.uri(), request.headers());
        let (parts, body) = request.into_parts();
        let mut fields = parts.headers;
        headers::strip_hop_by_hop(&mut fields);
        fields.remove(header::HOST); // the client adds the upstream's
        frame(&mut fields, &parts.method, &body);
        if credential.is_lent {
            fields.remove(header::COOKIE);
        }
        join_cookies(&mut fields);
        if parts.method == Method::OPTIONS {
            headers::count_max_forwards_down(&mut fields);
        }
        if let Some(value) = credential.authorization {
            fields.insert(header::AUTHORIZATION, value);
        }
        fields.insert(HeaderName::from_static("x-request-id"), ctx.id.value().clone());
        ctx.trail.write(&mut fields, ctx.is_tls, host.as_ref());
        headers::append_via(&mut fields, parts.version);
        if let Some(protocols) = upgrade {
            fields.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
            fields.insert(header::UPGRADE, protocols.clone());
        }

        let progress = Arc::new(UploadProgress::new());
        let upload = UploadBody { body, left: self.max_body, progress: progress.clone() };
        let mut request = Request::new(Body::stream(upload)); // without the extensions of the client's connection
        *request.method_mut() = parts.method;
        *request.uri_mut() = uri;
        *request.headers_mut() = fields;
        (request, progress)
    }

    async fn head_in_time(
        &self,
        progress: &UploadProgress,
        sending: impl Future<Output = Result<Response<ResponseBody>, SendError>>,
    ) -> Result<Response<ResponseBody>, PassthroughError> {
        let mut sending = pin!(sending);
        loop {
            let due = progress.moved_at() + self.head_timeout;
            let Ok(sent) = tokio::time::timeout_at(due.into(), &mut sending).await else {
                if progress.moved_at() + self.head_timeout > due {
                    continue;
                }
                return Err(PassthroughError::Overdue);
            };
            return sent.map_err(|error| match progress.fate() {
                UploadFailure::Sound => PassthroughError::Send(error),
                UploadFailure::TooLarge => PassthroughError::TooLarge,
                UploadFailure::Stalled => PassthroughError::Stalled,
                UploadFailure::Broke => PassthroughError::Upload(error.into()),
            });
        }
    }
}

/// What came of the request at the upstream.
fn code(sent: &Result<Response<ResponseBody>, PassthroughError>) -> Code {
    match sent {
        Ok(response) => Code::Status(response.status().as_u16()),
        Err(PassthroughError::Send(error)) => Code::Fault(error.fault()),
        Err(PassthroughError::Overdue) => Code::Fault(CallError::Timeout),
        // The client's fault, and what is found before or after it is sent.
        Err(PassthroughError::Upload(_) | PassthroughError::TooLarge | PassthroughError::Stalled) => {
            Code::Cancelled
        }
        Err(
            PassthroughError::Connect
            | PassthroughError::Target(_)
            | PassthroughError::Misdirected
            | PassthroughError::BadAnswer,
        ) => Code::Cancelled,
    }
}

/// What is asked for, whatever form says it. An absolute form is taken for what it is, a target that
/// names its host twice, if the two agree; it never decides where the request goes (RFC 9112 §3.2.2).
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
        Authority::try_from(field.as_bytes())
            .is_ok_and(|host| headers::is_same_host_port(scheme, authority, &host))
    };
    let mut hosts = request.headers().get_all(header::HOST).iter().peekable();
    let needs_host = request.version() == Version::HTTP_11;
    if (needs_host && hosts.peek().is_none()) || !hosts.all(agrees) {
        return Err(PassthroughError::Misdirected);
    }
    Ok(target)
}

/// The protocols that the client offers to switch to, if it does: HTTP/1.1 only, and never to HTTP/2,
/// which would take the connection out of the gateway's sight.
fn wanted_upgrade<B>(request: &Request<B>) -> Option<HeaderValue> {
    let fields = request.headers();
    let asked =
        headers::tokens(fields, &header::CONNECTION).any(|token| token.eq_ignore_ascii_case("upgrade"));
    if request.version() != Version::HTTP_11 || !asked {
        return None;
    }
    let is_h2c = |token: &str| token.eq_ignore_ascii_case("h2c") || token.eq_ignore_ascii_case("h2");
    let protocols: Vec<_> =
        headers::tokens(fields, &header::UPGRADE).filter(|token| !is_h2c(token)).collect();
    (!protocols.is_empty()).then(|| protocols.join(", ").parse().ok()).flatten()
}

/// Makes the length that the fields tell the body's own, so that nobody can read one message as two.
fn frame(fields: &mut HeaderMap, method: &Method, body: &impl HttpBody) {
    let length = body.size_hint().exact();
    let told = fields.remove(header::CONTENT_LENGTH).is_some();
    if let Some(length) = length.filter(|length| told || *length > 0) {
        fields.insert(header::CONTENT_LENGTH, length.into());
    }
    // hyper leaves out such a body of a GET if it is not told to
    if length.is_none() && !body.is_end_stream() && [Method::GET, Method::HEAD].contains(method) {
        fields.insert(header::TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
    }
}

/// HTTP/2 lets a client split the field, HTTP/1.1 does not (RFC 9113 §8.2.3).
fn join_cookies(fields: &mut HeaderMap) {
    let crumbs: Vec<&[u8]> = fields.get_all(header::COOKIE).into_iter().map(HeaderValue::as_bytes).collect();
    if crumbs.len() > 1
        && let Ok(whole) = HeaderValue::from_bytes(&crumbs.join(&b"; "[..]))
    {
        fields.insert(header::COOKIE, whole);
    }
}

/// The upstream's answer as the client gets it; of its head the gateway removes the account's cookies.
fn incoming(response: Response<ResponseBody>, is_lent: bool) -> Response<Body> {
    let (mut parts, body) = response.into_parts();
    headers::strip_hop_by_hop(&mut parts.headers);
    headers::append_via(&mut parts.headers, parts.version);
    let mut response = Response::new(Body::stream(Download { body, is_lent })); // in the version the client speaks
    *response.status_mut() = parts.status;
    *response.headers_mut() = parts.headers;
    if let Some(phrase) = parts.extensions.remove::<ReasonPhrase>() {
        response.extensions_mut().insert(phrase);
    }
    response
}

/// A 101, and the tunnel it opens.
fn switched(
    mut response: Response<ResponseBody>,
    downstream: OnUpgrade,
    is_lent: bool,
) -> PassthroughResponse {
    let upstream = hyper::upgrade::on(&mut response);
    let protocols = response.headers().get(header::UPGRADE).cloned();
    let mut response = incoming(response, is_lent);
    response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    if let Some(protocols) = protocols {
        response.headers_mut().insert(header::UPGRADE, protocols);
    }
    PassthroughResponse { response, tunnel: Some(Box::pin(tunnel(downstream, upstream))) }
}

async fn tunnel(downstream: OnUpgrade, upstream: OnUpgrade) {
    let (downstream, upstream) = match tokio::try_join!(downstream, upstream) {
        Ok(both) => both,
        Err(error) => return debug!(%error, "connection not upgraded"),
    };
    let (mut downstream, mut upstream) = (TokioIo::new(downstream), TokioIo::new(upstream));
    match tokio::io::copy_bidirectional(&mut downstream, &mut upstream).await {
        Ok((up, down)) => debug!(up, down, "tunnel ended"),
        Err(error) => debug!(%error, "tunnel broke"),
    }
}

#[cfg(test)]
mod tests;
