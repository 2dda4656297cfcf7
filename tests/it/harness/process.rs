//! A gateway process in front of a simulated upstream, and a client for any connection.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use bytes::Bytes;
use clipgate::sim::{Sim, SimOptions};
use http::{Request, Response};
use http_body_util::{BodyExt as _, Empty};
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt as _, AsyncRead, AsyncWrite, BufReader, Lines};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::{Child, ChildStderr, ChildStdout, Command};

/// Time until a test fails.
const TIMEOUT: Duration = Duration::from_secs(60);

/// Returns the output of a future, or panics after [`TIMEOUT`].
pub(crate) async fn within_timeout<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(TIMEOUT, future)
        .await
        .unwrap_or_else(|_| panic!("{what}: not ready after {TIMEOUT:?}"))
}

/// The environment of a gateway process: a directory for its files, and a simulated upstream.
pub(crate) struct TestEnv {
    pub(crate) dir: TempDir,
    pub(crate) sim: Sim,
    upstream: SocketAddr,
}

impl TestEnv {
    pub(crate) async fn new() -> Self {
        Self::with_options(SimOptions::default()).await
    }

    /// Starts an upstream with these options.
    pub(crate) async fn with_options(options: SimOptions) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let upstream = listener.local_addr().unwrap();
        let sim = Sim::new(options);
        tokio::spawn(sim.clone().serve(listener, std::future::pending()));
        Self { dir: tempfile::tempdir().unwrap(), sim, upstream }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Returns the upstream's URL, for clients that bypass the gateway.
    pub(crate) fn upstream_url(&self) -> String {
        format!("http://{}", self.upstream)
    }

    /// Writes the configuration: these lines of `[server]`, which may end with further sections.
    pub(crate) fn configure(&self, lines: &str) {
        let listen = if lines.contains("listen =") { "" } else { "listen = \"127.0.0.1:0\"\n" };
        let upstream = self.upstream;
        let text = format!(
            "upstream.base_url = \"http://{upstream}\"\nadmin.listen = \"\"\n[server]\n{listen}{lines}\n"
        );
        std::fs::write(self.path("config.toml"), text).unwrap();
    }

    /// Returns the command that starts the gateway.
    pub(crate) fn command(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_clipgate"));
        command.args(["serve", "--config"]).arg(self.path("config.toml"));
        self.confine(&mut command);
        command
    }

    /// Like [`Self::command`], on one CPU core, where the gateway uses its single-threaded runtime.
    pub(crate) fn command_on_one_core(&self) -> Command {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let cores = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:")).unwrap().trim();
        let one = cores.split([',', '-']).next().unwrap();
        // From util-linux. It replaces itself by the gateway, so the process id stays.
        let mut command = Command::new("taskset");
        command.args(["--cpu-list", one, env!("CARGO_BIN_EXE_clipgate"), "serve", "--config"]);
        command.arg(self.path("config.toml"));
        self.confine(&mut command);
        command
    }

    /// Runs a command in this directory, with `PATH` as its only variable and with pipes.
    pub(crate) fn confine(&self, command: &mut Command) {
        let path = std::env::var_os("PATH").unwrap_or_default();
        command.current_dir(self.dir.path()).env_clear().env("PATH", path).kill_on_drop(true);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    }

    pub(crate) fn start(&self) -> GatewayProcess {
        GatewayProcess::spawn(self.command())
    }

    /// Starts a gateway whose log has all fields of a request.
    pub(crate) fn start_with_json_log(&self) -> GatewayProcess {
        let mut command = self.command();
        command.env("CLIPGATE__LOG__FORMAT", "json");
        GatewayProcess::spawn(command)
    }
}

/// A running gateway. Dropping it kills the process.
pub(crate) struct GatewayProcess {
    child: Child,
    out: Lines<BufReader<ChildStdout>>,
    err: Lines<BufReader<ChildStderr>>,
}

impl GatewayProcess {
    pub(crate) fn spawn(mut command: Command) -> Self {
        let mut child = command.spawn().unwrap();
        let out = BufReader::new(child.stdout.take().unwrap()).lines();
        let err = BufReader::new(child.stderr.take().unwrap()).lines();
        Self { child, out, err }
    }

    /// Waits for the next ready line and returns the address in it.
    pub(crate) async fn listens_on(&mut self) -> String {
        match within_timeout("a ready line", self.out.next_line()).await.unwrap() {
            Some(line) => line.strip_prefix("clipgate listening on ").expect("a ready line").to_owned(),
            None => panic!("the gateway ended without a ready line: {:?}", self.rest_of_log().await),
        }
    }

