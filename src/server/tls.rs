//! TLS of clients: certificates from files, loaded again at a reload.
//!
//! A handshake uses the certificates that are current at its start. An open connection keeps its own.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use arc_swap::ArcSwap;
use rustls::pki_types::pem::{self, PemObject as _};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{VerifierBuilderError, WebPkiClientVerifier};
use rustls::{RootCertStore, ServerConfig};
use tokio_rustls::TlsAcceptor;

use crate::config;

/// Reason why TLS cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The file cannot be read, or is not PEM.
    #[error("server.tls.{key}: {path} cannot be read as PEM")]
    File {
        /// Key of the configuration that names the file.
        key: &'static str,
        path: PathBuf,
        source: pem::Error,
    },
    /// The file contains no certificate.
    #[error("server.tls.{key}: {path} holds no certificate")]
    NoCertificate {
        /// Key of the configuration that names the file.
        key: &'static str,
        path: PathBuf,
    },
    /// `client_ca` cannot be used to verify clients.
    #[error("server.tls.client_ca: these certificates cannot be used to verify clients")]
    ClientCa(#[source] VerifierBuilderError),
    /// The certificate and the key do not match, or are of an unsupported type.
    #[error("server.tls: the certificate and its key cannot be used together")]
    Pair(#[source] rustls::Error),
}

/// TLS settings that a reload replaces.
#[derive(Debug)]
pub(super) struct ReloadableTls(ArcSwap<ServerConfig>);

impl ReloadableTls {
    pub(super) fn new(config: &config::TlsConfig) -> Result<Self, TlsError> {
        Ok(Self(ArcSwap::new(load(config)?)))
    }

    /// Returns an acceptor for one handshake, with the current settings.
    pub(super) fn acceptor(&self) -> TlsAcceptor {
        TlsAcceptor::from(self.0.load_full())
    }

    /// Sets the settings of all later handshakes.
    pub(super) fn replace(&self, config: Arc<ServerConfig>) {
        self.0.store(config);
    }
}

/// Loads the files.
pub(super) fn load(config: &config::TlsConfig) -> Result<Arc<ServerConfig>, TlsError> {
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

    /// Writes a certificate and its key to files.
    fn pair(dir: &Path, name: &str) -> config::TlsConfig {
        let generated = rcgen::generate_simple_self_signed([name.to_owned()]).unwrap();
        let (cert, key) = (dir.join(format!("{name}.pem")), dir.join(format!("{name}.key")));
        std::fs::write(&cert, generated.cert.pem()).unwrap();
        std::fs::write(&key, generated.signing_key.serialize_pem()).unwrap();
        config::TlsConfig { cert, key, client_ca: None }
    }

    #[test]
    fn an_error_names_the_key_of_the_invalid_file() {
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
            let error = load(config).unwrap_err().to_string();
            assert!(error.starts_with(start), "{error}");
        }
        assert_eq!(rows.len(), 6);
        assert!(load(&good).is_ok() && load(&other).is_ok());
    }
}
