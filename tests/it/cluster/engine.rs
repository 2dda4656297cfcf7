//! A Redis server for one test, and a proxy in front of it.

use std::net::SocketAddr;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::{Child, Command};
use tokio::task::JoinSet;
use tokio_util::task::AbortOnDropHandle;

use crate::harness::process::within_timeout;

/// A server without persistence. Dropping it kills the process.
pub(super) struct TestEngine {
    pub(super) address: SocketAddr,
    dir: TempDir,
    program: String,
    args: Vec<String>,
    server: Option<Child>,
}

impl TestEngine {
    pub(super) async fn start() -> Self {
        Self::start_with("redis-server", &[]).await
    }

    /// Starts this program with further arguments.
    pub(super) async fn start_with(program: &str, args: &[&str]) -> Self {
        let mut engine = Self::stopped().await;
        program.clone_into(&mut engine.program);
        engine.args.extend(args.iter().map(|arg| (*arg).to_owned()));
        engine.restart().await;
        engine
    }

    /// Starts a sentinel of this primary, which it names `mymaster`.
    pub(super) async fn start_sentinel(primary: SocketAddr) -> Self {
        let mut engine = Self::stopped().await;
        let file = engine.dir.path().join("sentinel.conf");
        let lines = format!(
            "sentinel monitor mymaster {} {} 1\nsentinel down-after-milliseconds mymaster 1000\n\
             sentinel failover-timeout mymaster 3000\n",
            primary.ip(),
            primary.port()
        );
        std::fs::write(&file, lines).unwrap();
        engine.args = vec![file.to_str().unwrap().to_owned(), "--sentinel".to_owned()];
        engine.restart().await;
        engine
    }

    /// Reserves an address without a server.
    pub(super) async fn stopped() -> Self {
        let address = SocketAddr::from(([127, 0, 0, 1], free_port().await));
        let args = ["--save", "", "--appendonly", "no", "--repl-diskless-sync-delay", "0"];
        let args = args.map(str::to_owned).to_vec();
        Self {
            address,
            dir: tempfile::tempdir().unwrap(),
            program: "redis-server".to_owned(),
            args,
            server: None,
        }
    }

    /// Starts an empty server on the same port.
    pub(super) async fn restart(&mut self) {
        let mut command = Command::new(&self.program);
        command.args(&self.args).arg("--dir").arg(self.dir.path());
        command.args(["--port", &self.address.port().to_string(), "--bind", "127.0.0.1"]);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true);
        self.server = Some(command.spawn().expect("the engine is installed: see CONTRIBUTING.md"));
        let answers = async {
            while self.try_send("PING").await.is_err() {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        within_timeout("the engine", answers).await;
    }

    /// Runs `redis-cli` with these words and returns its output. A reply that is an error fails the test.
    pub(super) async fn cli(&self, words: &[&str]) -> String {
        let reply = self.cli_unchecked(words).await;
        assert!(!reply.starts_with("ERR") && !reply.contains("Could not connect"), "{words:?}: {reply}");
        reply
    }

    pub(super) async fn cli_unchecked(&self, words: &[&str]) -> String {
        let port = self.address.port().to_string();
        let output = Command::new("redis-cli").args(["-p", &port]).args(words).output().await.unwrap();
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }

    /// Kills the server.
    pub(super) async fn kill(&mut self) {
        let mut server = self.server.take().expect("the server runs");
        server.kill().await.unwrap();
    }

    /// Sends a signal, for example `STOP`.
    pub(super) fn signal(&self, name: &str) {
        let pid = self.server.as_ref().and_then(Child::id).expect("the server runs").to_string();
        let sent = std::process::Command::new("kill").args([&format!("-{name}"), &pid]).status().unwrap();
        assert!(sent.success());
    }

    /// Sends a command and returns the first line of the reply.
    pub(super) async fn send(&self, command: &str) -> String {
        within_timeout(command, self.try_send(command)).await.unwrap()
    }

    async fn try_send(&self, command: &str) -> std::io::Result<String> {
        let mut stream = TcpStream::connect(self.address).await?;
        stream.write_all(format!("{command}\r\n").as_bytes()).await?;
        let mut reply = Vec::new();
        while !reply.ends_with(b"\n") {
            if stream.read_buf(&mut reply).await? == 0 {
                return Err(std::io::ErrorKind::UnexpectedEof.into());
            }
        }
        Ok(String::from_utf8_lossy(&reply).trim().to_owned())
    }

    /// Starts to record every command that the server executes.
    pub(super) async fn monitor(&self) -> EngineMonitor {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        stream.write_all(b"MONITOR\r\n").await.unwrap();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let reading = tokio::spawn({
            let seen = Arc::clone(&seen);
            async move {
                let mut bytes = Vec::with_capacity(1 << 16);
                while stream.read_buf(&mut bytes).await.is_ok_and(|taken| taken > 0) {
                    seen.lock().append(&mut bytes);
                }
            }
        });
        EngineMonitor { seen, _reading: AbortOnDropHandle::new(reading) }
    }

    /// Returns the bytes of all keys and values.
    pub(super) async fn dump(&self) -> Vec<u8> {
        assert_eq!(self.send("SAVE").await, "+OK");
        std::fs::read(self.dir.path().join("dump.rdb")).unwrap()
    }

    pub(super) fn url(&self) -> String {
        format!("redis://{}", self.address)
    }
}

/// Returns a port that no server uses.
pub(super) async fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port()
}

