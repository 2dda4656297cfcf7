//! Where the simulated upstream listens: a port that can be closed for a while, as when its process is gone.

use std::io;
use std::net::SocketAddr;

use clipgate::sim::Sim;
use clipgate::testing::socket;
use tokio::net::TcpSocket;
use tokio::sync::Mutex;
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::AbortOnDropHandle;

/// The port, and the server on it while there is one.
pub(crate) struct Upstream {
    sim: Sim,
    address: SocketAddr,
    /// Bound but never listening: nobody else can have the port while the server is gone.
    _port: TcpSocket,
    serving: Mutex<Option<(DropGuard, AbortOnDropHandle<()>)>>,
}

impl Upstream {
    /// Serves on a port of its own.
    pub(crate) async fn start(sim: Sim) -> io::Result<Self> {
        let port = TcpSocket::new_v4()?;
        port.set_reuseaddr(true)?;
        port.bind(([127, 0, 0, 1], 0).into())?;
        let address = port.local_addr()?;
        let upstream = Self { sim, address, _port: port, serving: Mutex::new(None) };
        upstream.come_back().await?;
        Ok(upstream)
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Closes the port and all connections, and comes back when that is done.
    pub(crate) async fn go_away(&self) {
        if let Some((stop, task)) = self.serving.lock().await.take() {
            drop(stop);
            // A panic of it is counted as such.
            let _ = task.await;
        }
    }

    /// Listens again.
    pub(crate) async fn come_back(&self) -> io::Result<()> {
        let stop = CancellationToken::new();
        let served = self.sim.clone().serve(socket::listen(self.address)?, stop.clone().cancelled_owned());
        *self.serving.lock().await = Some((stop.drop_guard(), AbortOnDropHandle::new(tokio::spawn(served))));
        Ok(())
    }
}
