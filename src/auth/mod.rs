//! Authentication: derives from a request's headers its credential at the upstream and its key domain (P11).
//!
//! | `auth.mode` | client sends | upstream gets | key domain |
//! | --- | --- | --- | --- |
//! | `passthrough` | its API key | the client's fields of `auth.headers` | of these fields |
//! | `sidecar` | anything | `upstream.api_key`, as `auth.send` says | one for all clients |
//! | `team` | a token in one of `auth.headers` | the member's `upstream_key`, as `auth.send` says | of that key |
//! | `open` | anything | no key | one for all clients |
//!
//! In each mode the client's fields of `auth.with_key` go up beside the key, and belong to the key domain.
//!
//! [`Credential::domain`] makes key domains from keys. The hash key is random, made at start, and never leaves the
//! process; replicas derive it from `cluster.secret`. A key domain in a log therefore reveals nothing about its key. A reload can replace members and keys while
//! requests are served. This module does not know methods, paths and bodies.

mod credential;
mod recent;

use std::fmt;
use std::sync::Arc;

use arc_swap::ArcSwap;
use http::header::AUTHORIZATION;
use http::{HeaderMap, HeaderName, HeaderValue};
use sha2::{Digest as _, Sha256};
use subtle::{ConditionallySelectable as _, ConstantTimeEq as _};

pub(crate) use self::credential::Credential;
use self::credential::{ClientField, HashKey};
use self::recent::RecentIdentities;
use crate::config;
use crate::core::job::KeyDomain;
use crate::protocol::field_value::{copy_value, single_value};
use crate::secret::{Secret, TokenHash};

/// The credential of a request at the upstream.
#[derive(Clone, Debug)]
pub struct Identity {
    /// The request shares polls and cached jobs with the requests of this domain, and no others (P11).
    pub domain: KeyDomain,
    pub credential: Credential,
    /// Name of the member, in team mode.
    pub member: Option<Arc<str>>,
    pub origin: KeyOrigin,
    /// The fields of the request that [`Authenticator::identify`] reads, if they are known from a recent request.
    fields: Option<KeyFields>,
}

impl Identity {
    /// Returns the domain that quotas count for: that of the key alone, without the fields of `auth.with_key` beside a key
    /// of the gateway's own, which a client chooses.
    pub fn quota_domain(&self) -> KeyDomain {
        self.credential.key_alone().unwrap_or(self.domain)
    }
}

/// Fields of a request that identify its client, in memory of their own.
pub(crate) type KeyFields = Arc<[(HeaderName, HeaderValue)]>;

/// Owner of the key of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyOrigin {
    Client,
    /// The sidecar or the member's row. Clients cannot invent the key, so it needs no proof.
    Gateway,
    /// The upstream needs no key. Clients share one domain and have quotas by their addresses, so that none can use up
    /// those of all.
    Open,
}

/// Why a request is rejected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AuthError {
    /// Gateway and upstream could use different ones of several keys.
    #[error("the request has more than one Authorization field, or another field for keys twice; send one")]
    MultipleAuthorization,
    /// The scheme authenticates a connection, and clients share the connections to the upstream.
    #[error(
        "NTLM and Negotiate authenticate a connection, and this gateway shares its connections; use another scheme"
    )]
    ConnectionAuth,
    /// Team mode: the request has no token.
    #[error("the request has no token; send one of this gateway's {0}")]
    NoToken(TokenField),
    /// Team mode: the token belongs to no member.
    #[error("the token is not known to this gateway")]
    UnknownToken(TokenField),
}

/// The field for a member's token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenField {
    Authorization,
    /// Any field but `Authorization`, as `auth.headers` does not list that.
    Other,
}

impl AuthError {
    /// Returns the reason as `Cache-Status`, logs and metrics name it.
    pub fn reason(self) -> &'static str {
        match self {
            AuthError::MultipleAuthorization => "multiple-authorization",
            AuthError::ConnectionAuth => "connection-auth",
            AuthError::NoToken(_) => "no-token",
            AuthError::UnknownToken(_) => "unknown-token",
        }
    }

    /// Returns the `WWW-Authenticate` field of a 401 (RFC 6750 section 3). `None` for errors with another status. Other
    /// fields than `Authorization` have no registered scheme; `ApiKey` is the usual name.
    pub fn challenge(self) -> Option<HeaderValue> {
        let challenge = match self {
            AuthError::MultipleAuthorization | AuthError::ConnectionAuth => return None,
            AuthError::NoToken(TokenField::Authorization) => "Bearer realm=\"clipgate\"",
            AuthError::UnknownToken(TokenField::Authorization) => {
                "Bearer realm=\"clipgate\", error=\"invalid_token\""
            }
            AuthError::NoToken(TokenField::Other) | AuthError::UnknownToken(TokenField::Other) => {
                "ApiKey realm=\"clipgate\""
            }
        };
        Some(HeaderValue::from_static(challenge))
    }
}

