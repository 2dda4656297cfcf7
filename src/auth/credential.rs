//! The credential of a request at the upstream: the fields that its polls carry, and their key domain (P11).
//!
//! | origin | polls carry | a passed-through request |
//! | --- | --- | --- |
//! | the client's key | all its fields of `auth.headers` | keeps its fields |
//! | a key of the gateway's own | the field of `auth.send` | loses `Authorization` and the fields of `auth.headers`, gets that of `auth.send` |
//! | none (`auth.mode = "open"`) | nothing | keeps its fields |
//!
//! With each of them polls carry the client's fields of `auth.with_key` too, and a passed-through request keeps them.

use std::sync::Arc;

use bytes::Bytes;
use http::header::AUTHORIZATION;
use http::{HeaderMap, HeaderName, HeaderValue};

use crate::core::job::KeyDomain;
use crate::protocol::field_value::copy_value;
use crate::protocol::spoofed_headers::strip_spellings;

/// Key of the hash that names key domains.
pub(super) type HashKey = [u8; blake3::KEY_LEN];

/// A credential. Cheap to clone. `Debug` does not show its values.
#[derive(Clone, Debug)]
pub struct Credential(CredentialFields);

#[derive(Clone, Debug)]
enum CredentialFields {
    Open,
    /// The common case: `Authorization` alone, without an allocation beside the value's own.
    Authorization(HeaderValue),
    /// In the order of `auth.headers`.
    Fields(Arc<[(HeaderName, HeaderValue)]>),
    Lent(Arc<LentField>),
}

#[derive(Debug)]
struct LentField {
    name: HeaderName,
    value: HeaderValue,
    /// The fields in which the upstream could find a key of the client. `name` is one of them.
    replaced: Vec<HeaderName>,
    /// The client's fields of `auth.with_key`.
    beside: Vec<(HeaderName, HeaderValue)>,
    /// Domain of the key without the fields beside it, if there are some.
    key_alone: Option<KeyDomain>,
}

impl Credential {
    /// Returns the credential of requests to an upstream without keys.
    pub(super) fn open() -> Self {
        Self(CredentialFields::Open)
    }

    /// Returns a client's credential: the first of its fields and the others.
    pub(super) fn of_client(first: ClientField<'_>, others: Vec<ClientField<'_>>) -> Self {
        if others.is_empty() && *first.0 == AUTHORIZATION {
            return Self(CredentialFields::Authorization(copy_key(first.1)));
        }
        let fields = std::iter::once(first).chain(others);
        Self(CredentialFields::Fields(fields.map(|(name, value)| (name.clone(), copy_key(value))).collect()))
    }

    /// Returns the domain of a lent key without the fields beside it, if there are some.
    pub(super) fn key_alone(&self) -> Option<KeyDomain> {
        match &self.0 {
            CredentialFields::Lent(lent) => lent.key_alone,
            CredentialFields::Open | CredentialFields::Authorization(_) | CredentialFields::Fields(_) => None,
        }
    }

