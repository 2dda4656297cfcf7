//! Weight of a cached job: the sizes of all its allocations, as jemalloc rounds them.

use std::mem::size_of;

use super::CachedJob;
use crate::core::job::JobState;

/// Bytes that moka allocates for an entry: key, value cell, counters, nodes in the eviction and expiry queues, and table
/// slot. `tests/cache_memory.rs` checks the sum against the allocator.
const MOKA_BYTES: usize = 352;

/// Bytes that `bytes::Bytes` allocates at its first clone, beside the data.
pub(super) const SHARED_BYTES: usize = 32;

/// Reference counts of an `Arc`.
const COUNTS: usize = 2 * size_of::<usize>();

/// Returns the weight of a cached job without its head.
pub(super) fn of_job(state: &JobState, etag_bytes: usize) -> usize {
    MOKA_BYTES
        + allocated_arc::<CachedJob>()
        + allocated(COUNTS + state.id.as_str().len())
        + allocated(state.body.len())
        + allocated(etag_bytes)
        + 2 * SHARED_BYTES
}

/// Returns the bytes that an `Arc` of this type allocates.
pub(super) fn allocated_arc<T>() -> usize {
    allocated(COUNTS + size_of::<T>())
}

/// Returns jemalloc's size class for an allocation: up to 128 bytes a multiple of 16, above that one of four sizes between
/// two powers of two.
pub(super) fn allocated(bytes: usize) -> usize {
    match bytes {
        0..=128 => bytes.next_multiple_of(16),
        _ => bytes.next_multiple_of(bytes.next_power_of_two() / 8),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_allocation_has_the_next_size_class_of_jemalloc() {
        let rows = [
            (0, 0),
            (1, 16),
            (16, 16),
            (17, 32),
            (128, 128),
            (129, 160),
            (160, 160),
            (161, 192),
            (257, 320),
            (2048, 2048),
            (2049, 2560),
            (4096, 4096),
            (14_337, 16_384),
            (16_385, 20_480),
        ];
        for (requested, expected) in rows {
            assert_eq!(allocated(requested), expected, "{requested}");
        }
        assert_eq!(rows.len(), 14);
    }
}