impl fmt::Display for TokenField {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            TokenField::Authorization => "as `Authorization: Bearer TOKEN`",
            TokenField::Other => "in the field for the API key",
        })
    }
}

/// Returns the hash of a token, which the configuration stores in place of the token.
pub fn token_sha256(token: &[u8]) -> TokenHash {
    TokenHash(Sha256::digest(token).into())
}

/// Derives an [`Identity`] from the headers of a request.
#[derive(Debug)]
pub struct Authenticator {
    keyring: ArcSwap<Keyring>,
    hash_key: HashKey,
}

/// The keys of one configuration.
#[derive(Debug)]
struct Keyring {
    source: KeySource,
    /// `auth.headers`
    fields: Vec<HeaderName>,
    /// `auth.with_key`
    with_key: Vec<HeaderName>,
    /// Whether `fields` has `Authorization`.
    has_authorization: bool,
    /// Whether `Authorization` is the only field of `fields` and `with_key`.
    authorization_alone: bool,
    recent: RecentIdentities,
    /// `Vary` of responses that caches of clients may store.
    vary: HeaderValue,
}

#[derive(Debug)]
enum KeySource {
    Passthrough,
    Sidecar(Identity),
    Team(Vec<MemberToken>),
    Open(Identity),
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
        Self::with_hash_key(auth, api_key, hash_key)
    }

    /// Returns an authenticator with the hash key of these replicas, so that a key has one domain on all of them.
    pub(crate) fn of_cluster(
        auth: &config::AuthConfig,
        api_key: Option<&Secret>,
        cluster_secret: &Secret,
    ) -> Result<Self, AuthenticatorError> {
        let secret = cluster_secret.expose().as_bytes();
        Self::with_hash_key(auth, api_key, blake3::derive_key("clipgate cluster v1: key domains", secret))
    }

    fn with_hash_key(
        auth: &config::AuthConfig,
        api_key: Option<&Secret>,
        hash_key: HashKey,
    ) -> Result<Self, AuthenticatorError> {
        let keyring = ArcSwap::from_pointee(Keyring::new(auth, api_key, &hash_key)?);
        Ok(Self { keyring, hash_key })
    }

    /// Replaces mode, fields, members and keys for all later calls of [`Self::identify`]. A removed member is rejected
    /// at once. An unchanged key keeps its domain. An error changes nothing.
    pub fn reconfigure(
        &self,
        auth: &config::AuthConfig,
        api_key: Option<&Secret>,
    ) -> Result<(), AuthenticatorError> {
        self.keyring.store(Arc::new(Keyring::new(auth, api_key, &self.hash_key)?));
        Ok(())
    }

    /// Returns whether clients need no credential: the gateway adds its own key, or the upstream needs none.
    pub fn accepts_anyone(&self) -> bool {
        matches!(self.keyring.load().source, KeySource::Sidecar(_) | KeySource::Open(_))
    }

    /// Returns the owner of the key of requests without a credential, if they share a domain.
    pub fn default_origin(&self) -> Option<KeyOrigin> {
        match &self.keyring.load().source {
            KeySource::Sidecar(identity) | KeySource::Open(identity) => Some(identity.origin),
            KeySource::Passthrough | KeySource::Team(_) => None,
        }
    }

    /// Returns the members and the domains of their keys. Empty in the other modes.
    pub fn members(&self) -> Vec<(Arc<str>, KeyDomain)> {
        match &self.keyring.load().source {
            KeySource::Passthrough | KeySource::Sidecar(_) | KeySource::Open(_) => Vec::new(),
            KeySource::Team(members) => members
                .iter()
                .filter_map(|member| Some((member.identity.member.clone()?, member.identity.domain)))
                .collect(),
        }
    }

    /// Returns the fields of a request with this identity that [`Self::identify`] reads, in memory of their own.
    pub fn key_fields(&self, request: &HeaderMap, identity: Option<&Identity>) -> KeyFields {
        let known = identity.and_then(|identity| identity.fields.clone());
        known.unwrap_or_else(|| self.keyring.load().copy_fields(request))
    }

    /// Returns the error of a request whose access a reload has revoked.
    pub fn revoked(&self) -> AuthError {
        AuthError::UnknownToken(self.keyring.load().token_field())
    }

    /// Returns whether [`Self::identify`] reads no other field than `Authorization`.
    pub(crate) fn reads_authorization_only(&self) -> bool {
        self.keyring.load().authorization_alone
    }

    /// Forgets keys and tokens that no request has used since the last call.
    pub(crate) fn forget_unused(&self) {
        self.keyring.load().recent.forget_unused();
    }

    /// Returns `Vary` of responses that caches of clients may store.
    pub fn vary(&self) -> HeaderValue {
        self.keyring.load().vary.clone()
    }

    /// Returns the identity of a request. `None` for a passthrough request without a key, which the gateway forwards
    /// unchanged and never coalesces.
    pub fn identify(&self, request: &HeaderMap) -> Result<Option<Identity>, AuthError> {
        let keyring = self.keyring.load();
        let Some(value) = keyring.only_value(request) else { return self.derive(&keyring, request) };
        if let Some(identity) = keyring.recent.find(value) {
            return Ok(Some(identity));
        }
        let identity = self.derive(&keyring, request)?;
        if let Some(identity) = &identity {
            keyring.recent.keep(value, identity);
        }
        Ok(identity)
    }

    fn derive(&self, keyring: &Keyring, request: &HeaderMap) -> Result<Option<Identity>, AuthError> {
        match &keyring.source {
            KeySource::Sidecar(identity) => self.add_fields(&keyring.with_key, identity.clone(), request),
            KeySource::Open(identity) => {
                check_connection_auth(request)?;
                self.add_fields(&keyring.with_key, identity.clone(), request)
            }
            KeySource::Passthrough => {
                if !keyring.has_authorization {
                    check_connection_auth(request)?;
                }
                let credential = client_credential(&keyring.fields, &keyring.with_key, request)?;
                Ok(credential
                    .map(|credential| derive_identity(&self.hash_key, credential, KeyOrigin::Client)))
            }
            KeySource::Team(members) => {
                let field = keyring.token_field();
                let token = team_token(&keyring.fields, request)?.ok_or(AuthError::NoToken(field))?;
                let identity = find_member(members, token).ok_or(AuthError::UnknownToken(field))?;
                self.add_fields(&keyring.with_key, identity, request)
            }
        }
    }

    /// Adds the client's fields of `auth.with_key` to a key of the gateway's own, or to none.
    fn add_fields(
        &self,
        with_key: &[HeaderName],
        identity: Identity,
        request: &HeaderMap,
    ) -> Result<Option<Identity>, AuthError> {
        let mut fields = Vec::new();
        for name in with_key {
            fields.extend(key_value(request, name)?.map(|value| (name, value)));
        }
        if fields.is_empty() {
            return Ok(Some(identity));
        }
        let credential = identity.credential.with_fields(identity.domain, &fields);
        Ok(Some(Identity { domain: credential.domain(&self.hash_key), credential, ..identity }))
    }
}

