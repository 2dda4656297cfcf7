//! Sockets that clients connect to: bound by the gateway, or passed by the service manager.
//!
//! This module knows addresses and files, not the bytes of a connection. A [`Listener`] owns the file of a unix
//! socket that it bound, and removes it. The file of a passed socket belongs to the service manager.

use std::fs::{self, Permissions};
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::task::{Context, Poll};

use listenfd::ListenFd;
use socket2::SockRef;
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixSocket, UnixStream};

use crate::config::Listen;
use crate::socket::{self, BACKLOG};

/// Mode of a unix socket: the user and the group of the gateway may connect.
const SOCKET_MODE: u32 = 0o660;

/// Socket that clients can connect to.
#[derive(Debug)]
pub struct Listener {
    socket: ListenerSocket,
}

#[derive(Debug)]
enum ListenerSocket {
    Tcp(TcpListener),
    /// `None`: another process owns the file.
    Unix(UnixListener, Option<SocketFile>),
}

impl Listener {
    /// Binds an address. Replaces the file of a unix socket on which no process listens any more, and no other file.
    /// The new file has mode 0660 under any umask.
    pub async fn bind(listen: &Listen) -> io::Result<Self> {
        let socket = match listen {
            Listen::Tcp(address) => ListenerSocket::Tcp(socket::listen(*address)?),
            Listen::Unix(path) => {
                let (socket, file) = match bind_unix(path) {
                    Err(error) if error.kind() == io::ErrorKind::AddrInUse && is_stale(path).await => {
                        fs::remove_file(path)?;
                        bind_unix(path)?
                    }
                    bound => bound?,
                };
                ListenerSocket::Unix(socket, Some(file))
            }
        };
        Ok(Self { socket })
    }

    /// Returns the sockets that the service manager passes (`LISTEN_FDS`), mostly none. Call it once, before other
    /// code reads the environment: it removes these variables.
    pub fn activated() -> io::Result<Vec<Self>> {
        let mut passed = ListenFd::from_env();
        (0..passed.len()).map(|index| Self::take(&mut passed, index)).collect()
    }

    fn take(passed: &mut ListenFd, index: usize) -> io::Result<Self> {
        let gone = || io::Error::other("passed socket was already taken");
        // The type of a passed socket shows only when it is used.
        let socket = if let Ok(socket) = passed.take_tcp_listener(index) {
            let socket = socket.ok_or_else(gone)?;
            socket.set_nonblocking(true)?;
            ListenerSocket::Tcp(TcpListener::from_std(socket)?)
        } else {
            let socket = passed.take_unix_listener(index)?.ok_or_else(gone)?;
            socket.set_nonblocking(true)?;
            ListenerSocket::Unix(UnixListener::from_std(socket)?, None)
        };
        Ok(Self { socket })
    }

    /// Returns the address, with the real port.
    pub fn address(&self) -> io::Result<Listen> {
        match &self.socket {
            ListenerSocket::Tcp(socket) => socket.local_addr().map(Listen::Tcp),
            ListenerSocket::Unix(_, Some(file)) => Ok(Listen::Unix(file.path.clone())),
            ListenerSocket::Unix(socket, None) => {
                let address = socket.local_addr()?;
                Ok(Listen::Unix(address.as_pathname().unwrap_or(Path::new("unnamed")).to_owned()))
            }
        }
    }

