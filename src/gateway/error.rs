//! The gateway's own answers to what it will not or cannot do, in the upstream's error shape.
//!
//! The one place where a fault becomes a status. A client gets a fixed sentence and the request's id, never
//! another's error text; the chain of causes goes to the log.

use std::error::Error as _;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE};
use http::{HeaderValue, Response, StatusCode};
use serde::Serialize;
use tracing::debug;

use super::passthrough::{PassthroughError, SlotError};
use super::response::{ALLOWED_METHODS, add_common_headers, cache_status};
use crate::auth::AuthError;
use crate::core::coalescer::Failure;
use crate::core::query::BadQuery;
use crate::hub::HubError;
use crate::limits::QuotaExceeded;
use crate::printable::escape_json;
use crate::protocol::body::Body;
use crate::protocol::request::RequestId;
use crate::telemetry::metrics::Limit;
use crate::upstream::client::{BadTarget, SendError};

/// Why a request gets an answer of the gateway's own (contract, section 6).
#[derive(Debug, thiserror::Error)]
pub(crate) enum GatewayError {
    /// The target is no wait that anybody could answer.
    #[error("{0}")]
    Query(#[from] BadQuery),
    /// Who asks is not certain, or not let in.
    #[error("{0}")]
    Auth(#[from] AuthError),
    /// A quota is used up.
    #[error("{limited}; try again in {} s", limited.retry_after.as_secs())]
    Limited {
        /// Which one, and until when.
        #[from]
        limited: QuotaExceeded,
    },
    /// The wait could not be parked.
    #[error("the gateway takes no more waits now ({0}); try again")]
    Hub(HubError),
    /// A poll failed, and the upstream wrote nothing to pass on.
    #[error("{}", failure_message(.0))]
    Poll(Failure),
    /// A request did not go through.
    #[error("{0}")]
    Pass(#[from] PassthroughError),
    /// There is no room for another passed-through request.
    #[error("{0}")]
    Slot(#[from] SlotError),
    /// A page of another origin would use the gateway's own key.
    #[error(
        "pages of other origins may not use this gateway's key: server.cors_origins names those that may"
    )]
    ForeignPage,
    /// The name that the client used for this gateway may be anybody's, and the gateway's own key would be used.
    #[error(
        "this gateway is reached by address, as localhost or by a name without a dot: any web site can point another \
         name here; server.allowed_hosts lists further names"
    )]
    ForeignHost,
    /// The request has been here before.
    #[error("the request came from this gateway: upstream.base_url leads back to it")]
    Loop,
    /// The method makes the upstream repeat the request in its answer, the gateway's own key included.
    #[error("the gateway does not forward this method")]
    Method,
    /// Only what is kept was asked for.
    #[error("nothing is kept for this request, and Cache-Control: only-if-cached forbids asking")]
    NotCached,
    /// HTTP itself is broken.
    #[error("the request's {0}")]
    Http(HttpFault),
}

/// What no HTTP server can read with certainty.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum HttpFault {
    /// The head is no HTTP.
    #[error("head cannot be parsed")]
    Malformed,
    /// The target is too long.
    #[error("target is too long")]
    Target,
    /// The head is too large.
    #[error("header fields are too large")]
    Head,
}

fn failure_message(failure: &Failure) -> &'static str {
    match failure {
        Failure::UpstreamError(_) => "the upstream answered with an error",
        Failure::Unreachable => "the upstream could not be reached",
        Failure::InvalidResponse(_) => "the upstream's answer could not be read",
        Failure::Timeout => "the upstream did not answer in time",
        Failure::KeyRateLimited { .. } => "the upstream asked for a rest of this key; try again",
        Failure::LocalResources => "the gateway has no descriptors left for a connection; try again",
    }
}

