//! Upstream side: the HTTP client, and single attempts of polls.

pub(crate) mod client;
pub(crate) mod poll;
