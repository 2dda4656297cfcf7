//! The sockets that clients connect to: bound here, or handed over by the service manager.
//!
//! It knows addresses and files, and nothing of what is said on a connection. A unix socket's file belongs to its
//! [`Listener`], which removes it; one that was handed over belongs to who made it.

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

/// Who may connect to a unix socket: the gateway's user and group.
const SOCKET_MODE: u32 = 0o660;

/// A socket that clients can connect to.
#[derive(Debug)]
pub struct Listener {
    socket: Socket,
}

#[derive(Debug)]
enum Socket {
    Tcp(TcpListener),
    /// `None`: the file is somebody else's.
    Unix(UnixListener, Option<SocketFile>),
}

impl Listener {
    /// Binds an address. A unix socket that nobody listens on any more is replaced, any other file is not. The new
    /// one has mode 0660, whatever the umask.
    pub async fn bind(listen: &Listen) -> io::Result<Self> {
        let socket = match listen {
            Listen::Tcp(address) => Socket::Tcp(socket::listen(*address)?),
            Listen::Unix(path) => {
                let (socket, file) = match bind_unix(path) {
                    Err(error) if error.kind() == io::ErrorKind::AddrInUse && is_stale(path).await => {
                        fs::remove_file(path)?;
                        bind_unix(path)?
                    }
                    bound => bound?,
                };
                Socket::Unix(socket, Some(file))
            }
        };
        Ok(Self { socket })
    }

    /// The sockets that the service manager hands over (`LISTEN_FDS`); none, mostly. To be asked once, before
    /// anything else reads the environment: what says so is taken out of it.
    pub fn activated() -> io::Result<Vec<Self>> {
        let mut passed = ListenFd::from_env();
        (0..passed.len()).map(|place| Self::take(&mut passed, place)).collect()
    }

    fn take(passed: &mut ListenFd, place: usize) -> io::Result<Self> {
        let gone = || io::Error::other("the socket was taken twice");
        // Only trying tells of which kind it is.
        let socket = if let Ok(socket) = passed.take_tcp_listener(place) {
            let socket = socket.ok_or_else(gone)?;
            socket.set_nonblocking(true)?;
            Socket::Tcp(TcpListener::from_std(socket)?)
        } else {
            let socket = passed.take_unix_listener(place)?.ok_or_else(gone)?;
            socket.set_nonblocking(true)?;
            Socket::Unix(UnixListener::from_std(socket)?, None)
        };
        Ok(Self { socket })
    }

    /// Where it listens, with the real port.
    pub fn address(&self) -> io::Result<Listen> {
        match &self.socket {
            Socket::Tcp(socket) => socket.local_addr().map(Listen::Tcp),
            Socket::Unix(_, Some(file)) => Ok(Listen::Unix(file.path.clone())),
            Socket::Unix(socket, None) => {
                let address = socket.local_addr()?;
                Ok(Listen::Unix(address.as_pathname().unwrap_or(Path::new("unnamed")).to_owned()))
            }
        }
    }