    /// Accepts a connection from the queue of the system, even if the runtime has not been notified of it yet.
    /// Returns `None` if the queue is empty.
    fn accept_waiting(&self) -> io::Result<Option<Accepted>> {
        let accepted = match &self.socket {
            ListenerSocket::Tcp(socket) => SockRef::from(socket).accept().and_then(|(stream, address)| {
                stream.set_nonblocking(true)?;
                let address = address.as_socket().ok_or(io::ErrorKind::InvalidData)?;
                Ok(Accepted::Tcp(TcpStream::from_std(stream.into())?, address))
            }),
            ListenerSocket::Unix(socket, _) => SockRef::from(socket).accept().and_then(|(stream, _)| {
                stream.set_nonblocking(true)?;
                Ok(Accepted::Unix(UnixStream::from_std(stream.into())?))
            }),
        };
        match accepted {
            Ok(accepted) => Ok(Some(accepted)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn poll_accept(&self, cx: &mut Context<'_>) -> Poll<io::Result<Accepted>> {
        match &self.socket {
            ListenerSocket::Tcp(socket) => socket
                .poll_accept(cx)
                .map(|accepted| accepted.map(|(stream, address)| Accepted::Tcp(stream, address))),
            ListenerSocket::Unix(socket, _) => {
                socket.poll_accept(cx).map(|accepted| accepted.map(|(stream, _)| Accepted::Unix(stream)))
            }
        }
    }
}

/// Returns the address of a TCP listener, for callers that bound port 0.
pub fn tcp_address(listener: &Listener) -> Option<SocketAddr> {
    match listener.address() {
        Ok(Listen::Tcp(address)) => Some(address),
        Ok(Listen::Unix(_)) | Err(_) => None,
    }
}

/// Connection of a client.
pub(crate) enum Accepted {
    Tcp(TcpStream, SocketAddr),
    Unix(UnixStream),
}

/// Several listeners that take turns.
pub(crate) struct Listeners {
    all: Vec<Listener>,
    first: usize,
}

impl Listeners {
    pub(crate) fn new(all: Vec<Listener>) -> Self {
        Self { all, first: 0 }
    }

    /// Returns the next connection of any listener. Cancel safe: a connection that is not returned stays in the
    /// queue.
    pub(crate) async fn accept(&mut self) -> io::Result<Accepted> {
        std::future::poll_fn(|cx| {
            for n in 0..self.all.len() {
                let index = (self.first + n) % self.all.len();
                if let Poll::Ready(accepted) = self.all[index].poll_accept(cx) {
                    self.first = index + 1;
                    return Poll::Ready(accepted);
                }
            }
            Poll::Pending
        })
        .await
    }

    /// Returns all connections in the queues of the system, at most [`BACKLOG`] for each listener. An error ends the
    /// turn of that listener only.
    pub(crate) fn backlog(&self) -> impl Iterator<Item = Accepted> {
        self.all.iter().flat_map(|listener| {
            let waiting = std::iter::from_fn(move || listener.accept_waiting().ok().flatten());
            waiting.take(BACKLOG as usize)
        })
    }
}

fn bind_unix(path: &Path) -> io::Result<(UnixListener, SocketFile)> {
    let socket = UnixSocket::new_stream()?;
    socket.bind(path)?;
    let file = SocketFile::new(path)?;
    // The socket does not listen yet, so no client can connect while the mode is wider.
    fs::set_permissions(path, Permissions::from_mode(SOCKET_MODE))?;
    Ok((socket.listen(BACKLOG)?, file))
}

async fn is_stale(path: &Path) -> bool {
    // Connecting to other files is refused, too.
    let is_socket = fs::symlink_metadata(path).is_ok_and(|file| file.file_type().is_socket());
    let refused = UnixStream::connect(path).await.err();
    is_socket && refused.is_some_and(|error| error.kind() == io::ErrorKind::ConnectionRefused)
}

/// File of a unix socket. Dropping it removes the file, unless another file has replaced it.
#[derive(Debug)]
struct SocketFile {
    path: PathBuf,
    id: (u64, u64),
}

impl SocketFile {
    fn new(path: &Path) -> io::Result<Self> {
        Ok(Self { path: path.to_owned(), id: file_id(path)? })
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if file_id(&self.path).is_ok_and(|id| id == self.id) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn file_id(path: &Path) -> io::Result<(u64, u64)> {
    fs::symlink_metadata(path).map(|file| (file.dev(), file.ino()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn socket_in_temp_dir() -> (tempfile::TempDir, Listen, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("gw.sock");
        (dir, Listen::Unix(path.clone()), path)
    }

    #[tokio::test]
    async fn a_unix_socket_admits_its_user_and_group_and_is_removed_with_its_listener() {
        let (_dir, listen, path) = socket_in_temp_dir();
        let listener = Listener::bind(&listen).await.unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o660);
        assert_eq!(listener.address().unwrap(), listen);
        drop(listener);
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn a_listener_replaces_a_stale_socket() {
        let (_dir, listen, path) = socket_in_temp_dir();
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        assert!(path.exists());
        Listener::bind(&listen).await.unwrap();
    }

    #[tokio::test]
    async fn a_listener_does_not_replace_a_socket_that_another_process_listens_on() {
        let (_dir, listen, path) = socket_in_temp_dir();
        let first = Listener::bind(&listen).await.unwrap();
        assert_eq!(Listener::bind(&listen).await.unwrap_err().kind(), io::ErrorKind::AddrInUse);
        assert!(path.exists());
        drop(first);
    }

    #[tokio::test]
    async fn a_listener_does_not_replace_an_ordinary_file() {
        let (_dir, listen, path) = socket_in_temp_dir();
        fs::write(&path, "precious").unwrap();
        assert_eq!(Listener::bind(&listen).await.unwrap_err().kind(), io::ErrorKind::AddrInUse);
        assert_eq!(fs::read(&path).unwrap(), b"precious");
    }

    #[tokio::test]
    async fn a_listener_does_not_remove_a_file_that_replaced_its_socket() {
        let (_dir, listen, path) = socket_in_temp_dir();
        let old = Listener::bind(&listen).await.unwrap();
        fs::remove_file(&path).unwrap();
        let new = Listener::bind(&listen).await.unwrap();
        drop(old);
        assert!(path.exists());
        drop(new);
    }

    #[tokio::test]
    async fn backlog_accepts_connections_before_the_runtime_is_notified_of_them() {
        let (_dir, unix, path) = socket_in_temp_dir();
        let tcp = Listener::bind(&Listen::Tcp(([127, 0, 0, 1], 0).into())).await.unwrap();
        let address = tcp_address(&tcp).unwrap();
        let listeners = Listeners::new(vec![tcp, Listener::bind(&unix).await.unwrap()]);
        assert_eq!(listeners.backlog().count(), 0);
        let clients: Vec<_> = (0..3).map(|_| std::net::TcpStream::connect(address).unwrap()).collect();
        let _d = std::os::unix::net::UnixStream::connect(&path).unwrap();
        let waiting: Vec<_> = listeners.backlog().collect();
        assert_eq!(waiting.iter().filter(|accepted| matches!(accepted, Accepted::Tcp(..))).count(), 3);
        assert_eq!(waiting.len(), 4);
        assert_eq!(listeners.backlog().count(), 0);
        drop(clients);
    }

    #[tokio::test]
    async fn a_busy_listener_does_not_delay_another() {
        let (_dir, unix, path) = socket_in_temp_dir();
        let tcp = Listener::bind(&Listen::Tcp(([127, 0, 0, 1], 0).into())).await.unwrap();
        let address = tcp_address(&tcp).unwrap();
        let mut listeners = Listeners::new(vec![tcp, Listener::bind(&unix).await.unwrap()]);
        let (_a, _b) = tokio::try_join!(TcpStream::connect(address), TcpStream::connect(address)).unwrap();
        let _c = UnixStream::connect(&path).await.unwrap();
        let mut kinds = Vec::new();
        for _ in 0..3 {
            kinds.push(matches!(listeners.accept().await.unwrap(), Accepted::Tcp(..)));
        }
        assert_eq!(kinds, [true, false, true], "listeners take turns");
    }
}
