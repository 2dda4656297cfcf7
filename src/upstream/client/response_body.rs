//! Response bodies of the upstream, in either version of HTTP.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};
use http_body_util::Full;

use super::http1::{Http1Body, Http1Fault};
use super::http2::Http2Body;

/// Response body as it arrives. Dropping it before its end cancels the request.
#[derive(Debug)]
pub struct ResponseBody(VersionedBody);

#[derive(Debug)]
enum VersionedBody {
    /// All of it arrived with the head. The connection is not in use any more.
    Complete(Full<Bytes>),
    Http1(Http1Body),
    Http2(Http2Body),
}

/// Reason why a response body ended early.
#[derive(Debug, thiserror::Error)]
pub enum ResponseBodyError {
    #[error(transparent)]
    Http1(#[from] Http1Fault),
    #[error(transparent)]
    Http2(#[from] h2::Error),
}

impl ResponseBody {
    pub(super) fn complete(bytes: Bytes) -> Self {
        Self(VersionedBody::Complete(Full::new(bytes)))
    }

    /// Returns the body as one piece if all of it arrived with the head.
    pub(crate) fn into_complete(self) -> Result<Full<Bytes>, Self> {
        match self.0 {
            VersionedBody::Complete(body) => Ok(body),
            body => Err(Self(body)),
        }
    }

    pub(super) fn http1(body: Http1Body) -> Self {
        Self(VersionedBody::Http1(body))
    }

    pub(super) fn http2(body: Http2Body) -> Self {
        Self(VersionedBody::Http2(body))
    }
}

impl HttpBody for ResponseBody {
    type Data = Bytes;
    type Error = ResponseBodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, ResponseBodyError>>> {
        match &mut self.get_mut().0 {
            VersionedBody::Complete(body) => Pin::new(body).poll_frame(cx).map_err(|never| match never {}),
            VersionedBody::Http1(body) => body.poll_frame(cx).map_err(ResponseBodyError::Http1),
            VersionedBody::Http2(body) => body.poll_frame(cx).map_err(ResponseBodyError::Http2),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.0 {
            VersionedBody::Complete(body) => body.is_end_stream(),
            VersionedBody::Http1(body) => body.is_end_stream(),
            VersionedBody::Http2(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.0 {
            VersionedBody::Complete(body) => body.size_hint(),
            VersionedBody::Http1(body) => body.size_hint(),
            VersionedBody::Http2(body) => body.size_hint(),
        }
    }
}