impl Keyring {
    fn new(
        auth: &config::AuthConfig,
        api_key: Option<&Secret>,
        hash_key: &HashKey,
    ) -> Result<Self, AuthenticatorError> {
        let with_key = |key: &Secret| {
            let credential = Credential::lent(auth.send.field(key)?, &auth.headers);
            Some(derive_identity(hash_key, credential, KeyOrigin::Gateway))
        };
        let source = match &auth.mode {
            config::AuthMode::Passthrough => KeySource::Passthrough,
            config::AuthMode::Sidecar => {
                let key = api_key.ok_or(AuthenticatorError::NoApiKey)?;
                KeySource::Sidecar(with_key(key).ok_or(AuthenticatorError::BadApiKey)?)
            }
            config::AuthMode::Team(members) => {
                let member = |member: &config::TeamMember| {
                    let identity = with_key(&member.upstream_key)
                        .ok_or_else(|| AuthenticatorError::BadMemberKey(member.name.clone()))?;
                    let identity = Identity { member: Some(member.name.as_str().into()), ..identity };
                    Ok(MemberToken { token: member.token_sha256, identity })
                };
                KeySource::Team(members.iter().map(member).collect::<Result<_, _>>()?)
            }
            config::AuthMode::Open => {
                KeySource::Open(derive_identity(hash_key, Credential::open(), KeyOrigin::Open))
            }
        };
        let fields = auth.headers.iter().chain(&auth.with_key);
        let mut vary: String = fields.flat_map(|name| [name.as_str(), ", "]).collect();
        vary += "accept";
        Ok(Self {
            authorization_alone: auth.with_key.is_empty() && auth.headers == [AUTHORIZATION],
            recent: RecentIdentities::default(),
            source,
            fields: auth.headers.clone(),
            with_key: auth.with_key.clone(),
            has_authorization: auth.headers.contains(&AUTHORIZATION),
            vary: HeaderValue::try_from(vary).expect("names of fields are valid in a value"),
        })
    }

