//! Opens connections to the upstream: DNS, TCP, TLS, all within `upstream.connect_timeout`.
//!
//! The [`SendError`] separates a lack of descriptors in the gateway from a fault of the upstream (P12).

use std::error::Error as StdError;
use std::fs::File;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use http::Uri;
use hyper_util::client::legacy::connect::HttpConnector;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tower_service::Service as _;

use super::target::BaseUrl;
use super::{ClientError, PROBE_INTERVAL, PROBE_TIMEOUT, SendError};

/// ALPN names (RFC 7301).
const HTTP2: &[u8] = b"h2";
const HTTP1: &[u8] = b"http/1.1";

/// HTTP versions that the client offers over TLS. Without TLS it speaks HTTP/1.1.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Protocols {
    /// HTTP/2 if the upstream offers it.
    Any,
    Http1,
}

pub(super) struct Connector {
    tcp: HttpConnector,
    tls: Option<(TlsConnector, ServerName<'static>)>,
    origin: Uri,
    timeout: Duration,
}

/// Open connection, TLS included.
pub(super) struct Dialed {
    pub(super) stream: Stream,
    pub(super) is_http2: bool,
}

impl Connector {
    pub(super) fn new(
        base: &BaseUrl,
        mut tls: rustls::ClientConfig,
        protocols: Protocols,
        timeout: Duration,
    ) -> Result<Self, ClientError> {
        tls.alpn_protocols = match protocols {
            Protocols::Any => vec![HTTP2.to_vec(), HTTP1.to_vec()],
            Protocols::Http1 => vec![HTTP1.to_vec()],
        };
        let tls = if base.is_https() {
            let name = ServerName::try_from(base.host_name().to_owned()).map_err(|_| ClientError::BaseUrl)?;
            Some((TlsConnector::from(Arc::new(tls)), name))
        } else {
            None
        };
        let mut tcp = HttpConnector::new();
        tcp.enforce_http(false);
        tcp.set_nodelay(true);
        tcp.set_keepalive(Some(PROBE_INTERVAL));
        tcp.set_keepalive_interval(Some(PROBE_TIMEOUT));
        tcp.set_keepalive_retries(Some(3));
        tcp.set_connect_timeout(Some(timeout)); // divided among the addresses of the name
        let origin = base.origin().ok_or(ClientError::BaseUrl)?;
        Ok(Self { tcp, tls, origin, timeout })
    }

    pub(super) fn timeout(&self) -> Duration {
        self.timeout
    }

    /// Returns whether connections may use HTTP/2.
    pub(super) fn may_speak_http2(&self) -> bool {
        self.tls.as_ref().is_some_and(|(tls, _)| tls.config().alpn_protocols.iter().any(|name| name == HTTP2))
    }

    /// Opens a connection. Cancel safe: dropping the future abandons it.
    pub(super) async fn connect(&self) -> Result<Dialed, SendError> {
        match tokio::time::timeout(self.timeout, self.connect_without_timeout()).await {
            Ok(connected) => connected.map_err(connect_error),
            Err(_) => Err(timed_out()),
        }
    }

