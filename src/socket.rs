//! Listening TCP sockets, for the gateway's listeners and the simulator's.

use std::io;
use std::net::SocketAddr;

use tokio::net::{TcpListener, TcpSocket};

/// Connections that may wait to be accepted. The kernel takes no more than `net.core.somaxconn`, 4096 by default.
pub(crate) const BACKLOG: u32 = 4096;

/// Listens on this address with a queue of 4096 connections, so that a thousand clients that come at one moment are
/// not made to connect again. Port 0 takes any that is free. Must be called within a runtime.
///
/// # Errors
///
/// When the address cannot be had.
pub fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    // As std does: a port whose last connections are still being closed can be had again at once.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}
