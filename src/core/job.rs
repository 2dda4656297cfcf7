//! Jobs: ids, sets of ids, and the state of a job as the upstream reported it.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;

use crate::core::route::Rung;

/// The longest job id, in bytes.
pub const MAX_ID_BYTES: usize = 512;

/// Position of a route in [`Routes`](crate::core::route::Routes).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RouteIndex(pub u8);

/// Identity of a job: its route, its id as the upstream spells it, and the rest of its address. Cheap to clone.
///
/// The id has 1 to [`MAX_ID_BYTES`] bytes of UTF-8 and is otherwise opaque. Two routes never share a job.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct JobId {
    /// The id, then the rest.
    text: Arc<str>,
    id_len: u16,
    route: RouteIndex,
}

impl Hash for JobId {
    /// Hashes the text alone: jobs whose ids and rests have the same text are equal in nearly all cases.
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.text.hash(state);
    }
}

/// Reason why a text is not a valid job id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadId {
    /// The text has no bytes.
    #[error("is empty")]
    Empty,
    /// The text has more than [`MAX_ID_BYTES`].
    #[error("is longer than 512 bytes")]
    TooLong,
}

impl JobId {
    /// Creates a job of the first route from an id of 1 to [`MAX_ID_BYTES`] bytes.
    pub fn new(id: &str) -> Result<Self, BadId> {
        Self::with_rest(RouteIndex::default(), id, "")
    }

    /// Creates a job. `rest` has the other parts of its address: path variables and parameters that belong to its
    /// identity, in their canonical encoding.
    pub fn with_rest(route: RouteIndex, id: &str, rest: &str) -> Result<Self, BadId> {
        let id_len = match (id.len(), u16::try_from(id.len())) {
            (0, _) => return Err(BadId::Empty),
            (1..=MAX_ID_BYTES, Ok(len)) => len,
            (_, _) => return Err(BadId::TooLong),
        };
        let text = if rest.is_empty() { id.into() } else { [id, rest].concat().into() };
        Ok(Self { text, id_len, route })
    }

    /// Returns the id as text.
    pub fn as_str(&self) -> &str {
        &self.text[..usize::from(self.id_len)]
    }

    /// Returns the id as shared text, mostly without a copy.
    pub fn to_shared_str(&self) -> Arc<str> {
        if self.rest().is_empty() { Arc::clone(&self.text) } else { self.as_str().into() }
    }

    /// Returns the other parts of the job's address in their canonical encoding. Empty if the id is the whole identity.
    pub fn rest(&self) -> &str {
        &self.text[usize::from(self.id_len)..]
    }

    /// Returns whether query parameters belong to the identity.
    pub fn has_params(&self) -> bool {
        self.rest().contains('?')
    }

    /// Returns the job without the query parameters of its identity: all variants of a job have this one in common.
    pub fn without_params(&self) -> Self {
        match self.rest().find('?') {
            Some(at) => {
                let text = self.text[..usize::from(self.id_len) + at].into();
                Self { text, id_len: self.id_len, route: self.route }
            }
            None => self.clone(),
        }
    }

    /// Returns the route of the job.
    pub fn route(&self) -> RouteIndex {
        self.route
    }
}

impl fmt::Display for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&*self.text, f)
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

    /// Returns the route of the jobs. Jobs of two routes are never in one set.
    pub fn route(&self) -> RouteIndex {
        self.0.first().map(JobId::route).unwrap_or_default()
    }

    /// Returns the number of ids.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Returns whether the set has no ids.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns the id of a set with a single one.
    pub fn only(&self) -> Option<&JobId> {
        if let [only] = &*self.0 { Some(only) } else { None }
    }

    /// Returns whether both are one set in memory. Equal sets need not be.
    pub fn is_same(&self, other: &JobSet) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
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
    /// Moment for which the state is certain; its age counts from here. Equals `seen_at` where the upstream holds requests.
    /// On other routes it is when the request was sent: the answer may have been on its way for a while.
    pub as_of: Instant,
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
    fn a_job_id_has_1_to_512_bytes() {
        assert_eq!(JobId::new(""), Err(BadId::Empty));
        assert!(JobId::new(&"x".repeat(512)).is_ok());
        assert_eq!(JobId::new(&"x".repeat(513)), Err(BadId::TooLong));
    }

    #[test]
    fn a_job_is_its_route_its_id_and_the_rest_of_its_address() {
        let job = |route, id, rest| JobId::with_rest(RouteIndex(route), id, rest).unwrap();
        let jobs = [job(0, "a", ""), job(1, "a", ""), job(0, "a", "b"), job(0, "ab", ""), job(0, "ab", "c")];
        for (n, one) in jobs.iter().enumerate() {
            assert!(jobs.iter().skip(n + 1).all(|other| other != one), "{one:?}");
        }
        assert_eq!((jobs[4].as_str(), jobs[4].rest(), jobs[4].to_string()), ("ab", "c", "ab".to_owned()));
        assert_eq!(jobs[1].route(), RouteIndex(1));
        let variant = job(1, "a?b", "c?logs=1");
        assert!(variant.has_params() && !job(1, "a?b", "c").has_params());
        assert_eq!(variant.without_params(), job(1, "a?b", "c"));
        assert_eq!(jobs[3].without_params(), jobs[3]);
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
