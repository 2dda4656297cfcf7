//! A real engine for tests, and replicas that speak to it.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use bytes::Bytes;
use prometheus_client::registry::Registry;
use tokio::sync::mpsc;

use crate::cluster::{Cluster, ClusterWorld};
use crate::config::{CacheConfig, ClusterConfig, Config, EngineUrl};
use crate::core::job::{JobId, JobSet, KeyDomain, ResponseHead};
use crate::core::route::{Form, Goal, Route, Routes};
use crate::core::siblings::{
    CallId, ClaimRequest, EngineAnswer, EngineCall, LeaseToken, ReplicaName, ShareSpec, SharedOutcome,
    SharedState, SiblingInput, SiblingMessage,
};
use crate::secret::Secret;
use crate::telemetry::metrics::Metrics;

pub(super) const SECRET: &str = "0123456789abcdef0123456789abcdef";
pub(super) const KEY: &[u8] = b"Bearer sk-client-key";
pub(super) const DOMAIN: KeyDomain = KeyDomain([0x17; 16]);
pub(super) const BODY: &str = "{\"id\":\"job-one\",\"status\":\"complete\",\"title\":\"a secret song\"}";

/// A server of its own port and directory, without persistence.
pub(super) struct TestEngine {
    pub(super) port: u16,
    child: Child,
    dir: tempfile::TempDir,
}

impl TestEngine {
    pub(super) fn start() -> Self {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        Self::start_at(port)
    }

    pub(super) fn start_at(port: u16) -> Self {
        let args = ["--save", "", "--appendonly", "no", "--repl-diskless-sync-delay", "0"];
        Self::run(port, tempfile::tempdir().unwrap(), &args.map(str::to_owned))
    }

    /// Starts a sentinel for the primary at this port.
    pub(super) fn start_sentinel(primary: u16) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("sentinel.conf");
        let lines = format!(
            "sentinel monitor mymaster 127.0.0.1 {primary} 1\nsentinel down-after-milliseconds mymaster 500\n\
             sentinel failover-timeout mymaster 3000\n"
        );
        std::fs::write(&file, lines).unwrap();
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        Self::run(port, dir, &[file.to_str().unwrap().to_owned(), "--sentinel".to_owned()])
    }

    /// Starts a node of a Redis Cluster that has no slots.
    pub(super) fn start_node() -> Self {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let bus = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port().to_string();
        let args = ["--cluster-enabled", "yes", "--cluster-port", &bus, "--save", ""];
        Self::run(port, tempfile::tempdir().unwrap(), &args.map(str::to_owned))
    }

    fn run(port: u16, dir: tempfile::TempDir, args: &[String]) -> Self {
        let child = Command::new("redis-server")
            .args(args)
            .args(["--bind", "127.0.0.1", "--port", &port.to_string()])
            .arg("--dir")
            .arg(dir.path())
            .stdout(Stdio::null())
            .spawn()
            .expect("redis-server is missing: install the package redis-server");
        let engine = Self { port, child, dir };
        let answers = |_: &u32| TcpStream::connect(("127.0.0.1", port)).is_ok();
        let pause = |_: u32| std::thread::park_timeout(Duration::from_millis(5));
        assert!((0..2000).inspect(|n| pause(*n)).any(|n| answers(&n)), "redis-server does not listen");
        engine
    }

    pub(super) fn url(&self) -> EngineUrl {
        EngineUrl {
            is_tls: false,
            host: "127.0.0.1".to_owned(),
            port: self.port,
            user: None,
            password: None,
            database: 0,
        }
    }

    pub(super) fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(("127.0.0.1", self.port)).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        stream
    }

    /// Sends an inline command and returns its answer.
    pub(super) fn command(&self, line: &str) -> String {
        let mut stream = self.connect();
        stream.write_all(line.as_bytes()).unwrap();
        stream.write_all(b"\r\n").unwrap();
        stream.write_all(b"QUIT\r\n").unwrap();
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        String::from_utf8_lossy(&answer).into_owned()
    }

    /// Returns the time of the server.
    pub(super) fn millis(&self) -> u64 {
        let answer = self.command("TIME");
        let mut numbers = answer.lines().filter_map(|line| line.parse::<u64>().ok());
        let (seconds, micros) = (numbers.next().unwrap(), numbers.next().unwrap());
        seconds * 1000 + micros / 1000
    }

    pub(super) fn keys(&self) -> Vec<String> {
        self.command("KEYS *").lines().filter(|line| line.starts_with("cg1:")).map(str::to_owned).collect()
    }

    pub(super) fn monitor(&self) -> MonitorStream {
        let mut stream = self.connect();
        stream.write_all(b"MONITOR\r\n").unwrap();
        assert_eq!(stream.read(&mut [0; 5]).unwrap(), 5);
        MonitorStream(stream)
    }

    /// Returns the bytes of all keys and values.
    pub(super) fn dump(&self) -> Vec<u8> {
        assert!(self.command("SAVE").starts_with("+OK"));
        std::fs::read(self.dir.path().join("dump.rdb")).unwrap()
    }
}

