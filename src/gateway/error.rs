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

use super::passthrough::{PassError, SlotError};
use super::response::{ALLOWED_METHODS, cache_status, finish};
use crate::auth::AuthError;
use crate::core::coalescer::Failure;
use crate::core::query::BadQuery;
use crate::hub::HubError;
use crate::limits::Limited;
use crate::printable::escape_json;
use crate::protocol::body::Body;
use crate::protocol::request::RequestId;
use crate::telemetry::metrics::{Limit, Word as _};
use crate::upstream::client::{BadTarget, SendError};

/// Why a request gets an answer of the gateway's own (contract, section 6).
#[derive(Debug, thiserror::Error)]
pub(crate) enum Refusal {
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
        limited: Limited,
    },
    /// The wait could not be parked.
    #[error("the gateway takes no more waits now ({0}); try again")]
    Hub(HubError),
    /// A poll failed, and the upstream wrote nothing to pass on.
    #[error("{}", sentence(.0))]
    Poll(Failure),
    /// A request did not go through.
    #[error("{0}")]
    Pass(#[from] PassError),
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

fn sentence(failure: &Failure) -> &'static str {
    match failure {
        Failure::Answered(_) => "the upstream answered with an error",
        Failure::Unreachable => "the upstream could not be reached",
        Failure::Garbled(_) => "the upstream's answer could not be read",
        Failure::Overdue => "the upstream did not answer in time",
        Failure::KeyRests { .. } => "the upstream asked for a rest of this key; try again",
        Failure::LocalResources => "the gateway has no descriptors left for a connection; try again",
    }
}

impl Refusal {
    /// The HTTP status.
    pub(crate) fn status(&self) -> StatusCode {
        match self {
            Refusal::Query(_) | Refusal::Auth(AuthError::SeveralKeys | AuthError::ConnectionAuth) => {
                StatusCode::BAD_REQUEST
            }
            Refusal::Auth(AuthError::NoToken | AuthError::UnknownToken) => StatusCode::UNAUTHORIZED,
            Refusal::Limited { .. } => StatusCode::TOO_MANY_REQUESTS,
            Refusal::Hub(HubError::Limited(_) | HubError::FullForKey | HubError::FullForAddress) => {
                StatusCode::TOO_MANY_REQUESTS
            }
            Refusal::Hub(HubError::Full | HubError::Gone) => StatusCode::SERVICE_UNAVAILABLE,
            Refusal::Poll(Failure::LocalResources) => StatusCode::SERVICE_UNAVAILABLE,
            Refusal::Poll(Failure::KeyRests { .. }) => StatusCode::TOO_MANY_REQUESTS,
            Refusal::Poll(Failure::Overdue) => StatusCode::GATEWAY_TIMEOUT,
            // Only where its body will not do: else it goes as it was written.
            Refusal::Poll(Failure::Answered(reply)) => {
                StatusCode::from_u16(reply.status).unwrap_or(StatusCode::BAD_GATEWAY)
            }
            Refusal::Poll(Failure::Unreachable | Failure::Garbled(_)) => StatusCode::BAD_GATEWAY,
            Refusal::Pass(error) => match error {
                PassError::Connect => StatusCode::NOT_IMPLEMENTED,
                PassError::Target(BadTarget::TooLong) => StatusCode::URI_TOO_LONG,
                PassError::Target(BadTarget::NoPath | BadTarget::Climbs) | PassError::Upload(_) => {
                    StatusCode::BAD_REQUEST
                }
                PassError::Misdirected => StatusCode::MISDIRECTED_REQUEST,
                PassError::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
                PassError::Stalled => StatusCode::REQUEST_TIMEOUT,
                PassError::Overdue => StatusCode::GATEWAY_TIMEOUT,
                PassError::Send(SendError::LocalResources(_)) => StatusCode::SERVICE_UNAVAILABLE,
                PassError::Send(_) | PassError::BadAnswer => StatusCode::BAD_GATEWAY,
            },
            Refusal::Slot(SlotError::FullForKey) => StatusCode::TOO_MANY_REQUESTS,
            Refusal::Slot(SlotError::Full) => StatusCode::SERVICE_UNAVAILABLE,
            Refusal::ForeignPage => StatusCode::FORBIDDEN,
            Refusal::ForeignHost => StatusCode::MISDIRECTED_REQUEST,
            Refusal::Loop => StatusCode::LOOP_DETECTED,
            Refusal::Method => StatusCode::METHOD_NOT_ALLOWED,
            Refusal::NotCached => StatusCode::GATEWAY_TIMEOUT,
            Refusal::Http(HttpFault::Malformed) => StatusCode::BAD_REQUEST,
            Refusal::Http(HttpFault::Target) => StatusCode::URI_TOO_LONG,
            Refusal::Http(HttpFault::Head) => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
        }
    }

