//! The Host rule: what asks for no credentials is answered only under names that no web site can point at it.

use clipgate::testing::config::{AuthConfig, Config};
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

/// Names that a web site can point at this machine.
const FOREIGN: [&str; 6] = [
    "evil.example",
    "evil.example:8080",
    "evil.example.",
    "127.0.0.1.nip.io",
    "localhost.evil.example:80",
    "host.docker.internal:8080",
];

/// Names that nobody else has.
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

/// The command of a sidecar that is configured like this.
fn sidecar(ground: &TestEnv, lines: &str) -> Command {
    ground.configure(lines);
    let mut command = ground.command();
    command.env("CLIPGATE__AUTH__MODE", "sidecar").env("CLIPGATE__UPSTREAM__API_KEY", "of-the-gateway");
    command
}

fn lend_the_key(config: &mut Config) {
    config.auth = AuthConfig::Sidecar;
    config.upstream.api_key = Some(Secret::new("of-the-gateway"));
    config.server.cors_origins = vec!["https://app.example".to_owned()];
}

fn is_refused<B>(answer: &Response<B>) -> bool {
    let is_foreign =
        answer.headers().get("cache-status").is_some_and(|said| said == "clipgate; detail=foreign-host");
    assert_eq!(answer.status() == 421, is_foreign, "{:?}", answer.headers());
    is_foreign
}

#[tokio::test]
async fn a_name_that_a_web_site_can_choose_spends_no_key_whatever_is_asked() {
    let stage = TestGateway::with(|config, _| lend_the_key(config)).await;
    stage.sim.set_status("a", "completed");
    let same = ("sec-fetch-site", "same-origin");
    let (origin, method) = (("origin", "https://app.example"), ("access-control-request-method", "POST"));
    for host in FOREIGN {
        let host = ("host", host);
        // After rebinding a page is its own origin, so its browser has nothing to warn of.
        for answer in [
            stage.send(request("GET", &clip_target("a", "completed"), &[host], "")).await,
            stage.send(request("GET", &clip_target("a", "completed"), &[host, same], "")).await,
            stage
                .send(request(
                    "GET",
                    &clip_target("a", "completed"),
                    &[host, ("accept", "text/event-stream")],
                    "",
                ))
                .await,
            stage.send(request("POST", CLIP, &[host, same], "{}")).await,
            stage.send(request("GET", "/v1/models", &[host], "")).await,
            stage.send(request("OPTIONS", CLIP, &[host, origin, method], "")).await,
        ] {
            let message = assert_gateway_error(&answer, 421, "foreign-host");
            assert!(message.contains("server.allowed_hosts"), "{message}");
        }
        let head = format!("GET /sim/upgrade HTTP/1.1\r\nhost: {}\r\n", host.1);
        let upgrade = "connection: upgrade, close\r\nupgrade: websocket\r\n\r\n";
        let back = send_raw(stage.address, format!("{head}{upgrade}").as_bytes()).await;
        assert_gateway_error(&parse_response(&back).unwrap().0, 421, "foreign-host");
    }
    assert_eq!(upstream_request_count(&stage), 0);
}

#[tokio::test]
async fn a_sidecar_is_asked_by_address_as_localhost_or_by_a_name_without_a_dot() {
    let stage = TestGateway::with(|config, _| lend_the_key(config)).await;
    stage.sim.set_status("a", "completed");
    for host in OWN {
        let answer = stage.send(request("GET", &clip_target("a", "completed"), &[("host", host)], "")).await;
        assert_eq!(answer.status, 200, "{host}");
    }
    let target = clip_target("a", "completed");
    for head in [
        format!("GET {target} HTTP/1.0\r\n\r\n"),
        format!("GET {target} HTTP/1.1\r\nhost:\r\nconnection: close\r\n\r\n"),
    ] {
        let back = send_raw(stage.address, head.as_bytes()).await;
        assert_eq!(parse_response(&back).unwrap().0.status, 200, "{head}");
    }
}

#[tokio::test]
async fn what_is_asked_under_a_foreign_name_is_not_taken_from_the_programs_quota() {
    let stage = TestGateway::with(|config, _| {
        lend_the_key(config);
        (config.limits.requests_per_second, config.limits.burst) = (1, 3);
    })
    .await;
    stage.sim.set_status("a", "completed");
    let ask =
        async |host| stage.send(request("GET", &clip_target("a", "completed"), &[("host", host)], "")).await;
    assert_eq!(ask("localhost").await.status, 200, "the upstream accepts the key");
    for _ in 0..10 {
        assert_ne!(ask("evil.example").await.status, 200);
    }
    assert_eq!(ask("localhost").await.status, 200);
}

