//! A gateway as a process of its own, before a simulated upstream; and a client for any kind of connection.
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

/// How long anything may take before a test gives up.
const PATIENCE: Duration = Duration::from_secs(60);

/// In time, or the test fails.
pub(crate) async fn within_timeout<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.unwrap_or_else(|_| panic!("{what}: waited too long"))
}

/// Where a gateway is to be started: a directory for its files, and what its upstream is.
pub(crate) struct TestEnv {
    pub(crate) dir: TempDir,
    pub(crate) sim: Sim,
    upstream: SocketAddr,
}

impl TestEnv {
    pub(crate) async fn new() -> Self {
        Self::with_options(SimOptions::default()).await
    }

    /// Before an upstream like this.
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

    /// The upstream itself, for who does not go through a gateway.
    pub(crate) fn upstream_url(&self) -> String {
        format!("http://{}", self.upstream)
    }

    /// Writes the configuration: these lines of `[server]`, and whole sections after them.
    pub(crate) fn configure(&self, lines: &str) {
        let listen = if lines.contains("listen =") { "" } else { "listen = \"127.0.0.1:0\"\n" };
        let upstream = self.upstream;
        let text = format!(
            "upstream.base_url = \"http://{upstream}\"\nadmin.listen = \"\"\n[server]\n{listen}{lines}\n"
        );
        std::fs::write(self.path("config.toml"), text).unwrap();
    }

    /// The command that starts the gateway.
    pub(crate) fn command(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_clipgate"));
        command.args(["serve", "--config"]).arg(self.path("config.toml"));
        self.confine(&mut command);
        command
    }

    /// The same on one of this machine's cores, where it has another runtime than on several.
    pub(crate) fn command_on_one_core(&self) -> Command {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let cores = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:")).unwrap().trim();
        let one = cores.split([',', '-']).next().unwrap();
        let mut command = Command::new("taskset"); // from util-linux, becomes what it starts
        command.args(["--cpu-list", one, env!("CARGO_BIN_EXE_clipgate"), "serve", "--config"]);
        command.arg(self.path("config.toml"));
        self.confine(&mut command);
        command
    }

    /// Gives a command this directory, an environment without surprises, and pipes.
    pub(crate) fn confine(&self, command: &mut Command) {
        let path = std::env::var_os("PATH").unwrap_or_default();
        command.current_dir(self.dir.path()).env_clear().env("PATH", path).kill_on_drop(true);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    }

    pub(crate) fn start(&self) -> GatewayProcess {
        GatewayProcess::spawn(self.command())
    }
}

/// The process.
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

    /// What the next ready line says it listens on.
    pub(crate) async fn listens_on(&mut self) -> String {
        match within_timeout("a ready line", self.out.next_line()).await.unwrap() {
            Some(line) => line.strip_prefix("clipgate listening on ").expect("a ready line").to_owned(),
            None => panic!("it ended without a ready line: {:?}", self.rest_of_log().await),
        }
    }

    /// The next line of stdout.
    pub(crate) async fn next_line(&mut self) -> String {
        within_timeout("a line", self.out.next_line()).await.unwrap().expect("it goes on")
    }

    pub(crate) async fn address(&mut self) -> SocketAddr {
        self.listens_on().await.parse().unwrap()
    }

    /// Reads the log up to a line with this in it.
    pub(crate) async fn wait_for_log(&mut self, what: &str) -> String {
        let mut seen = Vec::new();
        while let Some(line) = within_timeout(what, self.err.next_line()).await.unwrap() {
            if line.contains(what) {
                return line;
            }
            seen.push(line);
        }
        panic!("{what:?} is not in the log: {seen:#?}")
    }

    /// The lines that are still to come.
    pub(crate) async fn rest_of_log(&mut self) -> Vec<String> {
        let mut lines = Vec::new();
        while let Some(line) = within_timeout("the end of the log", self.err.next_line()).await.unwrap() {
            lines.push(line);
        }
        lines
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id().expect("it runs")
    }

    /// Sends a signal, `TERM` for example.
    pub(crate) fn signal(&self, name: &str) {
        let pid = self.pid().to_string();
        let sent = std::process::Command::new("kill").args([&format!("-{name}"), &pid]).status().unwrap();
        assert!(sent.success());
    }

    /// How much memory it has, in kB.
    pub(crate) fn resident(&self) -> u64 {
        let pid = self.pid();
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("it is Linux");
        line.trim().trim_end_matches(" kB").parse().unwrap()
    }

    pub(crate) async fn wait_for_exit(&mut self) -> ExitStatus {
        within_timeout("the end of the process", self.child.wait()).await.unwrap()
    }
}

/// A client's connection.
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

    /// When the other side has closed the connection, or is about to and takes no more requests.
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

/// A request with a key; a target without a host asks for `gw.example`.
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

/// The target of a wait for this clip.
pub(crate) fn completed_target(id: &str) -> String {
    format!("/v2/generate/audio/suno-ai/clip?clip_id={id}&status=completed")
}

/// A path as TOML text.
pub(crate) fn quoted(path: &Path) -> String {
    format!("{path:?}")
}
