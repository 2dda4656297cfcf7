//! The connections: accepts them, serves each in the protocol its client speaks, ends them all at the end.
//!
//! Every task here, hyper's for HTTP/2 streams included, is tracked and ended by `serve`: a held poll stops
//! nobody. It knows nothing of clips.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::rt::Executor;
use hyper::service::service_fn;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use hyper_util::server::conn::auto;
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::recorder::ConnectionGuard;
use super::{Sim, SimState, api, debug_endpoints};

/// How long to pause when no connection can be accepted: mostly for want of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

pub(super) async fn serve(sim: Sim, listener: TcpListener, until: impl Future<Output = ()>) {
    let tasks = Tasks::default();
    // If this future is dropped, the tasks still end.
    let _ends = tasks.stop.clone().drop_guard();
    let mut until = std::pin::pin!(until);
    loop {
        // Cancel safe: `accept` loses no connection, `until` stays.
        let accepted = tokio::select! {
            () = &mut until => break,
            accepted = listener.accept() => accepted,
        };
        let Ok((stream, _)) = accepted else {
            // Cancel safe: a pause.
            tokio::select! {
                () = &mut until => break,
                () = tokio::time::sleep(ACCEPT_PAUSE) => continue,
            }
        };
        if !is_refused(&sim) {
            tasks.execute(until_reset(sim.clone(), stream, tasks.clone()));
        }
    }
    drop(listener);
    tasks.stop.cancel();
    tasks.tracker.close();
    tasks.tracker.wait().await;
}

fn is_refused(sim: &Sim) -> bool {
    let SimState { faults, rng, .. } = &mut *sim.0.state.lock();
    faults.refuses_connection(rng)
}

/// The tasks of one `serve`, all ended together.
#[derive(Clone, Default)]
struct Tasks {
    tracker: TaskTracker,
    stop: CancellationToken,
}

impl<F: Future<Output: Send> + Send + 'static> Executor<F> for Tasks {
    fn execute(&self, task: F) {
        self.tracker.spawn(self.stop.clone().run_until_cancelled_owned(task));
    }
}

/// Serves a connection until its end, or until all connections are reset.
async fn until_reset(sim: Sim, stream: TcpStream, tasks: Tasks) {
    let (mut resets, wire) = (sim.0.resets.subscribe(), Arc::new(ConnectionControl::default()));
    let _connected = ConnectionGuard::new(&sim);
    let reset = async {
        let _ = resets.changed().await;
        wire.reset();
    };
    // Cancel safe: the connection is given up with all that is under way on it.
    tokio::select! {
        () = connection(sim.clone(), stream, Arc::clone(&wire), tasks) => {}
        () = reset => {}
    }
}

async fn connection(sim: Sim, stream: TcpStream, wire: Arc<ConnectionControl>, tasks: Tasks) {
    // Small answers must not wait for acknowledgements. A socket that is already gone shows itself below.
    let _ = stream.set_nodelay(true);
    let socket = ResettableSocket { stream, wire: Arc::clone(&wire) };
    let service = service_fn(|request| api::answer(sim.clone(), Arc::clone(&wire), request));
    // A client that goes away or breaks the protocol ends its own connection; nobody needs to be told.
    let _ = auto::Builder::new(tasks).serve_connection_with_upgrades(TokioIo::new(socket), service).await;
    let tunnel = wire.tunnel.lock().take();
    if let Some(tunnel) = tunnel {
        let _ = debug_endpoints::echo_tunnel(tunnel).await;
    }
}

/// What a request may do to its connection.
#[derive(Default)]
pub(super) struct ConnectionControl {
    is_reset: AtomicBool,
    tunnel: Mutex<Option<OnUpgrade>>,
}

impl ConnectionControl {
    /// When the connection ends, it ends with a TCP RST.
    pub(super) fn reset(&self) {
        self.is_reset.store(true, Ordering::Relaxed);
    }

    /// When HTTP is done on the connection, it becomes a tunnel.
    pub(super) fn tunnel(&self, upgrade: OnUpgrade) {
        *self.tunnel.lock() = Some(upgrade);
    }
}

/// The connection's socket, which can be closed rudely.
struct ResettableSocket {
    stream: TcpStream,
    wire: Arc<ConnectionControl>,
}

impl Drop for ResettableSocket {
    fn drop(&mut self) {
        if self.wire.is_reset.load(Ordering::Relaxed) {
            // If it fails, the connection is closed all the same, only more politely.
            let _ = self.stream.set_zero_linger();
        }
    }
}

impl AsyncRead for ResettableSocket {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for ResettableSocket {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.wire.is_reset.load(Ordering::Relaxed) {
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
