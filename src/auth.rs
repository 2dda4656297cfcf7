//! Authentication: derives from a request's headers its credential at the upstream and its key domain (P11).
//!
//! | `auth.mode` | client sends | upstream gets | key domain |
//! | --- | --- | --- | --- |
//! | `passthrough` | its API key | the client's `Authorization` value | of that value |
//! | `sidecar` | anything | `upstream.api_key` | one for all clients |
//! | `team` | a token | the member's `upstream_key` | of that key |
//!
//! [`hash_credential`] makes key domains from keys. The hash key is random, made at start, and never leaves the process.
//! A key domain in a log therefore reveals nothing about its key. A reload can replace members and keys while requests
//! are served. This file does not know methods, paths and bodies.

use std::sync::Arc;

use arc_swap::ArcSwap;
use http::header::AUTHORIZATION;
use http::{HeaderMap, HeaderValue};
use sha2::{Digest as _, Sha256};
use subtle::{ConditionallySelectable as _, ConstantTimeEq as _};

use crate::config;
use crate::core::job::KeyDomain;
use crate::protocol::field_value::copy_value;
use crate::secret::{Secret, TokenHash};

/// The credential of a request at the upstream.
#[derive(Clone, Debug)]
pub struct Identity {
    /// The request shares polls and cached jobs with the requests of this domain, and no others (P11).
    pub domain: KeyDomain,
    /// The `Authorization` value for the upstream. Marked as sensitive, so `Debug` does not print it.
    pub authorization: HeaderValue,
    /// Name of the member, in team mode.
    pub member: Option<Arc<str>>,
    /// Whether the key is the sidecar's own. Clients cannot invent it, so it needs no proof.
    pub is_gateway_key: bool,
}

/// Why a request is rejected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AuthError {
    /// Gateway and upstream could use different ones of several keys.
    #[error("the request has more than one Authorization field; send one")]
    MultipleAuthorization,
    /// The scheme authenticates a connection, and clients share the connections to the upstream.
    #[error(
        "NTLM and Negotiate authenticate a connection, and this gateway shares its connections; use another scheme"
    )]
    ConnectionAuth,
    /// Team mode: the request has no Bearer token.
    #[error("the request has no token; send one of this gateway's as `Authorization: Bearer TOKEN`")]
    NoToken,
    /// Team mode: the token belongs to no member.
    #[error("the token is not known to this gateway")]
    UnknownToken,
}

impl AuthError {
    /// Returns the reason as `Cache-Status`, logs and metrics name it.
    pub fn reason(self) -> &'static str {
        match self {
            AuthError::MultipleAuthorization => "multiple-authorization",
            AuthError::ConnectionAuth => "connection-auth",
            AuthError::NoToken => "no-token",
            AuthError::UnknownToken => "unknown-token",
        }
    }

    /// Returns the `WWW-Authenticate` field of a 401 (RFC 6750 section 3). `None` for errors with another status.
    pub fn challenge(self) -> Option<HeaderValue> {
        match self {
            AuthError::MultipleAuthorization | AuthError::ConnectionAuth => None,
            AuthError::NoToken => Some(HeaderValue::from_static("Bearer realm=\"clipgate\"")),
            AuthError::UnknownToken => {
                Some(HeaderValue::from_static("Bearer realm=\"clipgate\", error=\"invalid_token\""))
            }
        }
    }
}

/// Returns the hash of a token, which the configuration stores in place of the token.
pub fn token_sha256(token: &[u8]) -> TokenHash {
    TokenHash(Sha256::digest(token).into())
}

/// Derives an [`Identity`] from the headers of a request.
#[derive(Debug)]
pub struct Authenticator {
    mode: ArcSwap<AuthMode>,
    hash_key: [u8; blake3::KEY_LEN],
}

#[derive(Debug)]
enum AuthMode {
    Passthrough,
    Sidecar(Identity),
    Team(Vec<MemberToken>),
}

