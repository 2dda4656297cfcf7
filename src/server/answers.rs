//! The answers that are under way on a connection: what stands between hyper and the socket must know whether there
//! are any, since hyper does not say.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};

use crate::body::{Body, BoxError};

/// The service's answers on one connection, as far as their bytes may still be written. Clones are the same.
#[derive(Clone, Debug, Default)]
pub(super) struct Answers(Arc<Underway>);

#[derive(Debug, Default)]
struct Underway {
    begun: AtomicUsize,
    /// Some ended since the last flush: hyper may hold their last bytes.
    unflushed: AtomicBool,
    /// The connection is no HTTP any more.
    is_tunnel: AtomicBool,
}

impl Answers {
    /// An answer is under way from now until what comes back is dropped, and its last bytes are flushed.
    pub(super) fn begin(&self) -> Answering {
        self.0.begun.fetch_add(1, Ordering::Relaxed);
        self.0.unflushed.store(true, Ordering::Relaxed);
        Answering(self.clone())
    }

    /// The same for a tunnel, which the connection becomes.
    pub(super) fn begin_tunnel(&self) -> Answering {
        self.0.is_tunnel.store(true, Ordering::Relaxed);
        self.begin()
    }

    /// Whether somebody waits for one: whoever hangs up now does so before its time.
    pub(super) fn are_awaited(&self) -> bool {
        self.0.begun.load(Ordering::Relaxed) > 0 && !self.0.is_tunnel.load(Ordering::Relaxed)
    }

    /// Whether every byte of them is with the client, or on its way.
    pub(super) fn are_out(&self) -> bool {
        self.0.begun.load(Ordering::Relaxed) == 0 && !self.0.unflushed.load(Ordering::Relaxed)
    }

    /// hyper flushes when it has written all it has.
    pub(super) fn flushed(&self) {
        if self.0.begun.load(Ordering::Relaxed) == 0 {
            self.0.unflushed.store(false, Ordering::Relaxed);
        }
    }
}

/// One answer that is under way.
#[derive(Debug)]
pub(super) struct Answering(Answers);

impl Answering {
    /// The answer's body, which is under way as long as it lives.
    pub(super) fn with(self, body: Body) -> AnsweringBody {
        AnsweringBody { body, _answering: self }
    }
}

impl Drop for Answering {
    fn drop(&mut self) {
        self.0.0.begun.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A body that says when hyper is done with it.
pub(super) struct AnsweringBody {
    body: Body,
    _answering: Answering,
}

impl HttpBody for AnsweringBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        Pin::new(&mut self.get_mut().body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
