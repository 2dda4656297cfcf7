//! The body of a response.

use std::future::poll_fn;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Frame, SizeHint};
use tokio::sync::mpsc;
use tokio::task::AbortHandle;
use tokio_util::sync::PollSender;
use tokio_util::task::TaskTracker;

use super::Http1Fault;
use super::decoder::BodyDecoder;
use super::exchange::{Exchange, UploadState};
use crate::upstream::client::UNREAD_UPLOAD_TIMEOUT;

/// Body of a response. Dropping it before its end closes the connection.
#[derive(Debug)]
pub(in crate::upstream::client) struct Http1Body(BodySource);

#[derive(Debug)]
enum BodySource {
    /// The body reads from the connection.
    Connection(Box<OpenBody>),
    /// The request is not sent yet. A task reads from the connection, because it sends the request even while the response
    /// is not read.
    Task {
        frames: mpsc::Receiver<Passed>,
        task: AbortHandle,
    },
    Ended,
}

/// A frame of the task, or `None` at the end, and whether it is the last one.
type Passed = Result<(Option<Frame<Bytes>>, bool), Http1Fault>;

#[derive(Debug)]
struct OpenBody {
    exchange: Exchange,
    decoder: BodyDecoder,
    keeps_alive: bool,
}

impl Http1Body {
    pub(super) fn new(
        exchange: Exchange,
        decoder: BodyDecoder,
        keeps_alive: bool,
        tasks: &TaskTracker,
    ) -> Self {
        let open = OpenBody { exchange, decoder, keeps_alive };
        match (open.exchange.upload_state(), open.decoder.has_ended()) {
            (UploadState::Sending, true) => {
                tasks.spawn(open.finish_upload());
                Self::ended()
            }
            (UploadState::Sending, false) => {
                let (sender, frames) = mpsc::channel(1);
                let task = tasks.spawn(open.run(PollSender::new(sender))).abort_handle();
                Self(BodySource::Task { frames, task })
            }
            (UploadState::Sent | UploadState::Stopped, _) => Self(BodySource::Connection(Box::new(open))),
        }
    }

    /// Returns an empty body.
    pub(super) fn ended() -> Self {
        Self(BodySource::Ended)
    }

    pub(in crate::upstream::client) fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Http1Fault>>> {
        let (frame, is_last) = match &mut self.0 {
            BodySource::Ended => return Poll::Ready(None),
            BodySource::Task { frames, .. } => match ready!(frames.poll_recv(cx)) {
                Some(Ok((frame, is_last))) => (frame.map(Ok), is_last),
                Some(Err(fault)) => (Some(Err(fault)), true),
                None => (Some(Err(Http1Fault::Aborted)), true),
            },
            BodySource::Connection(open) => match ready!(open.exchange.poll_frame(&mut open.decoder, cx)) {
                Ok(frame) => (frame.map(Ok), open.decoder.has_ended()),
                Err(fault) => (Some(Err(fault)), true),
            },
        };
        if is_last {
            self.end(matches!(frame, Some(Err(_))));
        }
        Poll::Ready(frame)
    }

    /// Leaves the connection to the pool or, after a failure, closes it.
    fn end(&mut self, has_failed: bool) {
        if let BodySource::Connection(open) = std::mem::replace(&mut self.0, BodySource::Ended) {
            let OpenBody { exchange, keeps_alive, .. } = *open;
            exchange.finish(keeps_alive && !has_failed);
        }
    }

    pub(in crate::upstream::client) fn is_end_stream(&self) -> bool {
        matches!(self.0, BodySource::Ended)
    }

    pub(in crate::upstream::client) fn size_hint(&self) -> SizeHint {
        match &self.0 {
            BodySource::Connection(open) => {
                open.decoder.left().map_or_else(SizeHint::default, SizeHint::with_exact)
            }
            BodySource::Task { .. } => SizeHint::default(),
            BodySource::Ended => SizeHint::with_exact(0),
        }
    }
}

impl Drop for Http1Body {
    fn drop(&mut self) {
        if let BodySource::Task { task, .. } = &self.0 {
            task.abort();
        }
    }
}

impl OpenBody {
    /// Passes the response on while the request is sent. Then sends the rest of the request.
    async fn run(mut self, mut sender: PollSender<Passed>) {
        let is_complete = poll_fn(|cx| self.poll_response(&mut sender, cx)).await;
        drop(sender);
        if is_complete {
            self.finish_upload().await;
        }
    }

    /// Returns whether the response is complete.
    fn poll_response(&mut self, sender: &mut PollSender<Passed>, cx: &mut Context<'_>) -> Poll<bool> {
        let mut uploaded = self.exchange.poll_upload(cx);
        loop {
            if ready!(sender.poll_reserve(cx)).is_err() {
                return Poll::Ready(false);
            }
            let passed = match std::mem::replace(&mut uploaded, Ok(())) {
                Ok(()) => ready!(self.exchange.poll_frame(&mut self.decoder, cx)),
                Err(fault) => Err(fault),
            };
            let passed = passed.map(|frame| {
                let is_last = frame.is_none() || self.decoder.has_ended();
                (frame, is_last)
            });
            let end = match &passed {
                Ok((_, is_last)) => is_last.then_some(true),
                Err(_) => Some(false),
            };
            if sender.send_item(passed).is_err() {
                return Poll::Ready(false);
            }
            if let Some(is_complete) = end {
                return Poll::Ready(is_complete);
            }
        }
    }

    /// Sends the rest of the request, until the peer has read nothing of it for [`UNREAD_UPLOAD_TIMEOUT`].
    async fn finish_upload(mut self) {
        loop {
            let written = self.exchange.written();
            let sending = poll_fn(|cx| match self.exchange.poll_upload(cx) {
                Ok(()) if self.exchange.upload_state() == UploadState::Sending => Poll::Pending,
                sent => Poll::Ready(sent),
            });
            match tokio::time::timeout(UNREAD_UPLOAD_TIMEOUT, sending).await {
                Ok(Ok(())) => return self.exchange.finish(self.keeps_alive),
                Ok(Err(fault)) => return tracing::debug!(%fault, "the rest of an upload failed"),
                Err(_) if self.exchange.written() == written => {
                    return tracing::debug!("upload stalled after the response, closing upstream connection");
                }
                Err(_) => {}
            }
        }
    }
}
