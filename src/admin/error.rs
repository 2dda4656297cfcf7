//! Errors of the admin listener, in the JSON shape of the gateway's errors.

use http::header::{ALLOW, RETRY_AFTER, WWW_AUTHENTICATE};
use http::{HeaderValue, Response, StatusCode};

use crate::gateway::error;
use crate::protocol::body::Body;
use crate::protocol::request::RequestId;

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum AdminError {
    #[error("no resource has this path")]
    NotFound,
    #[error("method not allowed; use {}", .0.join(" or "))]
    MethodNotAllowed(&'static [&'static str]),
    #[error("invalid job id in the path; use 1 to 128 bytes of UTF-8, percent-encoded")]
    InvalidId,
    #[error(
        "missing or wrong token; send admin.token as `Authorization: Bearer TOKEN` or as the password of Basic"
    )]
    Unauthorized,
    /// Any web site can point its DNS name at this listener.
    #[error(
        "host name not allowed, as any web site can point its name here; use an IP address, localhost or a name \
         without a dot, or list the name in server.allowed_hosts, or set admin.token"
    )]
    ForeignHost,
    #[error("pages of other web sites have no access")]
    CrossOrigin,
    #[error("too many event streams are open; close one or try again later")]
    TooManyStreams,
}

impl AdminError {
    fn status(self) -> StatusCode {
        match self {
            Self::NotFound => StatusCode::NOT_FOUND,
            Self::MethodNotAllowed(_) => StatusCode::METHOD_NOT_ALLOWED,
            Self::InvalidId => StatusCode::BAD_REQUEST,
            Self::Unauthorized => StatusCode::UNAUTHORIZED,
            Self::ForeignHost => StatusCode::MISDIRECTED_REQUEST,
            Self::CrossOrigin => StatusCode::FORBIDDEN,
            Self::TooManyStreams => StatusCode::SERVICE_UNAVAILABLE,
        }
    }

    /// Returns the value of `clipgate.reason` in the log.
    pub(super) fn reason(self) -> &'static str {
        match self {
            Self::NotFound => "not-found",
            Self::MethodNotAllowed(_) => "method",
            Self::InvalidId => "bad-id",
            Self::Unauthorized => "unauthorized",
            Self::ForeignHost => "foreign-host",
            Self::CrossOrigin => "cross-origin",
            Self::TooManyStreams => "busy",
        }
    }

    /// Returns the response, without the headers that all responses have.
    pub(super) fn respond(self, id: &RequestId, path: &str) -> Response<Body> {
        let mut response = error::error_response(self.status(), &self.to_string(), path, id).map(Body::full);
        let headers = response.headers_mut();
        match self {
            Self::MethodNotAllowed(methods) => {
                let allow =
                    HeaderValue::try_from(methods.join(", ")).expect("method names are a valid header value");
                headers.insert(ALLOW, allow);
            }
            Self::Unauthorized => {
                // Basic too: browsers then prompt for a password.
                for challenge in ["Bearer realm=\"clipgate\"", "Basic realm=\"clipgate\", charset=\"UTF-8\""]
                {
                    headers.append(WWW_AUTHENTICATE, HeaderValue::from_static(challenge));
                }
            }
            Self::TooManyStreams => {
                headers.insert(RETRY_AFTER, HeaderValue::from_static("5"));
            }
            Self::NotFound | Self::InvalidId | Self::ForeignHost | Self::CrossOrigin => {}
        }
        response
    }
}
