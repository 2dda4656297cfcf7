//! `Forwarded` and `X-Forwarded-*`: which senders are trusted, and the fields that the upstream gets.

use clipgate::sim::RecordedRequest;
use tokio::net::UnixStream;

use crate::harness::process::{TestClient, TestEnv, quoted};

const REPORT: [(&str, &str); 3] = [
    ("x-forwarded-for", "1.1.1.1, 192.0.2.7"),
    ("x-forwarded-proto", "https"),
    ("x-forwarded-host", "public.example"),
];

fn field<'a>(seen: &'a RecordedRequest, name: &str) -> &'a str {
    seen.headers[name].to_str().unwrap()
}

#[tokio::test]
async fn a_trusted_proxys_chain_is_sent_to_the_upstream_with_the_proxy_appended() {
    let env = TestEnv::new().await;
    env.configure("trusted_proxies = [\"127.0.0.1\"]");
    let mut gateway = env.start_with_json_log();
    let mut client = TestClient::connect(gateway.address().await).await;
    client.get("/x", &REPORT).await;
    let seen = env.sim.requests().pop().unwrap();
    assert_eq!(field(&seen, "x-forwarded-for"), "1.1.1.1, 192.0.2.7, 127.0.0.1");
    assert_eq!(field(&seen, "x-forwarded-proto"), "https");
    assert_eq!(field(&seen, "x-forwarded-host"), "public.example");
    assert!(field(&seen, "forwarded").ends_with(", for=127.0.0.1;proto=http;host=\"gw.example\""));
    let line = gateway.wait_for_log("clipgate.request_id").await;
    assert!(
        line.contains(r#""client.address":"192.0.2.7""#)
            && line.contains(r#""network.peer.address":"127.0.0.1""#),
        "{line}"
    );
}

#[tokio::test]
async fn the_fields_of_an_untrusted_client_are_dropped() {
    let env = TestEnv::new().await;
    env.configure("trusted_proxies = [\"192.0.2.0/24\"]");
    let mut gateway = env.start_with_json_log();
    let mut client = TestClient::connect(gateway.address().await).await;
    client.get("/x", &REPORT).await;
    let seen = env.sim.requests().pop().unwrap();
    assert_eq!(field(&seen, "x-forwarded-for"), "127.0.0.1");
    assert_eq!(field(&seen, "x-forwarded-proto"), "http");
    assert_eq!(field(&seen, "x-forwarded-host"), "gw.example");
    let line = gateway.wait_for_log("clipgate.request_id").await;
    assert!(line.contains(r#""client.address":"127.0.0.1""#), "{line}");
}

#[tokio::test]
async fn a_chain_over_its_limit_is_ignored_and_not_sent_to_the_upstream() {
    let env = TestEnv::new().await;
    env.configure("trusted_proxies = [\"127.0.0.1\"]");
    let mut gateway = env.start_with_json_log();
    let mut client = TestClient::connect(gateway.address().await).await;
    let parameters: String = (0..7000).map(|n| format!(";p{n}=x")).collect();
    let chains = [
        ("forwarded", format!("for=192.0.2.7{parameters}")),
        ("forwarded", vec!["for=192.0.2.7"; 65].join(",")),
        ("x-forwarded-for", vec!["192.0.2.7"; 65].join(",")),
    ];
    for (name, chain) in &chains {
        client.get("/x", &[(name, chain)]).await;
        let seen = env.sim.requests().pop().unwrap();
        assert_eq!(field(&seen, "x-forwarded-for"), "127.0.0.1");
        assert!(field(&seen, "forwarded").len() < 100, "{:?}", seen.headers["forwarded"]);
        let line = gateway.wait_for_log("clipgate.request_id").await;
        assert!(line.contains(r#""client.address":"127.0.0.1""#), "{line}");
    }
}

#[tokio::test]
async fn a_unix_socket_counts_as_this_machine() {
    let env = TestEnv::new().await;
    let path = env.path("gw.sock");
    let listen = quoted(format!("unix:{}", path.display()).as_ref());
    env.configure(&format!("listen = {listen}\ntrusted_proxies = [\"127.0.0.0/8\"]"));
    let mut gateway = env.start_with_json_log();
    gateway.listens_on().await;
    TestClient::h1(UnixStream::connect(&path).await.unwrap()).await.get("/x", &REPORT).await;
    let seen = env.sim.requests().pop().unwrap();
    assert_eq!(field(&seen, "x-forwarded-for"), "1.1.1.1, 192.0.2.7, unknown");
    let line = gateway.wait_for_log("clipgate.request_id").await;
    assert!(
        line.contains(r#""client.address":"192.0.2.7""#) && line.contains(r#""network.peer.address":"unix""#),
        "{line}"
    );
}

#[tokio::test]
async fn each_client_behind_a_proxy_has_its_own_quota() {
    let env = TestEnv::new().await;
    env.configure("trusted_proxies = [\"127.0.0.1\"]\n[limits]\nrequests_per_second = 1\nburst = 1");
    let mut gateway = env.start();
    let mut client = TestClient::connect(gateway.address().await).await;
    let mut statuses = Vec::new();
    for address in ["192.0.2.1", "192.0.2.1", "192.0.2.2"] {
        statuses.push(client.get("/x", &[("x-forwarded-for", address)]).await.status().as_u16());
    }
    assert_eq!(statuses, [404, 429, 404]);
}
