//! The gateway's own error responses, in the upstream's JSON form.
//!
//! The only place that maps errors to statuses. A client gets a fixed sentence and the request id. Error texts of
//! libraries and of the upstream go to the log only.

use std::error::Error as _;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE};
use http::{HeaderValue, Response, StatusCode};
use serde::Serialize;
use tracing::debug;

use super::passthrough::{PassthroughError, SlotError};
use super::response::{ALLOWED_METHODS, PresentFields, append_cache_status};
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

/// An error that the gateway answers itself.
#[derive(Debug, thiserror::Error)]
pub(crate) enum GatewayError {
    /// The target is an invalid wait.
    #[error("{0}")]
    Query(#[from] BadQuery),
    #[error("{0}")]
    Auth(#[from] AuthError),
    #[error("{limited}; try again in {} s", limited.retry_after.as_secs())]
    Limited {
        #[from]
        limited: QuotaExceeded,
    },
    /// The wait could not be parked.
    #[error("the gateway accepts no more waits now ({0}); try again")]
    Hub(HubError),
    /// A poll failed without a response that can be passed on.
    #[error("{}", failure_message(.0))]
    Poll(Failure),
    #[error("{0}")]
    Passthrough(#[from] PassthroughError),
    #[error("{0}")]
    Slot(#[from] SlotError),
    /// A page of another origin would use the gateway's own key.
    #[error("pages of this origin may not use the gateway's key; add the origin to server.cors_origins")]
    CrossOrigin,
    /// A request under a host name that any web site can point to the gateway would use the gateway's own key.
    #[error(
        "this host name is not allowed: use an address, localhost or a name without a dot, or add the name to \
         server.allowed_hosts"
    )]
    ForeignHost,
    #[error("the request came from this gateway: upstream.base_url leads back to it")]
    Loop,
    /// The upstream would repeat the request in its response, including the gateway's own key.
    #[error("the gateway does not forward this method")]
    MethodNotAllowed,
    /// The cache cannot answer a request with `only-if-cached`.
    #[error(
        "the jobs are not in the cache, and Cache-Control: only-if-cached forbids a request to the upstream"
    )]
    NotCached,
    #[error("the request's {0}")]
    Http(HttpFault),
}

/// An error in the head of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum HttpFault {
    #[error("head is malformed")]
    Malformed,
    #[error("target is too long")]
    Target,
    #[error("header fields are too large")]
    Head,
    #[error("header has more fields than server.max_headers allows")]
    TooManyFields,
}

fn failure_message(failure: &Failure) -> &'static str {
    match failure {
        Failure::UpstreamError(_) => "the upstream answered with an error",
        Failure::Unreachable => "the upstream could not be reached",
        Failure::InvalidResponse(_) => "the upstream's response is invalid",
        Failure::TooLarge => "the upstream's response is too large to be shared; ask without a wait",
        Failure::Timeout => "the upstream did not answer in time",
        Failure::KeyRateLimited { .. } => "the upstream limits the rate of this key; try again",
        Failure::LocalResources => "the gateway has no file descriptor left for a connection; try again",
    }
}

