//! The other end of the health routes: asks a gateway's admin listener how it is, as an orchestrator does.
//!
//! One request on a connection of its own. It must never know what becomes of the answer.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use bytes::Bytes;
use http::{HeaderValue, Request, StatusCode, header::HOST};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};

use crate::config::Listen;

/// The largest answer that is read, in bytes: the gateway's own are a word.
const MAX_ANSWER: usize = 1 << 10;

/// What is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Check {
    /// Whether the process lives.
    Liveness,
    /// Whether clients should be sent there.
    Readiness,
}

/// What came back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Health {
    /// 200 for yes.
    pub status: StatusCode,
    /// The first line of the answer; safe to show.
    pub word: String,
}

/// Why nothing came back.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ProbeError {
    /// Nobody listens there, or it cannot be reached.
    #[error("does not take connections")]
    Connect(#[source] io::Error),
    /// Somebody does who does not answer HTTP.
    #[error("gave no answer")]
    Http(#[source] hyper::Error),
    /// Or says too much, or breaks off.
    #[error("gave an answer that is not a gateway's")]
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

/// Asks whoever listens there. It takes as long as the other side does. Cancel safe: dropping the future closes the
/// connection.
pub(crate) async fn probe(listen: &Listen, question: Check) -> Result<Health, ProbeError> {
    match listen {
        Listen::Tcp(address) => {
            ask(TcpStream::connect(reachable(*address)).await.map_err(ProbeError::Connect)?, question).await
        }
        Listen::Unix(path) => {
            ask(UnixStream::connect(path).await.map_err(ProbeError::Connect)?, question).await
        }
    }
}

/// Who listens on all addresses listens on this machine's own.
fn reachable(mut address: SocketAddr) -> SocketAddr {
    match address.ip() {
        IpAddr::V4(Ipv4Addr::UNSPECIFIED) => address.set_ip(Ipv4Addr::LOCALHOST.into()),
        IpAddr::V6(Ipv6Addr::UNSPECIFIED) => address.set_ip(Ipv6Addr::LOCALHOST.into()),
        IpAddr::V4(_) | IpAddr::V6(_) => {}
    }
    address
}

async fn ask(
    stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    question: Check,
) -> Result<Health, ProbeError> {
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(ProbeError::Http)?;
    let mut request = Request::new(Empty::<Bytes>::new());
    *request.uri_mut() = http::Uri::from_static(question.path());
    request.headers_mut().insert(HOST, HeaderValue::from_static("localhost"));
    let answering = async move {
        let (head, body) = sender.send_request(request).await.map_err(ProbeError::Http)?.into_parts();
        let body = Limited::new(body, MAX_ANSWER).collect().await.map_err(|_| ProbeError::Body)?;
        Ok((head.status, body.to_bytes()))
    };
    tokio::pin!(connection);
    // Cancel safe: both go on where they were.
    let (status, body) = tokio::select! {
        answer = answering => answer?,
        Err(error) = &mut connection => return Err(ProbeError::Http(error)),
    };
    let body = String::from_utf8_lossy(&body);
    let word = body.lines().next().unwrap_or_default().chars().flat_map(char::escape_debug).collect();
    Ok(Health { status, word })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_listens_on_all_addresses_is_asked_on_this_machines_own() {
        let rows = [
            ("0.0.0.0:9090", "127.0.0.1:9090"),
            ("[::]:9090", "[::1]:9090"),
            ("192.0.2.7:1", "192.0.2.7:1"),
            ("[2001:db8::1]:1", "[2001:db8::1]:1"),
        ];
        for (listens, asked) in rows {
            assert_eq!(reachable(listens.parse().unwrap()), asked.parse().unwrap());
        }
        assert_eq!(rows.len(), 4);
    }
}
