//! The command line, with each command as a process.

pub(crate) mod check;
pub(crate) mod check_live;
pub(crate) mod command_line;
pub(crate) mod first_minute;
pub(crate) mod health;
pub(crate) mod replicas;
pub(crate) mod signals;
pub(crate) mod soak;
pub(crate) mod unread_output;
pub(crate) mod watch;