impl GatewayError {
    pub(crate) fn status(&self) -> StatusCode {
        match self {
            GatewayError::Query(_)
            | GatewayError::Auth(AuthError::MultipleAuthorization | AuthError::ConnectionAuth) => {
                StatusCode::BAD_REQUEST
            }
            GatewayError::Auth(AuthError::NoToken(_) | AuthError::UnknownToken(_)) => {
                StatusCode::UNAUTHORIZED
            }
            GatewayError::Limited { .. } => StatusCode::TOO_MANY_REQUESTS,
            GatewayError::Hub(HubError::Limited(_) | HubError::KeyFull | HubError::AddressFull) => {
                StatusCode::TOO_MANY_REQUESTS
            }
            GatewayError::Hub(HubError::Full | HubError::Closed) => StatusCode::SERVICE_UNAVAILABLE,
            GatewayError::Poll(Failure::LocalResources) => StatusCode::SERVICE_UNAVAILABLE,
            GatewayError::Poll(Failure::KeyRateLimited { .. }) => StatusCode::TOO_MANY_REQUESTS,
            GatewayError::Poll(Failure::Timeout) => StatusCode::GATEWAY_TIMEOUT,
            // In an event stream, for a body that is not JSON. Elsewhere the reply is passed on as it came.
            GatewayError::Poll(Failure::UpstreamError(reply)) => {
                StatusCode::from_u16(reply.status).unwrap_or(StatusCode::BAD_GATEWAY)
            }
            GatewayError::Poll(Failure::Unreachable | Failure::InvalidResponse(_) | Failure::TooLarge) => {
                StatusCode::BAD_GATEWAY
            }
            GatewayError::Passthrough(error) => match error {
                PassthroughError::Revoked => StatusCode::UNAUTHORIZED,
                PassthroughError::Connect => StatusCode::NOT_IMPLEMENTED,
                PassthroughError::Target(BadTarget::TooLong) => StatusCode::URI_TOO_LONG,
                PassthroughError::Target(BadTarget::NoPath | BadTarget::DotSegment)
                | PassthroughError::Upload(_) => StatusCode::BAD_REQUEST,
                PassthroughError::Misdirected => StatusCode::MISDIRECTED_REQUEST,
                PassthroughError::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
                PassthroughError::Stalled => StatusCode::REQUEST_TIMEOUT,
                PassthroughError::Timeout => StatusCode::GATEWAY_TIMEOUT,
                PassthroughError::Send(SendError::LocalResources(_)) => StatusCode::SERVICE_UNAVAILABLE,
                PassthroughError::Send(_) | PassthroughError::UnexpectedUpgrade => StatusCode::BAD_GATEWAY,
            },
            GatewayError::Slot(SlotError::FullForKey) => StatusCode::TOO_MANY_REQUESTS,
            GatewayError::Slot(SlotError::Full) => StatusCode::SERVICE_UNAVAILABLE,
            GatewayError::CrossOrigin => StatusCode::FORBIDDEN,
            GatewayError::ForeignHost => StatusCode::MISDIRECTED_REQUEST,
            GatewayError::Loop => StatusCode::LOOP_DETECTED,
            GatewayError::MethodNotAllowed => StatusCode::METHOD_NOT_ALLOWED,
            GatewayError::NotCached => StatusCode::GATEWAY_TIMEOUT,
            GatewayError::Http(HttpFault::Malformed) => StatusCode::BAD_REQUEST,
            GatewayError::Http(HttpFault::Target) => StatusCode::URI_TOO_LONG,
            GatewayError::Http(HttpFault::Head | HttpFault::TooManyFields) => {
                StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE
            }
        }
    }

