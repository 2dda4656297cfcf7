//! The upstream's answers, in whatever version of HTTP they come.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};

use super::http1::Http1Body;
use super::http2::Http2Body;

/// An upstream answer's body as it arrives. Dropping it early ends the request.
#[derive(Debug)]
pub struct ResponseBody(Inner);

#[derive(Debug)]
enum Inner {
    Http1(Http1Body),
    Http2(Http2Body),
}

/// Why an answer's body broke off.
#[derive(Debug, thiserror::Error)]
pub enum AnswerError {
    /// Over HTTP/1.1.
    #[error(transparent)]
    Http1(#[from] hyper::Error),
    /// Over HTTP/2.
    #[error(transparent)]
    Http2(#[from] h2::Error),
}

impl ResponseBody {
    pub(super) fn http1(body: Http1Body) -> Self {
        Self(Inner::Http1(body))
    }

    pub(super) fn http2(body: Http2Body) -> Self {
        Self(Inner::Http2(body))
    }
}

impl HttpBody for ResponseBody {
    type Data = Bytes;
    type Error = AnswerError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, AnswerError>>> {
        match &mut self.get_mut().0 {
            Inner::Http1(body) => body.poll_frame(cx).map_err(AnswerError::Http1),
            Inner::Http2(body) => body.poll_frame(cx).map_err(AnswerError::Http2),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.0 {
            Inner::Http1(body) => body.is_end_stream(),
            Inner::Http2(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.0 {
            Inner::Http1(body) => body.size_hint(),
            Inner::Http2(body) => body.size_hint(),
        }
    }
}
