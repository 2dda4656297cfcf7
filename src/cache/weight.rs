//! What a kept job takes up in memory: every allocation, as large as jemalloc makes it.

use std::mem::size_of;

use super::CachedJob;
use crate::core::job::JobState;

/// What moka allocates for an entry: the key, the value's cell, its figures, its places in the queues of eviction and
/// expiry, and in the table. `tests/cache_memory.rs` holds it to the truth.
const MOKA_BYTES: usize = 352;

/// What `Bytes` allocate beside the bytes when they are first cloned.
pub(super) const SHARED_BYTES: usize = 32;

/// The counts of an `Arc`.
const COUNTS: usize = 2 * size_of::<usize>();

/// Returns what moka is told that a job weighs, its head aside.
pub(super) fn of(state: &JobState, etag_bytes: usize) -> usize {
    MOKA_BYTES
        + allocated_arc::<CachedJob>()
        + allocated(COUNTS + state.id.as_str().len())
        + allocated(state.body.len())
        + allocated(etag_bytes)
        + 2 * SHARED_BYTES
}

/// Returns what an `Arc` of this type takes up.
pub(super) fn allocated_arc<T>() -> usize {
    allocated(COUNTS + size_of::<T>())
}

/// Returns what jemalloc sets aside for so many bytes: up to 128 a multiple of 16, above that one of four sizes between
/// each power of two and the next.
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
    fn an_allocation_is_as_large_as_jemallocs_next_size() {
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
        for (asked, given) in rows {
            assert_eq!(allocated(asked), given, "{asked}");
        }
        assert_eq!(rows.len(), 14);
    }
}
