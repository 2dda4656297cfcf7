//! Certificates that clients of other servers trust: the upstream's and the engine's.

use std::sync::{Arc, Once};

use hyper_rustls::ConfigBuilderExt as _;
use rustls::ClientConfig;

/// Set once the lack of certificates is logged: each client of a process finds it.
static NO_ROOTS: Once = Once::new();

/// Returns settings that trust the root certificates of the platform, or the built-in ones of Mozilla if it has none.
///
/// # Errors
///
/// If rustls and its crypto provider have no TLS version in common.
pub(crate) fn trusting_platform() -> Result<ClientConfig, rustls::Error> {
    let builder = || {
        ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
    };
    let trusting = match builder()?.with_native_roots() {
        Ok(trusting) => trusting,
        Err(error) => {
            NO_ROOTS.call_once(|| {
                tracing::warn!(%error, "no platform root certificates, using built-in ones");
            });
            builder()?.with_webpki_roots()
        }
    };
    Ok(trusting.with_no_client_auth())
}

/// Returns settings that trust these certificates only.
///
/// # Errors
///
/// If rustls and its crypto provider have no TLS version in common.
pub(crate) fn trusting(roots: rustls::RootCertStore) -> Result<ClientConfig, rustls::Error> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
    Ok(builder.with_root_certificates(roots).with_no_client_auth())
}
