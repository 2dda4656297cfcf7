//! TLS of clients: certificates from files, loaded again at a reload.
//!
//! A handshake uses the certificates that are current at its start. An open connection keeps its own.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use rustls::pki_types::pem::{self, PemObject as _};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{VerifierBuilderError, WebPkiClientVerifier};
use rustls::{RootCertStore, ServerConfig};
use tokio_rustls::TlsAcceptor;
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer as _;
use x509_parser::time::ASN1Time;

use crate::config;

/// Time before the end of a certificate from which on it is a warning.
const EXPIRY_NOTICE: Duration = Duration::from_secs(14 * 24 * 3600);

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
    /// The file contains no private key.
    #[error("server.tls.key: {path} holds no private key")]
    NoKey { path: PathBuf },
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
    let key = private_key(&config.key)?;
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

/// Opens the files, and loads them if each is valid alone. Returns all errors.
pub(crate) fn check_files(config: &config::TlsConfig) -> Vec<TlsError> {
    let files = [
        certificates("cert", &config.cert).err(),
        private_key(&config.key).err(),
        config.client_ca.as_ref().and_then(|path| certificates("client_ca", path).err()),
    ];
    let errors: Vec<TlsError> = files.into_iter().flatten().collect();
    if errors.is_empty() { load(config).err().into_iter().collect() } else { errors }
}

/// Returns a warning for each certificate that is not valid now or ends within [`EXPIRY_NOTICE`]. The gateway serves
/// such a certificate, and clients reject it.
pub(crate) fn validity_warnings(config: &config::TlsConfig, now: SystemTime) -> Vec<String> {
    let client_ca = config.client_ca.iter().map(|path| ("client_ca", path));
    let mut warnings = Vec::new();
    for (key, path) in [("cert", &config.cert)].into_iter().chain(client_ca) {
        for certificate in certificates(key, path).unwrap_or_default() {
            let Ok((_, certificate)) = X509Certificate::from_der(&certificate) else { continue };
            let validity = certificate.validity();
            let time = |time: ASN1Time| {
                let seconds = Duration::from_secs(u64::try_from(time.timestamp()).unwrap_or_default());
                SystemTime::UNIX_EPOCH + seconds
            };
            let (start, end) = (time(validity.not_before), time(validity.not_after));
            let date = humantime::format_rfc3339_seconds;
            let problem = match end.duration_since(now) {
                Err(_) => format!("expired at {}: the other side rejects it. Renew it.", date(end)),
                Ok(_) if start > now => format!("is valid from {} on: check the clock.", date(start)),
                Ok(left) if left <= EXPIRY_NOTICE => {
                    let days = left.as_secs() / 86400;
                    format!("ends at {}, in {days} days. Renew it, then send SIGHUP.", date(end))
                }
                Ok(_) => continue,
            };
            warnings.push(format!(
                "server.tls.{key}: the certificate of {} in {} {problem}",
                certificate.subject(),
                path.display()
            ));
        }
    }
    warnings
}

fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, TlsError> {
    PrivateKeyDer::from_pem_file(path).map_err(|source| match source {
        pem::Error::NoItemsFound => TlsError::NoKey { path: path.to_owned() },
        source => TlsError::File { key: "key", path: path.to_owned(), source },
    })
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

    #[test]
    fn all_invalid_files_are_reported_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let good = pair(dir.path(), "good");
        let missing = config::TlsConfig {
            cert: dir.path().join("no.pem"),
            key: dir.path().join("no.key"),
            client_ca: Some(dir.path().join("no.ca")),
        };
        let swapped = config::TlsConfig { cert: good.key.clone(), key: good.cert.clone(), client_ca: None };
        let texts = |config| check_files(config).iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(texts(&missing).len(), 3);
        let swapped = texts(&swapped).join("; ");
        assert!(
            swapped.contains("holds no certificate") && swapped.contains("holds no private key"),
            "{swapped}"
        );
        assert_eq!(texts(&good), [""; 0]);
    }

    #[test]
    fn a_certificate_that_ends_within_14_days_is_a_warning() {
        let dir = tempfile::tempdir().unwrap();
        let good = pair(dir.path(), "good");
        // rcgen's certificates end in the year 4096.
        let end = SystemTime::UNIX_EPOCH + Duration::from_secs(67_090_118_400);
        let day = Duration::from_secs(86400);
        let rows =
            [(end - day * 15, None), (end - day * 13, Some("Renew it")), (end + day, Some("expired at"))];
        for (now, expected) in rows {
            let warnings = validity_warnings(&good, now);
            assert_eq!(warnings.len(), usize::from(expected.is_some()), "{warnings:?}");
            assert!(expected.is_none_or(|text| warnings[0].contains(text)), "{warnings:?}");
        }
        assert_eq!(rows.len(), 3);
    }
}