#[derive(Debug)]
struct MemberToken {
    token: TokenHash,
    identity: Identity,
}

/// Why an [`Authenticator`] could not be created or reconfigured.
#[derive(Debug, thiserror::Error)]
pub enum AuthenticatorError {
    #[error("cannot read random bytes for the key hash: {0}")]
    Random(getrandom::Error),
    #[error("auth.mode is \"sidecar\", but upstream.api_key is missing; set it")]
    NoApiKey,
    #[error("upstream.api_key contains characters that are not valid in a header field; remove them")]
    BadApiKey,
    #[error(
        "team.members \"{0}\": upstream_key contains characters that are not valid in a header field; remove them"
    )]
    BadMemberKey(String),
}

impl Authenticator {
    /// Returns an authenticator with a new random hash key.
    pub fn new(auth: &config::AuthConfig, api_key: Option<&Secret>) -> Result<Self, AuthenticatorError> {
        let mut hash_key = [0; blake3::KEY_LEN];
        getrandom::fill(&mut hash_key).map_err(AuthenticatorError::Random)?;
        let mode = ArcSwap::from_pointee(AuthMode::new(auth, api_key, &hash_key)?);
        Ok(Self { mode, hash_key })
    }

    /// Replaces mode, members and keys for all later calls of [`Self::identify`]. A removed member is rejected at once.
    /// An unchanged key keeps its domain. An error changes nothing.
    pub fn reconfigure(
        &self,
        auth: &config::AuthConfig,
        api_key: Option<&Secret>,
    ) -> Result<(), AuthenticatorError> {
        self.mode.store(Arc::new(AuthMode::new(auth, api_key, &self.hash_key)?));
        Ok(())
    }

    /// Returns whether the gateway adds its own key to requests without a credential.
    pub fn injects_key(&self) -> bool {
        matches!(**self.mode.load(), AuthMode::Sidecar(_))
    }

    /// Returns the members and the domains of their keys. Empty in the other modes.
    pub fn members(&self) -> Vec<(Arc<str>, KeyDomain)> {
        match &**self.mode.load() {
            AuthMode::Passthrough | AuthMode::Sidecar(_) => Vec::new(),
            AuthMode::Team(members) => members
                .iter()
                .filter_map(|member| Some((member.identity.member.clone()?, member.identity.domain)))
                .collect(),
        }
    }

    /// Returns the identity of a request. `None` for a passthrough request without a key, which the gateway forwards
    /// unchanged and never coalesces.
    pub fn identify(&self, request: &HeaderMap) -> Result<Option<Identity>, AuthError> {
        match &**self.mode.load() {
            AuthMode::Sidecar(identity) => Ok(Some(identity.clone())),
            AuthMode::Passthrough => match authorization_header(request)? {
                Some(key) if authenticates_connection(key) => Err(AuthError::ConnectionAuth),
                key => Ok(key.map(|key| derive_identity(&self.hash_key, copy_value(key)))),
            },
            AuthMode::Team(members) => {
                let token =
                    authorization_header(request)?.and_then(bearer_token).ok_or(AuthError::NoToken)?;
                find_member(members, token).map(Some).ok_or(AuthError::UnknownToken)
            }
        }
    }
}

impl AuthMode {
    fn new(
        auth: &config::AuthConfig,
        api_key: Option<&Secret>,
        hash_key: &[u8; blake3::KEY_LEN],
    ) -> Result<Self, AuthenticatorError> {
        let with_key = |key: &Secret| {
            let value = HeaderValue::try_from(format!("Bearer {}", key.expose())).ok()?;
            Some(derive_identity(hash_key, value))
        };
        match auth {
            config::AuthConfig::Passthrough => Ok(AuthMode::Passthrough),
            config::AuthConfig::Sidecar => {
                let key = api_key.ok_or(AuthenticatorError::NoApiKey)?;
                let identity = with_key(key).ok_or(AuthenticatorError::BadApiKey)?;
                Ok(AuthMode::Sidecar(Identity { is_gateway_key: true, ..identity }))
            }
            config::AuthConfig::Team(members) => {
                let member = |member: &config::TeamMember| {
                    let identity = with_key(&member.upstream_key)
                        .ok_or_else(|| AuthenticatorError::BadMemberKey(member.name.clone()))?;
                    let identity = Identity { member: Some(member.name.as_str().into()), ..identity };
                    Ok(MemberToken { token: member.token_sha256, identity })
                };
                members.iter().map(member).collect::<Result<_, _>>().map(AuthMode::Team)
            }
        }
    }
}

