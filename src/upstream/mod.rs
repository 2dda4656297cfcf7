//! The upstream's side: the client, and one poll from its first try to its final outcome.

pub(crate) mod client;
pub(crate) mod poll;