    /// Accepts what stands in the system's queue at this moment, whether or not the runtime has heard of it yet; `None`
    /// where nothing does.
    fn accept_waiting(&self) -> io::Result<Option<Accepted>> {
        let accepted = match &self.socket {
            Socket::Tcp(socket) => SockRef::from(socket).accept().and_then(|(stream, address)| {
                stream.set_nonblocking(true)?;
                let address = address.as_socket().ok_or(io::ErrorKind::InvalidData)?;
                Ok(Accepted::Tcp(TcpStream::from_std(stream.into())?, address))
            }),
            Socket::Unix(socket, _) => SockRef::from(socket).accept().and_then(|(stream, _)| {
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
            Socket::Tcp(socket) => socket
                .poll_accept(cx)
                .map(|accepted| accepted.map(|(stream, address)| Accepted::Tcp(stream, address))),
            Socket::Unix(socket, _) => {
                socket.poll_accept(cx).map(|accepted| accepted.map(|(stream, _)| Accepted::Unix(stream)))
            }
        }
    }
}

/// The address of a TCP listener, for those who asked for port 0.
pub fn tcp_address(listener: &Listener) -> Option<SocketAddr> {
    match listener.address() {
        Ok(Listen::Tcp(address)) => Some(address),
        Ok(Listen::Unix(_)) | Err(_) => None,
    }
}

/// A client's connection.
pub(crate) enum Accepted {
    Tcp(TcpStream, SocketAddr),
    Unix(UnixStream),
}

/// Several listeners, each of which has its turn.
pub(crate) struct Listeners {
    all: Vec<Listener>,
    first: usize,
}

impl Listeners {
    pub(crate) fn new(all: Vec<Listener>) -> Self {
        Self { all, first: 0 }
    }

    /// The next connection on any of them. Cancel safe: a connection that is not returned stays in the queue.
    pub(crate) async fn accept(&mut self) -> io::Result<Accepted> {
        std::future::poll_fn(|cx| {
            for n in 0..self.all.len() {
                let place = (self.first + n) % self.all.len();
                if let Poll::Ready(accepted) = self.all[place].poll_accept(cx) {
                    self.first = place + 1;
                    return Poll::Ready(accepted);
                }
            }
            Poll::Pending
        })
        .await
    }

    /// All connections that stand in the system's queues at this moment, [`BACKLOG`] of each listener at most. What
    /// fails with one ends the listener's turn: the others go on.
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
    // Before it listens, nobody can connect: so no client slips in under a wider mode.
    fs::set_permissions(path, Permissions::from_mode(SOCKET_MODE))?;
    Ok((socket.listen(BACKLOG)?, file))
}

async fn is_stale(path: &Path) -> bool {
    // Other files refuse connections too.
    let is_socket = fs::symlink_metadata(path).is_ok_and(|file| file.file_type().is_socket());
    let refused = UnixStream::connect(path).await.err();
    is_socket && refused.is_some_and(|error| error.kind() == io::ErrorKind::ConnectionRefused)
}

/// A unix socket's file. Dropping it removes the file, unless another has taken its place.
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

    fn place() -> (tempfile::TempDir, Listen, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("gw.sock");
        (dir, Listen::Unix(path.clone()), path)
    }

    #[tokio::test]
    async fn a_unix_socket_is_for_its_user_and_group_and_goes_with_its_listener() {
        let (_dir, listen, path) = place();
        let listener = Listener::bind(&listen).await.unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o660);
        assert_eq!(listener.address().unwrap(), listen);
        drop(listener);
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn a_stale_socket_is_replaced() {
        let (_dir, listen, path) = place();
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        assert!(path.exists());
        Listener::bind(&listen).await.unwrap();
    }

    #[tokio::test]
    async fn a_socket_that_somebody_listens_on_is_left_alone() {
        let (_dir, listen, path) = place();
        let first = Listener::bind(&listen).await.unwrap();
        assert_eq!(Listener::bind(&listen).await.unwrap_err().kind(), io::ErrorKind::AddrInUse);
        assert!(path.exists());
        drop(first);
    }

    #[tokio::test]
    async fn a_file_that_is_no_socket_is_left_alone() {
        let (_dir, listen, path) = place();
        fs::write(&path, "precious").unwrap();
        assert_eq!(Listener::bind(&listen).await.unwrap_err().kind(), io::ErrorKind::AddrInUse);
        assert_eq!(fs::read(&path).unwrap(), b"precious");
    }

    #[tokio::test]
    async fn a_file_that_took_the_sockets_place_stays() {
        let (_dir, listen, path) = place();
        let old = Listener::bind(&listen).await.unwrap();
        fs::remove_file(&path).unwrap();
        let new = Listener::bind(&listen).await.unwrap();
        drop(old);
        assert!(path.exists());
        drop(new);
    }

    #[tokio::test]
    async fn what_stands_in_the_queues_is_accepted_though_the_runtime_has_not_heard_of_it() {
        let (_dir, unix, path) = place();
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
    async fn every_listener_is_accepted_from() {
        let (_dir, unix, path) = place();
        let tcp = Listener::bind(&Listen::Tcp(([127, 0, 0, 1], 0).into())).await.unwrap();
        let address = tcp_address(&tcp).unwrap();
        let mut listeners = Listeners::new(vec![tcp, Listener::bind(&unix).await.unwrap()]);
        let (_a, _b) = tokio::try_join!(TcpStream::connect(address), TcpStream::connect(address)).unwrap();
        let _c = UnixStream::connect(&path).await.unwrap();
        let mut kinds = Vec::new();
        for _ in 0..3 {
            kinds.push(matches!(listeners.accept().await.unwrap(), Accepted::Tcp(..)));
        }
        assert_eq!(kinds, [true, false, true], "the busy one does not keep the other from its turn");
    }
}
