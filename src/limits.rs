//! What one key may do.
