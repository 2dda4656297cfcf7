//! Upstream that speaks HTTP/2 over TLS, and the effect of its stream limit on waits.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

use crate::harness::process::{GatewayProcess, TestClient, TestEnv, completed_target, within_timeout};

/// Upstream that holds each poll for a status until it is released, and answers other requests at once.
struct Upstream {
    port: u16,
    /// Receives one value for each poll that is held.
    held: mpsc::UnboundedReceiver<()>,
    let_go: watch::Sender<bool>,
    handshakes: Arc<AtomicUsize>,
}

impl Upstream {
    /// `streams`: stream limit in the SETTINGS of each connection. Writes the certificate for the gateway to trust.
    async fn start(env: &TestEnv, streams: u32) -> Self {
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        std::fs::write(env.path("roots.pem"), made.cert.pem()).unwrap();
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(made.signing_key.serialize_der()));
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut tls = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![made.cert.der().clone()], key)
            .unwrap();
        tls.alpn_protocols = vec![b"h2".to_vec()];
        let acceptor = TlsAcceptor::from(Arc::new(tls));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let ((holds, held), (let_go, go)) = (mpsc::unbounded_channel(), watch::channel(false));
        let handshakes = Arc::new(AtomicUsize::new(0));
        let shaken = Arc::clone(&handshakes);
        tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                let (acceptor, shaken) = (acceptor.clone(), Arc::clone(&shaken));
                let (holds, go) = (holds.clone(), go.clone());
                tokio::spawn(async move {
                    let stream = acceptor.accept(socket).await.unwrap();
                    shaken.fetch_add(1, Ordering::Relaxed);
                    let service = service_fn(move |request| answer(request, holds.clone(), go.clone()));
                    let mut builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                    builder.max_concurrent_streams(streams);
                    let _ = builder.serve_connection(TokioIo::new(stream), service).await;
                });
            }
        });
        Self { port, held, let_go, handshakes }
    }

    async fn until_held(&mut self, count: usize) {
        for _ in 0..count {
            within_timeout("a poll", self.held.recv()).await.unwrap();
        }
    }

    fn handshakes(&self) -> usize {
        self.handshakes.load(Ordering::Relaxed)
    }
}

async fn answer(
    request: Request<Incoming>,
    holds: mpsc::UnboundedSender<()>,
    mut go: watch::Receiver<bool>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let query = request.uri().query().unwrap_or_default();
    let id = query.split('&').find_map(|part| part.strip_prefix("clip_id=")).unwrap_or_default();
    let status = if query.contains("status=") {
        let _ = holds.send(());
        let _ = go.wait_for(|go| *go).await;
        "complete"
    } else {
        "queued"
    };
    let body = format!("{{\"id\":\"{id}\",\"status\":\"{status}\"}}");
    Ok(Response::builder().header("content-type", "application/json").body(body.into()).unwrap())
}

async fn gateway(env: &TestEnv, upstream: &Upstream) -> GatewayProcess {
    let text = format!(
        "admin.listen = \"\"\nserver.listen = \"127.0.0.1:0\"\nupstream.base_url = \"https://localhost:{}\"\n\
         [limits]\nrequests_per_second = 1000\nburst = 1000\ncalls_per_second = 1000\ncalls_burst = 1000\n",
        upstream.port
    );
    std::fs::write(env.path("config.toml"), text).unwrap();
    let mut command = env.command();
    command.env("SSL_CERT_FILE", env.path("roots.pem"));
    GatewayProcess::spawn(command)
}

/// With one connection and a limit of 10 the eleventh poll waited behind the others, and so did every later one. A
/// burst on a cold gateway made one handshake for each wait.
#[tokio::test]
async fn more_waits_than_the_upstream_allows_on_a_connection_delay_no_client() {
    let env = TestEnv::new().await;
    let mut upstream = Upstream::start(&env, 10).await;
    let mut gateway = gateway(&env, &upstream).await;
    let address = gateway.address().await;
    let mut waits = JoinSet::new();
    for n in 0..12 {
        waits.spawn(async move {
            TestClient::connect(address).await.get(&completed_target(&format!("held-{n}")), &[]).await
        });
    }
    upstream.until_held(12).await;
    assert_eq!(upstream.handshakes(), 2);

    let short = completed_target("short").replace("&status=completed", "");
    let answer = TestClient::connect(address).await.get(&short, &[]).await;
    assert_eq!(
        (answer.status(), &answer.body()[..]),
        (StatusCode::OK, &b"{\"id\":\"short\",\"status\":\"queued\"}"[..])
    );
    assert_eq!(waits.len(), 12);

    upstream.let_go.send(true).unwrap();
    while let Some(answer) = waits.join_next().await {
        assert_eq!(answer.unwrap().status(), 200);
    }
}

#[tokio::test]
async fn sixty_waits_at_once_on_a_cold_gateway_make_one_handshake() {
    let env = TestEnv::new().await;
    let mut upstream = Upstream::start(&env, 100).await;
    let mut gateway = gateway(&env, &upstream).await;
    let address = gateway.address().await;
    let mut waits = JoinSet::new();
    for n in 0..60 {
        waits.spawn(async move {
            TestClient::connect(address).await.get(&completed_target(&format!("held-{n}")), &[]).await
        });
    }
    upstream.until_held(60).await;
    assert_eq!(upstream.handshakes(), 1);
    upstream.let_go.send(true).unwrap();
    while let Some(answer) = waits.join_next().await {
        assert_eq!(answer.unwrap().status(), 200);
    }
}
