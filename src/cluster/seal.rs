//! Seals: everything that the engine stores or passes on is encrypted or authenticated with keys that it does not have.
//!
//! | what | protection |
//! | --- | --- |
//! | bodies, heads, rungs of jobs | AES-256-GCM, under a key of the secret **and** the client's key, for one place and one epoch: a wrong look-up opens nothing (P11) |
//! | messages, leases, epochs | BLAKE3 with a key of the secret, 16 bytes |
//!
//! Ages are added by the engine and are not protected.

use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};

use crate::secret::Secret;

/// Bytes of an authentication code.
pub(super) const CODE_LEN: usize = 16;

/// Seals the states of one key domain.
pub(super) struct StateSeal(LessSafeKey);

impl StateSeal {
    /// Derives the key from `cluster.secret` and the bytes of the client's key.
    pub(super) fn new(secret: &Secret, client_key: &[u8]) -> Self {
        let mut hasher = blake3::Hasher::new_derive_key("clipgate cluster v1: states");
        for part in [secret.expose().as_bytes(), client_key] {
            hasher.update(&(part.len() as u64).to_le_bytes());
            hasher.update(part);
        }
        let key = UnboundKey::new(&AES_256_GCM, hasher.finalize().as_bytes()).expect("the hash has 32 bytes");
        Self(LessSafeKey::new(key))
    }

    /// Encrypts a text that belongs to the given place. `None`: the system has no random bytes.
    ///
    /// The nonce is random: two of 2^32 texts of a key have the same one with a probability of 2^-33.
    pub(super) fn seal(&self, place: &[u8], mut text: Vec<u8>) -> Option<Vec<u8>> {
        let mut nonce = [0; NONCE_LEN];
        getrandom::fill(&mut nonce).ok()?;
        let seal = Nonce::assume_unique_for_key(nonce);
        self.0.seal_in_place_append_tag(seal, Aad::from(place), &mut text).ok()?;
        let mut sealed = Vec::with_capacity(NONCE_LEN + text.len());
        sealed.extend_from_slice(&nonce);
        sealed.append(&mut text);
        Some(sealed)
    }

    /// Decrypts a text. `None` if it was changed, or sealed for another place or another key.
    pub(super) fn open(&self, place: &[u8], sealed: &[u8]) -> Option<Vec<u8>> {
        let (nonce, text) = sealed.split_first_chunk::<NONCE_LEN>()?;
        let mut text = text.to_vec();
        let nonce = Nonce::assume_unique_for_key(*nonce);
        let len = self.0.open_in_place(nonce, Aad::from(place), &mut text).ok()?.len();
        text.truncate(len);
        Some(text)
    }
}

/// Authenticates messages, leases and epochs.
#[derive(Clone)]
pub(super) struct MessageCodes([u8; blake3::KEY_LEN]);

impl MessageCodes {
    /// Derives the key from `cluster.secret`, for the replicas with this identity.
    pub(super) fn new(secret: &Secret, id: &[u8]) -> Self {
        let mut hasher = blake3::Hasher::new_derive_key("clipgate cluster v1: messages");
        hasher.update(&(id.len() as u64).to_le_bytes());
        hasher.update(id);
        hasher.update(secret.expose().as_bytes());
        Self(*hasher.finalize().as_bytes())
    }

    /// Returns the code of a text of this kind.
    pub(super) fn code(&self, kind: &[u8], text: &[u8]) -> [u8; CODE_LEN] {
        let mut hasher = blake3::Hasher::new_keyed(&self.0);
        hasher.update(&(kind.len() as u64).to_le_bytes());
        hasher.update(kind);
        hasher.update(text);
        let mut code = [0; CODE_LEN];
        code.copy_from_slice(&hasher.finalize().as_bytes()[..CODE_LEN]);
        code
    }

    /// Returns whether the code is that of the text. Takes the same time for each wrong code.
    pub(super) fn is_valid(&self, kind: &[u8], text: &[u8], code: &[u8]) -> bool {
        subtle::ConstantTimeEq::ct_eq(&self.code(kind, text)[..], code).into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seal(secret: &str, key: &[u8]) -> StateSeal {
        StateSeal::new(&Secret::new(secret), key)
    }

    // P11
    #[test]
    fn a_sealed_text_opens_only_with_its_secret_its_key_and_at_its_place() {
        let sealed = seal("s", b"Bearer a").seal(b"job", b"body".to_vec()).unwrap();
        assert_eq!(seal("s", b"Bearer a").open(b"job", &sealed).as_deref(), Some(&b"body"[..]));
        for (secret, key, place) in
            [("t", "Bearer a", "job"), ("s", "bearer a", "job"), ("s", "Bearer a", "jab"), ("s", "", "job")]
        {
            assert_eq!(seal(secret, key.as_bytes()).open(place.as_bytes(), &sealed), None, "{secret} {key}");
        }
        for n in 0..sealed.len() {
            let mut changed = sealed.clone();
            changed[n] ^= 1;
            assert_eq!(seal("s", b"Bearer a").open(b"job", &changed), None, "byte {n}");
            assert_eq!(seal("s", b"Bearer a").open(b"job", &sealed[..n]), None, "{n} bytes");
        }
    }

    #[test]
    fn a_code_belongs_to_one_secret_one_identity_and_one_kind() {
        let codes = MessageCodes::new(&Secret::new("s"), b"1234");
        let code = codes.code(b"k", b"text");
        assert!(codes.is_valid(b"k", b"text", &code));
        assert!(!codes.is_valid(b"k", b"text", &code[..15]));
        assert!(!codes.is_valid(b"kt", b"ext", &code));
        assert!(!MessageCodes::new(&Secret::new("t"), b"1234").is_valid(b"k", b"text", &code));
        assert!(!MessageCodes::new(&Secret::new("s"), b"1235").is_valid(b"k", b"text", &code));
    }
}