/// Returns the `Authorization` value, if it is not empty.
fn authorization_header(headers: &HeaderMap) -> Result<Option<&HeaderValue>, AuthError> {
    let mut keys = headers.get_all(AUTHORIZATION).iter();
    match (keys.next(), keys.next()) {
        (_, Some(_)) => Err(AuthError::MultipleAuthorization),
        (key, None) => Ok(key.filter(|key| !key.is_empty())),
    }
}

/// Returns whether the scheme authenticates the connection instead of the request: NTLM, and Negotiate, which may be
/// NTLM (RFC 4559 section 6). A pooled connection would serve the next client as that user.
fn authenticates_connection(field: &HeaderValue) -> bool {
    let field = field.as_bytes().trim_ascii_start();
    let is_scheme = |scheme: &[u8]| {
        let begins = field.get(..scheme.len()).is_some_and(|begin| begin.eq_ignore_ascii_case(scheme));
        begins && !field.get(scheme.len()).is_some_and(|next| next.is_ascii_alphanumeric() || *next == b'-')
    };
    // The first letter excludes most values.
    matches!(field.first(), Some(b'N' | b'n')) && (is_scheme(b"NTLM") || is_scheme(b"Negotiate"))
}

/// Returns the token of a Bearer field (RFC 6750 section 2.1).
pub(crate) fn bearer_token(field: &HeaderValue) -> Option<&[u8]> {
    let (scheme, token) = field.as_bytes().split_at_checked("Bearer ".len())?;
    let token = token.trim_ascii();
    (scheme.eq_ignore_ascii_case(b"Bearer ") && !token.is_empty()).then_some(token)
}

/// Returns the identity of the member with this token. Compares all hashes in constant time, so the duration reveals
/// neither the member nor whether there is one.
fn find_member(members: &[MemberToken], token: &[u8]) -> Option<Identity> {
    let hash = token_sha256(token);
    let mut found = u64::MAX;
    for (n, member) in (0_u64..).zip(members) {
        found.conditional_assign(&n, member.token.0.ct_eq(&hash.0));
    }
    let found = usize::try_from(found).ok()?;
    members.get(found).map(|member| member.identity.clone())
}

fn derive_identity(hash_key: &[u8; blake3::KEY_LEN], mut authorization: HeaderValue) -> Identity {
    authorization.set_sensitive(true);
    let domain = hash_credential(hash_key, &authorization);
    Identity { domain, authorization, member: None, is_gateway_key: false }
}

