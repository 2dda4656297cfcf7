//! Who asks, and with which key the upstream is asked.
//!
//! It must never know what is asked for. The hash key is made at start and leaves the process in no form, so
//! that a key domain says nothing about its key. What the keyring holds can be changed while requests ask it.

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

/// With whose key a request reaches the upstream.
#[derive(Clone, Debug)]
pub struct Identity {
    /// Whose answers it may share.
    pub domain: KeyDomain,
    /// What the upstream is sent, in place of what the client sent; marked sensitive, so that it has no `Debug`.
    pub authorization: HeaderValue,
    /// The member's name, in team mode.
    pub member: Option<Arc<str>>,
    /// Whether the key is the gateway's own, which nobody can have made up.
    pub is_lent: bool,
}

/// Why a request is not let in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AuthError {
    /// Which of several keys would count is anybody's guess.
    #[error("the request has more than one Authorization field; send one")]
    SeveralKeys,
    /// The scheme proves who uses a connection, and those to the upstream are everybody's.
    #[error(
        "NTLM and Negotiate authenticate a connection, and this gateway shares its connections; use another scheme"
    )]
    ConnectionAuth,
    /// Team mode, and no token.
    #[error("the request has no token; send one of this gateway's as `Authorization: Bearer TOKEN`")]
    NoToken,
    /// Team mode, and a token that is no member's.
    #[error("the token is not known to this gateway")]
    UnknownToken,
}

impl AuthError {
    /// The short word for headers, logs and metrics.
    pub fn reason(self) -> &'static str {
        match self {
            AuthError::SeveralKeys => "multiple-authorization",
            AuthError::ConnectionAuth => "connection-auth",
            AuthError::NoToken => "no-token",
            AuthError::UnknownToken => "unknown-token",
        }
    }

    /// The `WWW-Authenticate` of a 401 (RFC 6750 §3); `None` where it is no 401.
    pub fn challenge(self) -> Option<HeaderValue> {
        match self {
            AuthError::SeveralKeys | AuthError::ConnectionAuth => None,
            AuthError::NoToken => Some(HeaderValue::from_static("Bearer realm=\"clipgate\"")),
            AuthError::UnknownToken => {
                Some(HeaderValue::from_static("Bearer realm=\"clipgate\", error=\"invalid_token\""))
            }
        }
    }
}

/// What a team's list has in place of a token.
pub fn token_sha256(token: &[u8]) -> TokenHash {
    TokenHash(Sha256::digest(token).into())
}

/// Turns a request's fields into an [`Identity`].
#[derive(Debug)]
pub struct Authenticator {
    mode: ArcSwap<AuthMode>,
    hash_key: [u8; blake3::KEY_LEN],
}

#[derive(Debug)]
enum AuthMode {
    Passthrough,
    Sidecar(Identity),
    Team(Vec<Member>),
}

#[derive(Debug)]
struct Member {
    token: TokenHash,
    identity: Identity,
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
    /// A member's `upstream_key` cannot be sent in a header field.
    #[error("team.members \"{0}\": upstream_key holds characters that no header field may carry")]
    BadMemberKey(String),
}

impl Authenticator {
    /// A keyring with a hash key of its own.
    pub fn new(auth: &config::Auth, api_key: Option<&Secret>) -> Result<Self, KeyringError> {
        let mut hash_key = [0; blake3::KEY_LEN];
        getrandom::fill(&mut hash_key).map_err(KeyringError::Random)?;
        let mode = ArcSwap::from_pointee(AuthMode::new(auth, api_key, &hash_key)?);
        Ok(Self { mode, hash_key })
    }

    /// Holds this from the next [`Self::identify`] on, in place of what it held: a member that is not in it is
    /// out at once. A key that stays keeps its domain. After an error nothing has changed.
    pub fn set(&self, auth: &config::Auth, api_key: Option<&Secret>) -> Result<(), KeyringError> {
        self.mode.store(Arc::new(AuthMode::new(auth, api_key, &self.hash_key)?));
        Ok(())
    }

    /// Whether whoever reaches the gateway uses its key, without bringing one.
    pub fn injects_key(&self) -> bool {
        matches!(**self.mode.load(), AuthMode::Sidecar(_))
    }