/// The commands that a server has executed.
pub(super) struct EngineMonitor {
    seen: Arc<Mutex<Vec<u8>>>,
    _reading: AbortOnDropHandle<()>,
}

impl EngineMonitor {
    pub(super) fn seen(&self) -> Vec<u8> {
        self.seen.lock().clone()
    }
}

/// A proxy in front of the engine.
pub(super) struct EngineProxy {
    pub(super) address: SocketAddr,
    shared: Arc<ProxyShared>,
    _accepting: AbortOnDropHandle<()>,
}

#[derive(Default)]
struct ProxyShared {
    /// Time that each byte takes, in each direction.
    delay: Mutex<Duration>,
    is_cut: Mutex<bool>,
    /// Whether published messages are dropped.
    is_mute: Mutex<bool>,
    connections: Mutex<JoinSet<()>>,
}

impl EngineProxy {
    pub(super) async fn start(engine: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(ProxyShared::default());
        let accepting = tokio::spawn({
            let shared = Arc::clone(&shared);
            async move {
                while let Ok((client, _)) = listener.accept().await {
                    if !*shared.is_cut.lock() {
                        let way = forward(client, engine, Arc::clone(&shared));
                        shared.connections.lock().spawn(way);
                    }
                }
            }
        });
        Self { address, shared, _accepting: AbortOnDropHandle::new(accepting) }
    }

    pub(super) fn url(&self) -> String {
        format!("redis://{}", self.address)
    }

    /// Delays all bytes from now on by this time, in each direction.
    pub(super) fn delay(&self, delay: Duration) {
        *self.shared.delay.lock() = delay;
    }

    /// Closes all connections, and all later ones until [`Self::mend`].
    pub(super) fn cut(&self) {
        *self.shared.is_cut.lock() = true;
        *self.shared.connections.lock() = JoinSet::new();
    }

    /// Drops the messages that the engine publishes, or no more. Answers come.
    pub(super) fn mute(&self, is_mute: bool) {
        *self.shared.is_mute.lock() = is_mute;
    }

    pub(super) fn mend(&self) {
        *self.shared.is_cut.lock() = false;
    }
}

async fn forward(client: TcpStream, engine: SocketAddr, shared: Arc<ProxyShared>) {
    let Ok(engine) = TcpStream::connect(engine).await else { return };
    let (client_reads, client_writes) = client.into_split();
    let (engine_reads, engine_writes) = engine.into_split();
    // Cancel safe: both directions end with the connection.
    tokio::select! {
        () = copy(client_reads, engine_writes, &shared, |_| true) => {}
        () = copy(engine_reads, client_writes, &shared, |reply| !*shared.is_mute.lock() || !is_message(reply)) => {}
    }
}

async fn copy(
    mut from: tokio::net::tcp::OwnedReadHalf,
    mut to: tokio::net::tcp::OwnedWriteHalf,
    shared: &ProxyShared,
    passes: impl Fn(&[u8]) -> bool,
) {
    let (sender, mut receiver) = tokio::sync::mpsc::unbounded_channel();
    let read = async move {
        let mut bytes = Vec::with_capacity(1 << 16);
        loop {
            if !from.read_buf(&mut bytes).await.is_ok_and(|taken| taken > 0) {
                return;
            }
            let mut passed = Vec::new();
            while let Some(len) = reply_len(&bytes) {
                let reply: Vec<u8> = bytes.drain(..len).collect();
                if passes(&reply) {
                    passed.extend(reply);
                }
            }
            let due = clipgate::testing::clock::now() + *shared.delay.lock();
            if sender.send((due, passed)).is_err() {
                return;
            }
        }
    };
    let write = async move {
        while let Some((due, bytes)) = receiver.recv().await {
            tokio::time::sleep_until(due.into()).await;
            if to.write_all(&bytes).await.is_err() {
                return;
            }
        }
    };
    tokio::join!(read, write);
}

/// Returns whether a reply is a published message.
fn is_message(reply: &[u8]) -> bool {
    reply.starts_with(b">") && reply.windows(8).take(24).any(|word| word == b"smessage")
}

/// Returns the length of the first command or reply, if all of it has come.
fn reply_len(bytes: &[u8]) -> Option<usize> {
    let line = bytes.windows(2).position(|end| end == b"\r\n")?;
    let count = || std::str::from_utf8(&bytes[1..line]).unwrap().parse::<i64>().unwrap();
    let items = match bytes[0] {
        b'$' | b'=' | b'!' => {
            let len = usize::try_from(count()).map_or(line + 2, |len| line + 2 + len + 2);
            return (bytes.len() >= len).then_some(len);
        }
        b'*' | b'>' | b'~' => count(),
        b'%' | b'|' => 2 * count(),
        _ => 0,
    };
    (0..items.max(0)).try_fold(line + 2, |len, _| Some(len + reply_len(&bytes[len..])?))
}
