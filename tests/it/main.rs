//! The integration tests: real sockets, port 0, the simulated upstream beside them.

mod check;
