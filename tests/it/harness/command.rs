//! The built command as a process, and other programs that run as its clients. Blocking; see `process` for async tests.

use std::io::{BufRead as _, BufReader, Read as _, Seek as _};
use std::net::SocketAddr;
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::time::Duration;

/// Time until a test fails, for a start or a stop of the command.
const TIMEOUT: Duration = Duration::from_secs(20);

/// A running `clipgate` command. Dropping it kills the process.
pub(crate) struct ClipgateProcess {
    child: Child,
    /// Lines of stdout. The channel closes when the process ends.
    lines: Receiver<String>,
    log: std::fs::File,
}

impl ClipgateProcess {
    /// Starts the command with these arguments and only this environment. The admin listener is off unless `env` sets it.
    pub(crate) fn start(args: &[&str], env: &[(&str, &str)]) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_clipgate"));
        command.args(args);
        Self::spawn(command, env)
    }

    /// Like [`Self::start`], in a new terminal, which shows stdout and the log. The end of the terminal stops the command.
    pub(crate) fn start_at_terminal(args: &[&str], env: &[(&str, &str)]) -> Self {
        let line = [&[env!("CARGO_BIN_EXE_clipgate")], args].concat().join(" ");
        let mut command = Command::new("script"); // from util-linux
        command.args(["--quiet", "--return", "--flush", "--command", &line, "/dev/null"]);
        Self::spawn(command, env)
    }

    fn spawn(mut command: Command, env: &[(&str, &str)]) -> Self {
        let log = tempfile::tempfile().unwrap();
        let mut child = command
            .env_clear()
            // Parallel gateways cannot share the default address.
            .env("CLIPGATE__ADMIN__LISTEN", "")
            .envs(env.iter().copied())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log.try_clone().unwrap())
            .spawn()
            .unwrap();
        let stdout = child.stdout.take().unwrap();
        let (line_sender, lines) = mpsc::channel();
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                if line_sender.send(line).is_err() {
                    return;
                }
            }
        });
        Self { child, lines, log }
    }

    /// Returns the next line of stdout.
    pub(crate) fn next_line(&mut self) -> String {
        match self.lines.recv_timeout(TIMEOUT) {
            Ok(line) => line,
            Err(_) => panic!("stdout has no further line; the log: {}", self.log()),
        }
    }

    /// Waits for the ready line and returns the address in it.
    pub(crate) fn ready(&mut self) -> String {
        let line = self.next_line();
        line.strip_prefix("clipgate listening on ").unwrap_or_else(|| panic!("{line}")).to_owned()
    }

    /// Waits for the ready line and returns its TCP address.
    pub(crate) fn address(&mut self) -> SocketAddr {
        self.ready().parse().unwrap()
    }

    /// Waits for the ready line of the admin listener, and returns the address in it.
    pub(crate) fn admin(&mut self) -> String {
        let line = self.next_line();
        line.strip_prefix("clipgate admin listening on ").unwrap_or_else(|| panic!("{line}")).to_owned()
    }

    /// Returns the id of the process.
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Sends SIGKILL and waits for the end.
    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Sends SIGTERM, waits for the end, and returns the exit code and the log.
    pub(crate) fn stop(mut self) -> (Option<i32>, String) {
        self.terminate();
        (self.child.wait().unwrap().code(), self.log())
    }

    /// Sends SIGTERM, and returns the lines of stdout that have not been read.
    pub(crate) fn terminate(&mut self) -> Vec<String> {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
        let mut lines = Vec::new();
        loop {
            match self.lines.recv_timeout(TIMEOUT) {
                Ok(line) => lines.push(line),
                Err(mpsc::RecvTimeoutError::Timeout) => {}
                Err(mpsc::RecvTimeoutError::Disconnected) => return lines,
            }
        }
    }

    pub(crate) fn log(&mut self) -> String {
        let mut log = String::new();
        self.log.rewind().unwrap();
        self.log.read_to_string(&mut log).unwrap();
        log
    }
}

impl Drop for ClipgateProcess {
    fn drop(&mut self) {
        // Fails if the process has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Runs a client program and returns its stdout. Panics if it is not installed or fails. Ignores configured proxies.
pub(crate) fn run(program: &str, package: &str, args: &[&str]) -> String {
    let output = try_run(program, package, args);
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(
        output.status.success(),
        "{program} {args:?}: {}\n{}\n{}",
        output.status,
        text(&output.stdout),
        text(&output.stderr)
    );
    text(&output.stdout)
}

/// Like [`run`], but returns the output with any exit code.
pub(crate) fn try_run(program: &str, package: &str, args: &[&str]) -> Output {
    Command::new(program)
        .args(args)
        .env("no_proxy", "*")
        .env("NO_PROXY", "*")
        .stdin(Stdio::null())
        .output()
        .unwrap_or_else(|error| {
            panic!("`{program}` cannot be run ({error}): install the package `{package}`")
        })
}
