//! Sends a request: its head, then its body as it arrives. A body of a declared length must have that length.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf as _, Bytes, BytesMut};
use http_body::{Body as HttpBody, Frame};
use tokio::io::AsyncWrite;

use super::Http1Fault;
use super::head::{UploadFraming, write_last_chunk};
use crate::protocol::body::Body;
use crate::upstream::client::SentNotice;
use crate::upstream::client::connect::Stream;

/// Bytes that are taken from the body before the first are written.
const MAX_PENDING: usize = 64 << 10;
/// Most pieces of one write.
const MAX_PIECES: usize = 16;

/// The part of a request that is not sent yet.
#[derive(Debug)]
pub(super) struct Http1Upload {
    head: BytesMut,
    /// Pieces of the body.
    queue: VecDeque<Bytes>,
    pending_bytes: usize,
    /// `None` once its end is in the queue.
    body: Option<(Body, UploadFraming)>,
    /// Used when the first byte is written.
    notice: Option<SentNotice>,
    /// Written bytes, the head included.
    written: u64,
    is_flushed: bool,
}

impl Http1Upload {
    pub(super) fn new(
        head: BytesMut,
        body: Option<(Body, UploadFraming)>,
        notice: Option<SentNotice>,
    ) -> Self {
        Self {
            pending_bytes: head.len(),
            head,
            queue: VecDeque::new(),
            body,
            notice,
            written: 0,
            is_flushed: true,
        }
    }

    pub(super) fn written(&self) -> u64 {
        self.written
    }

    /// Returns the body if no byte of the request was written and none was taken from the body.
    pub(super) fn into_unsent_body(self) -> Option<Option<Body>> {
        let is_unsent = self.written == 0 && self.queue.is_empty();
        is_unsent.then_some(self.body.map(|(body, _)| body))
    }

    /// Sends the request. Ready once all of it is written. Cancel safe.
    pub(super) fn poll(&mut self, stream: &mut Stream, cx: &mut Context<'_>) -> Poll<Result<(), Http1Fault>> {
        loop {
            // A body in memory goes out with the head. Any other could be lost with a connection that was closed.
            if self.written > 0 || matches!(self.body, Some((Body::Full(_), _))) {
                self.fill(cx)?;
            }
            if self.pending_bytes == 0 {
                if !self.is_flushed {
                    ready!(Pin::new(&mut *stream).poll_flush(cx))?;
                    self.is_flushed = true;
                }
                return if self.body.is_none() { Poll::Ready(Ok(())) } else { Poll::Pending };
            }
            ready!(self.write(stream, cx))?;
        }
    }

    /// Takes frames from the body as long as it has some and the queue is short.
    fn fill(&mut self, cx: &mut Context<'_>) -> Result<(), Http1Fault> {
        while self.pending_bytes < MAX_PENDING
            && let Some((body, framing)) = &mut self.body
        {
            let Poll::Ready(frame) = Pin::new(body).poll_frame(cx) else { return Ok(()) };
            let pieces = match frame {
                Some(frame) => framed(framing, frame.map_err(Http1Fault::Upload)?)?,
                None => {
                    let last = last_piece(framing)?;
                    self.body = None;
                    [Bytes::new(), last, Bytes::new()]
                }
            };
            for piece in pieces.into_iter().filter(|piece| !piece.is_empty()) {
                self.pending_bytes += piece.len();
                self.queue.push_back(piece);
            }
        }
        Ok(())
    }

    fn write(&mut self, stream: &mut Stream, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let stream = Pin::new(stream);
        let written = match self.queue.front() {
            // Most requests have no body.
            None => ready!(stream.poll_write(cx, &self.head))?,
            Some(_) => {
                let mut slices = [IoSlice::new(&[]); MAX_PIECES];
                let head = Some(&*self.head).filter(|head| !head.is_empty());
                let pieces = head.into_iter().chain(self.queue.iter().map(|piece| &**piece));
                let count =
                    pieces.zip(&mut slices).map(|(piece, slice)| *slice = IoSlice::new(piece)).count();
                ready!(stream.poll_write_vectored(cx, &slices[..count]))?
            }
        };
        if written == 0 {
            return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
        }
        self.written += written as u64;
        self.is_flushed = false;
        if let Some(notice) = self.notice.take() {
            let _ = notice.send(()); // the caller may have been cancelled
        }
        self.pending_bytes -= written;
        let of_head = written.min(self.head.len());
        self.head.advance(of_head);
        if self.head.is_empty() {
            self.head = BytesMut::new(); // an exchange may last long after its head
        }
        let mut left = written - of_head;
        while let Some(piece) = self.queue.front_mut() {
            if piece.len() > left {
                piece.advance(left);
                break;
            }
            left -= piece.len();
            self.queue.pop_front();
        }
        Poll::Ready(Ok(()))
    }
}

/// Returns the bytes of a frame: the data between the size of its chunk and a line end. Keeps trailers for the end.
fn framed(framing: &mut UploadFraming, frame: Frame<Bytes>) -> Result<[Bytes; 3], Http1Fault> {
    match (framing, frame.into_data()) {
        (UploadFraming::Length(left), Ok(data)) => {
            *left = left.checked_sub(data.len() as u64).ok_or(Http1Fault::UploadLength)?;
            Ok([Bytes::new(), data, Bytes::new()])
        }
        (UploadFraming::Chunked { .. }, Ok(data)) if data.is_empty() => Ok(Default::default()),
        (UploadFraming::Chunked { .. }, Ok(data)) => {
            Ok([Bytes::from(format!("{:x}\r\n", data.len())), data, Bytes::from_static(b"\r\n")])
        }
        (UploadFraming::Chunked { trailers, .. }, Err(frame)) => {
            *trailers = frame.into_trailers().ok();
            Ok(Default::default())
        }
        (UploadFraming::Length(_), Err(_)) => Ok(Default::default()),
    }
}

fn last_piece(framing: &UploadFraming) -> Result<Bytes, Http1Fault> {
    match framing {
        UploadFraming::Length(0) => Ok(Bytes::new()),
        UploadFraming::Length(_) => Err(Http1Fault::UploadLength),
        UploadFraming::Chunked { allowed, trailers } => Ok(write_last_chunk(allowed, trailers.as_ref())),
    }
}