    /// The team's members, each with the domain of its key; none in the other modes.
    pub fn members(&self) -> Vec<(Arc<str>, KeyDomain)> {
        match &**self.mode.load() {
            AuthMode::Passthrough | AuthMode::Sidecar(_) => Vec::new(),
            AuthMode::Team(members) => members
                .iter()
                .filter_map(|member| Some((member.identity.member.clone()?, member.identity.domain)))
                .collect(),
        }
    }

    /// Who sent these fields; `None` for a request without a key, which shares nothing with anybody and goes up
    /// as it is.
    pub fn identify(&self, request: &HeaderMap) -> Result<Option<Identity>, AuthError> {
        match &**self.mode.load() {
            AuthMode::Sidecar(identity) => Ok(Some(identity.clone())),
            AuthMode::Passthrough => match authorization_header(request)? {
                Some(key) if authenticates_connection(key) => Err(AuthError::ConnectionAuth),
                key => Ok(key.map(|key| derive_identity(&self.hash_key, copy_value(key)))),
            },
            AuthMode::Team(members) => {
                let token = authorization_header(request)?.and_then(bearer).ok_or(AuthError::NoToken)?;
                member(members, token).map(Some).ok_or(AuthError::UnknownToken)
            }
        }
    }
}

impl AuthMode {
    fn new(
        auth: &config::Auth,
        api_key: Option<&Secret>,
        hash_key: &[u8; blake3::KEY_LEN],
    ) -> Result<Self, KeyringError> {
        let with_key = |key: &Secret| {
            let value = HeaderValue::try_from(format!("Bearer {}", key.expose())).ok()?;
            Some(derive_identity(hash_key, value))
        };
        match auth {
            config::Auth::Passthrough => Ok(AuthMode::Passthrough),
            config::Auth::Sidecar => {
                let key = api_key.ok_or(KeyringError::NoApiKey)?;
                let identity = with_key(key).ok_or(KeyringError::BadApiKey)?;
                Ok(AuthMode::Sidecar(Identity { is_lent: true, ..identity }))
            }
            config::Auth::Team(members) => {
                let member = |member: &config::Member| {
                    let identity = with_key(&member.upstream_key)
                        .ok_or_else(|| KeyringError::BadMemberKey(member.name.clone()))?;
                    let identity = Identity { member: Some(member.name.as_str().into()), ..identity };
                    Ok(Member { token: member.token_sha256, identity })
                };
                members.iter().map(member).collect::<Result<_, _>>().map(AuthMode::Team)
            }
        }
    }
}

/// The one `Authorization` field, if it says anything.
fn authorization_header(headers: &HeaderMap) -> Result<Option<&HeaderValue>, AuthError> {
    let mut keys = headers.get_all(AUTHORIZATION).iter();
    match (keys.next(), keys.next()) {
        (_, Some(_)) => Err(AuthError::SeveralKeys),
        (key, None) => Ok(key.filter(|key| !key.is_empty())),
    }
}

/// Returns whether the scheme proves who uses the connection, rather than who sent the request: NTLM, and
/// Negotiate, which may be NTLM (RFC 4559 §6). A pooled connection would serve the next client as that user.
fn authenticates_connection(field: &HeaderValue) -> bool {
    let field = field.as_bytes().trim_ascii_start();
    let is_scheme = |scheme: &[u8]| {
        let begins = field.get(..scheme.len()).is_some_and(|begin| begin.eq_ignore_ascii_case(scheme));
        begins && !field.get(scheme.len()).is_some_and(|next| next.is_ascii_alphanumeric() || *next == b'-')
    };
    // Most fields are told by their first letter.
    matches!(field.first(), Some(b'N' | b'n')) && (is_scheme(b"NTLM") || is_scheme(b"Negotiate"))
}

/// The token of a Bearer field (RFC 6750 §2.1).
pub(crate) fn bearer(field: &HeaderValue) -> Option<&[u8]> {
    let (scheme, token) = field.as_bytes().split_at_checked("Bearer ".len())?;
    let token = token.trim_ascii();
    (scheme.eq_ignore_ascii_case(b"Bearer ") && !token.is_empty()).then_some(token)
}

