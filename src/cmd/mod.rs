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

use crate::printable::escape_lines;

/// Whatever made a command fail; its chain is printed.
pub type CommandError = Box<dyn std::error::Error + Send + Sync>;

/// An error and what caused it. It may quote what others have written, and is safe for a terminal.
pub fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    let chain = causes.map(ToString::to_string).collect::<Vec<_>>().join(": ");
    escape_lines(&chain).into_owned()
}