/// A connection to which the engine writes every command that it executes.
pub(super) struct MonitorStream(TcpStream);

impl MonitorStream {
    /// Returns everything that was executed so far.
    pub(super) fn read_all(&mut self) -> Vec<u8> {
        self.0.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
        let mut seen = Vec::new();
        let _ = self.0.read_to_end(&mut seen);
        seen
    }
}

impl Drop for TestEngine {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub(super) fn config(url: EngineUrl) -> ClusterConfig {
    ClusterConfig { urls: vec![url], secret: Secret::new(SECRET), ..ClusterConfig::default() }
}

/// A link whose machine is the test.
pub(super) struct TestReplica {
    pub(super) cluster: Cluster,
    pub(super) cache: Arc<ArcSwap<CacheConfig>>,
    pub(super) instance: u64,
    pub(super) inputs: mpsc::Receiver<SiblingInput>,
    pub(super) name: ReplicaName,
    next_call: u64,
    /// Messages that came while the test waited for something else.
    pub(super) messages: Vec<SiblingMessage>,
    task: tokio::task::JoinHandle<()>,
    _metrics: Registry,
}

impl TestReplica {
    /// Starts a link that is not up yet.
    pub(super) fn start(config: &ClusterConfig) -> Self {
        let mut registry = Registry::default();
        let metrics = Metrics::new(&mut registry);
        let (gateway, routes) = (Config::default(), Routes::from(Route::suno()));
        let cache = Arc::new(ArcSwap::from_pointee(gateway.cache));
        let world = ClusterWorld {
            base_url: &gateway.upstream.base_url,
            routes: &routes,
            cache: Arc::clone(&cache),
            instance: fastrand::u64(..),
        };
        let instance = world.instance;
        let (cluster, inputs, task) = Cluster::start(config, &world, Arc::clone(&metrics));
        let task = tokio::spawn(task);
        let (name, messages) = (ReplicaName(0), Vec::new());
        Self { cluster, cache, instance, inputs, name, next_call: 0, messages, task, _metrics: registry }
    }

    /// Starts a link and makes it a member.
    pub(super) async fn join(config: &ClusterConfig) -> Self {
        let mut replica = Self::start(config);
        replica.link_up().await;
        replica
    }

    /// Waits for a link and beats once.
    pub(super) async fn link_up(&mut self) {
        self.name = self
            .until(|input| if let SiblingInput::LinkUp(name) = input { Ok(name) } else { Err(input) })
            .await;
        let first = self.call(EngineCall::Beat(None)).await;
        assert!(matches!(first, EngineAnswer::Done(_)), "{first:?}");
        self.hear(|message| matches!(message, SiblingMessage::Beat(..)).then_some(())).await;
    }

    /// Waits for a link for some seconds. `None` if it did not come, or did not stay.
    pub(super) async fn try_link_up(&mut self) -> Option<()> {
        let up = async {
            loop {
                let input = self.inputs.recv().await?;
                self.cluster.observe(&input);
                if let SiblingInput::LinkUp(name) = input {
                    self.name = name;
                    self.next_call += 1;
                    self.cluster.call(CallId(self.next_call), EngineCall::Beat(None));
                } else if let SiblingInput::Answer(..) = input {
                    return Some(());
                }
            }
        };
        tokio::time::timeout(Duration::from_secs(5), up).await.ok().flatten()
    }

    /// Waits for an input. Messages meanwhile are kept.
    pub(super) async fn until<T>(&mut self, wanted: impl Fn(SiblingInput) -> Result<T, SiblingInput>) -> T {
        let wait = async {
            loop {
                let input = self.inputs.recv().await.expect("the link has ended");
                self.cluster.observe(&input);
                match wanted(input) {
                    Ok(found) => return found,
                    Err(SiblingInput::Message(message)) => self.messages.push(message),
                    Err(_) => {}
                }
            }
        };
        tokio::time::timeout(Duration::from_secs(10), wait).await.expect("no such input within 10 seconds")
    }

    /// Waits for a message.
    pub(super) async fn hear<T>(&mut self, wanted: impl Fn(&SiblingMessage) -> Option<T>) -> T {
        if let Some(found) = self.messages.iter().find_map(&wanted) {
            self.messages.clear();
            return found;
        }
        self.until(|input| match &input {
            SiblingInput::Message(message) => wanted(message).ok_or(input),
            _ => Err(input),
        })
        .await
    }

