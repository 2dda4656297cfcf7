//! Client of the admin listener, for `clipgate health` and `clipgate top`: one request on a new connection.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use bytes::Bytes;
use http::header::{AUTHORIZATION, HOST};
use http::{HeaderValue, Request, StatusCode};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};

use crate::config::Listen;

/// Largest response to a check, in bytes. The gateway's own are one word.
const MAX_CHECK: usize = 1 << 10;

/// Largest response with the state or the history, in bytes.
const MAX_STATE: usize = 16 << 20;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Check {
    Liveness,
    Readiness,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ProbeResponse {
    pub status: StatusCode,
    /// First line of the body, escaped for a terminal.
    pub word: String,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum ProbeError {
    #[error("does not accept connections")]
    Connect(#[source] io::Error),
    #[error("sent no HTTP response")]
    Http(#[source] hyper::Error),
    /// The body is too long or incomplete.
    #[error("sent a response that is not from a gateway")]
    Body,
}

impl Check {
    fn path(self) -> &'static str {
        match self {
            Self::Liveness => "/healthz",
            Self::Readiness => "/readyz",
        }
    }
}

/// Sends one check. There is no timeout: the caller sets one. Cancel safe: dropping the future closes the connection.
pub(crate) async fn probe(listen: &Listen, check: Check) -> Result<ProbeResponse, ProbeError> {
    let (status, body) = get(listen, check.path(), None, MAX_CHECK).await?;
    let body = String::from_utf8_lossy(&body);
    let word = body.lines().next().unwrap_or_default().chars().flat_map(char::escape_debug).collect();
    Ok(ProbeResponse { status, word })
}

/// Requests a JSON document, with the token of the listener if it has one. As cancel safe as [`probe`].
pub(crate) async fn fetch(
    listen: &Listen,
    path: &'static str,
    token: Option<&HeaderValue>,
) -> Result<(StatusCode, Bytes), ProbeError> {
    get(listen, path, token, MAX_STATE).await
}

async fn get(
    listen: &Listen,
    path: &'static str,
    token: Option<&HeaderValue>,
    max: usize,
) -> Result<(StatusCode, Bytes), ProbeError> {
    let mut request = Request::new(Empty::<Bytes>::new());
    *request.uri_mut() = http::Uri::from_static(path);
    request.headers_mut().insert(HOST, HeaderValue::from_static("localhost"));
    if let Some(token) = token {
        request.headers_mut().insert(AUTHORIZATION, token.clone());
    }
    match listen {
        Listen::Tcp(address) => {
            let stream = TcpStream::connect(connectable(*address)).await.map_err(ProbeError::Connect)?;
            send(stream, request, max).await
        }
        Listen::Unix(path) => {
            let stream = UnixStream::connect(path).await.map_err(ProbeError::Connect)?;
            send(stream, request, max).await
        }
    }
}

/// Replaces the unspecified address, on which a listener has all addresses, by the loopback address.
fn connectable(mut address: SocketAddr) -> SocketAddr {
    match address.ip() {
        IpAddr::V4(Ipv4Addr::UNSPECIFIED) => address.set_ip(Ipv4Addr::LOCALHOST.into()),
        IpAddr::V6(Ipv6Addr::UNSPECIFIED) => address.set_ip(Ipv6Addr::LOCALHOST.into()),
        IpAddr::V4(_) | IpAddr::V6(_) => {}
    }
    address
}

async fn send(
    stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    request: Request<Empty<Bytes>>,
    max: usize,
) -> Result<(StatusCode, Bytes), ProbeError> {
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(ProbeError::Http)?;
    let response = async move {
        let (head, body) = sender.send_request(request).await.map_err(ProbeError::Http)?.into_parts();
        let body = Limited::new(body, max).collect().await.map_err(|_| ProbeError::Body)?;
        Ok((head.status, body.to_bytes()))
    };
    tokio::pin!(connection);
    // Cancel safe: the connection ends with this function.
    tokio::select! {
        response = response => response,
        Err(error) = &mut connection => Err(ProbeError::Http(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_unspecified_address_is_reached_by_loopback() {
        let rows = [
            ("0.0.0.0:9090", "127.0.0.1:9090"),
            ("[::]:9090", "[::1]:9090"),
            ("192.0.2.7:1", "192.0.2.7:1"),
            ("[2001:db8::1]:1", "[2001:db8::1]:1"),
        ];
        for (listen, connect) in rows {
            assert_eq!(connectable(listen.parse().unwrap()), connect.parse().unwrap());
        }
        assert_eq!(rows.len(), 4);
    }
}
