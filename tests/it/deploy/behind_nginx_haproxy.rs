//! nginx and HAProxy in front of a gateway, configured as in `deploy/proxies/`: waits last, events arrive at once,
//! and closed connections end waits.
//!
//! Needs nginx, HAProxy and curl (`.ci/tools` installs them). The tests fail without them. All times, also those of
//! the proxies, are divided by 30.

use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use clipgate::testing::clock;
use clipgate::testing::config::Config;
use tokio::io::{AsyncBufReadExt as _, BufReader, Lines};
use tokio::net::TcpStream;
use tokio::process::{Child, ChildStdout, Command};

use crate::deploy::alerts_and_dashboards::read;
use crate::harness::process::{GatewayProcess, TestEnv, completed_target, within_timeout};

/// Divisor of all times.
const FASTER: u32 = 30;
/// Log of the proxy.
const LOG: &str = "proxy.log";
/// Forged headers about the client's address.
const LIES: [&str; 4] =
    ["-H", "X-Forwarded-For: 192.0.2.1", "-H", "Forwarded: for=192.0.2.1;proto=http;host=evil.example"];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Nginx,
    Haproxy,
}

impl Kind {
    const ALL: [Self; 2] = [Self::Nginx, Self::Haproxy];

    fn example(self) -> String {
        let name = if self == Self::Nginx { "nginx.conf" } else { "haproxy.cfg" };
        read(&format!("proxies/{name}"))
    }

    /// Returns the example with a default timeout instead of its own: that of nginx, or that of HAProxy's sample
    /// configuration.
    fn untuned(self) -> String {
        let usual = if self == Self::Nginx { " 60s" } else { " 50s" };
        let untuned = self.example().replace(" 150s", usual);
        assert_ne!(untuned, self.example());
        untuned
    }
}

/// Divides times of half a minute and more, except in comments.
fn scaled(text: &str) -> String {
    let shorter = |word: &str| {
        let end = if word.ends_with(';') { ";" } else { "" };
        let seconds = word.trim_end_matches(';').strip_suffix('s')?.parse::<u32>().ok()?;
        (seconds >= 30).then(|| format!("{}ms{end}", seconds * 1000 / FASTER))
    };
    let line = |line: &str| match line.trim_start().starts_with('#') {
        true => String::new(),
        false => line
            .split(' ')
            .map(|word| shorter(word).unwrap_or_else(|| word.to_owned()))
            .collect::<Vec<_>>()
            .join(" "),
    };
    text.lines().map(line).collect::<Vec<_>>().join("\n")
}

/// Replaces text that must be present.
fn put(text: &mut String, from: &str, to: &str) {
    assert!(text.contains(from), "no {from:?} in {text}");
    *text = text.replace(from, to);
}

/// A proxy in front of a gateway in front of a simulated upstream.
struct Front {
    test_env: TestEnv,
    gateway: GatewayProcess,
    /// Address for this test alone, so that no other test uses the port.
    host: String,
    proxy: Child,
}

impl Front {
    async fn new(kind: Kind, example: &str) -> Self {
        Self::with(kind, example, &[]).await
    }

    /// Like `new`, with these variables in the environment of the gateway.
    async fn with(kind: Kind, example: &str, env: &[(&str, &str)]) -> Self {
        let test_env = TestEnv::new().await;
        test_env.configure("trusted_proxies = [\"127.0.0.1\"]\n[wait]\ntimeout = \"4s\"\nlinger = \"50ms\"");
        let mut command = test_env.command();
        command.env("CLIPGATE__ADMIN__LISTEN", "127.0.0.1:0").env("CLIPGATE__UPSTREAM__POLL_TIMEOUT", "4s");
        command.env("CLIPGATE__LOG__FORMAT", "json").envs(env.iter().copied());
        let mut gateway = GatewayProcess::spawn(command);
        let address = gateway.address().await.to_string();
        let admin = gateway.next_line().await;
        let admin = admin.strip_prefix("clipgate admin listening on 127.0.0.1:").unwrap();

        let host = format!("127.{}.{}.{}", 64 + fastrand::u8(..64), fastrand::u8(..), fastrand::u8(1..255));
        let mut text = scaled(example);
        put(&mut text, "127.0.0.1:8080", &address);
        certify(&test_env);
        let proxy = match kind {
            Kind::Nginx => nginx(&test_env, text, &host),
            Kind::Haproxy => haproxy(&test_env, text, &host, admin),
        };
        let mut front = Self { test_env, gateway, host, proxy };
        within_timeout("the proxy to listen, and to know that the gateway is there", front.listens()).await;
        front
    }

