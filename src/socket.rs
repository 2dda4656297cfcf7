//! Listening TCP sockets of the gateway and the simulator.

use std::io;
use std::net::SocketAddr;

use tokio::net::{TcpListener, TcpSocket};

/// Connections that wait to be accepted. The kernel caps this at `net.core.somaxconn`, 4096 by default.
pub(crate) const BACKLOG: u32 = 4096;

/// Listens with a queue of `BACKLOG` connections, so that a thousand clients can connect at one moment without a retry.
/// With port 0 the system chooses a port. Must be called within a runtime.
pub fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    // As in std: a restart can bind the port while old connections are in TIME_WAIT.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}
