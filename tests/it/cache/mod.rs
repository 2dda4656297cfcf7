//! Cached responses, and the keys that separate them.

pub(crate) mod cached_responses;
pub(crate) mod isolation;
pub(crate) mod keys;
pub(crate) mod per_response_headers;