    /// Returns the next line of stdout.
    pub(crate) async fn next_line(&mut self) -> String {
        within_timeout("a line", self.out.next_line()).await.unwrap().expect("stdout has another line")
    }

    pub(crate) async fn address(&mut self) -> SocketAddr {
        self.listens_on().await.parse().unwrap()
    }

    /// Reads the log to the next line that contains this text, and returns the line.
    pub(crate) async fn wait_for_log(&mut self, text: &str) -> String {
        let mut seen = Vec::new();
        while let Some(line) = within_timeout(text, self.err.next_line()).await.unwrap() {
            if line.contains(text) {
                return line;
            }
            seen.push(line);
        }
        panic!("{text:?} is not in the log: {seen:#?}")
    }

    /// Returns the lines from here to the end of the log.
    pub(crate) async fn rest_of_log(&mut self) -> Vec<String> {
        let mut lines = Vec::new();
        while let Some(line) = within_timeout("the end of the log", self.err.next_line()).await.unwrap() {
            lines.push(line);
        }
        lines
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id().expect("the gateway is running")
    }

    /// Sends a signal, for example `TERM`.
    pub(crate) fn signal(&self, name: &str) {
        let pid = self.pid().to_string();
        let sent = std::process::Command::new("kill").args([&format!("-{name}"), &pid]).status().unwrap();
        assert!(sent.success());
    }

    /// Returns the resident memory in kB.
    pub(crate) fn resident(&self) -> u64 {
        let pid = self.pid();
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("Linux reports VmRSS");
        line.trim().trim_end_matches(" kB").parse().unwrap()
    }

    pub(crate) async fn wait_for_exit(&mut self) -> ExitStatus {
        within_timeout("the end of the process", self.child.wait()).await.unwrap()
    }
}

pub(crate) enum TestClient {
    H1(http1::SendRequest<Empty<Bytes>>),
    H2(http2::SendRequest<Empty<Bytes>>),
}

impl TestClient {
    pub(crate) async fn connect(address: SocketAddr) -> Self {
        Self::h1(TcpStream::connect(address).await.unwrap()).await
    }

    pub(crate) async fn h1(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) -> Self {
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        Self::H1(sender)
    }

    pub(crate) async fn h2(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) -> Self {
        let (sender, connection) =
            http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        Self::H2(sender)
    }

    pub(crate) async fn send(&mut self, request: Request<Empty<Bytes>>) -> hyper::Result<Response<Bytes>> {
        let answer = async {
            let answer = match self {
                Self::H1(sender) => sender.send_request(request).await?,
                Self::H2(sender) => sender.send_request(request).await?,
            };
            let (head, body) = answer.into_parts();
            Ok(Response::from_parts(head, body.collect().await?.to_bytes()))
        };
        within_timeout("an answer", answer).await
    }

    pub(crate) async fn get(&mut self, target: &str, fields: &[(&str, &str)]) -> Response<Bytes> {
        self.send(get(target, fields)).await.unwrap()
    }

    /// Waits until the server has closed the connection, or is closing it and accepts no more requests.
    pub(crate) async fn wait_until_closed(&mut self) {
        let closed = async {
            match self {
                Self::H1(sender) => {
                    while sender.ready().await.is_ok() {
                        tokio::task::yield_now().await
                    }
                }
                Self::H2(sender) => {
                    while sender.ready().await.is_ok() {
                        tokio::task::yield_now().await
                    }
                }
            }
        };
        within_timeout("the connection to be closed", closed).await;
    }
}

/// Returns a GET request with a key. A target without a host gets `Host: gw.example`.
pub(crate) fn get(target: &str, fields: &[(&str, &str)]) -> Request<Empty<Bytes>> {
    let mut request = Request::get(target).header("authorization", "Bearer key-1");
    if target.starts_with('/') {
        request = request.header("host", "gw.example");
    }
    for (name, value) in fields {
        request = request.header(*name, *value);
    }
    request.body(Empty::new()).unwrap()
}

/// Returns the target of a wait until this clip is completed.
pub(crate) fn completed_target(id: &str) -> String {
    format!("/v2/generate/audio/suno-ai/clip?clip_id={id}&status=completed")
}

/// Returns a path as a TOML string.
pub(crate) fn quoted(path: &Path) -> String {
    format!("{path:?}")
}
