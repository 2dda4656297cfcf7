//! Protection against DNS rebinding: listeners without client credentials accept only names that no web site can use.

use clipgate::testing::config::{AuthMode, Config};
use clipgate::testing::protocol::allowed_host::HostPattern;
use clipgate::testing::secret::Secret;
use http::{Response, Version};
use tokio::net::{TcpStream, UnixStream};
use tokio::process::Command;

use crate::clients::tls::{Authority, TLS};
use crate::harness::admin_client::AdminClient;
use crate::harness::gateway::{TestGateway, clip_target};
use crate::harness::process::{GatewayProcess, TestClient, TestEnv, completed_target, get, quoted};
use crate::harness::raw_http::{
    CLIP, assert_gateway_error, parse_response, request, send_raw, upstream_request_count,
};

/// Names that a web site can point to this machine.
const FOREIGN: [&str; 6] = [
    "evil.example",
    "evil.example:8080",
    "evil.example.",
    "127.0.0.1.nip.io",
    "localhost.evil.example:80",
    "host.docker.internal:8080",
];

/// Names that no web site can have.
const OWN: [&str; 9] = [
    "127.0.0.1:8080",
    "192.0.2.7",
    "[::1]:8080",
    "[2001:db8::7]",
    "localhost:8080",
    "a.localhost",
    "box",
    "box.",
    "clipgate:8080",
];

/// Returns the command of a sidecar with this configuration.
fn sidecar(env: &TestEnv, lines: &str) -> Command {
    env.configure(lines);
    let mut command = env.command();
    command.env("CLIPGATE__AUTH__MODE", "sidecar").env("CLIPGATE__UPSTREAM__API_KEY", "of-the-gateway");
    command
}

fn lend_the_key(config: &mut Config) {
    config.auth.mode = AuthMode::Sidecar;
    config.upstream.api_key = Some(Secret::new("of-the-gateway"));
    config.server.cors_origins = vec!["https://app.example".to_owned()];
}

fn is_rejected<B>(answer: &Response<B>) -> bool {
    let is_foreign =
        answer.headers().get("cache-status").is_some_and(|status| status == "clipgate; detail=foreign-host");
    assert_eq!(answer.status() == 421, is_foreign, "{:?}", answer.headers());
    is_foreign
}

#[tokio::test]
async fn a_request_under_a_web_sites_name_never_uses_the_gateways_key() {
    let gateway = TestGateway::with(|config, _| lend_the_key(config)).await;
    gateway.sim.set_status("a", "completed");
    let same = ("sec-fetch-site", "same-origin");
    let (origin, method) = (("origin", "https://app.example"), ("access-control-request-method", "POST"));
    for host in FOREIGN {
        let host = ("host", host);
        // After rebinding, the page and the gateway have the same origin for the browser.
        for answer in [
            gateway.send(request("GET", &clip_target("a", "completed"), &[host], "")).await,
            gateway.send(request("GET", &clip_target("a", "completed"), &[host, same], "")).await,
            gateway
                .send(request(
                    "GET",
                    &clip_target("a", "completed"),
                    &[host, ("accept", "text/event-stream")],
                    "",
                ))
                .await,
            gateway.send(request("POST", CLIP, &[host, same], "{}")).await,
            gateway.send(request("GET", "/v1/models", &[host], "")).await,
            gateway.send(request("OPTIONS", CLIP, &[host, origin, method], "")).await,
        ] {
            let message = assert_gateway_error(&answer, 421, "foreign-host");
            assert!(message.contains("server.allowed_hosts"), "{message}");
        }
        let head = format!("GET /sim/upgrade HTTP/1.1\r\nhost: {}\r\n", host.1);
        let upgrade = "connection: upgrade, close\r\nupgrade: websocket\r\n\r\n";
        let back = send_raw(gateway.address, format!("{head}{upgrade}").as_bytes()).await;
        assert_gateway_error(&parse_response(&back).unwrap().0, 421, "foreign-host");
    }
    assert_eq!(upstream_request_count(&gateway), 0);
}

#[tokio::test]
async fn a_sidecar_accepts_addresses_localhost_and_names_without_a_dot() {
    let gateway = TestGateway::with(|config, _| lend_the_key(config)).await;
    gateway.sim.set_status("a", "completed");
    for host in OWN {
        let answer =
            gateway.send(request("GET", &clip_target("a", "completed"), &[("host", host)], "")).await;
        assert_eq!(answer.status, 200, "{host}");
    }
    let target = clip_target("a", "completed");
    for head in [
        format!("GET {target} HTTP/1.0\r\n\r\n"),
        format!("GET {target} HTTP/1.1\r\nhost:\r\nconnection: close\r\n\r\n"),
    ] {
        let back = send_raw(gateway.address, head.as_bytes()).await;
        assert_eq!(parse_response(&back).unwrap().0.status, 200, "{head}");
    }
}

#[tokio::test]
async fn requests_under_a_foreign_name_do_not_count_against_the_keys_quota() {
    let gateway = TestGateway::with(|config, _| {
        lend_the_key(config);
        (config.limits.requests_per_second, config.limits.burst) = (1, 3);
    })
    .await;
    gateway.sim.set_status("a", "completed");
    let ask = async |host| {
        gateway.send(request("GET", &clip_target("a", "completed"), &[("host", host)], "")).await
    };
    assert_eq!(ask("localhost").await.status, 200, "the upstream accepts the key");
    for _ in 0..10 {
        assert_ne!(ask("evil.example").await.status, 200);
    }
    assert_eq!(ask("localhost").await.status, 200);
}

