//! The gateway's own answers, in the upstream's error shape.
