//! Interned response heads of cached jobs. Most responses of an upstream have equal headers, which are stored once.
//!
//! An interned head has no weight, because a bound limits all of them together. Any other head counts to the weight of
//! its job.

use std::hash::BuildHasher as _;
use std::mem::size_of;
use std::sync::Arc;

use bytes::Bytes;
use foldhash::quality::RandomState;
use http::{HeaderMap, HeaderName, HeaderValue, Version};
use parking_lot::Mutex;

use super::weight::{SHARED_BYTES, allocated, allocated_arc};
use crate::core::job::ResponseHead;
use crate::protocol::stored_headers::write_stored;
use crate::protocol::via::append_via;

/// The most interned heads. Each store compares with all of them.
const MAX_SHARED: usize = 64;

/// Interned heads may use `cache.max_bytes` divided by this, beside the jobs.
const MAX_SHARED_FRACTION: u64 = 64;

/// The response head of a cached job, ready for cache hits.
#[derive(Debug)]
pub struct StoredHead {
    /// Headers that all clients may see. Per-response headers are removed (P8).
    pub(super) head: Arc<ResponseHead>,
    /// These headers and `Via`, in the form that responses use.
    pub fields: Box<[(HeaderName, HeaderValue)]>,
    hash: u64,
}

#[derive(Debug)]
pub(super) struct HeadInterner {
    shared: Mutex<InternedHeads>,
    hasher: RandomState,
    max_bytes: usize,
}

#[derive(Debug, Default)]
struct InternedHeads {
    heads: Vec<Arc<StoredHead>>,
    bytes: usize,
}

impl HeadInterner {
    /// Returns an empty interner for a cache of this size.
    pub(super) fn new(max_bytes: u64) -> Self {
        let max_bytes = usize::try_from(max_bytes / MAX_SHARED_FRACTION).unwrap_or(usize::MAX);
        Self { shared: Mutex::default(), hasher: RandomState::default(), max_bytes }
    }

    /// Returns the stored form of a head, and its share of the job's weight: 0 if it is interned.
    pub(super) fn intern(&self, head: &ResponseHead) -> (Arc<StoredHead>, usize) {
        let hash = self.hasher.hash_one(&head.shared);
        let shared = &mut *self.shared.lock();
        let is_equal = |known: &&Arc<StoredHead>| {
            known.hash == hash && known.head.status == head.status && known.head.shared == head.shared
        };
        if let Some(known) = shared.heads.iter().find(is_equal) {
            return (Arc::clone(known), 0);
        }
        let stored = Arc::new(StoredHead::new(head, hash));
        let bytes = stored.bytes();
        if !self.has_room(shared, bytes) {
            shared.remove_unused();
        }
        if !self.has_room(shared, bytes) {
            return (stored, bytes);
        }
        shared.bytes += bytes;
        shared.heads.push(Arc::clone(&stored));
        (stored, 0)
    }

    fn has_room(&self, shared: &InternedHeads, bytes: usize) -> bool {
        shared.heads.len() < MAX_SHARED && shared.bytes + bytes <= self.max_bytes
    }
}

impl InternedHeads {
    /// Removes the heads that no cached job uses.
    fn remove_unused(&mut self) {
        self.heads.retain(|head| {
            let is_used = Arc::strong_count(head) > 1;
            if !is_used {
                self.bytes -= head.bytes();
            }
            is_used
        });
    }
}

impl StoredHead {
    fn new(head: &ResponseHead, hash: u64) -> Self {
        // Exact copies instead of slices of a larger response, without per-response headers (P8).
        let shared = head.shared.iter().map(|(name, value)| (name.clone(), Bytes::copy_from_slice(value)));
        let head = ResponseHead { shared: shared.collect(), per_response: Vec::new(), ..*head };
        let mut fields = HeaderMap::with_capacity(head.shared.len() + 1);
        write_stored(&head, false, &mut fields);
        append_via(&mut fields, Version::HTTP_11);
        let fields = fields.iter().map(|(name, value)| (name.clone(), value.clone())).collect();
        Self { head: Arc::new(head), fields, hash }
    }

    /// Returns the allocated bytes.
    fn bytes(&self) -> usize {
        let field = |(name, value): &(Box<str>, Bytes)| {
            // `HeaderName` stores a second copy of a non-standard name.
            2 * allocated(name.len()) + allocated(value.len()) + SHARED_BYTES
        };
        allocated_arc::<Self>()
            + allocated_arc::<ResponseHead>()
            + allocated(self.head.shared.len() * size_of::<(Box<str>, Bytes)>())
            + allocated(self.fields.len() * size_of::<(HeaderName, HeaderValue)>())
            + self.head.shared.iter().map(field).sum::<usize>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(value: &str) -> ResponseHead {
        let field = |name: &str, value: &str| (name.into(), Bytes::copy_from_slice(value.as_bytes()));
        let shared = vec![field("content-type", "application/json"), field("x-powered-by", value)];
        ResponseHead { shared, per_response: vec![field("x-request-id", "1")], ..ResponseHead::default() }
    }

    #[test]
    fn equal_heads_are_stored_once_and_without_per_response_headers() {
        let heads = HeadInterner::new(1 << 20);
        let (first, weight) = heads.intern(&head("a"));
        assert_eq!(weight, 0);
        let (again, weight) = heads.intern(&ResponseHead { per_response: Vec::new(), ..head("a") });
        assert!(Arc::ptr_eq(&first, &again) && weight == 0);
        for other in [head("b"), ResponseHead { status: 202, ..head("a") }] {
            let (stored, _) = heads.intern(&other);
            assert_eq!((stored.head.status, Arc::ptr_eq(&first, &stored)), (other.status, false));
        }
        assert_eq!((first.head.shared.clone(), first.head.per_response.len()), (head("a").shared, 0));
        let names: Vec<_> = first.fields.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["content-type", "x-powered-by", "via"]);
    }

    #[test]
    fn the_number_of_interned_heads_is_bounded_and_unused_heads_make_room() {
        let heads = HeadInterner::new(1 << 30);
        let mut stored: Vec<_> = (0..MAX_SHARED).map(|n| heads.intern(&head(&n.to_string()))).collect();
        assert!(stored.iter().all(|(_, weight)| *weight == 0));
        for _ in 0..2 {
            let (_, weight) = heads.intern(&head("one more"));
            assert!((500..1500).contains(&weight), "{weight}");
        }
        stored.pop();
        assert_eq!(heads.intern(&head("one more")).1, 0);
        assert_eq!(heads.shared.lock().heads.len(), MAX_SHARED);
    }

    #[test]
    fn interned_heads_use_a_small_fraction_of_the_cache() {
        let heads = HeadInterner::new(64 * 10_000);
        let stored: Vec<_> = (0..MAX_SHARED).map(|n| heads.intern(&head(&n.to_string()))).collect();
        let interned = stored.iter().filter(|(_, weight)| *weight == 0);
        let bytes: usize = interned.map(|(head, _)| head.bytes()).sum();
        assert!((8_000..=10_000).contains(&bytes), "{bytes}");
        assert_eq!(heads.shared.lock().bytes, bytes);
        assert!(heads.intern(&head(&"x".repeat(20_000))).1 > 20_000);
    }
}