    async fn connect_without_timeout(&self) -> Result<Dialed, Box<dyn StdError + Send + Sync>> {
        let mut connector = self.tcp.clone();
        let tcp = connector.call(self.origin.clone()).await?.into_inner();
        let Some((tls, name)) = &self.tls else {
            return Ok(Dialed { stream: Stream::Plain(tcp), is_http2: false });
        };
        let stream = tls.connect(name.clone(), tcp).await?;
        let is_http2 = stream.get_ref().1.alpn_protocol() == Some(HTTP2);
        Ok(Dialed { stream: Stream::Tls(Box::new(stream)), is_http2 })
    }
}

/// Returns the error of a request that has waited for a connection for `upstream.connect_timeout`.
pub(super) fn timed_out() -> SendError {
    SendError::ConnectTimeout(Arc::new(io::Error::from(io::ErrorKind::TimedOut)))
}

fn connect_error(error: Box<dyn StdError + Send + Sync>) -> SendError {
    let cause = cause(&*error);
    let error = Arc::from(error);
    match cause {
        Some(ConnectFault::TimedOut) => SendError::ConnectTimeout(error),
        Some(ConnectFault::Tls) => SendError::Tls(error),
        Some(ConnectFault::LocalResources) => SendError::LocalResources(error),
        Some(ConnectFault::Network) => SendError::Connect(error),
        // The C library resolves names. It may not report that it could not open a socket.
        None if is_out_of_descriptors() => SendError::LocalResources(error),
        None => SendError::Connect(error),
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ConnectFault {
    TimedOut,
    Tls,
    LocalResources,
    /// Any other error of the system.
    Network,
}

/// Searches the chain of sources. `io::Error::source` skips the error it wraps, so that one is unwrapped.
fn cause(error: &(dyn StdError + 'static)) -> Option<ConnectFault> {
    if error.is::<rustls::Error>() {
        return Some(ConnectFault::Tls);
    }
    if let Some(io) = error.downcast_ref::<io::Error>() {
        if is_resource_exhaustion(io) {
            return Some(ConnectFault::LocalResources);
        }
        if io.kind() == io::ErrorKind::TimedOut {
            return Some(ConnectFault::TimedOut);
        }
        if io.raw_os_error().is_some() {
            return Some(ConnectFault::Network);
        }
        if let Some(inner) = io.get_ref() {
            return cause(inner);
        }
    }
    error.source().and_then(cause)
}

/// Returns whether this process or machine has no more descriptors or memory.
fn is_resource_exhaustion(error: &io::Error) -> bool {
    /// ENFILE, EMFILE: the same numbers on Linux, macOS and the BSDs.
    const NO_DESCRIPTORS: [i32; 2] = [23, 24];
    /// "No buffer space available".
    const ENOBUFS: i32 = if cfg!(target_os = "linux") { 105 } else { 55 };
    error.kind() == io::ErrorKind::OutOfMemory
        || error.raw_os_error().is_some_and(|code| code == ENOBUFS || NO_DESCRIPTORS.contains(&code))
}

/// Returns whether no file can be opened now for lack of descriptors.
fn is_out_of_descriptors() -> bool {
    File::open("/dev/null").is_err_and(|error| is_resource_exhaustion(&error))
}

#[derive(Debug)]
pub(super) enum Stream {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

impl Stream {
    /// Waits until a read may return bytes. Always ready over TLS, which may have decrypted bytes.
    pub(super) fn poll_read_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Plain(tcp) => tcp.poll_read_ready(cx),
            Self::Tls(_) => Poll::Ready(Ok(())),
        }
    }

    /// Returns whether the peer has closed the stream or has sent bytes. May take one of them.
    pub(super) fn is_readable(&mut self) -> bool {
        let mut byte = [0; 1];
        match self {
            Self::Plain(tcp) => {
                !matches!(tcp.try_read(&mut byte), Err(error) if error.kind() == io::ErrorKind::WouldBlock)
            }
            Self::Tls(tls) => {
                let mut cx = Context::from_waker(Waker::noop());
                Pin::new(tls).poll_read(&mut cx, &mut ReadBuf::new(&mut byte)).is_ready()
            }
        }
    }
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(tcp) => Pin::new(tcp).poll_read(cx, buf),
            Self::Tls(tls) => Pin::new(tls).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(tcp) => Pin::new(tcp).poll_write(cx, bytes),
            Self::Tls(tls) => Pin::new(tls).poll_write(cx, bytes),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(tcp) => Pin::new(tcp).poll_write_vectored(cx, bufs),
            Self::Tls(tls) => Pin::new(tls).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Plain(tcp) => tcp.is_write_vectored(),
            Self::Tls(tls) => tls.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(tcp) => Pin::new(tcp).poll_flush(cx),
            Self::Tls(tls) => Pin::new(tls).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(tcp) => Pin::new(tcp).poll_shutdown(cx),
            Self::Tls(tls) => Pin::new(tls).poll_shutdown(cx),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn classified(error: io::Error) -> SendError {
        connect_error(Box::new(error))
    }

    #[test]
    fn a_lack_of_descriptors_or_memory_is_not_a_fault_of_the_upstream() {
        for code in [23, 24, 12] {
            let error = classified(io::Error::from_raw_os_error(code));
            assert!(matches!(error, SendError::LocalResources(_)), "{code}: {error:?}");
            assert_eq!((error.reason(), error.may_have_been_sent()), ("local-resources", false));
            // as hyper-util's connector and TLS wrap it
            let wrapped = classified(io::Error::other(io::Error::from_raw_os_error(code)));
            assert!(matches!(wrapped, SendError::LocalResources(_)), "{code}: {wrapped:?}");
        }
        for code in [111, 113, 104] {
            let error = classified(io::Error::from_raw_os_error(code));
            assert!(matches!(error, SendError::Connect(_)), "{code}: {error:?}");
        }
        assert!(matches!(classified(io::ErrorKind::TimedOut.into()), SendError::ConnectTimeout(_)));
        assert!(matches!(classified(io::Error::other(rustls::Error::DecryptError)), SendError::Tls(_)));
        assert!(matches!(classified(io::Error::other("name not known")), SendError::Connect(_)));
    }
}