    /// Returns the credential with these fields of the client beside the key, whose domain alone is `domain`.
    pub(super) fn with_fields(&self, domain: KeyDomain, fields: &[ClientField<'_>]) -> Self {
        let copied = fields.iter().map(|(name, value)| ((*name).clone(), copy_key(value)));
        match &self.0 {
            CredentialFields::Lent(lent) => {
                let (name, value, replaced) = (lent.name.clone(), lent.value.clone(), lent.replaced.clone());
                Self(CredentialFields::Lent(Arc::new(LentField {
                    name,
                    value,
                    replaced,
                    beside: copied.collect(),
                    key_alone: Some(domain),
                })))
            }
            CredentialFields::Open | CredentialFields::Authorization(_) | CredentialFields::Fields(_) => {
                let own = self.own_fields().into_iter();
                Self(CredentialFields::Fields(own.chain(copied).collect()))
            }
        }
    }

    fn own_fields(&self) -> Vec<(HeaderName, HeaderValue)> {
        match &self.0 {
            CredentialFields::Open => Vec::new(),
            CredentialFields::Authorization(value) => vec![(AUTHORIZATION, value.clone())],
            CredentialFields::Fields(fields) => fields.to_vec(),
            CredentialFields::Lent(lent) => {
                let key = std::iter::once((lent.name.clone(), lent.value.clone()));
                key.chain(lent.beside.iter().cloned()).collect()
            }
        }
    }

    /// Returns the credential with a key of the gateway's own, which replaces the client's fields with these names and
    /// its `Authorization`.
    pub(crate) fn lent((name, mut value): (HeaderName, HeaderValue), client_fields: &[HeaderName]) -> Self {
        value.set_sensitive(true);
        let mut replaced = client_fields.to_vec();
        replaced.extend([AUTHORIZATION, name.clone()]);
        Self(CredentialFields::Lent(Arc::new(LentField {
            name,
            value,
            replaced,
            beside: Vec::new(),
            key_alone: None,
        })))
    }

    /// Writes the fields into a request to the upstream.
    pub(crate) fn apply(&self, headers: &mut HeaderMap) {
        match &self.0 {
            CredentialFields::Open => {}
            CredentialFields::Authorization(value) => {
                headers.insert(AUTHORIZATION, value.clone());
            }
            CredentialFields::Fields(fields) => {
                for (name, value) in fields.iter() {
                    headers.insert(name, value.clone());
                }
            }
            CredentialFields::Lent(lent) => {
                headers.insert(&lent.name, lent.value.clone());
                for (name, value) in &lent.beside {
                    headers.insert(name, value.clone());
                }
            }
        }
    }

    /// Writes the fields into a client's request. A key of the gateway's own replaces all keys of the client, in every
    /// spelling that a server may take for their fields.
    pub(crate) fn replace_in(&self, headers: &mut HeaderMap) {
        match (&self.0, headers.get_mut(AUTHORIZATION)) {
            // The usual case: the request has the field already.
            (CredentialFields::Authorization(_), Some(own)) => return own.set_sensitive(true),
            (CredentialFields::Lent(lent), _) => strip_spellings(headers, &lent.replaced),
            _ => {}
        }
        self.apply(headers);
    }

    /// Returns the fields besides `Authorization` that only the head of a request may have.
    pub(crate) fn names(&self) -> Vec<&HeaderName> {
        match &self.0 {
            CredentialFields::Open => Vec::new(),
            // Trailers never have it.
            CredentialFields::Authorization(_) => Vec::new(),
            CredentialFields::Fields(fields) => fields.iter().map(|(name, _)| name).collect(),
            CredentialFields::Lent(lent) => lent.replaced.iter().collect(),
        }
    }

    /// Returns the key domain: the first half of a BLAKE3 hash, keyed with random bytes of this process or, with
    /// `[cluster]`, bytes of its secret. Nothing else identifies a key outside of requests to the upstream.
    pub(super) fn domain(&self, hash_key: &HashKey) -> KeyDomain {
        let hash = match self.authorization() {
            Some(value) => blake3::keyed_hash(hash_key, value.as_bytes()),
            None => blake3::keyed_hash(hash_key, &self.encoded_fields()),
        };
        let mut domain = KeyDomain([0; 16]);
        domain.0.copy_from_slice(&hash.as_bytes()[..16]);
        domain
    }

    /// Returns the bytes of the key: two credentials have the same bytes only if the upstream gets the same fields. `None`
    /// without a key: replicas share nothing of such requests.
    ///
    /// The bytes of an `Authorization` field alone are its value. Others begin with a zero byte, which a value cannot
    /// have, and have the length of each name and value before its bytes.
    pub(crate) fn key_bytes(&self) -> Option<Bytes> {
        match self.authorization() {
            Some(value) => Some(Bytes::copy_from_slice(value.as_bytes())),
            None if matches!(self.0, CredentialFields::Open) => None,
            None => Some(self.encoded_fields().into()),
        }
    }

    /// Returns the client's own value of `Authorization` if that is the only field.
    pub(super) fn client_authorization(&self) -> Option<&HeaderValue> {
        match &self.0 {
            CredentialFields::Authorization(value) => Some(value),
            CredentialFields::Open | CredentialFields::Fields(_) | CredentialFields::Lent(_) => None,
        }
    }

    /// Returns the value of `Authorization` if that is the only field.
    fn authorization(&self) -> Option<&HeaderValue> {
        match &self.0 {
            CredentialFields::Authorization(value) => Some(value),
            CredentialFields::Lent(lent) if lent.name == AUTHORIZATION && lent.beside.is_empty() => {
                Some(&lent.value)
            }
            CredentialFields::Lent(_) | CredentialFields::Fields(_) | CredentialFields::Open => None,
        }
    }

    fn encoded_fields(&self) -> Vec<u8> {
        match &self.0 {
            CredentialFields::Authorization(value) => encode_fields(std::iter::once((&AUTHORIZATION, value))),
            CredentialFields::Lent(lent) => {
                let beside = lent.beside.iter().map(|(name, value)| (name, value));
                encode_fields(std::iter::once((&lent.name, &lent.value)).chain(beside))
            }
            CredentialFields::Fields(fields) => {
                encode_fields(fields.iter().map(|(name, value)| (name, value)))
            }
            CredentialFields::Open => encode_fields(std::iter::empty()),
        }
    }
}

fn copy_key(value: &HeaderValue) -> HeaderValue {
    let mut value = copy_value(value);
    value.set_sensitive(true);
    value
}

/// A field of a client's request.
pub(super) type ClientField<'a> = (&'a HeaderName, &'a HeaderValue);

fn encode_fields<'a>(fields: impl Iterator<Item = ClientField<'a>>) -> Vec<u8> {
    let mut bytes = vec![0];
    for (name, value) in fields {
        for part in [name.as_str().as_bytes(), value.as_bytes()] {
            bytes.extend_from_slice(&(part.len() as u64).to_le_bytes());
            bytes.extend_from_slice(part);
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;
    use crate::protocol::header_map as map;

    const HASH_KEY: HashKey = [7; blake3::KEY_LEN];

    fn name(text: &str) -> HeaderName {
        text.parse().unwrap()
    }

    fn of_client(fields: &[(&str, &str)]) -> Credential {
        let owned: Vec<(HeaderName, HeaderValue)> =
            fields.iter().map(|(field, value)| (name(field), value.parse().unwrap())).collect();
        let mut fields = owned.iter().map(|(name, value)| (name, value));
        Credential::of_client(fields.next().unwrap(), fields.collect())
    }

    // P11
    #[test]
    fn each_list_of_names_and_values_has_its_own_domain() {
        let lists: &[&[(&str, &str)]] = &[
            &[("authorization", "a")],
            &[("authorization", "b")],
            &[("x-key", "a")],
            &[("x-keya", "")],
            &[("x-key", "")],
            &[("y-key", "a")],
            &[("authorization", "a"), ("x-key", "a")],
            &[("authorization", "a"), ("x-key", "b")],
            &[("authorization", "b"), ("x-key", "a")],
            &[("authorization", "ax-key"), ("x-key", "a")],
            &[("authorization", "a"), ("y-key", "a")],
            &[("x-key", "a"), ("y-key", "a")],
            &[("x-key", "ay-keya")],
        ];
        let domains: HashSet<_> = lists.iter().map(|list| of_client(list).domain(&HASH_KEY)).collect();
        assert_eq!(domains.len(), lists.len());
        assert!(!domains.contains(&Credential::open().domain(&HASH_KEY)));
        for list in lists {
            assert_eq!(of_client(list).domain(&HASH_KEY), of_client(list).domain(&HASH_KEY));
        }
    }

    #[test]
    fn a_lent_key_has_the_domain_of_a_client_that_sends_the_same_field() {
        for field in ["authorization", "x-key"] {
            let lent = Credential::lent((name(field), HeaderValue::from_static("k")), &[name("y")]);
            assert_eq!(lent.domain(&HASH_KEY), of_client(&[(field, "k")]).domain(&HASH_KEY));
        }
    }

    #[test]
    fn a_lent_key_replaces_every_key_of_the_client_in_every_spelling() {
        let sent = [
            ("authorization", "Bearer client"),
            ("x-key", "client"),
            ("x_key", "client"),
            ("x.key", "client"),
            ("api-key", "client"),
            ("api_key", "client"),
            ("xkey", "other"),
            ("accept", "a/b"),
        ];
        let mut headers = map(&sent);
        let lent = Credential::lent((name("api-key"), HeaderValue::from_static("k")), &[name("x-key")]);
        lent.replace_in(&mut headers);
        assert_eq!(headers, map(&[("api-key", "k"), ("xkey", "other"), ("accept", "a/b")]));
        assert_eq!(lent.names(), ["x-key", "authorization", "api-key"]);

        for own in [Credential::open(), of_client(&[("x-key", "client")])] {
            let mut headers = map(&sent);
            own.replace_in(&mut headers);
            assert_eq!(headers, map(&sent), "the client's own fields stay");
        }
    }

    #[test]
    fn a_poll_gets_the_fields_of_the_credential_alone() {
        let applied = |credential: &Credential| {
            let mut headers = HeaderMap::new();
            credential.apply(&mut headers);
            assert!(headers.values().all(HeaderValue::is_sensitive));
            headers
        };
        assert_eq!(applied(&Credential::open()).len(), 0);
        assert_eq!(applied(&of_client(&[("x-key", "a")])), map(&[("x-key", "a")]));
        let two = [("authorization", "a"), ("x-key", "b")];
        assert_eq!(applied(&of_client(&two)), map(&two));
        assert!(!format!("{:?}", of_client(&[("x-key", "recognise"), ("y", "recognise")])).contains("recog"));
    }
}
