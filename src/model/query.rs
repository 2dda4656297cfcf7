//! What a request's target asks for, in every spelling, and how polls spell it.