    /// The short word for `Cache-Status`, logs and metrics.
    pub(crate) fn reason(&self) -> &'static str {
        match self {
            Refusal::Query(error) => error.reason(),
            Refusal::Auth(error) => error.reason(),
            Refusal::Limited { limited } | Refusal::Hub(HubError::Limited(limited)) => limited.quota.word(),
            Refusal::Hub(HubError::FullForKey) => "too-many-waits-of-key",
            Refusal::Hub(HubError::FullForAddress) => "too-many-waits-of-address",
            Refusal::Hub(HubError::Full) => "too-many-waits",
            Refusal::Hub(HubError::Gone) => "shutting-down",
            Refusal::Poll(failure) => failure.reason(),
            Refusal::Pass(error) => error.reason(),
            Refusal::Slot(SlotError::FullForKey) => "too-many-passthrough-per-key",
            Refusal::Slot(SlotError::Full) => "too-many-passthrough",
            Refusal::ForeignPage => "foreign-page",
            Refusal::ForeignHost => "foreign-host",
            Refusal::Loop => "loop",
            Refusal::Method => "method-not-allowed",
            Refusal::NotCached => "not-cached",
            Refusal::Http(HttpFault::Malformed) => "malformed",
            Refusal::Http(HttpFault::Target) => "long-target",
            Refusal::Http(HttpFault::Head) => "large-head",
        }
    }

    /// The limit that it is about, if it is about one.
    pub(crate) fn limit(&self) -> Option<Limit> {
        match self {
            Refusal::Limited { limited } | Refusal::Hub(HubError::Limited(limited)) => Some(limited.quota),
            Refusal::Hub(HubError::FullForKey | HubError::FullForAddress) => Some(Limit::WaitsOfKey),
            Refusal::Hub(HubError::Full) => Some(Limit::Waits),
            Refusal::Hub(HubError::Gone) | Refusal::Query(_) | Refusal::Auth(_) | Refusal::Poll(_) => None,
            Refusal::Slot(SlotError::FullForKey) => Some(Limit::PassthroughPerKey),
            Refusal::Slot(SlotError::Full) => Some(Limit::Passthrough),
            Refusal::Pass(_) | Refusal::ForeignPage | Refusal::ForeignHost | Refusal::Loop => None,
            Refusal::Method | Refusal::NotCached | Refusal::Http(_) => None,
        }
    }

    /// When it is worth another try, if that is known.
    pub(crate) fn retry_after(&self) -> Option<Duration> {
        match self {
            Refusal::Limited { limited } => Some(limited.retry_after),
            Refusal::Hub(_) | Refusal::Slot(_) => Some(Duration::from_secs(1)),
            Refusal::Poll(Failure::KeyRests { retry_after }) => Some(*retry_after),
            Refusal::Poll(Failure::LocalResources) => Some(Duration::from_secs(1)),
            Refusal::Query(_) | Refusal::Auth(_) | Refusal::Poll(_) | Refusal::Pass(_) => None,
            Refusal::ForeignPage | Refusal::ForeignHost | Refusal::Loop | Refusal::Method => None,
            Refusal::NotCached | Refusal::Http(_) => None,
        }
    }

    /// The whole answer, but for the fields that every answer carries. `path` is the request's, without its query.
    pub(crate) fn answer(&self, id: &RequestId, path: &str) -> Response<Body> {
        self.answer_bytes(id, path).map(Body::full)
    }

    /// The same with its body at hand.
    pub(crate) fn answer_bytes(&self, id: &RequestId, path: &str) -> Response<Bytes> {
        if let Some(cause) = self.source() {
            debug!(clipgate.request_id = %id, clipgate.reason = self.reason(), cause, "refused");
        }
        let mut response = shaped(self.status(), &self.to_string(), path, id);
        let headers = response.headers_mut();
        if let Some(after) = self.retry_after() {
            headers.insert(RETRY_AFTER, whole_seconds(after).into());
        }
        if let Refusal::Auth(error) = self
            && let Some(challenge) = error.challenge()
        {
            headers.insert(WWW_AUTHENTICATE, challenge);
        }
        if matches!(self, Refusal::Method) {
            headers.insert(ALLOW, ALLOWED_METHODS);
        }
        cache_status(headers, &format!("detail={}", self.reason()));
        finish(headers, id);
        response
    }
}

/// An error in the upstream's shape.
pub(crate) fn shaped(status: StatusCode, message: &str, path: &str, id: &RequestId) -> Response<Bytes> {
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

impl From<HubError> for Refusal {
    fn from(error: HubError) -> Self {
        match error {
            HubError::Limited(limited) => limited.into(),
            HubError::FullForKey | HubError::FullForAddress | HubError::Full | HubError::Gone => {
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
