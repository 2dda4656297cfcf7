//! The integration tests: real sockets, port 0, the simulated upstream beside them.

mod stage;

mod check;
mod deadlines;
mod drain;
mod http2;
mod leaning;
mod mishaps;
mod multi;
mod own_fields;
mod sharing;
mod turns;
