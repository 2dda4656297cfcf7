//! One poll, from its first try to its final outcome.
