//! CORS: the fields that browsers get.

use http::{HeaderMap, Request};
use http_body_util::Empty;

use crate::harness::process::{GatewayProcess, TestClient, TestEnv, completed_target};

const APP: (&str, &str) = ("origin", "https://app.example");

fn allowed(headers: &HeaderMap) -> Option<&str> {
    headers.get("access-control-allow-origin").map(|value| value.to_str().unwrap())
}

fn preflight(target: &str, origin: &str) -> Request<Empty<bytes::Bytes>> {
    Request::options(target)
        .header("host", "gw.example")
        .header("origin", origin)
        .header("access-control-request-method", "GET")
        .header("access-control-request-headers", "authorization,last-event-id")
        .body(Empty::new())
        .unwrap()
}

#[tokio::test]
async fn a_listed_origin_may_read_hits_misses_errors_and_passed_through_responses() {
    let env = TestEnv::new().await;
    env.configure("cors_origins = [\"https://app.example\"]");
    env.sim.set_status("a", "complete");
    let mut gateway = env.start();
    let mut client = TestClient::connect(gateway.address().await).await;
    let rows = [
        (completed_target("a"), 200, "clipgate; fwd=miss"),
        (completed_target("a"), 200, "clipgate; hit"),
        (completed_target(""), 400, "clipgate; detail="),
        ("/else".to_owned(), 404, "clipgate; fwd=bypass"),
    ];
    for (target, status, case) in &rows {
        let answer = client.get(target, &[APP]).await;
        assert_eq!(answer.status(), *status, "{target}");
        let headers = answer.headers();
        assert!(headers["cache-status"].to_str().unwrap().starts_with(case), "{headers:?}");
        assert_eq!(allowed(headers), Some(APP.1), "{case}");
        assert!(headers.get_all("vary").iter().any(|vary| vary == "Origin"), "{case}");
        let exposed = headers["access-control-expose-headers"].to_str().unwrap();
        assert!(exposed.contains("Cache-Status") && exposed.contains("X-Request-Id"), "{exposed}");

        let answer = client.get(target, &[("origin", "https://evil.example")]).await;
        assert_eq!(allowed(answer.headers()), None, "{case}");
    }
    assert_eq!(rows.len(), 4);
    let stream = client.get(&completed_target("a"), &[APP, ("accept", "text/event-stream")]).await;
    assert_eq!(stream.headers()["content-type"], "text/event-stream");
    assert_eq!(allowed(stream.headers()), Some(APP.1));
}

#[tokio::test]
async fn origins_of_desktop_programs_and_origins_with_default_ports_match_those_of_browsers() {
    let env = TestEnv::new().await;
    env.configure(
        "cors_origins = [\"tauri://localhost\", \"app://obsidian.md\", \"chrome-extension://abcdefghijklmnop\", \
         \"https://app.example:443\", \"http://app.example:80\", \"https://other.example:8443\"]",
    );
    let mut command = env.command();
    command.env("CLIPGATE__AUTH__MODE", "sidecar").env("CLIPGATE__UPSTREAM__API_KEY", "of-the-gateway");
    let mut gateway = GatewayProcess::spawn(command);
    let mut client = TestClient::connect(gateway.address().await).await;
    let mut status = async |origin: &str| {
        let fields = [("host", "localhost"), ("origin", origin), ("sec-fetch-site", "cross-site")];
        let mut request = Request::get("/else");
        for (name, value) in fields {
            request = request.header(name, value);
        }
        let answer = client.send(request.body(Empty::new()).unwrap()).await.unwrap();
        assert_eq!(allowed(answer.headers()), (answer.status() == 404).then_some(origin), "{origin}");
        answer.status().as_u16()
    };
    for origin in [
        "tauri://localhost",
        "app://obsidian.md",
        "chrome-extension://abcdefghijklmnop",
        "https://app.example",
        "http://app.example",
        "https://other.example:8443",
    ] {
        assert_eq!(status(origin).await, 404, "{origin} may use the upstream");
    }
    for origin in
        ["https://other.example", "app://localhost", "http://localhost:1420", "chrome-extension://evil"]
    {
        assert_eq!(status(origin).await, 403, "{origin}");
    }
}

#[tokio::test]
async fn a_preflight_is_answered_without_the_upstream_and_without_a_key() {
    let env = TestEnv::new().await;
    env.configure("cors_origins = [\"https://app.example\"]");
    let mut gateway = env.start();
    let mut client = TestClient::connect(gateway.address().await).await;
    let answer = client.send(preflight(&completed_target("a"), APP.1)).await.unwrap();
    assert_eq!(answer.status(), 204);
    assert_eq!(allowed(answer.headers()), Some(APP.1));
    assert_eq!(answer.headers()["access-control-allow-methods"], "GET");
    assert_eq!(answer.headers()["access-control-allow-headers"], "authorization,last-event-id");
    assert!(answer.headers().contains_key("x-request-id"));
    let unlisted = client.send(preflight(&completed_target("a"), "https://evil.example")).await.unwrap();
    assert_eq!((unlisted.status().as_u16(), allowed(unlisted.headers())), (204, None));
    assert_eq!(env.sim.requests().len(), 0);
}

#[tokio::test]
async fn without_cors_origins_preflights_are_passed_through() {
    let env = TestEnv::new().await;
    env.configure("");
    let mut gateway = env.start();
    let mut client = TestClient::connect(gateway.address().await).await;
    client.send(preflight(&completed_target("a"), APP.1)).await.unwrap();
    assert_eq!(env.sim.requests().len(), 1);
}
