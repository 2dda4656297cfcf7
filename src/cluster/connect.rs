//! Opens connections to servers of the engine: DNS, TCP, TLS, greeting.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, ProtocolVersion, PushInfo, RedisConnectionInfo, RedisError};
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio_rustls::TlsConnector;

use super::names::{SHARDS, ShardIndex};
use crate::config::EngineUrl;

/// Time for all of it.
pub(super) const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Idle time after which the system probes a connection, and time between the probes.
const PROBE_INTERVAL: Duration = Duration::from_secs(5);
/// Commands between the link and its connection.
const PIPELINE: usize = 1024;
/// Messages that were read and not handled. A replica that falls further behind reads its polls again on a new link.
pub(super) const MAX_PUSHES: usize = 16_384;

/// Failure to open a connection.
#[derive(Debug, thiserror::Error)]
pub(super) enum ConnectError {
    #[error("no connection within 5 seconds")]
    TimedOut,
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error("the host is not a valid name for TLS")]
    HostName,
    #[error("no TLS: {0}")]
    Tls(#[from] rustls::Error),
    #[error(transparent)]
    Engine(#[from] RedisError),
    #[error("the engine closed the connection")]
    Closed,
    #[error(
        "the TLS handshake failed: {0}. The gateway trusts the certificate authorities of the system, or those of the file in \
         SSL_CERT_FILE"
    )]
    Handshake(io::Error),
    #[error("no sentinel knows a primary with the name of cluster.master")]
    NoPrimary,
    #[error("no node of the cluster knows the owners of all slots")]
    NoOwner,
    #[error("this server is a node of a Redis Cluster: set cluster.mode to \"cluster\"")]
    InCluster,
}

type ConnectionDriver = Pin<Box<dyn Future<Output = ()> + Send>>;

/// An open connection to one server. The caller polls `driver`; it ends with the connection.
pub(super) struct ServerConnection {
    pub(super) commands: MultiplexedConnection,
    pub(super) driver: ConnectionDriver,
}

/// Open connections to all servers of the engine: one, or the nodes of a Redis Cluster. The caller polls `driver`; it ends
/// with the first of the connections.
pub(super) struct EngineConnection {
    pub(super) nodes: EngineNodes,
    pub(super) pushes: mpsc::Receiver<PushInfo>,
    /// Whether a message found the channel full, and is lost.
    pub(super) has_lost: Arc<AtomicBool>,
    pub(super) driver: ConnectionDriver,
}

/// Channel of the messages of all servers.
#[derive(Clone)]
pub(super) struct PushSink {
    pub(super) sender: mpsc::Sender<PushInfo>,
    pub(super) has_lost: Arc<AtomicBool>,
}

impl PushSink {
    /// Passes a message on, or notes that it is lost: the crate drops this error.
    fn send(&self, push: PushInfo) -> Result<(), mpsc::error::TrySendError<PushInfo>> {
        self.sender.try_send(push).inspect_err(|_| self.has_lost.store(true, Ordering::Relaxed))
    }
}

/// Ways of commands to the owners of their shards.
pub(super) struct EngineNodes {
    all: Vec<MultiplexedConnection>,
    of_shard: [usize; SHARDS as usize],
}

impl EngineConnection {
    /// Joins connections to the owners of these shards, which share the channel of messages.
    pub(super) fn new(
        servers: Vec<(ServerConnection, Vec<ShardIndex>)>,
        (pushes, has_lost): (mpsc::Receiver<PushInfo>, Arc<AtomicBool>),
    ) -> Self {
        let mut nodes = EngineNodes { all: Vec::new(), of_shard: [0; SHARDS as usize] };
        let mut drivers = FuturesUnordered::new();
        for (index, (server, shards)) in servers.into_iter().enumerate() {
            nodes.all.push(server.commands);
            shards.iter().for_each(|shard| nodes.of_shard[usize::from(shard.number())] = index);
            drivers.push(server.driver);
        }
        let driver = Box::pin(async move { _ = drivers.next().await });
        Self { nodes, pushes, has_lost, driver }
    }
}

impl EngineNodes {
    pub(super) fn all(&self) -> &[MultiplexedConnection] {
        &self.all
    }

    /// Returns the index of the owner of a shard.
    pub(super) fn index_of(&self, shard: ShardIndex) -> usize {
        self.of_shard[usize::from(shard.number())]
    }

    pub(super) fn of(&self, shard: ShardIndex) -> &MultiplexedConnection {
        &self.all[self.index_of(shard)]
    }
}

/// Opens a connection. Cancel safe: dropping the future abandons it.
pub(super) async fn connect(
    url: &EngineUrl,
    tls: Option<&Arc<rustls::ClientConfig>>,
    pushes: PushSink,
) -> Result<ServerConnection, ConnectError> {
    match tokio::time::timeout(CONNECT_TIMEOUT, connect_without_timeout(url, tls, pushes)).await {
        Ok(connected) => connected,
        Err(_) => Err(ConnectError::TimedOut),
    }
}

async fn connect_without_timeout(
    url: &EngineUrl,
    tls: Option<&Arc<rustls::ClientConfig>>,
    pushes: PushSink,
) -> Result<ServerConnection, ConnectError> {
    let tcp = TcpStream::connect((url.host.as_str(), url.port)).await?;
    tcp.set_nodelay(true)?;
    let probes = socket2::TcpKeepalive::new().with_time(PROBE_INTERVAL).with_interval(PROBE_INTERVAL);
    socket2::SockRef::from(&tcp).set_tcp_keepalive(&probes)?;
    let mut greeting = RedisConnectionInfo::default()
        .set_protocol(ProtocolVersion::RESP3)
        .set_db(url.database)
        .set_skip_set_lib_name();
    if let Some(password) = &url.password {
        greeting = greeting.set_password(password.expose());
    }
    if let Some(user) = &url.user {
        greeting = greeting.set_username(user);
    }
    // A full channel loses a message. The link ends then.
    let settings = AsyncConnectionConfig::new()
        .set_response_timeout(None)
        .set_connection_timeout(None)
        .set_pipeline_buffer_size(PIPELINE)
        .set_push_sender(move |push| pushes.send(push));
    let (commands, driver): (_, ConnectionDriver) = match tls.filter(|_| url.is_tls) {
        Some(tls) => {
            let name = ServerName::try_from(url.host.clone()).map_err(|_| ConnectError::HostName)?;
            let stream = TlsConnector::from(Arc::clone(tls))
                .connect(name, tcp)
                .await
                .map_err(ConnectError::Handshake)?;
            let (commands, driver) =
                MultiplexedConnection::new_with_config(&greeting, stream, settings).await?;
            (commands, Box::pin(driver))
        }
        None => {
            let (commands, driver) = MultiplexedConnection::new_with_config(&greeting, tcp, settings).await?;
            (commands, Box::pin(driver))
        }
    };
    Ok(ServerConnection { commands, driver })
}