/// Hashes an API key: returns the key domain of an `Authorization` value (P11). It is the first half of the BLAKE3 hash
/// of the whole value, keyed with random bytes of this process. Nothing else identifies a key outside of requests to the
/// upstream.
fn hash_credential(hash_key: &[u8; blake3::KEY_LEN], authorization: &HeaderValue) -> KeyDomain {
    let hash = blake3::keyed_hash(hash_key, authorization.as_bytes());
    let mut domain = KeyDomain([0; 16]);
    domain.0.copy_from_slice(&hash.as_bytes()[..16]);
    domain
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(keys: &[&str]) -> HeaderMap {
        keys.iter().map(|key| (AUTHORIZATION, HeaderValue::from_str(key).unwrap())).collect()
    }

    fn domain(authenticator: &Authenticator, key: &str) -> Option<KeyDomain> {
        authenticator.identify(&headers(&[key])).unwrap().map(|identity| identity.domain)
    }

    #[test]
    fn each_key_has_its_own_domain() {
        let authenticator = Authenticator::new(&config::AuthConfig::Passthrough, None).unwrap();
        assert_eq!(domain(&authenticator, "Bearer a"), domain(&authenticator, "Bearer a"));
        assert_ne!(domain(&authenticator, "Bearer a"), domain(&authenticator, "Bearer b"));
        assert!(domain(&authenticator, "Bearer a").is_some());
        assert_eq!(domain(&authenticator, ""), None);
        assert!(authenticator.identify(&headers(&[])).unwrap().is_none());
        assert!(matches!(
            authenticator.identify(&headers(&["Bearer a", "Bearer a"])),
            Err(AuthError::MultipleAuthorization)
        ));
    }

    /// A connection that one client has authenticated would serve the next client as that user.
    #[test]
    fn a_scheme_that_authenticates_the_connection_is_rejected() {
        let authenticator = Authenticator::new(&config::AuthConfig::Passthrough, None).unwrap();
        for field in ["NTLM TlRMTVNT", "ntlm", "Negotiate YII", "NEGOTIATE\tYII", "  Negotiate YII", "NTLM,x"]
        {
            let rejected = authenticator.identify(&headers(&[field])).unwrap_err();
            assert_eq!(rejected, AuthError::ConnectionAuth, "{field:?}");
            assert_eq!(rejected.reason(), "connection-auth");
            assert!(rejected.challenge().is_none());
        }
        for field in
            ["Bearer NTLM", "Basic TlRMTVNT", "NTLMv3 x", "Negotiated x", "N", "Digest username=\"x\""]
        {
            assert!(domain(&authenticator, field).is_some(), "{field:?}");
        }
        // The other modes replace the client's value with the gateway's own key.
        let sidecar = Authenticator::new(&config::AuthConfig::Sidecar, Some(&Secret::new("sk-1"))).unwrap();
        assert!(domain(&sidecar, "NTLM TlRMTVNT").is_some());
    }

    #[test]
    fn two_gateways_derive_different_domains_from_one_key() {
        let [one, other] =
            [(); 2].map(|()| Authenticator::new(&config::AuthConfig::Passthrough, None).unwrap());
        assert_ne!(domain(&one, "Bearer a"), domain(&other, "Bearer a"));
    }

    #[test]
    fn in_sidecar_mode_all_clients_have_the_identity_of_the_gateways_key() {
        let authenticator =
            Authenticator::new(&config::AuthConfig::Sidecar, Some(&Secret::new("sk-1"))).unwrap();
        assert_eq!(domain(&authenticator, "Bearer a"), domain(&authenticator, "anything"));
        let identity = authenticator.identify(&HeaderMap::new()).unwrap().unwrap();
        assert_eq!(identity.authorization, "Bearer sk-1");
        assert!(!format!("{authenticator:?}{identity:?}").contains("sk-1"));
        assert!(matches!(
            Authenticator::new(&config::AuthConfig::Sidecar, None),
            Err(AuthenticatorError::NoApiKey)
        ));
    }

    /// (name, token, upstream key)
    fn team(members: &[(&str, &str, &str)]) -> config::AuthConfig {
        let member = |(name, token, key): &(&str, &str, &str)| config::TeamMember {
            name: (*name).to_owned(),
            token_sha256: token_sha256(token.as_bytes()),
            upstream_key: Secret::new(*key),
            requests_per_second: None,
            burst: None,
            calls_per_second: None,
            calls_burst: None,
        };
        config::AuthConfig::Team(members.iter().map(member).collect())
    }

    fn name(authenticator: &Authenticator, field: &str) -> Result<String, AuthError> {
        let identity = authenticator.identify(&headers(&[field]))?.unwrap();
        Ok(identity.member.unwrap().to_string())
    }

    const ALICE: (&str, &str, &str) = ("alice", "cg_a", "sk-1");
    const BOB: (&str, &str, &str) = ("bob", "cg_b", "sk-1");
    const CAROL: (&str, &str, &str) = ("carol", "cg_c", "sk-2");

    #[test]
    fn a_token_is_replaced_by_the_members_upstream_key_and_members_with_one_key_share_its_domain() {
        let authenticator = Authenticator::new(&team(&[ALICE, BOB, CAROL]), None).unwrap();
        for (member, token, key) in [ALICE, BOB, CAROL] {
            assert_eq!(name(&authenticator, &format!("Bearer {token}")).unwrap(), member);
            let identity =
                authenticator.identify(&headers(&[&format!("bearer  {token} ")])).unwrap().unwrap();
            assert_eq!(identity.authorization, format!("Bearer {key}"));
            assert!(identity.authorization.is_sensitive());
        }
        assert_eq!(domain(&authenticator, "Bearer cg_a"), domain(&authenticator, "Bearer cg_b"));
        assert_ne!(domain(&authenticator, "Bearer cg_a"), domain(&authenticator, "Bearer cg_c"));
    }

    #[test]
    fn a_request_without_a_members_token_is_rejected() {
        let authenticator = Authenticator::new(&team(&[ALICE, BOB]), None).unwrap();
        for field in ["", "Bearer", "Bearer ", "Basic cg_a", "cg_a", "Bearer\tcg_a"] {
            assert_eq!(name(&authenticator, field), Err(AuthError::NoToken), "{field:?}");
        }
        assert_eq!(authenticator.identify(&HeaderMap::new()).unwrap_err(), AuthError::NoToken);
        let hash = token_sha256(b"cg_a").0.map(|byte| format!("{byte:02x}")).concat();
        for token in ["cg_", "cg_aa", "CG_A", "sk-1", "alice", &hash, "cg_a,"] {
            let field = format!("Bearer {token}");
            assert_eq!(name(&authenticator, &field), Err(AuthError::UnknownToken), "{token:?}");
        }
        let two = headers(&["Bearer cg_a", "Bearer cg_b"]);
        assert_eq!(authenticator.identify(&two).unwrap_err(), AuthError::MultipleAuthorization);
        let empty_team = Authenticator::new(&team(&[]), None).unwrap();
        assert_eq!(name(&empty_team, "Bearer cg_a"), Err(AuthError::UnknownToken));
    }

    #[test]
    fn a_removed_member_is_rejected_at_once_and_the_others_keep_their_domains() {
        let authenticator = Authenticator::new(&team(&[ALICE, BOB]), None).unwrap();
        let before = domain(&authenticator, "Bearer cg_b");
        authenticator.reconfigure(&team(&[BOB]), None).unwrap();
        assert_eq!(name(&authenticator, "Bearer cg_a"), Err(AuthError::UnknownToken));
        assert_eq!(domain(&authenticator, "Bearer cg_b"), before);

        let rejected = authenticator.reconfigure(&team(&[ALICE, ("dave", "cg_d", "sk\n")]), None);
        assert!(matches!(rejected, Err(AuthenticatorError::BadMemberKey(name)) if name == "dave"));
        assert_eq!(name(&authenticator, "Bearer cg_a"), Err(AuthError::UnknownToken), "nothing has changed");
        assert_eq!(name(&authenticator, "Bearer cg_b").unwrap(), "bob");
    }

    #[test]
    fn the_debug_output_contains_no_tokens_hashes_or_keys() {
        let authenticator = Authenticator::new(&team(&[ALICE]), None).unwrap();
        let shown = format!("{authenticator:?}");
        let hash = format!("{:?}", token_sha256(b"cg_a").0);
        assert!(shown.contains("alice"), "{shown}");
        for secret in ["cg_a", "sk-1", &hash] {
            assert!(!shown.contains(secret), "{shown}");
        }
    }
}
