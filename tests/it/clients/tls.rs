//! TLS from clients.
use std::net::SocketAddr;
use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::harness::process::{TestClient, TestEnv, get, within_timeout};

/// A certificate authority.
pub(crate) struct Authority {
    certificate: rcgen::Certificate,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    pub(crate) fn new() -> Self {
        let mut params = CertificateParams::new([]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        Self { certificate: params.self_signed(&key).unwrap(), issuer: Issuer::new(params, key) }
    }

    fn sign(&self, name: &str) -> (rcgen::Certificate, KeyPair) {
        let key = KeyPair::generate().unwrap();
        let certificate =
            CertificateParams::new([name.to_owned()]).unwrap().signed_by(&key, &self.issuer).unwrap();
        (certificate, key)
    }

    /// Writes a certificate of the gateway, its key and that of the authority into the configured files.
    pub(crate) fn write_certificate(&self, env: &TestEnv, name: &str) {
        let (certificate, key) = self.sign(name);
        std::fs::write(env.path("cert.pem"), certificate.pem()).unwrap();
        std::fs::write(env.path("key.pem"), key.serialize_pem()).unwrap();
        std::fs::write(env.path("ca.pem"), self.certificate.pem()).unwrap();
    }

    pub(crate) async fn connect(
        &self,
        address: SocketAddr,
        protocol: &str,
        client: Option<(rcgen::Certificate, KeyPair)>,
    ) -> std::io::Result<TlsStream<TcpStream>> {
        let mut roots = RootCertStore::empty();
        roots.add(self.certificate.der().clone()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots);
        let mut config = match client {
            None => builder.with_no_client_auth(),
            Some((certificate, key)) => {
                let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
                builder.with_client_auth_cert(vec![certificate.der().clone()], key).unwrap()
            }
        };
        config.alpn_protocols = vec![protocol.as_bytes().to_vec()];
        let stream = TcpStream::connect(address).await.unwrap();
        let name = ServerName::try_from("gw.example").unwrap();
        within_timeout("a handshake", TlsConnector::from(Arc::new(config)).connect(name, stream)).await
    }
}

pub(crate) const TLS: &str = "tls = { cert = \"cert.pem\", key = \"key.pem\" }";

fn peer_certificate(stream: &TlsStream<TcpStream>) -> CertificateDer<'static> {
    stream.get_ref().1.peer_certificates().unwrap()[0].clone().into_owned()
}

#[tokio::test]
async fn the_client_chooses_the_http_version_by_alpn() {
    let (env, authority) = (TestEnv::new().await, Authority::new());
    authority.write_certificate(&env, "gw.example");
    env.configure(TLS);
    let mut gateway = env.start();
    let address = gateway.address().await;

    let stream = authority.connect(address, "http/1.1", None).await.unwrap();
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"http/1.1"[..]));
    assert_eq!(TestClient::h1(stream).await.get("/x", &[]).await.status(), 404);

    let stream = authority.connect(address, "h2", None).await.unwrap();
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
    let answer = TestClient::h2(stream).await.get("https://gw.example/x", &[]).await;
    assert_eq!((answer.status().as_u16(), answer.version()), (404, http::Version::HTTP_2));
}

#[tokio::test]
async fn with_client_ca_a_client_certificate_is_required() {
    let (env, authority, other) = (TestEnv::new().await, Authority::new(), Authority::new());
    authority.write_certificate(&env, "gw.example");
    env.configure("tls = { cert = \"cert.pem\", key = \"key.pem\", client_ca = \"ca.pem\" }");
    let mut gateway = env.start();
    let address = gateway.address().await;

    let known = Some(authority.sign("client.example"));
    let stream = authority.connect(address, "http/1.1", known).await.unwrap();
    assert_eq!(TestClient::h1(stream).await.get("/x", &[]).await.status(), 404);

    // In TLS 1.3 the client completes its handshake before the server rejects the certificate.
    for client in [None, Some(other.sign("client.example"))] {
        if let Ok(stream) = authority.connect(address, "http/1.1", client).await {
            assert!(TestClient::h1(stream).await.send(get("/x", &[])).await.is_err());
        }
    }
}

#[tokio::test]
async fn a_connection_without_a_handshake_is_closed_after_header_timeout() {
    let (env, authority) = (TestEnv::new().await, Authority::new());
    authority.write_certificate(&env, "gw.example");
    env.configure(&format!("{TLS}\nheader_timeout = \"300ms\"\nmax_connections = 1"));
    let mut gateway = env.start();
    let address = gateway.address().await;
    let mut silent = TcpStream::connect(address).await.unwrap();
    let mut rest = Vec::new();
    within_timeout("its end", tokio::io::AsyncReadExt::read_to_end(&mut silent, &mut rest)).await.unwrap();
    let stream = authority.connect(address, "http/1.1", None).await.unwrap();
    let certificate = peer_certificate(&stream);
    assert_eq!(TestClient::h1(stream).await.get("/x", &[]).await.status(), 404);
    assert!(!certificate.is_empty());
}

#[tokio::test]
async fn an_unreadable_certificate_is_named_at_the_start() {
    let env = TestEnv::new().await;
    env.configure(TLS);
    let mut gateway = env.start();
    let log = gateway.rest_of_log().await.join("\n");
    assert!(log.contains("server.tls.cert: cert.pem cannot be read as PEM"), "{log}");
    assert_eq!(gateway.wait_for_exit().await.code(), Some(2));
}

#[tokio::test]
async fn sighup_replaces_the_certificate_and_drops_no_connection() {
    let (env, authority) = (TestEnv::new().await, Authority::new());
    authority.write_certificate(&env, "gw.example");
    env.configure(TLS);
    let mut gateway = env.start();
    let address = gateway.address().await;
    let stream = authority.connect(address, "h2", None).await.unwrap();
    let before = peer_certificate(&stream);
    let mut old = TestClient::h2(stream).await;
    assert_eq!(old.get("https://gw.example/x", &[]).await.status(), 404);

    authority.write_certificate(&env, "gw.example");
    gateway.signal("HUP");
    gateway.wait_for_log("configuration reloaded").await;
    let stream = authority.connect(address, "h2", None).await.unwrap();
    let after = peer_certificate(&stream);
    assert_ne!(before, after);
    assert_eq!(TestClient::h2(stream).await.get("https://gw.example/x", &[]).await.status(), 404);
    assert_eq!(old.get("https://gw.example/x", &[]).await.status(), 404, "the old connection is open");

    std::fs::write(env.path("key.pem"), "no key").unwrap();
    gateway.signal("HUP");
    let line = gateway.wait_for_log("configuration rejected").await;
    assert!(line.contains("server.tls.key: key.pem holds no private key"), "{line}");
    assert_eq!(peer_certificate(&authority.connect(address, "h2", None).await.unwrap()), after);
}
