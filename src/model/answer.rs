//! Upstream answers cut into clips by id, and put together again byte for byte.
