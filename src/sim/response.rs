//! Responses of the simulated upstream: errors, the headers of every response, and bodies that record their end or
//! break off.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE, HeaderName, RETRY_AFTER, SET_COOKIE, WWW_AUTHENTICATE};
use http::{HeaderValue, Response, StatusCode};
use http_body::Frame;
use serde_json::json;

use super::faults::ErrorBody;
use super::recorder::RequestGuard;
use super::request::IncomingRequest;
use crate::protocol::body::{Body, BoxError};

/// Ends a request without a complete response, and its connection or its HTTP/2 stream with it.
#[derive(Debug, thiserror::Error)]
#[error("injected fault")]
pub(super) struct InjectedFault;

/// An error response in the form that the API documents.
pub(super) struct ApiError {
    status: StatusCode,
    message: String,
}

impl ApiError {
    /// Returns the response to the request `id` for `path`.
    pub(super) fn into_response(self, id: &str, path: &str) -> Response<Body> {
        let mut response = json_error(id, path, self.status, &self.message);
        if self.status == StatusCode::UNAUTHORIZED {
            response.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}

/// An error page as a proxy between gateway and API would write it.
pub(super) const HTML_PAGE: &str = "<!DOCTYPE html>\n<html><head><title>Just a moment...</title></head>\
    <body><h1>We'll be right back</h1><p>{\"status\":\"maintenance\"}</p></body></html>\n";

/// Content type of the APIs' JSON.
pub(super) const JSON: &str = "application/json; charset=utf-8";

pub(super) fn api_error(status: StatusCode, message: impl Into<String>) -> ApiError {
    ApiError { status, message: message.into() }
}

pub(super) fn with_content_type(
    status: StatusCode,
    kind: &'static str,
    body: impl Into<Bytes>,
) -> Response<Body> {
    let mut response = Response::new(Body::full(body));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}

pub(super) fn not_found(request: &IncomingRequest) -> ApiError {
    api_error(StatusCode::NOT_FOUND, format!("Cannot {} {}", request.method, request.record.path()))
}

/// Returns an error in the documented JSON form.
fn json_error(id: &str, path: &str, status: StatusCode, message: &str) -> Response<Body> {
    let body = json!({
        "message": message,
        "path": path,
        "requestId": id,
        "statusCode": status.as_u16(),
        "timestamp": humantime::format_rfc3339_millis(SystemTime::now()).to_string(),
    });
    with_content_type(status, JSON, body.to_string())
}

pub(super) fn error_response(
    id: &str,
    path: &str,
    status: StatusCode,
    retry_after: Option<Duration>,
    body: ErrorBody,
) -> Response<Body> {
    let mut response = match body {
        ErrorBody::Json => json_error(id, path, status, status.canonical_reason().unwrap_or("Unknown error")),
        ErrorBody::Html => with_content_type(status, "text/html", HTML_PAGE),
        ErrorBody::Empty => {
            let mut response = Response::new(Body::empty());
            *response.status_mut() = status;
            response
        }
    };
    if let Some(pause) = retry_after {
        let seconds = pause.as_secs() + u64::from(pause.subsec_nanos() > 0);
        response.headers_mut().insert(RETRY_AFTER, seconds.into());
    }
    response
}

/// Adds the headers of every response: those of this response alone, which a gateway must never replay to another
/// client (P8), and `x-powered-by`, which all responses share. hyper adds `date`.
pub(super) fn add_headers(response: &mut Response<Body>, id: &str, number: u64) {
    let text = |text: String| HeaderValue::try_from(text).expect("hex digits and ASCII words");
    let headers = response.headers_mut();
    headers.insert(HeaderName::from_static("x-powered-by"), HeaderValue::from_static("Express"));
    headers.insert(HeaderName::from_static("x-request-id"), text(id.to_owned()));
    headers.insert(HeaderName::from_static("x-inference-id"), text(format!("inference-{number}")));
    headers.insert(HeaderName::from_static("x-aimlapi-request"), number.into());
    headers.insert(HeaderName::from_static("ratelimit-remaining"), (1_000_000 - number % 1_000_000).into());
    headers.insert(SET_COOKIE, text(format!("sim={number}; Path=/; HttpOnly")));
}

/// Records the end of the request: now for a complete body, at its end for a streamed one.
pub(super) fn track_body(response: Response<Body>, guard: RequestGuard) -> Response<Body> {
    let status = response.status();
    let (head, body) = response.into_parts();
    let body = match body {
        Body::Full(full) => {
            guard.answered(status);
            Body::Full(full)
        }
        Body::Stream(inner) => {
            Body::stream(TrackedStream { inner: Body::Stream(inner), status, guard: Some(guard) })
        }
    };
    Response::from_parts(head, body)
}

/// A streamed body that records the end of its request.
struct TrackedStream {
    inner: Body,
    status: StatusCode,
    guard: Option<RequestGuard>,
}

impl http_body::Body for TrackedStream {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let this = self.get_mut();
        let polled = Pin::new(&mut this.inner).poll_frame(cx);
        match &polled {
            Poll::Ready(None) => {
                if let Some(guard) = this.guard.take() {
                    guard.answered(this.status);
                }
            }
            Poll::Ready(Some(Err(_))) => {
                if let Some(guard) = this.guard.take() {
                    guard.broken();
                }
            }
            Poll::Ready(Some(Ok(_))) | Poll::Pending => {}
        }
        polled
    }
}

/// Returns the response with the `Content-Length` of its whole body. The body breaks off after half of its bytes.
pub(super) fn truncate(response: Response<Body>) -> Response<Body> {
    let (mut head, body) = response.into_parts();
    let length = http_body::Body::size_hint(&body).exact().unwrap_or(0);
    if length > 0 {
        head.headers.insert(CONTENT_LENGTH, length.into());
    }
    Response::from_parts(
        head,
        Body::stream(TruncatedStream { inner: body, left: length / 2, has_flushed: false }),
    )
}

struct TruncatedStream {
    inner: Body,
    /// Bytes to pass on before the end.
    left: u64,
    /// Whether hyper has written the passed bytes to the socket.
    has_flushed: bool,
}

impl http_body::Body for TruncatedStream {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let this = self.get_mut();
        if this.left > 0 {
            let frame = std::task::ready!(Pin::new(&mut this.inner).poll_frame(cx));
            if let Some(Ok(data)) = frame.map(|frame| frame.map(Frame::into_data)) {
                let mut data = data.unwrap_or_default();
                data.truncate(usize::try_from(this.left).unwrap_or(usize::MAX));
                this.left -= data.len() as u64;
                return Poll::Ready(Some(Ok(Frame::data(data))));
            }
        }
        // hyper flushes when a body is pending, but not when it fails.
        if !this.has_flushed {
            this.has_flushed = true;
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        Poll::Ready(Some(Err(InjectedFault.into())))
    }
}
