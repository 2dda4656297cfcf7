//! A request and its response on one connection.

use std::sync::Weak;
use std::task::{Context, Poll, ready};

use bytes::{Bytes, BytesMut};
use http::Method;
use http_body::Frame;

use super::decoder::{BodyDecoder, BodyPart};
use super::head::{HeadReader, ResponseStart, UploadFraming};
use super::upload::Http1Upload;
use super::{Http1, Http1Fault, READ_SIZES};
use crate::protocol::body::Body;
use crate::upstream::client::pool::Pool;
use crate::upstream::client::upgrade::UpstreamUpgrade;
use crate::upstream::client::{MAX_INTERIM, SentNotice};

/// Owns the connection until the response has ended and the request is sent.
#[derive(Debug)]
pub(super) struct Exchange {
    http1: Box<Http1>,
    reader: HeadReader,
    upload: Http1Upload,
    upload_state: UploadState,
    interim: usize,
    pool: Weak<Pool>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum UploadState {
    Sending,
    Sent,
    /// The peer takes no more of the request. It may still respond, but the connection is not used again.
    Stopped,
}

impl Exchange {
    pub(super) fn new(
        http1: Box<Http1>,
        head: BytesMut,
        body: Option<(Body, UploadFraming)>,
        notice: Option<SentNotice>,
        pool: Weak<Pool>,
    ) -> Self {
        let upload = Http1Upload::new(head, body, notice);
        let (reader, upload_state) = (HeadReader::default(), UploadState::Sending);
        Self { http1, reader, upload, upload_state, interim: 0, pool }
    }

    pub(super) fn upload_state(&self) -> UploadState {
        self.upload_state
    }

    /// Returns the bytes of the request that were written.
    pub(super) fn written(&self) -> u64 {
        self.upload.written()
    }

    /// Sends what the connection takes of the request. Fails if the request body fails; then the response is useless.
    pub(super) fn poll_upload(&mut self, cx: &mut Context<'_>) -> Result<(), Http1Fault> {
        if self.upload_state != UploadState::Sending {
            return Ok(());
        }
        match self.upload.poll(&mut self.http1.stream, cx) {
            Poll::Pending => {}
            Poll::Ready(Ok(())) => self.upload_state = UploadState::Sent,
            Poll::Ready(Err(Http1Fault::Io(error))) if self.written() > 0 => {
                tracing::debug!(%error, "the upstream takes no more of a request");
                self.upload_state = UploadState::Stopped;
            }
            Poll::Ready(Err(fault)) => return Err(fault),
        }
        Ok(())
    }

    /// Sends the request and waits for the head of the response.
    pub(super) fn poll_head(
        &mut self,
        method: &Method,
        cx: &mut Context<'_>,
    ) -> Poll<Result<ResponseStart, Http1Fault>> {
        self.poll_upload(cx)?;
        loop {
            while let Some(start) = self.reader.read(&mut self.http1.read, method)? {
                let status = start.response.status();
                if !status.is_informational() || status == http::StatusCode::SWITCHING_PROTOCOLS {
                    return Poll::Ready(Ok(start));
                }
                self.interim += 1;
                if self.interim > MAX_INTERIM {
                    return Poll::Ready(Err(Http1Fault::TooManyInterim));
                }
            }
            if ready!(self.http1.poll_read(cx))? == 0 {
                return Poll::Ready(Err(Http1Fault::Closed));
            }
        }
    }

    /// Returns the next frame of the response's body. `None` at its end.
    pub(super) fn poll_frame(
        &mut self,
        decoder: &mut BodyDecoder,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Option<Frame<Bytes>>, Http1Fault>> {
        loop {
            match decoder.decode(&mut self.http1.read)? {
                BodyPart::Data(data) => return Poll::Ready(Ok(Some(Frame::data(data)))),
                BodyPart::Trailers(trailers) => return Poll::Ready(Ok(Some(Frame::trailers(trailers)))),
                BodyPart::End => return Poll::Ready(Ok(None)),
                BodyPart::NeedsBytes => {}
            }
            if ready!(self.http1.poll_read(cx))? == 0 {
                decoder.close()?;
            }
        }
    }

    /// Takes the body if all of it has arrived and the request is sent. The response has then ended.
    pub(super) fn take_complete_body(&mut self, decoder: &mut BodyDecoder) -> Option<Bytes> {
        let is_sent = self.upload_state != UploadState::Sending;
        let bytes = is_sent.then(|| decoder.take_complete(&mut self.http1.read)).flatten()?;
        // Bytes keep the whole buffer, which is large once the connection has carried a long body.
        let is_small_part = self.http1.read_size > READ_SIZES.0.max(4 * bytes.len());
        Some(if is_small_part { Bytes::copy_from_slice(&bytes) } else { bytes })
    }

    /// Returns the connection to the pool. Called once the response has ended.
    pub(super) fn finish(self, keeps_alive: bool) {
        let Self { mut http1, upload_state, pool, .. } = self;
        if !keeps_alive || upload_state != UploadState::Sent || !http1.read.is_empty() {
            return;
        }
        http1.is_kept = true;
        if let Some(pool) = pool.upgrade() {
            pool.put_back(http1);
        }
    }

    /// Returns whether a byte of the request was written, and its body if it is still whole.
    pub(super) fn into_unsent_body(self) -> (bool, Option<Option<Body>>) {
        (self.upload.written() > 0, self.upload.into_unsent_body())
    }

    /// Returns the connection for another protocol.
    pub(super) fn into_upgraded(self) -> UpstreamUpgrade {
        UpstreamUpgrade::new(self.http1.stream, self.http1.read)
    }
}