/// Whose token it is. Takes the same time whoever's it is, and whether it is anybody's.
fn member(members: &[Member], token: &[u8]) -> Option<Identity> {
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
    let hash = blake3::keyed_hash(hash_key, authorization.as_bytes());
    let mut domain = KeyDomain([0; 16]);
    domain.0.copy_from_slice(&hash.as_bytes()[..16]);
    Identity { domain, authorization, member: None, is_lent: false }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(keys: &[&str]) -> HeaderMap {
        keys.iter().map(|key| (AUTHORIZATION, HeaderValue::from_str(key).unwrap())).collect()
    }

    fn domain(keyring: &Authenticator, key: &str) -> Option<KeyDomain> {
        keyring.identify(&headers(&[key])).unwrap().map(|identity| identity.domain)
    }

    #[test]
    fn each_key_is_a_domain_of_its_own() {
        let keyring = Authenticator::new(&config::Auth::Passthrough, None).unwrap();
        assert_eq!(domain(&keyring, "Bearer a"), domain(&keyring, "Bearer a"));
        assert_ne!(domain(&keyring, "Bearer a"), domain(&keyring, "Bearer b"));
        assert!(domain(&keyring, "Bearer a").is_some());
        assert_eq!(domain(&keyring, ""), None);
        assert!(keyring.identify(&headers(&[])).unwrap().is_none());
        assert!(matches!(keyring.identify(&headers(&["Bearer a", "Bearer a"])), Err(AuthError::SeveralKeys)));
    }

    /// A connection that one client has authenticated would serve the next as that user.
    #[test]
    fn a_scheme_that_authenticates_the_connection_is_refused() {
        let keyring = Authenticator::new(&config::Auth::Passthrough, None).unwrap();
        for field in ["NTLM TlRMTVNT", "ntlm", "Negotiate YII", "NEGOTIATE\tYII", "  Negotiate YII", "NTLM,x"]
        {
            let refused = keyring.identify(&headers(&[field])).unwrap_err();
            assert_eq!(refused, AuthError::ConnectionAuth, "{field:?}");
            assert_eq!(refused.reason(), "connection-auth");
            assert!(refused.challenge().is_none());
        }
        for field in
            ["Bearer NTLM", "Basic TlRMTVNT", "NTLMv3 x", "Negotiated x", "N", "Digest username=\"x\""]
        {
            assert!(domain(&keyring, field).is_some(), "{field:?}");
        }
        // The other modes send the gateway's own key, whatever the client's field holds.
        let sidecar = Authenticator::new(&config::Auth::Sidecar, Some(&Secret::new("sk-1"))).unwrap();
        assert!(domain(&sidecar, "NTLM TlRMTVNT").is_some());
    }

    #[test]
    fn two_gateways_name_one_key_differently() {
        let [one, other] = [(); 2].map(|()| Authenticator::new(&config::Auth::Passthrough, None).unwrap());
        assert_ne!(domain(&one, "Bearer a"), domain(&other, "Bearer a"));
    }

    #[test]
    fn in_sidecar_mode_everybody_is_the_gateways_key() {
        let keyring = Authenticator::new(&config::Auth::Sidecar, Some(&Secret::new("sk-1"))).unwrap();
        assert_eq!(domain(&keyring, "Bearer a"), domain(&keyring, "anything"));
        let identity = keyring.identify(&HeaderMap::new()).unwrap().unwrap();
        assert_eq!(identity.authorization, "Bearer sk-1");
        assert!(!format!("{keyring:?}{identity:?}").contains("sk-1"));
        assert!(matches!(Authenticator::new(&config::Auth::Sidecar, None), Err(KeyringError::NoApiKey)));
    }

    /// (name, token, upstream key)
    fn team(members: &[(&str, &str, &str)]) -> config::Auth {
        let member = |(name, token, key): &(&str, &str, &str)| config::Member {
            name: (*name).to_owned(),
            token_sha256: token_sha256(token.as_bytes()),
            upstream_key: Secret::new(*key),
            requests_per_second: None,
            burst: None,
            calls_per_second: None,
            calls_burst: None,
        };
        config::Auth::Team(members.iter().map(member).collect())
    }

    fn name(keyring: &Authenticator, field: &str) -> Result<String, AuthError> {
        let identity = keyring.identify(&headers(&[field]))?.unwrap();
        Ok(identity.member.unwrap().to_string())
    }

    const ALICE: (&str, &str, &str) = ("alice", "cg_a", "sk-1");
    const BOB: (&str, &str, &str) = ("bob", "cg_b", "sk-1");
    const CAROL: (&str, &str, &str) = ("carol", "cg_c", "sk-2");

    #[test]
    fn a_token_is_its_members_upstream_key_whose_domain_the_team_shares() {
        let keyring = Authenticator::new(&team(&[ALICE, BOB, CAROL]), None).unwrap();
        for (member, token, key) in [ALICE, BOB, CAROL] {
            assert_eq!(name(&keyring, &format!("Bearer {token}")).unwrap(), member);
            let identity = keyring.identify(&headers(&[&format!("bearer  {token} ")])).unwrap().unwrap();
            assert_eq!(identity.authorization, format!("Bearer {key}"));
            assert!(identity.authorization.is_sensitive());
        }
        assert_eq!(domain(&keyring, "Bearer cg_a"), domain(&keyring, "Bearer cg_b"));
        assert_ne!(domain(&keyring, "Bearer cg_a"), domain(&keyring, "Bearer cg_c"));
    }

    #[test]
    fn whoever_has_no_members_token_stays_outside() {
        let keyring = Authenticator::new(&team(&[ALICE, BOB]), None).unwrap();
        for field in ["", "Bearer", "Bearer ", "Basic cg_a", "cg_a", "Bearer\tcg_a"] {
            assert_eq!(name(&keyring, field), Err(AuthError::NoToken), "{field:?}");
        }
        assert_eq!(keyring.identify(&HeaderMap::new()).unwrap_err(), AuthError::NoToken);
        let hash = token_sha256(b"cg_a").0.map(|byte| format!("{byte:02x}")).concat();
        for token in ["cg_", "cg_aa", "CG_A", "sk-1", "alice", &hash, "cg_a,"] {
            let field = format!("Bearer {token}");
            assert_eq!(name(&keyring, &field), Err(AuthError::UnknownToken), "{token:?}");
        }
        let two = headers(&["Bearer cg_a", "Bearer cg_b"]);
        assert_eq!(keyring.identify(&two).unwrap_err(), AuthError::SeveralKeys);
        let nobody = Authenticator::new(&team(&[]), None).unwrap();
        assert_eq!(name(&nobody, "Bearer cg_a"), Err(AuthError::UnknownToken));
    }

    #[test]
    fn a_removed_member_is_out_at_once_and_who_stays_keeps_its_domain() {
        let keyring = Authenticator::new(&team(&[ALICE, BOB]), None).unwrap();
        let before = domain(&keyring, "Bearer cg_b");
        keyring.set(&team(&[BOB]), None).unwrap();
        assert_eq!(name(&keyring, "Bearer cg_a"), Err(AuthError::UnknownToken));
        assert_eq!(domain(&keyring, "Bearer cg_b"), before);

        let refused = keyring.set(&team(&[ALICE, ("dave", "cg_d", "sk\n")]), None);
        assert!(matches!(refused, Err(KeyringError::BadMemberKey(name)) if name == "dave"));
        assert_eq!(name(&keyring, "Bearer cg_a"), Err(AuthError::UnknownToken), "nothing has changed");
        assert_eq!(name(&keyring, "Bearer cg_b").unwrap(), "bob");
    }

    #[test]
    fn a_keyring_shows_neither_tokens_nor_hashes_nor_keys() {
        let keyring = Authenticator::new(&team(&[ALICE]), None).unwrap();
        let shown = format!("{keyring:?}");
        let hash = format!("{:?}", token_sha256(b"cg_a").0);
        assert!(shown.contains("alice"), "{shown}");
        for secret in ["cg_a", "sk-1", &hash] {
            assert!(!shown.contains(secret), "{shown}");
        }
    }
}
