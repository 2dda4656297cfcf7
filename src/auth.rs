//! Who asks, and with which key the upstream is asked.
//!
//! It must never know what is asked for. The hash key is made at start and leaves the process in no form, so
//! that a key domain says nothing about its key.

use http::header::AUTHORIZATION;
use http::{HeaderMap, HeaderValue};

use crate::config;
use crate::model::clip::KeyDomain;
use crate::secret::Secret;

/// With whose key a request reaches the upstream.
#[derive(Clone, Debug)]
pub struct Identity {
    /// Whose answers it may share.
    pub domain: KeyDomain,
    /// What the upstream is sent; marked sensitive, so that it has no `Debug`.
    pub authorization: HeaderValue,
}

/// Why a request is not let in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AuthError {
    /// Which of several keys would count is anybody's guess.
    #[error("the request has more than one Authorization field; send one")]
    SeveralKeys,
}

impl AuthError {
    /// The short word for headers, logs and metrics.
    pub fn reason(self) -> &'static str {
        match self {
            AuthError::SeveralKeys => "several-keys",
        }
    }
}

/// Turns a request's fields into an [`Identity`].
#[derive(Debug)]
pub struct Keyring {
    mode: Mode,
    hash_key: [u8; blake3::KEY_LEN],
}

#[derive(Debug)]
enum Mode {
    Passthrough,
    Sidecar(Identity),
}

/// Why no [`Keyring`] could be made.
#[derive(Debug, thiserror::Error)]
pub enum KeyringError {
    /// The system has no random bytes.
    #[error("no random bytes for the key hash: {0}")]
    Random(getrandom::Error),
    /// `upstream.api_key` is missing.
    #[error("auth.mode is \"sidecar\": set upstream.api_key")]
    NoApiKey,
    /// `upstream.api_key` cannot be sent in a header field.
    #[error("upstream.api_key holds characters that no header field may carry")]
    BadApiKey,
    /// Teams come with a later release.
    #[error("auth.mode = \"team\" is not yet in force; use \"passthrough\" or \"sidecar\"")]
    NoTeams,
}

impl Keyring {
    /// A keyring with a hash key of its own.
    pub fn new(auth: &config::Auth, api_key: Option<&Secret>) -> Result<Self, KeyringError> {
        let mut hash_key = [0; blake3::KEY_LEN];
        getrandom::fill(&mut hash_key).map_err(KeyringError::Random)?;
        let mode = match auth {
            config::Auth::Passthrough => Mode::Passthrough,
            config::Auth::Sidecar => {
                let key = api_key.ok_or(KeyringError::NoApiKey)?;
                let value = HeaderValue::try_from(format!("Bearer {}", key.expose()));
                Mode::Sidecar(identity(&hash_key, value.map_err(|_| KeyringError::BadApiKey)?))
            }
            config::Auth::Team(_) => return Err(KeyringError::NoTeams),
        };
        Ok(Self { mode, hash_key })
    }

    /// Who sent these fields; `None` for a request without a key, which shares nothing with anybody.
    pub fn identify(&self, headers: &HeaderMap) -> Result<Option<Identity>, AuthError> {
        match &self.mode {
            Mode::Sidecar(identity) => Ok(Some(identity.clone())),
            Mode::Passthrough => {
                let mut keys = headers.get_all(AUTHORIZATION).iter();
                match (keys.next(), keys.next()) {
                    (_, Some(_)) => Err(AuthError::SeveralKeys),
                    (Some(key), None) if !key.is_empty() => Ok(Some(identity(&self.hash_key, key.clone()))),
                    _ => Ok(None),
                }
            }
        }
    }

    /// What replaces the client's own `Authorization` on its way up; `None`: it stays.
    pub fn replacement(&self) -> Option<&HeaderValue> {
        match &self.mode {
            Mode::Passthrough => None,
            Mode::Sidecar(identity) => Some(&identity.authorization),
        }
    }
}

fn identity(hash_key: &[u8; blake3::KEY_LEN], mut authorization: HeaderValue) -> Identity {
    authorization.set_sensitive(true);
    let hash = blake3::keyed_hash(hash_key, authorization.as_bytes());
    let mut domain = KeyDomain([0; 16]);
    domain.0.copy_from_slice(&hash.as_bytes()[..16]);
    Identity { domain, authorization }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(keys: &[&str]) -> HeaderMap {
        keys.iter().map(|key| (AUTHORIZATION, HeaderValue::from_str(key).unwrap())).collect()
    }

    fn domain(keyring: &Keyring, key: &str) -> Option<KeyDomain> {
        keyring.identify(&headers(&[key])).unwrap().map(|identity| identity.domain)
    }

    #[test]
    fn each_key_is_a_domain_of_its_own() {
        let keyring = Keyring::new(&config::Auth::Passthrough, None).unwrap();
        assert_eq!(domain(&keyring, "Bearer a"), domain(&keyring, "Bearer a"));
        assert_ne!(domain(&keyring, "Bearer a"), domain(&keyring, "Bearer b"));
        assert!(domain(&keyring, "Bearer a").is_some());
        assert_eq!(domain(&keyring, ""), None);
        assert!(keyring.identify(&headers(&[])).unwrap().is_none());
        assert!(matches!(keyring.identify(&headers(&["Bearer a", "Bearer a"])), Err(AuthError::SeveralKeys)));
    }

    #[test]
    fn two_gateways_name_one_key_differently() {
        let [one, other] = [(); 2].map(|()| Keyring::new(&config::Auth::Passthrough, None).unwrap());
        assert_ne!(domain(&one, "Bearer a"), domain(&other, "Bearer a"));
    }

    #[test]
    fn in_sidecar_mode_everybody_is_the_gateways_key() {
        let keyring = Keyring::new(&config::Auth::Sidecar, Some(&Secret::new("sk-1"))).unwrap();
        assert_eq!(domain(&keyring, "Bearer a"), domain(&keyring, "anything"));
        let identity = keyring.identify(&HeaderMap::new()).unwrap().unwrap();
        assert_eq!(identity.authorization, "Bearer sk-1");
        assert!(!format!("{keyring:?}{identity:?}").contains("sk-1"));
        assert!(matches!(Keyring::new(&config::Auth::Sidecar, None), Err(KeyringError::NoApiKey)));
    }
}