    /// Returns the value that alone identifies a request, if there is one.
    fn only_value<'a>(&self, request: &'a HeaderMap) -> Option<&'a HeaderValue> {
        match self.source {
            KeySource::Passthrough | KeySource::Team(_) if self.authorization_alone => {
                single_value(request, &AUTHORIZATION)
            }
            KeySource::Passthrough | KeySource::Team(_) | KeySource::Sidecar(_) | KeySource::Open(_) => None,
        }
    }

    fn copy_fields(&self, request: &HeaderMap) -> KeyFields {
        let values = |name| request.get_all(name).iter().map(move |value| (name, value));
        let fields = self.fields.iter().flat_map(values);
        fields.map(|(name, value)| (name.clone(), copy_value(value))).collect()
    }

    fn token_field(&self) -> TokenField {
        if self.has_authorization { TokenField::Authorization } else { TokenField::Other }
    }
}

/// Returns the client's credential. `None`: the request lacks all fields for keys. Fields of `with_key` alone do not
/// identify a key (P11).
fn client_credential(
    fields: &[HeaderName],
    with_key: &[HeaderName],
    request: &HeaderMap,
) -> Result<Option<Credential>, AuthError> {
    let (mut first, mut others): (Option<ClientField<'_>>, _) = (None, Vec::new());
    for name in fields {
        let Some(value) = key_value(request, name)? else { continue };
        if *name == AUTHORIZATION && authenticates_connection(value) {
            return Err(AuthError::ConnectionAuth);
        }
        match first {
            None => first = Some((name, value)),
            Some(_) => others.push((name, value)),
        }
    }
    if first.is_some() {
        for name in with_key {
            others.extend(key_value(request, name)?.map(|value| (name, value)));
        }
    }
    Ok(first.map(|first| Credential::of_client(first, others)))
}

/// Returns the token of a member, from the first of the fields that the request has. In `Authorization` it is a Bearer
/// token, in any other field the whole value.
fn team_token<'a>(fields: &[HeaderName], request: &'a HeaderMap) -> Result<Option<&'a [u8]>, AuthError> {
    let mut first = None;
    for name in fields {
        let value = key_value(request, name)?;
        first = first.or(value.map(|value| (name, value)));
    }
    Ok(first.and_then(|(name, value)| match *name == AUTHORIZATION {
        true => bearer_token(value),
        false => Some(value.as_bytes().trim_ascii()),
    }))
}

/// Returns the value of a field, if it is not empty.
fn key_value<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Result<Option<&'a HeaderValue>, AuthError> {
    let mut values = headers.get_all(name).iter();
    match (values.next(), values.next()) {
        (_, Some(_)) => Err(AuthError::MultipleAuthorization),
        (value, None) => Ok(value.filter(|value| !value.is_empty())),
    }
}

