//! Accepted API keys, and digests in place of the keys of recorded requests.

use fastrand::Rng;

/// The key of a recorded request, as a salted digest. It can be compared, but not read.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct RecordedKey {
    salt: [u8; 32],
    digest: blake3::Hash,
}

impl RecordedKey {
    /// Returns whether the request was sent with this key.
    pub fn matches(&self, key: &str) -> bool {
        self.digest == blake3::keyed_hash(&self.salt, key.as_bytes())
    }
}

impl std::fmt::Debug for RecordedKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.digest.to_hex()[..8])
    }
}

pub(super) struct AcceptedKeys {
    salt: [u8; 32],
    /// `None`: any key that is not empty.
    accepted: Option<Vec<blake3::Hash>>,
}

impl AcceptedKeys {
    pub(super) fn new(accepted: Option<&[String]>, rng: &mut Rng) -> Self {
        let mut salt = [0; 32];
        rng.fill(&mut salt);
        let digest = |key: &String| blake3::keyed_hash(&salt, key.as_bytes());
        Self { salt, accepted: accepted.map(|keys| keys.iter().map(digest).collect()) }
    }

    /// Returns the digest of the key in a header field. The scheme ends with its space; it is empty in fields that
    /// have none.
    pub(super) fn record(&self, scheme: &str, field: &[u8]) -> Option<RecordedKey> {
        let (prefix, key) = field.split_at_checked(scheme.len())?;
        let key = key.trim_ascii();
        (prefix.eq_ignore_ascii_case(scheme.as_bytes()) && !key.is_empty())
            .then(|| RecordedKey { salt: self.salt, digest: blake3::keyed_hash(&self.salt, key) })
    }

    pub(super) fn accepts(&self, key: Option<RecordedKey>) -> bool {
        match (&self.accepted, key) {
            (_, None) => false,
            (None, Some(_)) => true,
            (Some(accepted), Some(key)) => accepted.contains(&key.digest),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_recorded_key_can_be_compared_but_not_read() {
        let keys = AcceptedKeys::new(None, &mut Rng::with_seed(1));
        let seen = keys.record("Bearer ", b"Bearer sk-abc").unwrap();
        assert!(seen.matches("sk-abc") && !seen.matches("sk-abd"));
        assert!(!format!("{seen:?}").contains("sk-"));
        assert!(keys.accepts(Some(seen)) && !keys.accepts(None));
    }

    #[test]
    fn only_keys_of_the_scheme_are_accepted() {
        let keys = AcceptedKeys::new(None, &mut Rng::with_seed(1));
        for bad in [&b"Bearer "[..], b"Bearer", b"Basic abc", b"", b"Bearer    "] {
            assert!(keys.record("Bearer ", bad).is_none(), "{bad:?}");
        }
        assert!(keys.record("Bearer ", b"bearer k").unwrap().matches("k"));
        assert!(keys.record("Key ", b"Key k").unwrap().matches("k"));
        assert!(keys.record("Key ", b"Bearer k").is_none());
        assert!(keys.record("", b"k").unwrap().matches("k"));
    }
}
