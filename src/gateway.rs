//! The path of a request, on one screen.