    async fn listens(&mut self) {
        while TcpStream::connect((self.host.as_str(), 8443)).await.is_err()
            // From the upstream or the gateway, not from a proxy without a gateway.
            || !["404", "421"].contains(&self.status("/up").await.as_str())
        {
            if let Some(ended) = self.proxy.try_wait().unwrap() {
                panic!("{ended}: {}", std::fs::read_to_string(self.test_env.path(LOG)).unwrap());
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    async fn status(&self, target: &str) -> String {
        let output =
            self.curl(target).args(["-o", "/dev/null", "-w", "%{http_code}"]).output().await.unwrap();
        String::from_utf8(output.stdout).unwrap()
    }

    /// Returns a client with TLS and HTTP/2. Its address differs from those of the proxy and the gateway.
    fn curl(&self, target: &str) -> Command {
        let mut command = Command::new("curl");
        command
            .args(["-sgN", "--noproxy", "*", "--interface", "127.0.0.9", "--cacert"])
            .arg(self.test_env.path("cert.pem"))
            .args(["--resolve", &format!("clips.example:8443:{}", self.host)])
            .args(["-H", "Authorization: Bearer key-1"])
            .arg(format!("https://clips.example:8443{target}"));
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).kill_on_drop(true);
        command
    }
}

/// Writes a certificate, its key, and both in one file.
fn certify(test_env: &TestEnv) {
    let made = rcgen::generate_simple_self_signed(["clips.example".to_owned()]).unwrap();
    let (cert, key) = (made.cert.pem(), made.signing_key.serialize_pem());
    std::fs::write(test_env.path("cert.pem"), &cert).unwrap();
    std::fs::write(test_env.path("key.pem"), &key).unwrap();
    std::fs::write(test_env.path("both.pem"), cert + &key).unwrap();
}

fn nginx(test_env: &TestEnv, mut text: String, host: &str) -> Child {
    let dir = test_env.dir.path().display();
    put(&mut text, "listen 443 ", &format!("listen {host}:8443 "));
    put(&mut text, "/etc/ssl/clips.example/fullchain.pem", &format!("{dir}/cert.pem"));
    put(&mut text, "/etc/ssl/clips.example/privkey.pem", &format!("{dir}/key.pem"));
    std::fs::write(test_env.path("clipgate.conf"), text).unwrap();
    let kinds = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"];
    let places: String = kinds.iter().map(|kind| format!("{kind}_temp_path {dir}/{kind};\n")).collect();
    let config = format!(
        "daemon off; master_process off; user root; pid {dir}/nginx.pid;\nevents {{ worker_connections 512; }}\n\
         http {{ access_log off;\n{places}include {dir}/clipgate.conf; }}\n"
    );
    let path = test_env.path("nginx.conf");
    std::fs::write(&path, config).unwrap();
    start(test_env, "nginx", &["-e", "stderr", "-p", &dir.to_string(), "-c", path.to_str().unwrap()])
}

fn haproxy(test_env: &TestEnv, mut text: String, host: &str, admin_port: &str) -> Child {
    put(&mut text, "bind :443 ", &format!("bind {host}:8443 "));
    put(&mut text, "/etc/haproxy/clips.example.pem", test_env.path("both.pem").to_str().unwrap());
    put(&mut text, "port 9090", &format!("port {admin_port}"));
    put(&mut text, "maxconn 50000", "maxconn 500");
    let path = test_env.path("haproxy.cfg");
    std::fs::write(&path, text + "\n").unwrap();
    start(test_env, "haproxy", &["-db", "-f", path.to_str().unwrap()])
}

fn start(test_env: &TestEnv, program: &str, args: &[&str]) -> Child {
    // Debian installs them here, which not every PATH contains.
    let places = std::env::var("PATH").unwrap_or_default() + ":/usr/local/sbin:/usr/sbin:/sbin";
    let found = std::env::split_paths(&places).map(|dir| dir.join(program)).find(|path| path.is_file());
    let found: PathBuf =
        found.unwrap_or_else(|| panic!("`{program}` is not there: run .ci/tools, or see README.md"));
    let log = std::fs::File::create(test_env.path(LOG)).unwrap();
    let mut command = Command::new(found);
    command.args(args).stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
    command.kill_on_drop(true).spawn().unwrap()
}

/// Returns the next event, and the time it took.
async fn event(lines: &mut Lines<BufReader<ChildStdout>>) -> String {
    let next = async {
        loop {
            let line = lines.next_line().await.unwrap().expect("the stream goes on");
            if let Some(event) = line.strip_prefix("event: ") {
                return event.to_owned();
            }
        }
    };
    within_timeout("an event", next).await
}

async fn waited(front: &Front) -> (String, String, Duration) {
    front.test_env.sim.set_status("a", "streaming");
    let since = clock::now();
    let output = within_timeout(
        "the wait",
        front.curl(&completed_target("a")).args(["-w", "\n%{http_code}"]).output(),
    )
    .await
    .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let (body, status) = text.rsplit_once('\n').unwrap();
    (status.to_owned(), body.to_owned(), clock::now() - since)
}

#[tokio::test]
async fn a_wait_of_two_minutes_survives_the_example_proxies_but_not_their_default_timeouts() {
    let rows = Kind::ALL.map(|kind| async move {
        let tuned = Front::new(kind, &kind.example()).await;
        let (status, body, held) = waited(&tuned).await;
        assert_eq!(status, "200", "{kind:?}: {body}");
        assert_eq!(body.as_bytes(), &tuned.test_env.sim.body("a", "streaming")[..], "{kind:?}");
        assert!(held >= Duration::from_secs(4), "{kind:?} held it for {held:?}");

        let untuned = Front::new(kind, &kind.untuned()).await;
        // The body is the proxy's: the gateway would answer 200.
        let (status, ..) = waited(&untuned).await;
        assert_eq!(status, "504", "{kind:?}");
    });
    let [nginx, haproxy] = rows;
    tokio::join!(nginx, haproxy);
}

#[tokio::test]
async fn the_proxies_forward_events_at_once() {
    for kind in Kind::ALL {
        let front = Front::new(kind, &kind.example()).await;
        let sim = &front.test_env.sim;
        sim.set_status("a", "submitted");
        let mut client =
            front.curl(&completed_target("a")).args(["-H", "Accept: text/event-stream"]).spawn().unwrap();
        let mut lines = BufReader::new(client.stdout.take().unwrap()).lines();
        for next in ["queued", "streaming", "completed"] {
            assert_eq!(event(&mut lines).await, "status", "{kind:?}");
            sim.set_status("a", next);
        }
        assert_eq!(event(&mut lines).await, "status", "{kind:?}");
        assert_eq!(event(&mut lines).await, "done", "{kind:?}");
    }
}

#[tokio::test]
async fn the_proxies_forward_a_disconnect_and_drop_forged_client_addresses() {
    for kind in Kind::ALL {
        let mut front = Front::new(kind, &kind.example()).await;
        front.test_env.sim.set_status("a", "streaming");
        let mut client = front.curl(&completed_target("a")).args(LIES).spawn().unwrap();
        front.test_env.sim.wait_until(|seen| seen.open == 1).await;
        client.kill().await.unwrap();
        // Without a disconnect the upstream holds the poll for twice this time.
        within_timeout("the poll to end", front.test_env.sim.wait_until(|seen| seen.open == 0)).await;
        let line = front.gateway.wait_for_log(r#""clipgate.outcome":"client_closed""#).await;
        assert!(line.contains(r#""client.address":"127.0.0.9""#), "{kind:?}: {line}");
        assert!(line.contains(r#""network.peer.address":"127.0.0.1""#), "{kind:?}: {line}");
    }
}

/// Returns the comment of an example about the host names that a sidecar has to list.
fn names_to_list(example: &str) -> &str {
    let line = example.lines().find_map(|line| line.strip_prefix("#   server.allowed_hosts = "));
    line.expect("the example names the hosts")
}

#[tokio::test]
async fn a_sidecar_behind_the_example_proxies_accepts_the_documented_host_name() {
    let sidecar = [("CLIPGATE__AUTH__MODE", "sidecar"), ("CLIPGATE__UPSTREAM__API_KEY", "of-the-gateway")];
    for kind in Kind::ALL {
        let example = kind.example();
        let unlisted = Front::with(kind, &example, &sidecar).await;
        assert_eq!(unlisted.status("/up").await, "421", "{kind:?} passes the name on");
        let listed = ("CLIPGATE__SERVER__ALLOWED_HOSTS", names_to_list(&example));
        let front = Front::with(kind, &example, &[&sidecar[..], &[listed]].concat()).await;
        front.test_env.sim.set_status("a", "complete");
        assert_eq!(front.status(&completed_target("a")).await, "200", "{kind:?}");
    }
    assert_eq!(names_to_list(&read("proxies/envoy.yaml")), names_to_list(&Kind::Nginx.example()));
}

#[test]
fn the_example_proxies_allow_longer_silence_than_a_wait_needs() {
    let needed = Config::default().wait.timeout + Duration::from_secs(20);
    let names = [
        (Kind::Nginx, &["proxy_read_timeout", "proxy_send_timeout"][..]),
        (Kind::Haproxy, &["timeout client", "timeout server", "timeout tunnel"]),
    ];
    for (kind, names) in names {
        for name in names {
            let example = kind.example();
            let values: Vec<_> = example
                .lines()
                .filter_map(|line| {
                    line.trim().strip_prefix(name)?.trim().trim_end_matches(';').strip_suffix('s')
                })
                .collect();
            assert_eq!(values.len(), 1, "{name} in {kind:?}");
            assert!(Duration::from_secs(values[0].parse().unwrap()) >= needed, "{name} in {kind:?}");
        }
    }
}
