//! What is no wait goes through untouched.
