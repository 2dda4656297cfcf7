//! Whose word on the client is taken, and what the upstream is told of it.

use clipgate::sim::RecordedRequest;
use tokio::net::UnixStream;

use crate::harness::process::{TestClient, TestEnv, quoted};

const SAID: [(&str, &str); 3] = [
    ("x-forwarded-for", "1.1.1.1, 192.0.2.7"),
    ("x-forwarded-proto", "https"),
    ("x-forwarded-host", "public.example"),
];

fn field<'a>(seen: &'a RecordedRequest, name: &str) -> &'a str {
    seen.headers[name].to_str().unwrap()
}

#[tokio::test]
async fn a_trusted_proxys_chain_goes_up_with_the_proxy_appended() {
    let ground = TestEnv::new().await;
    ground.configure("trusted_proxies = [\"127.0.0.1\"]");
    let mut gateway = ground.start();
    let mut client = TestClient::connect(gateway.address().await).await;
    client.get("/x", &SAID).await;
    let seen = ground.sim.requests().pop().unwrap();
    assert_eq!(field(&seen, "x-forwarded-for"), "1.1.1.1, 192.0.2.7, 127.0.0.1");
    assert_eq!(field(&seen, "x-forwarded-proto"), "https");
    assert_eq!(field(&seen, "x-forwarded-host"), "public.example");
    assert!(field(&seen, "forwarded").ends_with(", for=127.0.0.1;proto=http;host=\"gw.example\""));
    let line = gateway.wait_for_log("request_id=").await;
    assert!(
        line.contains("client.address=192.0.2.7 ") && line.contains("network.peer.address=127.0.0.1 "),
        "{line}"
    );
}

#[tokio::test]
async fn from_anybody_else_all_of_it_is_dropped() {
    let ground = TestEnv::new().await;
    ground.configure("trusted_proxies = [\"192.0.2.0/24\"]");
    let mut gateway = ground.start();
    let mut client = TestClient::connect(gateway.address().await).await;
    client.get("/x", &SAID).await;
    let seen = ground.sim.requests().pop().unwrap();
    assert_eq!(field(&seen, "x-forwarded-for"), "127.0.0.1");
    assert_eq!(field(&seen, "x-forwarded-proto"), "http");
    assert_eq!(field(&seen, "x-forwarded-host"), "gw.example");
    let line = gateway.wait_for_log("request_id=").await;
    assert!(line.contains("client.address=127.0.0.1 "), "{line}");
}

#[tokio::test]
async fn a_chain_longer_than_any_real_one_counts_for_nothing_and_does_not_go_up() {
    let ground = TestEnv::new().await;
    ground.configure("trusted_proxies = [\"127.0.0.1\"]");
    let mut gateway = ground.start();
    let mut client = TestClient::connect(gateway.address().await).await;
    let parameters: String = (0..7000).map(|n| format!(";p{n}=x")).collect();
    let chains = [
        ("forwarded", format!("for=192.0.2.7{parameters}")),
        ("forwarded", vec!["for=192.0.2.7"; 65].join(",")),
        ("x-forwarded-for", vec!["192.0.2.7"; 65].join(",")),
    ];
    for (name, chain) in &chains {
        client.get("/x", &[(name, chain)]).await;
        let seen = ground.sim.requests().pop().unwrap();
        assert_eq!(field(&seen, "x-forwarded-for"), "127.0.0.1");
        assert!(field(&seen, "forwarded").len() < 100, "{:?}", seen.headers["forwarded"]);
        let line = gateway.wait_for_log("request_id=").await;
        assert!(line.contains("client.address=127.0.0.1 "), "{line}");
    }
}

#[tokio::test]
async fn a_unix_socket_is_this_machine() {
    let ground = TestEnv::new().await;
    let path = ground.path("gw.sock");
    let listen = quoted(format!("unix:{}", path.display()).as_ref());
    ground.configure(&format!("listen = {listen}\ntrusted_proxies = [\"127.0.0.0/8\"]"));
    let mut gateway = ground.start();
    gateway.listens_on().await;
    TestClient::h1(UnixStream::connect(&path).await.unwrap()).await.get("/x", &SAID).await;
    let seen = ground.sim.requests().pop().unwrap();
    assert_eq!(field(&seen, "x-forwarded-for"), "1.1.1.1, 192.0.2.7, unknown");
    let line = gateway.wait_for_log("request_id=").await;
    assert!(
        line.contains("client.address=192.0.2.7 ") && line.contains("network.peer.address=unix "),
        "{line}"
    );
}

#[tokio::test]
async fn clients_behind_one_proxy_have_a_quota_each() {
    let ground = TestEnv::new().await;
    ground.configure("trusted_proxies = [\"127.0.0.1\"]\n[limits]\nrequests_per_second = 1\nburst = 1");
    let mut gateway = ground.start();
    let mut client = TestClient::connect(gateway.address().await).await;
    let mut statuses = Vec::new();
    for address in ["192.0.2.1", "192.0.2.1", "192.0.2.2"] {
        statuses.push(client.get("/x", &[("x-forwarded-for", address)]).await.status().as_u16());
    }
    assert_eq!(statuses, [404, 429, 404]);
}