    /// Returns the fixed word for `Cache-Status` and logs.
    pub(crate) fn reason(&self) -> &'static str {
        match self {
            GatewayError::Query(error) => error.reason(),
            GatewayError::Auth(error) => error.reason(),
            GatewayError::Limited { limited } | GatewayError::Hub(HubError::Limited(limited)) => {
                limited.quota.into_str()
            }
            GatewayError::Hub(HubError::KeyFull) => "too-many-waits-per-key",
            GatewayError::Hub(HubError::AddressFull) => "too-many-waits-per-address",
            GatewayError::Hub(HubError::Full) => "too-many-waits",
            GatewayError::Hub(HubError::Closed) => "shutting-down",
            GatewayError::Poll(failure) => failure.reason(),
            GatewayError::Passthrough(error) => error.reason(),
            GatewayError::Slot(SlotError::FullForKey) => "too-many-passthrough-per-key",
            GatewayError::Slot(SlotError::Full) => "too-many-passthrough",
            GatewayError::CrossOrigin => "cross-origin",
            GatewayError::ForeignHost => "foreign-host",
            GatewayError::Loop => "loop",
            GatewayError::MethodNotAllowed => "method-not-allowed",
            GatewayError::NotCached => "not-cached",
            GatewayError::Http(HttpFault::Malformed) => "bad-request",
            GatewayError::Http(HttpFault::Target) => "uri-too-long",
            GatewayError::Http(HttpFault::Head | HttpFault::TooManyFields) => "headers-too-large",
        }
    }

    /// Returns the exceeded limit, for the metrics.
    pub(crate) fn limit(&self) -> Option<Limit> {
        match self {
            GatewayError::Limited { limited } | GatewayError::Hub(HubError::Limited(limited)) => {
                Some(limited.quota)
            }
            GatewayError::Hub(HubError::KeyFull | HubError::AddressFull) => Some(Limit::WaitsPerKey),
            GatewayError::Hub(HubError::Full) => Some(Limit::Waits),
            GatewayError::Hub(HubError::Closed)
            | GatewayError::Query(_)
            | GatewayError::Auth(_)
            | GatewayError::Poll(_) => None,
            GatewayError::Slot(SlotError::FullForKey) => Some(Limit::PassthroughPerKey),
            GatewayError::Slot(SlotError::Full) => Some(Limit::Passthrough),
            GatewayError::Passthrough(_)
            | GatewayError::CrossOrigin
            | GatewayError::ForeignHost
            | GatewayError::Loop => None,
            GatewayError::MethodNotAllowed | GatewayError::NotCached | GatewayError::Http(_) => None,
        }
    }

    /// Returns the value of `Retry-After`.
    pub(crate) fn retry_after(&self) -> Option<Duration> {
        match self {
            GatewayError::Limited { limited } => Some(limited.retry_after),
            GatewayError::Hub(_) | GatewayError::Slot(_) => Some(Duration::from_secs(1)),
            GatewayError::Poll(Failure::KeyRateLimited { retry_after }) => Some(*retry_after),
            GatewayError::Poll(Failure::LocalResources)
            | GatewayError::Passthrough(PassthroughError::Send(SendError::LocalResources(_))) => {
                Some(Duration::from_secs(1))
            }
            GatewayError::Query(_)
            | GatewayError::Auth(_)
            | GatewayError::Poll(_)
            | GatewayError::Passthrough(_) => None,
            GatewayError::CrossOrigin
            | GatewayError::ForeignHost
            | GatewayError::Loop
            | GatewayError::MethodNotAllowed => None,
            GatewayError::NotCached | GatewayError::Http(_) => None,
        }
    }

    /// Returns the response. `path` is that of the request, without the query.
    pub(crate) fn to_response(&self, id: &RequestId, path: &str) -> Response<Body> {
        self.to_response_bytes(id, path).map(Body::full)
    }

    pub(crate) fn to_response_bytes(&self, id: &RequestId, path: &str) -> Response<Bytes> {
        if let Some(cause) = self.source() {
            debug!(clipgate.request_id = %id, clipgate.reason = self.reason(), cause, "request rejected");
        }
        let mut response = error_response(self.status(), &self.to_string(), path, id);
        let headers = response.headers_mut();
        if let Some(pause) = self.retry_after() {
            headers.insert(RETRY_AFTER, round_up_to_seconds(pause).into());
        }
        if let GatewayError::Auth(error) = self
            && let Some(challenge) = error.challenge()
        {
            headers.insert(WWW_AUTHENTICATE, challenge);
        }
        if matches!(self, GatewayError::MethodNotAllowed) {
            headers.insert(ALLOW, ALLOWED_METHODS);
        }
        append_cache_status(headers, &format!("detail={}", self.reason()));
        PresentFields::of(headers).add_common(headers, id);
        response
    }
}

/// Returns an error in the upstream's JSON form.
pub(crate) fn error_response(
    status: StatusCode,
    message: &str,
    path: &str,
    id: &RequestId,
) -> Response<Bytes> {
    let error = ErrorJson {
        message,
        path,
        request_id: id.as_str(),
        status_code: status.as_u16(),
        timestamp: &humantime::format_rfc3339_millis(SystemTime::now()).to_string(),
    };
    let body = serde_json::to_string(&error).expect("strings and a number are JSON");
    // The path is text of the client, and the body may be shown on a terminal.
    let mut response = Response::new(Bytes::from(escape_json(&body).into_owned()));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

/// Rounds up, so that no client retries too early.
fn round_up_to_seconds(duration: Duration) -> u64 {
    duration.as_secs() + u64::from(duration.subsec_nanos() > 0)
}

impl From<HubError> for GatewayError {
    fn from(error: HubError) -> Self {
        match error {
            HubError::Limited(limited) => limited.into(),
            HubError::KeyFull | HubError::AddressFull | HubError::Full | HubError::Closed => Self::Hub(error),
        }
    }
}

/// The error that the upstream documents.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ErrorJson<'a> {
    message: &'a str,
    path: &'a str,
    request_id: &'a str,
    status_code: u16,
    timestamp: &'a str,
}
