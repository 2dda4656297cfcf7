//! The heads that jobs are kept with. Most answers of an upstream have the same fields: equal ones are kept once.
//!
//! A head that many jobs share weighs nothing beside them, as there is a bound on all such heads together; any other
//! weighs with its job.

use std::hash::BuildHasher as _;
use std::mem::size_of;
use std::sync::Arc;

use bytes::Bytes;
use foldhash::quality::RandomState;
use http::{HeaderMap, HeaderName, HeaderValue, Version};
use parking_lot::Mutex;

use super::weight::{SHARED_BYTES, allocated, allocated_arc};
use crate::core::job::Head;
use crate::protocol::stored_headers::write_stored;
use crate::protocol::via::append_via;

/// The most heads that are shared: each store looks through them.
const MAX_SHARED: usize = 64;

/// What part of `cache.max_bytes` shared heads may take up beside the jobs.
const SHARED_PART: u64 = 64;

/// A head as hits need it.
#[derive(Debug)]
pub struct StoredHead {
    /// The fields that all may see.
    pub(super) head: Arc<Head>,
    /// The same, and `Via`, as answers take them.
    pub fields: Box<[(HeaderName, HeaderValue)]>,
    hash: u64,
}

#[derive(Debug)]
pub(super) struct Heads {
    shared: Mutex<Shared>,
    hasher: RandomState,
    max_bytes: usize,
}

#[derive(Debug, Default)]
struct Shared {
    heads: Vec<Arc<StoredHead>>,
    bytes: usize,
}

impl Heads {
    /// Returns the heads of a cache of this size.
    pub(super) fn new(max_bytes: u64) -> Self {
        let max_bytes = usize::try_from(max_bytes / SHARED_PART).unwrap_or(usize::MAX);
        Self { shared: Mutex::default(), hasher: RandomState::default(), max_bytes }
    }

    /// Returns the head to keep a job with, and what it weighs with this job.
    pub(super) fn store(&self, head: &Head) -> (Arc<StoredHead>, usize) {
        let hash = self.hasher.hash_one(&head.shared);
        let shared = &mut *self.shared.lock();
        let is_it = |known: &&Arc<StoredHead>| known.hash == hash && known.head.shared == head.shared;
        if let Some(known) = shared.heads.iter().find(is_it) {
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

    fn has_room(&self, shared: &Shared, bytes: usize) -> bool {
        shared.heads.len() < MAX_SHARED && shared.bytes + bytes <= self.max_bytes
    }
}

impl Shared {
    /// Removes the heads that no job is kept with any more.
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
    fn new(head: &Head, hash: u64) -> Self {
        // Cut to size, and without what belongs to one answer.
        let shared = head.shared.iter().map(|(name, value)| (name.clone(), Bytes::copy_from_slice(value)));
        let head = Head { shared: shared.collect(), own: Vec::new(), ..*head };
        let mut fields = HeaderMap::with_capacity(head.shared.len() + 1);
        write_stored(&head, false, &mut fields);
        append_via(&mut fields, Version::HTTP_11);
        let fields = fields.iter().map(|(name, value)| (name.clone(), value.clone())).collect();
        Self { head: Arc::new(head), fields, hash }
    }

    /// Returns what it takes up in memory.
    fn bytes(&self) -> usize {
        let field = |(name, value): &(Box<str>, Bytes)| {
            // A name of no standard is kept a second time, by the field of the answer.
            2 * allocated(name.len()) + allocated(value.len()) + SHARED_BYTES
        };
        allocated_arc::<Self>()
            + allocated_arc::<Head>()
            + allocated(self.head.shared.len() * size_of::<(Box<str>, Bytes)>())
            + allocated(self.fields.len() * size_of::<(HeaderName, HeaderValue)>())
            + self.head.shared.iter().map(field).sum::<usize>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(value: &str) -> Head {
        let field = |name: &str, value: &str| (name.into(), Bytes::copy_from_slice(value.as_bytes()));
        let shared = vec![field("content-type", "application/json"), field("x-powered-by", value)];
        Head { shared, own: vec![field("x-request-id", "1")], ..Head::default() }
    }

    #[test]
    fn equal_heads_are_kept_once_and_without_what_is_one_answers_own() {
        let heads = Heads::new(1 << 20);
        let (first, weight) = heads.store(&head("a"));
        assert_eq!(weight, 0);
        let (again, weight) = heads.store(&Head { own: Vec::new(), ..head("a") });
        assert!(Arc::ptr_eq(&first, &again) && weight == 0);
        let (other, _) = heads.store(&head("b"));
        assert!(!Arc::ptr_eq(&first, &other));
        assert_eq!((first.head.shared.clone(), first.head.own.len()), (head("a").shared, 0));
        let names: Vec<_> = first.fields.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["content-type", "x-powered-by", "via"]);
    }

    #[test]
    fn only_so_many_heads_weigh_nothing_and_those_of_no_job_make_room() {
        let heads = Heads::new(1 << 30);
        let mut kept: Vec<_> = (0..MAX_SHARED).map(|n| heads.store(&head(&n.to_string()))).collect();
        assert!(kept.iter().all(|(_, weight)| *weight == 0));
        for _ in 0..2 {
            let (_, weight) = heads.store(&head("one more"));
            assert!((500..1500).contains(&weight), "{weight}");
        }
        kept.pop();
        assert_eq!(heads.store(&head("one more")).1, 0);
        assert_eq!(heads.shared.lock().heads.len(), MAX_SHARED);
    }

    #[test]
    fn all_that_weighs_nothing_is_a_small_part_of_the_cache() {
        let heads = Heads::new(64 * 10_000);
        let kept: Vec<_> = (0..MAX_SHARED).map(|n| heads.store(&head(&n.to_string()))).collect();
        let free = kept.iter().filter(|(_, weight)| *weight == 0);
        let bytes: usize = free.map(|(head, _)| head.bytes()).sum();
        assert!((8_000..=10_000).contains(&bytes), "{bytes}");
        assert_eq!(heads.shared.lock().bytes, bytes);
        assert!(heads.store(&head(&"x".repeat(20_000))).1 > 20_000);
    }
}
