//! The port of the simulated upstream, which a scenario can close for a while, as when the process is gone.

use std::io;
use std::net::SocketAddr;

use clipgate::sim::Sim;
use clipgate::testing::socket;
use tokio::net::TcpSocket;
use tokio::sync::Mutex;
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::AbortOnDropHandle;

/// The port, and the server on it while the port is open.
pub(crate) struct Upstream {
    sim: Sim,
    address: SocketAddr,
    /// Bound but never listening: reserves the port while the server is gone.
    _port: TcpSocket,
    serving: Mutex<Option<(DropGuard, AbortOnDropHandle<()>)>>,
}

impl Upstream {
    /// Serves on a free port.
    pub(crate) async fn start(sim: Sim) -> io::Result<Self> {
        let port = TcpSocket::new_v4()?;
        port.set_reuseaddr(true)?;
        port.bind(([127, 0, 0, 1], 0).into())?;
        let address = port.local_addr()?;
        let upstream = Self { sim, address, _port: port, serving: Mutex::new(None) };
        upstream.reopen().await?;
        Ok(upstream)
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Closes the port and all connections, and returns when they are closed.
    pub(crate) async fn close(&self) {
        if let Some((stop, task)) = self.serving.lock().await.take() {
            drop(stop);
            // FailureCounter counts a panic of the task.
            let _ = task.await;
        }
    }

    /// Listens again.
    pub(crate) async fn reopen(&self) -> io::Result<()> {
        let stop = CancellationToken::new();
        let served = self.sim.clone().serve(socket::listen(self.address)?, stop.clone().cancelled_owned());
        *self.serving.lock().await = Some((stop.drop_guard(), AbortOnDropHandle::new(tokio::spawn(served))));
        Ok(())
    }
}
