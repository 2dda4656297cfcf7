//! Errors of commands: how they are printed, and the exit code of each.

use std::io::{self, Write as _};
use std::process::ExitCode;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use crate::config::ConfigErrors;
use crate::printable::escape_lines;
use crate::server::TlsError;
use crate::telemetry::log::TelemetryError;

/// The error of a command. Its chain of causes is printed.
pub(crate) type CommandError = Box<dyn std::error::Error + Send + Sync>;

/// An argument that does not fit the others: exit code 2, as for those that clap rejects.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct UsageError(pub(crate) String);

/// Errors of the configuration, its files and the environment, together.
#[derive(Debug, thiserror::Error)]
#[error("the configuration has {}\n\n{}", count(.0.len()), .0.join("\n"))]
pub(crate) struct StartErrors(pub(crate) Vec<String>);

fn count(errors: usize) -> String {
    if errors == 1 { "1 error".to_owned() } else { format!("{errors} errors") }
}

/// Longest delay of the end of the process by a full pipe on stderr.
const STDERR_TIMEOUT: Duration = Duration::from_secs(1);

/// Prints the error and returns its exit code: 2 for an invalid command line or configuration, 1 for
/// other errors.
pub(crate) fn report(error: &CommandError) -> ExitCode {
    if !is_closed_pipe(error) {
        print(&chain(&**error));
    }
    if is_input_error(error) { ExitCode::from(2) } else { ExitCode::FAILURE }
}

/// Prints a text as an error, in the style of clap.
pub(super) fn print(text: &str) {
    write_stderr(format!("{} {text}\n", label("error:")));
}

/// Returns the label in bold red where stderr shows colours.
fn label(text: &str) -> String {
    match is_colored(&io::stderr()) {
        true => format!("\x1b[1;31m{text}\x1b[0m"),
        false => text.to_owned(),
    }
}

/// Returns whether the stream is a terminal with colours, and `NO_COLOR` is not set.
pub(super) fn is_colored(stream: &impl io::IsTerminal) -> bool {
    let is_set = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    let is_dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
    stream.is_terminal() && !is_set("NO_COLOR") && !is_dumb
}

/// Returns whether the operator has to correct the command line, the configuration or one of its files.
fn is_input_error(error: &CommandError) -> bool {
    let is_filter = error.downcast_ref().is_some_and(|error| matches!(error, TelemetryError::RustLog(_)));
    is_filter
        || error.is::<ConfigErrors>()
        || error.is::<UsageError>()
        || error.is::<StartErrors>()
        || error.is::<TlsError>()
}

/// Formats an error and its causes in one text. The text is safe for a terminal, also if it quotes an upstream.
pub(crate) fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut chain = error.to_string();
    for cause in std::iter::successors(error.source(), |error| error.source()) {
        let cause = cause.to_string();
        // Some libraries repeat the cause in the error.
        if !chain.ends_with(&cause) {
            chain = format!("{chain}: {cause}");
        }
    }
    escape_lines(&chain).into_owned()
}

/// Returns the last error of the chain, which is the most specific.
pub(super) fn root_cause(error: &(dyn std::error::Error + 'static)) -> String {
    let mut cause = error;
    while let Some(next) = cause.source() {
        cause = next;
    }
    cause.to_string()
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

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("{0}")]
    struct Layer(&'static str, #[source] Option<Box<Layer>>);

    #[test]
    fn a_cause_that_the_error_repeats_is_printed_once() {
        let layer = |text, cause: Option<Layer>| Layer(text, cause.map(Box::new));
        let repeated = layer("not a filter", Some(layer("bad level: x", Some(layer("bad level: x", None)))));
        assert_eq!(chain(&repeated), "not a filter: bad level: x");
        let distinct = layer("no connection", Some(layer("refused", None)));
        assert_eq!(
            (chain(&distinct), root_cause(&distinct)),
            ("no connection: refused".to_owned(), "refused".to_owned())
        );
    }
}
