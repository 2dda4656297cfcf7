//! TLS from clients: certificates read from files, and read again while the gateway runs.
//!
//! A handshake takes what is current when it begins; a connection keeps what it began with.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use arc_swap::ArcSwap;
use rustls::pki_types::pem::{self, PemObject as _};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{VerifierBuilderError, WebPkiClientVerifier};
use rustls::{RootCertStore, ServerConfig};
use tokio_rustls::TlsAcceptor;

use crate::config;

/// Why there is no TLS.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read, or is no PEM.
    #[error("server.tls.{key}: {path} cannot be read as PEM")]
    File {
        /// Which of the keys names it.
        key: &'static str,
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: pem::Error,
    },
    /// A file that should have certificates has none.
    #[error("server.tls.{key}: {path} holds no certificate")]
    NoCertificate {
        /// Which of the keys names it.
        key: &'static str,
        /// The file.
        path: PathBuf,
    },
    /// `client_ca` cannot be checked against.
    #[error("server.tls.client_ca: these certificates cannot vouch for clients")]
    ClientCa(#[source] VerifierBuilderError),
    /// Certificate and key are no pair, or of a kind that is not known.
    #[error("server.tls: the certificate and its key cannot be used")]
    Pair(#[source] rustls::Error),
}

/// What handshakes are made with.
#[derive(Debug)]
pub(super) struct Tls(ArcSwap<ServerConfig>);

impl Tls {
    pub(super) fn new(config: &config::TlsConfig) -> Result<Self, TlsError> {
        Ok(Self(ArcSwap::new(read(config)?)))
    }

    /// For one handshake, with what is current.
    pub(super) fn acceptor(&self) -> TlsAcceptor {
        TlsAcceptor::from(self.0.load_full())
    }

    /// For handshakes from now on.
    pub(super) fn replace(&self, config: Arc<ServerConfig>) {
        self.0.store(config);
    }
}

/// What the files say now.
pub(super) fn read(config: &config::TlsConfig) -> Result<Arc<ServerConfig>, TlsError> {
    let chain = certificates("cert", &config.cert)?;
    let key = PrivateKeyDer::from_pem_file(&config.key).map_err(|source| TlsError::File {
        key: "key",
        path: config.key.clone(),
        source,
    })?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(TlsError::Pair)?;
    let builder = match &config.client_ca {
        None => builder.with_no_client_auth(),
        Some(path) => {
            let mut roots = RootCertStore::empty();
            for certificate in certificates("client_ca", path)? {
                roots.add(certificate).map_err(TlsError::Pair)?;
            }
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build();
            builder.with_client_cert_verifier(verifier.map_err(TlsError::ClientCa)?)
        }
    };
    let mut tls = builder.with_single_cert(chain, key).map_err(TlsError::Pair)?;
    tls.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Arc::new(tls))
}

fn certificates(key: &'static str, path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let all: Vec<_> = CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect)
        .map_err(|source| TlsError::File { key, path: path.to_owned(), source })?;
    match all.is_empty() {
        true => Err(TlsError::NoCertificate { key, path: path.to_owned() }),
        false => Ok(all),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Certificate and key of a server, in files.
    fn pair(dir: &Path, name: &str) -> config::TlsConfig {
        let made = rcgen::generate_simple_self_signed([name.to_owned()]).unwrap();
        let (cert, key) = (dir.join(format!("{name}.pem")), dir.join(format!("{name}.key")));
        std::fs::write(&cert, made.cert.pem()).unwrap();
        std::fs::write(&key, made.signing_key.serialize_pem()).unwrap();
        config::TlsConfig { cert, key, client_ca: None }
    }

    #[test]
    fn a_bad_file_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let (good, other) = (pair(dir.path(), "good"), pair(dir.path(), "other"));
        let empty = dir.path().join("empty.pem");
        std::fs::write(&empty, "").unwrap();
        let missing = dir.path().join("missing.pem");
        let rows = [
            (config::TlsConfig { cert: missing.clone(), ..good.clone() }, "server.tls.cert: "),
            (config::TlsConfig { cert: empty.clone(), ..good.clone() }, "server.tls.cert: "),
            (config::TlsConfig { key: empty.clone(), ..good.clone() }, "server.tls.key: "),
            (
                config::TlsConfig { key: other.key.clone(), ..good.clone() },
                "server.tls: the certificate and its key",
            ),
            (config::TlsConfig { client_ca: Some(empty), ..good.clone() }, "server.tls.client_ca: "),
            (config::TlsConfig { client_ca: Some(missing), ..good.clone() }, "server.tls.client_ca: "),
        ];
        for (config, start) in &rows {
            let error = read(config).unwrap_err().to_string();
            assert!(error.starts_with(start), "{error}");
        }
        assert_eq!(rows.len(), 6);
        assert!(read(&good).is_ok() && read(&other).is_ok());
    }
}
