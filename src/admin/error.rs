//! What the operator's side will not do, in the shape that all errors of the gateway's have.

use http::header::{ALLOW, RETRY_AFTER, WWW_AUTHENTICATE};
use http::{HeaderValue, Response, StatusCode};

use crate::gateway::error;
use crate::protocol::body::Body;
use crate::protocol::request::RequestId;

/// Why a request is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum AdminError {
    /// Nothing has this path.
    #[error("there is nothing here")]
    NotFound,
    /// It is there, but not for this method.
    #[error("this takes nothing but {}", .0.join(" and "))]
    Method(&'static [&'static str]),
    /// The path names no job.
    #[error("the path names no clip: an id has 1 to 128 bytes of UTF-8")]
    BadId,
    /// There is no token, or not the right one.
    #[error("send admin.token, as `Authorization: Bearer TOKEN` or as the password of Basic")]
    Unauthorized,
    /// The name that the client found this listener by may be anybody's.
    #[error(
        "ask by address, as localhost or by a name without a dot: any web site can point another name here; \
         server.allowed_hosts lists further names, and with admin.token any name will do"
    )]
    ForeignHost,
    /// Another web site's page asks.
    #[error("a page of another web site may not ask this")]
    ForeignSite,
    /// There are enough event streams.
    #[error("too many event streams are open")]
    Busy,
}

impl AdminError {
    fn status(self) -> StatusCode {
        match self {
            Self::NotFound => StatusCode::NOT_FOUND,
            Self::Method(_) => StatusCode::METHOD_NOT_ALLOWED,
            Self::BadId => StatusCode::BAD_REQUEST,
            Self::Unauthorized => StatusCode::UNAUTHORIZED,
            Self::ForeignHost => StatusCode::MISDIRECTED_REQUEST,
            Self::ForeignSite => StatusCode::FORBIDDEN,
            Self::Busy => StatusCode::SERVICE_UNAVAILABLE,
        }
    }

    /// The short word for the log.
    pub(super) fn reason(self) -> &'static str {
        match self {
            Self::NotFound => "not-found",
            Self::Method(_) => "method",
            Self::BadId => "bad-id",
            Self::Unauthorized => "unauthorized",
            Self::ForeignHost => "foreign-host",
            Self::ForeignSite => "foreign-site",
            Self::Busy => "busy",
        }
    }

    /// The answer, but for the fields that every one has.
    pub(super) fn answer(self, id: &RequestId, path: &str) -> Response<Body> {
        let mut response = error::error_response(self.status(), &self.to_string(), path, id).map(Body::full);
        let headers = response.headers_mut();
        match self {
            Self::Method(methods) => {
                let allow = HeaderValue::try_from(methods.join(", ")).expect("methods are a value");
                headers.insert(ALLOW, allow);
            }
            Self::Unauthorized => {
                // Basic too, so that a browser asks its user.
                for challenge in ["Bearer realm=\"clipgate\"", "Basic realm=\"clipgate\", charset=\"UTF-8\""]
                {
                    headers.append(WWW_AUTHENTICATE, HeaderValue::from_static(challenge));
                }
            }
            Self::Busy => {
                headers.insert(RETRY_AFTER, HeaderValue::from_static("5"));
            }
            Self::NotFound | Self::BadId | Self::ForeignHost | Self::ForeignSite => {}
        }
        response
    }
}
