//! Errors of commands: how they are printed, and the exit code of each.

use std::io::{self, Write as _};
use std::process::ExitCode;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use crate::config::ConfigErrors;
use crate::printable::escape_lines;

/// The error of a command. Its chain of causes is printed.
pub(crate) type CommandError = Box<dyn std::error::Error + Send + Sync>;

/// An argument that does not fit the others: exit code 2, as for those that clap rejects.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct UsageError(pub(crate) String);

/// Longest delay of the end of the process by a full pipe on stderr.
const STDERR_TIMEOUT: Duration = Duration::from_secs(1);

/// Prints the error and returns its exit code: 2 for an invalid command line or configuration, 1 for
/// other errors.
pub(crate) fn report(error: &CommandError) -> ExitCode {
    if !is_closed_pipe(error) {
        write_stderr(format!("clipgate: {}\n", chain(&**error)));
    }
    if error.is::<ConfigErrors>() || error.is::<UsageError>() { ExitCode::from(2) } else { ExitCode::FAILURE }
}

/// Formats an error and its causes in one text. The text is safe for a terminal, also if it quotes an upstream.
pub(crate) fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    let chain = causes.map(ToString::to_string).collect::<Vec<_>>().join(": ");
    escape_lines(&chain).into_owned()
}

/// Returns whether a reader such as `head` closed the pipe, which is not reported.
fn is_closed_pipe(error: &CommandError) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}

/// Writes to stderr from a thread of its own: a pipe without a reader must not delay the end of the process.
fn write_stderr(text: String) {
    let (done, written) = mpsc::channel();
    let writer = thread::Builder::new().spawn(move || {
        // Neither failure can be reported any further.
        let _ = io::stderr().write_all(text.as_bytes());
        let _ = done.send(());
    });
    if writer.is_ok() {
        let _ = written.recv_timeout(STDERR_TIMEOUT);
    }
}