impl GatewayError {
    /// The HTTP status.
    pub(crate) fn status(&self) -> StatusCode {
        match self {
            GatewayError::Query(_)
            | GatewayError::Auth(AuthError::SeveralKeys | AuthError::ConnectionAuth) => {
                StatusCode::BAD_REQUEST
            }
            GatewayError::Auth(AuthError::NoToken | AuthError::UnknownToken) => StatusCode::UNAUTHORIZED,
            GatewayError::Limited { .. } => StatusCode::TOO_MANY_REQUESTS,
            GatewayError::Hub(HubError::Limited(_) | HubError::KeyFull | HubError::FullForAddress) => {
                StatusCode::TOO_MANY_REQUESTS
            }
            GatewayError::Hub(HubError::Full | HubError::Closed) => StatusCode::SERVICE_UNAVAILABLE,
            GatewayError::Poll(Failure::LocalResources) => StatusCode::SERVICE_UNAVAILABLE,
            GatewayError::Poll(Failure::KeyRateLimited { .. }) => StatusCode::TOO_MANY_REQUESTS,
            GatewayError::Poll(Failure::Timeout) => StatusCode::GATEWAY_TIMEOUT,
            // Only where its body will not do: else it goes as it was written.
            GatewayError::Poll(Failure::UpstreamError(reply)) => {
                StatusCode::from_u16(reply.status).unwrap_or(StatusCode::BAD_GATEWAY)
            }
            GatewayError::Poll(Failure::Unreachable | Failure::InvalidResponse(_)) => StatusCode::BAD_GATEWAY,
            GatewayError::Pass(error) => match error {
                PassthroughError::Connect => StatusCode::NOT_IMPLEMENTED,
                PassthroughError::Target(BadTarget::TooLong) => StatusCode::URI_TOO_LONG,
                PassthroughError::Target(BadTarget::NoPath | BadTarget::Climbs)
                | PassthroughError::Upload(_) => StatusCode::BAD_REQUEST,
                PassthroughError::Misdirected => StatusCode::MISDIRECTED_REQUEST,
                PassthroughError::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
                PassthroughError::Stalled => StatusCode::REQUEST_TIMEOUT,
                PassthroughError::Overdue => StatusCode::GATEWAY_TIMEOUT,
                PassthroughError::Send(SendError::LocalResources(_)) => StatusCode::SERVICE_UNAVAILABLE,
                PassthroughError::Send(_) | PassthroughError::BadAnswer => StatusCode::BAD_GATEWAY,
            },
            GatewayError::Slot(SlotError::FullForKey) => StatusCode::TOO_MANY_REQUESTS,
            GatewayError::Slot(SlotError::Full) => StatusCode::SERVICE_UNAVAILABLE,
            GatewayError::ForeignPage => StatusCode::FORBIDDEN,
            GatewayError::ForeignHost => StatusCode::MISDIRECTED_REQUEST,
            GatewayError::Loop => StatusCode::LOOP_DETECTED,
            GatewayError::Method => StatusCode::METHOD_NOT_ALLOWED,
            GatewayError::NotCached => StatusCode::GATEWAY_TIMEOUT,
            GatewayError::Http(HttpFault::Malformed) => StatusCode::BAD_REQUEST,
            GatewayError::Http(HttpFault::Target) => StatusCode::URI_TOO_LONG,
            GatewayError::Http(HttpFault::Head) => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
        }
    }