#[tokio::test]
async fn http_2_is_judged_by_its_authority_and_by_host_where_that_is_there_too() {
    let stage = TestGateway::with(|config, _| {
        lend_the_key(config);
        config.server.allowed_hosts = vec![HostPattern::Suffix("example.com".to_owned())];
    })
    .await;
    stage.sim.set_status("a", "completed");
    let mut client = TestClient::h2(TcpStream::connect(stage.address).await.unwrap()).await;
    let target = clip_target("a", "completed");
    let mut ask = async |authority: &str, fields: &[(&str, &str)]| {
        let mut request = get(&format!("http://{authority}{target}"), fields);
        *request.version_mut() = Version::HTTP_2;
        client.send(request).await.unwrap()
    };
    for host in FOREIGN {
        assert!(is_refused(&ask(host, &[]).await), "{host}");
        assert!(is_refused(&ask(host, &[("host", "localhost")]).await), "{host}");
        assert!(is_refused(&ask("localhost", &[("host", host)]).await), "{host}");
    }
    assert_eq!(upstream_request_count(&stage), 0);
    for host in OWN.into_iter().chain(["example.com", "clips.example.com:8080"]) {
        assert_eq!(ask(host, &[]).await.status(), 200, "{host}");
        assert_eq!(ask("localhost", &[("host", host)]).await.status(), 200, "{host}");
    }
}

#[tokio::test]
async fn who_brings_a_key_may_ask_under_any_name() {
    let stage = TestGateway::new().await;
    stage.sim.set_status("a", "completed");
    for host in FOREIGN {
        assert_eq!(stage.get(&clip_target("a", "completed"), &[("host", host)]).await.status, 200, "{host}");
    }
}

#[tokio::test]
async fn a_unix_socket_and_a_listener_with_tls_may_be_asked_under_any_name() {
    let (ground, authority) = (TestEnv::new().await, Authority::new());
    authority.equip(&ground, "gw.example");
    let path = ground.path("gw.sock");
    let unix = quoted(format!("unix:{}", path.display()).as_ref());
    let command = sidecar(&ground, &format!("listen = [\"127.0.0.1:0\", {unix}]\n{TLS}"));
    ground.sim.set_status("a", "complete");
    let mut gateway = GatewayProcess::spawn(command);
    let address = gateway.address().await;
    gateway.listens_on().await;
    let tls = TestClient::h1(authority.connect(address, "http/1.1", None).await.unwrap()).await;
    let unix = TestClient::h1(UnixStream::connect(&path).await.unwrap()).await;
    for mut client in [tls, unix] {
        assert_eq!(client.get(&completed_target("a"), &[]).await.status(), 200, "it asks for gw.example");
    }
}

#[tokio::test]
async fn a_reload_adds_names_and_takes_them_away_for_clients_and_the_operator() {
    let ground = TestEnv::new().await;
    ground.sim.set_status("a", "complete");
    let mut command = sidecar(&ground, "allowed_hosts = []");
    command.env("CLIPGATE__ADMIN__LISTEN", "127.0.0.1:0");
    let mut gateway = GatewayProcess::spawn(command);
    let mut client = TestClient::connect(gateway.address().await).await;
    let admin = gateway.next_line().await;
    let operator =
        AdminClient::at(admin.strip_prefix("clipgate admin listening on ").unwrap().parse().unwrap());
    let mut statuses = async || {
        let answer = client.get(&completed_target("a"), &[]).await;
        let state = operator.send("GET", "/api/state", &[("host", "gw.example")]).await;
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
        ground.configure(&format!("allowed_hosts = {names}"));
        gateway.signal("HUP");
        gateway.wait_for_log("configuration reloaded").await;
        assert_eq!(statuses().await, expected, "{names}");
    }
}

#[tokio::test]
async fn every_name_is_let_in_by_a_star_which_is_warned_of() {
    let ground = TestEnv::new().await;
    let command = sidecar(&ground, "allowed_hosts = [\"*\"]");
    ground.sim.set_status("a", "complete");
    let mut gateway = GatewayProcess::spawn(command);
    let mut client = TestClient::connect(gateway.address().await).await;
    let line = gateway.wait_for_log("server.allowed_hosts is").await;
    assert!(line.contains("WARN"), "{line}");
    assert_eq!(client.get(&completed_target("a"), &[]).await.status(), 200, "it asks for gw.example");
}

#[tokio::test]
async fn the_operators_unix_socket_may_be_asked_under_any_name() {
    let ground = TestEnv::new().await;
    ground.configure("");
    let path = ground.path("admin.sock");
    let mut command = ground.command();
    command.env("CLIPGATE__ADMIN__LISTEN", format!("unix:{}", path.display()));
    let mut gateway = GatewayProcess::spawn(command);
    gateway.address().await;
    gateway.next_line().await;
    let mut client = TestClient::h1(UnixStream::connect(&path).await.unwrap()).await;
    assert_eq!(client.get("/api/state", &[]).await.status(), 200, "it asks for gw.example");
}
