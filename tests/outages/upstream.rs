//! The upstream's side: TLS with HTTP/2 before the simulated upstream, on a port that can be closed for a while.

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

/// The port, and the server on it while there is one. A connection here is one to the simulated upstream, and ends with it.
pub(crate) struct Upstream {
    sim: Sim,
    address: SocketAddr,
    behind: SocketAddr,
    tls: TlsAcceptor,
    accepted: Arc<AtomicUsize>,
    /// Bound but never listening: nobody else can have the port while the server is gone.
    _port: TcpSocket,
    serving: Mutex<Option<AbortOnDropHandle<()>>>,
    _sim: AbortOnDropHandle<()>,
}

impl Upstream {
    /// Serves on a port of its own. Its certificate, of `localhost`, is written to `roots` for clients to trust.
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
        upstream.come_back().await?;
        Ok(upstream)
    }

    pub(crate) fn port(&self) -> u16 {
        self.address.port()
    }

    /// The connections that were ever accepted.
    pub(crate) fn accepted(&self) -> usize {
        self.accepted.load(Ordering::Relaxed)
    }

    /// Closes the port and cuts all connections, as when a process is killed: without a word of TLS or of HTTP/2.
    /// Returns when that is done.
    pub(crate) async fn go_away(&self) {
        if let Some(serving) = self.serving.lock().await.take() {
            serving.abort();
            // It was cancelled: that is no news.
            let _ = serving.await;
        }
        self.sim.wait_until(|seen| seen.connections == 0).await;
    }

    /// Listens again.
    pub(crate) async fn come_back(&self) -> io::Result<()> {
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