    /// Waits for a message, and keeps all that come before it.
    pub(super) async fn hear_in_order<T>(&mut self, wanted: impl Fn(&SiblingMessage) -> Option<T>) -> T {
        self.until(|input| match &input {
            SiblingInput::Message(message) => wanted(message).ok_or(input),
            _ => Err(input),
        })
        .await
    }

    pub(super) fn send(&mut self, call: EngineCall) -> CallId {
        self.next_call += 1;
        let id = CallId(self.next_call);
        self.cluster.call(id, call);
        id
    }

    /// Makes a call and waits for its answer.
    pub(super) async fn call(&mut self, call: EngineCall) -> EngineAnswer {
        let id = self.send(call);
        self.until(|input| match input {
            SiblingInput::Answer(of, answer) if of == id => Ok(answer),
            other => Err(other),
        })
        .await
    }

    /// Makes a call and waits for its failure.
    pub(super) async fn fails(&mut self, call: EngineCall) {
        let id = self.send(call);
        self.until(|input| match input {
            SiblingInput::Failed(of) if of == id => Ok(()),
            SiblingInput::Answer(of, answer) if of == id => panic!("{answer:?}"),
            other => Err(other),
        })
        .await;
    }

    /// Registers a poll for these jobs to their highest rung.
    pub(super) fn poll(&self, ids: &[&str]) -> Arc<ShareSpec> {
        self.poll_of(KEY, ids)
    }

    pub(super) fn poll_of(&self, key: &[u8], ids: &[&str]) -> Arc<ShareSpec> {
        let jobs = JobSet::new(ids.iter().map(|id| JobId::new(id).unwrap()));
        let goal = Goal::Rung(Route::suno().ladder.highest_askable());
        let spec = ShareSpec {
            name: self.cluster.poll_name(DOMAIN, &jobs, Form::Single, goal).unwrap(),
            domain: DOMAIN,
            jobs,
            goal,
            hold: Duration::from_secs(120),
            takes_known: true,
            max_age: Duration::from_secs(1),
            needs_shape: false,
        };
        self.cluster.register(&spec, key);
        Arc::new(spec)
    }

    pub(super) async fn claim(&mut self, spec: &Arc<ShareSpec>, number: u64) -> EngineAnswer {
        self.call(EngineCall::Claim(self.request(spec, number))).await
    }

    pub(super) fn request(&self, spec: &Arc<ShareSpec>, number: u64) -> ClaimRequest {
        let (spec, token) = (Arc::clone(spec), self.token(number));
        ClaimRequest { spec, token, suspicion: None, follows: None, is_look: false }
    }

    pub(super) async fn subscribers(&mut self, of: ReplicaName) -> usize {
        self.cluster.count_subscribers(of);
        self.until(|input| match input {
            SiblingInput::Subscribers(name, count) if name == of => Ok(count),
            other => Err(other),
        })
        .await
    }

    /// Drops the handle and returns the task.
    pub(super) fn stop(self) -> tokio::task::JoinHandle<()> {
        self.task
    }

    pub(super) fn token(&self, number: u64) -> LeaseToken {
        LeaseToken { instance: self.name.0, number }
    }

    /// Lands a poll with the finished state of its jobs.
    pub(super) async fn land(&mut self, spec: &Arc<ShareSpec>, number: u64) -> EngineAnswer {
        let states = spec.jobs.iter().map(|id| finished(id, BODY)).collect();
        let call = EngineCall::Land {
            spec: Arc::clone(spec),
            token: self.token(number),
            epoch: None,
            attempt_age: Duration::ZERO,
            outcome: SharedOutcome::Jobs(states),
            sent_at: None,
        };
        self.call(call).await
    }
}

pub(super) fn finished(id: &JobId, body: &str) -> SharedState {
    let ladder = Route::suno().ladder;
    SharedState {
        id: id.clone(),
        rung: Some(ladder.highest_askable()),
        body: Some(Bytes::copy_from_slice(body.as_bytes())),
        head: Arc::new(ResponseHead {
            shared: vec![("content-type".into(), Bytes::from_static(b"application/json"))],
            ..ResponseHead::default()
        }),
        age: Duration::ZERO,
        is_final: true,
        shape: None,
    }
}

/// Returns the call for a key that the upstream has just rejected.
pub(super) fn refusal() -> EngineCall {
    EngineCall::Refuse { domain: DOMAIN, age: Duration::ZERO, sent_at: None, repeats_within: None }
}
