//! The upstream: TLS with HTTP/2 in front of the simulated upstream, on a port that can be closed for a while.

use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use clipgate::sim::Sim;
use clipgate::testing::socket;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::Mutex;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_util::task::AbortOnDropHandle;

use crate::Failure;

/// The port, and the server on it while the port is open. Each connection has one to the simulated upstream, and ends with
/// it.
pub(crate) struct Upstream {
    sim: Sim,
    address: SocketAddr,
    behind: SocketAddr,
    tls: TlsAcceptor,
    accepted: Arc<AtomicUsize>,
    /// Bound but never listening: reserves the port while the server is gone.
    _port: TcpSocket,
    serving: Mutex<Option<AbortOnDropHandle<()>>>,
    _sim: AbortOnDropHandle<()>,
}

impl Upstream {
    /// Serves on a free port. Writes its certificate for `localhost` to `roots`, which the gateway trusts.
    pub(crate) async fn start(sim: Sim, roots: &Path) -> Result<Self, Failure> {
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()])?;
        std::fs::write(roots, made.cert.pem())?;
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(made.signing_key.serialize_der()));
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut tls = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(vec![made.cert.der().clone()], key)?;
        tls.alpn_protocols = vec![b"h2".to_vec()];

        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let behind = listener.local_addr()?;
        let serving = tokio::spawn(sim.clone().serve(listener, std::future::pending()));
        let port = TcpSocket::new_v4()?;
        port.set_reuseaddr(true)?;
        port.bind(([127, 0, 0, 1], 0).into())?;
        let upstream = Self {
            sim,
            address: port.local_addr()?,
            behind,
            tls: TlsAcceptor::from(Arc::new(tls)),
            accepted: Arc::default(),
            _port: port,
            serving: Mutex::new(None),
            _sim: AbortOnDropHandle::new(serving),
        };
        upstream.reopen().await?;
        Ok(upstream)
    }

    pub(crate) fn port(&self) -> u16 {
        self.address.port()
    }

    /// Returns the number of connections accepted so far.
    pub(crate) fn accepted(&self) -> usize {
        self.accepted.load(Ordering::Relaxed)
    }

    /// Closes the port and all connections without any TLS or HTTP/2 message, as when a process is killed. Returns when they
    /// are closed.
    pub(crate) async fn close(&self) {
        if let Some(serving) = self.serving.lock().await.take() {
            serving.abort();
            // Cancelled by the line above.
            let _ = serving.await;
        }
        self.sim.wait_until(|seen| seen.connections == 0).await;
    }

    /// Listens again.
    pub(crate) async fn reopen(&self) -> io::Result<()> {
        let listener = socket::listen(self.address)?;
        let (tls, behind, accepted) = (self.tls.clone(), self.behind, Arc::clone(&self.accepted));
        let serving = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                accepted.fetch_add(1, Ordering::Relaxed);
                let tls = tls.clone();
                connections.spawn(async move {
                    client.set_nodelay(true)?;
                    let mut client = tls.accept(client).await?;
                    let mut upstream = TcpStream::connect(behind).await?;
                    upstream.set_nodelay(true)?;
                    tokio::io::copy_bidirectional(&mut client, &mut upstream).await
                });
            }
        });
        *self.serving.lock().await = Some(AbortOnDropHandle::new(serving));
        Ok(())
    }
}
