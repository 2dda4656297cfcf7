//! Opens connections to the engine: the primary's address from the sentinels, DNS, TCP, TLS, greeting.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, ProtocolVersion, PushInfo, RedisConnectionInfo, RedisError};
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio_rustls::TlsConnector;

use super::link::send;
use crate::config::{ClusterConfig, EngineMode, EngineUrl};
use crate::tls_roots;

/// Time for all of it.
pub(super) const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Time for the answer of one sentinel.
const SENTINEL_TIMEOUT: Duration = Duration::from_secs(1);
/// Idle time after which the system probes a connection, and time between the probes.
const PROBE_INTERVAL: Duration = Duration::from_secs(5);
/// Commands between the link and its connection.
const PIPELINE: usize = 1024;
/// Messages that were read and not handled. A replica that falls further behind reads its polls again on a new link.
const MAX_PUSHES: usize = 16_384;

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
    #[error("no sentinel knows a primary with the name of cluster.master")]
    NoPrimary,
}

/// The servers of the configuration.
pub(super) struct EngineServers {
    pub(super) urls: Vec<EngineUrl>,
    /// Name of the primary, if the servers are sentinels.
    pub(super) master: Option<String>,
    pub(super) tls: Option<Arc<rustls::ClientConfig>>,
}

impl EngineServers {
    pub(super) fn new(config: &ClusterConfig) -> Result<Self, rustls::Error> {
        let urls = config.urls.clone();
        let tls =
            urls.iter().any(|url| url.is_tls).then(tls_roots::trusting_platform).transpose()?.map(Arc::new);
        let master = config.master.clone().filter(|_| config.mode == EngineMode::Sentinel);
        Ok(Self { urls, master, tls })
    }

    /// Opens a connection to the server, or to the primary that the sentinels name. Cancel safe: dropping the future abandons
    /// it.
    pub(super) async fn connect(&self) -> Result<(EngineConnection, EngineUrl), ConnectError> {
        let url = match &self.master {
            None => self.urls.first().cloned().ok_or(ConnectError::NoPrimary)?,
            Some(master) => self.primary(master).await?,
        };
        Ok((connect(&url, self.tls.as_ref()).await?, url))
    }

    /// Asks one sentinel after the other. A sentinel may need the credentials of the engine, or accept none.
    async fn primary(&self, master: &str) -> Result<EngineUrl, ConnectError> {
        let mut last = ConnectError::NoPrimary;
        for sentinel in &self.urls {
            let without = EngineUrl { user: None, password: None, database: 0, ..sentinel.clone() };
            let with = EngineUrl { database: 0, ..sentinel.clone() };
            for url in [Some(without), sentinel.password.is_some().then_some(with)].into_iter().flatten() {
                match tokio::time::timeout(SENTINEL_TIMEOUT, self.ask(&url, master)).await {
                    Ok(Ok((host, port))) => return Ok(EngineUrl { host, port, ..sentinel.clone() }),
                    Ok(Err(error)) => last = error,
                    Err(_) => last = ConnectError::TimedOut,
                }
            }
        }
        Err(last)
    }

    async fn ask(&self, sentinel: &EngineUrl, master: &str) -> Result<(String, u16), ConnectError> {
        let mut connection = connect(sentinel, self.tls.as_ref()).await?;
        let question = redis::cmd("SENTINEL").arg("GET-MASTER-ADDR-BY-NAME").arg(master).to_owned();
        // Cancel safe: both ends of the connection are given up together.
        let answer = tokio::select! {
            answer = send(&connection.commands, question) => answer?,
            () = &mut connection.driver => return Err(ConnectError::Closed),
        };
        let address: Option<(String, u16)> = redis::from_redis_value(answer).map_err(RedisError::from)?;
        address.ok_or(ConnectError::NoPrimary)
    }
}

/// An open connection. The caller polls `driver`; it ends with the connection.
pub(super) struct EngineConnection {
    pub(super) commands: MultiplexedConnection,
    pub(super) pushes: mpsc::Receiver<PushInfo>,
    pub(super) driver: Pin<Box<dyn Future<Output = ()> + Send>>,
}

/// Opens a connection. Cancel safe: dropping the future abandons it.
async fn connect(
    url: &EngineUrl,
    tls: Option<&Arc<rustls::ClientConfig>>,
) -> Result<EngineConnection, ConnectError> {
    match tokio::time::timeout(CONNECT_TIMEOUT, connect_without_timeout(url, tls)).await {
        Ok(connected) => connected,
        Err(_) => Err(ConnectError::TimedOut),
    }
}

async fn connect_without_timeout(
    url: &EngineUrl,
    tls: Option<&Arc<rustls::ClientConfig>>,
) -> Result<EngineConnection, ConnectError> {
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
    let (sender, pushes) = mpsc::channel(MAX_PUSHES);
    // A full channel loses a message. The link sees that it is full and ends.
    let settings = AsyncConnectionConfig::new()
        .set_response_timeout(None)
        .set_connection_timeout(None)
        .set_pipeline_buffer_size(PIPELINE)
        .set_push_sender(move |push| sender.try_send(push));
    let (commands, driver): (_, Pin<Box<dyn Future<Output = ()> + Send>>) = match tls.filter(|_| url.is_tls) {
        Some(tls) => {
            let name = ServerName::try_from(url.host.clone()).map_err(|_| ConnectError::HostName)?;
            let stream = TlsConnector::from(Arc::clone(tls)).connect(name, tcp).await?;
            let (commands, driver) =
                MultiplexedConnection::new_with_config(&greeting, stream, settings).await?;
            (commands, Box::pin(driver))
        }
        None => {
            let (commands, driver) = MultiplexedConnection::new_with_config(&greeting, tcp, settings).await?;
            (commands, Box::pin(driver))
        }
    };
    Ok(EngineConnection { commands, pushes, driver })
}