#[tokio::test]
async fn over_http_2_both_authority_and_host_are_checked() {
    let gateway = TestGateway::with(|config, _| {
        lend_the_key(config);
        config.server.allowed_hosts = vec![HostPattern::Suffix("example.com".to_owned())];
    })
    .await;
    gateway.sim.set_status("a", "completed");
    let mut client = TestClient::h2(TcpStream::connect(gateway.address).await.unwrap()).await;
    let target = clip_target("a", "completed");
    let mut ask = async |authority: &str, fields: &[(&str, &str)]| {
        let mut request = get(&format!("http://{authority}{target}"), fields);
        *request.version_mut() = Version::HTTP_2;
        client.send(request).await.unwrap()
    };
    for host in FOREIGN {
        assert!(is_rejected(&ask(host, &[]).await), "{host}");
        assert!(is_rejected(&ask(host, &[("host", "localhost")]).await), "{host}");
        assert!(is_rejected(&ask("localhost", &[("host", host)]).await), "{host}");
    }
    assert_eq!(upstream_request_count(&gateway), 0);
    for host in OWN.into_iter().chain(["example.com", "clips.example.com:8080"]) {
        assert_eq!(ask(host, &[]).await.status(), 200, "{host}");
        assert_eq!(ask("localhost", &[("host", host)]).await.status(), 200, "{host}");
    }
}

#[tokio::test]
async fn a_client_with_its_own_key_may_use_any_name() {
    let gateway = TestGateway::new().await;
    gateway.sim.set_status("a", "completed");
    for host in FOREIGN {
        assert_eq!(
            gateway.get(&clip_target("a", "completed"), &[("host", host)]).await.status,
            200,
            "{host}"
        );
    }
}

#[tokio::test]
async fn unix_sockets_and_tls_listeners_accept_any_name() {
    let (env, authority) = (TestEnv::new().await, Authority::new());
    authority.write_certificate(&env, "gw.example");
    let path = env.path("gw.sock");
    let unix = quoted(format!("unix:{}", path.display()).as_ref());
    let command = sidecar(&env, &format!("listen = [\"127.0.0.1:0\", {unix}]\n{TLS}"));
    env.sim.set_status("a", "complete");
    let mut gateway = GatewayProcess::spawn(command);
    let address = gateway.address().await;
    gateway.listens_on().await;
    let tls = TestClient::h1(authority.connect(address, "http/1.1", None).await.unwrap()).await;
    let unix = TestClient::h1(UnixStream::connect(&path).await.unwrap()).await;
    for mut client in [tls, unix] {
        assert_eq!(
            client.get(&completed_target("a"), &[]).await.status(),
            200,
            "the request names gw.example"
        );
    }
}

#[tokio::test]
async fn a_reload_changes_the_names_for_clients_and_the_admin_listener() {
    let env = TestEnv::new().await;
    env.sim.set_status("a", "complete");
    let mut command = sidecar(&env, "allowed_hosts = []");
    command.env("CLIPGATE__ADMIN__LISTEN", "127.0.0.1:0");
    let mut gateway = GatewayProcess::spawn(command);
    let mut client = TestClient::connect(gateway.address().await).await;
    let line = gateway.next_line().await;
    let admin = AdminClient::at(line.strip_prefix("clipgate admin listening on ").unwrap().parse().unwrap());
    let mut statuses = async || {
        let answer = client.get(&completed_target("a"), &[]).await;
        let state = admin.send("GET", "/api/state", &[("host", "gw.example")]).await;
        (answer.status().as_u16(), state.status().as_u16())
    };
    assert_eq!(statuses().await, (421, 421));
    let line = gateway.wait_for_log("foreign-host").await;
    assert!(line.contains("server.address=gw.example "), "{line}");
    for (names, expected) in [
        ("[\"gw.example\"]", (200, 200)),
        ("[\"other.example\"]", (421, 421)),
        ("\".example\"", (200, 200)),
        ("[]", (421, 421)),
    ] {
        env.configure(&format!("allowed_hosts = {names}"));
        gateway.signal("HUP");
        gateway.wait_for_log("configuration reloaded").await;
        assert_eq!(statuses().await, expected, "{names}");
    }
}

#[tokio::test]
async fn a_star_allows_every_name_and_logs_a_warning() {
    let env = TestEnv::new().await;
    let command = sidecar(&env, "allowed_hosts = [\"*\"]");
    env.sim.set_status("a", "complete");
    let mut gateway = GatewayProcess::spawn(command);
    let mut client = TestClient::connect(gateway.address().await).await;
    let line = gateway.wait_for_log("server.allowed_hosts is").await;
    assert!(line.contains("WARN"), "{line}");
    assert_eq!(client.get(&completed_target("a"), &[]).await.status(), 200, "the request names gw.example");
}

#[tokio::test]
async fn the_admin_listeners_unix_socket_accepts_any_name() {
    let env = TestEnv::new().await;
    env.configure("");
    let path = env.path("admin.sock");
    let mut command = env.command();
    command.env("CLIPGATE__ADMIN__LISTEN", format!("unix:{}", path.display()));
    let mut gateway = GatewayProcess::spawn(command);
    gateway.address().await;
    gateway.next_line().await;
    let mut client = TestClient::h1(UnixStream::connect(&path).await.unwrap()).await;
    assert_eq!(client.get("/api/state", &[]).await.status(), 200, "the request names gw.example");
}
