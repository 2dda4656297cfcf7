//! A job: its name, sets of names, and its state as the upstream last told it.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;

use crate::core::route::Rung;

/// The longest id that is taken, in bytes (contract, section 6).
pub const MAX_ID_BYTES: usize = 128;

/// A job's id as the upstream spells it: 1 to 128 bytes of UTF-8, otherwise opaque.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct JobId(Arc<str>);

/// Why a text is no job id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadId {
    /// It has no bytes.
    #[error("is empty")]
    Empty,
    /// It has more than [`MAX_ID_BYTES`].
    #[error("is longer than 128 bytes")]
    TooLong,
}

impl JobId {
    /// The id, if it has a length an id can have.
    pub fn new(id: &str) -> Result<Self, BadId> {
        match id.len() {
            0 => Err(BadId::Empty),
            1..=MAX_ID_BYTES => Ok(Self(id.into())),
            _ => Err(BadId::TooLong),
        }
    }

    /// The id's text.
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

/// Different jobs, in one order whatever order they were named in. Cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct JobSet(Arc<[JobId]>);

impl JobSet {
    /// The set of these ids; one that comes twice is in it once.
    pub fn new(ids: impl IntoIterator<Item = JobId>) -> Self {
        let mut ids: Vec<_> = ids.into_iter().collect();
        ids.sort_unstable();
        ids.dedup();
        Self(ids.into())
    }

    /// The ids, sorted.
    pub fn iter(&self) -> std::slice::Iter<'_, JobId> {
        self.0.iter()
    }

    /// How many.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether the id is in the set.
    pub fn contains(&self, id: &JobId) -> bool {
        self.place(id).is_some()
    }

    /// Returns the place of the id in the set.
    pub fn place(&self, id: &JobId) -> Option<usize> {
        self.0.binary_search(id).ok()
    }

    /// Whether all of this set's ids are in the other.
    pub fn is_subset(&self, of: &JobSet) -> bool {
        self.len() <= of.len() && self.iter().all(|id| of.contains(id))
    }

    /// Returns whether an id is in both sets.
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

/// Whose answers may be shared: all requests that reach the upstream with one key. A keyed digest of it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct KeyDomain(pub [u8; 16]);

impl Hash for KeyDomain {
    /// A part of it: as a digest it is evenly spread already.
    fn hash<H: Hasher>(&self, state: &mut H) {
        let [start @ .., _, _, _, _, _, _, _, _] = self.0;
        state.write_u64(u64::from_le_bytes(start));
    }
}

impl KeyDomain {
    /// A short digest, for people: enough to tell two keys of one log apart.
    pub fn short(&self) -> String {
        hex::encode(&self.0[..4])
    }
}

impl fmt::Display for KeyDomain {
    /// As [`Self::short`].
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.short())
    }
}

impl fmt::Debug for KeyDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The head of an upstream answer: its status, and names in lower case and values, hop-by-hop fields left out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Head {
    /// The HTTP status.
    pub status: u16,
    /// Whether the body is the whole representation, which only a 200 says (RFC 9110 §15.3.1): a 206 has a part of it, a
    /// 203 is what somebody on the way made of it, a 201 or 202 may be about something else. Anything else is passed on,
    /// but not kept.
    pub is_whole: bool,
    /// What holds for everybody who is told this state, a cache's reader included.
    pub shared: Vec<(Box<str>, Bytes)>,
    /// What belongs to this one answer, and so only to who caused it (contract, section 1).
    pub own: Vec<(Box<str>, Bytes)>,
}

impl Default for Head {
    /// A 200 without fields.
    fn default() -> Self {
        Self { status: 200, is_whole: true, shared: Vec::new(), own: Vec::new() }
    }
}

/// What the upstream said of one job. Cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JobState {
    /// Which job.
    pub id: JobId,
    /// Where it stands; `None` for a status word that is on no ladder.
    pub rung: Option<Rung>,
    /// The job's own bytes, as they came.
    pub body: Bytes,
    /// The head of the answer they came in.
    pub head: Arc<Head>,
    /// When the answer arrived.
    pub seen_at: Instant,
}

/// An upstream answer that is passed on as it came, whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    /// The HTTP status.
    pub status: u16,
    /// Its head.
    pub head: Arc<Head>,
    /// Its body, every byte.
    pub body: Bytes,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(text: &str) -> JobId {
        JobId::new(text).unwrap()
    }

    #[test]
    fn an_id_has_1_to_128_bytes() {
        assert_eq!(JobId::new(""), Err(BadId::Empty));
        assert!(JobId::new(&"x".repeat(128)).is_ok());
        assert_eq!(JobId::new(&"x".repeat(129)), Err(BadId::TooLong));
    }

    #[test]
    fn a_set_knows_no_order_and_no_repetition() {
        let set = JobSet::new([id("b"), id("a"), id("b")]);
        assert_eq!(set, JobSet::new([id("a"), id("b")]));
        assert_eq!(set.len(), 2);
        assert!(JobSet::new([id("a")]).is_subset(&set));
        assert!(!set.is_subset(&JobSet::new([id("a"), id("c"), id("d")])));
    }
}