/// Rejects a scheme that authenticates the connection, in `Authorization` fields that are passed through only.
fn check_connection_auth(request: &HeaderMap) -> Result<(), AuthError> {
    match request.get_all(AUTHORIZATION).iter().any(authenticates_connection) {
        true => Err(AuthError::ConnectionAuth),
        false => Ok(()),
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

fn derive_identity(hash_key: &HashKey, credential: Credential, origin: KeyOrigin) -> Identity {
    Identity { domain: credential.domain(hash_key), credential, member: None, origin, fields: None }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(fields: &[(&str, &str)]) -> HeaderMap {
        fields
            .iter()
            .map(|(name, value)| (name.parse::<HeaderName>().unwrap(), value.parse().unwrap()))
            .collect()
    }

    fn auth(mode: config::AuthMode) -> config::AuthConfig {
        config::AuthConfig { mode, ..config::Config::default().auth }
    }

    fn headers(keys: &[&str]) -> HeaderMap {
        keys.iter().map(|key| (AUTHORIZATION, HeaderValue::from_str(key).unwrap())).collect()
    }

    /// Returns the fields of the identity's polls.
    fn sent(identity: &Identity) -> HeaderMap {
        let mut headers = HeaderMap::new();
        identity.credential.apply(&mut headers);
        headers
    }

    fn domain(authenticator: &Authenticator, key: &str) -> Option<KeyDomain> {
        authenticator.identify(&headers(&[key])).unwrap().map(|identity| identity.domain)
    }

    #[test]
    fn each_key_has_its_own_domain() {
        let authenticator = Authenticator::new(&auth(config::AuthMode::Passthrough), None).unwrap();
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
        let authenticator = Authenticator::new(&auth(config::AuthMode::Passthrough), None).unwrap();
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
        let sidecar =
            Authenticator::new(&auth(config::AuthMode::Sidecar), Some(&Secret::new("sk-1"))).unwrap();
        assert!(domain(&sidecar, "NTLM TlRMTVNT").is_some());
    }

    // P11: with any configuration and any order of requests, the kept identities change no result.
    #[test]
    fn a_kept_identity_is_the_one_that_the_request_has_without_it() {
        let values: Vec<String> = (0..600)
            .map(|n| format!("Bearer token-{n}"))
            .chain(["", "NTLM x", "Basic eA=="].map(str::to_owned))
            .chain([format!("Bearer {}", "x".repeat(4096))])
            .collect();
        let rows: Vec<_> = (0..20)
            .map(|n| (format!("member-{n}"), format!("token-{n}"), format!("key-{}", n % 7)))
            .collect();
        let mode = |rng: &mut fastrand::Rng| match rng.u8(..4) {
            0 => config::AuthMode::Sidecar,
            1 => config::AuthMode::Open,
            2 => config::AuthMode::Passthrough,
            _ => {
                let rows = rows.iter().filter(|_| rng.bool());
                let rows: Vec<_> = rows.map(|(name, token, key)| (&**name, &**token, &**key)).collect();
                team(&rows).mode
            }
        };
        let key = Secret::new("sk-1");
        for seed in 0..20 {
            let mut rng = fastrand::Rng::with_seed(seed);
            let mut new = || Authenticator::new(&auth(mode(&mut rng)), Some(&key)).unwrap();
            let authenticators = [new(), new()];
            for _ in 0..1000 {
                let authenticator = &authenticators[rng.usize(..2)];
                if rng.u8(..50) == 0 {
                    let mut config = auth(mode(&mut rng));
                    if rng.u8(..4) == 0 {
                        config.with_key = vec![HeaderName::from_static("x-project")];
                    }
                    authenticator.reconfigure(&config, Some(&key)).unwrap();
                }
                let count = rng.usize(..30).min(2);
                let few = if rng.bool() { 20 } else { values.len() };
                let chosen: Vec<&str> = (0..count).map(|_| values[rng.usize(..few)].as_str()).collect();
                let mut request = headers(&chosen);
                if rng.bool() {
                    request.insert("x-project", HeaderValue::from_static("p"));
                }
                let keyring = authenticator.keyring.load();
                let parts = |identity: Result<Option<Identity>, AuthError>| {
                    identity
                        .map(|identity| identity.map(|own| (own.domain, sent(&own), own.member, own.origin)))
                };
                let derived = parts(authenticator.derive(&keyring, &request));
                let identified = authenticator.identify(&request);
                let identity = identified.as_ref().ok().and_then(Option::as_ref);
                let fields = authenticator.key_fields(&request, identity);
                assert_eq!(fields, keyring.copy_fields(&request), "{chosen:?}");
                assert_eq!(parts(identified), derived, "{chosen:?}");
            }
        }
    }

    #[test]
    fn a_reload_frees_the_kept_keys_and_tokens_of_all_threads() {
        let key = Secret::new("sk-1");
        let team = team(&[ALICE, BOB]);
        for next in [
            config::AuthMode::Sidecar,
            config::AuthMode::Open,
            config::AuthMode::Passthrough,
            team.mode.clone(),
        ] {
            for before in [auth(config::AuthMode::Passthrough), team.clone()] {
                let authenticator = Authenticator::new(&before, Some(&key)).unwrap();
                let identify = || authenticator.identify(&headers(&["Bearer cg_a"])).unwrap().unwrap();
                let identity = std::thread::scope(|threads| {
                    drop(identify());
                    threads.spawn(identify).join().unwrap()
                });
                let old = Arc::downgrade(&authenticator.keyring.load_full());
                assert_eq!(old.upgrade().unwrap().recent.len(), 2);
                authenticator.reconfigure(&auth(next.clone()), Some(&key)).unwrap();
                assert!(old.upgrade().is_none(), "{before:?}, then {next:?}");
                drop(identity);
            }
        }
    }

    #[test]
    fn a_key_or_token_that_no_request_uses_is_forgotten() {
        for config in [auth(config::AuthMode::Passthrough), team(&[ALICE, BOB])] {
            let authenticator = Authenticator::new(&config, None).unwrap();
            let kept = || authenticator.keyring.load().recent.len();
            domain(&authenticator, "Bearer cg_a");
            domain(&authenticator, "Bearer cg_b");
            authenticator.forget_unused();
            assert_eq!(kept(), 2, "both came since the start");
            domain(&authenticator, "Bearer cg_b");
            authenticator.forget_unused();
            assert_eq!(kept(), 1);
            domain(&authenticator, "Bearer cg_b");
            authenticator.forget_unused();
            assert_eq!(kept(), 1);
            authenticator.forget_unused();
            assert_eq!(kept(), 0);
        }
    }

    #[test]
    fn each_kept_value_is_short_and_in_memory_once() {
        let authenticator = Authenticator::new(&auth(config::AuthMode::Passthrough), None).unwrap();
        let request = headers(&["Bearer a"]);
        let [_, identity] = [(); 2].map(|()| authenticator.identify(&request).unwrap().unwrap());
        let fields = authenticator.key_fields(&request, Some(&identity));
        let value = identity.credential.client_authorization().unwrap();
        assert_eq!(value.as_bytes().as_ptr(), fields[0].1.as_bytes().as_ptr());
        for (length, kept) in [(512, 2), (513, 2)] {
            domain(&authenticator, &"k".repeat(length));
            assert_eq!(authenticator.keyring.load().recent.len(), kept, "{length}");
        }
    }

    #[test]
    fn two_gateways_derive_different_domains_from_one_key() {
        let [one, other] =
            [(); 2].map(|()| Authenticator::new(&auth(config::AuthMode::Passthrough), None).unwrap());
        assert_ne!(domain(&one, "Bearer a"), domain(&other, "Bearer a"));
    }

    #[test]
    fn in_sidecar_mode_all_clients_have_the_identity_of_the_gateways_key() {
        let authenticator =
            Authenticator::new(&auth(config::AuthMode::Sidecar), Some(&Secret::new("sk-1"))).unwrap();
        assert_eq!(domain(&authenticator, "Bearer a"), domain(&authenticator, "anything"));
        let identity = authenticator.identify(&HeaderMap::new()).unwrap().unwrap();
        assert_eq!(sent(&identity), map(&[("authorization", "Bearer sk-1")]));
        assert!(!format!("{authenticator:?}{identity:?}").contains("sk-1"));
        assert!(matches!(
            Authenticator::new(&auth(config::AuthMode::Sidecar), None),
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
        auth(config::AuthMode::Team(members.iter().map(member).collect()))
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
            assert_eq!(sent(&identity), map(&[("authorization", &format!("Bearer {key}"))]));
        }
        assert_eq!(domain(&authenticator, "Bearer cg_a"), domain(&authenticator, "Bearer cg_b"));
        assert_ne!(domain(&authenticator, "Bearer cg_a"), domain(&authenticator, "Bearer cg_c"));
    }

    #[test]
    fn a_request_without_a_members_token_is_rejected() {
        let authenticator = Authenticator::new(&team(&[ALICE, BOB]), None).unwrap();
        for field in ["", "Bearer", "Bearer ", "Basic cg_a", "cg_a", "Bearer\tcg_a"] {
            assert_eq!(
                name(&authenticator, field),
                Err(AuthError::NoToken(TokenField::Authorization)),
                "{field:?}"
            );
        }
        assert_eq!(
            authenticator.identify(&HeaderMap::new()).unwrap_err(),
            AuthError::NoToken(TokenField::Authorization)
        );
        let hash = token_sha256(b"cg_a").0.map(|byte| format!("{byte:02x}")).concat();
        for token in ["cg_", "cg_aa", "CG_A", "sk-1", "alice", &hash, "cg_a,"] {
            let field = format!("Bearer {token}");
            assert_eq!(
                name(&authenticator, &field),
                Err(AuthError::UnknownToken(TokenField::Authorization)),
                "{token:?}"
            );
        }
        let two = headers(&["Bearer cg_a", "Bearer cg_b"]);
        assert_eq!(authenticator.identify(&two).unwrap_err(), AuthError::MultipleAuthorization);
        let empty_team = Authenticator::new(&team(&[]), None).unwrap();
        assert_eq!(name(&empty_team, "Bearer cg_a"), Err(AuthError::UnknownToken(TokenField::Authorization)));
    }

    #[test]
    fn a_removed_member_is_rejected_at_once_and_the_others_keep_their_domains() {
        let authenticator = Authenticator::new(&team(&[ALICE, BOB]), None).unwrap();
        let before = domain(&authenticator, "Bearer cg_b");
        authenticator.reconfigure(&team(&[BOB]), None).unwrap();
        assert_eq!(
            name(&authenticator, "Bearer cg_a"),
            Err(AuthError::UnknownToken(TokenField::Authorization))
        );
        assert_eq!(domain(&authenticator, "Bearer cg_b"), before);

        let rejected = authenticator.reconfigure(&team(&[ALICE, ("dave", "cg_d", "sk\n")]), None);
        assert!(matches!(rejected, Err(AuthenticatorError::BadMemberKey(name)) if name == "dave"));
        assert_eq!(
            name(&authenticator, "Bearer cg_a"),
            Err(AuthError::UnknownToken(TokenField::Authorization)),
            "nothing has changed"
        );
        assert_eq!(name(&authenticator, "Bearer cg_b").unwrap(), "bob");
    }

    fn with_fields(mode: config::AuthMode, fields: &[&str], send: config::KeyTemplate) -> Authenticator {
        let headers = fields.iter().map(|name| name.parse().unwrap()).collect();
        let auth = config::AuthConfig { mode, headers, with_key: Vec::new(), send };
        Authenticator::new(&auth, Some(&Secret::new("sk-1"))).unwrap()
    }

    fn x_key() -> config::KeyTemplate {
        config::KeyTemplate { name: "x-key".parse().unwrap(), before: String::new(), after: String::new() }
    }

    // P11
    #[test]
    fn the_listed_fields_together_are_the_key_and_no_other_field_is() {
        let authenticator = with_fields(
            config::AuthMode::Passthrough,
            &["x-key", "authorization"],
            config::KeyTemplate::default(),
        );
        let identify = |fields: &[(&str, &str)]| authenticator.identify(&map(fields));
        let domain = |fields: &[(&str, &str)]| identify(fields).unwrap().map(|identity| identity.domain);
        let (key, other) = (("x-key", "a"), ("authorization", "Bearer a"));
        let both = domain(&[key, other]);
        assert!(both.is_some());
        assert_eq!(both, domain(&[other, ("x-tenant", "t"), key]), "in any order, with any other field");
        for fewer in [&[key][..], &[other], &[key, ("authorization", "Bearer b")], &[other, ("x-key", "b")]] {
            assert!(domain(fewer).is_some() && domain(fewer) != both, "{fewer:?}");
        }
        assert_eq!(domain(&[key, ("authorization", "")]), domain(&[key]), "an empty field is none");
        assert_eq!(domain(&[("x-tenant", "t")]), None);
        let fields = sent(&identify(&[key, other, ("x-tenant", "t")]).unwrap().unwrap());
        assert_eq!(fields, map(&[key, other]));
        for twice in [[key, key], [other, other]] {
            assert_eq!(identify(&twice).unwrap_err(), AuthError::MultipleAuthorization, "{twice:?}");
        }
        assert_eq!(authenticator.vary(), "x-key, authorization, accept");
        let fields = authenticator.key_fields(&map(&[key, other, ("x", "y")]), None);
        assert_eq!(HeaderMap::from_iter(fields.iter().cloned()), map(&[key, other]));
    }

    #[test]
    fn authorization_that_is_not_listed_does_not_change_the_key_and_may_not_authenticate_the_connection() {
        let open = with_fields(config::AuthMode::Open, &["authorization"], x_key());
        let passthrough = with_fields(config::AuthMode::Passthrough, &["x-key"], x_key());
        for authenticator in [open, passthrough] {
            let identify =
                |value: &str| authenticator.identify(&map(&[("x-key", "a"), ("authorization", value)]));
            let [one, other] = ["Bearer a", "Bearer b"].map(|value| identify(value).unwrap().unwrap());
            assert_eq!(one.domain, other.domain);
            assert!(!sent(&one).contains_key("authorization"));
            assert_eq!(identify("Negotiate YII").unwrap_err(), AuthError::ConnectionAuth);
            let two = map(&[("x-key", "a"), ("authorization", "Bearer a"), ("authorization", "NTLM x")]);
            assert_eq!(authenticator.identify(&two).unwrap_err(), AuthError::ConnectionAuth);
        }
    }

    #[test]
    fn a_token_is_read_from_the_first_listed_field_that_the_request_has() {
        let mode = team(&[ALICE, BOB]).mode;
        let authenticator = with_fields(mode, &["x-key", "authorization"], x_key());
        let name = |fields: &[(&str, &str)]| {
            let identity = authenticator.identify(&map(fields))?.unwrap();
            assert_eq!(sent(&identity), map(&[("x-key", "sk-1")]));
            Ok(identity.member.unwrap().to_string())
        };
        let (no_token, unknown) = (
            AuthError::NoToken(TokenField::Authorization),
            AuthError::UnknownToken(TokenField::Authorization),
        );
        // (fields, member)
        type TokenCase<'a> = (&'a [(&'a str, &'a str)], Result<&'a str, AuthError>);
        let rows: &[TokenCase<'_>] = &[
            (&[("x-key", "cg_a")], Ok("alice")),
            (&[("authorization", "Bearer cg_b")], Ok("bob")),
            (&[("x-key", "cg_a"), ("authorization", "Bearer cg_b")], Ok("alice")),
            (&[("x-key", ""), ("authorization", "Bearer cg_b")], Ok("bob")),
            (&[("x-key", "cg_a"), ("authorization", "Basic x")], Ok("alice")),
            (&[("x-key", "Bearer cg_a")], Err(unknown)),
            (&[("x-key", "cg_c"), ("authorization", "Bearer cg_b")], Err(unknown)),
            (&[("authorization", "cg_b")], Err(no_token)),
            (&[], Err(no_token)),
            (&[("x-key", "cg_a"), ("x-key", "cg_a")], Err(AuthError::MultipleAuthorization)),
        ];
        for (fields, expected) in rows {
            assert_eq!(name(fields), expected.map(str::to_owned), "{fields:?}");
        }
        let without = with_fields(team(&[ALICE]).mode, &["x-key"], x_key());
        let rejected = without.identify(&headers(&["Bearer cg_a"])).unwrap_err();
        assert_eq!(rejected, AuthError::NoToken(TokenField::Other));
        assert_eq!(rejected.challenge().unwrap(), "ApiKey realm=\"clipgate\"");
    }

    fn with_version(mode: config::AuthMode) -> Authenticator {
        let names = |names: &[&str]| names.iter().map(|name| name.parse().unwrap()).collect();
        let (headers, with_key) = (names(&["x-key"]), names(&["x-version"]));
        let auth = config::AuthConfig { mode, headers, with_key, send: x_key() };
        Authenticator::new(&auth, Some(&Secret::new("sk-1"))).unwrap()
    }

    // P11
    #[test]
    fn a_field_beside_the_key_belongs_to_the_domain_but_is_not_a_key() {
        let authenticator = with_version(config::AuthMode::Passthrough);
        let identify = |fields: &[(&str, &str)]| authenticator.identify(&map(fields)).unwrap();
        let (key, one, two) = (("x-key", "a"), ("x-version", "1"), ("x-version", "2"));
        assert!(identify(&[one]).is_none(), "a version alone");
        let domains = [&[key][..], &[key, one], &[key, two]].map(|fields| identify(fields).unwrap().domain);
        assert!(domains[0] != domains[1] && domains[1] != domains[2] && domains[0] != domains[2]);
        assert_eq!(sent(&identify(&[one, key]).unwrap()), map(&[key, one]));
        let twice = authenticator.identify(&map(&[key, one, two]));
        assert_eq!(twice.unwrap_err(), AuthError::MultipleAuthorization);
        assert_eq!(authenticator.vary(), "x-key, x-version, accept");
    }

    // P11
    #[test]
    fn a_key_of_the_gateways_own_goes_up_with_the_clients_fields_beside_it() {
        let (one, two, token) = (("x-version", "1"), ("x-version", "2"), ("x-key", "cg_a"));
        for (mode, own) in [
            (config::AuthMode::Sidecar, &[("x-key", "sk-1")][..]),
            (team(&[ALICE]).mode, &[("x-key", "sk-1")]),
            (config::AuthMode::Open, &[]),
        ] {
            let authenticator = with_version(mode.clone());
            let identify = |fields: &[(&str, &str)]| authenticator.identify(&map(fields)).unwrap().unwrap();
            let [none, first, second] = [&[token][..], &[token, one], &[token, two]].map(&identify);
            assert_eq!(sent(&none), map(own), "{mode:?}");
            assert_eq!(sent(&first), map(&[own, &[one]].concat()), "{mode:?}");
            assert!(none.domain != first.domain && first.domain != second.domain, "{mode:?}");
            assert_eq!(first.domain, identify(&[token, one]).domain, "{mode:?}");
            if mode != config::AuthMode::Open {
                assert_eq!([first, second].map(|identity| identity.quota_domain()), [none.domain; 2]);
            }
        }
    }

    #[test]
    fn in_open_mode_all_clients_share_one_domain_without_a_key() {
        let authenticator = with_fields(config::AuthMode::Open, &["authorization"], x_key());
        let identity = authenticator.identify(&HeaderMap::new()).unwrap().unwrap();
        assert_eq!(identity.origin, KeyOrigin::Open);
        assert_eq!(sent(&identity).len(), 0);
        assert_eq!(domain(&authenticator, "Bearer a"), Some(identity.domain));
        assert!(authenticator.accepts_anyone());
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
