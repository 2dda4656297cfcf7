//! Jobs: ids, sets of ids, and the state of a job as the upstream reported it.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;

use crate::core::route::Rung;

/// The longest accepted job id, in bytes. A wait with a longer one gets 400.
pub const MAX_ID_BYTES: usize = 128;

/// A job's id as the upstream spells it: 1 to 128 bytes of UTF-8, otherwise opaque. Cheap to clone.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct JobId(Arc<str>);

/// Reason why a text is not a valid job id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadId {
    /// The text has no bytes.
    #[error("is empty")]
    Empty,
    /// The text has more than [`MAX_ID_BYTES`].
    #[error("is longer than 128 bytes")]
    TooLong,
}

impl JobId {
    /// Creates an id from a text of 1 to [`MAX_ID_BYTES`] bytes.
    pub fn new(id: &str) -> Result<Self, BadId> {
        match id.len() {
            0 => Err(BadId::Empty),
            1..=MAX_ID_BYTES => Ok(Self(id.into())),
            _ => Err(BadId::TooLong),
        }
    }

    /// Returns the id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

/// A sorted set of job ids: two sets of the same ids are equal, in any order of naming. Cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct JobSet(Arc<[JobId]>);

impl JobSet {
    /// Creates a set; a repeated id counts once.
    pub fn new(ids: impl IntoIterator<Item = JobId>) -> Self {
        let mut ids: Vec<_> = ids.into_iter().collect();
        ids.sort_unstable();
        ids.dedup();
        Self(ids.into())
    }

    /// Iterates over the ids in sorted order.
    pub fn iter(&self) -> std::slice::Iter<'_, JobId> {
        self.0.iter()
    }

    /// Returns the number of ids.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Returns whether the set has no ids.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns whether the id is in the set.
    pub fn contains(&self, id: &JobId) -> bool {
        self.position(id).is_some()
    }

    /// Returns the position of the id in the sorted set.
    pub fn position(&self, id: &JobId) -> Option<usize> {
        self.0.binary_search(id).ok()
    }

    /// Returns whether all ids of this set are in the other.
    pub fn is_subset(&self, other: &JobSet) -> bool {
        self.len() <= other.len() && self.iter().all(|id| other.contains(id))
    }

    /// Returns whether the sets have an id in common.
    pub fn intersects(&self, other: &JobSet) -> bool {
        self.iter().any(|id| other.contains(id))
    }
}

impl<'a> IntoIterator for &'a JobSet {
    type Item = &'a JobId;
    type IntoIter = std::slice::Iter<'a, JobId>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

/// The requests that may share answers (P11): those with the same upstream key. The value is a keyed digest of that
/// key.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct KeyDomain(pub [u8; 16]);

impl Hash for KeyDomain {
    /// Hashes half of the digest: its bytes are evenly distributed already.
    fn hash<H: Hasher>(&self, state: &mut H) {
        let [first_half @ .., _, _, _, _, _, _, _, _] = self.0;
        state.write_u64(u64::from_le_bytes(first_half));
    }
}

impl KeyDomain {
    /// Returns the first four bytes in hex, for logs: enough to distinguish the keys of one gateway.
    pub fn short(&self) -> String {
        hex::encode(&self.0[..4])
    }
}

impl fmt::Display for KeyDomain {
    /// Writes [`Self::short`].
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.short())
    }
}

impl fmt::Debug for KeyDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The stored head of an upstream response: status and end-to-end headers, names in lower case.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResponseHead {
    /// The HTTP status.
    pub status: u16,
    /// The body is the complete representation, as only a 200 states (RFC 9110 section 15.3.1). A 206 has a part of it,
    /// a proxy on the way changed the body of a 203, and a 201 or 202 may describe something else. Such bodies are
    /// delivered, but never cached.
    pub is_complete: bool,
    /// Headers of the job: each client that gets this state gets them, also from the cache.
    pub shared: Vec<(Box<str>, Bytes)>,
    /// Headers of this one response, such as `Set-Cookie`: only the client whose request got it gets them (P8).
    pub per_response: Vec<(Box<str>, Bytes)>,
}

impl Default for ResponseHead {
    /// Returns a 200 without headers.
    fn default() -> Self {
        Self { status: 200, is_complete: true, shared: Vec::new(), per_response: Vec::new() }
    }
}

/// The state of one job in one upstream response. Cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JobState {
    /// Id of the job.
    pub id: JobId,
    /// Rung of the job; `None` for a status word that the ladder does not have.
    pub rung: Option<Rung>,
    /// The job's own bytes, unchanged (P8).
    pub body: Bytes,
    /// Head of the response that contained them.
    pub head: Arc<ResponseHead>,
    /// Time at which the response was read.
    pub seen_at: Instant,
}

/// An upstream response that is delivered unchanged and complete: an error, a redirect, or a body that is not split.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UpstreamResponse {
    /// The HTTP status.
    pub status: u16,
    /// Status and headers.
    pub head: Arc<ResponseHead>,
    /// All bytes of the body.
    pub body: Bytes,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(text: &str) -> JobId {
        JobId::new(text).unwrap()
    }

    #[test]
    fn a_job_id_has_1_to_128_bytes() {
        assert_eq!(JobId::new(""), Err(BadId::Empty));
        assert!(JobId::new(&"x".repeat(128)).is_ok());
        assert_eq!(JobId::new(&"x".repeat(129)), Err(BadId::TooLong));
    }

    #[test]
    fn a_job_set_ignores_order_and_repetition() {
        let set = JobSet::new([id("b"), id("a"), id("b")]);
        assert_eq!(set, JobSet::new([id("a"), id("b")]));
        assert_eq!(set.len(), 2);
        assert!(JobSet::new([id("a")]).is_subset(&set));
        assert!(!set.is_subset(&JobSet::new([id("a"), id("c"), id("d")])));
    }
}
