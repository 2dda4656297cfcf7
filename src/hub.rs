//! The Coalescer's shell: one task, which owns the polls.
