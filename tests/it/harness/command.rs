//! The built command as a process, and programs that are clients of it.

use std::io::{BufRead as _, BufReader, Read as _, Seek as _};
use std::net::SocketAddr;
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::time::Duration;

/// How long the command may take to start or to stop.
const PATIENCE: Duration = Duration::from_secs(20);

/// A gateway. It is killed when it is dropped.
pub(crate) struct ClipgateProcess {
    child: Child,
    /// Stdout; it ends when the process does.
    lines: Receiver<String>,
    log: std::fs::File,
}

impl ClipgateProcess {
    /// Starts it with these arguments, and of the environment with this alone; without an admin listener, unless
    /// that has one.
    pub(crate) fn start(args: &[&str], env: &[(&str, &str)]) -> Self {
        let log = tempfile::tempfile().unwrap();
        let mut child = Command::new(env!("CARGO_BIN_EXE_clipgate"))
            .args(args)
            .env_clear()
            // Gateways side by side cannot all have the usual address.
            .env("CLIPGATE__ADMIN__LISTEN", "")
            .envs(env.iter().copied())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log.try_clone().unwrap())
            .spawn()
            .unwrap();
        let stdout = child.stdout.take().unwrap();
        let (tell, lines) = mpsc::channel();
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                if tell.send(line).is_err() {
                    return;
                }
            }
        });
        Self { child, lines, log }
    }

    /// The next line of stdout.
    pub(crate) fn line(&mut self) -> String {
        match self.lines.recv_timeout(PATIENCE) {
            Ok(line) => line,
            Err(_) => panic!("no line more; the log: {}", self.log()),
        }
    }

    /// Waits for the ready line; what it says of where the gateway listens.
    pub(crate) fn ready(&mut self) -> String {
        let line = self.line();
        line.strip_prefix("clipgate listening on ").unwrap_or_else(|| panic!("{line}")).to_owned()
    }

    /// The same, where that is a TCP address.
    pub(crate) fn address(&mut self) -> SocketAddr {
        self.ready().parse().unwrap()
    }

    /// The line after that, which says where the admin listener is.
    pub(crate) fn admin(&mut self) -> String {
        let line = self.line();
        line.strip_prefix("clipgate admin listening on ").unwrap_or_else(|| panic!("{line}")).to_owned()
    }

    /// Sends SIGTERM and waits for the end: the exit code and the whole log.
    pub(crate) fn stop(mut self) -> (Option<i32>, String) {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
        while self.lines.recv_timeout(PATIENCE) != Err(mpsc::RecvTimeoutError::Disconnected) {}
        (self.child.wait().unwrap().code(), self.log())
    }

    fn log(&mut self) -> String {
        let mut log = String::new();
        self.log.rewind().unwrap();
        self.log.read_to_string(&mut log).unwrap();
        log
    }
}

impl Drop for ClipgateProcess {
    fn drop(&mut self) {
        // Fails where it has ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Runs a client; fails if it is not there or fails. No proxy of this machine's is asked.
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

/// The same, whatever its exit code.
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