    /// The short word for `Cache-Status`, logs and metrics.
    pub(crate) fn reason(&self) -> &'static str {
        match self {
            GatewayError::Query(error) => error.reason(),
            GatewayError::Auth(error) => error.reason(),
            GatewayError::Limited { limited } | GatewayError::Hub(HubError::Limited(limited)) => {
                limited.quota.into_str()
            }
            GatewayError::Hub(HubError::KeyFull) => "too-many-waits-per-key",
            GatewayError::Hub(HubError::FullForAddress) => "too-many-waits-per-address",
            GatewayError::Hub(HubError::Full) => "too-many-waits",
            GatewayError::Hub(HubError::Closed) => "shutting-down",
            GatewayError::Poll(failure) => failure.reason(),
            GatewayError::Pass(error) => error.reason(),
            GatewayError::Slot(SlotError::FullForKey) => "too-many-passthrough-per-key",
            GatewayError::Slot(SlotError::Full) => "too-many-passthrough",
            GatewayError::ForeignPage => "cross-origin",
            GatewayError::ForeignHost => "foreign-host",
            GatewayError::Loop => "loop",
            GatewayError::Method => "method-not-allowed",
            GatewayError::NotCached => "not-cached",
            GatewayError::Http(HttpFault::Malformed) => "bad-request",
            GatewayError::Http(HttpFault::Target) => "uri-too-long",
            GatewayError::Http(HttpFault::Head) => "headers-too-large",
        }
    }

    /// The limit that it is about, if it is about one.
    pub(crate) fn limit(&self) -> Option<Limit> {
        match self {
            GatewayError::Limited { limited } | GatewayError::Hub(HubError::Limited(limited)) => {
                Some(limited.quota)
            }
            GatewayError::Hub(HubError::KeyFull | HubError::FullForAddress) => Some(Limit::WaitsPerKey),
            GatewayError::Hub(HubError::Full) => Some(Limit::Waits),
            GatewayError::Hub(HubError::Closed)
            | GatewayError::Query(_)
            | GatewayError::Auth(_)
            | GatewayError::Poll(_) => None,
            GatewayError::Slot(SlotError::FullForKey) => Some(Limit::PassthroughPerKey),
            GatewayError::Slot(SlotError::Full) => Some(Limit::Passthrough),
            GatewayError::Pass(_)
            | GatewayError::ForeignPage
            | GatewayError::ForeignHost
            | GatewayError::Loop => None,
            GatewayError::Method | GatewayError::NotCached | GatewayError::Http(_) => None,
        }
    }

    /// When it is worth another try, if that is known.
    pub(crate) fn retry_after(&self) -> Option<Duration> {
        match self {
            GatewayError::Limited { limited } => Some(limited.retry_after),
            GatewayError::Hub(_) | GatewayError::Slot(_) => Some(Duration::from_secs(1)),
            GatewayError::Poll(Failure::KeyRateLimited { retry_after }) => Some(*retry_after),
            GatewayError::Poll(Failure::LocalResources) => Some(Duration::from_secs(1)),
            GatewayError::Query(_)
            | GatewayError::Auth(_)
            | GatewayError::Poll(_)
            | GatewayError::Pass(_) => None,
            GatewayError::ForeignPage
            | GatewayError::ForeignHost
            | GatewayError::Loop
            | GatewayError::Method => None,
            GatewayError::NotCached | GatewayError::Http(_) => None,
        }
    }

    /// The whole answer, but for the fields that every answer carries. `path` is the request's, without its query.
    pub(crate) fn answer(&self, id: &RequestId, path: &str) -> Response<Body> {
        self.answer_bytes(id, path).map(Body::full)
    }

    /// The same with its body at hand.
    pub(crate) fn answer_bytes(&self, id: &RequestId, path: &str) -> Response<Bytes> {
        if let Some(cause) = self.source() {
            debug!(clipgate.request_id = %id, clipgate.reason = self.reason(), cause, "request rejected");
        }
        let mut response = error_response(self.status(), &self.to_string(), path, id);
        let headers = response.headers_mut();
        if let Some(after) = self.retry_after() {
            headers.insert(RETRY_AFTER, whole_seconds(after).into());
        }
        if let GatewayError::Auth(error) = self
            && let Some(challenge) = error.challenge()
        {
            headers.insert(WWW_AUTHENTICATE, challenge);
        }
        if matches!(self, GatewayError::Method) {
            headers.insert(ALLOW, ALLOWED_METHODS);
        }
        cache_status(headers, &format!("detail={}", self.reason()));
        add_common_headers(headers, id);
        response
    }
}

/// An error in the upstream's shape.
pub(crate) fn error_response(
    status: StatusCode,
    message: &str,
    path: &str,
    id: &RequestId,
) -> Response<Bytes> {
    let shape = Shape {
        message,
        path,
        request_id: id.as_str(),
        status_code: status.as_u16(),
        timestamp: &humantime::format_rfc3339_millis(SystemTime::now()).to_string(),
    };
    let body = serde_json::to_string(&shape).expect("texts and a number are JSON");
    // Its path is the client's text, and whoever reads it may do so at a terminal.
    let mut response = Response::new(Bytes::from(escape_json(&body).into_owned()));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

/// Never too early.
fn whole_seconds(duration: Duration) -> u64 {
    duration.as_secs() + u64::from(duration.subsec_nanos() > 0)
}

impl From<HubError> for GatewayError {
    fn from(error: HubError) -> Self {
        match error {
            HubError::Limited(limited) => limited.into(),
            HubError::KeyFull | HubError::FullForAddress | HubError::Full | HubError::Closed => {
                Self::Hub(error)
            }
        }
    }
}

/// The upstream's documented error.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Shape<'a> {
    message: &'a str,
    path: &'a str,
    request_id: &'a str,
    status_code: u16,
    timestamp: &'a str,
}
