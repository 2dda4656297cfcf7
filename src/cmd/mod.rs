//! What the command does, one file a call.

mod ask;
pub mod check;
pub mod completions;
pub mod health;
mod key;
pub mod man;
pub mod serve;
pub mod sim;
pub mod token;
pub mod watch;

/// Whatever made a command fail; its chain is printed.
pub type CommandError = Box<dyn std::error::Error + Send + Sync>;
