//! A child process that ends with this process, however this one ends.
//!
//! The child has a pipe as its lifeline. When the pipe closes, a shell sends SIGTERM to the child. A parent-death signal
//! would need `unsafe`.

use std::ffi::OsStr;
use std::io;
use std::path::Path;
use std::process::{ExitStatus, Stdio};

use tokio::io::{AsyncBufReadExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

/// Waits for the end of stdin in the background and becomes the program, with its input from `ENGINE_CONFIG`.
const SCRIPT: &str = r#"
exec 3<&0
(while read -r _; do :; done; kill -TERM $$) <&3 >/dev/null 2>&1 &
exec "$0" "$@" 3<&- <<END
$ENGINE_CONFIG
END
"#;

/// A running program. Dropping it kills the process.
pub(super) struct ChildProcess {
    child: Child,
    lifeline: Option<ChildStdin>,
    lines: Lines<BufReader<ChildStdout>>,
}

impl ChildProcess {
    /// Starts a program with these arguments, and with these variables beside those of this process. A Ctrl-C at the
    /// terminal does not reach it: this process stops its children in order.
    pub(super) fn start(
        program: &Path,
        args: impl IntoIterator<Item = impl AsRef<OsStr>>,
        variables: &[(&str, String)],
        stderr: Stdio,
    ) -> io::Result<Self> {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", SCRIPT]).arg(program).args(args);
        // The service manager speaks with this process only.
        ["NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES"]
            .iter()
            .for_each(|name| _ = command.env_remove(name));
        command.envs(variables.iter().map(|(name, value)| (*name, value)));
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(stderr);
        let mut child = command.process_group(0).kill_on_drop(true).spawn()?;
        let lifeline = child.stdin.take();
        let stdout = child.stdout.take().ok_or(io::ErrorKind::BrokenPipe)?;
        Ok(Self { child, lifeline, lines: BufReader::new(stdout).lines() })
    }

    /// Returns the next line of stdout. `None`: the program has closed it. Cancel safe.
    pub(super) async fn next_line(&mut self) -> Option<String> {
        self.lines.next_line().await.ok().flatten()
    }

    /// Returns the id of the process while it runs.
    pub(super) fn id(&self) -> Option<u32> {
        self.child.id()
    }

    /// Sends SIGTERM.
    pub(super) fn stop(&mut self) {
        self.lifeline.take();
    }

    /// Waits for the end of the process. Cancel safe.
    pub(super) async fn ended(&mut self) -> io::Result<ExitStatus> {
        self.child.wait().await
    }
}
