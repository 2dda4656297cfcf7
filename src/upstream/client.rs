//! The HTTP client that reaches the upstream and nothing else.
