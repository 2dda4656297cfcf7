//! Request bodies over HTTP/2.
//!
//! A body that is not available at once gets its own task, so that it is sent even while the response is not read.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Poll, ready};

use bytes::Bytes;
use h2::{Reason, SendStream};
use http_body::{Body as HttpBody, Frame};
use tokio::task::AbortHandle;
use tokio_util::task::TaskTracker;

use super::UNREAD_UPLOAD_TIMEOUT;
use super::http2::StreamSlot;
use crate::protocol::body::Body;

/// Bytes of the connection window that are claimed at once. h2 gets only claimed bytes, so it never buffers a body
/// behind a closed window of the peer.
const WINDOW_CLAIM: usize = 64 << 10;

/// Upload in progress. Dropping it aborts the upload and resets its stream unless that has ended.
#[derive(Debug)]
pub(super) struct Http2Upload {
    task: Option<AbortHandle>,
    /// Set once the whole response has arrived.
    is_answered: Arc<AtomicBool>,
}

impl Http2Upload {
    /// Sends the body. Returns `None` if all of it has been sent already.
    pub(super) async fn start(
        body: Body,
        stream: SendStream<Bytes>,
        slot: Arc<StreamSlot>,
        tasks: &TaskTracker,
    ) -> Option<Self> {
        let is_answered = Arc::new(AtomicBool::new(false));
        let mut sending = Box::pin({
            let is_answered = Arc::clone(&is_answered);
            async move {
                send(body, stream, &is_answered).await;
                drop(slot);
            }
        });
        let first = poll_fn(|cx| Poll::Ready(sending.as_mut().poll(cx))).await;
        first.is_pending().then(|| Self { task: Some(tasks.spawn(sending).abort_handle()), is_answered })
    }

    /// Lets the upload go on after the response has ended, until it ends or stalls for [`UNREAD_UPLOAD_TIMEOUT`].
    pub(super) fn detach(mut self) {
        self.is_answered.store(true, Ordering::Relaxed);
        self.task = None;
    }
}

impl Drop for Http2Upload {
    fn drop(&mut self) {
        if let Some(task) = self.task.take() {
            task.abort();
        }
    }
}

async fn send(mut body: Body, mut stream: SendStream<Bytes>, is_answered: &AtomicBool) {
    loop {
        match next(&mut body, &mut stream).await {
            NextFrame::Frame(frame) => {
                let is_last = body.is_end_stream();
                let Ok(more) = send_frame(frame, is_last, &mut stream, is_answered).await else { return };
                if !more {
                    return;
                }
            }
            NextFrame::End => {
                let _ = stream.send_data(Bytes::new(), true); // fails on a stream that has ended
                return;
            }
            NextFrame::Failed => return stream.send_reset(Reason::INTERNAL_ERROR),
            NextFrame::Reset => return,
        }
    }
}

enum NextFrame {
    Frame(Frame<Bytes>),
    End,
    Failed,
    /// The peer has reset the stream.
    Reset,
}

async fn next(body: &mut Body, stream: &mut SendStream<Bytes>) -> NextFrame {
    poll_fn(|cx| {
        if stream.poll_reset(cx).is_ready() {
            return Poll::Ready(NextFrame::Reset);
        }
        Pin::new(&mut *body).poll_frame(cx).map(|frame| match frame {
            Some(Ok(frame)) => NextFrame::Frame(frame),
            Some(Err(error)) => {
                tracing::debug!(error, "request body failed");
                NextFrame::Failed
            }
            None => NextFrame::End,
        })
    })
    .await
}

/// Returns whether more frames may follow.
async fn send_frame(
    frame: Frame<Bytes>,
    is_last: bool,
    stream: &mut SendStream<Bytes>,
    is_answered: &AtomicBool,
) -> Result<bool, h2::Error> {
    let mut data = match frame.into_data() {
        Ok(data) => data,
        Err(frame) => {
            let Ok(trailers) = frame.into_trailers() else { return Ok(true) };
            stream.send_trailers(trailers)?;
            return Ok(false);
        }
    };
    if data.is_empty() && is_last {
        stream.send_data(data, true)?;
        return Ok(false);
    }
    while !data.is_empty() {
        stream.reserve_capacity(data.len().min(WINDOW_CLAIM));
        let claimed = claimed(stream, is_answered).await?;
        let chunk = data.split_to(claimed.min(data.len()));
        stream.send_data(chunk, is_last && data.is_empty())?;
    }
    Ok(!is_last)
}

/// Waits for a part of the claimed window. Fails if the peer resets the stream, or stalls after its response.
async fn claimed(stream: &mut SendStream<Bytes>, is_answered: &AtomicBool) -> Result<usize, h2::Error> {
    let mut timer = None;
    poll_fn(|cx| {
        loop {
            if let Poll::Ready(reset) = stream.poll_reset(cx) {
                return Poll::Ready(Err(reset.map_or_else(|error| error, h2::Error::from)));
            }
            match stream.capacity() {
                0 => match stream.poll_capacity(cx) {
                    Poll::Ready(Some(Ok(_))) => {}
                    Poll::Ready(Some(Err(error))) => return Poll::Ready(Err(error)),
                    Poll::Ready(None) => return Poll::Ready(Err(Reason::CANCEL.into())),
                    Poll::Pending => {
                        let sleep = || Box::pin(tokio::time::sleep(UNREAD_UPLOAD_TIMEOUT));
                        ready!(timer.get_or_insert_with(sleep).as_mut().poll(cx));
                        if is_answered.load(Ordering::Relaxed) {
                            return Poll::Ready(Err(Reason::CANCEL.into()));
                        }
                        timer = None;
                    }
                },
                claimed => return Poll::Ready(Ok(claimed)),
            }
        }
    })
    .await
}
